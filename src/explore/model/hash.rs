//! Hashes that are the same everywhere and always: of abstract states and of what a run leaves.
//!
//! The standard library's may be others tomorrow; must never be used where collisions matter.

/// A small hash with fixed values, for abstract states.
pub struct Fnv(pub u64);

impl Fnv {
    /// A hash that begins with `salt`.
    pub fn new(salt: u64) -> Fnv {
        Fnv(0xCBF2_9CE4_8422_2325 ^ salt)
    }

    /// Adds a number.
    pub fn add(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
    }
}
