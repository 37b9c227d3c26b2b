//! Where tenants are played: the operator's real program as a process of this machine, started as in its pod; the management
//! cluster, a real kube-apiserver with its etcd; one more of these that all tenants' endpoints lead to, and one more
//! etcd. And a look at the operator while nothing happens.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::Results;
use super::line::Line;
use super::memory::Memory;
use super::player::Player;
use super::table::{Figure, Of, Unit};
use super::timeline::read;
use crate::Error;
use crate::apiserver::{self, Apiserver};
use crate::compile::Toolbox;
use crate::kubectl::Kubectl;
use crate::layout::{Cache, Repository};
use crate::probe::Probe;
use crate::process::{Daemon, Identity, Place};
use crate::terminal::say;
use crate::wait;

/// Until what was freed is given back and nothing is under way.
const REST: Duration = Duration::from_secs(30);
/// Processor time at rest is taken over so long: several rounds of probes.
const WATCHED: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
const SCRAPE: Duration = Duration::from_secs(5);
/// Kinds of the operator's.
const KINDS: [&str; 5] = ["tenantclusters", "kubernetesreleases", "instancetypes", "workerpools", "workers"];
/// The type of all machines.
pub(super) const MACHINE: &str = "small";
/// Below the ports that the kernel gives to clients; one for each tenant.
const NODE_PORTS: &str = "--service-node-port-range=20000-23999";
/// What is told of the operator's work at rest, and how its metrics are called.
const WORK: [(&str, &str); 3] = [
    ("turns", "kaas_reconcile_duration_seconds_count"),
    ("probes", "kaas_probe_duration_seconds_count"),
    ("writes", "kaas_writes_total"),
];

/// A process that ends with this value, and its log.
struct Running(Identity, PathBuf);

impl Drop for Running {
    fn drop(&mut self) {
        // A drop cannot fail; the kernel ends what is left with this process.
        let _ = self.0.stop(Duration::from_secs(5));
    }
}

/// Everything that runs. The operator ends before what it talks to.
pub(super) struct Stage {
    operator: Running,
    metrics: SocketAddr,
    pub(super) player: Player,
    _etcd: Running,
    _runtime: Runtime,
    _management: Apiserver,
    _shared: Apiserver,
    _directory: tempfile::TempDir,
}

/// What was seen in one look.
pub(super) struct Look {
    /// Resident memory in MiB.
    pub(super) memory: f64,
    /// Processor time, in percent of a core.
    pub(super) share: f64,
}

impl Stage {
    /// Starts everything; the operator leads.
    pub(super) fn start(operator: &Path, repository: &Repository) -> Result<Self, Error> {
        let management = Apiserver::start_with(&[NODE_PORTS])?;
        let shared = Apiserver::start()?;
        // Named as the servers' own: what a run leaves that is killed goes with theirs.
        let directory = tempfile::Builder::new()
            .prefix(&format!("{}{}-", apiserver::PREFIX, std::process::id()))
            .tempdir()
            .map_err(Error::io("create", std::env::temp_dir()))?;
        let (etcd, etcd_address) = start_etcd(directory.path())?;
        install(&management.kubectl(), repository)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(Error::io("start", "a runtime"))?;
        let node = node_address()?;
        let player = Player {
            management: Line::new(Probe::of_kubeconfig(&management.kubeconfig()?)?),
            api: Line::new(Probe::of_kubeconfig(&shared.kubeconfig()?)?),
            etcd: etcd_address,
            node,
            runtime: runtime.handle().clone(),
        };
        player.prepare()?;
        let metrics = free_address()?;
        let operator = start_operator(operator, &management, node, metrics, directory.path())?;
        let lease = ["--namespace", "kaas-system", "get", "lease", "kaas-operator"];
        management.kubectl().await_object("the operator to lead", &lease, PATIENCE, |_| Ok(()))?;
        Ok(Self {
            operator,
            metrics,
            player,
            _etcd: etcd,
            _runtime: runtime,
            _management: management,
            _shared: shared,
            _directory: directory,
        })
    }

    /// Memory and processor time of the operator at rest, with what there is then.
    pub(super) fn look(&self, what: &str, results: &mut Results) -> Result<Look, Error> {
        std::thread::sleep(REST);
        let before = (self.processor_seconds()?, self.work()?);
        std::thread::sleep(WATCHED);
        let share = (self.processor_seconds()? - before.0) / WATCHED.as_secs_f64() * 100.0;
        let work: Vec<(&str, f64)> = self
            .work()?
            .into_iter()
            .zip(before.1)
            .map(|((name, now), (_, then))| (name, now - then))
            .collect();
        let memory = Memory::of(self.operator.0.pid).ok_or_else(|| self.gone())?;
        let did: serde_json::Map<String, Value> =
            work.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
        let raw = json!({"with": what, "memory": memory.json(), "processor_percent": share, "did": did});
        results.journal.note("played", raw)?;
        let told: Vec<String> = work.iter().map(|(name, count)| format!("{count:.0} {name}")).collect();
        say(format!(
            "  at rest with {what}: {share:.1} % of a core; {} in {} s",
            told.join(", "),
            WATCHED.as_secs()
        ));
        let title = format!("operator memory, leader, {what}");
        results.add(Figure::new(title, Unit::Mebibytes, vec![memory.mebibytes()]))?;
        let title = format!("  its open files, {what}");
        results.add(Figure::new(title, Unit::Times, vec![memory.files() as f64]))?;
        Ok(Look { memory: memory.mebibytes(), share })
    }

    fn gone(&self) -> Error {
        Error::Invalid(format!("the operator has ended; its last words:\n{}", self.last_words()))
    }

    /// With what the operator said last.
    pub(super) fn explain(&self, error: Error) -> Error {
        Error::Invalid(format!("{error}\nthe operator's last words:\n{}", self.last_words()))
    }

    fn last_words(&self) -> String {
        let log = read(&self.operator.1.display().to_string());
        let skip = log.lines().count().saturating_sub(20);
        log.lines().skip(skip).collect::<Vec<_>>().join("\n")
    }

    fn processor_seconds(&self) -> Result<f64, Error> {
        processor_seconds(self.operator.0.pid).ok_or_else(|| self.gone())
    }

    /// What the operator has done since its start.
    fn work(&self) -> Result<Vec<(&'static str, f64)>, Error> {
        let page = scrape(self.metrics).map_err(Error::io("read metrics of", self.metrics.to_string()))?;
        Ok(WORK.iter().map(|(name, metric)| (*name, sum(&page, metric))).collect())
    }
}

/// The share of the processor that the operator has at rest.
pub(super) fn at_rest(what: &str, look: &Look, most: Option<f64>) -> Figure {
    let figure =
        Figure::new(format!("  its processor time at rest, {what}"), Unit::Percent, vec![look.share]);
    match most {
        Some(most) => figure.at_most(Of::Max, most),
        None => figure,
    }
}

fn scrape(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, SCRAPE)?;
    stream.set_read_timeout(Some(SCRAPE))?;
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// A metric over all its labels.
fn sum(page: &str, metric: &str) -> f64 {
    let values = page.lines().filter_map(|line| line.strip_prefix(metric)).filter_map(|rest| {
        let (labels, value) = rest.rsplit_once(' ')?;
        if labels.is_empty() || labels.starts_with('{') { value.parse::<f64>().ok() } else { None }
    });
    values.sum()
}

/// User and system time of a process: fields 14 and 15 of its stat, in hundredths of a second.
fn processor_seconds(pid: i32) -> Option<f64> {
    let stat = read(&format!("/proc/{pid}/stat"));
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / 100.0)
}

/// CRDs, the catalogue, the operator's namespace and a type of machines.
fn install(kubectl: &Kubectl, repository: &Repository) -> Result<(), Error> {
    let read = |file: &str| {
        let path = repository.root().join("charts").join(file);
        std::fs::read_to_string(&path).map_err(Error::io("read", &path))
    };
    for kind in KINDS {
        kubectl.apply(&read(&format!("kaas-crds/templates/{kind}.yaml"))?)?;
    }
    let version = crate::component::KUBERNETES;
    let spec: Value = serde_yaml::from_str(&read(&format!("kaas/catalogue/{version}.yaml"))?)
        .map_err(|error| Error::Invalid(format!("catalogue: {error}")))?;
    let object = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "kaas.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let machine = json!({"capacity": {"cpu": "1", "memory": "2Gi"}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kaas-system"}});
    kubectl.apply(&namespace.to_string())?;
    for object in [object("KubernetesRelease", version, spec), object("InstanceType", MACHINE, machine)] {
        // A new kind is served a moment after its definition.
        let apply = || kubectl.apply(&object.to_string()).map_err(|error| error.to_string());
        wait::until("the catalogue to be accepted", PATIENCE, POLL, apply, String::new)?;
    }
    Ok(())
}

/// The operator as in its pod, with an administrator's rights.
fn start_operator(
    operator: &Path,
    management: &Apiserver,
    node: IpAddr,
    metrics: SocketAddr,
    directory: &Path,
) -> Result<Running, Error> {
    let args = [
        format!("KUBECONFIG={}", management.kubeconfig_path().display()),
        "MALLOC_ARENA_MAX=2".to_owned(),
        operator.display().to_string(),
        "--namespace=kaas-system".to_owned(),
        "--identity=kaas-operator-0".to_owned(),
        format!("--listen={metrics}"),
        format!("--node-port-host={node}"),
        "--pod-workers".to_owned(),
    ];
    run("kaas-operator", Path::new("/usr/bin/env"), args.into(), directory)
}

fn free_address() -> Result<SocketAddr, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map_err(Error::io("find a free port of", "127.0.0.1"))
}

/// One member, named as the operator's first member is. Doors speak TLS in front of it.
fn start_etcd(directory: &Path) -> Result<(Running, SocketAddr), Error> {
    let toolbox = Toolbox::with(&["etcd"], &Repository::find()?, &Cache::find()?)?;
    let bind = || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr().map(|address| (listener, address)))
            .map_err(Error::io("find a free port of", "127.0.0.1"))
    };
    let ((held, client), (held_too, peer)) = (bind()?, bind()?);
    drop((held, held_too));
    let args = [
        "--name=etcd-0".to_owned(),
        format!("--data-dir={}", directory.join("etcd").display()),
        format!("--listen-client-urls=http://{client}"),
        format!("--advertise-client-urls=http://{client}"),
        format!("--listen-peer-urls=http://{peer}"),
        format!("--initial-advertise-peer-urls=http://{peer}"),
        format!("--initial-cluster=etcd-0=http://{peer}"),
        "--heartbeat-interval=10".to_owned(),
        "--election-timeout=100".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    let running = run("etcd", toolbox.program("etcd")?, args.into(), directory)?;
    let connect = || std::net::TcpStream::connect(client).map(drop).map_err(|error| error.to_string());
    let log = || read(&directory.join("etcd.log").display().to_string());
    wait::until("etcd to listen", PATIENCE, POLL, connect, log)?;
    Ok((running, client))
}

fn run(name: &'static str, program: &Path, args: Vec<String>, directory: &Path) -> Result<Running, Error> {
    let daemon = Daemon { name, program: program.to_owned(), args, reads: vec![] };
    let place = Place { dies_with_parent: true, ..Place::default() };
    let log = directory.join(format!("{name}.log"));
    daemon.start(&place, &log).map(|identity| Running(identity, log))
}

/// The address of this machine that others would be told: nothing is sent for it.
fn node_address() -> Result<IpAddr, Error> {
    let found = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    found.ok().map(|address| address.ip()).filter(|address| !address.is_loopback()).ok_or_else(|| {
        Error::Prerequisite("this machine has no address besides loopback: give an interface one".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels_and_no_other_is_taken_for_it() {
        let page = "# HELP a_total x\na_total{b=\"c d\"} 2\na_total 3\na_total_more 4\n";
        assert_eq!(sum(page, "a_total"), 5.0);
    }
}
