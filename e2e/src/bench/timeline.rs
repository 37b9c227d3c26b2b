//! Where the time of one creation goes. Each milestone is taken from the finest source there is: the audit log of the
//! management API server (microseconds), the start times of the pods' processes (10 ms), the servers' own logs. No
//! object is touched for it. All clocks are one machine's.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::site::{Sample, Site};
use crate::Error;
use crate::audit::Event;
use crate::cgroup::Hierarchies;
use crate::kubectl::at;

/// The milestones in the order in which they are expected.
pub(super) const MILESTONES: &[&str] = &[
    "the operator's first write",
    "namespace made",
    "authorities made",
    "last Secret made",
    "StatefulSet applied",
    "last Deployment applied",
    "last pod made",
    "API server: pod bound",
    "API server: sandbox started",
    "API server: container started",
    "etcd: volume made",
    "etcd: pod bound",
    "etcd: sandbox started",
    "etcd: container started",
    "etcd: serves",
    "API server: last dial of etcd that failed",
    "API server: listens",
    "API server: pod is Ready",
    "API server: in the Service",
    "/readyz through the endpoint",
    "the operator's status write after it",
    "controllers: containers started",
    "default ServiceAccount",
];

/// Ticks of /proc/PID/stat in a second: fixed by Linux for every architecture that runs this.
const TICKS: f64 = 100.0;

/// Seconds from the answer to the creation, by milestone; one that was not seen is not there.
pub(super) type Timeline = BTreeMap<&'static str, f64>;

/// Puts one creation together while its pods still run.
pub(super) fn take(site: &Site, sample: &Sample, requests: &[Event]) -> Result<Timeline, Error> {
    let mut line = Timeline::new();
    let since = |time: Timestamp| time.duration_since(sample.applied).as_secs_f64();
    let home = sample.namespace();
    let own = |event: &Event| event.namespace == home || (event.name == home && event.namespace.is_empty());
    let mut note = |name: &'static str, times: &mut dyn Iterator<Item = f64>, last: bool| {
        let found = if last { times.max_by(f64::total_cmp) } else { times.min_by(f64::total_cmp) };
        line.extend(found.map(|time| (name, time)));
    };
    let writes = || requests.iter().filter(|event| event.is_write() && event.code < 300);
    let answered = |event: &Event| since(event.answered);
    let of = |resource: &'static str| {
        writes().filter(move |event| event.resource == resource && event.subresource.is_empty() && own(event))
    };
    let by_operator = || writes().filter(|event| event.is_of_operator());
    note("the operator's first write", &mut by_operator().map(|event| since(event.received)), false);
    note("namespace made", &mut of("namespaces").map(answered), false);
    let authority = of("secrets").filter(|event| event.name == "authority");
    note("authorities made", &mut authority.map(answered), false);
    note("last Secret made", &mut of("secrets").map(answered), true);
    note("StatefulSet applied", &mut of("statefulsets").map(answered), false);
    let applied = of("deployments").filter(|event| event.is_of_operator());
    note("last Deployment applied", &mut applied.map(answered), true);
    let made = of("pods").filter(|event| event.verb == "create");
    note("last pod made", &mut made.map(answered), true);
    for (milestone, prefix) in [("API server: pod bound", "kube-apiserver-"), ("etcd: pod bound", "etcd-")] {
        let bound = writes().filter(|event| {
            event.subresource == "binding" && event.namespace == home && event.name.starts_with(prefix)
        });
        note(milestone, &mut bound.map(answered), false);
    }
    // None when etcd's data is in its pod.
    let claims = site.get(&format!("/api/v1/namespaces/{home}/persistentvolumeclaims"))?;
    if let Some(volume) = at(&claims, "/items/0/spec/volumeName").as_str() {
        let volumes = writes().filter(|event| event.resource == "persistentvolumes" && event.name == volume);
        note("etcd: volume made", &mut volumes.map(answered), false);
    }
    let ready = sample.ready.as_secs_f64();
    let before_ready = |time: &f64| *time <= ready;
    let told = writes().filter(|event| {
        event.resource == "pods"
            && event.subresource == "status"
            && event.namespace == home
            && event.name.starts_with("kube-apiserver-")
            && event.user.starts_with("system:node:")
    });
    note("API server: pod is Ready", &mut told.map(answered).filter(before_ready), true);
    let slices = of("endpointslices")
        .filter(|event| event.name.is_empty() || event.name.starts_with("kube-apiserver"));
    note("API server: in the Service", &mut slices.map(answered).filter(before_ready), true);
    let status = by_operator().filter(|event| {
        event.resource == "tenantclusters" && event.subresource == "status" && event.name == sample.name
    });
    let after = status.map(answered).filter(|time| *time > ready);
    note("the operator's status write after it", &mut after.into_iter(), false);
    note("/readyz through the endpoint", &mut std::iter::once(ready), false);
    note("default ServiceAccount", &mut std::iter::once(sample.account.as_secs_f64()), false);

    let pods = site.get(&format!("/api/v1/namespaces/{home}/pods"))?;
    let started = processes(site)?;
    for pod in at(&pods, "/items").as_array().into_iter().flatten() {
        let text = |pointer: &str| at(pod, pointer).as_str().unwrap_or_default();
        let (name, uid) = (text("/metadata/name"), text("/metadata/uid"));
        let own = || started.iter().filter(|process| process.pod == uid);
        let of = |program: &'static str| {
            own().filter(move |process| process.program == program).map(|process| since(process.started))
        };
        // Nothing of a pod is older than its sandbox.
        let mut sandbox = own().map(|process| since(process.started));
        let log = |container: &str| site.log(&home, name, container);
        if name == "etcd-0" {
            note("etcd: sandbox started", &mut sandbox, false);
            note("etcd: container started", &mut of("etcd"), false);
            let serves = first_line(&log("etcd")?, "ready to serve client requests");
            note("etcd: serves", &mut serves.map(since).into_iter(), false);
        } else if name.starts_with("kube-apiserver-") {
            note("API server: sandbox started", &mut sandbox, false);
            note("API server: container started", &mut of("kube-apiserver"), false);
            let log = log("kube-apiserver")?;
            let failed = log.lines().rev().find_map(|line| first_line(line, "createTransport failed"));
            note("API server: last dial of etcd that failed", &mut failed.map(since).into_iter(), false);
            let listens = first_line(&log, "Serving securely on");
            note("API server: listens", &mut listens.map(since).into_iter(), false);
        } else {
            note("controllers: containers started", &mut sandbox, true);
        }
    }
    Ok(line)
}

impl Site {
    /// What a container wrote, each line with its time.
    fn log(&self, namespace: &str, pod: &str, container: &str) -> Result<String, Error> {
        let path =
            format!("/api/v1/namespaces/{namespace}/pods/{pod}/log?container={container}&timestamps=true");
        let answer = self.api.request("GET", &path, None).map_err(Error::Invalid)?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }
}

/// When the first line was written that holds a text.
fn first_line(log: &str, text: &str) -> Option<Timestamp> {
    log.lines().find(|line| line.contains(text))?.split(' ').next()?.parse().ok()
}

/// A process of a pod.
struct Process {
    pod: String,
    program: String,
    started: Timestamp,
}

/// Every process of every pod.
fn processes(site: &Site) -> Result<Vec<Process>, Error> {
    let uptime = read("/proc/uptime").split(' ').next().and_then(|text| text.parse::<f64>().ok());
    let now = Timestamp::now();
    let booted = |ticks: f64| {
        let ago = Duration::try_from_secs_f64(uptime? - ticks / TICKS).ok()?;
        now.checked_sub(ago).ok()
    };
    let found = Hierarchies::detect()?.processes(site.cluster.network.name());
    let one = |pid: i32| {
        let pod = pod_of(&read(&format!("/proc/{pid}/cgroup")))?;
        let stat = read(&format!("/proc/{pid}/stat"));
        let (_, rest) = stat.rsplit_once(')')?;
        // Field 22; what is left begins with field 3.
        let started = booted(rest.split_whitespace().nth(19)?.parse().ok()?)?;
        let program = read(&format!("/proc/{pid}/comm")).trim().to_owned();
        Some(Process { pod, program, started })
    };
    Ok(found.into_iter().filter_map(one).collect())
}

/// UID of the pod that a control group belongs to: `.../pod<uid>/...`, with `_` for `-` under systemd.
pub(super) fn pod_of(cgroup: &str) -> Option<String> {
    let (_, rest) = cgroup.split_once("/pod").or_else(|| cgroup.split_once("-pod"))?;
    let uid: String = rest.chars().take(36).collect();
    (uid.len() == 36).then(|| uid.replace('_', "-"))
}

pub(super) fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A timeline as raw data.
pub(super) fn json(line: &Timeline) -> Value {
    line.iter()
        .map(|(name, time)| ((*name).to_owned(), Value::from(*time)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_told_by_their_control_groups() {
        let uid = "0bb5a2e0-5f0d-43bb-9c37-49cc6fe73d35";
        let plain = format!("9:name=systemd:/\n8:pids:/kaas1/kubepods/burstable/pod{uid}/abc\n");
        assert_eq!(pod_of(&plain).as_deref(), Some(uid));
        let systemd = format!("0::/kubepods.slice/kubepods-pod{}.slice/x", uid.replace('-', "_"));
        assert_eq!(pod_of(&systemd).as_deref(), Some(uid));
        assert_eq!(pod_of("8:pids:/kaas1/daemons\n"), None);
    }

    #[test]
    fn the_first_line_that_says_so() {
        let log = "2026-11-21T11:00:00.5Z starting\n2026-11-21T11:00:01.25Z Serving securely on [::]:6443\n";
        let found = first_line(log, "Serving securely").unwrap();
        assert_eq!(found.to_string(), "2026-11-21T11:00:01.25Z");
        assert_eq!(first_line(log, "absent"), None);
    }
}
