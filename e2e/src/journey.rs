//! What a person does with a local cluster: `up`, `down`, `build`, `status`, with a line for each step.

use std::path::PathBuf;
use std::time::Instant;

use crate::Error;
use crate::cluster::{Cluster, Spec};
use crate::compile::{self, Order};
use crate::demo;
use crate::layout::{Cache, Repository, State};
use crate::prerequisite;
use crate::record::Record;
use crate::release::{NEWEST, OLDER, Release};
use crate::terminal::say;

/// Which operator a cluster gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operator {
    /// None: the bare cluster.
    None,
    /// The one of this checkout.
    Build,
    /// A binary that is there already, for example another version's.
    Binary(PathBuf),
}

/// Brings everything up, with the demo tenant at the version asked for, or at the newest, and prints what there is.
///
/// # Errors
/// The first step that failed.
pub fn up(
    repository: &Repository,
    cache: &Cache,
    state: &State,
    operator: Operator,
    asked: Option<&'static Release>,
) -> Result<(), Error> {
    let started = Instant::now();
    let offered = Record::read(state)?.map(|record| record.offered).unwrap_or_default();
    let older = older(asked, &offered);
    say(format!(
        "a first run builds Kubernetes and takes up to {} minutes on two cores; what is built stays in {}",
        NEWEST.minutes + older.iter().map(|release| release.minutes).sum::<u32>(),
        cache.root().display()
    ));
    if let Some(asked) = asked {
        demo::accepts(state, asked)?;
    }
    prerequisite::ensure(repository, cache)?;
    let order = Order { operator: operator == Operator::Build, older, ..Order::default() };
    let build = compile::build_all(repository, cache, &order)?;
    say(format!("programs are there ({} s)", started.elapsed().as_secs()));
    let bare = operator == Operator::None;
    let binary = match operator {
        Operator::Binary(path) => Some(path),
        _ => build.operator,
    };
    let spec = Spec { state: state.clone(), toolbox: build.toolbox, operator: binary };
    let mut cluster = Cluster::start(spec, cache)?;
    say(format!(
        "the cluster runs at https://{}:6443 ({} s)",
        cluster.address(),
        started.elapsed().as_secs()
    ));
    if bare {
        return Ok(());
    }
    cluster.install_operator(repository)?;
    say(format!("the operator is installed ({} s)", started.elapsed().as_secs()));
    cluster.stock(cache)?;
    cluster.demonstrate(repository, asked)?;
    say(format!("the demo tenant and its workers are Ready ({} s)", started.elapsed().as_secs()));
    cluster.greet(repository)?;
    say(format!("its Deployment answers through a Service and DNS ({} s)", started.elapsed().as_secs()));
    present(&cluster, state)
}

/// The older releases to build: the one that is asked for, and those that the cluster has.
fn older(asked: Option<&Release>, offered: &[String]) -> Vec<&'static Release> {
    let wanted = |release: &&Release| {
        let version = release.kubernetes;
        asked.is_some_and(|asked| asked.kubernetes == version) || offered.iter().any(|known| known == version)
    };
    OLDER.iter().filter(wanted).collect()
}

/// The table, and what to try next.
fn present(cluster: &Cluster, state: &State) -> Result<(), Error> {
    let here = std::env::current_dir().unwrap_or_default();
    let short = |path: std::path::PathBuf| path.strip_prefix(&here).unwrap_or(&path).display().to_string();
    let kubectl = short(state.bin().join("kubectl"));
    let management = short(state.kubeconfig());
    let tenant = short(state.tenant_kubeconfig(demo::TENANT));
    say("\n$ kubectl get tenantclusters -A");
    say(cluster.kubectl()?.run(&["get", "tenantclusters", "-A"])?.trim_end());
    say("\nnext:");
    for command in [
        "get nodes",
        "get pods -A -o wide",
        "exec deploy/hello -- wget -qO- http://hello/hostname",
        "port-forward svc/hello 8080:80",
        "top nodes",
    ] {
        say(format!("  {kubectl} --kubeconfig {tenant} {command}"));
    }
    say(format!("  {kubectl} --kubeconfig {management} -n demo scale workerpool general --replicas=3"));
    say(format!("  {kubectl} --kubeconfig {management} get pods -A"));
    if cluster.toolbox.of_releases().count() > 1 {
        say(format!("  {kubectl} --kubeconfig {management} {}", demo::change(NEWEST.kubernetes)));
    }
    say("  make down");
    Ok(())
}

/// Takes everything down and proves that nothing is left.
///
/// # Errors
/// [`Error::LeftBehind`], or what could not be ended.
pub fn down(state: &State) -> Result<(), Error> {
    let started = Instant::now();
    Cluster::remove(state)?;
    let left = Cluster::remains(state)?;
    if !left.is_empty() {
        return Err(Error::LeftBehind(left));
    }
    let seconds = started.elapsed().as_secs_f32();
    say(format!("down in {seconds:.1} s; nothing is left of {}", state.root().display()));
    Ok(())
}

/// Builds what is missing.
///
/// # Errors
/// [`Error::Build`] of the first component that failed.
pub fn build(repository: &Repository, cache: &Cache, asked: Option<&'static Release>) -> Result<(), Error> {
    prerequisite::ensure(repository, cache)?;
    let started = Instant::now();
    let older = older(asked, &[]);
    compile::build_all(repository, cache, &Order { operator: true, older, ..Order::default() })?;
    say(format!("everything is built ({} s)", started.elapsed().as_secs()));
    Ok(())
}

/// Says which daemons run.
///
/// # Errors
/// [`Error::Invalid`] when the record cannot be read.
pub fn status(state: &State) -> Result<(), Error> {
    let Some(record) = Record::read(state)? else {
        say(format!("no cluster in {}: `make up` makes one", state.root().display()));
        return Ok(());
    };
    say(format!("{} at 10.77.{}.1 in {}", record.name, record.index, state.root().display()));
    for (name, identity) in &record.daemons {
        let word = if identity.alive() { "runs" } else { "has ended" };
        say(format!("  {name:<24} {word} (pid {})", identity.pid));
    }
    Ok(())
}

/// Runs the flows and says how many held.
///
/// # Errors
/// [`Error::Invalid`] when one failed or none ran.
pub fn e2e(
    repository: &Repository,
    cache: &Cache,
    operator: Option<PathBuf>,
    extent: crate::flow::Extent,
) -> Result<(), Error> {
    let tally = crate::flow::run(repository, cache, operator, extent)?;
    tally.conclude()
}
