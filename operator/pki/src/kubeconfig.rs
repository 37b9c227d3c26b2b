//! A kubeconfig with one cluster, one user and one context, all of one name. Decides the text alone; whether the
//! credentials fit the server is up to the caller.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{Issued, key::REDACTED};

/// What a kubeconfig says.
#[derive(Clone, Copy)]
pub struct Kubeconfig<'a> {
    /// Name of the cluster, the user and the context.
    pub name: &'a str,
    /// URL of the API server.
    pub server: &'a str,
    /// The authority, or authorities, that the server's certificate is checked against, in PEM.
    pub certificate_authority_pem: &'a str,
    /// Client certificate and key.
    pub client: Option<&'a Issued>,
    /// Bearer token.
    pub token: Option<&'a str>,
    /// Namespace used where none is given.
    pub namespace: Option<&'a str>,
}

impl fmt::Debug for Kubeconfig<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubeconfig")
            .field("name", &self.name)
            .field("server", &self.server)
            .field("certificate_authority_pem", &self.certificate_authority_pem)
            .field("client", &self.client)
            .field("token", &self.token.map(|_| REDACTED))
            .field("namespace", &self.namespace)
            .finish()
    }
}

/// The kubeconfig as YAML, with every certificate and key inline.
#[must_use]
pub fn kubeconfig(config: &Kubeconfig<'_>) -> String {
    let mut user = serde_json::Map::new();
    if let Some(client) = config.client {
        user.insert("client-certificate-data".to_owned(), data(&client.certificate_pem));
        user.insert("client-key-data".to_owned(), data(&client.private_key_pem));
    }
    if let Some(token) = config.token {
        user.insert("token".to_owned(), token.into());
    }
    let mut context = serde_json::Map::new();
    context.insert("cluster".to_owned(), config.name.into());
    if let Some(namespace) = config.namespace {
        context.insert("namespace".to_owned(), namespace.into());
    }
    context.insert("user".to_owned(), config.name.into());
    let document = json!({
        "apiVersion": "v1",
        "clusters": [{
            "cluster": {
                "certificate-authority-data": data(config.certificate_authority_pem),
                "server": config.server,
            },
            "name": config.name,
        }],
        "contexts": [{ "context": context, "name": config.name }],
        "current-context": config.name,
        "kind": "Config",
        "users": [{ "name": config.name, "user": user }],
    });
    // JSON is YAML too: the same document, less pleasant to read.
    serde_yaml::to_string(&document).unwrap_or_else(|_| document.to_string())
}

fn data(pem: &str) -> Value {
    BASE64_STANDARD.encode(pem).into()
}
