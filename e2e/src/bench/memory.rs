//! Resident memory of the operator's processes, as the kernel counts it: leader and standbys told apart by the Lease.

use serde_json::{Value, json};

use super::site::Site;
use super::timeline::{pod_of, read};
use crate::Error;
use crate::cgroup::Hierarchies;
use crate::kubectl::at;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kaas-system/leases/kaas-operator";
const PODS: &str =
    "/api/v1/namespaces/kaas-system/pods?labelSelector=app.kubernetes.io%2Fname%3Dkaas-operator";
const PROGRAM: &str = "kaas-operator";

/// One process of the operator.
#[derive(Debug, Clone)]
pub(super) struct Replica {
    pub(super) pid: i32,
    pub(super) pod: String,
    pub(super) leads: bool,
    pub(super) memory: Memory,
}

/// Of one process, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// Resident: what is told.
    resident: u64,
    /// Of it what is not part of a file.
    anonymous: u64,
    /// The most that was ever resident.
    peak: u64,
    /// Open files: most of them are connections.
    files: usize,
}

impl Memory {
    /// Of a process, or nothing when it is gone.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Self::parse(&read(&format!("/proc/{pid}/status")), files)
    }

    fn parse(status: &str, files: usize) -> Option<Self> {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().trim_end_matches("kB").trim().parse().ok()
        };
        Some(Self { resident: field("VmRSS")?, anonymous: field("RssAnon")?, peak: field("VmHWM")?, files })
    }

    pub(super) fn files(self) -> usize {
        self.files
    }

    pub(super) fn mebibytes(self) -> f64 {
        self.resident as f64 / 1024.0
    }

    pub(super) fn json(self) -> Value {
        json!({
            "resident_kib": self.resident, "anonymous_kib": self.anonymous, "peak_kib": self.peak,
            "open_files": self.files,
        })
    }
}

impl Site {
    /// Every running process of the operator.
    pub(super) fn replicas(&self) -> Result<Vec<Replica>, Error> {
        let leader = self.leader()?;
        let pods = self.get(PODS)?;
        let pod_name = |uid: &str| {
            let all = at(&pods, "/items").as_array().into_iter().flatten();
            let mut named = all.filter(|pod| at(pod, "/metadata/uid") == uid);
            named.next().and_then(|pod| at(pod, "/metadata/name").as_str()).map(str::to_owned)
        };
        let one = |pid: i32| {
            if read(&format!("/proc/{pid}/comm")).trim() != PROGRAM {
                return None;
            }
            let pod = pod_name(&pod_of(&read(&format!("/proc/{pid}/cgroup")))?)?;
            Some(Replica { pid, leads: pod == leader, pod, memory: Memory::of(pid)? })
        };
        let found = Hierarchies::detect()?.processes(self.cluster.network.name());
        Ok(found.into_iter().filter_map(one).collect())
    }

    /// Name of the pod that leads; a holder is the pod's name, an underscore and a number of its own.
    pub(super) fn leader(&self) -> Result<String, Error> {
        let lease = self.get(LEASE)?;
        let holder = at(&lease, "/spec/holderIdentity").as_str().unwrap_or_default();
        Ok(holder.rsplit_once('_').map_or(holder, |(pod, _)| pod).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_as_the_kernel_tells_it() {
        let status =
            "Name:\tkaas-operator\nVmHWM:\t   20480 kB\nVmRSS:\t   15360 kB\nRssAnon:\t    5120 kB\n";
        let memory = Memory::parse(status, 7).unwrap();
        assert_eq!(memory, Memory { resident: 15360, anonymous: 5120, peak: 20480, files: 7 });
        assert!((memory.mebibytes() - 15.0).abs() < 1e-9);
        assert_eq!(Memory::parse("Name:\tgone\n", 0), None);
    }
}
