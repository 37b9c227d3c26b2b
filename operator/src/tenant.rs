//! Tenants' API servers: how each is reached, and one small task that asks for something real again and again.
//!
//! The probe is the evidence behind Ready. It runs beside reconciles, so that a dead tenant delays nobody, and wakes one
//! only when the answer changes its kind.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use jiff::Timestamp;
use kaas_crds::name::component;
use kaas_lifecycle::action::Authority;
use kaas_lifecycle::endpoint;
use kaas_lifecycle::key_material::OPERATOR_SECRET;
use kaas_lifecycle::observed::{Answer, Observed, Probe, Vigil};
use kaas_lifecycle::tenant::Tenant;
use kaas_lifecycle::upgrade::canary::Trial;
use kube::client::ConfigExt;
use kube::config::AuthInfo;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use crate::inside::Memory;
use crate::keyring::Keyring;
use crate::metrics::Metrics;

mod probe;
mod trial;
mod vigil;

use probe::Target;

/// A connection on which nothing was asked for so long is closed, and a client that was not used for so long is let go
/// of: both cost memory, and a reconcile comes every ten minutes.
const IDLE: Duration = Duration::from_secs(30);
/// A watch on which nothing comes for so long is dead: the server ends it before.
const WATCH: Duration = Duration::from_secs(65);
/// While a control plane comes up, its first answer is wanted at once.
const EAGER: Duration = Duration::from_millis(200);
/// For so long after its first probe a tenant that does not answer is probed eagerly.
const EAGER_FOR: Duration = Duration::from_secs(60);

/// Namespace and name of a TenantCluster.
pub(crate) type Name = (String, String);

/// Who is told when the API of a tenant begins to serve, or ceases to.
pub(crate) type Bell = Arc<dyn Fn(&Name) + Send + Sync>;

/// All tenants that can be reached.
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
    line: Arc<Line>,
}

impl Access {
    /// A client of its own for watches, whose connections say nothing for longer than a request may take.
    pub(crate) fn watching(&self) -> Option<kube::Client> {
        let mut config = kube::Config::clone(&self.line.config);
        config.read_timeout = Some(WATCH);
        connect(config)
    }

    /// Whether both lead to the same place with the same credentials.
    pub(crate) fn is(&self, other: &Access) -> bool {
        Arc::ptr_eq(&self.line, &other.line)
    }
}

/// One place and one set of credentials, and the client that is used there now.
struct Line {
    config: kube::Config,
    client: Mutex<Option<(kube::Client, Instant)>>,
}

impl Line {
    fn client(&self) -> Option<kube::Client> {
        let mut held = locked(&self.client);
        let client = match held.take() {
            Some((client, _)) => client,
            None => connect(self.config.clone())?,
        };
        *held = Some((client.clone(), Instant::now()));
        Some(client)
    }

    /// Lets go of a client that nobody asked for lately; who has it goes on with it.
    fn rest(&self) {
        let mut held = locked(&self.client);
        if held.as_ref().is_some_and(|(_, used)| used.elapsed() > IDLE) {
            *held = None;
        }
    }
}

struct Entry {
    /// What the line was made from; a change makes a new one.
    made_from: MadeFrom,
    line: Arc<Line>,
    latest: Arc<Mutex<Option<Probe>>>,
    inside: Arc<Memory>,
    proof: Arc<Mutex<Option<Proof>>>,
    vigil: Option<vigil::Kept>,
    task: AbortHandle,
}

/// The pod that everything is or was asked of, and what it answered.
struct Proof {
    pod: String,
    result: Option<Result<u32, String>>,
}

/// URL, the operator's certificate, and the authority's.
type MadeFrom = (String, String, String);

impl Entry {
    fn access(&self) -> Option<Access> {
        let (server, _, authority) = self.made_from.clone();
        Some(Access { client: self.line.client()?, server, authority, line: self.line.clone() })
    }
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
            return entry.line.client();
        }
        let key = keyring.get(OPERATOR_SECRET, "api.key")?;
        let config = configure(&made_from.0, authority, certificate, key)?;
        let tls = config.rustls_client_config().inspect_err(unusable).ok()?;
        let target = Target::new(&config.cluster_url, tls)?;
        let line = Arc::new(Line { config, client: Mutex::default() });
        let client = line.client()?;
        // What was seen before stays evidence while the new client makes its first request.
        let latest = known.map(|entry| entry.latest.clone()).unwrap_or_default();
        let inside = known.map(|entry| entry.inside.clone()).unwrap_or_default();
        let probing = Probing {
            target,
            line: line.clone(),
            latest: latest.clone(),
            inside: inside.clone(),
            bell: self.bell.clone(),
            name: (tenant.namespace.clone(), tenant.name.clone()),
            interval: self.interval,
            metrics: self.metrics.clone(),
        };
        let task = tokio::spawn(probing.go_on()).abort_handle();
        // One that is kept goes on at the new place, and its count begins anew.
        let vigil = known.filter(|entry| entry.vigil.is_some()).map(|_| vigil::Kept::begin(&line.config));
        let entry = Entry { made_from, line, latest, inside, proof: Arc::default(), vigil, task };
        entries.insert(tenant.uid.clone(), entry);
        Some(client)
    }

    /// Begins to look at what clients see, or ends it.
    pub(crate) fn keep_vigil(&self, uid: &str, wanted: bool) {
        if let Some(entry) = locked(&self.entries).get_mut(uid)
            && entry.vigil.is_some() != wanted
        {
            entry.vigil = wanted.then(|| vigil::Kept::begin(&entry.line.config));
            if !wanted {
                tokio::spawn(vigil::clear(entry.line.config.clone()));
            }
        }
    }

    /// What clients saw since then.
    pub(crate) fn seen(&self, uid: &str) -> Option<Vigil> {
        locked(&self.entries).get(uid)?.vigil.as_ref().map(vigil::Kept::seen)
    }

    /// What the API server of a pod answered when everything was asked of it. The first call asks; the answer wakes the
    /// tenant.
    pub(crate) fn prove(&self, tenant: &Tenant, pod: &str, address: IpAddr) -> Option<Trial> {
        let entries = locked(&self.entries);
        let entry = entries.get(&tenant.uid)?;
        let mut proof = locked(&entry.proof);
        if let Some(known) = proof.as_ref().filter(|known| known.pod == pod) {
            return known.result.clone().map(|result| Trial { pod: pod.to_owned(), result });
        }
        *proof = Some(Proof { pod: pod.to_owned(), result: None });
        let (line, proof, bell) = (entry.line.clone(), entry.proof.clone(), self.bell.clone());
        let (pod, name) = (pod.to_owned(), (tenant.namespace.clone(), tenant.name.clone()));
        tokio::spawn(async move {
            let result = trial::run(&line.config, address, endpoint::PORT).await;
            tracing::info!(pod, passed = result.is_ok(), what = ?result, "an API server was put to the proof");
            if let Some(known) = locked(&proof).as_mut().filter(|known| known.pod == pod) {
                known.result = Some(result);
            }
            bell(&name);
        });
        None
    }

    /// How a tenant's API is reached, once its control plane was looked at.
    pub(crate) fn access(&self, uid: &str) -> Option<Access> {
        locked(&self.entries).get(uid)?.access()
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

/// A client of something else that has an API server's certificate and knows the operator by its own.
pub(crate) fn beside(server: &str, keyring: &Keyring) -> Option<kube::Client> {
    let certificate = keyring.get(OPERATOR_SECRET, "api.crt")?;
    let key = keyring.get(OPERATOR_SECRET, "api.key")?;
    let authority = keyring.authority_certificate(Authority::Cluster)?;
    let mut config = configure(server, authority, certificate, key)?;
    config.tls_server_name = Some(component::KUBE_APISERVER.into());
    connect(config)
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
    config.connect_timeout = Some(probe::CONNECT);
    config.read_timeout = Some(IDLE);
    config.reset_reader_on_write = true;
    // Whoever asks here has a deadline: a blocked server must not be asked fifteen times behind our back.
    config.default_retry = false;
    Some(config)
}

fn connect(config: kube::Config) -> Option<kube::Client> {
    kube::Client::try_from(config).inspect_err(unusable).ok()
}

fn unusable(error: &kube::Error) {
    tracing::warn!(%error, "no client for a tenant");
}

/// The task of one tenant.
struct Probing {
    target: Target,
    line: Arc<Line>,
    latest: Arc<Mutex<Option<Probe>>>,
    inside: Arc<Memory>,
    bell: Bell,
    name: Name,
    interval: Duration,
    metrics: Arc<Metrics>,
}

impl Probing {
    async fn go_on(self) {
        let begin = Instant::now();
        loop {
            let mut answer = self.target.probe(&self.metrics).await;
            if answer.is_err() && locked(&self.latest).as_ref().is_some_and(is_serving) {
                // One failure may be a server that went in this moment; a second one is news.
                sleep(EAGER).await;
                answer = self.target.probe(&self.metrics).await;
            }
            let (changed, serving) = {
                let mut latest = locked(&self.latest);
                let next = note(latest.as_ref(), answer, Timestamp::now());
                let changed = latest.as_ref().map(is_serving) != Some(is_serving(&next));
                let serving = is_serving(&next);
                *latest = Some(next);
                (changed, serving)
            };
            if serving && self.glance().await || changed {
                (self.bell)(&self.name);
            }
            self.line.rest();
            let eager = !serving && begin.elapsed() < EAGER_FOR;
            sleep(if eager { EAGER.min(self.interval) } else { self.interval }).await;
        }
    }

    /// Whether something changed inside.
    async fn glance(&self) -> bool {
        if !self.inside.has_workers() {
            return false;
        }
        match self.line.client() {
            Some(client) => self.inside.glance(&client).await,
            None => false,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_nobody_asks_for_is_let_go_of() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = kube::Config::new("https://192.0.2.1:6443".parse().unwrap());
        let line = Line { config, client: Mutex::default() };
        line.client().unwrap();
        sleep(IDLE).await;
        line.rest();
        assert!(locked(&line.client).is_some());
        line.client().unwrap();
        sleep(IDLE).await;
        line.rest();
        assert!(locked(&line.client).is_some(), "used in between");
        sleep(Duration::from_millis(1)).await;
        line.rest();
        assert!(locked(&line.client).is_none());
        line.client().unwrap();
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
