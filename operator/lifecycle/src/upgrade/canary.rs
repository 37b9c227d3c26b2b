//! The canary: one API server as it would be rendered at the next stage, on the tenant's data and outside of the
//! tenant's endpoint. No client meets it. It has to become ready and to answer every verb before anything is rolled.
//!
//! It is made anew for each rendering. What it has to prove is asked of it by the shell, once; the answer counts for
//! the pod that gave it.

use kaas_crds::name::COMPONENT_LABEL;
use kaas_crds::name::component::{KUBE_APISERVER, KUBE_APISERVER_CANARY};
use serde_json::{Value, json};

use super::gate::hopeless;
use crate::etcd::put_servers;
use crate::object::{Kind, Object, Reference};
use crate::observed::{Live, Observed, Pod};

/// Annotation that names the rendering that it is of.
const RENDERING_ANNOTATION: &str = "kaas.dev/rendering";

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is none of this rendering.
    Absent,
    /// Nothing is proved yet.
    Waiting,
    /// It answers.
    Passed,
    /// It does not, for this reason.
    Failed(String),
}

/// What the shell saw of one pod when it asked everything of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// UID of the pod.
    pub pod: String,
    /// How many requests it answered, or what went wrong, in a sentence.
    pub result: Result<u32, String>,
}

/// The canary of a rendering: its API servers' Deployment under another name, with one pod.
pub fn deployment(observed: &Observed, rendering: &[Object], id: &str) -> Option<Object> {
    let servers = rendering.iter().find(|object| object.reference.name == KUBE_APISERVER)?;
    let mut content = servers.content.clone();
    let mut set = |pointer: &str, key: &str, value: Value| {
        if let Some(object) = content.pointer_mut(pointer).and_then(Value::as_object_mut) {
            object.insert(key.to_owned(), value);
        }
    };
    let metadata = json!({
        "labels": observed.tenant.labels(KUBE_APISERVER_CANARY),
        "annotations": {RENDERING_ANNOTATION: id},
    });
    set("", "metadata", metadata);
    set("/spec", "replicas", json!(1));
    set("/spec", "strategy", json!({"type": "Recreate"}));
    set("/spec/selector", "matchLabels", json!({COMPONENT_LABEL: KUBE_APISERVER_CANARY}));
    set("/spec/template/metadata/labels", COMPONENT_LABEL, json!(KUBE_APISERVER_CANARY));
    // There is but one.
    set("/spec/template/spec", "topologySpreadConstraints", json!([]));
    Some(put_servers(observed, Object::new(reference(observed), content)))
}

/// Where it is.
pub fn reference(observed: &Observed) -> Reference {
    Reference::namespaced(Kind::Deployment, observed.tenant.control_plane_namespace(), KUBE_APISERVER_CANARY)
}

/// The canary that there is, of whatever rendering.
pub fn live(observed: &Observed) -> Option<&Live> {
    observed.objects.get(&reference(observed))
}

/// The rendering that a canary was made from.
pub fn rendering(canary: &Value) -> Option<&str> {
    canary.pointer("/metadata/annotations")?.get(RENDERING_ANNOTATION)?.as_str()
}

/// The pod that has to prove itself, once it is ready.
pub fn pod(observed: &Observed) -> Option<&Pod> {
    let live = live(observed).filter(|live| !live.terminating)?;
    let seen = live.count("/status/observedGeneration") >= live.count("/metadata/generation");
    let mut pods = observed.pods_of(KUBE_APISERVER_CANARY);
    let (pod, others) = (pods.next()?, pods.next());
    (seen && others.is_none() && pod.ready && !pod.terminating).then_some(pod)
}

/// What the canary of this rendering has proved.
pub fn judge(observed: &Observed, id: &str) -> Verdict {
    let Some(live) = live(observed).filter(|live| rendering(&live.content) == Some(id)) else {
        return Verdict::Absent;
    };
    if live.terminating {
        return Verdict::Absent;
    }
    if let Some(pod) = pod(observed) {
        return match observed.trial.as_ref().filter(|trial| trial.pod == pod.uid).map(|trial| &trial.result) {
            Some(Ok(_)) => Verdict::Passed,
            Some(Err(why)) => Verdict::Failed(format!("the canary was ready, but {why}")),
            None => Verdict::Waiting,
        };
    }
    let mut pods = observed.pods_of(KUBE_APISERVER_CANARY).filter(|pod| !pod.terminating);
    pods.find_map(|pod| hopeless(observed, pod)).map_or(Verdict::Waiting, Verdict::Failed)
}
