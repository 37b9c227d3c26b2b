//! Measures what a person waits for and what the operator costs, on a local cluster of its own with honest
//! settings: images present, etcd on disk with fsync, no tenant prepared beforehand. Every figure stands beside what
//! it should be; one that is missed is told and fails nothing. Raw samples are kept as JSON lines.

mod crowd;
mod door;
mod line;
mod memory;
mod played;
mod player;
mod restart;
mod site;
mod stage;
mod table;
mod timeline;
mod upgrade;
mod workers;
mod writes;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Error;
use crate::audit::Mark;
use crate::cluster::{Cluster, Spec};
use crate::compile::{self, Order};
use crate::component::LOAD;
use crate::flow::Guarded;
use crate::journal::{self, Facts, Journal};
use crate::layout::{Cache, Repository};
use crate::release::OLDER;
use crate::terminal::say;
use crate::wait;

use self::restart::End;
use self::site::{Sample, Site, Storage, path};
use self::table::{Figure, Of, Unit};
use self::timeline::{MILESTONES, Timeline};
use self::writes::Writes;

/// A creation's late writes are waited for until so long nothing was written, from its last milestone on.
const SETTLE: Duration = Duration::from_secs(8);
/// Before memory is looked at: caches have been read and what was freed is given back.
const REST_BEFORE_MEMORY: Duration = Duration::from_secs(15);
/// The operator looks at a tenant at which nothing happens every ten minutes. So many looks are forced instead, by a
/// change of an annotation that means nothing, spread over a time in which whatever is periodic would show too.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_secs(36);
/// So many tenants are made at a time where their number is what counts.
const AT_A_TIME: usize = 5;
/// A tenant takes 0.6 GiB.
const TENANT_MEMORY: u64 = 640 << 20;

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Part {
    /// One tenant after the other: how long, where the time goes, which writes.
    Creation,
    /// Several tenants at once.
    Together,
    /// The operator's memory without tenants, with some and with many, and its writes at rest.
    Memory,
    /// The operator's leader stopped and killed.
    Restart,
    /// Several tenants deleted at once.
    Deletion,
    /// Workers that are pods: how long one takes, how long ten take, and what they add to the operator's memory.
    Workers,
    /// The operator's memory with tenants whose pods are played.
    Played,
    /// The operator's memory with workers that are played, of tenants that are.
    Crowd,
    /// Upgrades to the next minor version under load. It builds another Kubernetes: only where it is asked for.
    Upgrade,
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What is measured; empty: everything.
    pub only: Vec<Part>,
    /// Tenants one after the other; pools of one worker one after the other.
    pub singles: usize,
    /// Most tenants with real pods at a time.
    pub tenants: usize,
    /// Tenants with played pods; none: not measured.
    pub played: usize,
    /// Workers that are played, ten a tenant; none: not measured.
    pub crowd: usize,
    /// How often what concerns several tenants, or workers, at once is done.
    pub rounds: usize,
    /// How often the operator's leader is stopped, and how often it is killed.
    pub restarts: (usize, usize),
    /// A file that gets the figures as a table in Markdown.
    pub summary: Option<PathBuf>,
}

impl Plan {
    /// What figures that are published are measured with: about an hour.
    #[must_use]
    pub fn full() -> Self {
        Self {
            only: vec![],
            singles: 20,
            tenants: 25,
            played: 1000,
            crowd: 1000,
            rounds: 3,
            restarts: (5, 3),
            summary: None,
        }
    }

    /// A look that takes a few minutes.
    #[must_use]
    pub fn quick() -> Self {
        Self { singles: 3, tenants: 5, played: 50, crowd: 50, rounds: 1, restarts: (1, 1), ..Self::full() }
    }

    fn has(&self, part: Part) -> bool {
        (self.only.is_empty() && part != Part::Upgrade) || self.only.contains(&part)
    }

    /// Numbers of tenants that are created at once, and with which memory is looked at.
    fn steps<const N: usize>(&self, wanted: [usize; N]) -> Vec<usize> {
        wanted.into_iter().filter(|count| *count <= self.tenants).collect()
    }
}

struct Bench<'a> {
    plan: &'a Plan,
    site: Site,
    results: Results,
    /// Tenants that are there.
    standing: Vec<Sample>,
    made: usize,
}

/// What was measured so far.
struct Results {
    journal: Journal,
    figures: Vec<Figure>,
}

impl Results {
    fn add(&mut self, figure: Figure) -> Result<(), Error> {
        say(figure.line());
        self.journal.note("figure", figure.raw())?;
        self.figures.push(figure);
        Ok(())
    }
}

/// Runs the bench and prints the table, also of what was measured before a failure.
///
/// # Errors
/// What could not be built, started or measured. A missed target is none.
pub fn run(
    repository: &Repository,
    cache: &Cache,
    operator: Option<PathBuf>,
    plan: &Plan,
) -> Result<(), Error> {
    crate::prerequisite::ensure(repository, cache)?;
    let upgrades = plan.has(Part::Upgrade);
    let older = if upgrades { OLDER.iter().take(1).collect() } else { vec![] };
    let programs = if upgrades { vec![&LOAD] } else { vec![] };
    let order = Order { operator: operator.is_none(), older, programs };
    let build = compile::build_all(repository, cache, &order)?;
    let operator = operator.or(build.operator);
    let facts = Facts::take(repository)?;
    say(facts.told());
    let journal = Journal::begin(cache, "bench", &facts, &json!(format!("{plan:?}")))?;
    let mut results = Results { journal, figures: Vec::new() };
    let mut measured = Ok(());
    let on_pods = [
        Part::Creation,
        Part::Together,
        Part::Memory,
        Part::Restart,
        Part::Deletion,
        Part::Workers,
        Part::Upgrade,
    ];
    if on_pods.into_iter().any(|part| plan.has(part)) {
        let guarded = Guarded::new("bench", repository, cache)?;
        let spec =
            Spec { state: guarded.state().clone(), toolbox: build.toolbox, operator: operator.clone() };
        let mut cluster = Cluster::start(spec, cache)?;
        cluster.install_operator(repository)?;
        if plan.has(Part::Workers) {
            cluster.stock(cache)?;
        }
        let mut bench = Bench { plan, site: Site::new(cluster)?, results, standing: Vec::new(), made: 0 };
        measured = bench.measure();
        results = bench.results;
    }
    type Measure = fn(usize, &Path, &Repository, &mut Results) -> Result<(), Error>;
    let many: [(Part, usize, Measure); 2] =
        [(Part::Played, plan.played, played::measure), (Part::Crowd, plan.crowd, crowd::measure)];
    for (part, count, measure) in many {
        if let (Ok(()), true, Some(operator)) = (&measured, plan.has(part) && count > 0, &operator) {
            measured = measure(count, operator, repository, &mut results);
        }
    }
    let table = table::render(&results.figures);
    say(format!("\n{}\n\n{table}\nraw samples: {}", facts.told(), results.journal.path().display()));
    if let Some(path) = &plan.summary {
        summarize(path, &facts, &results.figures)?;
    }
    measured
}

fn summarize(path: &Path, facts: &Facts, figures: &[Figure]) -> Result<(), Error> {
    let text = format!("{}\n\n{}", facts.told(), table::markdown(figures));
    std::fs::write(path, text).map_err(Error::io("write", path))?;
    say(format!("summary: {}", path.display()));
    Ok(())
}

impl Bench<'_> {
    fn measure(&mut self) -> Result<(), Error> {
        let plan = self.plan;
        if plan.has(Part::Memory) {
            self.memory("no tenants", Some(30.0))?;
        }
        if plan.has(Part::Creation) {
            for storage in [Storage::Claim, Storage::Pod] {
                self.creation(plan.singles, storage)?;
            }
        }
        if plan.has(Part::Together) {
            for count in plan.steps([5, 10]) {
                self.together(count, Storage::Pod)?;
                self.together(count, Storage::Claim)?;
            }
        }
        if plan.has(Part::Memory) {
            let few = plan.steps([10, 25]);
            for count in if few.is_empty() { vec![plan.tenants] } else { few } {
                self.stand(count)?;
                self.memory(&format!("{count} tenants"), None)?;
            }
            self.rest()?;
        }
        if plan.has(Part::Restart) {
            self.restarts()?;
        }
        if plan.has(Part::Deletion) {
            self.deletion(plan.tenants.min(12))?;
        }
        if plan.has(Part::Workers) {
            self.workers()?;
        }
        if let (true, Some(older)) = (plan.has(Part::Upgrade), OLDER.first()) {
            self.upgrades(older)?;
        }
        self.stand(0)
    }

    /// One after the other, each gone before the next one comes.
    fn creation(&mut self, count: usize, storage: Storage) -> Result<(), Error> {
        self.stand(0)?;
        let on = storage.told();
        say(format!("one tenant after the other, {on}:"));
        let (mut samples, mut lines, mut all) = (Vec::new(), Vec::new(), Vec::new());
        let mut deletions = Vec::new();
        for _ in 0..count {
            let mark = Mark::now(&self.site.audit_log())?;
            let names = self.names(1);
            for sample in self.site.create(&names, storage)? {
                self.settle(&mark)?;
                let requests = mark.requests()?;
                let line = timeline::take(&self.site, &sample, &requests)?;
                let writes = Writes::count(&requests);
                let raw = json!({
                    "storage": on, "sample": sample.json(), "timeline": timeline::json(&line), "writes": writes.json(),
                });
                self.results.journal.note("creation", raw)?;
                say(format!(
                    "  {}: /readyz {:.2} s, ServiceAccount {:.2} s, {} writes, {} conflicts, load {:.1}",
                    sample.name,
                    sample.ready.as_secs_f64(),
                    sample.account.as_secs_f64(),
                    writes.total(),
                    writes.conflicts,
                    journal::load(),
                ));
                deletions.push(self.site.delete(std::slice::from_ref(&sample))?.as_secs_f64());
                samples.push(sample);
                lines.push(line);
                all.push(writes);
            }
        }
        let seconds = |pick: fn(&Sample) -> Duration| -> Vec<f64> {
            samples.iter().map(|sample| pick(sample).as_secs_f64()).collect()
        };
        let (ready, account) = (seconds(|sample| sample.ready), seconds(|sample| sample.account));
        let defects =
            |times: &[f64], most: f64| vec![times.iter().filter(|time| **time > most).count() as f64];
        let figures = [
            Figure::new(
                format!("applied -> kubeconfig, {on}"),
                Unit::Seconds,
                seconds(|sample| sample.kubeconfig),
            ),
            Figure::new(
                format!("applied -> /readyz through the endpoint, {on}"),
                Unit::Seconds,
                ready.clone(),
            )
            .at_most(Of::Median, 4.5),
            Figure::new("  of these above 6 s (a defect)", Unit::Times, defects(&ready, 6.0))
                .at_most(Of::Max, 0.0),
            Figure::new(format!("applied -> default ServiceAccount, {on}"), Unit::Seconds, account.clone())
                .at_most(Of::Median, 6.0),
            Figure::new("  of these above 9 s (a defect)", Unit::Times, defects(&account, 9.0))
                .at_most(Of::Max, 0.0),
            Figure::new("deletion of one tenant", Unit::Seconds, deletions),
        ];
        figures.into_iter().try_for_each(|figure| self.results.add(figure))?;
        self.tell_timeline(&lines)?;
        self.tell_writes(&all)
    }

    fn tell_timeline(&mut self, lines: &[Timeline]) -> Result<(), Error> {
        let times = |milestone: &str| -> Vec<f64> {
            lines.iter().filter_map(|line| line.get(milestone).copied()).collect()
        };
        let mut rows: Vec<(f64, Figure)> = MILESTONES
            .iter()
            .map(|milestone| Figure::new(format!("  at: {milestone}"), Unit::Seconds, times(milestone)))
            .map(|figure| (figure.median().unwrap_or(f64::INFINITY), figure))
            .collect();
        rows.sort_by(|left, right| left.0.total_cmp(&right.0));
        say("where the time goes, from the answer to the creation:");
        rows.into_iter().try_for_each(|(_, figure)| self.results.add(figure))
    }

    fn tell_writes(&mut self, all: &[Writes]) -> Result<(), Error> {
        let counts = |pick: &dyn Fn(&Writes) -> usize| -> Vec<f64> {
            all.iter().map(|writes| pick(writes) as f64).collect()
        };
        let allowed = all.iter().map(Writes::allowed).min().unwrap_or(0);
        let objects = all.iter().map(|writes| writes.objects.len()).min().unwrap_or(0);
        say(format!("writes of the operator in one creation, which makes {objects} objects:"));
        writes::lines(all).iter().for_each(say);
        let title = format!("writes in one creation ({objects} objects + {})", writes::MORE);
        let figures = [
            Figure::new(title, Unit::Times, counts(&Writes::total)).at_most(Of::Max, allowed as f64),
            Figure::new("  conflicts among them", Unit::Times, counts(&|writes| writes.conflicts))
                .at_most(Of::Max, 0.0),
            Figure::new("  other failures among them", Unit::Times, counts(&|writes| writes.refused)),
            Figure::new("  Events beside them", Unit::Times, counts(&|writes| writes.events)),
            Figure::new("  Leases beside them", Unit::Times, counts(&|writes| writes.leases)),
        ];
        figures.into_iter().try_for_each(|figure| self.results.add(figure))
    }

    /// Several at once: from the first one's creation until the last one answers.
    fn together(&mut self, count: usize, storage: Storage) -> Result<(), Error> {
        let (mut answered, mut deleted) = (Vec::new(), Vec::new());
        for _ in 0..self.plan.rounds {
            self.stand(0)?;
            let names = self.names(count);
            let samples = self.site.create(&names, storage)?;
            let first = samples.iter().map(|sample| sample.begun).min();
            let last = samples.iter().map(|sample| sample.begun + sample.ready).max();
            let time = last.zip(first).map_or(0.0, |(last, first)| (last - first).as_secs_f64());
            let on = storage.told();
            say(format!(
                "  {count} at once, {on}: all answer after {time:.1} s, load {:.1}",
                journal::load()
            ));
            let raw: Vec<_> = samples.iter().map(Sample::json).collect();
            self.results
                .journal
                .note("together", json!({"count": count, "storage": on, "all_s": time, "samples": raw}))?;
            answered.push(time);
            self.standing = samples;
            if self.plan.has(Part::Deletion) {
                deleted.push(self.delete(count)?);
            }
        }
        let name = format!("{count} at once, {} -> all answer", storage.told());
        let figure = Figure::new(name, Unit::Seconds, answered);
        self.results.add(if count == 5 { figure.at_most(Of::Median, 18.0) } else { figure })?;
        if deleted.is_empty() {
            return Ok(());
        }
        self.results.add(Figure::new(
            format!("deletion of {count} tenants, {}", storage.told()),
            Unit::Seconds,
            deleted,
        ))
    }

    fn memory(&mut self, when: &str, most: Option<f64>) -> Result<(), Error> {
        if self.standing.is_empty() && !when.starts_with("no") {
            return Ok(());
        }
        std::thread::sleep(REST_BEFORE_MEMORY);
        let replicas = self.site.replicas()?;
        for (leads, role) in [(true, "leader"), (false, "standby")] {
            let of_role = replicas.iter().filter(|replica| replica.leads == leads);
            let mut found = Vec::new();
            for replica in of_role {
                found.push(replica.memory.mebibytes());
                let raw = json!({
                    "tenants": self.standing.len(), "role": role, "pod": replica.pod, "pid": replica.pid,
                    "memory": replica.memory.json(),
                });
                self.results.journal.note("memory", raw)?;
            }
            let figure = Figure::new(format!("operator memory, {role}, {when}"), Unit::Mebibytes, found);
            self.results.add(match most {
                Some(most) => figure.at_most(Of::Max, most),
                None => figure,
            })?;
        }
        Ok(())
    }

    /// Nothing is written while nothing changes, however often the operator looks.
    fn rest(&mut self) -> Result<(), Error> {
        if self.standing.is_empty() {
            self.stand(1)?;
        }
        std::thread::sleep(SETTLE);
        let begun = Instant::now();
        let mark = Mark::now(&self.site.audit_log())?;
        for look in 0..LOOKS {
            for sample in &self.standing {
                let touched = json!({"metadata": {"annotations": {"bench": look.to_string()}}});
                self.site.patch(&path(&sample.name), &touched)?;
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        let requests = mark.requests()?;
        let found = Writes::count(&requests);
        let seconds = begun.elapsed().as_secs();
        let looks = |sample: &Sample| found.looks.get(&sample.name).copied().unwrap_or(0);
        let fewest = self.standing.iter().map(looks).min().unwrap_or(0);
        self.results.journal.note("rest", json!({"seconds": seconds, "writes": found.json()}))?;
        let own: Vec<_> = requests
            .into_iter()
            .filter(|event| event.is_of_operator() && event.is_write())
            .filter(|event| !matches!(event.resource.as_str(), "leases" | "events"))
            .collect();
        if !own.is_empty() {
            say(format!("  written at rest: {}", writes::told(&own)));
        }
        let title = format!("writes at rest, {} tenants, {seconds} s", self.standing.len());
        let figures = [
            Figure::new(title, Unit::Times, vec![found.total() as f64]).at_most(Of::Max, 0.0),
            Figure::new("  looks at each tenant meanwhile, fewest", Unit::Times, vec![fewest as f64]),
            Figure::new("  Events beside them", Unit::Times, vec![found.events as f64]),
            Figure::new("  Leases beside them", Unit::Times, vec![found.leases as f64]),
        ];
        if fewest < LOOKS as usize {
            say(format!(
                "  the operator looked only {fewest} times at a tenant that was touched {LOOKS} times"
            ));
        }
        figures.into_iter().try_for_each(|figure| self.results.add(figure))
    }

    fn restarts(&mut self) -> Result<(), Error> {
        self.stand(1)?;
        let (stops, kills) = self.plan.restarts;
        let title = "reconciling again after";
        for (end, word, count, most) in
            [(End::Stop, "a normal stop", stops, 1.0), (End::Kill, "a kill", kills, 15.0)]
        {
            let mut times = Vec::new();
            for _ in 0..count {
                let Some(tenant) = self.standing.first().map(|sample| sample.name.clone()) else { break };
                std::thread::sleep(SETTLE);
                let time = self.site.restart(end, &tenant)?.as_secs_f64();
                say(format!("  {title} {word}: {time:.2} s"));
                self.results.journal.note("restart", json!({"end": word, "seconds": time}))?;
                times.push(time);
            }
            self.results.add(
                Figure::new(format!("{title} {word}"), Unit::Seconds, times).at_most(Of::Median, most),
            )?;
        }
        Ok(())
    }

    fn deletion(&mut self, count: usize) -> Result<(), Error> {
        let mut times = Vec::new();
        for _ in 0..self.plan.rounds {
            self.stand(count)?;
            std::thread::sleep(SETTLE);
            times.push(self.delete(count)?);
        }
        let figure = Figure::new(format!("deletion of {count} tenants at once"), Unit::Seconds, times);
        self.results.add(if count == 12 { figure.at_most(Of::Median, 15.0) } else { figure })
    }

    /// Deletes so many of those that are there, at once.
    fn delete(&mut self, count: usize) -> Result<f64, Error> {
        let rest = self.standing.split_off(count.min(self.standing.len()));
        let going = std::mem::replace(&mut self.standing, rest);
        let time = self.site.delete(&going)?.as_secs_f64();
        say(format!("  {} deleted at once: all gone after {time:.1} s", going.len()));
        let raw = json!({"count": going.len(), "left": self.standing.len(), "seconds": time});
        self.results.journal.note("deletion", raw)?;
        Ok(time)
    }

    /// So many tenants are there, afterwards.
    fn stand(&mut self, count: usize) -> Result<(), Error> {
        let there = self.standing.len();
        if there > count {
            return self.delete(there - count).map(drop);
        }
        let missing = count - there;
        let free = journal::memory("MemAvailable:");
        if free < TENANT_MEMORY * missing as u64 {
            return Err(Error::Prerequisite(format!(
                "{missing} more tenants need {} MiB of memory, {} are free: ask for fewer with --tenants",
                (TENANT_MEMORY * missing as u64) >> 20,
                free >> 20
            )));
        }
        let names = self.names(missing);
        // Few at a time: on two cores more would only wait for each other, and what is looked at afterwards is the same.
        for names in names.chunks(AT_A_TIME) {
            self.standing.extend(self.site.create(names, Storage::Claim)?);
        }
        Ok(())
    }

    /// Waits until nothing more is written about a creation.
    fn settle(&self, mark: &Mark) -> Result<(), Error> {
        let mut quiet = Instant::now();
        let mut known = 0;
        let check = || {
            let written = mark.operator_writes().map_err(|error| error.to_string())?;
            if written.len() != known {
                (known, quiet) = (written.len(), Instant::now());
            }
            if quiet.elapsed() >= SETTLE { Ok(()) } else { Err(writes::told(&written)) }
        };
        let report = || self.site.cluster.kubectl().map(|kubectl| kubectl.report()).unwrap_or_default();
        wait::until("the operator to come to rest", SETTLE * 10, SETTLE / 16, check, report)
    }

    /// Names that no tenant had before.
    fn names(&mut self, count: usize) -> Vec<String> {
        let first = self.made;
        self.made += count;
        (first..self.made).map(|number| format!("t{number}")).collect()
    }
}
