//! The registry of the local cluster, which workers of tenant clusters take for the mirror of every registry:
//! where an image goes in it, what is missing in it, and what a user puts there. It is asked for digests, so a
//! second `up` sends nothing.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Error;
use crate::compile::Toolbox;
use crate::image::catalogue::Published;
use crate::image::{Archive, foreign};
use crate::invocation::Invocation;
use crate::layout::{Cache, Repository, State};
use crate::network::Network;
use crate::record::Record;
use crate::terminal::say;
use crate::wait;

/// Its port at the node's address, outside of what Kubernetes gives away by itself first.
pub(crate) const NODE_PORT: u16 = 30050;
/// Where pods of the management cluster find it: the mirror of workers that are pods.
pub(crate) const MIRROR: &str = "http://registry.kaas-registry.svc.cluster.local:5000";
const PUSH_DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(500);

/// The registry of a running cluster.
pub(crate) struct Registry {
    crane: PathBuf,
    host: String,
    /// Directory for what is unpacked on the way.
    scratch: PathBuf,
}

impl Registry {
    pub(crate) fn of(toolbox: &Toolbox, state: &State, address: IpAddr) -> Result<Self, Error> {
        let crane = toolbox.program("crane")?.to_owned();
        Ok(Self { crane, host: format!("{address}:{NODE_PORT}"), scratch: state.root().to_owned() })
    }

    /// Sends the images that are not there with the content they should have.
    pub(crate) fn fill(&self, images: &[Published], cache: &Cache) -> Result<(), Error> {
        for Published { image, names } in images {
            let archive = image.archive(cache)?;
            let names = names.iter().map(|name| destination(name)).collect::<Result<Vec<_>, _>>()?;
            let what = format!("the registry to have {}", image.reference);
            // After a start in place of the node's daemons its pod is probed anew, and has no endpoint so long.
            let ensure = || self.ensure(&archive, &names).map_err(|error| error.to_string());
            wait::until(&what, PUSH_DEADLINE, POLL, ensure, String::new)?;
        }
        Ok(())
    }

    fn ensure(&self, archive: &Archive, names: &[String]) -> Result<(), Error> {
        let mut missing = Vec::new();
        for name in names {
            if self.digest(name)?.as_deref() != Some(archive.digest.as_str()) {
                missing.push(name.clone());
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let scratch = self.scratch()?;
        for layout in foreign::unpack(&archive.path, scratch.path())? {
            self.push(&layout.directory, &missing)?;
        }
        Ok(())
    }

    /// Sends every image of a user's archive; returns their full names.
    fn load(&self, archive: &Path) -> Result<Vec<String>, Error> {
        let scratch = self.scratch()?;
        let layouts = foreign::unpack(archive, scratch.path())?;
        let mut loaded = Vec::new();
        // All names first: nothing is sent of an archive that has a bad one.
        for layout in &layouts {
            loaded.push(layout.names.iter().map(|name| destination(name)).collect::<Result<Vec<_>, _>>()?);
        }
        for (layout, names) in layouts.iter().zip(&loaded) {
            self.push(&layout.directory, names)?;
        }
        Ok(loaded.into_iter().flatten().collect())
    }

    fn scratch(&self) -> Result<tempfile::TempDir, Error> {
        tempfile::Builder::new()
            .prefix("image-")
            .tempdir_in(&self.scratch)
            .map_err(Error::io("make a directory in", &self.scratch))
    }

    /// Sends one image; the further names are copies inside of the registry.
    fn push(&self, layout: &Path, names: &[String]) -> Result<(), Error> {
        let Some((first, others)) = names.split_first() else { return Ok(()) };
        let place = |name: &str| format!("{}/{name}", self.host);
        self.crane(&["push", &layout.display().to_string(), &place(first)])?;
        for other in others {
            self.crane(&["copy", &place(first), &place(other)])?;
        }
        Ok(())
    }

    /// Digest of what a name stands for now.
    fn digest(&self, name: &str) -> Result<Option<String>, Error> {
        match self.crane(&["digest", &format!("{}/{name}", self.host)]) {
            Ok(digest) => Ok(Some(digest.trim().to_owned())),
            Err(Error::Command { output, .. }) if output.contains("404 Not Found") => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn crane(&self, args: &[&str]) -> Result<String, Error> {
        // The user's proxy and credential helpers are for other registries.
        let answer = Invocation::new(&self.crane)
            .env("NO_PROXY", "*")
            .env("DOCKER_CONFIG", &self.scratch)
            .arg("--insecure")
            .args(args)
            .within(PUSH_DEADLINE)
            .run();
        answer.map_err(|error| match error {
            Error::Command { output, .. } if output.contains("dial tcp") => Error::Invalid(format!(
                "the local cluster's registry does not answer at {}: `make status` says what runs, `make up` \
                 starts what does not",
                self.host
            )),
            error => error,
        })
    }
}

/// Puts the images of an archive into the registry of a running cluster.
///
/// # Errors
/// [`Error::Invalid`] for a bad archive, or when no cluster runs.
pub fn load(repository: &Repository, cache: &Cache, state: &State, archive: &Path) -> Result<(), Error> {
    let record = Record::read(state)?.ok_or_else(|| {
        Error::Invalid(format!("no cluster in {}: `make up` makes one", state.root().display()))
    })?;
    let toolbox = Toolbox::with(&["crane"], repository, cache)?;
    let node = Network::new(&record.name, record.index).node();
    for name in Registry::of(&toolbox, state, node.into())?.load(archive)? {
        say(format!("loaded {}", pulled_as(&name)));
    }
    Ok(())
}

/// Where an image is in the registry: the repository begins with the name of the registry that it is pulled
/// from, and what may be left out in a name is put in, as every container runtime does.
fn destination(name: &str) -> Result<String, Error> {
    let refuse = |why: &str| Error::Invalid(format!("the image `{name}` cannot be loaded: {why}"));
    if name.contains('@') {
        return Err(refuse("it is named by its digest; tag it first"));
    }
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => ("docker.io", name),
    };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    let (path, tag) = rest.rsplit_once(':').unwrap_or((rest, "latest"));
    let path = match path.contains('/') || registry != "docker.io" {
        true => path.to_owned(),
        false => format!("library/{path}"),
    };
    let allowed = |text: &str, others: &[char]| {
        text.chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || others.contains(&letter))
    };
    if path.split('/').any(str::is_empty) || !allowed(&path, &['/', '.', '_', '-']) {
        return Err(refuse("a repository has lower-case letters, digits, and . _ - between them"));
    }
    if tag.is_empty() {
        return Err(refuse("its tag is empty"));
    }
    // A colon cannot be part of a repository's name; the registry's program does the same.
    Ok(format!("{}/{path}:{tag}", registry.to_ascii_lowercase().replace(':', "_")))
}

/// The name by which pods ask for it.
fn pulled_as(destination: &str) -> String {
    match destination.split_once('/') {
        Some((registry, rest)) => format!("{}/{rest}", registry.replace('_', ":")),
        None => destination.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_full() {
        for (name, full) in [
            ("app", "docker.io/library/app:latest"),
            ("app:1", "docker.io/library/app:1"),
            ("team/app", "docker.io/team/app:latest"),
            ("index.docker.io/app:1", "docker.io/library/app:1"),
            ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
            ("registry.k8s.io/pause:3", "registry.k8s.io/pause:3"),
            ("localhost/app:1", "localhost/app:1"),
            ("localhost:5000/app", "localhost_5000/app:latest"),
        ] {
            assert_eq!(destination(name).unwrap(), full);
        }
        assert_eq!(pulled_as("localhost_5000/app:1"), "localhost:5000/app:1");
        for name in ["app@sha256:0", "Team/App:1", "ghcr.io//x", "app:", ""] {
            let error = destination(name).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
    }
}
