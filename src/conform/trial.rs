//! A trial: one scenario on both sides, case by case.
//!
//! Must never let what goes wrong in one case (a QEMU that dies, a model that panics) end the others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::scenario::ast::Compatibility;
use crate::scenario::backend::RunErrorKind;
use crate::scenario::run::Ending;
use crate::scenario::{Case, Diagnostics, Scenario};

use super::guests::concurrent;
use super::left::{show_bitmaps, without_requests};
use super::orders::each_order;
use super::real_run::run_real;
use super::skip;
use super::tools::Qemu;
use super::verdict::{RealSide, Side, Verdict, agrees, compare};

/// The model: what it makes of a case, under the compat that the case has.
pub type Model<'m> = dyn Fn(&Case) -> Side + Sync + 'm;

/// How often a case is done by the real QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeat {
    /// The most runs; at least one is made.
    pub runs: u32,
    /// Whether further runs are made only for a case that differs.
    pub only_if_different: bool,
}

/// What a trial needs.
#[derive(Clone, Copy)]
pub struct Trial<'t> {
    /// The real QEMU.
    pub qemu: &'t Qemu,
    /// The other side.
    pub model: &'t Model<'t>,
    /// How often the real one is asked.
    pub repeat: Repeat,
    /// In how many other orders the model is asked where its own does not agree (`--orders`); 0: in none.
    pub orders: u64,
    /// Where the files of real runs are kept, if they are.
    pub keep: Option<&'t Path>,
}

/// One case compared.
#[derive(Clone, Debug)]
pub struct CaseReport {
    /// The case's name.
    pub name: String,
    /// The result.
    pub verdict: Verdict,
    /// Directories with what the real runs left.
    pub kept: Vec<PathBuf>,
}

impl Trial<'_> {
    /// Compares all cases of `scenario`. An error if it can't be expanded into cases.
    pub fn scenario(&self, scenario: &Scenario) -> Result<Vec<CaseReport>, Diagnostics> {
        Ok(scenario.cases()?.iter().map(|case| self.case(case)).collect())
    }

    /// Compares one case, the model under the real QEMU's compat.
    pub fn case(&self, case: &Case) -> CaseReport {
        let mut report = CaseReport { name: case.name.clone(), verdict: Verdict::Same, kept: Vec::new() };
        if let Some(why) = skip::reason(case, self.orders > 0) {
            report.verdict = Verdict::Skipped { why };
            return report;
        }
        let has_actors = concurrent(&case.steps).next().is_some();
        let shown;
        let (case, model) = match has_actors {
            false => (case, self.model(case)),
            true => {
                let mut with_bitmaps = case.clone();
                show_bitmaps(&mut with_bitmaps);
                shown = with_bitmaps;
                (&shown, self.own_order(&shown))
            }
        };
        let mut runs = Vec::new();
        for _ in 0..self.repeat.runs.max(1) {
            let run = run_real(&self.qemu.options, case, self.keep);
            report.kept.extend(run.kept);
            let mut side = Side::from(run.outcome);
            if has_actors {
                side.transcript = without_requests(&side.transcript) + &run.left;
            }
            runs.push(RealSide { side, trouble: run.trouble });
            report.verdict = compare(&runs, &model, &[]);
            if self.repeat.only_if_different && matches!(report.verdict, Verdict::Same | Verdict::Unstable { .. }) {
                break;
            }
        }
        if self.orders > 0 && report.verdict != Verdict::Same {
            report.verdict = compare(&runs, &model, &self.other_orders(case, &runs, &model));
        }
        report
    }

    /// What the model makes of `case` under the real QEMU's compat.
    pub fn model(&self, case: &Case) -> Side {
        ask(self.model, &self.as_real(case))
    }

    fn as_real(&self, case: &Case) -> Case {
        let mut case = case.clone();
        case.settings.compat = Compatibility(self.qemu.compat());
        case
    }

    /// The model's side of a case with actors, with what it leaves.
    fn own_order(&self, case: &Case) -> Side {
        let mut own = None;
        each_order(&self.as_real(case), 1, &mut |side| {
            own = Some(side);
            false
        });
        own.unwrap_or_else(|| self.model(case))
    }

    /// What the model makes of the case in other orders, as far as a real run went that way too.
    fn other_orders(&self, case: &Case, runs: &[RealSide], own: &Side) -> Vec<Side> {
        let mut unknown: Vec<&RealSide> = runs.iter().filter(|run| !agrees(run, own)).collect();
        let mut found = Vec::new();
        each_order(&self.as_real(case), self.orders, &mut |side| {
            let before = unknown.len();
            unknown.retain(|run| !agrees(run, &side));
            if unknown.len() < before {
                found.push(side);
            }
            !unknown.is_empty()
        });
        found
    }
}

/// The model's side; if it panics, that is how its run ended.
fn ask(model: &Model<'_>, case: &Case) -> Side {
    catch_unwind(AssertUnwindSafe(|| model(case))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        // Of all kinds, the one that no healthy QEMU shows.
        let ending =
            Ending::Failed { line: case.line, kind: RunErrorKind::Machine, why: format!("the model panicked: {text}") };
        Side { transcript: String::new(), ending }
    })
}
