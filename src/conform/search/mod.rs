//! The search for differences: generate, compare, shrink, for as many scenarios as one likes.
//!
//! Which scenarios there are is a function of the seed alone; so is the order of the results. Must never
//! lose a difference: each is written to a directory with all that is needed to look at it.

mod shrink;
mod summary;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::scenario::parse;
use crate::scenario::run::Ending;
use crate::workers::in_order;

use self::shrink::shrink;
pub use self::summary::{Counts, Summary};
use super::generate::{Family, Generated};
use super::trial::{CaseReport, Repeat, Trial};
use super::verdict::{Difference, Side, Verdict};

/// How long the shrinking of one difference may take.
const LONGEST_SHRINK: Duration = Duration::from_secs(120);

/// How long QEMU is waited for while shrinking: leaving out steps makes many a wait vain.
const SHRINK_WAIT: Duration = Duration::from_secs(2);

/// Makes a scenario: the same for the same seed on every machine.
pub type Generate<'g> = dyn Fn(u64) -> Generated + Sync + 'g;

/// What is searched through.
#[derive(Clone, Debug)]
pub struct SearchOptions {
    /// The seed of the first scenario; each further one has the next seed.
    pub seed: u64,
    /// How many scenarios there are.
    pub count: u64,
    /// How many scenarios are run at a time.
    pub jobs: usize,
    /// Where differences are written; made if it is not there.
    pub out: PathBuf,
    /// How many runs of real QEMU the shrinking of one difference may cost.
    pub shrink_budget: u32,
    /// How many differences are shrunk; further ones are written as they were generated.
    pub shrink_most: u64,
}

/// One scenario done.
#[derive(Clone, Debug)]
pub struct Done {
    /// Its family.
    pub family: Family,
    /// Its seed.
    pub seed: u64,
    /// What came of it; the message if the generator's text is no scenario.
    pub result: Result<Verdict, String>,
    /// The directory with the difference, if there is one.
    pub written: Option<PathBuf>,
    /// What could not be written.
    pub write_error: Option<String>,
}

/// Both sides and the source of scenarios.
#[derive(Clone, Copy)]
pub struct Search<'s> {
    /// Real QEMU and model.
    pub trial: Trial<'s>,
    /// The generator.
    pub generate: &'s Generate<'s>,
}

impl Search<'_> {
    /// Does the search. `progress` is told of each scenario in the order of the seeds, with the counts so
    /// far, and ends the search by giving false.
    pub fn run(&self, options: &SearchOptions, progress: &mut dyn FnMut(&Done, &Summary) -> bool) -> Summary {
        let mut summary = Summary::default();
        let to_shrink = AtomicU64::new(options.shrink_most);
        let work = |index| self.one(options, index, &to_shrink);
        // Who ends the search knows why.
        let _ = in_order(options.count, options.jobs, work, |done| {
            summary.count(&done);
            if progress(&done, &summary) { Ok(()) } else { Err(()) }
        });
        summary
    }

    /// Does the scenario number `index`.
    fn one(&self, options: &SearchOptions, index: u64, to_shrink: &AtomicU64) -> Done {
        let seed = options.seed.wrapping_add(index);
        let Generated { family, name, text } = (self.generate)(seed);
        let mut done = Done { result: self.verdict(&text), family, seed, written: None, write_error: None };
        if !matches!(done.result, Ok(Verdict::Same | Verdict::Reordered { .. } | Verdict::Skipped { .. })) {
            let dir = options.out.join(name);
            match self.write(options, &dir, &text, &done, to_shrink) {
                Ok(()) => done.written = Some(dir),
                Err(error) => done.write_error = Some(format!("{}: {error}", dir.display())),
            }
        }
        done
    }

    /// The worst verdict of the cases of a scenario.
    fn verdict(&self, text: &str) -> Result<Verdict, String> {
        let scenario = parse("scenario.yaml", text).map_err(|mistakes| mistakes.to_string())?;
        let reports = self.trial.scenario(&scenario).map_err(|mistakes| mistakes.to_string())?;
        Ok(worst(reports))
    }

    fn write(
        &self,
        options: &SearchOptions,
        dir: &Path,
        text: &str,
        done: &Done,
        to_shrink: &AtomicU64,
    ) -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let verdict = match &done.result {
            Ok(verdict) => verdict,
            Err(mistakes) => {
                std::fs::write(dir.join("scenario.yaml"), text)?;
                return std::fs::write(dir.join("mistakes.txt"), mistakes);
            }
        };
        let (mut shown, mut example) = (text.to_owned(), verdict.difference().cloned());
        let allowed =
            || to_shrink.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if let Verdict::Different(difference) = verdict
            && allowed()
        {
            std::fs::write(dir.join("generated.yaml"), text)?;
            (shown, example) = self.shrunk(options, text, difference);
        }
        let qemu = format!("QEMU {}", self.trial.qemu.version);
        let head = format!(
            "# Family {}, seed {}: {} between {qemu} and the model; difference.diff shows it.\n",
            done.family,
            done.seed,
            verdict.word()
        );
        std::fs::write(dir.join("scenario.yaml"), head + &shown)?;
        if let Some(example) = example {
            std::fs::write(dir.join("qemu.out"), example.real.text())?;
            std::fs::write(dir.join("model.out"), example.model.text())?;
            std::fs::write(dir.join("difference.diff"), example.diff(&qemu, "model"))?;
        }
        if let Verdict::Broken { trouble, .. } = verdict {
            std::fs::write(dir.join("trouble.txt"), format!("{trouble}\n{}", trouble.output))?;
        }
        Ok(())
    }

    /// The smallest scenario found that differs in the same way, and its difference.
    fn shrunk(&self, options: &SearchOptions, text: &str, difference: &Difference) -> (String, Option<Difference>) {
        let mut qemu = self.trial.qemu.clone();
        qemu.options.longest_wait = Some(SHRINK_WAIT);
        let repeat = Repeat { runs: 1, only_if_different: true };
        let once = Search { trial: Trial { qemu: &qemu, repeat, ..self.trial }, ..*self };
        let signature = difference.signature();
        let deadline = Instant::now() + LONGEST_SHRINK;
        let mut smallest = difference.clone();
        // The model is asked first, for nothing: real QEMU need not wait for what will never come.
        let valid = |text: &str| self.model_ends_like(text, &difference.model);
        let shrunk = shrink(text, options.shrink_budget, &valid, &mut |text| {
            if Instant::now() >= deadline {
                return false;
            }
            match once.verdict(text) {
                Ok(Verdict::Different(found)) if found.signature() == signature => {
                    smallest = found;
                    true
                }
                _ => false,
            }
        });
        (shrunk.text, Some(smallest))
    }
}

impl Search<'_> {
    /// Whether `text` is a scenario in which the model passes if `side` did, and fails if that did.
    fn model_ends_like(&self, text: &str, side: &Side) -> bool {
        let passed = |side: &Side| side.ending == Ending::Passed;
        let cases = parse("scenario.yaml", text).and_then(|scenario| scenario.cases());
        cases.is_ok_and(|cases| cases.iter().any(|case| passed(&self.trial.model(case)) == passed(side)))
    }
}

/// The verdict that says most about a scenario: a difference before all others, `same` only if all cases are
/// the same or skipped.
fn worst(reports: Vec<CaseReport>) -> Verdict {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Different(_) => 0,
        Verdict::Broken { .. } => 1,
        Verdict::Unstable { .. } => 2,
        Verdict::Reordered { .. } => 3,
        Verdict::Same => 4,
        Verdict::Skipped { .. } => 5,
    };
    let worst = reports.into_iter().map(|report| report.verdict).min_by_key(rank);
    worst.unwrap_or(Verdict::Same)
}
