//! Where clients reach the API of a tenant: from the type that the spec asks for and from what the Service got.

use std::net::IpAddr;

use kaas_crds::name::component;
use kaas_crds::tenant_cluster::EndpointType;

use crate::desired::AGENT_PORT;
use crate::object::Kind;
use crate::observed::Observed;

/// Port of the API servers and of their Service.
pub const PORT: u16 = 6443;

/// Host and port of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address or host name.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// `https://host:port`.
    pub fn url(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("https://[{address}]:{}", self.port),
            _ => format!("https://{}:{}", self.host, self.port),
        }
    }
}

/// The endpoint, once everything of it is known.
pub fn endpoint(observed: &Observed) -> Option<Endpoint> {
    let service = observed.live(Kind::Service, component::KUBE_APISERVER)?;
    let host = host(observed)?;
    let port = match observed.cluster.spec.control_plane.endpoint.kind {
        EndpointType::NodePort => {
            u16::try_from(service.count("/spec/ports/0/nodePort")).ok().filter(|port| *port != 0)?
        }
        EndpointType::ClusterIP | EndpointType::LoadBalancer => PORT,
    };
    Some(Endpoint { host, port })
}

/// Where the tunnel's agents are let in, once everything of it is known.
pub fn tunnel(observed: &Observed) -> Option<Endpoint> {
    let service = || observed.live(Kind::Service, component::KONNECTIVITY_SERVER);
    match observed.cluster.spec.control_plane.endpoint.kind {
        EndpointType::NodePort => {
            let port = u16::try_from(service()?.count("/spec/ports/0/nodePort")).ok();
            Some(Endpoint { host: host(observed)?, port: port.filter(|port| *port != 0)? })
        }
        EndpointType::ClusterIP => {
            let host = service()?.text("/spec/clusterIP").to_owned();
            (!host.is_empty()).then_some(Endpoint { host, port: AGENT_PORT })
        }
        // A second port of the endpoint.
        EndpointType::LoadBalancer => Some(Endpoint { host: host(observed)?, port: AGENT_PORT }),
    }
}

/// The host alone: certificates name it, and it is often known before the port.
pub fn host(observed: &Observed) -> Option<String> {
    let found = match observed.cluster.spec.control_plane.endpoint.kind {
        EndpointType::NodePort => observed.platform.node_port_host.clone(),
        EndpointType::ClusterIP => {
            observed.live(Kind::Service, component::KUBE_APISERVER)?.text("/spec/clusterIP").to_owned()
        }
        EndpointType::LoadBalancer => {
            let service = observed.live(Kind::Service, component::KUBE_APISERVER)?;
            // An address is worth more than a name: it needs no resolver.
            match service.text("/status/loadBalancer/ingress/0/ip") {
                "" => service.text("/status/loadBalancer/ingress/0/hostname").to_owned(),
                address => address.to_owned(),
            }
        }
    };
    Some(found).filter(|host| !host.is_empty())
}
