//! Where the programs are that were built: by name, for each release that tenants may have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::component::Component;
use crate::layout::{Cache, Repository};
use crate::release::{NEWEST, Release};

/// Programs of a release by name, each checked against its sum.
#[derive(Debug, Clone)]
pub struct Toolbox {
    release: &'static Release,
    programs: BTreeMap<String, PathBuf>,
    /// Those of the older releases that were asked for.
    older: Vec<Toolbox>,
}

/// Programs of each row that was built or found, by the row's name.
pub(super) type Built = BTreeMap<&'static str, BTreeMap<String, PathBuf>>;

impl Toolbox {
    /// What rows have built: those of older releases apart, each with everything that it does not build itself.
    pub(super) fn of(mut built: Built, older: &[&'static Release]) -> Self {
        let mut of_release = |release: &'static Release| -> BTreeMap<_, _> {
            release.rows.iter().filter_map(|row| built.remove(row.name)).flatten().collect()
        };
        let older: Vec<_> = older.iter().map(|release| (*release, of_release(release))).collect();
        let programs: BTreeMap<_, _> = built.into_values().flatten().collect();
        let older = older.into_iter().map(|(release, own)| {
            let programs = programs.clone().into_iter().chain(own).collect();
            Self { release, programs, older: vec![] }
        });
        Self { release: &NEWEST, older: older.collect(), programs }
    }

    /// The path of a program.
    ///
    /// # Errors
    /// [`Error::Invalid`] when no component has it.
    pub fn program(&self, name: &str) -> Result<&Path, Error> {
        self.programs
            .get(name)
            .map(PathBuf::as_path)
            .ok_or_else(|| Error::Invalid(format!("no component builds `{name}`")))
    }

    /// Whose programs these are.
    pub(crate) fn release(&self) -> &'static Release {
        self.release
    }

    /// Those of every release that tenants may have, the newest first.
    pub(crate) fn of_releases(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(&self.older)
    }

    /// Builds (or finds) only the components that have these programs.
    ///
    /// # Errors
    /// [`Error::Build`] and what the cache can raise.
    pub fn with(programs: &[&str], repository: &Repository, cache: &Cache) -> Result<Self, Error> {
        let mut rows: Vec<&'static Component> = Vec::new();
        for program in programs {
            let row = Component::of_program(program)
                .ok_or_else(|| Error::Invalid(format!("no component builds `{program}`")))?;
            if rows.iter().all(|known| known.name != row.name) {
                rows.push(row);
            }
        }
        Ok(Self::of(super::build_components(&rows, repository, cache)?, &[]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_release_has_its_own_programs_and_the_newest_s() {
        let row = |row: &'static str, programs: &[&str]| {
            let path = |name: &str| (name.to_owned(), Path::new(row).join(name));
            (row, programs.iter().map(|name| path(name)).collect())
        };
        let built = Built::from([
            row("kubernetes", &["kubelet", "kubectl"]),
            row("kubernetes-1.36", &["kubelet"]),
            row("crane", &["crane"]),
        ]);
        let older = Release::of("v1.36.3").unwrap();
        let toolbox = Toolbox::of(built, &[older]);
        let [newest, older] = toolbox.of_releases().collect::<Vec<_>>()[..] else { panic!("{toolbox:?}") };
        assert_eq!((newest.release().kubernetes, older.release().kubernetes), ("v1.37.1", "v1.36.3"));
        assert_eq!(newest.program("kubelet").unwrap(), "kubernetes/kubelet");
        assert_eq!(older.program("kubelet").unwrap(), "kubernetes-1.36/kubelet");
        assert_eq!(older.program("crane").unwrap(), newest.program("crane").unwrap());
        assert!(older.program("nothing").is_err());
    }
}
