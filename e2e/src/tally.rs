//! What a run of tests came to: what passed, what failed and why, what was skipped. The failures are told once
//! more at its end: of a run that others made, its end is often all that one gets to see.

use crate::Error;
use crate::terminal::say;

/// The first lines of a failure say what was claimed; the dumps that follow are above.
const TOLD: usize = 12;

/// Counted claims.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Claims that held.
    pub passed: usize,
    /// Claims that did not, each with the first lines of why.
    pub failed: Vec<String>,
    /// Not run here, and why.
    pub skipped: Vec<String>,
}

impl Tally {
    /// One more claim that did not hold.
    pub fn fail(&mut self, name: &str, why: &str) {
        let why: Vec<&str> = why.lines().take(TOLD).collect();
        self.failed.push(format!("{name}\n  {}", why.join("\n  ")).trim_end().to_owned());
    }

    /// Takes another tally in.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// The last lines, and the verdict: nothing failed, and something ran.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a claim failed or none was made.
    pub fn conclude(&self) -> Result<(), Error> {
        for skipped in &self.skipped {
            say(format!("skipped: {skipped}"));
        }
        for failed in &self.failed {
            say(format!("FAILED: {failed}"));
        }
        say(format!("{} passed, {} failed", self.passed, self.failed.len()));
        self.verdict()
    }

    fn verdict(&self) -> Result<(), Error> {
        match (self.failed.len(), self.passed) {
            (0, 0) => Err(Error::Invalid("nothing ran".to_owned())),
            (0, _) => Ok(()),
            (failed, _) => Err(Error::Invalid(format!("{failed} failed: look for FAILED above"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ran_is_no_success() {
        assert!(Tally::default().verdict().is_err());
        let mut tally = Tally { passed: 1, ..Tally::default() };
        assert!(tally.verdict().is_ok());
        tally.fail("a flow", "because");
        assert!(tally.verdict().is_err());
    }

    #[test]
    fn a_failure_is_told_without_its_dumps() {
        let mut tally = Tally::default();
        let long: Vec<String> = (0..100).map(|line| format!("line {line}")).collect();
        tally.fail("a flow", &long.join("\n"));
        assert!(tally.failed[0].starts_with("a flow\n  line 0\n"));
        assert!(tally.failed[0].ends_with("line 11"));
    }
}
