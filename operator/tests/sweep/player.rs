//! Plays the rest of the management cluster for one tenant: the workload controllers, the kubelets, kube-proxy and the
//! namespace controller.
//!
//! Each step is taken from what the watches told and is harmless when it is taken twice: names are given, not drawn.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use futures::future::join_all;
use kaas_crds::name::{COMPONENT_LABEL, component};
use kaas_lifecycle::difference::digest;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::door::{Behind, Door, Identity};
use crate::record::{Key, Record, namespaced_kinds, resource};

/// The tenant's real servers.
#[derive(Clone)]
pub struct Servers {
    pub api: Behind,
    pub etcd: Behind,
}

pub struct Player {
    pub client: Client,
    pub record: Arc<Record>,
    pub home: String,
    pub servers: Servers,
    /// Address of node ports.
    pub node: IpAddr,
    /// Pods of this tenant are at `127.a.b.*`.
    pub network: (u8, u8),
}

type Live = BTreeMap<Key, Arc<Value>>;

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn terminating(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

fn ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn of<'a>(live: &'a Live, kind: &'static str) -> impl Iterator<Item = &'a Arc<Value>> {
    live.iter().filter(move |((found, _), _)| *found == kind).map(|(_, object)| object)
}

/// An entry of a Secret, decoded.
pub fn entry(secret: &Value, key: &str) -> Option<String> {
    let encoded = secret["data"][key].as_str()?;
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded).ok()?).ok()
}

impl Player {
    /// Plays until it is dropped.
    pub async fn play(self) {
        let mut doors = BTreeMap::new();
        let mut seen = 0;
        loop {
            seen = self.record.changed(&[&self.home], seen).await;
            self.step(&mut doors).await;
        }
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.home, &resource(kind))
    }

    async fn step(&self, doors: &mut BTreeMap<SocketAddr, Door>) {
        let live = self.record.live(&self.home);
        let Some(namespace) = live.get(&("Namespace", self.home.clone())) else {
            doors.clear();
            return;
        };
        let going = of(&live, "Pod").filter(|pod| terminating(pod)).map(|pod| self.kill(pod));
        join_all(going).await;
        if terminating(namespace) {
            doors.clear();
            self.empty().await;
            return;
        }
        join_all(["StatefulSet", "Deployment"].into_iter().flat_map(|kind| of(&live, kind).map(move |set| (kind, set)))
            .map(|(kind, set)| self.control(kind, set, &live)))
        .await;
        let starting = of(&live, "Pod").filter(|pod| !terminating(pod) && !ready(pod) && mountable(pod, &live));
        join_all(starting.map(|pod| self.run(pod))).await;
        self.open(&live, doors).await;
    }

    /// A kubelet whose containers have ended.
    async fn kill(&self, pod: &Value) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        // It may be gone already.
        let _ = self.api("Pod").delete(text(pod, "/metadata/name"), &now).await;
    }

    /// The namespace controller: everything goes, pods in their own time, and at last the namespace.
    async fn empty(&self) {
        let all = ListParams::default();
        let removals = namespaced_kinds().map(|kind| {
            let api = self.api(kind);
            let all = &all;
            async move { api.delete_collection(&DeleteParams::default(), all).await.is_ok() }
        });
        let removed = join_all(removals).await.into_iter().all(|done| done);
        let left = self.api("Pod").list(&all).await.map(|pods| pods.items.len());
        if !removed || left != Ok::<_, kube::Error>(0).map_err(|error| error.to_string()).map(|zero: usize| zero).as_ref().copied().map_err(|_| unreachable!()) {
            return;
        }
    }
}
