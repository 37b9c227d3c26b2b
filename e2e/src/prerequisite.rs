//! What the machine must have before anything is built or started: rights, programs, room. On Debian the
//! missing packages are installed; elsewhere one line names them. Each lack is one clear error, told before
//! any work is done.

use std::path::Path;
use std::time::Duration;

use crate::Error;
use crate::cgroup::Hierarchies;
use crate::invocation::Invocation;
use crate::layout::{Cache, Repository};
use crate::terminal::say;

const GIB: u64 = 1 << 30;
/// The node alone takes 1.5 GiB, a tenant 0.6 GiB.
const MEMORY: u64 = 3 * GIB;
/// Modules 6 GiB, Go's build cache 6 GiB until the last component is built, binaries and images 3 GiB.
const DISK_COLD: u64 = 16 * GIB;
/// etcd, container file systems, volumes and the workers' registry.
const DISK_WARM: u64 = 4 * GIB;
const INSTALL_DEADLINE: Duration = Duration::from_secs(600);

/// Program and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("busybox", "busybox-static"),
    ("dash", "dash"),
    ("protoc", "protobuf-compiler"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("sysctl", "procps"),
    ("ldd", "libc-bin"),
];
/// File and the Debian package that has it.
const FILES: &[(&str, &str)] = &[
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
    // Where the packet filter's programs have the names of protocols and ports from.
    ("/etc/protocols", "netbase"),
    ("/etc/services", "netbase"),
    // protoc's own types, which etcd's definitions import.
    ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev"),
];

/// Capabilities without which a node cannot be run, by their number.
const CAPABILITIES: &[(u32, &str)] = &[(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];

/// Checks everything, installs what is missing where it can.
///
/// # Errors
/// [`Error::Prerequisite`] with the one thing to do.
pub fn ensure(repository: &Repository, cache: &Cache) -> Result<(), Error> {
    root()?;
    packages()?;
    compilers(repository)?;
    let hierarchies = Hierarchies::detect()?;
    if !hierarchies.is_v1() && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Err(lack("/sys/fs/cgroup is not the root of control groups version 2: mount it there"));
    }
    let path = "/proc/filesystems";
    let known = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    if !known.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay") {
        let _ = Invocation::new("modprobe").arg("overlay").run();
        let known = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        if !known.contains("overlay") {
            return Err(lack("the kernel has no overlay file system: load or build the module `overlay`"));
        }
    }
    room(repository, cache)
}

fn lack(text: impl Into<String>) -> Error {
    Error::Prerequisite(text.into())
}

/// Only root can make namespaces, bridges and mounts that a node needs.
pub(crate) fn root() -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(lack(
            "a local cluster needs root: run the same command with sudo --preserve-env=PATH,HOME",
        ));
    }
    let path = "/proc/self/status";
    let status = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    match missing_capability(&status) {
        Some(name) => Err(lack(format!("root has no {name} here: run it outside of this container"))),
        None => Ok(()),
    }
}

fn missing_capability(status: &str) -> Option<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(line.trim(), 16).ok()?;
    CAPABILITIES.iter().find(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name)
}

fn packages() -> Result<(), Error> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_debian() {
        let hint = "install what provides these Debian packages with your package manager";
        return Err(lack(format!("missing: {list}; {hint}")));
    }
    say(format!("installing {list}"));
    let apt = || Invocation::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").within(INSTALL_DEADLINE);
    apt().args(["update", "--quiet"]).run()?;
    apt().args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(&missing).run()?;
    match missing_packages().as_slice() {
        [] => Ok(()),
        still => Err(lack(format!("still missing after apt-get install: {}", still.join(" ")))),
    }
}

fn missing_packages() -> Vec<&'static str> {
    let lacking = |(program, _): &&(&str, &str)| !is_program(program);
    let mut missing: Vec<_> = PROGRAMS.iter().filter(lacking).map(|(_, package)| *package).collect();
    missing.extend(FILES.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package));
    missing.dedup();
    missing
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Into::into);
    std::env::split_paths(&path).chain(system).any(|directory| directory.join(name).is_file())
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && is_program("apt-get")
}

fn compilers(repository: &Repository) -> Result<(), Error> {
    if !is_program("cargo") && std::env::var_os("CARGO").is_none() {
        return Err(lack("cargo is not in PATH: install Rust from https://rustup.rs"));
    }
    if !is_program("go") {
        return Err(lack("go is not in PATH: install Go 1.26 or newer from https://go.dev/dl"));
    }
    // Asked inside of a row: an older Go says by itself which version the row wants.
    Invocation::new("go").arg("version").directory(repository.row("kubernetes")).run().map(drop).map_err(
        |error| match error {
            Error::Command { output, .. } => lack(format!("Go cannot build the pins: {output}")),
            other => other,
        },
    )
}

fn room(repository: &Repository, cache: &Cache) -> Result<(), Error> {
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let memory = total_memory(&text);
    if memory < MEMORY {
        let (has, wants) = (gib(memory), gib(MEMORY));
        return Err(lack(format!("this machine has {has} GiB of memory, a local cluster needs {wants}")));
    }
    let cold = !cache.binaries().exists();
    std::fs::create_dir_all(cache.root()).map_err(Error::io("create", cache.root()))?;
    for (place, wanted, way) in [
        (cache.root(), if cold { DISK_COLD } else { DISK_WARM }, "or set KAAS_CACHE to a larger disk"),
        (repository.root(), DISK_WARM, "it holds the cluster's state"),
    ] {
        let stat = rustix::fs::statvfs(place).map_err(|error| Error::io("measure", place)(error.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < wanted {
            let (has, wants, place) = (gib(free), gib(wanted), place.display());
            return Err(lack(format!("{place} has {has} GiB free, {wants} are needed: make room, {way}")));
        }
    }
    Ok(())
}

fn total_memory(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

fn gib(bytes: u64) -> String {
    format!("{}.{}", bytes / GIB, bytes % GIB * 10 / GIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_by_bit() {
        assert_eq!(missing_capability("CapEff:\t000001fffeffffff\n"), None);
        assert_eq!(missing_capability("CapEff:\t00000000a80425fb\n"), Some("CAP_NET_ADMIN"));
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(total_memory("MemTotal:       2097152 kB\nMemFree: 1 kB\n"), 2 * GIB);
        assert_eq!(gib(GIB * 5 / 2), "2.5");
    }
}
