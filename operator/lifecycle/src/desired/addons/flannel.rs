//! flannel: the network of the pods. VXLAN between the workers, a bridge on each.
//!
//! flanneld alone makes routes and the masquerading of what leaves the cluster's networks. Pods are plugged in by the
//! standard plugins bridge, host-local and portmap, which every worker has; their configuration needs the node's own
//! network, which flanneld learns and writes down beside itself.

use serde_json::{Value, json};

use super::super::pod::field_variable;
use super::{Part, Site, binding, confined, daemon_set, node_pod, resources, rule, service_account};
use crate::difference::canonical;
use crate::object::Kind;

pub(super) const NAME: &str = "flannel";
const ROLE: &str = "kaas:flannel";
const DIRECTORY: &str = "/etc/kube-flannel";
const NETWORK_FILE: &str = "net-conf.json";
const PLUGINS_FILE: &str = "cni.json";
/// Where flanneld writes down what it has.
const RUN: &str = "/run/flannel";
/// Where container runtimes look.
const PLUGINS: &str = "/etc/cni/net.d";

pub(super) const PARTS: &[Part] = &[
    Part::system(Kind::ServiceAccount, NAME, service_account),
    Part::cluster(Kind::ClusterRole, ROLE, |_| {
        json!({"rules": [
            rule("", &["nodes"], &["get", "list", "watch"]),
            rule("", &["nodes/status"], &["patch"]),
        ]})
    }),
    Part::cluster(Kind::ClusterRoleBinding, ROLE, |_| binding("ClusterRole", ROLE, NAME)),
    Part::system(Kind::ConfigMap, NAME, configuration),
    Part::system(Kind::DaemonSet, NAME, workload),
];

fn configuration(site: &Site<'_>) -> Value {
    let network = json!({
        "Network": site.inputs.spec.network.pod_cidr,
        // As kube-proxy: rules of its own table, and no lock that is shared with others.
        "EnableNFTables": true,
        "Backend": {"Type": "vxlan"},
    });
    json!({"data": {NETWORK_FILE: canonical(&network), PLUGINS_FILE: plugins("@SUBNET@", None)}})
}

/// What plugs pods in, after what comes `first`.
fn plugins(subnet: &str, first: Option<Value>) -> String {
    let bridge = json!({
        "type": "bridge",
        "bridge": "cni0",
        "isDefaultGateway": true,
        // A pod reaches itself by its own Service.
        "hairpinMode": true,
        // flanneld does that, and only for what leaves the cluster.
        "ipMasq": false,
        "mtu": "@MTU@",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]]},
    });
    let ports = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
    let plugins: Vec<Value> = first.into_iter().chain([bridge, ports]).collect();
    let list = json!({"cniVersion": "1.0.0", "name": "cbr0", "plugins": plugins});
    // A number, once it is known.
    canonical(&list).replace("\"@MTU@\"", "@MTU@")
}

/// The same for a worker whose container runtime is ours, which fills in the node's network as soon as the node has
/// one: the node is Ready then, and its first pods are held back until flanneld has made the routes.
pub(super) fn early_plugins() -> String {
    let hold = json!({"type": "await", "file": format!("{PLUGINS}/10-flannel.conflist")});
    plugins("{{.PodCIDR}}", Some(hold))
}

/// Writes the plugins' configuration once flanneld has written what goes into it, and again if somebody removes it.
/// A worker may have one that its container runtime wrote, of the same content, to hold its first pods back: it goes.
/// flanneld names the node's bridge, the first address of the node's network: one less is the network's own.
const SCRIPT: &str = r#"set -eu
trap 'exit 0' TERM INT
if [ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then
  echo 'pods on one node would not reach each other by Services: load the kernel module br_netfilter on this node' >&2
  exit 1
fi
pause=0.1
while :; do
  if [ -s /run/flannel/subnet.env ]; then
    . /run/flannel/subnet.env
    address=${FLANNEL_SUBNET%/*}
    subnet=${address%.*}.$((${address##*.} - 1))/${FLANNEL_SUBNET#*/}
    wanted=$(sed -e "s|@SUBNET@|$subnet|" -e "s|@MTU@|$FLANNEL_MTU|" /etc/kube-flannel/cni.json)
    if [ "$wanted" != "$(cat /etc/cni/net.d/10-flannel.conflist 2>/dev/null || true)" ]; then
      echo "$wanted" >/etc/cni/net.d/.10-flannel
      mv /etc/cni/net.d/.10-flannel /etc/cni/net.d/10-flannel.conflist
    fi
    rm -f /etc/cni/net.d/10-containerd-net.conflist
    pause=10
  fi
  sleep "$pause" &
  wait $!
done
"#;

fn workload(site: &Site<'_>) -> Value {
    let image = site.image(|images| &images.flannel);
    let mut environment =
        vec![field_variable("NODE_NAME", "spec.nodeName"), field_variable("HOST_IP", "status.hostIP")];
    environment.extend(Site::api_variables());
    let run = json!({"name": "run", "mountPath": RUN});
    let config = json!({"name": "config", "mountPath": DIRECTORY, "readOnly": true});
    let containers = json!([
        {
            "name": "flanneld",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": [
                "/opt/bin/flanneld",
                "--kube-subnet-mgr",
                format!("--net-config-path={DIRECTORY}/{NETWORK_FILE}"),
                format!("--subnet-file={RUN}/subnet.env"),
                "--ip-masq",
                // The node's own address, where a machine has several.
                "--iface=$(HOST_IP)",
            ],
            "env": environment,
            "resources": resources("10m", "32Mi", "256Mi"),
            // It makes interfaces, routes and rules of the node's network.
            "securityContext": confined(&["NET_ADMIN", "NET_RAW"]),
            "volumeMounts": [run, config],
        },
        {
            "name": "cni",
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", SCRIPT],
            "resources": resources("1m", "4Mi", "64Mi"),
            // Root, whose directory it writes to; without any capability.
            "securityContext": confined(&[]),
            "readinessProbe": {
                "exec": {"command": ["test", "-s", format!("{PLUGINS}/10-flannel.conflist")]},
                "periodSeconds": 5,
                "timeoutSeconds": 5,
                "failureThreshold": 3,
            },
            "volumeMounts": [run, config, {"name": "plugins", "mountPath": PLUGINS}],
        },
    ]);
    let volumes = json!([
        // Not the node's: what an earlier pod wrote there may be of another network.
        {"name": "run", "emptyDir": {"sizeLimit": "1Mi"}},
        {"name": "config", "configMap": {"name": NAME}},
        {"name": "plugins", "hostPath": {"path": PLUGINS, "type": "DirectoryOrCreate"}},
    ]);
    daemon_set(NAME, node_pod(NAME, NAME, 5, containers, volumes))
}
