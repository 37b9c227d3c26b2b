//! What is said, and by whom something is to be done.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kaas_crds::{Reason, Worker, WorkerPoolStatus, WorkerStatus};
use kaas_lifecycle::report::Failure;
use kaas_lifecycle::workers::infrastructure;
use kaas_lifecycle::workers::observed::{Fact, MachineState, WorkerObserved};
use kaas_lifecycle::workers::pool;
use kaas_lifecycle::workers::report::{Tally, pool_status, tally, worker_status};
use kaas_lifecycle::workers::worker;

use crate::fleet::Fleet;

fn of_pool(fleet: &Fleet) -> WorkerPoolStatus {
    let observed = fleet.observe_pool();
    pool_status(&observed, &pool::plan(&observed), None)
}

fn of_worker(observed: &WorkerObserved) -> WorkerStatus {
    worker_status(observed, &worker::plan(observed), None, None)
}

fn said(
    conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition],
    kind: &str,
) -> (String, String) {
    let found = conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    (found.status.clone(), found.reason.clone())
}

#[test]
fn a_pool_at_rest() {
    let fleet = Fleet::settled(3);
    let status = of_pool(&fleet);
    assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (3, 3, 3));
    assert_eq!((status.workers.as_str(), status.summary.as_str()), ("3/3", "Ready"));
    assert_eq!(status.selector, "kaas.dev/pool=p");
    for (kind, status_of, reason) in [
        ("Ready", "True", "AllReady"),
        ("UpToDate", "True", "RevisionCurrent"),
        ("Reconciling", "False", "Settled"),
        ("Stalled", "False", "Settled"),
    ] {
        assert_eq!(said(&status.conditions, kind), (status_of.into(), reason.into()));
    }
}

#[test]
fn a_pool_on_its_way() {
    let mut fleet = Fleet::settled(2);
    fleet.nodes.get_mut("p-1").unwrap().ready = "False".into();
    let status = of_pool(&fleet);
    assert_eq!(
        (status.workers.as_str(), status.summary.as_str()),
        ("1/2", "Not ready: 1 of 2 workers are Ready; p-1: just made")
    );
    assert_eq!(said(&status.conditions, "Ready"), ("False".into(), "WorkersNotReady".into()));
    let mut fleet = Fleet::settled(2);
    fleet.edit(|spec| spec.instance_types = vec!["large".into()]);
    fleet.turn();
    let status = of_pool(&fleet);
    assert_eq!(
        status.summary,
        "Rolling: 1 of 3 workers are of the newest template; p-2 of the new template is not Ready: just made"
    );
    assert_eq!(said(&status.conditions, "UpToDate"), ("False".into(), "Rolling".into()));
    let mut fleet = Fleet::settled(3);
    fleet.edit(|spec| spec.replicas = 2);
    fleet.turn();
    assert_eq!(of_pool(&fleet).removing.len(), 1);
    fleet.turn();
    let status = of_pool(&fleet);
    assert!(status.summary.starts_with("Ready; going: p-0"), "{}", status.summary);
}

#[test]
fn a_pool_that_cannot_go_on_says_why() {
    let mut fleet = Fleet::new(1);
    fleet.offer.pods = false;
    let status = of_pool(&fleet);
    assert_eq!(said(&status.conditions, "Stalled"), ("True".into(), "InfrastructureDisabled".into()));
    assert!(status.summary.starts_with("Stalled: spec.infrastructure: this platform"), "{}", status.summary);
    let mut observed = Fleet::settled(1).observe_pool();
    observed.cluster = Fact::Unread;
    let status = pool_status(&observed, &pool::plan(&observed), None);
    assert_eq!(said(&status.conditions, "Ready"), ("Unknown".into(), "NotObserved".into()));
}

#[test]
fn a_worker_says_where_it_stands() {
    let fleet = Fleet::settled(1);
    let observed = fleet.observe_worker("p-0");
    let status = of_worker(&observed);
    assert_eq!(status.summary, "Ready");
    assert_eq!(status.node_ref.as_ref().unwrap().name, "p-0");
    assert_eq!(status.provider_id.as_deref(), Some("kaas://pod/p-0#1"));
    assert_eq!(status.version.as_deref(), Some("v1.37.1"));
    assert_eq!(said(&status.conditions, "InfrastructureReady"), ("True".into(), "MachineRunning".into()));
    assert_eq!(said(&status.conditions, "Reconciling"), ("False".into(), "Settled".into()));
    let of = |change: fn(&mut Fleet)| {
        let mut fleet = Fleet::settled(1);
        change(&mut fleet);
        said(&of_worker(&fleet.observe_worker("p-0")).conditions, "Ready")
    };
    assert_eq!(
        of(|fleet| fleet.nodes.get_mut("p-0").unwrap().ready = "Unknown".into()),
        ("Unknown".into(), "NodeSilent".into())
    );
    assert_eq!(
        of(|fleet| fleet.nodes.get_mut("p-0").unwrap().ready = "False".into()),
        ("False".into(), "NodeNotReady".into())
    );
    assert_eq!(of(|fleet| fleet.nodes.clear()), ("False".into(), "NodeMissing".into()));
    assert_eq!(of(|fleet| fleet.machines.clear()), ("False".into(), "InfrastructureGone".into()));
    assert_eq!(
        of(|fleet| fleet.cluster.as_mut().unwrap().serving = false),
        ("Unknown".into(), "NotObserved".into())
    );
}

#[test]
fn a_machine_that_does_not_join_is_overdue() {
    let mut fleet = Fleet::settled(1);
    fleet.nodes.clear();
    fleet.workers.get_mut("p-0").unwrap().status = None;
    let mut observed = fleet.observe_worker("p-0");
    assert_eq!(said(&of_worker(&observed).conditions, "Ready").1, "Joining");
    observed.now += SignedDuration::from_secs(301);
    let status = of_worker(&observed);
    assert_eq!(said(&status.conditions, "Ready").1, "JoinOverdue");
    assert_eq!(said(&status.conditions, "Stalled"), ("True".into(), "JoinOverdue".into()));
}

#[test]
fn what_the_infrastructure_refuses_is_kept_until_it_succeeds() {
    let mut fleet = Fleet::settled(1);
    fleet.nodes.clear();
    fleet.machines.clear();
    fleet.workers.get_mut("p-0").unwrap().status = None;
    let mut observed = fleet.observe_worker("p-0");
    let asked = worker::plan(&observed);
    let refused = Some((infrastructure::Failure::Quota, "pods, requested 1, used 10, limited 10"));
    let status = worker_status(&observed, &asked, refused, None);
    assert_eq!(said(&status.conditions, "Stalled"), ("True".into(), "QuotaExceeded".into()));
    assert_eq!(said(&status.conditions, "InfrastructureReady"), ("False".into(), "QuotaExceeded".into()));
    assert!(status.summary.ends_with("limited 10"), "{}", status.summary);
    observed.worker.status = Some(status.clone());
    // It waits: nothing new is said.
    assert_eq!(of_worker(&observed), status);
    observed.now += SignedDuration::from_mins(1);
    let asked = worker::plan(&observed);
    let again = worker_status(&observed, &asked, refused, None);
    assert_eq!(again.failure.as_ref().unwrap().attempts, 2);
    assert_eq!(worker_status(&observed, &asked, None, None).failure, None);
}

#[test]
fn a_request_that_failed_is_told() {
    let observed = Fleet::settled(1).observe_pool();
    let failure = Failure { reason: Reason::RequestDenied, message: "no".into(), transient: false };
    let status = pool_status(&observed, &pool::plan(&observed), Some(&failure));
    assert_eq!(said(&status.conditions, "Stalled"), ("True".into(), "RequestDenied".into()));
}

#[test]
fn a_cluster_counts_the_workers_of_its_pools() {
    let fleet = Fleet::settled(3);
    let mut pool = fleet.pool.clone().unwrap();
    let workers: Vec<Worker> = fleet.workers.values().cloned().collect();
    let with = |pool: &kaas_crds::WorkerPool, ready: i32| {
        let mut pool = pool.clone();
        pool.status =
            Some(WorkerPoolStatus { ready_replicas: ready, summary: "Rolling".into(), ..Default::default() });
        pool
    };
    assert_eq!(tally(&[], std::iter::empty()), Tally::default());
    let all = tally(&[with(&pool, 3), with(&pool, 3)], workers.iter());
    assert_eq!(all, Tally { desired: 6, ready: 6, left: 3, trouble: None, blocked: None });
    let some = tally(&[with(&pool, 3), with(&pool, 1)], workers.iter());
    assert_eq!(some.trouble.as_deref(), Some("WorkerPool p has 1 of 3 workers Ready: Rolling"));
    pool.metadata.deletion_timestamp = Some(Time("2026-06-01T00:00:00Z".parse().unwrap()));
    assert_eq!(tally(&[with(&pool, 3)], workers.iter()), Tally { left: 3, ..Tally::default() });
}

#[test]
fn a_machine_that_is_held_is_told_by_worker_and_cluster() {
    let mut fleet = Fleet::settled(1);
    let since = Time(fleet.now);
    fleet.workers.get_mut("p-0").unwrap().metadata.deletion_timestamp = Some(since);
    fleet.cluster.as_mut().unwrap().deleting = true;
    let mut of = |trouble: Option<&str>| {
        let (_, machine) = fleet.machines.values_mut().next().unwrap();
        (machine.state, machine.trouble) = (MachineState::Stopping, trouble.map(str::to_owned));
        let mut worker = fleet.workers["p-0"].clone();
        worker.status = Some(of_worker(&fleet.observe_worker("p-0")));
        let told = tally(&[], [&worker].into_iter());
        (said(&worker.status.unwrap().conditions, "Ready").1, told.blocked)
    };
    assert_eq!(of(None), ("Deleting".into(), None));
    let (reason, blocked) = of(Some("Pod x is held by y"));
    assert_eq!(reason, "DeletionBlocked");
    assert_eq!(blocked.as_deref(), Some("Worker p-0: DeletionBlocked: Pod x is held by y"));
}
