//! What the local cluster is made of: one row for each Go module of pins below `e2e/go`, with the packages
//! that are built from it. The version is repeated here for the version stamp and the progress line; a test
//! holds it equal to the row's go.mod. An older release has rows of its own beside these.

/// Version of Kubernetes on the management cluster.
pub(crate) const KUBERNETES: &str = "v1.37.1";
/// Version of etcd, without the leading letter of the module version.
pub(crate) const ETCD: &str = "3.7.3";
/// Version of the program of test images, of this Kubernetes.
pub(crate) const AGNHOST: &str = "2.66.1";

/// Stands for the row's own package.
const OWN: &str = ".";

/// One row: a Go module of pins and the programs built from it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Component {
    pub(crate) name: &'static str,
    pub(crate) module: &'static str,
    pub(crate) version: &'static str,
    /// Package below the module (empty: the module itself), and the name of its program.
    pub(crate) programs: &'static [(&'static str, &'static str)],
    pub(crate) stamps: &'static [(&'static str, &'static str)],
    /// Has C code: needs a C compiler, and is linked statically all the same.
    pub(crate) native: bool,
}

/// All rows, in the order in which they are built: what a cluster starts with, the longest first, then what
/// its workers need.
pub(crate) const COMPONENTS: &[Component] = &[
    Component {
        name: "kubernetes",
        module: "k8s.io/kubernetes",
        version: KUBERNETES,
        programs: &[
            ("cmd/kube-apiserver", "kube-apiserver"),
            ("cmd/kube-controller-manager", "kube-controller-manager"),
            ("cmd/kube-scheduler", "kube-scheduler"),
            ("cmd/kubelet", "kubelet"),
            ("cmd/kube-proxy", "kube-proxy"),
            ("cmd/kubectl", "kubectl"),
            ("cmd/kubeadm", "kubeadm"),
            ("test/images/agnhost", "agnhost"),
        ],
        stamps: &[
            ("k8s.io/component-base/version.gitVersion", KUBERNETES),
            ("k8s.io/component-base/version.gitMajor", "1"),
            ("k8s.io/component-base/version.gitMinor", "37"),
            ("k8s.io/client-go/pkg/version.gitVersion", KUBERNETES),
            ("main.Version", AGNHOST),
        ],
        native: false,
    },
    Component {
        name: "containerd",
        module: "github.com/containerd/containerd/v2",
        version: "v2.4.2",
        programs: &[
            ("cmd/containerd", "containerd"),
            ("cmd/containerd-shim-runc-v2", "containerd-shim-runc-v2"),
            ("cmd/ctr", "ctr"),
        ],
        stamps: &[("github.com/containerd/containerd/v2/version.Version", "v2.4.2")],
        native: false,
    },
    Component {
        name: "coredns",
        module: "github.com/coredns/coredns",
        version: "v1.15.0",
        // CoreDNS with few plugins: a program of the row itself.
        programs: &[(OWN, "coredns")],
        stamps: &[],
        native: false,
    },
    Component {
        name: "helm",
        module: "helm.sh/helm/v4",
        version: "v4.3.1",
        programs: &[("cmd/helm", "helm")],
        stamps: &[("helm.sh/helm/v4/internal/version.version", "v4.3.1")],
        native: false,
    },
    Component {
        name: "local-path-provisioner",
        module: "github.com/rancher/local-path-provisioner",
        version: "v0.0.30",
        programs: &[("", "local-path-provisioner")],
        stamps: &[],
        native: false,
    },
    Component {
        name: "etcd",
        module: "go.etcd.io/etcd",
        version: "v3.7.3",
        programs: &[("server/v3", "etcd"), ("etcdctl/v3", "etcdctl"), ("etcdutl/v3", "etcdutl")],
        stamps: &[],
        native: false,
    },
    Component {
        name: "cni",
        module: "github.com/containernetworking/plugins",
        version: "v1.9.1",
        programs: &[
            ("plugins/main/bridge", "bridge"),
            ("plugins/main/loopback", "loopback"),
            ("plugins/ipam/host-local", "host-local"),
            ("plugins/meta/portmap", "portmap"),
            ("plugins/meta/firewall", "firewall"),
        ],
        stamps: &[],
        native: false,
    },
    Component {
        name: "registry",
        module: "github.com/distribution/distribution/v3",
        version: "v3.1.2",
        // With one middleware: a program of the row itself.
        programs: &[(OWN, "registry")],
        stamps: &[("github.com/distribution/distribution/v3/version.version", "v3.1.2")],
        native: false,
    },
    Component {
        name: "crane",
        module: "github.com/google/go-containerregistry",
        version: "v0.22.1",
        programs: &[("cmd/crane", "crane")],
        stamps: &[("github.com/google/go-containerregistry/cmd/crane/cmd.Version", "v0.22.1")],
        native: false,
    },
    Component {
        name: "konnectivity",
        module: "sigs.k8s.io/apiserver-network-proxy",
        version: "v0.36.0",
        programs: &[("cmd/server", "proxy-server"), ("cmd/agent", "proxy-agent")],
        stamps: &[],
        native: false,
    },
    Component {
        name: "flannel",
        module: "github.com/flannel-io/flannel",
        version: "v0.28.4",
        programs: &[("", "flanneld")],
        stamps: &[("github.com/flannel-io/flannel/pkg/version.Version", "v0.28.4")],
        native: true,
    },
    Component {
        name: "metrics-server",
        module: "sigs.k8s.io/metrics-server",
        version: "v0.9.0",
        programs: &[("cmd/metrics-server", "metrics-server")],
        stamps: &[("k8s.io/client-go/pkg/version.gitVersion", "v0.9.0")],
        native: false,
    },
];

/// The clients of flows, which no cluster needs: the real client-go with a program of the row itself.
pub(crate) static LOAD: Component = Component {
    name: "load",
    module: "k8s.io/client-go",
    version: "v0.37.1",
    programs: &[(OWN, "load")],
    stamps: &[],
    native: false,
};

/// API servers with a fault, for flows that upgrade to them.
pub(crate) static SPOILED: Component = Component {
    name: "spoiled",
    module: "kaas.dev/e2e/spoiled",
    version: "v1",
    programs: &[(OWN, "spoiled")],
    stamps: &[],
    native: false,
};

impl Component {
    /// The row of the newest release that `program` is built from.
    pub(crate) fn of_program(program: &str) -> Option<&'static Self> {
        COMPONENTS.iter().find(|row| row.programs.iter().any(|(_, name)| *name == program))
    }

    /// Whether it is a program of this repository, with tests of its own.
    pub(crate) fn is_own(&self) -> bool {
        self.programs.iter().any(|(below, _)| *below == OWN)
    }

    /// Import path of one of its packages.
    pub(crate) fn package(&self, below: &str) -> String {
        match below {
            "" => self.module.to_owned(),
            OWN => format!("kaas.dev/e2e/{}", self.name),
            below => format!("{}/{below}", self.module),
        }
    }

    /// Linker flags: no symbol tables, no shared libraries, and the version that the program tells.
    pub(crate) fn linker_flags(&self) -> String {
        let flags = if self.native { "-s -w -extldflags -static" } else { "-s -w" };
        self.stamps
            .iter()
            .fold(flags.to_owned(), |flags, (variable, value)| format!("{flags} -X {variable}={value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Repository;
    use crate::release::Release;

    #[test]
    fn versions_are_those_of_the_pins() {
        let repository = Repository::find().unwrap();
        for row in Release::all().flat_map(|release| release.rows).chain([&LOAD]) {
            let text = std::fs::read_to_string(repository.row(row.name).join("go.mod")).unwrap();
            for (below, _) in row.programs {
                let package = if *below == OWN { row.module.to_owned() } else { row.package(below) };
                let pinned = text.lines().map(str::trim).any(|line| {
                    let mut words = line.trim_start_matches("require ").split(' ');
                    let (module, version) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
                    version == row.version
                        && (package == module || package.starts_with(&format!("{module}/")))
                });
                assert!(pinned, "e2e/go/{}/go.mod does not pin {package} to {}", row.name, row.version);
            }
        }
    }

    #[test]
    fn each_program_has_one_row_of_a_release() {
        for release in Release::all() {
            let mut names: Vec<_> =
                release.rows.iter().flat_map(|row| row.programs.iter().map(|(_, name)| *name)).collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }
}
