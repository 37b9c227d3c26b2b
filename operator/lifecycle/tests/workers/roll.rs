//! What a roll waits for, and that it goes on when that is over.

use jiff::{SignedDuration, Timestamp};
use kaas_crds::Reason;
use kaas_crds::status::Owner;
use kaas_lifecycle::workers::action::tell;
use kaas_lifecycle::workers::observed::Unready;
use kaas_lifecycle::workers::{pool, report};
use serde_json::json;

use crate::fleet::Fleet;

/// Of two workers, both of a template that is old now.
fn outdated() -> Fleet {
    let mut fleet = Fleet::settled(2);
    fleet.edit(|spec| spec.instance_types = vec!["large".into()]);
    fleet
}

fn told(fleet: &Fleet) -> Vec<String> {
    pool::plan(&fleet.observe_pool()).waves.iter().flatten().map(tell).collect()
}

/// Stores what the operator says of the pool, and gives what it says of the roll.
fn said(fleet: &mut Fleet) -> String {
    let observed = fleet.observe_pool();
    let status = report::pool_status(&observed, &pool::plan(&observed), None);
    let found = status.conditions.iter().find(|condition| condition.type_ == "UpToDate").unwrap();
    let said = format!("{} {}: {}\n{}", found.status, found.reason, found.message, status.summary);
    fleet.pool.as_mut().unwrap().status = Some(status);
    said
}

fn wakes(fleet: &Fleet) -> Option<Timestamp> {
    pool::plan(&fleet.observe_pool()).wake_at
}

fn unready(fleet: &mut Fleet) {
    let unready = Unready { since: fleet.now, message: "not ready: coredns 1 of 2".into() };
    fleet.cluster.as_mut().unwrap().addons = Some(unready);
}

#[test]
fn no_worker_that_is_well_goes_while_add_ons_are_moved() {
    let mut fleet = outdated();
    unready(&mut fleet);
    fleet.now += SignedDuration::from_secs(1);
    assert_eq!(told(&fleet), ["create Worker p-2"], "which takes nothing away");
    fleet.settle();
    assert_eq!(fleet.staying(), ["p-0", "p-1", "p-2"]);
    insta::assert_snapshot!(said(&mut fleet), @"
    False Rolling: 2 workers are of an old template; add-ons have to be ready first: not ready: coredns 1 of 2
    Rolling: 1 of 3 workers are of the newest template; add-ons have to be ready first: not ready: coredns 1 of 2
    ");
    assert_eq!(wakes(&fleet), Some(fleet.now + SignedDuration::from_secs(299)));
    fleet.cluster.as_mut().unwrap().addons = None;
    assert_eq!(told(&fleet), ["record that these go: p-0"]);
    fleet.settle();
    assert!(fleet.workers.values().all(|worker| worker.spec.instance_type == "large"));
}

#[test]
fn add_ons_that_were_broken_before_hold_up_nothing_for_ever() {
    let mut fleet = outdated();
    unready(&mut fleet);
    fleet.now += SignedDuration::from_secs(1);
    fleet.settle();
    fleet.now += SignedDuration::from_secs(298);
    assert_eq!(told(&fleet), [""; 0]);
    fleet.now += SignedDuration::from_secs(1);
    assert_eq!(told(&fleet), ["record that these go: p-0"]);
}

#[test]
fn add_ons_that_broke_with_the_new_template_stop_its_roll() {
    let mut fleet = outdated();
    fleet.turn();
    for _ in 0..5 {
        fleet.go_on();
    }
    unready(&mut fleet);
    fleet.settle();
    fleet.now += SignedDuration::from_hours(9);
    assert_eq!(told(&fleet), [""; 0]);
    assert_eq!((fleet.staying().len(), fleet.ready()), (3, 3));
    fleet.cluster.as_mut().unwrap().addons = None;
    fleet.settle();
    assert!(fleet.workers.values().all(|worker| worker.spec.instance_type == "large"));
}

#[test]
fn what_is_not_well_goes_without_waiting() {
    let mut fleet = outdated();
    unready(&mut fleet);
    fleet.settle();
    fleet.nodes.get_mut("p-1").unwrap().ready = "False".into();
    assert_eq!(told(&fleet), ["record that these go: p-1"]);
}

#[test]
fn a_bad_template_stops_after_the_first_worker_that_has_it() {
    let mut fleet = outdated();
    fleet.edit(|spec| {
        spec.replicas = 2;
        spec.rollout.max_unavailable = 1;
    });
    // One may go at once; its successor does not become Ready.
    for _ in 0..20 {
        fleet.turn();
        fleet.go_on();
        fleet
            .nodes
            .retain(|name, _| fleet.workers.get(name).is_none_or(|own| own.spec.instance_type == "small"));
    }
    assert_eq!(fleet.ready(), 1, "{:?}", fleet.staying());
    assert_eq!(told(&fleet), [""; 0]);
    let said = said(&mut fleet);
    assert!(said.contains("of the new template is not Ready: just made"), "{said}");
    // Whoever gives up gets back what there was.
    fleet.edit(|spec| spec.instance_types = vec!["small".into()]);
    fleet.settle();
    assert_eq!(fleet.ready(), 2);
}

#[test]
fn a_roll_begins_in_a_window_and_goes_on_to_its_end() {
    let mut fleet = outdated();
    let window =
        json!({"windows": [{"days": ["Sat"], "start": "02:00", "duration": "1h", "timeZone": "UTC"}]});
    fleet.cluster.as_mut().unwrap().maintenance = serde_json::from_value(window).unwrap();
    assert_eq!(told(&fleet), [""; 0], "nothing is made for it either");
    insta::assert_snapshot!(said(&mut fleet), @"
    False WaitingForWindow: 2 workers are of an old template; waiting for window until Sat 02:00 UTC
    Roll is to come: 0 of 2 workers are of the newest template; waiting for window until Sat 02:00 UTC
    ");
    let opens: Timestamp = "2026-06-06T02:00:00Z".parse().unwrap();
    fleet.edit(|spec| spec.replicas = 3);
    assert_eq!(told(&fleet), ["create Worker p-2"], "growing is no roll");
    fleet.settle();
    said(&mut fleet);
    assert_eq!(fleet.staying(), ["p-0", "p-1", "p-2"]);
    fleet.now = opens;
    assert_eq!(told(&fleet), ["create Worker p-3"]);
    said(&mut fleet);
    fleet.now = opens + SignedDuration::from_hours(2);
    fleet.settle();
    assert!(fleet.workers.values().all(|worker| worker.spec.instance_type == "large"));
    insta::assert_snapshot!(said(&mut fleet), @"
    True RevisionCurrent: all workers are of the newest template
    Ready
    ");
}

#[test]
fn a_pinned_version_stays_until_it_no_longer_fits() {
    let mut fleet = Fleet::settled(1);
    let version = |fleet: &Fleet| fleet.workers["p-0"].spec.version.clone();
    assert_eq!(version(&fleet), "v1.37.1");
    let problem = |fleet: &Fleet| {
        let plan = pool::plan(&fleet.observe_pool());
        assert_eq!(plan.waves, Vec::<Vec<_>>::new());
        plan.problems
            .into_iter()
            .map(|problem| (problem.reason, problem.owner, problem.message))
            .next()
            .unwrap()
    };
    fleet.edit(|spec| spec.version = Some("v1.37.1".into()));
    assert_eq!(told(&fleet), [""; 0], "as it is");
    for (pinned, reason, message) in [
        (
            "v1.38.0",
            Reason::VersionSkew,
            "spec.version: workers of v1.38.0 do not fit to a control plane of v1.37.1: they may be up to 3 minor versions older, and never newer; leave it out to follow the control plane, or choose from v1.37.1",
        ),
        (
            "v1.36.0",
            Reason::VersionNotInCatalogue,
            "spec.version: v1.36.0 is not in the catalogue of workers' images; leave it out to follow the control plane, or choose from v1.37.1",
        ),
    ] {
        fleet.edit(|spec| spec.version = Some(pinned.into()));
        assert_eq!(problem(&fleet), (reason, Owner::Tenant, message.into()));
    }
    fleet.edit(|spec| spec.version = Some("v1.37.1".into()));
    fleet.cluster.as_mut().unwrap().version = "v1.38.0".into();
    assert_eq!(told(&fleet), [""; 0], "the control plane goes on alone");
    fleet.edit(|spec| spec.version = None);
    assert_eq!(problem(&fleet).0, Reason::VersionNotInCatalogue, "which has no images of v1.38.0");
    fleet.catalogue.insert("v1.38.0".into());
    assert_eq!(told(&fleet), ["create Worker p-1"]);
}
