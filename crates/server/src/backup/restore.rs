//! Restoring a backup: first all that can be said about it, then, if it is still wanted, carrying it out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_rollout::entities::{Push, SourceStore, Store};
use tidegate_state::backup::{Backup, BackupHeader, OpenBackup};
use tidegate_state::driver::SlotToken;
use tidegate_state::{Attributes, Clock, Ref, StateOptions, SystemClock, Transaction, TransactionError, WriteError};

use super::artifacts::{copy, missing};
use super::at_hand::{AtHand, Looked, look_at_file, look_at_shared};
use super::take::folder_beside;
use super::{BackupFailure, CopyError, Database, NamedArtifact, Place, blocking, swap, tokens, versions};
use crate::access::AuditRecord;
use crate::data_folder::{self, FolderLock};
use crate::database::with_records;

/// How long the one transaction that raises all numbers may take.
const BUDGET: Duration = Duration::from_secs(60);

/// A backup that was read and found whole, and what would come of restoring it. Nothing was changed yet.
pub struct Restoration {
    backup: OpenBackup,
    database: Database,
    tokens: SlotToken,
    artifacts: Option<ArtifactStore>,
    included: Option<ArtifactStore>,
    /// The artifact store's mark, if the backup has one.
    mark: Option<String>,
    /// What of the following is in the backup.
    from_included: Vec<NamedArtifact>,
    facts: Facts,
    /// How many tokens it revokes again; none where the database at hand can't tell which were.
    revoked: Option<u64>,
    /// No server starts on the folder as long as this is held.
    _lock: Option<FolderLock>,
}

/// What is to be known before a restore.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Facts {
    at_hand: AtHand,
    stores: u64,
    pushes: u64,
    missing: Vec<NamedArtifact>,
    other_store: Option<String>,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Restored {
    /// The installation, as before.
    pub installation: String,
    /// The revision that the state has now.
    pub revision: u64,
    /// The backup's revision.
    pub from_revision: u64,
    /// When the backup was taken, in epoch milliseconds.
    pub taken_at: u64,
    /// How many stores there are.
    pub stores: u64,
    /// How many pushes.
    pub pushes: u64,
    /// What was replaced.
    pub replaced: AtHand,
    /// How many of its tokens were revoked since the backup, and are so again. Absent where what was replaced can't tell:
    /// then every token that held when the backup was taken holds again.
    pub revoked: Option<u64>,
    /// Where the replaced database file is now.
    pub kept: Option<PathBuf>,
    /// Artifacts that came from the backup.
    pub copied: Vec<NamedArtifact>,
    /// Artifacts that could not be taken from it.
    pub not_copied: Vec<CopyError>,
    /// Artifacts of versions that are nowhere. Those versions can't be served by a region that does not hold them.
    pub missing: Vec<NamedArtifact>,
}

impl Restoration {
    /// Reads a backup whole, and looks at what it would replace and at its artifacts. `included` is the folder of a backup
    /// with artifacts; absent, the one beside the file if there is one. The data folder is taken, so that no server starts
    /// on it. `by` is who restores, for the records.
    ///
    /// # Errors
    /// See [`BackupFailure`]. Nothing was changed.
    pub async fn prepare(
        place: &Place,
        from: &Path,
        included: Option<&Path>,
        by: &str,
    ) -> Result<Restoration, BackupFailure> {
        let path = from.to_owned();
        let backup = blocking(move || Backup::read(&path)).await??;
        let database = place.database()?;
        let (lock, Looked { at_hand, known, revoked, tokens }) = match (&database, &place.data) {
            (Database::File(file), Some(data)) => {
                let lock = data_folder::take(data, crate::server::LOCK)?;
                (Some(lock), look_at_file(file, backup.header()).await?)
            }
            (Database::File(_), None) => return Err(BackupFailure::NoPlace),
            (Database::Shared(store), _) => (None, look_at_shared(store, backup.header()).await?),
        };
        let mut options = with_records(StateOptions::new("restore"));
        options.transaction_budget = BUDGET;
        let backup = backup.open(options).await.map_err(|error| BackupFailure::Content(error.to_string()))?;
        let is_told = revoked.is_some();
        let count = renew(&backup, Arc::new((known, revoked.unwrap_or_default())), by).await?;
        let revoked = is_told.then_some(count);

        let snapshot = backup.state().snapshot();
        let named = NamedArtifact::all_of(&snapshot);
        let source = Ref::<SourceStore>::root(SourceStore::ID).ok().and_then(|place| snapshot.get_arc(&place).ok()?);
        let mark = source.map(|source| source.probe.clone());
        let artifacts = if place.names_artifacts() { Some(place.artifacts()?) } else { None };
        let included = match included {
            Some(folder) => Some(open_included(folder).await?),
            None => match folder_beside(from) {
                folder if folder.is_dir() => Some(open_included(&folder).await?),
                _ => None,
            },
        };
        let mut lacking = match &artifacts {
            Some(artifacts) => missing(artifacts, &named).await?,
            None => Vec::new(),
        };
        let mut from_included = Vec::new();
        if let Some(included) = &included {
            let nowhere = missing(included, &lacking).await?;
            from_included = lacking.into_iter().filter(|artifact| !nowhere.contains(artifact)).collect();
            lacking = nowhere;
        }
        let other_store = match (&artifacts, &mark) {
            (Some(artifacts), Some(mark)) => other_store(artifacts, mark).await?,
            _ => None,
        };
        let facts = Facts {
            at_hand,
            stores: snapshot.roots::<Store>().count() as u64,
            pushes: snapshot.all::<Push>().count() as u64,
            missing: lacking,
            other_store,
        };
        Ok(Restoration {
            backup,
            database,
            tokens,
            artifacts,
            included,
            mark,
            from_included,
            facts,
            revoked,
            _lock: lock,
        })
    }

    /// What the backup says of itself.
    #[must_use]
    pub fn header(&self) -> &BackupHeader {
        self.backup.header()
    }

    /// What is there now.
    #[must_use]
    pub fn at_hand(&self) -> &AtHand {
        &self.facts.at_hand
    }

    /// Whether what is replaced is gone then: a file is kept beside the new one, a shared database is not.
    #[must_use]
    pub fn keeps_nothing(&self) -> bool {
        matches!(self.database, Database::Shared(_)) && !matches!(self.facts.at_hand, AtHand::Absent)
    }

    /// Whether it is known where the artifacts are, so that they were looked at.
    #[must_use]
    pub fn knows_artifacts(&self) -> bool {
        self.artifacts.is_some()
    }

    /// How many stores and pushes the backup has.
    #[must_use]
    pub fn stores_and_pushes(&self) -> (u64, u64) {
        (self.facts.stores, self.facts.pushes)
    }

    /// Artifacts that its versions name and that are neither in the artifact store nor in the backup. Empty if it is not
    /// known where the artifact store is.
    #[must_use]
    pub fn missing(&self) -> &[NamedArtifact] {
        &self.facts.missing
    }

    /// Artifacts that are taken from the backup.
    #[must_use]
    pub fn included(&self) -> &[NamedArtifact] {
        &self.from_included
    }

    /// That the artifact store is not the one that the backup was taken with, and how that is known. No server starts with
    /// it, unless the artifacts come from the backup: then it is made the installation's.
    #[must_use]
    pub fn other_store(&self) -> Option<&str> {
        self.facts.other_store.as_deref().filter(|_| self.included.is_none())
    }

    /// Restores. Artifacts come first, so that whatever is named by the state is there before it.
    ///
    /// # Errors
    /// See [`BackupFailure`]; then the database is as it was.
    pub async fn carry_out(self) -> Result<Restored, BackupFailure> {
        let Restoration { backup, database, tokens, artifacts, included, mark, from_included, facts, revoked, _lock } =
            self;
        let mut not_copied = Vec::new();
        if let (Some(artifacts), Some(included)) = (&artifacts, &included) {
            not_copied = copy(included, artifacts, &from_included).await;
            if let (Some(mark), Some(_)) = (&mark, &facts.other_store) {
                let failed = |source| BackupFailure::Artifacts { store: artifacts.name().to_owned(), source };
                artifacts.put_probe(mark).await.map_err(failed)?;
            }
        }
        let header = backup.header().clone();
        let revision = backup.state().snapshot().revision().0;
        let backup = backup.close().await.with_tokens_above(tokens);
        let kept = match &database {
            Database::File(file) => {
                let aside = format!(".before-restore-{}", SystemClock.now().0);
                swap::replace(file, backup, &aside).await?
            }
            Database::Shared(store) => {
                store.restore(&backup).await?;
                None
            }
        };
        let copied =
            from_included.into_iter().filter(|named| !not_copied.iter().any(|failed| failed.artifact == *named));
        Ok(Restored {
            installation: header.installation.to_string(),
            revision,
            from_revision: header.revision.0,
            taken_at: crate::views::ms(header.taken_at),
            stores: facts.stores,
            pushes: facts.pushes,
            replaced: facts.at_hand,
            revoked,
            kept,
            copied: copied.collect(),
            not_copied,
            missing: facts.missing,
        })
    }
}

/// Changes what has to change in a state that comes back, and keeps on record who brought it. Says how many tokens are revoked
/// again.
async fn renew(
    backup: &OpenBackup,
    found: Arc<(versions::Known, tokens::Revocations)>,
    by: &str,
) -> Result<u64, BackupFailure> {
    let header = backup.header();
    let target = format!("revision {} of epoch {}", header.revision, header.epoch);
    let attributes = Attributes::from([("user".to_owned(), by.to_owned())]);
    let by = by.to_owned();
    let renew = move |transaction: &mut Transaction| {
        let (known, revoked) = &*found;
        let what = format!("restore {target}");
        versions::raise(transaction, known, &what, &by, "the state was restored from a backup")?;
        let count = tokens::keep_out(transaction, revoked)?;
        AuditRecord::of_restore(transaction.now(), &by, &target).append(transaction)?;
        Ok::<u64, TransactionError>(count)
    };
    let written = backup.state().transaction().attributes(attributes).write(renew).await;
    let failed = |error: WriteError<TransactionError>| BackupFailure::Content(error.to_string());
    written.map(|committed| committed.value).map_err(failed)
}

async fn open_included(folder: &Path) -> Result<ArtifactStore, BackupFailure> {
    if !folder.is_dir() {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "there is no such folder");
        return Err(BackupFailure::File { path: folder.to_owned(), source });
    }
    let path = folder.to_owned();
    let failed = |source| BackupFailure::Artifacts { store: folder.display().to_string(), source };
    blocking(move || ArtifactStore::local(path)).await?.map_err(failed)
}

/// What tells a store from the one that has this mark, if anything does.
async fn other_store(store: &ArtifactStore, mark: &str) -> Result<Option<String>, BackupFailure> {
    match store.check_probe(mark).await {
        Ok(()) => Ok(None),
        Err(ArtifactError::OtherStore { store, why }) => Ok(Some(format!("{store}: {why}"))),
        Err(source) => Err(BackupFailure::Artifacts { store: store.name().to_owned(), source }),
    }
}
