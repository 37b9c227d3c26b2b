//! The life of a pool: it comes, grows, shrinks, is repaired by hand, and its labels and taints follow it.

use std::time::Instant;

use serde_json::{Value, json};

use super::{
    POOL, TENANT, WORKERS_READY, apply_pool, await_workers, daily, names, nodes, nothing_is_left_over,
    pool_of_two, pool_spec, text, told, until, workers, workers_are_ready,
};
use crate::Error;
use crate::flow::{NAMESPACE, Stage, claim, known_version, small};
use crate::kubectl::{at, condition};

/// A tenant with workers and one without. What runs on the workers has found its place after the flows before: its way
/// there is told in the tenant's status.
pub(super) fn rest_is_silent(stage: &Stage) -> Result<(), Error> {
    stage.apply_tenant("green", small(known_version()))?;
    pool_of_two(stage)?;
    stage.await_settled("green")?;
    stage.await_tenant(TENANT, "to have all addons", daily::addons_ready)?;
    crate::flow::tenant::rest_is_silent(stage)
}

pub(super) fn two_become_ready(stage: &Stage) -> Result<(), Error> {
    stage.ground()?.stock()?;
    // A tenant that serves already: the time is the workers' own.
    stage.apply_tenant(TENANT, small(known_version()))?;
    stage.await_settled(TENANT)?;
    let started = Instant::now();
    apply_pool(stage, POOL, pool_spec(2))?;
    await_workers(stage, POOL, 2)?;
    told("pool applied -> two workers Ready", started);
    let tenant = stage.await_tenant(TENANT, "to have two workers", |object| {
        workers_are_ready(object, 2)?;
        match condition(object, "WorkersReady") {
            Some("True") => Ok(()),
            _ => Err(at(object, "/status/conditions").to_string()),
        }
    })?;
    claim(at(&tenant, "/status/workers/summary") == "2/2", || {
        format!("status.workers is {}", at(&tenant, "/status/workers"))
    })?;
    let kubectl = stage.tenant_kubectl(TENANT)?;
    nothing_is_left_over(stage, &kubectl)?;
    for (node, worker) in nodes(&kubectl)?.iter().zip(workers(stage)?) {
        let expected = format!("kaas://pod/{}", text(&worker, "/metadata/uid"));
        claim(at(node, "/spec/providerID") == &expected, || {
            format!(
                "node {} is on {}, not on {expected}",
                text(node, "/metadata/name"),
                at(node, "/spec/providerID")
            )
        })?;
        claim(at(node, "/status/nodeInfo/kubeletVersion") == known_version(), || {
            format!("its kubelet is {}", at(node, "/status/nodeInfo/kubeletVersion"))
        })?;
        claim(condition(&worker, "Ready") == Some("True"), || format!("{}", at(&worker, "/status")))?;
        claim(at(&worker, "/status/nodeRef/uid") == at(node, "/metadata/uid"), || {
            format!(
                "its node is {}, its Worker names {}",
                at(node, "/metadata/uid"),
                at(&worker, "/status/nodeRef")
            )
        })?;
        // One core of the machine, less what the node itself needs.
        let processor = text(node, "/status/allocatable/cpu");
        claim(processor == "1" || processor.ends_with('m'), || format!("{processor} cores can be used"))?;
    }
    Ok(())
}

pub(super) fn scales(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    let before = names(&workers(stage)?);
    for count in [3, 1] {
        let started = Instant::now();
        let replicas = format!("--replicas={count}");
        stage.kubectl.run(&["--namespace", NAMESPACE, "scale", "workerpools.kaas.dev", POOL, &replicas])?;
        await_workers(stage, POOL, count)?;
        told(&format!("{count} workers"), started);
        nothing_is_left_over(stage, &kubectl)?;
        let now = names(&workers(stage)?);
        claim(now.len() == count, || format!("{count} workers were asked for, there are {now:?}"))?;
        if count == 3 {
            claim(before.iter().all(|name| now.contains(name)), || format!("{before:?} became {now:?}"))?;
        }
    }
    // The choice was written down and is over.
    let pool = stage.kubectl.read(&["--namespace", NAMESPACE, "get", "workerpools.kaas.dev", POOL])?;
    let removing = at(&pool, "/status/removing").as_array().map_or(0, Vec::len);
    claim(removing == 0, || format!("it still says what it removes: {}", at(&pool, "/status/removing")))
}

pub(super) fn deleted_is_made_again(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    let before = workers(stage)?;
    let first = before.first().cloned().unwrap_or_default();
    let (name, uid) = (text(&first, "/metadata/name"), text(&first, "/metadata/uid"));
    let started = Instant::now();
    stage.kubectl.run(&["--namespace", NAMESPACE, "delete", "workers.kaas.dev", &name, "--wait=false"])?;
    let replaced = || {
        let now = workers(stage).map_err(|error| error.to_string())?;
        match now.iter().any(|worker| at(worker, "/metadata/uid") == &uid) {
            true => Err(format!("{name} is still there")),
            false => Ok(()),
        }
    };
    until(&kubectl, &format!("Worker {name} to be gone"), WORKERS_READY, replaced)?;
    await_workers(stage, POOL, 2)?;
    told("deleted -> gone, and another one Ready", started);
    nothing_is_left_over(stage, &kubectl)?;
    let kept = before.last().map(|worker| text(worker, "/metadata/uid"));
    let now: Vec<_> = workers(stage)?.iter().map(|worker| text(worker, "/metadata/uid")).collect();
    claim(kept.is_some_and(|kept| now.contains(&kept)), || "the other worker was made again too".to_owned())
}

pub(super) fn labels_and_taints_change_in_place(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    let uids =
        |list: &[Value]| -> Vec<String> { list.iter().map(|node| text(node, "/metadata/uid")).collect() };
    let before = uids(&nodes(&kubectl)?);
    kubectl.run(&["label", "nodes", "--all", "--overwrite", "by-hand=stays"])?;
    let taint = json!({"key": "example.com/batch", "value": "yes", "effect": "PreferNoSchedule"});
    let steps = [
        json!({"labels": {"example.com/role": "web", "example.com/tier": "a"}, "taints": [taint]}),
        json!({"labels": {"example.com/role": "db"}, "taints": []}),
        json!({}),
    ];
    for template in steps {
        let started = Instant::now();
        let mut spec = pool_spec(2);
        if let Some(spec) = spec.as_object_mut() {
            spec.insert("template".to_owned(), template.clone());
        }
        apply_pool(stage, POOL, spec)?;
        let applied = || {
            let nodes = nodes(&kubectl).map_err(|error| error.to_string())?;
            nodes.iter().try_for_each(|node| carries(node, &template))
        };
        until(&kubectl, &format!("the nodes to carry {template}"), WORKERS_READY, applied)?;
        told(&format!("in place: {template}"), started);
    }
    await_workers(stage, POOL, 2)?;
    let after = nodes(&kubectl)?;
    claim(uids(&after) == before, || "nodes were made anew for their labels".to_owned())?;
    claim(after.iter().all(|node| at(node, "/metadata/labels/by-hand") == "stays"), || {
        "a label that was put there by hand is gone".to_owned()
    })?;
    kubectl.run(&["label", "nodes", "--all", "by-hand-"]).map(drop)
}

/// The template's labels and taints of `example.com`, and no others of it.
fn carries(node: &Value, template: &Value) -> Result<(), String> {
    let ours = |key: &str| key.starts_with("example.com/");
    let labels = |object: &Value| -> Vec<(String, String)> {
        let labels = object.as_object().into_iter().flatten().filter(|(key, _)| ours(key));
        labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    };
    let taints = |list: &Value| -> Vec<String> {
        let taints = list.as_array().into_iter().flatten().filter(|taint| ours(&text(taint, "/key")));
        taints
            .map(|taint| {
                format!("{}={}:{}", text(taint, "/key"), text(taint, "/value"), text(taint, "/effect"))
            })
            .collect()
    };
    let found = (labels(at(node, "/metadata/labels")), taints(at(node, "/spec/taints")));
    let wanted = (labels(at(template, "/labels")), taints(at(template, "/taints")));
    match found == wanted {
        true => Ok(()),
        false => Err(format!("{} carries {found:?}, not {wanted:?}", text(node, "/metadata/name"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_beside_the_template_counts() {
        let node = json!({
            "metadata": {"labels": {"example.com/role": "web", "kubernetes.io/os": "linux"}},
            "spec": {"taints": [{"key": "example.com/batch", "value": "yes", "effect": "NoSchedule"}]},
        });
        let taint = json!({"key": "example.com/batch", "value": "yes", "effect": "NoSchedule"});
        let template = json!({"labels": {"example.com/role": "web"}, "taints": [taint]});
        assert_eq!(carries(&node, &template), Ok(()));
        assert!(carries(&node, &json!({})).is_err());
        assert!(carries(&node, &json!({"labels": {"example.com/role": "db"}, "taints": [taint]})).is_err());
    }
}
