//! Before etcd goes to another minor version a snapshot is saved and seen to start; without it nothing begins.

use jiff::SignedDuration;
use kaas_crds::status::{OperationType, Owner};
use kaas_lifecycle::action::{Action, EtcdOrder};
use kaas_lifecycle::etcd::{series_of, under_way};
use kaas_lifecycle::object::{Kind, Reference};
use kaas_lifecycle::observed::Observed;
use kaas_lifecycle::plan::{Plan, plan};
use serde_json::json;

use crate::etcd_version::{NEW, OLD, ask, minors, told, world};
use crate::membership::settle_with_quorum;
use crate::safety::crash_after;
use crate::world::World;

const NAME: &str = "etcd-snapshot";
const CLAIM: &str = "data-etcd-snapshot-0";

fn object(world: &World, kind: Kind, name: &str) -> Option<String> {
    let reference = Reference::namespaced(kind, world.tenant().control_plane_namespace(), name);
    world.objects.get(&reference).map(|live| live.uid.clone())
}

/// What takes the snapshot, its pod and its policy.
fn taking(world: &World) -> (bool, bool, bool) {
    let pod = world.pods.iter().any(|pod| pod.component == NAME);
    let of = |kind| object(world, kind, NAME).is_some();
    (of(Kind::StatefulSet), pod, of(Kind::NetworkPolicy))
}

const NOTHING: (bool, bool, bool) = (false, false, false);

/// Plans, and sees to it that no change of the minor version begins without a snapshot that was seen to start.
fn watched(observed: &Observed) -> Plan {
    let plan = plan(observed);
    let set = observed.live(Kind::StatefulSet, "etcd").and_then(|set| series_of(&set.content));
    let begins = |action: &Action| match action {
        Action::Etcd(EtcdOrder::EnableDowngrade { .. }) => true,
        Action::Apply { object, .. } if object.reference.name == "etcd" && set.is_some() => {
            object.reference.kind == Kind::StatefulSet && series_of(&object.content) != set
        }
        _ => false,
    };
    if plan.waves.iter().flatten().any(begins) && !under_way(observed) {
        let saved = observed.pods_of(NAME).any(|pod| pod.ready && !pod.terminating);
        assert!(saved, "another minor version of etcd begins without a snapshot");
    }
    plan
}

#[test]
fn it_is_taken_anew_for_each_change_and_its_claim_stays() {
    for members in [1, 3] {
        let mut world = world(members);
        world.planner = watched;
        let (mut pods, mut claims) = (Vec::new(), Vec::new());
        for version in [NEW, OLD, NEW] {
            ask(&mut world, Some(version));
            for _ in 0..80 {
                world.reconcile();
                world.controllers();
                world.now += SignedDuration::from_secs(1);
                let pod = world.pods.iter().find(|pod| pod.component == NAME);
                pods.extend(pod.map(|pod| pod.uid.clone()));
            }
            assert_eq!((taking(&world), world.summary()), (NOTHING, "Running"), "to {version}");
            claims.extend(object(&world, Kind::PersistentVolumeClaim, CLAIM));
            let last = &world.cluster.status.as_ref().unwrap().history[0];
            let words = "Succeeded; the data of before is in PersistentVolumeClaim data-etcd-snapshot-0";
            assert_eq!((last.kind, last.result.as_str()), (OperationType::UpgradeEtcd, words));
        }
        pods.dedup();
        claims.dedup();
        assert_eq!((pods.len(), claims.len()), (3, 1), "{members} members");
    }
}

#[test]
fn it_is_taken_when_the_change_may_begin_and_not_before() {
    let mut world = world(1);
    world.planner = watched;
    world.now = "2026-06-01T01:00:00Z".parse().unwrap();
    world.edit(|spec| {
        let windows =
            json!({"windows": [{"days": ["Mon"], "start": "02:00", "duration": "1h", "timeZone": "UTC"}]});
        spec.maintenance = serde_json::from_value(windows).unwrap();
        spec.etcd.version = Some(NEW.into());
    });
    told(&mut world, 30);
    assert_eq!((taking(&world), minors(&world)), (NOTHING, vec![6]));
    // The window closes before it was seen to start.
    world.now = "2026-06-01T02:59:59Z".parse().unwrap();
    world.reconcile();
    assert_eq!(taking(&world), (true, false, true));
    told(&mut world, 30);
    assert_eq!((taking(&world), minors(&world)), (NOTHING, vec![6]));
    world.now = "2026-06-08T02:00:00Z".parse().unwrap();
    settle_with_quorum(&mut world);
    assert_eq!((taking(&world), minors(&world)), (NOTHING, vec![7]));
}

#[test]
fn nothing_begins_until_it_was_seen_to_start_and_the_cause_is_named() {
    for (cramped, reason, words) in [
        (true, "Unschedulable", "Unschedulable: 0/1 nodes"),
        (false, "ImagePullBackOff", "ImagePullBackOff: no such image"),
    ] {
        for (members, begin, end) in [(1, OLD, NEW), (3, NEW, OLD)] {
            let mut world = world(members);
            world.planner = watched;
            ask(&mut world, Some(begin));
            world.settle();
            let before = (minors(&world), world.pods.clone());
            world.cramped = cramped;
            world.dead = if cramped { Vec::new() } else { vec!["etcdutl".into()] };
            ask(&mut world, Some(end));
            world.reconcile();
            let operation = world.cluster.status.as_ref().unwrap().operation.clone().unwrap();
            assert_eq!(
                operation.waiting.map(|waiting| (waiting.reason, waiting.owner)),
                Some(("SnapshotPending".into(), Owner::Nobody))
            );
            told(&mut world, 60);
            let operation = world.cluster.status.as_ref().unwrap().operation.clone().unwrap();
            assert_eq!(operation.kind, OperationType::UpgradeEtcd);
            assert!(
                operation.step.contains(words) && operation.step.contains("etcd-snapshot-0"),
                "{}",
                operation.step
            );
            let waiting = operation.waiting.unwrap();
            assert_eq!((waiting.reason.as_str(), waiting.owner), (reason, Owner::Platform));
            let others: Vec<_> = world.pods.iter().filter(|pod| pod.component != NAME).cloned().collect();
            assert_eq!((minors(&world), others, world.lowered), (before.0.clone(), before.1.clone(), None));
            // Whoever asks for what runs does not wait any more.
            let mut meek = world.clone();
            ask(&mut meek, Some(begin));
            meek.settle();
            assert_eq!((taking(&meek), meek.pods.clone(), meek.summary()), (NOTHING, before.1, "Running"));
            let last = &meek.cluster.status.as_ref().unwrap().history[0];
            assert!(last.result.starts_with("TakenBack: etcd stays at "), "{}", last.result);
            // Room comes by itself; a pod that got nowhere is made anew after half an hour.
            (world.cramped, world.dead) = (false, Vec::new());
            if !cramped {
                told(&mut world, 60);
                assert_eq!(minors(&world), before.0);
                world.now += SignedDuration::from_mins(30);
            }
            settle_with_quorum(&mut world);
            assert_eq!((taking(&world), world.summary()), (NOTHING, "Running"), "to {end}");
            assert_ne!(minors(&world), before.0);
        }
    }
}

#[test]
fn without_a_volume_there_is_none_and_that_is_said() {
    let mut world = world(3);
    world.cluster.spec.etcd.storage = serde_json::from_value(json!({"ephemeral": {}})).unwrap();
    let mut world = {
        let spec = serde_json::to_value(&world.cluster.spec).unwrap();
        let mut fresh = World::new(spec);
        std::mem::swap(&mut fresh.catalogue, &mut world.catalogue);
        fresh
    };
    world.settle();
    ask(&mut world, Some(NEW));
    let lines = told(&mut world, 60);
    assert!(lines[0].contains("no snapshot was kept: spec.etcd.storage is ephemeral"), "{lines:?}");
    assert_eq!((minors(&world), taking(&world), world.summary()), (vec![7; 3], NOTHING, "Running"));
    let last = &world.cluster.status.as_ref().unwrap().history[0];
    assert_eq!(last.result, "Succeeded; no snapshot was kept: spec.etcd.storage is ephemeral");
}

#[test]
fn an_operator_may_die_after_any_write() {
    for (members, begin, end) in [(1, NEW, OLD), (3, OLD, NEW)] {
        let mut settled = world(members);
        ask(&mut settled, Some(begin));
        settled.settle();
        ask(&mut settled, Some(end));
        for limit in 1.. {
            let mut world = settled.clone();
            world.planner = watched;
            let done = crash_after(&mut world, limit);
            world.settle();
            let minor = if end == NEW { 7 } else { 6 };
            let count = usize::try_from(members).unwrap();
            let told = format!("{members} members, to {end} after {limit} writes");
            assert_eq!(
                (minors(&world), taking(&world), world.summary()),
                (vec![minor; count], NOTHING, "Running"),
                "{told}"
            );
            assert!(object(&world, Kind::PersistentVolumeClaim, CLAIM).is_some(), "{told}");
            if done {
                break;
            }
        }
    }
}

#[test]
fn its_claim_is_no_members_and_goes_with_the_tenant() {
    let mut world = world(1);
    ask(&mut world, Some(NEW));
    world.settle();
    let claim = object(&world, Kind::PersistentVolumeClaim, CLAIM).unwrap();
    for members in [3, 1] {
        world.edit(|spec| spec.etcd.replicas = members);
        settle_with_quorum(&mut world);
        assert_eq!(
            (world.summary(), object(&world, Kind::PersistentVolumeClaim, CLAIM)),
            ("Running", Some(claim.clone()))
        );
        let identity =
            Reference::namespaced(Kind::ConfigMap, world.tenant().control_plane_namespace(), "etcd-identity");
        assert!(!world.objects[&identity].content.to_string().contains(&claim));
    }
    ask(&mut world, Some(OLD));
    world.reconcile();
    world.controllers();
    assert_eq!(taking(&world), (true, true, true));
    world.delete();
    world.settle();
    assert!(world.gone && world.objects.is_empty() && world.pods.is_empty());
}
