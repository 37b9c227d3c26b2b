//! Three kinds of programs that need more of a cluster than pods: one with volumes, one that the API server asks before
//! it accepts an object, and one that grows with its use.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::gate::Gate;
use super::{WORKERS_READY, await_pod, pool_of_two, text, told};
use crate::Error;
use crate::addon;
use crate::flow::{Stage, claim};
use crate::kubectl::{Kubectl, at};

const BUSYBOX: &str = "docker.io/library/busybox:1";
/// On a worker only what is below this directory stays when it starts again.
const VOLUMES: &str = "/var/lib/kubelet/local-path";
const STORE: &str = "store";
const WEBHOOK: &str = "gate";
const BUSY: &str = "eager";
/// Two samples of a pod that is ready for as long, and two looks of the autoscaler.
const SCALED: Duration = Duration::from_secs(240);

pub(super) fn volumes_and_a_webhook(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    let started = Instant::now();
    // All at once: the slowest is the time. Of the one that grows it takes a while until its use is known; a later flow
    // asks for it.
    kubectl.apply(&addon::local_path(VOLUMES, "docker.io/rancher/local-path-provisioner", BUSYBOX)?)?;
    kubectl.apply(&eager().to_string())?;
    let gate = Gate::build(&kubectl, WEBHOOK)?;
    kubectl.apply(&store().to_string())?;
    data_stays(&kubectl)?;
    told("a StatefulSet keeps its data", started);
    gate.close()?;
    told("a webhook is asked", started);
    gate.remove()?;
    kubectl.run(&["delete", "statefulset", STORE, "--wait=false"])?;
    kubectl.run(&["delete", "persistentvolumeclaims", "--all", "--wait=false"]).map(drop)
}

/// Two pods with a volume each, which note their every start.
fn store() -> Value {
    let labels = json!({"app": STORE});
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": STORE, "namespace": "default"},
        "spec": {
            "replicas": 2, "serviceName": STORE, "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "store", "image": BUSYBOX,
                    "command": ["sh", "-c", "hostname >> /data/starts; sleep infinity"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }],
            }},
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}},
            }],
        },
    })
}

fn data_stays(kubectl: &Kubectl) -> Result<(), Error> {
    let first = format!("{STORE}-0");
    for name in [&first, &format!("{STORE}-1")] {
        await_pod(kubectl, name)?;
    }
    let before = text(&kubectl.read(&["get", "pod", &first])?, "/metadata/uid");
    kubectl.run(&["delete", "pod", &first])?;
    let again = |pod: &Value| match text(pod, "/metadata/uid") == before {
        true => Err("it is still the one before".to_owned()),
        false => Ok(()),
    };
    kubectl.await_object("another first pod", &["get", "pod", &first], WORKERS_READY, again)?;
    await_pod(kubectl, &first)?;
    let starts = kubectl.run(&["exec", &first, "--", "cat", "/data/starts"])?;
    claim(starts == format!("{first}\n{first}\n"), || format!("its volume has `{starts}`"))
}

/// A program that takes all that it may, and a scaler that wants half of what it asked for.
fn eager() -> Value {
    let labels = json!({"app": BUSY});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": BUSY, "namespace": "default"},
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "eager", "image": BUSYBOX, "command": ["sh", "-c", "while :; do :; done"],
                        "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "100m"}},
                    }],
                },
            }},
        },
        {
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": BUSY, "namespace": "default"},
            "spec": {
                "minReplicas": 1, "maxReplicas": 2,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": BUSY},
                "metrics": [{"type": "Resource", "resource": {
                    "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50},
                }}],
            },
        },
    ]})
}

pub(super) fn it_grows(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    kubectl.apply(&eager().to_string())?;
    let grown = |deployment: &Value| match at(deployment, "/status/readyReplicas").as_i64() {
        Some(2) => Ok(()),
        ready => {
            let scaler = kubectl.read(&["get", "horizontalpodautoscaler", BUSY]).unwrap_or_default();
            Err(format!("{ready:?} pods are ready; the autoscaler says {}", at(&scaler, "/status")))
        }
    };
    kubectl.await_object("a second pod by its use", &["get", "deployment", BUSY], SCALED, grown)?;
    for kind in ["horizontalpodautoscaler", "deployment"] {
        kubectl.run(&["delete", kind, BUSY, "--wait=false"])?;
    }
    Ok(())
}
