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
    let status = pod.status.as_ref()?;
    // Those that run before the others come first: while one of them fails the others merely wait.
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let waiting = containers.into_iter().find_map(|container| {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_before_the_others_start_is_the_trouble() {
        let waits = |name: &str, reason: &str| {
            serde_json::json!({
                "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 1,
                "state": {"waiting": {"reason": reason}},
                "lastState": {"terminated": {"exitCode": 3}},
            })
        };
        let pod = serde_json::from_value(serde_json::json!({"status": {
            "initContainerStatuses": [waits("save", "CrashLoopBackOff"), waits("restore", "PodInitializing")],
            "containerStatuses": [waits("etcd", "PodInitializing")],
        }}));
        let message = "container save ended with exit code 3".to_owned();
        assert_eq!(trouble(&pod.unwrap()), Some(Trouble { reason: "CrashLoopBackOff".into(), message }));
    }
}
