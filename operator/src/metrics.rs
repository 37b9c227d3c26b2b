//! What the operator measures of itself, as OpenMetrics.
//!
//! Every label has a bounded set of values: kinds, verbs, condition types, reasons, error classes. No tenant's name
//! or UID is ever a label, so a thousand tenants make no more series than one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kaas_crds::{ConditionType, Reason};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// The content type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// From one millisecond (nothing to do) to the longest that a reconcile may take.
const RECONCILE_BUCKETS: [f64; 8] = [0.001, 0.004, 0.016, 0.064, 0.256, 1.0, 4.0, 16.0];
/// From a request in the same rack to the probe's own deadline.
const REQUEST_BUCKETS: [f64; 9] = [0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0, 5.0];

/// Everything that is measured. Shared by reference; each part counts for one step.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The lease.
    pub lease: Lease,
    /// Turns of the controllers.
    pub reconciles: Reconciles,
    /// Requests that change something.
    pub writes: Writes,
    /// What is said about tenants.
    pub tenants: Tenants,
    /// Requests through tenants' endpoints.
    pub probes: Probes,
    /// Work that waits.
    pub queue: Queue,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        let ours = registry.sub_registry_with_prefix("kaas");
        ours.register(
            "build",
            "Which build this is",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        let (lease, reconciles, writes) = (Lease::new(ours), Reconciles::new(ours), Writes::new(ours));
        let (tenants, probes, queue) = (Tenants::new(ours), Probes::new(ours), Queue::new(ours));
        Metrics { registry, lease, reconciles, writes, tenants, probes, queue }
    }

    /// The text that a scrape gets.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::with_capacity(16 * 1024);
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }

    /// Forgets what only a leader knows, so that two processes never both report a tenant.
    pub(crate) fn stand_down(&self) {
        self.lease.leader.set(0);
        self.tenants.clear();
        self.queue.clear();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

/// The lease as this process sees it.
#[derive(Debug)]
pub struct Lease {
    leader: Gauge,
    renewed: Gauge,
    renewal: Histogram,
    acquired: Counter,
    lost: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Lease {
    fn new(registry: &mut Registry) -> Self {
        let lease = Lease {
            leader: Gauge::default(),
            renewed: Gauge::default(),
            renewal: Histogram::new(REQUEST_BUCKETS),
            acquired: Counter::default(),
            lost: Family::default(),
        };
        registry.register("leader", "1 while this process holds the lease, else 0", lease.leader.clone());
        registry.register_with_unit(
            "lease_renewed_timestamp",
            "When this process last took or renewed the lease, since 1970",
            Unit::Seconds,
            lease.renewed.clone(),
        );
        registry.register_with_unit(
            "lease_renewal_duration",
            "How long taking or renewing the lease took",
            Unit::Seconds,
            lease.renewal.clone(),
        );
        registry.register("lease_acquired", "How often this process took the lease", lease.acquired.clone());
        registry.register("lease_lost", "How often this process lost the lease unasked", lease.lost.clone());
        lease
    }

    pub(crate) fn acquired(&self, took: Duration) {
        self.acquired.inc();
        self.leader.set(1);
        self.renewed(took);
    }

    pub(crate) fn renewed(&self, took: Duration) {
        self.renewed.set(Timestamp::now().as_second());
        self.renewal.observe(took.as_secs_f64());
    }

    pub(crate) fn lost(&self, reason: &'static str) {
        self.leader.set(0);
        self.lost.get_or_create(&[("reason", reason)]).inc();
    }
}

/// Turns of the controllers.
#[derive(Debug)]
pub struct Reconciles {
    duration: Family<ReconcileLabels, Histogram, fn() -> Histogram>,
    refused: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcileLabels {
    controller: &'static str,
    outcome: &'static str,
    class: &'static str,
}

impl Reconciles {
    fn new(registry: &mut Registry) -> Self {
        let duration =
            Family::new_with_constructor((|| Histogram::new(RECONCILE_BUCKETS)) as fn() -> Histogram);
        registry.register_with_unit(
            "reconcile_duration",
            "How long one turn took, by controller, outcome (ok, error) and class of the error",
            Unit::Seconds,
            duration.clone(),
        );
        let refused = Counter::default();
        registry.register(
            "plans_refused",
            "Plans that were not executed because they would have broken an invariant",
            refused.clone(),
        );
        Reconciles { duration, refused }
    }

    /// A plan was not executed because it would have broken an invariant.
    pub fn refused(&self) {
        self.refused.inc();
    }

    /// A turn of `controller` took so long. `failure` is the class of the error that ended it, if one did.
    pub fn observe(&self, controller: &'static str, failure: Option<&'static str>, took: Duration) {
        let outcome = if failure.is_none() { "ok" } else { "error" };
        let labels = ReconcileLabels { controller, outcome, class: failure.unwrap_or("none") };
        self.duration.get_or_create(&labels).observe(took.as_secs_f64());
    }
}

/// Requests that change something.
#[derive(Debug)]
pub struct Writes {
    count: Family<WriteLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: String,
    verb: &'static str,
    outcome: &'static str,
}

impl Writes {
    fn new(registry: &mut Registry) -> Self {
        let count = Family::default();
        registry.register(
            "writes",
            "Requests that change something, by kind, verb and outcome (ok, or the class of the error)",
            count.clone(),
        );
        Writes { count }
    }

    /// One write to a `kind` (never a name) with `verb`. `failure` is the class of the error, if it failed.
    pub fn count(&self, kind: impl fmt::Display, verb: &'static str, failure: Option<&'static str>) {
        let labels = WriteLabels { kind: kind.to_string(), verb, outcome: failure.unwrap_or("ok") };
        self.count.get_or_create(&labels).inc();
    }
}

/// A condition as it is counted: its type, its status (True, False or Unknown) and its reason.
pub type Fact = (ConditionType, &'static str, Reason);

/// What is said about tenants, counted over all of them.
#[derive(Debug)]
pub struct Tenants {
    /// By UID: what was last counted, so that it can be taken back.
    known: Mutex<HashMap<String, Vec<Fact>>>,
    total: Gauge,
    orphans: Gauge,
    by_status: Family<StatusLabels, Gauge>,
    by_reason: Family<ReasonLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    condition: String,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    condition: String,
    reason: &'static str,
}

impl Tenants {
    fn new(registry: &mut Registry) -> Self {
        let tenants = Tenants {
            known: Mutex::default(),
            total: Gauge::default(),
            orphans: Gauge::default(),
            by_status: Family::default(),
            by_reason: Family::default(),
        };
        registry.register("tenants", "TenantClusters that this process looks after", tenants.total.clone());
        registry.register(
            "orphaned_control_planes",
            "Control-plane namespaces whose TenantCluster is gone",
            tenants.orphans.clone(),
        );
        registry.register(
            "tenant_conditions",
            "TenantClusters by condition and its status",
            tenants.by_status.clone(),
        );
        registry.register(
            "tenant_condition_reasons",
            "TenantClusters by condition and its reason",
            tenants.by_reason.clone(),
        );
        tenants
    }

    /// What is now said about the tenant with this UID, instead of what was said before.
    pub fn observe(&self, uid: &str, facts: impl IntoIterator<Item = Fact>) {
        let facts = facts.into_iter().collect::<Vec<_>>();
        let mut known = self.known();
        if known.get(uid) == Some(&facts) {
            return;
        }
        self.add(&facts, 1);
        let former = known.insert(uid.to_owned(), facts);
        self.add(&former.unwrap_or_default(), -1);
        self.count(&known);
    }

    /// So many control planes have no TenantCluster.
    pub fn orphaned(&self, count: usize) {
        self.orphans.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The tenant with this UID is gone.
    pub fn forget(&self, uid: &str) {
        let mut known = self.known();
        let former = known.remove(uid);
        self.add(&former.unwrap_or_default(), -1);
        self.count(&known);
    }

    fn clear(&self) {
        let mut known = self.known();
        known.clear();
        self.by_status.clear();
        self.by_reason.clear();
        self.count(&known);
    }

    fn add(&self, facts: &[Fact], number: i64) {
        for (condition, status, reason) in facts {
            let condition = condition.to_string();
            let labels = ReasonLabels { condition: condition.clone(), reason: reason.as_str() };
            self.by_reason.get_or_create(&labels).inc_by(number);
            self.by_status.get_or_create(&StatusLabels { condition, status }).inc_by(number);
        }
    }

    fn count(&self, known: &HashMap<String, Vec<Fact>>) {
        self.total.set(i64::try_from(known.len()).unwrap_or(i64::MAX));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Vec<Fact>>> {
        // A panic elsewhere leaves at worst one tenant miscounted until it is observed again.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests through tenants' endpoints.
#[derive(Debug)]
pub struct Probes {
    duration: Histogram,
    failures: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Probes {
    fn new(registry: &mut Registry) -> Self {
        let probes = Probes { duration: Histogram::new(REQUEST_BUCKETS), failures: Family::default() };
        registry.register_with_unit(
            "probe_duration",
            "How long a tenant's endpoint took to answer, where it did",
            Unit::Seconds,
            probes.duration.clone(),
        );
        registry.register(
            "probe_failures",
            "Requests that a tenant's endpoint did not answer well, by class",
            probes.failures.clone(),
        );
        probes
    }

    /// An endpoint answered.
    pub fn succeeded(&self, took: Duration) {
        self.duration.observe(took.as_secs_f64());
    }

    /// An endpoint did not answer, or not well.
    pub fn failed(&self, class: &'static str) {
        self.failures.get_or_create(&[("class", class)]).inc();
    }
}

/// Work that waits.
#[derive(Debug)]
pub struct Queue {
    running: Gauge,
    backing_off: Gauge,
    retries: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Queue {
    fn new(registry: &mut Registry) -> Self {
        let queue =
            Queue { running: Gauge::default(), backing_off: Gauge::default(), retries: Family::default() };
        registry.register("queue_running", "Objects whose turn is under way", queue.running.clone());
        registry.register(
            "queue_backing_off",
            "Objects that wait after a failure",
            queue.backing_off.clone(),
        );
        registry.register("queue_retries", "Turns repeated after a failure, by class", queue.retries.clone());
        queue
    }

    /// A turn begins; it ends when what is returned is dropped.
    pub fn begin(&self) -> Turn {
        self.running.inc();
        Turn(self.running.clone())
    }

    /// So many objects wait after a failure.
    pub fn backing_off(&self, number: usize) {
        self.backing_off.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// A turn is repeated because of a failure of this class.
    pub fn retried(&self, class: &'static str) {
        self.retries.get_or_create(&[("class", class)]).inc();
    }

    fn clear(&self) {
        self.backing_off(0);
    }
}

/// A turn under way.
#[derive(Debug)]
pub struct Turn(Gauge);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Memory of this process, read from the kernel at each scrape.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let Some(bytes) = resident_bytes(&status) else { return Ok(()) };
        let gauge = ConstGauge::new(bytes);
        let metric = encoder.encode_descriptor(
            "process_resident_memory",
            "Resident memory of this process",
            Some(&Unit::Bytes),
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        gauge.encode(metric)
    }
}

/// `VmRSS` of a `/proc/<pid>/status`; the kernel writes it in KiB.
fn resident_bytes(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a scrape that speak of `name`, without the explanations.
    fn series(metrics: &Metrics, name: &str) -> Vec<String> {
        let page = metrics.encode().unwrap();
        assert!(page.ends_with("# EOF\n"));
        page.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect()
    }

    #[test]
    fn the_page_explains_every_metric_and_prefixes_ours() {
        let page = Metrics::new().encode().unwrap();
        let mut helped = 0;
        for line in page.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
            helped += 1;
            let (name, help) = line.split_once(' ').unwrap();
            assert!(name.starts_with("kaas_") || name.starts_with("process_"), "{name}");
            assert!(help.len() > 10, "{name}: {help}");
        }
        assert_eq!(helped, page.lines().filter(|line| line.starts_with("# TYPE ")).count());
        assert!(page.contains(concat!("kaas_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n")));
        assert!(page.contains("# UNIT kaas_probe_duration_seconds seconds\n"));
    }

    #[test]
    fn tenants_are_counted_once_and_taken_back() {
        use ConditionType::Ready;
        let metrics = Metrics::new();
        let tenants = &metrics.tenants;
        tenants.observe("a", [(Ready, "False", Reason::Creating)]);
        tenants.observe("b", [(Ready, "False", Reason::Creating)]);
        tenants.observe("b", [(Ready, "False", Reason::Creating)]);
        tenants.observe("a", [(Ready, "True", Reason::Serving)]);
        assert_eq!(series(&metrics, "kaas_tenants "), ["kaas_tenants 2"]);
        let mut by_status = series(&metrics, "kaas_tenant_conditions{");
        by_status.sort();
        assert_eq!(
            by_status,
            [
                r#"kaas_tenant_conditions{condition="Ready",status="False"} 1"#,
                r#"kaas_tenant_conditions{condition="Ready",status="True"} 1"#
            ]
        );
        tenants.forget("b");
        tenants.forget("unknown");
        let mut by_reason = series(&metrics, "kaas_tenant_condition_reasons{");
        by_reason.sort();
        assert_eq!(
            by_reason,
            [
                r#"kaas_tenant_condition_reasons{condition="Ready",reason="Creating"} 0"#,
                r#"kaas_tenant_condition_reasons{condition="Ready",reason="Serving"} 1"#
            ]
        );
    }

    #[test]
    fn a_thousand_tenants_make_no_more_series_than_one() {
        let metrics = Metrics::new();
        metrics.tenants.observe("0", [(ConditionType::Ready, "True", Reason::Serving)]);
        let lines = metrics.encode().unwrap().lines().count();
        for uid in 1..1000 {
            metrics.tenants.observe(&uid.to_string(), [(ConditionType::Ready, "True", Reason::Serving)]);
        }
        assert_eq!(metrics.encode().unwrap().lines().count(), lines);
        assert_eq!(series(&metrics, "kaas_tenants "), ["kaas_tenants 1000"]);
    }

    #[test]
    fn standing_down_forgets_what_only_a_leader_knows() {
        let metrics = Metrics::new();
        metrics.lease.acquired(Duration::from_millis(3));
        metrics.tenants.observe("a", [(ConditionType::Ready, "True", Reason::Serving)]);
        metrics.queue.backing_off(3);
        assert_eq!(series(&metrics, "kaas_leader "), ["kaas_leader 1"]);
        metrics.stand_down();
        for gone in ["kaas_leader", "kaas_tenants", "kaas_queue_backing_off"] {
            assert_eq!(series(&metrics, &format!("{gone} ")), [format!("{gone} 0")]);
        }
        assert!(series(&metrics, "kaas_tenant_conditions{").is_empty());
        assert_eq!(series(&metrics, "kaas_lease_acquired_total "), ["kaas_lease_acquired_total 1"]);
    }

    #[test]
    fn turns_under_way_are_counted_until_they_end() {
        let metrics = Metrics::new();
        let turns = [metrics.queue.begin(), metrics.queue.begin()];
        assert_eq!(series(&metrics, "kaas_queue_running "), ["kaas_queue_running 2"]);
        drop(turns);
        assert_eq!(series(&metrics, "kaas_queue_running "), ["kaas_queue_running 0"]);
    }

    #[test]
    fn counts_carry_kind_verb_and_class() {
        let metrics = Metrics::new();
        metrics.writes.count(kaas_lifecycle::object::Kind::Secret, "apply", None);
        metrics.writes.count(kaas_lifecycle::object::Kind::Secret, "apply", Some("conflict"));
        metrics.reconciles.observe("tenantcluster", Some("unreachable"), Duration::from_millis(2));
        metrics.probes.failed("unreachable");
        metrics.queue.retried("conflict");
        metrics.lease.lost("Expired");
        let page = metrics.encode().unwrap();
        for line in [
            r#"kaas_writes_total{kind="Secret",verb="apply",outcome="ok"} 1"#,
            r#"kaas_writes_total{kind="Secret",verb="apply",outcome="conflict"} 1"#,
            r#"kaas_reconcile_duration_seconds_count{controller="tenantcluster",outcome="error",class="unreachable"} 1"#,
            r#"kaas_probe_failures_total{class="unreachable"} 1"#,
            r#"kaas_queue_retries_total{class="conflict"} 1"#,
            r#"kaas_lease_lost_total{reason="Expired"} 1"#,
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t   12 kB\nThreads:\t4\n"), Some(12_288));
        for bad in ["", "VmRSS:\t12 pages", "VmRSS:\tx kB", "VmRSS:\t9223372036854775807 kB"] {
            assert_eq!(resident_bytes(bad), None, "{bad}");
        }
        let line = series(&Metrics::new(), "process_resident_memory_bytes ").remove(0);
        let bytes = line.rsplit(' ').next().unwrap().parse::<i64>().unwrap();
        assert!(bytes > 1 << 20, "{line}");
    }
}
