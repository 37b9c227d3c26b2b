//! Whether the cluster enforces NetworkPolicies: a pod of another namespace dials a tenant's API server, which is
//! open to all, and its etcd, which is not. Where both answer, nothing enforces and nothing can be claimed.

use std::time::Duration;

use serde_json::{Value, json};

use super::{NAMESPACE, Stage, claim};
use crate::Error;
use crate::kubectl::at;

const TENANT: &str = "green";
const STRANGER: &str = "stranger";
const ENDED: Duration = Duration::from_secs(60);
/// How long the stranger dials, in seconds. Silence may be a busy machine: it is believed when it lasts.
const PATIENCE: [u32; 3] = [5, 10, 20];

pub(super) fn a_stranger_does_not_reach_etcd(stage: &Stage) -> Result<(), Error> {
    stage.await_settled(TENANT)?;
    let mut reached = Err(Error::Invalid("nobody dialled".to_owned()));
    for seconds in PATIENCE {
        reached = dial(stage, seconds);
        let delete = ["delete", "pod", STRANGER, "--ignore-not-found", "--grace-period=0", "--force"];
        stage.kubectl.run(&[&["--namespace", NAMESPACE], delete.as_slice()].concat())?;
        if matches!(reached, Ok(Reached { closed: true, .. })) {
            return stage.skip(
                "network policies are not enforced here: a pod of another namespace reaches etcd".to_owned(),
            );
        }
    }
    claim(reached?.open, || "a pod of another namespace does not reach the API server".to_owned())
}

/// What the stranger got an answer from.
struct Reached {
    open: bool,
    closed: bool,
}

fn dial(stage: &Stage, seconds: u32) -> Result<Reached, Error> {
    let home = stage.home(TENANT)?;
    let etcd = pod_of(stage, &home, "etcd")?;
    let server = pod_of(stage, &home, "kube-apiserver")?;
    // The tenant's own image of etcd: the one with a client in it that every cluster has that runs tenants.
    let image = at(&etcd, "/spec/containers/0/image");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": STRANGER, "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                dialler("open", image, &format!("{}:6443", address(&server)), seconds),
                dialler("closed", image, &format!("{}:2379", address(&etcd)), seconds),
            ],
        },
    });
    stage.kubectl.apply(&pod.to_string())?;
    let ended = |pod: &Value| match at(pod, "/status/phase").as_str() {
        Some("Succeeded" | "Failed") => Ok(()),
        phase => Err(format!("it is {}", phase.unwrap_or("not seen"))),
    };
    let args = ["--namespace", NAMESPACE, "get", "pod", STRANGER];
    stage.kubectl.await_object("the stranger to have dialled", &args, ENDED, ended)?;
    let connected = |container| connected(&heard(stage, container)?);
    Ok(Reached { open: connected("open")?, closed: connected("closed")? })
}

fn pod_of(stage: &Stage, home: &str, component: &str) -> Result<Value, Error> {
    let selector = format!("app.kubernetes.io/name={component}");
    let pods = stage.kubectl.read(&["--namespace", home, "get", "pods", "--selector", &selector])?;
    let pod = at(&pods, "/items/0").clone();
    claim(!address(&pod).is_empty(), || format!("there is no pod of {component} with an address in {home}"))?;
    Ok(pod)
}

fn address(pod: &Value) -> String {
    match at(pod, "/status/podIP").as_str().unwrap_or_default() {
        ip if ip.contains(':') => format!("[{ip}]"),
        ip => ip.to_owned(),
    }
}

/// Says in its log how far it came.
fn dialler(name: &str, image: &Value, address: &str, seconds: u32) -> Value {
    json!({
        "name": name,
        "image": image,
        "command": [
            "etcdctl", format!("--endpoints=https://{address}"), "--insecure-skip-tls-verify",
            format!("--dial-timeout={seconds}s"), format!("--command-timeout={seconds}s"), "endpoint", "status",
        ],
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
    })
}

fn heard(stage: &Stage, container: &str) -> Result<String, Error> {
    stage.kubectl.run(&["--namespace", NAMESPACE, "logs", STRANGER, "--container", container])
}

/// Whether a connection came about: it has no credentials, so whoever answers refuses it, after the handshake of TCP.
fn connected(log: &str) -> Result<bool, Error> {
    let has = |words: &[&str]| words.iter().any(|word| log.contains(word));
    if has(&["error reading server preface", "remote error: tls", "unexpected HTTP status code"]) {
        return Ok(true);
    }
    // Refused, or nothing came back in time.
    if has(&["Error while dialing", "DeadlineExceeded"]) {
        return Ok(false);
    }
    Err(Error::Invalid(format!("whether a connection came about cannot be told from: {log}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_from_silence() {
        let blocked = r#"latest balancer error: connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.1:2379: i/o timeout""#;
        let refused = r#"connection error: desc = "error reading server preface: remote error: tls: certificate required""#;
        let answered = "code = Unauthenticated desc = unexpected HTTP status code received from server: 401";
        let silence = "rpc error: code = DeadlineExceeded desc = context deadline exceeded";
        for (log, expected) in [(blocked, false), (silence, false), (refused, true), (answered, true)] {
            assert_eq!(connected(log).unwrap(), expected, "{log}");
        }
        assert!(connected("").is_err());
    }
}
