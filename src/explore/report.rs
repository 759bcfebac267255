//! A failing run as people read it: what broke, the interleaving as a table, what decides, how to see it again.
//!
//! Nothing here runs anything. Everything fits on a screen of 120 columns and about 50 lines: what is too much is
//! left out, and the report says so.

use std::fmt::Write as _;

use super::explain::{Explanation, Pair};
use super::model::Violation;
use super::shrink::Shrunk;
use super::story::{Story, StoryStep, Words};

/// Characters of a line.
const WIDTH: usize = 118;
/// Columns at most; further actors share the last one.
const COLUMNS: usize = 5;
/// Rows at most.
const ROWS: usize = 32;
/// What an actor does that says nothing: it looks for an event that has not come, or is done.
const IDLE: [&str; 3] = ["end", "begin", "wait-event"];

/// One row: whose column, what it says, and how soon it may be left out.
struct Row {
    actor: String,
    text: String,
    /// 0 stays; of the others those with the highest number go first.
    weight: u8,
}

/// The run as a table: one column an actor, one row a step or a change that it made. A departure from QEMU's order
/// has a star, the place where an invariant broke a row of its own.
pub fn table(story: &Story, violations: &[Violation]) -> String {
    let mut words = Words::new(story);
    let from = first_interesting(story);
    let mut rows: Vec<Row> = Vec::new();
    let mut broken = 0;
    for (index, step) in story.steps.iter().enumerate() {
        let mut own = rows_of(step, &mut words);
        for violation in violations.iter().take(step.broken).skip(broken) {
            own.push(Row { actor: String::new(), text: format!("!!! {violation}"), weight: 0 });
        }
        broken = broken.max(step.broken);
        if index >= from {
            rows.extend(own);
        }
    }
    for violation in violations.iter().skip(broken) {
        let text = format!("!!! at the end of the run: {violation}");
        rows.push(Row { actor: String::new(), text, weight: 0 });
    }
    let left_out = fold(&mut rows);
    let mut text = drawn(&rows);
    if left_out > 0 {
        let _ = writeln!(text, "  ({left_out} rows of less weight are left out; `backsim replay --trace` shows all)");
    }
    text
}

/// The setting up of the scenario is the same in every run: the table begins where actors run at once.
fn first_interesting(story: &Story) -> usize {
    let concurrent = |step: &StoryStep| {
        step.departs || step.name.as_ref().is_some_and(|name| name.actor != "scenario" && name.actor != "monitor")
    };
    story.steps.iter().position(concurrent).unwrap_or(0)
}

fn rows_of(step: &StoryStep, words: &mut Words) -> Vec<Row> {
    let mut rows = Vec::new();
    if let Some(name) = &step.name {
        let is_idle = IDLE.iter().any(|idle| name.step.starts_with(idle));
        let star = if step.departs { "*" } else { " " };
        let weight = if step.departs || !is_idle { 0 } else { 3 };
        rows.push(Row { actor: name.actor.clone(), text: format!("{star}{}", words.arrival(name)), weight });
    }
    for (owner, event) in &step.events {
        let Some(said) = words.event(event) else { continue };
        let actor = owner.as_ref().map(ToString::to_string);
        let actor = actor.or_else(|| step.name.as_ref().map(|name| name.actor.clone()));
        let weight = match event {
            crate::sim::TraceEvent::JobStatus { .. } => 2,
            crate::sim::TraceEvent::Bits { .. } => 1,
            _ => 0,
        };
        rows.push(Row { actor: actor.unwrap_or_else(|| "QEMU".to_owned()), text: format!("   {said}"), weight });
    }
    rows
}

/// Leaves rows out until the rest fits; returns how many.
fn fold(rows: &mut Vec<Row>) -> usize {
    // What nobody wants to read is never shown.
    rows.retain(|row| row.weight < 3);
    let before = rows.len();
    for weight in [2, 1] {
        if rows.len() > ROWS {
            rows.retain(|row| row.weight < weight);
        }
    }
    while rows.len() > ROWS {
        // The beginning and the end tell most; departures and what broke stay in any case.
        let spare = |row: &Row| !row.text.starts_with('*') && !row.text.starts_with("!!!");
        let middle = rows.len() / 2;
        let nearest = (0..rows.len()).filter(|at| spare(&rows[*at])).min_by_key(|at| at.abs_diff(middle));
        match nearest {
            Some(at) => drop(rows.remove(at)),
            None => break,
        }
    }
    before - rows.len()
}

fn drawn(rows: &[Row]) -> String {
    let mut actors: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| !row.actor.is_empty()) {
        if !actors.contains(&row.actor.as_str()) {
            actors.push(&row.actor);
        }
    }
    let count = actors.len().clamp(1, COLUMNS);
    let shared = actors.len() > COLUMNS;
    let widths = widths(rows, &actors, count);
    let mut heads: Vec<&str> = actors.iter().take(count).copied().collect();
    if shared {
        heads[count - 1] = "others";
    }
    let mut text = String::new();
    line(&mut text, &widths, &heads.iter().copied().enumerate().collect::<Vec<_>>());
    let rules: Vec<String> = heads.iter().map(|head| "-".repeat(head.len())).collect();
    line(&mut text, &widths, &rules.iter().map(String::as_str).enumerate().collect::<Vec<_>>());
    for row in rows {
        let Some(at) = actors.iter().position(|actor| *actor == row.actor) else {
            let _ = writeln!(text, "  {}", cut(&row.text, WIDTH - 2));
            continue;
        };
        let said = if shared && at >= count - 1 { format!("{}:{}", row.actor, row.text) } else { row.text.clone() };
        let column = at.min(count - 1);
        line(&mut text, &widths, &[(column, said.as_str())]);
    }
    text
}

/// As much for each column as it needs, as far as the line has it: wide columns give, narrow ones do not.
fn widths(rows: &[Row], actors: &[&str], count: usize) -> Vec<usize> {
    let mut widths: Vec<usize> = actors.iter().take(count).map(|actor| actor.len()).collect();
    widths.resize(count, 6);
    for row in rows {
        if let Some(at) = actors.iter().position(|actor| *actor == row.actor) {
            let column = at.min(count - 1);
            widths[column] = widths[column].max(row.text.chars().count());
        }
    }
    while widths.iter().sum::<usize>() + count > WIDTH {
        let widest = widths.iter_mut().max().expect("there is a column");
        *widest -= 1;
    }
    widths
}

fn cut(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width.saturating_sub(1)).chain(['~']).collect(),
        false => text.to_owned(),
    }
}

fn line(text: &mut String, widths: &[usize], cells: &[(usize, &str)]) {
    let mut own = String::new();
    for (column, said) in cells {
        let start: usize = widths[..*column].iter().map(|width| width + 1).sum();
        let gap = start.saturating_sub(own.chars().count());
        own.extend(std::iter::repeat_n(' ', gap));
        own += &cut(said, widths[*column]);
    }
    let _ = writeln!(text, "  {}", own.trim_end());
}

/// How far shrinking got.
pub fn shrinking(shrunk: &Shrunk) -> String {
    let (before, after) = (shrunk.before, shrunk.size());
    let disk = |bytes: u64| super::schedule::short(bytes);
    let end = if shrunk.ended { "nothing more can go" } else { "not at its end" };
    format!(
        "shrunk in {} runs ({end}): departures {} -> {}, steps {} -> {}, disk {} -> {}",
        shrunk.runs,
        before.departures,
        after.departures,
        before.steps,
        after.steps,
        disk(before.disk),
        disk(after.disk)
    )
}

/// What decides, in a few lines.
pub fn explanation(found: &Explanation) -> String {
    match found {
        Explanation::Pair(pair) => pair_text(pair),
        Explanation::Always(tries) => {
            format!("why: the order does not decide; it fails in QEMU's own order and in {tries} others\n")
        }
        Explanation::Unclear => "why: no single pair of steps was found whose order decides\n".to_owned(),
    }
}

fn pair_text(pair: &Pair) -> String {
    let (before, after) = if pair.fails_before { ("fails", "passes") } else { ("passes", "fails") };
    let mut text = format!("why: the order of two neighbouring steps decides (found in {} runs)\n", pair.runs);
    let _ = writeln!(text, "  [{}]", cut(&pair.step.to_string(), WIDTH - 4));
    let _ = writeln!(text, "  before [{}]: {before}; after it: {after}", cut(&pair.other, WIDTH - 40));
    if pair.common.is_empty() {
        let list = |touched: &[String]| if touched.is_empty() { "nothing".to_owned() } else { touched.join(", ") };
        let (own, theirs) = (list(&pair.apart[0]), list(&pair.apart[1]));
        let _ = writeln!(text, "  {}", cut(&format!("the first touches {own}; the second {theirs}"), WIDTH - 2));
    } else {
        let _ = writeln!(text, "  {}", cut(&format!("both touch {}", pair.common.join(", ")), WIDTH - 2));
    }
    for outcome in pair.outcomes.iter().take(3) {
        let _ = writeln!(text, "  {}", cut(outcome, WIDTH - 2));
    }
    text
}

/// A text on lines that fit.
pub fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is a line");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(format!("  {word}"));
        } else {
            last.push_str(if last.is_empty() { "" } else { " " });
            last.push_str(word);
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// All violations of a run, each on lines of its own.
pub fn violations(found: &[Violation]) -> String {
    found.iter().map(|violation| wrapped(&violation.to_string())).collect()
}
