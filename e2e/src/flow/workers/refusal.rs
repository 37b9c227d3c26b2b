//! Pools that cannot get what they ask for: each says why and who can help, and a pool beside them goes on.

use serde_json::{Value, json};

use super::{
    POOL, TENANT, TYPE, apply_pool, await_pool, await_workers, machines, names, pool_of_two, pool_spec, uids,
    workers,
};
use crate::Error;
use crate::flow::{NAMESPACE, Stage, claim, known_version, small};
use crate::kubectl::{at, condition, reason};

const OVERLAPPING: &str = "overlapping";

/// The platform takes its offer of pods back, with the chart's own value, and makes it again.
pub(super) fn pods_are_switched_off(stage: &Stage) -> Result<(), Error> {
    pool_of_two(stage)?;
    let ground = stage.ground()?;
    let before = uids(&workers(stage)?);
    let off = [("workers.pod.enabled", json!(false))];
    ground.cluster.borrow_mut().install_operator_with(&ground.repository, &off)?;
    let told = a_third_is_not_made(stage);
    let kept = workers(stage);
    ground.cluster.borrow_mut().install_operator(&ground.repository)?;
    told?;
    claim(uids(&kept?) == before, || "workers went, or came, with the offer".to_owned())?;
    await_workers(stage, POOL, 3)?;
    let after = uids(&workers(stage)?);
    claim(before.is_subset(&after), || "workers were made anew for the offer".to_owned())
}

fn a_third_is_not_made(stage: &Stage) -> Result<(), Error> {
    apply_pool(stage, POOL, pool_spec(3))?;
    let pool = await_reason(stage, POOL, "InfrastructureDisabled")?;
    names_all(&pool, &["platform", "workers.pod.enabled"])?;
    // Those that there are go on.
    claim(at(&pool, "/status/readyReplicas") == 2, || {
        format!("{} of two workers are Ready", at(&pool, "/status/readyReplicas"))
    })?;
    let pods = stage.kubectl.read(&["--namespace", &machines(stage)?, "get", "pods"])?;
    let pods = at(&pods, "/items").as_array().cloned().unwrap_or_default();
    let running = pods.iter().filter(|pod| condition(pod, "Ready") == Some("True"));
    claim(running.count() == 2 && pods.len() == 2, || format!("the machines are {:?}", names(&pods)))
}

/// The pool is stalled for this reason.
fn await_reason(stage: &Stage, name: &str, why: &str) -> Result<Value, Error> {
    await_pool(stage, name, &format!("to say {why}"), |pool| match reason(pool, "Stalled") {
        Some(found) if found == why => Ok(()),
        other => Err(format!("Stalled for {other:?}: {}", at(pool, "/status/summary"))),
    })
}

fn names_all(pool: &Value, words: &[&str]) -> Result<(), Error> {
    let summary = at(pool, "/status/summary").as_str().unwrap_or_default();
    claim(words.iter().all(|word| summary.contains(word)), || format!("`{summary}` does not name {words:?}"))
}

pub(super) fn bad_pools_are_told(stage: &Stage) -> Result<(), Error> {
    stage.ground()?.stock()?;
    stage.apply_tenant(TENANT, small(known_version()))?;
    apply_pool(stage, POOL, pool_spec(1))?;
    // Its pods have the addresses of the management cluster's own.
    let mut spec = small(known_version());
    if let Some(spec) = spec.as_object_mut() {
        let network = json!({"podCIDR": crate::network::POD_CIDR, "serviceCIDR": "100.65.0.0/16"});
        spec.insert("network".to_owned(), network);
    }
    stage.apply_tenant(OVERLAPPING, spec)?;
    for (name, change, why, words) in [
        ("untyped", json!({"instanceTypes": ["huge"]}), "InstanceTypeNotFound", vec!["huge", TYPE]),
        ("nowhere", json!({"clusterName": "absent"}), "ClusterNotFound", vec!["absent"]),
        (
            "beside",
            json!({"clusterName": OVERLAPPING}),
            "NetworkOverlap",
            vec![crate::network::POD_CIDR, "podCIDR", OVERLAPPING],
        ),
    ] {
        apply_pool(stage, name, changed(&change))?;
        let pool = await_reason(stage, name, why)?;
        names_all(&pool, &words)?;
        claim(at(&pool, "/status/replicas") == 0, || format!("{name} has workers"))?;
    }
    for (what, change, words) in [
        (
            "a taint",
            json!({"template": {"taints": [{"key": "a b", "effect": "NoSchedule"}]}}),
            ["taints", "a b"],
        ),
        ("a count", json!({"replicas": 1001}), ["replicas", "1000"]),
        ("a setting", json!({"template": {"kubelet": {"maxPods": 4}}}), ["maxPods", "5"]),
        (
            "a label",
            json!({"template": {"labels": {"kubernetes.io/os": "plan9"}}}),
            ["labels", "kubernetes.io"],
        ),
    ] {
        match apply_pool(stage, "refused", changed(&change)) {
            Ok(()) => return Err(Error::Invalid(format!("{what} that is bad was accepted: {change}"))),
            Err(error) => {
                let text = error.to_string();
                claim(words.iter().all(|word| text.contains(word)), || {
                    format!("the refusal of {what} does not name {words:?}: {text}")
                })?;
            }
        }
    }
    let machines = stage.home(OVERLAPPING)?.replacen("kaas-", "kaas-workers-", 1);
    let made = ["get", "namespace", &machines, "--ignore-not-found", "--output", "name"];
    let made = stage.kubectl.run(&made)?;
    claim(made.trim().is_empty(), || format!("{OVERLAPPING} has a place for machines: {made}"))?;
    // The good one gets another worker while the others stand there.
    pool_of_two(stage)?;
    let names = ["untyped", "nowhere", "beside"];
    let what = [&["--namespace", NAMESPACE, "delete", "workerpools.kaas.dev"], names.as_slice()].concat();
    stage.kubectl.run(&what)?;
    stage.dismiss(OVERLAPPING)
}

/// The pool with other values in some fields.
fn changed(change: &Value) -> Value {
    let mut spec = pool_spec(1);
    if let (Some(spec), Some(change)) = (spec.as_object_mut(), change.as_object()) {
        spec.extend(change.clone());
    }
    spec
}
