//! What all pods of a control plane have in common: the restricted pod security standard, where they run, how they
//! are probed, and how key material reaches them.

use serde_json::{Value, json};

use super::{Inputs, selector};
use crate::key_material::DIRECTORY;

/// User and group of every process, without a name in the images and without rights anywhere.
const USER: u32 = 65532;
/// Mode 0440 of key material: the group is the pod's, nobody writes.
const KEY_MODE: u32 = 0o440;

/// A pod before it is written out.
pub(super) struct Pod {
    pub(super) component: &'static str,
    pub(super) containers: Vec<Container>,
    pub(super) volumes: Vec<Value>,
    pub(super) grace_seconds: u32,
    /// Label that tells the pods of one template from those of the next, where pods of both run side by side: a roll
    /// is then spread like the pods that stay.
    pub(super) template_label: Option<&'static str>,
}

/// A container before it is written out.
pub(super) struct Container {
    pub(super) name: &'static str,
    pub(super) image: String,
    /// Program and flags.
    pub(super) command: Vec<String>,
    pub(super) environment: Vec<Value>,
    /// Names and numbers, for people: nothing depends on them.
    pub(super) ports: Vec<(&'static str, u16)>,
    pub(super) probes: Probes,
    /// What it uses at rest.
    pub(super) request: Resources,
    pub(super) memory_limit: &'static str,
    pub(super) mounts: Vec<Value>,
    /// It is told to end so many seconds after the pod's other containers.
    pub(super) linger_seconds: u32,
}

pub(super) struct Resources {
    pub(super) cpu: &'static str,
    pub(super) memory: &'static str,
}

/// Where a component tells how it is.
pub(super) struct Probes {
    pub(super) port: u16,
    pub(super) scheme: &'static str,
    /// Asked every second until it first answers, then every ten seconds.
    pub(super) alive: &'static str,
    /// So many seconds may pass until it first answers.
    pub(super) start_seconds: u32,
    pub(super) ready: &'static str,
    /// So many failures in a row until the pod counts as not ready: one a second, one every two if nothing answers.
    pub(super) ready_failures: u32,
}

impl Pod {
    /// The pod template.
    pub(super) fn template(self, inputs: &Inputs<'_>) -> Value {
        let spread: Vec<Value> = ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
            .into_iter()
            .map(|key| self.spread(key))
            .collect();
        let mut spec = json!({
            "automountServiceAccountToken": false,
            // The environment of a Service named etcd would look like settings of etcd.
            "enableServiceLinks": false,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                // A data directory is not walked through again at each start.
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "terminationGracePeriodSeconds": self.grace_seconds,
            "topologySpreadConstraints": spread,
            "containers": self.containers.into_iter().map(Container::render).collect::<Vec<_>>(),
            "volumes": self.volumes,
        });
        if let Some(spec) = spec.as_object_mut()
            && !inputs.platform.priority_class.is_empty()
        {
            spec.insert("priorityClassName".into(), inputs.platform.priority_class.clone().into());
        }
        json!({"metadata": {"labels": inputs.tenant.pod_labels(self.component)}, "spec": spec})
    }

    /// Rather elsewhere than not at all: with one node everything still runs. It stands there for one replica too,
    /// so that scaling changes no template.
    fn spread(&self, key: &str) -> Value {
        let mut constraint = json!({
            "topologyKey": key,
            "maxSkew": 1,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector(self.component)},
        });
        if let (Some(constraint), Some(label)) = (constraint.as_object_mut(), self.template_label) {
            constraint.insert("matchLabelKeys".into(), json!([label]));
        }
        constraint
    }
}

impl Container {
    fn render(self) -> Value {
        let Probes { port, scheme, alive, start_seconds, ready, ready_failures } = self.probes;
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|(name, port)| json!({"name": name, "containerPort": port, "protocol": "TCP"}))
            .collect();
        let mut container = json!({
            "name": self.name,
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "command": self.command,
            "ports": ports,
            "resources": {
                "requests": {"cpu": self.request.cpu, "memory": self.request.memory},
                // No CPU limit: throttling shows as latency and lost leases. The memory limit is far above what is
                // ever needed: it stops a runaway before its neighbours pay for it.
                "limits": {"memory": self.memory_limit},
            },
            "securityContext": confinement(),
            "startupProbe": {
                "httpGet": {"path": alive, "port": port, "scheme": scheme},
                "periodSeconds": 1,
                "timeoutSeconds": 3,
                "failureThreshold": start_seconds,
            },
            // A minute of silence: restarting cures a hang, never a neighbour's failure or a busy machine.
            "livenessProbe": {
                "httpGet": {"path": alive, "port": port, "scheme": scheme},
                "periodSeconds": 10,
                "timeoutSeconds": 10,
                "failureThreshold": 6,
            },
            "readinessProbe": {
                "httpGet": {"path": ready, "port": port, "scheme": scheme},
                "periodSeconds": 1,
                "timeoutSeconds": 2,
                "failureThreshold": ready_failures,
            },
            "volumeMounts": self.mounts,
        });
        if let Some(container) = container.as_object_mut() {
            if !self.environment.is_empty() {
                container.insert("env".into(), self.environment.into());
            }
            if self.linger_seconds > 0 {
                let pause = json!({"preStop": {"sleep": {"seconds": self.linger_seconds}}});
                container.insert("lifecycle".into(), pause);
            }
        }
        container
    }
}

/// A container that ends, before the pod's own begin.
pub(super) fn step(name: &str, image: &str, command: Vec<String>, mounts: Vec<Value>) -> Value {
    json!({
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "4Gi"}},
        "securityContext": confinement(),
        "volumeMounts": mounts,
    })
}

fn confinement() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}

/// A volume with these files of these Secrets, and no others: a component sees only the keys that it needs.
pub(super) fn key_volume(name: &str, secrets: &[(&str, &[&str])]) -> Value {
    let sources: Vec<Value> = secrets
        .iter()
        .map(|(secret, files)| {
            let items: Vec<Value> = files.iter().map(|file| json!({"key": file, "path": file})).collect();
            json!({"secret": {"name": secret, "items": items}})
        })
        .collect();
    json!({"name": name, "projected": {"defaultMode": KEY_MODE, "sources": sources}})
}

/// Mounts a volume of [`key_volume`]. A whole directory and no `subPath`: only then do files follow their Secret.
pub(super) fn key_mount(volume: &str) -> Value {
    json!({"name": volume, "mountPath": DIRECTORY, "readOnly": true})
}

/// Path of a file of key material.
pub(super) fn key_file(file: &str) -> String {
    format!("{DIRECTORY}/{file}")
}

/// An environment variable with a field of the pod.
pub(super) fn field_variable(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}})
}
