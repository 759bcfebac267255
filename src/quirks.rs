//! Versions and known defects as data: every difference of behaviour is one named field here.
//!
//! `compat:` picks a set; the model asks a field at the one place where it matters. A field that
//! re-enacts a defect which no release had (for exploration) defaults to `false` in every set.

/// Which QEMU's observable behaviour is reproduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Compat {
    /// 7.2.22, as Debian 12 packages it.
    #[default]
    Qemu72,
    /// 10.0.2, as Debian 13 packages it.
    Qemu100,
}

impl Compat {
    /// All known sets, oldest first.
    pub const ALL: [Compat; 2] = [Compat::Qemu72, Compat::Qemu100];

    /// The name in `compat:` and `--compat`.
    pub fn name(self) -> &'static str {
        match self {
            Compat::Qemu72 => "qemu-7.2",
            Compat::Qemu100 => "qemu-10.0",
        }
    }

    /// The set called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Compat> {
        Compat::ALL.into_iter().find(|c| c.name() == name)
    }
}
