//! Random numbers that are the same on every machine and in every version.
//!
//! ChaCha8 gives the stream; the bounded pick is done here, because the distributions of `rand` may
//! change their values between releases. Each concern has a stream of its own, so that one more draw
//! in one place does not move the draws of another.

use rand::SeedableRng;
use rand::rand_core::Rng as _;
use rand_chacha::ChaCha8Rng;

/// What a stream of numbers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Which runnable task goes next.
    Schedule = 1,
    /// How long device operations take.
    Timing = 2,
    /// Whether seeded faults strike.
    Faults = 3,
    /// What guests write.
    Workload = 4,
    /// Generated names (`#block` digits).
    Names = 5,
    /// Generated scenarios.
    Generate = 6,
}

/// A seeded generator.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The generator of `stream` for `seed`.
    pub fn new(seed: u64, stream: Stream) -> Rng {
        let mut inner = ChaCha8Rng::seed_from_u64(seed);
        inner.set_stream(stream as u64);
        Rng(inner)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // Multiply-shift: the bias is below bound / 2^64, which no test can see.
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// A number of `low..=high`; `low` if the range is empty.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        match high.checked_sub(low) {
            None => low,
            Some(u64::MAX) => self.bits(),
            Some(span) => low + self.below(span + 1),
        }
    }

    /// True once in `n` draws on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n.max(1)) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_fixed_for_all_time() {
        let mut rng = Rng::new(0, Stream::Schedule);
        let first = [rng.bits(), rng.below(100), rng.between(5, 7)];
        let mut again = Rng::new(0, Stream::Schedule);
        assert_eq!(first, [again.bits(), again.below(100), again.between(5, 7)]);
        assert_ne!(Rng::new(0, Stream::Timing).bits(), first[0]);
    }
}
