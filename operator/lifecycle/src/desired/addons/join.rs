//! What a machine needs to become a worker: where the API is and whose, how its kubelet is set, and the right to ask
//! for certificates.
//!
//! The names are those that `kubeadm join` asks for. Nothing approves what is asked for: the roles by which the
//! controller-manager would do that by itself are bound to nobody.

use kaas_crds::name::BOOTSTRAP_GROUP;
use kaas_crds::worker_pool::Kubelet;
use serde_json::{Value, json};

use super::document::yaml;
use super::{
    API_ADDRESS, API_URL, AUTHORITY, Machine, PUBLIC_NAMESPACE, Part, Settings, Site, binding_to,
    kubelet_configuration,
};
use crate::object::Kind;

const CLUSTER_INFO: &str = "cluster-info";
const KUBEADM: &str = "kubeadm-config";
const KUBELET: &str = "kubelet-config";
const PUBLIC_ROLE: &str = "kaas:cluster-info";
const ROLE: &str = "kaas:join";
const BOOTSTRAP_ROLE: &str = "kaas:bootstrap";
/// Who does not say who he is: the API server lets him ask for this one object and nothing else.
const ANONYMOUS: &str = "system:anonymous";
const NODES: &str = "system:nodes";

pub(super) const PARTS: &[Part] = &[
    Part {
        kind: Kind::ConfigMap,
        namespace: Some(PUBLIC_NAMESPACE),
        name: CLUSTER_INFO,
        // Signed by the controller-manager, with every bootstrap token there is.
        content: |_| json!({"data": {"kubeconfig": yaml(&cluster_info())}}),
    },
    Part {
        kind: Kind::Role,
        namespace: Some(PUBLIC_NAMESPACE),
        name: PUBLIC_ROLE,
        content: |_| json!({"rules": [named("configmaps", &[CLUSTER_INFO])]}),
    },
    Part {
        kind: Kind::RoleBinding,
        namespace: Some(PUBLIC_NAMESPACE),
        name: PUBLIC_ROLE,
        content: |_| binding_to("Role", PUBLIC_ROLE, &[("User", ANONYMOUS)]),
    },
    Part::system(
        Kind::ConfigMap,
        KUBEADM,
        |site| json!({"data": {"ClusterConfiguration": yaml(&kubeadm(site))}}),
    ),
    Part::system(Kind::ConfigMap, KUBELET, |site| json!({"data": {"kubelet": kubelet(site)}})),
    Part::system(Kind::Role, ROLE, |_| json!({"rules": [named("configmaps", &[KUBEADM, KUBELET])]})),
    Part::system(Kind::RoleBinding, ROLE, |_| {
        binding_to("Role", ROLE, &[("Group", BOOTSTRAP_GROUP), ("Group", NODES)])
    }),
    // Whether a node of that name is there already.
    Part::cluster(
        Kind::ClusterRole,
        ROLE,
        |_| json!({"rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]}),
    ),
    Part::cluster(Kind::ClusterRoleBinding, ROLE, |_| {
        binding_to("ClusterRole", ROLE, &[("Group", BOOTSTRAP_GROUP)])
    }),
    Part::cluster(Kind::ClusterRoleBinding, BOOTSTRAP_ROLE, |_| {
        binding_to("ClusterRole", "system:node-bootstrapper", &[("Group", BOOTSTRAP_GROUP)])
    }),
];

fn named(resource: &str, names: &[&str]) -> Value {
    json!({"apiGroups": [""], "resources": [resource], "resourceNames": names, "verbs": ["get"]})
}

/// The cluster without a user, under no name: what `kubeadm join` looks for.
fn cluster_info() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "", "cluster": {
            "server": API_URL,
            "certificate-authority-data": AUTHORITY,
        }}],
    })
}

fn kubeadm(site: &Site<'_>) -> Value {
    let network = &site.inputs.spec.network;
    json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "clusterName": site.inputs.tenant.name,
        "controlPlaneEndpoint": API_ADDRESS,
        "kubernetesVersion": site.inputs.spec.version,
        "networking": {
            "dnsDomain": network.domain, "podSubnet": network.pod_cidr, "serviceSubnet": network.service_cidr,
        },
    })
}

/// A machine of the user's own, set as a pool sets its workers that says nothing.
fn kubelet(site: &Site<'_>) -> String {
    let settings = Settings { machine: Machine::Own, kubelet: &Kubelet::default(), taints: &[] };
    kubelet_configuration(&site.inputs.spec.network, &settings)
}
