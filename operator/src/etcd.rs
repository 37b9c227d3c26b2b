//! Connections to a tenant's etcd. Short-lived: thousands of tenants must not cost thousands of idle connections.

use std::time::Duration;

use etcd_client::{
    AlarmAction, AlarmType, Certificate, Client, ConnectOptions, DowngradeOptions, Error, Identity,
    MemberAddOptions, MemberListResponse, StatusResponse, TlsOptions,
};
use k8s_openapi::api::core::v1::Pod;
use kaas_crds::name::{self, component};
use kaas_lifecycle::action::{Authority, EtcdOrder};
use kaas_lifecycle::key_material::OPERATOR_SECRET;
use kaas_lifecycle::tenant::Tenant;

use crate::keyring::Keyring;

/// An idle machine answers in milliseconds; a member that takes longer counts as one that does not answer.
const DEADLINE: Duration = Duration::from_secs(3);

/// Client port of members.
const PORT: u16 = 2379;

/// A connection to one or more members.
pub(crate) struct Connection(Client);

/// Connects by address; the certificate is checked against the name of the members' Service. `None` when no key
/// material is there yet or nobody answers.
pub(crate) async fn connect(tenant: &Tenant, addresses: &[String], keyring: &Keyring) -> Option<Connection> {
    let certificate = keyring.get(OPERATOR_SECRET, "etcd.crt")?;
    let key = keyring.get(OPERATOR_SECRET, "etcd.key")?;
    let authority = keyring.authority_certificate(Authority::Etcd)?;
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(authority))
        .identity(Identity::from_pem(certificate, key))
        .domain_name(format!("etcd.{}.svc", tenant.control_plane_namespace()));
    let options = ConnectOptions::new().with_tls(tls).with_connect_timeout(DEADLINE).with_timeout(DEADLINE);
    let endpoints: Vec<String> =
        addresses.iter().map(|address| format!("https://{address}:{PORT}")).collect();
    match tokio::time::timeout(DEADLINE, Client::connect(&endpoints, Some(options))).await {
        Ok(Ok(client)) => Some(Connection(client)),
        Ok(Err(error)) => {
            tracing::debug!(%error, ?endpoints, "etcd cannot be reached");
            None
        }
        Err(_) => None,
    }
}

impl Connection {
    /// What the member says of itself.
    pub(crate) async fn status(&mut self) -> Result<StatusResponse, Error> {
        self.0.status().await
    }

    /// The membership.
    pub(crate) async fn member_list(&mut self) -> Result<MemberListResponse, Error> {
        self.0.member_list().await
    }

    /// Names of the alarms that are raised.
    pub(crate) async fn alarms(&mut self) -> Result<Vec<String>, Error> {
        let answer = self.0.alarm(AlarmAction::Get, AlarmType::None, None).await?;
        Ok(answer.alarms().iter().map(|alarm| format!("{:?}", alarm.alarm())).collect())
    }

    /// Carries out an order.
    pub(crate) async fn order(&mut self, order: &EtcdOrder) -> Result<(), Error> {
        match order {
            EtcdOrder::MoveLeader { to } => self.0.move_leader(*to).await.map(drop),
            EtcdOrder::AddLearner { peer_url } => {
                let options = MemberAddOptions::new().with_is_learner();
                self.0.member_add([peer_url.as_str()], Some(options)).await.map(drop)
            }
            EtcdOrder::Promote { id } => self.0.member_promote(*id).await.map(drop),
            EtcdOrder::Remove { id } => self.0.member_remove(*id).await.map(drop),
            EtcdOrder::EnableDowngrade { version } => {
                let mut maintenance = self.0.maintenance_client();
                maintenance.downgrade(DowngradeOptions::Validate(version.clone())).await?;
                maintenance.downgrade(DowngradeOptions::Enable(version.clone())).await.map(drop)
            }
            EtcdOrder::CancelDowngrade => {
                self.0.maintenance_client().downgrade(DowngradeOptions::Cancel).await.map(drop)
            }
        }
    }
}

/// Name and address of a member whose container runs.
pub(crate) fn member_address(pod: &Pod) -> Option<(String, String)> {
    let labels = pod.metadata.labels.as_ref()?;
    if labels.get(name::COMPONENT_LABEL).map(String::as_str) != Some(component::ETCD) {
        return None;
    }
    let status = pod.status.as_ref()?;
    let running = status
        .container_statuses
        .iter()
        .flatten()
        .any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()));
    let address = status.pod_ip.clone().filter(|_| running)?;
    Some((pod.metadata.name.clone()?, address))
}
