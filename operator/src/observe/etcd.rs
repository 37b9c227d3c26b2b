//! What etcd says: each member is asked itself, by pod address, so that no name needs to resolve.

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kaas_lifecycle::observed::{Etcd, Member};
use kaas_lifecycle::tenant::Tenant;

use crate::etcd::{Connection, connect, member_address};
use crate::keyring::Keyring;

pub(super) async fn observe(tenant: &Tenant, pods: &[Pod], keyring: &Keyring) -> Option<Etcd> {
    let addresses: Vec<(String, String)> = pods.iter().filter_map(member_address).collect();
    let answers = join_all(addresses.iter().map(|(name, address)| async move {
        let mut connection = connect(tenant, std::slice::from_ref(address), keyring).await?;
        ask(&mut connection).await.map(|answer| (name.as_str(), answer))
    }))
    .await;
    let answers: Vec<(&str, Answer)> = answers.into_iter().flatten().collect();
    // Whoever has a leader knows the membership; without one the list is still the last that was agreed on.
    let voters = answers.iter().filter(|(_, answer)| !answer.members.is_empty());
    let (_, best) = voters.max_by_key(|(_, answer)| (answer.leader != 0, answer.applied))?;
    let mut etcd = Etcd {
        cluster_id: format!("{:x}", best.cluster_id),
        leader: best.leader,
        members: best.members.clone(),
        alarms: best.alarms.clone(),
        downgrade: best.downgrade.clone(),
    };
    for member in &mut etcd.members {
        let own = answers.iter().find(|(_, answer)| answer.member_id == member.id);
        if let Some((_, answer)) = own {
            member.healthy = answer.leader != 0;
            member.applied = answer.applied;
            member.size = answer.size;
            member.quota = answer.quota;
            member.version.clone_from(&answer.version);
            member.storage_version.clone_from(&answer.storage_version);
        }
    }
    Some(etcd)
}

struct Answer {
    cluster_id: u64,
    member_id: u64,
    leader: u64,
    applied: u64,
    size: i64,
    quota: i64,
    /// Empty from a learner.
    members: Vec<Member>,
    alarms: Vec<String>,
    version: String,
    storage_version: String,
    downgrade: Option<String>,
}

async fn ask(connection: &mut Connection) -> Option<Answer> {
    let status = connection.status().await.ok()?;
    // A learner says how it is and nothing else: it refuses every other request.
    let (members, alarms) = match status.is_learner() {
        true => (Vec::new(), Vec::new()),
        false => (membership(connection).await?, connection.alarms().await.unwrap_or_default()),
    };
    let header = status.header()?;
    let downgrade = status.downgrade_info().filter(|info| info.enabled());
    Some(Answer {
        cluster_id: header.cluster_id(),
        member_id: header.member_id(),
        leader: status.leader(),
        applied: status.raft_applied_index(),
        size: status.db_size(),
        quota: status.db_size_quota(),
        members,
        alarms,
        version: status.version().to_owned(),
        storage_version: status.storage_version().to_owned(),
        downgrade: downgrade.map(|info| info.target_version().to_owned()),
    })
}

async fn membership(connection: &mut Connection) -> Option<Vec<Member>> {
    let listed = connection.member_list().await.ok()?;
    let members = listed.members().iter().map(|member| Member {
        id: member.id(),
        name: member.name().to_owned(),
        peer_urls: member.peer_urls().to_vec(),
        learner: member.is_learner(),
        ..Member::default()
    });
    Some(members.collect())
}
