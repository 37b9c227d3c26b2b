//! What a node carries for the scheduler: labels, taints, extended resources.
//!
//! Keys are refused where a kubelet would be refused (admission plugin NodeRestriction) or where they are not a
//! user's to set: those of Kubernetes' own domains, and ours.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Most labels, and most kinds of extended resources, in one object.
const MOST: u32 = 32;

/// Domains that are Kubernetes' or ours.
const RESERVED: &str = "key.matches('^([^/]*\\\\.)?(kubernetes\\\\.io|k8s\\\\.io|kaas\\\\.dev)/')";
/// What of them a kubelet, and so a user, may set nevertheless.
const PERMITTED: &str = "key.matches('^([^/]*\\\\.)?(kubelet|node)\\\\.kubernetes\\\\.io/') && key != 'node.kubernetes.io/instance-type' || key in ['topology.kubernetes.io/region', 'topology.kubernetes.io/zone']";
/// A qualified name, as Kubernetes has it.
const QUALIFIED: &str = "key.indexOf('/') <= 253 && key.size() <= 317 && key.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$')";

/// Node labels. No key twice, and none of a reserved domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, String>);

impl JsonSchema for Labels {
    fn schema_name() -> Cow<'static, str> {
        "Labels".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let fine = format!("{QUALIFIED} && (!({RESERVED}) || {PERMITTED})");
        json_schema!({
            "type": "object",
            "maxProperties": MOST,
            "additionalProperties": {
                "type": "string",
                "maxLength": 63,
                "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$",
            },
            "x-kubernetes-validations": [{
                "rule": format!("self.all(key, {fine})"),
                "messageExpression": format!("\"label key '\" + self.filter(key, !({fine}))[0] + \"' must be a qualified name such as example.com/role, not of kubernetes.io, k8s.io or kaas.dev\""),
            }],
        })
    }
}

/// Extended resources: how many of each a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExtendedResources(pub BTreeMap<String, i32>);

impl JsonSchema for ExtendedResources {
    fn schema_name() -> Cow<'static, str> {
        "ExtendedResources".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let fine = format!("key.contains('/') && {QUALIFIED} && !({RESERVED})");
        json_schema!({
            "type": "object",
            "maxProperties": MOST,
            "additionalProperties": { "type": "integer", "format": "int32", "minimum": 0, "maximum": 1_000_000 },
            "x-kubernetes-validations": [{
                "rule": format!("self.all(key, {fine})"),
                "messageExpression": format!("\"resource '\" + self.filter(key, !({fine}))[0] + \"' must have a domain, such as example.com/gpu, other than kubernetes.io, k8s.io and kaas.dev\""),
            }],
        })
    }
}

/// A taint of a node.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Taint {
    /// For example `example.com/gpu`. The domains kubernetes.io, k8s.io and kaas.dev are not for users.
    #[schemars(length(min = 1, max = 317))]
    #[x_kube(validation = Rule::new(
        "self.indexOf('/') <= 253 && self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]$') && !self.matches('^([^/]*\\\\.)?(kubernetes\\\\.io|k8s\\\\.io|kaas\\\\.dev)/')"
    ).message(Message::Expression(
        "\"taint key '\" + self + \"' must be a qualified name such as example.com/gpu, not of kubernetes.io, k8s.io or kaas.dev\"".into()
    )))]
    pub key: String,

    /// Compared by tolerations.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63), regex(pattern = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"))]
    pub value: String,

    /// What happens to pods that do not tolerate it.
    pub effect: TaintEffect,
}

/// What happens to pods that do not tolerate a taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum TaintEffect {
    /// They are not scheduled there.
    NoSchedule,
    /// They are scheduled there only when there is no other place.
    PreferNoSchedule,
    /// They are not scheduled there, and those that run are evicted.
    NoExecute,
}

impl fmt::Display for TaintEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
