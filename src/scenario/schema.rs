//! The JSON Schema of the scenario language, generated from its Rust types.
//!
//! Must never describe a key by hand that a type describes: what stands here is only how the parts are
//! put together.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value, json};

use super::ast::{Settings, Verb};

/// The schema of a scenario file (JSON Schema, draft 2020-12).
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    generator.into_root_schema_for::<ScenarioFile>().to_value()
}

/// A template in the place of a value that is not a string.
pub(crate) struct Template;

impl JsonSchema for Template {
    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A string that is exactly one `{{ expression }}` and so has the expression's type.",
            "type": "string",
            "pattern": "\\{\\{",
        })
    }
}

/// A step with any verb.
pub(crate) struct AnyStep;

impl JsonSchema for AnyStep {
    fn schema_name() -> Cow<'static, str> {
        "Step".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut verbs = Verb::schemas(generator);
        let steps = json!({ "type": "array", "items": generator.subschema_for::<AnyStep>() });
        verbs.push((
            "concurrently",
            json_schema!({
                "type": "object",
                "description": "Runs step lists as concurrent actors, ending when all have ended.",
                "properties": { "concurrently": { "type": "object", "additionalProperties": steps } },
                "required": ["concurrently"],
                "additionalProperties": false,
            }),
        ));
        verbs.push((
            "use",
            json_schema!({
                "type": "object",
                "description": "Runs a procedure's steps with its parameters.",
                "properties": {
                    "use": { "type": "string", "description": "The procedure." },
                    "with": { "type": "object", "description": "Its parameters." },
                },
                "required": ["use"],
                "additionalProperties": false,
            }),
        ));
        let steps: Vec<Value> = verbs.into_iter().map(|(_, verb)| step(verb)).collect();
        json_schema!({ "anyOf": steps })
    }
}

/// A verb's record with the keys that every step may have.
fn step(verb: Schema) -> Value {
    let mut verb = verb.to_value();
    if let Some(Value::Object(properties)) = verb.get_mut("properties") {
        properties.insert(
            "when".to_owned(),
            json!({
                "type": ["string", "boolean"],
                "description": "An expression; the step is left out where it is false.",
            }),
        );
        properties.insert(
            "label".to_owned(),
            json!({
                "type": "string",
                "description": "What traces call the step.",
            }),
        );
    }
    verb
}

/// A whole file.
struct ScenarioFile;

impl JsonSchema for ScenarioFile {
    fn schema_name() -> Cow<'static, str> {
        "Scenario".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let steps = json!({ "type": "array", "items": generator.subschema_for::<AnyStep>() });
        let mut properties = match Settings::json_schema(generator).to_value().get_mut("properties") {
            Some(Value::Object(properties)) => std::mem::take(properties),
            _ => Map::new(),
        };
        let own = json!({
            "name": { "type": ["string", "number"], "description": "What reports call it; the file's stem if absent." },
            "description": { "type": "string", "description": "What it is about, for people." },
            "vars": { "type": "object", "description": "Constants for templates." },
            "cases": {
                "type": "array", "items": { "type": "object" }, "minItems": 1,
                "description": "One run of the steps per map; the keys are variables.",
            },
            "case-name": { "type": "string", "description": "A template: how a case is called." },
            "procedures": {
                "type": "object",
                "description": "Steps used more than once.",
                "additionalProperties": {
                    "type": "object",
                    "properties": { "params": { "type": "array", "items": { "type": "string" } }, "steps": steps },
                    "required": ["steps"],
                    "additionalProperties": false,
                },
            },
            "steps": steps,
        });
        if let Value::Object(own) = own {
            properties.extend(own);
        }
        json_schema!({
            "title": "backsim scenario",
            "type": "object",
            "properties": properties,
            "required": ["steps"],
            "additionalProperties": false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::ast::VERBS;
    use super::*;

    #[test]
    fn every_verb_has_its_keys_in_the_schema() {
        let schema = schema();
        let Some(Value::Array(steps)) = schema.pointer("/$defs/Step/anyOf") else {
            panic!("no steps in {schema}");
        };
        let required: Vec<&Value> = steps.iter().map(|step| &step["required"][0]).collect();
        assert_eq!(required, VERBS.iter().collect::<Vec<_>>());
        for step in steps {
            assert_eq!(step["additionalProperties"], Value::Bool(false));
            assert!(step["properties"]["when"].is_object(), "{step}");
        }
        let image = &steps[1]["properties"];
        assert!(image["cluster-size"]["anyOf"].is_array(), "{image}");
        assert_eq!(image["image"]["type"], "string");
    }

    #[test]
    fn the_top_level_is_complete() {
        let schema = schema();
        for key in ["compat", "cases", "case-name", "steps", "timing", "expected-failure"] {
            assert!(schema["properties"][key].is_object(), "{key}");
        }
        assert_eq!(schema["required"], json!(["steps"]));
    }
}
