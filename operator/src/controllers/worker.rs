//! Workers: what wakes a turn, and its way from observation to status.

use std::time::Duration;

use kaas_crds::Worker;
use kaas_lifecycle::lint;
use kaas_lifecycle::report::Failure;
use kaas_lifecycle::workers::action::Action as Step;
use kaas_lifecycle::workers::worker::{WorkerPlan, plan};
use kaas_lifecycle::workers::{lint as workers_lint, report};
use kube::runtime::controller::Action;
use tracing::{debug, error};

use super::back_off::{self, BACK_OFF};
use super::turn::{Error, Turn, World};
use crate::class::Class;
use crate::publish::publish_whole;
use crate::workers::infrastructure::Refusal;
use crate::workers::observe::Sight;
use crate::workers::{attendance, execute, observe};

/// Passes of one turn. The way up needs two, each step of the way down two more.
const PASSES: usize = 8;

/// An operator that has just started has not asked every tenant's API yet. For so long it says nothing of workers whose
/// node it could not ask for; what its predecessor saw stands.
const UNHEARD: Duration = Duration::from_secs(30);
/// It is told when the API was asked; should it not be, it looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

impl Turn for Worker {
    const CONTROLLER: &'static str = "worker";

    async fn turn(world: &World, namespace: &str, name: &str, uid: &str) -> Result<Action, Error> {
        turn(world, namespace, name, uid).await
    }
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
            Ok(refused) => refused,
            Err(error) => {
                let failure = error.failure();
                let known = matches!(error.class(), Class::NotLeading | Class::Conflict);
                if !known && (world.attempts.count(uid) >= 2 || !failure.transient) {
                    report(world, &sight, &plan, None, Some(&failure)).await?;
                }
                return Err(error.into());
            }
        };
        let finishing = plan.waves.iter().flatten().any(|step| matches!(step, Step::RemoveFinalizer { .. }));
        if finishing && refused.is_none() {
            yard.forget(uid);
            return Ok(Action::await_change());
        }
        let refused = refused.or_else(|| sight.unanswered.clone());
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
