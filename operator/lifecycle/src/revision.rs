//! Revisions and consent: which rendering of the workloads is applied, and when a newer one may take its place.
//!
//! What was rendered for a tenant is stored. Apply always sends what is stored, so that a newer operator restarts
//! nothing. The stored revision is keyed by a hash of what the *user* asked for; a fresh rendering that differs
//! although the user asked for nothing new is pending until the next change of the spec, or explicit consent.
//!
//! With each goes a record of the stage of an upgrade that it was rendered at. Another version is no change of this
//! kind: what is rendered anew for it is chosen step by step, see [`crate::upgrade`].

use kaas_crds::TenantClusterSpec;
use kaas_crds::name::{self, component};
use kaas_crds::status::Pending;
use serde_json::{Value, json};

use crate::desired;
use crate::difference::{covers, describe, digest};
use crate::etcd::put_servers;
use crate::object::{Kind, Object, Reference};
use crate::observed::{Live, Observed};
use crate::upgrade::stage::{Record, Stage};

/// Version of [`intent`] that a new revision is keyed by: the oldest that says all that the spec asks for. Older functions
/// stay, so that revisions keyed by them are still understood: a new hash function alone must not look like a change of
/// intent.
fn hash_version(spec: &TenantClusterSpec) -> i64 {
    if spec.control_plane.runtime_config.is_empty() { 1 } else { 2 }
}

/// Annotation of stored revisions with their [`Record`]. It may change, unlike what is rendered.
const RECORD_ANNOTATION: &str = "kaas.dev/upgrade";

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
    /// Which stage it was rendered at, and what was tried from there.
    pub record: Record,
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

/// Hash of the part of the spec that decides what pods run, at this version. `None` for a version of the function that
/// is not known: a newer operator stored the revision.
fn intent(spec: &TenantClusterSpec, version: &str, hash_version: i64) -> Option<String> {
    let mut asked = json!({
        "version": version,
        "apiServers": spec.control_plane.replicas,
        "etcd": spec.etcd,
        "network": spec.network,
    });
    match (hash_version, asked.as_object_mut()) {
        (1, _) => {}
        (2, Some(asked)) => {
            asked.insert("runtimeConfig".into(), json!(spec.control_plane.runtime_config));
        }
        _ => return None,
    }
    Some(digest(&asked))
}

/// Chooses between what is stored and what would be rendered now, at the same stage.
pub fn choose(observed: &Observed, fresh: Vec<Object>) -> Choice {
    let Some(current) = current(observed) else {
        let record = Record::of(Stage::of(&observed.cluster.spec.version));
        return Choice { revision: made(observed, 1, fresh, record), store: true, pending: None };
    };
    let spec = &observed.cluster.spec;
    let fresh: Vec<Object> = fresh.into_iter().map(anonymous).collect();
    let rendering = id(&fresh);
    let same_intent = nothing_asked(spec, &current);
    if current.id == rendering && same_intent {
        return Choice { revision: current, store: false, pending: None };
    }
    let consented = spec.accept_revision.as_deref() == Some(rendering.as_str());
    if !same_intent || consented {
        let record = current.record.clone();
        let revision = made(observed, current.number.saturating_add(1), fresh, record);
        return Choice { revision, store: true, pending: None };
    }
    let summary = describe(&current.objects, &fresh);
    let pending = Pending { revision: rendering, summary: cut(&summary.join("\n"), 4096) };
    Choice { revision: current, store: false, pending: Some(pending) }
}

/// Whether the spec asks for nothing new, but perhaps for another version: that is not done in one step. A hash function
/// from the future cannot be recomputed: the safe answer is that nothing was asked. An older one does not tell what only
/// a newer one can say.
fn nothing_asked(spec: &TenantClusterSpec, current: &Revision) -> bool {
    let Record { stage, refused, .. } = &current.record;
    let mut versions = [Some(&spec.version), Some(&stage.version), stage.emulates.as_ref()]
        .into_iter()
        .flatten()
        .chain(refused.iter().map(|refused| &refused.version));
    versions.any(|version| {
        intent(spec, version, current.hash_version)
            .is_none_or(|intent| intent == current.intent && hash_version(spec) <= current.hash_version)
    })
}

/// The revision that takes the place of the current one: this rendering, at this stage.
pub fn made(observed: &Observed, number: i64, rendering: Vec<Object>, record: Record) -> Revision {
    let objects: Vec<Object> = rendering.into_iter().map(anonymous).collect();
    let spec = &observed.cluster.spec;
    Revision {
        number,
        id: id(&objects),
        hash_version: hash_version(spec),
        intent: intent(spec, &spec.version, hash_version(spec)).unwrap_or_default(),
        objects,
        record,
    }
}

/// The hash that a rendering has as a revision.
pub fn rendering_id(rendering: &[Object]) -> String {
    let objects: Vec<Object> = rendering.iter().cloned().map(anonymous).collect();
    id(&objects)
}

/// etcd's members as a revision wants them.
pub fn members(revision: &Revision) -> Option<&Object> {
    revision.objects.iter().find(|object| object.reference.kind == Kind::StatefulSet)
}

/// Image of etcd in a revision.
pub fn etcd_image(revision: &Revision) -> Option<&str> {
    image(revision, component::ETCD)
}

/// Image of the first container of a workload.
fn image<'a>(revision: &'a Revision, workload: &str) -> Option<&'a str> {
    let mut workloads = revision.objects.iter().filter(|object| !is_inside(object));
    let found = workloads.find(|object| object.reference.name == workload)?;
    found.content.pointer("/spec/template/spec/containers/0/image")?.as_str()
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
    let mut all: Vec<_> = ours(observed).map(|(_, live)| live).collect();
    all.sort_by_key(|live| std::cmp::Reverse(live.count("/revision")));
    all.into_iter().find_map(|live| read(observed, live))
}

/// Whether API servers and controllers are told already to be what the current revision says.
pub fn is_applied(observed: &Observed) -> bool {
    let applied = |object: &Object| {
        let wanted = put_servers(observed, labelled(observed, object.clone()));
        let live = observed.live(Kind::Deployment, &object.reference.name);
        live.is_some_and(|live| covers(&live.content, &wanted.content))
    };
    let outside = |object: &&Object| !is_inside(object) && object.reference.kind == Kind::Deployment;
    current(observed).is_some_and(|current| current.objects.iter().filter(outside).all(applied))
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
            "metadata": {
                "labels": tenant.labels(COMPONENT),
                "annotations": {RECORD_ANNOTATION: json!(revision.record).to_string()},
            },
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

fn ours(observed: &Observed) -> impl Iterator<Item = (&Reference, &Live)> {
    observed.objects.iter().filter(|(reference, live)| {
        // The StatefulSet's own revisions live in the same namespace.
        reference.kind == Kind::ControllerRevision
            && live.get("/metadata/labels").and_then(|labels| labels.get(name::COMPONENT_LABEL))
                == Some(&Value::from(COMPONENT))
    })
}

fn read(observed: &Observed, live: &Live) -> Option<Revision> {
    let objects: Vec<Object> = serde_json::from_value(live.get("/data/objects")?.clone()).ok()?;
    let annotations = live.get("/metadata/annotations");
    let record = annotations
        .and_then(|annotations| serde_json::from_str(annotations.get(RECORD_ANNOTATION)?.as_str()?).ok());
    let revision = Revision {
        number: live.count("/revision"),
        id: id(&objects),
        hash_version: live.count("/data/hashVersion"),
        intent: live.text("/data/intent").to_owned(),
        objects,
        record: Record::of(Stage::of(&observed.cluster.spec.version)),
    };
    let record = record.unwrap_or_else(|| Record::of(guess(observed, &revision)));
    Some(Revision { record, ..revision })
}

/// The stage of a revision that an operator stored which knew of none: the release whose API server is in it.
fn guess(observed: &Observed, revision: &Revision) -> Stage {
    let servers = image(revision, component::KUBE_APISERVER);
    let known = observed.catalogue.iter().find(|(_, release)| {
        servers == Some(observed.platform.image(&release.images.kube_apiserver).as_str())
    });
    Stage::of(known.map_or(&observed.cluster.spec.version, |(version, _)| version))
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
