//! Machines and nodes without a worker: found once in a while, and taken away when a live look agrees.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kaas_crds::{TenantCluster, Worker, name};
use kaas_lifecycle::workers::action::Action;
use kaas_lifecycle::workers::machine::Place;
use kaas_lifecycle::workers::orphan::{Listed, ListedNode, orphaned_nodes, orphans};
use kube::api::{Api, ListParams};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};

use crate::cluster::{DEADLINE, within};
use crate::workers::{Yard, node};

/// Looked for so often: a machine that nobody asked for costs, but hurts nobody.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Looks until the term ends, for the first time as soon as there is something to compare with.
pub(crate) async fn sweep(yard: Arc<Yard>) {
    yard.fleet.read().await;
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let with_workers = yard.fleet.clusters();
        yard.attendants.retain(|uid| with_workers.contains(uid) && yard.tenants.access(uid).is_some());
        let machines = match yard.pods.list().await {
            Ok(machines) => machines,
            Err(refusal) => {
                debug!(why = refusal.message, "machines were not listed");
                continue;
            }
        };
        let mut by_cluster: BTreeMap<&str, Vec<Listed>> = BTreeMap::new();
        for machine in &machines {
            by_cluster.entry(&machine.cluster_uid).or_default().push(machine.clone());
        }
        let clusters: BTreeSet<&str> =
            by_cluster.keys().copied().chain(with_workers.iter().map(String::as_str)).collect();
        for uid in clusters {
            let own = by_cluster.get(uid).map_or(&[][..], Vec::as_slice);
            if let Err(error) = sweep_cluster(&yard, uid, own).await {
                debug!(cluster = uid, %error, "orphans were not looked for");
            }
        }
    }
}

async fn sweep_cluster(yard: &Yard, uid: &str, machines: &[Listed]) -> Result<(), kube::Error> {
    let known: BTreeSet<String> =
        yard.fleet.workers_of(uid).iter().filter_map(|worker| worker.metadata.uid.clone()).collect();
    let nodes = nodes(yard, uid).await;
    let suspicious = !orphans(uid, machines, Some(&known)).is_empty()
        || nodes
            .as_ref()
            .is_some_and(|nodes| !orphaned_nodes(nodes, Some(machines), Some(&known)).is_empty());
    if !suspicious {
        return Ok(());
    }
    // By the watch there are some: now by the API server, and only while their cluster is there.
    let client = &yard.context.client;
    let params = ListParams::default().labels(&format!("{}={uid}", name::TENANT_UID_LABEL));
    let workers: Api<Worker> = Api::all(client.clone());
    let live = within(DEADLINE, workers.list_metadata(&params)).await?;
    let live: BTreeSet<String> = live.items.into_iter().filter_map(|worker| worker.metadata.uid).collect();
    let clusters: Api<TenantCluster> = Api::all(client.clone());
    let there = within(DEADLINE, clusters.list_metadata(&ListParams::default())).await?;
    if !there.items.iter().any(|cluster| cluster.metadata.uid.as_deref() == Some(uid)) {
        return Ok(());
    }
    for action in orphans(uid, machines, Some(&live)) {
        let Action::DeleteMachine { id } = &action else { continue };
        let Some(machine) = machines.iter().find(|machine| machine.id == *id) else { continue };
        if yard.context.gate.check().is_err() {
            return Ok(());
        }
        info!(cluster = uid, machine = machine.name, "a machine without a worker is taken away");
        let place = Place {
            cluster_uid: uid,
            namespace: "",
            cluster: "",
            worker: &machine.name,
            worker_uid: &machine.worker_uid,
        };
        if let Err(refusal) = yard.pods.delete(place, id).await {
            debug!(machine = machine.name, why = refusal.message, "it was not taken away");
        }
    }
    let (Some(nodes), Some(access)) = (nodes, yard.tenants.access(uid)) else { return Ok(()) };
    let api: Api<Node> = Api::all(access.client);
    for (name, action) in orphaned_nodes(&nodes, Some(machines), Some(&live)) {
        let Action::DeleteNode { uid: node_uid } = &action else { continue };
        if yard.context.gate.check().is_err() {
            return Ok(());
        }
        info!(cluster = uid, node = name, "a node without a machine and a worker is taken away");
        node::delete(&api, &name, node_uid).await?;
    }
    Ok(())
}

/// Nodes of a tenant; `None` when it was not read.
async fn nodes(yard: &Yard, uid: &str) -> Option<Vec<ListedNode>> {
    let access = yard.tenants.access(uid).filter(|_| yard.tenants.serving(uid))?;
    let api: Api<Node> = Api::all(access.client);
    let found = within(DEADLINE, api.list(&ListParams::default())).await.ok()?;
    let nodes = found.items.into_iter().map(|node| ListedNode {
        name: node.metadata.name.unwrap_or_default(),
        uid: node.metadata.uid.unwrap_or_default(),
        provider_id: node.spec.and_then(|spec| spec.provider_id).unwrap_or_default(),
    });
    Some(nodes.collect())
}
