//! Scenarios: YAML files that say what happens to a machine, and the transcript that comes of it.
//!
//! Reading goes through layers that know nothing of one another's business: [`load()`] puts together the
//! tree with places, templates, decoders, checks and expansion; [`mod@run`] drives a [`backend::Backend`]
//! through the expanded steps. The same runner serves the simulated QEMU and a real one. Must never know
//! how a command is carried out, and never run a scenario in which a mistake was found.

pub mod ast;
pub mod backend;
mod check;
mod decode;
pub mod diagnostic;
mod expand;
pub mod json;
mod load;
pub(crate) mod parts;
mod program;
pub mod run;
mod schema;
pub mod simulate;
mod template;
pub mod transcript;
pub mod values;
mod workload;
mod yaml;

pub use diagnostic::{Diagnostic, Diagnostics, Pos};
pub use expand::MAX_STEPS;
pub use load::{Case, Scenario, load, parse};
pub use schema::schema;
pub use yaml::{MAX_DEPTH, MAX_FILE, MAX_NODES};
