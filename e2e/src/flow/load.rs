//! Clients of a tenant's API that never try twice: requests on new connections, on reused ones of HTTP/1.1 and
//! HTTP/2, and a watch that must miss and repeat nothing. What went wrong is counted, with its moment and its
//! words; nothing here judges whether it was allowed to.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::Error;
use crate::kubectl::at;
use crate::probe::Probe;

mod outcome;

use outcome::Failure;
pub(super) use outcome::{Client, Outage, Outcome};

/// A connection either comes about in this time or counts as a failed request.
const CONNECT: Duration = Duration::from_secs(3);
/// Longer than any gap that is allowed somewhere, so that a gap is measured and not cut.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(25);
/// Clients that make a connection for each request.
const FRESH: u64 = 2;
/// HTTP/1.1 has no way to move a connection: its clients drop one well before a server's shutdown delay of 10 s is over.
const OLDEST: Duration = Duration::from_secs(4);
/// How long the watch is waited for when the writers have stopped.
const LATE: Duration = Duration::from_secs(10);
const PATH: &str = "/api/v1/namespaces/default/configmaps";
/// How many loads this process has started.
static LOADS: AtomicU64 = AtomicU64::new(0);

/// Changes as the writers know them and as the watch told them.
#[derive(Debug, Default)]
struct Changes {
    answered: BTreeSet<String>,
    told: BTreeSet<String>,
    repeated: Vec<String>,
}

struct Shared {
    target: Mutex<Arc<Target>>,
    run: String,
    stop: AtomicBool,
    number: AtomicU64,
    outcome: Mutex<Outcome>,
    changes: Mutex<Changes>,
}

/// Where requests go, and as whom.
struct Target {
    address: SocketAddr,
    plain: Arc<ClientConfig>,
    multiplexed: Arc<ClientConfig>,
}

impl Target {
    fn of_kubeconfig(text: &str) -> Result<Self, Error> {
        let probe = Probe::of_kubeconfig(text)?;
        let (address, config) = probe.into_parts();
        let with = |protocol: &[u8]| {
            let mut config = ClientConfig::clone(&config);
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        Ok(Self { address, plain: with(b"http/1.1"), multiplexed: with(b"h2") })
    }
}

/// A load that runs until it is finished.
pub(super) struct Load {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<()>>,
    watch: JoinHandle<()>,
    runtime: Runtime,
}

impl Load {
    /// Starts all clients with a kubeconfig.
    pub(super) fn start(kubeconfig: &str) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(Error::io("start", "the load's runtime"))?;
        // A failed write of an earlier load may have been carried out: its names are not used again.
        let run = format!("load{}-{}", std::process::id(), LOADS.fetch_add(1, Ordering::Relaxed));
        let shared = Arc::new(Shared {
            target: Mutex::new(Arc::new(Target::of_kubeconfig(kubeconfig)?)),
            run,
            stop: AtomicBool::new(false),
            number: AtomicU64::new(0),
            outcome: Mutex::default(),
            changes: Mutex::default(),
        });
        let version = runtime
            .block_on(async { timeout(ANSWER, shared.version()).await })
            .unwrap_or_else(|_| Err("no answer".to_owned()))
            .map_err(|error| Error::Invalid(format!("the load cannot begin: {error}")))?;
        let watch = runtime.spawn(Arc::clone(&shared).watch(version));
        let mut writers = Vec::new();
        for _ in 0..FRESH {
            writers.push(runtime.spawn(Arc::clone(&shared).write(Client::Fresh)));
        }
        for client in [Client::Kept, Client::Multiplexed] {
            writers.push(runtime.spawn(Arc::clone(&shared).write(client)));
        }
        Ok(Self { shared, writers, watch, runtime })
    }

    /// New connections are made with this kubeconfig from now on.
    pub(super) fn renew(&self, kubeconfig: &str) -> Result<(), Error> {
        let target = Arc::new(Target::of_kubeconfig(kubeconfig)?);
        *locked(&self.shared.target) = target;
        Ok(())
    }

    /// What was seen until now; what the watch has still to tell does not count as lost.
    pub(super) fn so_far(&self) -> Outcome {
        locked(&self.shared.outcome).clone()
    }

    /// Stops the writers, lets the watch tell what is under way, and says what was seen.
    pub(super) fn finish(self) -> Outcome {
        self.shared.stop.store(true, Ordering::Relaxed);
        let shared = Arc::clone(&self.shared);
        self.runtime.block_on(async {
            for writer in self.writers {
                let _ = writer.await;
            }
            let told = async {
                while locked(&shared.changes).missing().next().is_some() {
                    sleep(PAUSE).await;
                }
            };
            let _ = timeout(LATE, told).await;
            self.watch.abort();
        });
        let mut outcome = locked(&self.shared.outcome).clone();
        outcome.close(Instant::now());
        let changes = locked(&self.shared.changes);
        outcome.lost = changes.missing().cloned().collect();
        outcome.repeated = changes.repeated.clone();
        outcome
    }
}

impl Changes {
    fn missing(&self) -> impl Iterator<Item = &String> {
        self.answered.difference(&self.told)
    }

    fn tell(&mut self, change: String) {
        if !self.told.insert(change.clone()) {
            self.repeated.push(change);
        }
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counters cannot be left half-changed.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection of either protocol.
enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Sender::One(sender) => sender.ready().await,
            Sender::Two(sender) => sender.ready().await,
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Sender::One(sender) => sender.send_request(request).await,
            Sender::Two(sender) => sender.send_request(request).await,
        }
    }
}

/// Why a request gave nothing.
enum Refusal {
    /// The server said that it had not looked at it.
    Unprocessed,
    /// The server said that it had not looked at it, and when to come again: 429 with Retry-After, which is what one
    /// that is about to end says on connections that were made before.
    Later(Duration),
    Failed(String),
}

impl Shared {
    async fn connect(&self, client: Client) -> Result<Sender, String> {
        let target = Arc::clone(&locked(&self.target));
        let multiplexed = client == Client::Multiplexed;
        let config = if multiplexed { &target.multiplexed } else { &target.plain };
        let socket = TcpStream::connect(target.address).await.map_err(|error| format!("connect: {error}"))?;
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        let name = ServerName::IpAddress(target.address.ip().into());
        let stream = TlsConnector::from(Arc::clone(config)).connect(name, socket).await;
        let stream = TokioIo::new(stream.map_err(|error| format!("handshake: {error}"))?);
        if multiplexed {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.map_err(|error| words(&error))?;
            tokio::spawn(connection);
            return Ok(Sender::Two(sender));
        }
        let (sender, connection) = http1::handshake(stream).await.map_err(|error| words(&error))?;
        tokio::spawn(connection);
        Ok(Sender::One(sender))
    }

    async fn opened(&self, client: Client) -> Result<Sender, String> {
        timeout(CONNECT, self.connect(client)).await.unwrap_or_else(|_| Err("connect: no answer".to_owned()))
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Request<Full<Bytes>>, String> {
        let address = locked(&self.target).address;
        let body = Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default()));
        Request::builder()
            .method(method)
            .uri(format!("https://{address}{path}"))
            .header(HOST, address.to_string())
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|error| error.to_string())
    }

    /// One request; its answer's status and body.
    async fn exchange(
        &self,
        sender: &mut Sender,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Bytes), Refusal> {
        let request = self.request(method, path, body).map_err(Refusal::Failed)?;
        let answer = timeout(ANSWER, async {
            let answer = sender.send(request).await?;
            let (status, later) = (answer.status(), later(&answer));
            answer.into_body().collect().await.map(|body| (status, later, body.to_bytes()))
        });
        match answer.await {
            Ok(Ok((_, Some(wait), _))) => Err(Refusal::Later(wait)),
            Ok(Ok((status, None, body))) => Ok((status, body)),
            Ok(Err(error)) if unprocessed(&error) => Err(Refusal::Unprocessed),
            Ok(Err(error)) => Err(Refusal::Failed(words(&error))),
            Err(_) => Err(Refusal::Failed(format!("no answer within {} s", ANSWER.as_secs()))),
        }
    }

    /// Where a watch begins.
    async fn version(&self) -> Result<String, String> {
        let mut sender = self.opened(Client::Watch).await?;
        let path = format!("{PATH}?labelSelector=run={}", self.run);
        match self.exchange(&mut sender, &Method::GET, &path, None).await {
            Ok((StatusCode::OK, body)) => {
                let list: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
                Ok(at(&list, "/metadata/resourceVersion").as_str().unwrap_or_default().to_owned())
            }
            Ok((status, _)) => Err(format!("list: {status}")),
            Err(Refusal::Unprocessed | Refusal::Later(_)) => Err("list: not processed".to_owned()),
            Err(Refusal::Failed(what)) => Err(what),
        }
    }

    /// Creates, reads and deletes, again and again.
    async fn write(self: Arc<Self>, client: Client) {
        let mut kept: Option<(Sender, Instant)> = None;
        while !self.stop.load(Ordering::Relaxed) {
            let name = format!("{}-{}", self.run, self.number.fetch_add(1, Ordering::Relaxed));
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name, "labels": {"run": self.run}},
                "data": {"by": "load"},
            });
            let path = format!("{PATH}/{name}");
            let steps = [
                (Method::POST, PATH, Some(&object), StatusCode::CREATED, Some("ADDED")),
                (Method::GET, path.as_str(), None, StatusCode::OK, None),
                (Method::DELETE, path.as_str(), None, StatusCode::OK, Some("DELETED")),
            ];
            for (method, path, body, expected, change) in steps {
                let status = self.once(client, &mut kept, &method, path, body).await;
                let success = match status {
                    Ok(status) if status == expected => {
                        if let Some(change) = change {
                            locked(&self.changes).answered.insert(format!("{change} {name}"));
                        }
                        self.count(client, Ok(()));
                        true
                    }
                    Ok(status) => {
                        self.count(client, Err(format!("{client:?} {method}: {status}")));
                        false
                    }
                    Err(what) => {
                        self.count(client, Err(format!("{client:?} {method}: {what}")));
                        false
                    }
                };
                sleep(PAUSE).await;
                // What became of a failed write is not known: nothing is built on it.
                if !success {
                    break;
                }
            }
        }
    }

    /// One request as this kind of client makes it.
    async fn once(
        &self,
        client: Client,
        kept: &mut Option<(Sender, Instant)>,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<StatusCode, String> {
        loop {
            let old = |(_, since): &(Sender, Instant)| client == Client::Kept && since.elapsed() > OLDEST;
            if client == Client::Fresh || kept.as_ref().is_some_and(old) {
                *kept = None;
            }
            // A connection that the server has closed in the meantime is seen before anything is sent on it.
            if let Some((sender, _)) = kept.as_mut()
                && sender.ready().await.is_err()
            {
                *kept = None;
            }
            let (sender, _) = match kept {
                Some(connection) => connection,
                None => kept.insert((self.opened(client).await?, Instant::now())),
            };
            match self.exchange(sender, method, path, body).await {
                Ok((status, body)) if status.is_server_error() => {
                    return Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim()));
                }
                Ok((status, _)) => return Ok(status),
                Err(Refusal::Unprocessed) => {
                    locked(&self.outcome).clients.entry(client).or_default().moved += 1;
                    *kept = None;
                }
                // New connections are led to servers that stay: this word on one of them is a fault.
                Err(Refusal::Later(_)) if client == Client::Fresh => {
                    return Err(format!("{}, come again later", StatusCode::TOO_MANY_REQUESTS));
                }
                Err(Refusal::Later(wait)) => {
                    locked(&self.outcome).clients.entry(client).or_default().delayed += 1;
                    *kept = None;
                    sleep(wait).await;
                }
                Err(Refusal::Failed(what)) => {
                    *kept = None;
                    return Err(what);
                }
            }
        }
    }

    fn count(&self, client: Client, result: Result<(), String>) {
        let now = Instant::now();
        let mut outcome = locked(&self.outcome);
        let count = outcome.clients.entry(client).or_default();
        count.requests += 1;
        match result {
            Ok(()) => {
                count.gap =
                    count.gap.max(count.last.map(|last| now.duration_since(last)).unwrap_or_default());
                count.last = Some(now);
                if let Some(outage) = count.outages.last_mut() {
                    outage.end.get_or_insert(now);
                }
            }
            Err(what) => {
                count.failures.push(Failure { at: now, what });
                if count.outages.last().is_none_or(|outage| outage.end.is_some()) {
                    count.outages.push(Outage { begin: now, end: None });
                }
            }
        }
    }

    /// Follows all changes, and goes on where a stream ended.
    async fn watch(self: Arc<Self>, mut version: String) {
        loop {
            match self.stream(&mut version).await {
                Ok(()) => self.count(Client::Watch, Ok(())),
                Err(Refused { what, expired }) => {
                    self.count(Client::Watch, Err(format!("watch: {what}")));
                    if expired && let Ok(now) = self.version().await {
                        version = now;
                        locked(&self.outcome).lists += 1;
                    }
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// One stream; an end is no failure, a refusal is.
    async fn stream(&self, version: &mut String) -> Result<(), Refused> {
        let mut sender = self.opened(Client::Watch).await?;
        let path = format!(
            "{PATH}?watch=true&allowWatchBookmarks=true&labelSelector=run={}&resourceVersion={version}",
            self.run
        );
        let request = self.request(&Method::GET, &path, None)?;
        let answer = timeout(ANSWER, sender.send(request)).await.map_err(|_| "no answer".to_owned())?;
        let answer = answer.map_err(|error| words(&error))?;
        if answer.status() != StatusCode::OK {
            let expired = answer.status() == StatusCode::GONE;
            return Err(Refused { what: answer.status().to_string(), expired });
        }
        locked(&self.outcome).streams += 1;
        let mut body = answer.into_body();
        let mut unread = Vec::new();
        while let Some(frame) = body.frame().await {
            // Cut in the middle of a line: the next stream tells that change again, whole.
            let Ok(frame) = frame else { return Ok(()) };
            unread.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default());
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = unread.drain(..=end).collect();
                self.hear(&line, version)?;
            }
        }
        Ok(())
    }

    fn hear(&self, line: &[u8], version: &mut String) -> Result<(), Refused> {
        let event: Value = serde_json::from_slice(line).map_err(|error| format!("not an event: {error}"))?;
        let text = |pointer: &str| at(&event, pointer).as_str().unwrap_or_default();
        let kind = text("/type");
        if kind == "ERROR" {
            let object = at(&event, "/object");
            let expired = at(object, "/code").as_u64() == Some(u64::from(StatusCode::GONE.as_u16()));
            return Err(Refused { what: object.to_string(), expired });
        }
        if let "ADDED" | "DELETED" = kind {
            locked(&self.changes).tell(format!("{kind} {}", text("/object/metadata/name")));
        }
        *version = text("/object/metadata/resourceVersion").to_owned();
        Ok(())
    }
}

/// Why a watch's stream did not go on.
#[derive(Debug)]
struct Refused {
    what: String,
    /// The server no longer has what came after the version.
    expired: bool,
}

impl From<String> for Refused {
    fn from(what: String) -> Self {
        Self { what, expired: false }
    }
}

/// When a refused request may be sent again: client-go's rule for 429 (rest.Request, at most ten times).
fn later(answer: &Response<Incoming>) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    (answer.status() == StatusCode::TOO_MANY_REQUESTS).then(|| Duration::from_secs(seconds))
}

/// HTTP/2's word for a request that came after the server had said goodbye (RFC 9113, 6.8 and 8.7), or a request of which
/// nothing was sent before the connection ended.
fn unprocessed(error: &hyper::Error) -> bool {
    if error.is_canceled() {
        return true;
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(reset) = inner.downcast_ref::<h2::Error>() {
            let graceful = reset.is_go_away() && reset.reason() == Some(h2::Reason::NO_ERROR);
            return reset.is_remote() && (graceful || reset.reason() == Some(h2::Reason::REFUSED_STREAM));
        }
        cause = inner.source();
    }
    false
}

/// An error with its causes.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_lost_or_repeated_or_neither() {
        let mut changes = Changes::default();
        changes.answered.extend(["ADDED a".to_owned(), "DELETED a".to_owned()]);
        changes.tell("ADDED a".to_owned());
        // Of a write whose answer was lost.
        changes.tell("ADDED b".to_owned());
        assert_eq!(changes.missing().collect::<Vec<_>>(), ["DELETED a"]);
        assert!(changes.repeated.is_empty());
        changes.tell("ADDED a".to_owned());
        assert_eq!(changes.repeated, ["ADDED a"]);
    }

    #[test]
    fn events_are_told_and_move_the_version() {
        let target = Target { address: ([127, 0, 0, 1], 1).into(), plain: config(), multiplexed: config() };
        let shared = Shared {
            target: Mutex::new(Arc::new(target)),
            run: "x".into(),
            stop: AtomicBool::new(false),
            number: AtomicU64::new(0),
            outcome: Mutex::default(),
            changes: Mutex::default(),
        };
        let mut version = "1".to_owned();
        let event = |kind: &str, version: &str| {
            json!({"type": kind, "object": {"metadata": {"name": "a", "resourceVersion": version}}})
                .to_string()
        };
        shared.hear(event("ADDED", "2").as_bytes(), &mut version).unwrap();
        shared.hear(event("BOOKMARK", "9").as_bytes(), &mut version).unwrap();
        assert_eq!(version, "9");
        assert_eq!(locked(&shared.changes).told.iter().collect::<Vec<_>>(), ["ADDED a"]);
        for (code, expired) in [(410, true), (500, false)] {
            let error = json!({"type": "ERROR", "object": {"code": code}}).to_string();
            assert_eq!(shared.hear(error.as_bytes(), &mut version).unwrap_err().expired, expired, "{code}");
        }
    }

    fn config() -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
    }
}
