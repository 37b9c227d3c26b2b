//! A machine of the user's own joins by the command that is printed for it. The machine is a container with a network,
//! mounts and control groups of its own, a containerd, and what an installed kubelet is: a unit that starts it again
//! until kubeadm has written its configuration. Nothing of the operator's has a hand in it.

use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{
    TENANT, WORKERS_READY, apply_pool, await_pod, await_workers, daily, forgery, machines, names, nodes,
    pool_of_two, pool_spec, text, told, workers,
};
use crate::Error;
use crate::component;
use crate::flow::{NAMESPACE, POLL, SOON, Stage, claim};
use crate::image::catalogue;
use crate::invocation::Invocation;
use crate::kubectl::{Kubectl, at, condition, reason};
use crate::registry;
use crate::wait;

const OWN_POOL: &str = "own";
const MACHINE: &str = "a-machine";
/// Where machines of users are: no place of ours.
const PLACE: &str = "kaas-e2e-machines";
const GUEST: &str = "guest";
const VISITOR: &str = "visitor";
const PAUSE: &str = "registry.k8s.io/pause:3.10.2";

/// What the packages of a distribution set up: containerd, and kubelet as a unit that is started again and again.
const UNITS: &str = r#"
set -eu
. /usr/local/share/kaas/isolation
isolate
configure_containerd
printf '%s' "$MIRROR" >/etc/containerd/certs.d/_default/hosts.toml
containerd --config /run/kaas/containerd.toml --log-level warn &
await_containerd
# Its disk is shared: a part of a hundred says nothing of it.
mkdir /run/kaas/kubelet.conf.d
cat >/run/kaas/kubelet.conf.d/10-disk.conf <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
evictionHard: {nodefs.available: 100Mi, imagefs.available: 100Mi, memory.available: 50Mi}
EOF
while :; do
	if [ -e /var/lib/kubelet/config.yaml ]; then
		KUBELET_KUBEADM_ARGS=
		[ ! -e /var/lib/kubelet/kubeadm-flags.env ] || . /var/lib/kubelet/kubeadm-flags.env
		kubelet --config=/var/lib/kubelet/config.yaml --config-dir=/run/kaas/kubelet.conf.d --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
			--kubeconfig=/etc/kubernetes/kubelet.conf $KUBELET_KUBEADM_ARGS || true
	fi
	sleep 1
done
"#;

pub(super) fn a_machine_of_ones_own_joins(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    let result = play(stage, &kubectl);
    if result.is_err() {
        let pool = ["delete", "workerpools.kaas.dev", OWN_POOL, "--ignore-not-found", "--wait=false"];
        let _ = stage.kubectl.run(&[&["--namespace", NAMESPACE], pool.as_slice()].concat());
    }
    let _ = kubectl.run(&["delete", "pod,service", "-l", "e2e=daily", "--grace-period=1", "--wait=false"]);
    let delete = ["delete", "namespace", PLACE, "--ignore-not-found", "--wait=false"];
    let _ = stage.kubectl.run(&delete);
    result
}

fn play(stage: &Stage, kubectl: &Kubectl) -> Result<(), Error> {
    let mut spec = pool_spec(1);
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("infrastructure".to_owned(), json!({"external": {}}));
    }
    apply_pool(stage, OWN_POOL, spec)?;
    let worker = format!("{OWN_POOL}-0");
    let args = ["--namespace", NAMESPACE, "get", "workers.kaas.dev", &worker];
    let waits = |object: &Value| match reason(object, "Ready") {
        Some("WaitingForMachine") => Ok(()),
        _ => Err(text(object, "/status/summary")),
    };
    stage.kubectl.await_object(
        &format!("Worker {worker} to wait for a machine"),
        &args,
        WORKERS_READY,
        waits,
    )?;
    let command = command(stage, &worker)?;
    start_machine(stage)?;
    let started = Instant::now();
    join(stage, &command)?;
    told("kubeadm join", started);
    await_workers(stage, OWN_POOL, 1)?;
    told("kubeadm join -> Ready", started);
    let node = kubectl.read(&["get", "node", &worker])?;
    let found = workers(stage)?.into_iter().find(|object| text(object, "/metadata/name") == worker);
    let object = found.ok_or_else(|| Error::Invalid(format!("there is no Worker {worker}")))?;
    claim(at(&object, "/status/nodeRef/uid") == at(&node, "/metadata/uid"), || {
        format!("{} is not the node {}", at(&object, "/status/nodeRef"), at(&node, "/metadata/uid"))
    })?;
    claim(text(&object, "/status/version") == component::KUBERNETES, || {
        format!("{}", at(&object, "/status"))
    })?;
    is_a_worker(kubectl, &worker)?;
    a_token_joins_one_machine(stage, kubectl, &command, &worker)?;
    leaves(stage, kubectl, &worker)
}

/// The command in the Secret that only the worker's own namespace has.
fn command(stage: &Stage, worker: &str) -> Result<String, Error> {
    let secret =
        stage.kubectl.read(&["--namespace", NAMESPACE, "get", "secret", &format!("{worker}-join")])?;
    let bytes = BASE64_STANDARD.decode(text(&secret, "/data/command")).unwrap_or_default();
    let command = String::from_utf8_lossy(&bytes).trim().to_owned();
    let endpoint = stage.tenant(TENANT)?;
    let host = text(&endpoint, "/status/controlPlaneEndpoint/host");
    claim(command.starts_with("kubeadm join ") && command.contains(&host), || {
        format!("what is printed is no command to join at {host}")
    })?;
    Ok(command)
}

fn start_machine(stage: &Stage) -> Result<(), Error> {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": PLACE, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
    });
    stage.kubectl.apply(&namespace.to_string())?;
    let places = [("images", "/var/lib/containerd"), ("pods", "/var/lib/kubelet")];
    let variables = [
        ("NODE_NAME", MACHINE.to_owned()),
        ("SANDBOX_IMAGE", PAUSE.to_owned()),
        ("MIRROR", format!("server = \"{}\"\n", registry::MIRROR)),
    ];
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": MACHINE, "namespace": PLACE},
        "spec": {
            "hostname": MACHINE, "automountServiceAccountToken": false, "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "machine",
                "image": catalogue::worker_reference(component::KUBERNETES),
                "command": ["unshare", "--cgroup", "--", "sh", "-c", UNITS],
                "env": variables.map(|(name, value)| json!({"name": name, "value": value})),
                "securityContext": {"privileged": true},
                "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "2Gi"}},
                "volumeMounts": places.map(|(name, path)| json!({"name": name, "mountPath": path})),
            }],
            "volumes": places.map(|(name, _)| json!({"name": name, "emptyDir": {}})),
        },
    });
    stage.kubectl.apply(&pod.to_string())?;
    let runs = |pod: &Value| match condition(pod, "Ready") {
        Some("True") => Ok(()),
        _ => Err(format!("{}", at(pod, "/status/containerStatuses"))),
    };
    let args = ["--namespace", PLACE, "get", "pod", MACHINE];
    stage.kubectl.await_object("the machine to run", &args, SOON, runs)?;
    let socket =
        || on_machine(stage, "test -S /run/containerd/containerd.sock").map_err(|error| error.to_string());
    wait::until("containerd of the machine", SOON, POLL, socket, || stage.kubectl.report()).map(drop)
}

/// What a user of the machine types there.
fn on_machine(stage: &Stage, line: &str) -> Result<String, Error> {
    Invocation::new(&stage.program)
        .env("KUBECONFIG", stage.kubectl.kubeconfig())
        .args(["--namespace", PLACE, "exec", MACHINE, "--", "sh", "-c", line])
        .within(WORKERS_READY)
        .run()
}

/// As the documents say it for a machine with control groups of version 1.
fn join(stage: &Stage, command: &str) -> Result<(), Error> {
    on_machine(stage, &format!("{command} --ignore-preflight-errors=SystemVerification")).map(drop)
}

/// Pods run on it, and are reached there from a worker of another pool, by name and by address, and by the tunnel.
fn is_a_worker(kubectl: &Kubectl, worker: &str) -> Result<(), Error> {
    let others = names(&nodes(kubectl)?);
    let other = others.iter().find(|name| *name != worker).map(String::as_str).unwrap_or_default();
    daily::run(kubectl, GUEST, worker)?;
    daily::run(kubectl, VISITOR, other)?;
    let guest = await_pod(kubectl, GUEST)?;
    let visitor = await_pod(kubectl, VISITOR)?;
    kubectl.run(&["expose", "pod", GUEST, "--port=80", "--target-port=8080", "--labels=e2e=daily"])?;
    daily::reaches(kubectl, VISITOR, &format!("http://{GUEST}/hostname"), GUEST)?;
    for (asker, pod, name) in [(VISITOR, &guest, GUEST), (GUEST, &visitor, VISITOR)] {
        let url = format!("http://{}:8080/hostname", text(pod, "/status/podIP"));
        daily::reaches(kubectl, asker, &url, name)?;
    }
    let path = format!("/api/v1/namespaces/default/pods/{GUEST}:8080/proxy/hostname");
    let heard = kubectl.run(&["get", "--raw", &path])?;
    claim(heard == GUEST, || format!("{path} says `{heard}`"))
}

/// The command is used up: its token is taken away when the machine has joined, or gets no second certificate.
fn a_token_joins_one_machine(
    stage: &Stage,
    kubectl: &Kubectl,
    command: &str,
    worker: &str,
) -> Result<(), Error> {
    let mut words = command.split_whitespace().skip_while(|word| *word != "--token").skip(1);
    let token = words.next().ok_or_else(|| Error::Invalid("the command has no token".to_owned()))?;
    let again = forgery::as_user(stage, "used-token", &json!({"token": token}))?;
    if again.run(&["auth", "whoami"]).is_err_and(|error| error.to_string().contains("nauthorized")) {
        return Ok(());
    }
    forgery::asks_in_vain(&again, kubectl, "by-a-used-token", worker)
}

/// The pool asks for none: its node and its Secret go. The machine is its user's.
fn leaves(stage: &Stage, kubectl: &Kubectl, worker: &str) -> Result<(), Error> {
    let started = Instant::now();
    let what = ["--namespace", NAMESPACE, "delete", "workerpools.kaas.dev", OWN_POOL, "--timeout=29s"];
    stage.kubectl.run(&what)?;
    told("the pool is gone", started);
    let node = kubectl.run(&["get", "node", worker, "--ignore-not-found", "--output", "name"])?;
    claim(node.trim().is_empty(), || format!("{node} is left"))?;
    let secret = format!("{worker}-join");
    let secret =
        ["--namespace", NAMESPACE, "get", "secret", &secret, "--ignore-not-found", "--output", "name"];
    let left = stage.kubectl.run(&secret)?;
    claim(left.trim().is_empty(), || format!("{left} is left"))?;
    // Nothing of it was ever where the platform's own machines are.
    let pods = stage.kubectl.run(&["--namespace", &machines(stage)?, "get", "pods", "--output", "name"])?;
    claim(!pods.contains(worker), || format!("{worker} is a pod too: {pods}"))
}
