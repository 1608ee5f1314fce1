//! The folder in which a push's artifact is built.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The folder, held by this process alone. What is in it survives the process, so that another
/// run of the same push finds it.
#[derive(Debug)]
pub(super) struct WorkFolder {
    path: PathBuf,
    /// Held for the lock on it.
    _lock: File,
}

impl WorkFolder {
    /// The folder of this push, below `base` or the user's cache folder. If another process is at
    /// work in it (two clients with one push id), a folder of this process' own.
    pub(super) fn open(base: Option<&Path>, server: &str, push: &str) -> Result<Self, Error> {
        let base = base.map_or_else(default_base, Path::to_path_buf);
        let name = file_name(&format!("{server} {push}"));
        let failed = |path: &Path, error: io::Error| Error::Local {
            what: format!("could not use {} as a work folder", path.display()),
            reason: error.to_string(),
        };
        for name in [name.clone(), format!("{name}.{}", std::process::id())] {
            let path = base.join(name);
            create_private(&path).map_err(|error| failed(&path, error))?;
            let lock = File::create(path.join("client.lock")).map_err(|error| failed(&path, error))?;
            match lock.try_lock() {
                Ok(()) => return Ok(Self { path, _lock: lock }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(failed(&path, error)),
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
