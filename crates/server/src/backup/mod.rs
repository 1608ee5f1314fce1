//! Backups of an installation, and putting one back: what the command line's `backup` and `restore` do. No server is
//! needed for either.
//!
//! | what | module |
//! |---|---|
//! | taking a backup | [`back_up`], `take` |
//! | what a backup would replace, and carrying that out | [`Restoration`], `restore` |
//! | the numbers of versions after a restore | `versions` |
//! | tokens after a restore | `tokens` |
//! | the artifacts that a tree names, and where they lie | `artifacts` |
//! | the database that is there before a restore | `at_hand` |
//! | putting a new database file in the place of the old one | `swap` |
//!
//! # Invariants
//! - A backup is read from the database, beside the servers that work on it: the write-ahead log of SQLite, or a snapshot
//!   of PostgreSQL, keeps it to one revision. So it works whether servers are up, down or stuck, and needs no token that
//!   whoever can read the database would not have.
//! - A restore keeps the installation's id, begins an epoch, and raises the next version of every store above all that can
//!   have been given out: see [`versions`]. Tokens that were revoked since the backup stay so, and sessions end.
//! - A file is restored with no server on the folder: its lock is taken. Servers on PostgreSQL may be up: the database is
//!   replaced in one transaction, and they notice the epoch and load what is there.

mod artifacts;
mod at_hand;
mod restore;
mod swap;
mod take;
mod tokens;
pub mod versions;

use std::path::PathBuf;

use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_dataset::location::{Environment, LocationError, StorePlan, StoreSettings};
use tidegate_state::DriverError;
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};

pub use artifacts::{CopyError, NamedArtifact};
pub use at_hand::{AtHand, Installed};
pub use restore::{Restoration, Restored};
pub use take::{Taken, back_up};
pub use tidegate_state::backup::BackupError;

/// The database of an installation, and its artifacts: named as for a server.
#[derive(Clone, Debug)]
pub struct Place {
    /// The data folder. Needed where the state is in a file; else only for artifacts that are in a folder below it.
    pub data: Option<PathBuf>,
    /// The PostgreSQL that servers share, if they do.
    pub database: Option<String>,
    /// The schema in it; `tidegate` if absent.
    pub schema: Option<String>,
    /// Where artifacts are kept; a folder below the data folder if it names no address.
    pub artifacts: StoreSettings,
    /// The variables that credentials are taken from.
    pub environment: Environment,
}

/// Why a backup could not be taken, or a restore not be prepared or carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupFailure {
    /// Neither a folder nor a database is named.
    #[error("neither a data folder nor a database is named")]
    NoPlace,
    /// The artifact store is not named.
    #[error("it is not known where the artifacts are: neither a data folder nor an artifact store is named")]
    NoArtifactStore,
    /// A server runs on the folder.
    #[error("a server is running on {}, and its database is in a file that it has open", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A file or folder can't be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The backup's file.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The database.
    #[error("the database: {0}")]
    Database(#[from] DriverError),
    /// The backup's content.
    #[error("the backup can't be opened: {0}")]
    Content(String),
    /// The artifact store is described in a way that can't be used.
    #[error(transparent)]
    ArtifactsDescribed(#[from] LocationError),
    /// The artifact store does not answer as it should.
    #[error("the artifact store {store} can't be used: {source}")]
    Artifacts {
        /// What people know it by.
        store: String,
        /// What is wrong.
        source: ArtifactError,
    },
}

impl From<crate::data_folder::FolderLockError> for BackupFailure {
    fn from(error: crate::data_folder::FolderLockError) -> Self {
        use crate::data_folder::FolderLockError;
        match error {
            FolderLockError::Held { path } => BackupFailure::InUse { path },
            FolderLockError::Unusable { path, source } => BackupFailure::File { path, source },
        }
    }
}

/// Which database it is.
enum Database {
    File(PathBuf),
    Shared(PostgresStore),
}

impl Place {
    fn database(&self) -> Result<Database, BackupFailure> {
        match (&self.database, &self.data) {
            (Some(url), _) => {
                let options = self.schema.clone().map_or_else(PostgresOptions::default, PostgresOptions::in_schema);
                Ok(Database::Shared(PostgresStore::new(url, options)?))
            }
            (None, Some(data)) => Ok(Database::File(data.join(crate::database::FILE))),
            (None, None) => Err(BackupFailure::NoPlace),
        }
    }

    /// Whether it can be told where the artifacts are.
    fn names_artifacts(&self) -> bool {
        self.data.is_some() || self.artifacts.url.is_some()
    }

    fn artifacts(&self) -> Result<ArtifactStore, BackupFailure> {
        if !self.names_artifacts() {
            return Err(BackupFailure::NoArtifactStore);
        }
        let folder = self.data.clone().unwrap_or_default().join("artifacts");
        Ok(StorePlan::new(&self.artifacts, &folder, &self.environment)?.open()?)
    }
}

/// Work that blocks, off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BackupFailure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| BackupFailure::Content(error.to_string()))
}
