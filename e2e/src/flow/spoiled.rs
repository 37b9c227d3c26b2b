//! Versions that are not what they should be. What a canary shows no client meets: the version is refused, with what was
//! seen, and nothing of what runs was touched. What spoils later is rolled back by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Ground, POLL, SOON, Stage, claim, known_version, renewal, scale, small};
use crate::Error;
use crate::image::catalogue::{self, Spoiled};
use crate::kubectl::{at, condition, reason};
use crate::terminal::say;
use crate::wait;

mod later;

pub(super) use later::it_is_rolled_back;

pub(super) const CAUGHT: &str = "a spoiled version is caught before a client meets it";
pub(super) const CAUGHT_TOO: &str =
    "a version that crashes, hangs or is slow is caught before a client meets it";
pub(super) const ROLLED_BACK: &str = "a version that spoils when it has clients is rolled back";

/// Pods of canaries begin with this.
const CANARY: &str = "kube-apiserver-canary";
/// A server that is not ready is given three minutes.
const LONGEST: Duration = Duration::from_secs(300);

/// A version and what status says of it.
struct Case {
    version: Spoiled,
    /// Part of the evidence.
    seen: &'static str,
}

const fn case(version: &'static str, fault: &'static str, after: &'static str, seen: &'static str) -> Case {
    Case { version: Spoiled { version, fault, after }, seen }
}

/// No fault that a program has: there is no image.
const MISSING: &str = "no image";

const AT_ONCE: [Case; 2] = [
    case("v1.37.80", MISSING, "", "ImagePull"),
    case("v1.37.81", "fails-writes", "", "with 500 InternalError"),
];
const SLOWLY: [Case; 3] = [
    case("v1.37.82", "crash", "", "CrashLoopBackOff"),
    case("v1.37.83", "slow", "", "half of its answers took more than 2"),
    case("v1.37.84", "never-ready", "", "was not ready within 3 minutes"),
];

/// On the tenant of other flows.
pub(super) fn it_is_caught(stage: &Stage) -> Result<(), Error> {
    offered(stage, &AT_ONCE, |case| caught(stage, "green", case))
}

/// With two API servers.
pub(super) fn it_is_caught_too(stage: &Stage) -> Result<(), Error> {
    let tenant = "doubtful";
    let mut spec = small(known_version());
    if let Some(replicas) = spec.pointer_mut("/controlPlane/replicas") {
        *replicas = json!(2);
    }
    stage.apply_tenant(tenant, spec)?;
    stage.await_settled(tenant)?;
    let result = offered(stage, &SLOWLY, |case| caught(stage, tenant, case));
    super::chaos::remove(stage, tenant)?;
    result
}

/// Lets a story be told of each version while it is in the catalogue.
fn offered(stage: &Stage, cases: &[Case], story: impl Fn(&Case) -> Result<(), Error>) -> Result<(), Error> {
    let Ground { cluster, cache, .. } = stage.ground()?;
    let made = cases.iter().map(|case| &case.version).filter(|version| version.fault != MISSING);
    let image = catalogue::spoiled(&cluster.borrow().toolbox, &made.collect::<Vec<_>>())?;
    cluster.borrow().import(&[image], cache)?;
    for case in cases {
        enter(stage, case.version.version)?;
    }
    cases.iter().try_for_each(story)?;
    cases.iter().try_for_each(|case| retire(stage, case.version.version))
}

/// Nobody has it any more; who uses an entry is counted every few seconds.
fn retire(stage: &Stage, version: &str) -> Result<(), Error> {
    let delete = ["delete", "kubernetesreleases.kaas.dev", version, "--wait=false"];
    let deleted = || stage.kubectl.run(&delete).map(drop).map_err(|error| error.to_string());
    wait::until(&format!("{version} to be used by nobody"), SOON, POLL, deleted, String::new)
}

/// An entry of the catalogue like the one of what runs, but for its API server.
fn enter(stage: &Stage, version: &str) -> Result<(), Error> {
    let known = stage.kubectl.read(&["get", "kubernetesreleases.kaas.dev", known_version()])?;
    let mut spec = at(&known, "/spec").clone();
    for (field, value) in [
        ("/version", version.to_owned()),
        ("/images/kubeApiserver", format!("registry.k8s.io/kube-apiserver:{version}")),
    ] {
        if let Some(field) = spec.pointer_mut(field) {
            *field = json!(value);
        }
    }
    let entry = json!({
        "apiVersion": "kaas.dev/v1alpha1", "kind": "KubernetesRelease", "metadata": {"name": version}, "spec": spec,
    });
    stage.kubectl.apply(&entry.to_string())
}

fn caught(stage: &Stage, tenant: &str, case: &Case) -> Result<(), Error> {
    let before = serving(stage, tenant)?;
    let started = Instant::now();
    let outcome = scale::under_load_of(stage, tenant, &told(&case.version), || {
        stage.change(tenant, &json!({"version": case.version.version}))?;
        let object = await_refusal(stage, tenant, case)?;
        say(format!(
            "  refused after {:.1} s: {}",
            started.elapsed().as_secs_f32(),
            at(&object, "/status/summary")
        ));
        recorded(&object, "Refused: ", case)?;
        back(stage, tenant)
    })?;
    scale::nothing_failed(&outcome)?;
    let after = serving(stage, tenant)?;
    claim(before == after, || format!("{before:?} became {after:?}"))
}

/// Containers with their restarts, but for those of canaries.
fn serving(stage: &Stage, tenant: &str) -> Result<BTreeMap<String, i64>, Error> {
    let mut containers = renewal::containers_of(stage, tenant)?;
    containers.retain(|container, _| !container.starts_with(CANARY));
    Ok(containers)
}

fn told(version: &Spoiled) -> String {
    let Spoiled { version, fault, after } = version;
    let after = if after.is_empty() { String::new() } else { format!(" after {after}") };
    format!("{version}: {fault}{after}")
}

/// At rest, Ready, and stalled for what was seen.
fn await_refusal(stage: &Stage, tenant: &str, case: &Case) -> Result<Value, Error> {
    let refused = |object: &Value| {
        let summary = at(object, "/status/summary").as_str().unwrap_or_default();
        let stalled = reason(object, "Stalled") == Some("UpgradeRefused") && summary.contains(case.seen);
        match (stalled, condition(object, "Reconciling"), super::tenant_is_ready(object)) {
            (true, Some("False"), Ok(())) => Ok(()),
            _ => Err(summary.to_owned()),
        }
    };
    let args = ["--namespace", super::NAMESPACE, "get", "tenantclusters.kaas.dev", tenant];
    stage.kubectl.await_object(&format!("{} to be refused", told(&case.version)), &args, LONGEST, refused)
}

/// The record of it, with what clients of the operator's saw.
fn recorded(object: &Value, word: &str, case: &Case) -> Result<(), Error> {
    let last = at(object, "/status/history/0");
    let result = at(last, "/result").as_str().unwrap_or_default();
    let requests = at(last, "/probe/requests").as_i64().unwrap_or_default();
    say(format!("  history: {result}; probe: {}", at(last, "/probe")));
    claim(result.starts_with(word) && result.contains(case.seen), || format!("history has `{result}`"))?;
    claim(at(last, "/version") == known_version(), || format!("history begins with {last}"))?;
    claim(requests > 0, || "nobody asked anything while it was tried".to_owned())
}

/// The version is taken back, which is no work any more.
fn back(stage: &Stage, tenant: &str) -> Result<(), Error> {
    stage.change(tenant, &json!({"version": known_version()}))?;
    let object = stage.await_settled(tenant)?;
    claim(condition(&object, "Stalled") == Some("False"), || format!("still stalled: {object}"))?;
    // Its canary may still be ending, and is nothing that a later flow should find.
    let gone = || match renewal::containers_of(stage, tenant).map_err(|error| error.to_string())? {
        left if left.keys().any(|container| container.starts_with(CANARY)) => Err(format!("{left:?}")),
        _ => Ok(()),
    };
    wait::until("the canary to be gone", SOON, POLL, gone, || stage.kubectl.report())
}
