//! Folders that one process at a time works in.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A folder that is this process's, until this is dropped or the process ends however it does.
#[derive(Debug)]
pub struct FolderLock(File);

/// Why a folder can't be had.
#[derive(Debug, thiserror::Error)]
pub enum FolderLockError {
    /// Somebody has it: another process, or another holder in this one.
    #[error("another process is at work in {}", path.display())]
    Held {
        /// The folder.
        path: PathBuf,
    },
    /// The file that says so can't be used.
    #[error("{} can't be used: {source}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Drop for FolderLock {
    /// Closing the file would not do at once: a process that this one is just starting has it open, too, until it becomes
    /// its program.
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::debug!(%error, "the lock of a folder goes when its file is closed");
        }
    }
}

impl FolderLock {
    /// Takes a folder that is there, by a lock on the file of this name in it.
    ///
    /// # Errors
    /// [`FolderLockError`]; at once where somebody has it.
    pub fn take(folder: &Path, name: &str) -> Result<FolderLock, FolderLockError> {
        let path = folder.join(name);
        let file = match File::options().create(true).truncate(false).write(true).open(&path) {
            Ok(file) => file,
            Err(source) => return Err(FolderLockError::Unusable { path, source }),
        };
        match file.try_lock() {
            Ok(()) => Ok(FolderLock(file)),
            Err(TryLockError::WouldBlock) => Err(FolderLockError::Held { path: folder.to_path_buf() }),
            Err(TryLockError::Error(source)) => Err(FolderLockError::Unusable { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_given_back_is_free_although_its_lock_is_open_elsewhere() {
        // Given a process that is being started, and has every file of this one.
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path(), "lock").unwrap();
        let inherited = lock.0.try_clone().unwrap();
        let refused = FolderLock::take(folder.path(), "lock");
        assert!(matches!(refused, Err(FolderLockError::Held { .. })), "{refused:?}");
        // When the folder is given back, then it can be taken again at once.
        drop(lock);
        FolderLock::take(folder.path(), "lock").unwrap();
        drop(inherited);
    }
}
