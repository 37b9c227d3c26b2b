//! What an API server or etcd refuses. They judge by what the request carries: a version, a UID, a member's ID.

use kaas_lifecycle::action::{Action, EtcdOrder, Material, Precondition};
use kaas_lifecycle::object::Kind;
use kaas_lifecycle::observed::Member;

use super::{Conflict, World, name};

impl World {
    /// Whether the write would be taken as things stand.
    pub(crate) fn admit(&self, action: &Action) -> Result<(), Conflict> {
        match action {
            Action::AddFinalizer { resource_version } | Action::RemoveFinalizer { resource_version } => {
                let seen = self.cluster.metadata.resource_version.as_ref();
                refuse(self.gone || seen != Some(resource_version), "TenantCluster")
            }
            Action::Apply { object, precondition } if object.reference.kind == Kind::Namespace => {
                let found = self.namespaces.iter().find(|found| found.name == object.reference.name);
                fits(found.map(|found| &found.resource_version), precondition, &object.reference)
            }
            Action::Apply { object, precondition } => {
                self.open()?;
                let live = self.objects.get(&object.reference);
                fits(live.map(|live| &live.resource_version), precondition, &object.reference)
            }
            Action::Issue(issue) => {
                let live = if matches!(issue.material, Material::Kubeconfig { .. }) {
                    // One whose owner is gone is collected at once.
                    refuse(self.gone, "its owner is gone")?;
                    self.kubeconfig.as_ref()
                } else {
                    self.open()?;
                    self.secrets.get(&issue.reference.name)
                };
                fits(live.map(|live| &live.resource_version), &issue.precondition, &issue.reference)
            }
            // Another object of that name is left alone, and that counts as a success.
            Action::Delete { .. } | Action::DeleteInside { .. } => Ok(()),
            Action::ApplyInside { object, precondition } => {
                let live = self.inside.get(&object.reference);
                fits(live.map(|live| &live.resource_version), precondition, &object.reference)
            }
            Action::Etcd(order) => self.admit_order(order),
        }
    }

    fn admit_order(&self, order: &EtcdOrder) -> Result<(), Conflict> {
        let member = |id: u64| self.members.iter().find(|member| member.id == id);
        match order {
            EtcdOrder::MoveLeader { to } => {
                refuse(member(*to).is_none_or(|heir| heir.learner), "the heir does not vote")
            }
            EtcdOrder::AddLearner { peer_url } => {
                refuse(self.members.iter().any(|member| member.learner), "one learner at a time")?;
                let known = |member: &Member| peer_url.starts_with(&format!("https://{}.", name(member)));
                refuse(self.members.iter().any(known), "peer URL already exists")
            }
            EtcdOrder::Promote { id } => refuse(
                member(*id).is_none_or(|learner| !learner.learner || learner.name.is_empty()),
                "a learner that never started is not in sync",
            ),
            EtcdOrder::EnableDowngrade { version } => {
                let target = format!("3.{}", self.newest().saturating_sub(1));
                refuse(*version != target || self.lowered.is_some(), "invalid downgrade target version")
            }
            EtcdOrder::CancelDowngrade => {
                refuse(self.lowered.is_none(), "the cluster has no ongoing downgrade")
            }
            EtcdOrder::Remove { id } => {
                refuse(member(*id).is_none() || *id == self.leader, "the leadership moves away first")
            }
        }
    }

    /// A namespace that is not there, or goes, takes nothing new.
    fn open(&self) -> Result<(), Conflict> {
        refuse(self.namespaces.first().is_none_or(|home| home.terminating), "no namespace that stays")
    }
}

fn fits(seen: Option<&String>, asked: &Precondition, what: &impl ToString) -> Result<(), Conflict> {
    let fits = match asked {
        Precondition::Absent => seen.is_none(),
        Precondition::Version(version) => seen == Some(version),
    };
    refuse(!fits, what)
}

fn refuse(refused: bool, why: &(impl ToString + ?Sized)) -> Result<(), Conflict> {
    if refused { Err(Conflict(why.to_string())) } else { Ok(()) }
}
