//! An endpoint of type LoadBalancer while the flow plays the balancer: an address that does not come, comes late,
//! becomes another one, and becomes a host name. Certificate, kubeconfig and status follow, and Ready is proved
//! through what is current. Node proxies lead such an address to the Service from inside of the cluster, which is
//! where the operator asks from.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kaas_pki::Certificate;
use serde_json::{Value, json};

use super::{NAMESPACE, Stage, chaos, claim, known_version, small};
use crate::Error;
use crate::kubectl::{at, condition};
use crate::operator::tenant_is_ready;
use crate::terminal::say;

const TENANT: &str = "balanced";
/// A name that the cluster's DNS resolves, and that is not the Service's own.
const FRONT: &str = "front";
/// Of the documentation's range: nobody else's.
const FIRST: &str = "203.0.113.10";
const SECOND: &str = "203.0.113.11";
/// How late the first address is.
const LATE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(500);

pub(super) fn an_address_is_followed(stage: &Stage) -> Result<(), Error> {
    let mut spec = small(known_version());
    if let Some(endpoint) = spec.pointer_mut("/controlPlane/endpoint") {
        *endpoint = json!({"type": "LoadBalancer"});
    }
    stage.apply_tenant(TENANT, spec)?;
    let result = play(stage);
    let _ = stage.kubectl.run(&["--namespace", NAMESPACE, "delete", "service", FRONT, "--ignore-not-found"]);
    result?;
    chaos::remove(stage, TENANT)
}

fn play(stage: &Stage) -> Result<(), Error> {
    stage.await_tenant(TENANT, "to wait for its load balancer", pending)?;
    let since = Instant::now();
    while since.elapsed() < LATE {
        pending(&stage.tenant(TENANT)?).map_err(Error::Invalid)?;
        std::thread::sleep(LOOK);
    }
    claim(stage.tenant_kubeconfig(TENANT).is_err(), || {
        "there is a kubeconfig that leads nowhere".to_owned()
    })?;
    let home = stage.home(TENANT)?;
    let front = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": FRONT, "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": format!("kube-apiserver.{home}.svc.cluster.local")},
    });
    stage.kubectl.apply(&front.to_string())?;
    let name = format!("{FRONT}.{NAMESPACE}.svc.cluster.local");
    give(stage, &home, "the first address", &json!([{"ip": FIRST}]), FIRST)?;
    give(stage, &home, "another address", &json!([{"ip": SECOND}]), SECOND)?;
    give(stage, &home, "a host name alone", &json!([{"hostname": name}]), &name)
}

/// No address yet, and status says whose turn it is.
fn pending(object: &Value) -> Result<(), String> {
    let conditions = at(object, "/status/conditions").as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().find(|condition| at(condition, "/type") == "Ready");
    let reason = ready.map(|ready| at(ready, "/reason"));
    let endpoint = at(object, "/status/controlPlaneEndpoint");
    match (condition(object, "Ready"), reason.and_then(Value::as_str), endpoint.is_null()) {
        (Some("False"), Some("LoadBalancerPending"), true) => Ok(()),
        _ => Err(format!("Ready: {}; endpoint: {endpoint}", ready.unwrap_or(&Value::Null))),
    }
}

/// What the balancer says now, and everything that has to follow.
fn give(stage: &Stage, home: &str, what: &str, ingress: &Value, host: &str) -> Result<(), Error> {
    let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
    let started = Instant::now();
    let args =
        ["patch", "service", "kube-apiserver", "--subresource=status", "--type=merge", "--patch", &patch];
    stage.kubectl.run(&[&["--namespace", home], args.as_slice()].concat())?;
    stage.await_tenant(TENANT, &format!("to be Ready through {host}"), |object| {
        match at(object, "/status/controlPlaneEndpoint/host") == host {
            true => tenant_is_ready(object).and_then(|()| super::settled(object)),
            false => Err(format!("endpoint: {}", at(object, "/status/controlPlaneEndpoint"))),
        }
    })?;
    say(format!("  {what}: Ready through {host} after {:.1} s", started.elapsed().as_secs_f32()));
    let kubeconfig = stage.tenant_kubeconfig(TENANT)?;
    claim(kubeconfig.contains(&format!("https://{host}:6443")), || {
        format!("the kubeconfig does not lead to {host}")
    })?;
    let path = "jsonpath={.data.tls\\.crt}";
    let text =
        stage.kubectl.run(&["--namespace", home, "get", "secret", "kube-apiserver", "--output", path])?;
    let pem = BASE64_STANDARD.decode(text.trim()).unwrap_or_default();
    let leaf = Certificate::parse(&String::from_utf8_lossy(&pem))?;
    let named = leaf.dns_names.iter().any(|name| name == host)
        || leaf.ip_addresses.iter().any(|address| address.to_string() == host);
    claim(named, || format!("the certificate names {:?} and {:?}", leaf.dns_names, leaf.ip_addresses))
}
