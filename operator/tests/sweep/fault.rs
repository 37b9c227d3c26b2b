//! The wire between one operator and the management API: it counts what is written, and once it goes wrong.
//!
//! A write is known by what it does ("apply secrets/etcd") and how often that was done before, not by a bare number:
//! writes of one wave run at once, and a number alone would hit another one of them in each run.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use kaas_crds::name;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::equal::without_hashes;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What goes wrong at one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The write is done; the operator dies before it hears so.
    Crash,
    /// The write is done and answered; the operator dies before its next request.
    CrashAnswered,
    /// The write is done; the connection breaks instead of an answer.
    ReplyLost,
    /// 409 instead of the write.
    Conflict,
    /// 429 instead of the write.
    TooManyRequests,
    /// 500 instead of the write.
    InternalError,
    /// The write is done; the next read that covers it answers from before it.
    StaleRead,
    /// The operator freezes before the write and another one takes over; when all is done the write arrives.
    LateWrite,
    /// Somebody else is faster: a Secret of that name is there when the write arrives.
    Taken,
}

impl Fault {
    pub(crate) const ALL: [Fault; 8] = [
        Fault::Crash,
        Fault::CrashAnswered,
        Fault::ReplyLost,
        Fault::Conflict,
        Fault::TooManyRequests,
        Fault::InternalError,
        Fault::StaleRead,
        Fault::LateWrite,
    ];
}

/// Defects for the test of the test: what an operator would do that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planted {
    /// Applies carry no preconditions.
    Unconditional,
    /// The finalizer is never set.
    NoFinalizer,
}

/// One write of an operation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) what: String,
    /// How many of the same were before it.
    pub(crate) earlier: usize,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.earlier {
            0 => write!(f, "{}", self.what),
            earlier => write!(f, "{} ({})", self.what, earlier + 1),
        }
    }
}

/// What goes wrong where.
#[derive(Clone, Debug)]
pub(crate) struct Strike {
    pub(crate) target: Target,
    pub(crate) fault: Fault,
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}", self.fault, self.target)
    }
}

/// The one TenantCluster that the operator on this wire sees.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) team: String,
    pub(crate) cluster: String,
    pub(crate) uid: String,
}

impl Scope {
    pub(crate) fn home(&self) -> String {
        name::control_plane_namespace(&self.uid)
    }

    /// Whether an operator that works for this tenant may write there.
    fn owns(&self, path: &str) -> bool {
        let (team, cluster, home) = (&self.team, &self.cluster, self.home());
        let kubeconfig = name::kubeconfig_secret(cluster);
        let object = format!("/apis/kaas.dev/v1alpha1/namespaces/{team}/tenantclusters/{cluster}");
        path == object
            || path == format!("{object}/status")
            || path == format!("/api/v1/namespaces/{team}/secrets/{kubeconfig}")
            || path.starts_with(&format!("/apis/events.k8s.io/v1/namespaces/{team}/events"))
            || path == format!("/api/v1/namespaces/{home}")
            || path.contains(&format!("/namespaces/{home}/"))
            || path.starts_with("/apis/kaas.dev/v1alpha1/kubernetesreleases/")
    }
}

pub(crate) struct Wire {
    base: Client,
    scope: Scope,
    strike: Option<Strike>,
    planted: Option<Planted>,
    state: Mutex<State>,
    /// Cancelled when the operator has to die.
    pub(crate) dead: CancellationToken,
    activity: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    writes: Vec<Target>,
    counts: BTreeMap<String, usize>,
    fired: bool,
    dying: bool,
    stale: Option<Stale>,
    held: Option<(http::request::Parts, Vec<u8>)>,
    strayed: Vec<String>,
    in_flight: usize,
}

/// An object as it was before the last write.
struct Stale {
    path: String,
    before: Option<Value>,
}

/// Counts a request as under way until it is answered or dropped.
struct Flight<'a>(&'a Wire);

impl<'a> Flight<'a> {
    fn begin(wire: &'a Wire) -> Self {
        wire.state.lock().unwrap().in_flight += 1;
        wire.activity.send_modify(|count| *count += 1);
        Flight(wire)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().in_flight -= 1;
        self.0.activity.send_modify(|count| *count += 1);
    }
}

impl Wire {
    pub(crate) fn new(
        base: Client,
        scope: Scope,
        strike: Option<Strike>,
        planted: Option<Planted>,
    ) -> Arc<Self> {
        Arc::new(Wire {
            base,
            scope,
            strike,
            planted,
            state: Mutex::default(),
            dead: CancellationToken::new(),
            activity: watch::Sender::new(0),
        })
    }

    /// A client whose requests go through this wire.
    pub(crate) fn client(self: &Arc<Self>) -> Client {
        let wire = self.clone();
        Client::new(tower::service_fn(move |request| wire.clone().call(request)), "default")
    }

    /// All writes so far, those included that a fault replaced.
    pub(crate) fn writes(&self) -> Vec<Target> {
        self.state.lock().unwrap().writes.clone()
    }

    pub(crate) fn fired(&self) -> bool {
        self.state.lock().unwrap().fired
    }

    /// Writes to objects of somebody else.
    pub(crate) fn strayed(&self) -> Vec<String> {
        self.state.lock().unwrap().strayed.clone()
    }

    /// Once nothing was asked for so long.
    pub(crate) async fn quiet(&self, pause: std::time::Duration) {
        let mut activity = self.activity.subscribe();
        loop {
            let changed = tokio::time::timeout(pause, activity.changed()).await;
            if changed.is_err() && self.state.lock().unwrap().in_flight == 0 {
                return;
            }
        }
    }

    /// The next request after this call.
    pub(crate) fn next_request(&self) -> impl Future<Output = ()> + use<> {
        let mut activity = self.activity.subscribe();
        async move { drop(activity.changed().await) }
    }

    /// Lets the write arrive that was held back. Gives the answer's code, or `None` if none was held.
    pub(crate) async fn deliver(&self) -> Option<u16> {
        let (parts, body) = self.state.lock().unwrap().held.take()?;
        let answer = self.base.send(Request::from_parts(parts, Body::from(body))).await.unwrap();
        Some(answer.status().as_u16())
    }

    async fn call(self: Arc<Self>, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let ending = {
            let state = self.state.lock().unwrap();
            state.dying
        };
        if ending {
            self.dead.cancel();
        }
        if self.dead.is_cancelled() {
            return std::future::pending().await;
        }
        let request = self.scoped(request);
        let query = request.uri().query().unwrap_or_default();
        if query.contains("watch=true") || query.contains("watch=1") {
            return self.send(request).await;
        }
        let flight = Flight::begin(&self);
        let result = match *request.method() {
            Method::GET => self.read(request).await,
            _ if request.uri().path().contains("/kubernetesreleases/") => self.send(request).await,
            _ => self.write(request).await,
        };
        drop(flight);
        result
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        self.base.send(request).await.map_err(BoxError::from)
    }

    /// Narrows what would be asked of the whole cluster to the one tenant: many operators run side by side here.
    fn scoped(&self, request: Request<Body>) -> Request<Body> {
        let (mut parts, body) = request.into_parts();
        let uri = parts.uri.to_string();
        let clusters = "/apis/kaas.dev/v1alpha1/tenantclusters";
        let narrowed = if let Some(rest) = uri.strip_prefix(clusters) {
            format!("/apis/kaas.dev/v1alpha1/namespaces/{}/tenantclusters{rest}", self.scope.team)
        } else if uri.contains("tenant-uid") && !uri.contains("tenant-namespace") {
            let label = format!("%2Ckaas.dev%2Ftenant-namespace%3D{}", self.scope.team);
            let start = uri.find("labelSelector=").unwrap();
            let end = uri[start..].find('&').map_or(uri.len(), |at| start + at);
            format!("{}{label}{}", &uri[..end], &uri[end..])
        } else {
            uri
        };
        parts.uri = narrowed.parse().unwrap();
        Request::from_parts(parts, body)
    }

    async fn read(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let path = request.uri().path().to_owned();
        let metadata_only = request
            .headers()
            .values()
            .any(|value| value.to_str().is_ok_and(|value| value.contains("PartialObjectMetadata")));
        let stale = {
            let mut state = self.state.lock().unwrap();
            let covers = |stale: &mut Stale| {
                let (collection, _) = stale.path.rsplit_once('/').unwrap();
                !metadata_only && (path == stale.path || path == collection)
            };
            state.stale.take_if(covers)
        };
        let answer = self.send(request).await?;
        let Some(stale) = stale else { return Ok(answer) };
        if path == stale.path {
            return Ok(match stale.before {
                Some(before) => reply(200, &before),
                None => reply(404, &status(404, "NotFound")),
            });
        }
        let bytes = answer.into_body().collect_bytes().await.map_err(BoxError::from)?;
        let mut list: Value = serde_json::from_slice(&bytes)?;
        let name = stale.path.rsplit_once('/').unwrap().1;
        let items = list["items"].as_array_mut().unwrap();
        items.retain(|item| item["metadata"]["name"] != name);
        items.extend(stale.before);
        Ok(reply(200, &list))
    }

    async fn write(&self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let mut body = body.collect_bytes().await.map_err(BoxError::from)?.to_vec();
        let fault = self.note(&parts.method, &path);
        match self.planted {
            Some(Planted::Unconditional) if parts.method == Method::PATCH => body = unconditional(&body),
            Some(Planted::NoFinalizer) if sets_finalizer(&body) => {
                return self.send(Request::get(&path).body(Body::empty())?).await;
            }
            _ => {}
        }
        let forward = |parts: http::request::Parts, body: Vec<u8>| {
            self.send(Request::from_parts(parts, Body::from(body)))
        };
        match fault {
            None => forward(parts, body).await,
            Some(Fault::Crash) => {
                let _ = forward(parts, body).await;
                self.die().await
            }
            Some(Fault::CrashAnswered) => {
                let answer = forward(parts, body).await;
                self.state.lock().unwrap().dying = true;
                answer
            }
            Some(Fault::ReplyLost) => {
                forward(parts, body).await?;
                Err(Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)))
            }
            Some(Fault::Conflict) => Ok(reply(409, &status(409, "Conflict"))),
            Some(Fault::TooManyRequests) => Ok(reply(429, &status(429, "TooManyRequests"))),
            Some(Fault::InternalError) => Ok(reply(500, &status(500, "InternalError"))),
            Some(Fault::StaleRead) => {
                let path = path.strip_suffix("/status").unwrap_or(&path).to_owned();
                let found = self.send(Request::get(&path).body(Body::empty())?).await?;
                let before = match found.status().as_u16() {
                    200 => Some(serde_json::from_slice(&found.into_body().collect_bytes().await?)?),
                    _ => None,
                };
                let answer = forward(parts, body).await?;
                self.state.lock().unwrap().stale = Some(Stale { path, before });
                Ok(answer)
            }
            Some(Fault::Taken) => {
                let (collection, name) = path.rsplit_once('/').unwrap();
                let theirs = json!({"metadata": {"name": name}, "stringData": {"whose": "theirs"}});
                let post = Request::post(collection).header("content-type", "application/json");
                let made = self.send(post.body(Body::from(serde_json::to_vec(&theirs)?))?).await?;
                assert_eq!(made.status().as_u16(), 201, "{path}");
                forward(parts, body).await
            }
            Some(Fault::LateWrite) => {
                self.state.lock().unwrap().held = Some((parts, body));
                self.die().await
            }
        }
    }

    /// Counts a write, and tells what goes wrong with it.
    fn note(&self, method: &Method, path: &str) -> Option<Fault> {
        let what = self.told(method, path);
        let mut state = self.state.lock().unwrap();
        if !self.scope.owns(path) {
            state.strayed.push(format!("{method} {path}"));
        }
        let count = state.counts.entry(what.clone()).or_default();
        let target = Target { what, earlier: *count };
        *count += 1;
        state.writes.push(target.clone());
        let strike = self.strike.as_ref().filter(|strike| !state.fired && strike.target == target)?;
        state.fired = true;
        Some(strike.fault)
    }

    /// A write in a few words that are the same for every tenant.
    fn told(&self, method: &Method, path: &str) -> String {
        let verb = match *method {
            Method::DELETE => "delete",
            Method::POST => "create",
            Method::PUT => "replace",
            _ if path.ends_with("/status") => "status",
            _ => "apply",
        };
        let path = path.strip_suffix("/status").unwrap_or(path);
        let mut parts = path.rsplit('/');
        let (last, before) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let text = match (*method == Method::POST, before) {
            (true, _) => last.to_owned(),
            // The last part is a hash over what names the tenant.
            (_, "controllerrevisions") => {
                format!("{before}/{}", last.rsplit_once('-').map_or(last, |(kept, _)| kept))
            }
            // A recurring event.
            (_, "events") => before.to_owned(),
            _ => format!("{before}/{last}"),
        };
        let place =
            if path.contains(&format!("/namespaces/{}/", self.scope.team)) { " of the team" } else { "" };
        format!("{verb} {}{place}", without_hashes(&text.replace(&self.scope.uid, "UID")))
    }

    async fn die<T>(&self) -> T {
        self.dead.cancel();
        std::future::pending().await
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason,
        "message": "a fault of the sweep",
    })
}

fn reply(code: u16, content: &Value) -> Response<Body> {
    let builder = Response::builder().status(code).header("content-type", "application/json");
    builder.body(Body::from(serde_json::to_vec(content).unwrap())).unwrap()
}

fn unconditional(body: &[u8]) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(body) else { return body.to_vec() };
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
        metadata.remove("uid");
    }
    serde_json::to_vec(&document).unwrap()
}

fn sets_finalizer(body: &[u8]) -> bool {
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    document.pointer("/metadata/finalizers/0").is_some()
}
