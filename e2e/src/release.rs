//! Which versions of Kubernetes tenants may have on a local cluster: the newest, which the management cluster runs
//! itself, and older ones. A release is a set of rows; what no row of an older one builds is the newest's. Older ones
//! are built, and put where clusters find them, only when they are asked for.

use crate::Error;
use crate::component::{COMPONENTS, Component, ETCD, KUBERNETES};

/// A version that tenants may have.
#[derive(Debug)]
pub struct Release {
    pub(crate) kubernetes: &'static str,
    /// As its entry in the catalogue names it.
    pub(crate) etcd: &'static str,
    pub(crate) rows: &'static [Component],
    /// How long its rows take on two cores when nothing of them is there.
    pub(crate) minutes: u32,
}

/// What the management cluster is made of too.
pub(crate) static NEWEST: Release =
    Release { kubernetes: KUBERNETES, etcd: ETCD, rows: COMPONENTS, minutes: 26 };

/// The newest of them first.
pub(crate) static OLDER: &[Release] = &[Release {
    kubernetes: "v1.36.3",
    etcd: "3.6.16",
    rows: &[
        Component {
            name: "kubernetes-1.36",
            module: "k8s.io/kubernetes",
            version: "v1.36.3",
            programs: &[
                ("cmd/kube-apiserver", "kube-apiserver"),
                ("cmd/kube-controller-manager", "kube-controller-manager"),
                ("cmd/kube-scheduler", "kube-scheduler"),
                ("cmd/kubelet", "kubelet"),
                ("cmd/kube-proxy", "kube-proxy"),
                ("cmd/kubeadm", "kubeadm"),
            ],
            stamps: &[
                ("k8s.io/component-base/version.gitVersion", "v1.36.3"),
                ("k8s.io/component-base/version.gitMajor", "1"),
                ("k8s.io/component-base/version.gitMinor", "36"),
                ("k8s.io/client-go/pkg/version.gitVersion", "v1.36.3"),
            ],
            native: false,
        },
        Component {
            name: "etcd-3.6",
            module: "go.etcd.io/etcd",
            version: "v3.6.16",
            programs: &[("server/v3", "etcd"), ("etcdctl/v3", "etcdctl"), ("etcdutl/v3", "etcdutl")],
            stamps: &[],
            native: false,
        },
    ],
    minutes: 9,
}];

impl Release {
    /// All of them, the newest first.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        std::iter::once(&NEWEST).chain(OLDER)
    }

    /// The release of a version of Kubernetes.
    ///
    /// # Errors
    /// [`Error::Invalid`] that lists what there is.
    pub fn of(version: &str) -> Result<&'static Self, Error> {
        Self::all().find(|release| release.kubernetes == version).ok_or_else(|| {
            let known: Vec<_> = Self::all().map(|release| release.kubernetes).collect();
            Error::Invalid(format!("there is no Kubernetes `{version}` here, only {}", known.join(", ")))
        })
    }
}

/// The release that upgrades begin at.
pub(crate) fn oldest() -> Result<&'static Release, Error> {
    OLDER.first().ok_or_else(|| Error::Invalid("there is no older release".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Repository;

    #[test]
    fn a_version_that_is_not_there_is_told_with_those_that_are() {
        assert_eq!(Release::of("v1.36.3").unwrap().etcd, "3.6.16");
        let error = Release::of("v1.35.0").unwrap_err().to_string();
        assert!(error.contains("`v1.35.0`") && error.contains("v1.37.1, v1.36.3"), "{error}");
    }

    #[test]
    fn versions_are_those_of_the_rows_and_of_the_catalogue() {
        let charts = Repository::find().unwrap().root().join("charts/kaas/catalogue");
        for release in Release::all() {
            let version = |program: &str| {
                let builds = |row: &&Component| row.programs.iter().any(|(_, name)| *name == program);
                release.rows.iter().find(builds).unwrap().version
            };
            assert_eq!(version("kube-apiserver"), release.kubernetes);
            assert_eq!(version("kubelet"), release.kubernetes);
            assert_eq!(version("etcd"), format!("v{}", release.etcd));
            let path = charts.join(format!("{}.yaml", release.kubernetes));
            let entry = std::fs::read_to_string(path).unwrap();
            assert!(entry.contains(&format!("version: {}\n", release.etcd)), "{entry}");
        }
    }
}
