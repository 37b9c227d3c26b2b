//! The CRDs as they are installed: what the derive macro renders, with everything that it leaves open closed.
//!
//! - `nullable` is dropped. With it `ephemeral: null` would be kept and count as set in CEL's `has()`. Without it the
//!   API server takes a null in a plain request as unset, and refuses one that is applied on the server's side.
//! - Conditions get the limits that metav1.Condition has upstream; the generated schema has none.
//! - Whole numbers are written as such (`5`, not `5.0`).
//! - Helm keeps the CRD, and with it every cluster, when the chart is uninstalled.

use kaas_crds::{InstanceType, KubernetesRelease, TenantCluster, Worker, WorkerPool};
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::{Error, bounds};

/// A CustomResourceDefinition as a document.
pub(crate) struct Crd {
    /// The whole document.
    pub(crate) document: Value,
}

impl Crd {
    /// The text at a JSON pointer; empty when there is none.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.document.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// Plural, lower-case name, as in URLs.
    pub(crate) fn plural(&self) -> &str {
        self.text("/spec/names/plural")
    }

    /// Kind.
    pub(crate) fn kind(&self) -> &str {
        self.text("/spec/names/kind")
    }

    /// The schema of the one version that there is.
    pub(crate) fn schema(&self) -> &Value {
        self.document.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap_or(&Value::Null)
    }
}

/// Every CRD, bounded.
pub(crate) fn all() -> Result<Vec<Crd>, Error> {
    let definitions = [
        TenantCluster::crd(),
        WorkerPool::crd(),
        Worker::crd(),
        InstanceType::crd(),
        KubernetesRelease::crd(),
    ];
    definitions
        .iter()
        .map(|definition| {
            let document = serde_json::to_value(definition)
                .map_err(|source| Error::Json { what: "a CustomResourceDefinition".into(), source })?;
            let crd = Crd { document: keep_on_uninstall(tidy(document)) };
            let problems = bounds::problems(crd.schema());
            if problems.is_empty() {
                Ok(crd)
            } else {
                Err(Error::Unbounded { kind: crd.kind().to_owned(), problems })
            }
        })
        .collect()
}

fn keep_on_uninstall(mut document: Value) -> Value {
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("annotations".into(), json!({ "helm.sh/resource-policy": "keep" }));
    }
    document
}

/// The same value with keys in order (whatever serde_json was built with), without `nullable`, with whole numbers,
/// and with bounded conditions.
fn tidy(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields
                .into_iter()
                .map(|(key, value)| (key, tidy(value)))
                .filter(|(key, _)| key != "nullable")
                .collect();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            let mut fields: Map<_, _> = fields.into_iter().collect();
            if is_condition(&fields) {
                limit_condition(&mut fields);
            }
            Value::Object(fields)
        }
        Value::Array(items) => Value::Array(items.into_iter().map(tidy).collect()),
        Value::Number(number) => match number.as_f64() {
            // Limits are f64 in the Rust type; each of ours is a small integer, which both represent exactly.
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 1e15 => {
                json!(float as i64)
            }
            _ => Value::Number(number),
        },
        other => other,
    }
}

/// A schema with all the properties of metav1.Condition.
fn is_condition(schema: &Map<String, Value>) -> bool {
    let Some(properties) = schema.get("properties") else { return false };
    ["lastTransitionTime", "message", "observedGeneration", "reason", "status", "type"]
        .iter()
        .all(|name| properties.get(name).is_some())
}

/// The markers of metav1.Condition in k8s.io/apimachinery, which the generated schema lacks.
fn limit_condition(schema: &mut Map<String, Value>) {
    let limits = json!({
        "message": { "maxLength": 32768 },
        "observedGeneration": { "minimum": 0 },
        "reason": { "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$" },
        "status": { "enum": ["True", "False", "Unknown"] },
        "type": {
            "maxLength": 316,
            "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
        },
    });
    let (Some(properties), Value::Object(limits)) = (schema.get_mut("properties"), limits) else { return };
    for (name, limit) in limits {
        if let (Some(Value::Object(property)), Value::Object(limit)) = (properties.get_mut(&name), limit) {
            property.extend(limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_crd_is_bounded_and_kept() {
        for crd in all().unwrap() {
            assert_eq!(crd.text("/metadata/annotations/helm.sh~1resource-policy"), "keep");
            assert_eq!(bounds::problems(crd.schema()), Vec::<String>::new());
        }
    }

    #[test]
    fn without_the_limits_conditions_are_refused() {
        let untouched = serde_json::to_value(TenantCluster::crd()).unwrap();
        let schema = untouched.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
        let problems = bounds::problems(schema);
        assert!(problems.iter().any(|p| p.starts_with("status.conditions[].message: ")), "{problems:?}");
    }

    #[test]
    fn null_is_not_a_value() {
        for crd in all().unwrap() {
            assert!(!crd.document.to_string().contains("nullable"), "{}", crd.kind());
        }
    }

    #[test]
    fn numbers_are_whole_and_keys_in_order() {
        let tidied = tidy(
            serde_json::from_str(r#"{"b": 5.0, "a": {"nullable": true, "z": 0.5, "c": [2.0]}}"#).unwrap(),
        );
        assert_eq!(tidied.to_string(), r#"{"a":{"c":[2],"z":0.5},"b":5}"#);
    }
}
