//! A real etcd of one member, named as the operator's first member is.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kaas_e2e::compile::Toolbox;
use kaas_e2e::layout::{Cache, Repository};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Seen: 0.2 s on an idle machine.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Etcd {
    address: SocketAddr,
    pid: Pid,
    // Removed after the process has ended.
    _directory: TempDir,
}

impl Etcd {
    /// Starts it; blocks until it listens.
    pub(crate) fn start() -> Self {
        let toolbox =
            Toolbox::with(&["etcd"], &Repository::find().unwrap(), &Cache::find().unwrap()).unwrap();
        let program = toolbox.program("etcd").unwrap().to_owned();
        let directory = tempfile::Builder::new().prefix("kaas-sweep-").tempdir().unwrap();
        let held = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [address, peer] = held.map(|listener| listener.local_addr().unwrap());
        let (client_url, peer_url) = (format!("http://{address}"), format!("http://{peer}"));
        let args = [
            "--name=etcd-0".to_owned(),
            format!("--data-dir={}", directory.path().join("data").display()),
            format!("--listen-client-urls={client_url}"),
            format!("--advertise-client-urls={client_url}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            format!("--initial-cluster=etcd-0={peer_url}"),
            "--heartbeat-interval=10".to_owned(),
            "--election-timeout=100".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        let log = File::create(directory.path().join("log")).unwrap();
        // The kernel ends it when the thread ends that started it: a killed test leaves nothing. This one lives on.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let mut child: Child = command.spawn().unwrap();
            tell.send(child.id()).unwrap();
            child.wait()
        });
        let pid = Pid::from_raw(told.recv().unwrap().cast_signed()).unwrap();
        let etcd = Etcd { address, pid, _directory: directory };
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < DEADLINE, "etcd does not listen at {address}");
            std::thread::sleep(Duration::from_millis(10));
        }
        etcd
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // A drop cannot fail; the kernel ends it with this process.
        let _ = kill_process(self.pid, Signal::KILL);
    }
}
