//! Where machines come from: one small interface, and pods as the embedded infrastructure.
//!
//! A machine is known by the UID of its worker, so that whoever asks twice gets one. What fails is typed: a condition, its
//! owner and the next attempt follow from the type alone. An infrastructure with a cloud behind it fits as it is.

use futures::future::BoxFuture;
use kaas_crds::kubernetes_release::AddonImages;
use kaas_lifecycle::tenant::Platform;
use kaas_lifecycle::workers::action::MachineRequest;
use kaas_lifecycle::workers::infrastructure::Failure;
use kaas_lifecycle::workers::machine::Place;
use kaas_lifecycle::workers::observed::Machine;
use kaas_lifecycle::workers::orphan::Listed;

mod pods;

pub(crate) use pods::Pods;

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// What kind of failure.
    pub(crate) failure: Failure,
    /// In the infrastructure's words.
    pub(crate) message: String,
}

/// What a machine is made from, besides the request.
#[derive(Clone, Copy)]
pub(crate) struct Materials<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) images: &'a AddonImages,
    pub(crate) platform: &'a Platform,
}

pub(crate) type Answer<'a, T> = BoxFuture<'a, Result<T, Refusal>>;

/// Makes machines, tells about them, and takes them away.
pub(crate) trait Infrastructure: Send + Sync {
    /// Asks for a machine. One that is there already is a success.
    fn ensure<'a>(&'a self, request: &'a MachineRequest, materials: Materials<'a>) -> Answer<'a, ()>;

    /// The machine of a worker, asked for just now; `None` when there is none.
    fn observe<'a>(&'a self, place: Place<'a>) -> Answer<'a, Option<Machine>>;

    /// Every machine that there is.
    fn list(&self) -> Answer<'_, Vec<Listed>>;

    /// Takes exactly this machine away. One that is gone already is a success.
    fn delete<'a>(&'a self, place: Place<'a>, id: &'a str) -> Answer<'a, ()>;

    /// Takes away what a worker had besides its machine, which is gone, or was never made.
    fn clear<'a>(&'a self, place: Place<'a>) -> Answer<'a, ()>;

    /// The cluster has no workers any more: what it had besides machines goes.
    fn dissolve<'a>(&'a self, cluster_uid: &'a str) -> Answer<'a, ()>;
}
