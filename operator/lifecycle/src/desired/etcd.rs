//! etcd: its StatefulSet, its one headless Service, the ConfigMap that members start from, their disruption budget.
//!
//! The StatefulSet restarts nobody (`OnDelete`): the operator alone does, member by member. What changes with the
//! membership is in a ConfigMap, so that the pod template is the same for three members and for five.

use std::collections::{BTreeMap, BTreeSet};

use kaas_crds::name::component::ETCD;
use kaas_crds::tenant_cluster::PersistentStorage;
use serde_json::{Value, json};

use super::pod::{Container, Pod, Probes, Resources, field_variable, key_file, key_mount, key_volume};
use super::{Inputs, selector, stable_labels};
use crate::etcd::{BOOTSTRAP, CLUSTER_ID_KEY, IDENTITY, LONE_PLACES, STATE_KEY, Servers};
use crate::key_material::AUTHORITY_SECRET;
use crate::object::{Kind, Object};
use crate::tenant::Tenant;

/// Port for clients: TLS, and only with a certificate of the tenant's etcd authority.
pub(super) const CLIENT_PORT: u16 = 2379;
/// Port for peers, likewise.
pub(super) const PEER_PORT: u16 = 2380;
/// Port for probes and metrics, plain HTTP: kubelets have no certificate. No network policy opens it.
pub(super) const METRICS_PORT: u16 = 2381;

/// Label that the StatefulSet controller gives each pod.
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";

/// A member that is ready for so long is found by all who look for it. An API server dials the address of before for twenty
/// seconds; with all members restarted in that time it would have nobody to ask.
const FOUND_SECONDS: u32 = 25;

/// Volume with the data.
pub(super) const DATA: &str = "data";
/// Where it is mounted.
pub(super) const DATA_MOUNT: &str = "/var/lib/etcd";
/// A folder in the volume: the volume's own root may have a `lost+found`, and is not of mode 0700.
pub(super) const DATA_DIRECTORY: &str = "/var/lib/etcd/data";

/// Size of the data at which etcd takes no more writes, said explicitly: etcd's own default.
const QUOTA: u64 = 2 << 30;
/// So many times the quota must fit on the volume: the data, its copy while it is compacted into a new file, and the
/// log (segments of 64 MiB, five of them are kept and the next one is prepared).
const VOLUME_PER_QUOTA: u64 = 4;

/// Grace for whoever else ends a member's pod, a drain for example; the operator says its own when it restarts one.
/// A member closes its listener at once, waits 5 s + 2 x election timeout for watches that never end, and only then
/// hands its leadership over: 8 s. A leader that is killed before that takes every write under way with it, and for a
/// second or two there is none; at the end of it few writes are lost or none.
const SEVERAL_GRACE_SECONDS: u32 = 10;
/// A lone member has nobody to hand over to, and what it acknowledged is synced: the sooner it is back the better.
const LONE_GRACE_SECONDS: u32 = 2;

/// Who the members are: what one that starts for the first time must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdBootstrap {
    /// Names of all members, the one that starts included: `etcd-0` and on.
    pub members: Vec<String>,
    /// Those of them that may start without data. Any other is one that lost it: under its old number it would have a
    /// vote, and give it without knowing what it had acknowledged.
    pub starters: BTreeSet<String>,
}

/// Whose data it is: read by the operator alone, but for the one variable that it gives to members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdIdentity {
    /// The cluster's ID.
    pub cluster_id: String,
    /// UID of the claim, or without claims of the pod, that each member had when it was last well.
    pub volumes: BTreeMap<String, String>,
}

/// Milliseconds of a lone member, which elects itself 0.9 s sooner with them.
const LONE_TIMINGS: [&str; 2] = ["--heartbeat-interval=10", "--election-timeout=100"];
/// Milliseconds of several members: across a network etcd's own defaults are right.
const SEVERAL_TIMINGS: [&str; 2] = ["--heartbeat-interval=100", SEVERAL_ELECTION_TIMEOUT];
/// Tells from a member's flags that it has the timings of several.
pub const SEVERAL_ELECTION_TIMEOUT: &str = "--election-timeout=1000";

/// Name of a member, which is also the name of its pod.
pub fn etcd_member_name(index: i32) -> String {
    format!("{ETCD}-{index}")
}

/// Where other members reach this one.
pub fn etcd_peer_url(tenant: &Tenant, index: i32) -> String {
    url(tenant, &etcd_member_name(index), PEER_PORT)
}

/// Where clients reach this member.
pub fn etcd_client_url(tenant: &Tenant, index: i32) -> String {
    url(tenant, &etcd_member_name(index), CLIENT_PORT)
}

/// What tells API servers where the data is.
pub(crate) const ETCD_SERVERS_FLAG: &str = "--etcd-servers=";

/// Where API servers reach the data: every member by its own name, so that the others are used without a failed request
/// when one stops. A lone member by its Service: when its pod moves, the pod's old address answers nobody, and a
/// client that dials it waits for twenty seconds; and before the pod has an address, its name would not resolve, which
/// DNS servers remember for up to half a minute.
pub(crate) fn etcd_servers(tenant: &Tenant, servers: Servers) -> Vec<String> {
    match servers {
        Servers::Lone(index) => {
            let host = etcd_lone_host(&tenant.control_plane_namespace(), index);
            vec![format!("https://{host}:{CLIENT_PORT}")]
        }
        Servers::Several(count) => (0..count).map(|index| etcd_client_url(tenant, index)).collect(),
    }
}

/// Host name of the Service over one member alone.
pub(crate) fn etcd_lone_host(namespace: &str, index: i32) -> String {
    format!("{}.{namespace}.svc", etcd_member_name(index))
}

fn url(tenant: &Tenant, member: &str, port: u16) -> String {
    format!("https://{member}.{ETCD}.{}.svc:{port}", tenant.control_plane_namespace())
}

/// The members.
pub(super) fn stateful_set(inputs: &Inputs<'_>) -> Object {
    let etcd = &inputs.spec.etcd;
    let mut volumes = vec![key_volume(
        "pki",
        &[
            (AUTHORITY_SECRET, &["etcd-ca.crt"]),
            (ETCD, &["server.crt", "server.key", "peer.crt", "peer.key"]),
        ],
    )];
    let mut spec = json!({
        "replicas": etcd.replicas,
        "serviceName": ETCD,
        // Members of a new cluster need each other to start.
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        // Whether the next one may be restarted is told by who is available.
        "minReadySeconds": FOUND_SECONDS,
        "revisionHistoryLimit": 1,
        "selector": {"matchLabels": selector(ETCD)},
    });
    if let Some(spec) = spec.as_object_mut() {
        match &etcd.storage.persistent {
            Some(storage) => {
                spec.insert("volumeClaimTemplates".into(), json!([claim_template(storage, ETCD)]));
                // A removed member's data must never come back: it would rejoin as somebody it no longer is. But who
                // deletes the StatefulSet by mistake gets it back with its data; the namespace takes all with it.
                spec.insert("persistentVolumeClaimRetentionPolicy".into(), retention("Delete"));
            }
            None => volumes.push(data_in_pod(DATA)),
        }
        let pod = Pod {
            component: ETCD,
            containers: vec![container(inputs)],
            volumes,
            grace_seconds: if inputs.alone { LONE_GRACE_SECONDS } else { SEVERAL_GRACE_SECONDS },
            template_label: None,
        };
        spec.insert("template".into(), pod.template(inputs));
    }
    inputs.object(Kind::StatefulSet, ETCD, ETCD, json!({"spec": spec}))
}

/// One claim a pod, as large as a member's.
pub(super) fn claim_template(storage: &PersistentStorage, component: &str) -> Value {
    let mut claim = json!({
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": storage.size}},
    });
    if let (Some(claim), Some(class)) = (claim.as_object_mut(), &storage.storage_class_name) {
        claim.insert("storageClassName".into(), class.clone().into());
    }
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": DATA, "labels": stable_labels(component)},
        "spec": claim,
    })
}

/// What becomes of claims: they outlive their StatefulSet.
pub(super) fn retention(when_scaled: &str) -> Value {
    json!({"whenDeleted": "Retain", "whenScaled": when_scaled})
}

/// A volume of a pod that has room for a member's data, and goes with the pod.
pub(super) fn data_in_pod(name: &str) -> Value {
    let limit = kaas_crds::Quantity::gibibytes((QUOTA >> 30) * VOLUME_PER_QUOTA);
    json!({"name": name, "emptyDir": {"sizeLimit": limit}})
}

fn container(inputs: &Inputs<'_>) -> Container {
    let mut environment = vec![field_variable("POD_NAME", "metadata.name")];
    // Absent until the cluster exists: then a member without data founds it with the others. Once it exists, no member
    // may ever found a cluster of its own again: one that comes back without its data must not look like an empty,
    // healthy cluster.
    let state = json!({"name": IDENTITY, "key": STATE_KEY, "optional": true});
    environment.push(json!({"name": STATE_KEY, "valueFrom": {"configMapKeyRef": state}}));
    environment.extend(
        BOOTSTRAP_KEYS.iter().map(
            |key| json!({"name": key, "valueFrom": {"configMapKeyRef": {"name": BOOTSTRAP, "key": key}}}),
        ),
    );
    Container {
        name: ETCD,
        image: inputs.etcd_image.clone(),
        command: command(inputs),
        environment,
        ports: vec![("client", CLIENT_PORT), ("peer", PEER_PORT), ("metrics", METRICS_PORT)],
        probes: probes(),
        // Seen at rest: 51-59 MiB, 1 % of a core.
        request: Resources { cpu: "10m", memory: "64Mi" },
        // Twice the quota: all of the data in memory, and as much again for answers under way.
        memory_limit: "4Gi",
        mounts: vec![json!({"name": DATA, "mountPath": DATA_MOUNT}), key_mount("pki")],
        linger_seconds: 0,
    }
}

/// Of every etcd.
pub(super) fn probes() -> Probes {
    Probes {
        port: METRICS_PORT,
        scheme: "HTTP",
        // Not /readyz: that one needs a leader, and restarting a member is no cure for a lost quorum.
        alive: "/livez",
        // Replaying a long log, or fetching a snapshot as a new member.
        start_seconds: 600,
        ready: "/readyz",
        ready_failures: 3,
    }
}

fn command(inputs: &Inputs<'_>) -> Vec<String> {
    let this = "$(POD_NAME)";
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    let timings = if inputs.alone { LONE_TIMINGS } else { SEVERAL_TIMINGS };
    let mut command = vec![
        ETCD.to_owned(),
        flag("name", this),
        flag("data-dir", DATA_DIRECTORY),
        flag("listen-client-urls", &format!("https://0.0.0.0:{CLIENT_PORT}")),
        flag("listen-peer-urls", &format!("https://0.0.0.0:{PEER_PORT}")),
        flag("listen-metrics-urls", &format!("http://0.0.0.0:{METRICS_PORT}")),
        flag("advertise-client-urls", &url(inputs.tenant, this, CLIENT_PORT)),
        flag("initial-advertise-peer-urls", &url(inputs.tenant, this, PEER_PORT)),
        flag("client-cert-auth", "true"),
        flag("trusted-ca-file", &key_file("etcd-ca.crt")),
        flag("cert-file", &key_file("server.crt")),
        flag("key-file", &key_file("server.key")),
        flag("peer-client-cert-auth", "true"),
        flag("peer-trusted-ca-file", &key_file("etcd-ca.crt")),
        flag("peer-cert-file", &key_file("peer.crt")),
        flag("peer-key-file", &key_file("peer.key")),
        // Otherwise a member refuses a peer whose address does not resolve back to a name of its certificate, which
        // right after a start it does not. The authority is the tenant's own; servers' names are still verified.
        flag("peer-skip-client-san-verification", "true"),
        // Compares the data with the other members' before serving it.
        flag("feature-gates", "InitialCorruptCheck=true"),
        // API servers' watch caches learn from it how current they are.
        flag("watch-progress-notify-interval", "5s"),
        flag("quota-backend-bytes", &quota(inputs).to_string()),
        // API servers compact every 5 min and keep 5 min; this is for the time when none runs.
        flag("auto-compaction-mode", "periodic"),
        flag("auto-compaction-retention", "30m"),
    ];
    command.extend(timings.map(str::to_owned));
    command
}

fn quota(inputs: &Inputs<'_>) -> u64 {
    match &inputs.spec.etcd.storage.persistent {
        Some(storage) => QUOTA.min(storage.size.bytes() / VOLUME_PER_QUOTA),
        None => QUOTA,
    }
}

/// The one Service over the members: with two of them a member's address would have two names, and peers would
/// refuse half of the connections. Members must find each other before they are ready.
pub(super) fn service(inputs: &Inputs<'_>) -> Object {
    inputs.object(
        Kind::Service,
        ETCD,
        ETCD,
        json!({"spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": selector(ETCD),
            "ports": [port("client", CLIENT_PORT), port("peer", PEER_PORT)],
        }}),
    )
}

/// A port of a Service.
fn port(name: &str, port: u16) -> Value {
    json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"})
}

/// A stable address for each member that may be the only one, there before the member is: a name that does not resolve
/// is remembered. By the pod's name, so that nobody else is ever behind it. It must be found before it is ready: what
/// its clients wait for is itself.
pub(super) fn lone_services(inputs: &Inputs<'_>) -> impl Iterator<Item = Object> {
    LONE_PLACES.map(etcd_member_name).into_iter().map(|name| {
        let spec = json!({
            "type": "ClusterIP",
            "publishNotReadyAddresses": true,
            "selector": {POD_NAME_LABEL: name},
            "ports": [port("client", CLIENT_PORT)],
        });
        inputs.object(Kind::Service, &name, ETCD, json!({"spec": spec}))
    })
}

/// Variables that a member reads from the ConfigMap when it starts.
const BOOTSTRAP_KEYS: [&str; 2] = ["ETCD_INITIAL_CLUSTER", "ETCD_INITIAL_CLUSTER_TOKEN"];

/// What members start from.
pub(super) fn bootstrap(inputs: &Inputs<'_>, bootstrap: &EtcdBootstrap) -> Object {
    // Members are told apart by their addresses; the names are for the one that starts, which must find its own.
    let label = |name: &String| match bootstrap.starters.contains(name) {
        true => name.clone(),
        false => format!("{name}-has-data"),
    };
    let members: Vec<String> = bootstrap
        .members
        .iter()
        .map(|name| format!("{}={}", label(name), url(inputs.tenant, name, PEER_PORT)))
        .collect();
    let data = json!({
        "ETCD_INITIAL_CLUSTER": members.join(","),
        "ETCD_INITIAL_CLUSTER_TOKEN": inputs.tenant.uid,
    });
    inputs.object(Kind::ConfigMap, BOOTSTRAP, ETCD, json!({"data": data}))
}

/// What is remembered of the data.
pub(super) fn identity(inputs: &Inputs<'_>, identity: &EtcdIdentity) -> Object {
    let mut data: BTreeMap<&str, &str> =
        identity.volumes.iter().map(|(member, volume)| (member.as_str(), volume.as_str())).collect();
    data.insert(CLUSTER_ID_KEY, &identity.cluster_id);
    data.insert(STATE_KEY, "existing");
    inputs.object(Kind::ConfigMap, IDENTITY, ETCD, json!({"data": data}))
}

/// One member at a time, from three on. An unwell member may be evicted only while the others are well
/// (`IfHealthyBudget`): without a quorum all members are unwell, and `AlwaysAllow` would let a drain take them all.
pub(super) fn budget(inputs: &Inputs<'_>) -> Option<Object> {
    (inputs.spec.etcd.replicas >= 3).then(|| {
        let spec = budget_spec(ETCD, "IfHealthyBudget");
        inputs.object(Kind::PodDisruptionBudget, ETCD, ETCD, json!({"spec": spec}))
    })
}

/// At most one pod of the component away at a time.
pub(super) fn budget_spec(component: &str, unhealthy: &str) -> Value {
    json!({
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": unhealthy,
        "selector": {"matchLabels": selector(component)},
    })
}
