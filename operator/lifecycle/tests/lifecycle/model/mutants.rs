//! Planted mistakes, each of which the exploration must find by itself, with the linter looking away.

use kaas_crds::name::component;
use kaas_lifecycle::action::{Action, EtcdOrder, Precondition};
use kaas_lifecycle::etcd;
use kaas_lifecycle::object::{Kind, Object, Reference};
use kaas_lifecycle::observed::Observed;
use kaas_lifecycle::plan::{Plan, plan};

use super::scenarios::{resized, rolling, settled};
use super::steps::{May, Tiny};
use super::{World, explore};

/// What an exploration finds of a planner.
fn found(mut begin: World, planner: fn(&Observed) -> Plan, may: May) -> String {
    begin.planner = planner;
    explore(Tiny { unlinted: true, ..Tiny::new(begin, may) }).expect_err("it found nothing")
}

#[test]
fn members_that_go_at_once_are_found() {
    fn hasty(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        let goes = |action: &Action| matches!(action, Action::Delete { reference, .. } if reference.kind == Kind::Pod);
        if plan.waves.iter().flatten().any(goes) {
            let home = observed.tenant.control_plane_namespace();
            let pods = etcd::outdated(observed).into_iter().map(|pod| Action::Delete {
                reference: Reference::namespaced(Kind::Pod, &home, &pod.name),
                uid: pod.uid.clone(),
                grace: None,
            });
            plan.waves = vec![pods.collect()];
        }
        plan
    }
    let found = found(rolling(), hasty, May::default());
    assert!(found.contains("the operator took the quorum away"), "{found}");
}

#[test]
fn volumes_of_the_wrong_members_are_found() {
    /// Takes the volumes of those that answer, instead of the one that does not.
    fn mistaken(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        let Some(etcd) = observed.etcd.as_ref().filter(|etcd| etcd.leader != 0) else { return plan };
        if etcd.members.iter().all(|member| member.healthy) {
            return plan;
        }
        let home = observed.tenant.control_plane_namespace();
        let claims = etcd.members.iter().filter(|member| member.healthy).filter_map(|member| {
            let claim = format!("data-{}", member.name);
            let reference = Reference::namespaced(Kind::PersistentVolumeClaim, &home, claim);
            let uid = observed.objects.get(&reference).filter(|live| !live.terminating)?.uid.clone();
            Some(vec![Action::Delete { reference, uid, grace: None }])
        });
        plan.waves = claims.take(1).collect();
        plan
    }
    let found = found(settled(3), mistaken, May { lose: true, ..May::default() });
    assert!(found.contains("no quorum has its data"), "{found}");
}

#[test]
fn a_forgotten_identity_is_found() {
    fn tidy(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        let identity = observed.objects.iter().find(|(key, _)| key.name == etcd::IDENTITY);
        if let Some((reference, live)) =
            identity.filter(|_| plan.is_empty() && observed.pods_of(component::ETCD).count() > 2)
        {
            let delete = Action::Delete { reference: reference.clone(), uid: live.uid.clone(), grace: None };
            plan.waves = vec![vec![delete]];
        }
        plan
    }
    let found = found(resized(1, 3), tidy, May::default());
    assert!(found.contains("whose data it is was forgotten"), "{found}");
}

#[test]
fn a_learner_that_never_votes_is_found() {
    fn timid(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        let promotes = |action: &Action| matches!(action, Action::Etcd(EtcdOrder::Promote { .. }));
        plan.waves.iter_mut().for_each(|wave| wave.retain(|action| !promotes(action)));
        plan
    }
    let found = found(resized(1, 3), timid, May::default());
    assert!(found.contains("etcd-1 catches up and is promoted"), "{found}");
}

#[test]
fn a_planner_that_never_rests_is_found() {
    /// Applies a Service again that is as it should be.
    fn restless(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        if let Some(live) = observed.live(Kind::Service, component::ETCD).filter(|_| plan.is_empty()) {
            let home = observed.tenant.control_plane_namespace();
            let reference = Reference::namespaced(Kind::Service, home, component::ETCD);
            let object = Object { reference, content: live.content.clone() };
            let precondition = Precondition::Version(live.resource_version.clone());
            plan.waves = vec![vec![Action::Apply { object, precondition }]];
        }
        plan
    }
    let found = found(settled(1), restless, May::default());
    assert!(found.contains("it goes in a circle"), "{found}");
}

#[test]
fn a_finalizer_that_goes_too_early_is_found() {
    /// Counts on its namespace being gone by the time that the plan comes to the finalizer.
    fn trusting(observed: &Observed) -> Plan {
        let mut plan = plan(observed);
        let goes = |action: &Action| matches!(action, Action::Delete { reference, .. } if reference.kind == Kind::Namespace);
        if plan.waves.iter().flatten().any(goes) {
            let resource_version = observed.cluster.metadata.resource_version.clone().unwrap_or_default();
            plan.waves.push(vec![Action::RemoveFinalizer { resource_version }]);
        }
        plan
    }
    let found = found(settled(1), trusting, May { delete: true, ..May::default() });
    assert!(found.contains("cannot be taken back") || found.contains("the finalizer goes before"), "{found}");
}
