//! Measures what a person waits for and what the operator costs, on a local cluster of its own with honest
//! settings: images present, etcd on disk with fsync, no tenant prepared beforehand. Raw samples are kept in
//! the cache, with the commit and the machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Error;
use crate::audit::{self, Mark};
use crate::cgroup::Hierarchies;
use crate::cluster::{Cluster, Spec};
use crate::compile;
use crate::credentials::Credentials;
use crate::flow::Guarded;
use crate::invocation::Invocation;
use crate::kubectl::at;
use crate::layout::{Cache, Repository};
use crate::probe::Probe;
use crate::terminal::say;
use crate::wait;

const NAMESPACE: &str = "bench";
const TENANTS: &str = "/apis/kaas.dev/v1alpha1/namespaces/bench/tenantclusters";
/// How exact a time is.
const POLL: Duration = Duration::from_millis(20);
const READY: Duration = Duration::from_secs(240);
const GONE: Duration = Duration::from_secs(240);
/// How long a creation's late writes are waited for.
const SETTLE: Duration = Duration::from_secs(8);
/// Five resyncs of the operator, and more.
const REST: Duration = Duration::from_secs(60);
/// A tenant takes 0.6 GiB.
const TENANT_MEMORY: u64 = 640 << 20;

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Tenants one after the other.
    pub singles: usize,
    /// Tenants at once, group by group; the last group stays.
    pub groups: Vec<usize>,
    /// Tenants that stay for the memory figure.
    pub many: usize,
    /// Tenants deleted at once.
    pub deleted: usize,
}

impl Plan {
    /// What the figures in the documentation are measured with.
    #[must_use]
    pub fn full() -> Self {
        Self { singles: 20, groups: vec![5, 10], many: 25, deleted: 12 }
    }

    /// A look that takes a few minutes.
    #[must_use]
    pub fn quick() -> Self {
        Self { singles: 3, groups: vec![5], many: 5, deleted: 5 }
    }
}

/// One tenant from its creation.
#[derive(Debug, Clone)]
struct Sample {
    name: String,
    uid: String,
    applied: Timestamp,
    kubeconfig: Duration,
    ready: Duration,
    account: Duration,
}

impl Sample {
    fn json(&self) -> Value {
        json!({
            "name": self.name, "uid": self.uid, "applied": self.applied.to_string(),
            "kubeconfig_ms": millis(self.kubeconfig), "ready_ms": millis(self.ready), "account_ms": millis(self.account),
        })
    }
}

struct Bench {
    cluster: Cluster,
    api: Probe,
    raw: BTreeMap<String, Value>,
}

/// Runs the bench on a local cluster of its own and prints the table.
///
/// # Errors
/// What could not be built, started or measured.
pub fn run(
    repository: &Repository,
    cache: &Cache,
    operator: Option<PathBuf>,
    plan: &Plan,
) -> Result<(), Error> {
    crate::prerequisite::ensure(repository, cache)?;
    let build = compile::build_all(repository, cache, operator.is_none())?;
    let guarded = Guarded::new("bench", repository, cache)?;
    let spec = Spec {
        state: guarded.state().clone(),
        toolbox: build.toolbox,
        operator: operator.or(build.operator),
    };
    let mut cluster = Cluster::start(spec, cache)?;
    cluster.install_operator(repository)?;
    let credentials = Credentials::existing(guarded.state().pki());
    let api = Probe::new(&credentials, "ca", "admin", SocketAddr::new(cluster.address(), 6443))?;
    let mut bench = Bench { cluster, api, raw: BTreeMap::new() };
    let result = bench.measure(plan);
    bench.keep(repository, cache)?;
    result
}

impl Bench {
    fn measure(&mut self, plan: &Plan) -> Result<(), Error> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        self.cluster.kubectl()?.apply(&namespace.to_string())?;
        self.memory("empty")?;
        self.singles(plan.singles)?;
        let mut standing = Vec::new();
        for (position, count) in plan.groups.iter().enumerate() {
            let samples = self.group(*count)?;
            if position + 1 == plan.groups.len() {
                self.memory(&format!("with {count} tenants"))?;
                standing = samples;
            } else {
                self.delete(&samples)?;
            }
        }
        let missing = plan.many.saturating_sub(standing.len());
        if missing > 0 && self.has_room(missing)? {
            standing.extend(self.create(&names("many", missing))?);
            self.memory(&format!("with {} tenants", standing.len()))?;
        }
        self.rest(standing.len())?;
        let deleted: Vec<Sample> = standing.iter().take(plan.deleted).cloned().collect();
        let seconds = self.delete(&deleted)?;
        say(format!("{} deleted at once: all gone after {:.1} s", deleted.len(), seconds.as_secs_f32()));
        self.raw.insert("deletion_ms".to_owned(), json!({"tenants": deleted.len(), "ms": millis(seconds)}));
        Ok(())
    }

    /// One after the other, on an otherwise idle cluster.
    fn singles(&mut self, count: usize) -> Result<(), Error> {
        let mut samples = Vec::new();
        let mut shares = Vec::new();
        for name in names("single", count) {
            let mark = Mark::now(&self.audit_log())?;
            let created = self.create(std::slice::from_ref(&name))?;
            std::thread::sleep(SETTLE);
            if samples.is_empty() {
                self.report_writes(&mark, &created)?;
            }
            if let Some(sample) = created.first() {
                shares.push(Shares::of(sample, &mark)?);
            }
            self.delete(&created)?;
            samples.extend(created);
        }
        let column = |pick: fn(&Sample) -> Duration| -> Vec<Duration> { samples.iter().map(pick).collect() };
        line("applied -> kubeconfig", &column(|sample| sample.kubeconfig));
        line("applied -> /readyz through the endpoint", &column(|sample| sample.ready));
        line("applied -> default ServiceAccount", &column(|sample| sample.account));
        line("  until the operator's first write", &picked(&shares, |share| share.first));
        line("  until its last workload is applied", &picked(&shares, |share| share.applied));
        line("  until the API server's pod is bound", &picked(&shares, |share| share.bound));
        self.raw.insert("singles".to_owned(), samples.iter().map(Sample::json).collect());
        Ok(())
    }

    fn group(&mut self, count: usize) -> Result<Vec<Sample>, Error> {
        let started = Instant::now();
        let samples = self.create(&names(&format!("group{count}"), count))?;
        let last = samples.iter().map(|sample| sample.ready).max().unwrap_or_default();
        say(format!("{count} at once: all answer after {:.1} s", last.as_secs_f32()));
        let raw = json!({"ms": millis(started.elapsed()), "samples": samples.iter().map(Sample::json).collect::<Vec<_>>()});
        self.raw.insert(format!("group_{count}"), raw);
        Ok(samples)
    }

    /// Creates tenants at once and waits for each.
    fn create(&self, names: &[String]) -> Result<Vec<Sample>, Error> {
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                names.iter().map(|name| scope.spawn(move || self.create_one(name))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Sample, Error>>| {
                thread.join().map_err(|_| Error::Invalid("a measuring thread died".to_owned()))?
            };
            threads.into_iter().map(join).collect()
        })
    }

    fn create_one(&self, name: &str) -> Result<Sample, Error> {
        let tenant = json!({
            "apiVersion": "kaas.dev/v1alpha1",
            "kind": "TenantCluster",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                "version": crate::component::KUBERNETES,
                "controlPlane": {"replicas": 1, "endpoint": {"type": "NodePort"}},
                "etcd": {"replicas": 1, "storage": {"persistent": {"size": "1Gi"}}},
            },
        });
        let (applied, started) = (Timestamp::now(), Instant::now());
        let created = self.ask("POST", TENANTS, Some(&tenant), 201)?;
        let secret = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{name}-kubeconfig");
        let probe = self.until(&format!("kubeconfig of {name}"), || {
            let secret = self.ask("GET", &secret, None, 200).map_err(|error| error.to_string())?;
            let value = at(&secret, "/data/value").as_str().unwrap_or_default().to_owned();
            let text = decode(&value).ok_or("the Secret has no kubeconfig")?;
            Probe::of_kubeconfig(&text).map_err(|error| error.to_string())
        })?;
        let kubeconfig = started.elapsed();
        let answers = |path: &str| match probe.get(path) {
            Ok(200) => Ok(()),
            Ok(code) => Err(format!("{path}: HTTP {code}")),
            Err(error) => Err(format!("{path}: {error}")),
        };
        self.until(&format!("/readyz of {name}"), || answers("/readyz"))?;
        let ready = started.elapsed();
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        self.until(&format!("default ServiceAccount of {name}"), || answers(account))?;
        let uid = at(&created, "/metadata/uid").as_str().unwrap_or_default().to_owned();
        Ok(Sample { name: name.to_owned(), uid, applied, kubeconfig, ready, account: started.elapsed() })
    }

    fn until<T>(&self, what: &str, check: impl FnMut() -> Result<T, String>) -> Result<T, Error> {
        let report = || self.cluster.kubectl().map(|kubectl| kubectl.report()).unwrap_or_default();
        wait::until(what, READY, POLL, check, report)
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>, expected: u16) -> Result<Value, Error> {
        let fail = |text: String| Error::Invalid(format!("{method} {path}: {text}"));
        let answer = self.api.request(method, path, body).map_err(fail)?;
        if answer.code != expected {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            return Err(fail(format!("HTTP {}: {text}", answer.code)));
        }
        serde_json::from_slice(&answer.body).map_err(|error| fail(error.to_string()))
    }

    /// Deletes tenants at once; the time until the last one's namespace is gone.
    fn delete(&self, samples: &[Sample]) -> Result<Duration, Error> {
        let started = Instant::now();
        for sample in samples {
            self.ask("DELETE", &format!("{TENANTS}/{}", sample.name), None, 200)?;
        }
        let gone = |path: &str| match self.api.get(path) {
            Ok(404) => Ok(()),
            Ok(code) => Err(format!("{path}: HTTP {code}")),
            Err(error) => Err(format!("{path}: {error}")),
        };
        let all = || {
            for sample in samples {
                gone(&format!("{TENANTS}/{}", sample.name))?;
                gone(&format!("/api/v1/namespaces/kaas-{}", sample.uid))?;
            }
            Ok(())
        };
        let report = || self.cluster.kubectl().map(|kubectl| kubectl.report()).unwrap_or_default();
        wait::until("deleted tenants to be gone", GONE, POLL, all, report)?;
        Ok(started.elapsed())
    }

    fn report_writes(&mut self, mark: &Mark, created: &[Sample]) -> Result<(), Error> {
        let writes = mark.operator_writes()?;
        let conflicts = writes.iter().filter(|event| event.is_conflict()).count();
        let mut objects: Vec<_> =
            writes.iter().map(|event| (&event.resource, &event.namespace, &event.name)).collect();
        objects.sort();
        objects.dedup();
        say(format!(
            "writes per creation: {} for {} objects, {conflicts} conflicts",
            writes.len(),
            objects.len()
        ));
        for (kind, count) in audit::tally(&writes) {
            say(format!("  {count:>3} {kind}"));
        }
        let raw = json!({
            "writes": audit::tally(&writes), "objects": objects.len(), "conflicts": conflicts,
            "tenants": created.len(),
        });
        self.raw.insert("creation_writes".to_owned(), raw);
        Ok(())
    }

    fn rest(&mut self, tenants: usize) -> Result<(), Error> {
        std::thread::sleep(SETTLE);
        let mark = Mark::now(&self.audit_log())?;
        std::thread::sleep(REST);
        let writes = mark.operator_writes()?;
        let seconds = REST.as_secs();
        say(format!("writes at rest, {tenants} tenants, {seconds} s: {}", writes.len()));
        for (kind, count) in audit::tally(&writes) {
            say(format!("  {count:>3} {kind}"));
        }
        let raw = json!({"seconds": seconds, "tenants": tenants, "writes": audit::tally(&writes)});
        self.raw.insert("rest_writes".to_owned(), raw);
        Ok(())
    }

    /// Resident memory of every replica of the operator.
    fn memory(&mut self, when: &str) -> Result<(), Error> {
        std::thread::sleep(SETTLE);
        let mut found = Vec::new();
        for pid in Hierarchies::detect()?.processes(self.cluster.network.name()) {
            let read =
                |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            if read("comm").trim() == "kaas-operator" {
                let status = read("status");
                let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
                found.push(line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0));
            }
        }
        found.sort_unstable_by(|left, right| right.cmp(left));
        let text: Vec<String> = found.iter().map(|kib| format!("{:.1} MiB", *kib as f64 / 1024.0)).collect();
        say(format!("operator memory {when}: {}", text.join(", ")));
        self.raw.insert(format!("memory_kib_{}", when.replace(' ', "_")), json!(found));
        Ok(())
    }

    fn has_room(&self, tenants: usize) -> Result<bool, Error> {
        let path = "/proc/meminfo";
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or_default();
        let free = line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024;
        let enough = free > TENANT_MEMORY * tenants as u64;
        if !enough {
            say(format!("not measured: {tenants} more tenants, {} MiB of memory are free", free >> 20));
        }
        Ok(enough)
    }

    fn audit_log(&self) -> PathBuf {
        self.cluster.state().log().join("audit.log")
    }

    /// Writes the raw samples down.
    fn keep(&self, repository: &Repository, cache: &Cache) -> Result<(), Error> {
        let now = Timestamp::now();
        let commit = Invocation::new("git").args(["rev-parse", "HEAD"]).directory(repository.root()).run();
        let machine = Invocation::new("uname").arg("-srm").run()?;
        let raw = json!({
            "time": now.to_string(),
            "commit": commit.unwrap_or_default().trim(),
            "machine": machine.trim(),
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "results": self.raw,
        });
        let path = cache.root().join("bench").join(format!("{}.json", now.as_second()));
        crate::record::write_json(&path, &raw)?;
        say(format!("raw samples: {}", path.display()));
        Ok(())
    }
}

/// Where the time of one creation goes, from the audit log.
#[derive(Debug, Default)]
struct Shares {
    first: Option<Duration>,
    applied: Option<Duration>,
    bound: Option<Duration>,
}

impl Shares {
    fn of(sample: &Sample, mark: &Mark) -> Result<Self, Error> {
        let since = |received: Timestamp| Duration::try_from(received.duration_since(sample.applied)).ok();
        let writes = mark.writes()?;
        let namespace = format!("kaas-{}", sample.uid);
        let within_ready = |time: &Duration| *time <= sample.ready;
        let times = |accept: &dyn Fn(&audit::Event) -> bool| -> Vec<Duration> {
            let accepted = writes.iter().filter(|event| accept(event));
            accepted.filter_map(|event| since(event.received)).filter(within_ready).collect()
        };
        let of_operator = |event: &audit::Event| event.user.ends_with(":kaas-operator");
        let own = |event: &audit::Event| event.namespace == namespace || event.name == namespace;
        let workload =
            |event: &audit::Event| matches!(event.resource.as_str(), "statefulsets" | "deployments");
        let bound = |event: &audit::Event| event.subresource == "binding" && event.name.contains("apiserver");
        Ok(Self {
            first: times(&|event| of_operator(event) && own(event)).into_iter().min(),
            applied: times(&|event| of_operator(event) && own(event) && workload(event)).into_iter().max(),
            bound: times(&|event| own(event) && bound(event)).into_iter().max(),
        })
    }
}

fn picked(shares: &[Shares], pick: fn(&Shares) -> Option<Duration>) -> Vec<Duration> {
    shares.iter().filter_map(pick).collect()
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

fn decode(text: &str) -> Option<String> {
    use base64::Engine;
    String::from_utf8(base64::prelude::BASE64_STANDARD.decode(text).ok()?).ok()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Nearest rank: the smallest sample that `percent` of all do not exceed.
fn percentile(samples: &[Duration], percent: usize) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

fn line(what: &str, samples: &[Duration]) {
    let seconds = |percent| percentile(samples, percent).as_secs_f32();
    say(format!(
        "{what:<44} p50 {:>6.2} s  p99 {:>6.2} s  ({} samples)",
        seconds(50),
        seconds(99),
        samples.len()
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rank() {
        let samples: Vec<Duration> = (1..=20).map(Duration::from_secs).collect();
        assert_eq!(percentile(&samples, 50), Duration::from_secs(10));
        assert_eq!(percentile(&samples, 99), Duration::from_secs(20));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
