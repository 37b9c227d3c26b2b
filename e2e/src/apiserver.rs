//! A real kube-apiserver and its etcd on loopback, for tests of code that talks to an API server.
//!
//! ```no_run
//! # fn main() -> Result<(), kaas_e2e::Error> {
//! let server = kaas_e2e::apiserver::Apiserver::start()?;
//! println!("{}", server.kubeconfig()?); // of a member of system:masters
//! # Ok(())
//! # }
//! ```
//!
//! Nothing but these two processes runs: no controller makes service accounts, collects garbage or finalizes
//! namespaces, and the test plays whoever it needs. RBAC is on, etcd syncs to disk. Ports are free ones and the
//! directory is temporary, so any number runs side by side. Both processes end when the value is dropped, and
//! the kernel ends them when the test process dies in any way. Starting takes some 3 s on an idle machine; the
//! first start of a cold cache builds the programs, which takes minutes.
//!
//! The functions block: call `start` from `tokio::task::spawn_blocking`, or before the runtime.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use crate::Error;
use crate::compile::Toolbox;
use crate::control_plane::{AUDIT_POLICY, ControlPlane};
use crate::credentials::{Credentials, Subject};
use crate::kubectl::Kubectl;
use crate::layout::{Cache, Repository};
use crate::process::{Daemon, Identity, Place};
use crate::record::write_whole;

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Somebody else may take a port between its choice and its use.
const ATTEMPTS: u32 = 3;
/// The pid of the test process follows: a directory whose process is gone is removed by the next start.
pub(crate) const PREFIX: &str = "kaas-apiserver-";
const GRACE: Duration = Duration::ZERO;

/// A running kube-apiserver with its etcd; dropped, both end.
#[derive(Debug)]
pub struct Apiserver {
    url: String,
    etcd_url: String,
    credentials: Credentials,
    kubectl: PathBuf,
    processes: Vec<Identity>,
    // Last: removed after the processes have ended.
    directory: tempfile::TempDir,
}

impl Apiserver {
    /// Starts one. Pods need no service account, since no controller makes any.
    ///
    /// # Errors
    /// What could not be built or did not become ready, with its log.
    pub fn start() -> Result<Self, Error> {
        Self::start_with(&[])
    }

    /// The same with more flags for kube-apiserver (`--name=value`); a later flag overrides an earlier one.
    ///
    /// # Errors
    /// What could not be built or did not become ready, with its log.
    pub fn start_with(flags: &[&str]) -> Result<Self, Error> {
        let toolbox = toolbox()?;
        prune(&std::env::temp_dir());
        let mut attempt = 1;
        loop {
            match Self::attempt(toolbox, flags) {
                Err(Error::Deadline { dump, .. })
                    if attempt < ATTEMPTS && dump.contains("address already in use") =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn attempt(toolbox: &Toolbox, flags: &[&str]) -> Result<Self, Error> {
        let directory = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .tempdir()
            .map_err(Error::io("create", std::env::temp_dir()))?;
        let [etcd_port, peer_port, api_port] = free_ports()?;
        let url = format!("https://{ADDRESS}:{api_port}");
        let subject = Subject { server: &url, addresses: &[ADDRESS], node: None };
        let credentials = Credentials::create(directory.path().join("pki"), &subject)?;
        let audit_policy = directory.path().join("audit.yaml");
        write_whole(&audit_policy, AUDIT_POLICY.as_bytes())?;
        let control_plane = ControlPlane {
            toolbox,
            credentials: &credentials,
            address: ADDRESS,
            etcd_port,
            peer_port,
            api_port,
            etcd_directory: directory.path().join("etcd"),
            audit_log: directory.path().join("audit.log"),
            audit_policy,
        };
        let mut server = Self {
            url: url.clone(),
            etcd_url: format!("https://{ADDRESS}:{etcd_port}"),
            credentials: credentials.clone(),
            kubectl: toolbox.program("kubectl")?.to_owned(),
            processes: Vec::new(),
            directory,
        };
        let etcd_log = server.log("etcd");
        let etcd = keep(roomy(control_plane.etcd()?), etcd_log.clone())?;
        server.processes.push(etcd.clone());
        control_plane.await_etcd(&etcd, &etcd_log)?;
        let mut daemon = control_plane.api_server()?;
        daemon.args.extend([
            // An endpoint on loopback is not a valid one.
            "--endpoint-reconciler-type=none".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ]);
        daemon.args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let log = server.log("kube-apiserver");
        let api_server = keep(roomy(daemon), log.clone())?;
        // In front of etcd: it ends first.
        server.processes.insert(0, api_server.clone());
        control_plane.await_api_server(&api_server, &log)?;
        Ok(server)
    }

    /// URL of the API server.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// URL of its etcd; client certificate `apiserver-etcd-client`.
    #[must_use]
    pub fn etcd_url(&self) -> &str {
        &self.etcd_url
    }

    /// Kubeconfig of a member of system:masters, everything inline.
    ///
    /// # Errors
    /// [`Error::Io`] when the temporary directory was removed.
    pub fn kubeconfig(&self) -> Result<String, Error> {
        self.credentials.read("admin.kubeconfig")
    }

    /// The same as a file.
    #[must_use]
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.credentials.path("admin.kubeconfig")
    }

    /// Kubeconfig of any user (at most two groups), for tests of permissions.
    ///
    /// # Errors
    /// [`Error::Pki`] when the names cannot be part of a certificate.
    pub fn kubeconfig_of(&self, user: &str, groups: &[&str]) -> Result<String, Error> {
        self.credentials.kubeconfig_of(&self.url, user, groups)
    }

    /// A file of its credentials in PEM: `ca.crt`, `ca.key`, `admin.crt`, `admin.key`, `etcd-ca.crt`,
    /// `apiserver-etcd-client.crt`, `apiserver-etcd-client.key`, `sa.key`, `sa.pub` and more.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such file.
    pub fn credential(&self, file: &str) -> Result<String, Error> {
        self.credentials.read(file)
    }

    /// kubectl for it.
    #[must_use]
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(&self.kubectl, &self.kubeconfig_path())
    }

    /// Every request that it answered, one JSON object a line.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.directory.path().join("audit.log")
    }

    /// Stops both processes in their tracks: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.processes.iter().for_each(Identity::freeze);
    }

    /// Lets them go on.
    pub fn thaw(&self) {
        self.processes.iter().for_each(Identity::thaw);
    }

    fn log(&self, name: &str) -> PathBuf {
        log_in(self.directory.path(), name)
    }
}

impl Drop for Apiserver {
    fn drop(&mut self) {
        for process in &self.processes {
            // A drop cannot fail; the kernel ends what is left with this process.
            let _ = process.stop(GRACE);
        }
    }
}

/// With room for garbage: collecting it is a good part of what these servers do in the short time that they live.
fn roomy(daemon: Daemon) -> Daemon {
    let program = daemon.program.display().to_string();
    let args = ["GOGC=400".to_owned(), program].into_iter().chain(daemon.args).collect();
    Daemon { program: "/usr/bin/env".into(), args, ..daemon }
}

fn log_in(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.log"))
}

/// The programs, built and checked once in a process.
fn toolbox() -> Result<&'static Toolbox, Error> {
    static TOOLBOX: OnceLock<Toolbox> = OnceLock::new();
    static FIRST: Mutex<()> = Mutex::new(());
    let _first = FIRST.lock();
    if let Some(known) = TOOLBOX.get() {
        return Ok(known);
    }
    let built = Toolbox::with(&["etcd", "kube-apiserver"], &Repository::find()?, &Cache::find()?)?;
    Ok(TOOLBOX.get_or_init(|| built))
}

fn free_ports() -> Result<[u16; 3], Error> {
    let fail = || Error::io("find a free port of", ADDRESS.to_string());
    let bind = || TcpListener::bind((ADDRESS, 0)).map_err(fail());
    // All held at once, so that they differ.
    let held = [bind()?, bind()?, bind()?];
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port()).map_err(fail());
    let [a, b, c] = &held;
    Ok([port(a)?, port(b)?, port(c)?])
}

/// Removes what killed test processes left; their servers are gone already.
fn prune(parent: &Path) {
    let owner = |name: &str| name.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok();
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let gone = owner(&entry.file_name().to_string_lossy())
            .is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        if gone {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

type Order = (Daemon, PathBuf, Sender<Result<Identity, Error>>);

/// Starts a daemon that the kernel kills with this process. That signal comes when the *thread* ends which
/// started it, and a test's thread ends early: one thread that lives as long as the process starts them all.
fn keep(daemon: Daemon, log: PathBuf) -> Result<Identity, Error> {
    static KEEPER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (orders, received) = channel::<Order>();
        std::thread::spawn(move || {
            for (daemon, log, answer) in received {
                let place = Place { dies_with_parent: true, ..Place::default() };
                let _ = answer.send(daemon.start(&place, &log));
            }
        });
        Mutex::new(orders)
    });
    let gone = || Error::Invalid("the thread that starts API servers has died".to_owned());
    let (answer, result) = channel();
    keeper.lock().map_err(|_| gone())?.send((daemon, log, answer)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}
