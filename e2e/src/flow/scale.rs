//! Growing and shrinking a control plane while clients go on: no request on a new connection fails but for what
//! etcd drops when its leadership moves, and no change is lost, also when a lone etcd member leaves to a successor on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde_json::{Value, json};

use super::load::{Client, Load, Outcome};
use super::{POLL, READY, Stage, claim};
use crate::Error;
use crate::kubectl::at;
use crate::terminal::say;
use crate::wait;

const TENANT: &str = "green";

pub(super) fn members(stage: &Stage) -> Result<(), Error> {
    walk(stage, &[3, 1])
}

pub(super) fn members_to_five(stage: &Stage) -> Result<(), Error> {
    // The flow before it may have kept the timings of several.
    let name = "growing";
    stage.apply_tenant(name, super::small(super::known_version()))?;
    stage.await_settled(name)?;
    walk_of(stage, name, &[3, 5, 3, 1])?;
    super::chaos::remove(stage, name)
}

fn walk(stage: &Stage, steps: &[usize]) -> Result<(), Error> {
    walk_of(stage, TENANT, steps)
}

/// Changes the number of members step by step; the data of before is there after each.
fn walk_of(stage: &Stage, name: &str, steps: &[usize]) -> Result<(), Error> {
    let mut before = membership(stage, name)?;
    // What clients saw is judged at the end: the later steps are of interest when an earlier one was noticed too.
    let mut seen = Ok(());
    for (step, wanted) in steps.iter().enumerate() {
        let kubectl = stage.tenant_kubectl(name)?;
        let mark = format!("before-step-{step}");
        kubectl.run(&["create", "configmap", &mark, "--from-literal=members=known"])?;
        let outcome = under_load_of(stage, name, &format!("{wanted} members"), || {
            stage.change(name, &json!({"etcd": {"replicas": wanted}}))?;
            stage.await_settled(name)?;
            await_pods(stage, name, "etcd", *wanted)
        })?;
        let after = membership(stage, name)?;
        // The only one is where its successor was.
        let as_asked = match wanted {
            1 => after.voters.len() == 1,
            several => after.voters == names(*several),
        };
        claim(as_asked && after.learners == 0, || {
            format!(
                "{wanted} members were asked for, there are {:?} and {} learners",
                after.voters, after.learners
            )
        })?;
        claim(after.cluster == before.cluster, || {
            format!("cluster {} became cluster {}: the data was made anew", before.cluster, after.cluster)
        })?;
        let read = kubectl.run(&["get", "configmap", &mark, "--output", "jsonpath={.data.members}"])?;
        claim(read == "known", || format!("what was written before the step reads `{read}` after it"))?;
        seen = seen.and(nothing_failed_but_with_the_leader(&outcome));
        before = after;
    }
    seen
}

fn names(members: usize) -> BTreeSet<String> {
    (0..members).map(|index| format!("etcd-{index}")).collect()
}

/// What etcd itself says of its members.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) cluster: String,
    pub(super) voters: BTreeSet<String>,
    learners: usize,
    ids: BTreeMap<String, String>,
}

impl Membership {
    /// etcd's own number of the member of this name.
    pub(super) fn id_of(&self, member: &str) -> Option<&String> {
        self.ids.get(member)
    }
}

pub(super) fn membership(stage: &Stage, name: &str) -> Result<Membership, Error> {
    let list = etcdctl(stage, name, &["member", "list"])?;
    let members = at(&list, "/members").as_array().cloned().unwrap_or_default();
    let learner = |member: &&Value| at(member, "/isLearner") == true;
    Ok(Membership {
        cluster: at(&list, "/header/cluster_id").to_string(),
        voters: members
            .iter()
            .filter(|member| !learner(member))
            .map(|member| at(member, "/name").as_str().unwrap_or_default().to_owned())
            .collect(),
        learners: members.iter().filter(learner).count(),
        ids: members
            .iter()
            .map(|member| {
                (at(member, "/name").as_str().unwrap_or_default().to_owned(), at(member, "/ID").to_string())
            })
            .collect(),
    })
}

/// Name of a member's pod; of the only one, if there is but one.
pub(super) fn member_pod(stage: &Stage, name: &str) -> Result<String, Error> {
    let (home, selector) = (stage.home(name)?, "app.kubernetes.io/name=etcd");
    let path = "jsonpath={.items[0].metadata.name}";
    stage.kubectl.run(&["--namespace", &home, "get", "pods", "--selector", selector, "--output", path])
}

/// etcdctl in the pod of some member.
pub(super) fn etcdctl(stage: &Stage, name: &str, args: &[&str]) -> Result<Value, Error> {
    etcdctl_in(stage, name, &member_pod(stage, name)?, args)
}

/// etcdctl in a member's pod, as that member.
pub(super) fn etcdctl_in(stage: &Stage, name: &str, member: &str, args: &[&str]) -> Result<Value, Error> {
    let home = stage.home(name)?;
    let keys = "/etc/kubernetes/pki";
    let flags = [
        "--endpoints=https://localhost:2379".to_owned(),
        format!("--cacert={keys}/etcd-ca.crt"),
        format!("--cert={keys}/server.crt"),
        format!("--key={keys}/server.key"),
        "--write-out=json".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let pod = ["--namespace", &home, "exec", member, "--", "etcdctl"];
    let text = stage.kubectl.run(&[&pod, flags.as_slice(), args].concat())?;
    serde_json::from_str(&text)
        .map_err(|error| Error::Invalid(format!("etcdctl {}: {error}", args.join(" "))))
}

/// The member that leads.
pub(super) fn leader(stage: &Stage, name: &str) -> Result<String, Error> {
    let list = etcdctl(stage, name, &["member", "list"])?;
    let status = etcdctl(stage, name, &["endpoint", "status"])?;
    let leads = at(&status, "/0/Status/leader");
    let members = at(&list, "/members").as_array().cloned().unwrap_or_default();
    let found = members.iter().find(|member| at(member, "/ID") == leads);
    let name = found.and_then(|member| at(member, "/name").as_str()).map(str::to_owned);
    name.ok_or_else(|| Error::Invalid(format!("no member leads: {status} {list}")))
}

/// As many pods of a component as asked for, all ready, and none that still ends.
pub(super) fn await_pods(stage: &Stage, name: &str, component: &str, wanted: usize) -> Result<(), Error> {
    let home = stage.home(name)?;
    let selector = format!("app.kubernetes.io/name={component}");
    let check = || {
        let args = ["--namespace", &home, "get", "pods", "--selector", &selector];
        let pods = stage.kubectl.read(&args).map_err(|error| error.to_string())?;
        let pods = at(&pods, "/items").as_array().cloned().unwrap_or_default();
        let ready = pods.iter().filter(|pod| {
            crate::kubectl::condition(pod, "Ready") == Some("True")
                && at(pod, "/metadata/deletionTimestamp").is_null()
        });
        let ready = ready.count();
        match ready == wanted && pods.len() == wanted {
            true => Ok(()),
            false => Err(format!("{} pods, {ready} of them ready", pods.len())),
        }
    };
    let what = format!("{wanted} pods of {component}");
    wait::until(&what, READY, POLL, check, || stage.kubectl.report())
}

/// Runs a step while clients go on, and tells what they saw.
pub(super) fn under_load_of(
    stage: &Stage,
    name: &str,
    what: &str,
    step: impl FnOnce() -> Result<(), Error>,
) -> Result<Outcome, Error> {
    let load = stage.load(name)?;
    let started = Instant::now();
    let result = step();
    let outcome = told(what, started, load);
    result.map(|()| outcome)
}

/// Ends a load, and tells what it saw since then.
pub(super) fn told(what: &str, started: Instant, load: Load) -> Outcome {
    let seconds = started.elapsed().as_secs_f32();
    let outcome = load.finish();
    say(format!("  {what} ({seconds:.1} s): {}", outcome.line()));
    let details = outcome.details();
    if !details.is_empty() {
        say(format!("  {details}"));
    }
    outcome
}

pub(super) fn nothing_failed(outcome: &Outcome) -> Result<(), Error> {
    claim(outcome.failures().is_empty(), || {
        format!("requests failed: {}\n  {}", outcome.line(), outcome.details())
    })?;
    claim(outcome.of(Client::Fresh).requests > 0, || "the load sent nothing".to_owned())?;
    no_change_is_lost(outcome)
}

/// Writes that were under way when the leadership moved, of one move.
const DROPPED: usize = 3;

/// As [`nothing_failed`], but for writes that were under way when the leadership moved: the old leader drops what it is asked
/// then, and no API server asks again.
pub(super) fn nothing_failed_but_with_the_leader(outcome: &Outcome) -> Result<(), Error> {
    let failures = outcome.failures();
    let dropped = failures.iter().all(|failure| failure.what.contains("due to previous leader failure"));
    match !failures.is_empty() && failures.len() <= DROPPED && dropped {
        true => no_change_is_lost(outcome),
        false => nothing_failed(outcome),
    }
}

pub(super) fn no_change_is_lost(outcome: &Outcome) -> Result<(), Error> {
    claim(outcome.lost.is_empty() && outcome.repeated.is_empty(), || {
        format!("the watch missed or repeated changes: {}\n  {}", outcome.line(), outcome.details())
    })
}
