//! The management cluster's own control plane as daemons: etcd, kube-apiserver, kube-controller-manager and
//! kube-scheduler with honest settings (real certificates, RBAC, fsync, audit log). Both the local cluster
//! and the harness for tests run it; they differ in addresses and in how many of the four they start.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Error;
use crate::compile::Toolbox;
use crate::credentials::Credentials;
use crate::network;
use crate::probe::Probe;
use crate::process::{Daemon, Identity};

/// Seen: 0.2 s and 3 s on an idle machine. A build beside it takes many times that.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// Addresses, directories and credentials of one control plane.
pub(crate) struct ControlPlane<'a> {
    pub(crate) toolbox: &'a Toolbox,
    pub(crate) credentials: &'a Credentials,
    /// Address that etcd and the API server listen on.
    pub(crate) address: IpAddr,
    pub(crate) etcd_port: u16,
    pub(crate) peer_port: u16,
    pub(crate) api_port: u16,
    pub(crate) etcd_directory: PathBuf,
    pub(crate) audit_log: PathBuf,
    pub(crate) audit_policy: PathBuf,
}

/// Every request, who sent it and what it did, without bodies: the writes of an operator are counted in it.
pub(crate) const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
";

impl ControlPlane<'_> {
    fn etcd_url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.address, self.etcd_port))
    }

    pub(crate) fn etcd(&self) -> Result<Daemon, Error> {
        let pki = |file: &str| self.credentials.text(file);
        let peer = format!("https://{}", SocketAddr::new(self.address, self.peer_port));
        Ok(Daemon {
            name: "etcd",
            program: self.toolbox.program("etcd")?.to_owned(),
            args: flags([
                ("name", "local".to_owned()),
                ("data-dir", self.etcd_directory.display().to_string()),
                ("listen-client-urls", self.etcd_url()),
                ("advertise-client-urls", self.etcd_url()),
                ("listen-peer-urls", peer.clone()),
                ("initial-advertise-peer-urls", peer.clone()),
                ("initial-cluster", format!("local={peer}")),
                ("client-cert-auth", "true".to_owned()),
                ("cert-file", pki("etcd-server.crt")),
                ("key-file", pki("etcd-server.key")),
                ("trusted-ca-file", pki("etcd-ca.crt")),
                ("peer-client-cert-auth", "true".to_owned()),
                ("peer-cert-file", pki("etcd-peer.crt")),
                ("peer-key-file", pki("etcd-peer.key")),
                ("peer-trusted-ca-file", pki("etcd-ca.crt")),
                // One member: the timings need not cover a network.
                ("heartbeat-interval", "10".to_owned()),
                ("election-timeout", "100".to_owned()),
                ("auto-compaction-mode", "periodic".to_owned()),
                ("auto-compaction-retention", "5m".to_owned()),
                ("quota-backend-bytes", (4_u64 << 30).to_string()),
                ("logger", "zap".to_owned()),
                ("log-level", "warn".to_owned()),
            ]),
            reads: vec![self.credentials.path("etcd-server.crt")],
        })
    }

    pub(crate) fn api_server(&self) -> Result<Daemon, Error> {
        let pki = |file: &str| self.credentials.text(file);
        Ok(Daemon {
            name: "kube-apiserver",
            program: self.toolbox.program("kube-apiserver")?.to_owned(),
            args: flags([
                ("advertise-address", self.address.to_string()),
                ("bind-address", self.address.to_string()),
                ("secure-port", self.api_port.to_string()),
                ("etcd-servers", self.etcd_url()),
                ("etcd-cafile", pki("etcd-ca.crt")),
                ("etcd-certfile", pki("apiserver-etcd-client.crt")),
                ("etcd-keyfile", pki("apiserver-etcd-client.key")),
                ("tls-cert-file", pki("apiserver.crt")),
                ("tls-private-key-file", pki("apiserver.key")),
                ("client-ca-file", pki("ca.crt")),
                ("kubelet-certificate-authority", pki("ca.crt")),
                ("kubelet-client-certificate", pki("apiserver-kubelet-client.crt")),
                ("kubelet-client-key", pki("apiserver-kubelet-client.key")),
                ("kubelet-preferred-address-types", "InternalIP".to_owned()),
                ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
                ("requestheader-allowed-names", "front-proxy-client".to_owned()),
                ("requestheader-username-headers", "X-Remote-User".to_owned()),
                ("requestheader-group-headers", "X-Remote-Group".to_owned()),
                ("requestheader-extra-headers-prefix", "X-Remote-Extra-".to_owned()),
                ("proxy-client-cert-file", pki("front-proxy-client.crt")),
                ("proxy-client-key-file", pki("front-proxy-client.key")),
                ("enable-aggregator-routing", "true".to_owned()),
                ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".to_owned()),
                ("service-account-key-file", pki("sa.pub")),
                ("service-account-signing-key-file", pki("sa.key")),
                ("service-cluster-ip-range", network::SERVICE_CIDR.to_owned()),
                ("authorization-mode", "Node,RBAC".to_owned()),
                ("enable-admission-plugins", "NodeRestriction".to_owned()),
                ("enable-bootstrap-token-auth", "true".to_owned()),
                ("allow-privileged", "true".to_owned()),
                ("audit-policy-file", self.audit_policy.display().to_string()),
                ("audit-log-path", self.audit_log.display().to_string()),
                ("audit-log-maxsize", "512".to_owned()),
                ("audit-log-maxbackup", "4".to_owned()),
                ("audit-log-maxage", "2".to_owned()),
            ]),
            reads: vec![self.audit_policy.clone(), self.credentials.path("apiserver.crt")],
        })
    }

    pub(crate) fn controller_manager(&self) -> Result<Daemon, Error> {
        let pki = |file: &str| self.credentials.text(file);
        let kubeconfig = pki("controller-manager.kubeconfig");
        Ok(Daemon {
            name: "kube-controller-manager",
            program: self.toolbox.program("kube-controller-manager")?.to_owned(),
            args: flags([
                ("bind-address", self.address.to_string()),
                ("kubeconfig", kubeconfig.clone()),
                ("authentication-kubeconfig", kubeconfig.clone()),
                ("authorization-kubeconfig", kubeconfig),
                ("client-ca-file", pki("ca.crt")),
                ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
                ("root-ca-file", pki("ca.crt")),
                ("cluster-signing-cert-file", pki("ca.crt")),
                ("cluster-signing-key-file", pki("ca.key")),
                ("service-account-private-key-file", pki("sa.key")),
                ("use-service-account-credentials", "true".to_owned()),
                ("allocate-node-cidrs", "true".to_owned()),
                ("cluster-cidr", network::POD_CIDR.to_owned()),
                ("node-cidr-mask-size", network::POD_MASK.to_string()),
                ("service-cluster-ip-range", network::SERVICE_CIDR.to_owned()),
                // The only one there is.
                ("leader-elect", "false".to_owned()),
                // The default rate makes one token per controller last ten seconds.
                ("kube-api-qps", "300".to_owned()),
                ("kube-api-burst", "600".to_owned()),
            ]),
            reads: vec![self.credentials.path("ca.crt")],
        })
    }

    pub(crate) fn scheduler(&self) -> Result<Daemon, Error> {
        let kubeconfig = self.credentials.text("scheduler.kubeconfig");
        Ok(Daemon {
            name: "kube-scheduler",
            program: self.toolbox.program("kube-scheduler")?.to_owned(),
            args: flags([
                ("bind-address", self.address.to_string()),
                ("kubeconfig", kubeconfig.clone()),
                ("authentication-kubeconfig", kubeconfig.clone()),
                ("authorization-kubeconfig", kubeconfig),
                ("leader-elect", "false".to_owned()),
                ("kube-api-qps", "300".to_owned()),
                ("kube-api-burst", "600".to_owned()),
            ]),
            reads: vec![self.credentials.path("ca.crt")],
        })
    }

    /// Waits until etcd serves.
    pub(crate) fn await_etcd(&self, identity: &Identity, log: &Path) -> Result<(), Error> {
        let address = SocketAddr::new(self.address, self.etcd_port);
        let probe = Probe::new(self.credentials, "etcd-ca", "apiserver-etcd-client", address)?;
        await_answer("etcd", &probe, "/health", identity, log)
    }

    /// Waits until the API server is ready.
    pub(crate) fn await_api_server(&self, identity: &Identity, log: &Path) -> Result<(), Error> {
        let address = SocketAddr::new(self.address, self.api_port);
        let probe = Probe::new(self.credentials, "ca", "admin", address)?;
        await_answer("kube-apiserver", &probe, "/readyz", identity, log)
    }
}

fn await_answer(name: &str, probe: &Probe, path: &str, identity: &Identity, log: &Path) -> Result<(), Error> {
    let started = Instant::now();
    loop {
        let answer = probe.get(path);
        if answer == Ok(200) {
            return Ok(());
        }
        let dead = !identity.alive();
        if dead || started.elapsed() > START_DEADLINE {
            let answer = answer.map_or_else(|error| error, |code| format!("HTTP {code}"));
            let state = if dead { "it has ended" } else { "it runs" };
            let dump = format!("; {state}; {path} said: {answer}; its log:\n{}", tail(log, 30));
            return Err(Error::Deadline {
                what: format!("{name} to be ready"),
                seconds: started.elapsed().as_secs(),
                dump,
            });
        }
        std::thread::sleep(POLL);
    }
}

/// The last lines of a log.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let start = bytes.len().saturating_sub(64 << 10);
    let text = String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

fn flags<const N: usize>(pairs: [(&str, String); N]) -> Vec<String> {
    pairs.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
}
