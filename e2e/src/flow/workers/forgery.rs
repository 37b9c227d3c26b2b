//! Who asks for a worker's certificate without being that worker gets none, whatever is offered for it: the
//! administrator of the tenant, a token of one's own, a worker for another one or for addresses that are not its. What
//! is about no worker of ours is left to whoever it is about. And nobody reads what a worker was given.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::{Value, json};

use super::{TENANT, machines, names, nodes, pool_of_two, until};
use crate::Error;
use crate::credentials::write_private;
use crate::flow::forgery::{USER, may};
use crate::flow::{NAMESPACE, POLL, SOON, Stage, claim};
use crate::kubectl::{Kubectl, at, condition};
use crate::wait;

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";
/// What nobody decides stays so for as long.
const LEFT_ALONE: Duration = Duration::from_secs(5);
/// Of the forger's own making, in the form that bootstrap tokens have.
const TOKEN: (&str, &str) = ("forged", "0123456789abcdef");

/// A request and who makes it.
struct Forged<'a> {
    name: &'a str,
    signer: &'a str,
    subject: &'a str,
    organizations: &'a [&'a str],
    addresses: &'a [&'a str],
}

pub(super) fn workers_are_not_impersonated(stage: &Stage) -> Result<(), Error> {
    let admin = pool_of_two(stage)?;
    let workers = names(&nodes(&admin)?);
    let (Some(first), Some(second)) = (workers.first(), workers.get(1)) else {
        return Err(Error::Invalid(format!("there are no two workers: {workers:?}")));
    };
    let _ = admin.run(&["delete", "certificatesigningrequests", "--all"]);
    let node = |name: &str| format!("system:node:{name}");
    let (own, other) = (node(first), node(second));
    let nodes = ["system:nodes"];
    let forged =
        |name, signer, subject, addresses| Forged { name, signer, subject, organizations: &nodes, addresses };

    let by_admin = forged("by-admin", CLIENT, own.as_str(), &[] as &[&str]);
    denied(&admin, &admin, &by_admin)?;
    let token = with_a_token(stage, &admin)?;
    denied(&token, &admin, &forged("by-a-token", CLIENT, &own, &[]))?;
    let worker = as_worker(stage, &admin, first)?;
    denied(&worker, &admin, &forged("for-another", CLIENT, &other, &[]))?;
    denied(&worker, &admin, &forged("more-addresses", SERVING, &own, &["192.0.2.7"]))?;
    let more = Forged {
        organizations: &["system:nodes", "system:masters"],
        ..forged("more-groups", CLIENT, own.as_str(), &[] as &[&str])
    };
    denied(&worker, &admin, &more)?;
    left_alone(&admin, &forged("of-a-stranger", CLIENT, "system:node:a-machine-of-my-own", &[]))?;

    nothing_is_read(&worker, &admin)?;
    tenants_stay_outside(stage)?;
    admin.run(&["delete", "certificatesigningrequests", "--all"])?;
    admin
        .run(&["--namespace", "kube-system", "delete", "secret", &format!("bootstrap-token-{}", TOKEN.0)])
        .map(drop)
}

fn ask(asker: &Kubectl, forged: &Forged<'_>) -> Result<(), Error> {
    let fail = |error: rcgen::Error| Error::Invalid(format!("certificate request {}: {error}", forged.name));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // The library keeps one value of each kind; written as a bare identifier it is another kind.
    let kinds = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    for (kind, organization) in kinds.into_iter().zip(forged.organizations) {
        params.distinguished_name.push(kind, *organization);
    }
    params.distinguished_name.push(DnType::CommonName, forged.subject);
    let addresses = forged.addresses.iter().filter_map(|address| address.parse().ok());
    params.subject_alt_names = addresses.map(SanType::IpAddress).collect();
    let key = KeyPair::generate().map_err(fail)?;
    let text = params.serialize_request(&key).and_then(|request| request.pem()).map_err(fail)?;
    let usage = if forged.signer == SERVING { "server auth" } else { "client auth" };
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": forged.name},
        "spec": {
            "signerName": forged.signer, "usages": ["digital signature", usage],
            "request": BASE64_STANDARD.encode(text),
        },
    });
    let path = asker.kubeconfig().with_extension("csr.json");
    std::fs::write(&path, request.to_string()).map_err(Error::io("write", &path))?;
    asker.run(&["create", "--filename", &path.display().to_string()]).map(drop)
}

fn denied(asker: &Kubectl, admin: &Kubectl, forged: &Forged<'_>) -> Result<(), Error> {
    match ask(asker, forged) {
        // The API server itself lets nobody but a node ask for serving certificates, and no node for another one.
        Err(error) if error.to_string().contains("orbidden") => return Ok(()),
        asked => asked?,
    }
    let decided = |request: &Value| match (condition(request, "Denied"), condition(request, "Approved")) {
        (Some("True"), None) => Ok(()),
        _ => Err(format!("{}", at(request, "/status"))),
    };
    let args = ["get", "certificatesigningrequest", forged.name];
    let request =
        admin.await_object(&format!("request {} to be denied", forged.name), &args, SOON, decided)?;
    claim(at(&request, "/status/certificate").is_null(), || format!("{} has a certificate", forged.name))
}

/// A client certificate of a worker is denied to who asks.
pub(super) fn asks_in_vain(asker: &Kubectl, admin: &Kubectl, name: &str, worker: &str) -> Result<(), Error> {
    let subject = format!("system:node:{worker}");
    let organizations = &["system:nodes"];
    denied(asker, admin, &Forged { name, signer: CLIENT, subject: &subject, organizations, addresses: &[] })?;
    admin.run(&["delete", "certificatesigningrequest", name, "--ignore-not-found"]).map(drop)
}

fn left_alone(admin: &Kubectl, forged: &Forged<'_>) -> Result<(), Error> {
    ask(admin, forged)?;
    let since = Instant::now();
    while since.elapsed() < LEFT_ALONE {
        let request = admin.read(&["get", "certificatesigningrequest", forged.name])?;
        claim(at(&request, "/status/conditions").is_null(), || {
            format!("somebody decided about {}: {}", forged.name, at(&request, "/status"))
        })?;
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// As who holds a bootstrap token with the groups of a worker's, but made by somebody else.
fn with_a_token(stage: &Stage, admin: &Kubectl) -> Result<Kubectl, Error> {
    let (id, secret) = TOKEN;
    let token = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
        "stringData": {
            "token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:kaas",
        },
    });
    admin.apply(&token.to_string())?;
    let kubectl = as_user(stage, "token", &json!({"token": format!("{id}.{secret}")}))?;
    let known = || kubectl.run(&["auth", "whoami"]).map_err(|error| error.to_string());
    until(admin, "the token to be known", SOON, known)?;
    Ok(kubectl)
}

/// As the kubelet of a worker, with what it has on its machine.
fn as_worker(stage: &Stage, admin: &Kubectl, worker: &str) -> Result<Kubectl, Error> {
    let file = "/var/lib/kubelet/pki/kubelet-client-current.pem";
    let machines = machines(stage)?;
    let pem = stage.kubectl.run(&["--namespace", &machines, "exec", worker, "--", "cat", file])?;
    let pem = BASE64_STANDARD.encode(pem);
    let kubectl = as_user(stage, "worker", &json!({"client-certificate-data": pem, "client-key-data": pem}))?;
    let me = kubectl.read(&["auth", "whoami"])?;
    let user = at(&me, "/status/userInfo/username");
    claim(user == &format!("system:node:{worker}"), || format!("the machine of {worker} is {user}"))?;
    // What is claimed of it would hold of anybody who may do nothing.
    wait::until(
        "the worker to read its node",
        SOON,
        POLL,
        || kubectl.run(&["get", "node", worker]).map_err(|error| error.to_string()),
        || admin.report(),
    )?;
    Ok(kubectl)
}

/// The tenant's endpoint as another user.
pub(super) fn as_user(stage: &Stage, name: &str, user: &Value) -> Result<Kubectl, Error> {
    let mut config: Value = serde_yaml::from_str(&stage.tenant_kubeconfig(TENANT)?)
        .map_err(|error| Error::Invalid(format!("kubeconfig: {error}")))?;
    if let Some(place) = config.pointer_mut("/users/0/user") {
        *place = user.clone();
    }
    let path = stage.scratch.path().join(format!("{TENANT}-{name}"));
    write_private(&path, &config.to_string())?;
    Ok(Kubectl::new(&stage.program, &path))
}

/// A worker does not read the tokens of others, nor the tenant's Secrets that none of its pods has.
fn nothing_is_read(worker: &Kubectl, admin: &Kubectl) -> Result<(), Error> {
    let _ = admin.run(&["create", "secret", "generic", "not-for-workers", "--from-literal=a=b"]);
    for args in [
        vec!["get", "secret", "not-for-workers"],
        vec!["--namespace", "kube-system", "get", "secret", "bootstrap-token-forged"],
        vec!["--namespace", "kube-system", "get", "secrets"],
    ] {
        let read = worker.run(&args);
        claim(read.as_ref().is_err_and(|error| error.to_string().contains("orbidden")), || {
            format!("a worker may {}: {read:?}", args.join(" "))
        })?;
    }
    admin.run(&["delete", "secret", "not-for-workers"]).map(drop)
}

/// Whoever has every right in the team's namespace has none over Workers, nor over the machines.
fn tenants_stay_outside(stage: &Stage) -> Result<(), Error> {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "forger", "namespace": NAMESPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mallory"}],
    });
    stage.kubectl.apply(&binding.to_string())?;
    let scales = || match may(stage, NAMESPACE, "patch", "workerpools.kaas.dev/scale") {
        Ok(true) => Ok(()),
        Ok(false) => Err("mallory may not scale pools".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until("the roles to be aggregated", SOON, POLL, scales, || stage.kubectl.report())?;
    let machines = machines(stage)?;
    for (namespace, verb, resource) in [
        (machines.as_str(), "get", "secrets"),
        (&machines, "list", "secrets"),
        (&machines, "get", "pods"),
        (&machines, "create", "pods"),
        (&machines, "create", "pods/exec"),
        (NAMESPACE, "create", "workers.kaas.dev"),
        (NAMESPACE, "update", "workers.kaas.dev"),
        (NAMESPACE, "patch", "workers.kaas.dev/status"),
        (NAMESPACE, "patch", "workerpools.kaas.dev/status"),
        (NAMESPACE, "create", "instancetypes.kaas.dev"),
    ] {
        claim(!may(stage, namespace, verb, resource)?, || {
            format!("mallory may {verb} {resource} in {namespace}")
        })?;
    }
    of_a_worker_only_the_order_is_asked_for(stage)?;
    let delete = ["--namespace", NAMESPACE, "delete", "rolebinding", "forger"];
    stage.kubectl.run(&delete).map(drop)
}

/// The tenant's user may say which worker goes first, and write nothing else of it.
fn of_a_worker_only_the_order_is_asked_for(stage: &Stage) -> Result<(), Error> {
    let found = super::workers(stage)?;
    let name = names(&found).into_iter().next().unwrap_or_default();
    let worker = |what: &[&str]| stage.kubectl.run(&[&[USER, "--namespace", NAMESPACE], what].concat());
    worker(&["annotate", "workers.kaas.dev", &name, "kaas.dev/delete-first=true"])?;
    worker(&["annotate", "workers.kaas.dev", &name, "kaas.dev/delete-first-"])?;
    for patch in [
        json!({"metadata": {"finalizers": null}}),
        json!({"metadata": {"ownerReferences": null}}),
        json!({"metadata": {"labels": {"kaas.dev/tenant-uid": "another"}}}),
        json!({"metadata": {"annotations": {"kaas.dev/other": "true"}}}),
    ] {
        let text = patch.to_string();
        let refused = worker(&["patch", "workers.kaas.dev", &name, "--type=merge", "--patch", &text]);
        claim(refused.as_ref().is_err_and(|error| error.to_string().contains("delete-first")), || {
            format!("mallory may patch a Worker with {text}: {refused:?}")
        })?;
    }
    Ok(())
}
