//! What a person does with a cluster that has workers, as they type it: pods on two workers that reach each other by
//! address, Service and name, and everything that kubectl reaches through the tunnel.

use std::time::Instant;

use serde_json::{Value, json};

use super::forward::Forward;
use super::{TENANT, WORKERS_READY, agnhost, await_pod, names, nodes, pool_of_two, text, told, until};
use crate::Error;
use crate::flow::{SOON, Stage, claim};
use crate::kubectl::{Kubectl, at, condition};

const SERVER: &str = "web";
const CLIENT: &str = "asker";

pub(super) fn everything_works(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    let result = play(stage, &kubectl);
    let all = ["delete", "pods,services", "-l", "e2e=daily", "--grace-period=1", "--wait=false"];
    let _ = kubectl.run(&all);
    result
}

fn play(stage: &Stage, kubectl: &Kubectl) -> Result<(), Error> {
    let started = Instant::now();
    let workers = names(&nodes(kubectl)?);
    for (name, worker) in [SERVER, CLIENT].iter().zip(&workers) {
        run(kubectl, name, worker)?;
    }
    let server = await_pod(kubectl, SERVER)?;
    let client = await_pod(kubectl, CLIENT)?;
    told("two pods run", started);
    kubectl.run(&["expose", "pod", SERVER, "--port=80", "--target-port=8080", "--labels=e2e=daily"])?;
    by_name(kubectl)?;
    by_address(kubectl, &server, &client)?;
    names_resolve(kubectl)?;
    let log = kubectl.run(&["logs", SERVER])?;
    claim(log.contains("HTTP server"), || format!("the log of {SERVER} is `{log}`"))?;
    forwarded(kubectl)?;
    proxied(kubectl, &workers)?;
    let node = |pod: &Value| text(pod, "/spec/nodeName");
    claim(node(&server) != node(&client), || "both pods are on one worker".to_owned())?;
    used(kubectl)?;
    stage.await_tenant(TENANT, "to have all addons", addons_ready).map(drop)
}

/// `kubectl run`, on a worker.
pub(super) fn run(kubectl: &Kubectl, name: &str, worker: &str) -> Result<(), Error> {
    let pinned = json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": worker}}}).to_string();
    let (image, overrides) = (format!("--image={}", agnhost()), format!("--overrides={pinned}"));
    let labels = format!("--labels=e2e=daily,run={name}");
    let _ = kubectl.run(&["delete", "pod,service", name, "--ignore-not-found", "--grace-period=1"]);
    let what = ["run", name, &image, &overrides, &labels, "--", "netexec", "--http-port=8080"];
    kubectl.run(&what).map(drop)
}

/// What a pod hears at a URL.
fn ask(kubectl: &Kubectl, pod: &str, url: &str) -> Result<String, Error> {
    kubectl.run(&["exec", pod, "--", "timeout", "5", "wget", "-q", "-O", "-", url])
}

fn by_name(kubectl: &Kubectl) -> Result<(), Error> {
    reaches(kubectl, CLIENT, &format!("http://{SERVER}/hostname"), SERVER)?;
    reaches(kubectl, CLIENT, &format!("http://{SERVER}.default.svc.cluster.local/hostname"), SERVER)
}

/// A pod hears this at a URL; a Service is followed a moment after it was made.
pub(super) fn reaches(kubectl: &Kubectl, pod: &str, url: &str, expected: &str) -> Result<(), Error> {
    let heard = || match ask(kubectl, pod, url) {
        Ok(heard) if heard == expected => Ok(()),
        Ok(heard) => Err(format!("it says `{heard}`")),
        Err(error) => Err(error.to_string()),
    };
    until(kubectl, &format!("{url} to answer {pod}"), SOON, heard)
}

/// Pods of two workers see each other's own addresses.
fn by_address(kubectl: &Kubectl, server: &Value, client: &Value) -> Result<(), Error> {
    let (to, from) = (text(server, "/status/podIP"), text(client, "/status/podIP"));
    let heard = ask(kubectl, CLIENT, &format!("http://{to}:8080/clientip"))?;
    claim(heard.starts_with(&format!("{from}:")), || format!("{to} takes {from} for {heard}"))
}

/// Forward and reverse.
fn names_resolve(kubectl: &Kubectl) -> Result<(), Error> {
    let service = kubectl.read(&["get", "service", SERVER])?;
    let address = text(&service, "/spec/clusterIP");
    let full = format!("{SERVER}.default.svc.cluster.local");
    let look = |name: &str| kubectl.run(&["exec", CLIENT, "--", "nslookup", name]);
    let forward = look(&full)?;
    claim(forward.contains(&address), || format!("{full} is {address}, DNS says {forward}"))?;
    let reverse = look(&address)?;
    claim(reverse.contains(&full), || format!("{address} is {full}, DNS says {reverse}"))
}

fn forwarded(kubectl: &Kubectl) -> Result<(), Error> {
    let forward = Forward::start(kubectl, &format!("service/{SERVER}"), 80)?;
    for _ in 0..3 {
        let heard = forward.ask("/hostname").map_err(Error::io("ask", "a forwarded port"))?;
        claim(heard.ends_with(SERVER), || format!("the forwarded port says `{heard}`"))?;
    }
    Ok(())
}

/// The API server itself goes to nodes, pods and Services.
fn proxied(kubectl: &Kubectl, workers: &[String]) -> Result<(), Error> {
    for worker in workers {
        let healthy = kubectl.run(&["get", "--raw", &format!("/api/v1/nodes/{worker}/proxy/healthz")])?;
        claim(healthy.trim() == "ok", || format!("the kubelet of {worker} says `{healthy}`"))?;
    }
    for place in [format!("pods/{SERVER}:8080"), format!("services/{SERVER}:80")] {
        let path = format!("/api/v1/namespaces/default/{place}/proxy/hostname");
        let heard = kubectl.run(&["get", "--raw", &path])?;
        claim(heard == SERVER, || format!("{path} says `{heard}`"))?;
    }
    Ok(())
}

/// The tenant says that all addons run.
pub(super) fn addons_ready(tenant: &Value) -> Result<(), String> {
    match condition(tenant, "AddonsReady") {
        Some("True") => Ok(()),
        _ => Err(at(tenant, "/status/conditions").to_string()),
    }
}

/// metrics-server has two samples of everything after half a minute.
fn used(kubectl: &Kubectl) -> Result<(), Error> {
    let started = Instant::now();
    for (what, wanted) in [("nodes", 2), ("pods", 2)] {
        let top = || {
            let table = kubectl.run(&["top", what, "--no-headers"]).map_err(|error| error.to_string())?;
            match table.lines().filter(|line| line.contains("Mi")).count() {
                lines if lines >= wanted => Ok(()),
                _ => Err(table),
            }
        };
        until(kubectl, &format!("kubectl top {what} to tell of {wanted}"), WORKERS_READY, top)?;
    }
    told("kubectl top tells of nodes and pods after", started);
    let metrics = kubectl.read(&["get", "apiservices", "v1beta1.metrics.k8s.io"])?;
    let available = condition(&metrics, "Available");
    claim(available == Some("True"), || format!("the metrics API is {}", at(&metrics, "/status")))
}
