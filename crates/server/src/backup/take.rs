//! Taking a backup.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_state::backup::Written;
use tidegate_state::driver::sqlite::SqliteStore;
use tidegate_state::{Clock, SystemClock};

use super::artifacts::{self, Passing};
use super::{BackupFailure, CopyError, Database, NamedArtifact, Place};

/// A backup that was taken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Taken {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// The digest at its end.
    pub sha256: String,
    /// The installation that it is of.
    pub installation: String,
    /// The epoch that its revision is of.
    pub epoch: String,
    /// The newest revision that it has.
    pub revision: u64,
    /// When it was taken, in epoch milliseconds.
    pub taken_at: u64,
    /// How many stores it has.
    pub stores: u64,
    /// How many pushes.
    pub pushes: u64,
    /// What the artifact store is called in it.
    pub artifact_store: Option<String>,
    /// The artifacts that its versions name.
    pub artifacts: Vec<NamedArtifact>,
    /// The folder that they were copied to, if they were.
    pub artifacts_folder: Option<PathBuf>,
    /// Those that could not be copied.
    pub not_copied: Vec<CopyError>,
}

/// The folder that the artifacts of a backup are in, if they are included: the file's name with `.artifacts` after it.
pub(super) fn folder_beside(file: &Path) -> PathBuf {
    let mut name = OsString::from(file.as_os_str());
    name.push(".artifacts");
    PathBuf::from(name)
}

/// Backs an installation up into a file, while its servers work on. With `with_artifacts` the artifacts are copied into a
/// folder beside it, after the file: what its versions name does not change.
///
/// # Errors
/// See [`BackupFailure`]; then there is no file.
pub async fn back_up(place: &Place, to: &Path, with_artifacts: bool) -> Result<Taken, BackupFailure> {
    let folder = folder_beside(to);
    let stores = match with_artifacts {
        // Before anything is written, and not made by looking at it.
        true if folder.symlink_metadata().is_ok() => {
            return Err(tidegate_state::backup::BackupError::Exists { path: folder }.into());
        }
        true => Some(place.artifacts()?),
        false => None,
    };
    let (passing, on_entity) = Passing::listen();
    let written = match place.database()? {
        Database::File(file) => SqliteStore::back_up_file(file, to, SystemClock.now(), on_entity).await?,
        Database::Shared(store) => store.backup(to, on_entity).await?,
    };
    let noted = passing.lock().note();
    let mut not_copied = Vec::new();
    if let Some(from) = &stores {
        let beside = folder.clone();
        let failed = |source| BackupFailure::Artifacts { store: folder.display().to_string(), source };
        crate::data_folder::make_private(&folder)
            .map_err(|source| BackupFailure::File { path: folder.clone(), source })?;
        let into = super::blocking(move || ArtifactStore::local(beside)).await?.map_err(failed)?;
        not_copied = artifacts::copy(from, &into, &noted.artifacts).await;
    }
    let Written { header, bytes, sha256 } = written;
    Ok(Taken {
        path: to.to_owned(),
        bytes,
        sha256,
        installation: header.installation.to_string(),
        epoch: header.epoch.to_string(),
        revision: header.revision.0,
        taken_at: crate::views::ms(header.taken_at),
        stores: noted.stores,
        pushes: noted.pushes,
        artifact_store: noted.artifact_store,
        artifacts: noted.artifacts,
        artifacts_folder: stores.map(|_| folder),
        not_copied,
    })
}
