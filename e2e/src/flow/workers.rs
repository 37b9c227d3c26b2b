//! Tenants that run something: a pool of two workers that are pods, and what its users do with it, to it, and against
//! it. Each flow asks for the pool as it needs it, and finds what the one before left.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Flow, NAMESPACE, POLL, Stage, known_version, small};
use crate::Error;
use crate::component;
use crate::demo::workers_are_ready;
use crate::kubectl::{Kubectl, at, condition};
use crate::terminal::say;
use crate::wait;

mod conformance;
mod daily;
mod departure;
mod external;
mod forgery;
mod forward;
mod gate;
mod pool;
mod refusal;
mod tunnel;
mod workload;

const TENANT: &str = "busy";
const POOL: &str = "general";
/// Of the chart, where workers may be pods.
pub(super) const TYPE: &str = "pod-small";
/// A worker is there in seconds; the first one of a machine pulls the addons' images too.
const WORKERS_READY: Duration = Duration::from_secs(180);
/// An object is there for so long after what it stands for.
const MOMENT: Duration = Duration::from_secs(10);
const LOCAL: Option<&str> =
    Some("elsewhere workers may not be pods, and their images come from the local registry");

pub(super) const FLOWS: &[Flow] = &[
    Flow { name: "a pool of two workers becomes Ready", local_only: LOCAL, run: pool::two_become_ready },
    Flow {
        name: "a StatefulSet with volumes and a webhook run on workers",
        local_only: LOCAL,
        run: workload::volumes_and_a_webhook,
    },
    Flow {
        name: "run, logs, exec, port-forward, top, expose, DNS and Services work",
        local_only: LOCAL,
        run: daily::everything_works,
    },
    Flow {
        name: "issuer discovery, host ports, headless names, affinity and kubelets' proxies work",
        local_only: LOCAL,
        run: conformance::what_is_certified,
    },
    Flow {
        name: "API servers scale 1 -> 3 -> 1 under load, and so does the tunnel",
        local_only: LOCAL,
        run: tunnel::goes_on_while_servers_roll,
    },
    Flow { name: "an autoscaler adds a pod by its use", local_only: LOCAL, run: workload::it_grows },
    Flow {
        name: "labels and taints of a pool change in place",
        local_only: LOCAL,
        run: pool::labels_and_taints_change_in_place,
    },
    Flow {
        name: "nobody gets a certificate or a Secret of a worker by asking",
        local_only: LOCAL,
        run: forgery::workers_are_not_impersonated,
    },
    Flow {
        name: "a platform that offers no pods any more says so, and takes none away",
        local_only: LOCAL,
        run: refusal::pods_are_switched_off,
    },
    Flow { name: "a pool scales 2 -> 3 -> 1", local_only: LOCAL, run: pool::scales },
    Flow {
        name: "a worker that was deleted by hand is made again",
        local_only: LOCAL,
        run: pool::deleted_is_made_again,
    },
    Flow {
        name: "a drain waits for a budget and says so",
        local_only: LOCAL,
        run: departure::a_budget_is_respected,
    },
    Flow {
        name: "a pool that cannot be is a condition, and others go on",
        local_only: LOCAL,
        run: refusal::bad_pools_are_told,
    },
    Flow {
        name: "a machine of one's own joins by the printed command",
        local_only: LOCAL,
        run: external::a_machine_of_ones_own_joins,
    },
    Flow {
        name: "at rest, with workers and without, the operator writes nothing",
        local_only: Some("it reads the API server's audit log"),
        run: pool::rest_is_silent,
    },
    Flow {
        name: "a changed template rolls the workers",
        local_only: LOCAL,
        run: departure::a_template_rolls,
    },
    Flow {
        name: "a tenant with workers is deleted, whatever blocks",
        local_only: LOCAL,
        run: departure::a_tenant_with_workers_goes,
    },
];

/// The image that all test programs are in.
pub(super) fn agnhost() -> String {
    format!("registry.k8s.io/e2e-test-images/agnhost:{}", component::AGNHOST)
}

/// What a pool of this tenant asks for.
fn pool_spec(replicas: usize) -> Value {
    json!({
        "clusterName": TENANT, "replicas": replicas, "instanceTypes": [TYPE], "infrastructure": {"pod": {}},
        "rollout": {"drain": {"timeout": "5m"}},
    })
}

/// The tenant with its pool of two at rest, as every flow here begins; kubectl as its administrator.
fn pool_of_two(stage: &Stage) -> Result<Kubectl, Error> {
    let ground = stage.ground()?;
    ground.stock()?;
    stage.apply_tenant(TENANT, small(known_version()))?;
    apply_pool(stage, POOL, pool_spec(2))?;
    await_workers(stage, POOL, 2)?;
    stage.tenant_kubectl(TENANT)
}

pub(super) fn apply_pool(stage: &Stage, name: &str, spec: Value) -> Result<(), Error> {
    let pool = json!({
        "apiVersion": "kaas.dev/v1alpha1", "kind": "WorkerPool",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    });
    stage.kubectl.apply(&pool.to_string())
}

fn await_pool(
    stage: &Stage,
    name: &str,
    what: &str,
    accept: impl Fn(&Value) -> Result<(), String>,
) -> Result<Value, Error> {
    let args = ["--namespace", NAMESPACE, "get", "workerpools.kaas.dev", name];
    stage.kubectl.await_object(&format!("WorkerPool {name} {what}"), &args, WORKERS_READY, accept)
}

/// So many workers, all of them Ready and of the newest template, and none that still goes.
pub(super) fn await_workers(stage: &Stage, name: &str, count: usize) -> Result<Value, Error> {
    let wanted = i64::try_from(count).unwrap_or(i64::MAX);
    let there = |pool: &Value| {
        let number = |pointer: &str| at(pool, pointer).as_i64().unwrap_or(0);
        if number("/status/observedGeneration") < number("/metadata/generation") {
            return Err("the operator has not seen its newest spec".to_owned());
        }
        let counts =
            ["/spec/replicas", "/status/replicas", "/status/readyReplicas", "/status/updatedReplicas"];
        match (counts.iter().all(|pointer| number(pointer) == wanted), condition(pool, "Reconciling")) {
            (true, Some("False")) => Ok(()),
            _ => Err(at(pool, "/status/summary").as_str().unwrap_or("no summary").to_owned()),
        }
    };
    await_pool(stage, name, &format!("to have {count} workers"), there)
}

/// The Workers of the tenant, by name.
fn workers(stage: &Stage) -> Result<Vec<Value>, Error> {
    let list = stage.kubectl.read(&["--namespace", NAMESPACE, "get", "workers.kaas.dev"])?;
    let of_tenant = |worker: &&Value| at(worker, "/spec/clusterName") == TENANT;
    Ok(at(&list, "/items").as_array().into_iter().flatten().filter(of_tenant).cloned().collect())
}

/// Names of the objects of a list.
fn names(list: &[Value]) -> Vec<String> {
    list.iter().map(|object| text(object, "/metadata/name")).collect()
}

fn uids(list: &[Value]) -> BTreeSet<String> {
    list.iter().map(|object| text(object, "/metadata/uid")).collect()
}

pub(super) fn text(object: &Value, pointer: &str) -> String {
    at(object, pointer).as_str().unwrap_or_default().to_owned()
}

/// The nodes of the tenant, by name.
pub(super) fn nodes(kubectl: &Kubectl) -> Result<Vec<Value>, Error> {
    Ok(at(&kubectl.read(&["get", "nodes"])?, "/items").as_array().cloned().unwrap_or_default())
}

/// The namespace of the tenant's machines that are pods.
fn machines(stage: &Stage) -> Result<String, Error> {
    Ok(stage.home(TENANT)?.replacen("kaas-", "kaas-workers-", 1))
}

/// Workers, their nodes and their machines are the same, by name. A machine that has ended is listed for a moment.
fn nothing_is_left_over(stage: &Stage, kubectl: &Kubectl) -> Result<(), Error> {
    let machines = machines(stage)?;
    let same = || {
        let told = |error: Error| error.to_string();
        let expected = names(&workers(stage).map_err(told)?);
        let pods = stage.kubectl.read(&["--namespace", &machines, "get", "pods"]).map_err(told)?;
        let pods = names(at(&pods, "/items").as_array().map(Vec::as_slice).unwrap_or_default());
        let nodes = names(&nodes(kubectl).map_err(told)?);
        match expected == pods && expected == nodes {
            true => Ok(()),
            false => Err(format!("Workers {expected:?} have the machines {pods:?} and the nodes {nodes:?}")),
        }
    };
    let report = || stage.kubectl.report();
    wait::until("nothing to be left of workers that are gone", MOMENT, POLL, same, report)
}

/// Polls the tenant until it is as it should be; otherwise its pods and events are told.
fn until<T>(
    kubectl: &Kubectl,
    what: &str,
    deadline: Duration,
    mut check: impl FnMut() -> Result<T, String>,
) -> Result<T, Error> {
    wait::until(what, deadline, POLL, &mut check, || kubectl.report())
}

/// A pod of the tenant runs and is ready.
fn await_pod(kubectl: &Kubectl, name: &str) -> Result<Value, Error> {
    let ready = |pod: &Value| match condition(pod, "Ready") {
        Some("True") => Ok(()),
        _ => Err(format!("{}", at(pod, "/status/containerStatuses"))),
    };
    kubectl.await_object(&format!("Pod {name} to be Ready"), &["get", "pod", name], WORKERS_READY, ready)
}

/// Says how long something took.
fn told(what: &str, since: Instant) {
    say(format!("  {what}: {:.1} s", since.elapsed().as_secs_f32()));
}
