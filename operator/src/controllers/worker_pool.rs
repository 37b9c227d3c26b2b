//! WorkerPools: what wakes a turn, and its way from observation to status.

use kaas_crds::WorkerPool;
use kaas_lifecycle::lint;
use kaas_lifecycle::report::Failure;
use kaas_lifecycle::workers::action::Action as Step;
use kaas_lifecycle::workers::observed::PoolObserved;
use kaas_lifecycle::workers::{lint as workers_lint, pool, report};
use kube::runtime::controller::Action;
use tracing::{debug, error};

use super::back_off::{self, BACK_OFF};
use super::turn::{Error, Turn, World};
use crate::class::Class;
use crate::publish::publish_whole;
use crate::workers::{execute, observe};

/// Passes of one turn. Scaling up needs two, down three.
const PASSES: usize = 6;

impl Turn for WorkerPool {
    const CONTROLLER: &'static str = "workerpool";

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
    observed: &PoolObserved,
    plan: &pool::PoolPlan,
    failure: Option<&Failure>,
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
