//! Long-running programs of the local cluster: started detached (own session, output into a log file, a
//! clean environment), known by pid and start time so that a pid used again is never taken for them, ended
//! by TERM and then KILL with a deadline.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::digest::Hasher;

const POLL: Duration = Duration::from_millis(10);
/// Nothing of the caller's environment (proxies, kubeconfigs, locale) reaches a daemon.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to run.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    /// Files whose content it reads at its start only: a change restarts it.
    pub(crate) reads: Vec<PathBuf>,
}

/// Where a program runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    /// `cgroup.procs` of the control group that it enters first.
    pub(crate) cgroup: Option<PathBuf>,
    /// Network namespace.
    pub(crate) network: Option<PathBuf>,
    /// Mount namespace.
    pub(crate) mount: Option<PathBuf>,
    /// Killed by the kernel when the thread that started it ends.
    pub(crate) dies_with_parent: bool,
}

/// A running program, recognisable after a restart of whoever started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// Start time in clock ticks since boot (field 22 of /proc/PID/stat).
    started: u64,
    /// Over program, arguments and configuration.
    pub(crate) digest: String,
}

impl Daemon {
    /// What it is started with, as one digest.
    pub(crate) fn digest(&self) -> String {
        let mut hasher = Hasher::new();
        hasher.field(self.program.as_os_str().as_encoded_bytes());
        self.args.iter().for_each(|arg| hasher.field(arg.as_bytes()));
        for path in &self.reads {
            hasher.field(&std::fs::read(path).unwrap_or_default());
        }
        hasher.finish()
    }

    /// Starts it. The pid is its own from the first moment: every stage replaces the one before.
    pub(crate) fn start(&self, place: &Place, log: &Path) -> Result<Identity, Error> {
        let out = OpenOptions::new().create(true).append(true).open(log).map_err(Error::io("open", log))?;
        let err = out.try_clone().map_err(Error::io("open", log))?;
        let mut command = Command::new("setsid");
        if place.dies_with_parent {
            command.args(["setpriv", "--pdeathsig", "KILL", "--"]);
        }
        if let Some(procs) = &place.cgroup {
            command.args(["sh", "-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(procs);
        }
        if place.network.is_some() || place.mount.is_some() {
            command.arg("nsenter");
            if let Some(network) = &place.network {
                command.arg(format!("--net={}", network.display()));
            }
            if let Some(mount) = &place.mount {
                command.arg(format!("--mount={}", mount.display()));
            }
            command.arg("--");
        }
        command.arg(&self.program).args(&self.args);
        command.current_dir("/").env_clear().env("PATH", PATH).env("HOME", "/root");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = command.spawn().map_err(Error::io("start", &self.program))?;
        let pid = child.id().cast_signed();
        let stat = Stat::read(pid).ok_or_else(|| {
            Error::Invalid(format!("{} ended at once; its log: {}", self.name, log.display()))
        })?;
        Ok(Identity { pid, started: stat.started, digest: self.digest() })
    }
}

impl Identity {
    /// Still the same process, and not a zombie.
    pub(crate) fn alive(&self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.started == self.started && stat.state != 'Z')
    }

    /// Ends it: TERM, and KILL after the grace period. Returns when it is gone.
    pub(crate) fn stop(&self, grace: Duration) -> Result<(), Error> {
        self.signal(Signal::TERM);
        if self.await_end(grace) {
            return Ok(());
        }
        self.signal(Signal::KILL);
        let last = Duration::from_secs(10);
        if self.await_end(last) {
            return Ok(());
        }
        Err(Error::Deadline {
            what: format!("end of process {} after KILL", self.pid),
            seconds: last.as_secs(),
            dump: String::new(),
        })
    }

    /// Stops it where it is.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if self.alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            let _ = kill_process(pid, signal);
        }
    }

    fn await_end(&self, deadline: Duration) -> bool {
        let started = Instant::now();
        while self.alive() {
            if started.elapsed() > deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        // It may be our child: take its exit status, or it stays a zombie as long as we run.
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        }
        true
    }
}

struct Stat {
    state: char,
    started: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The program's name is in brackets and may hold any character, brackets too.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let state = fields.next()?.chars().next()?;
        // `state` is field 3; field 22 is 18 behind the one after it.
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self { state, started })
    }
}

/// The same command, told to end when the thread ends that starts it: a compiler has a process group of its
/// own, so that it can be ended with its children, and would not hear the interrupt that ends this process.
pub(crate) fn dying_with_us(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "TERM", "--"]).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Daemon {
        Daemon { name: "sleep", program: "sleep".into(), args: vec!["60".into()], reads: vec![] }
    }

    #[test]
    fn the_name_may_hold_brackets() {
        let text = "77 (a) b (c)) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.started), ('S', 4711));
    }

    #[test]
    fn started_found_again_and_ended() {
        let directory = tempfile::tempdir().unwrap();
        let identity = sleeper().start(&Place::default(), &directory.path().join("log")).unwrap();
        assert!(identity.alive());
        let other = Identity { started: identity.started + 1, ..identity.clone() };
        assert!(!other.alive(), "a pid used again is somebody else");
        identity.stop(Duration::from_secs(5)).unwrap();
        assert!(!identity.alive());
        identity.stop(Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn term_ignored_is_followed_by_kill() {
        let directory = tempfile::tempdir().unwrap();
        let ready = directory.path().join("ready");
        let script = format!("trap '' TERM; touch {}; while :; do sleep 0.1; done", ready.display());
        let daemon =
            Daemon { name: "sh", program: "sh".into(), args: vec!["-c".into(), script], reads: vec![] };
        let identity = daemon.start(&Place::default(), &directory.path().join("log")).unwrap();
        let started = Instant::now();
        while !ready.exists() && started.elapsed() < Duration::from_secs(10) {
            std::thread::yield_now();
        }
        identity.stop(Duration::from_millis(100)).unwrap();
        assert!(!identity.alive());
    }
}
