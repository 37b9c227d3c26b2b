//! Which members API servers dial, and who stays when there is to be but one.
//!
//! What API servers dial stands in their flags and a change of it replaces them, one after the other and unseen. It is
//! that change which brings them from a lone member to its successor, before the leadership moves and before the
//! old one leaves. Nothing shorter would do:
//!
//! - A connection stays with its member until that one ends: etcd has no way to send clients away, and a Service that
//!   leads elsewhere moves new connections alone. A member that is removed stops within a second (`applyEntries` in
//!   etcd's server.go) and takes the requests with it that it was asked.
//! - A list of both names from the start does not help: gRPC waits longer and longer before it dials a name again that
//!   does not answer, at last two minutes (`DefaultConfig` in grpc's backoff.go, which etcd's client leaves as it is),
//!   and nobody could tell when a server has found the successor.
//! - Which member a server asks matters for the move of the leadership. Until the old leader has stepped down it drops
//!   what is proposed (`ErrProposalDropped`, `stepLeader` in raft.go), and an API server answers that with an error 500.
//!   It takes the new leader a synced write to begin. Who asks the new leader is not bound to that time: it keeps what
//!   is proposed until it leads (`propc` in raft's node.go), and only what was on its way to the old one is lost: seen in
//!   4 of 60 moves under 280 writes a second, and in 13 of 60 when the old leader was asked.

use kaas_crds::name::component;
use serde_json::Value;

use super::LONE_PLACES;
use super::members::{index, index_of, members};
use super::restart::{known, outdated};
use crate::desired::{ETCD_SERVERS_FLAG, etcd_member_name, etcd_servers};
use crate::object::{Kind, Object};
use crate::observed::Observed;
use crate::rollout;

/// What API servers dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One member, by its Service.
    Lone(i32),
    /// So many members from the first on, by their names.
    Several(i32),
}

impl Servers {
    /// Those of a new cluster.
    pub fn at_first(replicas: i32) -> Self {
        if replicas == 1 { Servers::Lone(0) } else { Servers::Several(replicas) }
    }
}

/// What API servers should dial now. Of members that join they learn when all of those vote, and while nobody is heard they
/// dial whom they dial: a guess would roll them for nothing.
pub fn servers(observed: &Observed) -> Servers {
    let stays = stays(observed).map(Servers::Lone);
    let wanted = stays.unwrap_or_else(|| Servers::at_first(observed.cluster.spec.etcd.replicas));
    dialled(observed).filter(|_| stays.is_none() && !vote(observed, wanted)).unwrap_or(wanted)
}

/// Whether all of them are known to vote.
fn vote(observed: &Observed, servers: Servers) -> bool {
    let voters: Vec<i32> = voters(observed).map(|(index, _)| index).collect();
    match servers {
        Servers::Lone(index) => voters.contains(&index),
        Servers::Several(count) => (0..count).all(|index| voters.contains(&index)),
    }
}

/// Number and ID of each member that votes.
fn voters(observed: &Observed) -> impl Iterator<Item = (i32, u64)> {
    let members = observed.etcd.iter().flat_map(|etcd| &etcd.members);
    members.filter(|member| !member.learner).filter_map(|member| Some((index(member)?, member.id)))
}

/// What API servers dial, those included that are about to be started.
pub fn dialled(observed: &Observed) -> Option<Servers> {
    let live = observed.live(Kind::Deployment, component::KUBE_APISERVER)?;
    let mut flags = flags(live.get("/spec/template/spec/containers")?);
    let list = flags.find_map(|flag| flag.strip_prefix(ETCD_SERVERS_FLAG))?;
    let members: Vec<i32> = list.split(',').filter_map(|url| index_of(host(url)?)).collect();
    match members.as_slice() {
        [only] => Some(Servers::Lone(*only)),
        several => Some(Servers::Several(i32::try_from(several.len()).ok()?)),
    }
}

/// Whether API servers dial what they should, all of them: whoever they do not dial may leave.
pub fn turned(observed: &Observed) -> bool {
    let dial = dialled(observed).is_none_or(|dialled| dialled == servers(observed));
    dial && rollout::settled(observed, component::KUBE_APISERVER)
}

fn host(url: &str) -> Option<&str> {
    url.strip_prefix("https://")?.split('.').next()
}

fn flags(containers: &Value) -> impl Iterator<Item = &str> {
    let all = containers.as_array().into_iter().flatten();
    let server = all.filter(|container| container["name"] == component::KUBE_APISERVER);
    server.flat_map(|container| container["command"].as_array()).flatten().filter_map(Value::as_str)
}

/// A Deployment of API servers with what they should dial now; any other object as it is.
pub fn put_servers(observed: &Observed, mut object: Object) -> Object {
    if object.reference.kind != Kind::Deployment {
        return object;
    }
    let containers =
        object.content.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
    let commands = containers.into_iter().flatten().filter_map(|container| container.get_mut("command"));
    let flags = commands.filter_map(Value::as_array_mut).flatten();
    for flag in flags.filter(|flag| flag.as_str().is_some_and(|flag| flag.starts_with(ETCD_SERVERS_FLAG))) {
        let list = etcd_servers(&observed.tenant, servers(observed)).join(",");
        *flag = format!("{ETCD_SERVERS_FLAG}{list}").into();
    }
    object
}

/// The member that all others leave to, when there is to be but one: because one is wanted, or because a lone member is
/// replaced before others join.
///
/// It is one that runs what it should, if there is one; then the one that API servers dial already; then the leader.
pub(super) fn stays(observed: &Observed) -> Option<i32> {
    let replicas = observed.cluster.spec.etcd.replicas;
    let voters: Vec<_> = voters(observed).collect();
    let outdated: Vec<i32> = outdated(observed).iter().filter_map(|pod| index_of(&pod.name)).collect();
    let dialled = dialled(observed);
    let lone = matches!(dialled, Some(Servers::Lone(_)));
    let renewed =
        lone && voters.len() <= LONE_PLACES.len() && voters.iter().any(|(index, _)| outdated.contains(index));
    if replicas != 1 && !renewed {
        return None;
    }
    let leader = observed.etcd.as_ref().map(|etcd| etcd.leader);
    let preferred = voters.iter().min_by_key(|(index, id)| {
        let (placed, dialled) = (LONE_PLACES.contains(index), dialled == Some(Servers::Lone(*index)));
        (!placed, outdated.contains(index), !dialled, leader != Some(*id), *index)
    });
    match (preferred, dialled) {
        (Some((index, _)), _) => Some(*index),
        // Nobody was heard.
        (None, Some(Servers::Lone(index))) => Some(index),
        (None, Some(Servers::Several(_))) => None,
        (None, None) => members(observed).first().copied(),
    }
}

/// The place of a lone member's successor.
pub(super) fn successor(index: i32) -> i32 {
    let [first, second] = LONE_PLACES;
    if index == first { second } else { index.saturating_sub(1) }
}

/// Whether the member runs what it should, as far as that can be said.
pub(super) fn runs_as_wanted(observed: &Observed, index: i32) -> bool {
    let name = etcd_member_name(index);
    known(observed) && !outdated(observed).iter().any(|pod| pod.name == name)
}
