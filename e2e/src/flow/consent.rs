//! A newer operator over a tenant that serves: what it would render differently is told, and nothing of the tenant
//! restarts, until the tenant's owner consents. Then it rolls, without a failed request.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::load::Client;
use super::{Ground, NAMESPACE, Stage, claim, renewal, scale};
use crate::Error;
use crate::kubectl::at;
use crate::terminal::say;

pub(super) const NAME: &str = "a newer operator restarts nothing unasked";
const TENANT: &str = "green";
/// What the other build renders besides.
const FLAG: &str = "--event-ttl=2h";
/// So long after the news nothing has restarted: what acts on news does so at once.
const STILL: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_secs(2);

pub(super) fn nothing_restarts_unasked(stage: &Stage) -> Result<(), Error> {
    let ground = stage.ground()?;
    let started = Instant::now();
    let next = ground.next_operator()?;
    say(format!("  another operator is there after {} s", started.elapsed().as_secs()));
    stage.await_settled(TENANT)?;
    let before = ground.cluster.borrow_mut().import_operator(&next, &ground.cache)?;
    let result = live(stage, ground);
    // What is stored stays applied: the way back restarts nothing either.
    let applied = renewal::containers_of(stage, TENANT);
    ground.cluster.borrow_mut().operator_tag = before;
    ground.cluster.borrow_mut().install_operator(&ground.repository)?;
    result?;
    await_pending(stage, &format!("- {FLAG}"))?;
    unchanged(stage, &applied?)
}

fn live(stage: &Stage, ground: &Ground) -> Result<(), Error> {
    let containers = renewal::containers_of(stage, TENANT)?;
    let load = stage.load(TENANT)?;
    let result = upgraded(stage, ground, &containers);
    let outcome = load.finish();
    say(format!("  the operator is upgraded: {}", outcome.line()));
    let revision = result?;
    scale::nothing_failed(&outcome)?;
    claim(outcome.of(Client::Fresh).requests > 100, || "the load came to a halt".to_owned())?;
    let outcome = scale::under_load_of(stage, TENANT, "the next revision is accepted", || {
        stage.change(TENANT, &json!({"acceptRevision": revision}))?;
        stage.await_tenant(TENANT, "to run what was accepted", |object| {
            match at(object, "/status/pending").is_null() {
                true => super::settled(object),
                false => Err(format!("pending: {}", at(object, "/status/pending"))),
            }
        })?;
        scale::await_pods(stage, TENANT, "kube-apiserver", 1)
    })?;
    scale::nothing_failed(&outcome)?;
    rolled(stage, &containers)
}

/// Installs the other operator and holds still; returns the revision that it offers.
fn upgraded(stage: &Stage, ground: &Ground, containers: &BTreeMap<String, i64>) -> Result<String, Error> {
    ground.cluster.borrow_mut().install_operator(&ground.repository)?;
    let object = await_pending(stage, &format!("+ {FLAG}"))?;
    let revision = at(&object, "/status/pending/revision").as_str().unwrap_or_default().to_owned();
    claim(!revision.is_empty(), || format!("nothing to accept in {}", at(&object, "/status/pending")))?;
    let told = Instant::now();
    while told.elapsed() < STILL {
        unchanged(stage, containers)?;
        std::thread::sleep(LOOK);
    }
    super::settled(&stage.tenant(TENANT)?).map_err(Error::Invalid)?;
    Ok(revision)
}

/// The difference, and nothing but it.
fn await_pending(stage: &Stage, line: &str) -> Result<Value, Error> {
    let expected = format!("Deployment kube-apiserver: {line}");
    stage.await_tenant(TENANT, &format!("to say `{expected}`"), |object| {
        match at(object, "/status/pending/summary").as_str() {
            Some(summary) if summary == expected => Ok(()),
            other => Err(format!("pending: {}", other.unwrap_or("nothing"))),
        }
    })
}

fn unchanged(stage: &Stage, before: &BTreeMap<String, i64>) -> Result<(), Error> {
    let now = renewal::containers_of(stage, TENANT)?;
    claim(*before == now, || format!("unasked, {before:?} became {now:?}"))
}

/// The API server is another one with the flag; the rest is as it was.
fn rolled(stage: &Stage, before: &BTreeMap<String, i64>) -> Result<(), Error> {
    let home = stage.home(TENANT)?;
    let path = "jsonpath={.items[*].spec.containers[*].command}";
    let selector = "app.kubernetes.io/name=kube-apiserver";
    let command = stage.kubectl.run(&[
        "--namespace",
        &home,
        "get",
        "pods",
        "--selector",
        selector,
        "--output",
        path,
    ])?;
    claim(command.contains(FLAG), || format!("what was accepted does not run: {command}"))?;
    let after = renewal::containers_of(stage, TENANT)?;
    let others = |all: &BTreeMap<String, i64>| -> BTreeMap<String, i64> {
        let others = all.iter().filter(|(name, _)| !name.starts_with("kube-apiserver"));
        others.map(|(name, restarts)| (name.clone(), *restarts)).collect()
    };
    claim(others(before) == others(&after) && *before != after, || {
        format!(
            "more or less than the API server rolled in {NAMESPACE}/{TENANT}: {before:?} became {after:?}"
        )
    })
}
