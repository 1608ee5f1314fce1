//! What can go wrong when a state is opened, written to, or waited for.

use std::time::Duration;

use crate::driver::DriverError;
use crate::path::Path;
use crate::revision::{Revision, SubmissionId};

/// An entity or a record could not be read as its type. Every other one still reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is no entity under this path.
    #[error("{path} does not exist")]
    Absent {
        /// The path.
        path: Path,
    },
    /// The stored document does not fit the type, or could not be upgraded to it. Writing the entity anew mends it.
    #[error("{path} can't be read: {reason}")]
    Unreadable {
        /// The entity's path, or the record's kind and id.
        path: String,
        /// What does not fit, with the field; or the upgrade's own error.
        reason: String,
    },
}

/// Why a state could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The driver could not open its store. [`DriverError::is_retryable`] says whether waiting may help.
    #[error("the state can't be opened: {0}")]
    Driver(#[from] DriverError),
    /// The initial state was refused.
    #[error("the initial state can't be written: {0}")]
    Initialise(String),
    /// What this server remembers of the log ([`crate::StateOptions::seen`]) can't be read.
    #[error(
        "what this server has seen of the log can't be read from {}: {reason}; so a store that was put back would not be \
         noticed. Mend the file; or, if the store is surely the right one, remove it", file.display()
    )]
    Seen {
        /// The file.
        file: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The options contradict each other.
    #[error("the options can't be used: {0}")]
    Options(String),
}

/// Why a `write` has no [`crate::Committed`] to return.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError<E> {
    /// The closure returned this error. Nothing was committed.
    #[error("{0}")]
    Rejected(E),
    /// The closure ran longer than a transaction may. Nothing was committed, and nothing that it still does counts.
    #[error(
        "the transaction's closure ran for {taken:.1?}, and its budget is {budget:?}; nothing was committed. Do slow work before the transaction"
    )]
    OverBudget {
        /// What a closure may take.
        budget: Duration,
        /// What it took until it was given up.
        taken: Duration,
    },
    /// The closure panicked. Nothing was committed.
    #[error("the transaction's closure panicked: {message}; nothing was committed")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// The store could not be reached or be written within the time limit. Nothing was committed.
    #[error("the store did not take the transaction (tried for {waited:.1?}): {reason}; nothing was committed")]
    Unavailable {
        /// What the store said.
        reason: String,
        /// Whether the same write may succeed later without anyone's help.
        retryable: bool,
        /// How long it was tried.
        waited: Duration,
    },
    /// The store was put back to a lower head in the same epoch, behind the servers' backs. Nothing was committed, and
    /// nothing is until an operator confirms it ([`crate::State::confirm_lower_head`]).
    #[error(
        "the store was put back: its head was found at {head}, below revision {seen} that was seen in the same epoch; \
         nothing was committed, and nothing is until an operator confirms it"
    )]
    SetBack {
        /// The head that was found.
        head: Revision,
        /// What was seen before.
        seen: Revision,
    },
    /// Whether the transaction was committed is unknown: the answer was lost and the store stayed away past the time
    /// limit. Ask [`crate::State::find_submission`] later.
    #[error("it is unknown whether submission {submission} was committed: {reason}; look it up before it is repeated")]
    Unknown {
        /// What to look up.
        submission: SubmissionId,
        /// What the store said.
        reason: String,
    },
    /// The transaction, or something in it, is larger than is stored. Nothing was committed.
    #[error("{what} has {size} bytes, and the limit is {limit}; nothing was committed")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size in bytes (or its number of changes).
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The token under which a cluster hook's run wrote no longer holds. Nothing was committed.
    #[error("the token of this run no longer holds; nothing was committed")]
    Fenced,
    /// The state has been closed. Nothing was committed.
    #[error("the state is closed; nothing was committed")]
    Closed,
    /// Called from within a transaction's closure, which would wait for itself.
    #[error(
        "called from within a transaction's closure, which would wait for itself; write through the transaction instead"
    )]
    WithinTransaction,
}

impl<E> WriteError<E> {
    /// Whether the same write may succeed later without anyone's help, and certainly had no effect so far.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, WriteError::Unavailable { retryable: true, .. })
    }

    /// The same error with the closure's own error turned into another.
    pub fn map_rejected<F>(self, map: impl FnOnce(E) -> F) -> WriteError<F> {
        match self {
            WriteError::Rejected(error) => WriteError::Rejected(map(error)),
            WriteError::OverBudget { budget, taken } => WriteError::OverBudget { budget, taken },
            WriteError::Panicked { message } => WriteError::Panicked { message },
            WriteError::Unavailable { reason, retryable, waited } => {
                WriteError::Unavailable { reason, retryable, waited }
            }
            WriteError::SetBack { head, seen } => WriteError::SetBack { head, seen },
            WriteError::Unknown { submission, reason } => WriteError::Unknown { submission, reason },
            WriteError::TooLarge { what, size, limit } => WriteError::TooLarge { what, size, limit },
            WriteError::Fenced => WriteError::Fenced,
            WriteError::Closed => WriteError::Closed,
            WriteError::WithinTransaction => WriteError::WithinTransaction,
        }
    }
}

/// Why waiting for a revision, a flush or hooks ended without what was waited for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WaitError {
    /// The time limit passed.
    #[error("revision {wanted} was not applied within {waited:.1?}; this server has applied {applied}")]
    TimedOut {
        /// What was waited for.
        wanted: Revision,
        /// How far this server is.
        applied: Revision,
        /// How long it was waited.
        waited: Duration,
    },
    /// Cluster hooks were not finished within the time limit.
    #[error("hooks were not finished within {waited:.1?}: {unfinished}")]
    HooksTimedOut {
        /// How long it was waited.
        waited: Duration,
        /// What still waits or runs, in short.
        unfinished: String,
    },
    /// The store could not say how far the log goes. Try again.
    #[error("the store can't be asked: {0}")]
    Store(DriverError),
    /// The state has been closed.
    #[error("the state is closed")]
    Closed,
    /// Called from within a transaction's closure, which would wait for itself.
    #[error("called from within a transaction's closure, which would wait for itself")]
    WithinTransaction,
}

/// Why records could not be queried.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueryError {
    /// The store could not answer. [`DriverError::is_retryable`] says whether to try again.
    #[error("the records can't be read: {0}")]
    Store(#[from] DriverError),
}

impl QueryError {
    /// Whether the same query may succeed later without anyone's help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            QueryError::Store(error) => error.is_retryable(),
        }
    }
}
