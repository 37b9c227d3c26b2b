//! etcd's members as the actions of a plan would leave them. Each step is judged on what the steps before it lead to,
//! not on what was seen.

use kaas_crds::name::component;

use crate::action::EtcdOrder;
use crate::etcd::{Places, Series, Servers, dialled, quorum, series_of};
use crate::object::Kind;
use crate::observed::{self, Observed};
use crate::rollout;

/// Name of a member's volume claim is this and its name.
const CLAIM: &str = "data-";

/// The members, as far as they were heard.
pub(super) struct Members {
    /// `None` when etcd did not answer, or without a leader: then its list of members may be an old one.
    known: Option<Vec<Member>>,
    /// The only member that API servers know, if they know but one.
    dialled: Option<i32>,
    /// API servers are being replaced: those that go may dial members that the others do not know any more.
    turning: bool,
    /// The minor version that a member has which starts now.
    image: Option<Series>,
}

#[derive(Clone)]
struct Member {
    id: u64,
    name: String,
    voter: bool,
    healthy: bool,
    /// The minor version whose format its data has.
    format: Option<Series>,
    /// The minor version that it runs.
    runs: Option<Series>,
}

const UNHEARD: &str = "no leader of etcd was heard";

impl Members {
    pub(super) fn of(observed: &Observed) -> Self {
        let led = observed.etcd.as_ref().filter(|etcd| etcd.leader != 0);
        let members = led.map(|etcd| etcd.members.iter().map(member).collect());
        let dialled = match dialled(observed) {
            Some(Servers::Lone(index)) => Some(index),
            _ => None,
        };
        let image = observed.live(Kind::StatefulSet, component::ETCD).and_then(|set| series_of(&set.content));
        let turning = observed.live(Kind::Deployment, component::KUBE_APISERVER).is_some()
            && !rollout::settled(observed, component::KUBE_APISERVER);
        Members { known: members, dialled, turning, image }
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
                members.push(Member {
                    id: 0,
                    name: String::new(),
                    voter: false,
                    healthy: false,
                    format: None,
                    runs: None,
                });
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
                    if leaving.healthy && self.dialled.is_some() && index(&leaving.name) == self.dialled {
                        return Err("API servers know no other member".into());
                    }
                    if leaving.healthy && self.turning {
                        return Err("API servers are being replaced, and may dial it".into());
                    }
                    spared(&leaving, members)?;
                    kept(members)?;
                }
                Ok(())
            }
            EtcdOrder::EnableDowngrade { .. } | EtcdOrder::CancelDowngrade => kept(members),
        }
    }

    /// The pod of a member goes and comes again.
    pub(super) fn restart(&mut self, pod: &str) -> Result<(), String> {
        let members = self.known.as_mut().ok_or(UNHEARD)?;
        // The pod of no member, or of one that does not vote.
        let Some(at) = members.iter().position(|member| member.voter && member.name == pod) else {
            return kept(members);
        };
        let mut going = members.remove(at);
        let voters = members.iter().filter(|member| member.voter).count();
        if voters == 0 {
            return Err("it is the only voter, nobody could take over".into());
        }
        spared(&going, members)?;
        going.healthy = false;
        members.push(going);
        kept(members)
    }

    /// The StatefulSet gets other pods; those that it has no place for go, and their volumes with them.
    pub(super) fn scale(&self, before: Option<Places>, places: Places) -> Result<(), String> {
        let goes = |pod: i32| !places.contains(pod);
        let last = |places: Places| places.first.saturating_add(places.count);
        let Some(before) = before.filter(|before| (before.first..last(*before)).any(goes)) else {
            return Ok(());
        };
        let Some(members) = &self.known else {
            return Err(format!("{UNHEARD}, and {} pods become {}", before.count, places.count));
        };
        let losing = members.iter().find(|member| index(&member.name).is_some_and(goes));
        losing.map_or(Ok(()), |member| Err(format!("{} is still a member", member.name)))
    }

    /// Members that start from now on have another minor version of etcd.
    pub(super) fn change(&mut self, before: Series, after: Series) -> Result<(), String> {
        self.image = Some(after);
        if before == after {
            return Ok(());
        }
        if !before.is_near(after) {
            return Err(format!("from {before} to {after} is more than one minor version"));
        }
        self.readable(after, true)
    }

    /// Whether a voter that runs would start again.
    pub(super) fn starts(&self, pod: &str) -> Result<(), String> {
        let voters = self.known.iter().flatten().filter(|member| member.voter && member.healthy);
        let runs = voters.clone().any(|member| member.name == pod);
        match self.image.filter(|_| runs) {
            Some(image) => self.readable(image, false),
            None => Ok(()),
        }
    }

    /// Whether this minor version starts on the data that there is, with or without a word of each voter.
    fn readable(&self, after: Series, said: bool) -> Result<(), String> {
        let members = self.known.as_ref().ok_or(UNHEARD)?;
        // All data has the format of the oldest voter that runs.
        let mut voters = members.iter().filter(|member| member.voter);
        let kept = voters.clone().any(|member| member.runs.is_some_and(|runs| runs <= after));
        let newer = voters.find(|member| member.format.map_or(said && !kept, |format| format > after));
        newer.map_or(Ok(()), |member| {
            Err(format!("the data of {} is not known to be of {after} or before", member.name))
        })
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
    let (format, runs) = (Series::of(&seen.storage_version), Series::of(&seen.version));
    Member { id: seen.id, name, voter: !seen.learner, healthy: seen.healthy, format, runs }
}

/// Before its first start a member is known by its address alone, which begins with its pod's name.
fn host(peer_urls: &[String]) -> String {
    let host = peer_urls.first().and_then(|url| url.split_once("://")?.1.split(['.', ':']).next());
    host.unwrap_or_default().to_owned()
}

/// Position of a pod in its StatefulSet.
fn index(pod: &str) -> Option<i32> {
    pod.strip_prefix(component::ETCD)?.strip_prefix('-')?.parse().ok()
}
