//! The transaction that a `write` closure works on: reads at the head of the log and its own writes on top.
//!
//! Invariants: nothing outside sees any of it before it is committed; for each path that it touched, the log gets one
//! change from first before to last after, or none where these are the same.

mod ahead;
mod so_far;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::document::{DOCUMENT_BYTES_MAX, Document, EncodeError, RECORD_BYTES_MAX, encode_json};
use crate::driver::{HookNumber, LogEntry, RecordId, RecordRow, RecordWrite, RequestAction, RequestId, StoredDocument};
use crate::entity::{Entity, EntityId, Parent, Ref, Root};
use crate::error::ReadError;
use crate::path::{Path, PathError};
use crate::record::{INDEX_KEY_BYTES_MAX, IndexKey, Record};
use crate::revision::{Attributes, Revision, Timestamp};
use crate::snapshot::unreadable;
use crate::tree::{CarriedHash, Node, compare_paths, compare_paths_children_first};
use crate::working_tree::WorkingTree;

use ahead::Ahead;
pub(crate) use ahead::Draft;
pub use so_far::Touched;

/// The JSON text of all documents and records of one transaction, in bytes.
pub(crate) const TRANSACTION_BYTES_MAX: usize = 64 << 20;
/// How many entities one transaction may change.
pub(crate) const TRANSACTION_CHANGES_MAX: usize = 100_000;

/// Why a step of a transaction could not be done. A closure usually returns it (`?`), and so leaves no trace.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TransactionError {
    /// The entity to be created exists.
    #[error("{path} already exists")]
    AlreadyExists {
        /// The entity.
        path: Path,
    },
    /// The entity does not exist.
    #[error("{path} does not exist")]
    Absent {
        /// The entity.
        path: Path,
    },
    /// The entity can't be written, since what it would lie under does not exist.
    #[error("{path} can't be written: {ancestor}, which it would lie under, does not exist")]
    AbsentAncestor {
        /// The entity.
        path: Path,
        /// The uppermost ancestor that does not exist.
        ancestor: Path,
    },
    /// An expectation does not hold at the head of the log.
    #[error("{path} is not as expected: expected {expected}, found {found}")]
    Precondition {
        /// The entity.
        path: Path,
        /// What was expected: JSON, or `nothing`.
        expected: String,
        /// What is there: JSON, or `nothing`.
        found: String,
    },
    /// A document can't be read as its type.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A path can't be made.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A float is not a number or infinite, which no store can hold.
    #[error("{path} can't be written: field {field} is not a finite number")]
    NotANumber {
        /// The entity or record.
        path: String,
        /// The field.
        field: String,
    },
    /// A value can't be turned into JSON.
    #[error("{path} can't be written: {reason}")]
    Unencodable {
        /// The entity or record.
        path: String,
        /// What its type's serialization said.
        reason: String,
    },
    /// Something is larger than is stored.
    #[error("{what} has {size}, and the limit is {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// Its size in bytes, or its number of changes.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The transaction has run longer than it may; it fails whatever its closure returns.
    #[error("the transaction has run for {taken:?}, and its budget is {budget:?}")]
    OverBudget {
        /// What a closure may take.
        budget: Duration,
        /// What it has taken.
        taken: Duration,
    },
    /// The record is closed or does not exist.
    #[error("record {id} is closed or does not exist")]
    RecordClosed {
        /// The record.
        id: RecordId,
    },
    /// The writer's own reason.
    #[error("{0}")]
    Rejected(String),
}

impl TransactionError {
    /// An error with a text of the caller's own.
    pub fn rejected(reason: impl Into<String>) -> TransactionError {
        TransactionError::Rejected(reason.into())
    }
}

/// What a `write` closure reads from and writes to. Reads are at the head of the log and see the transaction's own
/// writes; outside, nothing is seen until the commit.
pub struct Transaction {
    tree: WorkingTree,
    revision: Revision,
    now: Timestamp,
    attributes: Arc<Attributes>,
    touched: HashMap<Path, Option<Node>, BuildHasherDefault<CarriedHash>>,
    entries: Vec<LogEntry>,
    records: Vec<RecordWrite>,
    appended: u32,
    bytes: usize,
    started: Instant,
    budget: Duration,
    /// Where it runs ahead of the write lock, what it depends on.
    ahead: Option<Ahead>,
}

/// Entities with what names them, in order.
pub type Listing<E> = Vec<(Ref<E>, Arc<E>)>;

/// What a transaction comes to.
pub(crate) struct Effect {
    /// The tree after it.
    pub(crate) tree: WorkingTree,
    /// The changes in the order in which hooks see them.
    pub(crate) changes: Vec<(Path, Option<Document>, Option<Document>)>,
    /// Entries that change no entity.
    pub(crate) entries: Vec<LogEntry>,
    /// What it does to records.
    pub(crate) records: Vec<RecordWrite>,
}

impl Effect {
    /// Whether there is anything to commit.
    pub(crate) fn is_nothing(&self) -> bool {
        self.changes.is_empty() && self.entries.is_empty() && self.records.is_empty()
    }
}

impl Transaction {
    pub(crate) fn new(
        tree: WorkingTree,
        revision: Revision,
        now: Timestamp,
        attributes: Arc<Attributes>,
        budget: Duration,
    ) -> Transaction {
        Transaction {
            tree,
            revision,
            now,
            attributes,
            touched: HashMap::default(),
            entries: Vec::new(),
            records: Vec::new(),
            appended: 0,
            bytes: 0,
            started: Instant::now(),
            budget,
            ahead: None,
        }
    }

    /// The time of the commit by the driver's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.depends_on_head();
        self.now
    }

    /// The revision that this transaction takes if it changes anything.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.depends_on_head();
        self.revision
    }

    /// What the writer said about this transaction.
    #[must_use]
    pub fn attributes(&self) -> &Attributes {
        &self.attributes
    }

    /// Whether there is an entity under this path, readable or not.
    #[must_use]
    pub fn contains(&self, path: &Path) -> bool {
        self.exists(path)
    }

    /// The entity, if it exists.
    ///
    /// # Errors
    /// [`TransactionError::Read`] when the stored document does not fit the type; [`TransactionError::OverBudget`].
    pub fn get<E: Entity>(&self, entity: &Ref<E>) -> Result<Option<Arc<E>>, TransactionError> {
        self.check_budget()?;
        self.read(entity.path())
    }

    /// The entity, which must exist.
    ///
    /// # Errors
    /// [`TransactionError::Absent`], or as [`Transaction::get`].
    pub fn require<E: Entity>(&self, entity: &Ref<E>) -> Result<Arc<E>, TransactionError> {
        self.get(entity)?.ok_or_else(|| TransactionError::Absent { path: entity.path().clone() })
    }

    fn read<E: Entity>(&self, path: &Path) -> Result<Option<Arc<E>>, TransactionError> {
        let Some(node) = self.look(path) else { return Ok(None) };
        node.document.get_arc().map(Some).map_err(|reason| TransactionError::Read(unreadable(path, &reason)))
    }

    /// The entities of one collection under a parent, in id order; none if the parent does not exist.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub fn children<E: Entity>(&self, parent: &Ref<E::Parent>) -> Result<Listing<E>, TransactionError>
    where
        E::Parent: Entity,
    {
        self.listed(parent.path())
    }

    /// The entities of one collection at the top of the tree, in id order.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub fn roots<E: Entity<Parent = Root>>(&self) -> Result<Listing<E>, TransactionError> {
        self.listed(&Path::root())
    }

    /// The entities of one collection below any parent, in the order of the parents, then of the ids.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub fn all<E: Entity>(&self) -> Result<Listing<E>, TransactionError> {
        self.check_budget()?;
        self.depends_on_head();
        self.tree.along(&<E as Parent>::levels()).iter().map(|path| self.read_listed(path)).collect()
    }

    fn listed<E: Entity>(&self, parent: &Path) -> Result<Listing<E>, TransactionError> {
        self.check_budget()?;
        self.depends_on_head();
        self.tree.children_typed(parent, E::COLLECTION, E::Id::NUMERIC).map(|path| self.read_listed(path)).collect()
    }

    fn read_listed<E: Entity>(&self, path: &Path) -> Result<(Ref<E>, Arc<E>), TransactionError> {
        self.check_budget()?;
        let entity = Ref::from_path(path)?;
        let value = self.read(path)?.ok_or_else(|| TransactionError::Absent { path: path.clone() })?;
        Ok((entity, value))
    }

    /// Creates the entity or replaces it. An equal value is no change.
    ///
    /// # Errors
    /// [`TransactionError::AbsentAncestor`] when what it lies under does not exist; [`TransactionError::NotANumber`],
    /// [`TransactionError::Unencodable`] and [`TransactionError::TooLarge`] for a value that can't be stored.
    pub fn put<E: Entity>(&mut self, entity: &Ref<E>, value: E) -> Result<(), TransactionError> {
        self.check_budget()?;
        let path = entity.path();
        self.require_ancestors(path)?;
        let current = self.look(path);
        if current.is_some_and(|node| node.document.get::<E>().is_ok_and(|there| *there == value)) {
            return Ok(());
        }
        let original = self.touched.get(path).and_then(Option::as_ref);
        if let Some(original) = original
            && original.document.get::<E>().is_ok_and(|was| *was == value)
        {
            let original = original.clone();
            self.tree.insert(original.document);
            return Ok(());
        }
        let before = current.or(original).map(|node| &node.document);
        let document = Document::encode(path.clone(), value, before, self.revision)
            .map_err(|error| encode_error(path.to_string(), error))?;
        let size = document.json().len();
        if size > DOCUMENT_BYTES_MAX {
            let what = format!("the document of {path}, in bytes,");
            return Err(TransactionError::TooLarge { what, size, limit: DOCUMENT_BYTES_MAX });
        }
        self.grow(size)?;
        self.touch(path)?;
        self.tree.insert(document);
        Ok(())
    }

    /// Creates the entity.
    ///
    /// # Errors
    /// [`TransactionError::AlreadyExists`], or as [`Transaction::put`].
    pub fn create<E: Entity>(&mut self, entity: &Ref<E>, value: E) -> Result<(), TransactionError> {
        if self.exists(entity.path()) {
            return Err(TransactionError::AlreadyExists { path: entity.path().clone() });
        }
        self.put(entity, value)
    }

    /// Changes the entity in place.
    ///
    /// # Errors
    /// [`TransactionError::Absent`], or as [`Transaction::get`] and [`Transaction::put`].
    pub fn update<E: Entity>(&mut self, entity: &Ref<E>, change: impl FnOnce(&mut E)) -> Result<(), TransactionError> {
        let mut value = (*self.require(entity)?).clone();
        change(&mut value);
        self.put(entity, value)
    }

    /// Deletes the entity and all below it. Says whether it was there.
    ///
    /// # Errors
    /// [`TransactionError::OverBudget`], [`TransactionError::TooLarge`].
    pub fn delete<E: Entity>(&mut self, entity: &Ref<E>) -> Result<bool, TransactionError> {
        self.delete_path(entity.path())
    }

    /// As [`Transaction::delete`], for a path whose type is not known here.
    ///
    /// # Errors
    /// As [`Transaction::delete`].
    pub fn delete_path(&mut self, path: &Path) -> Result<bool, TransactionError> {
        self.check_budget()?;
        if !self.exists(path) {
            return Ok(false);
        }
        // Of what is below it, and below that.
        self.depends_on_head();
        for path in self.tree.subtree(path).iter().rev() {
            self.touch(path)?;
            self.tree.remove(path);
        }
        Ok(true)
    }

    /// A precondition at the head of the log: the entity is equal to this, or absent.
    ///
    /// # Errors
    /// [`TransactionError::Precondition`] with what was expected and what was found.
    pub fn expect<E: Entity>(&mut self, entity: &Ref<E>, expected: Option<&E>) -> Result<(), TransactionError> {
        self.check_budget()?;
        let path = entity.path();
        let found = self.look(path).map(|node| &node.document);
        let holds = match (expected, found) {
            (None, None) => true,
            (Some(expected), Some(found)) => found.get::<E>().is_ok_and(|found| found == expected),
            (None, Some(_)) | (Some(_), None) => false,
        };
        if holds {
            return Ok(());
        }
        let nothing = || "nothing".to_owned();
        let expected = match expected {
            Some(expected) => encode_json(expected).unwrap_or_else(|_| format!("{expected:?}")),
            None => nothing(),
        };
        let found = found.map_or_else(nothing, |found| found.json().to_owned());
        Err(TransactionError::Precondition { path: path.clone(), expected, found })
    }

    /// Appends a record. It is committed with the rest of the transaction, or not at all.
    ///
    /// # Errors
    /// [`TransactionError::NotANumber`], [`TransactionError::Unencodable`], [`TransactionError::TooLarge`].
    pub fn append<R: Record>(&mut self, record: &R) -> Result<RecordId, TransactionError> {
        let id = RecordId { revision: self.revision, sequence: self.appended };
        let row = self.record_row(id, record, false)?;
        self.appended += 1;
        self.records.push(RecordWrite::Append(row));
        Ok(id)
    }

    /// Replaces the content of an open record. A record that is closed or does not exist fails the whole transaction.
    ///
    /// # Errors
    /// As [`Transaction::append`].
    pub fn update_record<R: Record>(&mut self, id: RecordId, record: &R) -> Result<(), TransactionError> {
        let row = self.record_row(id, record, false)?;
        self.records.push(RecordWrite::Update(row));
        Ok(())
    }

    /// As [`Transaction::update_record`], for the last time.
    ///
    /// # Errors
    /// As [`Transaction::append`].
    pub fn close_record<R: Record>(&mut self, id: RecordId, record: &R) -> Result<(), TransactionError> {
        let row = self.record_row(id, record, true)?;
        self.records.push(RecordWrite::Update(row));
        Ok(())
    }

    fn record_row<R: Record>(&mut self, id: RecordId, record: &R, closed: bool) -> Result<RecordRow, TransactionError> {
        self.depends_on_head();
        self.check_budget()?;
        let json = encode_json(record).map_err(|error| encode_error(format!("a record of kind {}", R::KIND), error))?;
        if json.len() > RECORD_BYTES_MAX {
            let what = format!("the document of a record of kind {}, in bytes,", R::KIND);
            return Err(TransactionError::TooLarge { what, size: json.len(), limit: RECORD_BYTES_MAX });
        }
        self.grow(json.len())?;
        let keys: Vec<Vec<u8>> = record.index_keys().into_iter().map(IndexKey::into_bytes).collect();
        if let Some(size) = keys.iter().map(Vec::len).find(|size| *size > INDEX_KEY_BYTES_MAX) {
            let what = format!("an index entry of a record of kind {}, in bytes,", R::KIND);
            return Err(TransactionError::TooLarge { what, size, limit: INDEX_KEY_BYTES_MAX });
        }
        Ok(RecordRow {
            kind: R::KIND.into(),
            id,
            closed,
            at: self.now,
            document: StoredDocument { format: R::FORMAT, json: json.into() },
            keys,
        })
    }

    /// Asks for a run of a hook for an entity that exists.
    pub(crate) fn request_existing(&mut self, path: Path, hook: HookNumber) {
        self.depends_on_head();
        self.entries.push(LogEntry::Existing { path, hook });
    }

    /// Acts on a request.
    pub(crate) fn act(&mut self, request: RequestId, action: RequestAction) {
        self.depends_on_head();
        self.entries.push(LogEntry::Action { request, action });
    }

    /// The tree as this transaction sees it.
    pub(crate) fn tree(&self) -> &WorkingTree {
        self.depends_on_head();
        &self.tree
    }

    /// Whether it took too long, and how much.
    pub(crate) fn check_budget(&self) -> Result<(), TransactionError> {
        let taken = self.started.elapsed();
        if taken > self.budget {
            return Err(TransactionError::OverBudget { budget: self.budget, taken });
        }
        Ok(())
    }

    fn require_ancestors(&self, path: &Path) -> Result<(), TransactionError> {
        let mut absent = None;
        let mut above = path.parent();
        // The tree holds no orphans, so the search ends at the first ancestor that is there.
        while let Some(ancestor) = above {
            if ancestor.depth() == 0 || self.exists(&ancestor) {
                break;
            }
            above = ancestor.parent();
            absent = Some(ancestor);
        }
        match absent {
            None => Ok(()),
            Some(ancestor) => Err(TransactionError::AbsentAncestor { path: path.clone(), ancestor }),
        }
    }

    fn grow(&mut self, bytes: usize) -> Result<(), TransactionError> {
        let size = self.bytes + bytes;
        if size > TRANSACTION_BYTES_MAX {
            let what = "the transaction, in bytes,".to_owned();
            return Err(TransactionError::TooLarge { what, size, limit: TRANSACTION_BYTES_MAX });
        }
        self.bytes = size;
        Ok(())
    }

    /// Keeps what was there before the transaction first touched the path.
    fn touch(&mut self, path: &Path) -> Result<(), TransactionError> {
        if !self.touched.contains_key(path) {
            let size = self.touched.len() + 1;
            if size > TRANSACTION_CHANGES_MAX {
                let what = "the transaction, in changed entities,".to_owned();
                return Err(TransactionError::TooLarge { what, size, limit: TRANSACTION_CHANGES_MAX });
            }
            self.touched.insert(path.clone(), self.tree.get(path).cloned());
        }
        Ok(())
    }

    /// The tree as it was before.
    pub(crate) fn undo(mut self) -> WorkingTree {
        for (path, before) in self.touched {
            match before {
                Some(node) => self.tree.insert(node.document),
                None => drop(self.tree.remove(&path)),
            }
        }
        self.tree
    }

    /// What it comes to.
    pub(crate) fn finish(mut self) -> Effect {
        let mut removed = Vec::new();
        let mut changed = Vec::new();
        for (path, before) in self.touched {
            let after = self.tree.get(&path).map(|node| node.document.clone());
            match (before, after) {
                (None, None) => {}
                (Some(before), None) => removed.push((path, Some(before.document), None)),
                (None, Some(after)) => changed.push((path, None, Some(after))),
                (Some(before), Some(after)) => {
                    if before.document.same(&after) {
                        self.tree.insert(before.document);
                    } else {
                        changed.push((path, Some(before.document), Some(after)));
                    }
                }
            }
        }
        if removed.len() > 1 {
            removed.sort_by(|left, right| compare_paths_children_first(&left.0, &right.0));
        }
        if changed.len() > 1 {
            changed.sort_by(|left, right| compare_paths(&left.0, &right.0));
        }
        removed.append(&mut changed);
        Effect { tree: self.tree, changes: removed, entries: self.entries, records: self.records }
    }
}

fn encode_error(path: String, error: EncodeError) -> TransactionError {
    match error {
        EncodeError::NotANumber { field } => TransactionError::NotANumber { path, field },
        EncodeError::Failed { reason } => TransactionError::Unencodable { path, reason },
    }
}
