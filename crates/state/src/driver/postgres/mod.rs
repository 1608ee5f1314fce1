//! The driver for many servers: one PostgreSQL (15 or later), which orders and stores; nothing else is needed.
//!
//! ```no_run
//! use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
//! use tidegate_state::{State, StateOptions};
//!
//! # async fn open() -> Result<(), tidegate_state::BoxError> {
//! let store = PostgresStore::new("postgres://tidegate@db.example/tidegate?sslmode=verify-full", PostgresOptions::default())?;
//! let state = State::open(store.driver(), StateOptions::new("server-a")).await?;
//! # Ok(()) }
//! ```
//!
//! # Tables
//!
//! All in one schema of the caller's choice, so that two installations in one database do not touch each other: the keys
//! of advisory locks and the channel of notifications come from the schema's name.
//!
//! | table | holds | changed by |
//! |---|---|---|
//! | `changes` | the log: up to 64 transactions of one commit in a row, with the numbers of the hooks that they concern; one in each in a store that the release before shares | commits append; compaction deletes |
//! | `receipt_blocks` | what was run, up to 64 receipts in a row; `receipts` in a store that the release before shares. The view `stored_receipts` shows both, a row for each | commits and settlements append; compaction deletes |
//! | `exceptions` | the few requests that wait for a time, failed, are dead or were copied out of the log | settlements |
//! | `servers`, `server_formats` | who is there, and until when its lease holds; which format it knows | joining, heartbeats |
//! | `slots` | who leases which slot under which token, and its watermark | taking over, releasing, watermarks |
//! | `tokens` | the token counter; its row's lock orders joining, leaving, taking and releasing | taking over |
//! | `entities`, `entities_mark` | the state as of one revision, written behind, with the digest of the whole; people query it | upkeep |
//! | `records`, `record_index`, `record_news`, `record_kinds` | records, their index entries and how far indexes are built, groups to look at when pruning | commits append (open records are updated); an index that was added later is entered; pruning deletes |
//! | `meta` | epoch, installation, format, how far the log is compacted | compaction, contraction |
//!
//! No row of log or receipts is ever updated, and none is deleted but by compaction, so that a foreign transaction that
//! stays open costs commits and receipts nothing.
//!
//! # The commit
//!
//! One round trip takes the write lock (advisory, of the transaction) and reads what this server has not seen; the
//! closures run; a second one appends everything, notifies and commits. All statements are prepared, are sent without
//! waiting for each other, and their number does not depend on how many transactions the commit carries. Only a commit
//! that updates open records reads these first, in a third round trip.
//!
//! A token is held by `FOR KEY SHARE` on its slot's row. Owner and token are key columns, so that whatever voids a token
//! waits for those who hold it, and heartbeats and watermarks do not.
//!
//! # Compaction deletes, and drops no partitions
//!
//! Dropping or detaching a partition needs a lock on the whole log that every commit queues up behind, for as long as a
//! foreign reader is at it or the lock limit lasts, time and again while that reader stays. A delete in small batches
//! waits for nobody and nobody for it; it leaves dead rows at the old end of the log, where no statement of a commit, a
//! receipt or the tail looks, and vacuum takes them. Receipts go with the rows of their requests.
//!
//! # Formats
//!
//! A release brings the tables of the one before it up to date by adding to them, and runs beside servers of that release: as
//! long as one of them leases, everything is written as it reads it. Once none was seen for
//! [`PostgresOptions::contract_after`], the format in `meta` is raised, and that release is refused. A server that has
//! registered no hook leases nothing, and holds nothing up; it is refused from then on as well.
//!
//! # Connections
//!
//! Five at most, each made when it is needed and made anew when it has broken. They show in `pg_stat_activity` by
//! name, with the schema behind it.
//!
//! | `application_name` | for |
//! |---|---|
//! | `tidegate-commit` | sessions: one at a time |
//! | `tidegate-settle` | receipts, exceptions, watermarks; joining, leaving, taking and releasing slots |
//! | `tidegate-read` | the log's tail, records, what waits in a slot, starts |
//! | `tidegate-upkeep` | entities written behind, compaction, pruning |
//! | `tidegate-watch` | LISTEN, and heartbeats: nothing that could wait for a lock |
//!
//! A start makes one more for a moment (`tidegate-open`), and so does who has waited for a lock in vain. A pooler between has to be in session mode.
//!
//! # Limits
//!
//! | limit | what it is for |
//! |---|---|
//! | [`PostgresOptions::lock_limit`] | a server that is stopped or cut off in mid-transaction is thrown out after it (`idle_in_transaction_session_timeout`, `tcp_user_timeout`, `client_connection_check_interval`), and its locks with it. A lease has to be [`super::LEASES_PER_LOCK_LIMIT`] times as long |
//! | twice that and a second | `lock_timeout`: how long others wait for such locks; longer than the holder can last. Only one that is stopped with a part of a statement sent lasts longer, since no limit of the database's runs then: who has waited for so long ends its session (`pg_terminate_backend`, as the same user) |
//! | [`PostgresOptions::answer_limit`] | `statement_timeout`, and after it this side gives a connection up on which packets vanish |
//! | [`PostgresOptions::connect_limit`] | making a connection |
//! | [`PostgresOptions::keepalive`] | how often a silent connection is asked whether it is there, by both sides |
//! | [`PostgresOptions::mend_limit`] | how long a start that finds the stored entities damaged waits for a server that is up |
//!
//! Plans are pinned on all connections (no sequential scans, no sorting joins, one generic plan per statement): one that was
//! made when a table was empty must not be kept when it has grown.

mod backup;
mod burden;
mod clock;
mod compaction;
mod connection;
mod contraction;
mod driver;
mod entities;
mod errors;
mod link;
mod listener;
mod log;
mod log_blocks;
mod options;
mod pending;
mod receipts;
mod record_indexes;
mod records;
mod schema;
mod session;
mod settlement;
mod slots;
mod stalled;
mod stored;
mod target;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use xxhash_rust::xxh3::xxh3_64;

use self::clock::DatabaseClock;
use self::connection::Role;
use self::driver::PostgresDriver;
use self::listener::News;
pub use self::options::PostgresOptions;
use self::target::Target;
use super::{Driver, DriverError, Faults, FaultyDriver};
use crate::clock::Clock;
use crate::revision::Timestamp;

/// A store in a schema of a database. Clones are one store. Nothing is connected to before a driver is used.
#[derive(Clone)]
pub struct PostgresStore {
    target: Arc<Target>,
    options: PostgresOptions,
}

impl fmt::Debug for PostgresStore {
    /// Without the password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PostgresStore").field("target", &self.target).field("options", &self.options).finish()
    }
}

/// What the connections of one driver share.
struct Shared {
    target: Arc<Target>,
    options: PostgresOptions,
    /// The name of the channel of notifications.
    channel: String,
    news: News,
    clock: DatabaseClock,
    /// The format that the store was last seen to have.
    format: AtomicU32,
}

impl Shared {
    /// By which what this server writes is written. One that it lags behind is read by all that are there.
    fn format(&self) -> u32 {
        self.format.load(Ordering::Relaxed)
    }

    fn take_format(&self, found: u32) {
        self.format.store(found, Ordering::Relaxed);
    }

    /// The time that a statement goes by where it is not the database's own.
    fn now_given(&self) -> Option<i64> {
        self.options.clock.as_ref().map(|clock| clock.now().0)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        match &self.options.clock {
            Some(clock) => clock.clone(),
            None => Arc::new(self.clock.clone()),
        }
    }

    fn now(&self) -> Timestamp {
        self.clock().now()
    }

    /// What a connection goes by in the database's own views: what it is for, and of which installation.
    fn application_name(&self, role: Role) -> String {
        format!("{} {}", role.name(), self.options.schema)
    }

    /// The key of an advisory lock of this schema. Keys are the database's, so they come from the schema's name.
    fn lock_key(&self, purpose: &str) -> i64 {
        xxh3_64(format!("tidegate/{purpose}/{}", self.options.schema).as_bytes()).cast_signed()
    }
}

impl PostgresStore {
    /// Reads the connection string, completed by the process's `PG*` variables and password file, as libpq does: `sslmode`,
    /// `sslrootcert` (`system` too), `sslcert`, `sslkey`, `passfile`, several hosts, sockets. Files that it names are read;
    /// nothing is connected to.
    ///
    /// # Errors
    /// [`DriverError::Configuration`]: the string, a file that it names, or an option can't be used.
    pub fn new(connection: &str, options: PostgresOptions) -> Result<Self, DriverError> {
        options.check()?;
        let target = Target::parse(connection, &|name| std::env::var(name).ok())?;
        Ok(PostgresStore { target: Arc::new(target), options })
    }

    /// A driver with connections of its own: one for each server.
    #[must_use]
    pub fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(PostgresDriver::new(self.shared()))
    }

    /// A driver behind a switch for tests.
    #[must_use]
    pub fn driver_with(&self, faults: Faults) -> Arc<dyn Driver> {
        Arc::new(FaultyDriver::new(self.driver(), faults))
    }

    /// How it is configured.
    #[must_use]
    pub fn options(&self) -> &PostgresOptions {
        &self.options
    }

    fn shared(&self) -> Arc<Shared> {
        Arc::new(Shared {
            target: self.target.clone(),
            options: self.options.clone(),
            channel: format!("tidegate_{}", self.options.schema),
            news: News::default(),
            clock: DatabaseClock::default(),
            format: AtomicU32::new(0),
        })
    }
}
