//! The strategies: who comes next, run after run.
//!
//! A `Search` gives a strategy for each run and is told how the run went. For all seeded ones the strategy of
//! run `i` depends only on the seed, on `i` and on [`Learned`] figures of the first run in QEMU's own order,
//! so any run can be repeated alone, on any machine. Nothing here may know what is being run.

mod coverage;
mod delay;
mod exhaustive;
mod order;
mod pct;
mod pos;
mod random;
mod script;
mod surw;
mod urw;

use std::rc::Rc;

use crate::sim::Strategy;
use crate::sim::rng::{Rng, Stream};

pub use coverage::{Corpus, Departures};
pub use delay::{DelayBounded, SampledDelays, Sparse};
pub use exhaustive::{Event, Exhaustive, Reduction, Tree};
pub use pct::Pct;
pub use pos::Pos;
pub use random::RandomWalk;
pub use script::Script;
pub use surw::{Selection, Surw};
pub use urw::Urw;

/// What the run in QEMU's own order has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Places where more than one step could come next.
    pub points: u64,
    /// Tasks that took steps, and how many each took.
    pub steps: Vec<(String, u64)>,
    /// Steps on a range of a disk: whose, offset, bytes.
    pub ranges: Vec<(Rc<str>, u64, u64)>,
}

/// The seeded strategies and their mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`RandomWalk`].
    Random,
    /// [`Pct`] of this depth.
    Pct(u32),
    /// [`Pos`].
    Pos,
    /// [`Urw`].
    Urw,
    /// [`Surw`] of these events.
    Surw(Selection),
    /// [`SampledDelays`]: this many at most.
    Delays(u32),
    /// All of them in turn.
    Auto,
}

impl Kind {
    /// The kind that `--strategy` calls so; the depth is PCT's.
    pub fn from_name(name: &str, depth: u32) -> Option<Kind> {
        Some(match name {
            "random" => Kind::Random,
            "pct" => Kind::Pct(depth),
            "pos" => Kind::Pos,
            "urw" => Kind::Urw,
            "surw" => Kind::Surw(Selection::AnyCluster),
            "delays" => Kind::Delays(depth),
            "seeded" => Kind::Auto,
            _ => return None,
        })
    }

    /// Whether what a strategy of this kind takes depends on the order in which the alternatives of a point stand, or
    /// on when they are due, and not only on which there are.
    pub fn looks_at_order(self) -> bool {
        self != Kind::Random
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Random => "random",
            Kind::Pct(_) => "pct",
            Kind::Pos => "pos",
            Kind::Urw => "urw",
            Kind::Surw(_) => "surw",
            Kind::Delays(_) => "delays",
            Kind::Auto => "seeded",
        }
    }

    /// The strategy of run `index`.
    pub fn strategy(self, seed: u64, index: u64, learned: &Learned) -> Box<dyn Strategy> {
        // Every run has a stream of its own: the index is mixed into the seed, so that runs can be skipped.
        let mixed = seed ^ index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let rng = Rng::new(mixed, Stream::Schedule);
        match self {
            Kind::Random => Box::new(RandomWalk::new(rng, index % 2 == 1)),
            Kind::Pct(depth) => Box::new(Pct::new(rng, depth, learned.points)),
            Kind::Pos => Box::new(Pos::new(rng)),
            Kind::Urw => Box::new(Urw::new(rng, learned)),
            Kind::Surw(selection) => Box::new(Surw::new(rng, selection, learned)),
            Kind::Delays(most) => Box::new(SampledDelays::new(rng, most, learned.points)),
            Kind::Auto => Kind::in_turn(index).strategy(seed, index / 10, learned),
        }
    }

    /// Which strategy `seeded` uses for run `index`: each family gets a share of every ten runs, because none
    /// finds all defects first (see the table in `docs/exploration.md`).
    fn in_turn(index: u64) -> Kind {
        match index % 10 {
            0 | 5 => Kind::Random,
            1 | 6 => Kind::Delays(1),
            2 => Kind::Pct(1 + (index / 10 % 4) as u32),
            3 | 8 => Kind::Delays(3),
            4 => Kind::Pos,
            7 if index / 10 % 2 == 0 => Kind::Urw,
            7 => Kind::Surw(Selection::AnyCluster),
            _ => Kind::Pct(3),
        }
    }

    /// What `runs` runs guarantee, in words, if anything.
    pub fn guarantee(self, runs: u64, learned: &Learned) -> Option<String> {
        match self {
            Kind::Pct(depth) => Some(pct::guarantee(depth, runs, learned)),
            Kind::Urw => Some(urw::guarantee(learned)),
            _ => None,
        }
    }
}
