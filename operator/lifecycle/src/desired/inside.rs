//! Objects inside the tenant's own cluster: the admins' rights, and where its `kubernetes` Service leads.

use std::net::IpAddr;

use kaas_crds::name::{ADMIN_GROUP, MANAGED_BY, MANAGED_BY_LABEL};
use serde_json::{Value, json};

use super::Inputs;
use crate::object::{Kind, Object, Reference};

/// Name and namespace of the Service that every cluster has for its own API.
const SERVICE: (&str, &str) = ("default", "kubernetes");
/// Name of the port, as API servers name it.
const PORT_NAME: &str = "https";

/// Names everything that [`tenant_objects`] gives.
pub fn tenant_references() -> [Reference; 3] {
    let (namespace, service) = SERVICE;
    [
        Reference::cluster(Kind::ClusterRoleBinding, ADMIN_GROUP),
        Reference::namespaced(Kind::EndpointSlice, namespace, service),
        Reference::namespaced(Kind::Endpoints, namespace, service),
    ]
}

/// What the operator keeps inside a tenant, when its API is reached at these addresses of one family.
///
/// Conformance wants both an EndpointSlice and an Endpoints object. Neither is touched by the tenant's controllers:
/// the Service has no selector, the slice is not of the mirroring controller, and the Endpoints object says that it
/// is not to be mirrored.
pub fn tenant_objects(_inputs: &Inputs<'_>, addresses: &[IpAddr], port: u16) -> Vec<Object> {
    let (_, service) = SERVICE;
    let [admins, slice, mirrored] = tenant_references();
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    let ips: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    let address_type = if addresses.iter().all(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" };
    let mut objects = vec![Object::new(
        admins,
        json!({
            "metadata": {"labels": {MANAGED_BY_LABEL: MANAGED_BY}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": ADMIN_GROUP}],
        }),
    )];
    // A name that does not resolve now keeps nobody from his rights.
    if addresses.is_empty() {
        return objects;
    }
    objects.extend([
        Object::new(
            slice,
            json!({
                "metadata": {"labels": {
                    MANAGED_BY_LABEL: MANAGED_BY,
                    "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
                    "kubernetes.io/service-name": service,
                }},
                "addressType": address_type,
                "endpoints": endpoints,
                "ports": [{"name": PORT_NAME, "port": port, "protocol": "TCP"}],
            }),
        ),
        Object::new(
            mirrored,
            json!({
                "metadata": {"labels": {
                    MANAGED_BY_LABEL: MANAGED_BY,
                    "endpointslice.kubernetes.io/skip-mirror": "true",
                }},
                "subsets": [{
                    "addresses": ips,
                    "ports": [{"name": PORT_NAME, "port": port, "protocol": "TCP"}],
                }],
            }),
        ),
    ]);
    objects
}
