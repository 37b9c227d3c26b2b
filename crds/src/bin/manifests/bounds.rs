//! Decides whether a schema is bounded: nothing in it may grow without limit, and each integer fits int32.
//!
//! The API server estimates what a CEL rule costs from these limits, and etcd stores whatever they let through.
//! Keywords that the check does not know are refused too, so that a new construct can't slip past it.

use serde_json::{Map, Value};

/// Keywords without influence on size, and those that are checked below.
const KNOWN: [&str; 22] = [
    "additionalProperties",
    "default",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "title",
    "type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
];

/// Each unbounded or unknown place as `path: what is missing`; empty when the schema is bounded.
pub(crate) fn problems(schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(schema, "", &mut found);
    found
}

fn walk(schema: &Value, path: &str, found: &mut Vec<String>) {
    let Some(schema) = schema.as_object() else {
        found.push(format!("{path}: is not a schema"));
        return;
    };
    let mut complain = |what: String| found.push(format!("{path}: {what}"));
    // `nullable` is judged by the caller, which removes it; here it says nothing about size.
    for keyword in schema.keys().filter(|key| !KNOWN.contains(&key.as_str()) && *key != "nullable") {
        complain(format!("unknown keyword {keyword}"));
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {
            for (name, property) in properties(schema) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(property, &path, found);
            }
            // A map: keys are bounded by a rule on it, which the API server prices.
            if let Some(values) = schema.get("additionalProperties") {
                if !schema.contains_key("maxProperties") {
                    found.push(format!("{path}: map without maxProperties"));
                }
                walk(values, &format!("{path}{{}}"), found);
            }
        }
        Some("array") => {
            if !schema.contains_key("maxItems") {
                complain("list without maxItems".into());
            }
            walk(schema.get("items").unwrap_or(&Value::Null), &format!("{path}[]"), found);
        }
        Some("string") => {
            if !is_bounded_text(schema) {
                complain("string without maxLength, enum or format date-time".into());
            }
        }
        Some("integer") => {
            if !is_bounded_integer(path, schema) {
                complain("integer that is not int32".into());
            }
        }
        Some("boolean") => {}
        other => complain(format!("type {}", other.unwrap_or("missing"))),
    }
}

fn properties(schema: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn is_bounded_text(schema: &Map<String, Value>) -> bool {
    schema.contains_key("maxLength")
        || schema.contains_key("enum")
        || schema.get("format").and_then(Value::as_str) == Some("date-time")
}

/// int32; int64 only for `observedGeneration`, a copy of `metadata.generation`, which is one.
fn is_bounded_integer(path: &str, schema: &Map<String, Value>) -> bool {
    match schema.get("format").and_then(Value::as_str) {
        Some("int32") => true,
        Some("int64") => path.ends_with("observedGeneration"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_every_place() {
        let schema = json!({ "type": "object", "properties": {
            "bad": { "type": "object", "properties": {
                "text": { "type": "string" },
                "list": { "type": "array", "items": { "type": "string" } },
                "wide": { "type": "integer", "format": "int64" },
                "unsigned": { "type": "integer", "format": "uint32" },
                "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                "map": { "type": "object", "additionalProperties": { "type": "string" } },
                "untyped": { "x-kubernetes-int-or-string": true },
            } },
            "good": { "type": "object", "properties": {
                "text": { "type": "string", "maxLength": 3 },
                "word": { "type": "string", "enum": ["a"] },
                "time": { "type": "string", "format": "date-time" },
                "list": { "type": "array", "maxItems": 2, "items": { "type": "string", "maxLength": 3 } },
                "number": { "type": "integer", "format": "int32" },
                "observedGeneration": { "type": "integer", "format": "int64" },
                "flag": { "type": "boolean" },
                "map": { "type": "object", "maxProperties": 2, "additionalProperties": { "type": "string", "maxLength": 3 } },
            } },
        } });
        let mut problems = problems(&schema);
        problems.sort();
        assert_eq!(
            problems,
            [
                "bad.free: unknown keyword x-kubernetes-preserve-unknown-fields",
                "bad.list: list without maxItems",
                "bad.list[]: string without maxLength, enum or format date-time",
                "bad.map: map without maxProperties",
                "bad.map{}: string without maxLength, enum or format date-time",
                "bad.text: string without maxLength, enum or format date-time",
                "bad.unsigned: integer that is not int32",
                "bad.untyped: type missing",
                "bad.untyped: unknown keyword x-kubernetes-int-or-string",
                "bad.wide: integer that is not int32",
            ]
        );
    }
}
