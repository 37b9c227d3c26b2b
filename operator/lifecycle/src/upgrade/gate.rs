//! The gate of a change under way: whether what was seen since it began is bad enough to go back.
//!
//! It is asked while the way back is a mere roll: until the new binaries have been well for the time of the soak. What
//! broke must be theirs: an etcd that is not well is no fault of theirs, and going back would not help.
//!
//! What clients see is judged by what they saw lately. Over a whole upgrade a bad minute would be a small share, and what
//! went wrong before the change is no fault of it.

use jiff::SignedDuration;
use kaas_crds::name::component;

use super::stage::{Record, soaked_at};
use crate::etcd::{self, Health};
use crate::observed::{Answer, Lately, Observed, Pod, Vigil};
use crate::rollout;

/// Kubernetes' words for a container that will not run however long one waits.
const HOPELESS: [&str; 8] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// A word of despair counts when the pod has had its node for so long: a pull that fails once is tried again.
const PATIENCE: SignedDuration = SignedDuration::from_secs(20);

/// Requests through the endpoint fail for so long.
const OUTAGE: SignedDuration = SignedDuration::from_secs(10);

/// The time that is lately: long enough that a roll's own short gaps are a small share of it.
pub const LATELY: SignedDuration = SignedDuration::from_secs(30);

/// A request on a new connection that takes longer is slow: a hundred times what it takes on an idle machine, and twice what
/// half of a canary's requests may take.
pub const SLOW: SignedDuration = SignedDuration::from_secs(2);

/// Fewer bad requests say nothing about a rate.
const ENOUGH: u32 = 4;

/// A pod is ready so long after it got its node, or what it runs is not good enough: ten times what an API server takes on
/// a small machine, and longer than its own start-up waits for anything.
const START: SignedDuration = SignedDuration::from_mins(3);

/// Why the change that this record began has to be taken back, if it has to be.
pub fn breach(observed: &Observed, record: &Record) -> Option<String> {
    record.before.as_ref()?;
    if !rollout::unsettled(observed) && soaked_at(observed).is_none_or(|over| observed.now >= over) {
        return None;
    }
    let changed = [component::KUBE_APISERVER, component::KUBE_CONTROLLERS];
    let mut pods = changed.iter().flat_map(|component| observed.pods_of(component));
    if let Some(words) = pods.find_map(|pod| hopeless(observed, pod)) {
        return Some(words);
    }
    let well = etcd::health(observed) == Health::Healthy;
    if well
        && let Some(Answer::Failed { since, message }) = observed.probe.as_ref().map(|probe| &probe.answer)
        && observed.now.duration_since(*since) >= OUTAGE
        && *since >= record.since
    {
        return Some(format!("requests through the endpoint fail since {since}: {message}"));
    }
    observed.vigil.as_ref().filter(|_| well).and_then(|vigil| seen(observed, record, vigil))
}

/// Whether clients of ours that write too see what is not to be borne: none succeeds, one in twenty fails, or one in four
/// waits for seconds.
fn seen(observed: &Observed, record: &Record, vigil: &Vigil) -> Option<String> {
    let what = vigil.failure.as_deref().unwrap_or_default();
    let dead = vigil
        .failing_since
        .filter(|since| *since >= record.since && observed.now.duration_since(*since) >= OUTAGE);
    if let Some(since) = dead {
        return Some(format!("every request on a new connection fails since {since}: {what}"));
    }
    if observed.now.duration_since(record.since) < LATELY {
        return None;
    }
    let Lately { requests, failed, slow } = vigil.lately;
    let often = |bad: u32, share: u32| bad >= ENOUGH && bad.saturating_mul(share) > requests;
    let of = |bad: u32, words: &str| {
        format!("{bad} of {requests} requests on new connections in {} s {words}", LATELY.as_secs())
    };
    if often(failed, 20) {
        return Some(of(failed, &format!("failed, last {what}")));
    }
    often(slow, 4).then(|| of(slow, &format!("took longer than {} s", SLOW.as_secs())))
}

/// Why a pod will not run, or took too long. One that waits for room waits as long as it takes: nothing is wrong with
/// what it would run.
pub(super) fn hopeless(observed: &Observed, pod: &Pod) -> Option<String> {
    let had = observed.now.duration_since(pod.placed_at.filter(|_| !pod.ready && !pod.terminating)?);
    let trouble = pod.trouble.as_ref().filter(|trouble| HOPELESS.contains(&trouble.reason.as_str()));
    match trouble {
        Some(trouble) if had >= PATIENCE => {
            let message: String = trouble.message.chars().take(200).collect();
            Some(
                format!("Pod {}: {}: {message}", pod.name, trouble.reason)
                    .trim_end_matches([':', ' '])
                    .to_owned(),
            )
        }
        _ if had > START => {
            Some(format!("Pod {} was not ready within {} minutes", pod.name, START.as_mins()))
        }
        _ => None,
    }
}
