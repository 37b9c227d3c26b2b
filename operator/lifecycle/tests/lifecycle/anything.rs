//! Anything that can be: specs that the schema accepts, specs that it would not, and facts as they may be found.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::TenantClusterSpec;
use kaas_lifecycle::observed::{Answer, Namespace, Observed, Probe, Secret, Trouble};
use kaas_lifecycle::tenant::Tenant;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use crate::world::{UID, World};

/// The version that worlds have in their catalogue.
pub(crate) const VERSION: &str = "v1.37.1";

/// Specs that the rules of the schema accept.
pub(crate) fn accepted() -> impl Strategy<Value = Value> {
    let version = prop_oneof![4 => Just(VERSION.to_owned()), 1 => "v1\\.[0-9]{1,3}\\.[0-9]{1,3}"];
    let endpoint = prop_oneof![
        Just(json!({"type": "ClusterIP"})),
        Just(json!({"type": "LoadBalancer"})),
        Just(json!({"type": "NodePort"})),
        (1..=65535).prop_map(|port| json!({"type": "NodePort", "nodePort": {"port": port}})),
    ];
    let size = prop::sample::select(vec!["100Mi", "1Gi", "8Gi", "1024Mi", "500M", "104857600", "1Ti", "1T"]);
    let class = prop::option::weighted(0.2, "[a-z]{1,12}");
    let storage = prop_oneof![
        1 => Just(json!({"ephemeral": {}})),
        3 => (size, class).prop_map(|(size, class)| match class {
            Some(class) => json!({"persistent": {"size": size, "storageClassName": class}}),
            None => json!({"persistent": {"size": size}}),
        }),
    ];
    let label = "[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?";
    let rest = (
        network(),
        prop::collection::vec(label, 1..4),
        prop::bool::weighted(0.1),
        prop::option::of(".{0,63}"),
    );
    let etcd = (prop::sample::select(vec![1, 3, 5]), storage);
    (version, 1..=5, endpoint, etcd, rest).prop_map(|(version, replicas, endpoint, etcd, rest)| {
        let ((pods, services), domain, paused, accept) = rest;
        let mut spec = json!({
            "version": version,
            "controlPlane": {"replicas": replicas, "endpoint": endpoint},
            "etcd": {"replicas": etcd.0, "storage": etcd.1},
            "network": {"podCIDR": pods, "serviceCIDR": services, "domain": domain.join(".")},
            "paused": paused,
        });
        if let Some(accept) = accept {
            spec["acceptRevision"] = accept.into();
        }
        spec
    })
}

/// Two networks that cannot overlap: the first byte of one is even, of the other odd.
fn network() -> impl Strategy<Value = (String, String)> {
    let masked = |first: u8, rest: u32, length: u32| {
        let address = (u32::from(first) << 24 | rest & 0x00ff_ffff) & (u32::MAX << (32 - length));
        format!("{}/{length}", std::net::Ipv4Addr::from(address))
    };
    let pods = (0u8..110, any::<u32>(), 8u32..=24)
        .prop_map(move |(first, rest, length)| masked(first * 2, rest, length));
    let services = (0u8..110, any::<u32>(), 12u32..=24)
        .prop_map(move |(first, rest, length)| masked(first * 2 + 1, rest, length));
    (pods, services)
}

/// Any JSON document.
pub(crate) fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-zA-Z]{1,10}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect()),
        ]
    })
}

/// Specs one field of which is anything: what an older schema, or none, might let through.
pub(crate) fn mangled() -> impl Strategy<Value = Value> {
    let number = prop_oneof![4 => -3..12i64, 1 => any::<i64>()];
    let value =
        prop_oneof![3 => document(), 2 => number.prop_map(Value::from), 2 => text().prop_map(Value::from)];
    let path = prop::sample::select(vec![
        "/version",
        "/controlPlane",
        "/controlPlane/replicas",
        "/controlPlane/endpoint/type",
        "/controlPlane/endpoint/nodePort",
        "/etcd/replicas",
        "/etcd/storage",
        "/etcd/storage/persistent",
        "/etcd/storage/persistent/size",
        "/network/podCIDR",
        "/network/serviceCIDR",
        "/network/domain",
        "/paused",
        "/acceptRevision",
    ]);
    (accepted(), prop::collection::vec((path, value), 1..4)).prop_map(|(mut spec, changes)| {
        for (path, value) in changes {
            let (parent, key) = path.rsplit_once('/').unwrap();
            if let Some(Value::Object(parent)) = spec.pointer_mut(parent) {
                parent.insert(key.into(), value);
            }
        }
        spec
    })
}

/// Texts as others may write them: none, some, too long, of more than one byte a letter.
pub(crate) fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => ".{0,40}", 1 => (1usize..4000).prop_map(|length| "ä".repeat(length))]
}

/// What makes facts different from those of a world that goes its ordinary way.
#[derive(Clone, Debug)]
pub(crate) enum Fact {
    ObjectGone(Index),
    ObjectGoing(Index),
    ObjectEdited(Index),
    NotYetSeen(Index),
    SecretGone(Index),
    NoSecrets,
    NoKubeconfig,
    ForeignKubeconfig,
    OtherServer(String),
    Unsigned(Index),
    PodGone(Index),
    PodUnready(Index),
    PodStuck(Index, String, String),
    PodGoing(Index, i64),
    PodOutdated(Index),
    MemberDown(Index),
    MemberLearns(Index),
    MemberUnnamed(Index),
    MemberUnknown(u64, String),
    MemberGone(Index),
    Leader(Option<Index>),
    Alarm(String),
    OtherData(String),
    Silence,
    NoHome,
    HomeGoes(Vec<String>),
    Rival { going: bool, label: bool, adopt: bool },
    Probe(Option<(Result<String, String>, i64)>),
    Inside(bool),
    OtherRegistry,
    NoHost,
    NoCatalogue,
    Balancer(String),
    Later(i64),
    Paused,
    ApiServers(i32),
    Members(i32),
    Consent,
    Delete(i64),
    NoFinalizer,
    NoStatus,
    Ran(String),
}

pub(crate) fn fact() -> impl Strategy<Value = Fact> {
    let at = || any::<Index>();
    let object = prop_oneof![
        at().prop_map(Fact::ObjectGone),
        at().prop_map(Fact::ObjectGoing),
        at().prop_map(Fact::ObjectEdited),
        at().prop_map(Fact::NotYetSeen),
        at().prop_map(Fact::SecretGone),
        Just(Fact::NoSecrets),
        Just(Fact::NoKubeconfig),
        Just(Fact::ForeignKubeconfig),
        text().prop_map(Fact::OtherServer),
        at().prop_map(Fact::Unsigned),
    ];
    let pod = prop_oneof![
        at().prop_map(Fact::PodGone),
        at().prop_map(Fact::PodUnready),
        (at(), text(), text()).prop_map(|(at, reason, message)| Fact::PodStuck(at, reason, message)),
        (at(), 0..100i64).prop_map(|(at, grace)| Fact::PodGoing(at, grace)),
        at().prop_map(Fact::PodOutdated),
        at().prop_map(Fact::PodOutdated),
    ];
    let etcd = prop_oneof![
        at().prop_map(Fact::MemberDown),
        at().prop_map(Fact::MemberLearns),
        at().prop_map(Fact::MemberUnnamed),
        (any::<u64>(), text()).prop_map(|(id, name)| Fact::MemberUnknown(id, name)),
        at().prop_map(Fact::MemberGone),
        prop::option::of(at()).prop_map(Fact::Leader),
        text().prop_map(Fact::Alarm),
        "[a-f0-9]{1,4}".prop_map(Fact::OtherData),
        Just(Fact::Silence),
    ];
    let namespace = prop_oneof![
        Just(Fact::NoHome),
        prop::collection::vec(text(), 0..4).prop_map(Fact::HomeGoes),
        any::<(bool, bool, bool)>().prop_map(|(going, label, adopt)| Fact::Rival { going, label, adopt }),
    ];
    let answer = prop_oneof!["v1[.]37[.][0-9]{1,20}".prop_map(Ok), text().prop_map(Err)];
    let around = prop_oneof![
        prop::option::of((answer, 0..60i64)).prop_map(Fact::Probe),
        any::<bool>().prop_map(Fact::Inside),
        Just(Fact::OtherRegistry),
        Just(Fact::NoHost),
        Just(Fact::NoCatalogue),
        prop_oneof![
            Just("192.0.2.7".to_owned()),
            Just("lb.example".to_owned()),
            Just(format!("{}example", "long.".repeat(49)))
        ]
        .prop_map(Fact::Balancer),
        (0..20_000i64).prop_map(Fact::Later),
    ];
    let asked = prop_oneof![
        Just(Fact::Paused),
        (1..=5).prop_map(Fact::ApiServers),
        prop::sample::select(vec![1, 3, 5]).prop_map(Fact::Members),
        Just(Fact::Consent),
        (0..500i64).prop_map(Fact::Delete),
        Just(Fact::NoFinalizer),
        Just(Fact::NoStatus),
        text().prop_map(Fact::Ran),
    ];
    prop_oneof![3 => object, 4 => pod, 4 => etcd, 1 => namespace, 3 => around, 3 => asked]
}

fn nth<T>(list: &mut [T], at: Index) -> Option<&mut T> {
    if list.is_empty() { None } else { Some(at.get_mut(list)) }
}

impl Fact {
    fn put(&self, seen: &mut Observed) {
        match self {
            Fact::ObjectGone(_) | Fact::ObjectGoing(_) | Fact::ObjectEdited(_) | Fact::NotYetSeen(_) => {
                self.put_object(seen)
            }
            Fact::SecretGone(_)
            | Fact::NoSecrets
            | Fact::NoKubeconfig
            | Fact::ForeignKubeconfig
            | Fact::OtherServer(_)
            | Fact::Unsigned(_) => self.put_secret(seen),
            Fact::PodGone(_)
            | Fact::PodUnready(_)
            | Fact::PodStuck(..)
            | Fact::PodGoing(..)
            | Fact::PodOutdated(_) => {
                self.put_pod(seen);
            }
            Fact::MemberDown(_)
            | Fact::MemberLearns(_)
            | Fact::MemberUnnamed(_)
            | Fact::MemberUnknown(..)
            | Fact::MemberGone(_)
            | Fact::Leader(_)
            | Fact::Alarm(_)
            | Fact::OtherData(_)
            | Fact::Silence => self.put_etcd(seen),
            _ => self.put_around(seen),
        }
    }

    fn put_object(&self, seen: &mut Observed) {
        let (Fact::ObjectGone(at) | Fact::ObjectGoing(at) | Fact::ObjectEdited(at) | Fact::NotYetSeen(at)) =
            self
        else {
            return;
        };
        let mut keys: Vec<_> = seen.objects.keys().cloned().collect();
        let Some(key) = nth(&mut keys, *at) else { return };
        if matches!(self, Fact::ObjectGone(_)) {
            seen.objects.remove(key);
            return;
        }
        let live = seen.objects.get_mut(key).unwrap();
        match self {
            Fact::ObjectGoing(_) => live.terminating = true,
            Fact::ObjectEdited(_) => {
                // Somebody took a field of ours away.
                if let Some(spec) = live.content.get_mut("spec").and_then(Value::as_object_mut) {
                    let mut fields: Vec<String> = spec.keys().cloned().collect();
                    nth(&mut fields, *at).and_then(|field| spec.remove(field));
                }
            }
            _ => live.content["metadata"]["generation"] = 1_000_000.into(),
        }
    }

    fn put_secret(&self, seen: &mut Observed) {
        match self {
            Fact::SecretGone(at) => {
                let mut names: Vec<String> = seen.secrets.keys().cloned().collect();
                nth(&mut names, *at).and_then(|name| seen.secrets.remove(name));
            }
            Fact::NoSecrets => seen.secrets.clear(),
            Fact::NoKubeconfig => seen.kubeconfig = None,
            Fact::ForeignKubeconfig => {
                seen.kubeconfig =
                    Some(Secret { uid: "theirs".into(), resource_version: "7".into(), ..Secret::default() });
            }
            Fact::OtherServer(server) => {
                seen.kubeconfig.iter_mut().for_each(|secret| secret.kubeconfig_server = Some(server.clone()));
            }
            Fact::Unsigned(at) => {
                let mut all: Vec<_> =
                    seen.secrets.values_mut().flat_map(|secret| secret.certificates.values_mut()).collect();
                nth(&mut all, *at).into_iter().for_each(|certificate| certificate.signed = false);
            }
            _ => {}
        }
    }

    fn put_pod(&self, seen: &mut Observed) {
        let pods = &mut seen.pods;
        match self {
            Fact::PodGone(at) if !pods.is_empty() => {
                pods.remove(at.index(pods.len()));
            }
            Fact::PodUnready(at) => nth(pods, *at).into_iter().for_each(|pod| pod.ready = false),
            Fact::PodStuck(at, reason, message) => nth(pods, *at).into_iter().for_each(|pod| {
                pod.ready = false;
                pod.trouble = Some(Trouble { reason: reason.clone(), message: message.clone() });
            }),
            Fact::PodGoing(at, grace) => nth(pods, *at).into_iter().for_each(|pod| {
                (pod.terminating, pod.grace) = (true, *grace);
            }),
            Fact::PodOutdated(at) => {
                nth(pods, *at).into_iter().for_each(|pod| pod.template_hash = "old".into())
            }
            _ => {}
        }
    }

    fn put_etcd(&self, seen: &mut Observed) {
        let Some(etcd) = &mut seen.etcd else { return };
        let members = &mut etcd.members;
        match self {
            Fact::MemberDown(at) => nth(members, *at).into_iter().for_each(|member| member.healthy = false),
            Fact::MemberLearns(at) => nth(members, *at).into_iter().for_each(|member| member.learner = true),
            Fact::MemberUnnamed(at) => nth(members, *at).into_iter().for_each(|member| {
                member.peer_urls = vec![format!("https://{}.etcd.n.svc:2380", member.name)];
                member.name.clear();
            }),
            Fact::MemberUnknown(id, name) => {
                let mut stranger = members.first().cloned().unwrap_or_default();
                (stranger.id, stranger.name) = (*id, name.clone());
                members.push(stranger);
            }
            Fact::MemberGone(at) if !members.is_empty() => {
                members.remove(at.index(members.len()));
            }
            Fact::Leader(None) => etcd.leader = 0,
            Fact::Leader(Some(at)) => etcd.leader = nth(members, *at).map_or(0, |member| member.id),
            Fact::Alarm(alarm) => etcd.alarms.push(alarm.clone()),
            Fact::OtherData(id) => etcd.cluster_id.clone_from(id),
            Fact::Silence => seen.etcd = None,
            _ => {}
        }
    }

    fn put_around(&self, seen: &mut Observed) {
        let cluster = &mut seen.cluster;
        match self {
            Fact::NoHome => seen.namespaces.clear(),
            Fact::HomeGoes(remaining) => seen.namespaces.iter_mut().for_each(|namespace| {
                (namespace.terminating, namespace.remaining) = (true, remaining.clone());
            }),
            Fact::Rival { going, label, adopt } => seen.namespaces.push(Namespace {
                name: "kaas-an-earlier-one".into(),
                uid: "uid-earlier".into(),
                resource_version: "5".into(),
                tenant_uid: if *label { UID.into() } else { "an-earlier-one".into() },
                adopt_by: adopt.then(|| UID.into()),
                terminating: *going,
                remaining: vec![],
            }),
            Fact::Probe(probe) => {
                seen.probe = probe.clone().map(|(answer, age)| {
                    let at = seen.now - SignedDuration::from_secs(age);
                    let answer = match answer {
                        Ok(version) => Answer::Serving { version },
                        Err(message) => Answer::Failed { since: at, message },
                    };
                    Probe { at, answer }
                });
            }
            Fact::Inside(read) => seen.inside = read.then(Default::default),
            Fact::OtherRegistry => seen.platform.registry = "mirror.example".into(),
            Fact::NoHost => seen.platform.node_port_host.clear(),
            Fact::NoCatalogue => seen.catalogue.clear(),
            Fact::Balancer(address) => seen
                .objects
                .iter_mut()
                .filter(|(key, _)| key.name == "kube-apiserver")
                .for_each(|(_, live)| {
                    let field = if address.parse::<std::net::IpAddr>().is_ok() { "ip" } else { "hostname" };
                    live.content["status"]["loadBalancer"] = json!({"ingress": [{field: address}]});
                }),
            Fact::Later(hours) => seen.now += SignedDuration::from_hours(*hours),
            Fact::Paused => cluster.spec.paused = true,
            Fact::ApiServers(replicas) => cluster.spec.control_plane.replicas = *replicas,
            Fact::Members(replicas) => cluster.spec.etcd.replicas = *replicas,
            Fact::Consent => {
                let pending = cluster.status.as_ref().and_then(|status| status.pending.as_ref());
                cluster.spec.accept_revision = pending.map(|pending| pending.revision.clone());
            }
            Fact::Delete(ago) => {
                let since = seen.now - SignedDuration::from_secs(*ago);
                cluster.metadata.deletion_timestamp = Some(Time(since));
            }
            Fact::NoFinalizer => cluster.metadata.finalizers = Some(vec!["somebody/else".into()]),
            Fact::NoStatus => cluster.status = None,
            Fact::Ran(version) => {
                cluster.status.get_or_insert_default().version = Some(version.chars().take(32).collect())
            }
            _ => {}
        }
    }
}

/// The world with these facts, as observation would give them: nothing is read without a home, and etcd and the
/// tenant's API are not asked any more once the deletion has begun.
pub(crate) fn seen(world: &World, facts: &[Fact]) -> Observed {
    let mut seen = world.observe();
    facts.iter().for_each(|fact| fact.put(&mut seen));
    let tenant = Tenant::new(UID, "demo", "blue");
    let home = seen
        .namespaces
        .iter()
        .find(|namespace| namespace.is_home_of(&tenant))
        .map(|namespace| namespace.name.clone());
    match home {
        Some(home) => seen.tenant = tenant.moved_into(home),
        None => {
            seen.tenant = tenant;
            seen.objects.clear();
            seen.secrets.clear();
            seen.pods.clear();
        }
    }
    if seen.own_namespace().is_none() || seen.deleting() {
        (seen.etcd, seen.probe, seen.inside) = (None, None, None);
    }
    seen
}

/// A world so many steps after its beginning.
pub(crate) fn on_its_way(spec: Value, steps: usize) -> World {
    let mut world = World::new(spec);
    for _ in 0..steps {
        world.reconcile();
        world.controllers();
        world.now += SignedDuration::from_secs(1);
    }
    world
}

/// A spec that the types accept, whatever the schema says.
pub(crate) fn parsed(spec: &Value) -> Option<TenantClusterSpec> {
    serde_json::from_value(spec.clone()).ok()
}
