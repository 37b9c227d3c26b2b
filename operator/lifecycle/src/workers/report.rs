//! What is said of pools and workers: from facts and plan to status. It says the same thing twice in the same words, so
//! that nothing is written twice.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kaas_crds::condition::{ConditionType, Reason};
use kaas_crds::status::Workers;
use kaas_crds::worker::NodeReference;
use kaas_crds::{Worker, WorkerPool, WorkerPoolStatus, WorkerStatus, name};

use crate::drain::Progress;
use crate::report::Failure;
use crate::verdict::{Is, Verdict, conditions};
use crate::workers::action::Action;
use crate::workers::infrastructure;
use crate::workers::node::{self, Match};
use crate::workers::observed::{
    Fact, Machine, MachineState, Member, PoolObserved, Readiness, WorkerObserved,
};
use crate::workers::pool::{self, PoolPlan};
use crate::workers::roll;
use crate::workers::worker::{Step, WorkerPlan};

/// A machine that runs for so long without its node, in seconds, does not join by itself.
const OVERDUE_SECONDS: i64 = 300;
/// Longest summary.
const SUMMARY: usize = 1000;

/// The workers of a cluster, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Workers that its pools ask for.
    pub desired: usize,
    /// Workers whose node is Ready.
    pub ready: usize,
    /// Workers that there are, of whatever pool, also those that go.
    pub left: usize,
    /// The first pool that has not what it asks for, and what it says.
    pub trouble: Option<String>,
    /// The first worker that cannot go, and what it says.
    pub blocked: Option<String>,
}

/// The tally of a cluster with these pools and these workers.
pub fn tally<'a>(pools: &[WorkerPool], workers: impl Iterator<Item = &'a Worker>) -> Tally {
    let mut tally = Tally::default();
    let mut blocked: Vec<String> = Vec::new();
    for worker in workers {
        tally.left = tally.left.saturating_add(1);
        blocked.extend(kept(worker));
    }
    tally.blocked = blocked.into_iter().min();
    for pool in pools.iter().filter(|pool| pool.metadata.deletion_timestamp.is_none()) {
        let status = pool.status.clone().unwrap_or_default();
        let number = |count: i32| usize::try_from(count).unwrap_or(0);
        let (desired, ready) = (number(pool.spec.replicas), number(status.ready_replicas));
        tally.desired = tally.desired.saturating_add(desired);
        tally.ready = tally.ready.saturating_add(ready);
        if ready < desired && tally.trouble.is_none() {
            let name = pool.metadata.name.as_deref().unwrap_or_default();
            tally.trouble =
                Some(format!("WorkerPool {name} has {ready} of {desired} workers Ready: {}", status.summary));
        }
    }
    tally
}

/// What keeps a worker that is to go, in its own words.
fn kept(worker: &Worker) -> Option<String> {
    worker.metadata.deletion_timestamp.as_ref()?;
    let status = worker.status.as_ref()?;
    let blocked = |condition: &Condition| {
        condition.type_ == ConditionType::Ready.to_string()
            && condition.reason == Reason::DeletionBlocked.as_str()
    };
    let help = status.failure.is_some() || status.conditions.iter().any(blocked);
    let name = worker.metadata.name.as_deref().unwrap_or_default();
    help.then(|| format!("Worker {name}: {}", status.summary))
}

/// The numbers in the TenantCluster's status; what was said last when nothing was read.
pub(crate) fn counted(tally: Option<&Tally>, before: &Workers) -> Workers {
    let Some(tally) = tally else { return before.clone() };
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX).min(100_000);
    let (ready, desired) = (number(tally.ready), number(tally.desired));
    Workers { ready, desired, summary: format!("{ready}/{desired}") }
}

/// The TenantCluster's condition.
pub(crate) fn workers_ready(tally: Option<&Tally>) -> Verdict {
    let verdict =
        |is, reason, message: String| Verdict::new(ConditionType::WorkersReady, is, reason, message);
    match tally {
        None => verdict(Is::Unknown, Reason::NotObserved, "the workers were not read".into()),
        Some(Tally { desired: 0, left: 0, .. }) => {
            verdict(Is::True, Reason::NoWorkers, "there are no workers".into())
        }
        Some(Tally { trouble: Some(trouble), .. }) => {
            verdict(Is::False, Reason::WorkersNotReady, trouble.clone())
        }
        Some(tally) => verdict(
            Is::True,
            Reason::AllReady,
            format!("{} of {} workers are Ready", tally.ready, tally.desired),
        ),
    }
}

/// Status of a pool.
pub fn pool_status(observed: &PoolObserved, plan: &PoolPlan, failure: Option<&Failure>) -> WorkerPoolStatus {
    let before = observed.pool.status.clone().unwrap_or_default();
    let spec = &observed.pool.spec;
    let staying: Vec<&Member> = observed.members().filter(|member| !member.going()).collect();
    let count = |holds: &dyn Fn(&Member) -> bool| {
        i32::try_from(staying.iter().filter(|member| holds(member)).count()).unwrap_or(i32::MAX).min(100_000)
    };
    let ready = count(&|member| member.readiness == Readiness::Ready);
    let updated = count(&|member| observed.is_current(&member.worker));
    let recorded = plan.waves.iter().flatten().find_map(|action| match action {
        Action::Record { removals, .. } => Some(removals.clone()),
        _ => None,
    });
    let verdicts = pool_verdicts(observed, plan, failure, &staying);
    WorkerPoolStatus {
        observed_generation: observed.pool.metadata.generation,
        replicas: count(&|_| true),
        ready_replicas: ready,
        updated_replicas: updated,
        selector: name::pool_selector(observed.name()),
        workers: format!("{ready}/{}", spec.replicas),
        summary: pool_summary(observed, &verdicts, &staying, updated),
        removing: recorded.unwrap_or(before.removing),
        conditions: conditions(observed.now, observed.pool.metadata.generation, &before.conditions, verdicts),
    }
}

fn pool_verdicts(
    observed: &PoolObserved,
    plan: &PoolPlan,
    failure: Option<&Failure>,
    staying: &[&Member],
) -> Vec<Verdict> {
    use ConditionType::{Ready, Reconciling, Stalled, UpToDate};
    let wanted = usize::try_from(observed.pool.spec.replicas).unwrap_or(0);
    let well = staying.iter().filter(|member| member.readiness == Readiness::Ready).count();
    let paused = observed.cluster.found().is_some_and(|cluster| cluster.paused);
    let old = observed.members().filter(|member| !observed.is_current(&member.worker)).count();
    let ready = if observed.deleting() {
        Verdict::new(Ready, Is::False, Reason::Deleting, "the pool is being deleted")
    } else if pool::unread(observed) {
        Verdict::new(
            Ready,
            Is::Unknown,
            Reason::NotObserved,
            "its TenantCluster or its InstanceType was not read",
        )
    } else if well >= wanted {
        Verdict::new(Ready, Is::True, Reason::AllReady, format!("{well} of {wanted} workers are Ready"))
    } else {
        Verdict::new(Ready, Is::False, Reason::WorkersNotReady, not_ready(wanted, well, staying))
    };
    let up_to_date = if old > 0 {
        let words = format!("{old} workers are of an old template");
        match roll::wait(observed) {
            Some(wait) => Verdict::new(UpToDate, Is::False, wait.reason, format!("{words}; {}", wait.words)),
            None => Verdict::new(UpToDate, Is::False, Reason::Rolling, words),
        }
    } else {
        Verdict::new(UpToDate, Is::True, Reason::RevisionCurrent, "all workers are of the newest template")
    };
    let going = observed.workers.iter().any(|member| member.going());
    let busy = !plan.is_empty() || plan.look_live || going || old > 0 || well < wanted;
    let reconciling = if paused {
        Verdict::new(Reconciling, Is::False, Reason::Paused, "spec.paused of the TenantCluster is true")
    } else if let Some(failure) = failure {
        Verdict::new(Reconciling, Is::True, Reason::RequestFailing, failure.message.clone())
    } else if observed.deleting() || (busy && plan.problems.is_empty()) {
        Verdict::new(Reconciling, Is::True, Reason::Progressing, "work is under way")
    } else {
        Verdict::new(Reconciling, Is::False, Reason::Settled, "nothing is left to do, or see Stalled")
    };
    let stalled = match (failure.filter(|failure| !failure.transient), plan.problems.first()) {
        (Some(failure), _) => Verdict::new(Stalled, Is::True, failure.reason, failure.message.clone()),
        (None, Some(problem)) => Verdict::new(Stalled, Is::True, problem.reason, problem.message.clone()),
        (None, None) => Verdict::new(Stalled, Is::False, Reason::Settled, "nothing stands in the way"),
    };
    vec![ready, up_to_date, reconciling, stalled]
}

/// How many are missing, and what the first one that is there says.
fn not_ready(wanted: usize, well: usize, staying: &[&Member]) -> String {
    let mut text = format!("{well} of {wanted} workers are Ready");
    let first = staying
        .iter()
        .filter(|member| member.readiness != Readiness::Ready)
        .min_by_key(|member| member.name());
    if let Some(first) = first {
        text.push_str(&format!("; {}: {}", first.name(), first.summary()));
    }
    text
}

fn pool_summary(observed: &PoolObserved, verdicts: &[Verdict], staying: &[&Member], updated: i32) -> String {
    let find = |kind| verdicts.iter().find(|verdict| verdict.kind == kind);
    let going: Vec<&str> =
        observed.workers.iter().filter(|member| member.going()).map(Member::name).collect();
    let ready = find(ConditionType::Ready);
    let text = if observed.deleting() {
        let left =
            observed.workers.iter().filter(|member| member.owner() == observed.pool.metadata.uid.as_deref());
        match left.count() {
            0 => "Deleting".into(),
            left => format!("Deleting: {left} workers are left, {}", going.join(", ")),
        }
    } else if let Some(stalled) = find(ConditionType::Stalled).filter(|verdict| verdict.is == Is::True) {
        format!("Stalled: {}", stalled.message)
    } else if find(ConditionType::UpToDate).is_some_and(|verdict| verdict.is == Is::False) {
        let words = format!("{updated} of {} workers are of the newest template", staying.len());
        match roll::wait(observed) {
            Some(wait) if wait.before_it => format!("Roll is to come: {words}; {}", wait.words),
            Some(wait) => format!("Rolling: {words}; {}", wait.words),
            None => format!("Rolling: {words}"),
        }
    } else if let Some(ready) = ready.filter(|verdict| verdict.is == Is::Unknown) {
        format!("Unknown: {}", ready.message)
    } else if let Some(ready) = ready.filter(|verdict| verdict.is == Is::False) {
        format!("Not ready: {}", ready.message)
    } else if going.is_empty() {
        "Ready".into()
    } else {
        let status = observed.pool.status.as_ref();
        let why = status
            .and_then(|status| status.removing.first())
            .map_or(String::new(), |removal| format!(" ({})", removal.why));
        format!("Ready; going: {}{why}", going.join(", "))
    };
    text.chars().take(SUMMARY).collect()
}

/// Status of a worker. `refused` is what the infrastructure answered to what the plan asked of it, if it refused.
pub fn worker_status(
    observed: &WorkerObserved,
    plan: &WorkerPlan,
    refused: Option<(infrastructure::Failure, &str)>,
    failure: Option<&Failure>,
) -> WorkerStatus {
    let before = observed.worker.status.clone().unwrap_or_default();
    let own = match node::matched(observed) {
        Match::Own(node) => Some(node),
        _ => None,
    };
    let asked = plan
        .waves
        .iter()
        .flatten()
        .any(|action| matches!(action, Action::EnsureMachine(_) | Action::DeleteMachine { .. }));
    let runs = observed.machine.found().is_some_and(|machine| machine.state == MachineState::Running);
    let refusal = match refused {
        Some((kind, message)) => {
            Some(infrastructure::record(before.failure.as_ref(), kind, message, observed.now))
        }
        None if asked || (runs && !observed.deleting()) => None,
        None => before.failure.clone(),
    };
    let verdicts = worker_verdicts(observed, plan, failure, refusal.as_ref());
    WorkerStatus {
        observed_generation: observed.worker.metadata.generation,
        node_ref: own
            .map(|node| NodeReference { name: observed.name().to_owned(), uid: node.uid.clone() })
            .or(before.node_ref),
        provider_id: own
            .map(|node| node.provider_id.clone())
            .filter(|id| !id.is_empty())
            .or(before.provider_id),
        version: own
            .map(|node| node.version.clone())
            .filter(|version| !version.is_empty())
            .or(before.version),
        addresses: observed
            .machine
            .found()
            .map(|machine| machine.addresses.iter().take(16).cloned().collect())
            .unwrap_or(before.addresses),
        summary: worker_summary(&verdicts, refusal.as_ref().map(|refusal| refusal.message.as_str())),
        conditions: conditions(
            observed.now,
            observed.worker.metadata.generation,
            &before.conditions,
            verdicts,
        ),
        failure: refusal,
    }
}

fn worker_verdicts(
    observed: &WorkerObserved,
    plan: &WorkerPlan,
    failure: Option<&Failure>,
    refusal: Option<&kaas_crds::worker::InfrastructureFailure>,
) -> Vec<Verdict> {
    use ConditionType::{InfrastructureReady, Reconciling, Stalled};
    let refused = refusal.map(|refusal| {
        let known = Reason::ALL.iter().copied().find(|reason| reason.as_str() == refusal.reason);
        let message = format!(
            "{} (tried {} times, again at {})",
            refusal.message, refusal.attempts, refusal.retry_at.0
        );
        (known.unwrap_or(Reason::InfrastructureFailing), message)
    });
    let ready = ready(observed, plan);
    let infrastructure = match (&observed.machine, refused.clone()) {
        (_, Some((reason, message))) => Verdict::new(InfrastructureReady, Is::False, reason, message),
        (Fact::Unread, None) => Verdict::new(
            InfrastructureReady,
            Is::Unknown,
            Reason::NotObserved,
            "the infrastructure was not asked",
        ),
        (Fact::Found(machine), None) if machine.state == MachineState::Running => {
            Verdict::new(InfrastructureReady, Is::True, Reason::MachineRunning, "its machine runs")
        }
        (Fact::Found(machine), None) if machine.state == MachineState::Stopping => {
            let words = machine.trouble.clone().unwrap_or_else(|| "its machine is being taken away".into());
            Verdict::new(InfrastructureReady, Is::False, Reason::Deleting, words)
        }
        (Fact::Found(machine), None) => {
            let words = machine.trouble.clone().unwrap_or_else(|| "its machine does not run yet".into());
            Verdict::new(InfrastructureReady, Is::False, Reason::Provisioning, words)
        }
        (Fact::Absent, None) if plan.step == Step::MachineGone => {
            Verdict::new(InfrastructureReady, Is::False, Reason::InfrastructureGone, "its machine is gone")
        }
        (Fact::Absent, None) => {
            Verdict::new(InfrastructureReady, Is::False, Reason::Provisioning, "it has no machine")
        }
    };
    let needs_help = matches!(
        ready.reason,
        Reason::DrainBlocked
            | Reason::JoinOverdue
            | Reason::NodeForeign
            | Reason::NodeMissing
            | Reason::InfrastructureGone
            | Reason::DeletionBlocked
    );
    let for_good = [Reason::QuotaExceeded, Reason::NoCapacity, Reason::InfrastructureDenied];
    let stalled = match (failure.filter(|failure| !failure.transient), refused) {
        (Some(failure), _) => Verdict::new(Stalled, Is::True, failure.reason, failure.message.clone()),
        (None, Some((reason, message))) if for_good.contains(&reason) => {
            Verdict::new(Stalled, Is::True, reason, message)
        }
        (None, _) if needs_help => Verdict::new(Stalled, Is::True, ready.reason, ready.message.clone()),
        (None, _) => Verdict::new(Stalled, Is::False, Reason::Settled, "nothing stands in the way"),
    };
    let at_rest = plan.is_empty() && plan.step == Step::Joined && ready.is == Is::True;
    let reconciling = match failure {
        Some(failure) => Verdict::new(Reconciling, Is::True, Reason::RequestFailing, failure.message.clone()),
        None if at_rest => Verdict::new(Reconciling, Is::False, Reason::Settled, "nothing is left to do"),
        None => Verdict::new(Reconciling, Is::True, Reason::Progressing, "work is under way"),
    };
    vec![ready, infrastructure, reconciling, stalled]
}

/// How it stands, from its step.
fn ready(observed: &WorkerObserved, plan: &WorkerPlan) -> Verdict {
    let verdict = |is, reason, message: String| Verdict::new(ConditionType::Ready, is, reason, message);
    let not = |reason, message: &str| verdict(Is::False, reason, message.to_owned());
    match &plan.step {
        Step::Unknown => {
            verdict(Is::Unknown, Reason::NotObserved, "not enough was read to say how it stands".into())
        }
        Step::Forsaken if observed.cluster.found().is_some_and(|cluster| cluster.deleting) => {
            not(Reason::ClusterDeleting, "its TenantCluster is being deleted, and it goes with it")
        }
        Step::Forsaken => {
            not(Reason::ClusterNotFound, "its TenantCluster is gone; it is left alone until it is deleted")
        }
        Step::WaitingForCluster => not(Reason::WaitingForCluster, "the API of its cluster does not serve"),
        Step::Provisioning => not(Reason::Provisioning, "its machine is being made"),
        Step::WaitingForMachine => verdict(
            Is::False,
            Reason::WaitingForMachine,
            format!(
                "it waits for a machine that joins with the command in Secret {}",
                name::join_secret(observed.name())
            ),
        ),
        Step::Joining(since) if observed.now.duration_since(*since).as_secs() > OVERDUE_SECONDS => verdict(
            Is::False,
            Reason::JoinOverdue,
            format!("its machine runs since {since}, and its node is not there"),
        ),
        Step::Joining(_) => not(Reason::Joining, "its machine runs, its node is not there yet"),
        Step::Joined => joined(observed),
        Step::NodeMissing => not(
            Reason::NodeMissing,
            "its Node is gone from the tenant cluster; delete the Worker to have it made again",
        ),
        Step::NodeForeign => {
            not(Reason::NodeForeign, "a Node of another machine has its name and is left alone")
        }
        Step::MachineGone => {
            not(Reason::InfrastructureGone, "its machine is gone; delete the Worker to have it made again")
        }
        Step::Draining(Progress::Blocked(left, words, _)) => {
            verdict(Is::False, Reason::DrainBlocked, format!("{left} pods are left: {words}"))
        }
        Step::Draining(Progress::Expired(left)) => verdict(
            Is::False,
            Reason::DrainExpired,
            format!("the time for draining is over with {} pods left: {}", left.len(), left.join(", ")),
        ),
        Step::Draining(Progress::Moving(left)) => {
            verdict(Is::False, Reason::Draining, format!("{left} pods are left to move"))
        }
        Step::Draining(Progress::Done) => not(Reason::Draining, "all pods are moved"),
        Step::DeletingMachine => match observed.machine.found().and_then(held) {
            Some(words) => verdict(Is::False, Reason::DeletionBlocked, words),
            None => not(Reason::Deleting, "its machine is being taken away"),
        },
        Step::DeletingNode => not(Reason::Deleting, "its Node is being taken away"),
        Step::Stuck(why) => verdict(Is::False, Reason::DeletionBlocked, (*why).to_owned()),
        Step::Finishing => not(Reason::Deleting, "nothing is left of it"),
    }
}

/// What keeps a machine that was told to go.
fn held(machine: &Machine) -> Option<String> {
    machine.trouble.clone().filter(|_| machine.state == MachineState::Stopping)
}

fn joined(observed: &WorkerObserved) -> Verdict {
    let verdict = |is, reason, message: String| Verdict::new(ConditionType::Ready, is, reason, message);
    match node::matched(observed) {
        Match::Own(node) if node.ready == "True" => {
            verdict(Is::True, Reason::NodeReady, "its node is Ready".into())
        }
        Match::Own(node) if node.ready == "False" => {
            verdict(Is::False, Reason::NodeNotReady, node.message.clone())
        }
        Match::Own(_) => verdict(Is::Unknown, Reason::NodeSilent, "its kubelet does not report".into()),
        _ => verdict(Is::Unknown, Reason::NotObserved, "the API of its cluster does not answer".into()),
    }
}

fn worker_summary(verdicts: &[Verdict], refusal: Option<&str>) -> String {
    let Some(ready) = verdicts.iter().find(|verdict| verdict.kind == ConditionType::Ready) else {
        return String::new();
    };
    let text = match (ready.is, refusal) {
        (Is::True, _) => "Ready".to_owned(),
        (_, Some(refusal)) => format!("{}: {}: {refusal}", ready.reason, ready.message),
        (_, None) => format!("{}: {}", ready.reason, ready.message),
    };
    text.chars().take(SUMMARY).collect()
}
