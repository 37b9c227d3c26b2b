//! Observation: live reads of everything that a decision about one tenant needs.
//!
//! Watches only wake; what is decided on is read now, so that no decision rests on a stale cache.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{try_join, try_join_all};
use futures::join;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kaas_crds::{KubernetesReleaseSpec, TenantCluster, Worker, name};
use kaas_lifecycle::action::Authority;
use kaas_lifecycle::endpoint;
use kaas_lifecycle::object::{Kind, Reference};
use kaas_lifecycle::observed::{Live, Namespace, Observed};
use kaas_lifecycle::tenant::{Platform, Tenant};
use kaas_lifecycle::upgrade::canary::{self, Trial};
use kaas_lifecycle::workers::report::Tally;
use kube::api::{Api, ListParams};
use tokio::sync::Semaphore;

use crate::class::{Class, classify};
use crate::cluster::{self, DEADLINE, within};
use crate::inside;
use crate::keyring::Keyring;
use crate::tenant::Tenants;
use crate::workers::fleet::Fleet;

mod etcd;
mod pod;
pub(crate) mod preflight;
mod secret;

/// A read that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A read of the management cluster.
    #[error("cannot read {what}: {source}")]
    Read {
        /// What was read.
        what: String,
        /// Why it failed.
        source: kube::Error,
    },
}

impl Error {
    /// What kind of failure it is.
    pub(crate) fn class(&self) -> Class {
        match self {
            Error::Read { source, .. } => classify(source),
        }
    }
}

/// What observation needs besides the object.
pub(crate) struct Sources<'a> {
    /// The management cluster.
    pub(crate) client: &'a kube::Client,
    /// What the platform set.
    pub(crate) platform: &'a Platform,
    /// The catalogue.
    pub(crate) catalogue: BTreeMap<String, KubernetesReleaseSpec>,
    /// Clients and probes of tenants.
    pub(crate) tenants: &'a Arc<Tenants>,
    /// A turn to read the management cluster.
    pub(crate) reading: &'a Semaphore,
    /// Pools and workers.
    pub(crate) fleet: &'a Fleet,
}

/// So many tenants are read from the management cluster at a time, each with a dozen requests. More would not be
/// faster, but an operator that starts with a thousand tenants would open a connection for each request of as many
/// tenants as it works on at once, and the memory of that peak stays.
pub(crate) const READ_AT_ONCE: usize = 6;

/// How long a name may take to resolve.
const RESOLVE: Duration = Duration::from_secs(2);

/// Kinds in the control-plane namespace that are compared field by field.
const KINDS: [Kind; 8] = [
    Kind::ConfigMap,
    Kind::PersistentVolumeClaim,
    Kind::Service,
    Kind::StatefulSet,
    Kind::Deployment,
    Kind::ControllerRevision,
    Kind::NetworkPolicy,
    Kind::PodDisruptionBudget,
];

/// Reads the world around one tenant cluster; `None` when the object itself is gone.
pub(crate) async fn observe(
    sources: &Sources<'_>,
    namespace: &str,
    cluster: &str,
) -> Result<Option<(Observed, Keyring)>, Error> {
    let client = sources.client;
    // Nobody closes it. What is read inside a tenant comes after it was given back: a slow tenant holds up no other.
    let turn = sources.reading.acquire().await;
    let clusters: Api<TenantCluster> = Api::namespaced(client.clone(), namespace);
    let found =
        within(DEADLINE, clusters.get_opt(cluster)).await.map_err(failed("TenantCluster", cluster))?;
    let Some(object) = found else { return Ok(None) };
    let uid = object.metadata.uid.clone().unwrap_or_default();
    let tenant = Tenant::new(uid, namespace, cluster);
    let namespaces = namespaces(client, &tenant).await?;
    let tenant = match namespaces.iter().find(|found| found.is_home_of(&tenant)) {
        Some(found) => tenant.moved_into(&found.name),
        None => tenant,
    };
    let home = tenant.control_plane_namespace();

    let mut observed = Observed {
        now: Timestamp::now(),
        platform: sources.platform.clone(),
        cluster: object,
        catalogue: sources.catalogue.clone(),
        namespaces,
        objects: BTreeMap::new(),
        secrets: BTreeMap::new(),
        kubeconfig: None,
        pods: Vec::new(),
        etcd: None,
        probe: None,
        trial: None,
        vigil: None,
        addresses: BTreeSet::new(),
        inside: None,
        addons: None,
        preflight: None,
        authority: None,
        workers: sources.fleet.tally(namespace, cluster, &tenant.uid),
        tenant,
    };
    if observed.deleting() {
        // By a watch alone nobody may go: one that it has not told of yet would be left behind.
        let left = left(client, namespace, &observed.tenant.uid).await?;
        observed.workers = observed.workers.map(|tally| Tally { left, ..tally });
    }
    let mut keyring = Keyring::default();
    let beside: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let kubeconfig_name = name::kubeconfig_secret(cluster);
    let kubeconfig = within(DEADLINE, beside.get_opt(&kubeconfig_name))
        .await
        .map_err(failed("Secret", &kubeconfig_name))?;
    if observed.own_namespace().is_none() {
        observed.kubeconfig = kubeconfig.map(|found| secret::facts(&found, &keyring));
        return Ok(Some((observed, keyring)));
    }

    let selector = format!("{}={}", name::MANAGED_BY_LABEL, name::MANAGED_BY);
    let params = ListParams::default().labels(&selector);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &home);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &home);
    let objects = try_join_all(KINDS.map(|kind| {
        let (home, selector) = (&home, &selector);
        async move {
            cluster::list(client, kind, Some(home), selector).await.map_err(failed(&kind.to_string(), home))
        }
    }));
    let rest = try_join(
        async { within(DEADLINE, secrets.list(&params)).await.map_err(failed("Secrets", &home)) },
        async { within(DEADLINE, pods.list(&params)).await.map_err(failed("Pods", &home)) },
    );
    let (objects, (secrets, pods)) = try_join(objects, rest).await?;
    drop(turn);
    observed.objects = objects.into_iter().flatten().collect();
    secrets.items.iter().for_each(|found| keyring.read(found));
    observed.secrets = secrets
        .items
        .iter()
        .map(|found| (found.metadata.name.clone().unwrap_or_default(), secret::facts(found, &keyring)))
        .collect();
    observed.kubeconfig = kubeconfig.map(|found| secret::facts(&found, &keyring));
    observed.authority = keyring.authority_certificate(Authority::Cluster).map(str::to_owned);
    observed.pods = pods.items.iter().map(pod::facts).collect();
    if !observed.deleting() {
        // Before what is inside is read, which goes by it: an answer that comes meanwhile is for the next look.
        observed.probe = sources.tenants.latest(&observed.tenant.uid);
        let (etcd, inside) = join!(
            etcd::observe(&observed.tenant, &pods.items, &keyring),
            own_objects(sources, &observed, &keyring)
        );
        observed.etcd = etcd;
        observed.inside = inside;
        observed.trial = trial(sources.tenants, &observed, &pods.items);
        observed.vigil = sources.tenants.seen(&observed.tenant.uid);
        if let Some(endpoint) = endpoint::endpoint(&observed) {
            observed.addresses = resolve(&endpoint.host, endpoint.port).await;
        }
        if let Some((client, memory)) = sources.tenants.inside(&observed, &keyring) {
            let client = observed.inside.is_some().then_some(&client);
            if let Some(client) = client
                && let Err(error) = within(DEADLINE, inside::observe(client, &memory, &mut observed)).await
            {
                tracing::debug!(%error, "the tenant's addons were not read");
            }
            let look = preflight::observe(client, &memory.preflight, &observed, &pods.items, &keyring);
            observed.preflight = look.await;
        }
    }
    Ok(Some((observed, keyring)))
}

/// What the canary of an upgrade has proved, once it is ready.
fn trial(tenants: &Tenants, observed: &Observed, pods: &[Pod]) -> Option<Trial> {
    let canary = canary::pod(observed)?;
    let pod = pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(&canary.uid))?;
    let address = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
    tenants.prove(&observed.tenant, &canary.uid, address)
}

/// Workers that are left of a cluster.
async fn left(client: &kube::Client, namespace: &str, uid: &str) -> Result<usize, Error> {
    let workers: Api<Worker> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(&format!("{}={uid}", name::TENANT_UID_LABEL));
    let found = within(DEADLINE, workers.list_metadata(&params)).await;
    Ok(found.map_err(failed("Workers", namespace))?.items.len())
}

fn failed(kind: &str, name: &str) -> impl FnOnce(kube::Error) -> Error {
    let what = format!("{kind} {name}");
    move |source| Error::Read { what, source }
}

/// Addresses of a host. A name that does not resolve now gives none, which changes nothing.
async fn resolve(host: &str, port: u16) -> BTreeSet<IpAddr> {
    if let Ok(address) = host.parse() {
        return BTreeSet::from([address]);
    }
    match tokio::time::timeout(RESOLVE, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        Ok(Err(error)) => {
            tracing::debug!(host, %error, "the endpoint's name does not resolve");
            BTreeSet::new()
        }
        Err(_) => BTreeSet::new(),
    }
}

/// The tenant's namespace, and those of earlier objects of its name.
async fn namespaces(client: &kube::Client, tenant: &Tenant) -> Result<Vec<Namespace>, Error> {
    let selector = format!(
        "{}={},{}={},{}={}",
        name::MANAGED_BY_LABEL,
        name::MANAGED_BY,
        name::TENANT_NAMESPACE_LABEL,
        tenant.namespace,
        name::TENANT_NAME_LABEL,
        tenant.name
    );
    let found = cluster::list(client, Kind::Namespace, None, &selector)
        .await
        .map_err(failed("Namespaces", &selector))?;
    Ok(found.into_iter().map(|(reference, live)| namespace(reference.name, &live)).collect())
}

fn namespace(name: String, live: &Live) -> Namespace {
    let metadata = |part: &str, key: &str| {
        live.get(part).and_then(|map| map.get(key)).and_then(|value| value.as_str()).map(str::to_owned)
    };
    let blocking =
        ["NamespaceDeletionContentFailure", "NamespaceContentRemaining", "NamespaceFinalizersRemaining"];
    let conditions = live.get("/status/conditions").and_then(|list| list.as_array());
    let remaining = conditions
        .into_iter()
        .flatten()
        .filter(|condition| {
            condition["status"] == "True" && blocking.iter().any(|kind| condition["type"] == **kind)
        })
        .filter_map(|condition| condition["message"].as_str().map(str::to_owned))
        .collect();
    Namespace {
        name,
        uid: live.uid.clone(),
        resource_version: live.resource_version.clone(),
        tenant_uid: metadata("/metadata/labels", name::TENANT_UID_LABEL).unwrap_or_default(),
        adopt_by: metadata("/metadata/annotations", name::ADOPT_ANNOTATION),
        terminating: live.terminating,
        remaining,
    }
}

/// What makes a tenant's API complete, as it is inside; `None` unless its API answered the last probe and this read.
async fn own_objects(
    sources: &Sources<'_>,
    observed: &Observed,
    keyring: &Keyring,
) -> Option<BTreeMap<Reference, Live>> {
    let client = sources.tenants.client(observed, keyring)?;
    if !observed.serving() {
        return None;
    }
    // One after the other, on the connection that is there: all at once they would open one each, and a handshake costs
    // both sides more time and memory than these few reads.
    let reads = async {
        let mut found = BTreeMap::new();
        for reference in kaas_lifecycle::plan::inside_references() {
            if let Some(live) = cluster::get(&client, &reference).await? {
                found.insert(reference, live);
            }
        }
        Ok(found)
    };
    within(DEADLINE, reads)
        .await
        .inspect_err(|error| tracing::debug!(%error, "the tenant's API was not read"))
        .ok()
}
