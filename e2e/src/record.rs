//! The record of one local cluster (`cluster.json` in its state directory): what was made, written before it
//! is made. `down` could do without it, because every name derives from the path of the state directory;
//! `up` uses it to tell what is still right from what has to be made again.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::Error;
use crate::digest;
use crate::layout::State;
use crate::process::Identity;

const FORMAT: u32 = 1;
/// Names are the prefix and hexadecimal digits.
pub(crate) const NAME_PREFIX: &str = "kaas";
pub(crate) const NAME_LENGTH: usize = 12;

/// What is known about a cluster between two commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    pub(crate) name: String,
    /// The cluster's subnet is 10.77.INDEX.0/24.
    pub(crate) index: u8,
    pub(crate) daemons: BTreeMap<String, Identity>,
    /// Digest of chart and values of what was installed, by Helm release.
    #[serde(default)]
    pub(crate) releases: BTreeMap<String, String>,
    /// Versions of Kubernetes that tenants may have here.
    #[serde(default)]
    pub(crate) offered: Vec<String>,
}

impl Record {
    pub(crate) fn new(name: String, index: u8) -> Self {
        Self {
            format: FORMAT,
            name,
            index,
            daemons: BTreeMap::new(),
            releases: BTreeMap::new(),
            offered: Vec::new(),
        }
    }

    /// Reads the record; `None` when there is none, or one that a crash left empty.
    pub(crate) fn read(state: &State) -> Result<Option<Self>, Error> {
        let Some(record) = read_json::<Self>(&state.record())? else { return Ok(None) };
        if record.format == FORMAT {
            return Ok(Some(record));
        }
        Err(Error::Invalid(format!(
            "{} is of format {}, this version knows {FORMAT}: run `make down` first",
            state.record().display(),
            record.format
        )))
    }

    pub(crate) fn write(&self, state: &State) -> Result<(), Error> {
        write_json(&state.record(), self)
    }
}

/// The name of the cluster in a state directory: the same path gives the same name, and no two paths share
/// one. Short enough for a network interface with a letter added (15 characters).
pub(crate) fn name_of(state: &State) -> String {
    let digest = digest::of_bytes(state.root().as_os_str().as_encoded_bytes());
    format!("{NAME_PREFIX}{}", digest::short(&digest, NAME_LENGTH - NAME_PREFIX.len()))
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::Invalid(format!("{}: {error}: run `make down`, which does not need it", path.display()))
    })
}

/// Replaces a file in one step.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), Error> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Invalid(format!("{}: {error}", path.display())))?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// Replaces a file in one step, so that nobody ever reads half of it.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    std::fs::write(&unfinished, bytes).map_err(Error::io("write", path))?;
    std::fs::rename(&unfinished, path).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_an_interface_and_follow_the_path() {
        let name = name_of(&State::at("/a/.local").unwrap());
        assert_eq!(name, name_of(&State::at("/a/.local").unwrap()));
        assert_ne!(name, name_of(&State::at("/b/.local").unwrap()));
        assert!(name.len() < 15, "{name}");
    }

    #[test]
    fn read_back_and_refused() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::at(directory.path()).unwrap();
        assert_eq!(Record::read(&state).unwrap(), None);
        let mut record = Record::new("kaas1".into(), 3);
        record.write(&state).unwrap();
        assert_eq!(Record::read(&state).unwrap(), Some(record.clone()));
        record.format = 9;
        record.write(&state).unwrap();
        assert!(Record::read(&state).unwrap_err().to_string().contains("make down"));
    }
}
