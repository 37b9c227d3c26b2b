//! Plays the kubelets of workers, and what else runs in a tenant: machines that run ask for certificates with the token
//! that they read, join when they are approved, and end what is evicted from them. Nothing signs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::stream::{StreamExt, select};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kaas_crds::name;
use kaas_lifecycle::workers::join::{BOOTSTRAP_USER, CLIENT_SIGNER, NODE_USER, SERVING_SIGNER};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};

use crate::player::{Live, entry, of, ready, terminating, text};
use crate::record::Record;

/// The disruption budget, and the label of the pods that it is for.
pub(crate) const BUDGET: &str = "app";
const NODES: &str = "system:nodes";
const ALL: &str = "system:authenticated";

/// What went wrong with kubelets that did everything right.
pub(crate) type Complaints = Arc<Mutex<Vec<String>>>;

pub(crate) struct Kubelets {
    pub(crate) tenant: Client,
    pub(crate) record: Arc<Record>,
    /// Where the machines are.
    pub(crate) machines: String,
    pub(crate) complaints: Complaints,
}

/// Who asks, and what for.
struct Asking<'a> {
    name: String,
    user: String,
    groups: &'a [&'a str],
    signer: &'a str,
    usage: &'a str,
    address: Option<&'a str>,
}

/// Lets kubelets ask for certificates, as what is published for `kubeadm join` does.
pub(crate) async fn allow(tenant: &Client) {
    let group = |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name});
    let binding = serde_json::from_value(json!({
        "metadata": {"name": "played-kubelets"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-bootstrapper",
        },
        "subjects": [group(name::BOOTSTRAP_GROUP), group(NODES)],
    }));
    let bindings: Api<ClusterRoleBinding> = Api::all(tenant.clone());
    bindings.create(&PostParams::default(), &binding.unwrap()).await.unwrap();
}

/// Takes away what the last tenant left here.
pub(crate) async fn clear(tenant: &Client) {
    let (now, all) =
        (DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }, ListParams::default());
    Api::<Node>::all(tenant.clone()).delete_collection(&now, &all).await.unwrap();
    Api::<CertificateSigningRequest>::all(tenant.clone()).delete_collection(&now, &all).await.unwrap();
    Api::<Pod>::default_namespaced(tenant.clone()).delete_collection(&now, &all).await.unwrap();
    Api::<PodDisruptionBudget>::default_namespaced(tenant.clone())
        .delete_collection(&now, &all)
        .await
        .unwrap();
    Api::<Secret>::namespaced(tenant.clone(), "kube-system").delete_collection(&now, &all).await.unwrap();
    let ours = ListParams::default().labels(&format!("{}={}", name::MANAGED_BY_LABEL, name::MANAGED_BY));
    let background = DeleteParams::background();
    for (group, version, kind, plural) in ADDONS {
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let apis = match kind.starts_with("Cluster") {
            true => vec![Api::<DynamicObject>::all_with(tenant.clone(), &resource)],
            false => ["kube-system", "kube-public"]
                .map(|namespace| Api::namespaced_with(tenant.clone(), namespace, &resource))
                .into(),
        };
        for api in apis {
            api.delete_collection(&background, &ours).await.unwrap();
        }
    }
}

/// Kinds of which the operator keeps something inside a tenant for its workers.
const ADDONS: [(&str, &str, &str, &str); 7] = [
    ("apps", "v1", "DaemonSet", "daemonsets"),
    ("", "v1", "ConfigMap", "configmaps"),
    ("", "v1", "ServiceAccount", "serviceaccounts"),
    ("rbac.authorization.k8s.io", "v1", "Role", "roles"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings"),
];

/// What the controller-manager does in the next hour: a token that came too late for anybody to read it ends.
pub(crate) async fn outlive_tokens(tenant: &Client) {
    let secrets: Api<Secret> = Api::namespaced(tenant.clone(), "kube-system");
    for secret in secrets.list(&ListParams::default()).await.unwrap().items {
        let until = secret.data.as_ref().and_then(|data| data.get("expiration")).unwrap();
        let until: jiff::Timestamp = std::str::from_utf8(&until.0).unwrap().parse().unwrap();
        assert!(until.duration_since(jiff::Timestamp::now()) <= jiff::SignedDuration::from_hours(1));
        secrets.delete(&secret.metadata.name.unwrap(), &DeleteParams::default()).await.unwrap();
    }
}

/// Puts pods on a node, and a budget that lets one of them go at a time.
pub(crate) async fn populate(tenant: &Client, node: &str) {
    let create = PostParams::default();
    let owner = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": BUDGET, "uid": "app", "controller": true,
    }]);
    let pods: Api<Pod> = Api::default_namespaced(tenant.clone());
    for index in 0..2 {
        let pod = serde_json::from_value(json!({
            "metadata": {
                "name": format!("{BUDGET}-{index}"), "labels": {"app": BUDGET}, "ownerReferences": owner.clone(),
            },
            "spec": {"nodeName": node, "containers": [{"name": "app", "image": "played"}]},
        }));
        pods.create(&create, &pod.unwrap()).await.unwrap();
        let status = json!({"status": {
            "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
        }});
        let pod = format!("{BUDGET}-{index}");
        pods.patch_status(&pod, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }
    let budget = serde_json::from_value(json!({
        "metadata": {"name": BUDGET},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": BUDGET}}},
    }));
    let budgets: Api<PodDisruptionBudget> = Api::default_namespaced(tenant.clone());
    match budgets.create(&create, &budget.unwrap()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => panic!("disruption budget: {error}"),
    }
    permit(&budgets).await;
}

/// The disruption controller: one more may go.
async fn permit(budgets: &Api<PodDisruptionBudget>) {
    let status = json!({"status": {
        "observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2,
        "disruptedPods": null,
    }});
    // There may be none.
    let _ = budgets.patch_status(BUDGET, &PatchParams::default(), &Patch::Merge(status)).await;
}

fn conditions(request: &CertificateSigningRequest) -> impl Iterator<Item = &str> {
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.map(|condition| condition.type_.as_str())
}

fn labelled(object: &Value) -> &str {
    text(object, "/metadata/labels/kaas.dev~1worker-uid")
}

impl Kubelets {
    /// Plays until it is dropped.
    pub(crate) async fn play(self) {
        let requests: Api<CertificateSigningRequest> = Api::all(self.tenant.clone());
        let pods: Api<Pod> = Api::default_namespaced(self.tenant.clone());
        let config = watcher::Config::default;
        let daemons: Api<DaemonSet> = Api::namespaced(self.tenant.clone(), "kube-system");
        let inside = select(
            watcher(daemons, config()).default_backoff().map(drop),
            select(
                watcher(requests, config()).default_backoff().map(drop),
                watcher(pods, config()).default_backoff().map(drop),
            ),
        );
        let mut inside = std::pin::pin!(inside);
        let places = [self.machines.as_str()];
        let mut seen = 0;
        loop {
            tokio::select! {
                now = self.record.changed(&places, seen) => seen = now,
                _ = inside.next() => {}
            }
            self.step().await;
        }
    }

    async fn step(&self) {
        self.end_evicted().await;
        self.count_daemons().await;
        let live = self.record.live(&self.machines);
        let requests: Api<CertificateSigningRequest> = Api::all(self.tenant.clone());
        let found = requests.list(&ListParams::default()).await.unwrap();
        let found: BTreeMap<String, CertificateSigningRequest> =
            found.items.into_iter().map(|found| (found.metadata.name.clone().unwrap(), found)).collect();
        let machines: Vec<&Value> = of(&live, "Pod").map(|pod| &**pod).collect();
        let there: Vec<&str> = machines.iter().map(|pod| labelled(pod)).collect();
        for (name, request) in &found {
            let labels = request.metadata.labels.as_ref();
            let uid = labels.and_then(|labels| labels.get(name::WORKER_UID_LABEL)).map_or("", String::as_str);
            if !there.contains(&uid) {
                let _ = requests.delete(name, &DeleteParams::default()).await;
            } else if conditions(request).any(|kind| kind == "Denied") {
                let status = serde_json::to_string(&request.status).unwrap();
                self.complaints.lock().unwrap().push(format!("request {name} was denied: {status}"));
            }
        }
        for machine in machines.into_iter().filter(|pod| ready(pod) && !terminating(pod)) {
            self.join(machine, &live, &found).await;
        }
    }

    /// One kubelet: asks, joins when it may, and asks for the certificate of its server.
    async fn join(
        &self,
        machine: &Value,
        live: &Live,
        requests: &BTreeMap<String, CertificateSigningRequest>,
    ) {
        let (worker, uid) = (text(machine, "/metadata/name"), labelled(machine));
        let nodes: Api<Node> = Api::all(self.tenant.clone());
        let id = name::provider_id("pod", uid);
        let approved =
            |name: &str| requests.get(name).map(|request| conditions(request).any(|kind| kind == "Approved"));
        let (client, serving) = (format!("{worker}-client"), format!("{worker}-serving"));
        let node = nodes.get_opt(worker).await.unwrap();
        match node.map(|node| node.spec.and_then(|spec| spec.provider_id)) {
            Some(Some(own)) if own == id => {
                if approved(&serving).is_none() {
                    self.ask(
                        worker,
                        uid,
                        Asking {
                            name: serving,
                            user: format!("{NODE_USER}{worker}"),
                            groups: &[NODES, ALL],
                            signer: SERVING_SIGNER,
                            usage: "server auth",
                            address: Some(text(machine, "/status/podIP")),
                        },
                    )
                    .await;
                }
            }
            // The node of the last machine of that name is still there: it has to go first.
            Some(_) => {}
            None if approved(&client) == Some(true) => self.register(machine, &id).await,
            None if approved(&client).is_some() => {}
            None => {
                let Some(token) = self.token(worker, uid, live).await else { return };
                self.ask(
                    worker,
                    uid,
                    Asking {
                        name: client,
                        user: format!("{BOOTSTRAP_USER}{token}"),
                        groups: &["system:bootstrappers", name::BOOTSTRAP_GROUP, ALL],
                        signer: CLIENT_SIGNER,
                        usage: "client auth",
                        address: None,
                    },
                )
                .await;
            }
        }
    }

    /// Public part of the token that the machine reads, if the tenant knows it.
    async fn token(&self, worker: &str, uid: &str, live: &Live) -> Option<String> {
        let secret = live.get(&("Secret", worker.to_owned())).filter(|secret| labelled(secret) == uid)?;
        let kubeconfig: Value = serde_yaml::from_str(&entry(secret, "bootstrap-kubeconfig")?).unwrap();
        let token = kubeconfig.pointer("/users/0/user/token")?.as_str()?.to_owned();
        let (id, hidden) = token.split_once('.')?;
        let secrets: Api<Secret> = Api::namespaced(self.tenant.clone(), "kube-system");
        let known = secrets.get_opt(&format!("bootstrap-token-{id}")).await.unwrap()?;
        let said = known.data?.get("token-secret")?.0.clone();
        // While a token is made anew the machine reads the last one for a moment, and is refused.
        (said == hidden.as_bytes()).then(|| id.to_owned())
    }

    async fn ask(&self, worker: &str, uid: &str, asking: Asking<'_>) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, NODES);
        params.distinguished_name.push(DnType::CommonName, format!("{NODE_USER}{worker}"));
        if let Some(address) = asking.address {
            let address = SanType::IpAddress(address.parse().unwrap());
            params.subject_alt_names = vec![SanType::DnsName(worker.try_into().unwrap()), address];
        }
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let object = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"name": asking.name, "labels": {name::WORKER_UID_LABEL: uid}},
            "spec": {
                "request": k8s_openapi::ByteString(pem.into_bytes()), "signerName": asking.signer,
                "usages": ["digital signature", asking.usage],
            },
        });
        let path = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        let mut request = http::Request::post(path)
            .header("content-type", "application/json")
            .header("impersonate-user", &asking.user);
        for group in asking.groups {
            request = request.header("impersonate-group", *group);
        }
        let request = request.body(serde_json::to_vec(&object).unwrap()).unwrap();
        match self.tenant.request::<Value>(request).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("request {}: {error}", asking.name),
        }
    }

    async fn register(&self, machine: &Value, provider_id: &str) {
        let name = text(machine, "/metadata/name");
        let node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {"providerID": provider_id},
            "status": {
                "addresses": [{"type": "InternalIP", "address": text(machine, "/status/podIP")}],
                "capacity": {"cpu": "1", "memory": "2Gi", "pods": "110"},
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                    "lastHeartbeatTime": jiff::Timestamp::now(), "lastTransitionTime": jiff::Timestamp::now(),
                }],
                "nodeInfo": {
                    "kubeletVersion": "v1.37.1", "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "",
                    "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "linux",
                    "osImage": "", "systemUUID": "",
                },
            },
        }));
        let nodes: Api<Node> = Api::all(self.tenant.clone());
        match nodes.create(&PostParams::default(), &node.unwrap()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("node {name}: {error}"),
        }
        // What the kubelet does next.
        Box::pin(self.step()).await;
    }

    /// The DaemonSet controller: there is nothing for it to do.
    async fn count_daemons(&self) {
        let daemons: Api<DaemonSet> = Api::namespaced(self.tenant.clone(), "kube-system");
        for daemon in daemons.list(&ListParams::default()).await.unwrap().items {
            let seen = daemon.status.as_ref().and_then(|status| status.observed_generation);
            if seen == daemon.metadata.generation {
                continue;
            }
            let status = json!({"status": {
                "observedGeneration": daemon.metadata.generation, "currentNumberScheduled": 0,
                "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
            }});
            // It may be gone.
            let name = daemon.metadata.name.unwrap();
            let _ = daemons.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
        }
    }

    /// Pods whose deletion has begun end at once, and then the next one may go.
    async fn end_evicted(&self) {
        let pods: Api<Pod> = Api::default_namespaced(self.tenant.clone());
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        for pod in pods.list(&ListParams::default()).await.unwrap().items {
            if pod.metadata.deletion_timestamp.is_some() {
                let _ = pods.delete(&pod.metadata.name.unwrap(), &now).await;
                permit(&Api::default_namespaced(self.tenant.clone())).await;
            }
        }
    }
}
