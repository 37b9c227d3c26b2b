//! Versions, and the ways between them: one minor version at a time for control planes, and kubelets that never lead.
//!
//! The rules are upstream's version skew policy (kubernetes.io/releases/version-skew-policy). Planner, messages and
//! admission ask the same functions.

use std::fmt;
use std::str::FromStr;

/// A kubelet may be so many minor versions behind its API servers.
pub const KUBELET_LAG: u32 = 3;

/// A Kubernetes version, for example `v1.37.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number: what serves which API.
    pub minor: u32,
    /// Third number: the same API with fewer faults.
    pub patch: u32,
}

/// A text that is no version.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a version such as v1.37.1")]
pub struct Error(String);

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let error = || Error(text.to_owned());
        let number = |word: &str| {
            let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| word.parse().ok()).flatten().ok_or_else(error)
        };
        let mut words = text.strip_prefix('v').ok_or_else(error)?.split('.');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some(major), Some(minor), Some(patch), None) => {
                Ok(Version { major: number(major)?, minor: number(minor)?, patch: number(patch)? })
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// Major and minor, as `--emulated-version` takes them: `1.36`.
    pub fn series(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }
}

/// How one comes from one version to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It is the same.
    None,
    /// Another patch of the same minor version, newer or older: nothing but binaries changes.
    Patch,
    /// The next minor version: new binaries emulate the old one first.
    Minor,
    /// The minor version before.
    Back,
}

/// The way from one version to another, or in one sentence why there is none.
pub fn way(from: Version, to: Version) -> Result<Way, String> {
    if from == to {
        return Ok(Way::None);
    }
    if from.major != to.major {
        return Err(format!("there is no way from {from} to another major version"));
    }
    match i64::from(to.minor) - i64::from(from.minor) {
        0 => Ok(Way::Patch),
        1 => Ok(Way::Minor),
        -1 => Ok(Way::Back),
        2.. => Err(format!(
            "a control plane goes one minor version at a time: from {from} the next is a v{}.{}",
            from.major,
            from.minor.saturating_add(1)
        )),
        _ => Err(format!(
            "a control plane never goes back more than one minor version, and {to} is further from {from}"
        )),
    }
}

/// Whether one version is older than another; false for what is no version.
pub fn is_older(version: &str, other: &str) -> bool {
    let both = version.parse::<Version>().ok().zip(other.parse::<Version>().ok());
    both.is_some_and(|(version, other)| version < other)
}

/// Whether a kubelet may run with these API servers: it never leads, and lags by three minor versions at most.
pub fn kubelet_fits(kubelet: Version, api: Version) -> bool {
    kubelet.major == api.major
        && kubelet.minor <= api.minor
        && kubelet.minor.saturating_add(KUBELET_LAG) >= api.minor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_are_read_and_written() {
        assert_eq!(version("v1.37.1"), Version { major: 1, minor: 37, patch: 1 });
        assert_eq!(version("v1.37.10").to_string(), "v1.37.10");
        assert!(version("v1.9.9") < version("v1.10.0"));
        assert_eq!(version("v1.36.3").series(), "1.36");
        for wrong in ["1.37.1", "v1.37", "v1.37.1.2", "v1.37.x", "v1.+7.1", "", "v1..1", "v1.37.99999999999"]
        {
            assert_eq!(wrong.parse::<Version>(), Err(Error(wrong.to_owned())));
        }
    }

    #[test]
    fn control_planes_go_one_minor_version_at_a_time() {
        let table = [
            ("v1.36.3", "v1.36.3", Ok(Way::None)),
            ("v1.36.3", "v1.36.4", Ok(Way::Patch)),
            ("v1.36.3", "v1.36.1", Ok(Way::Patch)),
            ("v1.36.3", "v1.37.1", Ok(Way::Minor)),
            ("v1.36.9", "v1.37.0", Ok(Way::Minor)),
            ("v1.37.1", "v1.36.3", Ok(Way::Back)),
            (
                "v1.35.4",
                "v1.37.1",
                Err("a control plane goes one minor version at a time: from v1.35.4 the next is a v1.36"),
            ),
            (
                "v1.37.1",
                "v1.35.4",
                Err(
                    "a control plane never goes back more than one minor version, and v1.35.4 is further from v1.37.1",
                ),
            ),
            ("v1.37.1", "v2.37.1", Err("there is no way from v1.37.1 to another major version")),
        ];
        for (from, to, expected) in table {
            assert_eq!(way(version(from), version(to)), expected.map_err(str::to_owned), "{from} {to}");
        }
    }

    #[test]
    fn kubelets_lag_and_never_lead() {
        for (kubelet, api, fits) in [
            ("v1.37.1", "v1.37.1", true),
            ("v1.37.9", "v1.37.1", true),
            ("v1.34.0", "v1.37.1", true),
            ("v1.33.9", "v1.37.1", false),
            ("v1.37.0", "v1.36.3", false),
        ] {
            assert_eq!(kubelet_fits(version(kubelet), version(api)), fits, "{kubelet} {api}");
        }
    }
}
