//! The plan for one worker: from what is seen of it to its step, and to what is done next.
//!
//! The step is recomputed at every look. On the way up: bootstrap material, machine, node, what the pool wants on the
//! node. On the way down: drain, machine, node, finalizer. A worker whose cluster ends is not drained: what would take
//! its pods ends too. A node that is only silent is reported, and nothing else.

use jiff::{SignedDuration, Timestamp};
use kaas_crds::worker_pool::{InfrastructureKind, Template};
use kaas_crds::{InstanceTypeSpec, name};
use std::collections::BTreeMap;

use crate::action::Precondition;
use crate::drain::{self, Progress};
use crate::workers::action::{Action, MachineRequest, NodeCondition};
use crate::workers::infrastructure;
use crate::workers::node::{self, Match};
use crate::workers::observed::{Bootstrap, Cluster, Fact, MachineState, Node, WorkerObserved};

/// Where a worker stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Not enough was read to say.
    Unknown,
    /// Its cluster is being deleted or gone, and its pool has not taken it away yet.
    Forsaken,
    /// The API of its cluster does not serve yet.
    WaitingForCluster,
    /// Its machine is being made.
    Provisioning,
    /// It waits for a machine of the user's own.
    WaitingForMachine,
    /// Its machine runs since then, the node is not there yet.
    Joining(Timestamp),
    /// It has joined: the node stands for itself.
    Joined,
    /// It had joined, and the node object is gone.
    NodeMissing,
    /// A node of another machine has its name.
    NodeForeign,
    /// Its machine is gone.
    MachineGone,
    /// It goes, and its pods are moved first.
    Draining(Progress),
    /// It goes, and its machine is taken away.
    DeletingMachine,
    /// It goes, and the node object is taken away.
    DeletingNode,
    /// It goes, and what comes next cannot be done: the tenant's API is not read, or the infrastructure.
    Stuck(&'static str),
    /// It goes, and nothing is left of it but the object.
    Finishing,
}

/// What to do for a worker, in waves: everything of a wave may run at once, the next begins when it succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerPlan {
    /// Actions in order of dependency.
    pub waves: Vec<Vec<Action>>,
    /// Where it stands.
    pub step: Step,
    /// When to look again although nothing happened.
    pub wake_at: Option<Timestamp>,
}

impl WorkerPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.waves.iter().all(Vec::is_empty)
    }
}

/// Looks again so often although nothing happened.
const RESYNC: SignedDuration = SignedDuration::from_mins(10);
/// Looks again so soon while something is under way that may not tell when it is done.
const SOON: SignedDuration = SignedDuration::from_secs(5);
/// Looks again so soon at pods that go: nobody tells when they are gone.
const MOVING: SignedDuration = SignedDuration::from_secs(1);
/// How long a bootstrap token is good.
const TOKEN_LIFETIME: SignedDuration = SignedDuration::from_hours(1);
/// A token that ends so soon is made anew: a machine needs it for as long as it takes to join.
const TOKEN_MARGIN: SignedDuration = SignedDuration::from_mins(5);
/// Letters of a token's public part (kubernetes.io/docs: bootstrap tokens, `[a-z0-9]{6}`).
const TOKEN_LETTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
/// So many of them.
const TOKEN_LENGTH: usize = 6;

/// Plans the next steps for one worker.
pub fn plan(observed: &WorkerObserved) -> WorkerPlan {
    let (step, mut waves) = if observed.deleting() { down(observed) } else { up(observed) };
    waves.retain(|wave| !wave.is_empty());
    // Of a node that was not read nobody tells.
    let at_rest = matches!(step, Step::Joined) && waves.is_empty() && observed.node != Fact::Unread;
    let pause = match step {
        _ if at_rest => RESYNC,
        Step::Draining(Progress::Moving(_)) => MOVING,
        _ => SOON,
    };
    let wakes = [observed.now.checked_add(pause).ok(), drain_wake(observed, &step), next_attempt(observed)];
    let wake_at = wakes.into_iter().flatten().min();
    WorkerPlan { waves, step, wake_at }
}

/// When the infrastructure may be asked again.
fn next_attempt(observed: &WorkerObserved) -> Option<Timestamp> {
    let failure = observed.worker.status.as_ref()?.failure.as_ref()?;
    Some(failure.retry_at.0).filter(|at| *at > observed.now)
}

fn drain_wake(observed: &WorkerObserved, step: &Step) -> Option<Timestamp> {
    match step {
        Step::Draining(_) => draining(observed)?.wake_at,
        _ => None,
    }
}

/// Public part of the bootstrap token: derived from the worker's UID, so that asking twice makes one token. Of two thousand
/// million; whoever makes it sees to it that one of that name is this worker's.
pub fn token_id(worker_uid: &str) -> String {
    let digest = crate::difference::digest(&worker_uid.into());
    let mut number = u64::from_str_radix(&digest, 16).unwrap_or_default();
    let mut letters = String::new();
    while letters.len() < TOKEN_LENGTH {
        let at = usize::try_from(number % 36).unwrap_or_default();
        letters.push(TOKEN_LETTERS.get(at).copied().map_or('0', char::from));
        number /= 36;
    }
    letters
}

/// Whether nobody but its user knows the machine.
fn external(observed: &WorkerObserved) -> bool {
    observed.worker.spec.infrastructure.kind() == Some(InfrastructureKind::External)
}

/// Whether its node was seen once: from then on a missing one is a loss.
fn had_joined(observed: &WorkerObserved) -> bool {
    observed.worker.status.as_ref().is_some_and(|status| status.node_ref.is_some())
}

fn up(observed: &WorkerObserved) -> (Step, Vec<Vec<Action>>) {
    if observed.forsaken() {
        return (Step::Forsaken, Vec::new());
    }
    let Some(cluster) = observed.cluster.found() else { return (Step::Unknown, Vec::new()) };
    let waves = vec![finalizer(observed)];
    match node::matched(observed) {
        Match::Foreign(_) => (Step::NodeForeign, waves),
        Match::Own(_) if observed.machine.is_absent() && !external(observed) => (Step::MachineGone, waves),
        Match::Own(node) => (Step::Joined, joined(observed, cluster, node, waves)),
        Match::Absent if had_joined(observed) && observed.machine.is_absent() && !external(observed) => {
            (Step::MachineGone, waves)
        }
        Match::Absent if had_joined(observed) => (Step::NodeMissing, waves),
        Match::Unread if had_joined(observed) => (Step::Joined, waves),
        Match::Unread => (Step::WaitingForCluster, waves),
        Match::Absent if !cluster.serving => (Step::WaitingForCluster, waves),
        Match::Absent => making(observed, cluster, waves),
    }
}

fn finalizer(observed: &WorkerObserved) -> Vec<Action> {
    let metadata = &observed.worker.metadata;
    if has_finalizer(observed) {
        return Vec::new();
    }
    vec![Action::AddFinalizer { resource_version: metadata.resource_version.clone().unwrap_or_default() }]
}

fn has_finalizer(observed: &WorkerObserved) -> bool {
    let finalizers = observed.worker.metadata.finalizers.iter().flatten();
    finalizers.into_iter().any(|finalizer| finalizer == name::WORKER_FINALIZER)
}

/// Bootstrap material, then the machine that reads it.
fn making(
    observed: &WorkerObserved,
    cluster: &Cluster,
    mut waves: Vec<Vec<Action>>,
) -> (Step, Vec<Vec<Action>>) {
    let step = match (&observed.machine, external(observed)) {
        (_, true) => Step::WaitingForMachine,
        (Fact::Unread, _) => return (Step::Unknown, waves),
        (Fact::Found(machine), _) if machine.state == MachineState::Running => Step::Joining(machine.since),
        (Fact::Found(_) | Fact::Absent, _) => Step::Provisioning,
    };
    if cluster.paused {
        return (step, waves);
    }
    waves.push(bootstrap(observed));
    let failure = observed.worker.status.as_ref().and_then(|status| status.failure.as_ref());
    if observed.machine.is_absent() && !external(observed) && infrastructure::due(failure, observed.now) {
        waves.push(machine(observed).into_iter().collect());
    }
    (step, waves)
}

fn bootstrap(observed: &WorkerObserved) -> Vec<Action> {
    let precondition = match &observed.bootstrap {
        Fact::Unread => return Vec::new(),
        Fact::Absent => Precondition::Absent,
        Fact::Found(Bootstrap { expires, .. }) if expires.duration_since(observed.now) > TOKEN_MARGIN => {
            return Vec::new();
        }
        Fact::Found(bootstrap) => Precondition::Version(bootstrap.resource_version.clone()),
    };
    let expires = observed.now.checked_add(TOKEN_LIFETIME).unwrap_or(observed.now);
    vec![Action::IssueBootstrap { token_id: token_id(observed.uid()), expires, precondition }]
}

/// The machine, once all that it is made from is known.
fn machine(observed: &WorkerObserved) -> Option<Action> {
    let spec = &observed.worker.spec;
    let (pool, instance_type) = (observed.pool.found()?, observed.instance_type.found()?);
    let request = MachineRequest {
        name: observed.name().to_owned(),
        worker_uid: observed.uid().to_owned(),
        cluster_uid: spec.cluster_uid.clone(),
        infrastructure: spec.infrastructure.kind()?,
        instance_type: instance_type.clone(),
        version: spec.version.clone(),
        zone: spec.zone.clone(),
        kubelet: spec.kubelet.clone(),
        labels: node::labels(&observed.worker, &pool.spec.template, instance_type),
        taints: node::taints(&pool.spec.template),
        provider_id: node::provider_id(&observed.worker),
    };
    Some(Action::EnsureMachine(Box::new(request)))
}

/// A node that is there gets what its pool wants on it, and the token that it joined with is taken away.
fn joined(
    observed: &WorkerObserved,
    cluster: &Cluster,
    node: &Node,
    mut waves: Vec<Vec<Action>>,
) -> Vec<Vec<Action>> {
    if cluster.paused {
        return waves;
    }
    waves.push(revocation(observed));
    if let (Some(template), Some(instance_type)) = (template(observed), instance_type(observed)) {
        let change = node::change(node, &observed.worker, template, instance_type);
        waves.push(change.map(|change| Action::ConfigureNode(Box::new(change))).into_iter().collect());
    }
    waves
}

fn template(observed: &WorkerObserved) -> Option<&Template> {
    observed.pool.found().map(|pool| &pool.spec.template)
}

fn instance_type(observed: &WorkerObserved) -> Option<&InstanceTypeSpec> {
    observed.instance_type.found()
}

fn revocation(observed: &WorkerObserved) -> Vec<Action> {
    let bootstrap = observed.bootstrap.found().into_iter();
    bootstrap.map(|bootstrap| Action::RevokeBootstrap { token_id: bootstrap.token_id.clone() }).collect()
}

fn down(observed: &WorkerObserved) -> (Step, Vec<Vec<Action>>) {
    if !has_finalizer(observed) {
        return (Step::Finishing, Vec::new());
    }
    if observed.forsaken() {
        // Token and node end with the cluster.
        return machine_away(observed, Vec::new(), finish);
    }
    if observed.cluster.found().is_none() {
        return (Step::Stuck("its TenantCluster was not read"), Vec::new());
    }
    let waves = vec![revocation(observed)];
    match node::matched(observed) {
        // Nobody drains what is not its node, or what ran on a machine that is gone.
        Match::Foreign(_) => machine_away(observed, waves, finish),
        Match::Absent => machine_away(observed, waves, finish),
        Match::Own(_) if observed.machine.is_absent() && !external(observed) => node_away(observed, waves),
        Match::Own(node) => drained(observed, node, waves),
        Match::Unread if !had_joined(observed) || observed.now >= drain_until(observed) => {
            machine_away(observed, waves, node_away)
        }
        Match::Unread => {
            (Step::Stuck("the API of its cluster does not answer, and its pods cannot be moved"), waves)
        }
    }
}

/// When the drain is over, whatever is left.
pub fn drain_until(observed: &WorkerObserved) -> Timestamp {
    let rollout = observed.pool.found().map(|pool| pool.spec.rollout.clone()).unwrap_or_default();
    let since = observed.worker.metadata.deletion_timestamp.as_ref().map_or(observed.now, |time| time.0);
    since.checked_add(rollout.drain.timeout.duration()).unwrap_or(Timestamp::MAX)
}

fn draining(observed: &WorkerObserved) -> Option<drain::Drain<'_>> {
    let pods = observed.pods.as_ref()?;
    Some(drain::drain(pods, observed.last, &observed.answers, observed.now, drain_until(observed)))
}

/// Cordon, then evictions, then the machine.
fn drained(observed: &WorkerObserved, node: &Node, mut waves: Vec<Vec<Action>>) -> (Step, Vec<Vec<Action>>) {
    let expired = observed.now >= drain_until(observed);
    let Some(drain) = draining(observed) else {
        if expired {
            return machine_away(observed, waves, node_away);
        }
        waves.push(mark(node, None));
        return (Step::Stuck("the pods on its node were not read"), waves);
    };
    if !node.unschedulable && !expired {
        // A pod that comes after the look would not be among those that are left.
        waves.push(mark(node, None));
        let pods = observed.pods.as_deref().unwrap_or_default();
        let left = drain::left(pods, observed.last, observed.now).count();
        return (Step::Draining(Progress::Moving(left)), waves);
    }
    match drain.progress {
        Progress::Done | Progress::Expired(_) => {
            let whole = drain.progress == Progress::Done;
            waves.push(mark(node, Some(whole)));
            let (step, waves) = machine_away(observed, waves, node_away);
            let step = if whole { step } else { Step::Draining(drain.progress) };
            (step, waves)
        }
        progress => {
            waves.push(mark(node, None));
            let evictions = drain.evictions.into_iter().map(|pod| Action::Evict {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            });
            waves.push(evictions.collect());
            (Step::Draining(progress), waves)
        }
    }
}

/// Upstream's conditions for whoever looks at the node; nothing in Kubernetes reads them. `ended` tells whether the drain
/// is over, and whether nothing was left.
fn mark(node: &Node, ended: Option<bool>) -> Vec<Action> {
    let condition = |status, reason, message: &str| NodeCondition { status, reason, message: message.into() };
    let wanted = match ended {
        None => vec![
            ("DrainInProgress", condition("True", "WorkerGoes", "pods are moved to other nodes")),
            ("Drained", condition("False", "WorkerGoes", "pods are left")),
        ],
        Some(whole) => vec![
            ("DrainInProgress", condition("False", "WorkerGoes", "the drain is over")),
            (
                "Drained",
                condition(
                    if whole { "True" } else { "False" },
                    "WorkerGoes",
                    if whole { "no pod is left" } else { "the time is over with pods left" },
                ),
            ),
        ],
    };
    let conditions: BTreeMap<String, NodeCondition> = wanted
        .into_iter()
        .filter(|(kind, condition)| node.conditions.get(*kind).map(String::as_str) != Some(condition.status))
        .map(|(kind, condition)| (kind.to_owned(), condition))
        .collect();
    let cordon = !node.unschedulable;
    if conditions.is_empty() && !cordon {
        return Vec::new();
    }
    vec![Action::MarkNode {
        uid: node.uid.clone(),
        resource_version: node.resource_version.clone(),
        cordon,
        conditions,
    }]
}

type Next = fn(&WorkerObserved, Vec<Vec<Action>>) -> (Step, Vec<Vec<Action>>);

/// The machine goes; what comes after it waits until the infrastructure says that it is gone.
fn machine_away(
    observed: &WorkerObserved,
    mut waves: Vec<Vec<Action>>,
    next: Next,
) -> (Step, Vec<Vec<Action>>) {
    if external(observed) {
        return next(observed, waves);
    }
    match &observed.machine {
        Fact::Absent => next(observed, waves),
        Fact::Unread => (Step::Stuck("the infrastructure does not say whether its machine is gone"), waves),
        Fact::Found(machine) => {
            let failure = observed.worker.status.as_ref().and_then(|status| status.failure.as_ref());
            if machine.state != MachineState::Stopping && infrastructure::due(failure, observed.now) {
                waves.push(vec![Action::DeleteMachine { id: machine.id.clone() }]);
            }
            (Step::DeletingMachine, waves)
        }
    }
}

/// The node object goes, after the pods that went down with its machine; the finalizer waits until it is gone.
fn node_away(observed: &WorkerObserved, mut waves: Vec<Vec<Action>>) -> (Step, Vec<Vec<Action>>) {
    match node::matched(observed) {
        Match::Own(node) => {
            waves.push(lost(observed));
            waves.push(vec![Action::DeleteNode { uid: node.uid.clone() }]);
            (Step::DeletingNode, waves)
        }
        Match::Absent | Match::Foreign(_) => finish(observed, waves),
        Match::Unread => {
            (Step::Stuck("the API of its cluster does not answer, and its Node cannot be deleted"), waves)
        }
    }
}

/// Pods that somebody makes again, or waits for the end of, and of which nothing runs any more. Of a user's machine nobody
/// knows that.
fn lost(observed: &WorkerObserved) -> Vec<Action> {
    if external(observed) || !observed.machine.is_absent() {
        return Vec::new();
    }
    let pods = observed.pods.as_deref().unwrap_or_default();
    let gone = drain::left(pods, false, observed.now).map(|pod| Action::DeletePod {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
    });
    gone.collect()
}

fn finish(observed: &WorkerObserved, mut waves: Vec<Vec<Action>>) -> (Step, Vec<Vec<Action>>) {
    let resource_version = observed.worker.metadata.resource_version.clone().unwrap_or_default();
    waves.push(vec![Action::RemoveFinalizer { resource_version }]);
    (Step::Finishing, waves)
}
