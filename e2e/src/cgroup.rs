//! The control groups of one local cluster: one directory of its name in every hierarchy that the machine
//! mounts. Version 1 (several hierarchies, cpuset to be filled by hand) and version 2 (one tree, controllers
//! to be delegated) are told apart by what is mounted. All daemons of a cluster and all its pods live below
//! that directory, so that the tree is also the reliable list of what `down` has to end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Error;

const DAEMONS: &str = "daemons";
const POLL: Duration = Duration::from_millis(20);

/// The hierarchies of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hierarchies {
    /// Mount points of all version 1 hierarchies, and of a version 2 tree without controllers beside them.
    V1(Vec<PathBuf>),
    /// The unified tree.
    V2(PathBuf),
}

impl Hierarchies {
    pub(crate) fn detect() -> Result<Self, Error> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Self::parse(&text).ok_or_else(|| {
            Error::Prerequisite(
                "no control groups are mounted: mount /sys/fs/cgroup (version 1 or 2) first".to_owned(),
            )
        })
    }

    fn parse(mountinfo: &str) -> Option<Self> {
        let mounts = |kind: &str| -> Vec<PathBuf> {
            mountinfo
                .lines()
                .filter_map(|line| line.split_once(" - "))
                .filter(|(_, right)| right.split(' ').next() == Some(kind))
                .filter_map(|(left, _)| left.split(' ').nth(4))
                .filter(|path| path.starts_with("/sys/fs/cgroup"))
                .map(PathBuf::from)
                .collect()
        };
        let (mut first, second) = (mounts("cgroup"), mounts("cgroup2"));
        if first.is_empty() {
            return second.into_iter().next().map(Self::V2);
        }
        first.extend(second);
        Some(Self::V1(first))
    }

    pub(crate) fn is_v1(&self) -> bool {
        matches!(self, Self::V1(_))
    }

    fn mounts(&self) -> &[PathBuf] {
        match self {
            Self::V1(mounts) => mounts,
            Self::V2(mount) => std::slice::from_ref(mount),
        }
    }

    fn directories(&self, name: &str) -> impl Iterator<Item = PathBuf> {
        self.mounts().iter().map(move |mount| mount.join(name)).filter(|path| path.is_dir())
    }

    /// Makes the cluster's directory everywhere; returns the file that takes the pids of its daemons.
    pub(crate) fn create(&self, name: &str) -> Result<PathBuf, Error> {
        for mount in self.mounts() {
            let directory = mount.join(name);
            std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
            match self {
                Self::V1(_) => fill_cpuset(mount, &directory)?,
                Self::V2(_) => delegate(mount, &directory)?,
            }
        }
        let home = self.home().join(name).join(DAEMONS);
        std::fs::create_dir_all(&home).map_err(Error::io("create", &home))?;
        Ok(home.join("cgroup.procs"))
    }

    /// Where the daemons are kept together. Version 1 offers a choice: the hierarchy that only counts.
    fn home(&self) -> &Path {
        let mounts = self.mounts();
        mounts
            .iter()
            .find(|mount| mount.ends_with("pids"))
            .or_else(|| mounts.iter().find(|mount| mount.ends_with("systemd")))
            .or_else(|| mounts.first())
            .map_or(Path::new("/sys/fs/cgroup"), PathBuf::as_path)
    }

    /// Every process of the cluster.
    pub(crate) fn processes(&self, name: &str) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for directory in self.directories(name) {
            for below in tree(&directory) {
                let text = std::fs::read_to_string(below.join("cgroup.procs")).unwrap_or_default();
                found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            }
        }
        found
    }

    /// Kills every process of the cluster until none is left: they may start others while they are killed.
    pub(crate) fn kill(&self, name: &str, deadline: Duration) -> Result<(), Error> {
        let started = Instant::now();
        loop {
            let processes = self.processes(name);
            if processes.is_empty() {
                return Ok(());
            }
            if started.elapsed() > deadline {
                return Err(Error::Deadline {
                    what: format!("end of the processes {processes:?} of {name}"),
                    seconds: deadline.as_secs(),
                    dump: String::new(),
                });
            }
            for pid in processes.into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Removes the cluster's directories. An emptied group stays busy for a moment.
    pub(crate) fn remove(&self, name: &str, deadline: Duration) -> Result<(), Error> {
        let started = Instant::now();
        loop {
            for directory in self.directories(name) {
                for below in tree(&directory) {
                    let _ = std::fs::remove_dir(below);
                }
            }
            let Some(left) = self.directories(name).next() else { return Ok(()) };
            if started.elapsed() > deadline {
                return Err(Error::Deadline {
                    what: format!("removal of {}", left.display()),
                    seconds: deadline.as_secs(),
                    dump: String::new(),
                });
            }
            std::thread::sleep(POLL);
        }
    }

    /// What is left of the cluster.
    pub(crate) fn remains(&self, name: &str) -> Vec<PathBuf> {
        self.directories(name).collect()
    }
}

/// A directory and all below it, deepest first.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    if let Ok(entries) = std::fs::read_dir(directory) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                all.extend(tree(&entry.path()));
            }
        }
    }
    all.push(directory.to_owned());
    all
}

/// A new cpuset of version 1 is empty, and no process may enter it before it is filled.
fn fill_cpuset(mount: &Path, directory: &Path) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (above, own) = (mount.join(file), directory.join(file));
        if !own.exists() || !std::fs::read_to_string(&own).unwrap_or_default().trim().is_empty() {
            continue;
        }
        let value = std::fs::read_to_string(&above).map_err(Error::io("read", &above))?;
        std::fs::write(&own, value.trim()).map_err(Error::io("write", &own))?;
    }
    Ok(())
}

/// Version 2 hands controllers down one level at a time.
fn delegate(mount: &Path, directory: &Path) -> Result<(), Error> {
    let path = mount.join("cgroup.controllers");
    let available = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    for controller in ["cpu", "cpuset", "memory", "pids", "io"] {
        if !available.split_whitespace().any(|name| name == controller) {
            continue;
        }
        for level in [mount, directory] {
            let file = level.join("cgroup.subtree_control");
            std::fs::write(&file, format!("+{controller}")).map_err(Error::io("write", &file))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_from_the_mounts() {
        let v1 = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs cgroup rw\n\
                  31 30 0:27 / /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids\n\
                  32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                  33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(v1).unwrap();
        assert!(found.is_v1());
        assert_eq!(found.mounts().len(), 3);
        assert_eq!(found.home(), Path::new("/sys/fs/cgroup/pids"));
        let v2 = "31 30 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Hierarchies::parse(v2), Some(Hierarchies::V2("/sys/fs/cgroup".into())));
        assert_eq!(Hierarchies::parse("1 0 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
