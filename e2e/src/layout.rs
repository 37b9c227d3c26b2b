//! Where things are: the repository, the build cache outside of it, and the state directory of one local
//! cluster. Nothing is created here.

use std::path::{Path, PathBuf};

use crate::Error;

/// The checkout that holds the pins (`e2e/go`), the charts and the examples.
#[derive(Debug, Clone)]
pub struct Repository(PathBuf);

impl Repository {
    /// Searches upwards from the current directory.
    ///
    /// # Errors
    /// [`Error::Invalid`] outside of a checkout.
    pub fn find() -> Result<Self, Error> {
        let here = std::env::current_dir().map_err(Error::io("find", "the current directory"))?;
        here.ancestors()
            .find(|path| path.join("e2e/go/kubernetes/go.mod").is_file())
            .map(|path| Self(path.to_owned()))
            .ok_or_else(|| {
                Error::Invalid(format!("{} is not inside a checkout of kaas: go there first", here.display()))
            })
    }

    /// The top directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    pub(crate) fn row(&self, component: &str) -> PathBuf {
        self.0.join("e2e/go").join(component)
    }
}

/// The build cache: `$KAAS_CACHE`, or `kaas` below `$XDG_CACHE_HOME` or `$HOME/.cache`.
#[derive(Debug, Clone)]
pub struct Cache(PathBuf);

impl Cache {
    /// Finds the cache from the environment.
    ///
    /// # Errors
    /// [`Error::Prerequisite`] when neither variable nor home directory is set.
    pub fn find() -> Result<Self, Error> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        variable("KAAS_CACHE")
            .or_else(|| variable("XDG_CACHE_HOME").map(|path| path.join("kaas")))
            .or_else(|| variable("HOME").map(|path| path.join(".cache/kaas")))
            .map(Self)
            .ok_or_else(|| Error::Prerequisite("HOME is not set: set it, or KAAS_CACHE".to_owned()))
    }

    /// The top directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    pub(crate) fn binaries(&self) -> PathBuf {
        self.0.join("bin")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.0.join("locks")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Cargo's target directory.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.0.join("target")
    }

    pub(crate) fn go_build(&self) -> PathBuf {
        self.0.join("go-build")
    }
}

/// The state directory of one local cluster; everything that the cluster writes is below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State(PathBuf);

impl State {
    /// The state directory at an absolute path; it need not exist.
    ///
    /// # Errors
    /// [`Error::Io`] when the current directory is needed and gone.
    pub fn at(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        std::path::absolute(path).map(Self).map_err(Error::io("resolve", path))
    }

    /// The top directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.0
    }

    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// Kubeconfig of the management cluster's administrator.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// Links to kubectl, helm and the like.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    /// Logs of every component, and the audit log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.0.join("config")
    }

    pub(crate) fn etcd(&self) -> PathBuf {
        self.0.join("etcd")
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.0.join("node")
    }

    pub(crate) fn storage(&self) -> PathBuf {
        self.0.join("storage")
    }

    pub(crate) fn registry(&self) -> PathBuf {
        self.0.join("registry")
    }

    /// Kubeconfig of a tenant cluster.
    #[must_use]
    pub fn tenant_kubeconfig(&self, tenant: &str) -> PathBuf {
        self.0.join(format!("{tenant}.kubeconfig"))
    }
}
