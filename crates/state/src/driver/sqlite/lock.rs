//! One process per file: an advisory lock on a file beside the database, with the holder's process id in it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::super::DriverError;

/// Held until it is dropped, or the process ends however it does.
#[derive(Debug)]
pub(super) struct FileLock {
    // The lock goes with the open file.
    _file: File,
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
                let _ = file.take(32).read_to_string(&mut holder);
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
        Ok(FileLock { _file: file })
    }
}
