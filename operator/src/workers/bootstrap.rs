//! Bootstrap material: a short-lived token in the tenant, and a Secret in which the machine, or its user, reads it.
//!
//! The token is written first: a Secret whose token never came about would let a machine wait for ever. What is known of
//! it afterwards is what the Secret says; a Secret of another worker of the same name is none of ours.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kaas_crds::worker_pool::InfrastructureKind;
use kaas_crds::{TenantCluster, Worker, name};
use kaas_lifecycle::action::Precondition;
use kaas_lifecycle::desired::{Machine, Settings, early_network, kubelet_configuration};
use kaas_lifecycle::object::{Kind, Object, Reference};
use kaas_lifecycle::workers::machine::{self, Place};
use kaas_lifecycle::workers::observed::{Bootstrap, Fact};
use kaas_lifecycle::workers::worker::token_id;
use kaas_pki::{Certificate, Kubeconfig};
use kube::api::Api;
use serde_json::{Value, json};

use crate::cluster::{self, DEADLINE, within};
use crate::execute::Error;
use crate::tenant::Access;
use crate::workers::observe::Sight;

/// Letters of a token's secret part, and how many of them (kubernetes.io/docs: bootstrap tokens).
const LETTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const SECRET_LENGTH: usize = 16;
/// Below the largest multiple of 36 each letter is equally likely.
const FAIR: u8 = 252;

/// Where tokens live.
const TOKEN_NAMESPACE: &str = "kube-system";

/// What the Secret of a worker says.
pub(super) async fn observe(
    client: &kube::Client,
    worker: &Worker,
    place: &Place<'_>,
) -> Result<Fact<Bootstrap>, kube::Error> {
    let (namespace, secret) = home(worker, place);
    let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let found = within(DEADLINE, api.get_opt(&secret)).await?;
    Ok(found.and_then(|secret| facts(&secret, place.worker_uid)).map_or(Fact::Absent, Fact::Found))
}

fn facts(secret: &Secret, worker_uid: &str) -> Option<Bootstrap> {
    let metadata = &secret.metadata;
    let label = metadata.labels.as_ref()?.get(name::WORKER_UID_LABEL)?;
    let annotations = metadata.annotations.as_ref()?;
    if label != worker_uid {
        return None;
    }
    Some(Bootstrap {
        token_id: annotations.get(name::TOKEN_ANNOTATION)?.clone(),
        // One that nobody can read has ended: it is made anew.
        expires: annotations.get(name::TOKEN_EXPIRES_ANNOTATION)?.parse().unwrap_or(Timestamp::MIN),
        uid: metadata.uid.clone()?,
        resource_version: metadata.resource_version.clone()?,
    })
}

/// Namespace and name of the Secret.
fn home(worker: &Worker, place: &Place<'_>) -> (String, String) {
    match worker.spec.infrastructure.kind() {
        Some(InfrastructureKind::External) => (place.namespace.to_owned(), name::join_secret(place.worker)),
        Some(InfrastructureKind::Pod) | None => {
            (name::workers_namespace(place.cluster_uid), place.worker.to_owned())
        }
    }
}

/// The Secret with a token, as the tenant's API server knows it.
fn token_reference(token_id: &str) -> Reference {
    Reference::namespaced(Kind::Secret, TOKEN_NAMESPACE, format!("bootstrap-token-{token_id}"))
}

/// Makes a token, and writes it where it is read.
pub(super) async fn issue(
    client: &kube::Client,
    sight: &Sight,
    access: &Access,
    mirror: &str,
    token_id: &str,
    expires: Timestamp,
    precondition: &Precondition,
) -> Result<(), Error> {
    let Some(cluster) = &sight.cluster else { return Err(Error::NoClient) };
    let place = sight.place();
    let worker = &sight.observed.worker;
    let token = format!("{token_id}.{}", secret_part()?);
    let external = worker.spec.infrastructure.kind() == Some(InfrastructureKind::External);
    let inside = token_object(&token, expires, &place, external);
    force(&access.client, &inside).await?;

    let annotations = BTreeMap::from([
        (name::TOKEN_ANNOTATION, token_id.to_owned()),
        (name::TOKEN_EXPIRES_ANNOTATION, expires.to_string()),
    ]);
    let mut object = if external {
        join_secret(worker, &place, access, &token, &annotations)?
    } else {
        ensure_namespace(client, &place).await?;
        let mut object = machine::secret(&place, &annotations);
        let files = files(cluster, sight, access, mirror, Some(&token));
        put(&mut object, "data", encoded(&files));
        object
    };
    // A Secret that an earlier worker of this name left is taken over, whatever it holds.
    let precondition = match precondition {
        Precondition::Absent => {
            let left = cluster::get(client, &object.reference).await.map_err(read(&object.reference))?;
            left.map_or(Precondition::Absent, |left| Precondition::Version(left.resource_version))
        }
        known => known.clone(),
    };
    if let Some(uid) = worker.metadata.uid.as_deref().filter(|_| external) {
        let owner = json!([{
            "apiVersion": "kaas.dev/v1alpha1", "kind": "Worker", "name": place.worker, "uid": uid,
        }]);
        if let Some(metadata) = object.content.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("ownerReferences".into(), owner);
        }
    }
    cluster::apply(client, &object, &precondition)
        .await
        .map(drop)
        .map_err(|source| Error::Write { what: format!("write {}", object.reference), source })
}

/// Takes the token away, and what was said of it.
pub(super) async fn revoke(
    client: &kube::Client,
    sight: &Sight,
    access: &Access,
    mirror: &str,
) -> Result<(), Error> {
    let place = sight.place();
    withdraw(access, place.worker_uid).await?;
    let worker = &sight.observed.worker;
    let Some(known) = sight.observed.bootstrap.found() else { return Ok(()) };
    let (namespace, secret) = home(worker, &place);
    let reference = Reference::namespaced(Kind::Secret, namespace, secret);
    let failed = |source| Error::Write { what: format!("take the token out of {reference}"), source };
    if worker.spec.infrastructure.kind() == Some(InfrastructureKind::External) {
        return cluster::delete(client, &reference, &known.uid, None).await.map_err(failed);
    }
    let Some(cluster) = &sight.cluster else { return Ok(()) };
    // The machine reads the rest again when its container is started anew.
    let mut object = machine::secret(&place, &BTreeMap::new());
    put(&mut object, "data", encoded(&files(cluster, sight, access, mirror, None)));
    let precondition = Precondition::Version(known.resource_version.clone());
    cluster::apply(client, &object, &precondition).await.map(drop).map_err(failed)
}

/// Takes away the token of a worker, also one that no Secret tells of: its making was cut off.
pub(super) async fn withdraw(access: &Access, worker_uid: &str) -> Result<(), Error> {
    let token = token_reference(&token_id(worker_uid));
    let Some(live) = cluster::get(&access.client, &token).await.map_err(read(&token))? else {
        return Ok(());
    };
    let labels = live.get("/metadata/labels");
    let holder = labels.and_then(|labels| labels.get(name::WORKER_UID_LABEL)?.as_str());
    if holder != Some(worker_uid) {
        return Ok(());
    }
    // What is left of a token works, and nobody would know of it any more.
    cluster::delete_surely(&access.client, &token, &live.uid, None)
        .await
        .map_err(|source| Error::Write { what: format!("delete {token} inside the tenant"), source })
}

/// Files of a machine that is a pod.
fn files(
    cluster: &TenantCluster,
    sight: &Sight,
    access: &Access,
    mirror: &str,
    token: Option<&str>,
) -> BTreeMap<&'static str, String> {
    let pool = sight.observed.pool.found();
    let settings = Settings {
        machine: Machine::Pod,
        kubelet: &sight.observed.worker.spec.kubelet,
        taints: pool.map_or(&[], |pool| &pool.spec.template.taints),
    };
    let kubeconfig = kaas_pki::kubeconfig(&Kubeconfig {
        name: &sight.observed.worker.spec.cluster_name,
        server: &access.server,
        certificate_authority_pem: &access.authority,
        client: None,
        token,
        namespace: None,
    });
    let mut files = BTreeMap::from([
        ("bootstrap-kubeconfig", kubeconfig),
        ("ca.crt", access.authority.clone()),
        ("kubelet.yaml", kubelet_configuration(&cluster.spec.network, &settings)),
    ]);
    files.extend(early_network(&cluster.spec.addons).map(|network| ("network.conflist", network)));
    if !mirror.is_empty() {
        files.insert("hosts.toml", format!("server = \"{mirror}\"\n"));
    }
    files
}

/// The Secret from which a user joins his machine.
fn join_secret(
    worker: &Worker,
    place: &Place<'_>,
    access: &Access,
    token: &str,
    annotations: &BTreeMap<&str, String>,
) -> Result<Object, Error> {
    let reference = Reference::namespaced(Kind::Secret, place.namespace, name::join_secret(place.worker));
    let authority = Certificate::parse(&access.authority)
        .map_err(|source| Error::KeyMaterial { what: reference.to_string(), source })?;
    let command = format!(
        "kubeadm join {} --token {token} --discovery-token-ca-cert-hash sha256:{} --node-name {}",
        access.server.trim_start_matches("https://"),
        authority.public_key_hash(),
        place.worker
    );
    let labels = json!({
        name::MANAGED_BY_LABEL: name::MANAGED_BY,
        name::CLUSTER_LABEL: worker.spec.cluster_name,
        name::POOL_LABEL: worker.spec.pool_name,
        name::WORKER_UID_LABEL: place.worker_uid,
    });
    let data = encoded(&BTreeMap::from([("command", command)]));
    Ok(Object::new(
        reference,
        json!({"metadata": {"labels": labels, "annotations": annotations}, "type": "Opaque", "data": data}),
    ))
}

/// The token as API servers know it. Signed cluster information is for `kubeadm join` alone.
fn token_object(token: &str, expires: Timestamp, place: &Place<'_>, signs: bool) -> Object {
    let (id, secret) = token.split_once('.').unwrap_or((token, ""));
    let entries = BTreeMap::from([
        ("token-id", id.to_owned()),
        ("token-secret", secret.to_owned()),
        ("expiration", expires.to_string()),
        ("usage-bootstrap-authentication", "true".to_owned()),
        ("usage-bootstrap-signing", signs.to_string()),
        ("auth-extra-groups", name::BOOTSTRAP_GROUP.to_owned()),
        ("description", format!("Worker {}/{}", place.namespace, place.worker)),
    ]);
    Object::new(
        token_reference(id),
        json!({
            "metadata": {"labels": {
                name::MANAGED_BY_LABEL: name::MANAGED_BY, name::WORKER_UID_LABEL: place.worker_uid,
            }},
            "type": "bootstrap.kubernetes.io/token",
            "data": encoded(&entries),
        }),
    )
}

/// When the token of a worker ends; `None` when there is none, or it is of another worker.
pub(super) async fn token_expires(
    access: &Access,
    token_id: &str,
    worker_uid: &str,
) -> Result<Option<Timestamp>, kube::Error> {
    let api: Api<Secret> = Api::namespaced(access.client.clone(), TOKEN_NAMESPACE);
    let found = within(DEADLINE, api.get_opt(&token_reference(token_id).name)).await?;
    Ok(found
        .filter(|secret| {
            let labels = secret.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get(name::WORKER_UID_LABEL)).map(String::as_str)
                == Some(worker_uid)
        })
        .and_then(|secret| String::from_utf8(secret.data?.remove("expiration")?.0).ok()?.parse().ok()))
}

/// The namespace of the cluster's machines, with the policy around them.
async fn ensure_namespace(client: &kube::Client, place: &Place<'_>) -> Result<(), Error> {
    for object in machine::namespace(place.cluster_uid, place.namespace, place.cluster) {
        let found = cluster::get(client, &object.reference).await.map_err(read(&object.reference))?;
        if found.is_some() {
            continue;
        }
        match cluster::apply(client, &object, &Precondition::Absent).await {
            Ok(_) => {}
            // Another worker of the cluster was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(source) => return Err(Error::Write { what: format!("write {}", object.reference), source }),
        }
    }
    Ok(())
}

/// Applies what only we write inside a tenant, whatever is there.
async fn force(client: &kube::Client, object: &Object) -> Result<(), Error> {
    let failed =
        |source| Error::Write { what: format!("write {} inside the tenant", object.reference), source };
    let found = cluster::get(client, &object.reference).await.map_err(failed)?;
    let precondition =
        found.map_or(Precondition::Absent, |live| Precondition::Version(live.resource_version));
    cluster::apply(client, object, &precondition).await.map(drop).map_err(failed)
}

fn read(reference: &Reference) -> impl FnOnce(kube::Error) -> Error {
    let what = format!("read {reference}");
    move |source| Error::Write { what, source }
}

fn encoded(entries: &BTreeMap<&'static str, String>) -> Value {
    entries.iter().map(|(key, text)| ((*key).to_owned(), Value::from(STANDARD.encode(text)))).collect()
}

fn put(object: &mut Object, key: &str, value: Value) {
    if let Some(document) = object.content.as_object_mut() {
        document.insert(key.to_owned(), value);
    }
}

/// Random letters.
fn secret_part() -> Result<String, Error> {
    let mut letters = String::with_capacity(SECRET_LENGTH);
    while letters.len() < SECRET_LENGTH {
        let mut random = [0_u8; 2 * SECRET_LENGTH];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| Error::NoRandomness)?;
        let fair = random.into_iter().filter(|byte| *byte < FAIR);
        let drawn = fair.filter_map(|byte| LETTERS.get(usize::from(byte) % LETTERS.len()));
        letters.extend(drawn.map(|letter| char::from(*letter)).take(SECRET_LENGTH - letters.len()));
    }
    Ok(letters)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place<'static> =
        Place { cluster_uid: "c", namespace: "team", cluster: "blue", worker: "p-0", worker_uid: "w" };

    #[test]
    fn a_token_is_as_api_servers_want_it() {
        let secret = secret_part().unwrap();
        assert_eq!(secret.len(), 16);
        assert!(secret.bytes().all(|letter| LETTERS.contains(&letter)));
        assert_ne!(secret, secret_part().unwrap());
        let expires: Timestamp = "2026-06-01T01:00:00Z".parse().unwrap();
        let object = token_object(&format!("abcdef.{secret}"), expires, &PLACE, false);
        assert_eq!(object.reference.to_string(), "Secret kube-system/bootstrap-token-abcdef");
        let entry = |key: &str| {
            let text = object.content["data"][key].as_str().unwrap();
            String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
        };
        assert_eq!(entry("auth-extra-groups"), "system:bootstrappers:kaas");
        assert_eq!(entry("expiration"), "2026-06-01T01:00:00Z");
        assert_eq!(entry("usage-bootstrap-signing"), "false");
        assert_eq!(entry("token-secret"), secret);
    }

    #[test]
    fn only_the_secret_of_this_worker_says_anything() {
        let secret = |uid: &str, annotations: Value| -> Secret {
            serde_json::from_value(json!({"metadata": {
                "uid": "s", "resourceVersion": "7", "annotations": annotations, "labels": {name::WORKER_UID_LABEL: uid},
            }}))
            .unwrap()
        };
        let whole =
            json!({name::TOKEN_ANNOTATION: "abcdef", name::TOKEN_EXPIRES_ANNOTATION: "2026-06-01T01:00:00Z"});
        assert_eq!(facts(&secret("w", whole.clone()), "w").unwrap().token_id, "abcdef");
        assert_eq!(facts(&secret("v", whole), "w"), None);
        assert_eq!(facts(&secret("w", json!({})), "w"), None);
        let broken = json!({name::TOKEN_ANNOTATION: "abcdef", name::TOKEN_EXPIRES_ANNOTATION: "soon"});
        assert_eq!(facts(&secret("w", broken), "w").unwrap().expires, Timestamp::MIN);
    }
}
