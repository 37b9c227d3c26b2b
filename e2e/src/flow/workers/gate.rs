//! A program that says no to what is created, behind a Service with a certificate: an admission webhook in the tenant,
//! which API servers reach through the tunnel alone.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::{SignedDuration, Timestamp};
use kaas_pki::{Authority, Request, Usages, Validity};
use serde_json::{Value, json};

use super::{WORKERS_READY, agnhost, await_pod, until};
use crate::Error;
use crate::kubectl::Kubectl;

/// What it says. A gate that is not reached is an error of other words.
pub(super) const WORDS: &str = "this webhook denies all requests";

/// A webhook that is asked about ConfigMaps with the label `gate` of its name.
pub(super) struct Gate<'a> {
    kubectl: &'a Kubectl,
    name: &'static str,
    authority: String,
}

impl<'a> Gate<'a> {
    /// Applies the program; nobody asks it yet.
    pub(super) fn build(kubectl: &'a Kubectl, name: &'static str) -> Result<Self, Error> {
        let validity = Validity::starting(Timestamp::now(), SignedDuration::from_hours(24));
        let authority = Authority::generate("gate-ca", validity)?;
        let request = Request {
            common_name: name.to_owned(),
            organizations: vec![],
            dns_names: vec![format!("{name}.default.svc")],
            ip_addresses: vec![],
            usages: Usages::Server,
        };
        let issued = authority.issue(&request, validity)?;
        let labels = json!({"app": name});
        let objects = [
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default"},
                "stringData": {"tls.crt": issued.certificate_pem, "tls.key": issued.private_key_pem},
            }),
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
                "spec": {"selector": labels, "ports": [{"port": 443, "targetPort": 8443}]},
            }),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "default", "labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "gate", "image": agnhost(),
                        "args": [
                            "webhook", "--port=8443", "--tls-cert-file=/tls/tls.crt",
                            "--tls-private-key-file=/tls/tls.key",
                        ],
                        "readinessProbe": {
                            "httpGet": {"path": "/readyz", "port": 8443, "scheme": "HTTPS"}, "periodSeconds": 1,
                        },
                        "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
                    }],
                    "volumes": [{"name": "tls", "secret": {"secretName": name}}],
                },
            }),
        ];
        for object in objects {
            kubectl.apply(&object.to_string())?;
        }
        Ok(Self { kubectl, name, authority: authority.certificate_pem().to_owned() })
    }

    /// From now on it is asked; returns when it was heard.
    pub(super) fn close(&self) -> Result<(), Error> {
        await_pod(self.kubectl, self.name)?;
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": self.name},
            "webhooks": [{
                "name": "gate.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "failurePolicy": "Fail", "timeoutSeconds": 5,
                "clientConfig": {
                    "caBundle": BASE64_STANDARD.encode(&self.authority),
                    "service": {"name": self.name, "namespace": "default", "path": "/always-deny"},
                },
                "objectSelector": {"matchLabels": {"gate": self.name}},
                "rules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "operations": ["CREATE"]},
                ],
            }],
        });
        self.kubectl.apply(&configuration.to_string())?;
        let path = self.kubectl.kubeconfig().with_extension("asked.json");
        std::fs::write(&path, self.stopped().to_string()).map_err(Error::io("write", &path))?;
        // A configuration is followed after a moment.
        let refused = || match self.kubectl.run(&["create", "--filename", &path.display().to_string()]) {
            Ok(made) => Err(format!("{made} was accepted")),
            Err(error) if error.to_string().contains(WORDS) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        until(self.kubectl, "the webhook's own words", WORKERS_READY, refused)
    }

    /// An object that does not pass it; everything else does.
    pub(super) fn stopped(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"generateName": "asked-", "namespace": "default", "labels": {"gate": self.name}},
        })
    }

    /// Nobody is asked any more.
    pub(super) fn remove(&self) -> Result<(), Error> {
        for kind in ["validatingwebhookconfiguration", "pod", "service", "secret"] {
            self.kubectl.run(&["delete", kind, self.name, "--ignore-not-found", "--wait=false"])?;
        }
        Ok(())
    }
}
