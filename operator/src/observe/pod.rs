//! A pod's facts: whether it is ready, what it was made from, and why it does not run.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kaas_crds::name;
use kaas_lifecycle::observed::{Pod as Facts, Trouble};

pub(super) fn facts(pod: &Pod) -> Facts {
    let metadata = &pod.metadata;
    let label = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
    Facts {
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        component: label(name::COMPONENT_LABEL).unwrap_or_default(),
        template_hash: label("controller-revision-hash").or(label("pod-template-hash")).unwrap_or_default(),
        created: metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0),
        placed: pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()),
        placed_at: condition(pod, "PodScheduled", "True")
            .and_then(|condition| condition.last_transition_time.as_ref())
            .map(|time| time.0),
        ready: is_ready(pod),
        terminating: metadata.deletion_timestamp.is_some(),
        grace: metadata.deletion_grace_period_seconds.unwrap_or_default(),
        trouble: trouble(pod),
    }
}

/// Whether its Ready condition says so.
pub(super) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready", "True").is_some()
}

fn condition<'a>(
    pod: &'a Pod,
    kind: &str,
    status: &str,
) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind && condition.status == status)
}

/// Waiting reasons that pass by themselves in a moment.
const ORDINARY: [&str; 2] = ["ContainerCreating", "PodInitializing"];

fn trouble(pod: &Pod) -> Option<Trouble> {
    let waiting = pod.status.as_ref()?.container_statuses.iter().flatten().find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_ref().filter(|reason| !ORDINARY.contains(&reason.as_str()))?;
        let ended = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let mut message = format!("container {}", container.name);
        if let Some(ended) = ended {
            message = format!("{message} ended with exit code {}", ended.exit_code);
        } else if let Some(detail) = &waiting.message {
            // Back-off messages count up; what they are about stands before.
            message = format!("{message}: {detail}");
        }
        Some(Trouble { reason: reason.clone(), message })
    });
    waiting.or_else(|| {
        let unscheduled = condition(pod, "PodScheduled", "False")?;
        Some(Trouble {
            reason: unscheduled.reason.clone().unwrap_or_else(|| "Unschedulable".into()),
            message: unscheduled.message.clone().unwrap_or_default(),
        })
    })
}
