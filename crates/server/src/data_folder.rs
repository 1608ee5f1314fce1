//! A process's data folder: for its owner alone, and used by one process at a time.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use tidegate_dataset::{FolderLock, FolderLockError};

/// Makes the folder, for its owner alone, and takes it for as long as what is returned is held.
pub(crate) fn take(path: &Path, lock: &str) -> Result<FolderLock, FolderLockError> {
    make_private(path).map_err(|source| FolderLockError::Unusable { path: path.to_path_buf(), source })?;
    FolderLock::take(path, lock)
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
