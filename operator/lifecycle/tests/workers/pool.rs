//! What a pool makes, what it takes away, and what it says about why.

use jiff::SignedDuration;
use kaas_crds::Reason;
use kaas_crds::status::Owner;
use kaas_crds::worker_pool::Removal;
use kaas_lifecycle::workers::action::{Action, tell};
use kaas_lifecycle::workers::lint::check_pool;
use kaas_lifecycle::workers::observed::Fact;
use kaas_lifecycle::workers::pool::plan;
use serde_json::json;

use crate::fleet::Fleet;

fn told(fleet: &Fleet) -> Vec<String> {
    let observed = fleet.observe_pool();
    let plan = plan(&observed);
    assert_eq!(check_pool(&observed, &plan), []);
    plan.waves.iter().flatten().map(tell).collect()
}

fn problem(fleet: &Fleet) -> (Reason, Owner, String) {
    let plan = plan(&fleet.observe_pool());
    let makes = plan.waves.iter().flatten().any(|action| matches!(action, Action::Create { .. }));
    assert!(!makes, "{:?}", plan.waves);
    let problem = plan.problems.into_iter().next().unwrap();
    (problem.reason, problem.owner, problem.message)
}

/// Stores what is to go, and gives it.
fn chosen(fleet: &mut Fleet) -> Vec<Removal> {
    let plan = plan(&fleet.observe_pool());
    let record = plan.waves.iter().flatten().find(|action| matches!(action, Action::Record { .. })).unwrap();
    fleet.act("", record).unwrap();
    fleet.pool.as_ref().unwrap().status.as_ref().unwrap().removing.clone()
}

#[test]
fn workers_are_made_with_the_lowest_free_numbers() {
    let mut fleet = Fleet::new(3);
    let made = ["create Worker p-0", "create Worker p-1", "create Worker p-2"];
    assert_eq!(told(&fleet), [&["add the pool's finalizer"], &made[..]].concat());
    fleet.settle();
    assert_eq!(fleet.staying(), ["p-0", "p-1", "p-2"]);
    assert_eq!((fleet.machines.len(), fleet.ready()), (3, 3));
    assert_eq!(told(&fleet), [""; 0]);
    // One that goes keeps its name until it is gone.
    fleet.workers.remove("p-0");
    fleet.act("", &Action::Delete { name: "p-1".into(), uid: "p-1#1".into() }).unwrap();
    assert_eq!(told(&fleet), ["create Worker p-0", "create Worker p-3"]);
}

#[test]
fn a_name_that_is_taken_is_left_out() {
    let mut fleet = Fleet::settled(1);
    let mut other = fleet.workers["p-0"].clone();
    other.metadata.name = Some("p-1".into());
    other.metadata.owner_references = None;
    fleet.workers.insert("p-1".into(), other);
    fleet.edit(|spec| spec.replicas = 2);
    assert_eq!(told(&fleet), ["create Worker p-2"]);
}

#[test]
fn of_several_that_may_go_the_cheapest_goes_and_it_is_said_why() {
    let begin = || {
        let mut fleet = Fleet::settled(3);
        fleet.edit(|spec| spec.replicas = 2);
        fleet
    };
    let one = |mut fleet: Fleet| {
        let mut removals = chosen(&mut fleet);
        assert_eq!(removals.len(), 1);
        let removal = removals.remove(0);
        (removal.name, removal.why.split(": ").nth(1).unwrap().to_owned())
    };
    // All alike: by name.
    assert_eq!(one(begin()).0, "p-0");
    let mut fleet = begin();
    fleet.pod("p-0", "a");
    assert_eq!(one(fleet), ("p-1".into(), "made at 2026-06-01T00:00:00Z, 0 pods".into()));
    let mut fleet = begin();
    let newest = fleet.workers.get_mut("p-2").unwrap().metadata.creation_timestamp.as_mut().unwrap();
    newest.0 += SignedDuration::from_secs(1);
    fleet.pod("p-2", "a");
    assert_eq!(one(fleet), ("p-2".into(), "made at 2026-06-01T00:00:01Z, 1 pods".into()));
    let mut fleet = begin();
    fleet.workers.get_mut("p-2").unwrap().spec.template_hash = "1-old".into();
    fleet.spec().rollout.max_surge = 0;
    fleet.spec().rollout.max_unavailable = 1;
    let names: Vec<String> = chosen(&mut fleet).into_iter().map(|removal| removal.name).collect();
    assert_eq!(names, ["p-2"]);
    let mut fleet = begin();
    fleet.nodes.get_mut("p-1").unwrap().ready = "False".into();
    assert_eq!(one(fleet), ("p-1".into(), "its node is not Ready".into()));
    let mut fleet = begin();
    fleet.nodes.get_mut("p-1").unwrap().ready = "False".into();
    let annotations = fleet.workers.get_mut("p-2").unwrap().metadata.annotations.get_or_insert_default();
    annotations.insert("kaas.dev/delete-first".into(), "true".into());
    assert_eq!(one(fleet), ("p-2".into(), "it has the annotation kaas.dev/delete-first".into()));
}

#[test]
fn a_choice_is_stored_first_and_kept() {
    let mut fleet = Fleet::settled(3);
    fleet.edit(|spec| spec.replicas = 2);
    assert_eq!(told(&fleet), ["record that these go: p-0"]);
    assert_eq!(chosen(&mut fleet)[0].name, "p-0");
    // What would be cheaper now does not matter any more.
    fleet.nodes.get_mut("p-2").unwrap().ready = "False".into();
    assert_eq!(told(&fleet), ["delete Worker p-0"]);
    // Who wants it back in time keeps it.
    fleet.edit(|spec| spec.replicas = 3);
    assert_eq!(told(&fleet), ["record that these go: "]);
}

#[test]
fn from_a_list_that_may_lag_nothing_goes() {
    let mut fleet = Fleet::settled(3);
    fleet.edit(|spec| spec.replicas = 2);
    let observed = fleet.observe_pool_with(&fleet.workers, false);
    let lagging = plan(&observed);
    assert!(lagging.is_empty() && lagging.look_live, "{lagging:?}");
    // What is missing in it is asked for, and refused by its name.
    fleet.edit(|spec| spec.replicas = 3);
    let mut then = fleet.workers.clone();
    then.remove("p-1");
    let lagging = plan(&fleet.observe_pool_with(&then, false));
    let actions: Vec<&Action> = lagging.waves.iter().flatten().collect();
    assert_eq!(actions.iter().map(|action| tell(action)).collect::<Vec<_>>(), ["create Worker p-1"]);
    assert_eq!(fleet.act("", actions[0]).unwrap_err().0, "AlreadyExists");
}

#[test]
fn a_new_template_goes_through_with_one_more() {
    let mut fleet = Fleet::settled(2);
    fleet.edit(|spec| spec.instance_types = vec!["large".into()]);
    assert_eq!(told(&fleet), ["create Worker p-2"]);
    let mut most = 0;
    for _ in 0..60 {
        fleet.turn();
        assert!(fleet.ready() >= 2, "{:?}", fleet.staying());
        most = most.max(fleet.machines.len());
        fleet.go_on();
    }
    fleet.settle();
    assert_eq!(most, 3);
    assert!(fleet.workers.values().all(|worker| worker.spec.instance_type == "large"));
    assert_eq!(fleet.ready(), 2);
}

#[test]
fn a_new_template_goes_through_with_one_less() {
    let mut fleet = Fleet::settled(3);
    fleet.edit(|spec| {
        spec.template.kubelet.max_pods = 50;
        spec.rollout.max_surge = 0;
        spec.rollout.max_unavailable = 1;
    });
    assert_eq!(told(&fleet), ["record that these go: p-0"]);
    for _ in 0..60 {
        fleet.turn();
        assert!(fleet.ready() >= 2 && fleet.machines.len() <= 3, "{:?}", fleet.staying());
        fleet.go_on();
    }
    fleet.settle();
    assert!(fleet.workers.values().all(|worker| worker.spec.kubelet.max_pods == 50));
}

#[test]
fn a_new_template_that_does_not_come_up_takes_nothing_away() {
    let mut fleet = Fleet::settled(2);
    fleet.edit(|spec| spec.instance_types = vec!["large".into()]);
    for _ in 0..20 {
        fleet.turn();
        // Machines of the new template never run.
        fleet.go_on();
        fleet.nodes.remove("p-2");
    }
    assert_eq!(fleet.staying(), ["p-0", "p-1", "p-2"]);
    assert_eq!(told(&fleet), [""; 0]);
}

#[test]
fn when_most_are_silent_nothing_is_replaced() {
    let mut fleet = Fleet::settled(3);
    fleet.edit(|spec| {
        spec.template.kubelet.max_pods = 50;
        spec.rollout.max_surge = 0;
        spec.rollout.max_unavailable = 3;
    });
    assert_eq!(told(&fleet), ["record that these go: p-0, p-1, p-2"]);
    for name in ["p-0", "p-1"] {
        fleet.nodes.get_mut(name).unwrap().ready = "Unknown".into();
    }
    assert_eq!(told(&fleet), [""; 0]);
}

#[test]
fn what_cannot_be_replaced_stays() {
    let of = |change: fn(&mut Fleet)| {
        let mut fleet = Fleet::settled(2);
        fleet.edit(|spec| {
            spec.rollout.max_unavailable = 2;
            spec.rollout.max_surge = 0;
            spec.instance_types = vec!["large".into()];
        });
        change(&mut fleet);
        told(&fleet)
    };
    assert_eq!(of(|_| {}), ["record that these go: p-0, p-1"]);
    assert_eq!(of(|fleet| fleet.spec().instance_types = vec!["lrage".into()]), [""; 0]);
    assert_eq!(of(|fleet| fleet.offer.pods = false), [""; 0]);
    assert_eq!(of(|fleet| fleet.cluster.as_mut().unwrap().serving = false), [""; 0]);
}

#[test]
fn labels_and_taints_replace_nobody() {
    let mut fleet = Fleet::settled(2);
    fleet.edit(|spec| {
        spec.template.labels.0.insert("example.com/role".into(), "web".into());
    });
    assert_eq!(told(&fleet), [""; 0]);
    fleet.settle();
    for node in fleet.nodes.values() {
        assert_eq!(node.labels["example.com/role"], "web");
    }
    assert_eq!(fleet.incarnations.values().sum::<u32>(), 2);
}

#[test]
fn zones_get_their_share() {
    let mut fleet = Fleet::new(5);
    fleet.instance_types.get_mut("small").unwrap().zones = vec!["b".into(), "a".into()];
    fleet.settle();
    let zones: Vec<&str> =
        fleet.workers.values().map(|worker| worker.spec.zone.as_deref().unwrap()).collect();
    assert_eq!(zones, ["b", "a", "b", "a", "b"]);
    assert_eq!(fleet.nodes["p-1"].labels["topology.kubernetes.io/zone"], "a");
}

#[test]
fn a_pool_that_is_deleted_waits_for_its_workers() {
    let mut fleet = Fleet::settled(2);
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(fleet.now);
    fleet.pool.as_mut().unwrap().metadata.deletion_timestamp = Some(now);
    assert_eq!(told(&fleet), ["delete Worker p-0", "delete Worker p-1"]);
    fleet.turn();
    assert!(fleet.pool.is_some());
    fleet.settle();
    assert!(
        fleet.pool.is_none()
            && fleet.workers.is_empty()
            && fleet.machines.is_empty()
            && fleet.nodes.is_empty()
    );
}

#[test]
fn workers_go_with_their_cluster_and_come_with_the_next() {
    let mut fleet = Fleet::settled(2);
    fleet.pod("p-0", "kept");
    fleet.cluster.as_mut().unwrap().deleting = true;
    fleet.cluster.as_mut().unwrap().serving = false;
    assert_eq!(told(&fleet), ["delete Worker p-0", "delete Worker p-1"]);
    fleet.settle();
    assert!(fleet.workers.is_empty() && fleet.machines.is_empty());
    assert_eq!(problem(&fleet).0, Reason::ClusterDeleting);
    fleet.cluster = None;
    assert_eq!(problem(&fleet).0, Reason::ClusterNotFound);
    assert_eq!(told(&fleet), [""; 0]);
}

#[test]
fn what_stands_in_the_way_has_an_owner() {
    let of = |change: fn(&mut Fleet)| {
        let mut fleet = Fleet::new(1);
        change(&mut fleet);
        problem(&fleet)
    };
    let (reason, owner, message) = of(|fleet| fleet.spec().instance_types = vec!["huge".into()]);
    assert_eq!((reason, owner), (Reason::InstanceTypeNotFound, Owner::Tenant));
    assert_eq!(message, "spec.instanceTypes: there is no InstanceType huge; there are large, small");
    let (reason, owner, _) = of(|fleet| fleet.instance_types.clear());
    assert_eq!((reason, owner), (Reason::InstanceTypeNotFound, Owner::Platform));
    // The chart takes its types away with the offer.
    let (reason, owner, _) = of(|fleet| {
        fleet.offer.pods = false;
        fleet.instance_types.clear();
    });
    assert_eq!((reason, owner), (Reason::InfrastructureDisabled, Owner::Platform));
    let (reason, owner, message) =
        of(|fleet| fleet.offer.networks = vec![("nodes".into(), "100.64.3.0/24".parse().unwrap())]);
    assert_eq!((reason, owner), (Reason::NetworkOverlap, Owner::Tenant));
    assert!(message.starts_with("spec.network.serviceCIDR 100.64.0.0/16 of TenantCluster blue overlaps 100.64.3.0/24, the management cluster's network of nodes"), "{message}");
    let (reason, owner, _) = of(|fleet| fleet.cluster.as_mut().unwrap().version = "v1.30.0".into());
    assert_eq!((reason, owner), (Reason::VersionNotInCatalogue, Owner::Platform));
    let (reason, owner, _) = of(|fleet| {
        fleet.spec().infrastructure = kaas_crds::worker_pool::Infrastructure::external();
        fleet.cluster.as_mut().unwrap().internal = true;
    });
    assert_eq!((reason, owner), (Reason::EndpointInternal, Owner::Tenant));
    // Networks of the management cluster do not matter to machines elsewhere.
    let mut fleet = Fleet::new(1);
    fleet.spec().infrastructure = kaas_crds::worker_pool::Infrastructure::external();
    fleet.offer.networks = vec![("nodes".into(), "100.64.3.0/24".parse().unwrap())];
    assert_eq!(plan(&fleet.observe_pool()).problems, []);
}

#[test]
fn workers_of_an_earlier_cluster_are_reported_and_left_alone() {
    let mut fleet = Fleet::settled(2);
    fleet.cluster.as_mut().unwrap().uid = "another".into();
    let (reason, owner, _) = problem(&fleet);
    assert_eq!((reason, owner), (Reason::AdoptionNeeded, Owner::Platform));
    assert_eq!(told(&fleet), [""; 0]);
}

#[test]
fn what_was_not_read_permits_nothing() {
    let mut observed = Fleet::settled(3).observe_pool();
    observed.pool.spec.replicas = 1;
    observed.cluster = Fact::Unread;
    assert!(plan(&observed).is_empty());
    let mut observed = Fleet::new(3).observe_pool();
    observed.instance_type = Fact::Unread;
    let actions: Vec<String> = plan(&observed).waves.iter().flatten().map(tell).collect();
    assert_eq!(actions, ["add the pool's finalizer"]);
}

#[test]
fn a_paused_cluster_keeps_its_workers_as_they_are() {
    let mut fleet = Fleet::settled(3);
    fleet.edit(|spec| spec.replicas = 1);
    fleet.cluster.as_mut().unwrap().paused = true;
    assert_eq!(told(&fleet), [""; 0]);
}

#[test]
fn fewer_can_be_had_although_the_instance_type_is_gone() {
    let mut fleet = Fleet::settled(3);
    fleet.instance_types.clear();
    fleet.edit(|spec| spec.replicas = 2);
    assert_eq!(told(&fleet), ["record that these go: p-0"]);
}

/// A pool whose user asks for another kind of machine while it grows.
#[test]
fn a_change_in_the_middle_of_a_creation_ends_well() {
    let mut fleet = Fleet::of(json!({
        "clusterName": "blue", "replicas": 4, "instanceTypes": ["small"], "infrastructure": {"pod": {}},
        "rollout": {"maxSurge": 2, "maxUnavailable": 1},
    }));
    fleet.turn();
    fleet.go_on();
    fleet.edit(|spec| spec.instance_types = vec!["large".into()]);
    fleet.settle();
    assert_eq!((fleet.staying().len(), fleet.ready()), (4, 4));
    assert!(fleet.workers.values().all(|worker| worker.spec.instance_type == "large"));
}
