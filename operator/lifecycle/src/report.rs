//! The report: from facts, plan and outcome to status. It says what is, why, and who must act; it stores nothing
//! that could be observed again, and it says the same thing twice in the same words, so that nothing is written twice.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::condition::{ConditionType, Reason};
use kaas_crds::name::{self, component};
use kaas_crds::status::{
    ControlPlaneEndpoint, HISTORY_LIMIT, HistoryEntry, Measured, Operation, OperationType, Owner,
    SecretReference, TenantClusterStatus, Waiting,
};
use kaas_crds::tenant_cluster::EndpointType;

use crate::addons;
use crate::endpoint;
use crate::etcd::{self, Health};
use crate::key_material;
use crate::observed::{Answer, Observed, Vigil};
use crate::plan::Plan;
use crate::revision;
use crate::rollout::{self, Count};
use crate::upgrade::step::Progress;
use crate::upgrade::{self, preflight};
use crate::validated::{Problem, data_lost};
use crate::verdict::{Is, Verdict, conditions};
use crate::workers::report::{self as workers, Tally};

/// Evidence of a request through the endpoint counts for so long, in seconds: two probes and their time-outs.
const FRESH_SECONDS: i64 = 25;

/// A deletion that takes no longer blames nobody.
const PATIENCE_SECONDS: i64 = 120;

/// A creation that takes no longer tells no details: three times what it takes on a small machine.
const QUIET_SECONDS: i64 = 15;

/// A request that failed, as execution reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In one word.
    pub reason: Reason,
    /// What failed, and why.
    pub message: String,
    /// Whether it passes by itself.
    pub transient: bool,
}

/// Whether a status is worth a write: it says something new, and not merely that a creation goes on as it should.
/// While a control plane comes up its parts become well one after the other within a second or two; each turn would be
/// a write that nobody reads.
pub fn worth_writing(
    observed: &Observed,
    before: Option<&TenantClusterStatus>,
    after: &TenantClusterStatus,
) -> bool {
    let Some(before) = before else { return true };
    if before == after {
        return false;
    }
    let creating = |status: &TenantClusterStatus| {
        status.conditions.iter().any(|condition| {
            condition.type_ == ConditionType::Ready.to_string()
                && condition.reason == Reason::Creating.as_str()
        })
    };
    let born = observed.cluster.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0);
    let young = observed.now.duration_since(born).as_secs() < QUIET_SECONDS;
    let same_generation = before.observed_generation == after.observed_generation;
    !(young && creating(before) && creating(after) && same_generation && !stalls(after))
}

fn stalls(status: &TenantClusterStatus) -> bool {
    let kind = ConditionType::Stalled.to_string();
    status.conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

/// Derives the status.
pub fn derive(observed: &Observed, plan: &Plan, failure: Option<&Failure>) -> TenantClusterStatus {
    let before = observed.cluster.status.clone().unwrap_or_default();
    // Not by the history, which forgets: the version is set when the API answers for the first time.
    let answered = before.version.is_some();
    let serving = serving(observed).map(str::to_owned);
    let created = answered || serving.is_some();
    let version = completed(observed, plan, &before, serving);
    let mut verdicts = verdicts(observed, plan, failure, created);
    verdicts.extend(addons::verdicts(observed, plan.pending.is_some(), version.as_deref()));
    let endpoint = endpoint::endpoint(observed);
    let ready = verdicts.first().is_some_and(|verdict| verdict.is == Is::True);
    let busy =
        verdicts.iter().any(|verdict| verdict.kind == ConditionType::Reconciling && verdict.is == Is::True);
    let operation = operation(observed, plan, &before, answered, ready, busy);
    let mut history = before.history.clone();
    // One of Kubernetes' version and one of etcd's may follow at once.
    let followed = |done: &Operation| match done.kind {
        OperationType::Upgrade => plan.upgrade.is_none(),
        OperationType::UpgradeEtcd => plan.etcd.is_none(),
        _ => false,
    };
    if let Some(done) = &before.operation
        && done.kind != OperationType::Delete
        && operation.as_ref().is_none_or(|next| next.kind != done.kind && followed(done))
    {
        let mut entry = finished(done, version.as_deref(), observed.now, result(observed, done));
        entry.probe = observed.vigil.as_ref().filter(|_| done.kind == OperationType::Upgrade).map(measured);
        history.insert(0, entry);
        history.truncate(HISTORY_LIMIT);
    } else if operation.is_none() && !answered && ready {
        let started_at =
            Time(observed.cluster.metadata.creation_timestamp.as_ref().map_or(observed.now, |time| time.0));
        let done = Operation {
            kind: OperationType::Create,
            target: String::new(),
            step: String::new(),
            started_at,
            waiting: None,
        };
        history.insert(0, finished(&done, version.as_deref(), observed.now, SUCCEEDED.into()));
        history.truncate(HISTORY_LIMIT);
    }
    TenantClusterStatus {
        observed_generation: observed.cluster.metadata.generation,
        version,
        endpoint: endpoint.as_ref().map(endpoint::Endpoint::url),
        control_plane_endpoint: endpoint
            .map(|endpoint| ControlPlaneEndpoint { host: endpoint.host, port: i32::from(endpoint.port) }),
        kubeconfig_secret_ref: (observed.kubeconfig.is_some() && !key_material::kubeconfig_foreign(observed))
            .then(|| SecretReference { name: name::kubeconfig_secret(&observed.tenant.name) }),
        workers: workers::counted(observed.workers.as_ref(), &before.workers),
        summary: summary(&verdicts, operation.as_ref(), observed, plan),
        conditions: conditions(
            observed.now,
            observed.cluster.metadata.generation,
            &before.conditions,
            verdicts,
        ),
        operation,
        pending: plan.pending.clone(),
        preflight: preflight::shown(observed),
        history,
    }
}

/// The version that answered through the endpoint just now.
fn serving(observed: &Observed) -> Option<&str> {
    match &observed.fresh_probe(FRESH_SECONDS)?.answer {
        Answer::Serving { version } => Some(version),
        Answer::Failed { .. } => None,
    }
}

/// The version that the whole control plane serves: what answered through the endpoint, but for the time in which not all
/// of it is of one version. Workers follow it.
fn completed(
    observed: &Observed,
    plan: &Plan,
    before: &TenantClusterStatus,
    serving: Option<String>,
) -> Option<String> {
    let changing = plan.upgrade.is_some() || rollout::unsettled(observed);
    // On the way back workers and addons go first, which may be older than their API servers and never newer.
    if let (Some(version), Some(lower)) = (&before.version, upgrade::lowered(observed))
        && upgrade::path::is_older(&lower, version)
    {
        return Some(lower);
    }
    match (&before.version, serving) {
        (Some(_), Some(serving)) if !changing => Some(serving),
        (Some(before), _) => Some(before.clone()),
        (None, serving) => serving,
    }
}

const SUCCEEDED: &str = "Succeeded";

/// How an operation ended.
fn result(observed: &Observed, done: &Operation) -> String {
    let record = revision::current(observed).map(|revision| revision.record);
    let refused = record.and_then(|record| record.refused);
    let refused = refused.filter(|refused| {
        done.kind == OperationType::Upgrade && refused.version == done.target && refused.at >= done.started()
    });
    let text = match refused {
        Some(refused) if refused.served => format!("RolledBack: {}", refused.evidence),
        Some(refused) => format!("Refused: {}", refused.evidence),
        None if done.kind == OperationType::UpgradeEtcd => etcd::ended(observed, &done.target),
        None => SUCCEEDED.into(),
    };
    text.chars().take(256).collect()
}

fn finished(operation: &Operation, version: Option<&str>, now: Timestamp, result: String) -> HistoryEntry {
    HistoryEntry {
        kind: operation.kind,
        version: version.unwrap_or_default().to_owned(),
        started_at: operation.started_at.clone(),
        ended_at: Time(now),
        result,
        probe: None,
    }
}

fn measured(vigil: &Vigil) -> Measured {
    let count = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let milliseconds = |time: SignedDuration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    Measured {
        requests: count(vigil.requests),
        failed: count(vigil.failed),
        reused_requests: count(vigil.reused),
        reused_failed: count(vigil.reused_failed),
        longest_gap_milliseconds: milliseconds(vigil.gap),
        watch_events: count(vigil.events),
        watch_lost: count(vigil.lost),
        watch_repeated: count(vigil.repeated),
        longest_watch_gap_milliseconds: milliseconds(vigil.watch_gap),
    }
}

fn verdicts(observed: &Observed, plan: &Plan, failure: Option<&Failure>, created: bool) -> Vec<Verdict> {
    let mut verdicts = vec![
        ready(observed, plan, created),
        available(observed, created),
        etcd_healthy(observed, created),
        certificates(observed),
        up_to_date(observed, plan),
        workers::workers_ready(observed.workers.as_ref()),
    ];
    verdicts.extend(preflight::verdict(observed));
    verdicts.extend(kstatus(observed, plan, failure, created));
    verdicts
}

fn ready(observed: &Observed, plan: &Plan, created: bool) -> Verdict {
    let verdict = |is, reason, message: String| Verdict::new(ConditionType::Ready, is, reason, message);
    if observed.deleting() {
        return verdict(Is::False, Reason::Deleting, "the cluster is being deleted".into());
    }
    if let Health::DataLost(fact) = etcd::health(observed) {
        return verdict(Is::False, Reason::DataLost, data_lost(&fact));
    }
    match observed.fresh_probe(FRESH_SECONDS).map(|probe| &probe.answer) {
        Some(Answer::Serving { .. }) => {
            verdict(Is::True, Reason::Serving, "requests through the endpoint succeed".into())
        }
        _ if !created => match plan.problems.iter().find(|problem| problem.blocks_creation()) {
            Some(problem) => verdict(Is::False, problem.reason, problem.message.clone()),
            None if balancer_pending(observed) => verdict(
                Is::False,
                Reason::LoadBalancerPending,
                format!(
                    "Service {}/{} has no load balancer address yet; the management cluster's load balancer gives one",
                    observed.tenant.control_plane_namespace(),
                    component::KUBE_APISERVER
                ),
            ),
            None => {
                verdict(Is::False, Reason::Creating, "the control plane comes up for the first time".into())
            }
        },
        Some(Answer::Failed { message, .. }) => verdict(
            Is::False,
            Reason::EndpointUnreachable,
            format!("requests through the endpoint fail: {message}"),
        ),
        None => match plan.problems.iter().find(|problem| problem.blocks_everything()) {
            Some(problem) => verdict(Is::False, problem.reason, problem.message.clone()),
            None => verdict(
                Is::Unknown,
                Reason::NotObserved,
                "no request through the endpoint ended lately".into(),
            ),
        },
    }
}

/// Pods run, but clients have no address to reach them by.
fn balancer_pending(observed: &Observed) -> bool {
    observed.cluster.spec.control_plane.endpoint.kind == EndpointType::LoadBalancer
        && endpoint::host(observed).is_none()
        && observed.pods_of(component::KUBE_APISERVER).any(|pod| pod.ready)
}

fn available(observed: &Observed, created: bool) -> Verdict {
    let verdict =
        |is, reason, message: String| Verdict::new(ConditionType::ControlPlaneAvailable, is, reason, message);
    let mut missing = Vec::new();
    for name in [component::KUBE_APISERVER, component::KUBE_CONTROLLERS] {
        match rollout::count(observed, name) {
            None => missing.push(format!("{name} does not exist yet")),
            // A pod more than desired is a roll, not a lack.
            Some(count) => {
                let ready =
                    i64::try_from(observed.pods_of(name).filter(|pod| pod.ready && !pod.terminating).count())
                        .unwrap_or(i64::MAX);
                if ready < count.desired {
                    missing.push(format!("{name} has {ready} of {} pods ready", count.desired));
                }
            }
        }
    }
    if missing.is_empty() {
        return verdict(Is::True, Reason::Available, "all API server and controller pods are ready".into());
    }
    let trouble = trouble(observed);
    match trouble {
        Some(trouble) => verdict(Is::False, Reason::PodsFailing, trouble),
        None if !created => verdict(Is::False, Reason::Creating, "pods are starting".into()),
        None => verdict(Is::False, Reason::PodsUnavailable, missing.join("; ")),
    }
}

/// The first pod that cannot start, in Kubernetes' own words.
fn trouble(observed: &Observed) -> Option<String> {
    let home = observed.tenant.control_plane_namespace();
    observed.pods.iter().find_map(|pod| pod.tell_trouble(&home))
}

fn etcd_healthy(observed: &Observed, created: bool) -> Verdict {
    let verdict = |is, reason, message: String| Verdict::new(ConditionType::EtcdHealthy, is, reason, message);
    match etcd::health(observed) {
        Health::Unknown if !created => verdict(Is::False, Reason::Creating, "etcd is starting".into()),
        Health::Unknown => verdict(Is::False, Reason::QuorumLost, trouble_of_etcd(observed)),
        Health::Healthy => {
            let voters =
                observed.etcd.iter().flat_map(|etcd| &etcd.members).filter(|member| !member.learner).count();
            verdict(Is::True, Reason::MembersHealthy, format!("{voters} of {voters} members are healthy"))
        }
        Health::Degraded(names) => verdict(
            Is::False,
            Reason::MemberUnhealthy,
            format!("not healthy: {}; the others have a quorum", names.join(", ")),
        ),
        Health::NoQuorum(healthy, voters) => verdict(
            Is::False,
            Reason::QuorumLost,
            format!("{healthy} of {voters} members are healthy, which is no quorum"),
        ),
        Health::Alarm(alarms) => {
            verdict(Is::False, Reason::AlarmRaised, format!("alarms: {}", alarms.join(", ")))
        }
        Health::DataLost(fact) => verdict(Is::False, Reason::DataLost, data_lost(&fact)),
    }
}

fn trouble_of_etcd(observed: &Observed) -> String {
    trouble(observed).unwrap_or_else(|| "no member answers".into())
}

fn certificates(observed: &Observed) -> Verdict {
    let verdict =
        |is, reason, message: String| Verdict::new(ConditionType::CertificatesValid, is, reason, message);
    match key_material::horizon(observed) {
        None => verdict(Is::Unknown, Reason::Creating, "no certificate was made yet".into()),
        Some((due, end)) if observed.now >= due => verdict(
            Is::False,
            Reason::CertificateExpiring,
            format!("a certificate ends at {end} and is due for renewal since {due}"),
        ),
        Some(_) => verdict(
            Is::True,
            Reason::CertificatesCurrent,
            "all certificates are in the first two thirds of their life".into(),
        ),
    }
}

fn up_to_date(observed: &Observed, plan: &Plan) -> Verdict {
    let verdict = |is, reason, message: String| Verdict::new(ConditionType::UpToDate, is, reason, message);
    match &plan.pending {
        Some(pending) => verdict(
            Is::False,
            Reason::RevisionPending,
            format!(
                "revision {} waits for consent: set spec.acceptRevision to it, or change the spec",
                pending.revision
            ),
        ),
        None if rollout::unsettled(observed) => {
            verdict(Is::False, Reason::Rolling, "pods are being started or replaced".into())
        }
        None => verdict(Is::True, Reason::RevisionCurrent, "what runs is what would be rendered now".into()),
    }
}

/// kstatus' two: `Reconciling` while there is work, `Stalled` while work needs somebody's help.
fn kstatus(observed: &Observed, plan: &Plan, failure: Option<&Failure>, created: bool) -> [Verdict; 2] {
    let reconciling =
        |is, reason, message: String| Verdict::new(ConditionType::Reconciling, is, reason, message);
    let stalled = |is, reason, message: String| Verdict::new(ConditionType::Stalled, is, reason, message);
    let problem = plan.problems.first();
    let blocked = blocked_deletion(observed);
    let stalled = match (failure.filter(|failure| !failure.transient), problem) {
        _ if blocked.is_some() => stalled(Is::True, Reason::DeletionBlocked, blocked.unwrap_or_default()),
        (Some(failure), _) => stalled(Is::True, failure.reason, failure.message.clone()),
        (None, Some(problem)) => stalled(Is::True, problem.reason, problem.message.clone()),
        (None, None) => stalled(Is::False, Reason::Settled, "nothing stands in the way".into()),
    };
    let settled = |message: &str| reconciling(Is::False, Reason::Settled, message.into());
    let working = |message: String| reconciling(Is::True, Reason::Progressing, message);
    let reconciling = if observed.deleting() {
        working("the cluster is being deleted".into())
    } else if observed.cluster.spec.paused {
        reconciling(Is::False, Reason::Paused, "spec.paused is true: nothing is changed".into())
    } else if let Some(failure) = failure {
        reconciling(Is::True, Reason::RequestFailing, failure.message.clone())
    } else if plan.problems.iter().any(Problem::blocks_everything) {
        settled("work cannot go on, see Stalled")
    } else if !plan.is_empty()
        || plan.upgrade.is_some()
        || rollout::unsettled(observed)
        || etcd::next_step(observed).is_some()
        || plan.etcd.is_some()
        || (!created && problem.is_none())
    {
        working("work is under way".into())
    } else {
        settled("nothing is left to do")
    };
    [reconciling, stalled]
}

/// What keeps the namespace, or the workers, once it has taken longer than the pods' grace periods and the namespace controller's
/// rounds explain.
fn blocked_deletion(observed: &Observed) -> Option<String> {
    let since = observed.cluster.metadata.deletion_timestamp.as_ref()?;
    if observed.now.duration_since(since.0).as_secs() < PATIENCE_SECONDS {
        return None;
    }
    let Some(namespace) = observed.own_namespace() else {
        let workers = observed.workers.as_ref().filter(|workers| workers.left > 0)?;
        let words = workers.blocked.as_ref().map(|words| format!(". {words}")).unwrap_or_default();
        return Some(format!(
            "{} workers of this cluster are left; kubectl get workers in namespace {} says what keeps each of them{words}",
            workers.left, observed.tenant.namespace
        ));
    };
    let pods = observed.pods.iter().map(|pod| format!("Pod {} is still there", pod.name));
    let causes: Vec<String> = namespace.remaining.iter().cloned().chain(pods).collect();
    let causes =
        if causes.is_empty() { "its controller gives no cause".to_owned() } else { causes.join("; ") };
    Some(format!(
        "Namespace {} does not go away: {causes}; who made what remains must remove it",
        namespace.name
    ))
}

fn operation(
    observed: &Observed,
    plan: &Plan,
    before: &TenantClusterStatus,
    answered: bool,
    ready: bool,
    busy: bool,
) -> Option<Operation> {
    let spec = &observed.cluster.spec;
    let under_way = |kind| before.operation.as_ref().filter(|operation| operation.kind == kind);
    let (kind, target, step) = if observed.deleting() {
        (OperationType::Delete, String::new(), deletion_step(observed))
    } else if spec.paused || plan.problems.iter().any(Problem::blocks_everything) {
        // It stands still, which is no success.
        return before.operation.clone();
    } else if !busy {
        return None;
    } else if !answered && !ready {
        (OperationType::Create, spec.version.clone(), "starting the control plane".to_owned())
    } else if rollout::unsettled(observed) && (!answered || under_way(OperationType::Create).is_some()) {
        // The first of its API servers answers.
        (OperationType::Create, spec.version.clone(), roll_step(observed))
    } else if let (Some(change), None, true) =
        (under_way(OperationType::UpgradeEtcd), &plan.etcd, rollout::unsettled(observed))
    {
        // The last member restarts, or API servers learn of the members: the last part of the same operation.
        (change.kind, change.target.clone(), roll_step(observed))
    } else if let Some((kind, progress)) = leading(observed, plan) {
        (kind, progress.target.clone(), change_step(observed, plan, kind, progress))
    } else if let Some(step) = etcd::next_step(observed) {
        let scaling = under_way(OperationType::ScaleEtcd).is_some() || !etcd::rolls(observed);
        let (kind, target) = match scaling {
            true => (OperationType::ScaleEtcd, format!("{} members", spec.etcd.replicas)),
            false => (OperationType::Roll, spec.version.clone()),
        };
        (kind, target, etcd::tell(&step))
    } else if let (Some(scaling), true) = (under_way(OperationType::ScaleEtcd), rollout::unsettled(observed))
    {
        // API servers learn of the members: the last part of the same operation.
        (scaling.kind, scaling.target.clone(), roll_step(observed))
    } else if rollout::unsettled(observed) {
        (OperationType::Roll, spec.version.clone(), roll_step(observed))
    } else if let (Some(current), false) = (&before.operation, ready) {
        (current.kind, current.target.clone(), current.step.clone())
    } else {
        return None;
    };
    let same =
        before.operation.as_ref().filter(|operation| operation.kind == kind && operation.target == target);
    let since = match kind {
        OperationType::Delete => observed.cluster.metadata.deletion_timestamp.as_ref(),
        OperationType::Create => observed.cluster.metadata.creation_timestamp.as_ref(),
        _ => None,
    };
    let started_at =
        same.map(|operation| operation.started_at.clone()).or(since.cloned()).unwrap_or(Time(observed.now));
    let waiting = waiting(observed, plan, same);
    // What namespaces and members are called, and what keeps them, is not ours to bound.
    let (target, step) = (target.chars().take(256).collect(), step.chars().take(512).collect());
    Some(Operation { kind, target, step, started_at, waiting })
}

fn waiting(observed: &Observed, plan: &Plan, same: Option<&Operation>) -> Option<Waiting> {
    let mut waiting = observed.pods.iter().filter(|pod| !pod.terminating && !pod.ready);
    let trouble = waiting.find_map(|pod| pod.trouble.as_ref());
    let trouble = trouble.map(|trouble| (trouble.reason.chars().take(64).collect(), Owner::Platform));
    let leading = leading(observed, plan).map(|(_, progress)| progress);
    let held = leading.and_then(|progress| progress.waiting);
    let (reason, owner): (String, Owner) =
        trouble.or_else(|| held.map(|(reason, owner)| (reason.to_string(), owner)))?;
    let before =
        same.and_then(|operation| operation.waiting.as_ref()).filter(|waiting| waiting.reason == reason);
    let since = before.map_or(Time(observed.now), |waiting| waiting.since.clone());
    let until = leading.and_then(|progress| progress.until).map(Time);
    Some(Waiting { reason, since, until, owner })
}

/// Of a change of Kubernetes' version and one of etcd's the one that is told: that of etcd while there is no other, or
/// once it has begun.
fn leading<'a>(observed: &Observed, plan: &'a Plan) -> Option<(OperationType, &'a Progress)> {
    let etcd = plan.etcd.as_ref().map(|progress| (OperationType::UpgradeEtcd, progress));
    let upgrade = plan.upgrade.as_ref().map(|progress| (OperationType::Upgrade, progress));
    if etcd::under_way(observed) { etcd.or(upgrade) } else { upgrade.or(etcd) }
}

/// What goes on in a change of a version, how far its pods are, and what waits for it.
fn change_step(observed: &Observed, plan: &Plan, kind: OperationType, progress: &Progress) -> String {
    let members = etcd::next_step(observed).filter(|_| kind == OperationType::UpgradeEtcd);
    let members = members.map(|step| etcd::tell(&step));
    let pods = Some(roll_step(observed)).filter(|pods| members.is_none() && !pods.is_empty());
    let other = match kind {
        OperationType::Upgrade => plan.etcd.as_ref().map(|etcd| format!("etcd {}", etcd.target)),
        _ => plan.upgrade.as_ref().map(|upgrade| format!("Kubernetes {}", upgrade.target)),
    };
    let mut step = progress.step.clone();
    if let Some(pods) = pods {
        step = format!("{step}: {pods}");
    }
    for more in members.into_iter().chain(other.map(|other| format!("{other} waits for that"))) {
        step = format!("{step}; {more}");
    }
    step
}

fn roll_step(observed: &Observed) -> String {
    let parts =
        [component::ETCD, component::KUBE_APISERVER, component::KUBE_CONTROLLERS].iter().filter_map(|name| {
            let count: Count = rollout::count(observed, name)?;
            (!count.settled()).then(|| format!("{name} {} of {} ready", count.ready, count.desired))
        });
    parts.collect::<Vec<_>>().join(", ")
}

fn deletion_step(observed: &Observed) -> String {
    match observed.own_namespace() {
        None => match &observed.workers {
            Some(Tally { left: 0, .. }) => "removing the finalizer".into(),
            Some(Tally { left, blocked: Some(words), .. }) => format!("waiting for {left} workers; {words}"),
            Some(Tally { left, .. }) => format!("waiting for {left} workers"),
            None => "waiting for a look at its workers".into(),
        },
        Some(namespace) if !observed.pods.is_empty() => {
            format!("waiting for {} pods in namespace {}", observed.pods.len(), namespace.name)
        }
        Some(namespace) if namespace.remaining.is_empty() => {
            format!("waiting for namespace {}", namespace.name)
        }
        Some(namespace) => {
            format!("waiting for namespace {}: {}", namespace.name, namespace.remaining.join("; "))
        }
    }
}

/// Whether this version is the one before.
fn goes_back(observed: &Observed, target: &str) -> bool {
    let version = observed.cluster.status.as_ref().and_then(|status| status.version.as_deref());
    upgrade::lowered(observed).as_deref() == Some(target)
        || version.is_some_and(|version| upgrade::path::is_older(target, version))
}

fn summary(verdicts: &[Verdict], operation: Option<&Operation>, observed: &Observed, plan: &Plan) -> String {
    let find = |kind| verdicts.iter().find(|verdict| verdict.kind == kind);
    let ready = find(ConditionType::Ready);
    let text = if observed.deleting() {
        format!("Deleting: {}", operation.map_or("", |operation| operation.step.as_str()))
    } else if let Some(stalled) = find(ConditionType::Stalled).filter(|verdict| verdict.is == Is::True) {
        let state =
            if ready.is_some_and(|ready| ready.is == Is::True) { "Running, but stalled" } else { "Stalled" };
        format!("{state}: {}", stalled.message)
    } else if ready.is_some_and(|ready| ready.is == Is::True) {
        match operation {
            _ if observed.cluster.spec.paused => "Running (paused)".into(),
            Some(operation) if operation.kind == OperationType::Roll => {
                format!("Rolling: {}", operation.step)
            }
            Some(operation) if operation.kind == OperationType::Upgrade => {
                let way = if goes_back(observed, &operation.target) { "Going back" } else { "Upgrading" };
                format!("{way} to {}: {}", operation.target, operation.step)
            }
            Some(operation) if operation.kind == OperationType::UpgradeEtcd => {
                format!("etcd goes to {}: {}", operation.target, operation.step)
            }
            Some(operation) if operation.kind == OperationType::ScaleEtcd => {
                format!("Scaling etcd: {}", operation.step)
            }
            _ if plan.pending.is_some() => "Running (a newer revision waits for consent)".into(),
            _ => match find(ConditionType::EtcdHealthy) {
                Some(etcd) if etcd.is == Is::False => format!("Running, but etcd: {}", etcd.message),
                _ => "Running".into(),
            },
        }
    } else {
        match (ready, trouble(observed)) {
            (Some(ready), Some(trouble)) if ready.reason == Reason::Creating => {
                format!("Creating: {trouble}")
            }
            (Some(ready), None) if ready.reason == Reason::Creating => "Creating".into(),
            (Some(ready), _) if ready.is == Is::Unknown => format!("Unknown: {}", ready.message),
            (Some(ready), _) => format!("Not ready: {}", ready.message),
            (None, _) => String::new(),
        }
    };
    text.chars().take(1000).collect()
}
