//! Who calls APIs that the next version does not have: a process of its own beside an API server, which sends it audit
//! events of those APIs. Metrics tell that somebody called, events tell who.
//!
//! It keeps a bounded table in memory and nothing else. One port, TLS: whoever shows a certificate of the cluster's masters
//! may bring events and read the table, anybody may ask whether it is alive. Certificates that were renewed are read anew.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use self::table::{EventList, Table};

mod table;

/// Organization of those who may do everything: no authority of the cluster gives it to anybody who asks.
const MASTERS: &str = "system:masters";
/// One API server, one operator and a kubelet; more would be somebody else.
const CONNECTION_LIMIT: usize = 16;
/// A stranger has so long to ask whether it is alive.
const STRANGER_TIME: Duration = Duration::from_secs(10);
/// After an error that says that there is no room for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Certificates are read anew so often; they are renewed long before they end.
const RELOAD: Duration = Duration::from_secs(600);
/// Longest list of events: 400 at a time, each a few kilobytes.
const LONGEST: usize = 16 << 20;

/// Counts who calls APIs that go, from the audit events of one API server.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address and port.
    #[arg(long, env = "KAAS_CALLERS_LISTEN", default_value = "0.0.0.0:8448")]
    pub listen: SocketAddr,
    /// File with the certificate that is shown.
    #[arg(long, env = "KAAS_CALLERS_CERTIFICATE")]
    pub certificate: PathBuf,
    /// File with its key.
    #[arg(long, env = "KAAS_CALLERS_KEY")]
    pub key: PathBuf,
    /// File with the certificate of the authority that clients' certificates are of.
    #[arg(long, env = "KAAS_CALLERS_AUTHORITY")]
    pub authority: PathBuf,
    /// An API: group and version, and perhaps a resource, such as networking.k8s.io/v1beta1/ipaddresses; may be repeated.
    #[arg(long = "watch", env = "KAAS_CALLERS_WATCH", value_delimiter = ',', required = true)]
    pub watched: Vec<String>,
}

/// Why it does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The port cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A file cannot be read as what it should be.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// Certificate, key and authority make no server.
    #[error("certificate, key and authority do not go together: {0}")]
    Tls(String),
}

/// Runs until it is told to stop.
pub async fn run(args: Args, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|source| Error::Listen { address: args.listen, source })?;
    tokio::select! {
        result = serve(listener, args) => result,
        () = shutdown => Ok(()),
    }
}

type Shared = Arc<Mutex<Table>>;

async fn serve(listener: TcpListener, args: Args) -> Result<(), Error> {
    let table: Shared = Arc::new(Mutex::new(Table::new(args.watched.clone(), Timestamp::now())));
    let mut tls = TlsAcceptor::from(Arc::new(configuration(&args)?));
    let rooms = Arc::new(Semaphore::new(CONNECTION_LIMIT));
    let mut reload = interval(RELOAD);
    reload.tick().await;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = reload.tick() => {
                match configuration(&args) {
                    Ok(configuration) => tls = TlsAcceptor::from(Arc::new(configuration)),
                    Err(error) => tracing::warn!(%error, "goes on with the certificate that it has"),
                }
                continue;
            }
        };
        let Ok((stream, _)) = stream else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Whoever comes when all rooms are taken comes again.
        let Ok(room) = Arc::clone(&rooms).try_acquire_owned() else { continue };
        let (tls, table) = (tls.clone(), table.clone());
        tokio::spawn(async move {
            converse(stream, &tls, table).await;
            drop(room);
        });
    }
}

/// One connection.
async fn converse(stream: TcpStream, tls: &TlsAcceptor, table: Shared) {
    let Ok(Ok(stream)) = timeout(STRANGER_TIME, tls.accept(stream)).await else { return };
    let trusted = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).is_some_and(is_master);
    let answering = service_fn(move |request| answer(request, trusted, table.clone()));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), answering);
    // Whether the other side got its answer is its own business.
    if trusted {
        let _ = connection.await;
    } else {
        let _ = timeout(STRANGER_TIME, connection).await;
    }
}

/// The verifier has checked who signed it.
fn is_master(certificate: &CertificateDer<'_>) -> bool {
    kaas_pki::Certificate::from_der(certificate.to_vec())
        .is_ok_and(|certificate| certificate.organizations.iter().any(|name| name == MASTERS))
}

async fn answer(
    request: Request<Incoming>,
    trusted: bool,
    table: Shared,
) -> Result<Response<String>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let (code, body) = match (method, path.as_str()) {
        (Method::GET, "/healthz") => (StatusCode::OK, "ok\n".to_owned()),
        _ if !trusted => (StatusCode::FORBIDDEN, "show a certificate of the cluster's masters\n".to_owned()),
        (Method::GET, "/callers") => {
            let seen = locked(&table).seen(Timestamp::now());
            match serde_json::to_string(&seen) {
                Ok(text) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        (Method::POST, _) => note(request.into_body(), &table).await,
        _ => (StatusCode::NOT_FOUND, "there are /healthz and /callers\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = code;
    Ok(response)
}

async fn note(body: Incoming, table: &Shared) -> (StatusCode, String) {
    let Ok(body) = Limited::new(body, LONGEST).collect().await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, "too many events at once\n".to_owned());
    };
    match serde_json::from_slice::<EventList>(&body.to_bytes()) {
        Ok(events) => {
            let now = Timestamp::now();
            let mut table = locked(table);
            events.items.into_iter().for_each(|event| table.note(event, now));
            (StatusCode::OK, String::new())
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("no list of audit events: {error}\n")),
    }
}

fn locked(table: &Mutex<Table>) -> std::sync::MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is shown, and whom it trusts.
fn configuration(args: &Args) -> Result<ServerConfig, Error> {
    let read = |path: &Path| fs::read(path).map_err(|error| refused(path, pem::Error::Io(error)));
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, Error> {
        CertificateDer::pem_slice_iter(&read(path)?)
            .collect::<Result<_, _>>()
            .map_err(|source| refused(path, source))
    };
    let key =
        PrivateKeyDer::from_pem_slice(&read(&args.key)?).map_err(|source| refused(&args.key, source))?;
    let mut roots = RootCertStore::empty();
    for root in certificates(&args.authority)? {
        roots.add(root).map_err(|error| Error::Tls(error.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::Tls(error.to_string()))?;
    ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&args.certificate)?, key)
        .map_err(|error| Error::Tls(error.to_string()))
}

fn refused(path: &Path, source: pem::Error) -> Error {
    Error::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
