//! Who a tenant cluster is, and what the platform says about all of them.

use std::collections::BTreeMap;

use kaas_crds::name;
use serde::{Deserialize, Serialize};

/// Identity of a TenantCluster. Everything is keyed by the UID.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tenant {
    /// UID of the object.
    pub uid: String,
    /// Its namespace: the team's.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Namespace of its control plane: derived from the UID, unless the platform had it take over an earlier one.
    home: String,
}

impl Tenant {
    /// A tenant in the namespace that its UID gives it.
    pub fn new(uid: impl Into<String>, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let uid = uid.into();
        let home = name::control_plane_namespace(&uid);
        Tenant { uid, namespace: namespace.into(), name: name.into(), home }
    }

    /// The same tenant with the control plane that it took over.
    pub fn moved_into(self, home: impl Into<String>) -> Self {
        Tenant { home: home.into(), ..self }
    }

    /// Namespace of its control plane.
    pub fn control_plane_namespace(&self) -> String {
        self.home.clone()
    }

    /// Labels of its pods: those that lead to it, but for the UID, which a takeover changes while pods run on.
    pub fn pod_labels(&self, component: &str) -> BTreeMap<&'static str, String> {
        let mut labels = self.labels(component);
        labels.remove(name::TENANT_UID_LABEL);
        labels
    }

    /// Labels of every object that belongs to it.
    pub fn labels(&self, component: &str) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            (name::MANAGED_BY_LABEL, name::MANAGED_BY.to_owned()),
            (name::COMPONENT_LABEL, component.to_owned()),
            (name::TENANT_UID_LABEL, self.uid.clone()),
            (name::TENANT_NAMESPACE_LABEL, self.namespace.clone()),
            (name::TENANT_NAME_LABEL, self.name.clone()),
        ])
    }
}

/// What the platform's operators set for all tenants (chart values).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Replaces the host part of every image name; empty leaves the official names.
    pub registry: String,
    /// Address or host name of NodePort endpoints: a node's, or of what stands before the nodes. Empty: not offered.
    pub node_port_host: String,
    /// PriorityClass of control-plane pods; empty: none.
    pub priority_class: String,
    /// Namespace that the operator runs in; network policies let it in.
    pub operator_namespace: String,
    /// The operator's own image, whole; it also counts callers beside API servers. Empty: it does not.
    pub operator_image: String,
}

impl Platform {
    /// The image under the platform's registry: only the host part is replaced, the path stays.
    pub fn image(&self, official: &str) -> String {
        if self.registry.is_empty() {
            return official.to_owned();
        }
        // The part before the first slash is a host when it looks like one (Docker's reference grammar).
        let path = match official.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
            _ => official,
        };
        format!("{}/{path}", self.registry.trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_replaces_the_host_only() {
        let platform = Platform { registry: "mirror.example/k8s/".into(), ..Platform::default() };
        assert_eq!(platform.image("registry.k8s.io/etcd:3.7.3-0"), "mirror.example/k8s/etcd:3.7.3-0");
        assert_eq!(platform.image("ghcr.io/kaas-dev/x:1"), "mirror.example/k8s/kaas-dev/x:1");
        assert_eq!(platform.image("library/busybox"), "mirror.example/k8s/library/busybox");
        assert_eq!(Platform::default().image("registry.k8s.io/etcd:3.7.3-0"), "registry.k8s.io/etcd:3.7.3-0");
    }
}
