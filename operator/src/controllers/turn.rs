//! A turn for a pool or a worker: what is the same for both. It is woken, counted, told in the log under a span of its own,
//! and tried again after a pause when it fails.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use futures::stream::Stream;
use kube::Resource;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::Recorder;
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tracing::{Instrument, debug, warn};

use super::back_off::Attempts;
use super::{DEBOUNCE, named};
use crate::class::Class;
use crate::telemetry;
use crate::tenant::Name;
use crate::workers::Yard;
use crate::{execute, observe, publish};

/// A turn that did not end well.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Observe(#[from] observe::Error),
    #[error(transparent)]
    Execute(#[from] execute::Error),
    #[error(transparent)]
    Publish(#[from] publish::Error),
}

impl Error {
    pub(super) fn class(&self) -> Class {
        match self {
            Error::Observe(error) => error.class(),
            Error::Execute(error) => error.class(),
            Error::Publish(error) => error.class(),
        }
    }
}

/// What all turns of one controller share.
pub(super) struct World {
    pub(super) yard: Arc<Yard>,
    pub(super) recorder: Recorder,
    pub(super) attempts: Attempts,
    /// When this operator began to lead.
    pub(super) begin: Instant,
    /// Tells turns apart in the log.
    turns: AtomicU64,
}

/// An object that a controller looks after.
pub(super) trait Turn:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static
{
    /// Name of the controller, in metrics and in the log.
    const CONTROLLER: &'static str;

    /// One turn for the object of this namespace, name and UID.
    fn turn(
        world: &World,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> impl Future<Output = Result<Action, Error>> + Send;
}

/// Runs the controller until it is told to stop.
pub(super) async fn run<K: Turn>(
    yard: Arc<Yard>,
    recorder: Recorder,
    store: Store<K>,
    events: impl Stream<Item = Result<K, watcher::Error>> + Send + 'static,
    woken: UnboundedReceiver<Name>,
) {
    let context = &yard.context;
    let concurrency = u16::try_from(context.settings.concurrency).unwrap_or(u16::MAX);
    let controller = Controller::for_stream(events, store)
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(concurrency))
        .reconcile_on(named(woken))
        .graceful_shutdown_on(context.stop.clone().cancelled_owned());
    let world = Arc::new(World {
        yard: yard.clone(),
        recorder,
        attempts: Attempts::new(context.metrics.clone()),
        begin: Instant::now(),
        turns: AtomicU64::default(),
    });
    controller
        .run(reconcile, back_off, world)
        .for_each(|turn| async {
            if let Err(error) = turn {
                debug!(%error, "turn ended");
            }
        })
        .await;
}

async fn reconcile<K: Turn>(object: Arc<K>, world: Arc<World>) -> Result<Action, Error> {
    let metadata = object.meta();
    let (namespace, name) =
        (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let number = world.turns.fetch_add(1, Ordering::Relaxed);
    let span = telemetry::reconcile(K::CONTROLLER, namespace, name, uid, number);
    let begin = Instant::now();
    let metrics = &world.yard.context.metrics;
    let _running = metrics.queue.begin();
    let result = K::turn(&world, namespace, name, uid).instrument(span).await;
    let failure = result.as_ref().err().map(|error| error.class().as_str());
    metrics.reconciles.observe(K::CONTROLLER, failure, begin.elapsed());
    if result.is_ok() {
        world.attempts.end(uid);
    }
    result
}

fn back_off<K: Turn>(object: Arc<K>, error: &Error, world: Arc<World>) -> Action {
    let class = error.class();
    let metadata = object.meta();
    let (attempts, action) = world.attempts.add(metadata.uid.as_deref().unwrap_or_default(), class);
    if class != Class::NotLeading {
        warn!(
            controller = K::CONTROLLER, namespace = metadata.namespace, name = metadata.name,
            class = class.as_str(), attempts, %error, "reconcile failed"
        );
    }
    action
}
