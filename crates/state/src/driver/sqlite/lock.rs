//! One process per file: an advisory lock on a file beside the database, with the holder's process id in it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::super::DriverError;

/// Held until it is dropped, or the process ends however it does.
#[derive(Debug)]
pub(super) struct FileLock {
    file: File,
}

impl Drop for FileLock {
    /// Closing the file would not do at once: a process that this one is just starting has it open, too, until it becomes
    /// its program.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::debug!(%error, "the lock of a database goes when its file is closed");
        }
    }
}

impl FileLock {
    /// Takes the lock of the database at `database` (its path with `.lock` added), or says at once who has it. The lock
    /// belongs to the open file, so a second opening within one process is refused as well.
    pub(super) fn take(database: &Path) -> Result<Self, DriverError> {
        let mut path = database.as_os_str().to_owned();
        path.push(".lock");
        let path = Path::new(&path);
        let cannot = |what: &str, error: std::io::Error| {
            DriverError::Configuration(format!(
                "{what} {} failed: {error}; the folder has to exist and be writable for this user",
                path.display()
            ))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| cannot("opening", error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message: a holder that can't be read is still a holder.
                let _ = (&file).take(32).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    pid if pid == std::process::id().to_string() => format!("process {pid}, which is this one"),
                    pid => format!("process {pid}"),
                };
                return Err(DriverError::Held(format!("{} is open in {holder}", database.display())));
            }
            Err(TryLockError::Error(error)) => return Err(cannot("locking", error)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(std::process::id().to_string().as_bytes()));
        // The id is for a message; a full disk must not keep a store from being opened and read.
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "the lock file does not name this process");
        }
        Ok(FileLock { file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_was_dropped_is_free_although_its_file_is_open_elsewhere() {
        // Given a process that is being started, and has every file of this one.
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("store.db");
        let lock = FileLock::take(&database).unwrap();
        let inherited = lock.file.try_clone().unwrap();
        let refused = FileLock::take(&database);
        assert!(matches!(refused, Err(DriverError::Held(_))), "{refused:?}");
        // When the store is closed, then it can be opened again at once.
        drop(lock);
        let again = FileLock::take(&database).unwrap();
        drop((inherited, again));
    }
}
