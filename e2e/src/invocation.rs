//! One run of a program that ends by itself: output captured, a deadline always set. A program that
//! outlives its deadline is killed together with its children and reported, never waited for.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Error;

/// Longest part of a program's output that an error repeats.
const OUTPUT_IN_ERROR: usize = 4000;
const POLL: Duration = Duration::from_millis(5);

/// A program with its arguments, input and deadline.
pub(crate) struct Invocation {
    command: Command,
    line: String,
    input: Option<Vec<u8>>,
    deadline: Duration,
}

impl Invocation {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program.as_ref());
        // A group of its own: the deadline ends the children as well.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let line = program.as_ref().to_string_lossy().into_owned();
        Self { command, line, input: None, deadline: Duration::from_secs(30) }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.line.push(' ');
        self.line.push_str(&arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    pub(crate) fn args(self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn directory(mut self, path: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(path);
        self
    }

    pub(crate) fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self.command.stdin(Stdio::piped());
        self
    }

    pub(crate) fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs the program and returns its standard output.
    ///
    /// # Errors
    /// [`Error::Command`] when it cannot start, fails, or outlives its deadline.
    pub(crate) fn run(mut self) -> Result<String, Error> {
        let mut child = self.command.spawn().map_err(|error| self.failed(&error.to_string(), ""))?;
        let writer = child.stdin.take().zip(self.input.take()).map(|(mut pipe, bytes)| {
            // A program that does not read its input says so by its exit status.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)))
        });
        let out = child.stdout.take().map(drain);
        let err = child.stderr.take().map(drain);
        let status = self.await_end(&mut child)?;
        if let Some(writer) = writer {
            let _ = writer.join();
        }
        let out = collect(out);
        if status.success() {
            return Ok(out);
        }
        Err(self.failed(&status.to_string(), &format!("{}{}", collect(err), out)))
    }

    fn await_end(&self, child: &mut Child) -> Result<std::process::ExitStatus, Error> {
        let started = Instant::now();
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if started.elapsed() < self.deadline => std::thread::sleep(POLL),
                Ok(None) => {
                    if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                    }
                    let _ = child.wait();
                    return Err(self.failed(&format!("no end within {} s", self.deadline.as_secs()), ""));
                }
                Err(error) => return Err(self.failed(&error.to_string(), "")),
            }
        }
    }

    fn failed(&self, status: &str, output: &str) -> Error {
        let output = output.trim();
        let skip = output.chars().count().saturating_sub(OUTPUT_IN_ERROR);
        Error::Command {
            command: self.line.clone(),
            status: status.to_owned(),
            output: output.chars().skip(skip).collect(),
        }
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn collect(reader: Option<JoinHandle<String>>) -> String {
    reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_input_and_status() {
        assert_eq!(Invocation::new("cat").input("both ways").run().unwrap(), "both ways");
        let error = Invocation::new("sh").args(["-c", "echo reason >&2; exit 3"]).run().unwrap_err();
        assert!(error.to_string().contains("exit status: 3): reason"), "{error}");
    }

    #[test]
    fn the_deadline_ends_children_too() {
        let started = Instant::now();
        let error = Invocation::new("sh")
            .args(["-c", "sleep 60 & wait"])
            .within(Duration::from_millis(50))
            .run()
            .unwrap_err();
        assert!(error.to_string().contains("no end within"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
