//! Machines that nobody asked for any more: a request for one that was under way when its worker was deleted, and that
//! arrived after it. It may even have joined, by a token that was about to be taken away: then a node is left too.
//!
//! They are taken away only when their cluster is there and its workers were listed just now. Machines of a cluster that
//! is not there are left alone: after a restore of the management cluster they are the ones that everything runs on.

use std::collections::BTreeSet;

use kaas_crds::worker_pool::InfrastructureKind;

use crate::workers::action::Action;

/// A machine in the infrastructure's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What the infrastructure knows it by.
    pub id: String,
    /// Name of the worker that it was made for.
    pub name: String,
    /// UID of the worker that it was made for.
    pub worker_uid: String,
    /// UID of the cluster that it was made for.
    pub cluster_uid: String,
    /// Whether it is going already.
    pub stopping: bool,
}

/// The machines of a cluster that are to go. `workers` are UIDs of all its workers by a list that was read *after* the
/// machines', from the API server itself; `None` when it was not: a machine is asked for only by a worker that exists.
pub fn orphans(cluster_uid: &str, machines: &[Listed], workers: Option<&BTreeSet<String>>) -> Vec<Action> {
    let Some(workers) = workers else { return Vec::new() };
    machines
        .iter()
        .filter(|machine| machine.cluster_uid == cluster_uid && !machine.cluster_uid.is_empty())
        .filter(|machine| !machine.stopping && !workers.contains(&machine.worker_uid))
        .map(|machine| Action::DeleteMachine { id: machine.id.clone() })
        .collect()
}

/// A node of the tenant cluster, in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedNode {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// `spec.providerID`.
    pub provider_id: String,
}

/// The nodes that are to go, with their names: those of machines that we made, when the machine is gone and the worker too.
/// Machines of the tenant's own are his.
pub fn orphaned_nodes(
    nodes: &[ListedNode],
    machines: Option<&[Listed]>,
    workers: Option<&BTreeSet<String>>,
) -> Vec<(String, Action)> {
    let (Some(machines), Some(workers)) = (machines, workers) else { return Vec::new() };
    let made = kaas_crds::name::provider_id(InfrastructureKind::Pod.as_str(), "");
    nodes
        .iter()
        .filter_map(|node| Some((node, node.provider_id.strip_prefix(&made)?)))
        .filter(|(_, uid)| {
            !workers.contains(*uid) && !machines.iter().any(|machine| machine.worker_uid == *uid)
        })
        .map(|(node, _)| (node.name.clone(), Action::DeleteNode { uid: node.uid.clone() }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(id: &str, worker: &str, cluster: &str) -> Listed {
        Listed {
            id: id.into(),
            name: worker.into(),
            worker_uid: worker.into(),
            cluster_uid: cluster.into(),
            stopping: false,
        }
    }

    #[test]
    fn only_machines_of_this_cluster_without_a_worker_go() {
        let machines = [machine("a", "w1", "c"), machine("b", "w2", "c"), machine("x", "w2", "other")];
        let workers = BTreeSet::from(["w1".to_owned()]);
        assert_eq!(orphans("c", &machines, Some(&workers)), [Action::DeleteMachine { id: "b".into() }]);
        assert_eq!(orphans("c", &machines, None), []);
        assert_eq!(orphans("", &[machine("a", "w", "")], Some(&workers)), []);
        let stopping = [Listed { stopping: true, ..machine("b", "w2", "c") }];
        assert_eq!(orphans("c", &stopping, Some(&workers)), []);
    }
    #[test]
    fn only_nodes_of_machines_that_we_made_and_that_are_gone_go() {
        let node = |name: &str, provider_id: &str| ListedNode {
            name: name.into(),
            uid: format!("uid-{name}"),
            provider_id: provider_id.into(),
        };
        let nodes = [
            node("kept", "kaas://pod/w1"),
            node("left", "kaas://pod/w2"),
            node("runs", "kaas://pod/w3"),
            node("own", ""),
            node("joined", "kaas://external/w4"),
            node("cloud", "aws:///w5"),
        ];
        let (workers, machines) = (BTreeSet::from(["w1".to_owned()]), [machine("m", "w3", "c")]);
        let gone = orphaned_nodes(&nodes, Some(&machines), Some(&workers));
        assert_eq!(gone, [("left".to_owned(), Action::DeleteNode { uid: "uid-left".into() })]);
        assert_eq!(orphaned_nodes(&nodes, None, Some(&workers)), []);
        assert_eq!(orphaned_nodes(&nodes, Some(&machines), None), []);
    }
}
