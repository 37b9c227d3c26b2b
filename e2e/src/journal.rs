//! The raw samples: a file of JSON lines, written as they come, so that a run that breaks off leaves what it had.
//! The first line says on which machine, from which commit and how loaded; each other one has its `kind`. The file
//! is in the cache, where `make down` does not reach.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Error;
use crate::invocation::Invocation;
use crate::layout::{Cache, Repository};

/// An open file of samples.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Begins a run: `$KAAS_CACHE/<purpose>/<date>-<commit>.jsonl`.
    pub(crate) fn begin(cache: &Cache, purpose: &str, facts: &Facts, plan: &Value) -> Result<Self, Error> {
        let directory = cache.root().join(purpose);
        std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let name = format!("{}-{}", facts.stamp(), facts.short_commit());
        // Two runs that begin in the same second have files of their own.
        let path = (1..)
            .map(|number| if number == 1 { name.clone() } else { format!("{name}-{number}") })
            .map(|name| directory.join(name + ".jsonl"))
            .find(|path| !path.exists())
            .unwrap_or_else(|| directory.join(&name));
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        let mut journal = Self { path, file };
        journal.note("run", json!({"machine": facts.json(), "plan": plan}))?;
        Ok(journal)
    }

    /// One line: a sample with its kind, the time and the load.
    pub(crate) fn note(&mut self, kind: &str, sample: Value) -> Result<(), Error> {
        let mut line = json!({"kind": kind, "time": Timestamp::now().to_string(), "load": load()});
        if let (Some(line), Value::Object(sample)) = (line.as_object_mut(), sample) {
            line.extend(sample);
        }
        writeln!(self.file, "{line}").map_err(Error::io("write", &self.path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// What the figures depend on besides the code.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    time: Timestamp,
    commit: String,
    /// Files that differ from the commit.
    changed: usize,
    kernel: String,
    processor: String,
    cores: usize,
    memory_mib: u64,
    available_mib: u64,
    /// Load average over a minute, before anything of the bench ran.
    load: f64,
}

impl Facts {
    pub(crate) fn take(repository: &Repository) -> Result<Self, Error> {
        let git = |args: &[&str]| Invocation::new("git").args(args).directory(repository.root()).run();
        let processors = read("/proc/cpuinfo");
        let processor = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            time: Timestamp::now(),
            commit: git(&["rev-parse", "HEAD"]).unwrap_or_default().trim().to_owned(),
            changed: git(&["status", "--porcelain"]).unwrap_or_default().lines().count(),
            kernel: Invocation::new("uname").arg("-srm").run()?.trim().to_owned(),
            processor: processor.map_or("unknown", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory("MemTotal:") >> 20,
            available_mib: memory("MemAvailable:") >> 20,
            load: load(),
        })
    }

    fn stamp(&self) -> String {
        let text = self.time.to_string();
        let seconds = text.split('.').next().unwrap_or(&text);
        seconds.chars().filter(|letter| !matches!(letter, '-' | ':' | 'Z')).collect()
    }

    fn short_commit(&self) -> String {
        let commit = self.commit.get(..9).unwrap_or("unknown");
        format!("{commit}{}", if self.changed > 0 { "-changed" } else { "" })
    }

    fn json(&self) -> Value {
        json!({
            "commit": self.commit, "changed_files": self.changed, "kernel": self.kernel, "processor": self.processor,
            "cores": self.cores, "memory_mib": self.memory_mib, "available_mib": self.available_mib,
            "load_before": self.load,
        })
    }

    /// Two lines for a person. On a busy machine all times are upper bounds, and that is said.
    pub(crate) fn told(&self) -> String {
        let busy = self.load > self.cores as f64 * 0.25;
        format!(
            "commit {}, {}\n{} cores ({}), {} MiB of memory, {} free, {}, load before {:.2}{}",
            self.short_commit(),
            self.time,
            self.cores,
            self.processor,
            self.memory_mib,
            self.available_mib,
            self.kernel,
            self.load,
            if busy { ": the machine was busy, so times are upper bounds" } else { "" },
        )
    }
}

/// Load average over the last minute.
pub(crate) fn load() -> f64 {
    read("/proc/loadavg").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn memory(line: &str) -> u64 {
    let text = read("/proc/meminfo");
    let found = text.lines().find_map(|text| text.strip_prefix(line)).unwrap_or_default();
    found.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
