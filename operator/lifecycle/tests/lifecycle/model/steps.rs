//! What can happen next in the tiny world, and what follows.

use std::sync::{Arc, Mutex};

use kaas_lifecycle::action::{Action, Disruption, Material};
use kaas_lifecycle::lint;
use kaas_lifecycle::object::Kind;
use kaas_lifecycle::observed::Observed;
use kaas_lifecycle::report;
use stateright::{Model, Property};

use super::state::{Frozen, Operator, State};
use super::ways::Ways;
use super::{World, invariants};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// The operator looks and plans, or does the next write of its plan.
    Operator,
    /// It dies. Another one looks anew.
    Crash,
    /// Its next write hangs in the network until another one leads.
    Delay,
    /// The write that hung arrives.
    Arrive,
    /// What the next look reads of the API server is what there is now, however late it comes.
    Lag,
    /// Controllers and kubelets go on.
    Controllers,
    /// A member dies; without a volume its data with it.
    Lose(String),
    /// The user changes the spec.
    Edit,
    /// The user deletes.
    Delete,
}

/// What may happen in a world besides what must.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct May {
    /// Writes arrive late.
    pub(super) delay: bool,
    /// A read lags.
    pub(super) lag: bool,
    /// Members die.
    pub(super) lose: bool,
    /// The user changes the spec.
    pub(super) edit: Option<fn(&mut World)>,
    /// The user deletes.
    pub(super) delete: bool,
}

#[derive(Clone)]
pub(super) struct Tiny {
    pub(super) begin: World,
    pub(super) may: May,
    /// What the linter refuses is done all the same: to see that the model itself finds it.
    pub(super) unlinted: bool,
    /// What must be reached, or the exploration shows nothing.
    pub(super) wanted: Vec<&'static str>,
    pub(super) ways: Arc<Mutex<Ways>>,
    /// Where an undisturbed world ends and should not; set to learn how it comes to that.
    pub(super) bad_end: Option<u64>,
}

impl Tiny {
    pub(super) fn new(begin: World, may: May) -> Self {
        Tiny { begin, may, unlinted: false, wanted: Vec::new(), ways: Arc::default(), bad_end: None }
    }

    pub(super) fn wants(self, names: &[&'static str]) -> Self {
        Tiny { wanted: names.to_vec(), ..self }
    }

    fn operate(&self, state: &mut State) {
        match std::mem::replace(&mut state.operator, Operator::Looking) {
            Operator::Looking => self.look(state),
            Operator::Acting(mut writes) => {
                let write = writes.remove(0);
                // Who is refused looks again.
                if act(state, &write.action) && !writes.is_empty() {
                    state.operator = Operator::Acting(writes);
                }
            }
            Operator::Resting => {}
        }
    }

    fn look(&self, state: &mut State) {
        let lagging = state.frozen.is_some();
        let observed = observe(state);
        let plan = (state.world.planner)(&observed);
        let breaches = lint::check(&observed, &plan);
        if !breaches.is_empty() && !self.unlinted {
            state.breach = Some(breaches.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
        }
        let actions: Vec<Action> = plan.waves.iter().flatten().cloned().collect();
        let final_ones =
            actions.iter().filter(|action| action.disruption() == Disruption::Irreversible).count();
        if final_ones > 1 {
            state.breach = Some(format!("{final_ones} actions of one plan cannot be taken back"));
        }
        if !actions.is_empty() {
            state.operator =
                Operator::Acting(actions.into_iter().map(|action| state.write(action)).collect());
            return;
        }
        // What a read did not show yet wakes it as soon as it shows.
        state.operator = if lagging { Operator::Looking } else { Operator::Resting };
        let status = report::derive(&observed, &plan, None);
        let metadata = &observed.cluster.metadata;
        // Refused when it is of another version.
        if metadata.resource_version == state.world.cluster.metadata.resource_version
            && report::worth_writing(&observed, state.world.cluster.status.as_ref(), &status)
        {
            state.change().put_status(status);
        }
    }
}

/// What is read of the API server may lag; etcd and the tenant are asked now.
fn observe(state: &mut State) -> Observed {
    let now = state.world.observe();
    let Some(Frozen { world, .. }) = state.frozen.take() else { return now };
    let then = world.observe();
    let home = then.own_namespace().is_some();
    Observed {
        etcd: now.etcd.filter(|_| home),
        probe: now.probe.filter(|_| home),
        inside: now.inside.filter(|_| home),
        ..then
    }
}

/// One write; whether it was taken.
fn act(state: &mut State, action: &Action) -> bool {
    match action {
        Action::Delete { reference, uid, .. } if uid.is_empty() => {
            state.breach = Some(format!("{reference} is deleted whoever it is"));
        }
        Action::RemoveFinalizer { .. } if !state.world.namespaces.is_empty() => {
            state.breach = Some("the finalizer goes before the namespace".into());
        }
        _ => {}
    }
    if state.change().act(action).is_err() {
        return false;
    }
    if matches!(action, Action::Issue(issue) if matches!(issue.material, Material::Authorities)) {
        state.authorities += 1;
    }
    true
}

/// Whether controllers have nothing that they could do.
fn idle(world: &World) -> bool {
    let going = world.namespaces.iter().any(|namespace| namespace.terminating);
    let mut workloads =
        world.objects.keys().filter(|key| matches!(key.kind, Kind::StatefulSet | Kind::Deployment));
    !going && world.pods.is_empty() && workloads.next().is_none()
}

fn go_on(state: &mut State) {
    if idle(&state.world) {
        return;
    }
    let before = state.world.members.len();
    state.change().controllers();
    if state.established && state.world.members.len() > before {
        state.breach = Some("a cluster was founded where one was".into());
    }
}

/// Members whose death is to be borne. Without volumes a member that dies while another has no data is the end of the
/// data, whoever operates it; and who dies between its promotion and the operator's next look, before it is remembered
/// what it had its data on, is not known to have lost it.
fn mortal(state: &State) -> Vec<String> {
    let world = &state.world;
    if state.died || !state.established {
        return Vec::new();
    }
    let up = |name: &str| world.pods.iter().any(|pod| pod.name == name && pod.ready && !pod.terminating);
    let persistent = world.cluster.spec.etcd.storage.persistent.is_some();
    let whole = world.members.len() > 2
        && world.members.iter().all(|member| !member.learner && up(&member.name) && state.remembers(member));
    let members = world.members.iter().filter(|member| (persistent || whole) && up(&member.name));
    members.map(|member| member.name.clone()).collect()
}

fn lose(state: &mut State, name: &str) {
    state.died = true;
    state.lost.insert(name.to_owned());
    let world = state.change();
    if world.cluster.spec.etcd.storage.persistent.is_some() {
        world.pods.iter_mut().filter(|pod| pod.name == name).for_each(|pod| pod.ready = false);
    } else {
        world.pods.retain(|pod| pod.name != name);
    }
}

impl Model for Tiny {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(&self.begin, self.may.edit.is_some()).finish()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.breach.is_some() {
            return;
        }
        steps.push(Step::Controllers);
        if state.late.is_some() {
            steps.push(Step::Arrive);
        }
        if state.world.gone {
            return;
        }
        if state.operator != Operator::Resting {
            steps.push(Step::Operator);
        }
        if let Operator::Acting(_) = &state.operator {
            steps.push(Step::Crash);
            if self.may.delay && state.late.is_none() {
                steps.push(Step::Delay);
            }
        }
        if self.may.lag && !state.lagged {
            steps.push(Step::Lag);
        }
        if self.may.lose {
            steps.extend(mortal(state).into_iter().map(Step::Lose));
        }
        let deleting = state.world.cluster.metadata.deletion_timestamp.is_some();
        if state.edit_to_come && !deleting {
            steps.push(Step::Edit);
        }
        if self.may.delete && !deleting {
            steps.push(Step::Delete);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match &step {
            Step::Operator => self.operate(&mut state),
            Step::Crash => state.operator = Operator::Looking,
            Step::Delay => {
                if let Operator::Acting(mut writes) =
                    std::mem::replace(&mut state.operator, Operator::Looking)
                {
                    state.late = Some(writes.remove(0));
                }
            }
            Step::Arrive => {
                let write = state.late.take()?;
                act(&mut state, &write.action);
            }
            Step::Lag => state.freeze(),
            Step::Controllers => go_on(&mut state),
            Step::Lose(name) => lose(&mut state, name),
            Step::Edit => {
                state.edit_to_come = false;
                self.may.edit?(state.change());
            }
            Step::Delete => state.change().delete(),
        }
        state.remember();
        state.breach = state.breach.take().or_else(|| invariants::broken(&state).map(str::to_owned));
        let mut state = state.finish();
        let changed = state.digest != last.digest;
        if changed && step != Step::Operator && state.operator == Operator::Resting {
            // Whatever happens wakes the operator.
            state.operator = Operator::Looking;
            state = state.finish();
        }
        self.ways.lock().unwrap().note(last, &step, &state);
        changed.then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        invariants::all()
    }
}
