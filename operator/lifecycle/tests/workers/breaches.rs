//! Each invariant of the linter over workers, broken by a plan that does nothing else wrong.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::Worker;
use kaas_crds::worker_pool::{Infrastructure, Removal};
use kaas_lifecycle::action::Precondition;
use kaas_lifecycle::lint::Invariant;
use kaas_lifecycle::workers::action::{Action, NodeChange};
use kaas_lifecycle::workers::lint::{check_pool, check_worker};
use kaas_lifecycle::workers::observed::{Fact, PoolObserved, WorkerObserved};
use kaas_lifecycle::workers::pool::{self, PoolPlan};
use kaas_lifecycle::workers::worker::{Step, WorkerPlan, plan};

use crate::fleet::Fleet;

fn broken(observed: &PoolObserved, actions: Vec<Action>) -> Vec<Invariant> {
    let plan = PoolPlan { waves: vec![actions], ..PoolPlan::default() };
    let mut found: Vec<Invariant> =
        check_pool(observed, &plan).iter().map(|breach| breach.invariant).collect();
    found.sort();
    found.dedup();
    found
}

fn broken_by(observed: &WorkerObserved, actions: Vec<Action>) -> Vec<Invariant> {
    let plan = WorkerPlan { waves: vec![actions], step: Step::Unknown, wake_at: None };
    let mut found: Vec<Invariant> =
        check_worker(observed, &plan).iter().map(|breach| breach.invariant).collect();
    found.sort();
    found.dedup();
    found
}

/// What the planner makes for a pool that asks for so many more.
fn creations(replicas: i32) -> Vec<Action> {
    let plan = pool::plan(&Fleet::new(replicas).observe_pool());
    plan.waves.into_iter().flatten().filter(|action| matches!(action, Action::Create { .. })).collect()
}

fn changed(action: &Action, change: impl FnOnce(&mut Worker)) -> Action {
    let Action::Create { worker, pool_generation } = action else { panic!() };
    let mut worker = worker.clone();
    change(&mut worker);
    Action::Create { worker, pool_generation: *pool_generation }
}

fn delete(name: &str) -> Action {
    Action::Delete { name: name.into(), uid: format!("{name}#1") }
}

/// Three workers of which one is asked for, with these stored to go.
fn shrinking(replicas: i32, stored: &[&str]) -> PoolObserved {
    let mut observed = Fleet::settled(3).observe_pool();
    observed.pool.spec.replicas = replicas;
    let removal =
        |name: &&str| Removal { name: (*name).into(), uid: format!("{name}#1"), why: String::new() };
    observed.pool.status.get_or_insert_default().removing = stored.iter().map(removal).collect();
    observed
}

#[test]
fn no_more_are_made_than_asked_for_and_only_own_ones() {
    let observed = Fleet::new(2).observe_pool();
    let two = creations(2);
    assert_eq!(broken(&observed, two.clone()), []);
    assert_eq!(broken(&observed, creations(3)), [Invariant::Count]);
    assert_eq!(broken(&observed, vec![two[0].clone(), two[0].clone()]), [Invariant::Count]);
    let one = |change: fn(&mut Worker)| broken(&observed, vec![changed(&two[0], change)]);
    assert_eq!(one(|worker| worker.metadata.name = Some("q-0".into())), [Invariant::Ownership]);
    assert_eq!(one(|worker| worker.metadata.name = Some("p-00".into())), [Invariant::Ownership]);
    assert_eq!(one(|worker| worker.metadata.namespace = Some("other".into())), [Invariant::Ownership]);
    assert_eq!(one(|worker| worker.metadata.owner_references = None), [Invariant::Ownership]);
    assert_eq!(one(|worker| worker.metadata.finalizers = None), [Invariant::Finalizer]);
    assert_eq!(one(|worker| worker.spec.cluster_uid = "other".into()), [Invariant::Ownership]);
    assert_eq!(one(|worker| worker.spec.template_hash = "1-old".into()), [Invariant::Count]);
    let late = Action::Create { worker: Box::new(Worker::new("x", observed_spec())), pool_generation: 7 };
    assert!(broken(&observed, vec![late]).contains(&Invariant::Precondition));
    let with = |change: fn(&mut PoolObserved)| {
        let mut observed = observed.clone();
        change(&mut observed);
        broken(&observed, two.clone())
    };
    let cluster = |change: fn(&mut kaas_lifecycle::workers::observed::Cluster)| {
        let mut observed = observed.clone();
        let mut cluster = observed.cluster.found().unwrap().clone();
        change(&mut cluster);
        observed.cluster = Fact::Found(cluster);
        broken(&observed, two.clone())
    };
    assert_eq!(cluster(|cluster| cluster.deleting = true), [Invariant::Deletion]);
    assert_eq!(cluster(|cluster| cluster.paused = true), [Invariant::Paused]);
    assert_eq!(
        with(|observed| observed.cluster = Fact::Unread),
        [Invariant::Ownership, Invariant::Precondition]
    );
    assert_eq!(
        with(|observed| observed.pool.metadata.deletion_timestamp = Some(Time(observed.now))),
        [Invariant::Deletion]
    );
    let full = Fleet::settled(2).observe_pool();
    assert_eq!(broken(&full, vec![two[0].clone()]), [Invariant::Count]);
}

fn observed_spec() -> kaas_crds::WorkerSpec {
    Fleet::settled(1).workers["p-0"].spec.clone()
}

#[test]
fn they_go_by_a_stored_choice_within_the_budget() {
    let observed = shrinking(1, &["p-0", "p-1"]);
    assert_eq!(broken(&observed, vec![delete("p-0"), delete("p-1")]), []);
    assert_eq!(broken(&observed, vec![delete("p-2")]), [Invariant::Choice]);
    assert_eq!(broken(&observed, vec![delete("p-0"), delete("p-0")]), [Invariant::Count]);
    let nobody = Action::Delete { name: "p-0".into(), uid: String::new() };
    assert!(broken(&observed, vec![nobody]).contains(&Invariant::Precondition));
    let other = Action::Delete { name: "p-0".into(), uid: "p-0#2".into() };
    assert!(broken(&observed, vec![other]).contains(&Invariant::Precondition));
    let lagging = PoolObserved { live: false, ..observed.clone() };
    assert_eq!(broken(&lagging, vec![delete("p-0")]), [Invariant::Choice]);
    let stored = shrinking(1, &["p-0", "p-1", "p-2"]);
    let all = vec![delete("p-0"), delete("p-1"), delete("p-2")];
    assert_eq!(broken(&stored, all.clone()), [Invariant::Budget]);
    // As many as asked for, of which one is not well: with a budget of none the others stay.
    let mut unwell = shrinking(3, &["p-0"]);
    assert_eq!(broken(&unwell, vec![delete("p-0")]), [Invariant::Budget]);
    unwell.pool.spec.rollout.max_unavailable = 1;
    assert_eq!(broken(&unwell, vec![delete("p-0")]), []);
    unwell.workers[1].readiness = kaas_lifecycle::workers::observed::Readiness::NotReady;
    assert_eq!(broken(&unwell, vec![delete("p-0")]), [Invariant::Budget]);
    // All go with the pool.
    let mut gone = shrinking(3, &[]);
    gone.pool.metadata.deletion_timestamp = Some(Time(gone.now));
    assert_eq!(broken(&gone, all), []);
}

#[test]
fn the_rest_of_a_pool() {
    let observed = Fleet::settled(2).observe_pool();
    let version = observed.pool.metadata.resource_version.clone().unwrap();
    let remove = Action::RemovePoolFinalizer { resource_version: version.clone() };
    assert_eq!(broken(&observed, vec![remove]), [Invariant::Finalizer]);
    let record = |resource_version: &str| Action::Record {
        resource_version: resource_version.into(),
        removals: vec![],
    };
    assert_eq!(broken(&observed, vec![record(&version)]), []);
    assert_eq!(broken(&observed, vec![record("")]), [Invariant::Precondition]);
    assert_eq!(broken(&observed, vec![Action::DeleteMachine { id: "x".into() }]), [Invariant::Ownership]);
}

fn deleted(fleet: &Fleet) -> WorkerObserved {
    let mut observed = fleet.observe_worker("p-0");
    observed.worker.metadata.deletion_timestamp = Some(Time(observed.now));
    observed
}

fn machine() -> Action {
    Action::DeleteMachine { id: "machine-p-0#1".into() }
}

#[test]
fn a_machine_goes_after_its_pods() {
    let mut fleet = Fleet::settled(1);
    assert_eq!(broken_by(&fleet.observe_worker("p-0"), vec![machine()]), [Invariant::Drain]);
    assert_eq!(broken_by(&deleted(&fleet), vec![machine()]), [Invariant::Drain], "pods may still come");
    fleet.nodes.get_mut("p-0").unwrap().unschedulable = true;
    assert_eq!(broken_by(&deleted(&fleet), vec![machine()]), []);
    let other = Action::DeleteMachine { id: "another".into() };
    assert_eq!(broken_by(&deleted(&fleet), vec![other]), [Invariant::Precondition]);
    fleet.pod("p-0", "a");
    assert_eq!(broken_by(&deleted(&fleet), vec![machine()]), [Invariant::Drain]);
    let unread = WorkerObserved { pods: None, ..deleted(&fleet) };
    assert_eq!(broken_by(&unread, vec![machine()]), [Invariant::Drain]);
    let forsaken = WorkerObserved { cluster: Fact::Absent, ..deleted(&fleet) };
    assert_eq!(broken_by(&forsaken, vec![machine()]), []);
}

#[test]
fn a_node_goes_after_its_machine_and_the_finalizer_after_both() {
    let mut fleet = Fleet::settled(1);
    fleet.nodes.get_mut("p-0").unwrap().unschedulable = true;
    let node = || Action::DeleteNode { uid: "node-p-0#1".into() };
    let finalizer = |observed: &WorkerObserved| Action::RemoveFinalizer {
        resource_version: observed.worker.metadata.resource_version.clone().unwrap(),
    };
    let observed = deleted(&fleet);
    assert_eq!(broken_by(&observed, vec![node()]), [Invariant::Drain]);
    assert_eq!(broken_by(&observed, vec![finalizer(&observed)]), [Invariant::Finalizer]);
    fleet.machines.clear();
    let observed = deleted(&fleet);
    assert_eq!(broken_by(&observed, vec![node()]), []);
    assert_eq!(broken_by(&observed, vec![finalizer(&observed)]), [Invariant::Finalizer]);
    fleet.nodes.clear();
    let observed = deleted(&fleet);
    assert_eq!(broken_by(&observed, vec![finalizer(&observed)]), []);
    assert_eq!(
        broken_by(&observed, vec![finalizer(&observed), machine()]),
        [Invariant::Irreversible, Invariant::Precondition]
    );
    let stays = fleet.observe_worker("p-0");
    assert_eq!(broken_by(&stays, vec![finalizer(&stays)]), [Invariant::Finalizer]);
}

#[test]
fn nothing_is_made_for_a_worker_that_goes_or_has_it() {
    let fresh = {
        let mut fleet = Fleet::new(1);
        let plan = pool::plan(&fleet.observe_pool());
        plan.waves.iter().flatten().for_each(|action| fleet.act("", action).unwrap());
        fleet
    };
    let observed = fresh.observe_worker("p-0");
    let actions: Vec<Action> = plan(&observed).waves.into_iter().flatten().collect();
    assert_eq!(actions.len(), 2);
    assert_eq!(broken_by(&observed, actions.clone()), []);
    assert_eq!(broken_by(&deleted(&fresh), actions.clone()), [Invariant::Deletion]);
    let unread = WorkerObserved { machine: Fact::Unread, bootstrap: Fact::Unread, ..observed.clone() };
    assert_eq!(broken_by(&unread, actions.clone()), [Invariant::Precondition, Invariant::Count]);
    let Action::EnsureMachine(request) = &actions[1] else { panic!() };
    let mut other = request.clone();
    other.worker_uid = "another".into();
    assert_eq!(broken_by(&observed, vec![Action::EnsureMachine(other)]), [Invariant::Precondition]);
    let mut other = request.clone();
    other.cluster_uid = "another".into();
    assert_eq!(broken_by(&observed, vec![Action::EnsureMachine(other)]), [Invariant::Ownership]);
    let blind = Action::IssueBootstrap {
        token_id: "a".into(),
        expires: observed.now,
        precondition: Precondition::Version("7".into()),
    };
    assert_eq!(broken_by(&observed, vec![blind]), [Invariant::Precondition]);
}

#[test]
fn pods_are_evicted_from_a_cordoned_node_of_a_worker_that_goes() {
    let mut fleet = Fleet::settled(1);
    fleet.pod("p-0", "a");
    let evict = |uid: &str| Action::Evict { namespace: "web".into(), name: "a".into(), uid: uid.into() };
    assert_eq!(broken_by(&deleted(&fleet), vec![evict("uid-a")]), [Invariant::Drain]);
    fleet.nodes.get_mut("p-0").unwrap().unschedulable = true;
    assert_eq!(broken_by(&deleted(&fleet), vec![evict("uid-a")]), []);
    assert_eq!(broken_by(&deleted(&fleet), vec![evict("uid-b")]), [Invariant::Precondition]);
    assert_eq!(broken_by(&fleet.observe_worker("p-0"), vec![evict("uid-a")]), [Invariant::Drain]);
}

#[test]
fn pods_are_deleted_where_the_machine_is_known_to_be_gone() {
    let mut fleet = Fleet::settled(1);
    fleet.pod("p-0", "a");
    let delete = |uid: &str| Action::DeletePod { namespace: "web".into(), name: "a".into(), uid: uid.into() };
    assert_eq!(broken_by(&deleted(&fleet), vec![delete("uid-a")]), [Invariant::Drain]);
    fleet.machines.clear();
    assert_eq!(broken_by(&deleted(&fleet), vec![delete("uid-a")]), []);
    assert_eq!(broken_by(&deleted(&fleet), vec![delete("uid-b")]), [Invariant::Precondition]);
    assert_eq!(broken_by(&fleet.observe_worker("p-0"), vec![delete("uid-a")]), [Invariant::Drain]);
    let mut own = deleted(&fleet);
    own.worker.spec.infrastructure = Infrastructure::external();
    assert!(broken_by(&own, vec![delete("uid-a")]).contains(&Invariant::Drain), "nobody knows of a user's");
}

#[test]
fn only_the_pools_own_labels_are_taken_off_a_node() {
    let fleet = Fleet::settled(1);
    let observed = fleet.observe_worker("p-0");
    let node = observed.node.found().unwrap();
    let change = |remove: &str, provider_id: Option<&str>| {
        Action::ConfigureNode(Box::new(NodeChange {
            uid: node.uid.clone(),
            resource_version: node.resource_version.clone(),
            remove_labels: vec![remove.into()],
            set_provider_id: provider_id.map(str::to_owned),
            ..NodeChange::default()
        }))
    };
    assert_eq!(broken_by(&observed, vec![change("example.com/disk", None)]), []);
    assert_eq!(broken_by(&observed, vec![change("kubernetes.io/hostname", None)]), [Invariant::Ownership]);
    assert_eq!(broken_by(&observed, vec![change("example.com/disk", Some("x"))]), [Invariant::Ownership]);
    let mut foreign = observed.clone();
    let Fact::Found(node) = &mut foreign.node else { panic!() };
    node.provider_id = "kaas://pod/another".into();
    assert_eq!(broken_by(&foreign, vec![change("example.com/disk", None)]), [Invariant::Precondition]);
}
