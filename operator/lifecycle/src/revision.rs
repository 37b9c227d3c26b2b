//! Revisions and consent: which rendering of the workloads is applied, and when a newer one may take its place.
//!
//! What was rendered for a tenant is stored. Apply always sends what is stored, so that a newer operator restarts
//! nothing. The stored revision is keyed by a hash of what the *user* asked for; a fresh rendering that differs
//! although the user asked for nothing new is pending until the next change of the spec, or explicit consent.

use kaas_crds::TenantClusterSpec;
use kaas_crds::name;
use kaas_crds::status::Pending;
use serde_json::{Value, json};

use crate::desired;
use crate::difference::{describe, digest};
use crate::object::{Kind, Object, Reference};
use crate::observed::Observed;

/// Version of [`intent`] that new revisions are keyed by. Older functions stay, so that revisions keyed by them are
/// still understood: a new hash function alone must not look like a change of intent.
const HASH_VERSION: i64 = 1;

/// Component label of stored revisions.
const COMPONENT: &str = "revision";

/// So many revisions are kept, the current one included: enough to go back from a bad change or two.
const KEPT: usize = 5;

/// A revision as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    /// Position in the history, from 1.
    pub number: i64,
    /// What goes into `spec.acceptRevision`: hash of the rendering.
    pub id: String,
    /// Version of the function that made `intent`.
    pub hash_version: i64,
    /// Hash of what the user asked for.
    pub intent: String,
    /// The workloads.
    pub objects: Vec<Object>,
}

/// What to apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The revision to apply.
    pub revision: Revision,
    /// Whether it must be stored before anything of it is applied.
    pub store: bool,
    /// What would be rendered now, if it differs and nobody asked for it.
    pub pending: Option<Pending>,
}

/// Hash of the part of the spec that decides what pods run. `None` for a version of the function that is not known:
/// a newer operator stored the revision.
fn intent(spec: &TenantClusterSpec, hash_version: i64) -> Option<String> {
    match hash_version {
        1 => Some(digest(&json!({
            "version": spec.version,
            "apiServers": spec.control_plane.replicas,
            "etcd": spec.etcd,
            "network": spec.network,
        }))),
        _ => None,
    }
}

/// Chooses between what is stored and what would be rendered now.
pub fn choose(observed: &Observed, fresh: Vec<Object>) -> Choice {
    let fresh: Vec<Object> = fresh.into_iter().map(anonymous).collect();
    let spec = &observed.cluster.spec;
    let rendering = id(&fresh);
    let next = |number| Revision {
        number,
        id: rendering.clone(),
        hash_version: HASH_VERSION,
        intent: intent(spec, HASH_VERSION).unwrap_or_default(),
        objects: fresh.clone(),
    };
    let Some(current) = current(observed) else {
        return Choice { revision: next(1), store: true, pending: None };
    };
    // A hash function from the future cannot be recomputed: the safe answer is "nothing new was asked for".
    let same_intent = intent(spec, current.hash_version).is_none_or(|intent| intent == current.intent);
    if current.id == rendering && same_intent {
        return Choice { revision: current, store: false, pending: None };
    }
    let consented = spec.accept_revision.as_deref() == Some(rendering.as_str());
    if !same_intent || consented {
        return Choice { revision: next(current.number.saturating_add(1)), store: true, pending: None };
    }
    let summary = describe(&current.objects, &fresh);
    let pending = Pending { revision: rendering, summary: cut(&summary.join("\n"), 4096) };
    Choice { revision: current, store: false, pending: Some(pending) }
}

/// Image of etcd in a revision.
pub fn etcd_image(revision: &Revision) -> Option<&str> {
    let set = revision.objects.iter().find(|object| object.reference.kind == Kind::StatefulSet)?;
    set.content.pointer("/spec/template/spec/containers/0/image")?.as_str()
}

/// A workload without its own labels: they say whose it is, which can change (adoption), not what runs. What runs on
/// workers has none that say that.
fn anonymous(mut object: Object) -> Object {
    if !is_inside(&object)
        && let Some(metadata) = object.content.pointer_mut("/metadata").and_then(Value::as_object_mut)
    {
        metadata.remove("labels");
    }
    object
}

/// Whether it is for the inside of the tenant.
pub fn is_inside(object: &Object) -> bool {
    object.reference.namespace.as_deref() == Some(desired::ADDON_NAMESPACE)
}

/// A stored workload with the labels of whose it is now.
pub fn labelled(observed: &Observed, mut object: Object) -> Object {
    let labels = observed.tenant.labels(&object.reference.name);
    if let Some(metadata) = object.content.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.insert("labels".into(), json!(labels));
    }
    object
}

/// The newest stored revision.
pub fn current(observed: &Observed) -> Option<Revision> {
    stored(observed).into_iter().max_by_key(|revision| revision.number)
}

/// The revision as an object to store.
pub fn object(observed: &Observed, revision: &Revision) -> Object {
    let tenant = &observed.tenant;
    let reference = Reference::namespaced(
        Kind::ControllerRevision,
        tenant.control_plane_namespace(),
        format!("kaas-{}-{}", revision.intent, revision.id),
    );
    Object::new(
        reference,
        json!({
            "metadata": {"labels": tenant.labels(COMPONENT)},
            "revision": revision.number,
            "data": {
                "hashVersion": revision.hash_version,
                "intent": revision.intent,
                "objects": revision.objects,
            },
        }),
    )
}

/// Stored revisions beyond the number that is kept, oldest first, with their UIDs.
pub fn superseded(observed: &Observed) -> Vec<(Reference, String)> {
    let mut all: Vec<_> = ours(observed).collect();
    all.sort_by_key(|(_, live)| live.count("/revision"));
    let surplus = all.len().saturating_sub(KEPT);
    all.into_iter().take(surplus).map(|(reference, live)| (reference.clone(), live.uid.clone())).collect()
}

fn ours(observed: &Observed) -> impl Iterator<Item = (&Reference, &crate::observed::Live)> {
    observed.objects.iter().filter(|(reference, live)| {
        // The StatefulSet's own revisions live in the same namespace.
        reference.kind == Kind::ControllerRevision
            && live.get("/metadata/labels").and_then(|labels| labels.get(name::COMPONENT_LABEL))
                == Some(&Value::from(COMPONENT))
    })
}

fn stored(observed: &Observed) -> Vec<Revision> {
    ours(observed)
        .filter_map(|(_, live)| {
            let objects: Vec<Object> = serde_json::from_value(live.get("/data/objects")?.clone()).ok()?;
            Some(Revision {
                number: live.count("/revision"),
                id: id(&objects),
                hash_version: live.count("/data/hashVersion"),
                intent: live.text("/data/intent").to_owned(),
                objects,
            })
        })
        .collect()
}

fn id(objects: &[Object]) -> String {
    digest(&json!(objects))
}

/// At most so many bytes, cut at a line or character boundary.
fn cut(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit.saturating_sub(4);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    let kept = text.get(..end).unwrap_or_default();
    format!("{}\n...", kept.rsplit_once('\n').map_or(kept, |(lines, _)| lines))
}
