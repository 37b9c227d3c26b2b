//! Facts of any kind: pools and workers as they could be found, whatever led to that.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::worker_pool::{Infrastructure, Removal};
use kaas_lifecycle::drain::{Answer, Pod, Refusal};
use kaas_lifecycle::workers::observed::{
    Cluster, Fact, Machine, MachineState, PoolObserved, Readiness, WorkerObserved,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::fleet::Fleet;

/// What is found of a pool.
#[derive(Clone, Debug)]
pub(crate) enum Sight {
    Replicas(i32),
    Rollout(i32, i32),
    OtherType(&'static str),
    OtherKubelet(i32),
    Lags,
    ClusterUnread,
    ClusterAbsent,
    ClusterIs(fn(&mut Cluster)),
    PoolGoes,
    NoFinalizer,
    TypeUnread,
    NotOffered,
    Node(Index, Readiness),
    Old(Index),
    Goes(Index),
    Chosen(Index),
    First(Index),
    Pods(Index, usize),
    Younger(Index, i64),
    Foreign(Index),
    OfAnotherCluster(Index),
    Gone(Index),
}

pub(crate) fn fact() -> impl Strategy<Value = Sight> {
    let at = || any::<Index>();
    let readiness = prop::sample::select(vec![Readiness::Ready, Readiness::NotReady, Readiness::Silent]);
    let is: Vec<fn(&mut Cluster)> = vec![
        |cluster| cluster.deleting = true,
        |cluster| cluster.paused = true,
        |cluster| cluster.version = String::new(),
        |cluster| cluster.serving = false,
        |cluster| cluster.uid = "another".into(),
    ];
    prop_oneof![
        4 => (0..7i32).prop_map(Sight::Replicas),
        3 => (0..3i32, 0..3i32).prop_map(|(surge, unavailable)| Sight::Rollout(surge, unavailable)),
        2 => prop::sample::select(vec!["small", "large", "huge"]).prop_map(Sight::OtherType),
        1 => (50..60i32).prop_map(Sight::OtherKubelet),
        1 => Just(Sight::Lags),
        1 => prop::sample::select(is).prop_map(Sight::ClusterIs),
        1 => prop_oneof![Just(Sight::ClusterUnread), Just(Sight::ClusterAbsent)],
        1 => prop_oneof![Just(Sight::PoolGoes), Just(Sight::NoFinalizer), Just(Sight::TypeUnread), Just(Sight::NotOffered)],
        5 => (at(), readiness).prop_map(|(at, readiness)| Sight::Node(at, readiness)),
        4 => at().prop_map(Sight::Old),
        3 => at().prop_map(Sight::Goes),
        3 => at().prop_map(Sight::Chosen),
        2 => at().prop_map(Sight::First),
        2 => (at(), 0..9usize).prop_map(|(at, pods)| Sight::Pods(at, pods)),
        2 => (at(), 0..9i64).prop_map(|(at, seconds)| Sight::Younger(at, seconds)),
        1 => at().prop_map(Sight::Foreign),
        1 => at().prop_map(Sight::OfAnotherCluster),
        2 => at().prop_map(Sight::Gone),
    ]
}

/// A pool of so many workers, with these facts.
pub(crate) fn pool(replicas: i32, facts: &[Sight]) -> PoolObserved {
    let mut observed = Fleet::settled(replicas).observe_pool();
    for fact in facts {
        put(&mut observed, fact);
    }
    observed
}

fn put(observed: &mut PoolObserved, fact: &Sight) {
    let now = observed.now;
    let spec = &mut observed.pool.spec;
    match fact {
        Sight::Replicas(replicas) => spec.replicas = *replicas,
        Sight::Rollout(surge, unavailable) => {
            spec.rollout.max_surge = *surge;
            spec.rollout.max_unavailable = *unavailable;
        }
        Sight::OtherType(name) => {
            spec.instance_types = vec![(*name).into()];
            let known = Fleet::new(0).instance_types.remove(*name);
            observed.instance_type = known.map_or(Fact::Absent, Fact::Found);
        }
        Sight::OtherKubelet(pods) => spec.template.kubelet.max_pods = *pods,
        Sight::Lags => observed.live = false,
        Sight::ClusterUnread => observed.cluster = Fact::Unread,
        Sight::ClusterAbsent => observed.cluster = Fact::Absent,
        Sight::ClusterIs(change) => {
            if let Fact::Found(cluster) = &mut observed.cluster {
                change(cluster);
            }
        }
        Sight::PoolGoes => observed.pool.metadata.deletion_timestamp = Some(Time(now)),
        Sight::NoFinalizer => observed.pool.metadata.finalizers = None,
        Sight::TypeUnread => observed.instance_type = Fact::Unread,
        Sight::NotOffered => observed.offer.pods = false,
        Sight::Gone(at) if !observed.workers.is_empty() => {
            observed.workers.remove(at.index(observed.workers.len()));
        }
        _ if observed.workers.is_empty() => {}
        Sight::Chosen(at) => {
            let member = at.get(&observed.workers);
            let removal = Removal { name: member.name().into(), uid: member.uid().into(), why: "x".into() };
            let removing = &mut observed.pool.status.get_or_insert_default().removing;
            removing.retain(|other| other.name != removal.name);
            removing.push(removal);
        }
        Sight::Node(at, readiness) => at.get_mut(&mut observed.workers).readiness = *readiness,
        Sight::Old(at) => at.get_mut(&mut observed.workers).worker.spec.template_hash = "1-old".into(),
        Sight::Goes(at) => {
            at.get_mut(&mut observed.workers).worker.metadata.deletion_timestamp = Some(Time(now));
        }
        Sight::First(at) => {
            let annotations =
                at.get_mut(&mut observed.workers).worker.metadata.annotations.get_or_insert_default();
            annotations.insert("kaas.dev/delete-first".into(), String::new());
        }
        Sight::Pods(at, pods) => at.get_mut(&mut observed.workers).pods = *pods,
        Sight::Younger(at, seconds) => {
            let created = &mut at.get_mut(&mut observed.workers).worker.metadata.creation_timestamp;
            *created = Some(Time(now + SignedDuration::from_secs(*seconds)));
        }
        Sight::Foreign(at) => at.get_mut(&mut observed.workers).worker.metadata.owner_references = None,
        Sight::OfAnotherCluster(at) => {
            at.get_mut(&mut observed.workers).worker.spec.cluster_uid = "another".into();
        }
        Sight::Gone(_) => {}
    }
}

/// What is found of a worker.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Goes,
    NoFinalizer,
    External,
    ClusterUnread,
    ClusterAbsent,
    ClusterIs(fn(&mut Cluster)),
    PoolAbsent,
    TypeAbsent,
    MachineUnread,
    MachineAbsent,
    MachineIs(MachineState),
    BootstrapUnread,
    BootstrapThere(i64),
    NodeUnread,
    NodeAbsent,
    NodeReady(&'static str),
    NodeForeign,
    NodeWithout,
    Cordoned,
    Pods(Vec<(u8, bool)>),
    PodsUnread,
    Last(bool),
    NeverJoined,
    Later(i64),
}

pub(crate) fn found() -> impl Strategy<Value = Found> {
    let is: Vec<fn(&mut Cluster)> = vec![
        |cluster| cluster.deleting = true,
        |cluster| cluster.paused = true,
        |cluster| cluster.serving = false,
        |cluster| cluster.uid = "another".into(),
    ];
    let states = vec![MachineState::Starting, MachineState::Running, MachineState::Stopping];
    prop_oneof![
        6 => Just(Found::Goes),
        1 => prop_oneof![Just(Found::NoFinalizer), Just(Found::External), Just(Found::PoolAbsent), Just(Found::TypeAbsent)],
        2 => prop_oneof![Just(Found::ClusterUnread), Just(Found::ClusterAbsent)],
        2 => prop::sample::select(is).prop_map(Found::ClusterIs),
        3 => prop_oneof![Just(Found::MachineUnread), Just(Found::MachineAbsent)],
        2 => prop::sample::select(states).prop_map(Found::MachineIs),
        1 => Just(Found::BootstrapUnread),
        2 => (0..90i64).prop_map(Found::BootstrapThere),
        3 => prop_oneof![Just(Found::NodeUnread), Just(Found::NodeAbsent), Just(Found::NodeForeign), Just(Found::NodeWithout)],
        2 => prop::sample::select(vec!["True", "False", "Unknown", ""]).prop_map(Found::NodeReady),
        3 => Just(Found::Cordoned),
        4 => prop::collection::vec((0..7u8, any::<bool>()), 0..14).prop_map(Found::Pods),
        1 => Just(Found::PodsUnread),
        1 => any::<bool>().prop_map(Found::Last),
        2 => Just(Found::NeverJoined),
        2 => (0..1200i64).prop_map(Found::Later),
    ]
}

/// A worker that runs, with these facts.
pub(crate) fn worker(facts: &[Found]) -> WorkerObserved {
    let mut observed = Fleet::settled(1).observe_worker("p-0");
    for fact in facts {
        find(&mut observed, fact);
    }
    observed
}

fn find(observed: &mut WorkerObserved, fact: &Found) {
    let now = observed.now;
    match fact {
        Found::Goes => observed.worker.metadata.deletion_timestamp = Some(Time(now)),
        Found::NoFinalizer => observed.worker.metadata.finalizers = None,
        Found::External => observed.worker.spec.infrastructure = Infrastructure::external(),
        Found::ClusterUnread => observed.cluster = Fact::Unread,
        Found::ClusterAbsent => observed.cluster = Fact::Absent,
        Found::ClusterIs(change) => {
            if let Fact::Found(cluster) = &mut observed.cluster {
                change(cluster);
            }
        }
        Found::PoolAbsent => observed.pool = Fact::Absent,
        Found::TypeAbsent => observed.instance_type = Fact::Absent,
        Found::MachineUnread => observed.machine = Fact::Unread,
        Found::MachineAbsent => observed.machine = Fact::Absent,
        Found::MachineIs(state) => {
            let machine = Machine {
                id: "m".into(),
                state: *state,
                since: now,
                addresses: vec![],
                trouble: Some("x".into()),
            };
            observed.machine = Fact::Found(machine);
        }
        Found::BootstrapUnread => observed.bootstrap = Fact::Unread,
        Found::BootstrapThere(minutes) => {
            observed.bootstrap = Fact::Found(kaas_lifecycle::workers::observed::Bootstrap {
                token_id: "abcdef".into(),
                expires: now + SignedDuration::from_mins(*minutes),
                uid: "s".into(),
                resource_version: "7".into(),
            });
        }
        Found::NodeUnread => observed.node = Fact::Unread,
        Found::NodeAbsent => observed.node = Fact::Absent,
        Found::NodeReady(ready) => node(observed, |node| node.ready = (*ready).into()),
        Found::NodeForeign => node(observed, |node| node.provider_id = "another".into()),
        Found::NodeWithout => node(observed, |node| node.provider_id.clear()),
        Found::Cordoned => node(observed, |node| node.unschedulable = true),
        Found::PodsUnread => observed.pods = None,
        Found::Pods(pods) => {
            let pods =
                pods.iter().enumerate().map(|(at, (kind, refused))| (some_pod(at, *kind, now), *refused));
            let pods: Vec<(Pod, bool)> = pods.collect();
            let refused = pods.iter().filter(|(_, refused)| *refused).map(|(pod, _)| {
                let kind = [Refusal::Budget, Refusal::Overload, Refusal::InvalidBudget, Refusal::Denied]
                    [pod.uid.len() % 4];
                let retry_at = now + SignedDuration::from_secs(5);
                (pod.uid.clone(), Answer { refusal: kind, message: "no".into(), retry_at })
            });
            observed.answers = refused.collect();
            observed.pods = Some(pods.into_iter().map(|(pod, _)| pod).collect());
        }
        Found::Last(last) => observed.last = *last,
        Found::NeverJoined => observed.worker.status = None,
        Found::Later(seconds) => observed.now += SignedDuration::from_secs(*seconds),
    }
}

fn node(observed: &mut WorkerObserved, change: impl FnOnce(&mut kaas_lifecycle::workers::observed::Node)) {
    if let Fact::Found(node) = &mut observed.node {
        change(node);
    }
}

fn some_pod(at: usize, kind: u8, now: jiff::Timestamp) -> Pod {
    let mut pod = Pod {
        namespace: "web".into(),
        name: format!("a{at}"),
        uid: format!("uid{}", "-".repeat(at)),
        controller: Some("ReplicaSet".into()),
        ..Pod::default()
    };
    match kind {
        0 => pod.controller = Some("DaemonSet".into()),
        1 => pod.controller = None,
        2 => pod.local_data = true,
        3 => pod.gone_by = Some(now),
        4 => pod.finished = true,
        5 => pod.addon = true,
        _ => {}
    }
    pod
}
