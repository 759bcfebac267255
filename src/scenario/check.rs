//! Checks across steps: procedures that exist, their parameters, cycles, and the names in templates.
//!
//! Each template is checked against the variables of every case, whether its step would run there or
//! not: a misspelt name must not hide behind a `when`.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::decode::{Context, list};
use super::diagnostic::{Diagnostic, Pos, Problems};
use super::program::{Item, Kind, Procedure, When};
use super::template::{Expr, unknown_variable};
use super::yaml::Node;

/// The names one case has, and where it is written.
pub(crate) struct Known<'a> {
    pub(crate) names: &'a [Rc<str>],
    pub(crate) line: u32,
}

/// Calls `see` with each step of `items` and of the steps inside them.
fn walk<'i>(items: &'i [Item], see: &mut dyn FnMut(&'i Item)) {
    for item in items {
        see(item);
        match &item.kind {
            Kind::RunJob { pre_finalize, .. } => walk(pre_finalize, see),
            Kind::Concurrently(actors) => actors.iter().for_each(|(_, steps)| walk(steps, see)),
            _ => {}
        }
    }
}

/// Checks every `use` in `items`.
pub(crate) fn calls(items: &[Item], procedures: &[Procedure], context: Context<'_>) {
    walk(items, &mut |item| {
        let Kind::Use { procedure, pos, with } = &item.kind else {
            return;
        };
        let Some(called) = procedures.iter().find(|known| known.name == *procedure) else {
            let names = procedures.iter().map(|known| &*known.name);
            let message = format!("unknown procedure `{procedure}`");
            let mistake = Diagnostic::new(*pos, message).width(procedure.chars().count());
            context.report(mistake.did_you_mean(procedure, names));
            return;
        };
        for (key, _) in with {
            if !called.params.contains(&key.name) {
                let message = format!("procedure `{procedure}` has no parameter `{}`", key.name);
                let mistake = Diagnostic::new(key.pos, message).width(key.name.chars().count());
                let params = || called.params.iter().map(|param| &**param);
                let known = if called.params.is_empty() {
                    mistake.expected("no parameters")
                } else {
                    mistake.expected(format!("one of {}", list(params())))
                };
                context.report(known.did_you_mean(&key.name, params()));
            }
        }
        for param in &called.params {
            if !with.iter().any(|(key, _)| key.name == *param) {
                let message = format!("procedure `{procedure}` needs its parameter `{param}`");
                let mistake = Diagnostic::new(*pos, message).width(procedure.chars().count());
                let all = list(called.params.iter().map(|param| &**param));
                context.report(mistake.expected(format!("`with` has all of {all}")));
            }
        }
    });
}

/// Reports procedures that use themselves, by whatever detour. True if there is none.
pub(crate) fn no_cycles(procedures: &[Procedure], context: Context<'_>) -> bool {
    let uses: BTreeMap<&str, Vec<(&str, Pos)>> = procedures
        .iter()
        .map(|procedure| {
            let mut called = Vec::new();
            walk(&procedure.steps, &mut |item| {
                if let Kind::Use { procedure, pos, .. } = &item.kind {
                    called.push((&**procedure, *pos));
                }
            });
            (&*procedure.name, called)
        })
        .collect();
    let mut search = Search { uses: &uses, path: Vec::new(), done: Vec::new(), context, clean: true };
    for procedure in procedures {
        search.visit(&procedure.name);
    }
    search.clean
}

/// A depth-first walk along the `use` steps.
struct Search<'a> {
    uses: &'a BTreeMap<&'a str, Vec<(&'a str, Pos)>>,
    path: Vec<&'a str>,
    done: Vec<&'a str>,
    context: Context<'a>,
    clean: bool,
}

/// Procedures may stand in one another to this depth, which keeps expansion off the end of the stack.
const MAX_CALLS: usize = 100;

impl<'a> Search<'a> {
    fn visit(&mut self, name: &'a str) {
        if self.done.contains(&name) {
            return;
        }
        self.path.push(name);
        for (called, pos) in self.uses.get(name).map(Vec::as_slice).unwrap_or_default() {
            if let Some(start) = self.path.iter().position(|known| known == called) {
                let ring: Vec<&str> = self.path[start..].iter().copied().chain([*called]).collect();
                let message = format!("a cycle of procedures: {}", ring.join(" → "));
                self.clean = false;
                self.context.report(Diagnostic::new(*pos, message).width(called.chars().count()));
            } else if self.path.len() >= MAX_CALLS {
                self.clean = false;
                let deep = Diagnostic::new(*pos, "procedures use one another too deep");
                self.context.report(deep.expected(format!("at most {MAX_CALLS} levels")));
            } else {
                self.visit(called);
            }
        }
        self.path.pop();
        self.done.push(name);
    }
}

/// Checks the templates of `items` against the names of each case and `params`.
pub(crate) fn variables(items: &[Item], params: &[Rc<str>], cases: &[Known<'_>], context: Context<'_>) {
    walk(items, &mut |item| {
        let expr = |expr: &Expr, pos: Pos, index| names(expr, pos, index, params, cases, context);
        match &item.when {
            Some(When::Expr(condition, pos)) => expr(condition, *pos, None),
            Some(When::Template(template, pos)) => {
                template.exprs().enumerate().for_each(|(i, e)| expr(e, *pos, Some(i)));
            }
            _ => {}
        }
        let nodes: Vec<&Node> = match &item.kind {
            Kind::Plain(body) | Kind::RunJob { body, .. } => vec![&body.node],
            Kind::Use { with, .. } => with.iter().map(|(_, node)| node).collect(),
            Kind::Concurrently(_) => Vec::new(),
        };
        for node in nodes.into_iter().chain(&item.label) {
            node_variables(node, params, cases, context);
        }
    });
}

/// Checks the templates in `node` against the names of each case and `params`.
pub(crate) fn node_variables(node: &Node, params: &[Rc<str>], cases: &[Known<'_>], context: Context<'_>) {
    node.templates(&mut |template, pos| {
        for (index, expr) in template.exprs().enumerate() {
            names(expr, pos, Some(index), params, cases, context);
        }
    });
}

/// `index`: in which `{{ }}` of the string at `pos` the expression stands; `None` if it is the string.
fn names(expr: &Expr, pos: Pos, index: Option<usize>, params: &[Rc<str>], cases: &[Known<'_>], context: Context<'_>) {
    for name in expr.needs().filter(|name| !params.contains(name)) {
        let lacking: Vec<u32> = cases.iter().filter(|case| !case.names.contains(name)).map(|case| case.line).collect();
        let Some(first) = lacking.first() else {
            continue;
        };
        let at = place(context.problems, pos, index, Some(name));
        let mistake = Diagnostic::new(at, unknown_variable(name)).width(name.chars().count());
        let mistake = if lacking.len() < cases.len() {
            mistake.hint(format!("the case at line {first} does not have it"))
        } else {
            let known = cases.iter().flat_map(|case| case.names).chain(params);
            mistake.did_you_mean(name, known.map(|name| &**name))
        };
        context.report(mistake);
    }
}

/// Where, in the string that begins at `pos`, its `index`-th template (or `name` in it) is written.
/// Falls back to the string's own place where escapes or line breaks hide it.
pub(crate) fn place(problems: &Problems, pos: Pos, index: Option<usize>, name: Option<&str>) -> Pos {
    let line = problems.line(pos.line);
    let start = line.char_indices().nth((pos.column.max(1) - 1) as usize);
    let Some((start, _)) = start else {
        return pos;
    };
    let mut at = start;
    if let Some(index) = index {
        for _ in 0..=index {
            match line[at..].find("{{") {
                Some(found) => at += found + 2,
                None => return pos,
            }
        }
        if name.is_none() {
            at -= 2;
        }
    }
    if let Some(name) = name {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut found = line[at..].match_indices(name).map(|(offset, _)| at + offset);
        let whole = found
            .find(|&offset| !line[..offset].ends_with(is_word) && !line[offset + name.len()..].starts_with(is_word));
        at = whole.unwrap_or(at);
    }
    let column = line[..at].chars().count() + 1;
    Pos { line: pos.line, column: u32::try_from(column).unwrap_or(u32::MAX) }
}
