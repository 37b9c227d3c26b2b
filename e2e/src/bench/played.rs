//! The operator's memory with many tenants. Its real program runs as a process of this machine, as in its pod;
//! the management cluster is a real kube-apiserver with its etcd, and every tenant's API is one more real
//! kube-apiserver, which all of them share. Their pods are played.
//!
//! No time is taken here: nothing starts.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Results;
use super::memory::Memory;
use super::player::{Player, Tenant};
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

/// Tenants under way at a time.
const AT_ONCE: usize = 8;
/// Until what was freed is given back and nothing is under way.
const REST: Duration = Duration::from_secs(30);
/// Processor time at rest is taken over so long: several rounds of probes.
const WATCHED: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// Below the ports that the kernel gives to clients; one for each tenant.
const NODE_PORTS: &str = "--service-node-port-range=20000-23999";
/// What the product promises for so many tenants.
const PROMISED: usize = 1000;
const MIB_PER_TENANT: f64 = 0.25;

/// A process that ends with this value, and its log.
struct Running(Identity, PathBuf);

impl Drop for Running {
    fn drop(&mut self) {
        // A drop cannot fail; the kernel ends what is left with this process.
        let _ = self.0.stop(Duration::from_secs(5));
    }
}

/// Plays tenants up to `count`, and looks at the operator on the way.
pub(super) fn measure(
    count: usize,
    operator: &Path,
    repository: &Repository,
    results: &mut Results,
) -> Result<(), Error> {
    say(format!("{count} tenants with played pods:"));
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
        management: Probe::of_kubeconfig(&management.kubeconfig()?)?,
        api: Probe::of_kubeconfig(&shared.kubeconfig()?)?,
        etcd: etcd_address,
        node,
        runtime: runtime.handle().clone(),
    };
    player.prepare()?;
    let running = start_operator(operator, &management, &node.to_string(), directory.path())?;
    let lease = ["--namespace", "kaas-system", "get", "lease", "kaas-operator"];
    management.kubectl().await_object("the operator to lead", &lease, PATIENCE, |_| Ok(()))?;

    let empty = look(0, &running, results)?;
    let (mut before, mut there) = (empty, 0);
    let mut tenants: Vec<Tenant> = Vec::new();
    let begun = Instant::now();
    for goal in steps(count) {
        tenants.extend(play(&player, tenants.len(), goal)?);
        say(format!("  {goal} tenants are Ready, {} s", begun.elapsed().as_secs()));
        let found = look(goal, &running, results)?;
        let each = (found - empty) / goal as f64;
        let figure = Figure::new(format!("  each of {goal} tenants adds"), Unit::Mebibytes, vec![each]);
        results.add(match goal == count && count >= PROMISED {
            true => figure.at_most(Of::Max, MIB_PER_TENANT),
            false => figure,
        })?;
        if there > 0 {
            let each = (found - before) / (goal - there) as f64;
            let title = format!("  each of the last {} adds", goal - there);
            results.add(Figure::new(title, Unit::Mebibytes, vec![each]))?;
        }
        (before, there) = (found, goal);
    }
    // The operator before what it talks to.
    drop(running);
    drop(tenants);
    drop(etcd);
    Ok(())
}

/// Numbers of tenants at which memory is looked at.
fn steps(count: usize) -> Vec<usize> {
    let mut steps: Vec<usize> = [count / 10, count / 2, count].into_iter().filter(|step| *step > 0).collect();
    steps.dedup();
    steps
}

/// Makes the tenants from `there` to `goal`, some at a time.
fn play(player: &Player, there: usize, goal: usize) -> Result<Vec<Tenant>, Error> {
    let next = AtomicUsize::new(there);
    let tenants = Mutex::new(Vec::new());
    let failed = Mutex::new(None);
    let keep = |tenant| {
        if let Ok(mut tenants) = tenants.lock() {
            tenants.push(tenant);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= goal {
                        return;
                    }
                    match player.play(number) {
                        Ok(tenant) => keep(tenant),
                        Err(error) => {
                            // The others stop at their next one.
                            next.store(goal, Ordering::Relaxed);
                            if let Ok(mut failed) = failed.lock() {
                                *failed = Some(error);
                            }
                            return;
                        }
                    }
                }
            });
        }
    });
    let died = || Error::Invalid("a playing thread died".to_owned());
    match failed.into_inner().map_err(|_| died())? {
        Some(error) => Err(error),
        None => tenants.into_inner().map_err(|_| died()),
    }
}

/// Memory and processor time of the operator at rest; MiB that are resident.
fn look(tenants: usize, running: &Running, results: &mut Results) -> Result<f64, Error> {
    let pid = running.0.pid;
    let gone = || {
        let log = read(&running.1.display().to_string());
        let skip = log.lines().count().saturating_sub(20);
        let last: Vec<&str> = log.lines().skip(skip).collect();
        Error::Invalid(format!("the operator has ended; its last words:\n{}", last.join("\n")))
    };
    std::thread::sleep(REST);
    let before = processor_seconds(pid).ok_or_else(gone)?;
    std::thread::sleep(WATCHED);
    let used = processor_seconds(pid).ok_or_else(gone)? - before;
    let memory = Memory::of(pid).ok_or_else(gone)?;
    let share = used / WATCHED.as_secs_f64();
    let raw = json!({"tenants": tenants, "memory": memory.json(), "processor_share": share});
    results.journal.note("played", raw)?;
    say(format!("  at rest with {tenants} tenants the operator uses {:.1} % of a core", share * 100.0));
    let title = format!("operator memory, leader, {tenants} played tenants");
    results.add(Figure::new(title, Unit::Mebibytes, vec![memory.mebibytes()]))?;
    let title = format!("  its open files, {tenants} played tenants");
    results.add(Figure::new(title, Unit::Times, vec![memory.files() as f64]))?;
    Ok(memory.mebibytes())
}

/// User and system time of a process: fields 14 and 15 of its stat, in hundredths of a second.
fn processor_seconds(pid: i32) -> Option<f64> {
    let stat = read(&format!("/proc/{pid}/stat"));
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / 100.0)
}

/// CRDs, the catalogue and the operator's namespace.
fn install(kubectl: &Kubectl, repository: &Repository) -> Result<(), Error> {
    let read = |file: &str| {
        let path = repository.root().join("charts").join(file);
        std::fs::read_to_string(&path).map_err(Error::io("read", &path))
    };
    for file in ["tenantclusters.yaml", "kubernetesreleases.yaml"] {
        kubectl.apply(&read(&format!("kaas-crds/templates/{file}"))?)?;
    }
    let version = crate::component::KUBERNETES;
    let spec: Value = serde_yaml::from_str(&read(&format!("kaas/catalogue/{version}.yaml"))?)
        .map_err(|error| Error::Invalid(format!("catalogue: {error}")))?;
    let release = json!({
        "apiVersion": "kaas.dev/v1alpha1", "kind": "KubernetesRelease", "metadata": {"name": version}, "spec": spec,
    });
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kaas-system"}});
    kubectl.apply(&namespace.to_string())?;
    // A new kind is served a moment after its definition.
    let apply = || kubectl.apply(&release.to_string()).map_err(|error| error.to_string());
    wait::until("the catalogue to be accepted", PATIENCE, POLL, apply, String::new)
}

/// The operator as in its pod, with an administrator's rights.
fn start_operator(
    operator: &Path,
    management: &Apiserver,
    node: &str,
    directory: &Path,
) -> Result<Running, Error> {
    let args = [
        format!("KUBECONFIG={}", management.kubeconfig_path().display()),
        "MALLOC_ARENA_MAX=2".to_owned(),
        operator.display().to_string(),
        "--namespace=kaas-system".to_owned(),
        "--identity=kaas-operator-0".to_owned(),
        "--listen=127.0.0.1:0".to_owned(),
        format!("--node-port-host={node}"),
    ];
    run("kaas-operator", Path::new("/usr/bin/env"), args.into(), directory)
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
fn node_address() -> Result<std::net::IpAddr, Error> {
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
    fn the_last_step_is_what_was_asked_for() {
        assert_eq!(steps(1000), [100, 500, 1000]);
        assert_eq!(steps(1), [1]);
        assert!(steps(0).is_empty());
    }
}
