//! Workers: the shell around `kaas_lifecycle::workers`. It reads what the plans need, does what they ask for, and watches
//! both sides: our objects and machines on the management cluster, nodes and their requests inside tenants.

pub(crate) mod attendance;
mod bootstrap;
mod certificate;
mod drain;
pub(crate) mod execute;
pub(crate) mod fleet;
pub(crate) mod infrastructure;
mod node;
pub(crate) mod observe;
pub(crate) mod orphan;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kaas_crds::KubernetesReleaseSpec;
use kaas_lifecycle::drain::Answer;

use crate::controllers::Catalogue;
use crate::run::Context;
use crate::tenant::Tenants;
use crate::workers::attendance::Attendants;
use crate::workers::fleet::Fleet;
use crate::workers::infrastructure::Infrastructure;

/// What the turns for pools and workers share.
pub(crate) struct Yard {
    pub(crate) context: Context,
    pub(crate) catalogue: Catalogue,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) tenants: Arc<Tenants>,
    /// Where machines that are pods come from. Those of the user's own come from nowhere.
    pub(crate) pods: Box<dyn Infrastructure>,
    /// Who looks after each tenant's nodes.
    pub(crate) attendants: Attendants,
    /// What the API servers said to the last evictions: by UID of the worker, then of the pod.
    answers: Mutex<BTreeMap<String, BTreeMap<String, Answer>>>,
}

impl Yard {
    pub(crate) fn new(
        context: Context,
        catalogue: Catalogue,
        fleet: Arc<Fleet>,
        tenants: Arc<Tenants>,
        attendants: Attendants,
    ) -> Arc<Self> {
        let pods = Box::new(infrastructure::Pods::new(context.client.clone()));
        Arc::new(Yard { context, catalogue, fleet, tenants, pods, attendants, answers: Mutex::default() })
    }

    /// The catalogue's entry of a version.
    pub(crate) fn release(&self, version: &str) -> Option<KubernetesReleaseSpec> {
        self.catalogue.releases().remove(version)
    }

    /// What was said to the last evictions for a worker.
    fn answers(&self, worker_uid: &str) -> BTreeMap<String, Answer> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(worker_uid).cloned().unwrap_or_default()
    }

    /// Notes what was said to an eviction; an accepted one is forgotten.
    fn note_answer(&self, worker_uid: &str, pod_uid: &str, answer: Option<Answer>) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Some(answer) => {
                answers.entry(worker_uid.to_owned()).or_default().insert(pod_uid.to_owned(), answer);
            }
            None => {
                if let Some(of_worker) = answers.get_mut(worker_uid) {
                    of_worker.remove(pod_uid);
                }
            }
        }
    }

    /// Lets go of a worker that is gone.
    pub(crate) fn forget(&self, worker_uid: &str) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).remove(worker_uid);
    }
}
