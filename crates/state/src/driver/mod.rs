//! The contract between the tree and what stores it.
//!
//! A driver orders transactions and keeps rows. It knows no entity types, matches no patterns and runs no hooks: all of
//! that is above it and the same for every driver. It must not assume that it is the only process on its store.
//!
//! Invariants that every driver keeps, and that the linter and the conformance suite check:
//! 1. Revisions have no gap, and a reader never sees a row without all the rows before it.
//! 2. A [`Batch`] is applied whole or not at all: rows, records, receipts, exceptions.
//! 3. A token of a slot is given out once, and is above all tokens ever given out in the store, over epochs too.
//! 4. A receipt, an exception or a fenced batch is accepted only while its token holds, and that check and the taking
//!    over of a slot never overlap: what was accepted is seen by whoever takes the slot over afterwards.
//! 5. A receipt wins over an exception of the same request.
//! 6. Log rows are only removed up to what compaction allows: below every slot's low watermark and below the revision
//!    that `entities` stand for. The newest row stays.

pub(crate) mod encoding;
mod entities_mark;
mod faults;
pub(crate) mod format;
mod leases;
pub mod memory;
pub mod postgres;
pub(crate) mod record_index;
mod rows;
pub mod sqlite;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use faults::{Call, CommitFault, Faults, FaultyDriver, SettleFault};
pub use rows::{
    EntityRow, Exception, ExceptionState, Fence, HookLoad, HookNumber, IndexEntry, IndexPage, IndexStep, IndexWork,
    LogEntry, LogRow, Meta, Receipt, ReceiptOutcome, RecordId, RecordKindRow, RecordRow, RecordWrite, RequestAction,
    RequestId, RequestedChange, ServerHook, ServerId, ServerLoad, ServerName, ServerRow, SlotId, SlotRow, SlotToken,
    StoredDocument,
};

use crate::clock::Clock;
use crate::record::{IndexDeclaration, RecordPage, RecordQuery, Retention};
use crate::revision::{Epoch, Revision, SubmissionId, Timestamp};

/// Why a driver could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DriverError {
    /// The store can't be reached or is busy beyond its limit. Nothing was done; try again.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store has no room left. Nothing was done; try again once there is room.
    #[error("the disk that holds the store has no room left, so free some there: {0}")]
    Full(String),
    /// The store was written by a newer release.
    #[error("the store has format {found}, and this build knows formats up to {known}; nothing was written")]
    NewerFormat {
        /// The store's format.
        found: u32,
        /// The newest one that this build knows.
        known: u32,
    },
    /// The store's format is older than this build brings up to date. Nothing was written.
    #[error(
        "the store has format {found}, and this build takes over formats from {oldest} on; first start a release that knows \
         format {oldest}, which brings the store there; nothing was written"
    )]
    OlderFormat {
        /// The store's format.
        found: u32,
        /// The oldest that this build takes over.
        oldest: u32,
    },
    /// Another process has the store.
    #[error("the store is held by another process: {0}")]
    Held(String),
    /// The store can't be opened as configured; waiting will not mend it.
    #[error("the store can't be opened: {0}")]
    Configuration(String),
    /// What was read is damaged: a digest, a gap, a row that does not parse.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// The log was compacted past the revision that was asked for: load the entities instead.
    #[error("the log reaches back to revision {reaches_back_to} only")]
    Compacted {
        /// Rows above this revision are there.
        reaches_back_to: Revision,
    },
    /// The store has another epoch than the caller's: it was dropped, or restored from a backup.
    #[error("the store has epoch {found}, not {expected}")]
    EpochChanged {
        /// The caller's.
        expected: Epoch,
        /// The store's.
        found: Epoch,
    },
    /// The head is below a revision that the caller has seen in the same epoch: the store was put back behind our backs.
    /// Nothing may be written, leased or run until an operator confirms it ([`Batch::new_epoch`]).
    #[error("the store's head is {head}, below revision {seen} that was seen in the same epoch: it was put back")]
    SetBack {
        /// The store's head.
        head: Revision,
        /// What the caller has seen.
        seen: Revision,
    },
    /// The server's lease has lapsed, so it owns no slots; it must join anew.
    #[error("the lease of this server has ended; it must join anew")]
    LeaseLapsed,
    /// A record was to be updated that is closed or not there.
    #[error("record {0} is closed or does not exist")]
    RecordClosed(RecordId),
    /// No declared index serves the query.
    #[error("no index serves this query; {kind} has the indexes {indexes:?}")]
    NoIndex {
        /// The kind of record.
        kind: String,
        /// What is declared.
        indexes: Vec<String>,
    },
    /// The index was added to a kind that has records already, or an older build has appended records without entries in
    /// it: it is being built, and serves no query before every record is in it.
    #[error(
        "the index {index} of records of kind {kind} does not have every record yet, so it serves no query; the servers \
         that know it build on, so ask again later, or by one of {complete:?}"
    )]
    IndexIncomplete {
        /// The kind of record.
        kind: String,
        /// The index.
        index: String,
        /// Those that serve queries.
        complete: Vec<String>,
    },
}

impl DriverError {
    /// Whether the same call may succeed later without anyone's help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            DriverError::Unavailable(_)
                | DriverError::Full(_)
                | DriverError::LeaseLapsed
                | DriverError::IndexIncomplete { .. }
        )
    }
}

/// How a commit failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// It is certain that nothing was committed.
    #[error("not committed: {0}")]
    NotCommitted(DriverError),
    /// Whether it was committed is unknown: look the submissions up before anything is retried.
    #[error("it is unknown whether the commit took place: {0}")]
    Unknown(DriverError),
}

/// Everything that one commit stores, all or nothing.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The transactions, in order, each one revision above the one before.
    pub rows: Vec<Arc<LogRow>>,
    /// What they do to records.
    pub records: Vec<RecordWrite>,
    /// Acknowledgements of hook runs whose writes are among `rows`. Their tokens were checked with [`Session::fence`]
    /// in this session.
    pub receipts: Vec<Receipt>,
    /// Exceptions that fall away with the receipts are removed by the driver (invariant 5).
    pub exceptions: Vec<Exception>,
    /// The store gets a new epoch in the same step, once an operator has confirmed that it was put back
    /// ([`DriverError::SetBack`]): all slots are free, and tokens go on above this one and above all that the store knows of.
    /// `rows` are its first.
    pub new_epoch: Option<SlotToken>,
}

/// The cluster's write lock, held. Dropping it lets go without a trace.
#[async_trait]
pub trait Session: Send {
    /// The time of this session by the driver's clock; every transaction of the commit carries it.
    fn now(&self) -> Timestamp;

    /// Checks that each token holds, and keeps it from being taken over until the session has ended.
    async fn fence(&mut self, fences: &[Fence]) -> Result<Vec<bool>, DriverError>;

    /// Stores the batch durably and lets go of the lock. One flush, however many transactions.
    async fn commit(self: Box<Self>, batch: Batch) -> Result<(), CommitError>;
}

/// The write lock together with what the caller had not seen.
pub struct Begun {
    /// The lock.
    pub session: Box<dyn Session>,
    /// The rows after the revision that was asked from, up to the head.
    pub rows: Vec<Arc<LogRow>>,
}

/// A page of the log.
#[derive(Debug, Clone)]
pub struct LogPage {
    /// Rows in order, without gap.
    pub rows: Vec<Arc<LogRow>>,
    /// The head when the page was read.
    pub head: Revision,
}

/// The tree as stored, for a start.
#[derive(Debug, Clone)]
pub struct StoredTree {
    /// The revision that the entities stand for; the log after it completes them.
    pub revision: Revision,
    /// All entities at that revision.
    pub entities: Vec<EntityRow>,
}

/// One item of [`Driver::settle`]; each is accepted or refused by its own fence.
#[derive(Debug, Clone)]
pub enum Settle {
    /// A request is finished.
    Receipt(Receipt),
    /// A request waits, failed or is dead (or an operator's retry put it back: `Parked` with no attempts).
    Exception {
        /// What to store in place of what was there for this request.
        exception: Box<Exception>,
        /// Under which token.
        fence: Fence,
    },
    /// Every request of the slot at or below `to` has a receipt or an exception.
    Watermark {
        /// Under which token.
        fence: Fence,
        /// Never lowered.
        to: Revision,
    },
}

/// Whether one item of a settlement counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It is stored durably (an exception also where the request has a receipt already, which wins; a receipt also where
    /// it was there before, since an answer may have been lost).
    Durable,
    /// Its token no longer holds; nothing of it is stored.
    Refused,
}

/// What a slot's new owner finds: take the slot over first, then read this.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Log rows after the revision that was asked from that ask for runs of the hook or act on requests of it. They are
    /// whole, since an entry's place in its row is its request's sequence, and include entries of other slots: the caller
    /// knows the keys.
    pub rows: Vec<Arc<LogRow>>,
    /// Which requests of the hook between there and `read_to` have receipts.
    pub receipts: Vec<RequestId>,
    /// The exceptions of the slot, all of them on every page.
    pub exceptions: Vec<Exception>,
    /// Every row up to this revision was looked at. Where it is below `head`, ask again from here.
    pub read_to: Revision,
    /// The head when this was read: later requests come by the tail.
    pub head: Revision,
    /// The epoch that all these revisions count in.
    pub epoch: Epoch,
}

/// What a store could not clean up yet, and what keeps it from that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Burden {
    /// How many rows were deleted or replaced and still take room, by table.
    pub dead_rows: Vec<(String, u64)>,
    /// The oldest transaction that is open, whoever's it is: rows that went since it began stay.
    pub oldest: Option<OldestTransaction>,
}

/// A transaction that keeps rows from being cleaned up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldestTransaction {
    /// Whose it is, for people: process, user, application and address, as far as the store tells.
    pub connection: String,
    /// For how long it has been open.
    pub age: Duration,
}

/// Everything that a driver stores, for the linter, for tests and for backups.
#[derive(Debug, Clone)]
pub struct StoredState {
    /// The store itself.
    pub meta: Meta,
    /// The highest token ever given out.
    pub token_counter: SlotToken,
    /// The log, as far as it reaches back.
    pub log: Vec<Arc<LogRow>>,
    /// The written-behind entities.
    pub tree: StoredTree,
    /// All receipts that are kept.
    pub receipts: Vec<Receipt>,
    /// All exceptions.
    pub exceptions: Vec<Exception>,
    /// All slots.
    pub slots: Vec<SlotRow>,
    /// All servers.
    pub servers: Vec<ServerRow>,
    /// All records.
    pub records: Vec<RecordRow>,
    /// The indexes of all records.
    pub index_entries: Vec<IndexEntry>,
    /// The kinds of records that were ever declared. None where that is not told: then every declared index is taken for
    /// one that has every record.
    pub record_kinds: Vec<RecordKindRow>,
}

impl StoredState {
    /// A store in which nothing was ever committed, with a new epoch and installation.
    #[must_use]
    pub fn empty() -> Self {
        StoredState {
            meta: Meta {
                epoch: Epoch(uuid::Uuid::new_v4()),
                installation: uuid::Uuid::new_v4(),
                format: 1,
                head: Revision::ZERO,
                compacted: Revision::ZERO,
            },
            token_counter: SlotToken(0),
            log: Vec::new(),
            tree: StoredTree { revision: Revision::ZERO, entities: Vec::new() },
            receipts: Vec::new(),
            exceptions: Vec::new(),
            slots: Vec::new(),
            servers: Vec::new(),
            records: Vec::new(),
            index_entries: Vec::new(),
            record_kinds: Vec::new(),
        }
    }
}

/// How many times [`Driver::lock_limit`] a lease has to be.
pub const LEASES_PER_LOCK_LIMIT: u32 = 3;

/// What stores and orders. See the module's invariants.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// `memory`, `sqlite`, `postgres`.
    fn name(&self) -> &'static str;

    /// The clock that leases, retry times and `now` go by.
    fn clock(&self) -> Arc<dyn Clock>;

    /// Makes or migrates the tables, once however many servers come at once, and says what is there. Declares the
    /// record kinds that this build knows with their indexes.
    async fn open(&self, records: &[IndexDeclaration]) -> Result<Meta, DriverError>;

    /// Epoch, head and what else is known of the store itself.
    async fn meta(&self) -> Result<Meta, DriverError>;

    /// The written-behind entities; checked against their digest. Where they do not fit it, they are rebuilt from a log that
    /// reaches back to the beginning, or by a server that is up ([`Driver::replace_entities`]).
    ///
    /// # Errors
    /// [`DriverError::Damaged`] if neither can: nobody did for a moment.
    async fn load(&self) -> Result<StoredTree, DriverError>;

    /// Rows after a revision, at most `rows_max` (at least one if there is any).
    async fn read_log(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<LogPage, DriverError>;

    /// Ends when there may be something new in the log, or after `limit` at the latest. A hint, never relied upon.
    async fn wait_for_news(&self, after: Revision, limit: Duration);

    /// Whether and where a submission was committed above a revision, as long as its row is kept (at least an hour). Reads
    /// what came after it, so whoever knows what the head was when the submission was made names that.
    async fn find_submission(&self, submission: SubmissionId, after: Revision)
    -> Result<Option<Revision>, DriverError>;

    /// Takes the write lock, and in the same round trip reads what is after `after`. If there is more than `rows_max`,
    /// the lock is let go and [`DriverError::Unavailable`] asks the caller to catch up by its tail first. Waits for the
    /// lock in order of arrival, and no longer than the driver's lock limit.
    async fn begin(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<Begun, DriverError>;

    /// A page of records by index and keyset.
    ///
    /// # Errors
    /// [`DriverError::NoIndex`]. [`DriverError::IndexIncomplete`]: some record has no entry in this index, as of the same
    /// moment as the page.
    async fn query_records(&self, query: &RecordQuery) -> Result<RecordPage, DriverError>;

    /// Removes what the retention lets go, at most `rows_max` in one short transaction; says how many went.
    async fn prune_records(&self, retention: &Retention, rows_max: usize) -> Result<usize, DriverError>;

    /// The next records of a kind that may lack entries in its first `indexes` indexes: at most `rows_max` are looked at, and
    /// those that lack entries are given as far as a page has room. An index lacks entries after it was added to a kind that
    /// has records, and whenever a record is appended or updated with fewer keys than there are indexes, which the commit
    /// itself takes note of.
    async fn records_to_index(&self, kind: &str, indexes: u32, rows_max: usize) -> Result<IndexWork, DriverError>;

    /// Enters the records of a page into the indexes that they lack, in one short transaction under the write lock: `keys`
    /// are all of each record's, in the order of `page.lacking`. How far the indexes are built is kept with it, so that
    /// another server, or a later start, goes on there. An index is in use from the step on after which no record lacks it.
    async fn index_records(&self, page: Arc<IndexPage>, keys: Vec<Vec<Vec<u8>>>) -> Result<IndexStep, DriverError>;

    /// Enters a server (another one under its name keeps its lease until that ends).
    async fn join(&self, server: ServerRow) -> Result<(), DriverError>;

    /// Renews the server's lease and row. [`DriverError::LeaseLapsed`] if it had ended: a lapsed lease is not renewed.
    /// [`DriverError::NewerFormat`] if this build does not know the store's format any more.
    async fn heartbeat(&self, server: ServerRow) -> Result<(), DriverError>;

    /// Removes the server and frees its slots.
    async fn leave(&self, server: ServerId) -> Result<(), DriverError>;

    /// All servers and slots.
    async fn cluster(&self) -> Result<(Vec<ServerRow>, Vec<SlotRow>), DriverError>;

    /// Leases those of the slots that are free, or whose owner's lease is over, each with a fresh token. Makes the rows of
    /// slots that never were, their watermark where the log is compacted to. Refuses a server whose own lease is over; one
    /// that drains gets none. Slots that the server leases already are not in the answer: where one was lost, their tokens
    /// are in [`Driver::cluster`].
    async fn take_slots(&self, server: ServerId, slots: &[SlotId]) -> Result<Vec<Fence>, DriverError>;

    /// Frees slots whose tokens hold, for others to take at once.
    async fn release_slots(&self, fences: &[Fence]) -> Result<(), DriverError>;

    /// What waits in a slot after a revision (its watermark, or `read_to` of the page before); gives no more than
    /// `rows_max` rows of the log that ask for runs of the hook. Call after `take_slots` has answered, never in one statement with it: a receipt that the
    /// taking over waited for must be seen.
    async fn pending(&self, slot: SlotId, after: Revision, rows_max: usize) -> Result<Pending, DriverError>;

    /// Stores receipts, exceptions and watermarks, each on condition that its token holds. One flush for all: what is stored
    /// can be seen, and outlives a crash, together.
    async fn settle(&self, items: Vec<Settle>) -> Result<Vec<Settled>, DriverError>;

    /// Requests that are not simply waiting in the log, of one hook or of all.
    async fn exceptions(&self, hook: Option<HookNumber>) -> Result<Vec<Exception>, DriverError>;

    /// Moves the written-behind entities on to `revision`: changed ones and removed ones, with the digest of the whole.
    /// Does nothing if they already stand for `to` or later (no row ever goes back); where they stand for a revision between
    /// the two, what is given covers it. With `from` and `to` alike it only tells of damage, at no cost. One short
    /// transaction: a caller with much to write moves on in steps.
    ///
    /// # Errors
    /// [`DriverError::EpochChanged`]: the caller's entities are those of another store, and would be taken for this one's.
    /// [`DriverError::Unavailable`] if they stand for a revision before `from`. [`DriverError::Damaged`] if a start has found
    /// that they are not what was written: a server that is up gives all of them by [`Driver::replace_entities`].
    async fn write_entities(
        &self,
        epoch: Epoch,
        from: Revision,
        to: Revision,
        changed: Vec<EntityRow>,
        removed: Vec<crate::path::Path>,
    ) -> Result<(), DriverError>;

    /// Puts a whole tree in place of the written-behind entities, unless they are sound and stand for its revision or a later
    /// one.
    async fn replace_entities(&self, epoch: Epoch, tree: StoredTree) -> Result<(), DriverError>;

    /// Removes log rows and receipts that nothing needs any more and that are older than `keep`; at most `rows_max` in
    /// one short transaction. Where a store keeps together what was committed together, that goes once all of it may, and one
    /// such part may be more. Says up to where the log is compacted now. The driver holds back what invariant 6 asks for
    /// as far as it knows: the newest row, rows that `entities` do not cover, rows above a slot's watermark. Rows above
    /// `floor` stay too: the caller, who knows the registrations, gives the revision below which no request can be of a
    /// slot that has no row yet (a registration one of whose slots was never leased: the revision before it was made).
    ///
    /// # Errors
    /// [`DriverError::EpochChanged`]: what the caller knows of registrations is of another store.
    async fn compact(
        &self,
        epoch: Epoch,
        keep: Timestamp,
        floor: Revision,
        rows_max: usize,
    ) -> Result<Revision, DriverError>;

    /// What the store could not clean up yet, and what keeps it from that; nothing where it needs no cleaning.
    async fn burden(&self) -> Result<Burden, DriverError> {
        Ok(Burden::default())
    }

    /// The revision that the written-behind entities stand for, as the last look at the log has seen it on the way: another
    /// server may have written them. Zero where there is no other, or nothing is known of this epoch.
    fn entities_at(&self, _epoch: Epoch) -> Revision {
        Revision::ZERO
    }

    /// How long the store lets a holder of the write lock that does not move keep it; none where a holder can't be cut off
    /// from it. A lease has to be at least [`LEASES_PER_LOCK_LIMIT`] times as long, or a state is refused at its start: a
    /// stopped holder must never cost others their leases.
    fn lock_limit(&self) -> Option<Duration> {
        None
    }

    /// Everything, as of one moment.
    async fn stored(&self) -> Result<StoredState, DriverError>;
}

/// By how much tokens rise when a backup is restored where nobody knows any more what was given out after it.
pub(crate) const RESTORED_TOKENS_ABOVE: u64 = 1 << 24;

/// Each receipt once, the first one, where some were stored again since their answer was lost. Two of one request under two
/// tokens stay: there must be none.
pub(crate) fn without_repeats(mut receipts: Vec<Receipt>) -> Vec<Receipt> {
    let mut seen = HashSet::with_capacity(receipts.len());
    receipts.retain(|receipt| seen.insert((receipt.request, receipt.fence.token)));
    receipts
}

/// The token that all of a restored store are above: of what the backup and the store have given out, and by a distance
/// where the store in whose place it comes is not of this installation, so that it knows nothing of what came after.
fn restored_tokens_above(backup: &StoredState, here: SlotToken, installation: uuid::Uuid, head: Revision) -> SlotToken {
    let knows = head > Revision::ZERO && installation == backup.meta.installation;
    let unknown = if knows { 0 } else { RESTORED_TOKENS_ABOVE };
    SlotToken(here.max(backup.token_counter).0 + unknown)
}

/// Refuses to copy entities that are not what was written.
fn check_entities_sound(damage: &[String]) -> Result<(), DriverError> {
    if damage.is_empty() {
        return Ok(());
    }
    Err(DriverError::Damaged(format!(
        "the stored entities are not what was written: {}; a server that is up, or is started, mends them if that can be done",
        damage.join(", ")
    )))
}

/// Refuses a page with a hole (invariant 1): rows have to follow `after` one by one, and to end at the head unless the
/// page is full.
fn check_no_gap(after: Revision, rows: &[Arc<LogRow>], rows_max: usize, head: Revision) -> Result<(), DriverError> {
    let mut expected = after.next();
    for row in rows {
        if row.revision != expected {
            return Err(DriverError::Damaged(format!(
                "the log has revision {} where {expected} belongs; restore the store from a backup",
                row.revision
            )));
        }
        expected = expected.next();
    }
    if rows.len() < rows_max && expected <= head {
        return Err(DriverError::Damaged(format!(
            "the log ends before revision {expected}, and its head is {head}; restore the store from a backup"
        )));
    }
    Ok(())
}

/// Refuses a batch that does not follow the head without a gap (invariant 1).
fn check_batch(head: Revision, batch: &Batch) -> Result<(), DriverError> {
    let mut expected = head.next();
    for row in &batch.rows {
        if row.revision != expected {
            return Err(DriverError::Configuration(format!(
                "a transaction with revision {} was to follow head {head}; {expected} was expected",
                row.revision
            )));
        }
        expected = expected.next();
    }
    Ok(())
}

/// Refuses to move the written-behind entities on over changes that nobody has given.
fn check_entities_step(at: Revision, from: Revision, to: Revision, head: Revision) -> Result<(), DriverError> {
    if at < from {
        return Err(DriverError::Unavailable(format!(
            "the stored entities stand for revision {at}; what changed after {from} does not follow it"
        )));
    }
    if to > head {
        return Err(DriverError::Unavailable(format!(
            "the stored entities can't stand for {to}, beyond the head {head}"
        )));
    }
    Ok(())
}
