//! What a plan is made from: which revision is applied, what it is rendered from, and what an upgrade asks for.
//!
//! A stored revision goes on being applied until the user asks for something else, consents, or an upgrade has proved its
//! next stage. The release that is rendered from is that of the stage, not the one that the spec names.

use crate::desired::{self, Inputs};
use crate::etcd;
use crate::observed::Observed;
use crate::revision::{self, Choice, Revision};
use crate::upgrade::preflight;
use crate::upgrade::stage::Stage;
use crate::upgrade::step::{self, Step};

/// What a plan is made from.
pub(crate) struct Basis<'a> {
    /// What is rendered from; nothing without a catalogue entry.
    pub(crate) inputs: Option<Inputs<'a>>,
    /// What of it is applied.
    pub(crate) choice: Option<Choice>,
    /// What an upgrade asks for.
    pub(crate) step: Step,
}

/// Chooses what is applied: what is stored, or what takes its place now.
pub(crate) fn basis(observed: &Observed) -> Basis<'_> {
    let current = revision::current(observed);
    let stage = current
        .as_ref()
        .map_or_else(|| Stage::of(&observed.cluster.spec.version), |current| current.record.stage.clone());
    let mut inputs = inputs(observed, current.as_ref(), &stage);
    // Without a catalogue entry nothing new can be rendered; what is stored goes on being applied.
    let Some(rendered) = &inputs else {
        let choice = current.map(|revision| Choice { revision, store: false, pending: None });
        return Basis { inputs: None, choice, step: Step::default() };
    };
    let mut choice = revision::choose(observed, desired::rendering(rendered));
    let mut next = Step::default();
    // What else was asked for comes first.
    if let Some(current) = current.filter(|_| !choice.store) {
        let render =
            |stage: &Stage| Some(desired::rendering(&self::inputs(observed, Some(&current), stage)?));
        next = step::step(observed, &current, render);
        if let Some(revision) = next.revision.take() {
            inputs = self::inputs(observed, Some(&current), &revision.record.stage);
            choice = Choice { revision, store: true, pending: None };
        }
    }
    if let Some(inputs) = &mut inputs {
        inputs.canary = next.canary.is_some();
        inputs.snapshot =
            revision::members(&choice.revision).is_some_and(|wanted| etcd::snapshot::due(observed, wanted));
    }
    Basis { inputs, choice: Some(choice), step: next }
}

/// What a stage is rendered from; `None` when the catalogue has not all of it.
fn inputs<'a>(observed: &'a Observed, current: Option<&Revision>, stage: &Stage) -> Option<Inputs<'a>> {
    let (release, emulated) = stage.releases(observed)?;
    Some(Inputs {
        tenant: &observed.tenant,
        spec: &observed.cluster.spec,
        release,
        emulated,
        watched: preflight::watched(&observed.cluster.spec, &observed.catalogue, stage.serves()),
        etcd_image: etcd::image(observed, current.and_then(revision::etcd_image), release)?,
        canary: false,
        snapshot: false,
        platform: &observed.platform,
        alone: etcd::alone(observed),
    })
}
