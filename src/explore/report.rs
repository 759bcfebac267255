//! A failing run as people read it: what broke, the interleaving as a table, how to see it again.
//!
//! Nothing here runs anything.

use super::model::Violation;
use super::schedule::StepName;

/// Columns wider than this are cut.
const COLUMN: usize = 26;
/// Rows more than this are left out in the middle: a report should fit on a screen.
const ROWS: usize = 40;

/// The run as a table: one column an actor, one row an arrival; a departure from QEMU's order has a star.
pub fn table(arrivals: &[(StepName, bool)]) -> String {
    let from = first_interesting(arrivals);
    let shown = &arrivals[from..];
    let mut actors: Vec<&str> = Vec::new();
    for (step, _) in shown {
        if !actors.contains(&step.actor.as_str()) {
            actors.push(&step.actor);
        }
    }
    let mut text = String::new();
    row(&mut text, actors.iter().map(|actor| (*actor).to_owned()));
    row(&mut text, actors.iter().map(|actor| "-".repeat(actor.len().min(COLUMN))));
    let cut = shown.len() > ROWS;
    for (index, (step, departs)) in shown.iter().enumerate() {
        if cut && index == ROWS / 2 {
            text += &format!("  ... {} steps ...\n", shown.len() - ROWS);
        }
        if cut && index >= ROWS / 2 && index < shown.len() - ROWS / 2 {
            continue;
        }
        let star = if *departs { "*" } else { " " };
        let cells = actors.iter().map(|actor| {
            if *actor == step.actor { format!("{star}{} #{}", step.step, step.occurrence) } else { String::new() }
        });
        row(&mut text, cells);
    }
    text
}

/// The setting up of the scenario is the same in every run: the table begins shortly before actors run at once.
fn first_interesting(arrivals: &[(StepName, bool)]) -> usize {
    let first_departure = arrivals.iter().position(|(_, departs)| *departs).unwrap_or(arrivals.len());
    let first_other = arrivals.iter().position(|(step, _)| step.actor != "scenario" && step.step == "actor");
    first_other.unwrap_or(arrivals.len()).min(first_departure)
}

fn row(text: &mut String, cells: impl Iterator<Item = String>) {
    let mut line = String::new();
    for cell in cells {
        let cell: String = cell.chars().take(COLUMN).collect();
        line += &format!("{cell:<COLUMN$} ");
    }
    text.push_str("  ");
    text.push_str(line.trim_end());
    text.push('\n');
}

/// All violations of a run, one a line.
pub fn violations(found: &[Violation]) -> String {
    found.iter().map(|violation| format!("{violation}\n")).collect()
}
