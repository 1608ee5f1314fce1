//! A process's data folder: for its owner alone, and used by one process at a time.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a folder can't be taken.
pub(crate) enum FolderError {
    /// Another process has it.
    InUse { path: PathBuf },
    /// The folder, or a file in it, can't be used.
    Unusable { path: PathBuf, source: io::Error },
}

/// A folder that is this process's, until this is dropped or the process ends however it does.
#[derive(Debug)]
pub(crate) struct FolderLock(File);

impl Drop for FolderLock {
    /// Closing the file would not do at once: a process that this one is just starting has it open, too, until it becomes
    /// its program.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "the lock of a folder goes when its file is closed");
        }
    }
}

/// Makes the folder, for its owner alone, and takes it for as long as what is returned is held.
pub(crate) fn take(path: &Path, lock: &str) -> Result<FolderLock, FolderError> {
    let failed = |path: &Path, source: io::Error| FolderError::Unusable { path: path.to_path_buf(), source };
    make_private(path).map_err(|error| failed(path, error))?;
    let lock_path = path.join(lock);
    let lock = File::create(&lock_path).map_err(|error| failed(&lock_path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(FolderLock(lock)),
        Err(TryLockError::WouldBlock) => Err(FolderError::InUse { path: path.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(failed(&lock_path, error)),
    }
}

/// Makes a folder that is not there, for its owner alone.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Replaces a file that only its owner may read. Others of this process may do so at the same time: one of them is the last.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let beside = path.with_extension(format!("new-{}", WRITTEN.fetch_add(1, Ordering::Relaxed)));
    let written = write_beside(&beside, text).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // What is left of it is of no use to anybody.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

fn write_beside(path: &Path, text: &str) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_given_back_is_free_although_its_lock_is_open_elsewhere() {
        // Given a process that is being started, and has every file of this one.
        let folder = tempfile::tempdir().unwrap();
        let lock = take(folder.path(), "lock").unwrap_or_else(|_| panic!("nobody has it"));
        let inherited = lock.0.try_clone().unwrap();
        assert!(matches!(take(folder.path(), "lock"), Err(FolderError::InUse { .. })));
        // When the folder is given back, then it can be taken again at once.
        drop(lock);
        assert!(take(folder.path(), "lock").is_ok());
        drop(inherited);
    }
}
