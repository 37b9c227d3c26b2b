//! Three kinds of programs that need more of a cluster than pods: one with volumes, one that the API server asks before
//! it accepts an object, and one that grows with its use.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::{SignedDuration, Timestamp};
use kaas_pki::{Authority, Request, Usages, Validity};
use serde_json::{Value, json};

use super::{WORKERS_READY, agnhost, await_pod, pool_of_two, text, told, until};
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

pub(super) fn three_kinds(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    let started = Instant::now();
    // All at once: the slowest is the time.
    kubectl.apply(&addon::local_path(VOLUMES, "docker.io/rancher/local-path-provisioner", BUSYBOX)?)?;
    kubectl.apply(&eager().to_string())?;
    let authority = gate(&kubectl)?;
    kubectl.apply(&store().to_string())?;
    data_stays(&kubectl)?;
    told("a StatefulSet keeps its data", started);
    the_gate_is_asked(&kubectl, &authority)?;
    told("a webhook is asked", started);
    it_grows(&kubectl)?;
    told("an autoscaler has made a second pod", started);
    leave(&kubectl)
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

/// A program that says no, behind a Service with a certificate; returns the authority that signed it.
fn gate(kubectl: &Kubectl) -> Result<String, Error> {
    let validity = Validity::starting(Timestamp::now(), SignedDuration::from_hours(24));
    let authority = Authority::generate("gate-ca", validity)?;
    let request = Request {
        common_name: WEBHOOK.to_owned(),
        organizations: vec![],
        dns_names: vec![format!("{WEBHOOK}.default.svc")],
        ip_addresses: vec![],
        usages: Usages::Server,
    };
    let issued = authority.issue(&request, validity)?;
    let labels = json!({"app": WEBHOOK});
    let objects = [
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": WEBHOOK, "namespace": "default"},
            "stringData": {"tls.crt": issued.certificate_pem, "tls.key": issued.private_key_pem},
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": WEBHOOK, "namespace": "default"},
            "spec": {"selector": labels, "ports": [{"port": 443, "targetPort": 8443}]},
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": WEBHOOK, "namespace": "default", "labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "gate", "image": agnhost(),
                    "args": [
                        "webhook", "--port=8443", "--tls-cert-file=/tls/tls.crt", "--tls-private-key-file=/tls/tls.key",
                    ],
                    "readinessProbe": {
                        "httpGet": {"path": "/readyz", "port": 8443, "scheme": "HTTPS"}, "periodSeconds": 1,
                    },
                    "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
                }],
                "volumes": [{"name": "tls", "secret": {"secretName": WEBHOOK}}],
            },
        }),
    ];
    for object in objects {
        kubectl.apply(&object.to_string())?;
    }
    Ok(authority.certificate_pem().to_owned())
}

/// What is labelled for it is refused in its words; everything else does not pass it.
fn the_gate_is_asked(kubectl: &Kubectl, authority: &str) -> Result<(), Error> {
    await_pod(kubectl, WEBHOOK)?;
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": WEBHOOK},
        "webhooks": [{
            "name": "gate.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail", "timeoutSeconds": 5,
            "clientConfig": {
                "caBundle": BASE64_STANDARD.encode(authority),
                "service": {"name": WEBHOOK, "namespace": "default", "path": "/always-deny"},
            },
            "objectSelector": {"matchLabels": {"gate": "ask"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]}],
        }],
    });
    kubectl.apply(&configuration.to_string())?;
    let asked = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"generateName": "asked-", "namespace": "default", "labels": {"gate": "ask"}},
    });
    let path = kubectl.kubeconfig().with_extension("asked.json");
    std::fs::write(&path, asked.to_string()).map_err(Error::io("write", &path))?;
    // A configuration is followed after a moment; a gate that is not reached is an error of another kind.
    let refused = || match kubectl.run(&["create", "--filename", &path.display().to_string()]) {
        Ok(made) => Err(format!("{made} was accepted")),
        Err(error) if error.to_string().contains("this webhook denies all requests") => Ok(()),
        Err(error) => Err(error.to_string()),
    };
    until(kubectl, "the webhook's own words", WORKERS_READY, refused)
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

fn it_grows(kubectl: &Kubectl) -> Result<(), Error> {
    let grown = |deployment: &Value| match at(deployment, "/status/readyReplicas").as_i64() {
        Some(2) => Ok(()),
        ready => {
            let scaler = kubectl.read(&["get", "horizontalpodautoscaler", BUSY]).unwrap_or_default();
            Err(format!("{ready:?} pods are ready; the autoscaler says {}", at(&scaler, "/status")))
        }
    };
    kubectl.await_object("a second pod by its use", &["get", "deployment", BUSY], SCALED, grown).map(drop)
}

fn leave(kubectl: &Kubectl) -> Result<(), Error> {
    for what in [
        ["validatingwebhookconfiguration", WEBHOOK],
        ["statefulset", STORE],
        ["deployment", BUSY],
        ["horizontalpodautoscaler", BUSY],
        ["pod", WEBHOOK],
        ["service", WEBHOOK],
    ] {
        kubectl.run(&[&["delete", "--ignore-not-found", "--wait=false"], what.as_slice()].concat())?;
    }
    kubectl.run(&["delete", "persistentvolumeclaims", "--all", "--wait=false"]).map(drop)
}
