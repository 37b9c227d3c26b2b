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

pub(crate) struct Player {
    pub(crate) client: Client,
    pub(crate) record: Arc<Record>,
    pub(crate) home: String,
    /// Where its workers' machines are.
    pub(crate) machines: String,
    pub(crate) api_server: Behind,
    pub(crate) etcd: Behind,
    /// Address of node ports.
    pub(crate) node: IpAddr,
    /// Pods of this tenant are at `127.a.b.*`.
    pub(crate) network: (u8, u8),
}

pub(crate) type Live = BTreeMap<Key, Arc<Value>>;

fn ordinal(name: &str) -> u8 {
    name.rsplit('-').next().and_then(|last| last.parse().ok()).unwrap()
}

/// Where a machine would be reached: in a network that is nobody's, as no worker may be on loopback.
fn machine_address(name: &str) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 10 + ordinal(name))
}

pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn terminating(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

pub(crate) fn ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

pub(crate) fn of<'a>(live: &'a Live, kind: &'static str) -> impl Iterator<Item = &'a Arc<Value>> {
    live.iter().filter(move |((found, _), _)| *found == kind).map(|(_, object)| object)
}

/// An entry of a Secret, decoded.
pub(crate) fn entry(secret: &Value, key: &str) -> Option<String> {
    let encoded = secret["data"][key].as_str()?;
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded).ok()?).ok()
}

impl Player {
    /// Plays until it is dropped.
    pub(crate) async fn play(self) {
        let mut doors = BTreeMap::new();
        let mut seen = 0;
        loop {
            seen = self.record.changed(&[&self.home, &self.machines], seen).await;
            self.step(&mut doors).await;
            self.host().await;
        }
    }

    fn api(&self, place: &str, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), place, &resource(kind))
    }

    /// The machines of workers that are pods.
    async fn host(&self) {
        let live = self.record.live(&self.machines);
        let Some(namespace) = live.get(&("Namespace", self.machines.clone())) else { return };
        join_all(of(&live, "Pod").filter(|pod| terminating(pod)).map(|pod| self.kill(pod))).await;
        if terminating(namespace) {
            self.empty(&self.machines).await;
            return;
        }
        for pod in of(&live, "Pod").filter(|pod| !terminating(pod)) {
            if text(pod, "/spec/nodeName").is_empty() {
                self.bind(pod).await;
            } else if !ready(pod) && mountable(pod, &live) {
                self.run(pod, machine_address(text(pod, "/metadata/name"))).await;
            }
        }
    }

    /// The scheduler.
    async fn bind(&self, pod: &Value) {
        let name = text(pod, "/metadata/name");
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "played"},
        });
        let path = format!("/api/v1/namespaces/{}/pods/{name}/binding", self.machines);
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&binding).unwrap())
            .unwrap();
        // It may be bound, or gone.
        let _ = self.client.request::<Value>(request).await;
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
            self.empty(&self.home).await;
            return;
        }
        join_all(
            ["StatefulSet", "Deployment"]
                .into_iter()
                .flat_map(|kind| of(&live, kind).map(move |set| (kind, set)))
                .map(|(kind, set)| self.control(kind, set, &live)),
        )
        .await;
        let starting =
            of(&live, "Pod").filter(|pod| !terminating(pod) && !ready(pod) && mountable(pod, &live));
        join_all(starting.map(|pod| self.run(pod, self.pod_address(text(pod, "/metadata/name"))))).await;
        self.open(&live, doors).await;
    }

    /// A kubelet whose containers have ended.
    async fn kill(&self, pod: &Value) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        // It may be gone already.
        let _ =
            self.api(text(pod, "/metadata/namespace"), "Pod").delete(text(pod, "/metadata/name"), &now).await;
    }

    /// The namespace controller: pods go in their own time, then everything else, and at last the namespace.
    async fn empty(&self, place: &str) {
        let all = ListParams::default();
        let default = DeleteParams::default();
        let pods = self.api(place, "Pod").delete_collection(&default, &all).await;
        let pods = pods.ok().and_then(|answer| answer.left());
        if pods.is_none_or(|pods| !pods.items.is_empty()) {
            // Each pod that goes is a change, and leads back here.
            return;
        }
        let kinds = namespaced_kinds().filter(|kind| *kind != "Pod");
        let removals =
            kinds.map(async |kind| self.api(place, kind).delete_collection(&default, &all).await.is_ok());
        if !join_all(removals).await.into_iter().all(|done| done) {
            return;
        }
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": place}, "spec": {"finalizers": []},
        });
        let path = format!("/api/v1/namespaces/{place}/finalize");
        let request = http::Request::put(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&namespace).unwrap())
            .unwrap();
        // It may be gone already.
        let _ = self.client.request::<Value>(request).await;
    }

    /// A workload controller: the pods there should be, the new ones before the old ones go, and its status.
    async fn control(&self, kind: &'static str, set: &Value, live: &Live) {
        let name = text(set, "/metadata/name");
        let ordinal = kind == "StatefulSet";
        let label = if ordinal { "controller-revision-hash" } else { "pod-template-hash" };
        let hash = format!("{name}-{}", digest(&set["spec"]["template"]));
        let hash_of = |pod: &Value| pod["metadata"]["labels"][label].as_str().unwrap_or_default().to_owned();
        let wanted = usize::try_from(set["spec"]["replicas"].as_u64().unwrap()).unwrap();
        let all: Vec<&Arc<Value>> = of(live, "Pod")
            .filter(|pod| text(pod, "/metadata/labels/app.kubernetes.io~1name") == name)
            .collect();
        let staying: Vec<&Arc<Value>> = all.iter().filter(|pod| !terminating(pod)).copied().collect();
        let named = |wanted: &str| all.iter().any(|pod| text(pod, "/metadata/name") == wanted);
        let (fresh, old): (Vec<&Arc<Value>>, Vec<&Arc<Value>>) =
            staying.iter().partition(|pod| hash_of(pod) == hash);
        let (mut starting, mut going) = (Vec::new(), Vec::new());
        if ordinal {
            let first = set.pointer("/spec/ordinals/start").and_then(Value::as_u64).unwrap_or(0);
            let first = usize::try_from(first).unwrap();
            let wanted: Vec<String> =
                (first..first + wanted).map(|index| format!("{name}-{index}")).collect();
            starting.extend(wanted.iter().filter(|pod| !named(pod)).cloned());
            going.extend(
                staying
                    .iter()
                    .map(|pod| text(pod, "/metadata/name").to_owned())
                    .filter(|pod| !wanted.contains(pod)),
            );
        } else {
            // At most one more than wanted, and never fewer ready ones.
            let room = (wanted + usize::from(!old.is_empty())).saturating_sub(staying.len());
            let missing = wanted.saturating_sub(fresh.len()).min(room);
            let free = (0..).map(|index| format!("{hash}-{index}")).filter(|pod| !named(pod));
            starting.extend(free.take(missing));
            let spare = staying.iter().filter(|pod| ready(pod)).count().saturating_sub(wanted);
            going.extend(old.iter().take(spare).map(|pod| text(pod, "/metadata/name").to_owned()));
            going.extend(fresh.iter().skip(wanted).map(|pod| text(pod, "/metadata/name").to_owned()));
        }
        for pod in starting {
            self.start(set, &pod, label, &hash).await;
        }
        for pod in going {
            let _ = self.api(&self.home, "Pod").delete(&pod, &DeleteParams::default()).await;
        }
        let ready = staying.iter().filter(|pod| ready(pod)).count();
        let status = json!({
            "observedGeneration": set["metadata"]["generation"],
            "replicas": staying.len(),
            "updatedReplicas": fresh.len(),
            "readyReplicas": ready,
            "availableReplicas": ready,
        });
        let mut status = status;
        if ordinal {
            status["updateRevision"] = hash.into();
            status["currentRevision"] = status["updateRevision"].clone();
        }
        let said = |field: &str, value: &Value| {
            let live = &set["status"][field];
            live == value || (live.is_null() && *value == 0)
        };
        if !status.as_object().unwrap().iter().all(|(field, value)| said(field, value)) {
            self.say(&self.home, kind, name, &status).await;
        }
    }

    async fn start(&self, set: &Value, name: &str, label: &str, hash: &str) {
        let mut pod = set["spec"]["template"].clone();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["name"] = name.into();
        pod["metadata"].as_object_mut().unwrap().remove("creationTimestamp");
        pod["metadata"]["labels"][label] = hash.into();
        // A pod on a node goes only when its kubelet says so.
        pod["spec"]["nodeName"] = "played".into();
        let pod = serde_json::from_value(pod).unwrap();
        match self.api(&self.home, "Pod").create(&PostParams::default(), &pod).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if [403, 404, 409].contains(&status.code) => {}
            Err(error) => panic!("pod {name}: {error}"),
        }
    }

    /// Where a pod of the control plane is reached.
    fn pod_address(&self, name: &str) -> Ipv4Addr {
        let offset = if name.starts_with(component::ETCD) { 1 } else { 101 };
        Ipv4Addr::new(127, self.network.0, self.network.1, offset + ordinal(name))
    }

    /// A kubelet whose containers run and are ready.
    async fn run(&self, pod: &Value, address: Ipv4Addr) {
        let (place, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let address = address.to_string();
        let containers: Vec<Value> = pod["spec"]["containers"].as_array().unwrap().iter().map(|container| json!({
            "name": container["name"], "image": container["image"], "imageID": "played", "ready": true, "restartCount": 0,
            "started": true, "state": {"running": {}},
        })).collect();
        let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .map(|kind| json!({"type": kind, "status": "True"}));
        let status = json!({
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": conditions,
            "containerStatuses": containers,
        });
        self.say(place, "Pod", name, &status).await;
    }

    async fn say(&self, place: &str, kind: &str, name: &str, status: &Value) {
        let patch = Patch::Merge(json!({"status": status}));
        match self.api(place, kind).patch_status(name, &PatchParams::default(), &patch).await {
            Ok(_) => {}
            // It is gone.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => panic!("status of {kind} {name}: {error}"),
        }
    }

    /// What listens: members at their pods' addresses, API servers at the node port.
    async fn open(&self, live: &Live, doors: &mut BTreeMap<SocketAddr, Door>) {
        let mut wanted: BTreeMap<SocketAddr, &str> = BTreeMap::new();
        for pod in of(live, "Pod").filter(|pod| ready(pod) && !terminating(pod)) {
            match text(pod, &format!("/metadata/labels/{}", COMPONENT_LABEL.replace('/', "~1"))) {
                component::ETCD => {
                    wanted.insert(
                        SocketAddr::new(text(pod, "/status/podIP").parse().unwrap(), 2379),
                        component::ETCD,
                    );
                }
                component::KUBE_APISERVER => {
                    let service = live.get(&("Service", component::KUBE_APISERVER.to_owned()));
                    let port =
                        service.and_then(|service| service.pointer("/spec/ports/0/nodePort")?.as_u64());
                    if let Some(port) = port {
                        let address = SocketAddr::new(self.node, u16::try_from(port).unwrap());
                        wanted.insert(address, component::KUBE_APISERVER);
                    }
                }
                _ => {}
            }
        }
        doors.retain(|address, _| wanted.contains_key(address));
        for (address, component) in wanted {
            if doors.contains_key(&address) {
                continue;
            }
            let (record, home) = (self.record.clone(), self.home.clone());
            let (behind, authority, certificate) = match component {
                component::ETCD => (&self.etcd, "etcd-ca", "server"),
                _ => (&self.api_server, "cluster-ca", "tls"),
            };
            let identity = move || {
                let own = record.get(&home, "Secret", component)?;
                Some(Identity {
                    certificate: entry(&own, &format!("{certificate}.crt"))?,
                    key: entry(&own, &format!("{certificate}.key"))?,
                    clients: entry(&*record.get(&home, "Secret", "authority")?, &format!("{authority}.crt"))?,
                })
            };
            match Door::open(address, behind.clone(), identity).await {
                Ok(door) => drop(doors.insert(address, door)),
                Err(error) => panic!("{address} cannot be listened at: {error}"),
            }
        }
    }
}

/// Whether everything is there that a kubelet mounts or reads before it starts containers.
fn mountable(pod: &Value, live: &Live) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let projected = volumes
        .flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten().chain([volume]));
    let sources =
        projected.flat_map(|source| [("Secret", &source["secret"]), ("ConfigMap", &source["configMap"])]);
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let variables = containers.flat_map(|container| container["env"].as_array().into_iter().flatten());
    let variables = variables.map(|variable| ("ConfigMap", &variable["valueFrom"]["configMapKeyRef"]));
    sources.chain(variables).filter(|(_, source)| source["optional"] != true).all(|(kind, source)| {
        let name = source["name"].as_str().or(source["secretName"].as_str());
        name.is_none_or(|name| live.contains_key(&(kind, name.to_owned())))
    })
}
