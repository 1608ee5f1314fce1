//! The rows that every driver stores, whatever its tables look like.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::path::Path;
use crate::revision::{Attributes, Epoch, Revision, SubmissionId, Timestamp};

/// An entity's stored form: JSON text, and the version of the form that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDocument {
    /// [`crate::Entity::FORMAT`] of the build that wrote it.
    pub format: u32,
    /// The JSON object.
    pub json: Arc<str>,
}

/// The number that a registration got when it was first made; what log rows name hooks by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HookNumber(pub u32);

/// One run that a change asks for. Its order is the order of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// The revision of the transaction that asked.
    pub revision: Revision,
    /// Which entry of that transaction, from 0.
    pub sequence: u32,
    /// The hook that is to run.
    pub hook: HookNumber,
}

impl fmt::Display for RequestId {
    /// `revision.sequence.hook`, the form that the command line takes and idempotency keys are made from.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.revision, self.sequence, self.hook.0)
    }
}

/// One transaction in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogRow {
    /// Its revision: exactly one above that of the row before it.
    pub revision: Revision,
    /// The submission that it carries out.
    pub submission: SubmissionId,
    /// When it was committed, by the driver's clock.
    pub at: Timestamp,
    /// The server that committed it.
    pub server: ServerName,
    /// What its writer said about it.
    pub attributes: Arc<Attributes>,
    /// What it did, in the order in which hooks see it. Empty for a transaction of records alone.
    pub entries: Vec<LogEntry>,
}

impl LogRow {
    /// Whether it asks for a run of the hook, or acts on a request of it.
    #[must_use]
    pub fn concerns(&self, hook: HookNumber) -> bool {
        self.entries.iter().any(|entry| match entry {
            LogEntry::Change { hooks, .. } => hooks.contains(&hook),
            LogEntry::Existing { hook: asked, .. } => *asked == hook,
            LogEntry::Action { request, .. } => request.hook == hook,
        })
    }
}

/// What one entry of a transaction did.
#[derive(Debug, Clone, PartialEq)]
pub enum LogEntry {
    /// An entity was created (no `before` in the tree), changed or deleted (no `after`).
    Change {
        /// Where.
        path: Path,
        /// What was there; stored only where an `EveryChange` hook is among `hooks`, since every replica has it.
        before: Option<StoredDocument>,
        /// What is there now.
        after: Option<StoredDocument>,
        /// The hooks whose run it asks for.
        hooks: Vec<HookNumber>,
    },
    /// A hook that starts with what exists asks for a run for an entity that was there before it.
    Existing {
        /// The entity.
        path: Path,
        /// The hook.
        hook: HookNumber,
    },
    /// An operator acted on a request; every owner learns of it from its tail.
    Action {
        /// The request.
        request: RequestId,
        /// What is to happen to it.
        action: RequestAction,
    },
}

/// What an operator can do to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RequestAction {
    /// Run a dead letter again, its attempts counted afresh.
    Retry,
    /// Let go of a dead or waiting request for good.
    Discard,
    /// Let go of a waiting request, or signal a running one to end; nothing that it still returns is accepted.
    Cancel,
}

/// The name that a server goes by, unique among those that live.
pub type ServerName = Arc<str>;

/// The id of a record: the transaction that appended it and its place there. Rises in order of commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordId {
    /// The revision of the transaction that appended it.
    pub revision: Revision,
    /// Which record of that transaction, from 0.
    pub sequence: u32,
}

impl RecordId {
    /// Before every record there can be.
    pub const FIRST: RecordId = RecordId { revision: Revision::ZERO, sequence: 0 };

    /// The first place behind this record.
    #[must_use]
    pub fn next(self) -> RecordId {
        match self.sequence.checked_add(1) {
            Some(sequence) => RecordId { sequence, ..self },
            None => RecordId { revision: self.revision.next(), sequence: 0 },
        }
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.revision, self.sequence)
    }
}

/// A record as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordRow {
    /// [`crate::Record::KIND`].
    pub kind: Arc<str>,
    /// Which one.
    pub id: RecordId,
    /// Closed records are never updated again.
    pub closed: bool,
    /// When it was appended.
    pub at: Timestamp,
    /// Its content.
    pub document: StoredDocument,
    /// Its entries in the declared indexes, in the order of [`crate::Record::INDEXES`], as bytes whose order is the index's.
    pub keys: Vec<Vec<u8>>,
}

/// One entry of a record in one of its kind's indexes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexEntry {
    /// The kind of record.
    pub kind: Arc<str>,
    /// The index's name.
    pub index: Arc<str>,
    /// The entry.
    pub key: Vec<u8>,
    /// The record.
    pub id: RecordId,
}

/// A kind of records, as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordKindRow {
    /// The kind.
    pub kind: Arc<str>,
    /// The names of its indexes, in order.
    pub indexes: Vec<Arc<str>>,
    /// How many of them hold an entry for every record; the rest are being built.
    pub complete: u32,
}

/// What is to be done for the indexes of a kind of records.
#[derive(Debug, Clone)]
pub enum IndexWork {
    /// Nothing: every record has an entry in each of them.
    Complete,
    /// This page is next.
    Page(IndexPage),
}

/// A range of records, some of which lack entries in indexes that were added later.
#[derive(Debug, Clone)]
pub struct IndexPage {
    /// The kind.
    pub kind: Arc<str>,
    /// Entries in how many of its first indexes are looked for.
    pub indexes: u32,
    /// Where the range begins: every record before has them.
    pub from: RecordId,
    /// Where it ends: the first place behind it.
    pub to: RecordId,
    /// Those in it that lack entries, in order.
    pub lacking: Vec<RecordRow>,
    /// Whether there was no record from `to` on when this was read.
    pub last: bool,
}

/// What became of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexStep {
    /// Its records have their entries; the next page can be read.
    Entered,
    /// The same, and now every record has: the indexes are in use.
    Complete,
    /// The store is not any more as the page was read: another server builds, or a record was updated. Nothing was changed.
    Overtaken,
}

/// What a transaction does to records.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordWrite {
    /// A new one.
    Append(RecordRow),
    /// An open one gets another content; refused by the driver if it is closed or not there.
    Update(RecordRow),
}

/// A slot of a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SlotId {
    /// The hook.
    pub hook: HookNumber,
    /// Which of its slots, from 0.
    pub slot: u32,
}

/// What a lease of a slot is known by. Only ever rises, over all slots and epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotToken(pub u64);

/// A condition on a write: that this token of this slot still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    /// The slot.
    pub slot: SlotId,
    /// The token under which it was leased.
    pub token: SlotToken,
}

/// How a request that ran came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReceiptOutcome {
    /// The run ended as done.
    Done,
    /// A later run of the same key saw its change (`LatestState`).
    Coalesced,
    /// An operator let go of it.
    Discarded,
    /// An operator cancelled it.
    Cancelled,
}

/// That a request is finished. Append-only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The request.
    pub request: RequestId,
    /// The slot that its key belongs to, and the token that it ran under.
    pub fence: Fence,
    /// How it ended.
    pub outcome: ReceiptOutcome,
}

/// Why a request that is not finished is not simply waiting in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum ExceptionState {
    /// The hook asked to be run again at this time; not a failure.
    Waiting {
        /// When.
        until: Timestamp,
    },
    /// The run failed and is tried again at this time.
    BackingOff {
        /// When.
        until: Timestamp,
    },
    /// Its attempts are used up; it waits for an operator (or, for `LatestState`, for the next change).
    Dead,
    /// Copied out of the log so that the slot's low watermark can pass it.
    Parked,
    /// It may have been running when its owner died.
    Started,
}

/// One of the few requests that wait for a time, failed, are dead, or were copied out of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Exception {
    /// The request.
    pub request: RequestId,
    /// The slot that its key belongs to.
    pub slot: SlotId,
    /// Why it is here.
    pub state: ExceptionState,
    /// How many runs have failed (interrupted ones do not count).
    pub attempts: u32,
    /// How many owners died while it may have been running.
    pub deaths: u32,
    /// The last error's text, bounded.
    pub error: Option<String>,
    /// The change that asked for it, so that the log below it can be compacted.
    pub change: RequestedChange,
}

/// The change behind a request, with all that a run of `EveryChange` is given.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestedChange {
    /// Where.
    pub path: Path,
    /// What was there (`EveryChange` only).
    pub before: Option<StoredDocument>,
    /// What was there after it.
    pub after: Option<StoredDocument>,
    /// When it was committed.
    pub at: Timestamp,
    /// What its writer said about it.
    pub attributes: Arc<Attributes>,
}

/// A server's row: one heartbeat renews all that it leases.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerRow {
    /// Which process: another one under the same name has another id.
    pub id: ServerId,
    /// The name that operators know it by.
    pub name: ServerName,
    /// Until when its leases hold unless it renews them, by the driver's clock.
    pub lease_until: Timestamp,
    /// It leaves: it leases nothing more, and hands back what it has.
    pub draining: bool,
    /// The hooks that it runs, with the definition version that its code has and how many runs at once it takes.
    pub hooks: Vec<ServerHook>,
    /// What it last said about its load, for moving slots off it.
    pub load: ServerLoad,
    /// The last revision that it has applied.
    pub applied: Revision,
}

/// A hook that a server runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerHook {
    /// The hook.
    pub hook: HookNumber,
    /// The definition version that its code has.
    pub version: u32,
    /// How many runs of it at once the server takes.
    pub room: u32,
}

/// A server's own account of its load.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerLoad {
    /// Keys that wait for room, and since when the oldest of them does, per hook.
    pub waiting: Vec<HookLoad>,
}

/// The load of one hook on one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookLoad {
    /// The hook.
    pub hook: HookNumber,
    /// Keys with a request that could run now if there were room.
    pub keys: u64,
    /// Since when the oldest of them waits.
    pub since: Timestamp,
    /// Runs going.
    pub running: u32,
}

/// The id of one server process on one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerId(pub uuid::Uuid);

/// A slot's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotRow {
    /// Which slot.
    pub slot: SlotId,
    /// Who leases it; none if it is free. It is also free once the owner's lease is over.
    pub owner: Option<ServerId>,
    /// The last token that was given out for it.
    pub token: SlotToken,
    /// Every request of the slot at or below this revision has a receipt or an exception.
    pub watermark: Revision,
}

/// What is known of the store itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Scopes revisions.
    pub epoch: Epoch,
    /// Names the installation for good, through restores.
    pub installation: uuid::Uuid,
    /// The format of the tables.
    pub format: u32,
    /// The newest row of the log; never compacted.
    pub head: Revision,
    /// The log holds every row above this revision.
    pub compacted: Revision,
}

/// One entity of the written-behind table.
#[derive(Debug, Clone, PartialEq)]
pub struct EntityRow {
    /// Where.
    pub path: Path,
    /// The revision that last changed it.
    pub revision: Revision,
    /// Its content.
    pub document: StoredDocument,
}
