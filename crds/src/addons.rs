//! What of the usual parts of a cluster is put inside a TenantCluster: everything that is not switched off.
//!
//! The tunnel from the API servers to the workers is no choice: without it logs, exec and webhooks do not work.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Parts of the cluster that run on its workers, and are kept as they should be.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addons {
    /// Addresses of Services on every worker. Whoever switches it off brings something else that does this.
    #[serde(default)]
    pub kube_proxy: Switch,

    /// Names of Services and pods.
    #[serde(default, rename = "coreDNS")]
    pub core_dns: Switch,

    /// The network of the pods.
    #[serde(default)]
    pub cni: Cni,

    /// Use of CPU and memory, for `kubectl top` and for scaling by it.
    #[serde(default)]
    pub metrics_server: Switch,
}

/// Whether a part is there.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Switch {
    /// Whether it is there. What is switched off is taken away again.
    #[serde(default = "yes")]
    pub enabled: bool,
}

fn yes() -> bool {
    true
}

impl Default for Switch {
    fn default() -> Self {
        Switch { enabled: yes() }
    }
}

/// The network of the pods: exactly one.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.flannel) != has(self.none)").message("spec.addons.cni: set exactly one of flannel and none"),
    // Pods have addresses and routes of their network as long as they live.
    validation = Rule::new("has(self.none) == has(oldSelf.none)").message(Message::Expression(
        "\"spec.addons.cni: cannot be changed, running pods are on the network of \" + (has(oldSelf.none) ? 'none' : 'flannel') + '; create a second TenantCluster'".into()
    )),
)]
pub struct Cni {
    /// flannel: VXLAN between the workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flannel: Option<Flannel>,

    /// Nothing: workers get Ready when the tenant has installed a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub none: Option<NoNetwork>,
}

impl Default for Cni {
    fn default() -> Self {
        Cni { flannel: Some(Flannel {}), none: None }
    }
}

/// flannel has no settings.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Flannel {}

/// A network of the tenant's own.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NoNetwork {}
