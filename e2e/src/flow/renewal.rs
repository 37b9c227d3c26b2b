//! Certificates that live a few minutes: renewed at two thirds of their life, read again by everything that has
//! them, without a restart and without a failed request past the end of the first ones. Only API servers are replaced,
//! once: their tunnel's server reads its certificate when it starts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use kaas_pki::Certificate;
use serde_json::{Value, json};

use super::load::{Client, Load};
use super::{Stage, chaos, claim, known_version, scale, small};
use crate::Error;
use crate::kubectl::at;
use crate::terminal::say;

const TENANT: &str = "brief";
/// Certificates are backdated by five minutes, and two thirds are of the whole: these are due after 100 s. A kubelet
/// brings a changed Secret to its pods within 90 s.
const LIFETIME: &str = "5m";
/// After the end of the last first certificate.
const BEYOND: SignedDuration = SignedDuration::from_secs(20);
const LOOK: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(480);

pub(super) fn certificates_are_renewed(stage: &Stage) -> Result<(), Error> {
    let ground = stage.ground()?;
    ground
        .cluster
        .borrow_mut()
        .install_operator_with(&ground.repository, &[("certificates.leafLifetime", json!(LIFETIME))])?;
    let result = live(stage);
    let restored = ground.cluster.borrow_mut().install_operator(&ground.repository);
    result.and(restored)
}

fn live(stage: &Stage) -> Result<(), Error> {
    stage.apply_tenant(TENANT, small(known_version()))?;
    stage.await_settled(TENANT)?;
    let first = certificates(stage)?;
    claim(first.len() >= 10, || format!("only {} certificates were found", first.len()))?;
    let end = first.values().map(|certificate| certificate.not_after).max().unwrap_or_default();
    let containers = containers(stage)?;
    let load = stage.load(TENANT)?;
    let started = Instant::now();
    let result = follow(stage, &load, end);
    let outcome = load.finish();
    say(format!("  {} s with certificates of {LIFETIME}: {}", started.elapsed().as_secs(), outcome.line()));
    let details = outcome.details();
    if !details.is_empty() {
        say(format!("  {details}"));
    }
    result?;
    let later = certificates(stage)?;
    let not_renewed: Vec<&String> = first
        .iter()
        .filter(|(name, old)| later.get(*name).is_none_or(|new| new.not_after <= old.not_after))
        .map(|(name, _)| name)
        .collect();
    claim(not_renewed.is_empty(), || format!("not renewed: {not_renewed:?}"))?;
    let after = self::containers(stage)?;
    let (replaced, steady) = apart(&containers);
    let (successors, same) = apart(&after);
    claim(steady == same, || format!("containers restarted: {steady:?} became {same:?}"))?;
    claim(
        successors.len() == replaced.len()
            && successors.keys().all(|container| !replaced.contains_key(container)),
        || format!("API servers were not replaced: {replaced:?} became {successors:?}"),
    )?;
    claim(successors.values().all(|restarts| *restarts == 0), || format!("restarted: {successors:?}"))?;
    scale::nothing_failed(&outcome)?;
    claim(outcome.of(Client::Fresh).requests > 500, || "the load came to a halt".to_owned())?;
    controllers_act(stage)?;
    chaos::remove(stage, TENANT)
}

/// Clients that take the kubeconfig anew from its Secret, until the first certificates are over.
fn follow(stage: &Stage, load: &Load, end: Timestamp) -> Result<(), Error> {
    let started = Instant::now();
    let over = end.checked_add(BEYOND).unwrap_or(end);
    while Timestamp::now() < over {
        claim(started.elapsed() < LONGEST, || format!("the first certificates end at {end} only"))?;
        std::thread::sleep(LOOK);
        load.renew(&stage.tenant_kubeconfig(TENANT)?)?;
    }
    Ok(())
}

/// Every leaf of the tenant, by Secret and key.
fn certificates(stage: &Stage) -> Result<BTreeMap<String, Certificate>, Error> {
    let home = stage.home(TENANT)?;
    let secrets = stage.kubectl.read(&["--namespace", &home, "get", "secrets"])?;
    let mut found = BTreeMap::new();
    for secret in at(&secrets, "/items").as_array().into_iter().flatten() {
        let name = at(secret, "/metadata/name").as_str().unwrap_or_default();
        // The authorities live for years.
        for (key, text) in
            at(secret, "/data").as_object().into_iter().flatten().filter(|_| name != "authority")
        {
            if key.ends_with(".crt") {
                found.insert(format!("{name}/{key}"), parse(text)?);
            }
        }
    }
    let kubeconfig: Value = serde_yaml::from_str(&stage.tenant_kubeconfig(TENANT)?)
        .map_err(|error| Error::Invalid(format!("kubeconfig: {error}")))?;
    let client = parse(at(&kubeconfig, "/users/0/user/client-certificate-data"))?;
    found.insert("kubeconfig".to_owned(), client);
    Ok(found)
}

fn parse(base64: &Value) -> Result<Certificate, Error> {
    use base64::Engine;
    let bytes =
        base64::prelude::BASE64_STANDARD.decode(base64.as_str().unwrap_or_default()).unwrap_or_default();
    Ok(Certificate::parse(&String::from_utf8_lossy(&bytes))?)
}

/// Containers of API servers' pods, and all others.
fn apart(containers: &BTreeMap<String, i64>) -> (BTreeMap<String, i64>, BTreeMap<String, i64>) {
    containers.clone().into_iter().partition(|(container, _)| container.starts_with("kube-apiserver"))
}

/// Every container by pod, with the pod's UID and how often it restarted.
pub(super) fn containers(stage: &Stage) -> Result<BTreeMap<String, i64>, Error> {
    containers_of(stage, TENANT)
}

pub(super) fn containers_of(stage: &Stage, name: &str) -> Result<BTreeMap<String, i64>, Error> {
    let home = stage.home(name)?;
    let pods = stage.kubectl.read(&["--namespace", &home, "get", "pods"])?;
    let mut found = BTreeMap::new();
    for pod in at(&pods, "/items").as_array().into_iter().flatten() {
        for container in at(pod, "/status/containerStatuses").as_array().into_iter().flatten() {
            let text =
                |object: &Value, field: &str| at(object, field).as_str().unwrap_or_default().to_owned();
            let (pod, uid) = (text(pod, "/metadata/name"), text(pod, "/metadata/uid"));
            let restarts = at(container, "/restartCount").as_i64().unwrap_or(0);
            found.insert(format!("{pod}/{} {uid}", text(container, "/name")), restarts);
        }
    }
    Ok(found)
}

/// The controllers' own certificates are good too: a new namespace gets its account.
fn controllers_act(stage: &Stage) -> Result<(), Error> {
    let kubectl = stage.tenant_kubectl(TENANT)?;
    kubectl.run(&["create", "namespace", "late"])?;
    let args = ["--namespace", "late", "get", "serviceaccount", "default"];
    kubectl.await_object("the default account of a new namespace", &args, super::SOON, |_| Ok(())).map(drop)
}
