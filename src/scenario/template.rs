//! Templates: `{{ expression }}` inside strings, and whole expressions in `when:`.
//!
//! Expressions are MiniJinja's, compiled once when the scenario is read; a lone variable needs no
//! machinery at all. Must never yield an empty string for an unknown name (undefined is strict),
//! and never run for long (evaluation is on a budget).

use std::fmt;
use std::rc::Rc;
use std::sync::LazyLock;

use minijinja::value::ValueKind;
use minijinja::{Environment, Expression, UndefinedBehavior, Value as Jinja};
use serde_json::{Map, Number, Value};

/// MiniJinja's fuel for one expression: some hundred thousand steps, some megabytes.
const FUEL: u64 = 100_000;
/// Bytes an expression may have: MiniJinja follows chains of operators by recursion, and a chain this
/// long takes a small part of the smallest stack.
const MAX_EXPR: usize = 2048;
/// Bytes a string may have after expansion.
const MAX_TEXT: usize = 1 << 20;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment
});

/// What can be wrong with a template, and in which of its `{{ }}` (counted from 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateError {
    pub(crate) index: usize,
    pub(crate) message: String,
}

impl TemplateError {
    fn new(index: usize, message: impl Into<String>) -> TemplateError {
        TemplateError { index, message: message.into() }
    }
}

/// The variables an expression can see: its own, then those of the scope around it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope<'p> {
    pub(crate) parent: Option<&'p Scope<'p>>,
    pub(crate) own: Vec<(Rc<str>, Value)>,
}

impl Scope<'_> {
    /// The value of `name`, if it is known here.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        // The last one wins: a case's variable stands before a constant of the same name.
        let own = self.own.iter().rev().find(|(known, _)| &**known == name);
        match own {
            Some((_, value)) => Some(value),
            None => self.parent?.get(name),
        }
    }
}

/// One compiled expression.
pub(crate) struct Expr {
    source: Box<str>,
    code: Code,
    /// The names it needs, in alphabetical order.
    variables: Vec<Rc<str>>,
    /// Those of them which may be unknown, because the expression asks `is defined`.
    guarded: Vec<Rc<str>>,
}

enum Code {
    /// Just the name of a variable.
    Variable,
    Compiled(Expression<'static, 'static>),
}

impl fmt::Debug for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expr({})", self.source)
    }
}

impl Expr {
    /// Compiles `source`; the error is MiniJinja's text.
    pub(crate) fn compile(source: &str) -> Result<Expr, String> {
        let source = source.trim();
        if source.is_empty() {
            return Err("an empty expression".to_owned());
        }
        if source.len() > MAX_EXPR {
            let bytes = source.len();
            return Err(format!("an expression of {bytes} bytes, at most {MAX_EXPR} are read"));
        }
        if is_name(source) {
            return Ok(Expr {
                source: Box::from(source),
                code: Code::Variable,
                variables: vec![Rc::from(source)],
                guarded: Vec::new(),
            });
        }
        let compiled = ENVIRONMENT.compile_expression_owned(source.to_owned()).map_err(|error| describe(&error))?;
        let mut names: Vec<String> = compiled.undeclared_variables(false).into_iter().collect();
        names.retain(|name| ENVIRONMENT.globals().all(|(global, _)| global != name));
        names.sort();
        let variables: Vec<Rc<str>> = names.iter().map(|name| Rc::from(name.as_str())).collect();
        let guarded = variables.iter().filter(|name| is_guarded(source, name)).cloned().collect();
        Ok(Expr { source: Box::from(source), code: Code::Compiled(compiled), variables, guarded })
    }

    /// The names that must be known wherever the expression stands.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &Rc<str>> {
        self.variables.iter().filter(|name| !self.guarded.contains(name))
    }

    /// The names it looks at.
    pub(crate) fn variables(&self) -> &[Rc<str>] {
        &self.variables
    }

    fn run(&self, compiled: &Expression<'static, 'static>, scope: &Scope<'_>) -> Result<Jinja, String> {
        let known = self.variables.iter().filter_map(|name| {
            let value = scope.get(name)?;
            Some((name.to_string(), to_jinja(value)))
        });
        let value = compiled.eval(Jinja::from_pairs(known));
        match value {
            Ok(value) if value.is_undefined() => Err(format!("`{}` is undefined", self.source)),
            Ok(value) => Ok(value),
            Err(error) => Err(format!("bad template: {}", describe(&error))),
        }
    }

    fn variable<'s>(&self, scope: &'s Scope<'_>) -> Result<&'s Value, String> {
        scope.get(&self.source).ok_or_else(|| unknown_variable(&self.source))
    }

    /// The value, with its type.
    pub(crate) fn value(&self, scope: &Scope<'_>) -> Result<Value, String> {
        match &self.code {
            Code::Variable => self.variable(scope).cloned(),
            Code::Compiled(compiled) => from_jinja(&self.run(compiled, scope)?, 0),
        }
    }

    /// Whether the value counts as true.
    pub(crate) fn truth(&self, scope: &Scope<'_>) -> Result<bool, String> {
        match &self.code {
            Code::Variable => Ok(to_jinja(self.variable(scope)?).is_true()),
            Code::Compiled(compiled) => Ok(self.run(compiled, scope)?.is_true()),
        }
    }

    /// Appends the value as it prints inside a longer string.
    fn print(&self, scope: &Scope<'_>, out: &mut String) -> Result<(), String> {
        match &self.code {
            Code::Variable => print(self.variable(scope)?, out),
            Code::Compiled(compiled) => print(&from_jinja(&self.run(compiled, scope)?, 0)?, out),
        }
        Ok(())
    }
}

/// Prints a value as it stands in a longer string: a string bare, and `true`, `false`, `none` in lower
/// case, as YAML and MiniJinja's own source have them (MiniJinja itself prints Python's `True`).
fn print(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => out.push_str(text),
        other => print_inner(other, out),
    }
}

fn print_inner(value: &Value, out: &mut String) {
    let separator = |i: usize| if i > 0 { ", " } else { "" };
    match value {
        Value::Null => out.push_str("none"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => out.push_str(&format!("{text:?}")),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(separator(i));
                print_inner(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(&format!("{}{key:?}: ", separator(i)));
                print_inner(item, out);
            }
            out.push('}');
        }
    }
}

/// The message for a name that is not known.
pub(crate) fn unknown_variable(name: &str) -> String {
    format!("unknown variable `{name}`")
}

/// A string with at least one `{{ … }}`.
#[derive(Debug)]
pub(crate) struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Text(Box<str>),
    Expr(Expr),
}

impl Template {
    /// Takes `text` apart. `Ok(None)` if there is no `{{` in it.
    pub(crate) fn parse(text: &str) -> Result<Option<Template>, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        let mut index = 0;
        while let Some(open) = rest.find("{{") {
            if open > 0 {
                pieces.push(Piece::Text(Box::from(&rest[..open])));
            }
            let inner = &rest[open + 2..];
            let Some(close) = closing(inner) else {
                return Err(TemplateError::new(index, "`{{` without its `}}`"));
            };
            let expr = Expr::compile(&inner[..close])
                .map_err(|why| TemplateError::new(index, format!("bad template: {why}")))?;
            pieces.push(Piece::Expr(expr));
            rest = &inner[close + 2..];
            index += 1;
        }
        if index == 0 {
            return Ok(None);
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(Box::from(rest)));
        }
        Ok(Some(Template { pieces }))
    }

    /// Its expressions, in order.
    pub(crate) fn exprs(&self) -> impl Iterator<Item = &Expr> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Expr(expr) => Some(expr),
            Piece::Text(_) => None,
        })
    }

    /// The expanded value: of any type if the string is exactly one expression, else a string.
    pub(crate) fn expand(&self, scope: &Scope<'_>) -> Result<Value, TemplateError> {
        if let [Piece::Expr(expr)] = self.pieces.as_slice() {
            return expr.value(scope).map_err(|why| TemplateError::new(0, why));
        }
        let mut out = String::new();
        let mut index = 0;
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Expr(expr) => {
                    let printed = expr.print(scope, &mut out);
                    printed.map_err(|why| TemplateError::new(index, why))?;
                    index += 1;
                }
            }
            if out.len() > MAX_TEXT {
                return Err(TemplateError::new(index, "the string becomes too long"));
            }
        }
        Ok(Value::String(out))
    }
}

/// The offset of the `}}` that ends the expression `text` begins with: not one in a string, and not
/// the end of two maps.
fn closing(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut depth = 0_usize;
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, byte @ (b'\'' | b'"')) => quote = Some(byte),
            (None, b'}') if depth == 0 && bytes.get(at + 1) == Some(&b'}') => return Some(at),
            (None, b'{' | b'[' | b'(') => depth += 1,
            (None, b'}' | b']' | b')') => depth = depth.saturating_sub(1),
            (None, _) => {}
        }
        at += 1;
    }
    None
}

/// A plain identifier that is no literal and no operator of the expression language.
fn is_name(text: &str) -> bool {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let words = ["true", "false", "none", "True", "False", "None", "not", "and", "or", "in", "is", "if", "else"];
    starts
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !words.contains(&text)
        && ENVIRONMENT.globals().all(|(global, _)| global != text)
}

/// Whether `source` asks if `name` is defined, or gives a default for it.
fn is_guarded(source: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    source.match_indices(name).any(|(at, _)| {
        let rest = &source[at + name.len()..];
        if source[..at].ends_with(is_word) || rest.starts_with(is_word) {
            return false;
        }
        let compact = rest.split_whitespace().collect::<Vec<_>>().join(" ");
        ["is defined", "is undefined", "is not defined", "|default", "| default", "|d(", "| d("]
            .iter()
            .any(|guard| compact.starts_with(guard))
    })
}

fn describe(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    }
}

fn to_jinja(value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(value) => Jinja::from(*value),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(value), _, _) => Jinja::from(value),
            (_, Some(value), _) => Jinja::from(value),
            (_, _, value) => Jinja::from(value.unwrap_or(0.0)),
        },
        Value::String(text) => Jinja::from(text.as_str()),
        Value::Array(items) => items.iter().map(to_jinja).collect(),
        Value::Object(map) => Jinja::from_pairs(map.iter().map(|(k, v)| (k.clone(), to_jinja(v)))),
    }
}

/// The JSON value; an error for what JSON has no form for.
fn from_jinja(value: &Jinja, depth: usize) -> Result<Value, String> {
    if depth > 64 {
        return Err("the value is nested too deep".to_owned());
    }
    let no_form = || format!("a value of kind {} cannot be used here", value.kind());
    Ok(match value.kind() {
        ValueKind::Undefined => return Err("the value is undefined".to_owned()),
        ValueKind::None => Value::Null,
        ValueKind::Bool => Value::Bool(value.is_true()),
        ValueKind::String => Value::String(value.as_str().unwrap_or_default().to_owned()),
        ValueKind::Number => Value::Number(number(value).ok_or_else(no_form)?),
        ValueKind::Map => {
            let mut map = Map::new();
            for key in value.try_iter().map_err(|error| describe(&error))? {
                let item = value.get_item(&key).map_err(|error| describe(&error))?;
                map.insert(key.to_string(), from_jinja(&item, depth + 1)?);
            }
            Value::Object(map)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter().map_err(|error| describe(&error))?;
            let items: Result<Vec<Value>, String> = items.map(|item| from_jinja(&item, depth + 1)).collect();
            Value::Array(items?)
        }
        _ => return Err(no_form()),
    })
}

fn number(value: &Jinja) -> Option<Number> {
    if !value.is_integer() {
        return f64::try_from(value.clone()).ok().and_then(Number::from_f64);
    }
    match (u64::try_from(value.clone()), i64::try_from(value.clone())) {
        (Ok(value), _) => Some(Number::from(value)),
        (_, Ok(value)) => Some(Number::from(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn expand(text: &str, variables: Value) -> Result<Value, TemplateError> {
        let Value::Object(map) = variables else {
            panic!("the tests give maps");
        };
        let own = map.into_iter().map(|(name, value)| (Rc::from(name), value)).collect();
        let scope = Scope { parent: None, own };
        match Template::parse(text)? {
            Some(template) => template.expand(&scope),
            None => Ok(Value::String(text.to_owned())),
        }
    }

    #[test]
    fn a_lone_expression_keeps_its_type() {
        assert_eq!(expand("{{ n }}", json!({"n": 5})), Ok(json!(5)));
        assert_eq!(expand("{{ n + 1 }}", json!({"n": 5})), Ok(json!(6)));
        assert_eq!(expand("{{ a == 'x' }}", json!({"a": "x"})), Ok(json!(true)));
        assert_eq!(expand("{{ {key: 'job0'} }}", json!({"key": "id"})), Ok(json!({"id": "job0"})));
        assert_eq!(expand("{{ {'a': {'b': 1}}}}", json!({})), Ok(json!({"a": {"b": 1}})));
        assert_eq!(expand("{{ [1, n] }}", json!({"n": null})), Ok(json!([1, null])));
        assert_eq!(expand("{{ '}}' }}", json!({})), Ok(json!("}}")));
    }

    #[test]
    fn in_a_longer_string_values_are_printed() {
        let variables = json!({"t": true, "n": null, "i": 7, "s": "x"});
        let printed = expand("{{ t }} {{ n }} {{i}}{{ s }}!", variables);
        assert_eq!(printed, Ok(json!("true none 7x!")));
        assert_eq!(expand("no template { }", json!({})), Ok(json!("no template { }")));
        assert_eq!(expand("a{{ f or 'none' }}", json!({"f": false})), Ok(json!("anone")));
    }

    #[test]
    fn mistakes_are_errors() {
        assert!(expand("{{ x }}", json!({})).is_err());
        assert!(expand("{{ x.y + 1 }}", json!({"x": {}})).is_err());
        assert!(expand("{{ x", json!({})).is_err());
        assert!(expand("{{ }}", json!({})).is_err());
        assert!(expand("{{ 1 + }}", json!({})).is_err());
        assert!(expand("{{ 'x' * 10000000000 }}", json!({})).is_err());
        assert!(expand("{{ range(1000000000) }}", json!({})).is_err());
    }

    #[test]
    fn names_that_are_needed() {
        let needs = |source: &str| -> Vec<String> {
            let expr = Expr::compile(source).expect("it compiles");
            expr.needs().map(|name| name.to_string()).collect()
        };
        assert_eq!(needs("a and b.c or range(3)"), ["a", "b"]);
        assert_eq!(needs("a is defined and b"), ["b"]);
        assert_eq!(needs("a|default(3)"), Vec::<String>::new());
    }
}
