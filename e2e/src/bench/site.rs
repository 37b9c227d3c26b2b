//! The cluster under measurement, and tenants coming and going in it. A clock starts when the API server has
//! answered the creation and stops at an answer through the tenant's endpoint, asked for every 20 ms from outside
//! of the cluster, with the certificate authority and the credentials of the kubeconfig that the tenant gets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Error;
use crate::cluster::Cluster;
use crate::credentials::Credentials;
use crate::kubectl::at;
use crate::probe::{Answer, Probe};
use crate::wait;

pub(super) const NAMESPACE: &str = "bench";
const TENANTS: &str = "/apis/kaas.dev/v1alpha1/namespaces/bench/tenantclusters";
/// How exact a time is.
pub(super) const POLL: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(300);

/// The cluster and an administrator's access to it.
pub(super) struct Site {
    pub(super) cluster: Cluster,
    pub(super) api: Probe,
}

/// Where a tenant's etcd has its data. Both are the node's disk, with fsync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    /// A claim, which the storage class has to make a volume for first.
    Claim,
    /// A folder of the pod's: how long the rest takes.
    Pod,
}

impl Storage {
    /// For names of figures.
    pub(super) const fn told(self) -> &'static str {
        match self {
            Storage::Claim => "etcd on a claim",
            Storage::Pod => "etcd in its pod",
        }
    }
}

/// One tenant from its creation.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) uid: String,
    /// When the answer to its creation was there, by both clocks.
    pub(super) applied: Timestamp,
    pub(super) begun: Instant,
    pub(super) kubeconfig: Duration,
    pub(super) ready: Duration,
    pub(super) account: Duration,
}

impl Sample {
    pub(super) fn namespace(&self) -> String {
        format!("kaas-{}", self.uid)
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "name": self.name, "uid": self.uid, "applied": self.applied.to_string(),
            "kubeconfig_s": self.kubeconfig.as_secs_f64(), "ready_s": self.ready.as_secs_f64(),
            "account_s": self.account.as_secs_f64(),
        })
    }
}

impl Site {
    pub(super) fn new(cluster: Cluster) -> Result<Self, Error> {
        let credentials = Credentials::existing(cluster.state().pki());
        let api = Probe::new(&credentials, "ca", "admin", SocketAddr::new(cluster.address(), 6443))?;
        let site = Self { cluster, api };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        site.ask("POST", "/api/v1/namespaces", Some(&namespace), 201)?;
        Ok(site)
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.cluster.state().log().join("audit.log")
    }

    /// A request whose answer must have this code and be JSON.
    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        expected: u16,
    ) -> Result<Value, Error> {
        ask(&self.api, method, path, body, expected)
    }

    pub(super) fn get(&self, path: &str) -> Result<Value, Error> {
        self.ask("GET", path, None, 200)
    }

    /// A merge patch.
    pub(super) fn patch(&self, path: &str, body: &Value) -> Result<Value, Error> {
        expect("PATCH", path, self.api.send("PATCH", path, "application/merge-patch+json", Some(body)), 200)
    }

    pub(super) fn until<T>(&self, what: &str, check: impl FnMut() -> Result<T, String>) -> Result<T, Error> {
        let report = || self.cluster.kubectl().map(|kubectl| kubectl.report()).unwrap_or_default();
        wait::until(what, PATIENCE, POLL, check, report)
    }

    /// Creates tenants at once, and waits until each serves and has its default ServiceAccount.
    pub(super) fn create(&self, names: &[String], storage: Storage) -> Result<Vec<Sample>, Error> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                names.iter().map(|name| scope.spawn(move || self.create_one(name, storage))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Sample, Error>>| {
                thread.join().map_err(|_| Error::Invalid("a measuring thread died".to_owned()))?
            };
            threads.into_iter().map(join).collect()
        })
    }

    fn create_one(&self, name: &str, storage: Storage) -> Result<Sample, Error> {
        self.create_of(name, &tenant(name, storage))
    }

    /// Creates a tenant from its whole object, and waits until it serves and has its default ServiceAccount.
    pub(super) fn create_of(&self, name: &str, object: &Value) -> Result<Sample, Error> {
        let created = self.ask("POST", TENANTS, Some(object), 201)?;
        let (applied, begun) = (Timestamp::now(), Instant::now());
        let secret = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{name}-kubeconfig");
        let probe = self.until(&format!("kubeconfig of {name}"), || {
            let secret = self.get(&secret).map_err(|error| error.to_string())?;
            let value = at(&secret, "/data/value").as_str().unwrap_or_default();
            let text = decode(value).ok_or("the Secret has no kubeconfig")?;
            Probe::of_kubeconfig(&text).map_err(|error| error.to_string())
        })?;
        let kubeconfig = begun.elapsed();
        let answers = |path: &str| match probe.get(path) {
            Ok(200) => Ok(()),
            Ok(code) => Err(format!("{path}: HTTP {code}")),
            Err(error) => Err(format!("{path}: {error}")),
        };
        self.until(&format!("/readyz of {name}"), || answers("/readyz"))?;
        let ready = begun.elapsed();
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        self.until(&format!("default ServiceAccount of {name}"), || answers(account))?;
        let account = begun.elapsed();
        let uid = at(&created, "/metadata/uid").as_str().unwrap_or_default().to_owned();
        Ok(Sample { name: name.to_owned(), uid, applied, begun, kubeconfig, ready, account })
    }

    /// An administrator's kubeconfig of a tenant.
    pub(super) fn kubeconfig(&self, name: &str) -> Result<String, Error> {
        let secret = self.get(&format!("/api/v1/namespaces/{NAMESPACE}/secrets/{name}-kubeconfig"))?;
        decode(at(&secret, "/data/value").as_str().unwrap_or_default())
            .ok_or_else(|| Error::Invalid(format!("the Secret {name}-kubeconfig has no kubeconfig")))
    }

    /// Deletes tenants at once; the time until the last one's object and namespace are gone.
    pub(super) fn delete(&self, samples: &[Sample]) -> Result<Duration, Error> {
        let begun = Instant::now();
        for sample in samples {
            self.ask("DELETE", &path(&sample.name), None, 200)?;
        }
        let gone = |path: &str| match self.api.get(path) {
            Ok(404) => Ok(()),
            Ok(code) => Err(format!("{path}: HTTP {code}")),
            Err(error) => Err(format!("{path}: {error}")),
        };
        let mut left: Vec<String> = samples
            .iter()
            .flat_map(|sample| [path(&sample.name), format!("/api/v1/namespaces/{}", sample.namespace())])
            .collect();
        self.until("deleted tenants to be gone", || {
            while let Some(next) = left.last() {
                gone(next)?;
                left.pop();
            }
            Ok(())
        })?;
        Ok(begun.elapsed())
    }
}

pub(super) fn path(name: &str) -> String {
    format!("{TENANTS}/{name}")
}

/// One API server, one member, reached through a node port.
pub(super) fn tenant(name: &str, storage: Storage) -> Value {
    let storage = match storage {
        Storage::Claim => json!({"persistent": {"size": "1Gi"}}),
        Storage::Pod => json!({"ephemeral": {}}),
    };
    json!({
        "apiVersion": "kaas.dev/v1alpha1",
        "kind": "TenantCluster",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "version": crate::component::KUBERNETES,
            "controlPlane": {"replicas": 1, "endpoint": {"type": "NodePort"}},
            "etcd": {"replicas": 1, "storage": storage},
        },
    })
}

/// A request whose answer must have this code and be JSON.
pub(super) fn ask(
    api: &Probe,
    method: &str,
    path: &str,
    body: Option<&Value>,
    expected: u16,
) -> Result<Value, Error> {
    expect(method, path, api.request(method, path, body), expected)
}

/// What an answer says, which must have this code and be JSON.
pub(super) fn expect(
    method: &str,
    path: &str,
    answer: Result<Answer, String>,
    expected: u16,
) -> Result<Value, Error> {
    let fail = |text: String| Error::Invalid(format!("{method} {path}: {text}"));
    let answer = answer.map_err(fail)?;
    if answer.code != expected {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        return Err(fail(format!("HTTP {}: {text}", answer.code)));
    }
    serde_json::from_slice(&answer.body).map_err(|error| fail(error.to_string()))
}

/// Base64 of UTF-8, as the entries of Secrets are written.
pub(super) fn decode(text: &str) -> Option<String> {
    String::from_utf8(base64::prelude::BASE64_STANDARD.decode(text).ok()?).ok()
}
