//! How far a search has come, as one line for a terminal.
//!
//! Only words are made here; whether anybody sees them is the command line's business. No result may depend on it.

use std::time::{Duration, Instant};

use super::search::{Plan, Tally};
use super::tally::Cells;

/// How often the line changes.
const EVERY: Duration = Duration::from_millis(200);

/// The line's maker.
pub struct Progress {
    what: String,
    schedules: u64,
    time: Option<Duration>,
    begin: Instant,
    /// Runs that had been made before.
    before: u64,
    shown: Option<Instant>,
}

impl Progress {
    /// Begins now, with so many runs made before.
    pub fn new(what: &str, plan: &Plan, time: Option<Duration>, before: u64) -> Progress {
        let share = plan.part.map_or(1, |part| part.all().count() as u64);
        let schedules = plan.end.div_ceil(share);
        Progress { what: what.to_owned(), schedules, time, begin: Instant::now(), before, shown: None }
    }

    /// The line, unless there was one a moment ago.
    pub fn line(&mut self, tally: &Tally) -> Option<String> {
        if self.shown.is_some_and(|shown| shown.elapsed() < EVERY) {
            return None;
        }
        self.shown = Some(Instant::now());
        Some(self.text(tally, self.begin.elapsed()))
    }

    fn text(&self, tally: &Tally, passed: Duration) -> String {
        let rate = (tally.runs - self.before) as f64 / passed.as_secs_f64().max(1e-3);
        let by_runs = (rate > 0.0).then(|| self.schedules.saturating_sub(tally.runs) as f64 / rate);
        let by_time = self.time.map(|time| time.saturating_sub(passed).as_secs_f64());
        let left = [by_runs, by_time]
            .into_iter()
            .flatten()
            .fold(None, |least: Option<f64>, own| Some(least.map_or(own, |least| least.min(own))));
        let left = left.map_or_else(String::new, |seconds| format!(", {} left", clock(seconds)));
        let cells = Cells::of(&tally.cells);
        format!(
            "{}: {}/{} schedules, {rate:.0}/s, {} final + {} abstract states, {}/{} job states x operations{left}",
            self.what,
            tally.runs,
            self.schedules,
            tally.states.len(),
            tally.coverage.len(),
            cells.reached,
            cells.states * cells.operations
        )
    }
}

/// Seconds as people say them.
fn clock(seconds: f64) -> String {
    let seconds = seconds.min(1e9) as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explore::Kind;

    #[test]
    fn the_line_tells_rate_and_time_left() {
        let plan = Plan::new(Kind::Auto, 0, 1_000);
        let progress = Progress::new("case", &plan, Some(Duration::from_secs(300)), 100);
        let tally = Tally { runs: 200, ..Tally::default() };
        let text = progress.text(&tally, Duration::from_secs(10));
        assert_eq!(
            text,
            "case: 200/1000 schedules, 10/s, 0 final + 0 abstract states, 0/0 job states x operations, 1m20s left"
        );
    }
}
