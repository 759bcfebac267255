//! From a scenario as written to cases that can run: templates, conditions and procedures are worked out
//! once for each case, so that running needs none of them.
//!
//! Must never change the meaning of a step by its place: the same text with the same variables gives
//! the same step.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value;

use super::ast::{Concurrently, RunJob, Settings, Step, Verb};
use super::check::place;
use super::decode::{Context, Decode, Fields};
use super::diagnostic::{Diagnostic, Pos, Problems};
use super::program::{Body, Item, Kind, Procedure, When};
use super::template::{Scope, TemplateError};
use super::values::Steps;
use super::yaml::{Data, Key, Node};

/// Steps that all cases of a scenario may have together, those left out by `when` counted too.
pub const MAX_STEPS: usize = 500_000;

/// Expands steps for one case after the other.
pub(crate) struct Expander<'p> {
    pub(crate) procedures: &'p [Procedure],
    pub(crate) problems: &'p Problems,
    /// How many steps are still allowed.
    budget: Cell<usize>,
}

impl<'p> Expander<'p> {
    pub(crate) fn new(procedures: &'p [Procedure], problems: &'p Problems) -> Expander<'p> {
        Expander { procedures, problems, budget: Cell::new(MAX_STEPS) }
    }

    fn context(&self) -> Context<'p> {
        Context { problems: self.problems, expanded: true }
    }

    fn failed(&self, pos: Pos, index: Option<usize>, message: &str) {
        let at = place(self.problems, pos, index, None);
        self.problems.push(Diagnostic::new(at, message));
    }

    /// Whether all steps allowed have been used up; then expansion ends.
    pub(crate) fn exhausted(&self) -> bool {
        self.budget.get() == 0
    }

    /// Expands `items`; what has a mistake is told and left out.
    pub(crate) fn steps(&self, items: &[Item], scope: &Scope<'_>, via: &Arc<[u32]>) -> Vec<Step> {
        let mut out = Vec::with_capacity(items.len());
        self.append(items, scope, via, &mut out);
        out
    }

    fn append(&self, items: &[Item], scope: &Scope<'_>, via: &Arc<[u32]>, out: &mut Vec<Step>) {
        for item in items {
            match self.budget.get().checked_sub(1) {
                Some(left) if left > 0 => self.budget.set(left),
                _ => {
                    self.budget.set(0);
                    let many = Diagnostic::new(item.pos, "the scenario has too many steps");
                    let most = format!("at most {MAX_STEPS} after all procedures are expanded");
                    return self.problems.push(many.expected(most));
                }
            }
            if self.condition(item, scope) {
                self.item(item, scope, via, out);
            }
        }
    }

    fn condition(&self, item: &Item, scope: &Scope<'_>) -> bool {
        let (result, pos, index) = match &item.when {
            None => return true,
            Some(When::Always(value)) => return *value,
            Some(When::Expr(expr, pos)) => (expr.truth(scope), *pos, None),
            Some(When::Template(template, pos)) => {
                let mut exprs = template.exprs();
                match (exprs.next(), exprs.next()) {
                    (Some(expr), None) => (expr.truth(scope), *pos, Some(0)),
                    _ => (Err("bad `when`: more than one template".to_owned()), *pos, None),
                }
            }
        };
        result.unwrap_or_else(|why| {
            self.failed(pos, index, &why);
            false
        })
    }

    fn item(&self, item: &Item, scope: &Scope<'_>, via: &Arc<[u32]>, out: &mut Vec<Step>) {
        let verb = match &item.kind {
            Kind::Use { procedure, with, .. } => return self.call(item, procedure, with, scope, via, out),
            Kind::Plain(body) => body.verb(scope, || self.verb(body, scope)),
            Kind::RunJob { body, pre_finalize } => {
                let verb = body.verb(scope, || self.verb(body, scope));
                verb.map(|verb| self.with_pre_finalize(verb, pre_finalize, scope, via))
            }
            Kind::Concurrently(actors) => {
                let actors =
                    actors.iter().map(|(name, items)| (Arc::from(&**name), Steps(self.steps(items, scope, via))));
                Some(Arc::new(Verb::Concurrently(Concurrently { actors: actors.collect() })))
            }
        };
        let Some(verb) = verb else {
            return;
        };
        let label = item.label.as_ref().and_then(|node| self.label(node, scope));
        out.push(Step { line: item.pos.line, via: Arc::clone(via), label, verb });
    }

    fn label(&self, node: &Node, scope: &Scope<'_>) -> Option<Arc<str>> {
        let node = self.substitute(node, scope)?;
        String::decode(&node, self.context()).map(Arc::from)
    }

    fn with_pre_finalize(&self, verb: Arc<Verb>, items: &[Item], scope: &Scope<'_>, via: &Arc<[u32]>) -> Arc<Verb> {
        match &*verb {
            Verb::RunJob(job) if !items.is_empty() => {
                let pre_finalize = Steps(self.steps(items, scope, via));
                Arc::new(Verb::RunJob(RunJob { pre_finalize, ..job.clone() }))
            }
            _ => verb,
        }
    }

    /// Reads the step again, now that its templates have values.
    fn verb(&self, body: &Body, scope: &Scope<'_>) -> Option<Verb> {
        let node = self.substitute(&body.node, scope)?;
        let mut fields = Fields::new(&node, body.key, self.context())?;
        Verb::read(body.key, &mut fields, self.context())
    }

    fn call(
        &self,
        item: &Item,
        name: &str,
        with: &[(Key, Node)],
        scope: &Scope<'_>,
        via: &Arc<[u32]>,
        out: &mut Vec<Step>,
    ) {
        // Unknown names have been told when the scenario was read.
        let Some(procedure) = self.procedures.iter().find(|known| *known.name == *name) else {
            return;
        };
        let mut own = Vec::with_capacity(with.len());
        for (key, node) in with {
            match self.value(node, scope) {
                Some(value) => own.push((Rc::clone(&key.name), value)),
                None => return,
            }
        }
        let inner = Scope { parent: Some(scope.root()), own };
        let via: Arc<[u32]> = via.iter().copied().chain([item.pos.line]).collect();
        self.append(&procedure.steps, &inner, &via, out);
    }

    /// The value of `node` with its templates expanded.
    pub(crate) fn value(&self, node: &Node, scope: &Scope<'_>) -> Option<Value> {
        let node = self.substitute(node, scope)?;
        Value::decode(&node, self.context())
    }

    /// The settings of one case.
    pub(crate) fn settings(&self, node: &Node, scope: &Scope<'_>) -> Option<Settings> {
        let node = self.substitute(node, scope)?;
        let mut fields = Fields::new(&node, "a scenario", self.context())?;
        Settings::read(&mut fields, self.context())
    }

    /// `node` with values in place of its templates.
    fn substitute(&self, node: &Node, scope: &Scope<'_>) -> Option<Node> {
        let data = match &node.data {
            Data::Template(template) => match template.expand(scope) {
                Ok(value) => return Some(from_json(value, node.pos)),
                Err(TemplateError { index, message }) => {
                    self.failed(node.pos, Some(index), &message);
                    return None;
                }
            },
            Data::List(items) => {
                let items: Option<Vec<Node>> = items.iter().map(|item| self.substitute(item, scope)).collect();
                Data::List(items?)
            }
            Data::Map(entries) => {
                let entries: Option<Vec<(Key, Node)>> =
                    entries.iter().map(|(key, value)| Some((key.clone(), self.substitute(value, scope)?))).collect();
                Data::Map(entries?)
            }
            other => other.clone(),
        };
        Some(Node { pos: node.pos, data })
    }
}

impl<'p> Scope<'p> {
    /// The case's own scope: what a procedure sees besides its parameters.
    fn root<'s>(&'s self) -> &'s Scope<'p>
    where
        'p: 's,
    {
        let mut scope = self;
        while let Some(parent) = scope.parent {
            scope = parent;
        }
        scope
    }
}

/// A value of a template as a part of the tree, at the template's place.
fn from_json(value: Value, pos: Pos) -> Node {
    let data = match value {
        Value::Null => Data::Null,
        Value::Bool(value) => Data::Bool(value),
        Value::Number(number) => {
            let raw = Rc::from(number.to_string());
            Data::Number(number, raw)
        }
        Value::String(text) => Data::Text(Rc::from(text)),
        Value::Array(items) => Data::List(items.into_iter().map(|item| from_json(item, pos)).collect()),
        Value::Object(map) => {
            let entry = |(name, value): (String, Value)| (Key { pos, name: Rc::from(name) }, from_json(value, pos));
            Data::Map(map.into_iter().map(entry).collect())
        }
    };
    Node { pos, data }
}
