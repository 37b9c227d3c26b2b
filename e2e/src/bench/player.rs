//! Plays what kubelets and the workload controllers do for one tenant: pods that are there and Ready at once, with a
//! door where their servers would listen. The management cluster is a real API server without any controller or
//! node, so a tenant costs some objects and two listeners, and a thousand of them fit on a small machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::door::{self, Behind, Door, Identity};
use super::line::Line;
use super::site::{decode, expect};
use crate::Error;
use crate::kubectl::{at, condition};
use crate::wait;

pub(super) const NAMESPACE: &str = "played";
/// No time is measured here, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(600);
/// Tenants under way at a time.
const AT_ONCE: usize = 8;
/// A thousand of these add up, and whoever asks more often takes the operator's time.
const POLL: Duration = Duration::from_millis(100);
const ETCD_PORT: u16 = 2379;
/// The revision of the only template that each workload ever has here.
const REVISION: &str = "1";

/// The management cluster, and the servers that all tenants share.
pub(super) struct Player {
    pub(super) management: Line,
    pub(super) api: Line,
    pub(super) etcd: SocketAddr,
    /// Address of node ports; not on loopback, which no endpoint may be.
    pub(super) node: IpAddr,
    pub(super) runtime: Handle,
}

/// A tenant that runs as long as this lives.
pub(super) struct Tenant {
    pub(super) number: usize,
    pub(super) name: String,
    pub(super) uid: String,
    _doors: [Door; 2],
}

impl Player {
    /// The namespace of the tenants.
    pub(super) fn prepare(&self) -> Result<(), Error> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        self.ask("POST", "/api/v1/namespaces", Some(&namespace), 201).map(drop)
    }

    /// Creates a tenant and plays its pods until the operator says that it is Ready.
    pub(super) fn play(&self, number: usize) -> Result<Tenant, Error> {
        let name = format!("t{number}");
        let tenants = format!("/apis/kaas.dev/v1alpha1/namespaces/{NAMESPACE}/tenantclusters");
        let tenant = json!({
            "apiVersion": "kaas.dev/v1alpha1",
            "kind": "TenantCluster",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "version": crate::component::KUBERNETES,
                "controlPlane": {"replicas": 1, "endpoint": {"type": "NodePort"}},
                "etcd": {"replicas": 1, "storage": {"ephemeral": {}}},
                // Theirs is an address, or a name, that one API server has once.
                "addons": {"coreDNS": {"enabled": false}, "metricsServer": {"enabled": false}},
            },
        });
        let created = self.ask("POST", &tenants, Some(&tenant), 201)?;
        let uid = at(&created, "/metadata/uid").as_str().unwrap_or_default().to_owned();
        let home = format!("kaas-{uid}");
        let set = self.find(&format!("/apis/apps/v1/namespaces/{home}/statefulsets/etcd"))?;
        let address = address(number)?;
        let doors = [self.open_etcd(&home, address)?, self.open_api(&home, &name)?];
        self.run(&home, "statefulsets", &set, "etcd-0", address)?;
        // API servers come when etcd has its place.
        for workload in ["kube-controllers", "kube-apiserver"] {
            let path = format!("/apis/apps/v1/namespaces/{home}/deployments/{workload}");
            self.run(&home, "deployments", &self.find(&path)?, &format!("{workload}-0"), address)?;
        }
        let path = format!("{tenants}/{name}");
        self.until(&format!("played TenantCluster {name} to be Ready"), || {
            let object = self.ask("GET", &path, None, 200).map_err(|error| error.to_string())?;
            match condition(&object, "Ready") {
                Some("True") => Ok(()),
                _ => Err(at(&object, "/status/conditions").to_string()),
            }
        })?;
        Ok(Tenant { number, name, uid, _doors: doors })
    }

    pub(super) fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        expected: u16,
    ) -> Result<Value, Error> {
        self.ask_at(&self.management, method, path, body, expected)
    }

    /// A request to one of the two API servers.
    pub(super) fn ask_at(
        &self,
        line: &Line,
        method: &str,
        path: &str,
        body: Option<&Value>,
        expected: u16,
    ) -> Result<Value, Error> {
        let answer = self.runtime.block_on(line.ask(method, path, "application/json", body));
        expect(method, path, answer.map_err(|error| error.to_string()), expected)
    }

    pub(super) fn until<T>(&self, what: &str, check: impl FnMut() -> Result<T, String>) -> Result<T, Error> {
        wait::until(what, PATIENCE, POLL, check, String::new)
    }

    /// An object, as soon as the operator has made it.
    pub(super) fn find(&self, path: &str) -> Result<Value, Error> {
        self.until(path, || self.ask("GET", path, None, 200).map_err(|error| error.to_string()))
    }

    fn open_etcd(&self, home: &str, address: IpAddr) -> Result<Door, Error> {
        let address = SocketAddr::new(address, ETCD_PORT);
        self.open(home, address, Behind::Clear(self.etcd), "etcd", "server", "etcd-ca")
    }

    /// The tenant's endpoint, and its namespaces in the server behind it.
    fn open_api(&self, home: &str, tenant: &str) -> Result<Door, Error> {
        for namespace in door::NAMESPACES.map(|namespace| door::namespace_of(tenant, namespace)) {
            let own = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            self.ask_at(&self.api, "POST", "/api/v1/namespaces", Some(&own), 201)?;
        }
        let service = self.find(&format!("/api/v1/namespaces/{home}/services/kube-apiserver"))?;
        let port = at(&service, "/spec/ports/0/nodePort").as_u64().and_then(|port| u16::try_from(port).ok());
        let port = port.ok_or_else(|| Error::Invalid(format!("Service of {home} has no node port")))?;
        let behind = Behind::Api(Arc::new(self.api.another()), tenant.into());
        self.open(home, SocketAddr::new(self.node, port), behind, "kube-apiserver", "tls", "cluster-ca")
    }

    /// A door with the certificate of a Secret, for clients of one of the tenant's authorities.
    fn open(
        &self,
        home: &str,
        address: SocketAddr,
        behind: Behind,
        secret: &str,
        certificate: &str,
        authority: &str,
    ) -> Result<Door, Error> {
        let secret = self.find(&format!("/api/v1/namespaces/{home}/secrets/{secret}"))?;
        let authorities = self.find(&format!("/api/v1/namespaces/{home}/secrets/authority"))?;
        let entry = |secret: &Value, key: String| {
            let text = secret.get("data").and_then(|entries| entries.get(&key)).and_then(Value::as_str);
            text.and_then(decode).ok_or_else(|| Error::Invalid(format!("a Secret of {home} has no {key}")))
        };
        let identity = Identity {
            certificate: entry(&secret, format!("{certificate}.crt"))?,
            key: entry(&secret, format!("{certificate}.key"))?,
            clients: entry(&authorities, format!("{authority}.crt"))?,
        };
        self.runtime.block_on(Door::open(address, behind, &identity))
    }

    /// The one pod of a workload, Ready, and the workload's own word that it is there.
    fn run(
        &self,
        home: &str,
        plural: &str,
        workload: &Value,
        name: &str,
        address: IpAddr,
    ) -> Result<(), Error> {
        let label = if plural == "statefulsets" { "controller-revision-hash" } else { "pod-template-hash" };
        let mut labels = at(workload, "/spec/template/metadata/labels").clone();
        let mut spec = at(workload, "/spec/template/spec").clone();
        if let (Some(labels), Some(spec)) = (labels.as_object_mut(), spec.as_object_mut()) {
            labels.insert(label.to_owned(), REVISION.into());
            spec.insert("nodeName".to_owned(), "played".into());
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec,
        });
        let pods = format!("/api/v1/namespaces/{home}/pods");
        self.ask("POST", &pods, Some(&pod), 201)?;
        let containers = at(&spec, "/containers").as_array().into_iter().flatten().map(|container| {
            json!({
                "name": at(container, "/name"), "image": at(container, "/image"), "imageID": "played",
                "ready": true, "started": true, "restartCount": 0, "state": {"running": {}},
            })
        });
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .map(|kind| json!({"type": kind, "status": "True"}));
        let status = json!({
            "phase": "Running", "podIP": address.to_string(), "podIPs": [{"ip": address.to_string()}],
            "conditions": conditions, "containerStatuses": containers.collect::<Vec<_>>(),
        });
        self.say(&format!("{pods}/{name}/status"), status)?;
        let mut status = json!({
            "observedGeneration": at(workload, "/metadata/generation"), "replicas": 1, "updatedReplicas": 1,
            "readyReplicas": 1, "availableReplicas": 1,
        });
        if let Some(status) = status.as_object_mut()
            && plural == "statefulsets"
        {
            status.insert("updateRevision".to_owned(), REVISION.into());
            status.insert("currentRevision".to_owned(), REVISION.into());
        }
        let own = at(workload, "/metadata/name").as_str().unwrap_or_default();
        self.say(&format!("/apis/apps/v1/namespaces/{home}/{plural}/{own}/status"), status)
    }

    pub(super) fn say(&self, path: &str, status: Value) -> Result<(), Error> {
        let body = json!({"status": status});
        let kind = "application/merge-patch+json";
        let answer = self.runtime.block_on(self.management.ask("PATCH", path, kind, Some(&body)));
        expect("PATCH", path, answer.map_err(|error| error.to_string()), 200).map(drop)
    }
}

/// Does something for each number, some at a time; the first failure ends it.
pub(super) fn at_once<T: Send>(
    numbers: Range<usize>,
    work: impl Fn(usize) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let next = AtomicUsize::new(numbers.start);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= numbers.end {
                return Ok(done);
            }
            match work(number) {
                Ok(result) => done.push(result),
                Err(error) => {
                    // The others stop at their next one.
                    next.store(numbers.end, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<T>, Error>>| {
            thread.join().map_err(|_| Error::Invalid("a playing thread died".to_owned()))?
        };
        let done: Vec<Vec<T>> = threads.into_iter().map(join).collect::<Result<_, _>>()?;
        Ok(done.into_iter().flatten().collect())
    })
}

/// An address of loopback for each tenant's pods.
pub(super) fn address(number: usize) -> Result<IpAddr, Error> {
    let part = |value: usize| u8::try_from(value).ok();
    part(number / 250)
        .zip(part(number % 250 + 1))
        .map(|(high, low)| Ipv4Addr::new(127, 101, high, low).into())
        .ok_or_else(|| Error::Invalid(format!("{number} is more tenants than there are addresses")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_once_or_the_failure_is_told() {
        let mut done = at_once(3..50, Ok).unwrap();
        done.sort_unstable();
        assert_eq!(done, (3..50).collect::<Vec<_>>());
        let fail = |number| if number == 7 { Err(Error::Invalid("seven".into())) } else { Ok(number) };
        assert!(at_once(0..50, fail).unwrap_err().to_string().contains("seven"));
    }

    #[test]
    fn every_tenant_has_an_address_of_its_own() {
        let all: std::collections::BTreeSet<IpAddr> =
            (0..2000).map(|number| address(number).unwrap()).collect();
        assert_eq!(all.len(), 2000);
        assert!(address(64_000).is_err());
    }
}
