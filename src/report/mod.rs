//! Output for people and machines: differences, JUnit, pictures of a run.
//!
//! Everything here turns finished results into text. Must never run anything, decide whether a result is
//! good, or write to a file or a stream itself: that is for whoever asked.

mod chrome_trace;
mod diff;
mod junit;
mod style;

pub use chrome_trace::ChromeTrace;
pub use diff::{Difference, difference};
pub use junit::{Suite, TestCase, TestResult, junit};
pub use style::Style;
