//! Whether a live object still says what we mean, and how two renderings differ.
//!
//! Only the fields that we set are compared: what the API server or others add is not ours. A field that we set once
//! and no longer set would go unseen; for that every applied object carries a hash of its content as an annotation.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::object::Object;
use kaas_crds::name::APPLIED_HASH_ANNOTATION;

/// The first sixteen hexadecimal digits of the SHA-256 of the value's canonical form (sorted keys, no spaces).
pub fn digest(value: &Value) -> String {
    let hash = Sha256::digest(canonical(value).as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The value as JSON in its canonical form: sorted keys, no spaces.
pub(crate) fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

/// Sorts keys itself: whether serde_json's own map is sorted depends on features that any crate of a build may turn on.
fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            let sorted: std::collections::BTreeMap<_, _> = map.iter().collect();
            text.push('{');
            for (at, (key, value)) in sorted.into_iter().enumerate() {
                text.push_str(if at == 0 { "" } else { "," });
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(list) => {
            text.push('[');
            for (at, value) in list.iter().enumerate() {
                text.push_str(if at == 0 { "" } else { "," });
                write_canonical(value, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

/// The object with the hash of its own content as an annotation.
pub fn stamp(mut object: Object) -> Object {
    let hash = digest(&object.content);
    if let Some(metadata) = object.content.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(Default::default()));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(APPLIED_HASH_ANNOTATION.into(), hash.into());
        }
    }
    object
}

/// Whether every field of `ours` is in `live` with the same value.
pub fn covers(live: &Value, ours: &Value) -> bool {
    match (live, ours) {
        (Value::Object(live), Value::Object(ours)) => ours.iter().all(|(key, ours)| match live.get(key) {
            Some(live) => covers(live, ours),
            None => is_empty(ours),
        }),
        (Value::Array(live), Value::Array(ours)) => covers_list(live, ours),
        (live, ours) => live == ours,
    }
}

/// API servers omit empty lists, maps and nulls.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Lists of named elements may have elements of others between ours; other lists are compared as a whole.
fn covers_list(live: &[Value], ours: &[Value]) -> bool {
    let name = |value: &Value| value.get("name").and_then(Value::as_str).map(str::to_owned);
    let named: Option<Vec<String>> = ours.iter().map(name).collect();
    match named {
        Some(names) if !names.is_empty() => ours.iter().zip(names).all(|(ours, wanted)| {
            live.iter().any(|live| name(live).as_deref() == Some(wanted.as_str()) && covers(live, ours))
        }),
        _ => live.len() == ours.len() && live.iter().zip(ours).all(|(live, ours)| covers(live, ours)),
    }
}

/// One line for each place where the second list of objects differs from the first.
pub fn describe(old: &[Object], new: &[Object]) -> Vec<String> {
    let mut lines = Vec::new();
    let label = |object: &Object| format!("{} {}", object.reference.kind, object.reference.name);
    for object in new {
        match old.iter().find(|other| other.reference == object.reference) {
            Some(other) => walk(&other.content, &object.content, &label(object), "", &mut lines),
            None => lines.push(format!("{}: new", label(object))),
        }
    }
    for object in old {
        if !new.iter().any(|other| other.reference == object.reference) {
            lines.push(format!("{}: gone", label(object)));
        }
    }
    lines
}

fn walk(old: &Value, new: &Value, label: &str, path: &str, lines: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match (old.get(key), new.get(key)) {
                    (Some(old), Some(new)) => walk(old, new, label, &path, lines),
                    (None, Some(new)) => lines.push(format!("{label}: + {path}={}", short(new))),
                    (Some(old), None) => lines.push(format!("{label}: - {path}={}", short(old))),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(old), Value::Array(new)) => walk_list(old, new, label, path, lines),
        (old, new) if old != new => lines.push(format!("{label}: {path}: {} -> {}", short(old), short(new))),
        _ => {}
    }
}

fn walk_list(old: &[Value], new: &[Value], label: &str, path: &str, lines: &mut Vec<String>) {
    let scalar = |list: &[Value]| list.iter().all(|value| !value.is_object() && !value.is_array());
    if scalar(old) && scalar(new) {
        // Flags: what was taken away and what was added says it best.
        lines.extend(
            old.iter().filter(|item| !new.contains(item)).map(|item| format!("{label}: - {}", short(item))),
        );
        lines.extend(
            new.iter().filter(|item| !old.contains(item)).map(|item| format!("{label}: + {}", short(item))),
        );
        return;
    }
    let name = |value: &Value, at: usize| {
        value.get("name").and_then(Value::as_str).map_or_else(|| at.to_string(), str::to_owned)
    };
    for (at, value) in new.iter().enumerate() {
        let path = format!("{path}[{}]", name(value, at));
        match old.iter().enumerate().find(|(index, other)| name(other, *index) == name(value, at)) {
            Some((_, other)) => walk(other, value, label, &path, lines),
            None => lines.push(format!("{label}: + {path}")),
        }
    }
    for (at, value) in old.iter().enumerate() {
        if !new.iter().enumerate().any(|(index, other)| name(other, index) == name(value, at)) {
            lines.push(format!("{label}: - {path}[{}]", name(value, at)));
        }
    }
}

/// A value in one short line; long ones are cut at a character boundary.
fn short(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if text.chars().count() <= 120 { text } else { text.chars().take(117).chain("...".chars()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Kind, Reference};
    use serde_json::json;

    #[test]
    fn what_others_add_is_no_difference() {
        let ours =
            json!({"spec": {"ports": [{"name": "https", "port": 6443}]}, "metadata": {"labels": {"a": "b"}}});
        let live = json!({
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "extra", "port": 1}, {"name": "https", "port": 6443, "protocol": "TCP"}]},
            "metadata": {"labels": {"a": "b", "c": "d"}, "uid": "x"}
        });
        assert!(covers(&live, &ours));
    }

    #[test]
    fn what_others_change_is_a_difference() {
        let ours = json!({"args": ["--a", "--b"]});
        assert!(!covers(&json!({"args": ["--a"]}), &ours));
        assert!(!covers(&json!({"args": ["--b", "--a"]}), &ours));
        assert!(!covers(&json!({}), &ours));
        assert!(covers(&json!({}), &json!({"list": []})), "API servers omit empty lists");
    }

    #[test]
    fn a_field_that_is_no_longer_set_is_a_difference() {
        let object = |content| Object::new(Reference::namespaced(Kind::Service, "n", "s"), content);
        let before = stamp(object(json!({"spec": {"a": 1, "b": 2}})));
        let after = stamp(object(json!({"spec": {"a": 1}})));
        assert!(!covers(&before.content, &after.content));
        assert!(covers(&after.content, &after.content));
    }

    #[test]
    fn a_difference_reads_like_a_diff() {
        let object =
            |content| Object::new(Reference::namespaced(Kind::Deployment, "n", "kube-apiserver"), content);
        let old = object(
            json!({"spec": {"replicas": 1, "c": [{"name": "x", "args": ["--a", "--b=1"]}], "gone": true}}),
        );
        let new = object(
            json!({"spec": {"replicas": 2, "c": [{"name": "x", "args": ["--a", "--b=2"]}, {"name": "y"}]}}),
        );
        assert_eq!(
            describe(&[old], &[new]),
            [
                "Deployment kube-apiserver: - --b=1",
                "Deployment kube-apiserver: + --b=2",
                "Deployment kube-apiserver: + spec.c[y]",
                "Deployment kube-apiserver: - spec.gone=true",
                "Deployment kube-apiserver: spec.replicas: 1 -> 2",
            ]
        );
    }

    #[test]
    fn the_digest_is_golden() {
        // Stored in every live object: a change of the function would look like drift of the whole fleet.
        assert_eq!(digest(&json!({"b": [1, "x"], "a": null})), digest(&json!({"a": null, "b": [1, "x"]})));
        insta::assert_snapshot!(digest(&json!({"b": [1, "x"], "a": null})), @"c22cb7b0353770e2");
    }
}
