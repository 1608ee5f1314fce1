//! A `write` on its way through the committer, without its types.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Core, within_transaction};
use crate::driver::{Exception, Fence, Receipt};
use crate::error::WriteError;
use crate::revision::{Attributes, Revision, SubmissionId};
use crate::state::Committed;
use crate::transaction::{Draft, Transaction, TransactionError};

/// All attributes of one transaction, keys and values, in bytes.
pub(crate) const ATTRIBUTES_BYTES_MAX: usize = 64 << 10;

/// What makes a transaction a hook's: it counts only while the token holds, and settles requests in the same commit.
#[derive(Debug, Clone)]
pub(crate) struct Fenced {
    /// The token that must hold.
    pub(crate) fence: Fence,
    /// Stored with the transaction, also where it changes no entity.
    pub(crate) receipts: Vec<Receipt>,
    /// Stored with the transaction, also where it changes no entity.
    pub(crate) exceptions: Vec<Exception>,
}

/// One call of `write`, as the committer sees it.
pub(crate) struct Submission {
    pub(super) id: SubmissionId,
    pub(super) attributes: Arc<Attributes>,
    /// Away while it runs on the closure thread.
    pub(super) closure: Option<Box<dyn Closure>>,
    /// What its last run came to, if that was ahead of the write lock and the head can do with it.
    pub(super) draft: Option<Box<Draft>>,
    pub(super) fenced: Option<Box<Fenced>>,
    pub(super) answer: oneshot::Sender<Answer>,
    pub(super) submitted: Instant,
    /// A commit that carried it has an unknown outcome; it is not run again before that is found out.
    pub(super) unresolved: bool,
}

impl Submission {
    /// One of somebody who waits for the answer.
    pub(super) fn new<F, T, E>(
        id: SubmissionId,
        attributes: Arc<Attributes>,
        closure: F,
        answer: oneshot::Sender<Answer>,
    ) -> Submission
    where
        F: Fn(&mut Transaction) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        Submission {
            id,
            attributes,
            closure: Some(Box::new(Typed { closure, returned: None })),
            draft: None,
            fenced: None,
            answer,
            submitted: Instant::now(),
            unresolved: false,
        }
    }

    /// One that does not go through the queue: nobody waits for its answer.
    pub(super) fn apart<F, T, E>(id: SubmissionId, attributes: Arc<Attributes>, closure: F) -> Submission
    where
        F: Fn(&mut Transaction) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let (answer, _) = oneshot::channel();
        Submission::new(id, attributes, closure, answer)
    }
}

/// A closure that keeps what it returned last.
pub(super) trait Closure: Send {
    /// Runs it; says whether it returned a value (true) or an error.
    fn run(&mut self, transaction: &mut Transaction) -> bool;
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

/// What a submission's caller is told.
pub(super) enum Answer {
    /// It is committed, or had nothing to commit.
    Committed { closure: Box<dyn Closure>, revision: Revision, changed: bool },
    /// The closure returned an error.
    Rejected { closure: Box<dyn Closure> },
    /// It could not be carried out.
    Failed(Failure),
}

/// Why a submission could not be carried out.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    OverBudget { budget: Duration, taken: Duration },
    Panicked { message: String },
    Unavailable { reason: String, retryable: bool, waited: Duration },
    SetBack { head: Revision, seen: Revision },
    Unknown { reason: String },
    Refused(TransactionError),
    Fenced,
    Closed,
}

struct Typed<F, T, E> {
    closure: F,
    returned: Option<Result<T, E>>,
}

impl<F, T, E> Closure for Typed<F, T, E>
where
    F: Fn(&mut Transaction) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    fn run(&mut self, transaction: &mut Transaction) -> bool {
        let returned = (self.closure)(transaction);
        let fine = returned.is_ok();
        self.returned = Some(returned);
        fine
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

impl Core {
    /// Hands a closure to the committer and waits for the answer. Dropping the future leaves the transaction wholly
    /// applied or without a trace.
    pub(crate) async fn submit<T, E, F>(
        &self,
        closure: F,
        attributes: Arc<Attributes>,
        id: SubmissionId,
        fenced: Option<Fenced>,
    ) -> Result<Committed<T>, WriteError<E>>
    where
        F: Fn(&mut Transaction) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<TransactionError> + Send + 'static,
    {
        if within_transaction() {
            return Err(WriteError::WithinTransaction);
        }
        let size = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        if size > ATTRIBUTES_BYTES_MAX {
            let what = "the attributes of the transaction".to_owned();
            return Err(WriteError::TooLarge { what, size, limit: ATTRIBUTES_BYTES_MAX });
        }
        let (answer, answered) = oneshot::channel();
        let mut submission = Submission::new(id, attributes, closure, answer);
        submission.fenced = fenced.map(Box::new);
        if self.closing.is_cancelled() {
            return Err(WriteError::Closed);
        }
        let limit = self.options.write_limit;
        match self.submissions.try_send(submission) {
            Ok(()) => {}
            Err(tokio::sync::mpsc::error::TrySendError::Closed(_)) => return Err(WriteError::Closed),
            Err(tokio::sync::mpsc::error::TrySendError::Full(submission)) => {
                match self.submissions.send_timeout(submission, limit).await {
                    Ok(()) => {}
                    Err(tokio::sync::mpsc::error::SendTimeoutError::Closed(_)) => return Err(WriteError::Closed),
                    Err(tokio::sync::mpsc::error::SendTimeoutError::Timeout(_)) => {
                        let reason = "the queue of transactions is full".to_owned();
                        return Err(WriteError::Unavailable { reason, retryable: true, waited: limit });
                    }
                }
            }
        }
        // Without an answer the committer was stopped in the midst of it, and may have committed.
        let answer = answered.await.map_err(|_| WriteError::Unknown {
            submission: id,
            reason: "this server was stopped before it could tell".to_owned(),
        })?;
        let returned = |closure: Box<dyn Closure>| {
            let typed = closure.into_any().downcast::<Typed<F, T, E>>();
            let typed = typed.unwrap_or_else(|_| unreachable!("a submission is answered with its own closure"));
            typed.returned.expect("a closure is answered for only after it has run")
        };
        match answer {
            Answer::Committed { closure, revision, changed } => match returned(closure) {
                Ok(value) => Ok(Committed { value, revision, changed }),
                Err(error) => Err(WriteError::Rejected(error)),
            },
            Answer::Rejected { closure } => match returned(closure) {
                Err(error) => Err(WriteError::Rejected(error)),
                Ok(_) => unreachable!("a closure that returned a value is not answered as rejected"),
            },
            Answer::Failed(failure) => Err(match failure {
                Failure::OverBudget { budget, taken } => WriteError::OverBudget { budget, taken },
                Failure::Panicked { message } => WriteError::Panicked { message },
                Failure::Unavailable { reason, retryable, waited } => {
                    WriteError::Unavailable { reason, retryable, waited }
                }
                Failure::SetBack { head, seen } => WriteError::SetBack { head, seen },
                Failure::Unknown { reason } => WriteError::Unknown { submission: id, reason },
                Failure::Refused(error) => WriteError::Rejected(E::from(error)),
                Failure::Fenced => WriteError::Fenced,
                Failure::Closed => WriteError::Closed,
            }),
        }
    }
}
