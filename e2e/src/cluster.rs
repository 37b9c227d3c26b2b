//! One local cluster from its state directory: brought up step by step, each step leaving what is right
//! alone, and taken down by names that derive from the directory's path, so that it works after any crash.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use crate::Error;
use crate::addon;
use crate::cgroup::Hierarchies;
use crate::compile::Toolbox;
use crate::control_plane::{AUDIT_POLICY, ControlPlane};
use crate::credentials::{Credentials, Subject, write_private};
use crate::image::{Archive, Image, catalogue};
use crate::invocation::Invocation;
use crate::kubectl::{Kubectl, at};
use crate::layout::{Cache, State};
use crate::lock::Lock;
use crate::machine::Machine;
use crate::namespace::{Namespaces, mounts_below, unmount_below};
use crate::network::{self, Network};
use crate::node::{Node, SOCKET};
use crate::process::{Daemon, Identity, Place};
use crate::record::{Record, name_of, write_whole};
use crate::registry::Registry;
use crate::wait;

const API_PORT: u16 = 6443;
const ETCD_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const NODE_DEADLINE: Duration = Duration::from_secs(120);
const KILL_DEADLINE: Duration = Duration::from_secs(30);
const STOP_GRACE: Duration = Duration::from_secs(15);
/// Another `up` or `down` of the same state directory.
const LOCK_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);
/// Programs that a person finds in the state directory's bin.
const LINKED: &[&str] = &["kubectl", "kubeadm", "helm", "etcdctl", "etcdutl", "ctr", "crane"];

/// What to start.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Where the cluster keeps everything.
    pub state: State,
    /// Programs to run.
    pub toolbox: Toolbox,
    /// The operator's binary, whose image is imported too.
    pub operator: Option<PathBuf>,
}

/// A running local cluster.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) state: State,
    pub(crate) network: Network,
    pub(crate) record: Record,
    pub(crate) toolbox: Toolbox,
    /// Tag of the operator's image, if there is one.
    pub(crate) operator_tag: Option<String>,
    _lock: Lock,
}

impl Cluster {
    /// Brings the cluster up: network, control plane, node, DNS, storage, images, and the workers' registry, which
    /// [`Cluster::stock`] fills. What runs and is right stays; what does not is started (again) on the data that is
    /// there.
    ///
    /// # Errors
    /// The first step that failed, with what a person would look up next.
    pub fn start(spec: Spec, cache: &Cache) -> Result<Self, Error> {
        let Spec { state, toolbox, operator } = spec;
        crate::prerequisite::root()?;
        let lock = lock_of(&state)?;
        let name = name_of(&state);
        let used = network::host_addresses()?;
        std::fs::create_dir_all(state.log()).map_err(Error::io("create", state.log()))?;
        let index = Machine::open()?.enter(&name, state.root(), &used)?;
        let mut record = match Record::read(&state)? {
            Some(record) if record.name == name && record.index == index => record,
            // Another index (a reboot forgot the register): certificates name the old address.
            Some(_) => {
                Self::discard_credentials(&state)?;
                Record::new(name.clone(), index)
            }
            None => Record::new(name.clone(), index),
        };
        // A version without its images is not one to offer.
        let offered = toolbox.of_releases().map(|toolbox| toolbox.release().kubernetes.to_owned());
        record.offered = offered.collect();
        record.write(&state)?;
        let network = Network::new(&name, index);
        let operator_tag = match &operator {
            Some(program) => Some(crate::digest::short(&crate::digest::of_file(program)?, 12)),
            None => None,
        };
        let mut cluster = Self { state, network, record, toolbox, operator_tag, _lock: lock };
        cluster.bring_up(cache, operator.as_deref())?;
        Ok(cluster)
    }

    fn discard_credentials(state: &State) -> Result<(), Error> {
        match std::fs::remove_dir_all(state.pki()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", state.pki())(error))
            }
            _ => Ok(()),
        }
    }

    fn bring_up(&mut self, cache: &Cache, operator: Option<&Path>) -> Result<(), Error> {
        let hierarchies = Hierarchies::detect()?;
        let cgroup = hierarchies.create(self.network.name())?;
        let namespaces = Namespaces::of(&self.state);
        namespaces.create(&self.state)?;
        self.network.create(&namespaces.network())?;
        let node_name = self.network.name().to_owned();
        let address = IpAddr::from(self.network.node());
        let server = format!("https://{}:{API_PORT}", self.network.node());
        let subject = Subject {
            server: &server,
            addresses: &[address, IpAddr::from([127, 0, 0, 1])],
            node: Some(&node_name),
        };
        let credentials = Credentials::create(self.state.pki(), &subject)?;
        write_private(&self.state.kubeconfig(), &credentials.read("admin.kubeconfig")?)?;
        let toolbox = self.toolbox.clone();
        link_programs(&self.state, &toolbox)?;
        let audit_policy = self.state.config().join("audit.yaml");
        write_whole(&audit_policy, AUDIT_POLICY.as_bytes())?;
        let control_plane = ControlPlane {
            toolbox: &toolbox,
            credentials: &credentials,
            address,
            etcd_port: ETCD_PORT,
            peer_port: PEER_PORT,
            api_port: API_PORT,
            etcd_directory: self.state.etcd(),
            audit_log: self.state.log().join("audit.log"),
            audit_policy,
        };
        let (state, network) = (self.state.clone(), self.network.clone());
        let node = Node {
            name: &node_name,
            state: &state,
            network: &network,
            hierarchies: &hierarchies,
            toolbox: &toolbox,
            credentials: &credentials,
        };
        node.configure()?;
        let in_network =
            Place { cgroup: Some(cgroup), network: Some(namespaces.network()), ..Place::default() };
        let on_node = Place { mount: Some(namespaces.mount()), ..in_network.clone() };

        self.ensure(&node.containerd()?, &on_node)?;
        let images = catalogue::management(&toolbox, cache, operator.zip(self.operator_tag.as_deref()))?;
        let runtime = Runtime { toolbox: &toolbox, mount: namespaces.mount() };
        let mut started = Timestamp::MIN;
        std::thread::scope(|scope| {
            let import = scope.spawn(|| runtime.import(&images, cache));
            let etcd = self.ensure(&control_plane.etcd()?, &in_network)?;
            control_plane.await_etcd(&etcd, &self.log_of("etcd"))?;
            let api_server = self.ensure(&control_plane.api_server()?, &in_network)?;
            control_plane.await_api_server(&api_server, &self.log_of("kube-apiserver"))?;
            // Not before the API server answers: it would exit and lose seconds to waiting.
            self.ensure(&control_plane.controller_manager()?, &in_network)?;
            self.ensure(&control_plane.scheduler()?, &in_network)?;
            let before = (self.record.daemons.get("kubelet").cloned(), Timestamp::now());
            let kubelet = self.ensure(&node.kubelet()?, &on_node)?;
            if before.0 != Some(kubelet) {
                started = before.1;
            }
            self.ensure(&node.proxy()?, &on_node)?;
            // Before any pod: one that finds no image waits ten seconds before it looks again.
            import.join().map_err(|_| Error::Invalid("the import of images died".to_owned()))?
        })?;
        let kubectl = self.kubectl()?;
        addon::apply(&kubectl, &self.state)?;
        let ready = |object: &serde_json::Value| node_is_ready(object, started);
        let what = format!("node {node_name} to be Ready");
        kubectl.await_object(&what, &["get", "node", &node_name], NODE_DEADLINE, ready)?;
        addon::await_ready(&kubectl)
    }

    /// Puts what workers pull into the registry: only who has workers waits for it.
    ///
    /// # Errors
    /// What cannot be made or sent.
    pub fn stock(&self, cache: &Cache) -> Result<(), Error> {
        let images = catalogue::workers(&self.toolbox)?;
        Registry::of(&self.toolbox, &self.state, self.address())?.fill(&images, cache)
    }

    /// Starts a daemon unless it runs as it should; restarts it when its program or configuration changed.
    fn ensure(&mut self, daemon: &Daemon, place: &Place) -> Result<Identity, Error> {
        if let Some(running) = self.record.daemons.get(daemon.name).filter(|identity| identity.alive()) {
            if running.digest == daemon.digest() {
                return Ok(running.clone());
            }
            running.stop(STOP_GRACE)?;
        }
        let identity = daemon.start(place, &self.log_of(daemon.name))?;
        self.record.daemons.insert(daemon.name.to_owned(), identity.clone());
        self.record.write(&self.state)?;
        Ok(identity)
    }

    /// Imports another build of the operator; the next install takes it. Returns the one before, for the way back.
    pub(crate) fn import_operator(&mut self, program: &Path, cache: &Cache) -> Result<Option<String>, Error> {
        let tag = crate::digest::short(&crate::digest::of_file(program)?, 12);
        let images = catalogue::management(&self.toolbox, cache, Some((program, &tag)))?;
        self.import(&images, cache)?;
        Ok(self.operator_tag.replace(tag))
    }

    /// Imports further images.
    pub(crate) fn import(&self, images: &[Image], cache: &Cache) -> Result<(), Error> {
        let namespaces = Namespaces::of(&self.state);
        Runtime { toolbox: &self.toolbox, mount: namespaces.mount() }.import(images, cache)
    }

    fn log_of(&self, daemon: &str) -> PathBuf {
        self.state.log().join(format!("{daemon}.log"))
    }

    /// kubectl as the cluster's administrator.
    ///
    /// # Errors
    /// [`Error::Invalid`] when kubectl was not built.
    pub fn kubectl(&self) -> Result<Kubectl, Error> {
        Ok(Kubectl::new(self.toolbox.program("kubectl")?, &self.state.kubeconfig()))
    }

    /// Address of the node: node ports are reached here.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.network.node().into()
    }

    /// The cluster's state directory.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Ends everything of the cluster in a state directory and removes it, whatever was left by whom. What
    /// is gone already is no error.
    ///
    /// # Errors
    /// What could not be ended or removed; run it again after the cause is gone.
    pub fn remove(state: &State) -> Result<(), Error> {
        crate::prerequisite::root()?;
        let lock = if state.root().exists() { Some(lock_of(state)?) } else { None };
        let result = Self::demolish(state);
        drop(lock);
        result
    }

    /// The same for who holds the lock, or ends a process that does.
    pub(crate) fn demolish(state: &State) -> Result<(), Error> {
        let name = name_of(state);
        let hierarchies = Hierarchies::detect()?;
        // kubelet first, then whatever it started: nothing comes back while the rest is killed.
        if let Ok(Some(record)) = Record::read(state) {
            for daemon in ["kubelet", "containerd"] {
                if let Some(identity) = record.daemons.get(daemon) {
                    identity.stop(Duration::ZERO)?;
                }
            }
        }
        hierarchies.kill(&name, KILL_DEADLINE)?;
        Network::new(&name, 0).remove()?;
        Namespaces::of(state).remove()?;
        hierarchies.remove(&name, KILL_DEADLINE)?;
        Machine::open()?.leave(&name)?;
        if !state.root().exists() {
            return Ok(());
        }
        unmount_below(state.root())?;
        if let Some(mount) = mounts_below(state.root())?.first() {
            return Err(Error::Invalid(format!(
                "{} is still mounted: nothing below {} was deleted",
                mount.display(),
                state.root().display()
            )));
        }
        std::fs::remove_dir_all(state.root()).map_err(Error::io("remove", state.root()))
    }

    /// What a cluster that was taken down has left on the machine: nothing, or one line for each thing.
    ///
    /// # Errors
    /// [`Error::Io`] when the machine cannot be looked at.
    pub fn remains(state: &State) -> Result<Vec<String>, Error> {
        let name = name_of(state);
        let hierarchies = Hierarchies::detect()?;
        let mut left = Network::new(&name, 0).remains();
        left.extend(hierarchies.remains(&name).iter().map(|path| format!("cgroup {}", path.display())));
        left.extend(hierarchies.processes(&name).iter().map(|pid| format!("process {pid}")));
        left.extend(crate::footprint::processes_naming(state.root())?);
        left.extend(mounts_below(state.root())?.iter().map(|path| format!("mount {}", path.display())));
        if state.root().exists() {
            left.push(format!("directory {}", state.root().display()));
        }
        let machine = Machine::open()?;
        if machine.has(&name) {
            left.push(format!("entry of {name} in the machine's register"));
        }
        if machine.is_empty() {
            let settings = machine.changed_settings();
            left.extend(settings.keys().map(|name| format!("changed kernel setting {name}")));
        }
        machine.close_if_empty()?;
        Ok(left)
    }
}

/// Two commands on one state directory would undo each other.
fn lock_of(state: &State) -> Result<Lock, Error> {
    Lock::exclusive(&state.root().join("lock"), LOCK_DEADLINE)
}

/// Ready by the word of the kubelet that runs now: the one before may have said so last.
fn node_is_ready(node: &serde_json::Value, started: Timestamp) -> Result<(), String> {
    let conditions = at(node, "/status/conditions").as_array();
    let ready = conditions.into_iter().flatten().find(|condition| at(condition, "/type") == "Ready");
    let ready = ready.ok_or("it has no condition Ready yet")?;
    let said = at(ready, "/lastHeartbeatTime").as_str().unwrap_or_default().parse::<Timestamp>();
    // Heartbeats are in whole seconds.
    if !said.is_ok_and(|said| said.as_second() >= started.as_second()) {
        return Err("what it says is older than its kubelet's start".to_owned());
    }
    match at(ready, "/status").as_str() {
        Some("True") => Ok(()),
        other => Err(format!("Ready is {}", other.unwrap_or("not set"))),
    }
}

fn link_programs(state: &State, toolbox: &Toolbox) -> Result<(), Error> {
    let bin = state.bin();
    std::fs::create_dir_all(&bin).map_err(Error::io("create", &bin))?;
    for name in LINKED {
        let (link, target) = (bin.join(name), toolbox.program(name)?);
        if std::fs::read_link(&link).is_ok_and(|known| known == target) {
            continue;
        }
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).map_err(Error::io("create", &link))?;
    }
    Ok(())
}

/// containerd of the node, seen from outside.
struct Runtime<'a> {
    toolbox: &'a Toolbox,
    mount: PathBuf,
}

impl Runtime<'_> {
    fn ctr(&self, args: &[&str]) -> Result<String, Error> {
        Invocation::new("nsenter")
            .arg(format!("--mount={}", self.mount.display()))
            .arg("--")
            .arg(self.toolbox.program("ctr")?)
            .args(["--address", SOCKET, "--namespace", "k8s.io"])
            .args(args)
            .within(Duration::from_secs(120))
            .run()
    }

    /// Imports what is not there already, by digest.
    fn import(&self, images: &[Image], cache: &Cache) -> Result<(), Error> {
        let what = "containerd to answer";
        let list = || self.ctr(&["images", "list"]).map_err(|error| error.to_string());
        let present = wait::until(what, NODE_DEADLINE, POLL, list, String::new)?;
        for image in images {
            let archive = image.archive(cache)?;
            if !has_image(&present, &archive) {
                self.ctr(&["images", "import", &archive.path.display().to_string()])?;
            }
        }
        Ok(())
    }
}

/// `ctr images list` has the reference in the first and the digest in the third column.
fn has_image(list: &str, archive: &Archive) -> bool {
    list.lines().any(|line| {
        let mut columns = line.split_whitespace();
        columns.next() == Some(&archive.reference) && columns.nth(1) == Some(&archive.digest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_dead_kubelet_does_not_count() {
        let node = |heartbeat: &str| {
            let ready =
                serde_json::json!({"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat});
            serde_json::json!({"status": {"conditions": [ready]}})
        };
        let started: Timestamp = "2026-01-01T00:00:05.7Z".parse().unwrap();
        assert!(node_is_ready(&node("2026-01-01T00:00:04Z"), started).is_err());
        assert_eq!(node_is_ready(&node("2026-01-01T00:00:05Z"), started), Ok(()));
        assert_eq!(node_is_ready(&node("2026-01-01T00:00:04Z"), Timestamp::MIN), Ok(()));
    }

    #[test]
    fn an_image_of_another_digest_is_imported_again() {
        let archive =
            |digest: &str| Archive { reference: "r:1".into(), digest: digest.into(), path: "p".into() };
        let list = "REF TYPE DIGEST SIZE\nr:1 application/x sha256:a 1 MiB linux/amd64 -\n";
        assert!(has_image(list, &archive("sha256:a")));
        assert!(!has_image(list, &archive("sha256:b")));
    }
}
