//! What must never happen, whatever happens.

use std::sync::Arc;

use jiff::SignedDuration;
use kaas_lifecycle::object::{Kind, Reference};
use kaas_lifecycle::plan::plan;

use crate::world::World;

/// Lets an operator die right after its n-th write. Tells whether it had nothing left to write.
pub(crate) fn crash_after(world: &mut World, limit: u64) -> bool {
    let mut quiet = 0;
    let last = world.writes + limit;
    for _ in 0..100 {
        let plan = (world.planner)(&world.observe());
        for action in plan.waves.iter().flatten() {
            world.act(action).unwrap();
            if world.writes == last {
                return false;
            }
        }
        quiet = if plan.is_empty() { quiet + 1 } else { 0 };
        if quiet == 3 {
            return true;
        }
        world.controllers();
    }
    panic!(
        "does not come to rest: {:?}",
        plan(&world.observe()).waves.iter().flatten().map(crate::world::told).collect::<Vec<_>>()
    )
}

#[test]
fn a_crash_after_any_write_ends_in_the_same_world() {
    let mut whole = World::demo();
    whole.settle();
    for limit in 1.. {
        let mut world = World::demo();
        let done = crash_after(&mut world, limit);
        world.settle();
        assert_eq!(world.summary(), "Running", "after {limit} writes");
        assert!(world.objects.keys().eq(whole.objects.keys()), "after {limit} writes");
        assert!(world.secrets.keys().eq(whole.secrets.keys()), "after {limit} writes");
        assert_eq!(world.pods.len(), whole.pods.len(), "after {limit} writes");
        if done {
            return;
        }
    }
}

#[test]
fn members_are_restarted_one_by_one_and_the_leader_last() {
    let mut world = three_to_restart();
    world.leader = 2;
    let mut order = Vec::new();
    let mut leader_when_deleted = Vec::new();
    for _ in 0..60 {
        world.reconcile();
        let going: Vec<String> = world
            .pods
            .iter()
            .filter(|pod| pod.component == "etcd" && pod.terminating)
            .map(|pod| pod.name.clone())
            .collect();
        assert!(going.len() <= 1, "{going:?} at once");
        for name in going {
            leader_when_deleted.push(format!("etcd-{}", world.leader - 1) == name);
            order.push(name);
        }
        world.controllers();
    }
    assert_eq!(order.len(), 3, "{order:?}");
    assert!(leader_when_deleted.iter().all(|led| !led), "a leader was deleted: {order:?}");
    assert_eq!(world.summary(), "Running");
}

/// Three members that are to run another image.
fn three_to_restart() -> World {
    let mut world = World::demo();
    world.cluster.spec.etcd.replicas = 3;
    world.settle();
    world.platform.registry = "mirror.example".into();
    world.reconcile();
    let revision = world.cluster.status.as_ref().unwrap().pending.clone().unwrap().revision;
    world.edit(|spec| spec.accept_revision = Some(revision));
    world
}

#[test]
fn a_member_is_not_restarted_before_the_one_of_before_is_found() {
    let mut world = three_to_restart();
    let members = |world: &World| -> Vec<String> {
        let members = world.pods.iter().filter(|pod| pod.component == "etcd");
        members.map(|pod| pod.uid.clone()).collect()
    };
    let before = members(&world);
    world.unfound = true;
    for _ in 0..30 {
        world.reconcile();
        world.controllers();
    }
    assert_eq!(members(&world), before, "{}", world.summary());
    world.unfound = false;
    for _ in 0..60 {
        world.reconcile();
        world.controllers();
    }
    assert!(members(&world).iter().all(|member| !before.contains(member)), "{}", world.summary());
}

#[test]
fn a_member_is_not_restarted_while_another_is_down() {
    let mut world = three_to_restart();
    let sick = world.pods.iter_mut().find(|pod| pod.name == "etcd-1").unwrap();
    sick.ready = false;
    sick.trouble =
        Some(kaas_lifecycle::observed::Trouble { reason: "NodeLost".into(), message: String::new() });
    for _ in 0..10 {
        world.reconcile();
        let healthy = world.pods.iter().filter(|pod| pod.component == "etcd" && pod.ready).count();
        assert!(healthy >= 2, "quorum was given away");
        if world.pods.iter().any(|pod| pod.name == "etcd-1" && pod.terminating) {
            // Replacing the sick one itself takes nothing away.
            return;
        }
    }
}

#[test]
fn other_data_is_never_ready_and_never_touched() {
    let mut world = World::demo();
    world.settle();
    world.etcd_id = 0xdef;
    world.now += SignedDuration::from_mins(1);
    let writes = world.writes;
    world.settle();
    assert_eq!(world.condition("Ready"), ("False".into(), "DataLost".into()));
    assert_eq!(world.condition("EtcdHealthy"), ("False".into(), "DataLost".into()));
    assert_eq!(world.writes, writes, "nothing is made anew unasked");
}

#[test]
fn restored_data_is_taken_when_somebody_says_that_it_is_the_right_one() {
    for members in [1, 3] {
        let mut world = World::demo();
        world.cluster.spec.etcd.replicas = members;
        world.settle();
        world.etcd_id = 0xdef;
        world.now += SignedDuration::from_mins(1);
        world.settle();
        let lost = world.cluster.status.as_ref().unwrap();
        let told = lost.conditions.iter().find(|condition| condition.type_ == "EtcdHealthy").unwrap();
        assert!(told.message.contains("etcd answers as cluster def"), "{}", told.message);
        let home = world.tenant().control_plane_namespace();
        let identity = Reference::namespaced(Kind::ConfigMap, home, "etcd-identity");
        let live = Arc::make_mut(world.objects.get_mut(&identity).unwrap());
        live.content["data"]["cluster-id"] = "def".into();
        live.resource_version = "said".into();
        let (pods, volumes) = (world.pods.clone(), live.content["data"].clone());
        world.settle();
        assert_eq!((world.summary(), &world.pods), ("Running", &pods), "{members} members");
        assert_eq!(world.objects[&identity].content["data"], volumes, "{members} members");
    }
}

#[test]
fn a_lost_namespace_is_not_built_anew() {
    let mut world = World::demo();
    world.settle();
    world.namespaces.clear();
    world.objects.clear();
    world.secrets.clear();
    world.pods.clear();
    world.settle();
    assert_eq!(world.condition("Ready"), ("False".into(), "DataLost".into()));
    assert!(world.namespaces.is_empty());
}

#[test]
fn an_orphan_is_not_doubled() {
    let mut world = World::demo();
    world.settle();
    // The management cluster was restored: the same name has a new UID and no status.
    world.namespaces[0].tenant_uid = "an earlier one".into();
    world.namespaces[0].name = "kaas-an-earlier-one".into();
    world.cluster.status = None;
    world.objects.clear();
    let writes = world.writes;
    world.settle();
    assert_eq!(world.condition("Stalled"), ("True".into(), "AdoptionNeeded".into()));
    assert_eq!(world.writes, writes);
}

#[test]
fn an_orphan_is_taken_over_with_consent() {
    let mut world = World::demo();
    world.settle();
    let (etcd, pods) = (world.etcd_id, world.pods.clone());
    world.namespaces[0].tenant_uid = "an earlier one".into();
    world.namespaces[0].adopt_by = Some(crate::world::UID.into());
    world.cluster.status = None;
    world.cluster.metadata.finalizers = None;
    world.settle();
    assert_eq!(world.summary(), "Running");
    assert_eq!(world.namespaces.len(), 1);
    assert_eq!((world.etcd_id, &world.pods), (etcd, &pods), "nothing restarts");
}

#[test]
fn a_label_alone_makes_no_home() {
    let mut world = World::demo();
    world.settle();
    world.namespaces[0].name = "a-trap".into();
    world.cluster.status = None;
    world.settle();
    assert_eq!(world.condition("Stalled"), ("True".into(), "AdoptionNeeded".into()));
}

#[test]
fn lost_authorities_are_not_made_anew() {
    let mut world = World::demo();
    world.settle();
    world.secrets.remove("authority");
    world.settle();
    assert!(!world.secrets.contains_key("authority"));
    assert_eq!(world.condition("Stalled"), ("True".into(), "AuthorityLost".into()));
}

#[test]
fn an_unreachable_endpoint_is_not_ready_and_nothing_is_done_about_it() {
    let mut world = World::demo();
    world.settle();
    world.reachable = false;
    let writes = world.writes;
    world.settle();
    assert_eq!(world.condition("Ready"), ("False".into(), "EndpointUnreachable".into()));
    assert_eq!(world.writes, writes);
    world.reachable = true;
    world.settle();
    assert_eq!(world.summary(), "Running");
}

#[test]
fn certificates_are_renewed_after_two_thirds_of_their_life() {
    let mut world = World::demo();
    world.settle();
    let writes = world.writes;
    world.now += crate::world::LEAF_LIFETIME / 2;
    world.settle();
    assert_eq!(world.writes, writes);
    world.now += crate::world::LEAF_LIFETIME / 5;
    let pods = world.pods.clone();
    world.settle();
    assert!(world.writes > writes);
    assert_eq!(world.pods, pods, "renewal restarts nothing");
    assert_eq!(world.condition("CertificatesValid").0, "True");
}
