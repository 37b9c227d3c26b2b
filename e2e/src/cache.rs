//! Built programs, kept by what they are built from: a key over the row's pins, the flags and the compiler.
//! A directory appears under its final name only when it is complete, with a manifest of SHA-256 sums that
//! every use checks: a program that was damaged or replaced since is built again, never run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::component::Component;
use crate::digest::{self, Hasher};
use crate::invocation::Invocation;
use crate::layout::{Cache, Repository};
use crate::lock::Lock;

/// Another clone may be building the same component.
const LOCK_DEADLINE: Duration = Duration::from_secs(1800);
/// Every change of a pin or of the operator leaves an entry behind.
const UNUSED: Duration = Duration::from_secs(14 * 24 * 3600);
const MANIFEST: &str = "manifest.json";

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    component: String,
    version: String,
    /// SHA-256 by program.
    programs: BTreeMap<String, String>,
}

/// The place of one component in the cache.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) directory: PathBuf,
    pub(crate) lock: PathBuf,
    pub(crate) key: String,
}

impl Entry {
    /// Computes where the component belongs, from its pins as they are now.
    pub(crate) fn of(component: &Component, repository: &Repository, cache: &Cache) -> Result<Self, Error> {
        let row = repository.row(component.name);
        let compiler = Invocation::new("go").args(["env", "GOVERSION", "GOARCH"]).directory(&row).run()?;
        let mut hasher = Hasher::new();
        hasher.field(compiler.as_bytes());
        hasher.field(component.linker_flags().as_bytes());
        for (package, program) in component.programs {
            hasher.field(package.as_bytes());
            hasher.field(program.as_bytes());
        }
        for file in ["go.mod", "go.sum"] {
            let path = row.join(file);
            hasher.field(&std::fs::read(&path).map_err(Error::io("read", &path))?);
        }
        // A few rows have a program of their own; the key of the others is what it was before any had.
        let sources = sources(&row)?;
        if sources.is_empty() {
            hasher.field(b"");
        }
        for path in sources {
            hasher.field(&std::fs::read(&path).map_err(Error::io("read", &path))?);
        }
        let key = digest::short(&hasher.finish(), 16);
        let name = format!("{}-{key}", component.name);
        Ok(Self { directory: cache.binaries().join(&name), lock: cache.locks().join(&name), key })
    }

    pub(crate) fn locked(&self) -> Result<Lock, Error> {
        Lock::exclusive(&self.lock, LOCK_DEADLINE)
    }

    /// The programs, if all of them are there and unchanged.
    pub(crate) fn programs(&self, component: &Component) -> Option<BTreeMap<String, PathBuf>> {
        let text = std::fs::read(self.directory.join(MANIFEST)).ok()?;
        let manifest: Manifest = serde_json::from_slice(&text).ok()?;
        touch(&self.directory);
        component
            .programs
            .iter()
            .map(|(_, program)| {
                let path = self.directory.join(program);
                let expected = manifest.programs.get(*program)?;
                (digest::of_file(&path).ok()? == *expected).then(|| ((*program).to_owned(), path))
            })
            .collect()
    }

    /// Moves freshly built programs to their final place, with their sums.
    pub(crate) fn publish(&self, component: &Component, built: &Path) -> Result<(), Error> {
        let mut programs = BTreeMap::new();
        for (_, program) in component.programs {
            programs.insert((*program).to_owned(), digest::of_file(&built.join(program))?);
        }
        let manifest = Manifest {
            component: component.name.to_owned(),
            version: component.version.to_owned(),
            programs,
        };
        let path = built.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| Error::Invalid(format!("manifest of {}: {error}", component.name)))?;
        std::fs::write(&path, text).map_err(Error::io("write", &path))?;
        if self.directory.exists() {
            std::fs::remove_dir_all(&self.directory).map_err(Error::io("remove", &self.directory))?;
        }
        std::fs::rename(built, &self.directory).map_err(Error::io("create", &self.directory))
    }
}

/// The row's own Go files, in one order.
fn sources(row: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = std::fs::read_dir(row).map_err(Error::io("read", row))?;
    let paths = entries.flatten().map(|entry| entry.path());
    let mut sources: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "go")).collect();
    sources.sort();
    Ok(sources)
}

/// Says that an entry was used just now, so that it is not pruned.
pub(crate) fn touch(path: &Path) {
    if let Ok(file) = std::fs::File::open(path) {
        // A cache on a read-only disk still works; it is only never pruned.
        let _ = file.set_modified(SystemTime::now());
    }
}

/// Removes programs and images that no clone has used for two weeks.
pub(crate) fn prune(cache: &Cache) {
    prune_directory(&cache.binaries(), UNUSED);
    prune_directory(&cache.images(), UNUSED);
}

fn prune_directory(directory: &Path, unused: Duration) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let age = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > unused) {
            let path = entry.path();
            let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::COMPONENTS;

    #[test]
    fn only_what_is_unused_goes() {
        let directory = tempfile::tempdir().unwrap();
        let (old, used) = (directory.path().join("old"), directory.path().join("used"));
        for path in [&old, &used] {
            std::fs::create_dir(path).unwrap();
            let file = std::fs::File::open(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
        }
        touch(&used);
        prune_directory(directory.path(), Duration::from_secs(60));
        assert!(!old.exists() && used.exists());
    }

    #[test]
    fn a_changed_program_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let built = directory.path().join("built");
        std::fs::create_dir(&built).unwrap();
        let component = COMPONENTS.iter().find(|row| row.name == "cni").unwrap();
        for (_, program) in component.programs {
            std::fs::write(built.join(program), program).unwrap();
        }
        let entry = Entry {
            directory: directory.path().join("cni-key"),
            lock: directory.path().join("lock"),
            key: "key".to_owned(),
        };
        assert!(entry.programs(component).is_none());
        entry.publish(component, &built).unwrap();
        assert_eq!(entry.programs(component).unwrap().len(), component.programs.len());
        std::fs::write(entry.directory.join("bridge"), "other").unwrap();
        assert!(entry.programs(component).is_none());
    }
}
