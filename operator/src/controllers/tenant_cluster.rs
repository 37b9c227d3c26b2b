//! TenantClusters: what wakes a reconcile, and its way from observation to status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use kaas_crds::{TenantCluster, name};
use kaas_lifecycle::lint;
use kaas_lifecycle::object::Kind;
use kaas_lifecycle::plan::{Plan, plan};
use kaas_lifecycle::report;
use kaas_lifecycle::upgrade;
use kube::api::{Api, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::Recorder;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep};
use tracing::{Instrument, debug, error, warn};

use super::back_off::{self, Attempts, BACK_OFF};
use super::kubernetes_release::{self, Catalogue};
use super::turn::Error;
use super::{DEBOUNCE, WATCH_TIMEOUT_SECONDS, named, orphan};
use crate::class::Class;
use crate::cluster::resource;
use crate::execute::{Lifetimes, Tools, execute};
use crate::inside::{self, Kept};
use crate::observe::{READ_AT_ONCE, Sources, observe};
use crate::publish::publish;
use crate::run::Context;
use crate::telemetry;
use crate::tenant::{Name, Tenants};
use crate::workers::Yard;

/// Passes of observing, planning and acting in one reconcile. A creation needs three; more would mean that two
/// writers undo each other.
const PASSES: usize = 6;

/// Control planes do not wait longer for the watches of workers.
const COUNTED: Duration = Duration::from_secs(10);

/// Kinds whose changes in a control-plane namespace wake its tenant.
const WAKING: [Kind; 10] = [
    Kind::Namespace,
    Kind::Pod,
    Kind::StatefulSet,
    Kind::Deployment,
    Kind::Service,
    Kind::Secret,
    Kind::ConfigMap,
    Kind::ControllerRevision,
    Kind::NetworkPolicy,
    Kind::PodDisruptionBudget,
];

/// A TenantCluster as the watch knows it.
pub(super) type Known = PartialObjectMeta<TenantCluster>;

/// What all reconciles share.
pub(super) struct World {
    context: Context,
    catalogue: Catalogue,
    tenants: Arc<Tenants>,
    yard: Arc<Yard>,
    recorder: Recorder,
    attempts: Attempts,
    /// Tells turns apart in the log.
    turns: AtomicU64,
    /// Releases that are needed, by UID, as last read.
    releases: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// Turns to read the management cluster.
    reading: Semaphore,
}

impl World {
    /// The releases that a tenant needs; `None` until it was read.
    pub(super) fn releases(&self, uid: &str) -> Option<BTreeSet<String>> {
        self.releases.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    fn note_releases(&self, uid: &str, releases: Option<BTreeSet<String>>) {
        let mut known = self.releases.lock().unwrap_or_else(PoisonError::into_inner);
        match releases {
            Some(releases) => known.insert(uid.to_owned(), releases),
            None => known.remove(uid),
        };
    }
}

/// Runs the controller until it is told to stop.
pub(super) async fn run(
    context: &Context,
    catalogue: Catalogue,
    yard: &Arc<Yard>,
    recorder: Recorder,
    woken: UnboundedReceiver<Name>,
) {
    tokio::select! {
        () = catalogue.ready() => {}
        () = context.stop.cancelled() => return,
    }
    // Before the workers are counted they would be Unknown for a moment, in every status.
    tokio::select! {
        () = yard.fleet.read() => {}
        () = sleep(COUNTED) => warn!("workers and pools were not read: their watches fail"),
        () = context.stop.cancelled() => return,
    }
    let settings = &context.settings;
    let client = &context.client;
    let world = Arc::new(World {
        context: context.clone(),
        catalogue: catalogue.clone(),
        tenants: yard.tenants.clone(),
        yard: yard.clone(),
        recorder,
        attempts: Attempts::new(context.metrics.clone()),
        turns: AtomicU64::default(),
        releases: Mutex::default(),
        reading: Semaphore::new(READ_AT_ONCE),
    });
    let concurrency = u16::try_from(settings.concurrency).unwrap_or(u16::MAX);
    let (reader, clusters) = clusters(client);
    let controller = Controller::for_stream(clusters, reader.clone())
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(concurrency))
        .reconcile_on(named(woken))
        .reconcile_on(stream::select_all(WAKING.map(|kind| changes(client, kind).boxed())))
        .reconcile_all_on(catalogue.changes())
        .graceful_shutdown_on(context.stop.clone().cancelled_owned());
    let usage =
        kubernetes_release::keep_usage(context.clone(), reader.clone(), catalogue.clone(), world.clone());
    let orphans = orphan::report(context.clone(), reader);
    let turns = controller.run(reconcile, back_off, world).for_each(|turn| async {
        if let Err(error) = turn {
            debug!(%error, "turn ended");
        }
    });
    tokio::select! {
        () = turns => {}
        () = usage => {}
        () = orphans => {}
    }
}

/// TenantClusters as they come and go. Only metadata: a reconcile reads the object itself, a thousand cost little
/// memory, and one that cannot be understood (made by a newer version, say) does not hide the others.
fn clusters(
    client: &kube::Client,
) -> (Store<Known>, impl Stream<Item = Result<Known, watcher::Error>> + Send + use<>) {
    let (reader, writer) = store();
    let api: Api<Known> = Api::all(client.clone());
    let watched = watcher(api, watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS))
        .default_backoff()
        .modify(|cluster| {
            cluster.metadata.managed_fields = None;
            cluster.metadata.annotations = None;
        })
        .reflect(writer)
        .touched_objects();
    (reader, watched)
}

/// Names of tenants something of which changed. Only metadata is watched, and nothing of it is kept. The labels that
/// lead to the tenant are in namespaces that no tenant can write to; a wrong one would merely wake somebody.
fn changes(client: &kube::Client, kind: Kind) -> impl Stream<Item = ObjectRef<Known>> + Send + use<> {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), &resource(kind));
    let ours = format!("{}={},{}", name::MANAGED_BY_LABEL, name::MANAGED_BY, name::TENANT_NAME_LABEL);
    watcher(api, watcher::Config::default().labels(&ours).timeout(WATCH_TIMEOUT_SECONDS))
        .default_backoff()
        .touched_objects()
        .filter_map(move |object| async move {
            let object = object.inspect_err(|error| debug!(%error, %kind, "watch")).ok()?;
            let labels = object.metadata.labels?;
            let (namespace, name) =
                (labels.get(name::TENANT_NAMESPACE_LABEL)?, labels.get(name::TENANT_NAME_LABEL)?);
            Some(ObjectRef::new(name).within(namespace))
        })
}

async fn reconcile(cluster: Arc<Known>, world: Arc<World>) -> Result<Action, Error> {
    let metadata = &cluster.metadata;
    let (namespace, name) =
        (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let span = telemetry::reconcile(
        "tenantcluster",
        namespace,
        name,
        uid,
        world.turns.fetch_add(1, Ordering::Relaxed),
    );
    let begin = Instant::now();
    let _running = world.context.metrics.queue.begin();
    let result = turn(&world, namespace, name, uid).instrument(span).await;
    let failure = result.as_ref().err().map(|error| error.class().as_str());
    world.context.metrics.reconciles.observe("tenantcluster", failure, begin.elapsed());
    if result.is_ok() {
        world.attempts.end(uid);
    }
    result
}

/// One reconcile: passes until nothing is left to do now, then the report.
async fn turn(world: &World, namespace: &str, name: &str, uid: &str) -> Result<Action, Error> {
    let context = &world.context;
    let sources = Sources {
        client: &context.client,
        platform: &context.settings.platform,
        catalogue: world.catalogue.releases(),
        tenants: &world.tenants,
        reading: &world.reading,
        fleet: &world.yard.fleet,
    };
    let tools = Tools {
        client: &context.client,
        gate: &context.gate,
        metrics: &context.metrics,
        tenants: &world.tenants,
        lifetimes: Lifetimes {
            leaf: context.settings.leaf_lifetime,
            authority: context.settings.authority_lifetime,
        },
    };
    for pass in 1..=PASSES {
        let Some((mut observed, mut keyring)) = observe(&sources, namespace, name).await? else {
            world.tenants.forget(uid);
            world.note_releases(uid, None);
            context.metrics.tenants.forget(uid);
            return Ok(Action::await_change());
        };
        let lagging = world.yard.fleet.versions(namespace, name, uid);
        world.note_releases(uid, Some(upgrade::releases(&observed).into_iter().chain(lagging).collect()));
        let plan = plan(&observed);
        if let Some(refusal) = lint::refusal(&lint::check(&observed, &plan)) {
            error!(message = refusal.message, "plan refused; this is a defect of the operator");
            context.metrics.reconciles.refused();
            let status = report::derive(&observed, &plan, Some(&refusal));
            publish(&tools, &world.recorder, &observed, &status).await?;
            return Ok(Action::requeue(BACK_OFF.1));
        }
        if observed.deleting() && observed.workers.as_ref().is_some_and(|tally| tally.left == 0) {
            dissolve(world, &observed.tenant.uid).await;
        }
        let outcome = execute(&tools, &plan, &observed, &mut keyring).await;
        debug!(
            pass,
            actions = plan.waves.iter().map(Vec::len).sum::<usize>(),
            failed = outcome.is_err(),
            "pass"
        );
        match outcome {
            Ok(()) if !plan.is_empty() && pass < PASSES && !observed.deleting() => {}
            Ok(()) => {
                // A removed finalizer is the end: there is nothing left to write status to.
                if observed.deleting() && observed.own_namespace().is_none() && !plan.is_empty() {
                    world.tenants.forget(&observed.tenant.uid);
                    return Ok(Action::requeue(Duration::from_secs(5)));
                }
                // An operator that has just started knows nothing of the endpoint yet. What its predecessor saw stands
                // until the first probe ends, which wakes this tenant again: otherwise each restart of the operator
                // would take Ready back from every tenant for a moment.
                let unheard = observed.probe.is_none() && world.tenants.probed(&observed.tenant.uid);
                if unheard && !observed.deleting() && observed.cluster.status.is_some() {
                    return Ok(next(&plan));
                }
                let kept = match world.tenants.inside(&observed, &keyring) {
                    Some((client, memory)) => {
                        let (gate, metrics) = (&context.gate, &*context.metrics);
                        let tools = inside::Tools { client, memory, gate, metrics };
                        inside::keep(&tools, &plan, &mut observed).await
                    }
                    None => Kept::Well,
                };
                if matches!(kept, Kept::Changed) && pass < PASSES {
                    continue;
                }
                let status = report::derive(&observed, &plan, None);
                publish(&tools, &world.recorder, &observed, &status).await?;
                // What was seen until the end is in status now.
                world.tenants.keep_vigil(uid, plan.upgrade.is_some() && !observed.deleting());
                return Ok(match kept {
                    Kept::Later(pause) => Action::requeue(pause.min(until(&plan).unwrap_or(pause))),
                    Kept::Well | Kept::Changed => next(&plan),
                });
            }
            Err(error) => {
                let class = error.class();
                if matches!(class, Class::NotLeading | Class::Conflict) {
                    return Err(error.into());
                }
                let failure = error.failure();
                // A single failure that passes by itself is no news yet.
                let repeated = world.attempts.count(uid) >= 2;
                if repeated || !failure.transient {
                    let status = report::derive(&observed, &plan, Some(&failure));
                    publish(&tools, &world.recorder, &observed, &status).await?;
                }
                return Err(error.into());
            }
        }
    }
    Ok(Action::requeue(BACK_OFF.0))
}

/// What the workers of a cluster that ends had besides machines. Should that fail, an empty namespace is left, which is
/// reported as an orphan.
async fn dissolve(world: &World, uid: &str) {
    if world.context.gate.check().is_err() {
        return;
    }
    if let Err(refusal) = world.yard.pods.dissolve(uid).await {
        warn!(tenant_uid = uid, why = refusal.message, "the namespace of its workers was not deleted");
    }
}

fn next(plan: &Plan) -> Action {
    until(plan).map_or_else(Action::await_change, Action::requeue)
}

/// The pause until the plan wants to look again.
fn until(plan: &Plan) -> Option<Duration> {
    back_off::pause(plan.wake_at)
}

fn back_off(cluster: Arc<Known>, error: &Error, world: Arc<World>) -> Action {
    let class = error.class();
    let metadata = &cluster.metadata;
    let (attempts, action) = world.attempts.add(metadata.uid.as_deref().unwrap_or_default(), class);
    if class != Class::NotLeading {
        warn!(
            namespace = metadata.namespace, name = metadata.name, class = class.as_str(), attempts, %error,
            "reconcile failed"
        );
    }
    action
}
