//! etcd goes to its next minor version and back, member by member, and no member ever gets an etcd that does not start
//! on its data.

use kaas_crds::status::OperationType;
use kaas_lifecycle::observed::Pod;
use serde_json::json;

use crate::membership::settle_with_quorum;
use crate::world::{World, release};

const NEW: &str = "3.7.3";
const OLD: &str = "3.6.16";

fn world(members: i32) -> World {
    let mut world = World::new(json!({
        "version": "v1.37.1",
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

fn ask(world: &mut World, version: Option<&str>) {
    world.edit(|spec| spec.etcd.version = version.map(str::to_owned));
}

fn minors(world: &World) -> Vec<u32> {
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
