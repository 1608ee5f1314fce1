//! A process's data folder: for its owner alone, and used by one process at a time.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why a folder can't be taken.
pub(crate) enum FolderError {
    /// Another process has it.
    InUse { path: PathBuf },
    /// The folder, or a file in it, can't be used.
    Unusable { path: PathBuf, source: io::Error },
}

/// Makes the folder, for its owner alone, and takes it for as long as what is returned is held.
pub(crate) fn take(path: &Path, lock: &str) -> Result<File, FolderError> {
    let failed = |path: &Path, source: io::Error| FolderError::Unusable { path: path.to_path_buf(), source };
    make_private(path).map_err(|error| failed(path, error))?;
    let lock_path = path.join(lock);
    let lock = File::create(&lock_path).map_err(|error| failed(&lock_path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
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

/// Replaces a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}
