//! The life of the operator's process: it stands by, leads, and hands over.
//!
//! On a normal stop the controllers end first (within [`GRACE`]), then the gate closes, then the lease is given
//! back: a standby that takes it at once meets no late write. When the lease is lost the gate is closed already;
//! the controllers end and the process stands by again. It does not exit: during an outage of the API server all
//! replicas would, and the kubelet's growing restart back-off would then keep the operator away for minutes after
//! the API server is back. Nothing of a term survives it: each has a gate of its own that never reopens, and each
//! starts the controllers anew, with empty caches.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{self, Standing};
use crate::args::Settings;
use crate::controllers;
use crate::leader::{Candidate, Gate, Term, Timing};
use crate::metrics::Metrics;

/// How long the controllers may take to end: what is left of the second within which a standby takes over. What is
/// under way then is cut off: every write has its own precondition, so the next leader goes on from whatever
/// arrived, as after a crash.
pub const GRACE: Duration = Duration::from_millis(700);

/// How long the controllers may take to end once cut off.
const CUT: Duration = Duration::from_secs(1);

/// What the controllers get for one term.
#[derive(Clone)]
pub struct Context {
    /// The management cluster.
    pub client: Client,
    /// What the operator works by.
    pub settings: Arc<Settings>,
    /// Where work is counted.
    pub metrics: Arc<Metrics>,
    /// Asked before every write.
    pub gate: Gate,
    /// Cancelled when the term ends: start nothing new, give up what only reads, end what writes.
    pub stop: CancellationToken,
}

/// Why the process must end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address for /healthz, /readyz and /metrics cannot be used.
    #[error("--listen {address}: {source}; choose an address of this host and a free port")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// No random numbers to tell this process from its predecessor.
    #[error("the system gives no random numbers, without which two processes could share an identity")]
    Randomness,
    /// A defect of the operator: the controllers run until they are told to stop.
    #[error("the controllers ended by themselves ({0}); this is a defect of the operator")]
    ControllersEnded(String),
    /// A defect of the operator: something blocks a thread, so the old term's work may still be there.
    #[error("the controllers could not be ended within {0:?}; this is a defect of the operator")]
    ControllersStuck(Duration),
}

/// Runs until `shutdown` is done, then hands over and returns.
pub async fn run(
    settings: Settings,
    client: Client,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Error> {
    let address = settings.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
    let timing = Timing::new(settings.lease_duration);
    let standing = Standing::new(timing.duration());
    let metrics = Arc::new(Metrics::new());
    let settings = Arc::new(settings);
    let candidate = Candidate::new(
        client.clone(),
        &settings.platform.operator_namespace,
        &settings.lease_name,
        unique(&settings.identity)?,
        timing,
        standing.clone(),
        Arc::clone(&metrics),
    );
    let address = listener.local_addr().unwrap_or(address);
    info!(%address, version = env!("CARGO_PKG_VERSION"), "started");

    let office = Office { client, settings, metrics: Arc::clone(&metrics), standing: standing.clone() };
    tokio::select! {
        () = admin::serve(listener, standing, metrics) => Ok(()),
        outcome = office.serve(candidate, shutdown) => outcome,
    }
}

/// A name that no other process has, not even the next one in the same pod: a restarted container must wait like
/// any other candidate until its predecessor's lease has ended.
fn unique(identity: &str) -> Result<String, Error> {
    let mut random = [0_u8; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| Error::Randomness)?;
    Ok(format!("{identity}_{:016x}", u64::from_be_bytes(random)))
}

/// What outlives a term.
struct Office {
    client: Client,
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    standing: Standing,
}

impl Office {
    async fn serve(&self, candidate: Candidate, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let stopped = CancellationToken::new();
        let work = async {
            while let Some(term) = candidate.campaign(&stopped).await {
                if !self.lead(term, &stopped).await? {
                    break;
                }
            }
            Ok(())
        };
        let (mut work, mut shutdown) = (pin!(work), pin!(shutdown));
        tokio::select! {
            outcome = &mut work => return outcome,
            () = &mut shutdown => {}
        }
        info!("stopping");
        self.standing.stops();
        stopped.cancel();
        work.await
    }

    /// One term. True if the process should stand by again.
    async fn lead(&self, mut term: Term, stopped: &CancellationToken) -> Result<bool, Error> {
        let stop = CancellationToken::new();
        let gate = term.gate();
        self.standing.leads(gate.clone());
        let context = Context {
            client: self.client.clone(),
            settings: Arc::clone(&self.settings),
            metrics: Arc::clone(&self.metrics),
            gate,
            stop: stop.clone(),
        };
        // A task of its own, so that a panic in it is seen here as an error.
        let mut running = tokio::spawn(controllers::run(context));
        let ending = tokio::select! {
            _ = term.keep() => Ending::Lost,
            ended = &mut running => Ending::Ended(ended.err().map(|error| error.to_string())),
            () = stopped.cancelled() => Ending::Stopped,
        };
        stop.cancel();
        let outcome = match ending {
            Ending::Lost => end(&mut running).await.map(|()| true),
            Ending::Ended(panic) => {
                give_back(term).await;
                Err(Error::ControllersEnded(panic.unwrap_or_else(|| "without an error".to_owned())))
            }
            // The lease is kept while the last writes end.
            Ending::Stopped => tokio::select! {
                ended = end(&mut running) => match ended {
                    Ok(()) => {
                        give_back(term).await;
                        Ok(false)
                    }
                    Err(stuck) => Err(stuck),
                },
                _ = term.keep() => end(&mut running).await.map(|()| false),
            },
        };
        self.standing.stands_by();
        self.metrics.stand_down();
        outcome
    }
}

/// How a term ended.
enum Ending {
    Lost,
    Ended(Option<String>),
    Stopped,
}

/// Waits for the controllers, and cuts them off when they take too long.
async fn end(running: &mut JoinHandle<()>) -> Result<(), Error> {
    if timeout(GRACE, &mut *running).await.is_ok() {
        return Ok(());
    }
    warn!(waited = ?GRACE, "the controllers did not end in time and are cut off");
    running.abort();
    // A cut-off task ends at its next await.
    timeout(CUT, running).await.map(drop).map_err(|_| Error::ControllersStuck(GRACE + CUT))
}

async fn give_back(term: Term) {
    if let Err(failure) = term.release().await {
        error!("{failure}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use clap::Parser;
    use tokio::time::Instant;

    use super::*;
    use crate::args::Args;

    #[test]
    fn no_two_processes_share_an_identity() {
        let (first, second) = (unique("kaas-operator-0").unwrap(), unique("kaas-operator-0").unwrap());
        assert_ne!(first, second);
        assert!(
            first.starts_with("kaas-operator-0_") && first.len() == "kaas-operator-0_".len() + 16,
            "{first}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn controllers_that_end_are_not_waited_for() {
        let start = Instant::now();
        end(&mut tokio::spawn(async {})).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn controllers_that_do_not_end_are_cut_off() {
        let start = Instant::now();
        let mut running = tokio::spawn(std::future::pending());
        end(&mut running).await.unwrap();
        assert_eq!(start.elapsed(), GRACE);
        assert!(running.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn controllers_that_block_their_thread_end_the_process() {
        let (tell, told) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let stuck = tokio::spawn(async move {
                    released.recv().unwrap_err();
                });
                tell.send(stuck).unwrap();
                tokio::task::yield_now().await;
            });
        });
        let mut running = told.recv().unwrap();
        let failure = end(&mut running).await.unwrap_err();
        assert!(matches!(failure, Error::ControllersStuck(waited) if waited == GRACE + CUT), "{failure}");
        drop(release);
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = format!("--listen={}", taken.local_addr().unwrap());
        let args = Args::try_parse_from(["kaas-operator", "--namespace=x", "--identity=x", &listen]).unwrap();
        let client = Client::try_from(kube::Config::new("https://192.0.2.1".parse().unwrap())).unwrap();
        let failure =
            run(args.try_into().unwrap(), client, std::future::pending()).await.unwrap_err().to_string();
        let address = taken.local_addr().unwrap().to_string();
        assert!(
            failure.contains("--listen") && failure.contains(&address) && failure.contains("free port"),
            "{failure}"
        );
    }
}
