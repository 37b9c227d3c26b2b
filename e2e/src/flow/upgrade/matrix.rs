//! The whole way that versions go, under a hundred thousand requests: Kubernetes and its workers to the next minor
//! version, then etcd to its next one and back; of one and two API servers, of one and three members. What clients saw is
//! judged over all of it, and kept raw.

use std::time::Instant;

use serde_json::json;

use super::super::traffic::{self, Report, Traffic};
use super::super::{Flow, Stage, VERSIONS, claim, etcd_version};
use super::{TENANT, arrive, prepare, recorded, remove, runs};
use crate::Error;
use crate::journal::{Facts, Journal};
use crate::kubectl::Kubectl;
use crate::release::{NEWEST, oldest};
use crate::terminal::say;

/// Over both loads.
const REQUESTS: u64 = 100_000;
/// Of those from outside: somewhat more than half, because the load inside makes about as many.
const OUTSIDE: u64 = 60_000;

pub(in super::super) const FLOWS: &[Flow] = &[
    Flow {
        name: "all versions, 1 API server, 1 member",
        local_only: Some(VERSIONS),
        run: |stage| way(stage, 1, 1),
    },
    Flow {
        name: "all versions, 2 API servers, 1 member",
        local_only: Some(VERSIONS),
        run: |stage| way(stage, 2, 1),
    },
    Flow {
        name: "all versions, 1 API server, 3 members",
        local_only: Some(VERSIONS),
        run: |stage| way(stage, 1, 3),
    },
    Flow {
        name: "all versions, 2 API servers, 3 members",
        local_only: Some(VERSIONS),
        run: |stage| way(stage, 2, 3),
    },
];

fn way(stage: &Stage, servers: usize, members: usize) -> Result<(), Error> {
    let ground = stage.ground()?;
    let facts = Facts::take(&ground.repository)?;
    let plan = json!({"from": oldest()?.kubernetes, "to": NEWEST.kubernetes, "servers": servers, "members": members});
    let mut journal = Journal::begin(&ground.cache, "soak", &facts, &plan)?;
    let kubectl = prepare(stage, servers, members)?;
    let seen = under_traffic(stage, &kubectl, members, &mut journal);
    say(format!("  raw: {}", journal.path().display()));
    remove(stage)?;
    seen
}

fn under_traffic(
    stage: &Stage,
    kubectl: &Kubectl,
    members: usize,
    journal: &mut Journal,
) -> Result<(), Error> {
    let traffic = Traffic::start(stage, TENANT, OUTSIDE)?;
    let walked = walk(stage, kubectl, members, journal);
    // What it holds on is of interest after a failure too.
    let reports = traffic.finish();
    for (index, report) in reports.iter().flatten().enumerate() {
        let from = if index == 0 { "outside" } else { "inside" };
        journal.note("clients", json!({"from": from, "report": report}))?;
    }
    walked?;
    let reports = reports?;
    traffic::judge(&reports)?;
    let requests: u64 = reports.iter().map(Report::requests).sum();
    claim(requests >= REQUESTS, || format!("{requests} requests were made, at least {REQUESTS} are wanted"))
}

fn walk(stage: &Stage, kubectl: &Kubectl, members: usize, journal: &mut Journal) -> Result<(), Error> {
    let begun = Instant::now();
    stage.change(TENANT, &json!({"version": NEWEST.kubernetes}))?;
    arrive(stage, kubectl)?;
    runs(stage, kubectl, &NEWEST)?;
    recorded(stage)?;
    let mut told = |what: &str, begun: Instant| {
        let seconds = begun.elapsed().as_secs_f64();
        say(format!("  {what} after {seconds:.1} s"));
        journal.note("step", json!({"to": what, "seconds": seconds}))
    };
    told(&format!("Kubernetes {}", NEWEST.kubernetes), begun)?;
    for version in [NEWEST.etcd, oldest()?.etcd] {
        let begun = Instant::now();
        etcd_version::change(stage, TENANT, members, version)?;
        told(&format!("etcd {version}"), begun)?;
    }
    Ok(())
}
