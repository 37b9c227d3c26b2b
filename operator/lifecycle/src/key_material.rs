//! Which Secrets with key material a tenant has, what is in them, and when they are made anew.
//!
//! Authorities are made once in a tenant's life and never again unasked: with another authority every client and
//! every member would be a stranger. Leaves are made anew as soon as what they should say differs from what they
//! say, and long before they end. Everything that mounts them reloads them, so that nothing restarts.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use jiff::{SignedDuration, Timestamp};
use kaas_crds::name::{self, component};
use kaas_crds::tenant_cluster::EndpointType;
use serde_json::{Map, Value, json};

use crate::action::{Action, Authority, CertificateRequest, Issue, Material, Precondition, Usage};
use crate::desired;
use crate::difference::digest;
use crate::endpoint::{self, PORT};
use crate::etcd;
use crate::object::{Kind, Object, Reference};
use crate::observed::{Certificate, Observed, Secret};

/// Secret with the authorities and the service account key.
pub const AUTHORITY_SECRET: &str = "authority";
/// Secret with the operator's own client certificates for the tenant's API and etcd.
pub const OPERATOR_SECRET: &str = "operator";
/// Directory where pods find their key material.
pub const DIRECTORY: &str = "/etc/kubernetes/pki";

/// What must be made now, the authorities first.
pub fn due(observed: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    if !observed.secrets.contains_key(AUTHORITY_SECRET) {
        if authority_lost(observed) {
            return actions;
        }
        actions.push(issue(observed, AUTHORITY_SECRET, None, Material::Authorities, "first time".into()));
    }
    for (secret, certificates, files) in leaves(observed) {
        let live = observed.secrets.get(secret);
        if let Some(why) = reason_to_issue(observed.now, live, &certificates, &files) {
            actions.push(issue(observed, secret, live, Material::Leaves { certificates, files }, why));
        }
    }
    actions
}

/// Whether the authorities are gone although something was made with them: nothing can be repaired from here. Who
/// deletes all Secrets leaves no other Secret, but pods that run with them, and the kubeconfig that names them.
pub fn authority_lost(observed: &Observed) -> bool {
    let workload = |reference: &Reference| matches!(reference.kind, Kind::StatefulSet | Kind::Deployment);
    let made = !observed.secrets.is_empty()
        || (observed.kubeconfig.is_some() && !kubeconfig_foreign(observed))
        || observed.objects.keys().any(workload)
        || !observed.pods.is_empty();
    made && !observed.secrets.contains_key(AUTHORITY_SECRET)
}

/// The admin kubeconfig beside the TenantCluster, if it must be made now. A Secret of somebody else stays untouched.
pub fn due_kubeconfig(observed: &Observed) -> Option<Action> {
    let server = endpoint::endpoint(observed)?.url();
    let certificate = CertificateRequest {
        name: "kubeconfig".into(),
        authority: Authority::Cluster,
        common_name: "kaas:cluster-admin".into(),
        organizations: vec![name::ADMIN_GROUP.into()],
        dns_names: vec![],
        ip_addresses: vec![],
        usage: Usage::Client,
    };
    let live = observed.kubeconfig.as_ref();
    if kubeconfig_foreign(observed) {
        return None;
    }
    let why = match live.map(|live| &live.kubeconfig_server) {
        Some(Some(named)) if *named != server => format!("names {named}, the endpoint is {server}"),
        _ => reason_to_issue(observed.now, live, std::slice::from_ref(&certificate), &[])?,
    };
    let tenant = &observed.tenant;
    let reference =
        Reference::namespaced(Kind::Secret, &tenant.namespace, name::kubeconfig_secret(&tenant.name));
    let frame = Object::new(
        reference.clone(),
        json!({
            "metadata": {
                "labels": {name::MANAGED_BY_LABEL: name::MANAGED_BY},
                "ownerReferences": [{
                    "apiVersion": "kaas.dev/v1alpha1", "kind": "TenantCluster", "name": tenant.name, "uid": tenant.uid,
                    "controller": true, "blockOwnerDeletion": false,
                }],
            },
            "type": "Opaque",
        }),
    );
    Some(Action::Issue(Box::new(Issue {
        reference,
        frame,
        precondition: precondition(live),
        material: Material::Kubeconfig { certificate, server, name: tenant.name.clone() },
        why,
    })))
}

/// Whether the kubeconfig Secret's name is taken by a Secret that is not of this TenantCluster.
pub fn kubeconfig_foreign(observed: &Observed) -> bool {
    observed
        .kubeconfig
        .as_ref()
        .is_some_and(|secret| secret.owner_uid.as_deref() != Some(observed.tenant.uid.as_str()))
}

/// When the next certificate is due, and the first end of any certificate.
pub fn horizon(observed: &Observed) -> Option<(Timestamp, Timestamp)> {
    let all =
        observed.secrets.values().chain(&observed.kubeconfig).flat_map(|secret| secret.certificates.values());
    let (mut due, mut end) = (None::<Timestamp>, None::<Timestamp>);
    for certificate in all {
        let renew = renewal(certificate);
        due = Some(due.map_or(renew, |due| due.min(renew)));
        end = Some(end.map_or(certificate.not_after, |end| end.min(certificate.not_after)));
    }
    due.zip(end)
}

/// Certificates are valid from so long before they are made, for clocks that are behind.
pub const BACKDATED: SignedDuration = SignedDuration::from_mins(5);

/// Leaves are renewed after two thirds of their life, counted from when they were made: a third remains to notice that
/// it does not work.
fn renewal(certificate: &Certificate) -> Timestamp {
    let made = certificate.not_before.checked_add(BACKDATED).unwrap_or(certificate.not_before);
    let life = certificate.not_after.duration_since(made);
    made.checked_add(life.checked_mul(2).unwrap_or(life) / 3).unwrap_or(certificate.not_after)
}

/// A Secret of leaves: its name, its certificates and its further files.
type Leaves = (&'static str, Vec<CertificateRequest>, Vec<(String, String)>);

/// Each Secret of leaves.
fn leaves(observed: &Observed) -> Vec<Leaves> {
    let namespace = observed.tenant.control_plane_namespace();
    let mut secrets = vec![
        (component::ETCD, etcd_certificates(&namespace), vec![]),
        (
            component::KUBE_CONTROLLERS,
            vec![
                client("controller-manager", Authority::Cluster, "system:kube-controller-manager", None),
                client("scheduler", Authority::Cluster, "system:kube-scheduler", None),
            ],
            ["controller-manager", "scheduler"]
                .map(|user| (format!("{user}.kubeconfig"), kubeconfig_of_files(&namespace, user)))
                .to_vec(),
        ),
        (
            OPERATOR_SECRET,
            vec![
                // The operator makes the tenant's RBAC, so that it cannot depend on it.
                client("api", Authority::Cluster, "kaas-operator", Some("system:masters")),
                client("etcd", Authority::Etcd, "kaas-operator", None),
            ],
            vec![],
        ),
    ];
    // A ClusterIP is known once the Service exists, a moment later; without it the certificate would be made twice.
    // A load balancer may take minutes: the certificate is made now and follows.
    let kind = observed.cluster.spec.control_plane.endpoint.kind;
    let host = endpoint::host(observed);
    if host.is_some() || kind == EndpointType::LoadBalancer {
        let release = observed.catalogue.get(&observed.cluster.spec.version);
        // One that was made is renewed whatever becomes of the catalogue.
        if release.is_some_and(|release| release.addons.is_some())
            || observed.secrets.contains_key(component::KONNECTIVITY_SERVER)
        {
            secrets.push((
                component::KONNECTIVITY_SERVER,
                tunnel_certificates(host.as_deref()),
                vec![(
                    format!("{}.kubeconfig", desired::CLIENT),
                    kubeconfig_of_files(&namespace, desired::CLIENT),
                )],
            ));
        }
        secrets.push((component::KUBE_APISERVER, apiserver_certificates(observed, &namespace, host), vec![]));
    }
    secrets
}

fn etcd_certificates(namespace: &str) -> Vec<CertificateRequest> {
    let service = format!("etcd.{namespace}.svc");
    // All that there can be, so that growing needs no new certificates.
    let members = (0..etcd::MOST).map(|index| format!("etcd-{index}.{service}"));
    let alone = etcd::LONE_PLACES.map(|index| desired::etcd_lone_host(namespace, index));
    let others = [service.clone()].into_iter().chain(alone).chain(["localhost".into()]);
    let dns_names: Vec<String> = members.chain(others).collect();
    ["server", "peer"]
        .map(|name| CertificateRequest {
            name: name.into(),
            authority: Authority::Etcd,
            common_name: "etcd".into(),
            organizations: vec![],
            dns_names: dns_names.clone(),
            ip_addresses: vec![Ipv4Addr::LOCALHOST.into()],
            // A member is also a client: of its peers, and of itself for its JSON gateway.
            usage: Usage::Both,
        })
        .to_vec()
}

fn apiserver_certificates(
    observed: &Observed,
    namespace: &str,
    host: Option<String>,
) -> Vec<CertificateRequest> {
    let network = &observed.cluster.spec.network;
    let mut dns_names = vec![
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{}", network.domain),
        "kube-apiserver".to_owned(),
        format!("kube-apiserver.{namespace}"),
        format!("kube-apiserver.{namespace}.svc"),
        "localhost".to_owned(),
    ];
    let mut ip_addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
    // The tenant's own `kubernetes` Service has the first address of the range.
    ip_addresses.extend(
        network.service_cidr.parse::<Ipv4Net>().ok().and_then(|net| net.hosts().next()).map(IpAddr::V4),
    );
    match host.map(|host| host.parse::<IpAddr>().map_err(|_| host)) {
        Some(Ok(address)) => ip_addresses.push(address),
        Some(Err(host)) => dns_names.push(host),
        None => {}
    }
    vec![
        CertificateRequest {
            name: "tls".into(),
            authority: Authority::Cluster,
            common_name: "kube-apiserver".into(),
            organizations: vec![],
            dns_names,
            ip_addresses,
            usage: Usage::Server,
        },
        client("kubelet-client", Authority::Cluster, "kube-apiserver-kubelet-client", Some("system:masters")),
        client("etcd-client", Authority::Etcd, "kube-apiserver", None),
        client("front-proxy-client", Authority::FrontProxy, "front-proxy-client", None),
    ]
}

/// The tunnel's server reads its certificate when it starts, so that it has a name that never changes, which agents give
/// to whatever address the endpoint has. An endpoint that is a name they can call by nothing else.
fn tunnel_certificates(host: Option<&str>) -> Vec<CertificateRequest> {
    let mut dns_names = vec![desired::SERVER_NAME.to_owned()];
    dns_names.extend(host.filter(|host| host.parse::<IpAddr>().is_err()).map(str::to_owned));
    let server = CertificateRequest {
        name: desired::SERVER.into(),
        authority: Authority::Cluster,
        common_name: desired::SERVER_NAME.into(),
        organizations: vec![],
        dns_names,
        ip_addresses: vec![],
        usage: Usage::Server,
    };
    vec![server, client(desired::CLIENT, Authority::Cluster, desired::SERVER_USER, None)]
}

fn client(
    name: &str,
    authority: Authority,
    common_name: &str,
    organization: Option<&str>,
) -> CertificateRequest {
    CertificateRequest {
        name: name.into(),
        authority,
        common_name: common_name.into(),
        organizations: organization.into_iter().map(str::to_owned).collect(),
        dns_names: vec![],
        ip_addresses: vec![],
        usage: Usage::Client,
    }
}

/// A kubeconfig that names files: client-go reads them again when they change, so that renewal restarts nothing.
fn kubeconfig_of_files(namespace: &str, user: &str) -> String {
    let document = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tenant", "cluster": {
            "server": format!("https://kube-apiserver.{namespace}.svc:{PORT}"),
            "certificate-authority": format!("{DIRECTORY}/cluster-ca.crt"),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate": format!("{DIRECTORY}/{user}.crt"),
            "client-key": format!("{DIRECTORY}/{user}.key"),
        }}],
        "contexts": [{"name": "tenant", "context": {"cluster": "tenant", "user": user}}],
        "current-context": "tenant",
    });
    // JSON is YAML.
    document.to_string()
}

fn issue(
    observed: &Observed,
    secret: &str,
    live: Option<&Secret>,
    material: Material,
    why: String,
) -> Action {
    let reference = Reference::namespaced(Kind::Secret, observed.tenant.control_plane_namespace(), secret);
    let mut annotations = Map::new();
    if let Material::Leaves { files, .. } = &material
        && !files.is_empty()
    {
        annotations.insert(name::APPLIED_HASH_ANNOTATION.into(), digest(&json!(files)).into());
    }
    // The tunnel's server reads its certificate once: nothing but a roll brings it a new one.
    if secret == component::KONNECTIVITY_SERVER && live.is_some() {
        annotations.insert(name::RENEWED_ANNOTATION.into(), observed.now.to_string().into());
    }
    let mut frame = json!({"metadata": {"labels": observed.tenant.labels(secret)}, "type": "Opaque"});
    if let Some(metadata) = frame.pointer_mut("/metadata").and_then(Value::as_object_mut)
        && !annotations.is_empty()
    {
        metadata.insert("annotations".into(), annotations.into());
    }
    let frame = Object::new(reference.clone(), frame);
    Action::Issue(Box::new(Issue { reference, frame, precondition: precondition(live), material, why }))
}

fn precondition(live: Option<&Secret>) -> Precondition {
    live.map_or(Precondition::Absent, |live| Precondition::Version(live.resource_version.clone()))
}

/// Why a Secret must be made, or `None` if it is right.
fn reason_to_issue(
    now: Timestamp,
    live: Option<&Secret>,
    certificates: &[CertificateRequest],
    files: &[(String, String)],
) -> Option<String> {
    let Some(live) = live else { return Some("first time".into()) };
    for wanted in certificates {
        let Some(found) = live.certificates.get(&wanted.name) else {
            return Some(format!("certificate {} is missing or cannot be read", wanted.name));
        };
        if !found.signed {
            return Some(format!("certificate {} is not of the tenant's authority", wanted.name));
        }
        if !says(found, wanted) {
            return Some(format!("certificate {} should name something else", wanted.name));
        }
        if now >= renewal(found) {
            return Some(format!("certificate {} ends at {}", wanted.name, found.not_after));
        }
    }
    let files_differ = !files.is_empty() && live.applied_hash != Some(digest(&json!(files)));
    files_differ.then(|| "its other files changed".to_owned())
}

fn says(found: &Certificate, wanted: &CertificateRequest) -> bool {
    found.common_name == wanted.common_name
        && found.organizations == wanted.organizations.iter().cloned().collect::<BTreeSet<_>>()
        && found.dns_names == wanted.dns_names.iter().cloned().collect::<BTreeSet<_>>()
        && found.ip_addresses == wanted.ip_addresses.iter().copied().collect::<BTreeSet<_>>()
}
