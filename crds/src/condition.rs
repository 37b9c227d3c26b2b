//! Condition types and reasons: the closed vocabulary of status, events and runbooks.
//!
//! Every reason has a page `docs/src/runbooks/<Reason>.md`; a test checks that it exists.

use std::fmt;

/// Types of conditions on our kinds. All are positive but kstatus' two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// A real request through the endpoint succeeded just now.
    Ready,
    /// Every API server and controller pod that should run does.
    ControlPlaneAvailable,
    /// Every etcd member serves and holds the data it should.
    EtcdHealthy,
    /// Every worker is Ready.
    WorkersReady,
    /// The machine of a worker runs.
    InfrastructureReady,
    /// Every addon runs.
    AddonsReady,
    /// API servers reach workers, and what runs on them.
    TunnelHealthy,
    /// No certificate is near its end.
    CertificatesValid,
    /// What runs is what would be rendered now.
    UpToDate,
    /// Nothing speaks against an upgrade to the next version.
    UpgradePossible,
    /// kstatus: the operator is at work.
    Reconciling,
    /// kstatus: the operator cannot go on without somebody's help.
    Stalled,
}

impl ConditionType {
    /// All of them.
    pub const ALL: [ConditionType; 12] = [
        ConditionType::Ready,
        ConditionType::ControlPlaneAvailable,
        ConditionType::EtcdHealthy,
        ConditionType::WorkersReady,
        ConditionType::InfrastructureReady,
        ConditionType::AddonsReady,
        ConditionType::TunnelHealthy,
        ConditionType::CertificatesValid,
        ConditionType::UpToDate,
        ConditionType::UpgradePossible,
        ConditionType::Reconciling,
        ConditionType::Stalled,
    ];
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Why a condition has its status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The word in status.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)+ }
            }
        }
    };
}

reasons! {
    /// A request through the endpoint succeeded.
    Serving,
    /// The control plane comes up for the first time.
    Creating,
    /// The last request through the endpoint failed.
    EndpointUnreachable,
    /// Nothing is known that is fresh enough.
    NotObserved,
    /// The TenantCluster is being deleted.
    Deleting,
    /// The etcd data is not the data that was there before.
    DataLost,
    /// All pods that should run do.
    Available,
    /// Some pods that should run do not.
    PodsUnavailable,
    /// Pods cannot start: image, crash or scheduling.
    PodsFailing,
    /// Every member is healthy.
    MembersHealthy,
    /// A member is not healthy; the others have a quorum.
    MemberUnhealthy,
    /// Fewer members than a quorum answer.
    QuorumLost,
    /// etcd raised an alarm.
    AlarmRaised,
    /// There are no workers.
    NoWorkers,
    /// Every worker that should be there is Ready.
    AllReady,
    /// Some worker that should be there is missing or not Ready.
    WorkersNotReady,
    /// There are no addons.
    NoAddons,
    /// Every addon runs.
    AddonsRunning,
    /// Some pods of addons do not run.
    AddonsNotReady,
    /// The tenant cluster refuses an addon.
    AddonsRefused,
    /// Agents of the tunnel are connected.
    AgentsConnected,
    /// No agent of the tunnel is connected.
    AgentsMissing,
    /// All certificates are valid.
    CertificatesCurrent,
    /// A certificate is near its end and could not be renewed yet.
    CertificateExpiring,
    /// What runs is what would be rendered now.
    RevisionCurrent,
    /// A newer operator would render something differently.
    RevisionPending,
    /// Pods are being replaced.
    Rolling,
    /// Work is under way.
    Progressing,
    /// Nothing is left to do.
    Settled,
    /// The spec says `paused`.
    Paused,
    /// The version is not in the catalogue.
    VersionNotInCatalogue,
    /// There is no way from the version that runs to the one that is asked for.
    UpgradePathInvalid,
    /// The version that is asked for did not prove itself, and was not taken.
    UpgradeRefused,
    /// A change waits until the control plane is whole.
    ControlPlaneUnsettled,
    /// New binaries have to be well for a while before the emulated version is raised.
    Soaking,
    /// The spec holds back the last step of an upgrade.
    FinalizeHeld,
    /// One API server has to prove the next stage of an upgrade first.
    CanaryProving,
    /// A snapshot of etcd's data is taken before another minor version takes its place.
    SnapshotPending,
    /// The version of etcd that is asked for is in no KubernetesRelease.
    EtcdVersionUnknown,
    /// The version of etcd that is asked for cannot be had from what runs.
    EtcdVersionUnsupported,
    /// The platform has not set a host for NodePort endpoints.
    EndpointHostMissing,
    /// The load balancer has no address yet.
    LoadBalancerPending,
    /// A control-plane namespace of an earlier object with this name exists.
    AdoptionNeeded,
    /// The control-plane namespace is being deleted although the TenantCluster is not.
    NamespaceTerminating,
    /// The Secret with the cluster's authorities is gone.
    AuthorityLost,
    /// A Secret that is not ours has the name of the kubeconfig Secret.
    SecretNameTaken,
    /// The management cluster refused a request.
    RequestDenied,
    /// The management cluster refused an object as invalid.
    RequestInvalid,
    /// Requests to the management cluster fail for now.
    RequestFailing,
    /// Something blocks the deletion.
    DeletionBlocked,
    /// The TenantCluster that a pool names does not exist in its namespace.
    ClusterNotFound,
    /// The TenantCluster that a pool names is being deleted.
    ClusterDeleting,
    /// The InstanceType that a pool names does not exist.
    InstanceTypeNotFound,
    /// The platform does not offer this infrastructure.
    InfrastructureDisabled,
    /// A maintenance window or an exclusion names a time zone or a date that does not exist.
    MaintenanceInvalid,
    /// Work that was asked for begins with the next maintenance window.
    WaitingForWindow,
    /// Nothing was found that speaks against an upgrade.
    PreflightPassed,
    /// A learner has not become a member of etcd yet.
    LearnerWaiting,
    /// The data of etcd comes near its quota.
    SpaceShort,
    /// A kubelet is older than the next version may have.
    KubeletTooOld,
    /// A kubelet is newer than the next version.
    KubeletTooNew,
    /// The version that a pool asks for does not fit to its control plane.
    VersionSkew,
    /// Going back to the minor version before wants a word of consent.
    GoingBack,
    /// Objects are stored of a kind that the version to go back to does not have.
    NewKindStored,
    /// Objects have a field that the version to go back to does not have.
    NewFieldStored,
    /// A PodDisruptionBudget never lets a pod go.
    BudgetBlocksDrain,
    /// A webhook that must answer has nobody who could.
    WebhookUnavailable,
    /// A webhook that must answer is asked about what an upgrade itself writes.
    WebhookInTheWay,
    /// An API is served that the next version does not have.
    ApiRemoved,
    /// Somebody calls an API that the next version does not have.
    RemovedApiCalled,
    /// Nobody knows who calls an API that the next version does not have.
    CallersUnknown,
    /// Objects are stored that the next version has no API for.
    ObjectsUnreachable,
    /// Networks of the cluster overlap those of the management cluster.
    NetworkOverlap,
    /// Machines outside the management cluster cannot reach the endpoint.
    EndpointInternal,
    /// The API of the cluster does not serve yet.
    WaitingForCluster,
    /// The machine is being made.
    Provisioning,
    /// The user has not joined a machine yet.
    WaitingForMachine,
    /// The machine runs, its node is not there yet.
    Joining,
    /// The machine runs for long, and its node is still not there.
    JoinOverdue,
    /// The machine runs.
    MachineRunning,
    /// The node is Ready.
    NodeReady,
    /// The kubelet says that the node is not Ready.
    NodeNotReady,
    /// The kubelet has stopped reporting.
    NodeSilent,
    /// The node object of a worker that had joined is gone.
    NodeMissing,
    /// A node has the worker's name and is not its.
    NodeForeign,
    /// The machine of a worker that had joined is gone.
    InfrastructureGone,
    /// Requests to the infrastructure fail for now.
    InfrastructureFailing,
    /// The infrastructure refuses: a quota is used up.
    QuotaExceeded,
    /// The infrastructure has no room for such a machine.
    NoCapacity,
    /// The infrastructure refuses: the operator may not do it, or the request is wrong.
    InfrastructureDenied,
    /// Pods are moved away from the node.
    Draining,
    /// Something keeps pods on the node.
    DrainBlocked,
    /// The time for draining is over; the worker goes with what is left on it.
    DrainExpired,
    /// The operator made a plan that would break one of its own rules, and did not execute it.
    PlanRefused,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
