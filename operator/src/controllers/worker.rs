//! Workers: what wakes a turn, and its way from observation to status.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::Stream;
use kaas_crds::Worker;
use kaas_lifecycle::lint;
use kaas_lifecycle::report::Failure;
use kaas_lifecycle::workers::action::Action as Step;
use kaas_lifecycle::workers::worker::{WorkerPlan, plan};
use kaas_lifecycle::workers::{lint as workers_lint, report};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::Recorder;
use kube::runtime::reflector::Store;
use kube::runtime::watcher;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;
use tracing::{Instrument, debug, error, warn};

use super::back_off::{self, Attempts, BACK_OFF};
use super::{DEBOUNCE, named};
use crate::class::Class;
use crate::publish::{self, publish_whole};
use crate::telemetry;
use crate::tenant::Name;
use crate::workers::infrastructure::Refusal;
use crate::workers::observe::Sight;
use crate::workers::{Yard, attendance, execute, observe};
use crate::{execute as execution, observe as observation};

/// Passes of one turn. The way up needs two, each step of the way down two more.
const PASSES: usize = 8;

/// An operator that has just started has not asked every tenant's API yet. For so long it says nothing of workers whose
/// node it could not ask for; what its predecessor saw stands.
const UNHEARD: Duration = Duration::from_secs(30);
/// It is told when the API was asked; should it not be, it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A turn that did not end well.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Observe(#[from] observation::Error),
    #[error(transparent)]
    Execute(#[from] execution::Error),
    #[error(transparent)]
    Publish(#[from] publish::Error),
}

impl Error {
    fn class(&self) -> Class {
        match self {
            Error::Observe(error) => error.class(),
            Error::Execute(error) => error.class(),
            Error::Publish(error) => error.class(),
        }
    }
}

struct World {
    yard: Arc<Yard>,
    recorder: Recorder,
    attempts: Attempts,
    turns: AtomicU64,
    begin: Instant,
}

/// Runs the controller until it is told to stop.
pub(super) async fn run(
    yard: Arc<Yard>,
    recorder: Recorder,
    store: Store<Worker>,
    events: impl Stream<Item = Result<Worker, watcher::Error>> + Send + 'static,
    woken: UnboundedReceiver<Name>,
) {
    let context = &yard.context;
    let concurrency = u16::try_from(context.settings.concurrency).unwrap_or(u16::MAX);
    let controller = Controller::for_stream(events, store)
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(concurrency))
        .reconcile_on(named(woken))
        .graceful_shutdown_on(context.stop.clone().cancelled_owned());
    let attempts = Attempts::new(context.metrics.clone());
    let world = Arc::new(World {
        yard: yard.clone(),
        recorder,
        attempts,
        turns: AtomicU64::default(),
        begin: Instant::now(),
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

async fn reconcile(worker: Arc<Worker>, world: Arc<World>) -> Result<Action, Error> {
    let metadata = &worker.metadata;
    let (namespace, name) =
        (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let number = world.turns.fetch_add(1, Ordering::Relaxed);
    let span = telemetry::reconcile("worker", namespace, name, uid, number);
    let begin = Instant::now();
    let metrics = &world.yard.context.metrics;
    let _running = metrics.queue.begin();
    let result = turn(&world, namespace, name, uid).instrument(span).await;
    metrics.reconciles.observe(
        "worker",
        result.as_ref().err().map(|error| error.class().as_str()),
        begin.elapsed(),
    );
    if result.is_ok() {
        world.attempts.end(uid);
    }
    result
}

/// One turn: passes until nothing is left to do now, then the report.
async fn turn(world: &World, namespace: &str, name: &str, uid: &str) -> Result<Action, Error> {
    let yard = &world.yard;
    if !yard.fleet.is_read() {
        return Ok(Action::requeue(BACK_OFF.0));
    }
    for pass in 1..=PASSES {
        let Some(sight) = observe::worker(yard, namespace, name).await? else {
            yard.forget(uid);
            return Ok(Action::await_change());
        };
        if let (Some(cluster), Some(access)) = (&sight.cluster, &sight.access) {
            attendance::ensure(yard, cluster, access);
        }
        let plan = plan(&sight.observed);
        if let Some(refusal) = lint::refusal(&workers_lint::check_worker(&sight.observed, &plan)) {
            error!(message = refusal.message, "plan refused; this is a defect of the operator");
            yard.context.metrics.reconciles.refused();
            report(world, &sight, &plan, None, Some(&refusal)).await?;
            return Ok(Action::requeue(BACK_OFF.1));
        }
        if unheard(world, &sight) {
            return Ok(Action::requeue(LOOK_AGAIN));
        }
        let outcome = execute::worker(yard, &sight, &plan.waves).await;
        debug!(pass, step = ?plan.step, actions = plan.waves.iter().map(Vec::len).sum::<usize>(), "pass");
        let refused = match outcome {
            Ok(refused) => refused.or_else(|| sight.unanswered.clone()),
            Err(error) => {
                let failure = error.failure();
                let known = matches!(error.class(), Class::NotLeading | Class::Conflict);
                if !known && (world.attempts.count(uid) >= 2 || !failure.transient) {
                    report(world, &sight, &plan, None, Some(&failure)).await?;
                }
                return Err(error.into());
            }
        };
        if plan.waves.iter().flatten().any(|step| matches!(step, Step::RemoveFinalizer { .. })) {
            yard.forget(uid);
            return Ok(Action::await_change());
        }
        if plan.is_empty() || refused.is_some() || pass == PASSES {
            report(world, &sight, &plan, refused.as_ref(), None).await?;
            return Ok(back_off::until(plan.wake_at));
        }
    }
    Ok(Action::requeue(BACK_OFF.0))
}

/// Whether its cluster's API was not asked yet by an operator that has just started, and there is something to say.
fn unheard(world: &World, sight: &Sight) -> bool {
    let observed = &sight.observed;
    world.begin.elapsed() < UNHEARD
        && observed.worker.status.is_some()
        && observed.cluster.found().is_some()
        && !observed.forsaken()
        && world.yard.tenants.latest(&observed.worker.spec.cluster_uid).is_none()
}

/// Writes the status if it says something new.
async fn report(
    world: &World,
    sight: &Sight,
    plan: &WorkerPlan,
    refused: Option<&Refusal>,
    failure: Option<&Failure>,
) -> Result<(), Error> {
    let observed = &sight.observed;
    let refused = refused.map(|refusal| (refusal.failure, refusal.message.as_str()));
    let status = report::worker_status(observed, plan, refused, failure);
    let before = observed.worker.status.as_ref();
    if before == Some(&status) {
        return Ok(());
    }
    let conditions = before.map_or(Vec::new(), |before| before.conditions.clone());
    let whole = Worker { status: Some(status.clone()), ..observed.worker.clone() };
    let turns = (conditions.as_slice(), status.conditions.as_slice());
    publish_whole(&world.yard.context, &world.recorder, "Worker", &whole, turns).await?;
    Ok(())
}

fn back_off(worker: Arc<Worker>, error: &Error, world: Arc<World>) -> Action {
    let class = error.class();
    let metadata = &worker.metadata;
    let (attempts, action) = world.attempts.add(metadata.uid.as_deref().unwrap_or_default(), class);
    if class != Class::NotLeading {
        warn!(
            namespace = metadata.namespace, name = metadata.name, class = class.as_str(), attempts, %error,
            "reconcile failed"
        );
    }
    action
}
