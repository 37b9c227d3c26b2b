//! Waiting for a fact, always with a deadline. What is awaited is named; when the time is over, the error
//! carries what a person would look up next.

use std::time::{Duration, Instant};

use crate::Error;

/// Polls `check` until it gives a value. It may say why it does not yet: the last reason is in the error.
///
/// # Errors
/// [`Error::Deadline`] with the last reason and what `dump` adds.
pub(crate) fn until<T>(
    what: &str,
    deadline: Duration,
    poll: Duration,
    mut check: impl FnMut() -> Result<T, String>,
    dump: impl FnOnce() -> String,
) -> Result<T, Error> {
    let started = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(reason) if started.elapsed() > deadline => {
                let dump = dump();
                let dump = if dump.is_empty() { dump } else { format!("\n{dump}") };
                return Err(Error::Deadline {
                    what: what.to_owned(),
                    seconds: deadline.as_secs(),
                    dump: format!(": {reason}{dump}"),
                });
            }
            Err(_) => std::thread::sleep(poll),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reason_is_told() {
        let mut attempts = 0;
        let error = until::<()>(
            "a pod",
            Duration::from_millis(5),
            Duration::from_millis(1),
            || {
                attempts += 1;
                Err(format!("attempt {attempts}"))
            },
            || "events".to_owned(),
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.starts_with("a pod: not within 0 s: attempt ") && error.ends_with("\nevents"),
            "{error}"
        );
    }
}
