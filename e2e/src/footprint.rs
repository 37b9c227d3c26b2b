//! What a machine looks like from outside of a local cluster: taken before and after, it proves that nothing
//! is left. Facts that name another local cluster are left out, so that several can be tested at once. Only
//! reads.

use std::collections::BTreeSet;
use std::path::Path;

use crate::Error;
use crate::invocation::Invocation;
use crate::layout::State;
use crate::record::{NAME_LENGTH, NAME_PREFIX, name_of};

/// Directories in which a node could leave something.
const DIRECTORIES: &[&str] = &[
    "/run",
    "/run/netns",
    "/run/containerd",
    "/run/lock",
    "/var/lib",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log",
    "/etc",
    "/etc/cni",
    "/etc/kubernetes",
    "/opt",
    "/opt/cni",
];
/// Kernel settings that a node or its parts are known to change.
const SETTINGS: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "net/netfilter/nf_conntrack_max",
    "net/bridge/bridge-nf-call-iptables",
];
/// Programs of a local cluster: one that names the state directory in its command line is left over.
const DAEMONS: &[&str] = &["etcd", "kube", "containerd"];

/// A set of facts; two of them are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint(BTreeSet<String>);

impl Footprint {
    /// Looks at interfaces, routes, firewall, mounts, control groups, settings, directories, processes.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Command`] when something cannot be looked at.
    pub fn take(state: &Path) -> Result<Self, Error> {
        let mut facts = BTreeSet::new();
        for (title, words, command) in [
            ("interface", 2, &["ip", "-oneline", "link", "show"][..]),
            ("route", usize::MAX, &["ip", "route", "show", "table", "all"]),
            ("rule", usize::MAX, &["nft", "list", "ruleset"]),
        ] {
            let Some((program, args)) = command.split_first() else { continue };
            let text = Invocation::new(program).args(args).run()?;
            facts.extend(text.lines().map(|line| format!("{title} {}", first_words(line, words))));
        }
        let path = "/proc/self/mountinfo";
        let mounts = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        facts
            .extend(mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(|at| format!("mount {at}")));
        for directory in DIRECTORIES {
            facts.extend(entries(Path::new(directory)).map(|name| format!("entry {directory}/{name}")));
        }
        for mount in entries(Path::new("/sys/fs/cgroup")) {
            let directory = Path::new("/sys/fs/cgroup").join(mount);
            facts.extend(entries(&directory).map(|name| format!("cgroup {}/{name}", directory.display())));
        }
        for setting in SETTINGS {
            if let Ok(value) = std::fs::read_to_string(Path::new("/proc/sys").join(setting)) {
                facts.insert(format!("setting {setting}={}", value.trim()));
            }
        }
        facts.extend(processes_naming(state)?);
        let own = name_of(&State::at(state)?);
        facts.retain(|fact| !names_another(fact, &own));
        Ok(Self(facts))
    }

    /// What differs from an earlier look, one line for each fact.
    #[must_use]
    pub fn difference(&self, before: &Self) -> Vec<String> {
        let new = self.0.difference(&before.0).map(|fact| format!("new: {fact}"));
        let gone = before.0.difference(&self.0).map(|fact| format!("gone: {fact}"));
        new.chain(gone).collect()
    }
}

/// True when a fact holds the name of a local cluster, but not this one's.
fn names_another(fact: &str, own: &str) -> bool {
    fact.match_indices(NAME_PREFIX).any(|(at, _)| {
        let name: String = fact.chars().skip(at).take(NAME_LENGTH).collect();
        let digits = name.strip_prefix(NAME_PREFIX).unwrap_or_default();
        name.len() == NAME_LENGTH && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) && name != own
    })
}

fn first_words(line: &str, count: usize) -> String {
    line.split_whitespace().take(count).collect::<Vec<_>>().join(" ")
}

fn entries(directory: &Path) -> impl Iterator<Item = String> {
    let all = std::fs::read_dir(directory).into_iter().flatten().flatten();
    all.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Processes of a local cluster whose command line names its directory.
pub(crate) fn processes_naming(directory: &Path) -> Result<Vec<String>, Error> {
    let needle = directory.to_string_lossy().into_owned();
    let path = "/proc";
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("read", path))?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default();
        if line.contains(&needle) && DAEMONS.iter().any(|daemon| program.contains(daemon)) {
            found.push(format!("process {pid}: {}", line.trim()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_clusters_are_left_out() {
        assert!(names_another("interface 9: kaas0123abcdv: x", "kaas00000000"));
        assert!(!names_another("interface 9: kaas0123abcdv: x", "kaas0123abcd"));
        assert!(!names_another("entry /var/lib/kaas-something-else", "kaas0123abcd"));
    }

    #[test]
    fn differences_go_both_ways() {
        let set = |facts: &[&str]| Footprint(facts.iter().map(|fact| (*fact).to_owned()).collect());
        assert_eq!(set(&["a", "b"]).difference(&set(&["b", "c"])), ["new: a", "gone: c"]);
    }
}
