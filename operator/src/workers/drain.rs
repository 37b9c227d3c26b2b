//! Pods on a node that goes: what they are to a drain, their eviction, and their end where the machine is gone.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use kaas_crds::addons::Addons;
use kaas_lifecycle::desired::is_addon;
use kaas_lifecycle::drain::{self, Answer, Pod};
use kube::api::{Api, DeleteParams, EvictParams, ListParams, Preconditions};

use crate::cluster::{DEADLINE, within};

/// Annotation of the image of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Pods are read in parts of so many.
const PAGE: u32 = 250;

/// Pods on a node of a cluster with these add-ons.
pub(super) async fn pods(
    client: &kube::Client,
    node: &str,
    addons: &Addons,
) -> Result<Vec<Pod>, kube::Error> {
    let api: Api<core::Pod> = Api::all(client.clone());
    let mut params = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(PAGE);
    let mut pods = Vec::new();
    loop {
        let page = within(DEADLINE, api.list(&params)).await?;
        pods.extend(page.items.iter().map(|pod| facts(pod, addons)));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(pods),
        }
    }
}

fn facts(pod: &core::Pod, addons: &Addons) -> Pod {
    let metadata = &pod.metadata;
    let owners = metadata.owner_references.iter().flatten();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let labels = metadata.labels.clone().unwrap_or_default();
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    Pod {
        addon: is_addon(addons, namespace, &labels),
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        controller: owners
            .filter(|owner| owner.controller == Some(true))
            .map(|owner| owner.kind.clone())
            .next(),
        mirror: metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR)),
        finished: matches!(phase, Some("Succeeded" | "Failed")),
        // The API server adds the grace period to the moment of the request.
        gone_by: metadata.deletion_timestamp.as_ref().map(|time| time.0),
        local_data: volumes.into_iter().any(|volume| volume.empty_dir.is_some()),
    }
}

/// Asks for a pod to go; what was said when it was not accepted.
pub(super) async fn evict(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Option<Answer>, kube::Error> {
    let api: Api<core::Pod> = Api::namespaced(client.clone(), namespace);
    let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    let delete_options = Some(DeleteParams { preconditions, ..DeleteParams::default() });
    let params = EvictParams { delete_options, ..EvictParams::default() };
    match within(DEADLINE, api.evict(name, &params)).await {
        Ok(_) => Ok(None),
        // Another pod of that name, which is not meant.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(kube::Error::Api(status)) => {
            let details = status.details.as_ref();
            let causes: Vec<String> = details
                .into_iter()
                .flat_map(|details| &details.causes)
                .map(|cause| cause.reason.clone())
                .collect();
            let pause = details
                .map(|details| i64::from(details.retry_after_seconds))
                .filter(|seconds| *seconds > 0)
                .map(SignedDuration::from_secs);
            Ok(drain::answer(Timestamp::now(), status.code, &causes, &status.message, pause))
        }
        Err(error) => Err(error),
    }
}

/// Deletes exactly this pod at once: there is no kubelet any more that would end it.
pub(super) async fn delete(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<(), kube::Error> {
    let api: Api<core::Pod> = Api::namespaced(client.clone(), namespace);
    let preconditions = Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::default() }.grace_period(0);
    match within(DEADLINE, api.delete(name, &params)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_pod_is_to_a_drain() {
        let pod = facts(
            &serde_json::from_value(json!({
                "metadata": {
                    "name": "a", "namespace": "b", "uid": "u", "deletionTimestamp": "2026-06-01T00:00:30Z",
                    "annotations": {MIRROR: "x"},
                    "ownerReferences": [
                        {"kind": "X", "name": "x", "apiVersion": "v1", "uid": "x"},
                        {"kind": "DaemonSet", "name": "d", "apiVersion": "apps/v1", "uid": "d", "controller": true},
                    ],
                },
                "spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]},
                "status": {"phase": "Succeeded"},
            }))
            .unwrap(),
            &Addons::default(),
        );
        let expected = Pod {
            namespace: "b".into(),
            name: "a".into(),
            uid: "u".into(),
            controller: Some("DaemonSet".into()),
            mirror: true,
            finished: true,
            gone_by: Some("2026-06-01T00:00:30Z".parse().unwrap()),
            local_data: true,
            addon: false,
        };
        assert_eq!(pod, expected);
    }

    #[test]
    fn an_addon_is_told_by_its_label_while_it_is_switched_on() {
        let is_addon = |namespace: &str, app: &str, spec: &Addons| {
            let pod = json!({"metadata": {"namespace": namespace, "labels": {"k8s-app": app}}});
            facts(&serde_json::from_value(pod).unwrap(), spec).addon
        };
        let (on, mut off) = (Addons::default(), Addons::default());
        off.core_dns.enabled = false;
        assert!(is_addon("kube-system", "kube-dns", &on) && is_addon("kube-system", "metrics-server", &on));
        assert!(!is_addon("kube-system", "kube-dns", &off), "it is the tenant's own");
        assert!(!is_addon("web", "kube-dns", &on) && !is_addon("kube-system", "web", &on));
    }
}
