//! What can go wrong while a local cluster is built, started or taken down. Every variant names the thing
//! that failed and, where there is one, the way out; none of them is ever swallowed.

use std::path::{Path, PathBuf};

/// A failure of the local cluster or of what builds it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file, directory or kernel setting could not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted, with the path.
        what: String,
        /// The answer of the kernel.
        source: std::io::Error,
    },
    /// The machine lacks something; the text says what to install or change.
    #[error("{0}")]
    Prerequisite(String),
    /// A component did not build.
    #[error("building {component} failed after {seconds} s; the last lines:\n{tail}\n(all of it: {})", log.display())]
    Build {
        /// Row of the component table, or the Rust package.
        component: String,
        /// How long it ran.
        seconds: u64,
        /// The last lines that the compiler wrote.
        tail: String,
        /// The complete output.
        log: PathBuf,
    },
    /// A program ended with a failure.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// The command line.
        command: String,
        /// Exit status, or why it did not run.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// Something awaited did not happen in time.
    #[error("{what}: not within {seconds} s{dump}")]
    Deadline {
        /// What was awaited.
        what: String,
        /// The deadline.
        seconds: u64,
        /// State, events and logs at that moment; empty or starting with a line break.
        dump: String,
    },
    /// A failure in a cluster, with what a person would look up next.
    #[error("{error}\n{report}")]
    Reported {
        /// The failure.
        error: Box<Error>,
        /// State, events and logs at that moment.
        report: String,
    },
    /// A state file or another input is not what this version can work with.
    #[error("{0}")]
    Invalid(String),
    /// Something is left on the machine that `down` should have removed.
    #[error("left behind:\n  {}", .0.join("\n  "))]
    LeftBehind(Vec<String>),
    /// Keys or certificates could not be made.
    #[error("certificates: {0}")]
    Pki(#[from] kaas_pki::Error),
}

impl Error {
    /// Wraps an I/O error with what was attempted on which path.
    pub(crate) fn io(verb: &str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let what = format!("cannot {verb} {}", path.as_ref().display());
        move |source| Self::Io { what, source }
    }
}
