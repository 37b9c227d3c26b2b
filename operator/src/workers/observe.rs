//! Observation of pools and workers. What a decision needs is read now; what comes from a watch is marked so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::ready;
use futures::stream::{StreamExt, iter};
use futures::try_join;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kaas_crds::addons::Addons;
use kaas_crds::condition::ConditionType;
use kaas_crds::tenant_cluster::EndpointType;
use kaas_crds::worker_pool::InfrastructureKind;
use kaas_crds::{TenantCluster, Worker, WorkerPool, name};
use kaas_lifecycle::drain;
use kaas_lifecycle::workers::machine::Place;
use kaas_lifecycle::workers::node::{self as decided, Match};
use kaas_lifecycle::workers::observed::{
    Cluster, Fact, Member, Offer, PoolObserved, Readiness, Unready, WorkerObserved,
};
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::cluster::{DEADLINE, within};
use crate::observe::Error;
use crate::tenant::{Access, Tenants};
use crate::workers::infrastructure::Refusal;
use crate::workers::{Yard, bootstrap, drain as drains, node};

/// A tenant that answers slowly may not hold up the turn for its worker longer.
const TENANT_DEADLINE: Duration = Duration::from_secs(5);
/// Nodes whose pods are counted at once.
const COUNTED_AT_ONCE: usize = 8;

/// A worker as it is seen, and what is needed to act on it.
pub(crate) struct Sight {
    pub(crate) observed: WorkerObserved,
    /// The TenantCluster itself.
    pub(crate) cluster: Option<TenantCluster>,
    /// How its API is reached.
    pub(crate) access: Option<Access>,
    /// Why the infrastructure did not say how the machine stands.
    pub(crate) unanswered: Option<Refusal>,
}

impl Sight {
    /// Whose machine it is.
    pub(crate) fn place(&self) -> Place<'_> {
        place(&self.observed.worker)
    }
}

/// Whose machine a worker's is.
pub(crate) fn place(worker: &Worker) -> Place<'_> {
    Place {
        cluster_uid: &worker.spec.cluster_uid,
        namespace: worker.metadata.namespace.as_deref().unwrap_or_default(),
        cluster: &worker.spec.cluster_name,
        worker: worker.metadata.name.as_deref().unwrap_or_default(),
        worker_uid: worker.metadata.uid.as_deref().unwrap_or_default(),
    }
}

fn failed(kind: &str, name: &str) -> impl FnOnce(kube::Error) -> Error {
    let what = format!("{kind} {name}");
    move |source| Error::Read { what, source }
}

/// A TenantCluster as far as workers depend on it.
fn cluster(found: &TenantCluster, tenants: &Tenants) -> Cluster {
    let network = &found.spec.network;
    let uid = found.uid().unwrap_or_default();
    Cluster {
        serving: tenants.serving(&uid),
        maintenance: found.spec.maintenance.clone(),
        addons: unready(found),
        deleting: found.metadata.deletion_timestamp.is_some(),
        paused: found.spec.paused,
        version: found.status.as_ref().and_then(|status| status.version.clone()).unwrap_or_default(),
        networks: vec![
            ("spec.network.podCIDR".into(), network.pod_cidr.clone()),
            ("spec.network.serviceCIDR".into(), network.service_cidr.clone()),
        ],
        internal: found.spec.control_plane.endpoint.kind == EndpointType::ClusterIP,
        uid,
    }
}

/// What the last report said of add-ons, if they are not ready.
fn unready(found: &TenantCluster) -> Option<Unready> {
    let kind = ConditionType::AddonsReady.to_string();
    let conditions = found.status.iter().flat_map(|status| &status.conditions);
    let said = conditions.into_iter().find(|said| said.type_ == kind && said.status == "False")?;
    Some(Unready { since: said.last_transition_time.0, message: said.message.clone() })
}

/// Reads what a decision about a pool needs; `live` says whether the workers are listed now. `None` when it is gone.
pub(crate) async fn pool(
    yard: &Yard,
    namespace: &str,
    pool: &str,
    live: bool,
) -> Result<Option<PoolObserved>, Error> {
    let client = &yard.context.client;
    let pools: Api<WorkerPool> = Api::namespaced(client.clone(), namespace);
    let Some(object) = within(DEADLINE, pools.get_opt(pool)).await.map_err(failed("WorkerPool", pool))?
    else {
        return Ok(None);
    };
    let clusters: Api<TenantCluster> = Api::namespaced(client.clone(), namespace);
    let wanted = object.spec.cluster_name.clone();
    let found =
        within(DEADLINE, clusters.get_opt(&wanted)).await.map_err(failed("TenantCluster", &wanted))?;
    let workers: Vec<Arc<Worker>> = if live {
        let api: Api<Worker> = Api::namespaced(client.clone(), namespace);
        let listed = within(DEADLINE, api.list(&ListParams::default())).await;
        listed.map_err(failed("Workers of", namespace))?.items.into_iter().map(Arc::new).collect()
    } else {
        yard.fleet.workers(namespace)
    };
    let label = |worker: &Worker| worker.labels().get(name::POOL_LABEL).map(String::as_str) == Some(pool);
    let own = workers
        .iter()
        .filter(|worker| name::worker_ordinal(pool, &worker.name_any()).is_some() || label(worker));
    let mut members: Vec<Member> = own
        .map(|worker| Member { worker: Worker::clone(worker), readiness: readiness(worker), pods: 0 })
        .collect();
    if live
        && let Some(found) = &found
        && let Some(access) = found.uid().and_then(|uid| yard.tenants.access(&uid))
    {
        count_pods(&access, &found.spec.addons, &mut members).await;
    }
    let types = yard.fleet.types();
    let asked = object.spec.instance_types.first();
    let instance_type = types.iter().find(|known| Some(&known.name_any()) == asked);
    let settings = &yard.context.settings;
    Ok(Some(PoolObserved {
        now: Timestamp::now(),
        cluster: found.map_or(Fact::Absent, |found| Fact::Found(cluster(&found, &yard.tenants))),
        instance_type: instance_type.map_or(Fact::Absent, |known| Fact::Found(known.spec.clone())),
        instance_types: types.iter().map(|known| known.name_any()).collect(),
        catalogue: catalogue(yard),
        offer: Offer { pods: settings.offer.pods, networks: settings.offer.networks.clone() },
        pool: object,
        workers: members,
        live,
    }))
}

/// Versions that have images of workers.
fn catalogue(yard: &Yard) -> BTreeSet<String> {
    let releases = yard.catalogue.releases();
    releases.into_iter().filter(|(_, release)| release.addons.is_some()).map(|(version, _)| version).collect()
}

/// How a node stands, as its worker's turn said it last.
fn readiness(worker: &Worker) -> Readiness {
    let conditions = worker.status.iter().flat_map(|status| &status.conditions);
    match conditions.into_iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status == "True" => Readiness::Ready,
        Some(ready)
            if ready.status == "Unknown" || ready.reason == kaas_crds::Reason::NodeSilent.as_str() =>
        {
            Readiness::Silent
        }
        _ => Readiness::NotReady,
    }
}

/// Pods that would have to move, for the choice of what costs least to lose. Where nobody can ask, there is nothing to
/// choose by.
async fn count_pods(access: &Access, addons: &Addons, members: &mut [Member]) {
    let now = Timestamp::now();
    let names: Vec<String> = members.iter().map(|member| member.name().to_owned()).collect();
    let counted = iter(names.into_iter().map(|name| count(access.client.clone(), name, addons, now)));
    let counts: BTreeMap<String, usize> =
        counted.buffer_unordered(COUNTED_AT_ONCE).filter_map(ready).collect().await;
    for member in members {
        member.pods = counts.get(member.name()).copied().unwrap_or_default();
    }
}

/// Pods that would have to move from one node.
async fn count(
    client: kube::Client,
    name: String,
    addons: &Addons,
    now: Timestamp,
) -> Option<(String, usize)> {
    let read = tokio::time::timeout(TENANT_DEADLINE, drains::pods(&client, &name, addons)).await;
    let pods = read.ok()?.ok()?;
    Some((name, drain::left(&pods, false, now).count()))
}

/// Reads what a decision about a worker needs; `None` when it is gone.
pub(crate) async fn worker(yard: &Yard, namespace: &str, worker: &str) -> Result<Option<Sight>, Error> {
    let client = &yard.context.client;
    let workers: Api<Worker> = Api::namespaced(client.clone(), namespace);
    let Some(object) = within(DEADLINE, workers.get_opt(worker)).await.map_err(failed("Worker", worker))?
    else {
        return Ok(None);
    };
    let spec = &object.spec;
    let place = place(&object);
    let clusters: Api<TenantCluster> = Api::namespaced(client.clone(), namespace);
    let external = spec.infrastructure.kind() == Some(InfrastructureKind::External);
    let machine =
        async { Ok(if external { Ok(Fact::Absent) } else { yard.pods.observe(place).await.map(of_option) }) };
    let (found, bootstrap, machine) = try_join!(
        async {
            within(DEADLINE, clusters.get_opt(&spec.cluster_name))
                .await
                .map_err(failed("TenantCluster", &spec.cluster_name))
        },
        async {
            bootstrap::observe(client, &object, &place).await.map_err(failed("Secret of worker", worker))
        },
        machine,
    )?;
    let (machine, unanswered) = match machine {
        Ok(machine) => (machine, None),
        Err(refusal) => (Fact::Unread, Some(refusal)),
    };
    let found = found.filter(|found| found.uid().as_deref() == Some(&spec.cluster_uid));
    let access = found.as_ref().and_then(|found| yard.tenants.access(&found.uid()?));
    let serving = yard.tenants.serving(&spec.cluster_uid);
    let node = match &access {
        Some(access) if serving => node_of(access, worker).await,
        _ => Fact::Unread,
    };
    let owners = object.metadata.owner_references.iter().flatten();
    let owner = owners.filter(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str()).next();
    let pool = yard.fleet.pool(namespace, &spec.pool_name, owner);
    let types = yard.fleet.types();
    let instance_type = types.iter().find(|known| known.name_any() == spec.instance_type);
    let mut observed = WorkerObserved {
        now: Timestamp::now(),
        cluster: found.as_ref().map_or(Fact::Absent, |found| Fact::Found(cluster(found, &yard.tenants))),
        pool: pool.map_or(Fact::Unread, |pool| Fact::Found(WorkerPool::clone(&pool))),
        instance_type: instance_type.map_or(Fact::Unread, |known| Fact::Found(known.spec.clone())),
        machine,
        bootstrap,
        node,
        pods: None,
        last: is_last(yard, &object),
        answers: yard.answers(object.metadata.uid.as_deref().unwrap_or_default()),
        worker: object,
    };
    if observed.deleting()
        && let (Some(access), Match::Own(_), Some(found)) = (&access, decided::matched(&observed), &found)
    {
        let addons = &found.spec.addons;
        let read = tokio::time::timeout(TENANT_DEADLINE, drains::pods(&access.client, worker, addons)).await;
        observed.pods = read.ok().and_then(Result::ok);
    }
    Ok(Some(Sight { observed, cluster: found, access, unanswered }))
}

/// Whether no other worker of its cluster stays.
fn is_last(yard: &Yard, worker: &Worker) -> bool {
    let stays = |other: &Arc<Worker>| {
        other.metadata.uid != worker.metadata.uid && other.metadata.deletion_timestamp.is_none()
    };
    yard.fleet.is_read() && !yard.fleet.workers_of(&worker.spec.cluster_uid).iter().any(stays)
}

fn of_option<T>(found: Option<T>) -> Fact<T> {
    found.map_or(Fact::Absent, Fact::Found)
}

/// The node of a name, asked for now.
async fn node_of(access: &Access, name: &str) -> Fact<kaas_lifecycle::workers::observed::Node> {
    let api: Api<Node> = Api::all(access.client.clone());
    match within(TENANT_DEADLINE, api.get_opt(name)).await {
        Ok(found) => of_option(found.map(|found| node::facts(&found))),
        Err(error) => {
            tracing::debug!(node = name, %error, "the node was not read");
            Fact::Unread
        }
    }
}
