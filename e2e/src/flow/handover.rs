//! The operator itself is upgraded in the middle of a tenant's upgrade: its successor goes on where it was, and clients
//! notice neither.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::workers::text;
use super::{NAMESPACE, POLL, Stage, claim, scale, small};
use crate::Error;
use crate::kubectl::at;
use crate::release::{NEWEST, oldest};
use crate::terminal::say;
use crate::wait;

pub(super) const NAME: &str = "an operator that is upgraded in the middle of an upgrade goes on where it was";
const TENANT: &str = "handed-over";
const LONGEST: Duration = Duration::from_secs(240);
/// The one of before, one that emulates, and one that does not any more.
const SERVERS: usize = 3;

pub(super) fn the_successor_goes_on(stage: &Stage) -> Result<(), Error> {
    let ground = stage.ground()?;
    let from = oldest()?;
    let next = ground.next_operator()?;
    let mut spec = small(from.kubernetes);
    if let Some(fields) = spec.as_object_mut() {
        fields.insert("upgrade".to_owned(), json!({"soak": "30s"}));
    }
    stage.apply_tenant(TENANT, spec)?;
    stage.await_settled(TENANT)?;
    let before = ground.cluster.borrow_mut().import_operator(&next, &ground.cache)?;
    let result = scale::under_load_of(stage, TENANT, "the operator and the tenant are upgraded", || {
        handed_over(stage)
    });
    // Its successor was another one for this flow alone.
    ground.cluster.borrow_mut().operator_tag = before;
    ground.cluster.borrow_mut().install_operator(&ground.repository)?;
    super::chaos::remove(stage, TENANT)?;
    scale::nothing_failed(&result?)
}

fn handed_over(stage: &Stage) -> Result<(), Error> {
    let seen = RefCell::new(BTreeSet::new());
    let look = || -> Result<Value, String> {
        let words = |error: Error| error.to_string();
        seen.borrow_mut().extend(servers(stage).map_err(words)?);
        stage.tenant(TENANT).map_err(words)
    };
    let rolling = || {
        let object = look()?;
        let step = text(&object, "/status/operation/step");
        match step.contains("API servers and controllers become") {
            true => Ok(object),
            false => Err(text(&object, "/status/summary")),
        }
    };
    look().map_err(Error::Invalid)?;
    stage.change(TENANT, &json!({"version": NEWEST.kubernetes}))?;
    let object = wait::until("API servers to roll", LONGEST, POLL, rolling, || stage.kubectl.report())?;
    let begun = text(&object, "/status/operation/startedAt");
    say(format!("  the operator goes at: {}", text(&object, "/status/summary")));
    let ground = stage.ground()?;
    ground.cluster.borrow_mut().install_operator(&ground.repository)?;
    say(format!("  its successor is there at: {}", text(&stage.tenant(TENANT)?, "/status/summary")));
    let arrived = || {
        let object = look()?;
        super::settled(&object)?;
        match at(&object, "/status/version") == NEWEST.kubernetes {
            true => Ok(object),
            false => Err(text(&object, "/status/summary")),
        }
    };
    let object = wait::until("the upgrade to be over", LONGEST, POLL, arrived, || stage.kubectl.report())?;
    let history = at(&object, "/status/history").as_array().cloned().unwrap_or_default();
    let upgrades: Vec<_> = history.iter().filter(|entry| at(entry, "/type") == "Upgrade").collect();
    let [upgrade] = upgrades.as_slice() else {
        return Err(Error::Invalid(format!("history of {NAMESPACE}/{TENANT}: {history:?}")));
    };
    claim(text(upgrade, "/result") == "Succeeded" && text(upgrade, "/startedAt") == begun, || {
        format!("it began at {begun}, and history has {upgrade}")
    })?;
    let seen = seen.into_inner();
    claim(seen.len() <= SERVERS, || format!("API servers were replaced more often than needed: {seen:?}"))
}

/// API servers of the tenant that there are now.
fn servers(stage: &Stage) -> Result<Vec<String>, Error> {
    let home = stage.home(TENANT)?;
    let selector = "app.kubernetes.io/name=kube-apiserver";
    let pods = stage.kubectl.read(&["--namespace", &home, "get", "pods", "--selector", selector])?;
    let pods = at(&pods, "/items").as_array().cloned().unwrap_or_default();
    Ok(pods.iter().map(|pod| text(pod, "/metadata/name")).collect())
}
