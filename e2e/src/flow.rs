//! What a tenant goes through, on a real cluster: each flow is a small story with a claim that can fail. The
//! same flows run on a local cluster of their own and, with `KAAS_KUBECONFIG`, on any cluster that has the
//! operator; what only a local cluster can show is skipped there, by name and with the reason.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Error;
use crate::cluster::{Cluster, Spec};
use crate::compile::{self, Order, Toolbox};
use crate::component;
use crate::credentials::write_private;
use crate::kubectl::{Kubectl, at, condition};
use crate::layout::{Cache, Repository, State};
use crate::operator::tenant_is_ready;
use crate::release::OLDER;
use crate::tally::Tally;
use crate::terminal::{complain, say};

mod balancer;
mod chaos;
mod consent;
mod etcd_version;
mod forgery;
mod handover;
mod load;
mod overload;
mod policy;
mod preflight;
mod renewal;
mod scale;
mod spoiled;
mod tenant;
pub(crate) mod traffic;
mod upgrade;
mod workers;

const READY: Duration = Duration::from_secs(180);
const GONE: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// Every object of the flows is in this namespace of the management cluster.
const NAMESPACE: &str = "kaas-e2e";

/// The cluster that flows run on.
struct Stage {
    kubectl: Kubectl,
    program: PathBuf,
    scratch: tempfile::TempDir,
    /// The local cluster, if it is one: for flows that reach below Kubernetes or install another operator.
    ground: Option<Ground>,
    /// Why the flow that runs now cannot claim anything here.
    skipped: RefCell<Option<String>>,
}

/// A local cluster and what its operator is installed from.
struct Ground {
    cluster: RefCell<Cluster>,
    repository: Repository,
    cache: Cache,
    /// Whether workers find their images.
    stocked: Cell<bool>,
    /// The operator of a later version, while it is being built.
    next: Cell<Option<Builder>>,
}

type Builder = JoinHandle<Result<PathBuf, Error>>;

impl Ground {
    /// Puts the images of workers where they pull them: flows without workers do not wait for it.
    fn stock(&self) -> Result<(), Error> {
        if !self.stocked.get() {
            self.cluster.borrow().stock(&self.cache)?;
            self.stocked.set(true);
        }
        Ok(())
    }

    /// What is measured is measured on a machine that builds nothing.
    fn await_builder(&self) {
        if let Some(builder) = self.next.take() {
            while !builder.is_finished() {
                std::thread::sleep(POLL);
            }
            self.next.set(Some(builder));
        }
    }

    /// The operator of a later version.
    fn next_operator(&self) -> Result<PathBuf, Error> {
        match self.next.take() {
            Some(builder) => {
                builder.join().map_err(|_| Error::Invalid("the operator's build thread died".to_owned()))?
            }
            None => compile::build_next_operator(&self.repository, &self.cache),
        }
    }
}

struct Flow {
    name: &'static str,
    /// Why it runs on a local cluster only.
    local_only: Option<&'static str>,
    run: fn(&Stage) -> Result<(), Error>,
}

const FLOWS: &[Flow] = &[
    Flow {
        name: "a tenant becomes Ready and its API takes writes",
        local_only: None,
        run: tenant::a_tenant_serves,
    },
    Flow {
        name: "its kubeconfig is no key to everything",
        local_only: None,
        run: tenant::the_kubeconfig_is_bounded,
    },
    Flow {
        name: "a node port endpoint answers at the node's address",
        local_only: Some("the address of a node of another cluster may not be reachable from here"),
        run: tenant::a_node_port_answers,
    },
    Flow {
        name: "bad input is refused with the way out",
        local_only: None,
        run: tenant::bad_input_is_refused,
    },
    Flow {
        name: "an unknown version is a condition that lists what there is",
        local_only: None,
        run: tenant::an_unknown_version_is_named,
    },
    Flow {
        name: "a tenant's user reaches nobody else's, whatever it forges",
        local_only: None,
        run: forgery::forged_facts_lead_nowhere,
    },
    Flow {
        name: "a killed operator is replaced",
        local_only: Some(BELOW),
        run: chaos::the_operator_is_replaced,
    },
    Flow { name: "etcd scales 1 -> 3 -> 1 under load", local_only: Some(UNREACHABLE), run: scale::members },
    Flow {
        name: "killed processes of a control plane come back on their data",
        local_only: Some(BELOW),
        run: chaos::processes_come_back,
    },
    Flow {
        name: "three members lose their leader, and one its data",
        local_only: Some(BELOW),
        run: chaos::members_are_lost,
    },
    Flow {
        name: "a stranger does not reach etcd",
        local_only: None,
        run: policy::a_stranger_does_not_reach_etcd,
    },
    Flow { name: spoiled::CAUGHT, local_only: Some(SPOILS), run: spoiled::it_is_caught },
    Flow {
        name: consent::NAME,
        local_only: Some("it installs another build of the operator"),
        run: consent::nothing_restarts_unasked,
    },
];

/// The end of the tenant that most of the others need, and of what they left to end by itself; then what has tenants of
/// its own.
const LAST: &[Flow] = &[
    Flow { name: "deletion ends and leaves nothing", local_only: None, run: tenant::deletion_ends },
    Flow { name: upgrade::NAME, local_only: Some(VERSIONS), run: upgrade::goes_unnoticed },
];

/// What takes longer than a person waits for a test run.
const LONG: &[Flow] = &[
    Flow {
        name: "etcd scales 1 -> 3 -> 5 -> 3 -> 1 under load",
        local_only: Some(UNREACHABLE),
        run: scale::members_to_five,
    },
    Flow {
        name: "three members lose the pod of their leader",
        local_only: Some(BELOW),
        run: chaos::a_leader_is_lost,
    },
    Flow {
        name: "the kubelet is away for three minutes",
        local_only: Some(BELOW),
        run: chaos::the_kubelet_is_away,
    },
    Flow {
        name: "certificates are renewed while clients go on",
        local_only: Some("it installs an operator with another lifetime of certificates"),
        run: renewal::certificates_are_renewed,
    },
    Flow {
        name: "the address of a load balancer is followed",
        local_only: Some("it plays the load balancer, and another cluster may have a real one"),
        run: balancer::an_address_is_followed,
    },
    Flow {
        name: "a crowd of tenants comes and goes",
        local_only: Some("it wants the whole machine"),
        run: overload::a_crowd_comes_and_goes,
    },
    Flow { name: etcd_version::NAME, local_only: Some(VERSIONS), run: etcd_version::there_and_back },
    Flow { name: preflight::NAME, local_only: Some(VERSIONS), run: preflight::the_caller_is_named },
    Flow {
        name: handover::NAME,
        local_only: Some("it installs another build of the operator"),
        run: handover::the_successor_goes_on,
    },
    Flow { name: spoiled::CAUGHT_TOO, local_only: Some(SPOILS), run: spoiled::it_is_caught_too },
    Flow { name: spoiled::ROLLED_BACK, local_only: Some(SPOILS), run: spoiled::it_is_rolled_back },
];

const UNREACHABLE: &str = "its load needs an endpoint that is reached from here";
const VERSIONS: &str = "another cluster may not have both versions";
const BELOW: &str = "it kills processes of the node";
const SPOILS: &str = "it puts versions that do not work into the catalogue";

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What every test run has.
    Short,
    /// The long flows too.
    All,
}

/// Runs the flows on `KAAS_KUBECONFIG`, or else on a local cluster of their own that is taken down at the end,
/// with the given operator instead of the checkout's.
///
/// # Errors
/// When there is no cluster to run on; a flow that fails is in the tally.
pub fn run(
    repository: &Repository,
    cache: &Cache,
    operator: Option<PathBuf>,
    extent: Extent,
) -> Result<Tally, Error> {
    match std::env::var_os("KAAS_KUBECONFIG").filter(|value| !value.is_empty()) {
        Some(kubeconfig) => elsewhere(kubeconfig.into(), repository, cache, extent),
        None => on_a_local_cluster(repository, cache, operator, extent),
    }
}

/// What is run, in this order. The long ones come last, with tenants of their own.
fn flows(extent: Extent) -> Vec<&'static Flow> {
    let (long, matrix) =
        if extent == Extent::All { (LONG, upgrade::matrix::FLOWS) } else { (&[][..], &[][..]) };
    let chosen = chosen();
    let runs = |flow: &&Flow| chosen.is_empty() || chosen.iter().any(|part| flow.name.contains(part));
    FLOWS.iter().chain(workers::FLOWS).chain(LAST).chain(long).chain(matrix).filter(runs).collect()
}

/// Parts of the names of the flows that alone are wanted (`KAAS_FLOWS=scale,renewed`); empty: all of them. For
/// who works on a flow: most of them need the tenant that the first one makes.
fn chosen() -> Vec<String> {
    let value = std::env::var("KAAS_FLOWS").unwrap_or_default();
    value.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn elsewhere(
    kubeconfig: PathBuf,
    repository: &Repository,
    cache: &Cache,
    extent: Extent,
) -> Result<Tally, Error> {
    let toolbox = Toolbox::with(&["kubectl"], repository, cache)?;
    let stage = Stage::new(&toolbox, kubeconfig, None)?;
    let found = stage.kubectl.run(&[
        "get",
        "deployments",
        "-A",
        "-l",
        "app.kubernetes.io/name=kaas-operator",
        "-o",
        "name",
    ])?;
    if found.trim().is_empty() {
        return Err(Error::Invalid(
            "the cluster of KAAS_KUBECONFIG has no operator: install charts/kaas-crds and charts/kaas first"
                .to_owned(),
        ));
    }
    Ok(stage.play(extent))
}

/// The place of a cluster that lives as long as one command: what a killed run left in it is removed first,
/// and the cluster is taken down when this goes, also after a failure or an interrupt.
pub(crate) struct Guarded(State);

impl Guarded {
    /// One place for each purpose and clone.
    pub(crate) fn new(purpose: &str, repository: &Repository, cache: &Cache) -> Result<Self, Error> {
        let clone = crate::digest::of_bytes(repository.root().as_os_str().as_encoded_bytes());
        let name = format!("{purpose}-{}", crate::digest::short(&clone, 8));
        let state = State::at(cache.root().join(name))?;
        Cluster::remove(&state)?;
        demolish_when_interrupted(state.clone())?;
        Ok(Self(state))
    }

    pub(crate) fn state(&self) -> &State {
        &self.0
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Err(error) = Cluster::demolish(&self.0) {
            complain(format!("{} could not be taken down: {error}", self.0.root().display()));
        }
    }
}

/// What flows on a local cluster run.
pub(crate) fn order(operator: bool, extent: Extent) -> Order {
    let any = |names: &[&str]| flows(extent).iter().any(|flow| names.contains(&flow.name));
    let upgrades = any(&[upgrade::NAME]) || upgrade::matrix::FLOWS.iter().any(|flow| any(&[flow.name]));
    // A second Kubernetes, and a second etcd with it, is built for who upgrades from it only.
    let older = upgrades || any(&[preflight::NAME, handover::NAME, etcd_version::NAME]);
    let spoils = any(&[spoiled::CAUGHT, spoiled::CAUGHT_TOO, spoiled::ROLLED_BACK]);
    let programs = [(upgrades, &component::LOAD), (spoils, &component::SPOILED)];
    Order {
        operator,
        older: OLDER.iter().filter(|_| older).collect(),
        programs: programs.into_iter().filter_map(|(wanted, row)| wanted.then_some(row)).collect(),
    }
}

fn on_a_local_cluster(
    repository: &Repository,
    cache: &Cache,
    operator: Option<PathBuf>,
    extent: Extent,
) -> Result<Tally, Error> {
    crate::prerequisite::ensure(repository, cache)?;
    let build = compile::build_all(repository, cache, &order(operator.is_none(), extent))?;
    // A place for each kind of run: one must not take down another's cluster.
    let purpose = match extent {
        _ if !chosen().is_empty() => "flows",
        Extent::Short => "e2e",
        Extent::All => "soak",
    };
    let guarded = Guarded::new(purpose, repository, cache)?;
    // It is built while the cluster starts; the first flow under load waits for it.
    let next = flows(extent).iter().any(|flow| flow.name == consent::NAME).then(|| {
        let (repository, cache) = (repository.clone(), cache.clone());
        std::thread::spawn(move || compile::build_next_operator(&repository, &cache))
    });
    let state = guarded.state().clone();
    let spec =
        Spec { state: state.clone(), toolbox: build.toolbox.clone(), operator: operator.or(build.operator) };
    let mut cluster = Cluster::start(spec, cache)?;
    cluster.install_operator(repository)?;
    let ground = Ground {
        cluster: RefCell::new(cluster),
        repository: repository.clone(),
        cache: cache.clone(),
        stocked: Cell::new(false),
        next: Cell::new(next),
    };
    let stage = Stage::new(&build.toolbox, state.kubeconfig(), Some(ground))?;
    let mut tally = stage.play(extent);
    drop(stage);
    let started = Instant::now();
    Cluster::remove(&state)?;
    let left = Cluster::remains(&state)?;
    report(
        "the cluster goes down and leaves nothing",
        left.is_empty().then_some(()).ok_or(Error::LeftBehind(left)),
        started.elapsed().as_secs_f32(),
        &mut tally,
    );
    Ok(tally)
}

/// An interrupt (or the CI's TERM) takes the cluster down first: no other command would find it.
fn demolish_when_interrupted(state: State) -> Result<(), Error> {
    let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];
    let mut signals =
        signal_hook::iterator::Signals::new(signals).map_err(Error::io("watch", "interrupts"))?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            complain("interrupted: taking the cluster of the flows down");
            if let Err(error) = Cluster::demolish(&state) {
                complain(format!("it could not be taken down: {error}"));
            }
            std::process::exit(130);
        }
    });
    Ok(())
}

impl Stage {
    fn new(toolbox: &Toolbox, kubeconfig: PathBuf, ground: Option<Ground>) -> Result<Self, Error> {
        let program = toolbox.program("kubectl")?.to_owned();
        let scratch = tempfile::tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
        let kubectl = Kubectl::new(&program, &kubeconfig);
        Ok(Self { kubectl, program, scratch, ground, skipped: RefCell::default() })
    }

    fn play(&self, extent: Extent) -> Tally {
        let mut tally = Tally::default();
        for flow in flows(extent) {
            if let Some(reason) = flow.local_only.filter(|_| self.ground.is_none()) {
                say(format!("flow {}: skipped: {reason}", flow.name));
                tally.skipped.push(format!("{}: {reason}", flow.name));
                continue;
            }
            let started = Instant::now();
            let result = (flow.run)(self);
            if let Some(reason) = self.skipped.take().filter(|_| result.is_ok()) {
                say(format!("flow {}: skipped: {reason}", flow.name));
                tally.skipped.push(format!("{}: {reason}", flow.name));
                continue;
            }
            report(flow.name, result, started.elapsed().as_secs_f32(), &mut tally);
        }
        // What a failed flow left.
        let _ = self.kubectl.run(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"]);
        tally
    }

    /// The flow found out that it cannot claim anything here.
    #[expect(clippy::unnecessary_wraps, reason = "it is the result of the flow that calls it")]
    fn skip(&self, reason: String) -> Result<(), Error> {
        self.skipped.replace(Some(reason));
        Ok(())
    }

    fn apply_tenant(&self, name: &str, spec: Value) -> Result<(), Error> {
        self.apply_namespace()?;
        let tenant = json!({
            "apiVersion": "kaas.dev/v1alpha1",
            "kind": "TenantCluster",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": spec,
        });
        self.kubectl.apply(&tenant.to_string())
    }

    /// Asks for the end of a tenant, and leaves it to others to see it gone.
    fn dismiss(&self, name: &str) -> Result<(), Error> {
        let what = ["delete", "tenantclusters.kaas.dev", name, "--ignore-not-found", "--wait=false"];
        self.kubectl.run(&[&["--namespace", NAMESPACE], what.as_slice()].concat()).map(drop)
    }

    fn apply_namespace(&self) -> Result<(), Error> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        self.kubectl.apply(&namespace.to_string())
    }

    fn tenant(&self, name: &str) -> Result<Value, Error> {
        self.kubectl.read(&["--namespace", NAMESPACE, "get", "tenantclusters.kaas.dev", name])
    }

    fn await_tenant(
        &self,
        name: &str,
        what: &str,
        accept: impl Fn(&Value) -> Result<(), String>,
    ) -> Result<Value, Error> {
        let args = ["--namespace", NAMESPACE, "get", "tenantclusters.kaas.dev", name];
        self.kubectl.await_object(&format!("TenantCluster {name} {what}"), &args, READY, accept)
    }

    /// The kubeconfig that the operator made.
    fn tenant_kubeconfig(&self, name: &str) -> Result<String, Error> {
        let secret = format!("{name}-kubeconfig");
        let template = "go-template={{.data.value | base64decode}}";
        self.kubectl.run(&["--namespace", NAMESPACE, "get", "secret", &secret, "--output", template])
    }

    /// kubectl with the kubeconfig that the operator made.
    fn tenant_kubectl(&self, name: &str) -> Result<Kubectl, Error> {
        let text = self.tenant_kubeconfig(name)?;
        let path = self.scratch.path().join(name);
        write_private(&path, &text)?;
        Ok(Kubectl::new(&self.program, &path))
    }
}

impl Stage {
    /// The local cluster; flows that need it run on one only.
    fn ground(&self) -> Result<&Ground, Error> {
        self.ground
            .as_ref()
            .ok_or_else(|| Error::Invalid("this flow runs on a local cluster only".to_owned()))
    }

    /// Clients of a tenant that go on until they are told to stop.
    fn load(&self, name: &str) -> Result<load::Load, Error> {
        self.ground.iter().for_each(Ground::await_builder);
        load::Load::start(&self.tenant_kubeconfig(name)?)
    }

    /// Changes a tenant's spec by a merge patch.
    fn change(&self, name: &str, spec: &Value) -> Result<(), Error> {
        let patch = json!({"spec": spec}).to_string();
        let what = ["patch", "tenantclusters.kaas.dev", name, "--type=merge", "--patch", &patch];
        self.kubectl.run(&[&["--namespace", NAMESPACE], what.as_slice()].concat()).map(drop)
    }

    /// Waits until a tenant is Ready as its newest spec wants it and nothing is left to do.
    fn await_settled(&self, name: &str) -> Result<Value, Error> {
        self.await_tenant(name, "to be settled", settled)
    }

    /// The namespace of a tenant's control plane.
    fn home(&self, name: &str) -> Result<String, Error> {
        let uid = at(&self.tenant(name)?, "/metadata/uid").as_str().unwrap_or_default().to_owned();
        claim(!uid.is_empty(), || format!("TenantCluster {name} has no UID"))?;
        Ok(format!("kaas-{uid}"))
    }
}

/// Ready, of the newest spec, and at rest.
fn settled(object: &Value) -> Result<(), String> {
    tenant_is_ready(object)?;
    match (condition(object, "Reconciling"), at(object, "/status/operation").is_null()) {
        (Some("False"), true) => Ok(()),
        (reconciling, _) => Err(format!(
            "Reconciling is {}: {}; operation: {}",
            reconciling.unwrap_or("not set"),
            at(object, "/status/summary").as_str().unwrap_or_default(),
            at(object, "/status/operation"),
        )),
    }
}

fn report(name: &str, result: Result<(), Error>, seconds: f32, tally: &mut Tally) {
    match result {
        Ok(()) => {
            say(format!("flow {name}: ok ({seconds:.1} s)"));
            tally.passed += 1;
        }
        Err(error) => {
            say(format!("flow {name}: FAILED ({seconds:.1} s)\n{error}"));
            tally.fail(&format!("flow {name}"), &error.to_string());
        }
    }
}

fn claim(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Invalid(otherwise())) }
}

/// One API server, one member, reached through a node port.
fn small(version: &str) -> Value {
    json!({
        "version": version,
        "controlPlane": {"replicas": 1, "endpoint": {"type": "NodePort"}},
        "etcd": {"replicas": 1, "storage": {"persistent": {"size": "1Gi"}}},
    })
}

fn known_version() -> &'static str {
    crate::component::KUBERNETES
}
