//! Tenants' API servers: one cached client each, and one small task that asks for something real again and again.
//!
//! The probe is the evidence behind Ready. It goes through the endpoint that status names, and its request is one
//! that etcd must answer. It runs beside reconciles, so that a dead tenant delays nobody, and wakes a reconcile only
//! when the answer changes its kind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use http::Request;
use http::header::{CONNECTION, HeaderValue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kaas_lifecycle::action::Authority;
use kaas_lifecycle::endpoint;
use kaas_lifecycle::key_material::OPERATOR_SECRET;
use kaas_lifecycle::observed::{Answer, Observed, Probe};
use kube::config::AuthInfo;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::class::classify;
use crate::cluster::within;
use crate::inside::Memory;
use crate::keyring::Keyring;
use crate::metrics::Metrics;

/// A healthy API server answers in milliseconds. Two tries in a row outlast the restart of an only etcd member, during
/// which requests wait and then succeed; together with the pause between probes they are well below half a minute.
const DEADLINE: Duration = Duration::from_secs(5);
/// A connection either comes about at once or not at all.
const CONNECT: Duration = Duration::from_secs(2);
/// A connection on which nothing was asked for so long is closed: above the longest pause between probes, so that theirs
/// lives on and spares both sides a handshake each time, and what a reconcile opened beside it goes.
const IDLE: Duration = Duration::from_secs(30);
/// A connection serves probes for so long: when proxies and balancers turn new clients away, those that are connected
/// notice nothing, and Ready has to be False half a minute after the first failure.
const AGE: Duration = Duration::from_secs(10);
/// A watch on which nothing comes for so long is dead: the server ends it before.
const WATCH: Duration = Duration::from_secs(65);
/// While a control plane comes up, its first answer is wanted at once.
const EAGER: Duration = Duration::from_millis(200);
/// For so long after its first probe a tenant that does not answer is probed eagerly.
const EAGER_FOR: Duration = Duration::from_secs(60);

/// What a probe reads.
const NAMESPACE: &str = "/api/v1/namespaces/default";

/// Namespace and name of a TenantCluster.
pub(crate) type Name = (String, String);

/// Who is told when the API of a tenant begins to serve, or ceases to.
pub(crate) type Bell = Arc<dyn Fn(&Name) + Send + Sync>;

/// All tenants with a client.
pub(crate) struct Tenants {
    entries: Mutex<BTreeMap<String, Entry>>,
    bell: Bell,
    interval: Duration,
    metrics: Arc<Metrics>,
}

/// How a tenant's API is reached.
#[derive(Clone)]
pub(crate) struct Access {
    /// For single requests.
    pub(crate) client: kube::Client,
    /// URL of the API.
    pub(crate) server: String,
    /// Certificate of the authority that it is known by, PEM.
    pub(crate) authority: String,
    config: Arc<kube::Config>,
}

impl Access {
    /// A client of its own for watches, whose connections say nothing for longer than a request may take.
    pub(crate) fn watching(&self) -> Option<kube::Client> {
        let mut config = kube::Config::clone(&self.config);
        config.read_timeout = Some(WATCH);
        connect(&config)
    }

    /// Whether both lead to the same place with the same credentials.
    pub(crate) fn is(&self, other: &Access) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
    }
}

struct Entry {
    /// What the client was made from; a change makes a new one.
    made_from: (String, String, String),
    access: Access,
    latest: Arc<Mutex<Option<Probe>>>,
    inside: Arc<Memory>,
    task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is held here can be left half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tenants {
    pub(crate) fn new(bell: Bell, interval: Duration, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Tenants { entries: Mutex::default(), bell, interval, metrics })
    }

    /// The client of a tenant's API, once endpoint and credentials are known. The first call starts the probe.
    pub(crate) fn client(&self, observed: &Observed, keyring: &Keyring) -> Option<kube::Client> {
        let server = endpoint::endpoint(observed)?.url();
        let certificate = keyring.get(OPERATOR_SECRET, "api.crt")?;
        let authority = keyring.authority_certificate(Authority::Cluster)?;
        let made_from = (server, certificate.to_owned(), authority.to_owned());
        let tenant = &observed.tenant;
        let mut entries = locked(&self.entries);
        let known = entries.get(&tenant.uid);
        if let Some(entry) = known.filter(|entry| entry.made_from == made_from) {
            return Some(entry.access.client.clone());
        }
        let key = keyring.get(OPERATOR_SECRET, "api.key")?;
        let config = Arc::new(configure(&made_from.0, authority, certificate, key)?);
        let client = connect(&config)?;
        // What was seen before stays evidence while the new client makes its first request.
        let latest = known.map(|entry| entry.latest.clone()).unwrap_or_default();
        let inside = known.map(|entry| entry.inside.clone()).unwrap_or_default();
        let name = (tenant.namespace.clone(), tenant.name.clone());
        let probing = probe_for_ever(
            client.clone(),
            latest.clone(),
            inside.clone(),
            self.bell.clone(),
            name,
            self.interval,
            self.metrics.clone(),
        );
        let task = tokio::spawn(probing).abort_handle();
        let (server, _, authority) = made_from.clone();
        let access = Access { client: client.clone(), server, authority, config };
        entries.insert(tenant.uid.clone(), Entry { made_from, access, latest, inside, task });
        Some(client)
    }

    /// How a tenant's API is reached, once its control plane was looked at.
    pub(crate) fn access(&self, uid: &str) -> Option<Access> {
        locked(&self.entries).get(uid).map(|entry| entry.access.clone())
    }

    /// The same with what is remembered of its inside.
    pub(crate) fn inside(
        &self,
        observed: &Observed,
        keyring: &Keyring,
    ) -> Option<(kube::Client, Arc<Memory>)> {
        let client = self.client(observed, keyring)?;
        let memory = locked(&self.entries).get(&observed.tenant.uid)?.inside.clone();
        Some((client, memory))
    }

    /// What the last probe gave.
    pub(crate) fn latest(&self, uid: &str) -> Option<Probe> {
        locked(&self.entries).get(uid).and_then(|entry| locked(&entry.latest).clone())
    }

    /// Whether the last probe succeeded.
    pub(crate) fn serving(&self, uid: &str) -> bool {
        matches!(self.latest(uid), Some(Probe { answer: Answer::Serving { .. }, .. }))
    }

    /// Whether a probe was started, whatever it gave so far.
    pub(crate) fn probed(&self, uid: &str) -> bool {
        locked(&self.entries).contains_key(uid)
    }

    /// Lets go of a tenant that is gone.
    pub(crate) fn forget(&self, uid: &str) {
        locked(&self.entries).remove(uid);
    }
}

fn configure(server: &str, authority: &str, certificate: &str, key: &str) -> Option<kube::Config> {
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let mut config = kube::Config::new(server.parse().ok()?);
    config.root_cert = Some(vec![kaas_pki::Certificate::parse(authority).ok()?.der().to_vec()]);
    config.auth_info = AuthInfo {
        client_certificate_data: Some(encode(certificate)),
        client_key_data: Some(encode(key).into()),
        ..AuthInfo::default()
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(IDLE);
    config.reset_reader_on_write = true;
    // Whoever asks here has a deadline: a blocked server must not be asked fifteen times behind our back.
    config.default_retry = false;
    Some(config)
}

fn connect(config: &kube::Config) -> Option<kube::Client> {
    kube::Client::try_from(config.clone())
        .inspect_err(|error| tracing::warn!(%error, "no client for a tenant"))
        .ok()
}

async fn probe_for_ever(
    client: kube::Client,
    latest: Arc<Mutex<Option<Probe>>>,
    inside: Arc<Memory>,
    bell: Bell,
    name: Name,
    interval: Duration,
    metrics: Arc<Metrics>,
) {
    let begin = Instant::now();
    let mut connected = begin;
    // The version of who is at the other end; a connection that was just opened may lead to another server.
    let mut version: Option<String> = None;
    loop {
        let last = connected.elapsed() >= AGE;
        let mut answer = probe(&client, &metrics, last, version.as_deref()).await;
        version = answer.as_ref().ok().filter(|_| !last).cloned();
        if last {
            connected = Instant::now();
        }
        if answer.is_err() && locked(&latest).as_ref().is_some_and(is_serving) {
            // One failure may be a connection that died with its server; a second one is news.
            sleep(EAGER).await;
            answer = probe(&client, &metrics, last, None).await;
        }
        let (changed, serving) = {
            let mut latest = locked(&latest);
            let next = note(latest.as_ref(), answer, Timestamp::now());
            let changed = latest.as_ref().map(is_serving) != Some(is_serving(&next));
            let serving = is_serving(&next);
            *latest = Some(next);
            (changed, serving)
        };
        if serving && inside.glance(&client).await || changed {
            bell(&name);
        }
        let eager = !serving && begin.elapsed() < EAGER_FOR;
        sleep(if eager { EAGER.min(interval) } else { interval }).await;
    }
}

fn is_serving(probe: &Probe) -> bool {
    matches!(probe.answer, Answer::Serving { .. })
}

/// A failure remembers since when there was no success.
fn note(before: Option<&Probe>, answer: Result<String, String>, now: Timestamp) -> Probe {
    let answer = match answer {
        Ok(version) => Answer::Serving { version },
        Err(message) => {
            let since = match before.map(|probe| &probe.answer) {
                Some(Answer::Failed { since, .. }) => *since,
                _ => now,
            };
            Answer::Failed { since, message }
        }
    };
    Probe { at: now, answer }
}

/// Asks for something real, maybe the last time on this connection; and for the version, unless it is known.
async fn probe(
    client: &kube::Client,
    metrics: &Metrics,
    last: bool,
    version: Option<&str>,
) -> Result<String, String> {
    let begin = Instant::now();
    let result = within(DEADLINE, async {
        let version = match version {
            Some(version) => version.to_owned(),
            None => client.apiserver_version().await?.git_version,
        };
        // A read of one object is answered by etcd, not from a cache.
        let mut read = Request::get(NAMESPACE).body(Vec::new()).map_err(kube::Error::HttpError)?;
        if last {
            read.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        client.request::<Namespace>(read).await?;
        Ok(version)
    })
    .await;
    match result {
        Ok(version) => {
            metrics.probes.succeeded(begin.elapsed());
            Ok(version)
        }
        Err(error) => {
            let class = classify(&error);
            metrics.probes.failed(class.as_str());
            debug!(%error, "probe failed");
            Err(sentence(&error))
        }
    }
}

/// One stable sentence an error: what changes from try to try must not change status.
fn sentence(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API server answered {} {}", status.code, status.reason),
        kube::Error::Service(cause) if cause.is::<tokio::time::error::Elapsed>() => {
            format!("no answer within {} s", DEADLINE.as_secs())
        }
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(inner) = cause {
                text = inner.to_string();
                cause = inner.source();
            }
            text.chars().take(200).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hyper::Response;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::net::TcpListener;

    use super::*;

    /// Serves what a probe asks for; counts connections.
    async fn serve(listener: TcpListener, connections: Arc<AtomicUsize>) {
        let answer = service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
            let body = match request.uri().path() {
                "/version" => serde_json::json!({
                    "major": "1", "minor": "37", "gitVersion": "v1.37.1", "gitCommit": "", "gitTreeState": "",
                    "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
                }),
                _ => serde_json::json!({
                    "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"},
                }),
            };
            Ok::<_, Infallible>(Response::new(body.to_string()))
        });
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    }

    #[tokio::test]
    async fn a_connection_lives_from_probe_to_probe_but_not_for_ever() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        tokio::spawn(serve(listener, connections.clone()));
        let own = rcgen::generate_simple_self_signed(["own".to_owned()]).unwrap();
        let (certificate, key) = (own.cert.pem(), own.signing_key.serialize_pem());
        let client = connect(&configure(&server, &certificate, &certificate, &key).unwrap()).unwrap();
        let metrics = Metrics::new();
        let pause = async |time| {
            tokio::time::pause();
            // Paused time leaps from timer to timer.
            sleep(time).await;
            tokio::time::resume();
        };

        probe(&client, &metrics, false, None).await.unwrap();
        for _ in 0..3 {
            pause(crate::args::LONGEST_PROBE_INTERVAL.unsigned_abs()).await;
            assert_eq!(probe(&client, &metrics, false, None).await.unwrap(), "v1.37.1");
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1);
        pause(IDLE + Duration::from_secs(1)).await;
        probe(&client, &metrics, false, None).await.unwrap();
        assert_eq!(connections.load(Ordering::SeqCst), 2);
        // The last one on a connection: the next finds out whether new clients are let in.
        assert_eq!(probe(&client, &metrics, true, Some("v1")).await.unwrap(), "v1");
        assert_eq!(connections.load(Ordering::SeqCst), 2);
        probe(&client, &metrics, false, None).await.unwrap();
        assert_eq!(connections.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn a_failure_remembers_since_when() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = note(None, Err("refused".into()), at(10));
        let second = note(Some(&first), Err("timeout".into()), at(20));
        assert_eq!(second.answer, Answer::Failed { since: at(10), message: "timeout".into() });
        let third = note(Some(&second), Ok("v1.37.1".into()), at(30));
        let fourth = note(Some(&third), Err("refused".into()), at(40));
        assert_eq!(fourth.answer, Answer::Failed { since: at(40), message: "refused".into() });
    }
}
