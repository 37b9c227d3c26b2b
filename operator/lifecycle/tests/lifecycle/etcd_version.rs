//! etcd goes to its next minor version and back, member by member, and no member ever gets an etcd that does not start
//! on its data.

use kaas_crds::status::OperationType;
use kaas_lifecycle::observed::Pod;
use serde_json::json;

use crate::membership::settle_with_quorum;
use crate::world::{World, release};

pub(crate) const NEW: &str = "3.7.3";
pub(crate) const OLD: &str = "3.6.16";

pub(crate) fn world(members: i32) -> World {
    world_of("v1.37.1", members)
}

fn world_of(version: &str, members: i32) -> World {
    let mut world = World::new(json!({
        "version": version,
        "controlPlane": {"replicas": 1, "endpoint": {"type": "NodePort"}},
        "etcd": {"replicas": members, "version": OLD, "storage": {"persistent": {"size": "1Gi"}}},
    }));
    for (version, etcd) in [("v1.36.3", OLD), ("v1.35.4", "3.5.20")] {
        let mut older = release(version);
        older.etcd.version = etcd.into();
        older.etcd.image = format!("registry.k8s.io/etcd:{etcd}-0");
        world.catalogue.insert(version.into(), older);
    }
    world.settle();
    world
}

pub(crate) fn ask(world: &mut World, version: Option<&str>) {
    world.edit(|spec| spec.etcd.version = version.map(str::to_owned));
}

pub(crate) fn minors(world: &World) -> Vec<u32> {
    let members = world.pods.iter().filter(|pod| pod.component == "etcd");
    members.map(|pod: &Pod| world.minors[&pod.template_hash]).collect()
}

fn troubles(world: &World) -> usize {
    world.pods.iter().filter(|pod| pod.component == "etcd" && pod.trouble.is_some()).count()
}

#[test]
fn there_and_back_again() {
    for members in [1, 3] {
        let mut world = world(members);
        let cluster = world.etcd_id;
        for (version, minor) in [(NEW, 7), (OLD, 6), (NEW, 7)] {
            ask(&mut world, Some(version));
            settle_with_quorum(&mut world);
            let count = usize::try_from(members).unwrap();
            assert_eq!((minors(&world), world.format), (vec![minor; count], minor), "{members} members");
            assert_eq!((world.etcd_id, world.lowered, world.summary()), (cluster, None, "Running"));
            let last = &world.cluster.status.as_ref().unwrap().history[0];
            assert_eq!(last.kind, OperationType::UpgradeEtcd, "{members} members, to {version}");
        }
    }
}

#[test]
fn a_change_of_mind_ends_where_it_says() {
    for members in [1, 3] {
        for (begin, end, minor) in [(NEW, OLD, 6), (OLD, NEW, 7)] {
            for steps in [1, 2, 4, 6, 9, 12] {
                let mut world = world(members);
                if begin == OLD {
                    ask(&mut world, Some(NEW));
                    world.settle();
                }
                ask(&mut world, Some(begin));
                for _ in 0..steps {
                    world.reconcile();
                    world.controllers();
                }
                ask(&mut world, Some(end));
                settle_with_quorum(&mut world);
                let told = format!("{members} members, to {end} after {steps} steps");
                assert_eq!(
                    (troubles(&world), world.lowered, world.summary()),
                    (0, None, "Running"),
                    "{told}"
                );
                assert!(minors(&world).iter().all(|is| *is == minor), "{told}: {:?}", minors(&world));
            }
        }
    }
}

#[test]
fn what_runs_keeps_its_minor_version() {
    let mut world = world(1);
    ask(&mut world, None);
    world.settle();
    assert_eq!((minors(&world), world.summary()), (vec![6], "Running"));
}

#[test]
fn what_cannot_be_had_is_a_problem_and_nothing_is_done() {
    for (version, reason) in [("3.7.9", "EtcdVersionUnknown"), ("3.5.20", "EtcdVersionUnsupported")] {
        let mut world = world(1);
        let before = world.pods.clone();
        ask(&mut world, Some(version));
        world.settle();
        assert_eq!(world.condition("Stalled"), ("True".into(), reason.into()));
        assert_eq!(world.condition("Ready").0, "True");
        assert_eq!(world.pods, before);
        ask(&mut world, Some(OLD));
        world.settle();
        assert_eq!(world.summary(), "Running");
    }
}

/// What was told, a line each time that it is told otherwise.
pub(crate) fn told(world: &mut World, seconds: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for _ in 0..seconds {
        world.reconcile();
        world.controllers();
        world.now += jiff::SignedDuration::from_secs(1);
        if lines.last().is_none_or(|last| last != world.summary()) {
            lines.push(world.summary().to_owned());
        }
    }
    lines
}

#[test]
fn the_way_back_of_a_lone_member_is_told() {
    let mut world = world(1);
    ask(&mut world, Some(NEW));
    world.settle();
    ask(&mut world, Some(OLD));
    insta::assert_snapshot!(told(&mut world, 60).join("\n"), @"
    etcd goes to 3.6.16: a snapshot of the data is saved by etcd 3.7 first, and seen to start
    etcd goes to 3.6.16: 0 of 1 members run 3.6.16: etcd 0 of 1 ready
    etcd goes to 3.6.16: 0 of 2 members run 3.6.16; etcd-0 catches up and is promoted
    etcd goes to 3.6.16: 1 of 2 members run 3.6.16; the leadership moves to one that stays when API servers dial no other; etcd-1 is removed next
    etcd goes to 3.6.16: etcd 0 of 1 ready
    Running
    ");
}

#[test]
fn it_begins_in_a_window_and_goes_on_when_that_closes() {
    for (begin, end, minor) in [(OLD, NEW, 7), (NEW, OLD, 6)] {
        let mut world = world(3);
        ask(&mut world, Some(begin));
        world.settle();
        world.now = "2026-06-01T01:00:00Z".parse().unwrap();
        world.edit(|spec| {
            spec.maintenance = serde_json::from_value(json!({
                "windows": [{"days": ["Mon"], "start": "02:00", "duration": "1h", "timeZone": "UTC"}],
            }))
            .unwrap();
            spec.etcd.version = Some(end.to_owned());
        });
        let pods = world.pods.clone();
        told(&mut world, 30);
        assert_eq!(world.summary(), format!("etcd goes to {end}: waiting for window until Mon 02:00 UTC"));
        let operation = world.cluster.status.as_ref().unwrap().operation.clone().unwrap();
        assert_eq!(operation.kind, OperationType::UpgradeEtcd);
        assert_eq!(operation.waiting.unwrap().reason, "WaitingForWindow");
        assert_eq!((&world.pods, world.lowered), (&pods, None));
        world.now = "2026-06-01T02:59:56Z".parse().unwrap();
        settle_with_quorum(&mut world);
        assert_eq!((minors(&world), world.summary()), (vec![minor; 3], "Running"), "{end}");
    }
}

#[test]
fn kubernetes_goes_first_and_etcd_waits_for_it() {
    let mut world = world_of("v1.36.3", 3);
    world.edit(|spec| {
        spec.version = "v1.37.1".into();
        spec.etcd.version = Some(NEW.to_owned());
    });
    let mut lines = told(&mut world, 60);
    assert_eq!(minors(&world), [6; 3]);
    world.now += jiff::SignedDuration::from_mins(10);
    lines.extend(told(&mut world, 200));
    assert_eq!((minors(&world), world.summary()), (vec![7; 3], "Running"));
    let first = &lines[0];
    assert!(first.starts_with("Upgrading") && first.ends_with("; etcd 3.7.3 waits for that"), "{first}");
    let began = lines.iter().position(|line| line.starts_with("etcd")).unwrap();
    assert!(
        lines[began..].iter().all(|line| !line.contains("Upgrading") && !line.contains("Kubernetes")),
        "{lines:?}"
    );
    let history = &world.cluster.status.as_ref().unwrap().history;
    let kinds: Vec<OperationType> = history.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds[..2], [OperationType::UpgradeEtcd, OperationType::Upgrade]);
}

#[test]
fn etcd_that_is_on_its_way_is_not_interrupted() {
    let mut world = world_of("v1.36.3", 3);
    ask(&mut world, Some(NEW));
    told(&mut world, 3);
    world.edit(|spec| spec.version = "v1.37.1".into());
    let lines = told(&mut world, 60);
    assert_eq!(minors(&world), [7; 3]);
    let first = &lines[0];
    assert!(first.starts_with("etcd") && first.ends_with("; Kubernetes v1.37.1 waits for that"), "{first}");
    let began = lines.iter().position(|line| line.starts_with("Upgrading")).unwrap();
    assert!(lines[began..].iter().all(|line| line.starts_with("Upgrading")), "{lines:?}");
    let history = &world.cluster.status.as_ref().unwrap().history;
    assert_eq!(
        (history[0].kind, history[0].result.as_str()),
        (
            OperationType::UpgradeEtcd,
            "Succeeded; the data of before is in PersistentVolumeClaim data-etcd-snapshot-0"
        )
    );
}
