//! etcd's members as the actions of a plan would leave them. Each step is judged on what the steps before it lead to,
//! not on what was seen.

use kaas_crds::name::component;

use crate::action::EtcdOrder;
use crate::etcd::quorum;
use crate::observed::{self, Observed};

/// Name of a member's volume claim is this and its name.
const CLAIM: &str = "data-";

/// The members, as far as they were heard.
pub(super) struct Members {
    /// `None` when etcd did not answer, or without a leader: then its list of members may be an old one.
    known: Option<Vec<Member>>,
    /// Whether data outlives a pod.
    persistent: bool,
}

#[derive(Clone)]
struct Member {
    id: u64,
    name: String,
    voter: bool,
    healthy: bool,
}

const UNHEARD: &str = "no leader of etcd was heard";

impl Members {
    pub(super) fn of(observed: &Observed) -> Self {
        let led = observed.etcd.as_ref().filter(|etcd| etcd.leader != 0);
        let members = led.map(|etcd| etcd.members.iter().map(member).collect());
        Members { known: members, persistent: observed.cluster.spec.etcd.storage.persistent.is_some() }
    }

    /// Whether the pod is that of a voter, as far as is known.
    pub(super) fn votes(&self, pod: &str) -> bool {
        self.known
            .as_ref()
            .is_none_or(|members| members.iter().any(|member| member.voter && member.name == pod))
    }

    /// An order to etcd.
    pub(super) fn order(&mut self, order: &EtcdOrder) -> Result<(), String> {
        let members = self.known.as_mut().ok_or(UNHEARD)?;
        match order {
            EtcdOrder::MoveLeader { to } => {
                let heir = members.iter().find(|member| member.id == *to);
                heir.filter(|heir| heir.voter && heir.healthy)
                    .map(drop)
                    .ok_or("it is no healthy voter".to_owned())
            }
            EtcdOrder::AddLearner { .. } => {
                if members.iter().any(|member| !member.voter) {
                    return Err("there is a learner already".into());
                }
                kept(members)?;
                members.push(Member { id: 0, name: String::new(), voter: false, healthy: false });
                Ok(())
            }
            EtcdOrder::Promote { id } => {
                let learner = members.iter_mut().find(|member| member.id == *id && !member.voter);
                learner.ok_or("it is no learner")?.voter = true;
                kept(members)
            }
            EtcdOrder::Remove { id } => {
                let at = members.iter().position(|member| member.id == *id).ok_or("it is no member")?;
                let leaving = members.remove(at);
                if leaving.voter {
                    spared(&leaving, members)?;
                    kept(members)?;
                }
                Ok(())
            }
        }
    }

    /// The pod of a member goes and comes again.
    pub(super) fn restart(&mut self, pod: &str) -> Result<(), String> {
        let persistent = self.persistent;
        let members = self.known.as_mut().ok_or(UNHEARD)?;
        // The pod of no member, or of one that does not vote.
        let Some(at) = members.iter().position(|member| member.voter && member.name == pod) else {
            return kept(members);
        };
        let mut going = members.remove(at);
        let voters = members.iter().filter(|member| member.voter).count();
        if voters == 0 {
            // Nobody could take over from a lone member; what it has on a volume it has again.
            return if persistent { Ok(()) } else { Err("its pod holds the only copy of the data".into()) };
        }
        spared(&going, members)?;
        going.healthy = false;
        members.push(going);
        kept(members)
    }

    /// The StatefulSet gets another number of pods; the last ones go, and their volumes with them.
    pub(super) fn scale(&self, before: Option<i64>, replicas: i64) -> Result<(), String> {
        let Some(before) = before.filter(|before| replicas < *before) else { return Ok(()) };
        let Some(members) = &self.known else {
            return Err(format!("{UNHEARD}, and {before} pods become {replicas}"));
        };
        let losing = members.iter().find(|member| index(&member.name).is_some_and(|index| index >= replicas));
        losing.map_or(Ok(()), |member| Err(format!("{} is still a member", member.name)))
    }

    /// A volume claim goes.
    pub(super) fn delete_volume(&self, claim: &str) -> Result<(), String> {
        let Some(name) = claim.strip_prefix(CLAIM) else { return Err("it is no member's volume".into()) };
        let members = self.known.as_ref().ok_or(UNHEARD)?;
        if members.iter().any(|member| member.name == name) {
            return Err(format!("{name} is still a member"));
        }
        kept(members)
    }
}

/// Whether a quorum is healthy.
fn kept(members: &[Member]) -> Result<(), String> {
    let voters = members.iter().filter(|member| member.voter).count();
    let healthy = members.iter().filter(|member| member.voter && member.healthy).count();
    if healthy >= quorum(voters) {
        return Ok(());
    }
    Err(format!("{healthy} of {voters} voters would be healthy, {} are a quorum", quorum(voters)))
}

/// Whether a member may go as far as the others are concerned: a healthy one only while they are all well.
fn spared(going: &Member, others: &[Member]) -> Result<(), String> {
    let unwell = others.iter().find(|member| member.voter && !member.healthy);
    match unwell {
        Some(unwell) if going.healthy => Err(format!("{} is not well", unwell.name)),
        _ => Ok(()),
    }
}

fn member(seen: &observed::Member) -> Member {
    let name = if seen.name.is_empty() { host(&seen.peer_urls) } else { seen.name.clone() };
    Member { id: seen.id, name, voter: !seen.learner, healthy: seen.healthy }
}

/// Before its first start a member is known by its address alone, which begins with its pod's name.
fn host(peer_urls: &[String]) -> String {
    let host = peer_urls.first().and_then(|url| url.split_once("://")?.1.split(['.', ':']).next());
    host.unwrap_or_default().to_owned()
}

/// Position of a pod in its StatefulSet.
fn index(pod: &str) -> Option<i64> {
    pod.strip_prefix(component::ETCD)?.strip_prefix('-')?.parse().ok()
}
