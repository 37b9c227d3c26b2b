//! controller-manager and scheduler: one Deployment whose pods hold both. They always have the same version, and
//! sharing a pod saves a sandbox and a shim a tenant.

use kaas_crds::name::component::KUBE_CONTROLLERS;
use serde_json::json;

use super::etcd::budget_spec;
use super::pod::{Container, Pod, Probes, Resources, key_file, key_mount, key_volume};
use super::{Inputs, selector};
use crate::key_material::AUTHORITY_SECRET;
use crate::object::{Kind, Object};

/// More than two pods add nothing: one leads, one stands by.
const MOST: i32 = 2;

/// Leadership, in seconds. controller-manager keeps its lease when it ends, so that a roll stops controllers for up
/// to the lease; a holder that cannot renew for the deadline exits, and its successor waits for the lease too. So:
/// the deadline is as long as a restart of the only etcd member (up to 7 s, and 3 s until API servers dial it again),
/// the lease little longer (a holder is gone at the latest a try and the deadline after its last renewal), and a try
/// every second, which also decides how soon a new cluster has its first leader.
const LEASE_SECONDS: u32 = RENEW_SECONDS + 2 * RETRY_SECONDS;
const RENEW_SECONDS: u32 = 10;
const RETRY_SECONDS: u32 = 1;

/// Controllers have so long to stop, less than the lease: their successors must not meet them.
const CONTROLLER_SHUTDOWN_SECONDS: u32 = 5;
const GRACE_SECONDS: u32 = CONTROLLER_SHUTDOWN_SECONDS + 5;

/// At a cluster's birth controller-manager asks for a token for each of its controllers: at the default 20 requests
/// a second the first ServiceAccount comes after 10 s instead of 5. API priority and fairness guards the servers.
const REQUESTS_PER_SECOND: u32 = 200;
const REQUEST_BURST: u32 = 400;

/// The pods with controller-manager and scheduler.
pub(super) fn deployment(inputs: &Inputs<'_>) -> Object {
    let pod = Pod {
        component: KUBE_CONTROLLERS,
        containers: vec![controller_manager(inputs), scheduler(inputs)],
        // A volume for each: the scheduler has no use for the cluster's authority.
        volumes: vec![
            key_volume(
                "controller-manager",
                &[
                    (AUTHORITY_SECRET, &["cluster-ca.crt", "cluster-ca.key", "service-account.key"]),
                    (
                        KUBE_CONTROLLERS,
                        &[
                            "controller-manager.crt",
                            "controller-manager.key",
                            "controller-manager.kubeconfig",
                        ],
                    ),
                ],
            ),
            key_volume(
                "scheduler",
                &[
                    (AUTHORITY_SECRET, &["cluster-ca.crt"]),
                    (KUBE_CONTROLLERS, &["scheduler.crt", "scheduler.key", "scheduler.kubeconfig"]),
                ],
            ),
        ],
        grace_seconds: GRACE_SECONDS,
        template_label: Some("pod-template-hash"),
    };
    inputs.object(
        Kind::Deployment,
        KUBE_CONTROLLERS,
        KUBE_CONTROLLERS,
        json!({"spec": {
            "replicas": replicas(inputs),
            "revisionHistoryLimit": 0,
            "selector": {"matchLabels": selector(KUBE_CONTROLLERS)},
            // The successor waits for the lease already when the holder is told to go.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": pod.template(inputs),
        }}),
    )
}

/// bootstrap-signer and token-cleaner are off by default; joining by token needs them. Requests of kubelets are approved
/// by the operator alone: the controller would approve whatever somebody with all rights in the cluster asks for.
const CONTROLLERS: &str =
    "*,bootstrap-signer-controller,token-cleaner-controller,-certificatesigningrequest-approving-controller";

fn replicas(inputs: &Inputs<'_>) -> i32 {
    inputs.spec.control_plane.replicas.min(MOST)
}

fn controller_manager(inputs: &Inputs<'_>) -> Container {
    let network = &inputs.spec.network;
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    let mut command = vec![
        "kube-controller-manager".to_owned(),
        flag("controllers", CONTROLLERS),
        // Each controller with its own rights, not with the sum of all.
        flag("use-service-account-credentials", "true"),
        flag("cluster-signing-cert-file", &key_file("cluster-ca.crt")),
        flag("cluster-signing-key-file", &key_file("cluster-ca.key")),
        flag("root-ca-file", &key_file("cluster-ca.crt")),
        flag("service-account-private-key-file", &key_file("service-account.key")),
        flag("allocate-node-cidrs", "true"),
        flag("cluster-cidr", &network.pod_cidr),
        flag("service-cluster-ip-range", &network.service_cidr),
        format!("--controller-shutdown-timeout={CONTROLLER_SHUTDOWN_SECONDS}s"),
    ];
    command.extend(common_flags("controller-manager"));
    command.extend(inputs.emulation());
    Container {
        name: "kube-controller-manager",
        image: inputs.platform.image(&inputs.release.images.kube_controller_manager),
        command,
        environment: vec![],
        ports: vec![("kcm-https", 10257)],
        probes: probes(10257, "/healthz"),
        // Seen at rest: 117-124 MiB, 1 % of a core.
        request: Resources { cpu: "10m", memory: "128Mi" },
        memory_limit: "2Gi",
        mounts: vec![key_mount("controller-manager")],
        linger_seconds: 0,
    }
}

fn scheduler(inputs: &Inputs<'_>) -> Container {
    let mut command = vec!["kube-scheduler".to_owned()];
    command.extend(common_flags("scheduler"));
    command.extend(inputs.emulation());
    Container {
        name: "kube-scheduler",
        image: inputs.platform.image(&inputs.release.images.kube_scheduler),
        command,
        environment: vec![],
        ports: vec![("ks-https", 10259)],
        probes: probes(10259, "/livez"),
        // Seen at rest: 67-72 MiB, less than 1 % of a core.
        request: Resources { cpu: "5m", memory: "72Mi" },
        memory_limit: "1Gi",
        mounts: vec![key_mount("scheduler")],
        linger_seconds: 0,
    }
}

/// Flags of both. They listen on all addresses, which is the default: a probe comes from the node. Without
/// credentials only the paths of probes answer; nobody else may reach them anyway.
fn common_flags(user: &str) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", key_file(&format!("{user}.kubeconfig"))),
        // Nothing is asked of the API server before it is there: start in any order, and survive its absence.
        "--authentication-skip-lookup=true".to_owned(),
        "--leader-elect=true".to_owned(),
        format!("--leader-elect-lease-duration={LEASE_SECONDS}s"),
        format!("--leader-elect-renew-deadline={RENEW_SECONDS}s"),
        format!("--leader-elect-retry-period={RETRY_SECONDS}s"),
        format!("--kube-api-qps={REQUESTS_PER_SECOND}"),
        format!("--kube-api-burst={REQUEST_BURST}"),
        "--profiling=false".to_owned(),
    ]
}

/// Alive is also ready: a pod that stands by is ready, and the scheduler's /readyz says yes to the leader alone.
fn probes(port: u16, path: &'static str) -> Probes {
    Probes { port, scheme: "HTTPS", alive: path, start_seconds: 120, ready: path, ready_failures: 3 }
}

/// One pod at a time, from two on.
pub(super) fn budget(inputs: &Inputs<'_>) -> Option<Object> {
    (replicas(inputs) >= 2).then(|| {
        let spec = budget_spec(KUBE_CONTROLLERS, "AlwaysAllow");
        inputs.object(Kind::PodDisruptionBudget, KUBE_CONTROLLERS, KUBE_CONTROLLERS, json!({"spec": spec}))
    })
}
