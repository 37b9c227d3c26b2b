//! The plan for a pool: from the workers that there are to those that should be.
//!
//! Names are deterministic, `<pool>-<lowest free ordinal>`, so that whatever is stale, a worker that was asked for twice is
//! one worker. Which ones go is stored in the pool's status first and done at the next look: a late write of a former
//! leader takes none that is not in that choice. From a list that may lag nothing is taken away.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use kaas_crds::worker_pool::Removal;
use kaas_crds::{Worker, name};

use crate::validated::Problem;
use crate::workers::action::Action;
use crate::workers::observed::{Fact, Member, PoolObserved};
use crate::workers::roll::Wait;
use crate::workers::validated::{Validated, validate};
use crate::workers::{choice, roll, template};

/// What to do for a pool, in waves: everything of a wave may run at once, the next begins when it succeeded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolPlan {
    /// Actions in order of dependency.
    pub waves: Vec<Vec<Action>>,
    /// What stands in the way.
    pub problems: Vec<Problem>,
    /// Something is to go, and the list of workers was not read just now: look again with one that is.
    pub look_live: bool,
    /// When to look again although nothing happened.
    pub wake_at: Option<Timestamp>,
}

impl PoolPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.waves.iter().all(Vec::is_empty)
    }
}

/// Looks again so often although nothing happened.
const RESYNC: SignedDuration = SignedDuration::from_mins(10);
/// Looks again so soon while its cluster goes: what is said of it then must not outlive it.
const SOON: SignedDuration = SignedDuration::from_secs(5);

/// Plans the next steps for one pool.
pub fn plan(observed: &PoolObserved) -> PoolPlan {
    let wake_at = observed.now.checked_add(RESYNC).ok();
    if observed.deleting() {
        return PoolPlan { wake_at, ..plan_deletion(observed) };
    }
    let (made, problems) = validate(observed);
    let mut plan = PoolPlan { problems, wake_at, ..PoolPlan::default() };
    let Some(cluster) = observed.cluster.found().filter(|cluster| !cluster.paused || cluster.deleting) else {
        return plan;
    };
    plan.waves.push(finalizer(observed));
    if cluster.deleting {
        plan.wake_at = observed.now.checked_add(SOON).ok();
        // All of them: there is nothing to choose.
        plan.waves.push(all(observed.members()));
    } else {
        let can_be_made = made.is_some() && cluster.serving && !cluster.version.is_empty();
        let wait = roll::wait(observed);
        let over = wait.as_ref().and_then(|wait| wait.until);
        plan.wake_at = plan.wake_at.into_iter().chain(over).min();
        let removals = choice::removals(observed, can_be_made, wait.as_ref());
        let stored = observed.pool.status.as_ref().is_some_and(|status| !status.removing.is_empty());
        plan.look_live = (stored || !removals.is_empty()) && !observed.live;
        plan.waves.push(match &made {
            Some(made) => creations(observed, *made, wait.as_ref()),
            None => Vec::new(),
        });
        plan.waves.push(go(observed, removals));
    }
    plan.waves.retain(|wave| !wave.is_empty());
    plan
}

fn finalizer(observed: &PoolObserved) -> Vec<Action> {
    let metadata = &observed.pool.metadata;
    if metadata.finalizers.iter().flatten().any(|finalizer| finalizer == name::POOL_FINALIZER) {
        return Vec::new();
    }
    vec![Action::AddPoolFinalizer { resource_version: metadata.resource_version.clone().unwrap_or_default() }]
}

/// The end of a pool: all its workers, of whatever cluster, then the object itself.
fn plan_deletion(observed: &PoolObserved) -> PoolPlan {
    let metadata = &observed.pool.metadata;
    let mut plan = PoolPlan::default();
    if !metadata.finalizers.iter().flatten().any(|finalizer| finalizer == name::POOL_FINALIZER) {
        return plan;
    }
    let uid = metadata.uid.as_deref();
    let mut own = observed.workers.iter().filter(|member| member.owner() == uid).peekable();
    if own.peek().is_some() {
        plan.waves = vec![all(own)];
    } else if observed.live {
        let resource_version = metadata.resource_version.clone().unwrap_or_default();
        plan.waves = vec![vec![Action::RemovePoolFinalizer { resource_version }]];
    } else {
        plan.look_live = true;
    }
    plan.waves.retain(|wave| !wave.is_empty());
    plan
}

fn all<'a>(members: impl Iterator<Item = &'a Member>) -> Vec<Action> {
    let mut staying: Vec<&Member> = members.filter(|member| !member.going()).collect();
    staying.sort_by_key(|member| (member.name(), member.uid()));
    let delete = |member: &Member| Action::Delete { name: member.name().into(), uid: member.uid().into() };
    staying.into_iter().map(delete).collect()
}

/// Workers that are missing. While workers are replaced there may be some more than asked for; those of the old template
/// that still go count until they are gone, as their machines do.
fn creations(observed: &PoolObserved, made: Validated<'_>, wait: Option<&Wait>) -> Vec<Action> {
    // Workers get the version of a control plane that has run.
    if made.cluster.version.is_empty() {
        return Vec::new();
    }
    let spec = &observed.pool.spec;
    let members: Vec<&Member> = observed.members().collect();
    let is_current = |member: &&&Member| observed.is_current(&member.worker);
    let stay = members.iter().filter(|member| !member.going());
    let (current, staying) = (stay.clone().filter(is_current).count(), stay.count());
    let old = members.len().saturating_sub(members.iter().filter(is_current).count());
    let old_going = members.iter().filter(|member| member.going() && !is_current(member)).count();
    let wanted = usize::try_from(spec.replicas).unwrap_or(0);
    let rolls = old > 0 && !wait.is_some_and(|wait| wait.before_it);
    let surge = if rolls { usize::try_from(spec.rollout.max_surge).unwrap_or(0) } else { 0 };
    let room = wanted.saturating_add(surge).saturating_sub(staying).saturating_sub(old_going);
    let missing = wanted.saturating_sub(current).min(room);
    let mut workers: Vec<Worker> = Vec::new();
    for ordinal in free_ordinals(observed).take(missing) {
        let zone = template::zone(made.instance_type, &members, &workers);
        workers.push(template::worker(observed, made.cluster, ordinal, zone));
    }
    let pool_generation = observed.pool.metadata.generation.unwrap_or_default();
    workers.into_iter().map(|worker| Action::Create { worker: Box::new(worker), pool_generation }).collect()
}

/// Ordinals that no worker has, also none that goes or is of another pool or cluster.
fn free_ordinals(observed: &PoolObserved) -> impl Iterator<Item = u32> {
    let taken =
        observed.workers.iter().filter_map(|member| name::worker_ordinal(observed.name(), member.name()));
    let taken: BTreeSet<u32> = taken.collect();
    (0..).filter(move |ordinal| !taken.contains(ordinal))
}

/// What goes: first the choice is stored, and when it is what is stored, it is done.
fn go(observed: &PoolObserved, removals: Vec<Removal>) -> Vec<Action> {
    if !observed.live {
        return Vec::new();
    }
    let status = observed.pool.status.clone().unwrap_or_default();
    let mut stored = status.removing;
    stored.sort();
    if stored != removals {
        let resource_version = observed.pool.metadata.resource_version.clone().unwrap_or_default();
        return vec![Action::Record { resource_version, removals }];
    }
    removals.into_iter().map(|removal| Action::Delete { name: removal.name, uid: removal.uid }).collect()
}

/// Whether facts are missing that a plan would need: what is reported then is not known.
pub(super) fn unread(observed: &PoolObserved) -> bool {
    matches!(observed.cluster, Fact::Unread) || matches!(observed.instance_type, Fact::Unread)
}
