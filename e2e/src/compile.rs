//! Builds what the cache lacks: Go components one after the other, and the operator beside them. A line per
//! component says what is built, how long it took and what is left. A failure names the component and shows
//! the compiler's last words; nothing half-built is ever used.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::cache::Entry;
use crate::component::Component;
use crate::digest;
use crate::invocation::Invocation;
use crate::layout::{Cache, Repository};
use crate::lock::Lock;
use crate::record::write_whole;
use crate::release::{NEWEST, Release};
use crate::terminal::say;

mod toolbox;

use toolbox::Built;
pub use toolbox::Toolbox;

/// No component takes a tenth of it on a slow machine; a hung download is ended by it.
const BUILD_DEADLINE: Duration = Duration::from_secs(1500);
/// Silence longer than this looks like a hang.
const HEARTBEAT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
const TAIL_LINES: usize = 25;
/// What of this repository is in the operator.
const OWN_PACKAGES: &[&str] = &["kaas-crds", "kaas-pki", "kaas-lifecycle", "kaas-operator"];

/// What is built besides what every local cluster needs.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// The operator of this checkout.
    pub operator: bool,
    /// Older releases for tenants.
    pub older: Vec<&'static Release>,
    /// Programs of flows.
    pub(crate) programs: Vec<&'static Component>,
}

/// What `up` runs.
#[derive(Debug)]
pub struct Build {
    /// Programs of the Go components.
    pub toolbox: Toolbox,
    /// The operator's binary, where it was asked for.
    pub operator: Option<PathBuf>,
}

/// Builds everything that is missing, Go and Rust side by side.
///
/// # Errors
/// The first failure of either side.
pub fn build_all(repository: &Repository, cache: &Cache, order: &Order) -> Result<Build, Error> {
    let older = order.older.iter().flat_map(|release| release.rows);
    let programs = order.programs.iter().copied();
    let rows: Vec<&Component> = NEWEST.rows.iter().chain(older).chain(programs).collect();
    std::thread::scope(|scope| {
        let rust = order.operator.then(|| scope.spawn(|| build_operator(repository, cache)));
        let toolbox = Toolbox::of(build_components(&rows, repository, cache)?, &order.older);
        let operator = rust
            .map(|thread| {
                thread.join().map_err(|_| Error::Invalid("the operator's build thread died".to_owned()))?
            })
            .transpose()?;
        Ok(Build { toolbox, operator })
    })
}

fn build_components(
    rows: &[&'static Component],
    repository: &Repository,
    cache: &Cache,
) -> Result<Built, Error> {
    let mut built = Built::new();
    let mut missing = Vec::new();
    for component in rows {
        let entry = Entry::of(component, repository, cache)?;
        match entry.programs(component) {
            Some(programs) => {
                built.insert(component.name, programs);
            }
            None => missing.push((*component, entry)),
        }
    }
    if missing.is_empty() {
        return Ok(built);
    }
    let go_build = GoBuild::open(cache)?;
    let mut left: Vec<&str> = missing.iter().map(|(component, _)| component.name).collect();
    for (component, entry) in missing {
        left.retain(|name| *name != component.name);
        let _lock = entry.locked()?;
        let programs = match entry.programs(component) {
            Some(programs) => programs, // another clone built it while this one waited
            None => {
                build_component(component, &entry, repository, cache, &go_build, &left)?;
                entry.programs(component).ok_or_else(|| {
                    Error::Invalid(format!("{} changed while it was being built", entry.directory.display()))
                })?
            }
        };
        built.insert(component.name, programs);
    }
    go_build.close();
    crate::cache::prune(cache);
    Ok(built)
}

/// Go's own build cache: one for all components, because they share the standard library, and dropped when
/// the last one is built (14 GB otherwise). `GOCACHE` in the environment is used instead, and kept.
struct GoBuild {
    directory: PathBuf,
    lock: Option<Lock>,
}

impl GoBuild {
    fn open(cache: &Cache) -> Result<Self, Error> {
        if let Some(own) = std::env::var_os("GOCACHE").filter(|value| !value.is_empty()) {
            return Ok(Self { directory: own.into(), lock: None });
        }
        let lock = Lock::shared(&cache.locks().join("go-build"), Duration::from_secs(30))?;
        Ok(Self { directory: cache.go_build(), lock: Some(lock) })
    }

    fn close(self) {
        // Another clone that is still building keeps it; the last one drops it.
        if self.lock.is_some_and(|lock| lock.try_upgrade()) {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

fn build_component(
    component: &Component,
    entry: &Entry,
    repository: &Repository,
    cache: &Cache,
    go_build: &GoBuild,
    left: &[&str],
) -> Result<(), Error> {
    let parent = cache.binaries();
    std::fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
    let unfinished = parent.join(format!(".{}-{}", component.name, entry.key));
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished).map_err(Error::io("remove", &unfinished))?;
    }
    std::fs::create_dir(&unfinished).map_err(Error::io("create", &unfinished))?;
    let go = |args: &[&str]| {
        let mut command = Command::new("go");
        command
            .current_dir(repository.row(component.name))
            .args(args)
            .env("CGO_ENABLED", if component.native { "1" } else { "0" })
            .env("GOWORK", "off")
            .env("GOFLAGS", "-mod=readonly")
            .env("GOCACHE", &go_build.directory);
        command
    };
    let mut build = go(&["build", "-trimpath", "-buildvcs=false"]);
    build
        .args(if component.native { &["-tags", "netgo,osusergo"][..] } else { &[] })
        .arg("-ldflags")
        .arg(component.linker_flags())
        .arg("-o")
        .arg(format!("{}/", unfinished.display()))
        .args(component.programs.iter().map(|(below, _)| component.package(below)));
    let name = format!("{} {}", component.name, component.version);
    let seconds = run_build(&name, component.name, build, cache)?;
    // What is written here is tested before anything uses it, and not again until it changes.
    if component.is_own() {
        for check in ["vet", "test"] {
            run_build(&format!("{check} of {name}"), component.name, go(&[check, "-trimpath", "."]), cache)?;
        }
    }
    for (below, program) in component.programs {
        let built = unfinished.join(default_name(&component.package(below)));
        let wanted = unfinished.join(program);
        if built != wanted {
            std::fs::rename(&built, &wanted).map_err(Error::io("rename", &built))?;
        }
    }
    entry.publish(component, &unfinished)?;
    let left = if left.is_empty() { "none".to_owned() } else { left.join(", ") };
    say(format!("  built {name} in {seconds} s; Go components left: {left}"));
    Ok(())
}

fn build_operator(repository: &Repository, cache: &Cache) -> Result<PathBuf, Error> {
    build_variant(repository, cache, "kaas-operator", &[])
}

/// Builds what the flows install.
///
/// # Errors
/// As [`build_next_operator`].
pub(crate) fn build_operators(repository: &Repository, cache: &Cache) -> Result<(), Error> {
    build_operator(repository, cache)?;
    build_next_operator(repository, cache).map(drop)
}

/// The operator as a later version would be: one flag more in what it renders.
///
/// # Errors
/// [`Error::Build`] and what the cache can raise.
pub(crate) fn build_next_operator(repository: &Repository, cache: &Cache) -> Result<PathBuf, Error> {
    build_variant(repository, cache, "kaas-operator-next", &["--features", "next-rendering"])
}

/// Builds the operator and puts it into the cache under a title of its own.
fn build_variant(
    repository: &Repository,
    cache: &Cache,
    title: &str,
    features: &[&str],
) -> Result<PathBuf, Error> {
    let name = "kaas-operator";
    // Two clones share the target directory: the binary is taken away before the lock is released.
    let _lock = Lock::exclusive(&cache.locks().join(name), BUILD_DEADLINE)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    drop_of_another_clone(&cargo, repository, cache)?;
    let mut command = Command::new(cargo);
    command
        .current_dir(repository.root())
        .args(["build", "--release", "--package", name, "--bin", name])
        .args(features)
        .env("CARGO_TARGET_DIR", cache.target());
    let seconds = run_build(title, title, command, cache)?;
    let built = cache.target().join("release").join(name);
    let digest = digest::of_file(&built)?;
    let directory = cache.binaries().join(format!("{title}-{}", digest::short(&digest, 16)));
    let program = directory.join(name);
    if digest::of_file(&program).ok().as_deref() != Some(digest.as_str()) {
        std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let copy = directory.join(".copy");
        std::fs::copy(&built, &copy).map_err(Error::io("copy", &built))?;
        std::fs::rename(&copy, &program).map_err(Error::io("create", &program))?;
        say(format!("  built {title} in {seconds} s"));
        crate::cache::prune(cache);
    }
    crate::cache::touch(&directory);
    Ok(program)
}

/// To cargo the packages of two clones are the same ones, new only where a file is younger than what was built: what
/// another clone has built goes first.
fn drop_of_another_clone(cargo: &OsStr, repository: &Repository, cache: &Cache) -> Result<(), Error> {
    let marker = cache.target().join("release").join("kaas-clone");
    let own = repository.root().as_os_str().as_encoded_bytes();
    if std::fs::read(&marker).is_ok_and(|clone| clone == own) {
        return Ok(());
    }
    Invocation::new(cargo)
        .directory(repository.root())
        .env("CARGO_TARGET_DIR", cache.target())
        .args(["clean", "--quiet", "--release"])
        .args(OWN_PACKAGES.iter().flat_map(|package| ["--package", package]))
        .within(BUILD_DEADLINE)
        .run()?;
    write_whole(&marker, own)
}

/// Runs a compiler with its output in a log; says so when it takes long, ends it at the deadline.
fn run_build(title: &str, component: &str, command: Command, cache: &Cache) -> Result<u64, Error> {
    let mut command = crate::process::dying_with_us(&command);
    let directory = cache.logs();
    std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
    let log = directory.join(format!("build-{component}.log"));
    let file = File::create(&log).map_err(Error::io("create", &log))?;
    let errors = file.try_clone().map_err(Error::io("open", &log))?;
    command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
    let started = Instant::now();
    let fail = |seconds, note: &str| Error::Build {
        component: title.to_owned(),
        seconds,
        tail: format!("{}{note}", last_lines(&log)),
        log: log.clone(),
    };
    let mut child = command.spawn().map_err(|error| fail(0, &format!("cannot start: {error}")))?;
    let mut next = HEARTBEAT;
    loop {
        let elapsed = started.elapsed();
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(elapsed.as_secs()),
            Ok(Some(status)) => return Err(fail(elapsed.as_secs(), &format!("\n{status}"))),
            Ok(None) if elapsed > BUILD_DEADLINE => {
                if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                let _ = child.wait();
                return Err(fail(elapsed.as_secs(), "\nended: it took too long"));
            }
            Ok(None) => {
                if elapsed >= next {
                    say(format!("  ... building {title}: {} s", elapsed.as_secs()));
                    next += HEARTBEAT;
                }
                std::thread::sleep(POLL);
            }
            Err(error) => return Err(fail(elapsed.as_secs(), &format!("\n{error}"))),
        }
    }
}

fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(TAIL_LINES)..).unwrap_or_default().join("\n")
}

/// The file name that `go build -o directory/` gives a package: its last element that is not a version.
fn default_name(package: &str) -> &str {
    let version = |element: &str| {
        element
            .strip_prefix('v')
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    package.rsplit('/').find(|element| !version(element)).unwrap_or(package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_go_makes_them() {
        assert_eq!(default_name("go.etcd.io/etcd/server/v3"), "server");
        assert_eq!(default_name("k8s.io/kubernetes/cmd/kubelet"), "kubelet");
        assert_eq!(default_name("github.com/containerd/containerd/v2/cmd/ctr"), "ctr");
    }

    #[test]
    fn a_failed_build_names_the_component_and_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        // The cache's place is an environment matter; a build only needs its log directory.
        let log = directory.path().join("build.log");
        std::fs::write(&log, (0..40).map(|n| format!("line {n}\n")).collect::<String>()).unwrap();
        let tail = last_lines(&log);
        assert!(tail.starts_with("line 15") && tail.ends_with("line 39"), "{tail}");
    }
}
