//! The search for differences: generate, compare, shrink, for as many scenarios as one likes.
//!
//! Which scenarios there are is a function of the seed alone; two workers do them in any order. Must never
//! lose a difference: each is written to a directory with all that is needed to look at it.

mod parts;
mod shrink;
mod summary;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

use crate::scenario::parse;

use self::shrink::shrink;
pub use self::summary::{Counts, Summary};
use super::trial::{CaseReport, Model, Repeat, Trial};
use super::verdict::{Difference, Verdict};

/// Makes the text of a scenario: the same for the same seed and family on every machine.
pub type Generate<'g> = dyn Fn(u64, &str) -> String + Sync + 'g;

/// What is searched through.
#[derive(Clone, Debug)]
pub struct SearchOptions {
    /// The seed of the first scenario; each further one has the next seed.
    pub seed: u64,
    /// How many scenarios there are.
    pub count: u64,
    /// The families, taken in turn.
    pub families: Vec<String>,
    /// How many scenarios are run at a time.
    pub jobs: usize,
    /// Where differences are written; made if it is not there.
    pub out: PathBuf,
    /// How many runs of real QEMU the shrinking of one difference may cost; 0: none is shrunk.
    pub shrink_budget: u32,
}

/// One scenario done.
#[derive(Clone, Debug)]
pub struct Done {
    /// Its family.
    pub family: String,
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
    /// Does the search. `progress` is told each scenario as it is done, with the counts so far, and ends the
    /// search by giving false.
    pub fn run(&self, options: &SearchOptions, progress: &mut dyn FnMut(&Done, &Summary) -> bool) -> Summary {
        let next = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        let (sender, done) = mpsc::channel();
        let mut summary = Summary::new(&options.families);
        std::thread::scope(|scope| {
            for _ in 0..options.jobs.max(1) {
                let sender = sender.clone();
                scope.spawn(|| {
                    let sender = sender;
                    while !stop.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= options.count || sender.send(self.one(options, index)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for done in done {
                summary.count(&done);
                if !progress(&done, &summary) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        });
        summary
    }

    /// Does the scenario number `index`.
    fn one(&self, options: &SearchOptions, index: u64) -> Done {
        let seed = options.seed.wrapping_add(index);
        let families = options.families.len().max(1) as u64;
        let family = usize::try_from(index % families)
            .ok()
            .and_then(|place| options.families.get(place));
        let family = family.cloned().unwrap_or_default();
        let text = (self.generate)(seed, &family);
        let mut done = Done {
            result: self.verdict(&text),
            family,
            seed,
            written: None,
            write_error: None,
        };
        if !matches!(done.result, Ok(Verdict::Same | Verdict::Skipped { .. })) {
            let dir = options.out.join(format!("{}-{seed}", done.family));
            match self.write(options, &dir, &text, &done) {
                Ok(()) => done.written = Some(dir),
                Err(error) => done.write_error = Some(format!("{}: {error}", dir.display())),
            }
        }
        done
    }

    /// The worst verdict of the cases of a scenario.
    fn verdict(&self, text: &str) -> Result<Verdict, String> {
        let scenario = parse("scenario.yaml", text).map_err(|mistakes| mistakes.to_string())?;
        let reports = self
            .trial
            .scenario(&scenario)
            .map_err(|mistakes| mistakes.to_string())?;
        Ok(worst(reports))
    }

    fn write(&self, options: &SearchOptions, dir: &Path, text: &str, done: &Done) -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let verdict = match &done.result {
            Ok(verdict) => verdict,
            Err(mistakes) => {
                std::fs::write(dir.join("scenario.yaml"), text)?;
                return std::fs::write(dir.join("mistakes.txt"), mistakes);
            }
        };
        let (mut shown, mut example) = (text.to_owned(), verdict.difference().cloned());
        if let (Verdict::Different(difference), 1..) = (verdict, options.shrink_budget) {
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
        let once = Search {
            trial: Trial {
                repeat: Repeat {
                    runs: 1,
                    only_if_different: true,
                },
                ..self.trial
            },
            ..*self
        };
        let signature = difference.signature();
        let mut smallest = difference.clone();
        let valid = |text: &str| parse("scenario.yaml", text).is_ok_and(|scenario| scenario.cases().is_ok());
        let shrunk = shrink(
            text,
            options.shrink_budget,
            &valid,
            &mut |text| match once.verdict(text) {
                Ok(Verdict::Different(found)) if found.signature() == signature => {
                    smallest = found;
                    true
                }
                _ => false,
            },
        );
        (shrunk.text, Some(smallest))
    }
}

/// The verdict that says most about a scenario: a difference before all others, `same` only if all cases are
/// the same or skipped.
fn worst(reports: Vec<CaseReport>) -> Verdict {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Different(_) => 0,
        Verdict::Broken { .. } => 1,
        Verdict::Unstable { .. } => 2,
        Verdict::Same => 3,
        Verdict::Skipped { .. } => 4,
    };
    let worst = reports.into_iter().map(|report| report.verdict).min_by_key(rank);
    worst.unwrap_or(Verdict::Same)
}
