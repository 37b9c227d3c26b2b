//! WorkerPools: what wakes a turn, and its way from observation to status.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use futures::stream::Stream;
use kaas_crds::WorkerPool;
use kaas_lifecycle::lint;
use kaas_lifecycle::workers::action::Action as Step;
use kaas_lifecycle::workers::{lint as workers_lint, pool, report};
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
use crate::workers::{Yard, execute, observe};
use crate::{execute as execution, observe as observation};

/// Passes of one turn. Scaling up needs two, down three.
const PASSES: usize = 6;

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
}

/// Runs the controller until it is told to stop.
pub(super) async fn run(
    yard: Arc<Yard>,
    recorder: Recorder,
    store: Store<WorkerPool>,
    events: impl Stream<Item = Result<WorkerPool, watcher::Error>> + Send + 'static,
    woken: UnboundedReceiver<Name>,
) {
    let context = &yard.context;
    let concurrency = u16::try_from(context.settings.concurrency).unwrap_or(u16::MAX);
    let controller = Controller::for_stream(events, store)
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(concurrency))
        .reconcile_on(named(woken))
        .graceful_shutdown_on(context.stop.clone().cancelled_owned());
    let attempts = Attempts::new(context.metrics.clone());
    let world = Arc::new(World { yard: yard.clone(), recorder, attempts, turns: AtomicU64::default() });
    controller
        .run(reconcile, back_off, world)
        .for_each(|turn| async {
            if let Err(error) = turn {
                debug!(%error, "turn ended");
            }
        })
        .await;
}

async fn reconcile(pool: Arc<WorkerPool>, world: Arc<World>) -> Result<Action, Error> {
    let metadata = &pool.metadata;
    let (namespace, name) =
        (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
    let uid = metadata.uid.as_deref().unwrap_or_default();
    let number = world.turns.fetch_add(1, Ordering::Relaxed);
    let span = telemetry::reconcile("workerpool", namespace, name, uid, number);
    let begin = Instant::now();
    let metrics = &world.yard.context.metrics;
    let _running = metrics.queue.begin();
    let result = turn(&world, namespace, name, uid).instrument(span).await;
    metrics.reconciles.observe(
        "workerpool",
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
    let mut live = false;
    for pass in 1..=PASSES {
        let Some(observed) = observe::pool(yard, namespace, name, live).await? else {
            return Ok(Action::await_change());
        };
        let plan = pool::plan(&observed);
        if let Some(refusal) = lint::refusal(&workers_lint::check_pool(&observed, &plan)) {
            error!(message = refusal.message, "plan refused; this is a defect of the operator");
            yard.context.metrics.reconciles.refused();
            report(world, &observed, &pool::PoolPlan::default(), Some(&refusal)).await?;
            return Ok(Action::requeue(BACK_OFF.1));
        }
        if plan.look_live && !live {
            live = true;
            continue;
        }
        let outcome = execute::pool(yard, &observed, &plan.waves).await;
        debug!(pass, live, actions = plan.waves.iter().map(Vec::len).sum::<usize>(), "pass");
        if let Err(error) = outcome {
            let failure = error.failure();
            let known = matches!(error.class(), Class::NotLeading | Class::Conflict);
            if !known && (world.attempts.count(uid) >= 2 || !failure.transient) {
                report(world, &observed, &plan, Some(&failure)).await?;
            }
            return Err(error.into());
        }
        let gone = plan.waves.iter().flatten().any(|step| matches!(step, Step::RemovePoolFinalizer { .. }));
        if gone {
            return Ok(Action::requeue(BACK_OFF.1));
        }
        // What is stored is done at the next look, which has to be one at what is stored.
        let recorded = plan.waves.iter().flatten().any(|step| matches!(step, Step::Record { .. }));
        if plan.is_empty() || recorded || pass == PASSES {
            report(world, &observed, &plan, None).await?;
        }
        if plan.is_empty() {
            return Ok(back_off::until(plan.wake_at));
        }
        // What was just made or begun to go is in no watch yet.
        live = true;
    }
    Ok(Action::requeue(BACK_OFF.0))
}

/// Writes the status if it says something new.
async fn report(
    world: &World,
    observed: &kaas_lifecycle::workers::observed::PoolObserved,
    plan: &pool::PoolPlan,
    failure: Option<&kaas_lifecycle::report::Failure>,
) -> Result<(), Error> {
    let status = report::pool_status(observed, plan, failure);
    let before = observed.pool.status.as_ref();
    if before == Some(&status) {
        return Ok(());
    }
    let conditions = before.map_or(Vec::new(), |before| before.conditions.clone());
    let whole = WorkerPool { status: Some(status.clone()), ..observed.pool.clone() };
    let turns = (conditions.as_slice(), status.conditions.as_slice());
    publish_whole(&world.yard.context, &world.recorder, "WorkerPool", &whole, turns).await?;
    Ok(())
}

fn back_off(pool: Arc<WorkerPool>, error: &Error, world: Arc<World>) -> Action {
    let class = error.class();
    let metadata = &pool.metadata;
    let (attempts, action) = world.attempts.add(metadata.uid.as_deref().unwrap_or_default(), class);
    if class != Class::NotLeading {
        warn!(
            namespace = metadata.namespace, name = metadata.name, class = class.as_str(), attempts, %error,
            "reconcile failed"
        );
    }
    action
}
