//! The node of a local cluster: containerd, kubelet and kube-proxy as daemons in the cluster's network
//! namespace and in a mount namespace of their own. There they find their fixed directories (/var/lib/kubelet
//! and the like) backed by the state directory, and every mount that they or the pods make ends with it.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::Error;
use crate::cgroup::Hierarchies;
use crate::compile::Toolbox;
use crate::credentials::Credentials;
use crate::image::catalogue;
use crate::layout::State;
use crate::network::{self, Network};
use crate::process::Daemon;
use crate::record::{write_json, write_whole};

/// containerd's socket, as seen inside of the mount namespace: short whatever the state directory is called.
pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";
/// 25 tenants of four pods each, add-ons, and room for a roll of all of them.
const MAX_PODS: u32 = 500;

/// The node's parts.
pub(crate) struct Node<'a> {
    pub(crate) name: &'a str,
    pub(crate) state: &'a State,
    pub(crate) network: &'a Network,
    pub(crate) hierarchies: &'a Hierarchies,
    pub(crate) toolbox: &'a Toolbox,
    pub(crate) credentials: &'a Credentials,
}

impl Node<'_> {
    /// Writes every configuration file that is not what it should be.
    pub(crate) fn configure(&self) -> Result<(), Error> {
        let config = self.state.config();
        write_whole(&config.join("containerd.toml"), self.containerd_config()?.as_bytes())?;
        write_whole(&config.join("resolv.conf"), b"options ndots:1\n")?;
        write_json(&config.join("kubelet.json"), &self.kubelet_config())?;
        write_json(&config.join("kube-proxy.json"), &self.proxy_config())?;
        write_json(&config.join("cni/10-local.conflist"), &self.cni_config())
    }

    pub(crate) fn containerd(&self) -> Result<Daemon, Error> {
        let config = self.state.config().join("containerd.toml");
        Ok(Daemon {
            name: "containerd",
            program: self.toolbox.program("containerd")?.to_owned(),
            args: vec!["--config".to_owned(), config.display().to_string()],
            reads: vec![config],
        })
    }

    pub(crate) fn kubelet(&self) -> Result<Daemon, Error> {
        let config = self.state.config().join("kubelet.json");
        Ok(Daemon {
            name: "kubelet",
            program: self.toolbox.program("kubelet")?.to_owned(),
            args: vec![
                format!("--config={}", config.display()),
                format!("--kubeconfig={}", self.credentials.text("kubelet.kubeconfig")),
                format!("--hostname-override={}", self.name),
                format!("--node-ip={}", self.network.node()),
                "--root-dir=/var/lib/kubelet".to_owned(),
            ],
            reads: vec![config, self.credentials.path("kubelet.kubeconfig")],
        })
    }

    pub(crate) fn proxy(&self) -> Result<Daemon, Error> {
        let config = self.state.config().join("kube-proxy.json");
        Ok(Daemon {
            name: "kube-proxy",
            program: self.toolbox.program("kube-proxy")?.to_owned(),
            args: vec![format!("--config={}", config.display())],
            reads: vec![config, self.credentials.path("kube-proxy.kubeconfig")],
        })
    }

    fn containerd_config(&self) -> Result<String, Error> {
        // JSON strings are valid TOML strings: paths with quotes or spaces stay paths.
        let quote = |text: &str| json!(text).to_string();
        let path = |path: PathBuf| quote(&path.display().to_string());
        let plugins = self.toolbox.program("bridge")?.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(format!(
            r#"version = 4
root = {root}
state = "/run/containerd"
# NRI and the operator's opt directory would be shared with the machine.
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]

[plugins."io.containerd.server.v1.grpc"]
  address = {socket}
[plugins."io.containerd.server.v1.ttrpc"]
  address = {ttrpc}

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = {sandbox}

[plugins."io.containerd.cri.v1.runtime"]
  # Root may lack CAP_SYS_RESOURCE: runc could not lower an OOM score then.
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [{plugins}]
    conf_dir = {networks}
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "runc"
        SystemdCgroup = false
"#,
            root = path(self.state.node().join("containerd")),
            socket = quote(SOCKET),
            ttrpc = quote(&format!("{SOCKET}.ttrpc")),
            sandbox = quote(catalogue::PAUSE),
            plugins = path(plugins),
            networks = path(self.state.config().join("cni")),
        ))
    }

    fn kubelet_config(&self) -> serde_json::Value {
        let pki = |file: &str| self.credentials.text(file);
        let mut config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.network.node(),
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": pki("kubelet-server.crt"),
            "tlsPrivateKeyFile": pki("kubelet-server.key"),
            "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.network.name()),
            "clusterDNS": [network::DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            "resolvConf": self.state.config().join("resolv.conf"),
            "maxPods": MAX_PODS,
            "failSwapOn": false,
            "oomScoreAdj": 0,
            "volumePluginDir": self.state.node().join("volume-plugins"),
            "serializeImagePulls": false,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "eventRecordQPS": 100,
            "eventBurst": 200,
            // Images are imported, not pulled: one that was collected could not come back.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "nodefs.inodesFree": "1%",
                "imagefs.available": "1%",
            },
        });
        if self.hierarchies.is_v1()
            && let Some(fields) = config.as_object_mut()
        {
            fields.insert("failCgroupV1".to_owned(), json!(false));
        }
        config
    }

    fn proxy_config(&self) -> serde_json::Value {
        // Without bridge netfilter an answer between two pods of one bridge would bypass the translation of
        // its Service address; then everything is masqueraded.
        let bridged = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists();
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "nftables": {"masqueradeAll": !bridged, "minSyncPeriod": "100ms"},
            "clientConnection": {"kubeconfig": self.credentials.text("kube-proxy.kubeconfig")},
            "hostnameOverride": self.name,
            "bindAddress": self.network.node(),
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "clusterCIDR": network::POD_CIDR,
            "detectLocalMode": "ClusterCIDR",
            "oomScoreAdj": 0,
            // The table's size belongs to the machine, not to this namespace.
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s",
            },
        })
    }

    fn cni_config(&self) -> serde_json::Value {
        json!({
            "cniVersion": "1.0.0",
            "name": self.network.name(),
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    "ipMasq": true,
                    "ipMasqBackend": "nftables",
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        // The first part of the pod addresses: the only node gets it.
                        "ranges": [[{"subnet": network::NODE_POD_CIDR}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
            ],
        })
    }
}
