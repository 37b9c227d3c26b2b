//! What a certified cluster has, and a day's work does not show: a pod that checks the tenant's own tokens, ports of the
//! node, names of single pods, Services that remember their clients, kubelets behind the API server, and an aggregated
//! API that learns who asks from the API server alone.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};

use super::{WORKERS_READY, agnhost, await_pod, daily, names, nodes, pool_of_two, text, told, until};
use crate::Error;
use crate::flow::{SOON, Stage, claim};
use crate::kubectl::{Kubectl, at};

const NEAR: &str = "near";
const FAR: &str = "far";
/// The Service without an address, which names its pods.
const PAIR: &str = "pair";
const HOST_PORT: u16 = 8087;
const ISSUER: &str = "issuer";
const AUDIENCE: &str = "oidc-discovery-test";
const METRICS: &str = "apis/metrics.k8s.io/v1beta1/nodes";

pub(super) fn what_is_certified(stage: &Stage) -> Result<(), Error> {
    let kubectl = pool_of_two(stage)?;
    let result = play(&kubectl);
    let all = ["delete", "pods,services", "-l", "e2e=conformance", "--grace-period=1", "--wait=false"];
    let _ = kubectl.run(&all);
    result
}

fn play(kubectl: &Kubectl) -> Result<(), Error> {
    let started = Instant::now();
    let workers = nodes(kubectl)?;
    let names = names(&workers);
    kubectl.apply(&objects(&names).to_string())?;
    let (near, far) = (await_pod(kubectl, NEAR)?, await_pod(kubectl, FAR)?);
    let addresses = [NEAR, FAR].into_iter().zip([&near, &far].map(|pod| text(pod, "/status/podIP")));
    names_of_pods(kubectl, &addresses.collect::<Vec<_>>())?;
    for (pod, name) in [(&near, NEAR), (&far, FAR)] {
        // From the other worker, and from the same.
        let url = format!("http://{}:{HOST_PORT}/hostname", text(pod, "/status/hostIP"));
        daily::reaches(kubectl, NEAR, &url, name)?;
    }
    clients_are_remembered(kubectl)?;
    the_issuer_is_found(kubectl)?;
    told("tokens, host ports, names and affinity", started);
    for worker in &workers {
        a_kubelet_answers(kubectl, worker)?;
    }
    who_asks_is_proven(kubectl)
}

fn objects(workers: &[String]) -> Value {
    let mut items = vec![
        service(PAIR, &json!({"clusterIP": "None"})),
        service("spread", &json!({})),
        service("sticky", &json!({"sessionAffinity": "ClientIP"})),
        issuer(),
    ];
    items.extend([NEAR, FAR].iter().zip(workers).map(|(name, worker)| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "default", "labels": {"e2e": "conformance", "app": PAIR},
            },
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": worker},
                "hostname": name, "subdomain": PAIR, "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "web", "image": agnhost(), "args": ["netexec", "--http-port=8080"],
                    "ports": [{"containerPort": 8080, "hostPort": HOST_PORT}],
                }],
            },
        })
    }));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn service(name: &str, more: &Value) -> Value {
    let mut spec =
        json!({"selector": {"app": PAIR}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": {"e2e": "conformance"}}, "spec": spec,
    })
}

/// Upstream's own program for this: it looks the issuer of its token up, fetches the keys, and checks the token by them.
fn issuer() -> Value {
    let token =
        json!({"serviceAccountToken": {"path": "token", "audience": AUDIENCE, "expirationSeconds": 600}});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": ISSUER, "namespace": "default", "labels": {"e2e": "conformance"}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "check", "image": agnhost(),
                "args": [
                    "test-service-account-issuer-discovery", "--token-path=/var/run/secrets/tokens/token",
                    format!("--audience={AUDIENCE}"),
                ],
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/tokens", "readOnly": true}],
            }],
            "volumes": [{"name": "token", "projected": {"sources": [token]}}],
        },
    })
}

fn the_issuer_is_found(kubectl: &Kubectl) -> Result<(), Error> {
    let ended = |pod: &Value| match at(pod, "/status/phase").as_str() {
        Some("Succeeded") => Ok(()),
        phase => {
            let log = kubectl.run(&["logs", ISSUER]).unwrap_or_else(|error| error.to_string());
            Err(format!("it is {phase:?}: {log}"))
        }
    };
    let what = "a pod to check its token by the issuer's keys";
    kubectl.await_object(what, &["get", "pod", ISSUER], WORKERS_READY, ended).map(drop)
}

/// The Service without an address names all of its pods, each of them has a name of its own, and its address leads back.
fn names_of_pods(kubectl: &Kubectl, pods: &[(&str, String)]) -> Result<(), Error> {
    let domain = format!("{PAIR}.default.svc.cluster.local");
    let resolves = |name: &str, expected: &[&String]| {
        let look = || {
            let found = kubectl.run(&["exec", NEAR, "--", "nslookup", name]);
            let found = found.map_err(|error| error.to_string())?;
            match expected.iter().all(|expected| found.contains(expected.as_str())) {
                true => Ok(()),
                false => Err(found),
            }
        };
        until(kubectl, &format!("{name} to lead to {expected:?}"), SOON, look)
    };
    resolves(&domain, &pods.iter().map(|(_, address)| address).collect::<Vec<_>>())?;
    for (name, address) in pods {
        let own = format!("{name}.{domain}");
        resolves(&own, &[address])?;
        resolves(address, &[&own])?;
    }
    Ok(())
}

/// Of a Service that remembers its clients one pod answers, of another all.
fn clients_are_remembered(kubectl: &Kubectl) -> Result<(), Error> {
    let answer = |service: &str, times: usize| -> Result<BTreeSet<String>, String> {
        let line = format!(
            "for i in $(seq {times}); do timeout 5 wget -q -O - http://{service}/hostname || exit 1; echo; done"
        );
        let heard =
            kubectl.run(&["exec", NEAR, "--", "sh", "-c", &line]).map_err(|error| error.to_string())?;
        Ok(heard.lines().map(str::to_owned).collect())
    };
    // By chance one pod alone answers once in a million.
    let both = || match answer("spread", 20)? {
        pods if pods.len() == 2 => Ok(()),
        pods => Err(format!("{pods:?} answer")),
    };
    until(kubectl, "both pods to answer for a Service", SOON, both)?;
    let one = || answer("sticky", 20);
    let pods = until(kubectl, "a Service that remembers", SOON, one)?;
    claim(pods.len() == 1, || format!("one client is answered by {pods:?}"))
}

/// Through the API server, with and without its port; it has room for as many pods as upstream wants of a node.
fn a_kubelet_answers(kubectl: &Kubectl, worker: &Value) -> Result<(), Error> {
    let name = text(worker, "/metadata/name");
    for (path, expected) in [
        (format!("{name}/proxy/logs/"), "pods/"),
        (format!("{name}:10250/proxy/logs/"), "pods/"),
        (format!("{name}/proxy/stats/summary"), name.as_str()),
        (format!("{name}/proxy/configz"), "\"maxPods\""),
    ] {
        let path = format!("/api/v1/nodes/{path}");
        let heard = kubectl.run(&["get", "--raw", &path])?;
        claim(heard.contains(expected), || format!("{path} says `{heard}`"))?;
    }
    let pods = at(worker, "/status/allocatable/pods");
    claim(pods == "110", || format!("{name} takes {pods} pods"))?;
    let network = text(worker, "/spec/podCIDR");
    claim(network.ends_with("/24"), || format!("{name} has the addresses of {network} for 110 pods"))
}

/// The API server tells it, with the front proxy's certificate, who asks; who comes another way is nobody to it.
fn who_asks_is_proven(kubectl: &Kubectl) -> Result<(), Error> {
    let asked = || kubectl.run(&["get", "--raw", &format!("/{METRICS}")]).map_err(|error| error.to_string());
    until(kubectl, "the metrics API to answer", WORKERS_READY, asked)?;
    let around =
        format!("/api/v1/namespaces/kube-system/services/https:metrics-server:https/proxy/{METRICS}");
    match kubectl.run(&["get", "--raw", &around]) {
        Ok(answer) => Err(Error::Invalid(format!("whoever asks metrics-server itself hears {answer}"))),
        Err(error) => {
            let error = error.to_string();
            claim(error.contains("orbidden") && error.contains("system:anonymous"), || {
                format!("metrics-server itself says {error}")
            })
        }
    }
}
