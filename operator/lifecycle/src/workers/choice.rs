//! Which workers go, and the sentence that says why.
//!
//! When fewer are asked for, those go that are cheapest to lose. When the template changed, those of the old one go, one
//! after the other, as far as the budget lets them on the state that the earlier ones lead to.

use std::cmp::Reverse;

use kaas_crds::name::DELETE_FIRST_ANNOTATION;
use kaas_crds::worker_pool::{MOST_REMOVALS, Removal};

use crate::workers::observed::{Member, PoolObserved, Readiness};
use crate::workers::roll::Wait;

/// The workers that are to go now: those of the stored choice that still are to, then others. Workers of an old template
/// only while ones of the new template `can_be_made`: what cannot be replaced stays.
pub(super) fn removals(observed: &PoolObserved, can_be_made: bool, wait: Option<&Wait>) -> Vec<Removal> {
    let mut choice = Choice::of(observed);
    choice.scale_down();
    if can_be_made && !wait.is_some_and(|wait| wait.before_it) {
        choice.roll(wait.is_some());
    }
    let mut removals = choice.removals;
    removals.truncate(MOST_REMOVALS);
    removals.sort();
    removals
}

struct Choice<'a> {
    observed: &'a PoolObserved,
    /// Workers that stay, the cheapest to lose last.
    staying: Vec<&'a Member>,
    removals: Vec<Removal>,
}

impl<'a> Choice<'a> {
    fn of(observed: &'a PoolObserved) -> Self {
        let mut staying: Vec<&Member> = observed.members().filter(|member| !member.going()).collect();
        staying.sort_by_key(|member| Reverse(cost(observed, member)));
        Choice { observed, staying, removals: Vec::new() }
    }

    fn is_old(&self, member: &Member) -> bool {
        !self.observed.is_current(&member.worker)
    }

    fn take(&mut self, at: usize, why: &str) {
        let member = self.staying.remove(at);
        let status = self.observed.pool.status.as_ref();
        let mut stored = status.into_iter().flat_map(|status| &status.removing);
        let earlier = stored.find(|removal| removal.uid == member.uid()).cloned();
        // What was said of it when it was chosen stays.
        self.removals.push(earlier.unwrap_or_else(|| Removal {
            name: member.name().into(),
            uid: member.uid().into(),
            why: why.chars().take(256).collect(),
        }));
    }

    /// As many as there are more than asked for, and more than a roll may add.
    fn scale_down(&mut self) {
        let spec = &self.observed.pool.spec;
        let rolling = self.staying.iter().any(|member| self.is_old(member));
        let surge = if rolling { usize::try_from(spec.rollout.max_surge).unwrap_or(0) } else { 0 };
        let wanted = usize::try_from(spec.replicas).unwrap_or(0);
        // A pool that is to have no workers needs none more while it is replaced.
        let most = if wanted == 0 { 0 } else { wanted.saturating_add(surge) };
        while self.staying.len() > most {
            let at = self.staying.len().saturating_sub(1);
            let Some(member) = self.staying.get(at) else { return };
            let why = format!(
                "{} of {} workers are to stay, and it is the cheapest to lose: {}",
                wanted,
                self.staying.len(),
                trait_of(member)
            );
            self.take(at, &why);
        }
    }

    /// Workers of an old template, as long as enough others are Ready. Those that are well may have to wait, unless they
    /// were chosen before.
    fn roll(&mut self, waiting: bool) {
        let spec = &self.observed.pool.spec;
        let wanted = usize::try_from(spec.replicas).unwrap_or(0);
        let least = wanted.saturating_sub(usize::try_from(spec.rollout.max_unavailable).unwrap_or(0));
        if self.blind() {
            return;
        }
        for at in (0..self.staying.len()).rev() {
            let Some(member) = self.staying.get(at).copied() else { continue };
            if !self.is_old(member) {
                continue;
            }
            let others = self.staying.iter().filter(|other| other.uid() != member.uid());
            let ready = others.filter(|other| other.readiness == Readiness::Ready).count();
            // One that says itself that it is not Ready takes nothing away. One that is silent may be well.
            let useless = member.readiness == Readiness::NotReady;
            if waiting && !useless && !chosen(self.observed, member) {
                continue;
            }
            if self.staying.len() > least && (useless || ready >= least) {
                let why = format!("it is of an old template: {}", trait_of(member));
                self.take(at, &why);
            }
        }
    }

    /// When most kubelets are silent it is the network, or our own eyes.
    fn blind(&self) -> bool {
        let silent = self.staying.iter().filter(|member| member.readiness == Readiness::Silent).count();
        silent > 1 && silent.saturating_mul(2) >= self.staying.len()
    }
}

/// What made it the one, in a few words.
fn trait_of(member: &Member) -> String {
    if delete_first(member) {
        return format!("it has the annotation {DELETE_FIRST_ANNOTATION}");
    }
    match member.readiness {
        Readiness::NotReady => return "its node is not Ready".into(),
        Readiness::Silent => return "its kubelet is silent".into(),
        Readiness::Ready => {}
    }
    format!("made at {}, {} pods", member.created(), member.pods)
}

/// What it costs to lose a worker: the least first. What was chosen before stays chosen, so that late writes and changed
/// facts do not take a second one.
fn cost<'a>(observed: &PoolObserved, member: &'a Member) -> impl Ord + use<'a> {
    (
        !chosen(observed, member),
        !delete_first(member),
        member.readiness,
        observed.is_current(&member.worker),
        Reverse(member.created()),
        member.pods,
        member.name(),
    )
}

fn chosen(observed: &PoolObserved, member: &Member) -> bool {
    let status = observed.pool.status.as_ref();
    status.is_some_and(|status| status.removing.iter().any(|removal| removal.uid == member.uid()))
}

fn delete_first(member: &Member) -> bool {
    let annotations = member.worker.metadata.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get(DELETE_FIRST_ANNOTATION))
        .is_some_and(|value| value != "false")
}
