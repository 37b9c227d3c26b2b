//! A kubeconfig is what kubectl reads: checked by its text and by reading it back.
#![cfg(test)]

use base64::{Engine, prelude::BASE64_STANDARD};
use kaas_pki::{Issued, Kubeconfig, kubeconfig};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Config {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    current_context: String,
    clusters: Vec<Cluster>,
    contexts: Vec<Context>,
    users: Vec<User>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cluster {
    name: String,
    cluster: ClusterFields,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ClusterFields {
    server: String,
    certificate_authority_data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    name: String,
    context: ContextFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ContextFields {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    name: String,
    user: UserFields,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct UserFields {
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    token: Option<String>,
}

fn decode(data: &str) -> String {
    String::from_utf8(BASE64_STANDARD.decode(data).unwrap()).unwrap()
}

fn client() -> Issued {
    Issued { certificate_pem: "client certificate\n".into(), private_key_pem: "client key\n".into() }
}

#[test]
fn with_a_client_certificate() {
    let client = client();
    let config = Kubeconfig {
        name: "blue",
        server: "https://10.77.0.1:30443",
        certificate_authority_pem: "authority\n",
        client: Some(&client),
        token: None,
        namespace: Some("demo"),
    };
    insta::assert_snapshot!(kubeconfig(&config), @"
    apiVersion: v1
    clusters:
    - cluster:
        certificate-authority-data: YXV0aG9yaXR5Cg==
        server: https://10.77.0.1:30443
      name: blue
    contexts:
    - context:
        cluster: blue
        namespace: demo
        user: blue
      name: blue
    current-context: blue
    kind: Config
    users:
    - name: blue
      user:
        client-certificate-data: Y2xpZW50IGNlcnRpZmljYXRlCg==
        client-key-data: Y2xpZW50IGtleQo=
    ");
}

#[test]
fn any_text_comes_back_as_it_was() {
    let client = client();
    for text in
        ["plain", "yes", "1e3", "with: colon", "# hash", "\"quoted\" 'twice'", "null", "ü\n- line", "{}"]
    {
        let config = Kubeconfig {
            name: text,
            server: text,
            certificate_authority_pem: text,
            client: Some(&client),
            token: Some(text),
            namespace: Some(text),
        };
        let read: Config = serde_yaml::from_str(&kubeconfig(&config)).unwrap();
        assert_eq!((read.api_version.as_str(), read.kind.as_str()), ("v1", "Config"));
        assert_eq!(read.current_context, text);
        let (cluster, context, user) = (&read.clusters[0], &read.contexts[0], &read.users[0]);
        assert_eq!(
            [&cluster.name, &context.name, &user.name, &context.context.cluster, &context.context.user],
            [text; 5]
        );
        assert_eq!(cluster.cluster.server, text);
        assert_eq!(decode(&cluster.cluster.certificate_authority_data), text);
        assert_eq!(context.context.namespace.as_deref(), Some(text));
        assert_eq!(decode(user.user.client_certificate_data.as_ref().unwrap()), client.certificate_pem);
        assert_eq!(decode(user.user.client_key_data.as_ref().unwrap()), client.private_key_pem);
        assert_eq!(user.user.token.as_deref(), Some(text));
    }
}

#[test]
fn what_is_not_given_is_absent() {
    let config = Kubeconfig {
        name: "n",
        server: "s",
        certificate_authority_pem: "c",
        client: None,
        token: Some("t"),
        namespace: None,
    };
    let read: Config = serde_yaml::from_str(&kubeconfig(&config)).unwrap();
    assert!(
        read.users[0].user.client_certificate_data.is_none() && read.users[0].user.client_key_data.is_none()
    );
    assert!(read.contexts[0].context.namespace.is_none());
}

#[test]
fn debug_hides_credentials() {
    let client = client();
    let config = Kubeconfig {
        name: "n",
        server: "s",
        certificate_authority_pem: "c",
        client: Some(&client),
        token: Some("bearer-secret"),
        namespace: None,
    };
    let text = format!("{config:#?}");
    assert!(!text.contains("bearer-secret") && !text.contains("client key"), "{text}");
}
