//! The operator's memory and processor time with many workers whose machines and nodes are played: pods of the
//! management cluster that run at once, and nodes that are Ready at once and say so as often as a kubelet does. Their
//! tenants are played too.
//!
//! No kubelet asks for certificates, and nobody judges the nodes: there is no controller-manager.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Results;
use super::door::NODE_LABEL;
use super::line::Line;
use super::player::{self, NAMESPACE, Player, Tenant, at_once};
use super::stage::{MACHINE, Stage, at_rest};
use super::table::{Figure, Unit};
use crate::Error;
use crate::kubectl::at;
use crate::layout::Repository;
use crate::terminal::say;

/// Workers of one tenant.
const EACH: usize = 10;
/// A kubelet with nothing to tell says so after five minutes.
const HEARTBEAT: Duration = Duration::from_secs(300);

/// Plays `count` workers, ten a tenant, and looks at the operator before and after.
pub(super) fn measure(
    count: usize,
    operator: &Path,
    repository: &Repository,
    results: &mut Results,
) -> Result<(), Error> {
    let tenants = count.div_ceil(EACH);
    say(format!("{} played workers of {tenants} played tenants:", tenants * EACH));
    let stage = Stage::start(operator, repository)?;
    let player = &stage.player;
    let tenants: Vec<Tenant> =
        at_once(0..tenants, |number| player.play(number)).map_err(|error| stage.explain(error))?;
    let workers = tenants.len() * EACH;
    let told = |workers: usize| format!("{workers} played workers");
    let before = stage.look(&told(0), results)?;
    results.add(at_rest(&told(0), &before, None))?;
    let begun = Instant::now();
    at_once(0..tenants.len(), |number| tenants.get(number).map_or(Ok(()), |tenant| player.employ(tenant)))?;
    let took = begun.elapsed().as_secs_f64();
    let names =
        tenants.iter().flat_map(|tenant| (0..EACH).map(|ordinal| format!("{}-{ordinal}", tenant.name)));
    let kubelets = player.runtime.spawn(beat(player.api.another(), names.collect()));
    let after = stage.look(&told(workers), results);
    kubelets.abort();
    let after = after?;
    results.add(at_rest(&told(workers), &after, None))?;
    let each = (after.memory - before.memory) / workers as f64;
    results.add(Figure::new(format!("  each of {workers} workers adds"), Unit::Mebibytes, vec![each]))?;
    let title = format!("  {} pools applied -> {workers} workers Ready", tenants.len());
    results.add(Figure::new(title, Unit::Seconds, vec![took]))?;
    // The operator before the tenants that it asks.
    drop(stage);
    Ok(())
}

impl Player {
    /// A pool of the tenant's name, whose machines and nodes come, until the operator says that all are Ready.
    fn employ(&self, tenant: &Tenant) -> Result<(), Error> {
        let Tenant { name, uid, .. } = tenant;
        let pools = format!("/apis/kaas.dev/v1alpha1/namespaces/{NAMESPACE}/workerpools");
        let pool = json!({
            "apiVersion": "kaas.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "clusterName": name, "replicas": EACH, "instanceTypes": [MACHINE], "infrastructure": {"pod": {}},
            },
        });
        self.ask("POST", &pools, Some(&pool), 201)?;
        let machines = format!("/api/v1/namespaces/kaas-workers-{uid}/pods");
        for ordinal in 0..EACH {
            let machine = self.find(&format!("{machines}/{name}-{ordinal}"))?;
            self.boot(tenant, &machines, &machine)?;
        }
        let path = format!("{pools}/{name}");
        self.until(&format!("{EACH} played workers of {name} to be Ready"), || {
            let pool = self.ask("GET", &path, None, 200).map_err(|error| error.to_string())?;
            match at(&pool, "/status/readyReplicas").as_u64() {
                Some(ready) if ready == EACH as u64 => Ok(()),
                _ => Err(at(&pool, "/status").to_string()),
            }
        })
    }

    /// The machine runs, and its kubelet registers the node.
    fn boot(&self, tenant: &Tenant, machines: &str, machine: &Value) -> Result<(), Error> {
        let name = at(machine, "/metadata/name").as_str().unwrap_or_default();
        let address = player::address(tenant.number)?.to_string();
        let container = json!({
            "name": "worker", "image": "played", "imageID": "played", "ready": true, "started": true,
            "restartCount": 0, "state": {"running": {"startedAt": Timestamp::now()}},
        });
        let status = json!({
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "containerStatuses": [container],
        });
        self.say(&format!("{machines}/{name}/status"), status)?;
        let variables = at(machine, "/spec/containers/0/env").as_array().into_iter().flatten();
        let told = |wanted: &str| {
            let mut named = variables.clone().filter(|variable| at(variable, "/name") == wanted);
            named.next().and_then(|variable| at(variable, "/value").as_str()).unwrap_or_default()
        };
        let pairs = told("NODE_LABELS").split(',').filter_map(|pair| pair.split_once('='));
        let own = [(NODE_LABEL, tenant.name.as_str()), ("kubernetes.io/hostname", name)];
        let labels: std::collections::BTreeMap<&str, &str> = pairs.chain(own).collect();
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "spec": {"providerID": told("PROVIDER_ID")},
            "status": {
                "conditions": conditions(),
                "capacity": {"cpu": "1", "memory": "2Gi", "pods": "110"},
                "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
                "nodeInfo": {
                    "kubeletVersion": crate::component::KUBERNETES, "architecture": "amd64", "operatingSystem": "linux",
                    "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
                    "machineID": "", "osImage": "", "systemUUID": "",
                },
            },
        });
        self.ask_at(&self.api, "POST", "/api/v1/nodes", Some(&node), 201).map(drop)
    }
}

/// What a healthy kubelet says of its node.
fn conditions() -> Value {
    let now = Timestamp::now();
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": "played", "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        })
    };
    json!([
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID"),
        condition("Ready", "True", "KubeletReady"),
    ])
}

/// The kubelets go on saying that nothing has changed, one after the other.
async fn beat(line: Line, nodes: Vec<String>) {
    let pause = HEARTBEAT / u32::try_from(nodes.len()).unwrap_or(u32::MAX).max(1);
    for node in nodes.iter().cycle() {
        tokio::time::sleep(pause).await;
        let path = format!("/api/v1/nodes/{node}/status");
        let patch = json!({"status": {"conditions": conditions()}});
        // One that is not heard this time is heard the next.
        let _ = line.ask("PATCH", &path, "application/merge-patch+json", Some(&patch)).await;
    }
}
