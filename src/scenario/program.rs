//! A scenario as it was written: steps, procedures and cases with their templates still in place.
//!
//! Reading one finds every mistake that does not depend on a variable's value. Must never evaluate a
//! template: that is what [`super::expand`] does.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;

use super::ast::{VERBS, Verb};
use super::decode::{Context, Decode, Fields, list};
use super::diagnostic::{Diagnostic, Pos, closest};
use super::template::{Expr, Scope, Template};
use super::yaml::{Data, Key, Node};

/// A step before its templates are expanded.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) pos: Pos,
    pub(crate) label: Option<Node>,
    pub(crate) when: Option<When>,
    pub(crate) kind: Kind,
}

/// A step's condition.
#[derive(Debug)]
pub(crate) enum When {
    Always(bool),
    Expr(Expr, Pos),
    /// Written with braces around it.
    Template(Rc<Template>, Pos),
}

/// What a step is made from.
#[derive(Debug)]
pub(crate) enum Kind {
    Plain(Body),
    /// A `run-job`, with steps of its own.
    RunJob {
        body: Body,
        pre_finalize: Vec<Item>,
    },
    Concurrently(Vec<(Rc<str>, Vec<Item>)>),
    Use {
        procedure: Rc<str>,
        pos: Pos,
        with: Vec<(Key, Node)>,
    },
}

/// A verb and its options, which the variables they use make into one [`Verb`].
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) key: &'static str,
    /// The map of the step, to be read again when its templates have values.
    pub(crate) node: Node,
    /// The variables in its templates.
    names: Vec<Rc<str>>,
    /// What it became so far: cases mostly differ in few of these variables.
    memo: RefCell<Vec<Known>>,
}

/// The values of a step's variables, and what it becomes with them.
type Known = (Vec<Option<Value>>, Arc<Verb>);

/// How many forms of a step are kept for reuse.
const MEMO: usize = 32;

impl Body {
    fn new(key: &'static str, node: Node) -> Body {
        let mut names: Vec<Rc<str>> = Vec::new();
        node.templates(&mut |template, _| {
            for name in template.exprs().flat_map(Expr::variables) {
                if !names.contains(name) {
                    names.push(Rc::clone(name));
                }
            }
        });
        Body { key, node, names, memo: RefCell::new(Vec::new()) }
    }

    /// What the step is where `scope` holds; `make` is asked if that is not known yet.
    pub(crate) fn verb(&self, scope: &Scope<'_>, make: impl FnOnce() -> Option<Verb>) -> Option<Arc<Verb>> {
        let same = |values: &[Option<Value>]| {
            let mut pairs = self.names.iter().zip(values);
            pairs.all(|(name, value)| scope.get(name) == value.as_ref())
        };
        if let Some((_, verb)) = self.memo.borrow().iter().find(|(values, _)| same(values)) {
            return Some(Arc::clone(verb));
        }
        let verb = Arc::new(make()?);
        let mut memo = self.memo.borrow_mut();
        if memo.len() < MEMO {
            let values = self.names.iter().map(|name| scope.get(name).cloned());
            memo.push((values.collect(), Arc::clone(&verb)));
        }
        Some(verb)
    }
}

/// Steps used more than once.
#[derive(Debug)]
pub(crate) struct Procedure {
    pub(crate) name: Rc<str>,
    pub(crate) params: Vec<Rc<str>>,
    pub(crate) steps: Vec<Item>,
}

/// Reads a list of steps.
pub(crate) fn items(node: &Node, context: Context<'_>) -> Vec<Item> {
    match &node.data {
        Data::List(steps) => steps.iter().filter_map(|step| item(step, context)).collect(),
        _ => {
            context.mismatch(node, "a list of steps");
            Vec::new()
        }
    }
}

fn item(node: &Node, context: Context<'_>) -> Option<Item> {
    let Data::Map(entries) = &node.data else {
        context.mismatch(node, "a step: a map with a verb and its options");
        return None;
    };
    let key = verb_of(entries, node.pos, context)?;
    let mut fields = Fields::new(node, &format!("step `{key}`"), context)?;
    let when = fields.find("when").and_then(|node| when(node, context));
    let label = fields.find("label").cloned();
    if let Some(label) = &label {
        // Only checked here; its template is expanded with the rest of the step.
        let _: Option<String> = String::decode(label, context);
    }
    let kind = match key {
        "use" => call(&mut fields, context),
        "concurrently" => concurrently(&mut fields, context),
        _ => plain(key, node, &mut fields, context),
    };
    fields.finish(context);
    Some(Item { pos: node.pos, label, when, kind: kind? })
}

/// The verb of a step. `log` is an option where another verb stands.
fn verb_of(entries: &[(Key, Node)], pos: Pos, context: Context<'_>) -> Option<&'static str> {
    let verb = |key: &Key| VERBS.iter().copied().find(|verb| **verb == *key.name);
    let mut found: Vec<(&'static str, &Key)> = entries.iter().filter_map(|(key, _)| Some((verb(key)?, key))).collect();
    if found.len() > 1 {
        found.retain(|(verb, _)| *verb != "log");
    }
    match found.as_slice() {
        [(verb, _)] => Some(verb),
        [(first, _), (second, key), ..] => {
            let message = format!("two verbs in one step: `{first}` and `{second}`");
            let mistake = Diagnostic::new(key.pos, message).width(second.len());
            context.report(mistake.expected("one verb a step, with its options beside it"));
            None
        }
        [] => {
            context.report(no_verb(entries, pos));
            None
        }
    }
}

/// The report for a step in which no key is a verb: about the key that most looks like one.
fn no_verb(entries: &[(Key, Node)], pos: Pos) -> Diagnostic {
    let expected = format!("one of {}", list(VERBS.iter().copied()));
    let others = || entries.iter().map(|(key, _)| key).filter(|key| !matches!(&*key.name, "when" | "label"));
    let similar = others().find(|key| closest(&key.name, VERBS.iter().copied()).is_some());
    let Some(key) = similar.or_else(|| others().next()) else {
        return Diagnostic::new(pos, "a step without a verb").expected(expected);
    };
    let message = format!("unknown verb `{}`", key.name);
    let mistake = Diagnostic::new(key.pos, message).width(key.name.chars().count());
    if &*key.name == "power-cut" {
        return mistake.hint("`power-cut` is reserved for a later version of the language");
    }
    mistake.expected(expected).did_you_mean(&key.name, VERBS.iter().copied())
}

fn when(node: &Node, context: Context<'_>) -> Option<When> {
    match &node.data {
        Data::Bool(value) => Some(When::Always(*value)),
        Data::Template(template) => Some(When::Template(Rc::clone(template), node.pos)),
        Data::Text(source) => match Expr::compile(source) {
            Ok(expr) => Some(When::Expr(expr, node.pos)),
            Err(why) => {
                let mistake = Diagnostic::new(node.pos, format!("bad `when`: {why}"));
                context.report(mistake.width(node.width()));
                None
            }
        },
        _ => context.wrong(node, "an expression that is true or false"),
    }
}

/// A verb that is one record, and `run-job` with its inner steps.
fn plain(key: &'static str, node: &Node, fields: &mut Fields<'_>, context: Context<'_>) -> Option<Kind> {
    let verb = Verb::read(key, fields, context);
    if key == "qemu-io" {
        one_of_commands(fields, context);
    }
    let body = Body::new(key, outer(node));
    if let (None, true) = (verb, body.names.is_empty() && !body.node.has_template()) {
        return None;
    }
    if key != "run-job" {
        return Some(Kind::Plain(body));
    }
    let inner = node.get("pre-finalize");
    let pre_finalize = inner.map(|steps| items(steps, context)).unwrap_or_default();
    Some(Kind::RunJob { body, pre_finalize })
}

/// The map of a step without what every step may have, and without inner steps.
fn outer(node: &Node) -> Node {
    let Data::Map(entries) = &node.data else {
        return node.clone();
    };
    let common = |key: &Key| matches!(&*key.name, "when" | "label" | "pre-finalize");
    let entries = entries.iter().filter(|(key, _)| !common(key)).cloned().collect();
    Node { pos: node.pos, data: Data::Map(entries) }
}

fn one_of_commands(fields: &mut Fields<'_>, context: Context<'_>) {
    let command = fields.entry("command");
    let commands = fields.entry("commands");
    match (command, commands) {
        (None, None) => {
            let mistake = Diagnostic::new(fields.pos, "step `qemu-io` lacks `command`");
            context.report(mistake.expected("`command: TEXT` or `commands: [TEXT, …]`"));
        }
        (Some(_), Some((key, _))) => {
            let mistake = Diagnostic::new(key.pos, "both `command` and `commands`");
            context.report(mistake.width(key.name.len()).expected("one of the two"));
        }
        _ => {}
    }
}

fn concurrently(fields: &mut Fields<'_>, context: Context<'_>) -> Option<Kind> {
    let node = fields.find("concurrently")?;
    let Data::Map(entries) = &node.data else {
        context.mismatch(node, "a map of actors, each with its list of steps");
        return None;
    };
    let actors = entries.iter().map(|(key, steps)| (Rc::clone(&key.name), items(steps, context)));
    Some(Kind::Concurrently(actors.collect()))
}

fn call(fields: &mut Fields<'_>, context: Context<'_>) -> Option<Kind> {
    let named = fields.find("use");
    let with = match fields.find("with") {
        None => Vec::new(),
        Some(Node { data: Data::Map(entries), .. }) => entries.clone(),
        Some(node) => {
            context.mismatch(node, "a map: the procedure's parameters");
            return None;
        }
    };
    let named = named?;
    match &named.data {
        Data::Text(name) => Some(Kind::Use { procedure: Rc::clone(name), pos: named.pos, with }),
        _ => {
            context.mismatch(named, "the name of a procedure, without a template");
            None
        }
    }
}

/// Reads `procedures`.
pub(crate) fn procedures(node: &Node, context: Context<'_>) -> Vec<Procedure> {
    let Data::Map(entries) = &node.data else {
        context.mismatch(node, "a map from names to {params, steps}");
        return Vec::new();
    };
    entries.iter().filter_map(|(key, node)| procedure(key, node, context)).collect()
}

fn procedure(key: &Key, node: &Node, context: Context<'_>) -> Option<Procedure> {
    let mut fields = Fields::new(node, &format!("procedure `{}`", key.name), context)?;
    let params: Option<Vec<String>> = fields.optional("params", Vec::new, context);
    let steps = match fields.find("steps") {
        Some(steps) => items(steps, context),
        None => {
            let message = format!("procedure `{}` lacks `steps`", key.name);
            context.report(Diagnostic::new(key.pos, message).width(key.name.chars().count()));
            Vec::new()
        }
    };
    fields.finish(context);
    let params = params.unwrap_or_default();
    for (i, param) in params.iter().enumerate() {
        if params[..i].contains(param) {
            let message = format!("duplicate parameter `{param}` of procedure `{}`", key.name);
            context.report(Diagnostic::new(key.pos, message).width(key.name.chars().count()));
        }
    }
    let params = params.into_iter().map(Rc::from).collect();
    Some(Procedure { name: Rc::clone(&key.name), params, steps })
}
