//! What holds in every state, and what must be reached for an exploration to show anything.

use kaas_lifecycle::etcd::quorum;
use stateright::Property;

use super::state::State;
use super::steps::Tiny;

pub(super) const WELL: &str = "no invariant is broken, and an undisturbed world ends well";
pub(super) const RUNS: &str = "it runs";
pub(super) const GONE: &str = "it is gone";
pub(super) const LATE: &str = "a late write is taken";
pub(super) const LOST: &str = "a member is away";
pub(super) const LEADERLESS: &str = "the leader is away";
pub(super) const GROWN: &str = "three members vote";

pub(super) fn all() -> Vec<Property<Tiny>> {
    vec![
        Property::always(WELL, |tiny: &Tiny, state: &State| {
            state.breach.is_none() && tiny.bad_end != Some(state.digest)
        }),
        Property::sometimes(RUNS, |_, state: &State| state.world.summary() == "Running"),
        Property::sometimes(GONE, |_, state: &State| state.world.gone),
        Property::sometimes(LATE, |_, state: &State| {
            state.late.as_ref().is_some_and(|write| state.world.admit(&write.action).is_ok())
        }),
        Property::sometimes(LOST, |_, state: &State| !state.lost.is_empty()),
        Property::sometimes(LEADERLESS, |_, state: &State| {
            let world = &state.world;
            world.members.iter().any(|member| member.id == world.leader && state.lost.contains(&member.name))
        }),
        Property::sometimes(GROWN, |_, state: &State| {
            state.world.members.iter().filter(|member| !member.learner).count() == 3
        }),
    ]
}

/// The invariant that a state breaks. What comes after it is not looked at: a checker tells of the last breach.
pub(super) fn broken(state: &State) -> Option<&'static str> {
    let world = &state.world;
    let rules = [
        ("there are two control planes", world.namespaces.len() <= 1),
        ("authorities were made twice", state.authorities <= 1),
        ("the operator took the quorum away", quorum_is_left(state)),
        ("no quorum has its data", data_is_left(state)),
        ("an API server has nobody to ask", servers_are_answered(state)),
        ("whose data it is was forgotten", going(state) || !state.established || state.identified()),
        ("a namespace is left behind", !world.gone || world.namespaces.is_empty()),
    ];
    rules.into_iter().find(|(_, holds)| !holds).map(|(name, _)| name)
}

fn going(state: &State) -> bool {
    state.world.cluster.metadata.deletion_timestamp.is_some() || state.world.gone
}

/// Of the voters that did not die by themselves a quorum is up.
fn quorum_is_left(state: &State) -> bool {
    let world = &state.world;
    let voters: Vec<_> = world.members.iter().filter(|member| !member.learner).collect();
    let up = |name: &str| world.pods.iter().any(|pod| pod.name == name && pod.ready && !pod.terminating);
    let well = voters.iter().filter(|member| up(&member.name) || state.lost.contains(&member.name)).count();
    going(state) || !state.established || well >= quorum(voters.len())
}

/// Each API server that serves has a voter to ask, but for those that died by themselves.
fn servers_are_answered(state: &State) -> bool {
    let world = &state.world;
    let mut servers = world.pods.iter().filter(|pod| pod.component == "kube-apiserver" && pod.ready);
    going(state) || !state.established || servers.all(|server| world.is_answered(server, &state.lost))
}

/// A quorum of the voters has on its volumes what it wrote, but for those that died with their volumes.
fn data_is_left(state: &State) -> bool {
    let world = &state.world;
    let voters: Vec<_> = world.members.iter().filter(|member| !member.learner).collect();
    let holding =
        voters.iter().filter(|member| world.holds(member) || state.lost.contains(&member.name)).count();
    going(state) || !state.established || holding >= quorum(voters.len())
}
