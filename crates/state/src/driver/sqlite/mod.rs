//! The driver for one process, the embedded default: one SQLite file, write-ahead logging with `synchronous=FULL`, one
//! thread that writes, readers beside it.
//!
//! Who may write when: commits and takings of slots take the store's write lock, in order of arrival; all writes go
//! through one queue to one thread, which puts what has come together into one transaction, so that one flush carries
//! it. What every server asks for all the time (the newest rows of the log, leases) is kept in memory and follows what
//! is durable.
//!
//! Several servers of one process share a store by its drivers. A second process is refused.

mod backup;
mod driver;
mod entities;
mod lock;
mod readers;
mod record_indexes;
mod records;
mod schema;
mod stored;
mod tail;
#[cfg(test)]
mod tests;
mod writer;
mod writes;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use self::driver::SqliteDriver;
use self::lock::FileLock;
use self::readers::Readers;
use self::tail::{Effect, Known};
use self::writer::{Queue, Writer};
use super::{Driver, DriverError, Faults, FaultyDriver, SlotToken, StoredState, restored_tokens_above};
use crate::backup::{Backup, BackupError, OnEntity, Written, unheard};
use crate::clock::{Clock, SystemClock};
use crate::revision::{Revision, Timestamp};

/// How a store is opened. The defaults are what an installation wants.
#[derive(Clone)]
pub struct SqliteOptions {
    /// The clock that leases and times go by.
    pub clock: Arc<dyn Clock>,
    /// How long a call waits for the write lock, for room in the writer's queue, and for the disk.
    pub limit: Duration,
    /// The largest size of the database file in bytes; writes beyond it fail as on a full disk. None: the disk's size.
    pub bytes_max: Option<u64>,
    /// How long a start that finds the stored entities damaged waits for a server that is up to write them anew.
    pub mend_limit: Duration,
    /// How many readers work side by side.
    pub readers: usize,
    /// How many of the newest rows of the log are kept in memory.
    pub tail_rows_max: usize,
    /// How many bytes of them at most.
    pub tail_bytes_max: usize,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        SqliteOptions {
            clock: Arc::new(SystemClock),
            limit: Duration::from_secs(10),
            bytes_max: None,
            mend_limit: Duration::from_secs(5),
            readers: 4,
            tail_rows_max: 100_000,
            tail_bytes_max: 64 << 20,
        }
    }
}

impl SqliteOptions {
    /// The defaults on a clock of the caller's.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        SqliteOptions { clock, ..SqliteOptions::default() }
    }

    fn tail_bounds(&self) -> (usize, usize) {
        (self.tail_rows_max, self.tail_bytes_max)
    }
}

impl fmt::Debug for SqliteOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SqliteOptions").field("limit", &self.limit).field("bytes_max", &self.bytes_max).finish()
    }
}

/// A store in one file. Clones are one store; the file is closed when the last of them and of its drivers has gone.
#[derive(Clone)]
pub struct SqliteStore(Arc<Store>);

/// What the writer's thread and everyone else share.
struct Shared {
    path: PathBuf,
    options: SqliteOptions,
    queue: Queue,
    readers: Readers,
    known: Mutex<Known>,
    /// The head, sent again whenever anything of the log has changed.
    news: watch::Sender<Revision>,
    write_lock: Arc<tokio::sync::Mutex<()>>,
    /// Sessions whose commit is still to come.
    sessions: AtomicUsize,
    /// A commit's outcome is not known, and nothing was written after it.
    uncertain: AtomicBool,
    /// A start has found that the entities are not what was written, and nobody has written them anew.
    entities_damaged: AtomicBool,
    /// Counts how often they were written anew.
    entities_renewed: watch::Sender<u64>,
}

impl Shared {
    fn session_under_way(&self) -> bool {
        self.sessions.load(Ordering::Acquire) > 0
    }

    fn entities_damaged(&self) -> bool {
        self.entities_damaged.load(Ordering::Acquire)
    }

    fn set_entities_renewed(&self) {
        self.entities_damaged.store(false, Ordering::Release);
        self.entities_renewed.send_modify(|count| *count += 1);
    }

    fn set_uncertain(&self, uncertain: bool) {
        self.uncertain.store(uncertain, Ordering::Release);
    }

    /// Shows servers what has become durable.
    fn publish(&self, effects: Vec<Effect>) {
        let mut log_changed = false;
        let head = {
            let mut known = self.known.lock();
            for effect in effects {
                match &effect {
                    Effect::Leases(_) | Effect::Kinds(_) | Effect::Compacted(_) => {}
                    Effect::Rows(_) | Effect::Epoch(_) => log_changed = true,
                    Effect::EntitiesReplaced => self.set_entities_renewed(),
                    Effect::Replaced(_) => {
                        log_changed = true;
                        self.set_entities_renewed();
                    }
                }
                known.follow(effect);
            }
            known.head
        };
        if log_changed {
            self.news.send_replace(head);
        }
    }
}

/// The open file with its writer. Invariant: the writer's thread never owns one of these, so it never joins itself.
struct Store {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    // Let go after the thread has ended.
    _lock: FileLock,
}

impl Drop for Store {
    fn drop(&mut self) {
        // The writer's connection has to be the last one: it ends the write-ahead log, which a reader's can't.
        self.shared.readers.close();
        self.shared.queue.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(path = %self.shared.path.display(), "the store's writer had panicked");
        }
    }
}

/// Makes a file that is not there, for its owner alone: the files that SQLite keeps beside it get the same mode. Where that
/// can't be done SQLite says why, in opening it.
fn make_private(path: &Path) {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let _ = options.open(path);
}

impl SqliteStore {
    /// Opens the file, or makes it; migrates its tables if an older release wrote it. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`DriverError::Held`] if a process has it open, [`DriverError::NewerFormat`] if a newer release wrote it,
    /// [`DriverError::Configuration`] if it can't be opened or is something else, [`DriverError::Damaged`].
    pub fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, DriverError> {
        let path = path.as_ref().to_owned();
        let lock = FileLock::take(&path)?;
        make_private(&path);
        let connection = schema::open_writer(&path)?;
        if let Some(bytes_max) = options.bytes_max {
            limit_size(&connection, Some(bytes_max))?;
        }
        let known = stored::read_known(&connection, options.tail_bounds());
        let known = known.map_err(|error| schema::of_file(&path, error))?;
        let shared = Arc::new(Shared {
            queue: Queue::new(),
            readers: Readers::new(&path, options.readers),
            news: watch::Sender::new(known.head),
            known: Mutex::new(known),
            write_lock: Arc::default(),
            sessions: AtomicUsize::new(0),
            uncertain: AtomicBool::new(false),
            entities_damaged: AtomicBool::new(false),
            entities_renewed: watch::Sender::new(0),
            path,
            options,
        });
        let writer = Writer::new(connection, shared.clone()).map_err(|error| schema::of_file(&shared.path, error))?;
        let thread = std::thread::Builder::new()
            .name("state-writer".to_owned())
            .spawn(move || writer.work())
            .map_err(|error| DriverError::Configuration(format!("no thread could be started: {error}")))?;
        Ok(SqliteStore(Arc::new(Store { shared, thread: Some(thread), _lock: lock })))
    }

    /// A driver; servers of this process may share one or have one each.
    #[must_use]
    pub fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(SqliteDriver::new(self.0.clone()))
    }

    /// A driver behind a switch for tests.
    #[must_use]
    pub fn driver_with(&self, faults: Faults) -> Arc<dyn Driver> {
        Arc::new(FaultyDriver::new(self.driver(), faults))
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.shared.path
    }

    /// Writes a backup of the whole store, as of one revision, to a file that must not be there yet. Others write on
    /// meanwhile.
    ///
    /// # Errors
    /// Why it could not be written; nothing of it stays then.
    pub async fn backup(&self, to: impl AsRef<Path>) -> Result<Written, BackupError> {
        let taken_at = self.0.shared.options.clock.now();
        Self::back_up_file(&self.0.shared.path, to, taken_at, unheard()).await
    }

    /// As [`SqliteStore::backup`], of a file that another process may have open: it is read beside it.
    ///
    /// # Errors
    /// As [`SqliteStore::backup`].
    pub async fn back_up_file(
        database: impl AsRef<Path>,
        to: impl AsRef<Path>,
        taken_at: Timestamp,
        on_entity: OnEntity,
    ) -> Result<Written, BackupError> {
        let (database, to) = (database.as_ref().to_owned(), to.as_ref().to_owned());
        let written = tokio::task::spawn_blocking(move || backup::write(&database, &to, taken_at, on_entity)).await;
        written.map_err(|error| DriverError::Unavailable(error.to_string()))?
    }

    /// Puts a backup in place of all that is stored, under a new epoch, with no leases and with tokens above all that
    /// were given out. Servers that are up notice and load it.
    ///
    /// # Errors
    /// Why the backup could not be stored; then everything is as it was.
    pub async fn restore(&self, backup: Arc<Backup>) -> Result<(), DriverError> {
        self.replace(backup, true).await
    }

    /// Puts the store back to a backup behind everyone's back, its epoch as the backup has it: for tests of what happens
    /// when an operator copies an old file over it.
    ///
    /// # Errors
    /// As [`SqliteStore::restore`].
    pub async fn set_back_to(&self, backup: Arc<Backup>) -> Result<(), DriverError> {
        self.replace(backup, false).await
    }

    async fn replace(&self, backup: Arc<Backup>, new_epoch: bool) -> Result<(), DriverError> {
        self.write(move |writer| {
            let here = writer.leases.token_counter();
            let installation = writer.shared.known.lock().installation;
            let above = restored_tokens_above(&backup.state, here, installation, writer.head);
            writer.replace(&backup.state, Some(&backup.kinds))?;
            if new_epoch {
                writer.begin_epoch(above)?;
            }
            Ok(())
        })
        .await
    }

    /// The highest token that was ever given out.
    #[must_use]
    pub fn token_counter(&self) -> SlotToken {
        self.0.shared.known.lock().leases.token_counter()
    }

    /// Drops everything and makes an empty store in its place: another epoch and installation. For tests.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn drop_and_recreate(&self) -> Result<(), DriverError> {
        self.write(|writer| {
            let mut state = StoredState::empty();
            state.meta.format = schema::FORMAT;
            writer.replace(&state, None)
        })
        .await
    }

    /// Changes what is stored behind everyone's back, to plant damage for the linter. Digests fit the damage.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn tamper(&self, change: impl FnOnce(&mut StoredState) + Send + 'static) -> Result<(), DriverError> {
        let mut state = self.driver().stored().await?;
        change(&mut state);
        self.write(move |writer| writer.replace(&state, None)).await
    }

    /// Runs SQL behind everyone's back, to plant damage that digests do not fit.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn tamper_sql(&self, sql: &str) -> Result<(), DriverError> {
        let sql = sql.to_owned();
        self.write(move |writer| {
            writer.connection.execute_batch(&sql)?;
            writer.follow_replacement()
        })
        .await
    }

    /// Changes [`SqliteOptions::bytes_max`] of an open store.
    ///
    /// # Errors
    /// If the writer is not there any more.
    pub async fn set_bytes_max(&self, bytes_max: Option<u64>) -> Result<(), DriverError> {
        self.write(move |writer| Ok(limit_size(&writer.connection, bytes_max)?)).await
    }

    async fn write<T: Send + 'static>(
        &self,
        apply: impl FnMut(&mut Writer) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let lock = self.0.write_lock(false).await?;
        let limit = self.0.shared.options.limit;
        self.0.shared.queue.run(limit, false, lock, apply).await.map_err(|failed| failed.error)
    }
}

fn limit_size(connection: &rusqlite::Connection, bytes_max: Option<u64>) -> rusqlite::Result<()> {
    let page: u64 = connection.pragma_query_value(None, "page_size", |row| row.get::<_, i64>(0))?.cast_unsigned();
    let pages = bytes_max.map_or(u64::from(u32::MAX - 1), |bytes| (bytes / page).max(1));
    connection
        .pragma_update_and_check(None, "max_page_count", pages.min(u64::from(u32::MAX - 1)).cast_signed(), |_| Ok(()))
}
