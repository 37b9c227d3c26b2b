//! The linter over plans for workers: from facts and a plan to the invariants that the plan would break. As the one over
//! plans for clusters it does not ask the planners: its rules stand on the facts alone.

use std::collections::BTreeSet;

use kaas_crds::name;

use crate::action::Precondition;
use crate::drain;
use crate::lint::{Breach, Invariant};
use crate::workers::action::{Action, NodeChange, tell};
use crate::workers::node::{self, Match};
use crate::workers::observed::{Fact, Member, PoolObserved, Readiness, WorkerObserved};
use crate::workers::pool::PoolPlan;
use crate::workers::worker::{self, WorkerPlan};

/// What a plan for a pool would break; nothing for one that may be executed.
pub fn check_pool(observed: &PoolObserved, plan: &PoolPlan) -> Vec<Breach> {
    let mut lint = Lint::default();
    let actions: Vec<&Action> = plan.waves.iter().flatten().collect();
    let (mut made, mut gone) = (BTreeSet::new(), BTreeSet::new());
    for action in &actions {
        lint.action = tell(action);
        lint.moment(observed, action);
        match action {
            Action::AddPoolFinalizer { resource_version } | Action::Record { resource_version, .. } => {
                lint.version(observed.pool.metadata.resource_version.as_deref(), resource_version);
            }
            Action::RemovePoolFinalizer { resource_version } => {
                lint.version(observed.pool.metadata.resource_version.as_deref(), resource_version);
                let uid = observed.pool.metadata.uid.as_deref();
                let left = observed.workers.iter().any(|member| member.owner() == uid);
                lint.require(
                    observed.deleting() && !left,
                    Invariant::Finalizer,
                    "it has workers, or is not being deleted",
                );
            }
            Action::Create { worker, pool_generation } => {
                lint.create(observed, worker, *pool_generation, &mut made);
            }
            Action::Delete { name, uid } => lint.delete(observed, name, uid, &mut gone),
            _ => lint.breach(Invariant::Ownership, "it is not a pool's to do"),
        }
    }
    lint.action = "the plan as a whole".into();
    lint.budget(observed, made.len(), &gone);
    lint.breaches
}

/// What a plan for a worker would break; nothing for one that may be executed.
pub fn check_worker(observed: &WorkerObserved, plan: &WorkerPlan) -> Vec<Breach> {
    let mut lint = Lint::default();
    let mut irreversible = 0_u32;
    for action in plan.waves.iter().flatten() {
        lint.action = tell(action);
        if action.disruption() == crate::action::Disruption::Irreversible {
            irreversible = irreversible.saturating_add(1);
            lint.require(irreversible == 1, Invariant::Irreversible, "it is not the only one in the plan");
        }
        lint.inspect(observed, action);
    }
    lint.breaches
}

#[derive(Default)]
struct Lint {
    action: String,
    breaches: Vec<Breach>,
}

impl Lint {
    fn breach(&mut self, invariant: Invariant, fact: impl Into<String>) {
        self.breaches.push(Breach { invariant, action: self.action.clone(), fact: fact.into() });
    }

    fn require(&mut self, holds: bool, invariant: Invariant, fact: &str) {
        if !holds {
            self.breach(invariant, fact);
        }
    }

    fn version(&mut self, seen: Option<&str>, version: &str) {
        let same = seen == Some(version) && !version.is_empty();
        self.require(same, Invariant::Precondition, "it is not guarded by the resourceVersion that was seen");
    }

    fn exactly(&mut self, seen: Option<&str>, uid: &str) {
        let same = seen == Some(uid) && !uid.is_empty();
        self.require(same, Invariant::Precondition, "it is not guarded by the UID that was seen");
    }

    /// Whether it is a moment for this at all.
    fn moment(&mut self, observed: &PoolObserved, action: &Action) {
        let makes = matches!(action, Action::Create { .. } | Action::AddPoolFinalizer { .. });
        if observed.deleting() {
            return self.require(!makes, Invariant::Deletion, "the WorkerPool is being deleted");
        }
        let Some(cluster) = observed.cluster.found() else {
            return self.breach(Invariant::Precondition, "the TenantCluster was not read, or is not there");
        };
        if cluster.deleting {
            let creates = matches!(action, Action::Create { .. });
            return self.require(!creates, Invariant::Deletion, "the TenantCluster is being deleted");
        }
        self.require(!cluster.paused, Invariant::Paused, "spec.paused of the TenantCluster is true");
    }

    fn create<'a>(
        &mut self,
        observed: &PoolObserved,
        worker: &'a kaas_crds::Worker,
        generation: i64,
        made: &mut BTreeSet<&'a str>,
    ) {
        let metadata = &worker.metadata;
        let name = metadata.name.as_deref().unwrap_or_default();
        self.require(made.insert(name), Invariant::Count, "it is made twice");
        let taken = observed.workers.iter().any(|member| member.name() == name);
        self.require(!taken, Invariant::Count, "a worker has that name");
        let ordinal = name::worker_ordinal(observed.name(), name);
        self.require(ordinal.is_some(), Invariant::Ownership, "its name is not of this pool");
        let uid = observed.pool.metadata.uid.as_deref();
        let owned = metadata.owner_references.iter().flatten().any(|owner| Some(owner.uid.as_str()) == uid);
        self.require(owned, Invariant::Ownership, "the pool would not own it");
        self.require(
            metadata.namespace == observed.pool.metadata.namespace,
            Invariant::Ownership,
            "it is of another namespace",
        );
        let cluster = observed.cluster.found().map(|cluster| cluster.uid.as_str());
        self.require(
            Some(worker.spec.cluster_uid.as_str()) == cluster,
            Invariant::Ownership,
            "it is of another cluster",
        );
        let kept = metadata.finalizers.iter().flatten().any(|finalizer| finalizer == name::WORKER_FINALIZER);
        self.require(kept, Invariant::Finalizer, "it would have no finalizer");
        let current = observed.is_current(worker);
        self.require(current, Invariant::Count, "it is of an old template");
        self.require(
            Some(generation) == observed.pool.metadata.generation,
            Invariant::Precondition,
            "it is not guarded by the pool's generation",
        );
    }

    fn delete<'a>(
        &mut self,
        observed: &PoolObserved,
        name: &str,
        uid: &'a str,
        gone: &mut BTreeSet<&'a str>,
    ) {
        let member = observed.workers.iter().find(|member| member.name() == name);
        self.exactly(member.map(Member::uid), uid);
        self.require(gone.insert(uid), Invariant::Count, "it is deleted twice");
        let mine = member.is_some_and(|member| member.owner() == observed.pool.metadata.uid.as_deref());
        self.require(mine, Invariant::Ownership, "it is not of this pool");
        if all_go(observed) {
            return;
        }
        self.require(observed.live, Invariant::Choice, "the list of workers may lag");
        let status = observed.pool.status.as_ref();
        let chosen = status.is_some_and(|status| status.removing.iter().any(|removal| removal.uid == uid));
        self.require(chosen, Invariant::Choice, "it is not among those that were stored to go");
    }

    /// The number of workers that the plan leads to, and how many of them are Ready.
    fn budget(&mut self, observed: &PoolObserved, made: usize, gone: &BTreeSet<&str>) {
        if all_go(observed) {
            return;
        }
        let spec = &observed.pool.spec;
        let count = |number: i32| usize::try_from(number).unwrap_or(0);
        let staying: Vec<&Member> = observed.members().filter(|member| !member.going()).collect();
        let old = observed.members().any(|member| !observed.is_current(&member.worker));
        let wanted = count(spec.replicas);
        let most = wanted.saturating_add(if old { count(spec.rollout.max_surge) } else { 0 });
        let made_too_many = made > 0 && staying.len().saturating_add(made) > most;
        self.require(!made_too_many, Invariant::Count, "there would be more workers than asked for");
        if gone.is_empty() {
            return;
        }
        let (go, left): (Vec<&Member>, Vec<&Member>) =
            staying.iter().copied().partition(|member| gone.contains(member.uid()));
        let least = wanted.saturating_sub(count(spec.rollout.max_unavailable));
        self.require(
            left.len() >= least,
            Invariant::Budget,
            "there would be fewer workers than the budget allows",
        );
        let ready = left.iter().filter(|member| member.readiness == Readiness::Ready).count();
        let excess = staying.len().saturating_sub(wanted);
        let lost = go.iter().filter(|member| member.readiness != Readiness::NotReady).count();
        self.require(
            ready >= least || lost <= excess,
            Invariant::Budget,
            "fewer workers would be Ready than the budget allows",
        );
    }

    fn inspect(&mut self, observed: &WorkerObserved, action: &Action) {
        let metadata = &observed.worker.metadata;
        let external = observed.worker.spec.infrastructure.kind()
            == Some(kaas_crds::worker_pool::InfrastructureKind::External);
        let own = match node::matched(observed) {
            Match::Own(node) => Some(node),
            _ => None,
        };
        match action {
            Action::AddFinalizer { resource_version } => {
                self.version(metadata.resource_version.as_deref(), resource_version);
                self.makes(observed);
            }
            Action::RemoveFinalizer { resource_version } => {
                self.version(metadata.resource_version.as_deref(), resource_version);
                self.require(observed.deleting(), Invariant::Finalizer, "the Worker is not being deleted");
                let machine = external || observed.machine.is_absent();
                self.require(machine, Invariant::Finalizer, "its machine is not known to be gone");
                let node = observed.forsaken() || own.is_none() && !matches!(observed.node, Fact::Unread);
                self.require(node, Invariant::Finalizer, "its node is not known to be gone");
            }
            Action::IssueBootstrap { precondition, .. } => {
                self.makes(observed);
                match (&observed.bootstrap, precondition) {
                    (Fact::Absent, Precondition::Absent) => {}
                    (Fact::Found(found), Precondition::Version(version)) => {
                        self.version(Some(&found.resource_version), version);
                    }
                    _ => self.breach(Invariant::Precondition, "it is not guarded by what was seen"),
                }
            }
            Action::RevokeBootstrap { token_id } => {
                let seen = observed.bootstrap.found().map(|bootstrap| bootstrap.token_id.as_str());
                self.exactly(seen, token_id);
            }
            Action::EnsureMachine(request) => {
                self.makes(observed);
                self.exactly(metadata.uid.as_deref(), &request.worker_uid);
                self.require(
                    request.cluster_uid == observed.worker.spec.cluster_uid,
                    Invariant::Ownership,
                    "it is of another cluster",
                );
                self.require(!external, Invariant::Ownership, "the machine is the user's own");
                self.require(observed.machine.is_absent(), Invariant::Count, "it may have a machine");
            }
            Action::DeleteMachine { id } => {
                self.exactly(observed.machine.found().map(|machine| machine.id.as_str()), id);
                self.require(observed.deleting(), Invariant::Drain, "the Worker is not being deleted");
                self.require(
                    drained(observed),
                    Invariant::Drain,
                    "pods are left on its node, and there is time",
                );
            }
            Action::ConfigureNode(change) => {
                self.makes(observed);
                self.exactly(own.map(|node| node.uid.as_str()), &change.uid);
                self.version(own.map(|node| node.resource_version.as_str()), &change.resource_version);
                if let Some(node) = own {
                    self.configures(node, change);
                }
            }
            Action::MarkNode { uid, resource_version, .. } => {
                self.exactly(own.map(|node| node.uid.as_str()), uid);
                self.version(own.map(|node| node.resource_version.as_str()), resource_version);
                self.require(observed.deleting(), Invariant::Drain, "the Worker is not being deleted");
            }
            Action::Evict { uid, .. } => {
                let pods = observed.pods.iter().flatten();
                let seen = pods.map(|pod| pod.uid.as_str()).find(|seen| seen == uid);
                self.exactly(seen, uid);
                self.require(observed.deleting(), Invariant::Drain, "the Worker is not being deleted");
                let cordoned = own.is_some_and(|node| node.unschedulable);
                self.require(cordoned, Invariant::Drain, "its node is not cordoned");
            }
            Action::DeletePod { uid, .. } => {
                let pods = observed.pods.iter().flatten();
                let seen = pods.map(|pod| pod.uid.as_str()).find(|seen| seen == uid);
                self.exactly(seen.filter(|_| own.is_some()), uid);
                self.require(observed.deleting(), Invariant::Drain, "the Worker is not being deleted");
                let gone = !external && observed.machine.is_absent();
                self.require(gone, Invariant::Drain, "its machine is not known to be gone");
            }
            Action::DeleteNode { uid } => {
                self.exactly(own.map(|node| node.uid.as_str()), uid);
                self.require(observed.deleting(), Invariant::Drain, "the Worker is not being deleted");
                let machine = external && drained(observed) || observed.machine.is_absent();
                self.require(machine, Invariant::Drain, "its machine is not known to be gone");
            }
            Action::AddPoolFinalizer { .. }
            | Action::RemovePoolFinalizer { .. }
            | Action::Create { .. }
            | Action::Record { .. }
            | Action::Delete { .. } => self.breach(Invariant::Ownership, "it is not a worker's to do"),
        }
    }

    /// Whether anything may be made for the worker.
    fn makes(&mut self, observed: &WorkerObserved) {
        self.require(!observed.deleting(), Invariant::Deletion, "the Worker is being deleted");
        match observed.cluster.found() {
            Some(cluster) => {
                self.require(!observed.forsaken(), Invariant::Deletion, "its TenantCluster is being deleted");
                let finalizer = self.action == "add the finalizer";
                self.require(
                    !cluster.paused || finalizer,
                    Invariant::Paused,
                    "spec.paused of the TenantCluster is true",
                );
            }
            None => self.breach(Invariant::Precondition, "its TenantCluster was not read, or is not there"),
        }
    }

    fn configures(&mut self, node: &crate::workers::observed::Node, change: &NodeChange) {
        let labels = node::own(node, name::OWN_LABELS_ANNOTATION);
        let taints = node::own(node, name::OWN_TAINTS_ANNOTATION);
        let ours = change.remove_labels.iter().all(|key| labels.contains(key.as_str()))
            && change.remove_taints.iter().all(|key| taints.contains(key.as_str()));
        self.require(ours, Invariant::Ownership, "it removes what is not the pool's");
        let free = change.set_provider_id.is_none() || node.provider_id.is_empty();
        self.require(free, Invariant::Ownership, "the node is of a machine already");
    }
}

/// Whether all workers of the pool go, so that there is nothing to choose.
fn all_go(observed: &PoolObserved) -> bool {
    observed.deleting() || observed.cluster.found().is_some_and(|cluster| cluster.deleting)
}

/// Whether nothing is left on the node that would have to move, or nobody is there to move it, or the time is over.
fn drained(observed: &WorkerObserved) -> bool {
    let over = observed.now >= worker::drain_until(observed);
    let joined = observed.worker.status.as_ref().is_some_and(|status| status.node_ref.is_some());
    match node::matched(observed) {
        _ if observed.forsaken() || over => true,
        Match::Own(node) => {
            node.unschedulable
                && observed
                    .pods
                    .as_ref()
                    .is_some_and(|pods| drain::left(pods, observed.last, observed.now).next().is_none())
        }
        Match::Absent | Match::Foreign(_) => true,
        Match::Unread => !joined,
    }
}
