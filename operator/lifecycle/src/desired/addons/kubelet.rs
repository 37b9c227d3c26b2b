//! How a worker's kubelet is set: from the pool's settings and the cluster's networks to a whole KubeletConfiguration.
//!
//! What only the node knows is added there: the socket and the driver of control groups of its container runtime, its
//! provider ID, and what of a machine that it shares is not its own.

use kaas_crds::node::Taint;
use kaas_crds::tenant_cluster::Network;
use kaas_crds::worker_pool::Kubelet;
use serde_json::{Map, Value, json};

use super::dns_address;
use super::document::yaml;

/// What kind of machine a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// A container of the management cluster, which shares its machine, its disk and its swap with others.
    Pod,
    /// A machine of its own, set up by `kubeadm join`.
    Own,
}

/// What a kubelet is set by, besides the cluster's networks.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// Where it runs.
    pub machine: Machine,
    /// What the pool says.
    pub kubelet: &'a Kubelet,
    /// What the node is registered with, so that no pod is there before they are.
    pub taints: &'a [Taint],
}

/// The complete KubeletConfiguration as YAML. The fields are those of `kubelet.config.k8s.io/v1beta1` at 1.37.
pub fn kubelet_configuration(network: &Network, settings: &Settings<'_>) -> String {
    let Kubelet { max_pods, pod_pids_limit, container_log_max_size } = settings.kubelet;
    let authority = match settings.machine {
        Machine::Pod => "/etc/kaas/worker/ca.crt",
        Machine::Own => "/etc/kubernetes/pki/ca.crt",
    };
    let mut fields = Map::from_iter([
        ("apiVersion".to_owned(), json!("kubelet.config.k8s.io/v1beta1")),
        ("kind".to_owned(), json!("KubeletConfiguration")),
        // Who asks: the API servers by certificate, metrics-server and the like by token; nobody unknown.
        (
            "authentication".to_owned(),
            json!({"anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": authority}}),
        ),
        ("authorization".to_owned(), json!({"mode": "Webhook"})),
        // Both certificates are asked for, and renewed; the operator approves them.
        ("rotateCertificates".to_owned(), json!(true)),
        ("serverTLSBootstrap".to_owned(), json!(true)),
        ("clusterDomain".to_owned(), json!(network.domain)),
        ("maxPods".to_owned(), json!(max_pods)),
        // Its default, said: unsaid and 0 mean different things in different versions.
        ("eventRecordQPS".to_owned(), json!(50)),
        // A new worker pulls the images of all addons at once.
        ("serializeImagePulls".to_owned(), json!(false)),
        ("maxParallelImagePulls".to_owned(), json!(4)),
        // Five a second would be waited for; what is pulled at once is bounded already.
        ("registryPullQPS".to_owned(), json!(0)),
        // Where there are control groups of version 1, kubeadm has refused already, unless it was told not to.
        ("failCgroupV1".to_owned(), json!(false)),
    ]);
    fields.extend(
        dns_address(&network.service_cidr).map(|address| ("clusterDNS".to_owned(), json!([address]))),
    );
    fields.extend(pod_pids_limit.map(|limit| ("podPidsLimit".to_owned(), json!(limit))));
    fields.extend(container_log_max_size.map(|size| ("containerLogMaxSize".to_owned(), json!(size))));
    if !settings.taints.is_empty() {
        fields.insert("registerWithTaints".to_owned(), json!(settings.taints));
    }
    if settings.machine == Machine::Pod {
        fields.extend(shared_machine());
    }
    yaml(&Value::Object(fields))
}

/// Of a disk that others fill too, parts of a hundred say nothing: what is left counts, and little is enough. The swap
/// is the machine's. kubelet and container runtime take 75 MiB at rest. The control groups that it sees are its own.
fn shared_machine() -> [(String, Value); 4] {
    [
        ("cgroupRoot".to_owned(), json!("/")),
        ("failSwapOn".to_owned(), json!(false)),
        (
            "evictionHard".to_owned(),
            json!({"memory.available": "50Mi", "nodefs.available": "512Mi", "imagefs.available": "512Mi"}),
        ),
        ("kubeReserved".to_owned(), json!({"cpu": "50m", "memory": "100Mi"})),
    ]
}
