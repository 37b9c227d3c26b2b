//! The lease against a real API server: never two leaders, quick hand-over, sure take-over.
//!
//! Candidates act as the chart's service account, so they may do no more than it. Every gate of every term is on a
//! board that an overseer reads all the time: two open at once fail the test, whatever else happens.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test states its expectations bluntly"
)]

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::rbac::v1::Role;
use kaas_e2e::apiserver::Apiserver;
use kaas_operator::admin::Standing;
use kaas_operator::client::bounded;
use kaas_operator::leader::{Candidate, Gate, Loss, Term, Timing};
use kaas_operator::metrics::Metrics;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kaas-system";
const OPERATOR: &str = "system:serviceaccount:kaas-system:kaas-operator";
const CRDS: [&str; 2] = [
    include_str!("../../charts/kaas-crds/templates/tenantclusters.yaml"),
    include_str!("../../charts/kaas-crds/templates/kubernetesreleases.yaml"),
];
/// A ClusterRole and, for the lease, a Role.
const PERMISSIONS: &str = include_str!("../../charts/kaas/templates/generated/operator.yaml");
const BINDINGS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: kaas-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kaas-operator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: kaas-operator}
subjects: [{kind: ServiceAccount, name: kaas-operator, namespace: kaas-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: kaas-operator, namespace: kaas-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: kaas-operator}
subjects: [{kind: ServiceAccount, name: kaas-operator, namespace: kaas-system}]
";
/// The shortest that the operator accepts.
const LEASE: Duration = Duration::from_secs(3);
/// Room for requests, schedulers and a busy machine, on top of what the lease's times allow.
const MARGIN: Duration = Duration::from_secs(2);

/// The API server of the tests that run at this moment; the last one takes it down.
async fn server() -> Arc<Apiserver> {
    static SHARED: tokio::sync::Mutex<Weak<Apiserver>> = tokio::sync::Mutex::const_new(Weak::new());
    let mut shared = SHARED.lock().await;
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = prepared().await;
    *shared = Arc::downgrade(&server);
    server
}

/// An API server with the operator's kinds, namespace and permissions, as the charts make them.
async fn prepared() -> Arc<Apiserver> {
    // Another test may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (cluster_role, role) = PERMISSIONS.split_once("\n---\n").unwrap();
    let server = spawn_blocking(move || {
        let server = Apiserver::start().unwrap();
        let manifest = [CRDS[0], CRDS[1], cluster_role, BINDINGS].join("\n---\n");
        server.kubectl().apply(&manifest).unwrap();
        server
            .kubectl()
            .run(&["wait", "--for=condition=Established", "--timeout=10s", "crd", "--all"])
            .unwrap();
        Arc::new(server)
    });
    let server = server.await.unwrap();
    let role: Role = serde_yaml::from_str(role).unwrap();
    let roles = Api::namespaced(admin(&server).await, NAMESPACE);
    roles.create(&PostParams::default(), &role).await.unwrap();
    let leases = leases(&operator(&server).await);
    let permitted = async || leases.get_opt("none").await.is_ok();
    eventually("the Role to take effect", Duration::from_secs(10), permitted).await;
    server
}

async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(bounded(config)).unwrap()
}

async fn operator(server: &Apiserver) -> Client {
    client(&server.kubeconfig_of(OPERATOR, &[]).unwrap()).await
}

async fn admin(server: &Apiserver) -> Client {
    client(&server.kubeconfig().unwrap()).await
}

fn leases(client: &Client) -> Api<Lease> {
    Api::namespaced(client.clone(), NAMESPACE)
}

async fn eventually<F: Future<Output = bool>>(
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> F,
) -> Duration {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < limit, "waited {limit:?} for {what}");
        sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

/// Every gate that there ever was, with the name of its holder.
#[derive(Clone, Default)]
struct Board(Arc<Mutex<Vec<(String, Gate)>>>);

impl Board {
    fn add(&self, name: &str, gate: Gate) {
        self.0.lock().unwrap().push((name.to_owned(), gate));
    }

    fn open(&self) -> Vec<String> {
        let open = |(name, gate): &(String, Gate)| gate.open().then(|| name.clone());
        self.0.lock().unwrap().iter().filter_map(open).collect()
    }

    /// Those that are open at the same moment: as a closed gate stays closed, two that are both open when read
    /// again were open together in between.
    fn together(&self) -> Vec<String> {
        let gates = self.0.lock().unwrap();
        let mut open = gates.iter().filter(|(_, gate)| gate.open()).collect::<Vec<_>>();
        open.retain(|(_, gate)| gate.open());
        open.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// Who leads, as soon as somebody else than `former` does.
    async fn leader(&self, former: &[&str], limit: Duration) -> (String, Duration) {
        let mut leader = String::new();
        let took = eventually("a leader", limit, || {
            let found = self.open().into_iter().find(|name| !former.contains(&name.as_str()));
            std::future::ready(found.map(|name| leader = name).is_some())
        })
        .await;
        (leader, took)
    }
}

/// Looks for two open gates until it is dropped; panics then if it saw them.
struct Overseer {
    seen: Arc<Mutex<Option<Vec<String>>>>,
    task: JoinHandle<()>,
}

impl Overseer {
    fn of(board: &Board) -> Self {
        let (board, seen) = (board.clone(), Arc::new(Mutex::new(None)));
        let found = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut every = interval(Duration::from_millis(1));
            loop {
                every.tick().await;
                let together = board.together();
                if together.len() > 1 {
                    *found.lock().unwrap() = Some(together);
                }
            }
        });
        Overseer { seen, task }
    }
}

impl Drop for Overseer {
    fn drop(&mut self) {
        self.task.abort();
        if !std::thread::panicking() {
            assert_eq!(*self.seen.lock().unwrap(), None, "several may write at once");
        }
    }
}

fn candidate(client: &Client, lease: &str, name: &str) -> (Candidate, Standing) {
    let timing = Timing::new(LEASE);
    let standing = Standing::new(timing.duration());
    let metrics = Arc::new(Metrics::new());
    let candidate =
        Candidate::new(client.clone(), NAMESPACE, lease, name.to_owned(), timing, standing.clone(), metrics);
    (candidate, standing)
}

/// A candidate that stands for election again and again until it is stopped.
struct Player {
    name: String,
    standing: Standing,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Player {
    fn start(client: &Client, lease: &str, name: &str, board: &Board) -> Self {
        let (candidate, standing) = candidate(client, lease, name);
        let (board, stop) = (board.clone(), CancellationToken::new());
        let (stopped, own) = (stop.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            while let Some(mut term) = candidate.campaign(&stopped).await {
                board.add(&own, term.gate());
                tokio::select! {
                    _ = term.keep() => {}
                    () = stopped.cancelled() => return term.release().await.unwrap(),
                }
            }
        });
        Player { name: name.to_owned(), standing, stop, task }
    }

    /// Until it has seen the Lease, so that it would notice a release.
    async fn ready(self) -> Self {
        let ready = || std::future::ready(self.standing.readiness().is_ok());
        eventually("a ready standby", Duration::from_secs(10), ready).await;
        self
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(10), self.task).await.expect("a stopped candidate ends").unwrap();
    }
}

async fn lead(client: &Client, lease: &str, name: &str, board: &Board) -> Term {
    let (candidate, _) = candidate(client, lease, name);
    let never = CancellationToken::new();
    let term =
        timeout(LEASE + MARGIN, candidate.campaign(&never)).await.expect("a free lease is taken").unwrap();
    board.add(name, term.gate());
    term
}

async fn record(client: &Client, lease: &str) -> (Option<String>, i32) {
    let spec = leases(client).get(lease).await.unwrap().spec.unwrap();
    (spec.holder_identity, spec.lease_transitions.unwrap())
}

/// Waits until the lease is written again.
async fn renewal(client: &Client, lease: &str) {
    let version = async || leases(client).get(lease).await.unwrap().metadata.resource_version;
    let now = version().await;
    let renewed = async || version().await != now;
    eventually("a renewal", LEASE, renewed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_normal_stop_hands_over_within_a_second() {
    let server = server().await;
    let client = operator(&server).await;
    let board = Board::default();
    let _overseer = Overseer::of(&board);
    let mut leading = Player::start(&client, "hand-over", "candidate-0", &board).ready().await;
    board.leader(&[], LEASE).await;
    let mut slowest = Duration::ZERO;
    for round in 1..=5 {
        let next = Player::start(&client, "hand-over", &format!("candidate-{round}"), &board).ready().await;
        let former = leading.name.clone();
        leading.stop.cancel();
        let (leader, took) = board.leader(&[&former], LEASE).await;
        assert_eq!(leader, next.name);
        slowest = slowest.max(took);
        assert_eq!(record(&client, "hand-over").await, (Some(leader), round));
        leading.end().await;
        leading = next;
    }
    println!("slowest of 5 hand-overs: {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    leading.end().await;
    assert_eq!(record(&client, "hand-over").await, (None, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_candidates_one_leads() {
    let server = server().await;
    let client = operator(&server).await;
    let board = Board::default();
    let _overseer = Overseer::of(&board);
    let mut players = Vec::new();
    for number in 0..6 {
        players.push(Player::start(&client, "many", &format!("candidate-{number}"), &board));
    }
    let mut former = Vec::new();
    while !players.is_empty() {
        let names = former.iter().map(String::as_str).collect::<Vec<_>>();
        let (leader, _) = board.leader(&names, LEASE).await;
        // Time for the others to do what they must not.
        renewal(&client, "many").await;
        let index = players.iter().position(|player| player.name == leader).unwrap();
        players.swap_remove(index).end().await;
        former.push(leader);
    }
    assert_eq!(record(&client, "many").await, (None, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_holder_is_replaced_when_its_lease_has_ended() {
    let server = server().await;
    let client = operator(&server).await;
    let board = Board::default();
    let _overseer = Overseer::of(&board);
    let killed = Player::start(&client, "killed", "killed", &board);
    board.leader(&[], LEASE).await;
    let heir = Player::start(&client, "killed", "heir", &board).ready().await;
    renewal(&client, "killed").await;
    killed.task.abort();
    let (_, took) = board.leader(&["killed"], LEASE + MARGIN).await;
    println!("replaced {took:?} after the kill (lease {LEASE:?})");
    // The last renewal is at most a period old when the holder dies.
    let timing = Timing::new(LEASE);
    assert!(took > timing.duration() - timing.period() - timing.attempt(), "too early: {took:?}");
    assert_eq!(record(&client, "killed").await, (Some("heir".to_owned()), 1));
    heir.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_finds_its_gate_closed_and_changes_nothing() {
    let server = server().await;
    let client = operator(&server).await;
    let board = Board::default();
    let _overseer = Overseer::of(&board);
    // Nobody polls these terms: their process is paused.
    let mut wakes = lead(&client, "zombie", "wakes", &board).await;
    let gate = wakes.gate();
    let heir = Player::start(&client, "zombie", "heir", &board).ready().await;
    let closed = eventually("the gate to close", LEASE, || std::future::ready(!gate.open())).await;
    assert!(closed <= Timing::new(LEASE).deadline() + Duration::from_millis(100), "{closed:?}");
    board.leader(&["wakes"], LEASE + MARGIN).await;

    let before = leases(&client).get("zombie").await.unwrap().spec.unwrap().acquire_time;
    assert_eq!(timeout(MARGIN, wakes.keep()).await.expect("ends at once"), Loss::Expired);
    wakes.release().await.unwrap();
    assert!(!gate.open());
    assert_eq!(record(&client, "zombie").await, (Some("heir".to_owned()), 1));
    assert_eq!(leases(&client).get("zombie").await.unwrap().spec.unwrap().acquire_time, before);
    assert_eq!(board.open(), ["heir"]);
    heir.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_the_lease_is_noticed() {
    let server = server().await;
    let (client, root) = (operator(&server).await, admin(&server).await);
    let board = Board::default();
    let _overseer = Overseer::of(&board);
    let merge = |patch: Value| (PatchParams::default(), Patch::Merge(patch));

    // A label changes the resourceVersion under the holder, and no more.
    let mut term = lead(&client, "touched", "holder", &board).await;
    let (params, patch) = merge(json!({"metadata": {"labels": {"team": "platform"}}}));
    leases(&root).patch("touched", &params, &patch).await.unwrap();
    assert!(timeout(LEASE * 2, term.keep()).await.is_err(), "kept for two lease durations");
    assert!(term.gate().open());
    let kept = leases(&client).get("touched").await.unwrap();
    assert_eq!(kept.metadata.labels.unwrap()["team"], "platform");

    // Another holder, written by somebody who may.
    let (params, patch) = merge(json!({"spec": {"holderIdentity": "thief"}}));
    leases(&root).patch("touched", &params, &patch).await.unwrap();
    assert_eq!(timeout(LEASE, term.keep()).await.expect("noticed"), Loss::Taken("thief".to_owned()));
    assert!(!term.gate().open());
    term.release().await.unwrap();
    assert_eq!(record(&client, "touched").await, (Some("thief".to_owned()), 0));

    // The Lease deleted: its holder stops, and a standby waits until it must have.
    let mut term = lead(&client, "deleted", "holder", &board).await;
    let heir = Player::start(&client, "deleted", "heir", &board).ready().await;
    leases(&root).delete("deleted", &DeleteParams::default()).await.unwrap();
    assert_eq!(timeout(LEASE, term.keep()).await.expect("noticed"), Loss::Deleted);
    board.leader(&["holder"], LEASE + MARGIN).await;
    heir.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_cut_off_half_way_does_not_keep_the_lease() {
    let server = server().await;
    let client = operator(&server).await;
    let board = Board::default();
    let _overseer = Overseer::of(&board);
    for round in 0..20_u32 {
        let lease = format!("cut-{round}");
        let mut term = lead(&client, &lease, "holder", &board).await;
        // The first renewal is sent after a period; it is cut off somewhere in its few milliseconds.
        let cut = Timing::new(LEASE).period() + Duration::from_micros(u64::from(round) * 250);
        assert!(timeout(cut, term.keep()).await.is_err());
        term.release().await.unwrap();
        assert_eq!(record(&client, &lease).await.0, None, "cut after {cut:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_closes_every_gate_and_ends_with_one_leader() {
    let server = prepared().await;
    let client = operator(&server).await;
    let other = operator(&server).await;
    let board = Board::default();
    let _overseer = Overseer::of(&board);
    let first = Player::start(&client, "outage", "first", &board);
    board.leader(&[], LEASE).await;
    let second = Player::start(&other, "outage", "second", &board).ready().await;

    server.freeze();
    let closed = eventually("the gate to close", LEASE, || std::future::ready(board.open().is_empty())).await;
    assert!(closed <= Timing::new(LEASE).deadline() + Duration::from_millis(200), "{closed:?}");
    eventually("the outage to show", LEASE * 4, || {
        std::future::ready(first.standing.readiness().is_err() && second.standing.readiness().is_err())
    })
    .await;
    assert!(board.open().is_empty());

    server.thaw();
    let (leader, took) = board.leader(&[], LEASE + MARGIN * 2).await;
    println!("{leader} leads {took:?} after the outage");
    renewal(&client, "outage").await;
    assert_eq!(board.open(), [leader], "and goes on");
    first.end().await;
    second.end().await;
}

/// The operator's own program.
struct Process {
    child: Child,
    address: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts it and waits for the line that says where it listens.
    async fn start(server: &Apiserver, name: &str) -> Self {
        let kubeconfig = server.kubeconfig_path().with_file_name("operator.kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig_of(OPERATOR, &[]).unwrap()).unwrap();
        let name = name.to_owned();
        spawn_blocking(move || {
            let mut child = Command::new(env!("CARGO_BIN_EXE_kaas-operator"))
                .args(["--listen=127.0.0.1:0", "--lease-name=process", "--log=info"])
                .args(["--lease-duration=3s", "--namespace", NAMESPACE, "--identity", &name])
                .env("KUBECONFIG", kubeconfig)
                .env("MALLOC_ARENA_MAX", "2")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let started = lines.next().expect("a first line").unwrap();
            let log = Arc::new(Mutex::new(vec![started.clone()]));
            let kept = Arc::clone(&log);
            std::thread::spawn(move || {
                lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line))
            });
            let started: Value = serde_json::from_str(&started).unwrap();
            let address = started["address"].as_str().unwrap_or_else(|| panic!("{started}")).to_owned();
            Process { child, address, log }
        })
        .await
        .unwrap()
    }

    async fn ask(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(&self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn becomes(&self, standing: &str, limit: Duration) -> Duration {
        let is = async || self.ask("/readyz").await.ends_with(&format!("\r\n\r\n{standing}\n"));
        eventually(standing, limit, is).await
    }

    async fn metric(&self, name: &str) -> i64 {
        let page = self.ask("/metrics").await;
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name} is not in {page}")).parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    async fn ended(mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process to end", Duration::from_secs(8), || {
            status = self.child.try_wait().unwrap();
            std::future::ready(status.is_some())
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}\n", self.log.lock().unwrap().join("\n"));
        }
        // Gone already, where the test got that far.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_hand_over_freeze_and_die() {
    let server = prepared().await;
    let start = Instant::now();
    let first = Process::start(&server, "first").await;
    first.becomes("leading", MARGIN * 2).await;
    println!("leading {:?} after its start", start.elapsed());
    let second = Process::start(&server, "second").await;
    second.becomes("standing by", MARGIN).await;
    assert_eq!((first.metric("kaas_leader").await, second.metric("kaas_leader").await), (1, 0));

    first.signal(Signal::TERM);
    let took = second.becomes("leading", LEASE).await;
    println!("standby leads {took:?} after SIGTERM");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(first.ended().await.success());

    // Frozen, it is replaced; thawed, it finds its gate closed, stands by and says so.
    let third = Process::start(&server, "third").await;
    third.becomes("standing by", MARGIN).await;
    second.signal(Signal::STOP);
    third.becomes("leading", LEASE + MARGIN).await;
    second.signal(Signal::CONT);
    second.becomes("standing by", MARGIN).await;
    assert_eq!(second.metric("kaas_leader").await, 0);
    assert_eq!(second.metric(r#"kaas_lease_lost_total{reason="Expired"}"#).await, 1);
    assert!(second.ask("/healthz").await.starts_with("HTTP/1.1 200 "));

    third.signal(Signal::KILL);
    let took = second.becomes("leading", LEASE + MARGIN).await;
    println!("standby leads {took:?} after SIGKILL (lease {LEASE:?})");
    assert!(!third.ended().await.success());
    let bytes = second.metric("process_resident_memory_bytes").await;
    println!("resident memory of a leader without tenants: {:.1} MiB", bytes as f64 / 1024.0 / 1024.0);
    second.signal(Signal::INT);
    assert!(second.ended().await.success());
}
