//! Pools that cannot get what they ask for: each says why and who can help, and a pool beside them goes on.

use serde_json::{Value, json};

use super::{POOL, TYPE, apply_pool, await_pool, await_workers, pool_of_two, pool_spec};
use crate::Error;
use crate::flow::{NAMESPACE, Stage, chaos, claim, known_version, small};
use crate::kubectl::{at, reason};

const OVERLAPPING: &str = "overlapping";

pub(super) fn bad_pools_are_told(stage: &Stage) -> Result<(), Error> {
    pool_of_two(stage)?;
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
        let told = |pool: &Value| match reason(pool, "Stalled") {
            Some(found) if found == why => Ok(()),
            other => Err(format!("Stalled for {other:?}: {}", at(pool, "/status/summary"))),
        };
        let pool = await_pool(stage, name, &format!("to say {why}"), told)?;
        let summary = at(&pool, "/status/summary").as_str().unwrap_or_default();
        claim(words.iter().all(|word| summary.contains(word)), || {
            format!("`{summary}` does not name {words:?}")
        })?;
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
    // The good one works on.
    await_workers(stage, POOL, 2)?;
    let names = ["untyped", "nowhere", "beside"];
    let what = [&["--namespace", NAMESPACE, "delete", "workerpools.kaas.dev"], names.as_slice()].concat();
    stage.kubectl.run(&what)?;
    chaos::remove(stage, OVERLAPPING)
}

/// The pool with other values in some fields.
fn changed(change: &Value) -> Value {
    let mut spec = pool_spec(1);
    if let (Some(spec), Some(change)) = (spec.as_object_mut(), change.as_object()) {
        spec.extend(change.clone());
    }
    spec
}
