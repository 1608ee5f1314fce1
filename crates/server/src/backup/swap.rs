//! Putting a new database file in the place of another one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidegate_state::backup::Backup;
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};

use super::{BackupFailure, blocking};

/// How long the disk may take for the largest state.
const DISK_LIMIT: Duration = Duration::from_secs(3_600);

/// The files that SQLite keeps beside a database.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a database of the backup beside `file`, and puts it in its place in one step once it is whole. What was there
/// stays under the name that is answered. The caller holds the folder's lock.
pub(super) async fn replace(file: &Path, backup: Backup, aside: &str) -> Result<Option<PathBuf>, BackupFailure> {
    let fresh = with(file, ".restored");
    remove(&fresh)?;
    let path = fresh.clone();
    let options = SqliteOptions { limit: DISK_LIMIT, ..SqliteOptions::default() };
    let store = blocking(move || SqliteStore::open(path, options)).await??;
    let restored = store.restore(Arc::new(backup)).await;
    // Closing it brings what is in the write-ahead log into the file.
    blocking(move || drop(store)).await?;
    let file = file.to_owned();
    let aside = with(&file, aside);
    match restored {
        Ok(()) => blocking(move || put_in_place(&fresh, &file, &aside)).await?,
        Err(error) => {
            remove(&fresh)?;
            Err(error.into())
        }
    }
}

fn remove(fresh: &Path) -> Result<(), BackupFailure> {
    for path in ["", "-wal", "-shm", ".lock"].map(|suffix| with(fresh, suffix)) {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(BackupFailure::File { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

fn put_in_place(fresh: &Path, file: &Path, aside: &Path) -> Result<Option<PathBuf>, BackupFailure> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BackupFailure::File { path, source }
    };
    File::open(fresh).and_then(|file| file.sync_all()).map_err(failed(fresh))?;
    let wal = with(fresh, "-wal");
    if fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
        let source = io::Error::other("the new database still has a write-ahead log, which would be lost");
        return Err(BackupFailure::File { path: wal, source });
    }
    let is_there = file.exists();
    if is_there {
        // The old one keeps its name until the new one takes it, so that there is a database at every moment.
        fs::hard_link(file, aside).or_else(|_| fs::copy(file, aside).map(drop)).map_err(failed(aside))?;
        for suffix in BESIDE {
            // Left by an old one that could not be opened: read with the new one, it would damage that.
            let beside = with(file, suffix);
            if beside.exists() {
                fs::rename(&beside, with(aside, suffix)).map_err(failed(&beside))?;
            }
        }
    }
    fs::rename(fresh, file).map_err(failed(file))?;
    if let Some(folder) = file.parent() {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))?;
    }
    remove(fresh)?;
    Ok(is_there.then(|| aside.to_owned()))
}
