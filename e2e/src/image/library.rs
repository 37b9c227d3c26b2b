//! What the machine's own programs need to run elsewhere: the shared libraries that they are linked to, and
//! their loader.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::invocation::Invocation;

/// Where a distribution keeps its programs.
const PLACES: &[&str] = &["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// A program of the machine.
pub(super) fn find(name: &str) -> Result<PathBuf, Error> {
    PLACES
        .iter()
        .map(|place| Path::new(place).join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Prerequisite(format!("{name} is in none of {}", PLACES.join(", "))))
}

/// The directory of iptables' extensions, which it loads by the name of a match or target.
pub(super) fn iptables_extensions() -> Result<Vec<PathBuf>, Error> {
    let libraries = Path::new("/usr/lib");
    let below = std::fs::read_dir(libraries).map_err(Error::io("read", libraries))?;
    let directory = below
        .flatten()
        .map(|entry| entry.path())
        .chain([libraries.to_owned(), PathBuf::from("/usr/lib64")])
        .map(|path| path.join("xtables"))
        .find(|path| path.is_dir())
        .ok_or_else(|| Error::Prerequisite("iptables has no extensions below /usr/lib".to_owned()))?;
    let entries = std::fs::read_dir(&directory).map_err(Error::io("read", &directory))?;
    let mut found: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "so"))
        .collect();
    found.sort();
    Ok(found)
}

/// The shared libraries of some programs or libraries, and their loader; none for a static program, which
/// has to be asked for alone.
pub(super) fn of(programs: &[PathBuf]) -> Result<Vec<String>, Error> {
    if programs.is_empty() {
        return Ok(vec![]);
    }
    match Invocation::new("ldd").args(programs).run() {
        Ok(text) => parse(&text),
        Err(Error::Command { output, .. })
            if programs.len() == 1 && output.contains("not a dynamic executable") =>
        {
            Ok(vec![])
        }
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let mut program = "";
    for line in text.lines() {
        // With several programs, each has a line of its own before its libraries.
        if let Some(name) = line.strip_suffix(':').filter(|_| !line.starts_with('\t')) {
            program = name;
            continue;
        }
        let line = line.trim();
        if line.contains("not found") {
            return Err(Error::Invalid(format!("a program needs a library: {program} {line}")));
        }
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = path.split(" (").next().unwrap_or_default();
        if path.starts_with('/') {
            found.push(path.to_owned());
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_ldd_names() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(parse(text).unwrap(), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        let two = format!("/usr/bin/one:\n{text}/usr/bin/two:\n{text}");
        assert_eq!(parse(&two).unwrap(), parse(text).unwrap());
        assert_eq!(parse("\tstatically linked\n").unwrap(), [""; 0]);
        let error = parse("/usr/bin/one:\n\tlibx.so => not found\n").unwrap_err();
        assert!(error.to_string().contains("/usr/bin/one libx.so"), "{error}");
    }

    #[test]
    fn an_extension_has_the_libraries_that_no_program_brings() {
        let extensions = iptables_extensions().unwrap();
        assert!(extensions.iter().any(|path| path.ends_with("libxt_statistic.so")), "{extensions:?}");
        assert!(of(&extensions).unwrap().iter().any(|path| path.contains("libxtables")));
    }
}
