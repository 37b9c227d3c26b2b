//! Workers that are pods: how long from a pool to a node that takes pods, how long ten of them take to come and to go,
//! and what one adds to the operator's memory. The tenant serves already, and the worker's image is on the node, with those of
//! the add-ons in it. That a node is Ready is worth what its pods do then: the first one of the pods' network is timed too.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Bench;
use super::site::{NAMESPACE, Site};
use super::table::{Figure, Of, Unit};
use crate::Error;
use crate::journal;
use crate::kubectl::{at, condition};
use crate::probe::Probe;
use crate::terminal::say;

/// Pools and Workers of the bench.
const POOLS: &str = "/apis/kaas.dev/v1alpha1/namespaces/bench/workerpools";
const WORKERS: &str = "/apis/kaas.dev/v1alpha1/namespaces/bench/workers";
const NODES: &str = "/api/v1/nodes";
/// Pods that are Ready once the pods' network, Services and the way to the API work where they are.
const DNS: &str = "/api/v1/namespaces/kube-system/pods?labelSelector=k8s-app%3Dkube-dns";
const TYPE: &str = "pod-small";
const MANY: usize = 10;
/// What a new pool goes through, as seen from outside.
const MILESTONES: [&str; 5] =
    ["its Worker is there", "its pod runs", "its node is there", READY, "CoreDNS on it is Ready"];
const READY: &str = "its node is Ready";

impl Bench<'_> {
    pub(super) fn workers(&mut self) -> Result<(), Error> {
        self.stand(1)?;
        let Some(tenant) = self.standing.first().map(|sample| (sample.name.clone(), sample.uid.clone()))
        else {
            return Ok(());
        };
        let inside = self.site.inside(&tenant.0)?;
        say("a pool of one worker after the other:");
        self.one_by_one(&tenant, &inside)?;
        self.up_and_down(&tenant, &inside)
    }

    fn one_by_one(&mut self, tenant: &(String, String), inside: &Probe) -> Result<(), Error> {
        let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut gone = Vec::new();
        for number in 0..self.plan.singles {
            let pool = format!("p{number}");
            let seen = self.site.first_worker(&pool, tenant, inside)?;
            let begun = Instant::now();
            self.site.remove_pool(&pool, inside)?;
            gone.push(begun.elapsed().as_secs_f64());
            let told: Vec<String> =
                seen.iter().map(|(what, time)| format!("{what} {:.2} s", time.as_secs_f64())).collect();
            say(format!("  {pool}: {}, load {:.1}", told.join(", "), journal::load()));
            let raw: BTreeMap<&str, f64> =
                seen.iter().map(|(what, time)| (*what, time.as_secs_f64())).collect();
            self.results.journal.note("worker", json!({"pool": pool, "seconds": raw}))?;
            for (what, time) in seen {
                times.entry(what).or_default().push(time.as_secs_f64());
            }
        }
        for milestone in MILESTONES {
            let samples = times.remove(milestone).unwrap_or_default();
            self.results.add(match milestone == READY {
                true => {
                    Figure::new("pool applied -> node Ready", Unit::Seconds, samples).at_most(Of::Median, 4.0)
                }
                false => Figure::new(format!("  at: {milestone}"), Unit::Seconds, samples),
            })?;
        }
        self.results.add(Figure::new("deletion of a pool of one worker", Unit::Seconds, gone))
    }

    fn up_and_down(&mut self, tenant: &(String, String), inside: &Probe) -> Result<(), Error> {
        let pool = "many";
        self.site.ask("POST", POOLS, Some(&body(pool, &tenant.0, 1)), 201)?;
        self.site.until_workers(pool, 1, inside)?;
        let (mut up, mut down, mut each) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.plan.rounds {
            let few = self.leader_memory()?;
            up.push(self.site.scale(pool, MANY, inside)?);
            let many = self.leader_memory()?;
            each.push((many - few) / (MANY - 1) as f64);
            down.push(self.site.scale(pool, 1, inside)?);
        }
        self.site.remove_pool(pool, inside)?;
        let raw = json!({"up_s": up, "down_s": down, "mib_each": each});
        self.results.journal.note("workers", raw)?;
        let figures = [
            Figure::new(format!("workers 1 -> {MANY}, all nodes Ready"), Unit::Seconds, up),
            Figure::new(format!("workers {MANY} -> 1, drained and gone"), Unit::Seconds, down),
            Figure::new("operator memory, each of nine more workers", Unit::Mebibytes, each),
        ];
        figures.into_iter().try_for_each(|figure| self.results.add(figure))
    }

    fn leader_memory(&self) -> Result<f64, Error> {
        std::thread::sleep(super::REST_BEFORE_MEMORY);
        let replicas = self.site.replicas()?;
        let leader = replicas.iter().find(|replica| replica.leads);
        leader
            .map(|replica| replica.memory.mebibytes())
            .ok_or_else(|| Error::Invalid("no process of the operator leads".to_owned()))
    }
}

impl Site {
    /// An administrator's access to a tenant.
    fn inside(&self, tenant: &str) -> Result<Probe, Error> {
        Probe::of_kubeconfig(&self.kubeconfig(tenant)?)
    }

    /// Makes a pool of one, and notes when each milestone was seen, from the answer on.
    fn first_worker(
        &self,
        pool: &str,
        tenant: &(String, String),
        inside: &Probe,
    ) -> Result<Vec<(&'static str, Duration)>, Error> {
        self.ask("POST", POOLS, Some(&body(pool, &tenant.0, 1)), 201)?;
        let begun = Instant::now();
        let name = format!("{pool}-0");
        let machine = format!("/api/v1/namespaces/kaas-workers-{}/pods/{name}", tenant.1);
        let mut seen: Vec<(&'static str, Duration)> = Vec::new();
        let serves = |pod: &Value| {
            at(pod, "/spec/nodeName") == name.as_str() && condition(pod, "Ready") == Some("True")
        };
        self.until(&format!("the node of pool {pool} to be Ready"), || {
            while let Some(milestone) = MILESTONES.get(seen.len()) {
                let (api, path) = match seen.len() {
                    0 => (&self.api, format!("{WORKERS}/{name}")),
                    1 => (&self.api, machine.clone()),
                    4 => (inside, DNS.to_owned()),
                    _ => (inside, format!("{NODES}/{name}")),
                };
                let object =
                    super::site::ask(api, "GET", &path, None, 200).map_err(|error| error.to_string())?;
                let reached = match seen.len() {
                    1 => at(&object, "/status/phase") == "Running",
                    3 => condition(&object, "Ready") == Some("True"),
                    4 => at(&object, "/items").as_array().is_some_and(|pods| pods.iter().any(serves)),
                    _ => true,
                };
                if !reached {
                    return Err(format!("not yet: {milestone}"));
                }
                seen.push((milestone, begun.elapsed()));
            }
            Ok(())
        })?;
        Ok(seen)
    }

    /// Asks for so many; seconds until they are there and no others.
    fn scale(&self, pool: &str, count: usize, inside: &Probe) -> Result<f64, Error> {
        self.patch(&format!("{POOLS}/{pool}"), &json!({"spec": {"replicas": count}}))?;
        let begun = Instant::now();
        self.until_workers(pool, count, inside)?;
        let time = begun.elapsed().as_secs_f64();
        say(format!("  {count} workers after {time:.1} s, load {:.1}", journal::load()));
        Ok(time)
    }

    /// As many Workers and Ready nodes of the pool as asked for, and no others.
    fn until_workers(&self, pool: &str, count: usize, inside: &Probe) -> Result<(), Error> {
        let of_pool = |object: &&Value| {
            let name = at(object, "/metadata/name").as_str().unwrap_or_default();
            name.rsplit_once('-').is_some_and(|(of, _)| of == pool)
        };
        self.until(&format!("{count} workers of pool {pool}"), || {
            let items = |list: Value| at(&list, "/items").as_array().cloned().unwrap_or_default();
            let nodes =
                super::site::ask(inside, "GET", NODES, None, 200).map_err(|error| error.to_string())?;
            let nodes = items(nodes);
            let nodes: Vec<&Value> = nodes.iter().filter(of_pool).collect();
            let ready = nodes.iter().filter(|node| condition(node, "Ready") == Some("True")).count();
            let workers = items(self.get(WORKERS).map_err(|error| error.to_string())?);
            let workers = workers.iter().filter(of_pool).count();
            match (workers, nodes.len(), ready) == (count, count, count) {
                true => Ok(()),
                false => Err(format!("{workers} Workers, {} nodes, {ready} of them Ready", nodes.len())),
            }
        })
    }

    fn remove_pool(&self, pool: &str, inside: &Probe) -> Result<(), Error> {
        let path = format!("{POOLS}/{pool}");
        self.ask("DELETE", &path, None, 200)?;
        self.until(&format!("pool {pool} to be gone"), || match self.api.get(&path) {
            Ok(404) => Ok(()),
            other => Err(format!("{path}: {other:?}")),
        })?;
        self.until_workers(pool, 0, inside)
    }
}

fn body(name: &str, cluster: &str, replicas: usize) -> Value {
    json!({
        "apiVersion": "kaas.dev/v1alpha1", "kind": "WorkerPool", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "clusterName": cluster, "replicas": replicas, "instanceTypes": [TYPE], "infrastructure": {"pod": {}},
        },
    })
}
