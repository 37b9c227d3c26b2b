//! etcd grows and shrinks, loses members and gets them back, and never gives its quorum away.

use std::collections::BTreeSet;

use kaas_crds::status::OperationType;
use kaas_crds::tenant_cluster::Storage;
use kaas_lifecycle::etcd::{self, Servers};
use kaas_lifecycle::object::Kind;
use kaas_lifecycle::observed::{Member, Trouble};
use serde_json::json;

use crate::world::World;

fn persistent(members: i32) -> World {
    World::new(json!({
        "version": "v1.37.1",
        "controlPlane": {"replicas": 1, "endpoint": {"type": "NodePort"}},
        "etcd": {"replicas": members, "storage": {"persistent": {"size": "1Gi"}}},
    }))
}

fn ephemeral(members: i32) -> World {
    let mut world = persistent(members);
    world.cluster.spec.etcd.storage = Storage { persistent: None, ephemeral: Some(Default::default()) };
    world
}

/// Settles, and asserts after each step that a quorum of voters is up.
pub(crate) fn settle_with_quorum(world: &mut World) {
    for _ in 0..150 {
        world.reconcile();
        world.controllers();
        world.now += jiff::SignedDuration::from_secs(1);
        let voters: Vec<_> = world.members.iter().filter(|member| !member.learner).collect();
        let up = voters
            .iter()
            .filter(|member| {
                world.pods.iter().any(|pod| pod.name == member.name && pod.ready && !pod.terminating)
            })
            .count();
        assert!(up > voters.len() / 2, "{up} of {} voters are up", voters.len());
        for server in world.pods.iter().filter(|pod| pod.component == "kube-apiserver" && pod.ready) {
            assert!(world.is_answered(server, &BTreeSet::new()), "{} has nobody to ask", server.name);
        }
    }
    world.settle();
}

#[test]
fn one_three_five_three_one() {
    for mut world in [persistent(1), ephemeral(1)] {
        world.settle();
        for (step, members) in [3, 5, 3, 1].into_iter().enumerate() {
            let led = world.leader;
            world.edit(|spec| spec.etcd.replicas = members);
            settle_with_quorum(&mut world);
            assert_eq!(world.summary(), "Running", "{members}");
            let count = usize::try_from(members).unwrap();
            assert_eq!(world.members.len(), count);
            assert_eq!(world.pods.iter().filter(|pod| pod.component == "etcd").count(), count);
            assert!(step == 0 || world.leader == led, "the leadership moved on the way to {members}");
            let status = world.cluster.status.as_ref().unwrap();
            assert_eq!(status.history[0].kind, OperationType::ScaleEtcd, "{:?}", status.history);
        }
    }
}

#[test]
fn api_servers_are_led_to_voters_alone_and_nowhere_while_nobody_is_heard() {
    let mut world = persistent(1);
    world.settle();
    for wanted in [3, 5, 3, 1] {
        world.edit(|spec| spec.etcd.replicas = wanted);
        for _ in 0..60 {
            world.reconcile();
            let mut observed = world.observe();
            let votes = |index: i32| {
                let name = format!("etcd-{index}");
                world.members.iter().any(|member| member.name == name && !member.learner)
            };
            let all = match etcd::dialled(&observed).unwrap() {
                Servers::Lone(index) => votes(index),
                Servers::Several(count) => (0..count).all(votes),
            };
            assert!(all, "{:?} of {:?}", etcd::dialled(&observed), world.members);
            observed.etcd = None;
            assert_eq!(Some(etcd::servers(&observed)), etcd::dialled(&observed), "on the way to {wanted}");
            world.controllers();
        }
        assert_eq!(world.members.len(), usize::try_from(wanted).unwrap());
    }
}

#[test]
fn a_change_of_mind_on_the_way_ends_where_it_says() {
    for steps in 1..12 {
        let mut world = persistent(1);
        world.settle();
        world.edit(|spec| spec.etcd.replicas = 3);
        for _ in 0..steps {
            world.reconcile();
            world.controllers();
        }
        world.edit(|spec| spec.etcd.replicas = 1);
        settle_with_quorum(&mut world);
        assert_eq!((world.members.len(), world.summary()), (1, "Running"), "after {steps} steps");
    }
}

#[test]
fn a_member_that_lost_its_data_is_replaced_as_a_learner() {
    for member in ["etcd-0", "etcd-1", "etcd-2"] {
        let mut world = ephemeral(3);
        world.settle();
        world.leader = 1 + (member.as_bytes()[5] - b'0' + 1) as u64 % 3;
        let before = world.members.iter().find(|other| other.name == member).unwrap().id;
        // Its node died: the pod comes back elsewhere with an empty disk.
        world.pods.retain(|pod| pod.name != member);
        world.settle();
        let after = world.members.iter().find(|other| other.name == member).unwrap().id;
        assert_ne!(before, after, "it is another member under the old name");
        assert_eq!((world.members.len(), world.summary()), (3, "Running"), "{member}");
    }
}

#[test]
fn a_member_that_loses_its_data_while_it_joins_begins_anew() {
    for steps in 1..40 {
        let mut world = ephemeral(1);
        world.settle();
        world.edit(|spec| spec.etcd.replicas = 3);
        for _ in 0..steps {
            world.reconcile();
            world.controllers();
        }
        // The node of the member that joined last dies, while all the others are up. Of two that vote none may die.
        let started = |member: &&Member| !member.name.is_empty() && member.name != "etcd-0";
        let Some(last) = world.members.iter().rfind(started) else { continue };
        let (name, voters) =
            (last.name.clone(), world.members.iter().filter(|member| !member.learner).count());
        let others_up = world.pods.iter().all(|pod| pod.ready || pod.name == name);
        if !others_up || voters <= 2 && !last.learner {
            continue;
        }
        world.pods.retain(|pod| pod.name != name);
        settle_with_quorum(&mut world);
        assert_eq!((world.members.len(), world.summary()), (3, "Running"), "{name} after {steps} steps");
    }
}

#[test]
fn a_member_that_is_merely_away_is_left_alone() {
    let mut world = persistent(3);
    world.settle();
    let writes = world.writes;
    world.pods.retain(|pod| pod.name != "etcd-1");
    world.settle();
    assert_eq!(world.summary(), "Running");
    assert_eq!(world.writes, writes, "it came back to its data by itself");
}

#[test]
fn the_only_member_without_its_data_is_data_lost() {
    let mut world = ephemeral(1);
    world.settle();
    let writes = world.writes;
    world.pods.retain(|pod| pod.component != "etcd");
    world.settle();
    assert_eq!(world.condition("EtcdHealthy"), ("False".into(), "DataLost".into()));
    assert_eq!(world.condition("Ready"), ("False".into(), "DataLost".into()));
    assert_eq!(world.writes, writes, "nothing is made anew unasked");
}

#[test]
fn two_of_three_without_their_data_are_data_lost() {
    let mut world = ephemeral(3);
    world.settle();
    world.pods.retain(|pod| pod.name == "etcd-2" || pod.component != "etcd");
    world.settle();
    assert_eq!(world.condition("Ready"), ("False".into(), "DataLost".into()));
    assert_eq!(world.members.len(), 3, "nobody was removed");
}

#[test]
fn a_lone_member_hands_over_to_a_successor_and_back() {
    for mut world in [persistent(1), ephemeral(1)] {
        world.settle();
        let cluster = world.etcd_id;
        for (registry, place) in [("one.example", "etcd-1"), ("two.example", "etcd-0"), ("", "etcd-1")] {
            world.platform.registry = registry.into();
            world.settle();
            let revision = world.cluster.status.as_ref().unwrap().pending.clone().unwrap().revision;
            let earlier = world.pods.iter().find(|pod| pod.component == "etcd").unwrap().uid.clone();
            world.edit(|spec| spec.accept_revision = Some(revision));
            settle_with_quorum(&mut world);
            assert_eq!((world.etcd_id, world.summary()), (cluster, "Running"), "{registry}");
            assert_eq!(world.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(), [place]);
            assert!(
                world.pods.iter().all(|pod| pod.uid != earlier),
                "{registry}: the old one is there still"
            );
            let claims = world.objects.keys().filter(|key| key.kind == Kind::PersistentVolumeClaim).count();
            let persistent = world.cluster.spec.etcd.storage.persistent.is_some();
            assert_eq!(claims, usize::from(persistent), "{registry}: its volume is there still");
            let kind = world.cluster.status.as_ref().unwrap().history[0].kind;
            assert_eq!(kind, OperationType::Roll);
        }
    }
}

#[test]
fn a_successor_that_cannot_start_harms_nobody_and_goes_when_it_is_not_wanted() {
    let mut world = persistent(1);
    world.settle();
    world.platform.registry = "wrong.example".into();
    world.settle();
    let wrong = world.cluster.status.as_ref().unwrap().pending.clone().unwrap().revision;
    world.edit(|spec| spec.accept_revision = Some(wrong));
    for _ in 0..20 {
        world.reconcile();
        world.controllers();
        for pod in world.pods.iter_mut().filter(|pod| pod.name == "etcd-1") {
            pod.ready = false;
            pod.trouble = Some(Trouble { reason: "ImagePullBackOff".into(), message: String::new() });
        }
    }
    assert_eq!(world.condition("Ready").0, "True", "{}", world.summary());
    assert_eq!(world.members.len(), 2);
    world.platform.registry = String::new();
    world.reconcile();
    let right = world.cluster.status.as_ref().unwrap().pending.clone().unwrap().revision;
    world.edit(|spec| spec.accept_revision = Some(right));
    settle_with_quorum(&mut world);
    assert_eq!((world.members.len(), world.summary()), (1, "Running"));
    assert_eq!(world.members[0].name, "etcd-0", "who runs what is wanted stays");
}
