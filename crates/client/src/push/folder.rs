//! The folder in which a push's artifact is built.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tidegate_dataset::{FolderLock, FolderLockError};

use crate::error::Error;

/// A folder whose client has not come back for so long is swept: its push has long ended.
const SWEPT_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How many entries are looked at, and how many folders removed, in one sweep.
const LOOKED_AT_MAX: usize = 2_000;
const SWEPT_MAX: usize = 50;

const LOCK: &str = "client.lock";

/// The folder, held by this process alone. What is in it survives the process, so that another
/// run of the same push finds it.
#[derive(Debug)]
pub(super) struct WorkFolder {
    path: PathBuf,
    _lock: FolderLock,
}

impl WorkFolder {
    /// The folder of this push, below `base` or the user's cache folder. If another process is at
    /// work in it (two clients with one push id), a folder of this process' own.
    pub(super) fn open(base: Option<&Path>, server: &str, push: &str) -> Result<Self, Error> {
        let base = base.map_or_else(default_base, Path::to_path_buf);
        let name = file_name(&format!("{server} {push}"));
        sweep(&base, SystemTime::now());
        let failed = |path: &Path, error: io::Error| Error::Local {
            what: format!("could not use {} as a work folder", path.display()),
            reason: error.to_string(),
        };
        for name in [name.clone(), format!("{name}.{}", std::process::id())] {
            let path = base.join(name);
            create_private(&path).map_err(|error| failed(&path, error))?;
            match FolderLock::take(&path, LOCK) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
                Err(FolderLockError::Held { .. }) => {}
                Err(FolderLockError::Unusable { source, .. }) => return Err(failed(&path, source)),
            }
        }
        Err(Error::Local {
            what: format!("could not use a work folder below {}", base.display()),
            reason: "other processes are at work on the same push".to_owned(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder with all that is in it.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove the work folder");
        }
    }
}

/// Where a job keeps its folder while it works, so that whoever ends the job can remove it. Let go
/// without a word, the folder stays for the next run of the same push.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptFolder(Arc<Mutex<Option<WorkFolder>>>);

impl KeptFolder {
    pub(super) fn keep(&self, folder: WorkFolder) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
    }

    /// Removes the folder, if there is one.
    pub(super) fn remove(&self) {
        let folder = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(folder) = folder {
            folder.remove();
        }
    }
}

/// Removes folders that clients have left long ago: only what is named like one, and what no process
/// holds. What fails is tried by the next sweep.
fn sweep(base: &Path, now: SystemTime) {
    let Ok(entries) = fs::read_dir(base) else { return };
    let mut swept = 0;
    for entry in entries.take(LOOKED_AT_MAX).flatten() {
        let path = entry.path();
        let is_ours = entry.file_name().to_str().is_some_and(is_folder_name);
        if !is_ours || !is_left(&path, now) {
            continue;
        }
        let removed = fs::remove_dir_all(&path);
        tracing::debug!(path = %path.display(), ?removed, "a work folder that was left");
        swept += 1;
        if swept == SWEPT_MAX {
            return;
        }
    }
}

/// Whether the folder's client came last long ago, and is not at work in it.
fn is_left(folder: &Path, now: SystemTime) -> bool {
    let Ok(lock) = File::options().read(true).write(true).open(folder.join(LOCK)) else { return false };
    let taken = lock.metadata().and_then(|metadata| metadata.modified());
    let age = taken.ok().and_then(|taken| now.duration_since(taken).ok()).unwrap_or_default();
    age > SWEPT_AFTER && lock.try_lock().is_ok()
}

/// Whether this is a name that [`file_name`] gives, with or without a process' number behind it.
fn is_folder_name(name: &str) -> bool {
    let name = name.split_once('.').map_or(name, |(name, _)| name);
    let digest = name.rsplit_once('-').map_or("", |(_, digest)| digest);
    digest.len() == 32 && digest.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Creates a folder that only its owner can look into: what is pushed may be confidential.
fn create_private(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path)
}

fn default_base() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("tidegate")
        .join("pushes")
}

/// A file name that is another for every text: readable characters stay, all others and what is
/// too long give way to a digest of the whole.
fn file_name(text: &str) -> String {
    let digest = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).simple();
    let readable: String = text
        .chars()
        .rev()
        .take(60)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .collect();
    format!("{readable}-{digest}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_push_has_a_folder_name_of_its_own() {
        let long = "x".repeat(1000);
        let names = ["a/b", "a_b", "a b", "../..", "", &long].map(file_name);
        for (index, name) in names.iter().enumerate() {
            assert!(name.len() < 120 && !name.contains(['/', '.']), "{name}");
            assert!(!names[..index].contains(name), "{name}");
        }
    }

    #[test]
    fn folders_that_were_left_are_swept_and_no_others() {
        let base = tempfile::tempdir().unwrap();
        let held = WorkFolder::open(Some(base.path()), "http://h", "held").unwrap();
        let left = WorkFolder::open(Some(base.path()), "http://h", "left").unwrap();
        let path = left.path().to_path_buf();
        fs::write(path.join("artifact"), "half").unwrap();
        drop(left);
        let foreign = base.path().join("something-else");
        fs::create_dir(&foreign).unwrap();
        File::create(foreign.join(LOCK)).unwrap();
        sweep(base.path(), SystemTime::now());
        assert!(path.exists(), "its client may come back");
        sweep(base.path(), SystemTime::now() + SWEPT_AFTER + Duration::from_secs(60));
        assert!(!path.exists());
        assert!(held.path().exists() && foreign.exists());
    }

    #[test]
    fn d10_two_clients_with_one_push_id_do_not_share_a_folder() {
        let base = tempfile::tempdir().unwrap();
        let first = WorkFolder::open(Some(base.path()), "http://h", "p").unwrap();
        let second = WorkFolder::open(Some(base.path()), "http://h", "p").unwrap();
        assert_ne!(first.path(), second.path());
        let before = first.path().to_path_buf();
        drop(first);
        // Whoever comes after a client that was killed goes on in its folder.
        let third = WorkFolder::open(Some(base.path()), "http://h", "p").unwrap();
        assert_eq!(third.path(), before);
        third.remove();
        assert!(!before.exists());
    }
}
