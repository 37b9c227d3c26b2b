//! APIs that are not served unless somebody asks for them: alpha and beta versions.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// APIs that are switched on or off: group and version, and whether they are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuntimeConfig(pub BTreeMap<String, bool>);

impl RuntimeConfig {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl JsonSchema for RuntimeConfig {
    fn schema_name() -> Cow<'static, str> {
        "RuntimeConfig".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let fine = "key.size() <= 200 && key.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/v[0-9]{1,3}(alpha|beta)[0-9]{1,3}$')";
        json_schema!({
            "type": "object",
            "maxProperties": 32,
            "additionalProperties": { "type": "boolean" },
            "x-kubernetes-validations": [{
                "rule": format!("self.all(key, {fine})"),
                "messageExpression": format!("\"spec.controlPlane.runtimeConfig: '\" + self.filter(key, !({fine}))[0] + \"' must be a group and an alpha or beta version, for example networking.k8s.io/v1beta1; versions such as v1 are always served\""),
            }],
        })
    }
}
