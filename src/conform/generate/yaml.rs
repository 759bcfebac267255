//! Scenarios as text: steps, tables and procedures in the style in which people write them.
//!
//! Arguments stand in flow maps that are broken before column 120 and aligned under their first entry.
//! Must never drop or change a value to make it fit: what can't be broken stays on a long line.

use std::fmt::Write as _;

/// The column before which flow maps are broken.
const WIDTH: usize = 119;

/// A value of a scenario.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Yaml {
    /// Nothing, said aloud.
    Null,
    /// A number.
    Int(i128),
    /// A truth value.
    Bool(bool),
    /// A string.
    Text(String),
    /// A list in flow style.
    List(Vec<Yaml>),
    /// A map in flow style; the order of its entries is kept.
    Map(Args),
}

/// The entries of a map, built up one by one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Args(Vec<(String, Yaml)>);

/// The empty map.
pub(super) fn args() -> Args {
    Args::default()
}

impl Args {
    /// The map with one more entry.
    pub(super) fn set(mut self, key: &str, value: impl Into<Yaml>) -> Args {
        self.0.push((key.to_string(), value.into()));
        self
    }

    /// The map with one more entry, if there is a value for it.
    pub(super) fn maybe(self, key: &str, value: Option<impl Into<Yaml>>) -> Args {
        match value {
            Some(value) => self.set(key, value),
            None => self,
        }
    }

    /// Whether there is no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Args> for Yaml {
    fn from(value: Args) -> Yaml {
        Yaml::Map(value)
    }
}

impl From<&str> for Yaml {
    fn from(value: &str) -> Yaml {
        Yaml::Text(value.to_string())
    }
}

impl From<&String> for Yaml {
    fn from(value: &String) -> Yaml {
        Yaml::Text(value.clone())
    }
}

impl From<String> for Yaml {
    fn from(value: String) -> Yaml {
        Yaml::Text(value)
    }
}

impl From<bool> for Yaml {
    fn from(value: bool) -> Yaml {
        Yaml::Bool(value)
    }
}

impl From<u64> for Yaml {
    fn from(value: u64) -> Yaml {
        Yaml::Int(i128::from(value))
    }
}

impl From<i64> for Yaml {
    fn from(value: i64) -> Yaml {
        Yaml::Int(i128::from(value))
    }
}

impl<T: Into<Yaml>> From<Vec<T>> for Yaml {
    fn from(value: Vec<T>) -> Yaml {
        Yaml::List(value.into_iter().map(Into::into).collect())
    }
}

/// How an option of a step is shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shown {
    /// As a value on the option's line.
    Flow(Yaml),
    /// As steps, further in.
    Steps(Vec<Step>),
    /// As a block map in which each list has one line an element.
    Rows(Args),
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    verb: String,
    value: Yaml,
    options: Vec<(String, Shown)>,
}

impl Step {
    /// The step `verb: value` without options.
    pub(super) fn new(verb: &str, value: impl Into<Yaml>) -> Step {
        Step { verb: verb.to_string(), value: value.into(), options: Vec::new() }
    }

    /// The step with one more option.
    pub(super) fn with(mut self, key: &str, value: impl Into<Yaml>) -> Step {
        self.options.push((key.to_string(), Shown::Flow(value.into())));
        self
    }

    /// The step with one more option, if `there`.
    pub(super) fn with_if(self, there: bool, key: &str, value: impl Into<Yaml>) -> Step {
        if there { self.with(key, value) } else { self }
    }

    /// The step with steps inside; none if there are none.
    pub(super) fn inside(mut self, key: &str, steps: Vec<Step>) -> Step {
        if !steps.is_empty() {
            self.options.push((key.to_string(), Shown::Steps(steps)));
        }
        self
    }

    /// The step with an option as a block map.
    pub(super) fn rows(mut self, key: &str, rows: Args) -> Step {
        self.options.push((key.to_string(), Shown::Rows(rows)));
        self
    }
}

/// A procedure of a scenario.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Procedure {
    /// Its name.
    pub(super) name: &'static str,
    /// The names of its parameters.
    pub(super) params: Vec<&'static str>,
    /// What it does.
    pub(super) steps: Vec<Step>,
}

/// A whole scenario.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Script {
    /// What it is called.
    pub(super) name: String,
    /// What it is about.
    pub(super) description: String,
    /// Constants.
    pub(super) vars: Args,
    /// How a case is called.
    pub(super) case_name: Option<String>,
    /// The table.
    pub(super) cases: Vec<Args>,
    /// Steps used more than once.
    pub(super) procedures: Vec<Procedure>,
    /// What happens.
    pub(super) steps: Vec<Step>,
}

impl Script {
    /// The text of the scenario.
    pub(super) fn text(&self) -> String {
        let mut out = format!("name: {}\ndescription: {}\n", scalar(&self.name), scalar(&self.description));
        if !self.vars.is_empty() {
            entry(&mut out, 0, "vars", &Yaml::Map(self.vars.clone()));
        }
        if let Some(name) = &self.case_name {
            entry(&mut out, 0, "case-name", &Yaml::from(name));
        }
        if !self.cases.is_empty() {
            out.push_str("cases:\n");
            for case in &self.cases {
                item(&mut out, 2, &Yaml::Map(case.clone()));
            }
        }
        if !self.procedures.is_empty() {
            out.push_str("procedures:\n");
            for procedure in &self.procedures {
                let params = procedure.params.join(", ");
                let _ = write!(out, "  {}:\n    params: [{params}]\n    steps:\n", procedure.name);
                steps(&mut out, 6, &procedure.steps);
            }
        }
        out.push_str("steps:\n");
        steps(&mut out, 2, &self.steps);
        out
    }
}

fn steps(out: &mut String, indent: usize, list: &[Step]) {
    for step in list {
        let _ = write!(out, "{:indent$}- ", "");
        entry(out, 0, &step.verb, &step.value);
        let inner = indent + 2;
        for (key, shown) in &step.options {
            match shown {
                Shown::Flow(value) => entry(out, inner, key, value),
                Shown::Steps(list) => {
                    let _ = writeln!(out, "{:inner$}{key}:", "");
                    steps(out, inner + 2, list);
                }
                Shown::Rows(rows) => {
                    let _ = writeln!(out, "{:inner$}{key}:", "");
                    block(out, inner + 2, rows);
                }
            }
        }
    }
}

fn block(out: &mut String, indent: usize, rows: &Args) {
    for (key, value) in &rows.0 {
        match value {
            Yaml::List(list) if !list.is_empty() => {
                let _ = writeln!(out, "{:indent$}{key}:", "");
                list.iter().for_each(|row| item(out, indent + 2, row));
            }
            value => entry(out, indent, key, value),
        }
    }
}

/// Writes `key: value` and a newline.
fn entry(out: &mut String, indent: usize, key: &str, value: &Yaml) {
    let _ = write!(out, "{:indent$}{key}: ", "");
    flow(out, value, 0);
    out.push('\n');
}

/// Writes `- value` and a newline.
fn item(out: &mut String, indent: usize, value: &Yaml) {
    let _ = write!(out, "{:indent$}- ", "");
    flow(out, value, 0);
    out.push('\n');
}

fn column(out: &str) -> usize {
    out.len() - out.rfind('\n').map_or(0, |at| at + 1)
}

/// Writes `value` in flow style; `closing` brackets and commas will follow on its last line.
fn flow(out: &mut String, value: &Yaml, closing: usize) {
    let entries: Vec<(String, &Yaml)> = match value {
        Yaml::List(list) => list.iter().map(|value| (String::new(), value)).collect(),
        Yaml::Map(map) => map.0.iter().map(|(key, value)| (format!("{}: ", scalar(key)), value)).collect(),
        other => return out.push_str(&plain(other)),
    };
    let (open, close) = if matches!(value, Yaml::List(_)) { ('[', ']') } else { ('{', '}') };
    out.push(open);
    let indent = column(out);
    let mut broken = false;
    for (index, (key, value)) in entries.iter().enumerate() {
        let last = index + 1 == entries.len();
        let tail = if last { closing + 1 } else { 1 };
        let length = key.len() + plain(value).len() + tail;
        if index > 0 {
            out.push(',');
            if broken || column(out) + 1 + length > WIDTH {
                let _ = write!(out, "\n{:indent$}", "");
            } else {
                out.push(' ');
            }
        }
        broken = column(out) + length > WIDTH;
        out.push_str(key);
        if broken {
            flow(out, value, tail);
        } else {
            out.push_str(&plain(value));
        }
    }
    out.push(close);
}

/// `value` on one line.
fn plain(value: &Yaml) -> String {
    match value {
        Yaml::Null => "null".to_string(),
        Yaml::Int(number) => number.to_string(),
        Yaml::Bool(truth) => truth.to_string(),
        Yaml::Text(text) => scalar(text),
        Yaml::List(list) => format!("[{}]", list.iter().map(plain).collect::<Vec<_>>().join(", ")),
        Yaml::Map(map) => {
            let entries = map.0.iter().map(|(key, value)| format!("{}: {}", scalar(key), plain(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}

/// A string, in quotes where it would else be read as something other than itself.
fn scalar(text: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '.' | '-');
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '/')
        || is_option(text)
        || is_measure(text);
    let plain = starts_well
        && text.chars().all(|c| word(c) || c == ' ')
        && !text.ends_with(' ')
        && !matches!(text, "true" | "false" | "null" | "True" | "False" | "Null" | "yes" | "no" | "on" | "off");
    if plain { text.to_string() } else { quoted(text) }
}

/// Whether `text` is an option of a command line (`-g`, `--add`).
fn is_option(text: &str) -> bool {
    let name = text.trim_start_matches('-');
    name.len() < text.len() && name.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Whether `text` is a number with a unit (`64K`, `200ms`), which no reader takes for a number.
fn is_measure(text: &str) -> bool {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    unit.len() < text.len() && matches!(unit, "K" | "M" | "G" | "ms" | "us" | "s")
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_maps_stay_on_one_line_and_words_need_no_quotes() {
        let step = Step::new("execute", "query-jobs").with("arguments", args().set("id", "null").set("n", 3_u64));
        let mut out = String::new();
        steps(&mut out, 2, &[step]);
        assert_eq!(out, "  - execute: query-jobs\n    arguments: {id: \"null\", n: 3}\n");
        assert_eq!(scalar("--add"), "--add");
        assert_eq!(scalar("-"), "\"-\"");
        assert_eq!(scalar("200ms"), "200ms");
        assert_eq!(scalar("65536"), "\"65536\"");
        assert_eq!(scalar("--output=json"), "\"--output=json\"");
    }

    #[test]
    fn long_maps_are_broken_and_aligned() {
        let rule = || args().set("event", "read_aio").set("state", 1_u64).set("new_state", 2_u64);
        let file = args().set("driver", "blkdebug").set("set-state", vec![rule(), rule(), rule()]);
        let step =
            Step::new("execute", "blockdev-add").with("arguments", args().set("driver", "qcow2").set("file", file));
        let mut out = String::new();
        steps(&mut out, 2, &[step]);
        assert!(out.lines().all(|line| line.len() <= 120), "{out}");
        assert!(out.contains("\n                       set-state: [{event"), "{out}");
    }
}
