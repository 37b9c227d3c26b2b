//! HTTPS with a client certificate, one request a connection: how the local cluster asks etcd and API servers
//! whether they serve, and how the bench talks to them without a library that retries or caches. The server's
//! certificate is verified against the given authority. Nothing is retried here.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::Error;
use crate::credentials::Credentials;
use crate::kubectl::at;

const CONNECT: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_secs(5);

/// A client for one server.
#[derive(Clone)]
pub(crate) struct Probe {
    config: Arc<ClientConfig>,
    address: SocketAddr,
}

/// What a server said.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Vec<u8>,
}

impl Probe {
    /// Reads the authority `ca` and the leaf `client` of the credentials.
    pub(crate) fn new(
        credentials: &Credentials,
        ca: &str,
        client: &str,
        address: SocketAddr,
    ) -> Result<Self, Error> {
        let read = |file: String| credentials.read(&file);
        Self::of_pem(
            &read(format!("{ca}.crt"))?,
            &read(format!("{client}.crt"))?,
            &read(format!("{client}.key"))?,
            address,
        )
    }

    /// As the user of a kubeconfig with inline credentials and a numeric address.
    pub(crate) fn of_kubeconfig(text: &str) -> Result<Self, Error> {
        let config: Value =
            serde_yaml::from_str(text).map_err(|error| Error::Invalid(format!("kubeconfig: {error}")))?;
        let pem = |pointer: &str| -> Result<String, Error> {
            let text = at(&config, pointer).as_str().unwrap_or_default();
            let bytes = BASE64_STANDARD.decode(text).unwrap_or_default();
            String::from_utf8(bytes)
                .ok()
                .filter(|text| !text.is_empty())
                .ok_or_else(|| Error::Invalid(format!("kubeconfig: {pointer} is not there")))
        };
        let server = at(&config, "/clusters/0/cluster/server").as_str().unwrap_or_default();
        let address = server.trim_start_matches("https://").parse().map_err(|_| {
            Error::Invalid(format!("kubeconfig: server `{server}` is not https, an address and a port"))
        })?;
        Self::of_pem(
            &pem("/clusters/0/cluster/certificate-authority-data")?,
            &pem("/users/0/user/client-certificate-data")?,
            &pem("/users/0/user/client-key-data")?,
            address,
        )
    }

    fn of_pem(ca: &str, certificate: &str, key: &str, address: SocketAddr) -> Result<Self, Error> {
        let fail =
            |error: &dyn std::fmt::Display| Error::Invalid(format!("TLS client of {address}: {error}"));
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|error| fail(&error))?;
        roots.add(root).map_err(|error| fail(&error))?;
        let leaf = CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(|error| fail(&error))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| fail(&error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| fail(&error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![leaf], key)
            .map_err(|error| fail(&error))?;
        Ok(Self { config: Arc::new(config), address })
    }

    /// Where it goes and how it proves who it is, for a client of another kind.
    pub(crate) fn into_parts(self) -> (SocketAddr, Arc<ClientConfig>) {
        (self.address, self.config)
    }

    /// The status code of a GET, or why there was no answer.
    pub(crate) fn get(&self, path: &str) -> Result<u16, String> {
        self.request("GET", path, None).map(|answer| answer.code)
    }

    /// Sends a request, with a JSON body if there is one.
    pub(crate) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, String> {
        self.send(method, path, "application/json", body)
    }

    /// The same with a body of another kind of JSON: a patch.
    pub(crate) fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        self.exchange(method, path, content_type, body).map_err(|error| error.to_string())
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> std::io::Result<Answer> {
        let socket = TcpStream::connect_timeout(&self.address, CONNECT)?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.set_write_timeout(Some(ANSWER))?;
        socket.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.address.ip().into());
        let connection =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(std::io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        let body = body.map(Value::to_string).unwrap_or_default();
        // HTTP/1.0: the answer is not cut into chunks and ends with the connection.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nAccept: application/json\r\n\
             Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        )?;
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            // A server may close without the TLS farewell; what was read is complete all the same.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        parse(&bytes).ok_or_else(|| std::io::Error::other("not an HTTP answer"))
    }
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let code = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { code, body: bytes.get(end + 4..)?.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_code_and_body() {
        let answer = parse(b"HTTP/1.0 404 Not Found\r\nA: b\r\n\r\n{}").unwrap();
        assert_eq!((answer.code, answer.body.as_slice()), (404, &b"{}"[..]));
        assert!(parse(b"SSH-2.0\r\n\r\n").is_none());
    }
}
