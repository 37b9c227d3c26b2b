//! The way of one worker, up and down.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::worker::NodeReference;
use kaas_crds::worker_pool::Infrastructure;
use kaas_lifecycle::drain::{self, Pod, Progress, Refusal};
use kaas_lifecycle::workers::action::{Action, tell};
use kaas_lifecycle::workers::infrastructure::{self, Failure};
use kaas_lifecycle::workers::lint::check_worker;
use kaas_lifecycle::workers::observed::{Fact, MachineState, Node, WorkerObserved};
use kaas_lifecycle::workers::worker::{Step, plan};

use crate::fleet::{Fleet, wanted_labels};

fn actions(observed: &WorkerObserved) -> Vec<String> {
    let plan = plan(observed);
    assert_eq!(check_worker(observed, &plan), [], "{plan:?}");
    plan.waves.iter().flatten().map(tell).collect()
}

fn step(fleet: &Fleet) -> Step {
    plan(&fleet.observe_worker("p-0")).step
}

fn told(fleet: &Fleet) -> Vec<String> {
    actions(&fleet.observe_worker("p-0"))
}

fn act(fleet: &mut Fleet) {
    let plan = plan(&fleet.observe_worker("p-0"));
    for action in plan.waves.iter().flatten() {
        fleet.act("p-0", action).unwrap();
    }
    fleet.publish("p-0");
}

/// A worker that was made and of which nothing is there yet.
fn made() -> Fleet {
    let mut fleet = Fleet::new(1);
    let plan = kaas_lifecycle::workers::pool::plan(&fleet.observe_pool());
    for action in plan.waves.iter().flatten() {
        fleet.act("", action).unwrap();
    }
    fleet
}

fn deleted(mut fleet: Fleet) -> Fleet {
    fleet.workers.get_mut("p-0").unwrap().metadata.deletion_timestamp = Some(Time(fleet.now));
    fleet
}

const NOTHING: [&str; 0] = [];

#[test]
fn the_way_up() {
    let mut fleet = made();
    assert_eq!(step(&fleet), Step::Provisioning);
    assert_eq!(told(&fleet), ["issue bootstrap material", "ensure machine p-0"]);
    act(&mut fleet);
    assert_eq!((step(&fleet), told(&fleet)), (Step::Provisioning, vec![]));
    fleet.go_on();
    assert_eq!(step(&fleet), Step::Joining(fleet.now));
    assert_eq!(told(&fleet), NOTHING);
    fleet.go_on();
    assert_eq!(step(&fleet), Step::Joined);
    assert_eq!(told(&fleet), ["revoke bootstrap material", "configure the node"]);
    act(&mut fleet);
    assert_eq!(told(&fleet), NOTHING);
    assert_eq!(fleet.nodes["p-0"].labels, wanted_labels(&fleet, "p-0"));
    assert!(fleet.bootstraps.is_empty());
}

#[test]
fn the_way_down() {
    let mut fleet = deleted(Fleet::settled(1));
    fleet.pod("p-0", "a");
    let daemon = Pod { controller: Some("DaemonSet".into()), uid: "d".into(), ..Pod::default() };
    fleet.pods.get_mut("p-0").unwrap().push(daemon);
    assert_eq!(told(&fleet), ["cordon the node"]);
    act(&mut fleet);
    assert_eq!(fleet.nodes["p-0"].conditions["DrainInProgress"], "True");
    assert_eq!(step(&fleet), Step::Draining(Progress::Moving(1)));
    assert_eq!(told(&fleet), ["evict Pod web/a"]);
    act(&mut fleet);
    // It was accepted, and is not gone: nobody tells when it is.
    let soon = plan(&fleet.observe_worker("p-0")).wake_at.unwrap();
    assert_eq!(soon, fleet.now + SignedDuration::from_secs(1));
    assert_eq!((step(&fleet), told(&fleet)), (Step::Draining(Progress::Moving(1)), vec![]));
    fleet.pods.get_mut("p-0").unwrap().retain(|pod| pod.uid == "d");
    assert_eq!(told(&fleet), ["mark the node", "delete the machine"]);
    act(&mut fleet);
    assert_eq!(fleet.nodes["p-0"].conditions["Drained"], "True");
    assert_eq!((step(&fleet), told(&fleet)), (Step::DeletingMachine, vec![]));
    fleet.go_on();
    assert_eq!((step(&fleet), told(&fleet)), (Step::DeletingNode, vec!["delete the Node".to_owned()]));
    act(&mut fleet);
    assert_eq!((step(&fleet), told(&fleet)), (Step::Finishing, vec!["remove the finalizer".to_owned()]));
}

#[test]
fn addons_go_with_the_last_worker() {
    let addon =
        Pod { addon: true, uid: "dns".into(), controller: Some("ReplicaSet".into()), ..Pod::default() };
    let after_cordon = |count: i32| {
        let mut fleet = deleted(Fleet::settled(count));
        fleet.pods.entry("p-0".into()).or_default().push(addon.clone());
        act(&mut fleet);
        fleet
    };
    let mut fleet = after_cordon(1);
    assert_eq!(told(&fleet), ["mark the node", "delete the machine"]);
    act(&mut fleet);
    fleet.go_on();
    // Whoever makes it again need not wait for a minute to see that it is gone.
    assert_eq!(told(&fleet), ["delete Pod /", "delete the Node"]);
    assert_eq!(told(&after_cordon(2)), ["evict Pod /"]);
}

#[test]
fn it_is_looked_at_again_when_something_is_due() {
    let fleet = Fleet::settled(1);
    let mut observed = fleet.observe_worker("p-0");
    let after = |observed: &WorkerObserved| plan(observed).wake_at.unwrap().duration_since(observed.now);
    assert_eq!(after(&observed), SignedDuration::from_mins(10));
    // A node that could not be read tells nobody when it can be.
    observed.node = Fact::Unread;
    assert_eq!((plan(&observed).step, after(&observed)), (Step::Joined, SignedDuration::from_secs(5)));
    let mut observed = made().observe_worker("p-0");
    assert_eq!(after(&observed), SignedDuration::from_secs(5));
    let refused = infrastructure::record(None, Failure::Transient, "busy", observed.now);
    observed.worker.status.get_or_insert_default().failure = Some(refused);
    assert_eq!(after(&observed), SignedDuration::from_secs(1));
}

#[test]
fn a_drain_that_is_blocked_ends_with_its_time() {
    let mut fleet = deleted(Fleet::settled(1));
    fleet.pod("p-0", "a");
    act(&mut fleet);
    let mut observed = fleet.observe_worker("p-0");
    let refused = drain::Answer {
        refusal: Refusal::Budget,
        message: "no".into(),
        retry_at: fleet.now + SignedDuration::from_secs(5),
    };
    observed.answers.insert("uid-a".into(), refused);
    let blocked = plan(&observed);
    assert!(matches!(blocked.step, Step::Draining(Progress::Blocked(1, ..))), "{blocked:?}");
    assert_eq!(blocked.wake_at, Some(fleet.now + SignedDuration::from_secs(5)));
    observed.now += SignedDuration::from_mins(10);
    assert_eq!(actions(&observed), ["mark the node", "delete the machine"]);
    assert_eq!(plan(&observed).step, Step::Draining(Progress::Expired(vec!["web/a".into()])));
}

#[test]
fn an_api_that_does_not_answer_is_waited_for_as_long_as_a_drain() {
    let mut fleet = deleted(Fleet::settled(1));
    fleet.cluster.as_mut().unwrap().serving = false;
    assert!(matches!(step(&fleet), Step::Stuck(why) if why.contains("does not answer")));
    assert_eq!(told(&fleet), NOTHING);
    fleet.now += SignedDuration::from_mins(10);
    assert_eq!(told(&fleet), ["delete the machine"]);
    act(&mut fleet);
    fleet.go_on();
    // Its node is left, and nobody can say whether it is gone.
    assert!(matches!(step(&fleet), Step::Stuck(why) if why.contains("Node cannot be deleted")));
    fleet.cluster = None;
    assert_eq!(told(&fleet), ["remove the finalizer"]);
}

#[test]
fn with_its_cluster_it_goes_without_a_drain() {
    for gone in [false, true] {
        let mut fleet = deleted(Fleet::settled(1));
        fleet.pod("p-0", "a");
        match gone {
            true => fleet.cluster = None,
            false => fleet.cluster.as_mut().unwrap().deleting = true,
        }
        assert_eq!(told(&fleet), ["delete the machine"]);
        act(&mut fleet);
        fleet.go_on();
        assert_eq!(told(&fleet), ["remove the finalizer"]);
    }
}

#[test]
fn an_infrastructure_that_says_nothing_keeps_the_finalizer() {
    let fleet = deleted(Fleet::settled(1));
    let mut observed = fleet.observe_worker("p-0");
    observed.cluster = Fact::Absent;
    observed.machine = Fact::Unread;
    assert_eq!(actions(&observed), NOTHING);
    assert!(matches!(plan(&observed).step, Step::Stuck(why) if why.contains("infrastructure")));
}

#[test]
fn what_the_infrastructure_refused_is_not_asked_for_before_its_time() {
    let mut fleet = made();
    act(&mut fleet);
    fleet.machines.clear();
    let failure = infrastructure::record(None, Failure::Quota, "pods", fleet.now);
    fleet.workers.get_mut("p-0").unwrap().status.get_or_insert_default().failure = Some(failure);
    assert_eq!(told(&fleet), NOTHING);
    fleet.now += SignedDuration::from_mins(1);
    assert_eq!(told(&fleet), ["ensure machine p-0"]);
}

#[test]
fn a_machine_that_may_be_there_is_not_asked_for() {
    let mut observed = made().observe_worker("p-0");
    observed.machine = Fact::Unread;
    assert_eq!(actions(&observed), NOTHING);
}

#[test]
fn what_is_gone_after_it_had_joined_is_reported() {
    let mut fleet = Fleet::settled(1);
    fleet.machines.clear();
    assert_eq!((step(&fleet), told(&fleet)), (Step::MachineGone, vec![]));
    let mut fleet = Fleet::settled(1);
    fleet.nodes.clear();
    assert_eq!((step(&fleet), told(&fleet)), (Step::NodeMissing, vec![]));
    // Nothing is waited for when it is deleted.
    assert_eq!(told(&deleted(fleet)), ["delete the machine"]);
}

#[test]
fn a_node_of_another_machine_is_left_alone() {
    let mut fleet = Fleet::settled(1);
    fleet.nodes.get_mut("p-0").unwrap().provider_id = "kaas://pod/another".into();
    fleet.pod("p-0", "a");
    assert_eq!((step(&fleet), told(&fleet)), (Step::NodeForeign, vec![]));
    let mut fleet = deleted(fleet);
    assert_eq!(told(&fleet), ["delete the machine"]);
    act(&mut fleet);
    fleet.go_on();
    assert_eq!(told(&fleet), ["remove the finalizer"]);
}

#[test]
fn a_silent_node_is_only_reported() {
    let mut fleet = Fleet::settled(1);
    fleet.nodes.get_mut("p-0").unwrap().ready = "Unknown".into();
    fleet.now += SignedDuration::from_hours(24);
    assert_eq!((step(&fleet), told(&fleet)), (Step::Joined, vec![]));
}

#[test]
fn a_token_that_ends_is_made_anew_until_the_node_is_there() {
    let mut fleet = made();
    act(&mut fleet);
    fleet.machines.values_mut().for_each(|(_, machine)| machine.state = MachineState::Running);
    fleet.now += SignedDuration::from_mins(54);
    assert_eq!(told(&fleet), NOTHING);
    fleet.now += SignedDuration::from_mins(1);
    assert_eq!(told(&fleet), ["issue bootstrap material"]);
    act(&mut fleet);
    assert_eq!(told(&fleet), NOTHING);
}

#[test]
fn a_token_has_a_name_of_its_own() {
    let of = kaas_lifecycle::workers::worker::token_id;
    assert_eq!(of("a"), of("a"));
    assert_ne!(of("a"), of("b"));
    let name = of("0b2f7a3e-1111-4222-8333-444455556666");
    assert!(
        name.len() == 6 && name.bytes().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit()),
        "{name}"
    );
}

#[test]
fn nothing_is_made_before_the_api_serves() {
    let mut fleet = made();
    fleet.cluster.as_mut().unwrap().serving = false;
    assert_eq!((step(&fleet), told(&fleet)), (Step::WaitingForCluster, vec![]));
}

#[test]
fn only_labels_and_taints_of_the_pool_are_removed() {
    let mut fleet = Fleet::new(1);
    fleet.edit(|spec| {
        spec.template = serde_json::from_value(serde_json::json!({
            "labels": {"example.com/role": "web"},
            "taints": [{"key": "example.com/gpu", "value": "yes", "effect": "NoSchedule"}],
        }))
        .unwrap();
    });
    fleet.settle();
    let node = fleet.nodes.get_mut("p-0").unwrap();
    assert_eq!(node.taints["example.com/gpu:NoSchedule"], "yes");
    node.labels.insert("by-hand".into(), "kept".into());
    node.taints.insert("by-hand:NoExecute".into(), String::new());
    fleet.edit(|spec| spec.template = Default::default());
    let plan = plan(&fleet.observe_worker("p-0"));
    let Action::ConfigureNode(change) = &plan.waves[0][0] else { panic!("{plan:?}") };
    assert_eq!(change.remove_labels, ["example.com/role"]);
    assert_eq!(change.remove_taints, ["example.com/gpu:NoSchedule"]);
    act(&mut fleet);
    let node = &fleet.nodes["p-0"];
    assert_eq!((node.labels["by-hand"].as_str(), node.taints.len()), ("kept", 1));
    assert!(!node.labels.contains_key("example.com/role"));
    assert_eq!(told(&fleet), NOTHING);
}

#[test]
fn a_machine_of_the_users_own_is_waited_for_and_then_known() {
    let mut fleet = Fleet::new(1);
    fleet.spec().infrastructure = Infrastructure::external();
    let plan = kaas_lifecycle::workers::pool::plan(&fleet.observe_pool());
    plan.waves.iter().flatten().for_each(|action| fleet.act("", action).unwrap());
    assert_eq!(step(&fleet), Step::WaitingForMachine);
    assert_eq!(told(&fleet), ["issue bootstrap material"]);
    act(&mut fleet);
    assert_eq!(told(&fleet), NOTHING);
    let node = Node { uid: "n".into(), ready: "True".into(), version: "v1.37.1".into(), ..Node::default() };
    fleet.nodes.insert("p-0".into(), node);
    assert_eq!(told(&fleet), ["revoke bootstrap material", "configure the node"]);
    act(&mut fleet);
    assert_eq!(fleet.nodes["p-0"].provider_id, "kaas://external/p-0#1");
    let mut fleet = deleted(fleet);
    fleet.pod("p-0", "a");
    act(&mut fleet);
    assert_eq!(told(&fleet), ["evict Pod web/a"]);
    fleet.pods.clear();
    assert_eq!(told(&fleet), ["mark the node", "delete the Node"]);
}

#[test]
fn a_worker_that_had_joined_is_known_by_its_status() {
    let mut fleet = made();
    let node = NodeReference { name: "p-0".into(), uid: "n".into() };
    fleet.workers.get_mut("p-0").unwrap().status.get_or_insert_default().node_ref = Some(node);
    // No second machine for one that is lost: that is for whoever heals.
    assert_eq!((step(&fleet), told(&fleet)), (Step::MachineGone, vec![]));
}
