//! How long nobody reconciles when the operator's leader goes: from the moment it is told to stop (its pod is
//! deleted) or is killed, until a change that was made after that moment is acted upon by another process. What the old
//! leader still did on its way out does not count: the audit log names the pod that wrote.

use std::time::{Duration, Instant};

use serde_json::json;

use super::site::{Site, path};
use crate::Error;
use crate::audit::Mark;
use crate::kubectl::at;

/// How a leader goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Stop,
    Kill,
}

impl Site {
    /// Ends the leader, and changes a tenant until another process acts on a change. `tenant` exists and is at rest.
    pub(super) fn restart(&self, end: End, tenant: &str) -> Result<Duration, Error> {
        let replicas = self.replicas()?;
        let leader = replicas
            .iter()
            .find(|replica| replica.leads)
            .ok_or_else(|| Error::Invalid("no process of the operator leads".to_owned()))?;
        let mark = Mark::now(&self.audit_log())?;
        let begun = Instant::now();
        match end {
            End::Stop => {
                let pod = format!("/api/v1/namespaces/kaas-system/pods/{}", leader.pod);
                self.ask("DELETE", &pod, None, 200)?;
            }
            End::Kill => {
                let pid = rustix::process::Pid::from_raw(leader.pid)
                    .ok_or_else(|| Error::Invalid(format!("{} is no process", leader.pid)))?;
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).map_err(|error| {
                    Error::Invalid(format!("process {} was not killed: {error}", leader.pid))
                })?;
            }
        }
        let mut paused = true;
        let time = loop {
            let changed = self.patch(&path(tenant), &json!({"spec": {"paused": paused}}))?;
            let generation = at(&changed, "/metadata/generation").as_i64().unwrap_or(0);
            self.until(&format!("a change of {tenant} to be acted upon"), || {
                let object = self.get(&path(tenant)).map_err(|error| error.to_string())?;
                let seen = at(&object, "/status/observedGeneration").as_i64().unwrap_or(0);
                if seen >= generation { Ok(()) } else { Err(format!("{seen} of {generation} seen")) }
            })?;
            let time = begun.elapsed();
            paused = !paused;
            // A process that was killed writes no more; one that was told to stop may.
            if end == End::Kill || self.last_writer(&mark, tenant)?.is_some_and(|pod| pod != leader.pod) {
                break time;
            }
        };
        self.patch(&path(tenant), &json!({"spec": {"paused": false}}))?;
        self.cluster.kubectl()?.await_deployment("kaas-system", "kaas-operator", Duration::from_secs(120))?;
        Ok(time)
    }

    /// The pod that wrote a tenant's status last. The log is written a moment after the answer.
    fn last_writer(&self, mark: &Mark, tenant: &str) -> Result<Option<String>, Error> {
        self.until("the write to be in the audit log", || {
            let requests = mark.requests().map_err(|error| error.to_string())?;
            let last = requests.into_iter().rev().find(|event| {
                event.is_write()
                    && event.is_of_operator()
                    && event.resource == "tenantclusters"
                    && event.name == tenant
                    && event.code < 300
            });
            last.map(|event| Some(event.pod)).ok_or_else(|| "nobody wrote".to_owned())
        })
    }
}
