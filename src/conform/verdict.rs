//! What comes of comparing a real run with the model's: the verdict and the difference as text.
//!
//! Must never run anything, and never call two transcripts the same that a reader would tell apart.

use similar::TextDiff;

use crate::scenario::backend::RunErrorKind;
use crate::scenario::run::{CaseOutcome, Ending};

use super::real::{Trouble, TroubleKind};

/// What one side made of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// The transcript up to the end.
    pub transcript: String,
    /// How it ended.
    pub ending: Ending,
}

impl From<CaseOutcome> for Side {
    fn from(outcome: CaseOutcome) -> Side {
        Side { transcript: outcome.transcript.text().to_owned(), ending: outcome.ending }
    }
}

impl Side {
    /// The transcript, and how the run ended unless every step was done.
    pub fn text(&self) -> String {
        match &self.ending {
            Ending::Passed => self.transcript.clone(),
            Ending::Failed { line, why, .. } => {
                format!("{}(the step at line {line} ended the run: {why})\n", self.transcript)
            }
        }
    }
}

/// How real QEMU and model differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What QEMU made of it.
    pub real: Side,
    /// What the model made of it.
    pub model: Side,
}

impl Difference {
    /// The difference in unified form; `real` and `model` are what the sides are called.
    pub fn diff(&self, real: &str, model: &str) -> String {
        let (left, right) = (self.real.text(), self.model.text());
        let diff = TextDiff::from_lines(&left, &right);
        diff.unified_diff().context_radius(3).header(real, model).to_string()
    }

    /// The first lines that differ, without their numbers: by that, two differences are taken for the same.
    pub fn signature(&self) -> (String, String) {
        let (left, right) = (self.real.text(), self.model.text());
        let (mut left, mut right) = (left.lines(), right.lines());
        loop {
            match (left.next(), right.next()) {
                (Some(one), Some(other)) if one == other => {}
                (None, None) => return Default::default(),
                (one, other) => return (without_numbers(one), without_numbers(other)),
            }
        }
    }
}

fn without_numbers(line: Option<&str>) -> String {
    line.unwrap_or("(end)").chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// The result of comparing one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The transcripts and the ways to end are the same.
    Same,
    /// Real QEMU went other ways than the model in QEMU's own order, all of which the model goes in some other order.
    Reordered {
        /// How many ways QEMU was seen to take.
        ways: usize,
    },
    /// They differ, in every repetition alike.
    Different(Difference),
    /// Real QEMU was not asked.
    Skipped {
        /// Why not.
        why: String,
    },
    /// Real QEMU does not always do the same.
    Unstable {
        /// How many ways it was seen to take.
        ways: usize,
        /// How many of them the model takes too.
        known: usize,
        /// The first way that the model does not take, and the model's own.
        example: Difference,
    },
    /// QEMU itself died, hung or spoke nonsense, and the model knows nothing of it.
    Broken {
        /// What it did.
        trouble: Trouble,
        /// What was written up to then, and what the model wrote.
        example: Difference,
    },
}

impl Verdict {
    /// One word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Verdict::Same => "same",
            Verdict::Reordered { .. } => "reordered",
            Verdict::Different(_) => "different",
            Verdict::Skipped { .. } => "skipped",
            Verdict::Unstable { .. } => "unstable",
            Verdict::Broken { .. } => "broken",
        }
    }

    /// The difference that there is to show.
    pub fn difference(&self) -> Option<&Difference> {
        match self {
            Verdict::Different(example) | Verdict::Unstable { example, .. } | Verdict::Broken { example, .. } => {
                Some(example)
            }
            Verdict::Same | Verdict::Reordered { .. } | Verdict::Skipped { .. } => None,
        }
    }
}

/// One run on a real QEMU, as far as a comparison needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealSide {
    /// What it made of the case.
    pub side: Side,
    /// What was wrong with QEMU itself.
    pub trouble: Option<Trouble>,
}

impl RealSide {
    /// Whether QEMU came to do anything of the case, as far as its surroundings are to blame.
    fn began(&self) -> bool {
        let kind = self.trouble.as_ref().map(|trouble| &trouble.kind);
        !matches!(kind, Some(TroubleKind::NotStarted(_) | TroubleKind::Surroundings(_)))
    }
}

/// Compares the runs of a real QEMU (at least one) with the model's, of which the first is the one in QEMU's own order. A run that
/// never began says nothing about QEMU: it counts only where there is no other.
pub fn compare(runs: &[RealSide], own: &Side, others: &[Side]) -> Verdict {
    let began: Vec<&RealSide> = runs.iter().filter(|run| run.began()).collect();
    let runs = if began.is_empty() { runs.iter().collect() } else { began };
    if runs.iter().all(|run| agrees(run, own)) {
        return Verdict::Same;
    }
    let mut ways: Vec<&RealSide> = Vec::new();
    for run in &runs {
        if !ways.iter().any(|way| alike(way, run)) {
            ways.push(run);
        }
    }
    let is_known = |run: &&&RealSide| agrees(run, own) || others.iter().any(|side| agrees(run, side));
    let known = ways.iter().filter(is_known).count();
    let Some(other) = ways.iter().find(|way| !is_known(way)) else {
        return Verdict::Reordered { ways: ways.len() };
    };
    let example = Difference { real: other.side.clone(), model: own.clone() };
    match &other.trouble {
        Some(trouble) if !other.began() => Verdict::Broken { trouble: trouble.clone(), example },
        _ if ways.len() > 1 => Verdict::Unstable { ways: ways.len(), known, example },
        Some(trouble) => Verdict::Broken { trouble: trouble.clone(), example },
        None => Verdict::Different(example),
    }
}

/// Whether two runs of a real QEMU went the same way.
fn alike(one: &RealSide, other: &RealSide) -> bool {
    let kind = |run: &RealSide| run.trouble.as_ref().map(|trouble| std::mem::discriminant(&trouble.kind));
    one.side.transcript == other.side.transcript
        && kind(one) == kind(other)
        && same_place(&one.side.ending, &other.side.ending)
}

/// Whether a run of a real QEMU went the model's way.
pub(super) fn agrees(run: &RealSide, model: &Side) -> bool {
    if run.side.transcript != model.transcript {
        return false;
    }
    let kind = match &model.ending {
        Ending::Passed => return run.trouble.is_none() && run.side.ending == Ending::Passed,
        Ending::Failed { kind, .. } => *kind,
    };
    match (&run.trouble, kind) {
        // A model in which nothing can go on any more; a real QEMU is waited for until patience ends.
        (None, RunErrorKind::Deadlock) => matches!(run.side.ending, Ending::Failed { .. }),
        (Some(trouble), RunErrorKind::Deadlock) => matches!(trouble.kind, TroubleKind::Hung { .. }),
        // A model that knows of an assertion in QEMU ends there, too.
        (Some(trouble), RunErrorKind::Machine | RunErrorKind::Aborted) => {
            matches!(trouble.kind, TroubleKind::Died(_)) && same_place(&run.side.ending, &model.ending)
        }
        (Some(_), RunErrorKind::Failed) => false,
        (None, kind) => {
            let real = matches!(&run.side.ending, Ending::Failed { kind: real, .. } if *real == kind);
            real && same_place(&run.side.ending, &model.ending)
        }
    }
}

/// Whether two runs ended at the same step.
fn same_place(one: &Ending, other: &Ending) -> bool {
    let line = |ending: &Ending| match ending {
        Ending::Passed => None,
        Ending::Failed { line, .. } => Some(*line),
    };
    line(one) == line(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(transcript: &str) -> Side {
        Side { transcript: transcript.to_owned(), ending: Ending::Passed }
    }

    fn failed(transcript: &str, kind: RunErrorKind) -> Side {
        Side { ending: Ending::Failed { line: 3, kind, why: "why".to_owned() }, ..side(transcript) }
    }

    fn real(side: Side) -> RealSide {
        RealSide { side, trouble: None }
    }

    fn broken(side: Side, kind: TroubleKind) -> RealSide {
        RealSide { side, trouble: Some(Trouble { kind, output: String::new() }) }
    }

    #[test]
    fn repetitions_tell_a_difference_from_chance() {
        let runs = [real(side("a\n")), real(side("a\n"))];
        assert_eq!(compare(&runs, &side("a\n"), &[]).word(), "same");
        assert_eq!(compare(&runs, &side("b\n"), &[]).word(), "different");
        let runs = [real(side("a\n")), real(side("b\n")), real(side("a\n"))];
        assert!(matches!(compare(&runs, &side("b\n"), &[]), Verdict::Unstable { ways: 2, known: 1, .. }));
        assert!(matches!(compare(&runs, &side("c\n"), &[]), Verdict::Unstable { ways: 2, known: 0, .. }));
    }

    #[test]
    fn a_way_that_the_model_takes_in_another_order_is_no_difference() {
        let runs = [real(side("a\n")), real(side("b\n"))];
        assert_eq!(compare(&runs, &side("c\n"), &[side("b\n"), side("a\n")]), Verdict::Reordered { ways: 2 });
        assert_eq!(compare(&runs[..1], &side("c\n"), &[side("a\n")]), Verdict::Reordered { ways: 1 });
        let Verdict::Unstable { ways: 2, known: 1, example } = compare(&runs, &side("a\n"), &[side("d\n")]) else {
            panic!("one way is not the model's")
        };
        assert_eq!(example.real, side("b\n"));
    }

    #[test]
    fn a_qemu_that_did_not_start_is_broken_and_no_difference() {
        let unstarted =
            || broken(failed("", RunErrorKind::Machine), TroubleKind::NotStarted("out of memory".to_owned()));
        assert_eq!(compare(&[unstarted()], &side("a\n"), &[]).word(), "broken");
        let runs =
            [unstarted(), broken(failed("a\n", RunErrorKind::Machine), TroubleKind::NotStarted("again".to_owned()))];
        assert_eq!(compare(&runs, &side("a\n"), &[]).word(), "broken");
        // Another run that did start decides.
        assert_eq!(compare(&[unstarted(), real(side("a\n"))], &side("a\n"), &[]).word(), "same");
        assert_eq!(compare(&[unstarted(), real(side("a\n"))], &side("b\n"), &[]).word(), "different");
    }

    #[test]
    fn the_end_of_a_run_counts() {
        let stuck = real(failed("a\n", RunErrorKind::Failed));
        assert_eq!(compare(std::slice::from_ref(&stuck), &side("a\n"), &[]).word(), "different");
        assert_eq!(compare(std::slice::from_ref(&stuck), &failed("a\n", RunErrorKind::Failed), &[]).word(), "same");
        assert_eq!(compare(&[stuck], &failed("a\n", RunErrorKind::Deadlock), &[]).word(), "same");
    }

    #[test]
    fn a_qemu_that_dies_is_no_difference() {
        let died = broken(failed("a\n", RunErrorKind::Machine), TroubleKind::Died("signal 6".to_owned()));
        let runs = [died];
        assert_eq!(compare(&runs, &side("a\n"), &[]).word(), "broken");
        assert_eq!(compare(&runs, &failed("a\n", RunErrorKind::Machine), &[]).word(), "same");
        assert_eq!(compare(&runs, &failed("a\n", RunErrorKind::Aborted), &[]).word(), "same");
        assert_eq!(compare(&runs, &failed("a\n", RunErrorKind::Failed), &[]).word(), "broken");
    }

    #[test]
    fn a_difference_is_shown_and_recognised() {
        let difference = |left: &str, right: &str| Difference { real: side(left), model: side(right) };
        let one = difference("a\nhave 12\n", "a\nhave 13\n");
        assert!(one.diff("QEMU", "model").starts_with("--- QEMU\n+++ model\n@@"));
        assert_eq!(one.signature(), difference("x\nhave 1\n", "x\nhave 7\n").signature());
        assert_eq!(difference("a\n", "a\nb\n").signature(), ("(end)".to_owned(), "b".to_owned()));
    }
}
