//! Images that are in another image, ready to run: a worker that has them neither pulls nor unpacks them, however many
//! workers start at once. The records are containerd's own: it runs for some seconds, imports the images, and ends. What
//! it would have unpacked is put where its records say it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::archive::{Content, Source};
use super::catalogue::Published;
use crate::Error;
use crate::compile::Toolbox;
use crate::digest::{self, Hasher};
use crate::invocation::Invocation;
use crate::layout::Cache;
use crate::lock::Lock;
use crate::process::{Daemon, Place};
use crate::record::write_json;
use crate::wait;

/// Changes when the layout of a store changes.
const FORMAT: &str = "1";
/// Below the root of containerd's data: what is said of images and their content, and of snapshots.
const METADATA: &str = "io.containerd.metadata.v1.bolt/meta.db";
const BLOBS: &str = "io.containerd.content.v1.content/blobs";
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1.overlayfs";
/// Label of an image that kubelets may use.
const MANAGED: &str = "io.cri-containerd.image=managed";
/// Another clone may be making it.
const LOCK_DEADLINE: Duration = Duration::from_secs(300);
const DEADLINE: Duration = Duration::from_secs(120);
const GRACE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);

/// A store with these images below `place`: `records`, as below the root of containerd's data, and `snapshots` by number.
/// `settings` is the configuration of the containerd that will use it.
pub(super) fn content(
    toolbox: &Toolbox,
    cache: &Cache,
    images: &[Published],
    settings: &str,
    place: &str,
) -> Result<Content, Error> {
    let made = directory(toolbox, cache, images, settings)?;
    let mut all = Content::default();
    let records = made.join("records");
    for file in files_below(&records)? {
        let below = file.strip_prefix(&made).unwrap_or(&file).display();
        all.files.insert(format!("{place}/{below}"), Source::File(file.clone(), 0o600));
    }
    let list = made.join("snapshots.json");
    let text = std::fs::read(&list).map_err(Error::io("read", &list))?;
    let snapshots: BTreeMap<String, String> = serde_json::from_slice(&text)
        .map_err(|error| Error::Invalid(format!("{}: {error}: remove it", list.display())))?;
    for (number, reference) in snapshots {
        let found = images.iter().find(|published| published.image.reference == reference);
        let found = found.ok_or_else(|| Error::Invalid(format!("{}: remove it", list.display())))?;
        all.add(found.image.content()?.below(&format!("{place}/snapshots/{number}/fs")));
    }
    Ok(all)
}

/// The directory in the cache, made first if these images were never put into a store.
fn directory(
    toolbox: &Toolbox,
    cache: &Cache,
    images: &[Published],
    settings: &str,
) -> Result<PathBuf, Error> {
    let mut hasher = Hasher::new();
    hasher.field(FORMAT.as_bytes());
    hasher.field(settings.as_bytes());
    hasher.field(digest::of_file(toolbox.program("containerd")?)?.as_bytes());
    let mut archives = Vec::new();
    for published in images {
        let archive = published.image.archive(cache)?;
        hasher.field(archive.digest.as_bytes());
        published.names.iter().for_each(|name| hasher.field(name.as_bytes()));
        archives.push(archive.path);
    }
    let made = cache.images().join(format!("store-{}", digest::short(&hasher.finish(), 24)));
    let _lock = Lock::exclusive(&cache.locks().join("store"), LOCK_DEADLINE)?;
    if !made.exists() {
        let scratch = tempfile::Builder::new()
            .prefix("store-")
            .tempdir_in(cache.images())
            .map_err(Error::io("make a directory in", &cache.images()))?;
        let runtime = Runtime::new(toolbox, scratch.path())?;
        let snapshots = runtime.fill(images, &archives, settings)?;
        let whole = scratch.path().join("store");
        write_json(&whole.join("snapshots.json"), &snapshots)?;
        keep(&runtime.root, &whole.join("records"))?;
        std::fs::rename(&whole, &made).map_err(Error::io("create", &made))?;
    }
    crate::cache::touch(&made);
    Ok(made)
}

/// Takes what outlives containerd: its records, and the small blobs that describe images. Layers are not among them.
fn keep(root: &Path, records: &Path) -> Result<(), Error> {
    let snapshots = PathBuf::from(SNAPSHOTTER).join("metadata.db");
    let mut places = vec![root.join(METADATA), root.join(snapshots)];
    places.extend(files_below(&root.join(BLOBS))?);
    for from in places {
        let to = records.join(from.strip_prefix(root).unwrap_or(&from));
        if let Some(above) = to.parent() {
            std::fs::create_dir_all(above).map_err(Error::io("create", above))?;
        }
        std::fs::copy(&from, &to).map_err(Error::io("copy", &from))?;
    }
    Ok(())
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let fail = |error| Error::io("read", directory)(error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        match path.is_dir() {
            true => files.extend(files_below(&path)?),
            false => files.push(path),
        }
    }
    Ok(files)
}

/// A containerd of its own, for as long as the import takes.
struct Runtime<'a> {
    toolbox: &'a Toolbox,
    /// Where it keeps its data: on the disk of the cache.
    root: PathBuf,
    scratch: &'a Path,
    /// Short, as the path of a socket has to be.
    state: tempfile::TempDir,
}

impl<'a> Runtime<'a> {
    fn new(toolbox: &'a Toolbox, scratch: &'a Path) -> Result<Self, Error> {
        let state = tempfile::tempdir().map_err(Error::io("make a directory in", &std::env::temp_dir()))?;
        Ok(Self { toolbox, root: scratch.join("root"), scratch, state })
    }

    /// Imports all; returns which image each snapshot is of.
    fn fill(
        &self,
        images: &[Published],
        archives: &[PathBuf],
        settings: &str,
    ) -> Result<BTreeMap<String, String>, Error> {
        let file = self.scratch.join("config.toml");
        std::fs::write(&file, self.configuration(images, settings)).map_err(Error::io("write", &file))?;
        let daemon = Daemon {
            name: "containerd",
            // What it mounts to unpack is seen by nobody else, and ends with it.
            program: "unshare".into(),
            args: vec![
                "--mount".to_owned(),
                "--".to_owned(),
                self.toolbox.program("containerd")?.display().to_string(),
                "--config".to_owned(),
                file.display().to_string(),
            ],
            reads: vec![],
        };
        let log = self.scratch.join("log");
        let place = Place { dies_with_parent: true, ..Place::default() };
        let running = daemon.start(&place, &log)?;
        let told = || std::fs::read_to_string(&log).unwrap_or_default();
        let imported = self.import(images, archives, told);
        let ended = running.stop(GRACE);
        imported.and_then(|snapshots| ended.map(|()| snapshots))
    }

    fn import(
        &self,
        images: &[Published],
        archives: &[PathBuf],
        told: impl Fn() -> String,
    ) -> Result<BTreeMap<String, String>, Error> {
        let list = || self.ctr(&["images", "list"]).map_err(|error| error.to_string());
        wait::until("containerd to answer", DEADLINE, POLL, list, &told)?;
        let mut snapshots = BTreeMap::new();
        for (published, archive) in images.iter().zip(archives) {
            let archive = archive.display().to_string();
            self.ctr(&["images", "import", "--local", "--discard-unpacked-layers", &archive])?;
            for name in published.names.iter().filter(|name| **name != published.image.reference) {
                self.ctr(&["images", "tag", &published.image.reference, name])?;
            }
            // Content that is there already gets no further one.
            for number in self.snapshots()? {
                snapshots.entry(number).or_insert_with(|| published.image.reference.clone());
            }
        }
        let names: Vec<&String> = images.iter().flat_map(|published| &published.names).collect();
        let managed = || {
            let list = self.ctr(&["images", "list"]).map_err(|error| error.to_string())?;
            let is_managed = |name: &&&String| {
                list.lines().any(|line| {
                    line.split_whitespace().next() == Some(name.as_str()) && line.contains(MANAGED)
                })
            };
            match names.iter().find(|name| !is_managed(name)) {
                None => Ok(()),
                Some(name) => Err(format!("{name} is not known to kubelets yet")),
            }
        };
        wait::until("containerd to know the images", DEADLINE, POLL, managed, &told)?;
        // Layers that are unpacked are needed no more.
        self.ctr(&["content", "prune", "references"])?;
        Ok(snapshots)
    }

    fn snapshots(&self) -> Result<Vec<String>, Error> {
        let directory = self.root.join(SNAPSHOTTER).join("snapshots");
        let entries = std::fs::read_dir(&directory).map_err(Error::io("read", &directory))?;
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }

    /// The same settings in other places: nothing of the machine's is touched.
    fn configuration(&self, images: &[Published], settings: &str) -> String {
        let sandbox = images.iter().flat_map(|published| &published.names);
        let sandbox = sandbox.into_iter().find(|name| name.contains("/pause:")).map_or("", String::as_str);
        let other = |directory: &str| self.scratch.join(directory).display().to_string();
        settings
            .replace("/var/lib/containerd", &self.root.display().to_string())
            .replace("/run/containerd", &self.state.path().display().to_string())
            .replace("/etc/cni/net.d", &other("networks"))
            .replace("/etc/containerd/certs.d", &other("registries"))
            .replace("@SANDBOX_IMAGE@", sandbox)
            .replace("@NETWORK_TEMPLATE@", "")
    }

    fn ctr(&self, args: &[&str]) -> Result<String, Error> {
        let socket = self.state.path().join("containerd.sock");
        Invocation::new(self.toolbox.program("ctr")?)
            .args(["--address", &socket.display().to_string(), "--namespace", "k8s.io"])
            .args(args)
            .within(DEADLINE)
            .run()
    }
}
