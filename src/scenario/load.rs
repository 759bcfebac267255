//! A whole scenario file: from its text to its cases.
//!
//! All mistakes that can be found are found here, before anything runs, and told together.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;

use super::ast::{Settings, Step};
use super::check::{self, Known, place};
use super::decode::{Context, Fields, text};
use super::diagnostic::{Diagnostic, Diagnostics, Pos, Problems};
use super::expand::Expander;
use super::program::{self, Item, Procedure};
use super::template::{Scope, Template};
use super::yaml::{self, Data, Key, Node};

/// A scenario that has been read and checked.
#[derive(Debug)]
pub struct Scenario {
    /// What `check` and reports call it: `name`, or the file's stem.
    pub name: String,
    /// What it is about, for people.
    pub description: String,
    /// The file as the user named it.
    pub file: Rc<str>,
    text: Rc<str>,
    settings: Node,
    vars: Vec<(Rc<str>, Node)>,
    rows: Vec<Row>,
    case_name: Option<Node>,
    procedures: Vec<Procedure>,
    steps: Vec<Item>,
}

/// One line of `cases`.
#[derive(Debug)]
struct Row {
    pos: Pos,
    variables: Vec<(Key, Node)>,
}

/// One run of a scenario's steps, ready to run.
#[derive(Clone, Debug)]
pub struct Case {
    /// What reports and `--case` call it: by `case-name`, else its number from 1 (the scenario's name if it
    /// is the only one).
    pub name: String,
    /// Its place among the cases, from 0.
    pub index: usize,
    /// The line of the file it is written at.
    pub line: u32,
    /// What holds for the whole run.
    pub settings: Settings,
    /// The steps, with all templates, conditions and procedures worked out.
    pub steps: Arc<[Step]>,
}

/// Reads and checks the scenario in the file `path`.
pub fn load(path: &Path) -> Result<Scenario, Diagnostics> {
    let name = path.display().to_string();
    let unreadable = |why: String| {
        let problems = Problems::new(&name, Rc::from(""));
        problems.push(Diagnostic::new(Pos::default(), why));
        Diagnostics { items: problems.take() }
    };
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > yaml::MAX_FILE as u64 {
        let limit = yaml::MAX_FILE;
        return Err(unreadable(format!("the file is too large: {size} bytes, at most {limit} are read")));
    }
    let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes)
        .map_err(|error| unreadable(format!("the file is not UTF-8 (at byte {})", error.utf8_error().valid_up_to())))?;
    parse(&name, &text)
}

/// Reads and checks a scenario; `file` is the name that messages have for it.
pub fn parse(file: &str, text: &str) -> Result<Scenario, Diagnostics> {
    // A byte order mark, which some editors write, is no part of the text.
    let text: Rc<str> = Rc::from(text.strip_prefix('\u{feff}').unwrap_or(text));
    let problems = Problems::new(file, Rc::clone(&text));
    let scenario = yaml::parse(&problems).and_then(|mut root| {
        compile(&mut root, &problems);
        read(&root, file, &text, &problems)
    });
    problems.finish()?;
    match scenario {
        Some(scenario) => Ok(scenario),
        // Whoever gives no scenario has said why; should that ever be forgotten, it is still an error.
        None => Err(Diagnostics { items: vec![Diagnostic::new(Pos::default(), "not a scenario")] }),
    }
}

/// Compiles the templates of all strings, except in what is for people only.
fn compile(root: &mut Node, problems: &Problems) {
    match &mut root.data {
        Data::Map(entries) => {
            for (key, value) in entries {
                if !matches!(&*key.name, "name" | "description") {
                    compile_strings(value, problems);
                }
            }
        }
        _ => compile_strings(root, problems),
    }
}

fn compile_strings(node: &mut Node, problems: &Problems) {
    match &mut node.data {
        Data::Text(text) if text.contains("{{") => match Template::parse(text) {
            Ok(Some(template)) => node.data = Data::Template(Rc::new(template)),
            Ok(None) => {}
            Err(error) => {
                let at = place(problems, node.pos, Some(error.index), None);
                problems.push(Diagnostic::new(at, error.message).width(2));
            }
        },
        Data::List(items) => items.iter_mut().for_each(|item| compile_strings(item, problems)),
        Data::Map(entries) => {
            entries.iter_mut().for_each(|(_, value)| compile_strings(value, problems));
        }
        _ => {}
    }
}

fn read(root: &Node, file: &str, source: &Rc<str>, problems: &Problems) -> Option<Scenario> {
    let context = Context { problems, expanded: false };
    let mut fields = Fields::new(root, "a scenario", context)?;
    let lenient = Context { problems, expanded: true };
    let name = fields.find("name").and_then(|node| text(node, lenient, "a string"));
    let description = fields.find("description").and_then(|node| text(node, lenient, "a string"));
    let settings = settings(root, &mut fields, context);
    let vars = fields.find("vars").map(|node| vars(node, context)).unwrap_or_default();
    let rows = fields.find("cases").map_or_else(|| vec![Row::only(root.pos)], |node| rows(node, context));
    let case_name = fields.find("case-name").cloned();
    if let Some(node) = &case_name {
        text(node, context, "a string, as a rule with templates");
    }
    let procedures = fields.find("procedures").map(|node| program::procedures(node, context));
    let procedures = procedures.unwrap_or_default();
    let steps = match fields.find("steps") {
        Some(node) => program::items(node, context),
        None => {
            problems.push(Diagnostic::new(root.pos, "a scenario lacks `steps`"));
            Vec::new()
        }
    };
    fields.finish(context);
    let stem = Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let scenario = Scenario {
        name: name.map_or_else(|| stem.unwrap_or_default(), |name| name.as_ref().to_owned()),
        description: description.map_or_else(String::new, |text| text.as_ref().to_owned()),
        file: Rc::from(file),
        text: Rc::clone(source),
        settings,
        vars,
        rows,
        case_name,
        procedures,
        steps,
    };
    scenario.check(context);
    Some(scenario)
}

/// Checks the settings and keeps them as a map of their own, for their templates.
fn settings(root: &Node, fields: &mut Fields<'_>, context: Context<'_>) -> Node {
    let _: Option<Settings> = Settings::read(fields, context);
    let entries = match &root.data {
        Data::Map(entries) => entries.as_slice(),
        _ => &[],
    };
    let own = entries.iter().filter(|(key, _)| Settings::KEYS.contains(&&*key.name));
    Node { pos: root.pos, data: Data::Map(own.cloned().collect()) }
}

fn vars(node: &Node, context: Context<'_>) -> Vec<(Rc<str>, Node)> {
    match &node.data {
        Data::Map(entries) => entries.iter().map(|(key, node)| (Rc::clone(&key.name), node.clone())).collect(),
        _ => context.wrong(node, "a map: names and values").unwrap_or_default(),
    }
}

fn rows(node: &Node, context: Context<'_>) -> Vec<Row> {
    let Data::List(items) = &node.data else {
        return context.wrong(node, "a list of maps").unwrap_or_default();
    };
    if items.is_empty() {
        let mistake = Diagnostic::new(node.pos, "no cases").expected("at least one; `[{}]` is one without variables");
        context.report(mistake);
    }
    let row = |item: &Node| match &item.data {
        Data::Map(entries) => Some(Row { pos: item.pos, variables: entries.clone() }),
        _ => context.wrong(item, "a map: the case's variables"),
    };
    items.iter().filter_map(row).collect()
}

impl Row {
    /// The case of a scenario that has no list of cases.
    fn only(pos: Pos) -> Row {
        Row { pos, variables: Vec::new() }
    }
}

impl Scenario {
    /// Everything that spans several parts of the file.
    fn check(&self, context: Context<'_>) {
        check::calls(&self.steps, &self.procedures, context);
        for procedure in &self.procedures {
            check::calls(&procedure.steps, &self.procedures, context);
        }
        check::no_cycles(&self.procedures, context);
        let constants: Vec<Rc<str>> = self.vars.iter().map(|(name, _)| Rc::clone(name)).collect();
        let names: Vec<Vec<Rc<str>>> = self
            .rows
            .iter()
            .map(|row| {
                let own = row.variables.iter().map(|(key, _)| Rc::clone(&key.name));
                constants.iter().cloned().chain(own).collect()
            })
            .collect();
        let known = names.iter().zip(&self.rows).map(|(names, row)| Known { names, line: row.pos.line });
        let cases: Vec<Known<'_>> = known.collect();
        check::variables(&self.steps, &[], &cases, context);
        for procedure in &self.procedures {
            check::variables(&procedure.steps, &procedure.params, &cases, context);
        }
        for node in self.case_name.iter().chain([&self.settings]) {
            check::node_variables(node, &[], &cases, context);
        }
        for (i, (_, node)) in self.vars.iter().enumerate() {
            let before = Known { names: &constants[..i], line: node.pos.line };
            check::node_variables(node, &[], &[before], context);
        }
        for (_, node) in self.rows.iter().flat_map(|row| &row.variables) {
            let before = Known { names: &constants, line: node.pos.line };
            check::node_variables(node, &[], &[before], context);
        }
    }

    /// The source text, for messages that point into it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The cases, ready to run. An error if the value of a template makes a step wrong, if two cases have
    /// the same name, or if there are too many steps.
    pub fn cases(&self) -> Result<Vec<Case>, Diagnostics> {
        let problems = Problems::new(&self.file, Rc::clone(&self.text));
        let expander = Expander::new(&self.procedures, &problems);
        let mut constants = Scope::default();
        for (name, node) in &self.vars {
            if let Some(value) = expander.value(node, &constants) {
                constants.own.push((Rc::clone(name), value));
            }
        }
        let mut cases: Vec<Case> = Vec::with_capacity(self.rows.len());
        for (index, row) in self.rows.iter().enumerate() {
            cases.extend(self.case(index, row, &constants, &expander));
            if expander.exhausted() {
                break;
            }
        }
        self.unique_names(&cases, &problems);
        problems.finish()?;
        Ok(cases)
    }

    fn case(&self, index: usize, row: &Row, constants: &Scope<'_>, expander: &Expander<'_>) -> Option<Case> {
        // Constants and the case's variables are one scope: what a procedure sees from anywhere.
        let mut scope = Scope { parent: None, own: constants.own.clone() };
        for (key, node) in &row.variables {
            let value = expander.value(node, constants)?;
            scope.own.push((Rc::clone(&key.name), value));
        }
        let name = match &self.case_name {
            Some(node) => match expander.value(node, &scope)? {
                Value::String(name) => name,
                other => other.to_string(),
            },
            None if self.rows.len() == 1 => self.name.clone(),
            None => (index + 1).to_string(),
        };
        let settings = expander.settings(&self.settings, &scope)?;
        let steps = expander.steps(&self.steps, &scope, &Arc::from([]));
        Some(Case { name, index, line: row.pos.line, settings, steps: Arc::from(steps) })
    }

    fn unique_names(&self, cases: &[Case], problems: &Problems) {
        let mut lines = std::collections::BTreeMap::new();
        for case in cases {
            if let Some(first) = lines.insert(&case.name, case.line) {
                let pos = self.rows[case.index].pos;
                let mistake = Diagnostic::new(pos, format!("two cases are called `{}`", case.name));
                problems.push(mistake.hint(format!("the first is at line {first}")));
            }
        }
    }
}
