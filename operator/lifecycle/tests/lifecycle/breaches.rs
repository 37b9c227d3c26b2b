//! Each invariant of the linter, broken by a plan that does nothing else wrong.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::Reason;
use kaas_lifecycle::action::{Action, EtcdOrder, Material, Precondition};
use kaas_lifecycle::lint::{self, Invariant};
use kaas_lifecycle::object::{Kind, Object, Reference};
use kaas_lifecycle::observed::{Member, Namespace, Observed, Secret};
use kaas_lifecycle::plan::{Plan, plan};
use serde_json::json;

use crate::world::World;

fn of(actions: Vec<Action>) -> Plan {
    Plan { waves: vec![actions], ..Plan::default() }
}

/// The invariants that these actions break, each once.
fn broken(observed: &Observed, actions: Vec<Action>) -> Vec<Invariant> {
    let mut found: Vec<Invariant> =
        lint::check(observed, &of(actions)).iter().map(|breach| breach.invariant).collect();
    found.sort();
    found.dedup();
    found
}

fn settled(members: i32) -> Observed {
    settled_on(members, json!({"persistent": {"size": "1Gi"}}))
}

fn settled_on(members: i32, storage: serde_json::Value) -> Observed {
    let mut world = World::new(json!({
        "version": "v1.37.1",
        "controlPlane": {"replicas": 2, "endpoint": {"type": "ClusterIP"}},
        "etcd": {"replicas": members, "storage": storage},
    }));
    world.settle();
    world.observe()
}

fn deleting(mut observed: Observed) -> Observed {
    observed.cluster.metadata.deletion_timestamp = Some(Time(observed.now));
    observed
}

fn home(observed: &Observed) -> String {
    observed.tenant.control_plane_namespace()
}

fn pod(observed: &Observed, name: &str) -> Action {
    let pod = observed.pods.iter().find(|pod| pod.name.starts_with(name)).unwrap();
    let reference = Reference::namespaced(Kind::Pod, home(observed), &pod.name);
    Action::Delete { reference, uid: pod.uid.clone(), grace: None }
}

/// The object as it is, to be applied once more.
fn again(observed: &Observed, kind: Kind, name: &str) -> (Object, Precondition) {
    let reference = Reference::namespaced(kind, home(observed), name);
    let live = &observed.objects[&reference];
    let precondition = Precondition::Version(live.resource_version.clone());
    (Object { reference, content: live.content.clone() }, precondition)
}

fn delete(observed: &Observed, kind: Kind, name: &str) -> Action {
    let reference = Reference::namespaced(kind, home(observed), name);
    let uid = observed.objects.get(&reference).map_or_else(|| "gone".into(), |live| live.uid.clone());
    Action::Delete { reference, uid, grace: None }
}

fn member(observed: &Observed, name: &str) -> u64 {
    observed.etcd.as_ref().unwrap().members.iter().find(|member| member.name == name).unwrap().id
}

fn unwell(observed: &mut Observed, name: &str) {
    let members = &mut observed.etcd.as_mut().unwrap().members;
    members.iter_mut().find(|member| member.name == name).unwrap().healthy = false;
    let pod = observed.pods.iter_mut().find(|pod| pod.name == name).unwrap();
    pod.ready = false;
}

/// What a creation issues, as the planner makes it.
fn first_plan() -> (Observed, Plan) {
    let observed = World::demo().observe();
    let plan = plan(&observed);
    (observed, plan)
}

fn issued(plan: &Plan, authorities: bool) -> Action {
    let wanted = |action: &&Action| matches!(action, Action::Issue(issue) if matches!(issue.material, Material::Authorities) == authorities);
    plan.waves.iter().flatten().find(wanted).unwrap().clone()
}

#[test]
fn a_plan_that_breaks_nothing_is_not_refused() {
    let (observed, plan) = first_plan();
    assert_eq!(lint::check(&observed, &plan), []);
    assert_eq!(lint::refusal(&[]), None);
}

#[test]
fn a_refusal_names_the_invariant_the_action_and_the_fact() {
    let observed = settled(3);
    let breaches = lint::check(&observed, &of(vec![pod(&observed, "etcd-0"), pod(&observed, "etcd-1")]));
    let failure = lint::refusal(&breaches).unwrap();
    assert_eq!((failure.reason, failure.transient), (Reason::PlanRefused, false));
    insta::assert_snapshot!(failure.message, @"nothing was done, because the plan would break an invariant: Budget: delete Pod kaas-0b2f7a3e-1111-4222-8333-444455556666/etcd-1: another pod of the component is deleted too (and 1 more)");
    let status = kaas_lifecycle::report::derive(&observed, &Plan::default(), Some(&failure));
    assert!(status.summary.starts_with("Running, but stalled: nothing was done"), "{}", status.summary);
}

#[test]
fn members_go_one_at_a_time_and_only_while_the_others_are_well() {
    let observed = settled(3);
    assert_eq!(broken(&observed, vec![pod(&observed, "etcd-0")]), []);
    assert_eq!(
        broken(&observed, vec![pod(&observed, "etcd-0"), pod(&observed, "etcd-1")]),
        [Invariant::Quorum, Invariant::Budget]
    );

    let mut one_away = observed.clone();
    unwell(&mut one_away, "etcd-2");
    assert_eq!(broken(&one_away, vec![pod(&one_away, "etcd-0")]), [Invariant::Quorum, Invariant::Budget]);
    assert_eq!(
        broken(&one_away, vec![pod(&one_away, "etcd-2")]),
        [],
        "the one that is away takes nothing away"
    );

    let mut five = settled(5);
    unwell(&mut five, "etcd-2");
    assert_eq!(
        broken(&five, vec![pod(&five, "etcd-0")]),
        [Invariant::Quorum, Invariant::Budget],
        "also with a quorum to spare"
    );

    let mut silent = observed;
    silent.etcd = None;
    assert_eq!(
        broken(&silent, vec![pod(&silent, "etcd-0")]),
        [Invariant::Quorum],
        "nothing is done on a guess"
    );
}

#[test]
fn a_lone_member_is_not_restarted_and_leaves_to_one_that_api_servers_know() {
    for storage in [json!({"persistent": {"size": "1Gi"}}), json!({"ephemeral": {}})] {
        let observed = settled_on(1, storage);
        assert_eq!(broken(&observed, vec![pod(&observed, "etcd-0")]), [Invariant::Quorum]);
    }
    let mut two = settled(1);
    let etcd = two.etcd.as_mut().unwrap();
    let (first, second) = (etcd.members[0].id, 9);
    etcd.members.push(Member { id: second, name: "etcd-1".into(), ..etcd.members[0].clone() });
    let remove = |id| vec![Action::Etcd(EtcdOrder::Remove { id })];
    assert_eq!(broken(&two, remove(second)), []);
    assert_eq!(broken(&two, remove(first)), [Invariant::Quorum], "API servers dial it alone");
    let (mut object, precondition) = again(&two, Kind::StatefulSet, "etcd");
    object.content["spec"]["ordinals"] = json!({"start": 1});
    let places = vec![Action::Apply { object, precondition }];
    assert_eq!(broken(&two, places), [Invariant::Quorum], "the pod of the first would go");
}

#[test]
fn members_get_no_etcd_that_does_not_start_on_their_data() {
    let observed = settled(3);
    let image = |observed: &Observed, version: &str| {
        let (mut object, precondition) = again(observed, Kind::StatefulSet, "etcd");
        let container = &mut object.content["spec"]["template"]["spec"]["containers"][0];
        container["image"] = format!("registry.k8s.io/etcd:{version}-0").into();
        vec![Action::Apply { object, precondition }]
    };
    for version in ["3.7.9", "3.8.0"] {
        assert_eq!(broken(&observed, image(&observed, version)), [], "{version}");
    }
    for version in ["3.6.16", "3.9.0", "3.5.20"] {
        assert_eq!(broken(&observed, image(&observed, version)), [Invariant::EtcdVersion], "{version}");
    }
    let mut lowered = observed.clone();
    for member in &mut lowered.etcd.as_mut().unwrap().members {
        member.storage_version = "3.6.0".into();
    }
    assert_eq!(broken(&lowered, image(&lowered, "3.6.16")), []);
    lowered.etcd.as_mut().unwrap().members[2].storage_version.clear();
    assert_eq!(broken(&lowered, image(&lowered, "3.6.16")), [Invariant::EtcdVersion], "one did not say");
    lowered.etcd.as_mut().unwrap().members[0].version = "3.6.16".into();
    assert_eq!(broken(&lowered, image(&lowered, "3.6.16")), [], "it is as old as the oldest");
    lowered.etcd = None;
    assert_eq!(broken(&lowered, image(&lowered, "3.6.16")), [Invariant::EtcdVersion], "nobody said");

    let mut raised = observed.clone();
    assert_eq!(broken(&raised, vec![pod(&raised, "etcd-1")]), []);
    for member in &mut raised.etcd.as_mut().unwrap().members {
        member.storage_version = "3.8.0".into();
    }
    assert_eq!(
        broken(&raised, vec![pod(&raised, "etcd-1")]),
        [Invariant::EtcdVersion],
        "it would not come back"
    );
}

#[test]
fn the_membership_keeps_a_quorum_at_every_step() {
    let order = |order| vec![Action::Etcd(order)];
    let observed = settled(3);
    let id = |name| member(&observed, name);
    assert_eq!(broken(&observed, order(EtcdOrder::Remove { id: id("etcd-2") })), []);
    assert_eq!(broken(&observed, order(EtcdOrder::Remove { id: 77 })), [Invariant::Quorum], "no member");
    let mut turning = observed.clone();
    turning
        .pods
        .iter_mut()
        .filter(|pod| pod.component == "kube-apiserver")
        .for_each(|pod| pod.terminating = true);
    let remove = order(EtcdOrder::Remove { id: id("etcd-2") });
    assert_eq!(broken(&turning, remove), [Invariant::Quorum], "an API server that ends may ask it still");
    assert_eq!(broken(&observed, order(EtcdOrder::MoveLeader { to: 77 })), [Invariant::Quorum], "no member");
    assert_eq!(
        broken(&observed, order(EtcdOrder::Promote { id: id("etcd-2") })),
        [Invariant::Quorum],
        "no learner"
    );

    let mut one_away = observed.clone();
    unwell(&mut one_away, "etcd-2");
    assert_eq!(broken(&one_away, order(EtcdOrder::Remove { id: id("etcd-2") })), []);
    assert_eq!(broken(&one_away, order(EtcdOrder::Remove { id: id("etcd-1") })), [Invariant::Quorum]);
    assert_eq!(broken(&one_away, order(EtcdOrder::MoveLeader { to: id("etcd-2") })), [Invariant::Quorum]);

    let add = || Action::Etcd(EtcdOrder::AddLearner { peer_url: "https://etcd-3.etcd.n.svc:2380".into() });
    assert_eq!(broken(&observed, vec![add()]), []);
    assert_eq!(broken(&observed, vec![add(), add()]), [Invariant::Quorum], "one learner at a time");

    let mut learning = settled(1);
    let mut learner = learning.etcd.as_ref().unwrap().members[0].clone();
    (learner.id, learner.name, learner.learner, learner.healthy) = (9, "etcd-1".into(), true, false);
    learning.etcd.as_mut().unwrap().members.push(learner);
    let promote = || order(EtcdOrder::Promote { id: 9 });
    assert_eq!(broken(&learning, promote()), [Invariant::Quorum], "1 of 2 is no quorum");
    learning.etcd.as_mut().unwrap().members[1].healthy = true;
    assert_eq!(broken(&learning, promote()), []);
}

#[test]
fn fewer_pods_or_volumes_than_members_are_refused() {
    let observed = settled(3);
    let shrink = |replicas: i64| {
        let (mut object, precondition) = again(&observed, Kind::StatefulSet, "etcd");
        object.content["spec"]["replicas"] = replicas.into();
        vec![Action::Apply { object, precondition }]
    };
    assert_eq!(broken(&observed, shrink(3)), []);
    assert_eq!(broken(&observed, shrink(4)), []);
    assert_eq!(broken(&observed, shrink(2)), [Invariant::Quorum]);
    let volume = delete(&observed, Kind::PersistentVolumeClaim, "data-etcd-2");
    assert!(broken(&observed, vec![volume]).contains(&Invariant::Quorum));
}

#[test]
fn workloads_go_pod_by_pod() {
    let observed = settled(1);
    assert_eq!(broken(&observed, vec![pod(&observed, "kube-apiserver")]), []);
    let both: Vec<Action> =
        observed.pods_of("kube-apiserver").map(|found| pod(&observed, &found.name)).collect();
    assert_eq!(broken(&observed, both), [Invariant::Budget]);
    let whole = delete(&observed, Kind::Deployment, "kube-apiserver");
    assert_eq!(broken(&observed, vec![whole]), [Invariant::Budget]);
    let observed = deleting(observed);
    let all = observed.pods.iter().map(|found| pod(&observed, &found.name)).collect();
    assert_eq!(broken(&observed, all), [], "the deletion of the tenant takes them all");
}

#[test]
fn one_irreversible_action_a_plan() {
    let observed = settled(5);
    let remove = |name| Action::Etcd(EtcdOrder::Remove { id: member(&observed, name) });
    assert_eq!(broken(&observed, vec![remove("etcd-4"), remove("etcd-3")]), [Invariant::Irreversible]);
}

#[test]
fn only_what_is_the_tenants_is_touched() {
    let observed = settled(1);
    let (object, precondition) = again(&observed, Kind::Service, "kube-apiserver");
    let apply = |object: Object| vec![Action::Apply { object, precondition: precondition.clone() }];
    assert_eq!(broken(&observed, apply(object.clone())), []);

    let mut elsewhere = object.clone();
    elsewhere.reference.namespace = Some("kube-system".into());
    assert!(broken(&observed, apply(elsewhere)).contains(&Invariant::Ownership));
    let mut smuggled = object.clone();
    smuggled.content["metadata"]["namespace"] = "kube-system".into();
    assert_eq!(
        broken(&observed, apply(smuggled)),
        [Invariant::Ownership],
        "the document names another namespace"
    );
    let mut other = object;
    other.content["metadata"]["labels"]["kaas.dev/tenant-uid"] = "another".into();
    assert_eq!(broken(&observed, apply(other)), [Invariant::Ownership]);

    let secret = Reference::namespaced(Kind::Secret, "demo", "database-password");
    let delete = Action::Delete { reference: secret, uid: "x".into(), grace: None };
    assert!(broken(&deleting(observed.clone()), vec![delete]).contains(&Invariant::Ownership));

    let mut foreign = deleting(observed);
    let kubeconfig = foreign.kubeconfig.as_mut().unwrap();
    (kubeconfig.owner_uid, kubeconfig.uid) = (None, "theirs".into());
    let reference = Reference::namespaced(Kind::Secret, "demo", "blue-kubeconfig");
    let delete = Action::Delete { reference, uid: "theirs".into(), grace: None };
    assert_eq!(broken(&foreign, vec![delete]), [Invariant::Ownership]);
}

#[test]
fn nothing_is_put_where_it_would_go_away() {
    let mut observed = settled(1);
    let (object, precondition) = again(&observed, Kind::Service, "kube-apiserver");
    let apply = vec![Action::Apply { object, precondition }];
    observed.namespaces[0].terminating = true;
    assert_eq!(broken(&observed, apply.clone()), [Invariant::Home]);
    observed.namespaces.clear();
    observed.cluster.status = None;
    assert_eq!(broken(&observed, apply), [Invariant::Home]);
}

#[test]
fn authorities_are_made_once() {
    let (mut observed, plan) = first_plan();
    let namespace =
        plan.waves.iter().flatten().find(|action| matches!(action, Action::Apply { .. })).unwrap();
    let actions = vec![namespace.clone(), issued(&plan, true)];
    assert_eq!(broken(&observed, actions.clone()), []);
    let settled = settled(1);

    observed.secrets.insert("etcd".into(), Secret::default());
    assert_eq!(broken(&observed, actions.clone()), [Invariant::Authority]);
    observed.secrets.clear();
    observed.kubeconfig = settled.kubeconfig.clone();
    assert_eq!(broken(&observed, actions.clone()), [Invariant::Authority]);
    observed.kubeconfig = None;
    observed.pods = settled.pods.clone();
    assert_eq!(broken(&observed, actions), [Invariant::Authority]);

    let Action::Issue(mut leaves) = issued(&plan, false) else { unreachable!() };
    leaves.reference.name = "authority".into();
    leaves.frame = Object::new(leaves.reference.clone(), leaves.frame.content);
    leaves.precondition = Precondition::Version(settled.secrets["authority"].resource_version.clone());
    assert_eq!(
        broken(&settled, vec![Action::Issue(leaves)]),
        [Invariant::Authority],
        "leaves in their place"
    );
}

#[test]
fn a_namespace_comes_once_and_goes_with_its_cluster() {
    let observed = settled(1);
    let own = &observed.namespaces[0];
    let reference = Reference::cluster(Kind::Namespace, &own.name);
    let delete =
        |uid: &str| vec![Action::Delete { reference: reference.clone(), uid: uid.into(), grace: None }];
    assert_eq!(broken(&observed, delete(&own.uid)), [Invariant::Namespace]);
    assert_eq!(broken(&deleting(observed.clone()), delete(&own.uid)), []);
    assert_eq!(broken(&deleting(observed.clone()), delete("")), [Invariant::Precondition]);

    let (mut fresh, plan) = first_plan();
    let make = plan.waves.iter().flatten().find(|action| matches!(action, Action::Apply { .. })).unwrap();
    assert_eq!(broken(&fresh, vec![make.clone(), make.clone()]), [Invariant::Namespace]);
    assert_eq!(broken(&observed, vec![make.clone()]), [Invariant::Namespace]);
    fresh.namespaces.push(Namespace {
        name: "kaas-an-earlier-one".into(),
        tenant_uid: "an-earlier-one".into(),
        ..own.clone()
    });
    assert_eq!(
        broken(&fresh, vec![make.clone()]),
        [Invariant::Namespace],
        "no empty control plane beside it"
    );
}

#[test]
fn the_finalizer_goes_last() {
    let observed = settled(1);
    let resource_version = observed.cluster.metadata.resource_version.clone().unwrap();
    let remove = vec![Action::RemoveFinalizer { resource_version }];
    assert_eq!(broken(&deleting(observed.clone()), remove.clone()), [Invariant::Finalizer]);
    let mut gone = deleting(observed.clone());
    gone.namespaces.clear();
    assert_eq!(broken(&gone, remove), []);
    let unguarded = vec![Action::RemoveFinalizer { resource_version: String::new() }];
    assert_eq!(broken(&gone, unguarded), [Invariant::Precondition]);
}

#[test]
fn every_write_is_guarded_by_what_was_seen() {
    let observed = settled(1);
    let (object, _) = again(&observed, Kind::Service, "kube-apiserver");
    for precondition in
        [Precondition::Absent, Precondition::Version(String::new()), Precondition::Version("0".into())]
    {
        let apply = vec![Action::Apply { object: object.clone(), precondition: precondition.clone() }];
        assert_eq!(broken(&observed, apply), [Invariant::Precondition], "{precondition:?}");
    }
    for uid in ["", "another"] {
        let reference = Reference::namespaced(Kind::Service, home(&observed), "kube-apiserver");
        let delete = vec![Action::Delete { reference, uid: uid.into(), grace: None }];
        assert_eq!(broken(&observed, delete), [Invariant::Precondition], "{uid:?}");
    }
}

#[test]
fn other_data_is_not_touched_and_its_owner_not_forgotten() {
    let observed = settled(1);
    let memory = observed
        .objects
        .iter()
        .find(|(_, live)| live.get("/data/cluster-id").is_some())
        .map(|(reference, _)| reference.name.clone())
        .unwrap();
    assert_eq!(broken(&observed, vec![delete(&observed, Kind::ConfigMap, &memory)]), [Invariant::DataLost]);
    let (mut object, precondition) = again(&observed, Kind::ConfigMap, &memory);
    object.content["data"]["cluster-id"] = "another".into();
    assert_eq!(broken(&observed, vec![Action::Apply { object, precondition }]), [Invariant::DataLost]);

    let mut lost = observed.clone();
    lost.etcd.as_mut().unwrap().cluster_id = "another".into();
    assert_eq!(broken(&lost, vec![pod(&lost, "kube-apiserver")]), [Invariant::DataLost]);
}

#[test]
fn a_cluster_that_goes_or_is_paused_gets_nothing() {
    let observed = settled(1);
    let (object, precondition) = again(&observed, Kind::Service, "kube-apiserver");
    let apply = vec![Action::Apply { object, precondition }];
    assert_eq!(broken(&deleting(observed.clone()), apply.clone()), [Invariant::Deletion]);
    let mut paused = observed;
    paused.cluster.spec.paused = true;
    paused.now = Timestamp::MAX;
    assert_eq!(broken(&paused, apply), [Invariant::Paused]);
}

#[test]
fn inside_a_tenant_only_what_is_ours_is_written_and_only_what_is_off_goes() {
    let mut world = World::demo();
    world.gain_images();
    world.workers.desired = 1;
    world.settle();
    let observed = world.observe();
    let addons = observed.addons.as_ref().unwrap();
    let inside = |actions: Vec<Action>, observed: &Observed| -> Vec<Invariant> {
        let plan = Plan { addons: vec![actions], ..Plan::default() };
        lint::check(observed, &plan).iter().map(|breach| breach.invariant).collect()
    };
    let apply = |reference: &Reference, version: &str| Action::ApplyInside {
        object: Object::new(reference.clone(), json!({})),
        precondition: Precondition::Version(version.into()),
    };
    let delete = |reference: &Reference, uid: &str| Action::DeleteInside {
        reference: reference.clone(),
        uid: uid.into(),
    };
    let proxy = Reference::namespaced(Kind::DaemonSet, "kube-system", "kube-proxy");
    let role = Reference::cluster(Kind::ClusterRole, "kaas:flannel");
    let theirs = Reference::namespaced(Kind::DaemonSet, "kube-system", "theirs");
    let version = addons.workloads[&proxy].resource_version.as_str();
    assert_eq!(inside(vec![apply(&proxy, version)], &observed), []);
    assert_eq!(inside(vec![apply(&proxy, "0")], &observed), [Invariant::Precondition]);
    assert_eq!(inside(vec![apply(&theirs, "1")], &observed), [Invariant::Ownership]);
    assert_eq!(inside(vec![delete(&proxy, "in")], &observed), [Invariant::Ownership], "it is switched on");

    let mut off = observed.clone();
    off.cluster.spec.addons.kube_proxy.enabled = false;
    assert_eq!(inside(vec![delete(&proxy, "in")], &off), []);
    assert_eq!(inside(vec![delete(&proxy, "other")], &off), [Invariant::Precondition]);
    let live = off.addons.as_mut().unwrap().workloads.get_mut(&proxy).unwrap();
    live.content["metadata"]["labels"] = json!({});
    assert_eq!(inside(vec![delete(&proxy, "in")], &off), [Invariant::Ownership], "it is the tenant's own");

    // What was not looked at is not written.
    let mut unseen = observed.clone();
    unseen.addons.as_mut().unwrap().others = None;
    let version = addons.others.as_ref().unwrap()[&role].resource_version.as_str();
    assert_eq!(inside(vec![apply(&role, version)], &observed), []);
    assert_eq!(inside(vec![apply(&role, version)], &unseen), [Invariant::Precondition]);
    assert_eq!(plan(&unseen).addons, plan(&observed).addons);
}
