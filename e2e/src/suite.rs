//! `make test`: every check of the project in the order in which it is cheapest to fail, and one last line
//! that sums up what ran. A step that breaks does not hide the ones after it. It never passes when nothing
//! ran: a test run without a single test is a failure.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;
use crate::flow::{self, Tally};
use crate::layout::{Cache, Repository};
use crate::prerequisite;
use crate::terminal::say;

const LINTS_DEADLINE: Duration = Duration::from_secs(1500);
const TESTS_DEADLINE: Duration = Duration::from_secs(2400);
const SHORT_DEADLINE: Duration = Duration::from_secs(600);
const DENY_VERSION: &str = "0.20";
const POLL: Duration = Duration::from_millis(50);

/// Runs everything.
///
/// # Errors
/// [`Error::Prerequisite`] when nothing can run; [`Error::Invalid`] when a check failed.
pub fn run(repository: &Repository, cache: &Cache) -> Result<(), Error> {
    let started = Instant::now();
    prerequisite::ensure(repository, cache)?;
    let cargo = |args: &[&str]| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(repository.root()).args(args).env("CARGO_TARGET_DIR", cache.target());
        command
    };
    let mut tally = Tally::default();
    step("format", cargo(&["fmt", "--all", "--check"]), SHORT_DEADLINE, &mut tally);
    let lints = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    step("lints", cargo(&lints), LINTS_DEADLINE, &mut tally);
    let manifests = ["run", "--quiet", "--package", "kaas-crds", "--bin", "manifests", "--", "--check"];
    step("generated files", cargo(&manifests), SHORT_DEADLINE, &mut tally);
    let dependencies = deny(repository, cache).map(|program| {
        let mut command = Command::new(program);
        command.current_dir(repository.root()).args(["check", "bans", "licenses", "sources"]);
        command
    });
    match dependencies {
        Ok(command) => step("dependencies", command, SHORT_DEADLINE, &mut tally),
        Err(error) => fail("dependencies", &error, &mut tally),
    }
    let tests = ["test", "--workspace", "--no-fail-fast"];
    tests_step(cargo(&tests), &mut |line| say(line), &mut tally);
    match flow::run(repository, cache, None, flow::Extent::Short) {
        Ok(flows) => tally.add(flows),
        Err(error) => fail("flows", &error, &mut tally),
    }
    for skipped in &tally.skipped {
        say(format!("skipped: {skipped}"));
    }
    say(format!("all of it took {} s", started.elapsed().as_secs()));
    conclude(&tally)
}

/// The last line, and the verdict.
pub(crate) fn conclude(tally: &Tally) -> Result<(), Error> {
    say(format!("{} passed, {} failed", tally.passed, tally.failed));
    verdict(tally)
}

/// Nothing failed, and something ran.
fn verdict(tally: &Tally) -> Result<(), Error> {
    if tally.failed == 0 && tally.passed > 0 {
        return Ok(());
    }
    Err(Error::Invalid(match tally.failed {
        0 => "nothing ran".to_owned(),
        failed => format!("{failed} failed: look for FAILED above"),
    }))
}

fn fail(name: &str, error: &Error, tally: &mut Tally) {
    say(format!("{name}: FAILED\n{error}"));
    tally.count(false);
}

fn step(name: &str, command: Command, deadline: Duration, tally: &mut Tally) {
    let started = Instant::now();
    let outcome = stream(command, deadline, &mut |line| say(line));
    let seconds = started.elapsed().as_secs();
    let word = if outcome { "ok" } else { "FAILED" };
    say(format!("{name}: {word} ({seconds} s)"));
    tally.count(outcome);
}

/// Counts the single tests; a run that ends badly without a failed test (it did not compile, it crashed)
/// is a failure of its own, and so is one without any test.
fn tests_step(command: Command, show: &mut dyn FnMut(&str), tally: &mut Tally) {
    let started = Instant::now();
    let mut counts = Counts::default();
    let outcome = stream(command, TESTS_DEADLINE, &mut |line| {
        counts.read(line);
        show(line);
    });
    let broken = (!outcome && counts.failed == 0) || counts.passed + counts.failed == 0;
    tally.passed += counts.passed;
    tally.failed += counts.failed + usize::from(broken);
    let word = if outcome && !broken { "ok" } else { "FAILED" };
    show(&format!("tests: {word} ({} s)", started.elapsed().as_secs()));
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
}

impl Counts {
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; ...`
    fn read(&mut self, line: &str) {
        let Some((_, rest)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in rest.split("; ") {
            match part.split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse::<usize>().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse::<usize>().unwrap_or(0),
                _ => {}
            }
        }
    }
}

/// Runs a command with its standard output line by line; false when it fails or outlives its deadline.
fn stream(command: Command, deadline: Duration, each: &mut dyn FnMut(&str)) -> bool {
    let started = Instant::now();
    let mut command = crate::process::dying_with_us(&command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            say(format!("cannot start {:?}: {error}", command.get_program()));
            return false;
        }
    };
    let (lines, received) = std::sync::mpsc::channel();
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
    }
    loop {
        while let Ok(line) = received.recv_timeout(POLL) {
            each(&line);
        }
        match child.try_wait() {
            Ok(Some(status)) => {
                // What was written before the end, and may still be on its way.
                while let Ok(line) = received.recv_timeout(POLL) {
                    each(&line);
                }
                return status.success();
            }
            Ok(None) if started.elapsed() < deadline => {}
            _ => {
                if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                let _ = child.wait();
                say(format!("ended after {} s: too long", started.elapsed().as_secs()));
                return false;
            }
        }
    }
}

/// cargo-deny from the cache, installed there when it is missing.
fn deny(repository: &Repository, cache: &Cache) -> Result<PathBuf, Error> {
    let root = cache.root().join(format!("cargo-deny-{DENY_VERSION}"));
    let program = root.join("bin/cargo-deny");
    if program.exists() {
        return Ok(program);
    }
    say(format!("installing cargo-deny {DENY_VERSION} into {}", root.display()));
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(repository.root())
        .args([
            "install",
            "cargo-deny",
            "--locked",
            "--quiet",
            "--version",
            &format!("^{DENY_VERSION}"),
            "--root",
        ])
        .arg(&root)
        .env("CARGO_TARGET_DIR", cache.target().join("tools"));
    if stream(command, LINTS_DEADLINE, &mut |line| say(line)) && program.exists() {
        // Its build output is of no more use.
        let _ = std::fs::remove_dir_all(cache.target().join("tools"));
        return Ok(program);
    }
    Err(Error::Prerequisite(format!(
        "cargo-deny could not be installed: cargo install cargo-deny --version {DENY_VERSION} shows why"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_binaries_are_summed() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
        ] {
            counts.read(line);
        }
        assert_eq!(counts, Counts { passed: 4, failed: 2 });
    }

    #[test]
    fn nothing_ran_is_no_success() {
        assert!(verdict(&Tally::default()).is_err());
        let tally = Tally { passed: 1, ..Tally::default() };
        assert!(verdict(&tally).is_ok());
        assert!(verdict(&Tally { failed: 1, ..tally }).is_err());
    }

    #[test]
    fn a_broken_test_run_is_a_failure() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        for (script, passed, failed) in [
            ("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'", 2, 0),
            ("exit 101", 0, 1),
            ("true", 0, 1),
            ("echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored'; exit 101", 2, 1),
        ] {
            let mut tally = Tally::default();
            tests_step(shell(script), &mut |_| (), &mut tally); // quiet: these lines would be counted
            assert_eq!((tally.passed, tally.failed), (passed, failed), "{script}");
        }
    }
}
