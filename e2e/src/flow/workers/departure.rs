//! Workers go without taking anything along: a drain waits for what may not go, a roll keeps the numbers that it
//! promised, and a tenant's end is held up by nothing inside of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{
    POOL, TENANT, WORKERS_READY, agnhost, apply_pool, await_pool, await_workers, machines, names, nodes,
    nothing_is_left_over, pool_of_two, pool_spec, text, told, uids, workers,
};
use crate::Error;
use crate::flow::{GONE, NAMESPACE, POLL, SOON, Stage, chaos, claim};
use crate::kubectl::{Kubectl, at, condition, reason};
use crate::terminal::say;
use crate::wait;

const GUARDED: &str = "guarded";
/// A drain that is blocked is looked at for so long: nothing goes meanwhile.
const HELD: Duration = Duration::from_secs(6);
/// Workers of a pool that rolls are counted so often.
const LOOK: Duration = Duration::from_millis(500);
/// Somebody's finalizer on a machine.
const HOLD: &str = "example.com/hold";
/// More than the default, to be seen on the node.
const MAX_PODS: usize = 120;

pub(super) fn a_budget_is_respected(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    guard(&kubectl)?;
    let before = guarded(&kubectl)?;
    let spread: BTreeSet<String> = before.iter().map(|pod| text(pod, "/spec/nodeName")).collect();
    claim(spread.len() == 2, || format!("the guarded pods are on {spread:?}, not on two workers"))?;
    apply_pool(stage, POOL, pool_spec(1))?;
    let leaving = wait::until(
        "a drain to be blocked",
        WORKERS_READY,
        POLL,
        || blocked(stage),
        || stage.kubectl.report(),
    )?;
    let message = text(&leaving, "/status/summary");
    claim(message.contains(GUARDED), || format!("it does not name the pod or the budget: {message}"))?;
    let name = text(&leaving, "/metadata/name");
    let held = Instant::now();
    while held.elapsed() < HELD {
        claim(uids(&guarded(&kubectl)?) == uids(&before), || "a guarded pod went".to_owned())?;
        std::thread::sleep(LOOK);
    }
    let node = kubectl.read(&["get", "node", &name])?;
    claim(at(&node, "/spec/unschedulable") == true, || format!("{name} is drained and takes pods"))?;
    claim(condition(&node, "DrainInProgress") == Some("True"), || {
        format!("{name} does not say that it is drained: {}", at(&node, "/status/conditions"))
    })?;
    let started = Instant::now();
    kubectl.run(&["delete", "poddisruptionbudget", GUARDED])?;
    await_workers(stage, POOL, 1)?;
    told("the budget is gone -> the worker is gone", started);
    nothing_is_left_over(stage, &kubectl)?;
    kubectl.await_deployment("default", GUARDED, WORKERS_READY)?;
    let after = guarded(&kubectl)?;
    claim(after.iter().all(|pod| text(pod, "/spec/nodeName") != name), || {
        format!("a pod is still on {name}")
    })?;
    kubectl.run(&["delete", "deployment", GUARDED]).map(drop)
}

/// Two pods on two workers, of which none may go.
fn guard(kubectl: &Kubectl) -> Result<(), Error> {
    let labels = json!({"app": GUARDED});
    let apart = json!({
        "weight": 100,
        "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels}},
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": GUARDED, "namespace": "default"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {
                "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [apart]}},
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "pause", "image": agnhost(), "args": ["pause"]}],
            },
        }},
    });
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": GUARDED, "namespace": "default"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": labels}},
    });
    kubectl.apply(&budget.to_string())?;
    kubectl.apply(&deployment.to_string())?;
    kubectl.await_deployment("default", GUARDED, WORKERS_READY)
}

fn guarded(kubectl: &Kubectl) -> Result<Vec<Value>, Error> {
    let selector = format!("app={GUARDED}");
    let pods = kubectl.read(&["get", "pods", "--selector", &selector])?;
    Ok(at(&pods, "/items").as_array().cloned().unwrap_or_default())
}

/// The worker that says that its drain is blocked.
fn blocked(stage: &Stage) -> Result<Value, String> {
    let workers = workers(stage).map_err(|error| error.to_string())?;
    let found = workers.iter().find(|worker| reason(worker, "Ready") == Some("DrainBlocked")).cloned();
    found.ok_or_else(|| {
        let told: Vec<String> = workers.iter().map(|worker| text(worker, "/status/summary")).collect();
        format!("the workers say {told:?}")
    })
}

pub(super) fn a_template_rolls(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    let before = uids(&workers(stage)?);
    let mut spec = pool_spec(2);
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("template".to_owned(), json!({"kubelet": {"maxPods": MAX_PODS}}));
    }
    let started = Instant::now();
    apply_pool(stage, POOL, spec)?;
    let (mut most, mut fewest) = (0, usize::MAX);
    let rolled = || {
        let workers = workers(stage).map_err(|error| error.to_string())?;
        let nodes = nodes(&kubectl).map_err(|error| error.to_string())?;
        let ready = nodes.iter().filter(|node| condition(node, "Ready") == Some("True")).count();
        (most, fewest) = (most.max(workers.len()), fewest.min(ready));
        let new = workers.iter().filter(|worker| !before.contains(&text(worker, "/metadata/uid"))).count();
        match (workers.len(), new) {
            (2, 2) => Ok(()),
            _ => Err(format!("of {} workers {new} are new", workers.len())),
        }
    };
    wait::until("both workers to be replaced", WORKERS_READY * 2, LOOK, rolled, || stage.kubectl.report())?;
    await_workers(stage, POOL, 2)?;
    told("two workers replaced one by one", started);
    say(format!("  at most {most} workers at a time, at least {fewest} Ready"));
    claim(most <= 3, || format!("{most} workers at a time; maxSurge is 1"))?;
    claim(fewest >= 2, || format!("only {fewest} Ready nodes; maxUnavailable is 0"))?;
    nothing_is_left_over(stage, &kubectl)?;
    for node in nodes(&kubectl)? {
        claim(at(&node, "/status/allocatable/pods") == &MAX_PODS.to_string(), || {
            format!("{} takes {} pods", text(&node, "/metadata/name"), at(&node, "/status/allocatable/pods"))
        })?;
    }
    Ok(())
}

/// A budget that nothing satisfies, an API server that is gone for good and a machine that somebody holds on to: the
/// last alone has a say in the end of a tenant, and is named until it is let go.
pub(super) fn a_tenant_with_workers_goes(stage: &Stage) -> Result<(), Error> {
    let kubectl = two_as_they_are(stage)?;
    guard(&kubectl)?;
    let (home, machines) = (stage.home(TENANT)?, machines(stage)?);
    let held = names(&workers(stage)?).into_iter().next().unwrap_or_default();
    hold(stage, &machines, &held, &json!([HOLD]))?;
    silence(stage, &kubectl, &home)?;
    let started = Instant::now();
    stage.dismiss(TENANT)?;
    let result = named(stage, &held);
    told("what holds up the end of a tenant is named", started);
    hold(stage, &machines, &held, &Value::Null)?;
    result?;
    let started = Instant::now();
    chaos::remove(stage, TENANT)?;
    told("let go -> a tenant with two workers, a budget that blocks and no API server is gone", started);
    claim(workers(stage)?.is_empty(), || "Workers are left".to_owned())?;
    for namespace in [&home, &machines] {
        let gone = || {
            let left =
                stage.kubectl.run(&["get", "namespace", namespace, "--ignore-not-found", "--output", "name"]);
            match left.map_err(|error| error.to_string())? {
                text if text.trim().is_empty() => Ok(()),
                text => Err(text),
            }
        };
        wait::until(&format!("namespace {namespace} to be gone"), GONE, POLL, gone, || {
            stage.kubectl.report()
        })?;
    }
    // Only who made the pool ends it; it says what it waits for.
    await_pool(stage, POOL, "to miss its cluster", |pool| match reason(pool, "Stalled") {
        Some("ClusterNotFound") => Ok(()),
        other => Err(format!("Stalled for {other:?}")),
    })?;
    let what = ["--namespace", NAMESPACE, "delete", "workerpools.kaas.dev", POOL, "--timeout=25s"];
    stage.kubectl.run(&what)?;
    let left =
        stage.kubectl.read(&["--namespace", NAMESPACE, "get", "workerpools.kaas.dev,workers.kaas.dev"])?;
    let left = names(at(&left, "/items").as_array().map(Vec::as_slice).unwrap_or_default());
    claim(left.is_empty(), || format!("left: {left:?}"))
}

/// The pool with two workers, of whatever template it has.
fn two_as_they_are(stage: &Stage) -> Result<Kubectl, Error> {
    let pool = ["--namespace", NAMESPACE, "scale", "workerpools.kaas.dev", POOL, "--replicas=2"];
    match stage.kubectl.run(&pool) {
        Ok(_) => {
            await_workers(stage, POOL, 2)?;
            stage.tenant_kubectl(TENANT)
        }
        Err(_) => pool_of_two(stage),
    }
}

/// Puts finalizers on a machine, or takes them away.
fn hold(stage: &Stage, machines: &str, name: &str, finalizers: &Value) -> Result<(), Error> {
    let patch = json!({"metadata": {"finalizers": finalizers}}).to_string();
    let what = ["patch", "pod", name, "--type=merge", "--patch", &patch];
    stage.kubectl.run(&[&["--namespace", machines], what.as_slice()].concat()).map(drop)
}

/// Ends the tenant's API servers, and lets none come back.
fn silence(stage: &Stage, kubectl: &Kubectl, home: &str) -> Result<(), Error> {
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": home},
        "spec": {"hard": {"pods": "0"}},
    });
    stage.kubectl.apply(&quota.to_string())?;
    let selector = "--selector=app.kubernetes.io/name=kube-apiserver";
    let what = ["delete", "pods", selector, "--grace-period=0", "--force"];
    stage.kubectl.run(&[&["--namespace", home], what.as_slice()].concat())?;
    let silent = || match kubectl.run(&["get", "--raw", "/readyz"]) {
        Ok(_) => Err("it answers".to_owned()),
        Err(_) => Ok(()),
    };
    wait::until("the tenant's API to be gone", SOON, POLL, silent, || stage.kubectl.report())
}

/// By the worker and by its cluster: what it is, and who can do something about it.
fn named(stage: &Stage, held: &str) -> Result<(), Error> {
    let words = [held, HOLD, "must remove"];
    let names_it = |object: &Value| {
        let summary = at(object, "/status/summary").as_str().unwrap_or_default();
        match words.iter().all(|word| summary.contains(word)) {
            true => Ok(()),
            false => Err(format!("`{summary}` does not name {words:?}")),
        }
    };
    stage.await_tenant(TENANT, "to name what holds it up", names_it)?;
    let args = ["--namespace", NAMESPACE, "get", "workers.kaas.dev", held];
    let blocked = |worker: &Value| match reason(worker, "Ready") {
        Some("DeletionBlocked") => names_it(worker),
        other => Err(format!("Ready is so for {other:?}")),
    };
    stage
        .kubectl
        .await_object(&format!("Worker {held} to name what holds it up"), &args, WORKERS_READY, blocked)
        .map(drop)
}
