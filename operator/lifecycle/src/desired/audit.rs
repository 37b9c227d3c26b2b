//! Who calls APIs that the next version does not have: audit events of an API server about these and nothing else, and
//! the process beside it that counts the callers. Both are there only while the spec switches on such an API: others
//! pay nothing.
//!
//! Policy and address are annotations of the pod, which it finds as files: they are part of what a revision stores, and
//! there for as long as the flags that name them.

use std::collections::{BTreeMap, BTreeSet};

use kaas_crds::name::component::{AUDIT_CALLERS, KUBE_APISERVER};
use serde_json::{Value, json};

use super::Inputs;
use super::pod::{Container, Probes, Resources, key_file, key_mount, key_volume};
use crate::key_material::AUTHORITY_SECRET;

/// Port of the process, for its API server, the operator and the kubelet.
pub const CALLERS_PORT: u16 = 8448;

const POLICY_ANNOTATION: &str = "kaas.dev/audit-policy";
const WEBHOOK_ANNOTATION: &str = "kaas.dev/audit-webhook";
const VOLUME: &str = "audit";
const DIRECTORY: &str = "/etc/kubernetes/audit";
const POLICY_FILE: &str = "policy.yaml";
const WEBHOOK_FILE: &str = "webhook.yaml";
const KEYS: &str = "audit-pki";

/// The watch for callers.
pub(super) struct Audit<'a> {
    image: &'a str,
    watched: &'a BTreeSet<String>,
}

impl<'a> Audit<'a> {
    /// `None` while there is nothing to watch for, or nobody to do it.
    pub(super) fn of(inputs: &'a Inputs<'_>) -> Option<Self> {
        let (image, watched) = (inputs.platform.operator_image.as_str(), &inputs.watched);
        (!watched.is_empty() && !image.is_empty()).then_some(Audit { image, watched })
    }

    /// The process that counts.
    pub(super) fn container(&self) -> Container {
        let mut command = vec![
            "kaas-operator".to_owned(),
            "audit-callers".to_owned(),
            format!("--listen=0.0.0.0:{CALLERS_PORT}"),
            format!("--certificate={}", key_file("tls.crt")),
            format!("--key={}", key_file("tls.key")),
            format!("--authority={}", key_file("cluster-ca.crt")),
        ];
        command.extend(self.watched.iter().map(|api| format!("--watch={api}")));
        Container {
            name: AUDIT_CALLERS,
            image: self.image.to_owned(),
            command,
            environment: Vec::new(),
            ports: vec![("callers", CALLERS_PORT)],
            probes: Probes {
                port: CALLERS_PORT,
                scheme: "HTTPS",
                alive: "/healthz",
                start_seconds: 60,
                ready: "/healthz",
                // It must not take the API server with it.
                ready_failures: 30,
            },
            request: Resources { cpu: "1m", memory: "16Mi" },
            memory_limit: "128Mi",
            mounts: vec![key_mount(KEYS)],
            linger_seconds: 0,
        }
    }

    /// What the API server is told.
    pub(super) fn flags(&self) -> Vec<String> {
        vec![
            format!("--audit-policy-file={DIRECTORY}/{POLICY_FILE}"),
            format!("--audit-webhook-config-file={DIRECTORY}/{WEBHOOK_FILE}"),
            // In batches, so that no request waits for it.
            "--audit-webhook-mode=batch".into(),
            "--audit-webhook-batch-buffer-size=1000".into(),
            "--audit-webhook-batch-max-wait=1s".into(),
            "--audit-webhook-initial-backoff=1s".into(),
        ]
    }

    /// Where the API server finds its files.
    pub(super) fn mount(&self) -> Value {
        json!({"name": VOLUME, "mountPath": DIRECTORY, "readOnly": true})
    }

    pub(super) fn volumes(&self) -> [Value; 2] {
        let file = |name: &str, annotation: &str| {
            json!({"path": name, "fieldRef": {
                "apiVersion": "v1", "fieldPath": format!("metadata.annotations['{annotation}']"),
            }})
        };
        let items = [file(POLICY_FILE, POLICY_ANNOTATION), file(WEBHOOK_FILE, WEBHOOK_ANNOTATION)];
        [
            json!({"name": VOLUME, "downwardAPI": {"items": items}}),
            key_volume(
                KEYS,
                &[(AUTHORITY_SECRET, &["cluster-ca.crt"]), (KUBE_APISERVER, &["tls.crt", "tls.key"])],
            ),
        ]
    }

    /// The files, as annotations of the pod. JSON is YAML.
    pub(super) fn annotations(&self) -> Value {
        json!({POLICY_ANNOTATION: self.policy().to_string(), WEBHOOK_ANNOTATION: webhook().to_string()})
    }

    /// Who and what, never what is in it. A rule knows no versions: the process tells them apart.
    fn policy(&self) -> Value {
        let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut whole: BTreeSet<&str> = BTreeSet::new();
        for api in self.watched {
            let mut parts = api.split('/');
            let (group, resource) = (parts.next().unwrap_or_default(), parts.nth(1));
            let resources = groups.entry(group).or_default();
            match resource {
                Some(resource) => {
                    resources.insert(resource);
                }
                None => {
                    whole.insert(group);
                }
            }
        }
        let resources: Vec<Value> = groups
            .into_iter()
            .map(|(group, resources)| match whole.contains(group) {
                true => json!({"group": group}),
                false => json!({"group": group, "resources": resources}),
            })
            .collect();
        json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "omitManagedFields": true,
            "rules": [{"level": "Metadata", "resources": resources}, {"level": "None"}],
        })
    }
}

/// Where events are sent: next door, with a certificate that the process trusts.
fn webhook() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": AUDIT_CALLERS, "cluster": {
            "server": format!("https://127.0.0.1:{CALLERS_PORT}/"),
            "certificate-authority": key_file("cluster-ca.crt"),
        }}],
        "users": [{"name": AUDIT_CALLERS, "user": {
            "client-certificate": key_file("kubelet-client.crt"),
            "client-key": key_file("kubelet-client.key"),
        }}],
        "contexts": [{"name": AUDIT_CALLERS, "context": {"cluster": AUDIT_CALLERS, "user": AUDIT_CALLERS}}],
        "current-context": AUDIT_CALLERS,
    })
}
