//! Advisory file locks with a deadline. A lock dies with its process, so a killed build or start never
//! blocks the next one.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Error;

/// A held lock; released when dropped.
#[derive(Debug)]
pub(crate) struct Lock(File);

const POLL: Duration = Duration::from_millis(50);

impl Lock {
    /// Takes the lock of a file (made when missing), waiting at most `deadline`.
    pub(crate) fn exclusive(path: &Path, deadline: Duration) -> Result<Self, Error> {
        Self::take(path, deadline, File::try_lock)
    }

    /// The same beside other holders of a shared lock.
    pub(crate) fn shared(path: &Path, deadline: Duration) -> Result<Self, Error> {
        Self::take(path, deadline, File::try_lock_shared)
    }

    fn take(
        path: &Path,
        deadline: Duration,
        attempt: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Self, Error> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let started = Instant::now();
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(path)
                .map_err(Error::io("open", path))?;
            match attempt(&file) {
                // The holder before may have removed the file: a lock on a removed file locks nobody out.
                Ok(()) if is_at(&file, path) => return Ok(Self(file)),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if started.elapsed() < deadline => std::thread::sleep(POLL),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Deadline {
                        what: format!("lock of {} (another kaas-local holds it)", path.display()),
                        seconds: deadline.as_secs(),
                        dump: String::new(),
                    });
                }
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
            }
        }
    }

    /// Turns a shared lock into an exclusive one if nobody else holds it.
    pub(crate) fn try_upgrade(&self) -> bool {
        self.0.try_lock().is_ok()
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(held), Ok(named)) => held.ino() == named.ino() && held.dev() == named.dev(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::exclusive(&path, Duration::ZERO).unwrap();
        assert!(Lock::exclusive(&path, Duration::from_millis(60)).is_err());
        drop(held);
        let first = Lock::shared(&path, Duration::ZERO).unwrap();
        let second = Lock::shared(&path, Duration::ZERO).unwrap();
        assert!(!first.try_upgrade());
        drop(second);
        assert!(first.try_upgrade());
    }
}
