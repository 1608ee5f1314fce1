//! Backups: a whole store as of one revision, in one file, whichever driver it is of. One of SQLite can be restored into
//! PostgreSQL, and the other way round.
//!
//! # The file
//!
//! | part | holds |
//! |---|---|
//! | first line | `tidegate backup` |
//! | second line | [`BackupHeader`] as JSON: whose it is, of which revision, and when it was taken |
//! | a zstd stream | kinds of records, entities, the log after them, receipts, exceptions, slots, records, and their number |
//! | the last 32 bytes | SHA-256 of everything before |
//!
//! It is written row by row, so that it takes little memory however large the store is, under a temporary name beside its
//! own. Servers and their leases are no part of it, index entries follow from the records.
//!
//! # A restore
//!
//! Invariants: a file that is cut short or was changed is refused before anything is touched; the store is replaced in one
//! transaction; it has another epoch afterwards, the installation's id, no leases, and tokens above all that were given out.
//!
//! What was given out after the backup was taken is lost with what is replaced. Tokens are seen to by the drivers; numbers
//! that an application gives out are seen to by it, in [`Backup::open`]: the backup as a state in memory, in which
//! transactions write as in any other, requests of hooks included.

mod item;
mod open;
mod reader;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use self::item::Item;
pub use self::open::OpenBackup;
pub(crate) use self::writer::BackupWriter;
pub use self::writer::Written;
use crate::driver::record_index::DeclaredKinds;
use crate::driver::{DriverError, SlotToken, StoredDocument, StoredState};
use crate::revision::{Epoch, Revision, Timestamp};

/// How every backup begins.
const MAGIC: &[u8] = b"tidegate backup\n";

/// The format that this build writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupHeader {
    /// The file's format.
    pub format: u32,
    /// The installation that it is of.
    pub installation: Uuid,
    /// The epoch that its revisions count in. A restore begins another one.
    pub epoch: Epoch,
    /// The newest revision that it has.
    pub revision: Revision,
    /// When it was taken, by the store's clock.
    pub taken_at: Timestamp,
    /// The driver of the store that it is of: `sqlite`, `postgres`.
    pub driver: String,
    /// The format of that store's tables.
    pub tables: u32,
    /// The log that it has begins after this revision.
    pub compacted: Revision,
    /// The revision that the entities stand for; the log after it completes them.
    pub entities_at: Revision,
    /// The highest token that was ever given out.
    pub token_counter: SlotToken,
}

/// Why a backup could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// There is a file already.
    #[error("{} is there already; a backup replaces nothing", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The file can't be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{} is no backup: {why}", path.display())]
    NotABackup {
        /// Which.
        path: PathBuf,
        /// How that is known.
        why: String,
    },
    /// A newer release wrote it.
    #[error("{} has format {found}, and this build reads formats up to {known}", path.display())]
    NewerFormat {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest that this build reads.
        known: u32,
    },
    /// It is not what was written.
    #[error("the backup {} is damaged: {why}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// The store can't be read.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// Told of every entity while a backup is written: first as the written-behind entities have it, then each change after
/// them, in order; what is gone has no document. The last that it is told of a path is what the backup has.
pub type OnEntity = Box<dyn FnMut(&crate::Path, Option<&StoredDocument>) + Send>;

/// Wants to be told of no entity.
#[must_use]
pub fn unheard() -> OnEntity {
    Box::new(|_, _| {})
}

/// A backup, whole and in memory, found to be what was written.
#[derive(Clone)]
pub struct Backup {
    header: BackupHeader,
    pub(crate) state: StoredState,
    pub(crate) kinds: DeclaredKinds,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Backup").field("header", &self.header).finish_non_exhaustive()
    }
}

impl Backup {
    /// What a file says of itself. Whether the rest of it is whole is not looked at. Blocks.
    ///
    /// # Errors
    /// As [`Backup::read`], as far as the first lines tell.
    pub fn header_of(path: &Path) -> Result<BackupHeader, BackupError> {
        reader::read_header(path)
    }

    /// Reads a file whole. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`BackupError::NotABackup`], [`BackupError::NewerFormat`], [`BackupError::Damaged`], or that it can't be read.
    pub fn read(path: &Path) -> Result<Backup, BackupError> {
        reader::read(path)
    }

    /// What it says of itself.
    #[must_use]
    pub fn header(&self) -> &BackupHeader {
        &self.header
    }

    /// The same with tokens above this one as well: where another store has given out some that this one is to follow.
    #[must_use]
    pub fn with_tokens_above(mut self, token: SlotToken) -> Backup {
        self.state.token_counter = self.state.token_counter.max(token);
        self
    }
}
