//! The probe of one tenant's API: the evidence behind Ready. It goes through the endpoint that status names, and asks for
//! something that etcd must answer.
//!
//! Each probe is a new client: when proxies and balancers turn new clients away, those that are connected notice nothing.
//! One process probes a thousand tenants, so it is one task that connects, asks and goes: no pool, no queue, and nothing
//! in memory between two probes but credentials.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use http::header::{ACCEPT, HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::core::Status;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tracing::debug;

use crate::class::classify;
use crate::cluster::within;
use crate::metrics::Metrics;

/// A healthy API server answers in milliseconds. Two tries in a row outlast the restart of an only etcd member, during
/// which requests wait and then succeed; together with the pause between probes they are well below half a minute.
const DEADLINE: Duration = Duration::from_secs(5);
/// A connection either comes about at once or not at all.
pub(super) const CONNECT: Duration = Duration::from_secs(2);
/// No answer is longer.
const LONGEST: usize = 64 << 10;

/// What a probe reads: one object is answered by etcd, not from a cache.
const NAMESPACE: &str = "/api/v1/namespaces/default";
const VERSION: &str = "/version";

const AGENT: HeaderValue = HeaderValue::from_static(concat!("kaas-operator/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Where a tenant's API is, and who asks.
pub(super) struct Target {
    host: String,
    port: u16,
    authority: HeaderValue,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

impl Target {
    /// `None` when the URL leads nowhere.
    pub(super) fn new(url: &Uri, mut tls: ClientConfig) -> Option<Self> {
        // A session to go on with would be kept in memory for each tenant, and would spare the server its proof.
        tls.resumption = Resumption::disabled();
        let host = url.host()?.trim_matches(['[', ']']).to_owned();
        Some(Target {
            port: url.port_u16().unwrap_or(443),
            authority: HeaderValue::from_str(url.authority()?.as_str()).ok()?,
            name: ServerName::try_from(host.clone()).ok()?,
            tls: Arc::new(tls),
            host,
        })
    }

    /// One probe: the version of who answered, or why nobody did, in a sentence.
    pub(super) async fn probe(&self, metrics: &Metrics) -> Result<String, String> {
        let begin = Instant::now();
        match within(DEADLINE, self.ask()).await {
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

    async fn ask(&self) -> Result<String, kube::Error> {
        let late = || {
            io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {} s", CONNECT.as_secs()))
        };
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(self.tls.clone()).connect(self.name.clone(), stream).await
        };
        let stream =
            timeout(CONNECT, connecting).await.unwrap_or_else(|_| Err(late())).map_err(unreachable)?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
        let asking = async {
            let version: Info = self.get(&mut sender, VERSION).await?;
            let _: Namespace = self.get(&mut sender, NAMESPACE).await?;
            Ok(version.git_version)
        };
        // The connection moves in the same task. When it ends first, whoever asks is told.
        match select(pin!(asking), pin!(connection)).await {
            Either::Left((answer, _)) => answer,
            Either::Right((_, asking)) => asking.await,
        }
    }

    async fn get<T: DeserializeOwned>(
        &self,
        sender: &mut SendRequest<Empty<Bytes>>,
        path: &'static str,
    ) -> Result<T, kube::Error> {
        let request = Request::get(path)
            .header(HOST, &self.authority)
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, JSON)
            .body(Empty::new())
            .map_err(kube::Error::HttpError)?;
        let answer = sender.send_request(request).await.map_err(unreachable)?;
        let code = answer.status();
        let body = Limited::new(answer.into_body(), LONGEST).collect().await.map_err(kube::Error::Service)?;
        let body = body.to_bytes();
        if code != StatusCode::OK {
            // A proxy answers in its own form.
            let status: Status = serde_json::from_slice(&body).unwrap_or_default();
            return Err(kube::Error::Api(Box::new(status.with_code(code.as_u16()))));
        }
        serde_json::from_slice(&body).map_err(kube::Error::SerdeError)
    }
}

fn unreachable(error: impl std::error::Error + Send + Sync + 'static) -> kube::Error {
    kube::Error::Service(Box::new(error))
}

/// One stable sentence an error: what changes from try to try must not change status.
fn sentence(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => {
            format!("the API server answered {} {}", status.code, status.reason).trim_end().to_owned()
        }
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
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hyper::Response;
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use rustls::{RootCertStore, ServerConfig};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// An API server as far as a probe sees it: the code and the body that it answers with, and connections so far.
    struct Server {
        answer: Arc<Mutex<(u16, &'static str)>>,
        connections: Arc<AtomicUsize>,
        target: Target,
    }

    const OBJECT: &str = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}"#;

    impl Server {
        async fn start() -> Self {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
            let config = ServerConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![own.cert.der().clone()], key)
                .unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(own.cert.der().clone()).unwrap();
            let client = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
            let (answer, connections) = (Arc::new(Mutex::new((200, OBJECT))), Arc::new(AtomicUsize::new(0)));
            let serving =
                serve(listener, TlsAcceptor::from(Arc::new(config)), answer.clone(), connections.clone());
            tokio::spawn(serving);
            Server { answer, connections, target: Target::new(&url, client).unwrap() }
        }

        async fn probe(&self) -> Result<String, String> {
            self.target.probe(&Metrics::new()).await
        }
    }

    async fn serve(
        listener: TcpListener,
        tls: TlsAcceptor,
        answer: Arc<Mutex<(u16, &'static str)>>,
        connections: Arc<AtomicUsize>,
    ) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Ordering::SeqCst);
            let Ok(stream) = tls.accept(stream).await else { continue };
            let answer = answer.clone();
            let respond = service_fn(move |request: Request<Incoming>| {
                let (code, body) = match request.uri().path() {
                    VERSION => (
                        200,
                        r#"{"major": "1", "minor": "37", "gitVersion": "v1.37.1", "gitCommit": "",
                        "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}"#,
                    ),
                    _ => *answer.lock().unwrap(),
                };
                async move { Ok::<_, Infallible>(Response::builder().status(code).body(body.to_owned()).unwrap()) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), respond));
        }
    }

    #[tokio::test]
    async fn every_probe_is_a_new_client() {
        let server = Server::start().await;
        for count in 1..4 {
            assert_eq!(server.probe().await.unwrap(), "v1.37.1");
            assert_eq!(server.connections.load(Ordering::SeqCst), count);
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_of_an_api_server_is_a_failure_in_a_stable_sentence() {
        let server = Server::start().await;
        let failure = async |code, body| {
            *server.answer.lock().unwrap() = (code, body);
            server.probe().await.unwrap_err()
        };
        let status = r#"{"kind": "Status", "reason": "InternalError", "message": "etcd: 0x1", "code": 500}"#;
        assert_eq!(failure(500, status).await, "the API server answered 500 InternalError");
        assert_eq!(failure(503, "<html>later</html>").await, "the API server answered 503");
        let junk = failure(200, "<html>hello</html>").await;
        assert_eq!(junk, failure(200, "<html>hello</html>").await);
    }

    #[tokio::test]
    async fn nobody_there_is_a_failure_too() {
        let mut server = Server::start().await;
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        server.target.port = gone.local_addr().unwrap().port();
        drop(gone);
        assert!(server.probe().await.unwrap_err().contains("refused"));
        // One who has not the authority's certificate is no one.
        let stranger = Server::start().await;
        server.target.port = stranger.target.port;
        let failure = server.probe().await.unwrap_err();
        assert!(failure.contains("certificate"), "{failure}");
    }
}
