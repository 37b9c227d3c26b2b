//! API servers that are well as a canary and when they join, and spoil half a minute later, one after the other.

use std::thread::sleep;

use super::super::load::Client;
use super::super::workers;
use super::{
    Case, Duration, Error, Instant, POLL, Stage, Value, at, await_refusal, back, case, claim, condition,
    json, known_version, offered, recorded, say, scale, small, told, wait,
};
use crate::kubectl::Kubectl;

const TENANT: &str = "unlucky";
const POOL: &str = "unlucky-general";
/// After the first readiness. A canary is away again by then.
const AFTER: Duration = Duration::from_secs(30);
const CASES: [Case; 3] = [
    case("v1.37.85", "fails-writes", "30s", "on new connections in 30 s failed"),
    case("v1.37.86", "crash", "30s", "CrashLoopBackOff"),
    case("v1.37.87", "slow", "30s", "took longer than 2 s"),
];
/// From the moment when the first one spoils until none has clients, and the old version answers every verb.
const RESTORED: Duration = Duration::from_secs(60);
/// What was sent before that has failed by then.
const UNDER_WAY: Duration = Duration::from_secs(1);
/// From the change of the spec until a server of the version has clients.
const JOINED: Duration = Duration::from_secs(120);

pub(in super::super) fn it_is_rolled_back(stage: &Stage) -> Result<(), Error> {
    stage.ground()?.stock()?;
    let mut spec = small(known_version());
    if let Some(replicas) = spec.pointer_mut("/controlPlane/replicas") {
        *replicas = json!(2);
    }
    stage.apply_tenant(TENANT, spec)?;
    let pool = json!({"clusterName": TENANT, "replicas": 1, "instanceTypes": [workers::TYPE], "infrastructure": {"pod": {}}});
    workers::apply_pool(stage, POOL, pool)?;
    stage.await_settled(TENANT)?;
    workers::await_workers(stage, POOL, 1)?;
    let result = offered(stage, &CASES, |case| rolled_back(stage, case));
    let namespace = ["--namespace", super::super::NAMESPACE];
    stage
        .kubectl
        .run(&[&namespace, &["delete", "workerpools.kaas.dev", POOL, "--wait=false"][..]].concat())?;
    super::super::chaos::remove(stage, TENANT)?;
    result
}

fn rolled_back(stage: &Stage, case: &Case) -> Result<(), Error> {
    let version = case.version.version;
    let kubectl = stage.tenant_kubectl(TENANT)?;
    let (mark, before) = (format!("before-{version}"), machines(&kubectl)?);
    kubectl.run(&["create", "configmap", &mark, "--from-literal=is=there"])?;
    let load = stage.load(TENANT)?;
    let started = Instant::now();
    let result = restored(stage, &kubectl, version, started);
    let refused = result.as_ref().ok().map(|_| await_refusal(stage, TENANT, case));
    let outcome = scale::told(&told(&case.version), started, load);
    let (breach, restored) = result?;
    recorded(&refused.transpose()?.unwrap_or_default(), "RolledBack: ", case)?;
    // What ends was led away from: whoever comes anew meets the old version.
    let fresh = outcome.of(Client::Fresh);
    let late = fresh.failures.iter().find(|failure| failure.at > restored + UNDER_WAY);
    claim(late.is_none(), || format!("failed when all was well again: {late:?}"))?;
    let first = fresh.failures.first().map(|failure| failure.at.saturating_duration_since(breach));
    say(format!(
        "  {} of {} requests on new connections failed, the first {:.1} s after the breach; restored {:.1} s after it",
        fresh.failures.len(),
        fresh.requests,
        first.unwrap_or_default().as_secs_f32(),
        restored.duration_since(breach).as_secs_f32(),
    ));
    claim(restored.duration_since(breach) <= RESTORED, || "that is too long".to_owned())?;
    scale::no_change_is_lost(&outcome)?;
    back(stage, TENANT)?;
    for mark in [&mark, "before-v1.37.85"] {
        let kept = kubectl.run(&["get", "configmap", mark, "--output", "jsonpath={.data.is}"])?;
        claim(kept == "there", || format!("configmap {mark} reads `{kept}`"))?;
    }
    let after = machines(&kubectl)?;
    claim(before == after, || format!("workers {before:?} became {after:?}"))
}

/// When the first server spoiled, and when the Service had none of them any more and the old version answered everything.
fn restored(
    stage: &Stage,
    kubectl: &Kubectl,
    version: &str,
    started: Instant,
) -> Result<(Instant, Instant), Error> {
    stage.change(TENANT, &json!({"version": version}))?;
    let joined = || match serving(stage, version) {
        Ok(0) => Err(stage
            .tenant(TENANT)
            .map(|tenant| workers::text(&tenant, "/status/summary"))
            .unwrap_or_default()),
        Ok(_) => Ok(Instant::now()),
        Err(error) => Err(error.to_string()),
    };
    let what = format!("an API server of {version} to have clients");
    let breach = wait::until(&what, JOINED, POLL, joined, || stage.kubectl.report())? + AFTER;
    say(format!(
        "  an API server of {version} had clients after {:.1} s",
        (breach - AFTER - started).as_secs_f32()
    ));
    sleep(breach.saturating_duration_since(Instant::now()));
    let mut most = 0;
    let well = || {
        let bad = serving(stage, version).map_err(|error| error.to_string())?;
        most = bad.max(most);
        match bad {
            0 => every_verb(kubectl).map_err(|error| error.to_string()),
            bad => Err(format!("{bad} bad API servers have clients")),
        }
    };
    let what = format!("{version} to be without clients");
    wait::until(&what, RESTORED * 3, POLL, well, || stage.kubectl.report())?;
    say(format!("  {most} of them had clients at once"));
    Ok((breach, Instant::now()))
}

/// How many API servers of this version the Service leads to.
fn serving(stage: &Stage, version: &str) -> Result<usize, Error> {
    let home = stage.home(TENANT)?;
    let list = |what: &str, selector: &str| {
        let found = stage.kubectl.read(&["--namespace", &home, "get", what, "--selector", selector])?;
        Ok::<_, Error>(at(&found, "/items").as_array().cloned().unwrap_or_default())
    };
    let pods = list("pods", "app.kubernetes.io/name=kube-apiserver")?;
    let bad = |name: &Value| {
        pods.iter().any(|pod| {
            let image = workers::text(pod, "/spec/containers/0/image");
            at(pod, "/metadata/name") == name && image.ends_with(&format!(":{version}"))
        })
    };
    let slices = list("endpointslices", "kubernetes.io/service-name=kube-apiserver")?;
    let endpoints = slices.iter().filter_map(|slice| at(slice, "/endpoints").as_array()).flatten();
    let led = endpoints.filter(|endpoint| at(endpoint, "/conditions/ready") == true);
    Ok(led.filter(|endpoint| bad(at(endpoint, "/targetRef/name"))).count())
}

/// Each on a connection of its own.
fn every_verb(kubectl: &Kubectl) -> Result<(), Error> {
    let version = kubectl.run(&["get", "--raw", "/version"])?;
    claim(version.contains(known_version()), || format!("the version is {version}"))?;
    let patch = json!({"data": {"is": "patched"}}).to_string();
    for verb in [
        &["delete", "configmap", "verbs", "--ignore-not-found"][..],
        &["create", "configmap", "verbs", "--from-literal=is=created"],
        &["get", "configmap", "verbs"],
        &["get", "configmaps"],
        &["patch", "configmap", "verbs", "--type=merge", "--patch", &patch],
        &["annotate", "configmap", "verbs", "kaas.dev/verb=updated"],
        &["wait", "configmap/verbs", "--for=jsonpath={.data.is}=patched", "--timeout=5s"],
        &["delete", "configmap", "verbs"],
    ] {
        kubectl.run(verb)?;
    }
    Ok(())
}

/// The tenant's nodes: name, UID, version and readiness.
fn machines(kubectl: &Kubectl) -> Result<Vec<String>, Error> {
    let told = |node: &Value| {
        let fields = ["/metadata/name", "/metadata/uid", "/status/nodeInfo/kubeletVersion"];
        let fields = fields.map(|field| workers::text(node, field));
        format!("{} {}", fields.join(" "), condition(node, "Ready").unwrap_or_default())
    };
    Ok(workers::nodes(kubectl)?.iter().map(told).collect())
}
