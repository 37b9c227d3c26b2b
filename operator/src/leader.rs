//! Which of the operator's processes acts: a coordination.k8s.io Lease, taken, renewed and given back only by
//! replace with resourceVersion.
//!
//! [`Candidate::campaign`] stands by until the Lease is ours, [`Term::keep`] holds it until it is lost,
//! [`Term::release`] gives it back so that a standby, which watches it, takes over at once. The rules are in
//! `election`, without I/O; what writers ask is [`Gate`].

mod election;
mod gate;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::PostParams;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, utils::Backoff};
use kube::{Api, Client};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::admin::Standing;
use crate::metrics::Metrics;
use election::{Election, Step};

pub use election::Timing;
pub use gate::{Gate, Lost};

/// How long the server keeps one watch: a connection that died in silence is noticed five seconds later.
const WATCH_SECONDS: u32 = 30;

/// How long giving the lease back may take in all: less than a pod has left to end. What it takes beyond that does
/// not matter, as the lease ends by itself.
const RELEASE: Duration = Duration::from_secs(3);
/// And one request of it: a hung connection leaves time for a second attempt on a new one.
const RELEASE_ATTEMPT: Duration = Duration::from_secs(1);

/// Why a term ended although nobody asked for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// No renewal succeeded before the deadline.
    #[error("the lease could not be renewed in time")]
    Expired,
    /// Somebody else holds it, or nobody does.
    #[error("the lease was taken by {0:?}")]
    Taken(String),
    /// The Lease object is gone.
    #[error("the Lease object was deleted")]
    Deleted,
}

impl Loss {
    /// The word for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Loss::Expired => "Expired",
            Loss::Taken(_) => "Taken",
            Loss::Deleted => "Deleted",
        }
    }
}

/// Why the lease could not be given back. It then expires by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer in time.
    #[error("Lease {lease}: no answer to the release within {} s; it expires by itself", .waited.as_secs_f32())]
    Timeout {
        /// Namespace and name.
        lease: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The API server refused it.
    #[error("Lease {lease}: not released, so it expires by itself: {source}")]
    Refused {
        /// Namespace and name.
        lease: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
}

/// The Lease and what is needed to write it.
#[derive(Clone, Debug)]
struct Desk {
    api: Api<Lease>,
    namespace: String,
    name: String,
    identity: String,
    timing: Timing,
    standing: Standing,
    metrics: Arc<Metrics>,
    /// Whether the last request failed.
    failing: Arc<AtomicBool>,
}

/// A process that would lead.
#[derive(Debug)]
pub struct Candidate {
    desk: Desk,
}

/// The time during which this process leads.
#[derive(Debug)]
pub struct Term {
    desk: Desk,
    lease: Lease,
    gate: Gate,
    /// When the last successful renewal was sent.
    renewed: Instant,
}

impl Candidate {
    /// A candidate for Lease `namespace/name`. No two processes may ever have the same `identity`.
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
        timing: Timing,
        standing: Standing,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let api = Api::namespaced(client, &namespace);
        let failing = Arc::default();
        Candidate { desk: Desk { api, namespace, name, identity, timing, standing, metrics, failing } }
    }

    /// Stands by until the lease is ours; `None` once `stop` is cancelled.
    ///
    /// `stop` is looked at between requests, never during one: a write that is dropped half-way could take the
    /// lease for a process that then ends.
    pub async fn campaign(&self, stop: &CancellationToken) -> Option<Term> {
        let desk = &self.desk;
        let mut election = Election::new(desk.identity.clone(), desk.timing);
        let mut changes = Box::pin(desk.changes());
        let mut known_holder = String::new();
        while !stop.is_cancelled() {
            desk.standing.turned();
            if let Some(holder) = election.holder().filter(|holder| *holder != known_holder) {
                info!(lease = %desk, holder, "standing by");
                known_holder = holder.to_owned();
            }
            match election.step(Instant::now(), Timestamp::now()) {
                Step::Wait(until) => {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = sleep_until(until) => {}
                        Some(change) = changes.next() => {
                            desk.standing.contacted();
                            election.heard(change, Instant::now());
                        }
                    }
                }
                Step::Read => desk.read(&mut election).await,
                Step::Create(lease) => {
                    let lease = election::named(*lease, &desk.namespace, &desk.name);
                    let sent = Instant::now();
                    let answer = desk.bounded(desk.api.create(&PostParams::default(), &lease)).await;
                    if let Some(term) = desk.conclude(&mut election, sent, answer) {
                        return Some(term);
                    }
                }
                Step::Take(lease) => {
                    let sent = Instant::now();
                    let answer = desk.replace(&lease).await;
                    if let Some(term) = desk.conclude(&mut election, sent, answer) {
                        return Some(term);
                    }
                }
            }
        }
        None
    }
}

impl Term {
    /// What every writer asks first.
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Renews the lease until it is lost; the gate is closed then. May be dropped at any moment.
    pub async fn keep(&mut self) -> Loss {
        let loss = self.renew_until_lost().await;
        self.gate.close();
        self.desk.metrics.lease.lost(loss.reason());
        warn!(lease = %self.desk, reason = loss.reason(), "lost the lease: {loss}");
        loss
    }

    async fn renew_until_lost(&mut self) -> Loss {
        let timing = self.desk.timing;
        let mut next = self.renewed + timing.period();
        loop {
            self.desk.standing.turned();
            sleep_until(next.min(self.renewed + timing.deadline())).await;
            let sent = Instant::now();
            if sent >= self.renewed + timing.deadline() {
                return Loss::Expired;
            }
            match self.desk.replace(&election::renewed(&self.lease, timing, Timestamp::now())).await {
                Answer::Lease(lease) => {
                    if !self.gate.extend(sent + timing.deadline()) {
                        return Loss::Expired;
                    }
                    self.lease = *lease;
                    self.renewed = sent;
                    next = sent + timing.period();
                    self.desk.metrics.lease.renewed(sent.elapsed());
                }
                Answer::Conflict => match self.desk.get().await {
                    // An answer of ours was lost, or somebody edited a label: go on from what is there.
                    Answer::Lease(lease) if election::holder(&lease) == Some(&self.desk.identity) => {
                        self.lease = *lease;
                        next = Instant::now();
                    }
                    Answer::Lease(lease) => {
                        return Loss::Taken(election::holder(&lease).unwrap_or_default().to_owned());
                    }
                    Answer::Absent => return Loss::Deleted,
                    Answer::Conflict | Answer::Failed => next = Instant::now() + timing.retry(),
                },
                Answer::Absent => return Loss::Deleted,
                Answer::Failed => next = Instant::now() + timing.retry(),
            }
        }
    }

    /// Closes the gate and gives the lease back. Every writer must have ended before.
    pub async fn release(self) -> Result<(), Error> {
        self.gate.close();
        match timeout(RELEASE, self.clear_holder()).await {
            Ok(Ok(())) => {
                info!(lease = %self.desk, "released the lease");
                Ok(())
            }
            Ok(Err(source)) => Err(Error::Refused { lease: self.desk.to_string(), source: Box::new(source) }),
            Err(_) => Err(Error::Timeout { lease: self.desk.to_string(), waited: RELEASE }),
        }
    }

    /// Until it is done or certain that it is not ours to do; the caller bounds the time.
    async fn clear_holder(&self) -> Result<(), kube::Error> {
        let Desk { api, name, identity, timing, .. } = &self.desk;
        let mut lease = self.lease.clone();
        loop {
            let next = election::released(&lease, Timestamp::now());
            let parameters = PostParams::default();
            match timeout(RELEASE_ATTEMPT, api.replace(name, &parameters, &next)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => return Ok(()),
                // A renewal or a release was cut off half-way: its write counts if it arrived.
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                    match timeout(RELEASE_ATTEMPT, api.get_opt(name)).await {
                        Ok(Ok(Some(now))) if election::holder(&now) == Some(identity) => lease = now,
                        Ok(Ok(_)) => return Ok(()),
                        Ok(Err(_)) | Err(_) => sleep(timing.retry()).await,
                    }
                }
                Ok(Err(kube::Error::Api(status))) if status.code < 500 && status.code != 429 => {
                    return Err(kube::Error::Api(status));
                }
                // Overload, a restart, a connection that broke or hung: the next attempt may fare better.
                Ok(Err(_)) | Err(_) => sleep(timing.retry()).await,
            }
        }
    }
}

/// What came back from one request.
enum Answer {
    Lease(Box<Lease>),
    Absent,
    Conflict,
    Failed,
}

impl Desk {
    /// The Lease's changes, from now on and for ever.
    fn changes(&self) -> impl Stream<Item = Option<Lease>> + Send + use<> {
        let only =
            watcher::Config::default().fields(&format!("metadata.name={}", self.name)).timeout(WATCH_SECONDS);
        let lease = self.to_string();
        watcher::watcher(self.api.clone(), only)
            .backoff(Pause(self.timing.retry()))
            .scan(false, |found, event| {
                let change = match event {
                    Ok(Event::Init) => {
                        *found = false;
                        None
                    }
                    Ok(Event::InitApply(lease)) => {
                        *found = true;
                        Some(Ok(Some(lease)))
                    }
                    Ok(Event::InitDone) => (!*found).then_some(Ok(None)),
                    Ok(Event::Apply(lease)) => Some(Ok(Some(lease))),
                    Ok(Event::Delete(_)) => Some(Ok(None)),
                    Err(failure) => Some(Err(failure)),
                };
                std::future::ready(Some(change))
            })
            .filter_map(move |change| {
                let change = match change {
                    Some(Ok(change)) => Some(change),
                    Some(Err(failure)) => {
                        debug!(%lease, "watch interrupted: {failure}");
                        None
                    }
                    None => None,
                };
                std::future::ready(change)
            })
    }

    async fn read(&self, election: &mut Election) {
        match self.get().await {
            Answer::Lease(lease) => election.saw(Some(*lease), Instant::now()),
            Answer::Absent => election.saw(None, Instant::now()),
            Answer::Conflict | Answer::Failed => election.failed(Instant::now()),
        }
    }

    async fn get(&self) -> Answer {
        self.bounded(self.api.get(&self.name)).await
    }

    async fn replace(&self, lease: &Lease) -> Answer {
        self.bounded(self.api.replace(&self.name, &PostParams::default(), lease)).await
    }

    /// One request, never longer than an attempt may last.
    async fn bounded(&self, request: impl Future<Output = Result<Lease, kube::Error>>) -> Answer {
        let answer = match timeout(self.timing.attempt(), request).await {
            Ok(Ok(lease)) => Answer::Lease(Box::new(lease)),
            Ok(Err(kube::Error::Api(status))) => match status.code {
                404 if !self.is_namespace_missing(&status) => Answer::Absent,
                409 => Answer::Conflict,
                401 | 403 | 404 => self.fail(format!(
                    "refused: {}; the operator needs get, list, watch, create and update on leases in namespace {}",
                    status.message, self.namespace
                )),
                code => self.fail(format!("answered {code}: {}", status.message)),
            },
            Ok(Err(failure)) => self.fail(format!("request failed: {}", causes(&failure))),
            Err(_) => self.fail(format!("no answer within {:?}", self.timing.attempt())),
        };
        if !matches!(answer, Answer::Failed) {
            self.standing.contacted();
            if self.failing.swap(false, Ordering::Relaxed) {
                info!(lease = %self, "the API server answers again");
            }
        }
        answer
    }

    /// Says it once: an outage is tried again twice a second.
    fn fail(&self, what: String) -> Answer {
        if self.failing.swap(true, Ordering::Relaxed) {
            debug!(lease = %self, "{what}");
        } else {
            warn!(lease = %self, "{what}");
        }
        Answer::Failed
    }

    /// Creating in a namespace that is not there is answered by a 404 that names the namespace.
    fn is_namespace_missing(&self, status: &kube::core::Status) -> bool {
        status.details.as_ref().is_some_and(|details| details.kind == "namespaces")
    }

    /// The answer to the write, sent at `sent`, that would make us the holder.
    fn conclude(&self, election: &mut Election, sent: Instant, answer: Answer) -> Option<Term> {
        match answer {
            Answer::Lease(lease) => {
                let gate = Gate::until(sent + self.timing.deadline());
                let transitions = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
                self.metrics.lease.acquired(sent.elapsed());
                info!(lease = %self, identity = self.identity, transitions, "took the lease");
                return Some(Term { desk: self.clone(), lease: *lease, gate, renewed: sent });
            }
            Answer::Absent => election.saw(None, Instant::now()),
            Answer::Conflict => election.contradicted(),
            Answer::Failed => election.failed(Instant::now()),
        }
        None
    }
}

impl std::fmt::Display for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An error and what caused it: a client's own text seldom says more than that it failed.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// The same pause after every failure of the watch: a Lease is one small object, and a standby must not be late.
struct Pause(Duration);

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.0)
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {}
}
