//! Upgrades of a control plane: the way forth, the way back, and every change of mind between.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use kaas_crds::status::Owner;
use kaas_crds::tenant_cluster::Finalize;
use kaas_lifecycle::object::Kind;
use kaas_lifecycle::observed::{Lately, Vigil};
use kaas_lifecycle::upgrade::preflight::Facts;
use kaas_lifecycle::upgrade::preflight::facts::{Added, Budget, Nodes};
use serde_json::json;

use crate::world::{World, release};

const OLD: &str = "v1.36.3";
const NEW: &str = "v1.37.1";
const PATCH: &str = "v1.37.2";
const SOAK: SignedDuration = SignedDuration::from_mins(10);

/// A cluster of the old version that is well, with etcd 3.6.
fn old() -> World {
    let mut world = World::demo();
    let mut entry = release(OLD);
    entry.etcd.version = "3.6.16".into();
    entry.etcd.image = "registry.k8s.io/etcd:3.6.16-0".into();
    world.catalogue.insert(OLD.into(), entry);
    world.cluster.spec.version = OLD.into();
    world.settle();
    assert_eq!(status_version(&world), OLD);
    world
}

fn status_version(world: &World) -> String {
    world.cluster.status.as_ref().unwrap().version.clone().unwrap()
}

fn upgraded(world: &mut World) {
    world.edit(|spec| spec.version = NEW.into());
    world.settle();
    world.now += SOAK;
    world.settle();
}

fn flags(world: &World, workload: &str) -> String {
    let observed = world.observe();
    observed.live(Kind::Deployment, workload).unwrap().get("/spec/template").unwrap().to_string()
}

fn pods(world: &World, component: &str) -> BTreeSet<String> {
    world.pods.iter().filter(|pod| pod.component == component).map(|pod| pod.uid.clone()).collect()
}

/// What was seen of an upgrade, a line each time that it is told otherwise.
fn told(world: &mut World, steps: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for _ in 0..steps {
        world.reconcile();
        world.controllers();
        world.now += SignedDuration::from_secs(1);
        if lines.last().is_none_or(|last| last != world.summary()) {
            lines.push(world.summary().to_owned());
        }
    }
    lines
}

#[test]
fn new_binaries_emulate_the_old_version_first() {
    let mut world = old();
    world.edit(|spec| spec.version = NEW.into());
    let first = told(&mut world, 60);
    insta::assert_snapshot!(first.join("\n"), @"
    Upgrading to v1.37.1: one API server without clients proves v1.37.1 emulating v1.36.3
    Upgrading to v1.37.1: API servers and controllers become v1.37.1 emulating v1.36.3: kube-apiserver 0 of 1 ready
    Upgrading to v1.37.1: API servers and controllers become v1.37.1 emulating v1.36.3: kube-apiserver 1 of 1 ready
    Upgrading to v1.37.1: API servers and controllers become v1.37.1 emulating v1.36.3: kube-controllers 0 of 1 ready
    Upgrading to v1.37.1: API servers and controllers become v1.37.1 emulating v1.36.3: kube-controllers 1 of 1 ready
    Upgrading to v1.37.1: v1.37.1 emulating v1.36.3 runs; the emulated version is raised when all has been well for 10m
    ");
    for workload in ["kube-apiserver", "kube-controllers"] {
        let flags = flags(&world, workload);
        assert!(flags.contains(NEW) && flags.contains("--emulated-version=1.36"), "{flags}");
    }
    assert_eq!(status_version(&world), OLD, "workers follow what is completed");
    assert_eq!(world.condition("Ready").0, "True");

    world.now += SOAK;
    let last = told(&mut world, 60);
    insta::assert_snapshot!(last.join("\n"), @"
    Upgrading to v1.37.1: one API server without clients proves v1.37.1
    Upgrading to v1.37.1: API servers and controllers become v1.37.1: kube-apiserver 0 of 1 ready
    Upgrading to v1.37.1: API servers and controllers become v1.37.1: kube-apiserver 1 of 1 ready
    Upgrading to v1.37.1: API servers and controllers become v1.37.1: kube-controllers 0 of 1 ready
    Upgrading to v1.37.1: API servers and controllers become v1.37.1: kube-controllers 1 of 1 ready
    Running
    ");
    assert!(!flags(&world, "kube-apiserver").contains("emulated"));
    assert!(!flags(&world, "kube-controllers").contains("emulated"));
    assert_eq!(status_version(&world), NEW);
    let status = world.cluster.status.as_ref().unwrap();
    assert_eq!(status.operation, None);
    assert_eq!((status.history[0].version.as_str(), status.history[0].result.as_str()), (NEW, "Succeeded"));
    assert!(world.observe().live(Kind::Deployment, "kube-apiserver-canary").is_none());
    assert!(world.observe().live(Kind::NetworkPolicy, "kube-apiserver-canary").is_none());
}

#[test]
fn etcd_keeps_its_minor_version() {
    let mut world = old();
    let members = pods(&world, "etcd");
    upgraded(&mut world);
    assert_eq!(pods(&world, "etcd"), members);
    let observed = world.observe();
    let image = observed.live(Kind::StatefulSet, "etcd").unwrap();
    assert_eq!(image.text("/spec/template/spec/containers/0/image"), "registry.k8s.io/etcd:3.6.16-0");
}

#[test]
fn the_last_step_can_be_held() {
    let mut world = old();
    world.edit(|spec| spec.upgrade.finalize = Finalize::Manual);
    upgraded(&mut world);
    world.now += SOAK * 100;
    world.settle();
    assert!(flags(&world, "kube-apiserver").contains("--emulated-version=1.36"));
    let waiting = world.cluster.status.as_ref().unwrap().operation.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason, "FinalizeHeld");
    world.edit(|spec| spec.upgrade.finalize = Finalize::AfterSoak);
    world.settle();
    assert_eq!(status_version(&world), NEW);
}

#[test]
fn a_bad_image_is_caught_before_any_client_meets_it() {
    let mut world = old();
    let servers = pods(&world, "kube-apiserver");
    world.dead = vec![NEW.into()];
    world.edit(|spec| spec.version = NEW.into());
    told(&mut world, 60);
    assert_eq!(pods(&world, "kube-apiserver"), servers);
    assert_eq!(world.condition("Stalled"), ("True".into(), "UpgradeRefused".into()));
    insta::assert_snapshot!(world.summary(), @"Running, but stalled: spec.version: v1.37.1 did not prove itself at 2026-06-01T00:00:25Z: Pod kube-apiserver-canary-48: ImagePullBackOff: no such image; no client met it, v1.36.3 runs on; to try again set spec.version to v1.36.3 and then back");
    assert!(pods(&world, "kube-apiserver-canary").is_empty(), "it is taken away");
    let entry = world.cluster.status.as_ref().unwrap().history[0].clone();
    insta::assert_snapshot!(entry.result, @"Refused: Pod kube-apiserver-canary-48: ImagePullBackOff: no such image");

    // It is not tried again unasked, whatever else is asked for.
    world.dead.clear();
    world.edit(|spec| spec.control_plane.replicas = 2);
    told(&mut world, 60);
    assert_eq!(status_version(&world), OLD);
    world.edit(|spec| spec.version = OLD.into());
    told(&mut world, 20);
    assert_eq!(world.summary(), "Running");
    upgraded(&mut world);
    assert_eq!(status_version(&world), NEW);
}

#[test]
fn a_server_that_does_not_answer_right_is_caught_before_any_client_meets_it() {
    let mut world = old();
    let servers = pods(&world, "kube-apiserver");
    world.trial = Err("it answered create with 500 InternalError: no".into());
    upgraded(&mut world);
    assert_eq!(pods(&world, "kube-apiserver"), servers);
    assert!(world.summary().contains("it answered create with 500"), "{}", world.summary());
}

#[test]
fn what_breaks_after_it_has_clients_is_rolled_back_by_itself() {
    let mut world = old();
    let workers = world.workers.clone();
    world.edit(|spec| spec.version = NEW.into());
    while !flags(&world, "kube-apiserver").contains(NEW) {
        world.reconcile();
        world.controllers();
    }
    // The canary was well, the others are not.
    world.dead = vec![NEW.into()];
    let lines = told(&mut world, 90);
    assert!(lines.iter().any(|line| line.contains("going back to v1.36.3")), "{lines:#?}");
    assert!(flags(&world, "kube-apiserver").contains(OLD));
    assert!(!flags(&world, "kube-controllers").contains("emulated"));
    assert_eq!(status_version(&world), OLD);
    assert_eq!(world.condition("Ready").0, "True");
    let entry = world.cluster.status.as_ref().unwrap().history[0].clone();
    assert!(entry.result.starts_with("RolledBack: Pod kube-"), "{entry:?}");
    assert_eq!(world.workers, workers);
}

#[test]
fn it_begins_in_a_window_and_goes_on_when_that_closes() {
    let mut world = old();
    // It is a Monday, at midnight.
    world.edit(|spec| {
        spec.maintenance = serde_json::from_value(json!({
            "windows": [{"days": ["Mon"], "start": "02:00", "duration": "1h", "timeZone": "UTC"}],
        }))
        .unwrap();
        spec.version = NEW.into();
    });
    told(&mut world, 30);
    insta::assert_snapshot!(world.summary(), @"Upgrading to v1.37.1: waiting for window until Mon 02:00 UTC");
    let waiting = world.cluster.status.as_ref().unwrap().operation.clone().unwrap().waiting.unwrap();
    assert_eq!(waiting.reason, "WaitingForWindow");
    assert_eq!(waiting.until.unwrap().0, "2026-06-01T02:00:00Z".parse().unwrap());
    assert_eq!(status_version(&world), OLD);
    world.now = "2026-06-01T02:59:58Z".parse().unwrap();
    told(&mut world, 60);
    assert!(flags(&world, "kube-apiserver").contains("--emulated-version=1.36"));
    world.now += SOAK;
    told(&mut world, 60);
    assert_eq!((status_version(&world).as_str(), world.summary()), (NEW, "Running"));
}

#[test]
fn what_speaks_against_it_holds_it_until_it_is_gone_or_set_aside() {
    let mut world = old();
    let budget = Budget {
        namespace: "default".into(),
        name: "web".into(),
        expected: 1,
        desired: 1,
        ..Budget::default()
    };
    world.inside_facts = Facts {
        kubelets: [(OLD.to_owned(), Nodes { count: 1, names: vec!["blue-0".into()] })].into(),
        budgets: vec![budget],
        ..Facts::default()
    };
    world.settle();
    assert_eq!(world.condition("UpgradePossible"), ("False".into(), "BudgetBlocksDrain".into()));
    world.edit(|spec| spec.version = NEW.into());
    told(&mut world, 30);
    insta::assert_snapshot!(world.summary(), @"Upgrading to v1.37.1: BudgetBlocksDrain/default/web: PodDisruptionBudget default/web never lets a pod go; allow one disruption (maxUnavailable: 1) or run one replica more");
    let waiting = world.cluster.status.as_ref().unwrap().operation.clone().unwrap().waiting.unwrap();
    assert_eq!((waiting.reason.as_str(), waiting.owner), ("BudgetBlocksDrain", Owner::Tenant));
    assert_eq!(status_version(&world), OLD);

    let mut gone = world.clone();
    gone.inside_facts.budgets.clear();
    upgraded(&mut gone);
    assert_eq!(status_version(&gone), NEW);

    world.edit(|spec| spec.upgrade.ignore = vec!["BudgetBlocksDrain/default/web".into()]);
    told(&mut world, 60);
    assert!(flags(&world, "kube-apiserver").contains("--emulated-version=1.36"));
    // What has begun goes on.
    world.edit(|spec| spec.upgrade.ignore.clear());
    world.now += SOAK;
    told(&mut world, 60);
    assert_eq!((status_version(&world).as_str(), world.summary()), (NEW, "Running"));
}

#[test]
fn without_room_it_waits_and_says_for_what() {
    let mut world = old();
    world.cramped = true;
    world.edit(|spec| spec.version = NEW.into());
    told(&mut world, 30);
    world.now += SOAK * 10;
    told(&mut world, 30);
    let operation = world.cluster.status.as_ref().unwrap().operation.clone().unwrap();
    assert_eq!(operation.waiting.map(|waiting| waiting.reason).as_deref(), Some("Unschedulable"));
    assert_eq!((status_version(&world).as_str(), world.condition("Ready").0.as_str()), (OLD, "True"));
    // The canary found room, and then there was none for the others.
    world.cramped = false;
    while !flags(&world, "kube-apiserver").contains(NEW) {
        told(&mut world, 1);
    }
    world.cramped = true;
    told(&mut world, 5);
    world.now += SOAK * 10;
    told(&mut world, 30);
    assert!(world.summary().starts_with("Upgrading to v1.37.1"), "{}", world.summary());
    world.cramped = false;
    told(&mut world, 60);
    world.now += SOAK;
    told(&mut world, 60);
    assert_eq!(status_version(&world), NEW);
}

/// What was seen of `requests` on new connections, `failed` and `slow` of them lately.
fn seen(requests: u32, failed: u32, slow: u32) -> Option<Vigil> {
    Some(Vigil {
        requests: 1000,
        failed,
        failure: Some("Create: 500".into()),
        lately: Lately { requests, failed, slow },
        ..Vigil::default()
    })
}

#[test]
fn what_clients_see_is_told_and_judged() {
    let after = |vigil: Option<Vigil>| {
        let mut world = old();
        world.vigil = vigil;
        world.edit(|spec| spec.version = NEW.into());
        told(&mut world, 60);
        world.now += SOAK;
        world.settle();
        let entry = world.cluster.status.as_ref().unwrap().history[0].clone();
        (entry.result, status_version(&world), entry.probe.map(|probe| (probe.requests, probe.failed)))
    };
    let (result, version, probe) = after(seen(100, 5, 25));
    assert_eq!((result.as_str(), version.as_str(), probe), ("Succeeded", NEW, Some((1000, 5))));
    // Three are no rate.
    assert_eq!(after(seen(3, 3, 3)).1, NEW);
    for (vigil, evidence) in [
        (seen(100, 6, 0), "6 of 100 requests on new connections in 30 s failed, last Create: 500"),
        (seen(100, 0, 26), "26 of 100 requests on new connections in 30 s took longer than 2 s"),
        (seen(4, 4, 0), "4 of 4 requests on new connections in 30 s failed, last Create: 500"),
    ] {
        let (result, version, _) = after(vigil);
        assert_eq!((result, version.as_str()), (format!("RolledBack: {evidence}"), OLD));
    }
}

/// A cluster of the new version that is well, and a patch of it in the catalogue.
fn patchable() -> World {
    let mut world = World::demo();
    world.catalogue.insert(PATCH.into(), release(PATCH));
    world.settle();
    assert_eq!(status_version(&world), NEW);
    world
}

#[test]
fn a_patch_is_taken_when_it_has_been_well_for_the_soak() {
    let mut world = patchable();
    world.edit(|spec| spec.version = PATCH.into());
    let lines = told(&mut world, 60);
    insta::assert_snapshot!(lines.join("\n"), @"
    Upgrading to v1.37.2: one API server without clients proves v1.37.2
    Upgrading to v1.37.2: API servers and controllers become v1.37.2: kube-apiserver 0 of 1 ready
    Upgrading to v1.37.2: API servers and controllers become v1.37.2: kube-apiserver 1 of 1 ready
    Upgrading to v1.37.2: API servers and controllers become v1.37.2: kube-controllers 0 of 1 ready
    Upgrading to v1.37.2: API servers and controllers become v1.37.2: kube-controllers 1 of 1 ready
    Upgrading to v1.37.2: v1.37.2 runs; the upgrade is over when all has been well for 10m
    ");
    assert_eq!(status_version(&world), NEW, "workers follow what is completed");
    world.now += SOAK;
    told(&mut world, 10);
    assert_eq!((status_version(&world).as_str(), world.summary()), (PATCH, "Running"));
    assert_eq!(world.cluster.status.as_ref().unwrap().history[0].result, "Succeeded");

    // What breaks later is no fault of the upgrade's.
    world.vigil = seen(100, 100, 0);
    told(&mut world, 60);
    assert_eq!((status_version(&world).as_str(), world.summary()), (PATCH, "Running"));
    world.edit(|spec| spec.control_plane.replicas = 2);
    told(&mut world, 60);
    assert_eq!((status_version(&world).as_str(), world.summary()), (PATCH, "Running"));
}

#[test]
fn a_patch_that_spoils_in_the_soak_is_rolled_back_its_api_servers_first() {
    let mut world = patchable();
    world.edit(|spec| spec.version = PATCH.into());
    told(&mut world, 60);
    assert!(world.summary().contains("well for"), "{}", world.summary());
    world.vigil = seen(100, 6, 0);
    while flags(&world, "kube-apiserver").contains(PATCH) {
        world.reconcile();
        world.controllers();
    }
    assert!(flags(&world, "kube-controllers").contains(PATCH), "they wait for no controllers");
    world.vigil = seen(100, 0, 0);
    let lines = told(&mut world, 60);
    insta::assert_snapshot!(lines.join("\n"), @"
    Upgrading to v1.37.2: going back to v1.37.1: pods are replaced: kube-apiserver 1 of 1 ready
    Upgrading to v1.37.2: going back to v1.37.1: pods are replaced: kube-controllers 0 of 1 ready
    Upgrading to v1.37.2: going back to v1.37.1: pods are replaced: kube-controllers 1 of 1 ready
    Running, but stalled: spec.version: v1.37.2 did not prove itself at 2026-06-01T00:01:05Z: 6 of 100 requests on new connections in 30 s failed, last Create: 500; it was rolled back to v1.37.1; to try again set spec.version to v1.37.1 and then back
    ");
    assert!(flags(&world, "kube-controllers").contains(NEW));
    assert_eq!((status_version(&world).as_str(), world.condition("Ready").0.as_str()), (NEW, "True"));
    let entry = world.cluster.status.as_ref().unwrap().history[0].clone();
    assert_eq!(
        entry.result,
        "RolledBack: 6 of 100 requests on new connections in 30 s failed, last Create: 500"
    );
}

#[test]
fn a_patch_that_is_not_proved_is_taken_back_at_once() {
    let mut world = patchable();
    world.edit(|spec| spec.version = PATCH.into());
    while !flags(&world, "kube-apiserver").contains(PATCH) {
        told(&mut world, 1);
    }
    // Its servers do not come up; nobody waits until that is sure.
    world.cramped = true;
    told(&mut world, 5);
    world.edit(|spec| spec.version = NEW.into());
    told(&mut world, 5);
    assert!(flags(&world, "kube-apiserver").contains(NEW));
    world.cramped = false;
    told(&mut world, 60);
    assert_eq!((status_version(&world).as_str(), world.summary()), (NEW, "Running"));
    assert!(!world.pods.iter().any(|pod| pod.component == "kube-apiserver-canary"));
}

#[test]
fn controllers_go_back_first() {
    let mut world = old();
    world.edit(|spec| spec.version = NEW.into());
    told(&mut world, 60);
    world.edit(|spec| spec.version = OLD.into());
    let mut back = false;
    for _ in 0..60 {
        world.reconcile();
        if flags(&world, "kube-apiserver").contains(OLD) {
            back = true;
            let observed = world.observe();
            let controllers: Vec<_> = observed.pods_of("kube-controllers").collect();
            assert!(controllers.iter().all(|pod| pod.ready && !pod.terminating), "both at once");
            assert!(flags(&world, "kube-controllers").contains(OLD));
        }
        world.controllers();
        world.now += SignedDuration::from_secs(1);
    }
    assert!(back);
    assert_eq!((status_version(&world).as_str(), world.summary()), (OLD, "Running"));
    assert!(!world.pods.iter().any(|pod| pod.component == "kube-apiserver-canary"));
}

#[test]
fn one_minor_version_at_a_time_and_never_back_unasked() {
    let mut world = old();
    world.catalogue.insert("v1.38.0".into(), release("v1.38.0"));
    world.edit(|spec| spec.version = "v1.38.0".into());
    world.settle();
    assert_eq!(world.condition("Stalled"), ("True".into(), "UpgradePathInvalid".into()));
    insta::assert_snapshot!(world.summary(), @"Running, but stalled: spec.version: v1.38.0: a control plane goes one minor version at a time: from v1.36.3 the next is a v1.37; from v1.36.3 the catalogue has v1.37.1");
    assert_eq!(status_version(&world), OLD);
    world.edit(|spec| spec.version = OLD.into());
    world.settle();
    upgraded(&mut world);
    world.edit(|spec| spec.version = "v1.35.4".into());
    world.settle();
    assert_eq!(status_version(&world), NEW);
    assert_eq!(world.condition("Ready").0, "True");
}

#[test]
fn back_from_a_version_that_serves_goes_with_consent_only() {
    let mut world = old();
    upgraded(&mut world);
    let workers =
        |version: &str| [(version.to_owned(), Nodes { count: 1, names: vec!["blue-0".into()] })].into();
    let bundles = Added {
        what: "certificates.k8s.io/v1/clustertrustbundles".into(),
        stored: 2,
        names: vec!["a".into(), "b".into()],
        all: true,
    };
    world.inside_facts =
        Facts { kubelets: workers(NEW), added: vec![bundles], looked_for: 48, ..Facts::default() };
    world.edit(|spec| spec.version = OLD.into());
    told(&mut world, 30);
    let ids = |world: &World| -> Vec<String> {
        let preflight = world.cluster.status.as_ref().unwrap().preflight.clone().unwrap();
        preflight.findings.into_iter().map(|finding| finding.id).collect()
    };
    let all = [
        "KubeletTooNew/v1.37.1",
        "NewKindStored/certificates.k8s.io/v1/clustertrustbundles",
        "GoingBack/v1.36.3",
    ];
    assert_eq!(ids(&world), all);
    assert_eq!((status_version(&world).as_str(), world.condition("Ready").0.as_str()), (NEW, "True"));
    world.inside_facts.kubelets = workers(OLD);
    world.inside_facts.added.clear();
    let waiting = told(&mut world, 30);
    insta::assert_snapshot!(waiting.last().unwrap(), @"Going back to v1.36.3: GoingBack/v1.36.3: v1.37.1 serves already, and going back to v1.36.3 loses what is new in it; to go back, put GoingBack/v1.36.3 into spec.upgrade.ignore; to stay, set spec.version to v1.37.1");
    world.edit(|spec| spec.upgrade.ignore = vec!["GoingBack/v1.36.3".into()]);
    let mut emulated = false;
    for _ in 0..120 {
        world.reconcile();
        let servers = flags(&world, "kube-apiserver");
        let lowered = servers.contains("--emulated-version=1.36");
        emulated |= lowered;
        assert!(
            emulated || servers.contains(NEW),
            "old binaries beside a server that serves the new version"
        );
        if lowered || servers.contains(OLD) {
            assert_eq!(status_version(&world), OLD, "no worker is newer than an API server");
        }
        world.controllers();
        world.now += SignedDuration::from_secs(1);
    }
    assert!(emulated);
    assert_eq!((status_version(&world).as_str(), world.summary()), (OLD, "Running"));
    let entry = world.cluster.status.as_ref().unwrap().history[0].clone();
    assert_eq!((entry.version.as_str(), entry.result.as_str()), (OLD, "Succeeded"));
    assert!(flags(&world, "kube-apiserver").contains(OLD));
}

#[test]
fn a_change_of_mind_in_the_middle_leads_somewhere_whole() {
    for at in (0..40).step_by(3) {
        let mut world = old();
        world.edit(|spec| spec.version = NEW.into());
        told(&mut world, at);
        world.edit(|spec| spec.version = OLD.into());
        told(&mut world, at / 2);
        world.edit(|spec| {
            spec.version = NEW.into();
            spec.control_plane.replicas = 2;
        });
        told(&mut world, 120);
        world.now += SOAK;
        told(&mut world, 120);
        assert_eq!((status_version(&world).as_str(), world.summary()), (NEW, "Running"), "after {at}");
    }
}

#[test]
fn an_operator_of_before_left_no_record() {
    let mut world = old();
    let revisions: Vec<_> =
        world.objects.keys().filter(|key| key.kind == Kind::ControllerRevision).cloned().collect();
    for key in revisions {
        let live = std::sync::Arc::make_mut(world.objects.get_mut(&key).unwrap());
        live.content["metadata"]["annotations"].as_object_mut().unwrap().remove("kaas.dev/upgrade");
    }
    let before = pods(&world, "kube-apiserver");
    world.settle();
    assert_eq!(pods(&world, "kube-apiserver"), before);
    upgraded(&mut world);
    assert_eq!(status_version(&world), NEW);
}
