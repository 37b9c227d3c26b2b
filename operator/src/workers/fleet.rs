//! The fleet: pools, workers and instance types as the watches know them, and who is woken when one of them changes.
//!
//! What is kept of each is what lists are needed for; whoever decides on one reads it. A thousand workers must cost little.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use futures::stream::{Stream, StreamExt};
use futures::{TryStreamExt, join};
use k8s_openapi::api::core::v1::Pod;
use kaas_crds::name::{self, component};
use kaas_crds::{InstanceType, TenantCluster, Worker, WorkerPool};
use kaas_lifecycle::workers::report::{Tally, tally};
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tracing::debug;

use crate::controllers::WATCH_TIMEOUT_SECONDS;
use crate::tenant::Name;

/// Who is woken, by namespace and name.
#[derive(Clone)]
pub(crate) struct Wakes {
    pub(crate) clusters: UnboundedSender<Name>,
    pub(crate) pools: UnboundedSender<Name>,
    pub(crate) workers: UnboundedSender<Name>,
}

/// The other ends.
pub(crate) struct Woken {
    pub(crate) clusters: UnboundedReceiver<Name>,
    pub(crate) pools: UnboundedReceiver<Name>,
    pub(crate) workers: UnboundedReceiver<Name>,
}

/// A bell for each kind.
pub(crate) fn wakes() -> (Wakes, Woken) {
    let (clusters, clusters_woken) = unbounded_channel();
    let (pools, pools_woken) = unbounded_channel();
    let (workers, workers_woken) = unbounded_channel();
    (
        Wakes { clusters, pools, workers },
        Woken { clusters: clusters_woken, pools: pools_woken, workers: workers_woken },
    )
}

/// What is known of pools, workers and instance types.
pub(crate) struct Fleet {
    pools: Store<WorkerPool>,
    workers: Store<Worker>,
    types: Store<InstanceType>,
    /// Whether all of them were read once: before that the world looks empty.
    read: watch::Sender<bool>,
    wakes: Wakes,
}

/// Events of pools and of workers, for their controllers.
pub(crate) struct Events<P, W> {
    pub(crate) pools: P,
    pub(crate) workers: W,
}

type Event<K> = Result<K, watcher::Error>;

impl Fleet {
    /// The fleet, the events that keep it up to date, and the work that wakes others.
    pub(crate) fn watch(
        client: &kube::Client,
        wakes: Wakes,
    ) -> (
        Arc<Self>,
        Events<
            impl Stream<Item = Event<WorkerPool>> + Send + use<>,
            impl Stream<Item = Event<Worker>> + Send + use<>,
        >,
        impl Future<Output = ()> + Send + use<>,
    ) {
        let (pools, pool_writer) = store();
        let (workers, worker_writer) = store();
        let (types, type_writer) = store();
        let fleet = Arc::new(Fleet { pools, workers, types, read: watch::Sender::new(false), wakes });

        let woken = fleet.clone();
        let pool_events = watched(Api::<WorkerPool>::all(client.clone()))
            .modify(|pool| {
                pool.metadata.managed_fields = None;
                if let Some(status) = &mut pool.status {
                    status.conditions.clear();
                }
            })
            .reflect(pool_writer)
            .touched_objects()
            .inspect_ok(move |pool| woken.pool_changed(pool));
        let woken = fleet.clone();
        let worker_events = watched(Api::<Worker>::all(client.clone()))
            .modify(|worker| {
                worker.metadata.managed_fields = None;
                if let Some(status) = &mut worker.status {
                    status.conditions.retain(|condition| condition.type_ == "Ready");
                }
            })
            .reflect(worker_writer)
            .touched_objects()
            .inspect_ok(move |worker| woken.worker_changed(worker));
        let type_events =
            watched(Api::<InstanceType>::all(client.clone())).reflect(type_writer).touched_objects();
        let clusters: Api<PartialObjectMeta<TenantCluster>> = Api::all(client.clone());
        let machines: Api<PartialObjectMeta<Pod>> = Api::all(client.clone());
        let (clusters, machines) = (watched(clusters), watch_selected(machines, &machine_selector()));
        let others = fleet.clone();
        let work = async move {
            let reading = async {
                let stores = (
                    others.pools.wait_until_ready(),
                    others.workers.wait_until_ready(),
                    others.types.wait_until_ready(),
                );
                let read = join!(stores.0, stores.1, stores.2);
                if matches!(read, (Ok(()), Ok(()), Ok(()))) {
                    others.read.send_replace(true);
                    // Whoever looked before could not count.
                    others.pools.state().iter().for_each(|pool| others.pool_changed(pool));
                }
            };
            let types = follow(type_events, "instance types", |_| others.wake_pools(|_| true));
            let clusters = follow(clusters.touched_objects(), "clusters", |cluster| {
                others.cluster_changed(&cluster.namespace().unwrap_or_default(), &cluster.name_any());
            });
            let machines =
                follow(machines.touched_objects(), "machines", |machine| others.machine_changed(&machine));
            join!(reading, types, clusters, machines);
        };
        (fleet, Events { pools: pool_events, workers: worker_events }, work)
    }

    /// The stores that controllers look objects up in.
    pub(crate) fn stores(&self) -> (Store<WorkerPool>, Store<Worker>) {
        (self.pools.clone(), self.workers.clone())
    }

    /// Whether everything was read once.
    pub(crate) fn is_read(&self) -> bool {
        *self.read.borrow()
    }

    /// Once everything was read.
    pub(crate) async fn read(&self) {
        // It lives as long as the fleet.
        let _ = self.read.subscribe().wait_for(|read| *read).await;
    }

    /// Pools of a cluster.
    pub(crate) fn pools(&self, namespace: &str, cluster: &str) -> Vec<Arc<WorkerPool>> {
        self.pools.state_filter(|pool| within(pool, namespace) && pool.spec.cluster_name == cluster)
    }

    /// A pool, if it is still the one with this UID.
    pub(crate) fn pool(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Arc<WorkerPool>> {
        let found = self.pools.find(|pool| within(pool, namespace) && pool.name_any() == name)?;
        uid.is_none_or(|uid| found.metadata.uid.as_deref() == Some(uid)).then_some(found)
    }

    /// Workers of a namespace.
    pub(crate) fn workers(&self, namespace: &str) -> Vec<Arc<Worker>> {
        self.workers.state_filter(|worker| within(worker, namespace))
    }

    /// Workers of a cluster.
    pub(crate) fn workers_of(&self, cluster_uid: &str) -> Vec<Arc<Worker>> {
        self.workers.state_filter(|worker| worker.spec.cluster_uid == cluster_uid)
    }

    /// Versions that workers of a cluster have, or are asked to have by their pool.
    pub(crate) fn versions(&self, namespace: &str, cluster: &str, uid: &str) -> BTreeSet<String> {
        let pinned = self.pools(namespace, cluster).into_iter().filter_map(|pool| pool.spec.version.clone());
        let own = self.workers_of(uid).into_iter().map(|worker| worker.spec.version.clone());
        pinned.chain(own).collect()
    }

    /// UIDs of the clusters that have workers.
    pub(crate) fn clusters(&self) -> BTreeSet<String> {
        self.workers.state().iter().map(|worker| worker.spec.cluster_uid.clone()).collect()
    }

    /// All instance types.
    pub(crate) fn types(&self) -> Vec<Arc<InstanceType>> {
        self.types.state()
    }

    /// The workers of a cluster in numbers; `None` until all were read.
    pub(crate) fn tally(&self, namespace: &str, cluster: &str, uid: &str) -> Option<Tally> {
        if !self.is_read() {
            return None;
        }
        let pools: Vec<WorkerPool> =
            self.pools(namespace, cluster).iter().map(|pool| WorkerPool::clone(pool)).collect();
        Some(tally(&pools, self.workers_of(uid).iter().map(Arc::as_ref)))
    }

    /// Wakes a worker.
    pub(crate) fn wake_worker(&self, namespace: &str, name: &str) {
        // Nobody listens any more when the term ends.
        let _ = self.wakes.workers.send((namespace.to_owned(), name.to_owned()));
    }

    /// Its cluster counts it, and its workers follow its labels and taints.
    fn pool_changed(&self, pool: &WorkerPool) {
        let (namespace, name) = (pool.namespace().unwrap_or_default(), pool.name_any());
        let _ = self.wakes.clusters.send((namespace.clone(), pool.spec.cluster_name.clone()));
        for worker in
            self.workers.state_filter(|worker| within(worker, &namespace) && worker.spec.pool_name == name)
        {
            self.wake_worker(&namespace, &worker.name_any());
        }
    }

    /// Its pool counts it, and its cluster waits for its end.
    fn worker_changed(&self, worker: &Worker) {
        let namespace = worker.namespace().unwrap_or_default();
        let _ = self.wakes.pools.send((namespace.clone(), worker.spec.pool_name.clone()));
        if worker.metadata.deletion_timestamp.is_some() {
            let _ = self.wakes.clusters.send((namespace, worker.spec.cluster_name.clone()));
        }
    }

    /// Its API began to serve, or ceased to: what was seen of nodes, or could not be, is not what there is now.
    pub(crate) fn cluster_turned(&self, namespace: &str, name: &str) {
        let _ = self.wakes.clusters.send((namespace.to_owned(), name.to_owned()));
        self.cluster_changed(namespace, name);
    }

    /// Whether it serves, is paused or deleted.
    fn cluster_changed(&self, namespace: &str, name: &str) {
        self.wake_pools(|pool| within(pool, namespace) && pool.spec.cluster_name == name);
        for worker in
            self.workers.state_filter(|worker| within(worker, namespace) && worker.spec.cluster_name == name)
        {
            self.wake_worker(namespace, &worker.name_any());
        }
    }

    fn wake_pools(&self, which: impl Fn(&WorkerPool) -> bool) {
        for pool in self.pools.state_filter(which) {
            let _ = self.wakes.pools.send((pool.namespace().unwrap_or_default(), pool.name_any()));
        }
    }

    /// The labels are in namespaces that no tenant can write to; a wrong one would merely wake somebody.
    fn machine_changed(&self, machine: &PartialObjectMeta<Pod>) {
        if let Some(namespace) = machine.labels().get(name::TENANT_NAMESPACE_LABEL) {
            self.wake_worker(namespace, &machine.name_any());
        }
    }
}

/// Tells of every event, as long as there are any.
async fn follow<K>(events: impl Stream<Item = Event<K>>, what: &str, on: impl Fn(K)) {
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(object) => on(object),
            Err(error) => debug!(%error, what, "watch"),
        }
    }
}

/// Selects the machines that are pods.
pub(crate) fn machine_selector() -> String {
    format!("{}={},{}={}", name::MANAGED_BY_LABEL, name::MANAGED_BY, name::COMPONENT_LABEL, component::WORKER)
}

fn within<K: Resource>(object: &K, namespace: &str) -> bool {
    object.meta().namespace.as_deref() == Some(namespace)
}

fn watched<K>(api: Api<K>) -> impl Stream<Item = Event<watcher::Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watch_selected(api, "")
}

fn watch_selected<K>(
    api: Api<K>,
    labels: &str,
) -> impl Stream<Item = Event<watcher::Event<K>>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let config = watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS);
    let config = if labels.is_empty() { config } else { config.labels(labels) };
    watcher(api, config).default_backoff()
}
