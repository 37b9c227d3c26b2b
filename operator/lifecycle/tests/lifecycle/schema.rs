//! What the CRD's structural schema says of a document: types, lengths, ranges, enumerations. CEL rules are judged by
//! real API servers elsewhere.

use serde_json::Value;

/// The schema of a field of a kind.
pub(crate) struct Schema(Value);

impl Schema {
    /// The kind by its plural name.
    pub(crate) fn of(plural: &str, field: &str) -> Schema {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/kaas-crds/templates");
        let path = format!("{folder}/{plural}.yaml");
        #[expect(clippy::disallowed_methods, reason = "the rendered CRD is a file")]
        let text = std::fs::read_to_string(path).unwrap();
        let crd: Value = serde_yaml::from_str(&text).unwrap();
        Schema(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][field].clone())
    }

    /// Where the document is not as the schema says.
    pub(crate) fn violations(&self, document: &Value) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.0, document, "", &mut found);
        found
    }
}

fn walk(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let limit = |key: &str| schema[key].as_u64().map(|limit| usize::try_from(limit).unwrap());
    let mut say = |what: String| found.push(format!("{path}: {what}"));
    if let Some(options) = schema["enum"].as_array()
        && !options.contains(value)
    {
        say(format!("{value} is none of {options:?}"));
    }
    match (schema["type"].as_str().unwrap_or(""), value) {
        ("object", Value::Object(map)) => {
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !map.contains_key(name) {
                    say(format!("{name} is missing"));
                }
            }
            for (name, value) in map {
                match schema["properties"].get(name) {
                    Some(schema) => walk(schema, value, &format!("{path}/{name}"), found),
                    None => found.push(format!("{path}/{name}: unknown")),
                }
            }
        }
        ("array", Value::Array(list)) => {
            if limit("maxItems").is_some_and(|limit| list.len() > limit) {
                say(format!("{} items", list.len()));
            }
            for (at, value) in list.iter().enumerate() {
                walk(&schema["items"], value, &format!("{path}/{at}"), found);
            }
        }
        ("string", Value::String(text)) => {
            // API servers count characters.
            let length = text.chars().count();
            if limit("maxLength").is_some_and(|limit| length > limit)
                || limit("minLength").is_some_and(|limit| length < limit)
            {
                say(format!("{length} characters"));
            }
        }
        ("integer", Value::Number(number)) => {
            let number = number.as_i64().unwrap();
            let bound = |key: &str| schema[key].as_f64();
            #[expect(clippy::cast_precision_loss, reason = "bounds are small")]
            let number = number as f64;
            if bound("minimum").is_some_and(|least| number < least)
                || bound("maximum").is_some_and(|most| number > most)
            {
                say(format!("{number} is out of range"));
            }
        }
        ("boolean", Value::Bool(_)) => {}
        ("", value) if schema["x-kubernetes-int-or-string"] == true => {
            assert!(value.is_number() || value.is_string())
        }
        (kind, value) => say(format!("{value} is no {kind}")),
    }
}
