//! Every interleaving of a tiny world of workers: the operator write by write, in whatever order it looks at the pool and
//! its workers, its death between any two writes, a write of a former leader that arrives late, a list of workers that lags,
//! machines and kubelets, a user who changes his mind. Invariants hold in every state that can be reached, and from each
//! of them an undisturbed world comes to rest where it should.
//!
//! What keeps it finite: no time passes, at most three workers are asked for, one edit, one lagging list, and late writes
//! as many as there may be, but one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use kaas_crds::Worker;
use kaas_lifecycle::workers::action::{Action, tell};
use kaas_lifecycle::workers::lint;
use stateright::{Checker, HasDiscoveries, Model, Path, Property};

use crate::fleet::Fleet;

mod scenarios;

/// Subject of a plan for the pool; the others are names of workers.
const POOL: &str = "";
const WELL: &str = "no invariant is broken, and an undisturbed world ends well";
const RESTS: &str = "it has what was asked for";
const LATE: &str = "a late write is taken";
const ORPHAN: &str = "a machine or a node is there without its worker";
const STALE: &str = "the pool is planned from a list that lags";

#[derive(Clone, Debug, PartialEq)]
enum Operator {
    Looking,
    /// It has these writes before it, about this subject.
    Acting(String, Vec<Action>),
}

#[derive(Clone, Debug)]
struct State {
    fleet: Fleet,
    operator: Operator,
    /// A write of a former leader that hangs in the network, and its subject.
    late: Option<(String, Action)>,
    /// The list of workers that the next look at the pool sees.
    frozen: Option<BTreeMap<String, Worker>>,
    lagged: bool,
    edited: bool,
    planned_from_stale: bool,
    breach: Option<String>,
    digest: u64,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.digest.hash(hasher);
    }
}

impl State {
    fn finish(mut self) -> Self {
        let mut hasher = DefaultHasher::new();
        self.fleet.digest().hash(&mut hasher);
        let rest = (&self.operator, &self.late, &self.frozen, self.lagged, self.edited, &self.breach);
        format!("{rest:?}").hash(&mut hasher);
        self.digest = hasher.finish();
        self
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// The operator looks at this, and plans.
    Look(String),
    /// It does the next write of its plan.
    Write,
    /// It dies. Another one looks anew.
    Crash,
    /// Its next write hangs in the network, and another one leads.
    Delay,
    /// The write that hung arrives.
    Arrive,
    /// The next look at the pool sees the workers of now, however late it comes.
    Lag,
    /// Infrastructure and kubelets go on.
    GoOn,
    /// The user changes the spec.
    Edit,
    /// Machines that nobody asked for are looked for.
    Sweep,
}

/// What may happen besides what must, and what holds.
#[derive(Clone)]
struct Tiny {
    begin: Fleet,
    delay: bool,
    lag: bool,
    edit: Option<fn(&mut Fleet)>,
    /// So many workers that stay are Ready, in every state.
    least_ready: usize,
    /// So many workers stay, in every state.
    least: usize,
    /// No more workers stay than this, but for what a late write brings.
    most: usize,
    wanted: Vec<&'static str>,
    /// What the linter refuses is done all the same: to see that the model itself finds it.
    unlinted: bool,
    /// Digests of worlds from which an undisturbed one ends well.
    ends_well: Arc<Mutex<BTreeSet<u64>>>,
}

impl Tiny {
    fn new(begin: Fleet) -> Self {
        Tiny {
            begin,
            delay: false,
            lag: false,
            edit: None,
            least_ready: 0,
            least: 0,
            most: usize::MAX,
            wanted: Vec::new(),
            unlinted: false,
            ends_well: Arc::default(),
        }
    }

    fn look(&self, state: &mut State, subject: &str) {
        let (actions, breaches) = if subject == POOL {
            let frozen = state.frozen.take();
            state.planned_from_stale |= frozen.is_some();
            let observed = match &frozen {
                Some(workers) => state.fleet.observe_pool_with(workers, false),
                None => state.fleet.observe_pool(),
            };
            let plan = (state.fleet.plan_pool)(&observed);
            let breaches = lint::check_pool(&observed, &plan);
            (plan.waves.concat(), breaches)
        } else {
            let observed = state.fleet.observe_worker(subject);
            let plan = (state.fleet.plan_worker)(&observed);
            state.fleet.publish(subject);
            let breaches = lint::check_worker(&observed, &plan);
            (plan.waves.concat(), breaches)
        };
        if let (Some(breach), false) = (breaches.first(), self.unlinted) {
            state.breach = Some(breach.to_string());
        }
        if !actions.is_empty() {
            state.operator = Operator::Acting(subject.into(), actions);
        }
    }

    /// One write; whether it was taken.
    fn act(&self, state: &mut State, subject: &str, action: &Action, late: bool) -> bool {
        if let Action::DeleteMachine { id } = action {
            let of = state
                .fleet
                .machines
                .values()
                .find(|(_, machine)| machine.id == *id)
                .map(|(name, _)| name.clone());
            let worker = of.as_ref().and_then(|name| state.fleet.workers.get(name));
            let own = worker
                .is_some_and(|worker| format!("machine-{}", worker.metadata.uid.as_ref().unwrap()) == *id);
            let pods = of.and_then(|name| state.fleet.pods.get(&name)).is_some_and(|pods| !pods.is_empty());
            if own && pods {
                state.breach = Some("a machine went with pods on it".into());
            }
        }
        let taken = state.fleet.act(subject, action).is_ok();
        let staying = state.fleet.staying().len();
        if taken && matches!(action, Action::Create { .. }) && staying > self.most && !late {
            state.breach = Some(format!("there are {staying} workers"));
        }
        taken
    }

    fn broken(&self, state: &State) -> Option<String> {
        let fleet = &state.fleet;
        let (staying, ready) = (fleet.staying().len(), fleet.ready());
        if staying < self.least {
            return Some(format!("only {staying} workers stay"));
        }
        if ready < self.least_ready {
            return Some(format!("only {ready} workers that stay are Ready"));
        }
        let machines: Vec<&str> = fleet.machines.values().map(|(name, _)| name.as_str()).collect();
        let names: BTreeSet<&str> = fleet.workers.keys().map(String::as_str).collect();
        // One that is made late, or one that is left of the last of its name.
        let most = names.len() + 2;
        (machines.len() > most).then(|| format!("{} machines for {} workers", machines.len(), names.len()))
    }

    /// Why an undisturbed world would not end well from here.
    fn end(&self, state: &State) -> Option<String> {
        let mut fleet = state.fleet.clone();
        fleet.unlinted = true;
        if let Some((subject, action)) = &state.late {
            let _ = fleet.act(subject, action);
        }
        let mut way = Vec::new();
        for _ in 0..100 {
            let digest = fleet.digest();
            if self.ends_well.lock().unwrap().contains(&digest) {
                break;
            }
            way.push(digest);
            let wrote = fleet.turn();
            let before = fleet.digest();
            fleet.go_on();
            if !wrote && fleet.digest() == before {
                if let Some(wrong) = at_rest(&fleet) {
                    return Some(wrong);
                }
                break;
            }
            if way.len() == 100 {
                return Some("it does not come to rest".into());
            }
        }
        self.ends_well.lock().unwrap().extend(way);
        None
    }
}

/// What is wrong with a world at rest.
fn at_rest(fleet: &Fleet) -> Option<String> {
    let Some(pool) = &fleet.pool else {
        let left = fleet.workers.len() + fleet.machines.len() + fleet.nodes.len();
        return (left > 0).then(|| format!("{left} things are left of a pool that is gone"));
    };
    let wanted = usize::try_from(pool.spec.replicas).unwrap();
    let counts = [fleet.ready(), fleet.workers.len(), fleet.machines.len(), fleet.nodes.len()];
    if counts != [wanted; 4] {
        return Some(format!("{counts:?} Ready, workers, machines and nodes instead of {wanted}"));
    }
    let other =
        fleet.workers.values().find(|worker| worker.spec.instance_type != pool.spec.instance_types[0]);
    let removing = pool.status.iter().flat_map(|status| &status.removing).count();
    match (other, removing) {
        (Some(_), _) => Some("a worker is of an old template".into()),
        (None, 0) => None,
        (None, _) => Some("workers that are gone are still chosen".into()),
    }
}

impl Model for Tiny {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let state = State {
            fleet: self.begin.clone(),
            operator: Operator::Looking,
            late: None,
            frozen: None,
            lagged: false,
            edited: false,
            planned_from_stale: false,
            breach: None,
            digest: 0,
        };
        vec![state.finish()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.breach.is_some() {
            return;
        }
        steps.push(Step::GoOn);
        match &state.operator {
            Operator::Looking => {
                if state.fleet.pool.is_some() {
                    steps.push(Step::Look(POOL.into()));
                }
                steps.extend(state.fleet.workers.keys().cloned().map(Step::Look));
                if !state.fleet.orphans().is_empty() {
                    steps.push(Step::Sweep);
                }
            }
            Operator::Acting(..) => {
                steps.extend([Step::Write, Step::Crash]);
                if self.delay && state.late.is_none() {
                    steps.push(Step::Delay);
                }
            }
        }
        if state.late.is_some() {
            steps.push(Step::Arrive);
        }
        if self.lag && !state.lagged {
            steps.push(Step::Lag);
        }
        if self.edit.is_some() && !state.edited {
            steps.push(Step::Edit);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match &step {
            Step::Look(subject) => self.look(&mut state, subject),
            Step::Write => {
                if let Operator::Acting(subject, mut writes) =
                    std::mem::replace(&mut state.operator, Operator::Looking)
                {
                    let write = writes.remove(0);
                    // Who is refused looks again.
                    if self.act(&mut state, &subject, &write, false) && !writes.is_empty() {
                        state.operator = Operator::Acting(subject, writes);
                    }
                }
            }
            Step::Crash => state.operator = Operator::Looking,
            Step::Delay => {
                if let Operator::Acting(subject, mut writes) =
                    std::mem::replace(&mut state.operator, Operator::Looking)
                {
                    state.late = Some((subject, writes.remove(0)));
                }
            }
            Step::Arrive => {
                let (subject, write) = state.late.take()?;
                self.act(&mut state, &subject, &write, true);
            }
            Step::Lag => {
                state.lagged = true;
                state.frozen = Some(state.fleet.workers.clone());
            }
            Step::GoOn => state.fleet.go_on(),
            Step::Edit => {
                state.edited = true;
                self.edit?(&mut state.fleet);
            }
            Step::Sweep => {
                for (name, action) in state.fleet.orphans() {
                    self.act(&mut state, &name, &action, false);
                }
            }
        }
        state.breach = state.breach.take().or_else(|| self.broken(&state));
        if state.breach.is_none() {
            state.breach = self.end(&state);
        }
        let state = state.finish();
        (state.digest != last.digest).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(WELL, |_, state: &State| state.breach.is_none()),
            Property::sometimes(RESTS, |tiny: &Tiny, state: &State| {
                (state.edited || tiny.edit.is_none()) && at_rest(&state.fleet).is_none()
            }),
            Property::sometimes(LATE, |_, state: &State| {
                let late = state.late.as_ref();
                late.is_some_and(|(subject, action)| state.fleet.clone().act(subject, action).is_ok())
            }),
            Property::sometimes(ORPHAN, |_, state: &State| !state.fleet.orphans().is_empty()),
            Property::sometimes(STALE, |_, state: &State| state.planned_from_stale),
        ]
    }
}

/// Explores everything; a state that cannot be right is told with the way that leads to it.
fn explore(tiny: Tiny) -> Result<usize, String> {
    let checker = tiny.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found = checker.discoveries();
    if let Some(path) = found.get(WELL) {
        let breach = path.last_state().breach.clone().unwrap_or_default();
        return Err(format!("{breach}, after\n{}", way(path).join("\n")));
    }
    if let Some(missing) = checker.model().wanted.iter().find(|name| !found.contains_key(*name)) {
        return Err(format!("it never came to this: {missing}"));
    }
    assert!(checker.is_done(), "not everything was explored");
    Ok(checker.unique_state_count())
}

/// The steps of a way, with the writes.
fn way(path: &Path<State, Step>) -> Vec<String> {
    let next = |state: &State| match &state.operator {
        Operator::Acting(subject, writes) => format!("{subject}: {}", tell(&writes[0])),
        Operator::Looking => String::new(),
    };
    let steps = path.clone().into_vec().into_iter();
    let told = steps.filter_map(|(state, step)| {
        Some(match step? {
            Step::Write => format!("writes {}", next(&state)),
            Step::Delay => format!("delayed: {}", next(&state)),
            Step::Arrive => format!("arrives: {}", state.late.as_ref().map(|(_, write)| tell(write))?),
            step => format!("{step:?}"),
        })
    });
    told.collect()
}
