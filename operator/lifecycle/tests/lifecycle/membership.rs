//! etcd grows and shrinks, loses members and gets them back, and never gives its quorum away.

use kaas_crds::tenant_cluster::Storage;
use kaas_lifecycle::observed::Member;
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
fn settle_with_quorum(world: &mut World) {
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
        assert!(up > voters.len() / 2 || voters.len() == 1, "{up} of {} voters are up", voters.len());
    }
    world.settle();
}

#[test]
fn one_three_five_three_one() {
    for mut world in [persistent(1), ephemeral(1)] {
        world.settle();
        for members in [3, 5, 3, 1] {
            world.edit(|spec| spec.etcd.replicas = members);
            settle_with_quorum(&mut world);
            assert_eq!(world.summary(), "Running", "{members}");
            let count = usize::try_from(members).unwrap();
            assert_eq!(world.members.len(), count);
            assert_eq!(world.pods.iter().filter(|pod| pod.component == "etcd").count(), count);
            let leads = world.members.iter().find(|member| member.id == world.leader).unwrap();
            assert_eq!(
                leads.name, "etcd-0",
                "the leader of {members} is not the one that stays when they are fewer"
            );
            let status = world.cluster.status.as_ref().unwrap();
            assert_eq!(
                status.history[0].kind,
                kaas_crds::status::OperationType::ScaleEtcd,
                "{:?}",
                status.history
            );
        }
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
        if !others_up || voters == 2 && !last.learner {
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
fn the_only_ephemeral_member_is_never_restarted() {
    let mut world = ephemeral(1);
    world.settle();
    world.platform.registry = "mirror.example".into();
    world.settle();
    let revision = world.cluster.status.as_ref().unwrap().pending.clone().unwrap().revision;
    let member = world.pods.iter().find(|pod| pod.component == "etcd").unwrap().uid.clone();
    world.edit(|spec| spec.accept_revision = Some(revision));
    world.settle();
    assert!(world.pods.iter().any(|pod| pod.uid == member));
    assert_eq!(world.summary(), "Running");
}

#[test]
fn the_leadership_moves_only_in_the_step_from_one() {
    let mut world = persistent(1);
    world.settle();
    world.edit(|spec| spec.etcd.replicas = 3);
    settle_with_quorum(&mut world);
    world.now += jiff::SignedDuration::from_mins(11);
    // An election that nobody planned: who leads then goes on.
    world.leader = world.members[1].id;
    world.settle();
    assert_eq!(world.leader, world.members[1].id);
}
