//! Kubernetes objects as plain data: a reference that names one, and the fields of it that are ours.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Every kind of object that the operator writes, and how the API server spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// v1 Namespace.
    Namespace,
    /// v1 Secret.
    Secret,
    /// v1 ConfigMap.
    ConfigMap,
    /// v1 PersistentVolumeClaim.
    PersistentVolumeClaim,
    /// v1 Service.
    Service,
    /// v1 Endpoints.
    Endpoints,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// v1 Pod.
    Pod,
    /// apps/v1 StatefulSet.
    StatefulSet,
    /// apps/v1 Deployment.
    Deployment,
    /// apps/v1 ControllerRevision.
    ControllerRevision,
    /// networking.k8s.io/v1 NetworkPolicy.
    NetworkPolicy,
    /// policy/v1 PodDisruptionBudget.
    PodDisruptionBudget,
    /// rbac.authorization.k8s.io/v1 ClusterRoleBinding.
    ClusterRoleBinding,
    /// rbac.authorization.k8s.io/v1 ClusterRole.
    ClusterRole,
    /// rbac.authorization.k8s.io/v1 Role.
    Role,
    /// rbac.authorization.k8s.io/v1 RoleBinding.
    RoleBinding,
    /// v1 ServiceAccount.
    ServiceAccount,
    /// apps/v1 DaemonSet.
    DaemonSet,
    /// apiregistration.k8s.io/v1 APIService.
    APIService,
}

impl Kind {
    /// Group, version and plural, as in the URL of the resource. The core group is empty.
    pub const fn path(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Kind::Namespace => ("", "v1", "namespaces"),
            Kind::Secret => ("", "v1", "secrets"),
            Kind::ConfigMap => ("", "v1", "configmaps"),
            Kind::PersistentVolumeClaim => ("", "v1", "persistentvolumeclaims"),
            Kind::Service => ("", "v1", "services"),
            Kind::Endpoints => ("", "v1", "endpoints"),
            Kind::EndpointSlice => ("discovery.k8s.io", "v1", "endpointslices"),
            Kind::Pod => ("", "v1", "pods"),
            Kind::StatefulSet => ("apps", "v1", "statefulsets"),
            Kind::Deployment => ("apps", "v1", "deployments"),
            Kind::ControllerRevision => ("apps", "v1", "controllerrevisions"),
            Kind::NetworkPolicy => ("networking.k8s.io", "v1", "networkpolicies"),
            Kind::PodDisruptionBudget => ("policy", "v1", "poddisruptionbudgets"),
            Kind::ClusterRoleBinding => ("rbac.authorization.k8s.io", "v1", "clusterrolebindings"),
            Kind::ClusterRole => ("rbac.authorization.k8s.io", "v1", "clusterroles"),
            Kind::Role => ("rbac.authorization.k8s.io", "v1", "roles"),
            Kind::RoleBinding => ("rbac.authorization.k8s.io", "v1", "rolebindings"),
            Kind::ServiceAccount => ("", "v1", "serviceaccounts"),
            Kind::DaemonSet => ("apps", "v1", "daemonsets"),
            Kind::APIService => ("apiregistration.k8s.io", "v1", "apiservices"),
        }
    }

    /// `apiVersion` as it stands in an object.
    pub fn api_version(self) -> String {
        match self.path() {
            ("", version, _) => version.to_owned(),
            (group, version, _) => format!("{group}/{version}"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Names one object of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reference {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; `None` for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl Reference {
    /// A namespaced object.
    pub fn namespaced(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Reference { kind, namespace: Some(namespace.into()), name: name.into() }
    }

    /// A cluster-scoped object.
    pub fn cluster(kind: Kind, name: impl Into<String>) -> Self {
        Reference { kind, namespace: None, name: name.into() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// An object as we want it: only the fields that are ours.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Which object.
    pub reference: Reference,
    /// The whole document to apply, with apiVersion, kind and metadata.
    pub content: Value,
}

impl Object {
    /// Completes `content` (everything but apiVersion, kind, name and namespace) to a whole document.
    pub fn new(reference: Reference, mut content: Value) -> Self {
        if let Some(document) = content.as_object_mut() {
            document.insert("apiVersion".into(), reference.kind.api_version().into());
            document.insert("kind".into(), reference.kind.to_string().into());
            let metadata = document.entry("metadata").or_insert_with(|| Value::Object(Default::default()));
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("name".into(), reference.name.clone().into());
                if let Some(namespace) = &reference.namespace {
                    metadata.insert("namespace".into(), namespace.clone().into());
                }
            }
        }
        Object { reference, content }
    }
}
