//! What a kubelet and a monitoring system ask this process: is it alive, is it ready, what has it measured.
//!
//! Alive: the election, which every process runs, went round lately. Ready: it leads, or it stands by and the API
//! server answered lately; a standby that could not take over is not ready. Plain HTTP on the pod network; nothing
//! here is secret, and nothing here changes anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::leader::Gate;
use crate::metrics::{CONTENT_TYPE, Metrics};

/// Kubelets and scrapers need a handful; more would eat the descriptors that the operator's own requests need.
const CONNECTION_LIMIT: usize = 64;
/// Longer than any scrape, shorter than a kubelet's patience with a probe that fails three times.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// After an error that says that there is no room for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How this process stands, kept by the election and told to the kubelet. Clones share one state.
#[derive(Clone, Debug)]
pub struct Standing {
    state: Arc<Facts>,
}

#[derive(Debug)]
struct Facts {
    origin: Instant,
    lease_duration: Duration,
    /// Milliseconds after `origin`.
    turned: AtomicU64,
    /// Milliseconds after `origin`, plus one; 0 is never.
    contacted: AtomicU64,
    gate: Mutex<Option<Gate>>,
    stopping: AtomicBool,
}

impl Standing {
    /// Of a process that has just started.
    pub fn new(lease_duration: Duration) -> Self {
        let facts = Facts {
            origin: Instant::now(),
            lease_duration,
            turned: AtomicU64::new(0),
            contacted: AtomicU64::new(0),
            gate: Mutex::new(None),
            stopping: AtomicBool::new(false),
        };
        Standing { state: Arc::new(facts) }
    }

    /// The election went round.
    pub(crate) fn turned(&self) {
        self.state.turned.store(self.elapsed(), Ordering::Relaxed);
    }

    /// The API server answered.
    pub(crate) fn contacted(&self) {
        self.state.contacted.store(self.elapsed() + 1, Ordering::Relaxed);
    }

    /// A term began.
    pub(crate) fn leads(&self, gate: Gate) {
        *self.gate() = Some(gate);
    }

    /// A term ended.
    pub(crate) fn stands_by(&self) {
        *self.gate() = None;
    }

    /// The process was told to end.
    pub(crate) fn stops(&self) {
        self.state.stopping.store(true, Ordering::Relaxed);
    }

    /// What `/healthz` answers.
    pub fn liveness(&self) -> Result<String, String> {
        let idle = self.since(self.state.turned.load(Ordering::Relaxed));
        // A healthy election goes round at least once a lease duration; three leave room for slow answers.
        let limit = self.state.lease_duration * 3;
        if idle > limit {
            return Err(format!("the election has been stuck for {} s\n", idle.as_secs()));
        }
        Ok("alive\n".to_owned())
    }

    /// What `/readyz` answers.
    pub fn readiness(&self) -> Result<String, String> {
        if self.state.stopping.load(Ordering::Relaxed) {
            return Err("stopping\n".to_owned());
        }
        if let Some(gate) = &*self.gate() {
            return if gate.open() {
                Ok("leading\n".to_owned())
            } else {
                Err("the lease was lost; the controllers are ending\n".to_owned())
            };
        }
        match self.state.contacted.load(Ordering::Relaxed).checked_sub(1) {
            None => Err("no answer from the API server yet; the log says why\n".to_owned()),
            // A standby hears of every renewal, and reads the Lease when none came for its duration.
            Some(moment) if self.since(moment) > self.state.lease_duration * 2 => Err(format!(
                "no answer from the API server for {} s; the log says why\n",
                self.since(moment).as_secs()
            )),
            Some(_) => Ok("standing by\n".to_owned()),
        }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.state.origin.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }

    fn since(&self, moment: u64) -> Duration {
        Duration::from_millis(self.elapsed().saturating_sub(moment))
    }

    fn gate(&self) -> MutexGuard<'_, Option<Gate>> {
        self.state.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers until it is dropped.
///
/// One request a connection, each connection for a bounded time, a bounded number of connections: whoever can reach
/// the port can neither use up the operator's descriptors nor shut the kubelet out for long.
pub(crate) async fn serve(listener: TcpListener, standing: Standing, metrics: Arc<Metrics>) {
    let service = TowerToHyperService::new(router(standing, metrics));
    let rooms = Arc::new(Semaphore::new(CONNECTION_LIMIT));
    // The semaphore is never closed, so this ends only when it is dropped.
    while let Ok(room) = Arc::clone(&rooms).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(failure) => {
                // Of this connection (aborted), or of the process (no descriptors): others may end meanwhile.
                tracing::debug!("a connection could not be accepted: {failure}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection =
            http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service.clone());
        tokio::spawn(async move {
            // Whether the other side got its answer is its own business.
            let _ = timeout(CONNECTION_TIME, connection).await;
            drop(room);
        });
    }
}

fn router(standing: Standing, metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route(
            "/healthz",
            get(|State(state): State<(Standing, Arc<Metrics>)>| async move { answer(state.0.liveness()) }),
        )
        .route(
            "/readyz",
            get(|State(state): State<(Standing, Arc<Metrics>)>| async move { answer(state.0.readiness()) }),
        )
        .route("/metrics", get(|State(state): State<(Standing, Arc<Metrics>)>| async move { page(&state.1) }))
        .with_state((standing, metrics))
}

fn answer(verdict: Result<String, String>) -> Response {
    match verdict {
        Ok(text) => text.into_response(),
        Err(text) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
    }
}

fn page(metrics: &Metrics) -> Response {
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(failure) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be written: {failure}\n"))
                .into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::advance;

    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn alive_while_the_election_goes_round() {
        let standing = Standing::new(LEASE);
        advance(LEASE * 3).await;
        assert!(standing.liveness().is_ok());
        advance(Duration::from_millis(1)).await;
        assert_eq!(standing.liveness().unwrap_err(), "the election has been stuck for 30 s\n");
        standing.turned();
        assert!(standing.liveness().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_standby_is_ready_while_the_api_server_answers() {
        let standing = Standing::new(LEASE);
        assert!(standing.readiness().unwrap_err().starts_with("no answer from the API server yet"));
        standing.contacted();
        assert_eq!(standing.readiness().unwrap(), "standing by\n");
        advance(LEASE * 2).await;
        assert!(standing.readiness().is_ok());
        advance(Duration::from_secs(1)).await;
        assert_eq!(
            standing.readiness().unwrap_err(),
            "no answer from the API server for 21 s; the log says why\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_is_ready_while_its_gate_is_open() {
        let standing = Standing::new(LEASE);
        let gate = Gate::unguarded();
        standing.leads(gate.clone());
        assert_eq!(standing.readiness().unwrap(), "leading\n");
        gate.close();
        assert!(standing.readiness().is_err());
        standing.stands_by();
        standing.contacted();
        assert_eq!(standing.readiness().unwrap(), "standing by\n");
        standing.stops();
        assert_eq!(standing.readiness().unwrap_err(), "stopping\n");
    }

    async fn ask(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: operator\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // Without keep-alive the server closes: the answer is what came until then.
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_over_http() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let standing = Standing::new(LEASE);
        let server = tokio::spawn(serve(listener, standing.clone(), Arc::new(Metrics::new())));
        let healthz = ask(address, "/healthz").await;
        assert!(healthz.starts_with("HTTP/1.1 200 ") && healthz.ends_with("alive\n"), "{healthz}");
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 503 "));
        standing.contacted();
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200 "));
        let metrics = ask(address, "/metrics").await;
        assert!(metrics.contains(&format!("content-type: {CONTENT_TYPE}\r\n")), "{metrics}");
        assert!(metrics.ends_with("# EOF\n"));
        assert!(ask(address, "/else").await.starts_with("HTTP/1.1 404 "));
        server.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_do_not_shut_the_kubelet_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Standing::new(LEASE), Arc::new(Metrics::new())));
        let mut idle = Vec::new();
        for _ in 0..CONNECTION_LIMIT {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        // Time is paused and goes on when nothing else can: the idle ones run into their limit.
        let start = Instant::now();
        assert!(ask(address, "/healthz").await.contains("alive"));
        assert!(start.elapsed() >= CONNECTION_TIME, "the limit was not reached: {:?}", start.elapsed());
        server.abort();
    }
}
