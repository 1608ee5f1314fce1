//! Connections, their settings, the tables' format, and what SQLite's errors mean.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ffi, params};
use uuid::Uuid;

use super::super::DriverError;
use super::super::entities_mark::EntitiesMark;
use super::super::format::Formats;

/// The newest format that this build knows: the number of the last migration.
pub(super) const FORMAT: u32 = 1;
const FORMATS: Formats = Formats { oldest: 1, newest: FORMAT };

/// How long a connection waits for one of another program (a person's `sqlite3`, a backup tool).
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// The write-ahead log is copied into the database once it has so many pages of 4 KiB.
const CHECKPOINT_PAGES: u32 = 4_000;

/// What the write-ahead log is cut back to after it was longer.
const WAL_BYTES_MAX: u32 = 64 << 20;

mod embedded {
    #![allow(unreachable_pub, missing_docs, clippy::unwrap_used)]
    refinery::embed_migrations!("src/driver/sqlite/migrations");
}

/// Opens the connection that writes, migrates the tables, and enters what a new store needs.
pub(super) fn open_writer(path: &Path) -> Result<Connection, DriverError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|error| cannot_open(path, &error))?;
    let opened = |error| cannot_open(path, &error);
    connection.busy_timeout(BUSY_LIMIT).map_err(opened)?;
    // Before anything is written: a newer release's store, or somebody else's database, stays as it is.
    let found = check_format(&connection, path, FORMATS)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(opened)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(opened)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).map_err(opened)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX).map_err(opened)?;
    connection.pragma_update(None, "cache_size", -65_536).map_err(opened)?;
    connection.pragma_update(None, "temp_store", "MEMORY").map_err(opened)?;
    connection.set_prepared_statement_cache_capacity(128);
    if found < FORMAT {
        embedded::migrations::runner()
            .run(&mut connection)
            .map_err(|error| DriverError::Configuration(format!("{}: a migration failed: {error}", path.display())))?;
    }
    enter_meta(&connection).map_err(opened)?;
    // The file's lock is this process's alone, so every server that is entered here died with the process before it:
    // nobody has to wait for its lease to run out. The rows stay, so that what it may have been running is known.
    let ended = connection.execute("UPDATE servers SET lease_until = 0 WHERE lease_until <> 0", []);
    match ended.map_err(opened) {
        Ok(_) => {}
        // What is there can be read all the same, and leases run out by themselves.
        Err(DriverError::Full(why)) => {
            tracing::error!(%why, "the disk that holds the store is full: it is opened, and nothing can be written until there is room");
        }
        Err(error) => return Err(error),
    }
    Ok(connection)
}

/// Opens a connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection, DriverError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| read_failed(&error))?;
    connection.busy_timeout(BUSY_LIMIT).map_err(|error| read_failed(&error))?;
    connection.pragma_update(None, "query_only", true).map_err(|error| read_failed(&error))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Opens a store for reading that another process may have open, once it is certain that this build knows its format.
pub(super) fn open_beside(path: &Path) -> Result<Connection, DriverError> {
    if !path.exists() {
        return Err(DriverError::Configuration(format!("there is no database at {}", path.display())));
    }
    let connection = open_reader(path)?;
    match check_format(&connection, path, FORMATS)? {
        FORMAT => Ok(connection),
        0 => Err(DriverError::Configuration(format!("{} is empty, and no store", path.display()))),
        older => Err(DriverError::Configuration(format!(
            "{} has format {older}; a server of this release brings it to format {FORMAT} when it is started",
            path.display()
        ))),
    }
}

pub(super) fn check_format(connection: &Connection, path: &Path, formats: Formats) -> Result<u32, DriverError> {
    let opened = |error| cannot_open(path, &error);
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(opened)?;
    let foreign = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'refinery_schema_history' LIMIT 1";
    let table: Option<String> = connection.query_row(foreign, [], |row| row.get(0)).optional().map_err(opened)?;
    match (found, table) {
        (0, Some(table)) => Err(DriverError::Configuration(format!(
            "{} is a database of something else (it has a table {table:?}); nothing was written",
            path.display()
        ))),
        (found, _) => formats.check(found).map(|()| found),
    }
}

/// Enters the store's one row, unless it is there: with a new epoch and a new installation.
fn enter_meta(connection: &Connection) -> rusqlite::Result<()> {
    let mark = EntitiesMark::default();
    connection.execute(
        "INSERT OR IGNORE INTO meta (only_row, epoch, installation, token_counter, compacted, entities_at, entities_count,
         entities_sum, entities_seal) VALUES (1, ?1, ?2, 0, 0, 0, 0, ?3, ?4)",
        params![Uuid::new_v4().as_bytes(), Uuid::new_v4().as_bytes(), mark.sum_bytes(), mark.seal()],
    )?;
    Ok(())
}

fn cannot_open(path: &Path, error: &rusqlite::Error) -> DriverError {
    let place = path.display();
    match code(error) {
        Some(ErrorCode::NotADatabase) => DriverError::Configuration(format!("{place} is not a SQLite database")),
        Some(ErrorCode::DatabaseCorrupt) => {
            DriverError::Damaged(format!("{place}: {error}; restore the store from a backup"))
        }
        Some(ErrorCode::DiskFull) => DriverError::Full(format!("{place}: {error}")),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            DriverError::Held(format!("{place} is locked by another program for longer than {BUSY_LIMIT:?}"))
        }
        _ => DriverError::Configuration(format!(
            "{place}: {error}; the file and its folder have to be there and writable for this user"
        )),
    }
}

/// Names the file in what was found damaged in it.
pub(super) fn of_file(path: &Path, error: DriverError) -> DriverError {
    match error {
        DriverError::Damaged(what) => DriverError::Damaged(format!("{}: {what}", path.display())),
        error => error,
    }
}

fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => Some(failure.code),
        _ => None,
    }
}

/// What an error while reading or writing means for who asked.
pub(super) fn read_failed(error: &rusqlite::Error) -> DriverError {
    match code(error) {
        Some(ErrorCode::DiskFull) => DriverError::Full(error.to_string()),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            DriverError::Damaged(format!("{error}; restore the store from a backup"))
        }
        Some(_) => DriverError::Unavailable(error.to_string()),
        // A value of another type than the column's: not what this driver has written.
        None => DriverError::Damaged(error.to_string()),
    }
}

/// Whether an error of COMMIT itself leaves open what a later recovery finds. It does not where the write-ahead log could
/// not be written, since the commit's frame is the last one; it does where flushing, or what follows it, has failed.
pub(super) fn leaves_commit_open(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) if failure.extended_code == ffi::SQLITE_IOERR_WRITE => false,
        error => {
            !matches!(code(error), Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
        }
    }
}

impl From<rusqlite::Error> for DriverError {
    fn from(error: rusqlite::Error) -> Self {
        read_failed(&error)
    }
}
