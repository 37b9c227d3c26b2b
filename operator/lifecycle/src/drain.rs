//! Draining a node: from its pods, and from what the API server said to the last evictions, to the next evictions and
//! to how it stands: moving, blocked by something that has an owner, done, or expired.
//!
//! It remembers nothing: after a restart the same pods are asked to go again, which costs a refusal at most. Done is when
//! the pods are gone, by UID; that an eviction was accepted proves nothing.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use kaas_crds::status::Owner;

/// A pod on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Kind of its controller; `None` when nobody makes it again.
    pub controller: Option<String>,
    /// Whether it is the image of a static pod, which only its kubelet ends.
    pub mirror: bool,
    /// Whether all its containers have ended for good.
    pub finished: bool,
    /// When it has to be gone, once its deletion has begun: the end of its grace period.
    pub gone_by: Option<Timestamp>,
    /// Whether it has data on the node that go with it (emptyDir).
    pub local_data: bool,
    /// Whether it is of an add-on of ours that does not run on every node.
    pub addon: bool,
}

/// What a pod is to a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// It ends with the node: a DaemonSet's, a static one, one that has finished, or an add-on's on the last node.
    Stays,
    /// It is going.
    Going,
    /// It should be gone since a while, and is not.
    Stuck,
    /// It has to be evicted.
    Evictable,
}

/// What the API server said to an eviction, when it did not accept it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What kind of refusal.
    pub refusal: Refusal,
    /// In its words.
    pub message: String,
    /// Not asked again before.
    pub retry_at: Timestamp,
}

/// Why an eviction was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// A disruption budget allows no disruption now (429 with the cause DisruptionBudget).
    Budget,
    /// Its disruption budget is invalid, or there are several (403 with that cause since 1.37, 500): no wait helps.
    InvalidBudget,
    /// The API server is busy or going (429 without that cause, 503).
    Overload,
    /// Whatever else refuses: a permission, a webhook.
    Denied,
}

/// How a drain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No pod is left that has to go.
    Done,
    /// So many pods are left, and they go.
    Moving(usize),
    /// So many pods are left, and these words say what keeps the first one, and who can help.
    Blocked(usize, String, Owner),
    /// The time is over, with these pods left.
    Expired(Vec<String>),
}

/// The next steps of a drain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain<'a> {
    /// How it stands.
    pub progress: Progress,
    /// Pods to evict now.
    pub evictions: Vec<&'a Pod>,
    /// When a refused eviction is to be tried again.
    pub wake_at: Option<Timestamp>,
}

/// Evictions of one look: API servers answer each with a write and a look at budgets.
const AT_ONCE: usize = 10;
/// A pod that is still there so long after its grace period does not end by itself: kubelets take some seconds for volumes.
const PATIENCE: SignedDuration = SignedDuration::from_secs(30);

/// What the API server's answer to an eviction means; `None` when the pod goes or is gone. `causes` are the reasons in
/// `details.causes` of its Status.
pub fn answer(
    now: Timestamp,
    code: u16,
    causes: &[String],
    message: &str,
    retry_after: Option<SignedDuration>,
) -> Option<Answer> {
    let of_budget = causes.iter().any(|cause| cause == "DisruptionBudget");
    // 1.36 says nothing but the sentence.
    let told_of_budget =
        message.to_lowercase().contains("disruption budget") || message.contains("PodDisruptionBudget");
    let refusal = match code {
        200..=299 | 404 => return None,
        429 if of_budget => Refusal::Budget,
        403 if of_budget || told_of_budget => Refusal::InvalidBudget,
        500 if told_of_budget => Refusal::InvalidBudget,
        429 | 500..=599 => Refusal::Overload,
        _ => Refusal::Denied,
    };
    let pause = match refusal {
        Refusal::Budget => SignedDuration::from_secs(5),
        Refusal::Overload => SignedDuration::from_secs(1),
        Refusal::InvalidBudget | Refusal::Denied => SignedDuration::from_secs(30),
    };
    let retry_at = now.checked_add(retry_after.unwrap_or(pause)).unwrap_or(now);
    Some(Answer { refusal, message: message.chars().take(300).collect(), retry_at })
}

/// What a pod is to a drain. On the last node of a cluster the pods of add-ons have nowhere to go and nobody to serve:
/// their budgets, which are ours, would be kept until the time is over, and protect nothing.
pub fn classify(pod: &Pod, last: bool, now: Timestamp) -> Class {
    match pod.gone_by {
        _ if pod.addon && last => Class::Stays,
        _ if pod.mirror || pod.controller.as_deref() == Some("DaemonSet") => Class::Stays,
        None if pod.finished => Class::Stays,
        // One that was told to go has finished a moment before its kubelet takes it away: without the kubelet the object
        // would be left on a node that is not there. If a finalizer keeps it, it has finished all the same.
        Some(by) if pod.finished && now.duration_since(by) > PATIENCE => Class::Stays,
        Some(by) if now.duration_since(by) > PATIENCE => Class::Stuck,
        Some(_) => Class::Going,
        None => Class::Evictable,
    }
}

/// Pods that are left to go.
pub fn left(pods: &[Pod], last: bool, now: Timestamp) -> impl Iterator<Item = &Pod> {
    pods.iter().filter(move |pod| classify(pod, last, now) != Class::Stays)
}

/// Judges a drain that must be over at `until`; `last` says whether the node is the last of its cluster.
pub fn drain<'a>(
    pods: &'a [Pod],
    last: bool,
    answers: &BTreeMap<String, Answer>,
    now: Timestamp,
    until: Timestamp,
) -> Drain<'a> {
    let mut left: Vec<&Pod> = left(pods, last, now).collect();
    // Pods without data go first: whoever looks on sees how far it comes before anything is lost.
    left.sort_by_key(|pod| (pod.local_data, pod.controller.is_none(), *pod));
    let end = |progress| Drain { progress, evictions: Vec::new(), wake_at: None };
    if left.is_empty() {
        return end(Progress::Done);
    }
    if now >= until {
        return end(Progress::Expired(left.iter().map(|pod| told(pod)).collect()));
    }
    let refused = |pod: &&&Pod| answers.get(&pod.uid).filter(|answer| answer.retry_at > now);
    let evictable = left.iter().filter(|pod| classify(pod, last, now) == Class::Evictable);
    let due: Vec<&Pod> =
        evictable.clone().filter(|pod| refused(pod).is_none()).copied().take(AT_ONCE).collect();
    let wake_at = evictable.clone().filter_map(|pod| refused(&pod)).map(|answer| answer.retry_at).min();
    let going = left.iter().any(|pod| classify(pod, last, now) == Class::Going);
    // What is asked again because its pause is over was refused before, and is not progress.
    let untried = evictable.clone().any(|pod| !answers.contains_key(&pod.uid));
    let blocker = left.iter().find_map(|pod| {
        let stuck = classify(pod, last, now) == Class::Stuck;
        blocker(pod, stuck, answers.get(&pod.uid))
    });
    let progress = match blocker {
        Some((words, owner)) if !going && !untried => Progress::Blocked(left.len(), words, owner),
        _ => Progress::Moving(left.len()),
    };
    Drain { progress, evictions: due, wake_at: wake_at.map_or(until, |wake| wake.min(until)).into() }
}

/// What keeps a pod, and who can help.
fn blocker(pod: &Pod, stuck: bool, answer: Option<&Answer>) -> Option<(String, Owner)> {
    if stuck {
        let words =
            format!("Pod {} should have ended and has not: see its finalizers and its containers", told(pod));
        return Some((words, Owner::Tenant));
    }
    let answer = answer?;
    let pod = told(pod);
    Some(match answer.refusal {
        Refusal::Budget => {
            (format!("a disruption budget keeps Pod {pod}: {}", answer.message), Owner::Tenant)
        }
        Refusal::InvalidBudget => (
            format!("the disruption budget of Pod {pod} cannot be judged: {}", answer.message),
            Owner::Tenant,
        ),
        Refusal::Overload => {
            (format!("the API server is too busy to evict Pod {pod}: {}", answer.message), Owner::Nobody)
        }
        Refusal::Denied => {
            (format!("the eviction of Pod {pod} is refused: {}", answer.message), Owner::Tenant)
        }
    })
}

/// A pod in words, with what is lost with it.
fn told(pod: &Pod) -> String {
    let name = format!("{}/{}", pod.namespace, pod.name);
    match (pod.local_data, pod.controller.is_none()) {
        (_, true) => format!("{name} (nobody makes it again)"),
        (true, false) => format!("{name} (with local data)"),
        (false, false) => name,
    }
}

#[cfg(test)]
mod tests;
