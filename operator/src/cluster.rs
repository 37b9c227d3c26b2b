//! Reads and writes of objects by kind, for the management cluster and for tenants alike.

use std::time::Duration;

use kaas_crds::name::FIELD_MANAGER;
use kaas_lifecycle::action::Precondition;
use kaas_lifecycle::object::{Kind, Object, Reference};
use kaas_lifecycle::observed::Live;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions,
    ValidationDirective,
};
use kube::core::GroupVersionKind;
use serde_json::Value;

/// No single request may hold up a reconcile longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// A version that no object ever has: revision 1 of the store is the empty one. An apply that names it creates the
/// object or, if somebody was faster, is refused as a conflict; without a version it would overwrite what it finds,
/// key material included.
const NO_VERSION: &str = "1";

/// The resource of a kind, as the client wants it.
pub(crate) fn resource(kind: Kind) -> ApiResource {
    let (group, version, plural) = kind.path();
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, &kind.to_string()), plural)
}

fn api(client: &kube::Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource(kind)),
        None => Api::all_with(client.clone(), &resource(kind)),
    }
}

/// Bounds a request in time; running out of it counts as an unreachable server.
pub(crate) async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => answer,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}

/// Reads one object; `None` when it does not exist.
pub(crate) async fn get(client: &kube::Client, reference: &Reference) -> Result<Option<Live>, kube::Error> {
    let api = api(client, reference.kind, reference.namespace.as_deref());
    let found = within(DEADLINE, api.get_opt(&reference.name)).await?;
    Ok(found.map(|object| live(reference.kind, object)))
}

/// Reads all objects of a kind in a namespace (or everywhere) that match a label selector.
pub(crate) async fn list(
    client: &kube::Client,
    kind: Kind,
    namespace: Option<&str>,
    selector: &str,
) -> Result<Vec<(Reference, Live)>, kube::Error> {
    list_with(client, kind, namespace, &ListParams::default().labels(selector)).await
}

/// The same out of the API server's memory: maybe a moment old, and etcd is not asked.
pub(crate) async fn list_cached(
    client: &kube::Client,
    kind: Kind,
    namespace: Option<&str>,
    selector: &str,
) -> Result<Vec<(Reference, Live)>, kube::Error> {
    list_with(client, kind, namespace, &ListParams::default().labels(selector).match_any()).await
}

async fn list_with(
    client: &kube::Client,
    kind: Kind,
    namespace: Option<&str>,
    params: &ListParams,
) -> Result<Vec<(Reference, Live)>, kube::Error> {
    let api = api(client, kind, namespace);
    let found = within(DEADLINE, api.list(params)).await?;
    Ok(found
        .items
        .into_iter()
        .map(|object| {
            let name = object.metadata.name.clone().unwrap_or_default();
            (Reference { kind, namespace: object.metadata.namespace.clone(), name }, live(kind, object))
        })
        .collect())
}

/// Applies an object under its precondition.
pub(crate) async fn apply(
    client: &kube::Client,
    object: &Object,
    precondition: &Precondition,
) -> Result<Live, kube::Error> {
    let mut content = object.content.clone();
    let version = match precondition {
        Precondition::Absent => NO_VERSION,
        Precondition::Version(version) => version.as_str(),
    };
    if let Some(metadata) = content.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), version.into());
    }
    let reference = &object.reference;
    let api = api(client, reference.kind, reference.namespace.as_deref());
    // Ours are few fields of objects that only we make: a conflict with another manager is settled in favour of the plan.
    let mut params = PatchParams::apply(FIELD_MANAGER).force();
    params.field_validation = Some(ValidationDirective::Strict);
    let applied = within(DEADLINE, api.patch(&reference.name, &params, &Patch::Apply(&content))).await?;
    Ok(live(reference.kind, applied))
}

/// Deletes exactly the object with this UID; one that is gone already is a success.
pub(crate) async fn delete(
    client: &kube::Client,
    reference: &Reference,
    uid: &str,
    grace: Option<u32>,
) -> Result<(), kube::Error> {
    match delete_surely(client, reference, uid, grace).await {
        // The UID: another object of that name, which is none of our business.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        answer => answer,
    }
}

/// The same for what nobody would look for again: a conflict is told, and the caller looks once more.
pub(crate) async fn delete_surely(
    client: &kube::Client,
    reference: &Reference,
    uid: &str,
    grace: Option<u32>,
) -> Result<(), kube::Error> {
    let params = DeleteParams {
        grace_period_seconds: grace,
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::background()
    };
    let api = api(client, reference.kind, reference.namespace.as_deref());
    match within(DEADLINE, api.delete(&reference.name, &params)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

fn live(kind: Kind, mut object: DynamicObject) -> Live {
    object.metadata.managed_fields = None;
    let mut live = Live {
        uid: object.metadata.uid.clone().unwrap_or_default(),
        resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
        terminating: object.metadata.deletion_timestamp.is_some(),
        content: object.data,
    };
    // Items of a list come without their type.
    if let Some(document) = live.content.as_object_mut() {
        document.insert("apiVersion".into(), kind.api_version().into());
        document.insert("kind".into(), kind.to_string().into());
        document.insert("metadata".into(), serde_json::to_value(&object.metadata).unwrap_or_default());
    }
    live
}
