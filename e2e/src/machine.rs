//! What local clusters share on one machine: which of them exist, the subnet index of each, and the kernel
//! settings and directories that were changed for them. The first cluster writes the former values down
//! before it changes anything; the last one puts them back. The record is in /run: a reboot, which resets
//! the settings too, forgets it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::lock::Lock;

const DIRECTORY: &str = "/run/kaas-local";
const LOCK_DEADLINE: Duration = Duration::from_secs(60);

/// Kernel settings that a node needs. kubelet would set the first four itself and never put them back; the
/// rest are limits per user that a hundred pods of one user reach. Raised only, where they are limits.
const SETTINGS: &[(&str, u64, Rule)] = &[
    ("vm/overcommit_memory", 1, Rule::Exactly),
    ("vm/panic_on_oom", 0, Rule::Exactly),
    ("kernel/panic", 10, Rule::Exactly),
    ("kernel/panic_on_oops", 1, Rule::Exactly),
    ("kernel/keys/root_maxkeys", 1_000_000, Rule::AtLeast),
    ("kernel/keys/root_maxbytes", 25_000_000, Rule::AtLeast),
    ("fs/inotify/max_user_instances", 8192, Rule::AtLeast),
    ("fs/inotify/max_user_watches", 524_288, Rule::AtLeast),
];

/// Fixed paths that kubelet, containerd and the CNI library write to. A node sees its own directories there
/// (mount namespace); the machine only needs the empty mount points.
pub(crate) const MOUNT_POINTS: &[&str] =
    &["/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers", "/run/containerd"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Exactly,
    AtLeast,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    index: u8,
    state: PathBuf,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Register {
    clusters: BTreeMap<String, Holder>,
    /// Former value by setting.
    settings: BTreeMap<String, String>,
    /// Directories that did not exist before.
    directories: Vec<PathBuf>,
}

/// The register, opened and locked.
pub(crate) struct Machine {
    directory: PathBuf,
    kernel: PathBuf,
    mount_points: Vec<PathBuf>,
    register: Register,
    _lock: Lock,
}

impl Machine {
    pub(crate) fn open() -> Result<Self, Error> {
        let mount_points = MOUNT_POINTS.iter().map(PathBuf::from).collect();
        Self::open_at(Path::new(DIRECTORY), Path::new("/proc/sys"), mount_points)
    }

    fn open_at(directory: &Path, kernel: &Path, mount_points: Vec<PathBuf>) -> Result<Self, Error> {
        let lock = Lock::exclusive(&directory.join("lock"), LOCK_DEADLINE)?;
        let path = directory.join("register.json");
        let register = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                Error::Invalid(format!("{}: {error}: remove it when no local cluster runs", path.display()))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Register::default(),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let (directory, kernel) = (directory.to_owned(), kernel.to_owned());
        Ok(Self { directory, kernel, mount_points, register, _lock: lock })
    }

    /// Enters a cluster: gives it the first free subnet, changes the kernel settings, makes mount points.
    pub(crate) fn enter(&mut self, name: &str, state: &Path, used: &[Ipv4Addr]) -> Result<u8, Error> {
        let index = match self.register.clusters.get(name) {
            Some(holder) => holder.index,
            None => self.free_index(used)?,
        };
        self.register.clusters.insert(name.to_owned(), Holder { index, state: state.to_owned() });
        for (setting, wanted, rule) in SETTINGS {
            let Ok(former) = std::fs::read_to_string(self.kernel.join(setting)) else { continue };
            let former = former.trim().to_owned();
            let fits = former.parse::<u64>().is_ok_and(|value| match rule {
                Rule::Exactly => value == *wanted,
                Rule::AtLeast => value >= *wanted,
            });
            if !fits {
                self.register.settings.entry((*setting).to_owned()).or_insert(former);
            }
        }
        for path in &self.mount_points {
            for missing in path.ancestors().take_while(|path| !path.exists()) {
                if !self.register.directories.iter().any(|known| known == missing) {
                    self.register.directories.push(missing.to_owned());
                }
            }
        }
        self.write()?; // before the first change, so that a crash loses no former value
        for path in &self.mount_points {
            std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
        }
        for (setting, wanted, _) in SETTINGS {
            if self.register.settings.contains_key(*setting) {
                self.set(setting, &wanted.to_string())?;
            }
        }
        Ok(index)
    }

    /// Takes a cluster out; the last one puts everything back. Not being in is no error.
    pub(crate) fn leave(&mut self, name: &str) -> Result<(), Error> {
        self.register.clusters.remove(name);
        if !self.is_empty() {
            return self.write();
        }
        self.restore()
    }

    /// Removes the register's own files when nobody is entered: looking at it leaves no trace either.
    pub(crate) fn close_if_empty(self) -> Result<(), Error> {
        if self.is_empty() && self.register.settings.is_empty() {
            return std::fs::remove_dir_all(&self.directory).map_err(Error::io("remove", &self.directory));
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<(), Error> {
        for (setting, former) in &self.register.settings {
            self.set(setting, former)?;
        }
        // Deepest first; what somebody else has filled meanwhile stays.
        let mut directories = std::mem::take(&mut self.register.directories);
        directories.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        for directory in directories {
            let _ = std::fs::remove_dir(directory);
        }
        std::fs::remove_dir_all(&self.directory).map_err(Error::io("remove", &self.directory))
    }

    /// Former values that are still changed.
    pub(crate) fn changed_settings(&self) -> BTreeMap<String, String> {
        self.register.settings.clone()
    }

    /// True when no cluster is entered.
    pub(crate) fn is_empty(&self) -> bool {
        self.register.clusters.is_empty()
    }

    /// True when this cluster is entered.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.register.clusters.contains_key(name)
    }

    fn free_index(&self, used: &[Ipv4Addr]) -> Result<u8, Error> {
        let mut taken: BTreeSet<u8> = self.register.clusters.values().map(|holder| holder.index).collect();
        taken.extend(used.iter().filter_map(|address| match address.octets() {
            [10, 77, index, _] => Some(index),
            _ => None,
        }));
        (0..=u8::MAX).find(|index| !taken.contains(index)).ok_or_else(|| {
            Error::Prerequisite(
                "all subnets 10.77.0.0/24 to 10.77.255.0/24 are in use: take a local cluster down".to_owned(),
            )
        })
    }

    fn set(&self, setting: &str, value: &str) -> Result<(), Error> {
        let path = self.kernel.join(setting);
        std::fs::write(&path, value).map_err(Error::io(&format!("write {value} to"), &path))
    }

    fn write(&self) -> Result<(), Error> {
        let path = self.directory.join("register.json");
        crate::record::write_json(&path, &self.register)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        directory: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            for (setting, _, _) in SETTINGS {
                let path = directory.path().join("sys").join(setting);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "7\n").unwrap();
            }
            Self { directory }
        }

        fn machine(&self) -> Machine {
            let root = self.directory.path();
            let points = vec![root.join("var/lib/kubelet"), root.join("var/log")];
            Machine::open_at(&root.join("run"), &root.join("sys"), points).unwrap()
        }

        fn setting(&self, name: &str) -> String {
            let path = self.directory.path().join("sys").join(name);
            std::fs::read_to_string(path).unwrap().trim().to_owned()
        }
    }

    #[test]
    fn the_last_one_out_restores() {
        let world = World::new();
        let enter = |name: &str| world.machine().enter(name, Path::new("/state"), &[]).unwrap();
        assert_eq!((enter("one"), enter("two"), enter("one")), (0, 1, 0));
        assert_eq!(world.setting("kernel/panic"), "10");
        world.machine().leave("one").unwrap();
        assert_eq!(world.setting("kernel/panic"), "10", "the other one still needs it");
        assert_eq!(enter("three"), 0);
        world.machine().leave("three").unwrap();
        world.machine().leave("two").unwrap();
        assert_eq!(world.setting("kernel/panic"), "7");
        let root = world.directory.path();
        assert!(!root.join("var").exists() && !root.join("run").exists());
        world.machine().leave("two").unwrap();
    }

    #[test]
    fn a_used_subnet_is_left_alone() {
        let world = World::new();
        let used = [Ipv4Addr::new(10, 77, 0, 254), Ipv4Addr::new(10, 76, 1, 1)];
        assert_eq!(world.machine().enter("one", Path::new("/state"), &used).unwrap(), 1);
    }

    #[test]
    fn limits_are_never_lowered() {
        let world = World::new();
        let path = world.directory.path().join("sys/fs/inotify/max_user_watches");
        std::fs::write(path, "9999999").unwrap();
        world.machine().enter("one", Path::new("/state"), &[]).unwrap();
        assert_eq!(world.setting("fs/inotify/max_user_watches"), "9999999");
    }
}
