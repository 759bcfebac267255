//! The reference models: what must be true of any run, worked out from the trace alone.
//!
//! They share no code with the machine: content and dirtiness are [`ranges::Ranges`], filled from what
//! guests were told. They must never read the machine's state while it runs; at the end they are shown what
//! it left ([`final_state`]).

pub mod asked;
pub mod bitmaps;
pub mod conduct;
pub mod disks;
mod drained;
pub mod events;
pub mod final_state;
pub mod given_up;
mod guests;
pub mod hash;
pub mod jobs;
mod places;
pub mod qcow2_image;
pub mod ranges;
mod request;
pub mod sightings;
mod snapshots;
mod verdict;
pub mod violation;
pub mod watch;

pub use final_state::FinalState;
pub use sightings::{Mark, Seen, Sightings};
pub use violation::{Breach, Invariant, Violation};
pub use watch::Watch;
