//! A connection that is kept: whoever asks ten thousand times pays for one handshake. It is HTTP/2, so that any number of
//! threads and tasks ask at once; one that broke is opened anew by the next request.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, TRANSFER_ENCODING, UPGRADE};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::probe::{Answer, Probe};

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;
pub(super) type Body = BoxBody<Bytes, Failure>;

/// What a request means that HTTP/2 says by itself, or not at all.
const OF_ONE_HOP: [hyper::header::HeaderName; 4] = [CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE];

/// A client of one server.
pub(super) struct Line {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    open: Mutex<Option<SendRequest<Body>>>,
}

impl Line {
    /// As the user of a probe.
    pub(super) fn new(probe: Probe) -> Self {
        let (address, config) = probe.into_parts();
        let mut config = ClientConfig::clone(&config);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { address, config: Arc::new(config), open: Mutex::new(None) }
    }

    /// One more of the same, which opens a connection of its own.
    pub(super) fn another(&self) -> Self {
        Self { address: self.address, config: Arc::clone(&self.config), open: Mutex::new(None) }
    }

    /// Passes a request on to where its path leads.
    pub(super) async fn pass(&self, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        let (mut head, body) = request.into_parts();
        for name in &OF_ONE_HOP {
            head.headers.remove(name);
        }
        let mut parts = std::mem::take(&mut head.uri).into_parts();
        parts.scheme = Some(Scheme::HTTPS);
        parts.authority = Some(Authority::try_from(self.address.to_string())?);
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        head.uri = Uri::from_parts(parts)?;
        let mut sender = self.sender().await?;
        sender.ready().await?;
        Ok(sender.send_request(Request::from_parts(head, body)).await?)
    }

    /// One request with a body of JSON, if there is one, and the whole answer.
    pub(super) async fn ask(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        let bytes = Bytes::from(body.map(Value::to_string).unwrap_or_default());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, content_type)
            .body(whole(bytes))?;
        let answer = self.pass(request).await?;
        let code = answer.status().as_u16();
        Ok(Answer { code, body: answer.into_body().collect().await?.to_bytes().to_vec() })
    }

    async fn sender(&self) -> Result<SendRequest<Body>, Failure> {
        let mut open = self.open.lock().await;
        if let Some(sender) = open.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(self.address.ip().into(), stream).await?;
        let (sender, connection) = Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await?;
        // It ends when nobody can ask any more, or with the server, which the next request finds out.
        tokio::spawn(connection);
        *open = Some(sender.clone());
        Ok(sender)
    }
}

/// A body that is there.
pub(super) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}
