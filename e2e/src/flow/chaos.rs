//! Processes killed from below Kubernetes: members, API servers, operators, and a kubelet that is away. Ready must
//! tell the truth meanwhile, everything must return by itself, and nothing may be made anew.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::load::{Client, Outage, Outcome};
use super::{GONE, NAMESPACE, POLL, SOON, Stage, claim, scale, settled};
use crate::Error;
use crate::cgroup::Hierarchies;
use crate::credentials::Credentials;
use crate::kubectl::{at, condition, reason};
use crate::probe::Probe;
use crate::terminal::say;
use crate::wait;

const TENANT: &str = "green";
/// Ready is False so long after the first failed request at the latest.
const TOLD: Duration = Duration::from_secs(30);
/// What a probe (every 5 s, 3 s each) saw fail may be told so long after requests succeed again.
const NOTICED: Duration = Duration::from_secs(8);
/// A killed leader of the operator is replaced in this time.
const TAKE_OVER: Duration = Duration::from_secs(15);
/// A change made right after the kill is acted on: the new leader reads everything first.
const ACTED: Duration = Duration::from_secs(5);
/// Unplanned death of one of several members: an election.
const ELECTION_GAP: Duration = Duration::from_secs(10);
/// A false word that comes late, from a probe that timed out, still belongs to the deed that caused it.
const AFTERMATH: Duration = Duration::from_secs(8);
const AWAY: Duration = Duration::from_secs(180);
const OPERATOR_NAMESPACE: &str = "kaas-system";

/// Processes of the local cluster whose command line and environment hold all these words.
fn processes(stage: &Stage, words: &[&str]) -> Result<Vec<i32>, Error> {
    let ground = stage.ground()?;
    let all = Hierarchies::detect()?.processes(ground.cluster.borrow().network.name());
    let read = |pid: i32, file: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    let matches = |pid: &i32| {
        let text = format!("{} {}", read(*pid, "cmdline"), read(*pid, "environ"));
        words.iter().all(|word| text.contains(word))
    };
    Ok(all.into_iter().filter(matches).collect())
}

/// Kills the one process that these words describe.
fn kill(stage: &Stage, words: &[&str]) -> Result<(), Error> {
    let found = processes(stage, words)?;
    let [pid] = found.as_slice() else {
        return Err(Error::Invalid(format!("{words:?} describes the processes {found:?}, wanted one")));
    };
    let pid = Pid::from_raw(*pid).ok_or_else(|| Error::Invalid(format!("{pid} is no pid")))?;
    kill_process(pid, Signal::KILL)
        .map_err(|error| Error::io("kill", format!("process {pid:?}"))(error.into()))
}

/// What makes a control plane the one that it was.
#[derive(Debug, PartialEq, Eq)]
struct Foundation {
    cluster: String,
    namespace: String,
    authority: String,
    volumes: String,
}

fn foundation(stage: &Stage, name: &str) -> Result<Foundation, Error> {
    let home = stage.home(name)?;
    let uid = |args: &[&str]| stage.kubectl.run(&[args, &["--output", "jsonpath={.metadata.uid}"]].concat());
    let volumes = [
        "--namespace",
        &home,
        "get",
        "persistentvolumeclaims",
        "--output",
        "jsonpath={.items[*].metadata.uid}",
    ];
    Ok(Foundation {
        cluster: scale::membership(stage, name)?.cluster,
        namespace: uid(&["get", "namespace", &home])?,
        authority: uid(&["--namespace", &home, "get", "secret", "authority"])?,
        volumes: stage.kubectl.run(&volumes)?,
    })
}

/// Follows the condition Ready from outside.
struct Witness {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<(Instant, String)>>>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Witness {
    fn start(stage: &Stage, name: &str) -> Result<Self, Error> {
        let cluster = stage.ground()?.cluster.borrow();
        let credentials = Credentials::existing(cluster.state.pki());
        let api = Probe::new(&credentials, "ca", "admin", SocketAddr::new(cluster.address(), 6443))?;
        let path = format!("/apis/kaas.dev/v1alpha1/namespaces/{NAMESPACE}/tenantclusters/{name}");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut turns: Vec<(Instant, String)> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(answer) = api.request("GET", &path, None)
                    && let Ok(object) = serde_json::from_slice::<Value>(&answer.body)
                {
                    let ready = condition(&object, "Ready").unwrap_or("absent");
                    if turns.last().is_none_or(|(_, last)| last != ready) {
                        turns.push((Instant::now(), ready.to_owned()));
                    }
                }
                std::thread::sleep(POLL);
            }
            turns
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    fn finish(mut self) -> Vec<(Instant, String)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// Ready stays True while requests succeed, and is False soon after they no longer do.
fn judge(turns: &[(Instant, String)], outages: &[Outage]) -> Result<(), Error> {
    for (position, (at, ready)) in turns.iter().enumerate() {
        if ready == "True" {
            continue;
        }
        let explained = outages.iter().any(|outage| {
            // It may come back a little later than the requests do, but not turn when they are back.
            outage.begin <= *at && outage.end.is_none_or(|end| *at <= end + NOTICED)
        });
        claim(explained, || {
            format!("Ready was {ready} although requests succeeded (turn {position} of {turns:?})")
        })?;
    }
    for outage in outages.iter().filter(|outage| outage.lasted() > TOLD) {
        // What it was when the time was over.
        let deadline = outage.begin + TOLD;
        let then = turns.iter().rfind(|(at, _)| *at <= deadline).map(|(_, ready)| ready.as_str());
        claim(then.is_some_and(|ready| ready == "False"), || {
            format!(
                "{} s after the first failed request Ready was {then:?}, not False: {turns:?}",
                TOLD.as_secs()
            )
        })?;
    }
    Ok(())
}

/// A tenant that is broken in one way after the other, each time until everything is as it was. What is said of it is
/// followed from the first deed to some time after the last.
struct Trial<'a> {
    stage: &'a Stage,
    name: &'a str,
    started: Instant,
    witness: Witness,
    outages: Vec<Outage>,
}

impl<'a> Trial<'a> {
    fn start(stage: &'a Stage, name: &'a str) -> Result<Self, Error> {
        stage.await_settled(name)?;
        let witness = Witness::start(stage, name)?;
        Ok(Self { stage, name, started: Instant::now(), witness, outages: Vec::new() })
    }

    /// Breaks something while clients go on, and waits until everything is as it was.
    fn broken(&mut self, what: &str, deed: impl FnOnce() -> Result<(), Error>) -> Result<Outcome, Error> {
        let (stage, name) = (self.stage, self.name);
        let before = foundation(stage, name)?;
        let kubectl = stage.tenant_kubectl(name)?;
        let _ = kubectl.run(&["delete", "configmap", "kept", "--ignore-not-found"])?;
        kubectl.run(&["create", "configmap", "kept", "--from-literal=data=whole"])?;
        let load = stage.load(name)?;
        let started = Instant::now();
        let result = deed().and_then(|()| {
            // Something must go wrong, or be seen to go on, before "settled" means anything.
            std::thread::sleep(Duration::from_secs(3));
            let serving = || {
                let now = load.so_far();
                let fresh = now.of(Client::Fresh);
                match fresh.outages.last() {
                    Some(outage) if outage.end.is_none() => Err("requests fail".to_owned()),
                    _ => Ok(()),
                }
            };
            let report = || stage.kubectl.report();
            wait::until("requests to succeed again", super::READY, POLL, serving, report)?;
            stage.await_settled(name).map(drop)?;
            pods_ready(stage, name)?;
            // What failed meanwhile is over too, and was measured whole.
            wait::until("requests to go on succeeding", super::READY, POLL, serving, report)
        });
        let outcome = scale::told(what, started, load);
        self.outages.extend(outcome.of(Client::Fresh).outages);
        result?;
        let after = foundation(stage, name)?;
        claim(before == after, || format!("something was made anew: {before:?} became {after:?}"))?;
        let read = kubectl.run(&["get", "configmap", "kept", "--output", "jsonpath={.data.data}"])?;
        claim(read == "whole", || format!("what was written before reads `{read}`"))?;
        // A server that died before it told of a change has a successor that does not know of it (410): a client lists.
        let whole = outcome.lists > 0 || outcome.lost.is_empty();
        claim(whole && outcome.repeated.is_empty(), || {
            format!("the watch missed or repeated changes: {}", outcome.details())
        })?;
        Ok(outcome)
    }

    /// What was said of it was true.
    fn end(self) -> Result<(), Error> {
        std::thread::sleep(AFTERMATH);
        let turns = self.witness.finish();
        let seconds = |at: &Instant| at.saturating_duration_since(self.started).as_secs_f32();
        let told: Vec<String> =
            turns.iter().map(|(at, ready)| format!("{ready} at {:.1} s", seconds(at))).collect();
        say(format!("  Ready: {}", told.join(", ")));
        judge(&turns, &self.outages)
    }
}

fn pods_ready(stage: &Stage, name: &str) -> Result<(), Error> {
    let home = stage.home(name)?;
    let check = || {
        let pods =
            stage.kubectl.read(&["--namespace", &home, "get", "pods"]).map_err(|error| error.to_string())?;
        let pods = at(&pods, "/items").as_array().cloned().unwrap_or_default();
        let waiting: Vec<&str> = pods
            .iter()
            .filter(|pod| condition(pod, "Ready") != Some("True"))
            .map(|pod| at(pod, "/metadata/name").as_str().unwrap_or_default())
            .collect();
        if waiting.is_empty() { Ok(()) } else { Err(format!("not ready: {}", waiting.join(", "))) }
    };
    wait::until("all pods of the control plane to be ready", SOON, POLL, check, || stage.kubectl.report())
}

/// Processes that clients hold connections to, and a whole pod.
pub(super) fn processes_come_back(stage: &Stage) -> Result<(), Error> {
    let mut trial = Trial::start(stage, TENANT)?;
    let home = stage.home(TENANT)?;
    // Its pod, and so its address, stays.
    let member = scale::member_pod(stage, TENANT)?;
    trial.broken("the only member is killed", || kill(stage, &[&format!("etcd --name={member}"), &home]))?;
    trial.broken("the only member's pod is deleted", || delete_pod(stage, &home, &member))?;
    trial
        .broken("the only API server is killed", || kill(stage, &["kube-apiserver --secure-port", &home]))?;
    let controllers = controllers(stage, &home)?;
    let words = ["kube-controller-manager --controllers", "HOSTNAME=kube-controllers", &controllers];
    let outcome = trial.broken("the controllers are killed", || kill(stage, &words))?;
    scale::nothing_failed(&outcome)?;
    trial.end()
}

fn delete_pod(stage: &Stage, home: &str, pod: &str) -> Result<(), Error> {
    let what = ["--namespace", home, "delete", "pod", pod, "--grace-period=0", "--force"];
    stage.kubectl.run(&what).map(drop)
}

/// Name of the pod of controllers: it is the host name that its processes see.
fn controllers(stage: &Stage, home: &str) -> Result<String, Error> {
    let selector = "app.kubernetes.io/name=kube-controllers";
    let path = "jsonpath={.items[0].metadata.name}";
    stage.kubectl.run(&["--namespace", home, "get", "pods", "--selector", selector, "--output", path])
}

/// Three members and two API servers.
fn three(storage: &Value) -> Value {
    let mut spec = super::small(super::known_version());
    for (pointer, value) in
        [("/etcd", json!({"replicas": 3, "storage": storage})), ("/controlPlane/replicas", json!(2))]
    {
        if let Some(place) = spec.pointer_mut(pointer) {
            *place = value;
        }
    }
    spec
}

/// The pod of the leader goes, its data stays.
pub(super) fn a_leader_is_lost(stage: &Stage) -> Result<(), Error> {
    let name = "trio";
    stage.apply_tenant(name, three(&json!({"persistent": {"size": "1Gi"}})))?;
    let mut trial = Trial::start(stage, name)?;
    let home = stage.home(name)?;
    let outcome = trial.broken("the pod of the leader of three is deleted", || {
        let leader = scale::leader(stage, name)?;
        delete_pod(stage, &home, &leader)
    })?;
    gap_at_most(&outcome, ELECTION_GAP)?;
    trial.end()?;
    remove(stage, name)
}

/// Members whose data goes with their pods. Of three one is made anew, and nobody loses anything; the only one of
/// another tenant is reported as lost, and nothing takes its place unasked.
pub(super) fn members_are_lost(stage: &Stage) -> Result<(), Error> {
    let (name, lone) = ("fleeting", "lone");
    let ephemeral = json!({"ephemeral": {}});
    stage.apply_tenant(name, three(&ephemeral))?;
    let mut only = super::small(super::known_version());
    if let Some(storage) = only.pointer_mut("/etcd/storage") {
        *storage = ephemeral;
    }
    stage.apply_tenant(lone, only)?;
    one_of_three(stage, name)?;
    stage.dismiss(name)?;

    stage.await_settled(lone)?;
    delete_pod(stage, &stage.home(lone)?, &scale::member_pod(stage, lone)?)?;
    let told = |object: &Value| {
        let lost =
            |kind: &str| reason(object, kind) == Some("DataLost") && condition(object, kind) == Some("False");
        match lost("EtcdHealthy") && lost("Ready") {
            true => Ok(()),
            false => Err(at(object, "/status/conditions").to_string()),
        }
    };
    stage.await_tenant(lone, "to say that its data is lost", told)?;
    std::thread::sleep(AFTERMATH);
    told(&stage.tenant(lone)?).map_err(|now| Error::Invalid(format!("something was made anew: {now}")))?;
    stage.dismiss(lone)
}

fn one_of_three(stage: &Stage, name: &str) -> Result<(), Error> {
    let mut trial = Trial::start(stage, name)?;
    let home = stage.home(name)?;
    let killed = trial.broken("the leader of three is killed", || {
        let leader = scale::leader(stage, name)?;
        kill(stage, &[&format!("etcd --name={leader}"), &home])
    })?;
    gap_at_most(&killed, ELECTION_GAP)?;
    let server = trial.broken("one of two API servers is killed", || {
        let found = processes(stage, &["kube-apiserver --secure-port", &home])?;
        let pid = found.first().and_then(|pid| Pid::from_raw(*pid));
        let pid = pid.ok_or_else(|| Error::Invalid("there is no API server to kill".to_owned()))?;
        kill_process(pid, Signal::KILL)
            .map_err(|error| Error::io("kill", format!("process {pid:?}"))(error.into()))
    })?;
    gap_at_most(&server, Duration::from_secs(3))?;
    let before = scale::membership(stage, name)?;
    // The leader: until there is another nobody can be removed, and its pod is back before that.
    let lost = scale::leader(stage, name)?;
    let outcome = trial.broken("the leader of three loses its data", || {
        delete_pod(stage, &home, &lost)?;
        stage.await_tenant(name, "to replace the member", |object| {
            match condition(object, "EtcdHealthy") {
                Some("True") if settled(object).is_ok() => Ok(()),
                health => Err(format!("EtcdHealthy is {health:?}")),
            }
        })?;
        scale::await_pods(stage, name, "etcd", 3)
    })?;
    gap_at_most(&outcome, ELECTION_GAP)?;
    let after = scale::membership(stage, name)?;
    claim(after.voters == before.voters && after.id_of(&lost) != before.id_of(&lost), || {
        format!("{lost} was to be another member under its name: {before:?} became {after:?}")
    })?;
    trial.end()
}

fn gap_at_most(outcome: &Outcome, most: Duration) -> Result<(), Error> {
    let longest = outcome.of(Client::Fresh).outages.iter().map(Outage::lasted).max().unwrap_or_default();
    claim(longest <= most, || {
        format!(
            "new connections failed for {:.2} s, at most {} s are allowed",
            longest.as_secs_f32(),
            most.as_secs()
        )
    })
}

pub(super) fn the_operator_is_replaced(stage: &Stage) -> Result<(), Error> {
    for round in ["the leader of the operator is killed", "the next one is killed"] {
        two_operators(stage)?;
        let before = holder(stage)?;
        let pod = before.split('_').next().unwrap_or_default().to_owned();
        let started = Instant::now();
        // Its container is back in a second, as somebody else: no two processes share an identity.
        kill(stage, &["kaas-operator --", &format!("POD_NAME={pod}")])?;
        stage.change(TENANT, &json!({"paused": round.contains("leader")}))?;
        let check = || match holder(stage).map_err(|error| error.to_string())? {
            now if now != before && !now.is_empty() => Ok(now),
            _ => Err(format!("{before} still holds the lease")),
        };
        let now =
            wait::until("another operator to lead", TAKE_OVER * 2, POLL, check, || stage.kubectl.report())?;
        let taken = started.elapsed();
        let acted = |object: &Value| {
            let number = |pointer: &str| at(object, pointer).as_i64().unwrap_or(0);
            match number("/status/observedGeneration") == number("/metadata/generation") {
                true => Ok(()),
                false => Err("the newest spec was not seen".to_owned()),
            }
        };
        stage.await_tenant(TENANT, "to be acted on by the next leader", acted)?;
        let total = started.elapsed();
        say(format!(
            "  {round}: {now} leads after {:.1} s, a change was acted on after {:.1} s",
            taken.as_secs_f32(),
            total.as_secs_f32()
        ));
        claim(taken <= TAKE_OVER, || format!("the take-over took {:.1} s", taken.as_secs_f32()))?;
        claim(total <= TAKE_OVER + ACTED, || format!("the change waited {:.1} s", total.as_secs_f32()))?;
    }
    stage.await_settled(TENANT)?;
    standby_is_killed(stage)?;
    two_operators(stage)
}

/// Nobody notices.
fn standby_is_killed(stage: &Stage) -> Result<(), Error> {
    two_operators(stage)?;
    let before = holder(stage)?;
    let pod = before.split('_').next().unwrap_or_default();
    let all = processes(stage, &["kaas-operator --", "POD_NAME="])?;
    let leads = processes(stage, &["kaas-operator --", &format!("POD_NAME={pod}")])?;
    let standby = all.iter().find(|pid| !leads.contains(pid)).and_then(|pid| Pid::from_raw(*pid));
    let standby = standby.ok_or_else(|| Error::Invalid("no operator stands by".to_owned()))?;
    kill_process(standby, Signal::KILL).map_err(|error| Error::io("kill", "the standby")(error.into()))?;
    two_operators(stage)?;
    let after = holder(stage)?;
    claim(before == after, || format!("{before} led, {after} leads after its standby was killed"))
}

fn two_operators(stage: &Stage) -> Result<(), Error> {
    stage.kubectl.await_deployment(OPERATOR_NAMESPACE, "kaas-operator", SOON)
}

fn holder(stage: &Stage) -> Result<String, Error> {
    let path = "jsonpath={.spec.holderIdentity}";
    stage.kubectl.run(&["--namespace", OPERATOR_NAMESPACE, "get", "lease", "kaas-operator", "--output", path])
}

pub(super) fn the_kubelet_is_away(stage: &Stage) -> Result<(), Error> {
    let name = "orphan";
    stage.apply_tenant(name, super::small(super::known_version()))?;
    let kubelet = stage.ground()?.cluster.borrow().record.daemons.get("kubelet").cloned();
    let kubelet = kubelet.ok_or_else(|| Error::Invalid("the cluster has no kubelet".to_owned()))?;
    let mut trial = Trial::start(stage, name)?;
    let result = trial.broken("the kubelet is away", || {
        kubelet.freeze();
        std::thread::sleep(AWAY);
        kubelet.thaw();
        Ok(())
    });
    // Whatever happened: the next flow has a node.
    kubelet.thaw();
    result?;
    trial.end()?;
    remove(stage, name)
}

/// Takes a flow's own tenant away.
pub(super) fn remove(stage: &Stage, name: &str) -> Result<(), Error> {
    stage.dismiss(name)?;
    let gone = || {
        let args = ["--namespace", NAMESPACE, "get", "tenantclusters.kaas.dev", name, "--ignore-not-found"];
        match stage.kubectl.run(&args).map_err(|error| error.to_string())? {
            text if text.trim().is_empty() => Ok(()),
            text => Err(text),
        }
    };
    wait::until(&format!("TenantCluster {name} to be gone"), GONE, POLL, gone, || stage.kubectl.report())
}
