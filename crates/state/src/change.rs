//! What a committed transaction did, as hooks and watches see it.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::document::Document;
use crate::driver::{HookNumber, RequestAction, RequestId};
use crate::entity::Entity;
use crate::error::ReadError;
use crate::path::Path;
use crate::revision::{Attributes, Revision, SubmissionId, Timestamp};
use crate::snapshot::{Snapshot, unreadable};

/// The cluster hooks that a change asks to run: nearly always a few, which take no memory of their own.
pub(crate) type Hooks = SmallVec<[HookNumber; 4]>;

/// The changes of one transaction while they are put together: nearly always one.
pub(crate) type Changes = SmallVec<[Change; 1]>;

/// The changes of a transaction, for everyone to hold.
pub(crate) fn shared(changes: Changes) -> Arc<[Change]> {
    match changes.into_inner() {
        Ok([change]) => Arc::new([change]),
        Err(changes) => changes.into_vec().into(),
    }
}

/// What one transaction did to one entity. Cheap to clone.
#[derive(Clone)]
pub struct Change {
    /// Where.
    pub path: Path,
    /// The transaction's revision. For a difference found on reloading, the revision of the new snapshot.
    pub revision: Revision,
    /// What was there before the transaction; none for a creation.
    pub before: Option<Document>,
    /// What is there after it; none for a deletion.
    pub after: Option<Document>,
    /// Its place among the entries of the transaction, from 0.
    pub(crate) sequence: u32,
    /// The cluster hooks whose run it asks for.
    pub(crate) hooks: Hooks,
}

impl Change {
    /// The entity before the transaction; none for a creation.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`] when the document does not fit the type.
    pub fn before<E: Entity>(&self) -> Result<Option<Arc<E>>, ReadError> {
        self.read(self.before.as_ref())
    }

    /// The entity after the transaction; none for a deletion.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`] when the document does not fit the type.
    pub fn after<E: Entity>(&self) -> Result<Option<Arc<E>>, ReadError> {
        self.read(self.after.as_ref())
    }

    fn read<E: Entity>(&self, document: Option<&Document>) -> Result<Option<Arc<E>>, ReadError> {
        document.map(|document| document.get_arc().map_err(|reason| unreadable(&self.path, &reason))).transpose()
    }

    /// The stored JSON text before the transaction.
    #[must_use]
    pub fn before_json(&self) -> Option<&str> {
        self.before.as_ref().map(Document::json)
    }

    /// The stored JSON text after the transaction.
    #[must_use]
    pub fn after_json(&self) -> Option<&str> {
        self.after.as_ref().map(Document::json)
    }

    /// Its place among the entries of its transaction, from 0.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.sequence
    }
}

impl std::fmt::Debug for Change {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match (&self.before, &self.after) {
            (None, _) => "created",
            (Some(_), None) => "deleted",
            (Some(_), Some(_)) => "changed",
        };
        write!(formatter, "{} {kind} at {}", self.path, self.revision)
    }
}

/// A transaction as this server applied it.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Its revision.
    pub revision: Revision,
    /// When it was committed, by the driver's clock.
    pub at: Timestamp,
    /// What its writer said about it.
    pub attributes: Arc<Attributes>,
    /// What it did: deletions first, children before parents; then the rest, parents before children, in id order.
    pub changes: Arc<[Change]>,
    /// The tree at exactly its revision.
    pub snapshot: Snapshot,
    /// The submission that it carried out.
    pub submission: SubmissionId,
    /// Entries that are no changes: catch-up requests and operators' actions.
    pub(crate) actions: Vec<AppliedAction>,
}

/// An entry of a transaction that changes no entity.
#[derive(Debug, Clone)]
pub(crate) enum AppliedAction {
    /// A hook that starts with what exists asks for a run.
    Existing {
        /// The entry's place in the transaction.
        sequence: u32,
        /// The entity.
        path: Path,
        /// The hook.
        hook: HookNumber,
    },
    /// An operator acted on a request.
    Act {
        /// The entry's place in the transaction.
        sequence: u32,
        /// The request.
        request: RequestId,
        /// What is to happen to it.
        action: RequestAction,
    },
}
