//! Which etcd runs, and the way from one minor version to another.
//!
//! The image is that of the catalogue entry that the spec asks for; without one a new cluster gets its release's, and one
//! that runs keeps its minor version and follows its release's patch level alone. A newer etcd raises the format of the
//! data some seconds after the last member runs it, and from then on no older one starts on it. The way back is
//! then etcd's own: it is told to lower the format, and the older image waits until every member has.
//!
//! Nobody can join while the format is being lowered: whoever is let in by then has to be a minor version older than
//! what the cluster says it is, and the cluster says what it is lowered to (`allowedVersionRange` in etcd's
//! cluster_util.go). So etcd is told to stop as soon as a learner is a member, and before it starts. What was lowered stays
//! as it is meanwhile: the format is raised when all members are known to be newer (`decideClusterVersion` in its
//! monitor.go), and of one that has not started nobody knows.

use std::fmt;

use kaas_crds::kubernetes_release::EtcdRelease;
use kaas_crds::status::Owner;
use kaas_crds::{KubernetesReleaseSpec, Reason};
use serde_json::Value;

use super::health::{Health, health};
use super::members::set;
use super::restart::known;
use super::step::next_step;
use super::{beginning, snapshot};
use crate::action::{Action, EtcdOrder};
use crate::object::{Kind, Object};
use crate::observed::{Member, Observed};
use crate::upgrade::step::Progress;
use crate::validated::Problem;

/// A minor version of etcd: `3.7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    major: u32,
    minor: u32,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Series {
    /// That of a version such as `3.7.3`, or of an image's tag such as `3.7.3-0`.
    pub fn of(version: &str) -> Option<Self> {
        let mut numbers = version.strip_prefix('v').unwrap_or(version).split('.').map(str::parse);
        match (numbers.next()?, numbers.next()?) {
            (Ok(major), Ok(minor)) => Some(Series { major, minor }),
            _ => None,
        }
    }

    /// That of an image, by its tag.
    pub fn of_image(image: &str) -> Option<Self> {
        let (_, tag) = image.split_once('@').map_or(image, |(name, _)| name).rsplit_once(':')?;
        Series::of(tag)
    }

    /// Whether one can go from one to the other: they are the same, or neighbours.
    pub fn is_near(self, other: Series) -> bool {
        self.major == other.major && self.minor.abs_diff(other.minor) <= 1
    }
}

/// The image to run, whole; the stored one is that of the revision that is applied. `None` when a new cluster asks for
/// a version that it cannot get.
pub fn image(observed: &Observed, stored: Option<&str>, release: &KubernetesReleaseSpec) -> Option<String> {
    let whole = |etcd: &EtcdRelease| observed.platform.image(&etcd.image);
    match (&observed.cluster.spec.etcd.version, stored) {
        (Some(_), stored) => match asked(observed, release) {
            Ok(etcd) => Some(whole(etcd)),
            Err(_) => stored.map(str::to_owned),
        },
        (None, None) => Some(whole(&release.etcd)),
        (None, Some(stored)) => {
            let runs = Series::of_image(stored);
            if runs.is_some() && runs == Series::of(&release.etcd.version) {
                return Some(whole(&release.etcd));
            }
            // Another registry, for example.
            let known = entries(observed).find(|etcd| path(stored) == path(&whole(etcd)));
            Some(known.map_or_else(|| stored.to_owned(), whole))
        }
    }
}

/// An image without its registry.
fn path(image: &str) -> &str {
    image.split_once('/').map_or(image, |(_, path)| path)
}

fn entries(observed: &Observed) -> impl Iterator<Item = &EtcdRelease> {
    observed.catalogue.values().map(|release| &release.etcd)
}

/// The catalogue entry of the version that the spec asks for, or what is wrong with it.
fn asked<'a>(observed: &'a Observed, release: &'a KubernetesReleaseSpec) -> Result<&'a EtcdRelease, Problem> {
    let version = observed.cluster.spec.etcd.version.as_deref().unwrap_or(&release.etcd.version);
    let problem = |reason, message| Err(Problem { reason, message, owner: Owner::Tenant });
    let Some(entry) = entries(observed).find(|etcd| etcd.version == version) else {
        let mut all: Vec<&str> = entries(observed).map(|etcd| etcd.version.as_str()).collect();
        all.sort_unstable();
        all.dedup();
        let message = format!(
            "spec.etcd.version: {version} is in no KubernetesRelease, they have {}; choose one of these, or leave it unset",
            all.join(", ")
        );
        return problem(Reason::EtcdVersionUnknown, message);
    };
    let (Some(wanted), Some(paired)) = (Series::of(version), Series::of(&release.etcd.version)) else {
        let message = format!("spec.etcd.version: {version} is no version such as 3.7.3");
        return problem(Reason::EtcdVersionUnknown, message);
    };
    if !wanted.is_near(paired) {
        let message = format!(
            "spec.etcd.version: {version} is not supported with Kubernetes {}, which goes with etcd {paired} and its \
             neighbours; change spec.version first",
            release.version
        );
        return problem(Reason::EtcdVersionUnsupported, message);
    }
    let runs = applied(observed).and_then(Series::of_image);
    if let Some(runs) = runs.filter(|runs| !runs.is_near(wanted)) {
        let message = format!(
            "spec.etcd.version: etcd goes one minor version at a time, and {version} is further from the {runs} that \
             runs; choose a version next to it first"
        );
        return problem(Reason::EtcdVersionUnsupported, message);
    }
    Ok(entry)
}

/// What is wrong with the version that the spec asks for.
pub fn problem(observed: &Observed) -> Option<Problem> {
    observed.cluster.spec.etcd.version.as_ref()?;
    let release = observed.catalogue.get(&observed.cluster.spec.version)?;
    asked(observed, release).err()
}

/// The image that the StatefulSet has.
fn applied(observed: &Observed) -> Option<&str> {
    image_of(&set(observed)?.content)
}

fn image_of(set: &Value) -> Option<&str> {
    set.pointer("/spec/template/spec/containers/0/image")?.as_str()
}

/// The minor version of a StatefulSet's members.
pub fn series_of(set: &Value) -> Option<Series> {
    Series::of_image(image_of(set)?)
}

/// The StatefulSet with the image that it may have now, any other object as it is: one of another minor version waits
/// until the members are well, and an older one until they have lowered the format of their data.
pub fn put_image(observed: &Observed, mut object: Object) -> Object {
    if object.reference.kind != Kind::StatefulSet {
        return object;
    }
    let held = match (applied(observed), series_of(&object.content)) {
        (Some(live), Some(wanted)) => Series::of_image(live)
            .filter(|runs| *runs != wanted && !may_take(observed, *runs, wanted))
            .map(|_| live.to_owned()),
        _ => None,
    };
    if let (Some(held), Some(image)) =
        (held, object.content.pointer_mut("/spec/template/spec/containers/0/image"))
    {
        *image = held.into();
    }
    object
}

fn may_take(observed: &Observed, runs: Series, wanted: Series) -> bool {
    let health = health(observed);
    // What came between is taken back before it took place.
    let same = voters(observed).all(|member| Series::of(&member.version) == Some(wanted));
    let near = runs.is_near(wanted);
    match (health, wanted > runs) {
        (Health::Healthy | Health::Degraded(_), _) if near && same => true,
        (Health::Healthy, true) => near && known(observed) && beginning::now(observed),
        (Health::Healthy | Health::Degraded(_), false) => near && is_readable(observed, wanted),
        _ => false,
    }
}

/// Whether an older etcd starts on the data of every voter, and goes on doing so. All data has the format of the oldest
/// voter that runs; once all are newer, that which they were told to lower it to, as soon as each of them says so.
fn is_readable(observed: &Observed, wanted: Series) -> bool {
    let of = |member: &Member| Series::of(&member.storage_version);
    let kept = voters(observed).any(|member| Series::of(&member.version).is_some_and(|runs| runs <= wanted));
    let said = voters(observed).filter_map(of).all(|format| format <= wanted);
    let lowered =
        lowering(observed) == Some(wanted) && voters(observed).all(|member| of(member) == Some(wanted));
    kept && said || lowered
}

fn voters(observed: &Observed) -> impl Iterator<Item = &Member> {
    members(observed).filter(|member| !member.learner)
}

fn members(observed: &Observed) -> impl Iterator<Item = &Member> {
    observed.etcd.iter().flat_map(|etcd| &etcd.members)
}

/// Whether the image that the StatefulSet has starts on the data that there is, as far as voters say.
pub(super) fn starts(observed: &Observed) -> bool {
    let Some(image) = applied(observed).and_then(Series::of_image) else { return true };
    let newer = |member: &Member| Series::of(&member.storage_version).is_some_and(|format| format > image);
    !voters(observed).any(newer)
}

/// The minor version that members are told to lower their data to.
fn lowering(observed: &Observed) -> Option<Series> {
    Series::of(observed.etcd.as_ref()?.downgrade.as_deref()?)
}

/// Whether members are on their way from one minor version to another.
pub fn under_way(observed: &Observed) -> bool {
    let image = applied(observed).and_then(Series::of_image);
    let other = |member: &Member| Series::of(&member.version).is_some_and(|runs| Some(runs) != image);
    lowering(observed).is_some() || image.is_some() && members(observed).any(other)
}

/// Whether the StatefulSet has another minor version than a revision wants.
pub(super) fn held(observed: &Observed, wanted: &Object) -> bool {
    let applied = applied(observed).and_then(Series::of_image);
    applied.is_some() && series_of(&wanted.content).is_some_and(|wanted| Some(wanted) != applied)
}

/// The image that the StatefulSet has, and its minor version.
pub(super) fn running(observed: &Observed) -> Option<(&str, Series)> {
    let image = applied(observed)?;
    Some((image, Series::of_image(image)?))
}

/// What etcd has to be told before members get the image that is wanted.
pub fn order(observed: &Observed, wanted: &Object) -> Option<Action> {
    let wanted = series_of(&wanted.content)?;
    if health(observed) != Health::Healthy || next_step(observed).is_some() {
        return None;
    }
    let newest = voters(observed).filter_map(|member| Series::of(&member.version)).max()?;
    match lowering(observed) {
        // A change of mind.
        Some(target) if target < wanted && newest >= wanted => Some(Action::Etcd(EtcdOrder::CancelDowngrade)),
        None if wanted < newest && newest.is_near(wanted) && !is_readable(observed, wanted) => {
            let now = under_way(observed) || beginning::now(observed);
            now.then(|| Action::Etcd(EtcdOrder::EnableDowngrade { version: wanted.to_string() }))
        }
        _ => None,
    }
}

/// What etcd has to be told before a learner starts.
pub fn let_in(observed: &Observed) -> Option<Action> {
    let joins = members(observed).any(|member| member.learner && member.name.is_empty());
    (joins && lowering(observed).is_some() && health(observed) == Health::Healthy)
        .then_some(Action::Etcd(EtcdOrder::CancelDowngrade))
}

/// How far a change of the minor version is, or what it waits for; `None` while there is none.
pub fn progress(observed: &Observed, wanted: &Object) -> Option<Progress> {
    let image = image_of(&wanted.content)?;
    let series = Series::of_image(image)?;
    let entry = entries(observed).find(|etcd| path(image) == path(&observed.platform.image(&etcd.image)));
    let target = entry.map_or_else(|| series.to_string(), |etcd| etcd.version.clone());
    let held = held(observed, wanted);
    match (under_way(observed), held) {
        (true, _) => {}
        (false, true) => {
            if let Some(waiting) = beginning::wait(observed, &target) {
                return Some(waiting);
            }
            if !snapshot::saved(observed) {
                return snapshot::progress(observed, target);
            }
        }
        (false, false) => return None,
    }
    let all = members(observed).count();
    let there = members(observed).filter(|member| Series::of(&member.version) == Some(series)).count();
    let mut step = match lowering(observed) {
        Some(to) if held => format!("members lower the format of their data to that of {to}"),
        _ => format!("{there} of {all} members run {target}"),
    };
    if !snapshot::kept(observed) {
        step = format!("{step}; {}", snapshot::remains(observed));
    }
    Some(Progress { target, step, waiting: None, until: None })
}

/// How a change that led to this version ended.
pub fn ended(observed: &Observed, target: &str) -> String {
    match running(observed) {
        Some((_, runs)) if Series::of(target) != Some(runs) => format!("TakenBack: etcd stays at {runs}"),
        _ => format!("Succeeded; {}", snapshot::remains(observed)),
    }
}
