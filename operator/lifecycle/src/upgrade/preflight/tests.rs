use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kaas_crds::kubernetes_release::{EtcdRelease, Images};
use kaas_crds::{TenantCluster, TenantClusterStatus};
use kube::core::Selector;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::facts::{Budget, Caller, Callers, Nodes, Removed, Rule, Webhook};
use super::*;
use crate::observed::{Certificate, Etcd, Member, Probe, Secret};
use crate::tenant::{Platform, Tenant};

const NOW: &str = "2026-11-22T03:10:30Z";
const BETA: &str = "networking.k8s.io/v1beta1";

fn release(version: &str, removes: &[&str]) -> KubernetesReleaseSpec {
    let image = String::new;
    KubernetesReleaseSpec {
        version: version.into(),
        images: Images { kube_apiserver: image(), kube_controller_manager: image(), kube_scheduler: image() },
        etcd: EtcdRelease { version: "3.7.3".into(), image: image() },
        addons: None,
        removes: removes.iter().map(|api| (*api).to_owned()).collect(),
        adds: Vec::new(),
    }
}

/// A cluster of this version that has everything as it should be, and v1.37.1 to go to.
fn well(version: &str, spec: Value) -> Observed {
    let mut whole = json!({"version": version});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let mut cluster = TenantCluster::new("blue", serde_json::from_value(whole).unwrap());
    cluster.status = Some(TenantClusterStatus { version: Some(version.into()), ..Default::default() });
    let member = |id| Member {
        id,
        name: format!("etcd-{id}"),
        healthy: true,
        size: 10,
        quota: 100,
        ..Member::default()
    };
    let releases = ["v1.35.4", "v1.36.3", "v1.36.4"].map(|version| release(version, &[]));
    let releases = releases.into_iter().chain([release("v1.37.1", &[BETA]), release("v1.38.0", &[])]);
    Observed {
        now: NOW.parse().unwrap(),
        platform: Platform::default(),
        tenant: Tenant::new("1", "team", "blue"),
        cluster,
        catalogue: releases.map(|release| (release.version.clone(), release)).collect(),
        namespaces: Vec::new(),
        objects: BTreeMap::new(),
        secrets: BTreeMap::new(),
        kubeconfig: None,
        pods: Vec::new(),
        etcd: Some(Etcd {
            cluster_id: "c".into(),
            leader: 1,
            members: (0..3).map(member).collect(),
            alarms: vec![],
            downgrade: None,
        }),
        probe: None,
        trial: None,
        vigil: None,
        addresses: Default::default(),
        inside: None,
        addons: None,
        preflight: Some(Facts { target: "v1.37.1".into(), ..Facts::default() }),
        authority: None,
        workers: None,
    }
}

fn facts(observed: &mut Observed) -> &mut Facts {
    observed.preflight.as_mut().unwrap()
}

fn found(observed: &Observed) -> Vec<Finding> {
    findings(observed, target(observed).unwrap())
}

fn ids(observed: &Observed) -> Vec<(Severity, String)> {
    found(observed).iter().map(|finding| (finding.severity, finding.id())).collect()
}

fn condition(observed: &Observed) -> (String, Reason, String) {
    let verdict = verdict(observed).unwrap();
    let is = match verdict.is {
        Is::True => "True",
        Is::False => "False",
        Is::Unknown => "Unknown",
    };
    (is.into(), verdict.reason, verdict.message)
}

#[test]
fn the_target_is_what_is_asked_for_or_the_newest_within_reach() {
    for (running, asked, expected) in [
        ("v1.36.3", "v1.36.3", Some("v1.37.1")),
        ("v1.36.3", "v1.36.4", Some("v1.36.4")),
        ("v1.36.4", "v1.36.3", Some("v1.36.3")),
        ("v1.36.4", "v1.36.4", Some("v1.37.1")),
        ("v1.35.4", "v1.35.4", Some("v1.36.4")),
        ("v1.35.4", "v1.37.1", None),
        ("v1.37.1", "v1.36.3", Some("v1.36.3")),
        ("v1.37.1", "v1.35.4", None),
        ("v1.36.3", "v1.36.9", None),
        ("v1.38.0", "v1.38.0", None),
    ] {
        let mut observed = well(running, json!({}));
        observed.cluster.spec.version = asked.into();
        assert_eq!(target(&observed).map(|release| release.version.as_str()), expected, "{running} {asked}");
        assert_eq!(verdict(&observed).is_some(), expected.is_some());
    }
    let mut new = well("v1.36.3", json!({}));
    new.cluster.status = None;
    assert!(target(&new).is_none() && verdict(&new).is_none() && shown(&new).is_none());
    let answer = Answer::Serving { version: "v1.36.3".into() };
    new.probe = Some(Probe { at: new.now, answer });
    assert_eq!(target(&new).unwrap().version, "v1.37.1", "its first answer says what it is");
}

#[test]
fn a_cluster_that_is_well_may_go() {
    let observed = well("v1.36.3", json!({}));
    assert_eq!(found(&observed), []);
    assert_eq!(
        condition(&observed),
        ("True".into(), Reason::PreflightPassed, "nothing speaks against an upgrade to v1.37.1".into())
    );
    let shown = shown(&observed).unwrap();
    assert_eq!((shown.target.as_str(), shown.findings.len(), shown.more), ("v1.37.1", 0, 0));
}

#[test]
fn what_was_not_seen_is_not_well_and_cannot_be_ignored() {
    for other in [None, Some(Facts { target: "v1.36.4".into(), ..Facts::default() })] {
        let mut observed = well("v1.36.3", json!({"upgrade": {"ignore": ["NotObserved"]}}));
        observed.preflight = other;
        assert_eq!(ids(&observed), [(Severity::Error, "NotObserved".into())]);
        assert_eq!(condition(&observed).0, "Unknown");
        assert!(blocker(&observed, target(&observed).unwrap()).is_some());
    }
}

#[test]
fn etcd_must_be_well_and_have_room() {
    let with = |change: &dyn Fn(&mut Etcd)| {
        let mut observed = well("v1.36.3", json!({}));
        change(observed.etcd.as_mut().unwrap());
        ids(&observed)
    };
    let error = |reason: &str| vec![(Severity::Error, reason.to_owned())];
    assert_eq!(with(&|etcd| etcd.members[2].healthy = false), error("MemberUnhealthy"));
    assert_eq!(with(&|etcd| etcd.leader = 0), error("QuorumLost"));
    assert_eq!(with(&|etcd| etcd.alarms.push("Nospace".into())), error("AlarmRaised"));
    assert_eq!(with(&|etcd| etcd.members[2].learner = true), error("LearnerWaiting"));
    assert_eq!(with(&|etcd| etcd.members[1].size = 74), []);
    assert_eq!(with(&|etcd| etcd.members[1].size = 75), [(Severity::Warning, "SpaceShort".into())]);
    assert_eq!(with(&|etcd| etcd.members[1].size = 90), error("SpaceShort"));
    assert_eq!(with(&|etcd| etcd.members[1].quota = 0), []);
    let mut silent = well("v1.36.3", json!({}));
    silent.etcd = None;
    assert_eq!(ids(&silent), error("QuorumLost"));
}

#[test]
fn a_certificate_must_outlive_the_upgrade_or_be_renewed_in_time() {
    let with = |not_before: &str, not_after: &str| {
        let mut observed = well("v1.36.3", json!({}));
        let certificate = Certificate {
            common_name: String::new(),
            organizations: Default::default(),
            dns_names: Default::default(),
            ip_addresses: Default::default(),
            not_before: not_before.parse().unwrap(),
            not_after: not_after.parse().unwrap(),
            signed: true,
        };
        let secret = Secret { certificates: [("tls".to_owned(), certificate)].into(), ..Secret::default() };
        observed.secrets.insert("kube-apiserver".into(), secret);
        ids(&observed)
    };
    assert_eq!(with("2026-11-01T00:00Z", "2027-11-01T00:00Z"), []);
    assert_eq!(
        with("2025-11-22T00:00Z", "2026-11-22T23:00Z"),
        [(Severity::Error, "CertificateExpiring".into())]
    );
    assert_eq!(with("2025-11-22T00:00Z", "2026-11-29T00:00Z"), [], "days are left");
    assert_eq!(with("2026-11-22T03:00Z", "2026-11-22T04:00Z"), [], "short ones are renewed in time");
}

#[test]
fn kubelets_lag_a_little_and_never_lead() {
    for (kubelet, expected) in [
        ("v1.36.3", None),
        ("v1.34.0", None),
        ("v1.37.9", None),
        ("v1.35.2-eks-1", None),
        ("v1.33.9", Some("KubeletTooOld/v1.33.9")),
        ("v1.38.0+k3s1", Some("KubeletTooNew/v1.38.0+k3s1")),
        ("nonsense", None),
    ] {
        let mut observed = well("v1.36.3", json!({}));
        let nodes = Nodes { count: 5, names: vec!["a".into(), "b".into()] };
        facts(&mut observed).kubelets.insert(kubelet.into(), nodes);
        let found = found(&observed);
        let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(found.iter().map(Finding::id).collect::<Vec<_>>(), expected);
        assert!(found.iter().all(|finding| finding.evidence.ends_with("a, b and 3 more")), "{found:?}");
    }
}

fn budget(rule: &str, expected: i32, desired: i32) -> Budget {
    Budget {
        namespace: "default".into(),
        name: "web".into(),
        rule: rule.into(),
        expected,
        healthy: expected,
        desired,
        failed: None,
    }
}

#[test]
fn a_budget_that_never_lets_go_is_named() {
    let with = |budget: Budget, nodes: bool| {
        let mut observed = well("v1.36.3", json!({}));
        facts(&mut observed).budgets.push(budget);
        if nodes {
            facts(&mut observed).kubelets.insert("v1.36.3".into(), Nodes::default());
        }
        found(&observed)
    };
    let never = with(budget("minAvailable: 1", 1, 1), true);
    assert_eq!(never[0].id(), "BudgetBlocksDrain/default/web");
    assert_eq!(
        never[0].evidence,
        "minAvailable: 1 of 1 pods, 1 healthy: none may go even when all are healthy"
    );
    assert_eq!(with(budget("maxUnavailable: 0", 3, 3), true).len(), 1);
    assert_eq!(with(budget("minAvailable: 5", 3, 5), true).len(), 1);
    assert_eq!(with(budget("minAvailable: 2", 3, 2), true), [], "it passes when all are healthy");
    assert_eq!(with(budget("minAvailable: 1", 0, 1), true), [], "it is about no pod");
    assert_eq!(with(budget("minAvailable: 1", 1, 1), false), [], "nothing is drained");
    let failed = Budget { failed: Some("no controllers".into()), ..budget("maxUnavailable: 1", 0, 0) };
    assert_eq!(with(failed, true)[0].evidence, "no controllers");
}

fn rule(groups: &[&str], resources: &[&str], operations: &[&str], scope: &str) -> Rule {
    let set = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Rule { groups: set(groups), resources: set(resources), operations: set(operations), scope: scope.into() }
}

fn webhook(rules: Vec<Rule>) -> Webhook {
    Webhook {
        kind: "ValidatingWebhookConfiguration".into(),
        configuration: "policy".into(),
        name: "a.example.com".into(),
        service: Some(("policy".into(), "hook".into())),
        answered: true,
        rules,
        namespaces: Selector::default(),
        picky: false,
    }
}

fn not_in_system() -> Selector {
    let selector: LabelSelector = serde_json::from_value(json!({"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]},
    ]}))
    .unwrap();
    selector.try_into().unwrap()
}

#[test]
fn webhooks_that_could_stop_an_upgrade_are_named() {
    let all = || vec![rule(&["*"], &["*"], &["*"], "*")];
    let own = || vec![rule(&["example.com"], &["foos"], &["CREATE"], "*")];
    let with = |webhook: Webhook| {
        let mut observed = well("v1.36.3", json!({}));
        let name = "kubernetes.io/metadata.name".to_owned();
        facts(&mut observed).system_labels.insert(name, "kube-system".into());
        facts(&mut observed).webhooks.push(webhook);
        ids(&observed)
    };
    let dead = |webhook: Webhook| Webhook { answered: false, ..webhook };
    let unavailable = |severity| vec![(severity, "WebhookUnavailable/policy/a.example.com".to_owned())];
    let in_the_way = vec![(Severity::Warning, "WebhookInTheWay/policy/a.example.com".to_owned())];
    assert_eq!(with(webhook(own())), []);
    assert_eq!(with(dead(webhook(own()))), unavailable(Severity::Warning));
    assert_eq!(with(dead(webhook(all()))), unavailable(Severity::Error));
    assert_eq!(with(webhook(all())), in_the_way);
    assert_eq!(with(Webhook { service: None, ..webhook(all()) }), in_the_way);
    let pods = || vec![rule(&[""], &["pods"], &["CREATE"], "Namespaced")];
    assert_eq!(with(webhook(pods())), in_the_way);
    assert_eq!(with(Webhook { namespaces: not_in_system(), ..webhook(pods()) }), []);
    assert_eq!(with(Webhook { picky: true, ..webhook(pods()) }), []);
    let nodes = || vec![rule(&[""], &["nodes"], &["UPDATE"], "Cluster")];
    assert_eq!(with(Webhook { namespaces: not_in_system(), ..webhook(nodes()) }), in_the_way);
    assert_eq!(with(webhook(vec![rule(&[""], &["nodes"], &["DELETE"], "*")])), []);
    assert_eq!(with(webhook(vec![rule(&[""], &["nodes"], &["UPDATE"], "Namespaced")])), []);
    assert_eq!(with(webhook(vec![rule(&["apps"], &["*"], &["UPDATE"], "*")])), in_the_way);
}

/// The beta group switched on, and what was seen of its callers.
fn beta(callers: Option<Callers>) -> Observed {
    let mut observed = well("v1.36.3", json!({"controlPlane": {"runtimeConfig": {BETA: true}}}));
    let elsewhere = Some("networking.k8s.io/v1".to_owned());
    let removed = |resource: &str| Removed {
        api: BETA.into(),
        resource: resource.into(),
        elsewhere: elsewhere.clone(),
        stored: 0,
    };
    *facts(&mut observed) = Facts {
        target: "v1.37.1".into(),
        removed: vec![removed("ipaddresses"), removed("servicecidrs")],
        callers,
        ..Facts::default()
    };
    observed
}

fn caller(user: &str, last: &str) -> Caller {
    Caller {
        api: BETA.into(),
        resource: "ipaddresses".into(),
        user: user.into(),
        agent: "lister/v1".into(),
        verb: "list".into(),
        last: last.parse().unwrap(),
    }
}

fn callers(since: &str, seen: Vec<Caller>) -> Option<Callers> {
    Some(Callers { since: since.parse().unwrap(), watched: [BETA.to_owned()].into(), seen })
}

#[test]
fn who_calls_a_removed_api_is_named_and_forgotten() {
    let lister = "system:serviceaccount:demo:lister";
    let long = "2026-11-22T01:00Z";
    let seen =
        |last: &str| beta(callers(long, vec![caller(lister, "2026-11-22T02:00Z"), caller(lister, last)]));
    let observed = seen("2026-11-22T03:09:59Z");
    let all = found(&observed);
    assert_eq!(
        ids(&observed),
        [
            (Severity::Error, format!("RemovedApiCalled/{BETA}/{lister}")),
            (Severity::Warning, format!("ApiRemoved/{BETA}")),
        ]
    );
    assert_eq!(all[0].evidence, "list ipaddresses, last seen 2026-11-22T03:09:00Z, user agent lister/v1");
    assert_eq!(all[0].fix, "let it use networking.k8s.io/v1, which v1.37.1 has");
    let (is, reason, message) = condition(&observed);
    assert_eq!((is.as_str(), reason), ("False", Reason::RemovedApiCalled));
    assert!(message.contains(lister), "{message}");
    assert_eq!(due(&observed), Some("2026-11-22T03:18:59Z".parse().unwrap()));

    let gone = seen("2026-11-22T03:01:30Z");
    assert_eq!(ids(&gone), [(Severity::Warning, format!("ApiRemoved/{BETA}"))]);
    assert_eq!(condition(&gone).0, "True");
    assert!(found(&gone)[0].evidence.contains("last called by system:serviceaccount:demo:lister"));
    assert_eq!(due(&gone), None);
}

#[test]
fn who_was_not_watched_for_is_unknown() {
    let unknown = [
        (Severity::Error, format!("CallersUnknown/{BETA}")),
        (Severity::Warning, format!("ApiRemoved/{BETA}")),
    ];
    assert_eq!(ids(&beta(None)), unknown);
    let mut part = beta(callers("2026-11-22T01:00Z", Vec::new()));
    facts(&mut part).callers.as_mut().unwrap().watched = [format!("{BETA}/ipaddresses")].into();
    assert_eq!(ids(&part), unknown, "servicecidrs are not watched for");
    let young = beta(callers("2026-11-22T03:05Z", Vec::new()));
    assert_eq!(ids(&young), unknown);
    assert_eq!(due(&young), Some("2026-11-22T03:14:00Z".parse().unwrap()));
    assert_eq!(condition(&beta(callers("2026-11-22T03:01:00Z", Vec::new()))).0, "True");
    let mut default = beta(None);
    default.cluster.spec.control_plane.runtime_config.0.clear();
    assert_eq!(ids(&default)[0], (Severity::Warning, format!("CallersUnknown/{BETA}")));
    assert_eq!(condition(&default).0, "True", "where nobody can watch it is left to the user");
}

#[test]
fn objects_without_another_api_are_counted() {
    let mut observed = beta(callers("2026-11-22T01:00Z", Vec::new()));
    facts(&mut observed).removed[0] =
        Removed { api: BETA.into(), resource: "ipaddresses".into(), elsewhere: None, stored: 3 };
    let first = &found(&observed)[0];
    assert_eq!(first.id(), format!("ObjectsUnreachable/{BETA}/ipaddresses"));
    assert!(first.evidence.starts_with("3 ipaddresses are stored"));
}

#[test]
fn what_is_ignored_blocks_nothing_and_is_recorded() {
    let id = format!("CallersUnknown/{BETA}");
    let mut observed = beta(None);
    let target = release("v1.37.1", &[]);
    assert_eq!(blocker(&observed, &target).unwrap().id(), id);
    observed.cluster.spec.upgrade.ignore = vec!["CallersUnknown".into(), id.clone()];
    assert_eq!(blocker(&observed, &target), None);
    assert_eq!(condition(&observed).0, "True");
    let shown = shown(&observed).unwrap();
    let told: Vec<_> = shown.findings.iter().map(|finding| (finding.id.as_str(), finding.ignored)).collect();
    assert_eq!(told, [(id.as_str(), true), (format!("ApiRemoved/{BETA}").as_str(), false)]);
    // Another finding blocks as before.
    observed.etcd.as_mut().unwrap().members[0].healthy = false;
    assert_eq!(blocker(&observed, &target).unwrap().reason, Reason::MemberUnhealthy);
}

#[test]
fn what_is_shown_is_bounded_and_errors_come_first() {
    let mut observed = well("v1.36.3", json!({}));
    facts(&mut observed).kubelets.insert("v1.36.3".into(), Nodes::default());
    for index in 0..50 {
        let name = format!("{index}-{}", "x".repeat(240));
        facts(&mut observed).webhooks.push(Webhook {
            name: name.clone(),
            answered: false,
            ..webhook(vec![rule(&["example.com"], &["*"], &["*"], "*")])
        });
        facts(&mut observed).budgets.push(Budget { name, ..budget(&"x".repeat(2000), 1, 1) });
    }
    let shown = shown(&observed).unwrap();
    assert_eq!((shown.findings.len(), shown.more), (MOST_FINDINGS, 68));
    assert!(shown.findings.iter().all(|finding| finding.severity == Severity::Error));
    let longest =
        |text: fn(&Shown) -> &str| shown.findings.iter().map(|found| text(found).chars().count()).max();
    assert!(longest(|found| &found.id) <= Some(253));
    assert!(longest(|found| &found.message) <= Some(512) && longest(|found| &found.evidence) <= Some(512));
}

#[test]
fn what_a_release_removes_has_a_group_and_a_version() {
    assert_eq!(api("networking.k8s.io/v1beta1"), "networking.k8s.io/v1beta1");
    assert_eq!(api("networking.k8s.io/v1beta1/ipaddresses"), "networking.k8s.io/v1beta1");
}

#[test]
fn callers_are_watched_for_where_the_spec_switches_on_what_goes_next() {
    let observed = beta(None);
    let watch = |version: &str| watched(&observed.cluster.spec, &observed.catalogue, version);
    assert_eq!(watch("v1.36.3").into_iter().collect::<Vec<_>>(), [BETA]);
    assert!(watch("v1.35.4").is_empty() && watch("v1.37.1").is_empty());
    let mut off = beta(None);
    off.cluster.spec.control_plane.runtime_config.0.insert(BETA.into(), false);
    assert!(watched(&off.cluster.spec, &off.catalogue, "v1.36.3").is_empty());
}

/// Things that may be wrong, each by itself.
const CAUSES: [fn(&mut Observed); 8] = [
    |observed| observed.etcd.as_mut().unwrap().members[0].healthy = false,
    |observed| observed.etcd.as_mut().unwrap().members[1].size = 80,
    |observed| facts(observed).budgets.push(budget("minAvailable: 1", 1, 1)),
    |observed| facts(observed).kubelets.extend([("v1.36.3".to_owned(), Nodes::default())]),
    |observed| facts(observed).kubelets.extend([("v1.30.0".to_owned(), Nodes::default())]),
    |observed| {
        let rules = vec![rule(&["*"], &["*"], &["*"], "*")];
        facts(observed).webhooks.push(Webhook { answered: false, ..webhook(rules) });
    },
    |observed| facts(observed).callers.as_mut().unwrap().seen.push(caller("somebody", NOW)),
    |observed| facts(observed).callers.as_mut().unwrap().since = NOW.parse().unwrap(),
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn condition_status_and_gate_say_the_same(
        causes in prop::collection::btree_set(0..CAUSES.len(), 0..CAUSES.len()),
        ignored in prop::collection::btree_set(0..10usize, 0..4),
    ) {
        let mut observed = beta(callers("2026-11-22T01:00Z", Vec::new()));
        causes.iter().for_each(|index| CAUSES[*index](&mut observed));
        let all = ids(&observed);
        let names: std::collections::BTreeSet<&String> = all.iter().map(|(_, id)| id).collect();
        prop_assert_eq!(names.len(), all.len(), "each has a name of its own");
        prop_assert!(all.is_sorted_by_key(|(severity, _)| *severity));
        let ignore = ignored.iter().filter_map(|index| all.get(*index)).map(|(_, id)| id.clone());
        observed.cluster.spec.upgrade.ignore = ignore.collect();
        let target = target(&observed).unwrap();
        let open = shown(&observed).unwrap().findings.into_iter();
        let open: Vec<Shown> = open.filter(|found| found.severity == Severity::Error && !found.ignored).collect();
        let blocker = blocker(&observed, target);
        prop_assert_eq!(blocker.as_ref().map(Finding::id), open.first().map(|found| found.id.clone()));
        let (is, reason, _) = condition(&observed);
        prop_assert_eq!(is == "True", open.is_empty());
        prop_assert_eq!(reason, blocker.map_or(Reason::PreflightPassed, |finding| finding.reason));
    }
}
