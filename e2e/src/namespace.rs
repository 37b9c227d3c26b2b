//! The network and mount namespaces of one local cluster. Each is kept by a mount of its own file below the
//! state directory, not by a process: no kill can take it away from under the daemons. In the mount namespace
//! the fixed directories of a node (/var/lib/kubelet and the like) are backed by the state directory, and
//! every mount that the node or its pods make ends with the last process in it.

use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use crate::Error;
use crate::invocation::Invocation;
use crate::layout::State;
use crate::machine::MOUNT_POINTS;

/// First what makes this namespace independent, then the pairs of directory and place. Mounts of other
/// namespaces' files are dropped: a copy here would keep them alive after their owner is gone.
const PREPARE: &str = "\
set -e
mount --make-rshared /
findmnt --noheadings --list --types nsfs --output TARGET | while read -r file; do umount \"$file\" || true; done
while [ $# -gt 0 ]; do mount --bind \"$1\" \"$2\"; shift 2; done
";

/// The namespaces of a state directory.
#[derive(Debug, Clone)]
pub(crate) struct Namespaces {
    directory: PathBuf,
}

impl Namespaces {
    pub(crate) fn of(state: &State) -> Self {
        Self { directory: state.node().join("namespace") }
    }

    /// The file that stands for the network namespace.
    pub(crate) fn network(&self) -> PathBuf {
        self.directory.join("net")
    }

    /// The file that stands for the mount namespace.
    pub(crate) fn mount(&self) -> PathBuf {
        self.directory.join("mnt")
    }

    /// Makes both, unless they are there.
    pub(crate) fn create(&self, state: &State) -> Result<(), Error> {
        let mounts = mounts_below(&self.directory)?;
        if mounts.contains(&self.network()) && mounts.contains(&self.mount()) {
            return Ok(());
        }
        self.remove()?;
        std::fs::create_dir_all(&self.directory).map_err(Error::io("create", &self.directory))?;
        // A mount namespace can be mounted only where mounts do not propagate (it could reach itself).
        mount_bind(&self.directory, &self.directory)
            .map_err(|error| Error::io("mount", &self.directory)(error.into()))?;
        mount_change(&self.directory, MountPropagationFlags::PRIVATE)
            .map_err(|error| Error::io("make private", &self.directory)(error.into()))?;
        for file in [self.network(), self.mount()] {
            std::fs::write(&file, "").map_err(Error::io("create", &file))?;
        }
        Invocation::new("unshare").arg(format!("--net={}", self.network().display())).arg("true").run()?;
        let mut pairs = Vec::new();
        for point in MOUNT_POINTS {
            let own = backing(state, point);
            std::fs::create_dir_all(&own).map_err(Error::io("create", &own))?;
            pairs.push(own);
            pairs.push(point.into());
        }
        Invocation::new("unshare")
            .arg(format!("--mount={}", self.mount().display()))
            .args(["--propagation", "slave", "sh", "-c", PREPARE, "sh"])
            .args(pairs)
            .run()
            .map(drop)
    }

    /// Lets them go; each ends with the last process in it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        unmount_below(&self.directory)
    }
}

/// Where a fixed directory of the node really is.
fn backing(state: &State, point: &str) -> PathBuf {
    match point.strip_prefix("/var/log/") {
        Some(name) => state.log().join(name),
        None => state.node().join(point.trim_start_matches('/').replace('/', "-")),
    }
}

/// Mount points of this process's namespace at or below a directory, innermost first.
pub(crate) fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let path = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(directory))
        .collect();
    found.reverse();
    Ok(found)
}

/// Unmounts everything at or below a directory.
pub(crate) fn unmount_below(directory: &Path) -> Result<(), Error> {
    for point in mounts_below(directory)? {
        unmount(&point, UnmountFlags::DETACH).map_err(|error| Error::io("unmount", &point)(error.into()))?;
    }
    Ok(())
}

/// mountinfo writes blanks and backslashes as octal numbers.
fn unescape(point: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_a_path() {
        assert_eq!(unescape("/a\\040b/c\\134d"), "/a b/c\\d");
    }

    #[test]
    fn logs_stay_where_a_person_looks() {
        let state = State::at("/s").unwrap();
        assert_eq!(backing(&state, "/var/log/pods"), Path::new("/s/log/pods"));
        assert_eq!(backing(&state, "/run/containerd"), Path::new("/s/node/run-containerd"));
    }
}
