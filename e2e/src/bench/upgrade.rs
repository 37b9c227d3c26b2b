//! An upgrade to the next minor version under the load of the real client-go from outside: how long each step takes, as
//! `status.operation` tells it, and what clients notice; with one API server and with two. Workers and what runs inside
//! are for the flows.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Bench;
use super::site::{Site, Storage, path, tenant};
use super::table::{Figure, Of, Unit};
use crate::Error;
use crate::credentials::write_private;
use crate::flow::traffic::{Kind, Outside, Report};
use crate::journal;
use crate::kubectl::{at, condition};
use crate::release::{NEWEST, Release};
use crate::terminal::say;

const SOAK: &str = "10s";
/// Before and after the upgrade: what it is compared with.
const CALM: Duration = Duration::from_secs(5);

/// One upgrade.
struct Upgrade {
    /// Each with when it began and ended, from the change of the spec on.
    steps: Vec<(String, f64)>,
    whole: f64,
    report: Report,
}

impl Bench<'_> {
    pub(super) fn upgrades(&mut self, from: &Release) -> Result<(), Error> {
        self.stand(0)?;
        for replicas in [1, 2] {
            let servers =
                if replicas == 1 { "1 API server".to_owned() } else { format!("{replicas} API servers") };
            say(format!("{} -> {} under load, {servers}:", from.kubernetes, NEWEST.kubernetes));
            let mut all = Vec::new();
            for _ in 0..self.plan.rounds {
                all.push(self.upgrade(from, replicas)?);
            }
            self.tell_upgrades(&servers, &all)?;
        }
        Ok(())
    }

    fn upgrade(&mut self, from: &Release, replicas: usize) -> Result<Upgrade, Error> {
        let names = self.names(1);
        let name = names.first().map(String::as_str).unwrap_or_default();
        let mut body = tenant(name, Storage::Claim);
        for (field, value) in
            [("/spec/version", json!(from.kubernetes)), ("/spec/controlPlane/replicas", json!(replicas))]
        {
            if let Some(old) = body.pointer_mut(field) {
                *old = value;
            }
        }
        body.pointer_mut("/spec")
            .and_then(Value::as_object_mut)
            .map(|spec| spec.insert("upgrade".into(), json!({"soak": SOAK})));
        let sample = self.site.create_of(name, &body)?;
        self.standing.push(sample);
        self.site.until_settled(name, from)?;
        let folder = tempfile::tempdir().map_err(Error::io("make", "a folder for a kubeconfig"))?;
        let kubeconfig = folder.path().join("kubeconfig");
        write_private(&kubeconfig, &self.site.kubeconfig(name)?)?;
        let program = self.site.cluster.toolbox.program("load")?.to_owned();
        let load = Outside::start(&program, &kubeconfig, "default", 0, None)?;
        std::thread::sleep(CALM);
        let found = self.site.follow_upgrade(name);
        std::thread::sleep(CALM);
        // What clients saw is of interest after a failure too.
        let report = load.finish()?;
        report.lines().iter().for_each(|line| say(format!("    {line}")));
        let (steps, whole) = found?;
        say(format!("  {whole:.1} s, {} requests, load {:.1}", report.requests(), journal::load()));
        let raw: Vec<Value> =
            steps.iter().map(|(step, seconds)| json!({"step": step, "seconds": seconds})).collect();
        let clients: Vec<String> = report.lines();
        self.results.journal.note(
            "upgrade",
            json!({"replicas": replicas, "seconds": whole, "steps": raw, "clients": clients}),
        )?;
        self.stand(0)?;
        Ok(Upgrade { steps, whole, report })
    }

    fn tell_upgrades(&mut self, servers: &str, all: &[Upgrade]) -> Result<(), Error> {
        let of = |pick: &dyn Fn(&Upgrade) -> f64| -> Vec<f64> { all.iter().map(pick).collect() };
        let failed = |kind: Kind| {
            of(&move |upgrade| {
                let clients = upgrade.report.clients.iter().filter(|clients| clients.kind == kind);
                clients.map(|clients| clients.failed.count as f64).sum()
            })
        };
        let mut steps: Vec<(&str, Vec<f64>)> = Vec::new();
        for (step, seconds) in all.iter().flat_map(|upgrade| &upgrade.steps) {
            match steps.iter_mut().find(|(known, _)| known == step) {
                Some((_, times)) => times.push(*seconds),
                None => steps.push((step, vec![*seconds])),
            }
        }
        let lost = of(&|upgrade| {
            upgrade.report.watches.iter().map(|watch| (watch.lost.count + watch.repeated.count) as f64).sum()
        });
        let longest = |pick: &dyn Fn(&Report) -> Vec<f64>| {
            of(&|upgrade| pick(&upgrade.report).into_iter().fold(0.0, f64::max))
        };
        let mut figures =
            vec![Figure::new(format!("upgrade, {servers}"), Unit::Seconds, of(&|upgrade| upgrade.whole))];
        figures.extend(
            steps.into_iter().map(|(step, times)| Figure::new(format!("  {step}"), Unit::Seconds, times)),
        );
        figures.extend([
            Figure::new("  requests", Unit::Times, of(&|upgrade| upgrade.report.requests() as f64)),
            Figure::new("  failed on new connections", Unit::Times, failed(Kind::Fresh))
                .at_most(Of::Max, 0.0),
            Figure::new("  failed of slow requests", Unit::Times, failed(Kind::Slow)).at_most(Of::Max, 0.0),
            Figure::new("  failed by client-go's rules", Unit::Times, failed(Kind::Retried))
                .at_most(Of::Max, 0.0),
            Figure::new("  failed on reused connections, not tried again", Unit::Times, failed(Kind::Reused)),
            Figure::new("  watch events lost or repeated", Unit::Times, lost).at_most(Of::Max, 0.0),
            Figure::new(
                "  longest gap",
                Unit::Seconds,
                longest(&|report| report.clients.iter().map(|clients| clients.longest_gap).collect()),
            ),
            Figure::new(
                "  longest wait of a watch",
                Unit::Seconds,
                longest(&|report| report.watches.iter().map(|watch| watch.longest_wait).collect()),
            )
            .at_most(Of::Max, 1.0),
        ]);
        figures.into_iter().try_for_each(|figure| self.results.add(figure))
    }
}

impl Site {
    /// Until everything of it runs.
    fn until_settled(&self, name: &str, release: &Release) -> Result<(), Error> {
        self.until(&format!("{name} to run"), || {
            let tenant = self.get(&path(name)).map_err(|error| error.to_string())?;
            let whole = condition(&tenant, "ControlPlaneAvailable") == Some("True")
                && condition(&tenant, "Reconciling") == Some("False");
            match whole && at(&tenant, "/status/version") == release.kubernetes {
                true => Ok(()),
                false => Err(at(&tenant, "/status/summary").to_string()),
            }
        })
    }

    /// Asks for the newest version, and notes each step until it is done: its words, and how long they stood.
    fn follow_upgrade(&self, name: &str) -> Result<(Vec<(String, f64)>, f64), Error> {
        self.patch(&path(name), &json!({"spec": {"version": NEWEST.kubernetes}}))?;
        let begun = Instant::now();
        let mut steps: Vec<(String, Instant)> = Vec::new();
        let result = self.until(&format!("the upgrade of {name} to be over"), || {
            let tenant = self.get(&path(name)).map_err(|error| error.to_string())?;
            let step = at(&tenant, "/status/operation/step").as_str().unwrap_or_default();
            if !step.is_empty() && steps.last().is_none_or(|(last, _)| last != step) {
                steps.push((step.to_owned(), Instant::now()));
            }
            let last = at(&tenant, "/status/history/0");
            match at(last, "/type") == "Upgrade" && step.is_empty() {
                true => Ok(at(last, "/result").as_str().unwrap_or_default().to_owned()),
                false => Err(at(&tenant, "/status/summary").to_string()),
            }
        })?;
        if result != "Succeeded" {
            return Err(Error::Invalid(format!("the upgrade of {name} ended with `{result}`")));
        }
        let over = Instant::now();
        let ends = steps.iter().skip(1).map(|(_, begin)| *begin).chain([over]);
        let lasted =
            steps.iter().zip(ends).map(|((step, begin), end)| (step.clone(), (end - *begin).as_secs_f64()));
        Ok((lasted.collect(), (over - begun).as_secs_f64()))
    }
}
