//! An account that calls what the next version does not have: it is named while it does, an upgrade waits for it, and
//! begins by itself when it has not called for some minutes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{POLL, SOON, Stage, claim, small};
use crate::Error;
use crate::credentials::write_private;
use crate::kubectl::{Kubectl, at};
use crate::release::{NEWEST, oldest};
use crate::terminal::say;
use crate::wait;

use super::workers::text;

pub(super) const NAME: &str = "an account that calls a removed API is named, and holds the upgrade";
const TENANT: &str = "wary";
/// On when it is asked for, and not there in the newest.
const API: &str = "networking.k8s.io/v1beta1";
const ACCOUNT: &str = "system:serviceaccount:default:lister";
/// What nobody has called for so long is not called.
const FORGOTTEN: Duration = Duration::from_secs(600);
const LONGEST: Duration = Duration::from_secs(240);
/// While nobody waits for the answer it is looked for every five minutes.
const NAMED: Duration = Duration::from_secs(360);

pub(super) fn the_caller_is_named(stage: &Stage) -> Result<(), Error> {
    let from = oldest()?;
    let mut spec = small(from.kubernetes);
    if let Some(fields) = spec.pointer_mut("/controlPlane").and_then(Value::as_object_mut) {
        fields.insert("runtimeConfig".to_owned(), json!({API: true}));
    }
    if let Some(fields) = spec.as_object_mut() {
        fields.insert("upgrade".to_owned(), json!({"soak": "10s"}));
    }
    stage.apply_tenant(TENANT, spec)?;
    stage.await_settled(TENANT)?;
    let lister = lister(stage)?;
    let result = held(stage, &lister);
    super::chaos::remove(stage, TENANT)?;
    result
}

fn held(stage: &Stage, lister: &Kubectl) -> Result<(), Error> {
    let started = Instant::now();
    let named = || {
        call(lister).map_err(|error| error.to_string())?;
        finding(&stage.tenant(TENANT).map_err(|error| error.to_string())?)
            .ok_or_else(|| "it is not named".to_owned())
    };
    let what = format!("{ACCOUNT} to be named");
    let found = wait::until(&what, NAMED, Duration::from_secs(2), named, || stage.kubectl.report())?;
    let words = ["message", "evidence", "fix"].map(|field| text(&found, &format!("/{field}")));
    say(format!("  after {:.1} s: {}", started.elapsed().as_secs_f32(), words.join("; ")));
    claim(words[1].contains("list ipaddresses, last seen 20"), || format!("the evidence is `{}`", words[1]))?;
    claim(at(&found, "/severity") == "Error", || format!("it does not block: {found}"))?;

    stage.change(TENANT, &json!({"version": NEWEST.kubernetes}))?;
    let waiting = |object: &Value| match at(object, "/status/operation/waiting/reason") == "RemovedApiCalled"
    {
        true => Ok(()),
        false => Err(text(object, "/status/summary")),
    };
    let object = stage.await_tenant(TENANT, "to wait for its caller", waiting)?;
    say(format!("  {}", text(&object, "/status/summary")));
    call(lister)?;
    let stopped = Instant::now();
    let gone = || {
        let object = stage.tenant(TENANT).map_err(|error| error.to_string())?;
        match finding(&object) {
            None => Ok(()),
            Some(finding) => Err(finding.to_string()),
        }
    };
    wait::until("the finding to go", FORGOTTEN, POLL, gone, || stage.kubectl.report())?;
    say(format!("  it is gone {:.0} s after the last call", stopped.elapsed().as_secs_f32()));
    let arrived = || {
        let object = stage.tenant(TENANT).map_err(|error| error.to_string())?;
        super::settled(&object)?;
        match at(&object, "/status/version") == NEWEST.kubernetes {
            true => Ok(()),
            false => Err(text(&object, "/status/summary")),
        }
    };
    wait::until("the upgrade to be over", LONGEST, POLL, arrived, || stage.kubectl.report())
}

/// What status says of the account, if it says something.
fn finding(object: &Value) -> Option<Value> {
    let id = format!("RemovedApiCalled/{API}/{ACCOUNT}");
    let findings = at(object, "/status/preflight/findings").as_array()?;
    findings.iter().find(|finding| at(finding, "/id") == id.as_str()).cloned()
}

fn call(lister: &Kubectl) -> Result<(), Error> {
    lister.run(&["get", "--raw", &format!("/apis/{API}/ipaddresses")]).map(drop)
}

/// kubectl as an account that may list, and nothing else.
fn lister(stage: &Stage) -> Result<Kubectl, Error> {
    let kubectl = stage.tenant_kubectl(TENANT)?;
    kubectl.await_object("the default namespace", &["get", "namespace", "default"], SOON, |_| Ok(()))?;
    kubectl.run(&["create", "serviceaccount", "lister"])?;
    kubectl.run(&[
        "create",
        "clusterrole",
        "lister",
        "--verb=list",
        "--resource=ipaddresses.networking.k8s.io",
    ])?;
    kubectl.run(&[
        "create",
        "clusterrolebinding",
        "lister",
        "--clusterrole=lister",
        "--serviceaccount=default:lister",
    ])?;
    let token = kubectl.run(&["create", "token", "lister", "--duration=2h"])?;
    let mut config: Value = serde_yaml::from_str(&stage.tenant_kubeconfig(TENANT)?)
        .map_err(|error| Error::Invalid(format!("kubeconfig: {error}")))?;
    if let Some(user) = config.pointer_mut("/users/0/user") {
        *user = json!({"token": token.trim()});
    }
    let path = stage.scratch.path().join("lister");
    write_private(&path, &config.to_string())?;
    Ok(Kubectl::new(&stage.program, &path))
}
