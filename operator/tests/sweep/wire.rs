//! The wire between one operator and both its APIs, the management cluster's and its tenant's: it counts what is
//! written, and at chosen writes it goes wrong.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response};
use kaas_crds::name;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::equal::without_hashes;
use crate::lag::Lagging;
use crate::plot::{Fault, Planted, Plot, Target};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How long watches and the infrastructure are behind: longer than what follows a write takes.
const LAG: Duration = Duration::from_millis(700);

/// Which of both APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Management,
    /// The tenant's own.
    Inside,
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

    /// Where its machines are.
    pub(crate) fn machines(&self) -> String {
        name::workers_namespace(&self.uid)
    }

    /// Whether an operator that works for this tenant may write there.
    fn owns(&self, path: &str) -> bool {
        let (team, cluster, home, machines) = (&self.team, &self.cluster, self.home(), self.machines());
        let kubeconfig = name::kubeconfig_secret(cluster);
        let object = format!("/apis/kaas.dev/v1alpha1/namespaces/{team}/tenantclusters/{cluster}");
        path == object
            || path == format!("{object}/status")
            || path == format!("/api/v1/namespaces/{team}/secrets/{kubeconfig}")
            || path.starts_with(&format!("/apis/events.k8s.io/v1/namespaces/{team}/events"))
            || path == format!("/api/v1/namespaces/{home}")
            || path.contains(&format!("/namespaces/{home}/"))
            || path == format!("/api/v1/namespaces/{machines}")
            || path.contains(&format!("/namespaces/{machines}/"))
            || path.starts_with(&format!("/apis/kaas.dev/v1alpha1/namespaces/{team}/worker"))
            || path.starts_with("/apis/kaas.dev/v1alpha1/kubernetesreleases/")
    }
}

pub(crate) struct Wire {
    base: Client,
    /// The tenant's API, as whoever may do everything there.
    inside: Client,
    scope: Scope,
    plot: Arc<Plot>,
    planted: Option<Planted>,
    state: Mutex<State>,
    /// Cancelled when the operator has to die.
    pub(crate) dead: CancellationToken,
    activity: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    writes: Vec<Target>,
    dying: bool,
    stale: Option<Stale>,
    lag: Option<Lag>,
    held: Option<(Side, http::request::Parts, Vec<u8>)>,
    strayed: Vec<String>,
    in_flight: usize,
    drawn: usize,
}

/// What is not told yet.
struct Lag {
    collection: String,
    until: Instant,
}

/// An object as it was before the last write.
#[derive(Clone)]
struct Stale {
    side: Side,
    path: String,
    before: Option<Value>,
    /// How long it answers so; otherwise once.
    until: Option<Instant>,
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
        (base, inside): (Client, Client),
        scope: Scope,
        plot: Arc<Plot>,
        planted: Option<Planted>,
    ) -> Arc<Self> {
        Arc::new(Wire {
            base,
            inside,
            scope,
            plot,
            planted,
            state: Mutex::default(),
            dead: CancellationToken::new(),
            activity: watch::Sender::new(0),
        })
    }

    /// A client whose requests go through this wire.
    pub(crate) fn client(self: &Arc<Self>) -> Client {
        let wire = self.clone();
        let call = move |request| {
            let wire = wire.clone();
            async move {
                let answer = wire.clone().call(Side::Management, request).await?;
                let collection = answer.extensions().get::<Watched>().map(|watched| watched.0.clone());
                Ok::<_, BoxError>(answer.map(|body| Lagging::new(body, collection.map(|path| (wire, path)))))
            }
        };
        Client::new(tower::service_fn(call), "default")
    }

    /// When watches of this collection may go on.
    pub(crate) fn lags(&self, collection: &str) -> Option<Instant> {
        let state = self.state.lock().unwrap();
        let lag = state.lag.as_ref().filter(|lag| Instant::now() < lag.until)?;
        let plural = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        (plural(&lag.collection) == plural(collection)).then_some(lag.until)
    }

    /// All writes so far, those included that a fault replaced.
    pub(crate) fn writes(&self) -> Vec<Target> {
        self.state.lock().unwrap().writes.clone()
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

    /// Lets the write arrive that was held back. Gives the answer's code and whether it was a token's, or `None` if none
    /// was held.
    pub(crate) async fn deliver(&self) -> Option<(u16, bool)> {
        let (side, parts, body) = self.state.lock().unwrap().held.take()?;
        let of_token = side == Side::Inside && parts.uri.path().contains("/secrets/bootstrap-token-");
        let answer = self.send(side, Request::from_parts(parts, Body::from(body))).await.unwrap();
        Some((answer.status().as_u16(), of_token))
    }

    pub(crate) async fn call(
        self: Arc<Self>,
        side: Side,
        request: Request<Body>,
    ) -> Result<Response<Body>, BoxError> {
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
        let request = if side == Side::Management { self.scoped(request) } else { request };
        let query = request.uri().query().unwrap_or_default();
        if query.contains("watch=true") || query.contains("watch=1") {
            let collection = request.uri().path().to_owned();
            let mut answer = self.send(side, request).await?;
            answer.extensions_mut().insert(Watched(collection));
            return Ok(answer);
        }
        if side == Side::Inside && *request.method() == Method::GET {
            // Probes never end: they are no sign of work.
            return self.read(side, request).await;
        }
        let flight = Flight::begin(&self);
        let result = match *request.method() {
            Method::GET => self.read(side, request).await,
            _ if request.uri().path().contains("/kubernetesreleases/") => self.send(side, request).await,
            _ => self.write(side, request).await,
        };
        drop(flight);
        result
    }

    async fn send(&self, side: Side, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let base = if side == Side::Management { &self.base } else { &self.inside };
        base.send(request).await.map_err(BoxError::from)
    }

    /// Narrows what would be asked of the whole cluster to the one tenant: many operators run side by side here.
    fn scoped(&self, request: Request<Body>) -> Request<Body> {
        let (mut parts, body) = request.into_parts();
        let uri = parts.uri.to_string();
        let group = "/apis/kaas.dev/v1alpha1";
        let plural = ["tenantclusters", "workerpools", "workers"]
            .into_iter()
            .find_map(|plural| Some((plural, uri.strip_prefix(&format!("{group}/{plural}"))?)));
        let machines = format!("%3D{}", name::component::WORKER);
        let narrowed = if let Some((plural, rest)) = plural {
            format!("{group}/namespaces/{}/{plural}{rest}", self.scope.team)
        } else if (uri.contains("tenant-uid") || uri.contains(&machines)) && !uri.contains("tenant-namespace")
        {
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

    async fn read(&self, side: Side, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let path = request.uri().path().to_owned();
        let metadata_only = request
            .headers()
            .values()
            .any(|value| value.to_str().is_ok_and(|value| value.contains("PartialObjectMetadata")));
        let stale = {
            let mut state = self.state.lock().unwrap();
            state.stale.take_if(|stale| stale.until.is_some_and(|until| Instant::now() >= until));
            let covers = |stale: &Stale| {
                let (collection, _) = stale.path.rsplit_once('/').unwrap();
                side == stale.side && !metadata_only && (path == stale.path || path == collection)
            };
            match &state.stale {
                Some(stale) if covers(stale) && stale.until.is_some() => state.stale.clone(),
                Some(stale) if covers(stale) => state.stale.take(),
                _ => None,
            }
        };
        let answer = self.send(side, request).await?;
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

    async fn write(&self, side: Side, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let mut body = body.collect_bytes().await.map_err(BoxError::from)?.to_vec();
        let fault = self.note(side, &parts.method, &path);
        match self.planted {
            Some(Planted::DrawnNames) if parts.method == Method::POST && path.ends_with("/pods") => {
                body = self.draw_name(&body);
            }
            Some(Planted::Unconditional) if parts.method == Method::PATCH => body = unconditional(&body),
            Some(Planted::NoFinalizer) if sets_finalizer(&body) => {
                return self.send(side, Request::get(&path).body(Body::empty())?).await;
            }
            _ => {}
        }
        let forward = |parts: http::request::Parts, body: Vec<u8>| {
            self.send(side, Request::from_parts(parts, Body::from(body)))
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
            Some(fault @ (Fault::StaleRead | Fault::Lag)) => {
                let path = ["/status", "/approval", "/eviction"]
                    .into_iter()
                    .fold(path.as_str(), |path, subresource| path.strip_suffix(subresource).unwrap_or(path));
                let path = object_of(path, &parts.method, &body);
                let found = self.send(side, Request::get(&path).body(Body::empty())?).await?;
                let before = match found.status().as_u16() {
                    200 => Some(serde_json::from_slice(&found.into_body().collect_bytes().await?)?),
                    _ => None,
                };
                let until = (fault == Fault::Lag).then(|| Instant::now() + LAG);
                let machine = path.contains(&format!("/namespaces/{}/pods", self.scope.machines()));
                if let Some(until) = until {
                    let collection = path.rsplit_once('/').unwrap().0.to_owned();
                    self.state.lock().unwrap().lag = Some(Lag { collection, until });
                }
                let answer = forward(parts, body).await?;
                if until.is_none() || machine {
                    self.state.lock().unwrap().stale = Some(Stale { side, path, before, until });
                }
                Ok(answer)
            }
            Some(Fault::Taken) => {
                let (collection, name) = path.rsplit_once('/').unwrap();
                let theirs = json!({"metadata": {"name": name}, "stringData": {"whose": "theirs"}});
                let post = Request::post(collection).header("content-type", "application/json");
                let made = self.send(side, post.body(Body::from(serde_json::to_vec(&theirs)?))?).await?;
                assert_eq!(made.status().as_u16(), 201, "{path}");
                forward(parts, body).await
            }
            Some(Fault::LateWrite) => {
                self.state.lock().unwrap().held = Some((side, parts, body));
                self.die().await
            }
        }
    }

    /// Counts a write, and tells what goes wrong with it.
    fn note(&self, side: Side, method: &Method, path: &str) -> Option<Fault> {
        let (target, fault) = self.plot.note(self.told(side, method, path));
        let mut state = self.state.lock().unwrap();
        if side == Side::Management && !self.scope.owns(path) {
            state.strayed.push(format!("{method} {path}"));
        }
        state.writes.push(target);
        fault
    }

    /// A write in a few words that are the same for every tenant.
    fn told(&self, side: Side, method: &Method, path: &str) -> String {
        let (path, subresource) = ["status", "approval", "eviction"]
            .into_iter()
            .find_map(|word| Some((path.strip_suffix(word)?.strip_suffix('/')?, word)))
            .unwrap_or((path, ""));
        let verb = match (method, subresource) {
            (_, "approval") => "approve",
            (_, "eviction") => "evict",
            (&Method::DELETE, _) => "delete",
            (&Method::POST, _) => "create",
            (_, "status") if *method != Method::PUT || side == Side::Management => "status",
            (&Method::PUT, _) => "replace",
            _ => "apply",
        };
        let mut parts = path.rsplit('/');
        let (last, before) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let text = match (verb == "create", before) {
            (true, _) => last.to_owned(),
            // The last part is a hash over what names the tenant.
            (_, "controllerrevisions") => {
                format!("{before}/{}", last.rsplit_once('-').map_or(last, |(kept, _)| kept))
            }
            // The last part is made from the worker's UID.
            (_, "secrets") if last.starts_with("bootstrap-token-") => format!("{before}/bootstrap-token"),
            // A recurring event.
            (_, "events") => before.to_owned(),
            _ => format!("{before}/{last}"),
        };
        let place = match side {
            Side::Inside => " inside",
            Side::Management if path.contains(&format!("/namespaces/{}/", self.scope.team)) => " of the team",
            Side::Management if path.contains(&format!("/namespaces/{}/", self.scope.machines())) => {
                " of machines"
            }
            Side::Management => "",
        };
        format!("{verb} {}{place}", without_hashes(&text.replace(&self.scope.uid, "UID")))
    }

    /// The same object with a name that nobody had before.
    fn draw_name(&self, body: &[u8]) -> Vec<u8> {
        let mut object: Value = serde_json::from_slice(body).unwrap();
        let mut state = self.state.lock().unwrap();
        state.drawn += 1;
        let known = object["metadata"]["name"].as_str().unwrap_or_default();
        object["metadata"]["name"] = format!("{known}-{}", state.drawn).into();
        serde_json::to_vec(&object).unwrap()
    }

    async fn die<T>(&self) -> T {
        self.dead.cancel();
        std::future::pending().await
    }
}

/// The collection that a watch is of.
#[derive(Clone)]
struct Watched(String);

/// The object that a write is about.
fn object_of(path: &str, method: &Method, body: &[u8]) -> String {
    let named = || {
        let object: Value = serde_json::from_slice(body).ok()?;
        Some(format!("{path}/{}", object["metadata"]["name"].as_str()?))
    };
    if *method == Method::POST { named() } else { None }.unwrap_or_else(|| path.to_owned())
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
