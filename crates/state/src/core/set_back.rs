//! A store that was put back to a lower head in the same epoch, behind the servers' backs (D37): how that is noticed, what
//! stands still, and how an operator's word ends it.
//!
//! Invariants:
//! - Until then this server writes nothing, holds no lease and runs nothing; what it last showed is read on.
//! - The new epoch and the transaction that is confirmed with it are one commit: nobody, on any server, writes in between.
//! - It ends with the epoch, on every server: by a confirmation here, by one on another server, or by a restored backup.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::closure_thread::{ClosureThread, Work};
use super::group::{Group, Look, Outcome, Prepared, Standing, Terms};
use super::seen::Seen;
use super::submission::{Failure, Submission};
use super::{Core, apply, within_transaction};
use crate::cluster_hook::matcher::Matcher;
use crate::driver::{Batch, CommitError, DriverError, RESTORED_TOKENS_ABOVE, ServerName, SlotToken};
use crate::error::WriteError;
use crate::revision::{Attributes, Epoch, Revision, SubmissionId, Timestamp};
use crate::snapshot::Snapshot;
use crate::transaction::{Transaction, TransactionError};

/// How many rows a confirmation reads under the lock. Others may write on: servers that know of no higher head.
const CATCH_UP_ROWS_MAX: usize = 1_000;
/// How soon a confirmation that came to nothing is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// That the store was put back, as this server knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetBack {
    pub(super) epoch: Epoch,
    /// The store's head when it was noticed.
    pub(crate) head: Revision,
    /// The highest that this server has seen in this epoch.
    pub(crate) seen: Revision,
}

impl SetBack {
    pub(crate) fn error(&self) -> DriverError {
        DriverError::SetBack { head: self.head, seen: self.seen }
    }

    pub(super) fn report(&self, server: &ServerName) {
        tracing::error!(
            %server, error = %self.error(),
            "the store was put back: nothing is written, leased or run until an operator confirms it"
        );
    }
}

/// How a try to confirm ended short of it.
enum Failed {
    /// Nothing was committed, or it is found out by trying again.
    Again(DriverError),
    /// Trying again does not help.
    Refused(WriteError<TransactionError>),
}

impl From<DriverError> for Failed {
    fn from(error: DriverError) -> Failed {
        Failed::Again(error)
    }
}

impl Core {
    /// Nothing is written, leased or run any more until an operator confirms that the store was put back.
    ///
    /// `epoch` is the one in which it was found: another server's confirmation may have been taken in since, and then it
    /// is about nothing any more.
    pub(crate) async fn note_set_back(&self, error: &DriverError, epoch: Epoch) {
        let DriverError::SetBack { head, seen } = *error else { return };
        // Under the lock that a reload ends it under, so that the two can't pass each other by.
        let known = self.head.lock().await;
        if known.snapshot.epoch() != epoch || self.set_back.load().is_some() {
            return;
        }
        let set_back = SetBack { epoch, head, seen };
        set_back.report(&self.server);
        self.set_back.store(Some(Arc::new(set_back)));
        self.set_back_noticed.notify_one();
    }

    /// That the store was put back and nobody has confirmed it yet, if so.
    pub(crate) fn set_back(&self) -> Option<Arc<SetBack>> {
        self.set_back.load_full()
    }

    /// Ends when the store was not put back, or that is over.
    pub(crate) async fn until_not_set_back(&self) {
        let mut applied = self.applied.subscribe();
        // The end comes with another epoch, which is told after it is over. The sender is in the core.
        let _ = applied.wait_for(|_| self.set_back.load().is_none()).await;
    }

    /// What there is to remember of the log.
    pub(super) fn seen(&self) -> Seen {
        match self.set_back() {
            Some(set_back) => Seen { epoch: set_back.epoch, revision: set_back.seen, set_back: true },
            None => {
                let (epoch, revision) = *self.applied.borrow();
                Seen { epoch, revision, set_back: false }
            }
        }
    }

    /// An operator confirms that the store was put back: it gets a new epoch, together with a transaction that takes
    /// account of what is lost, and this server loads it. None if there is nothing to confirm.
    pub(crate) async fn confirm_set_back<F>(
        &self,
        attributes: Arc<Attributes>,
        first: F,
    ) -> Result<Option<Revision>, WriteError<TransactionError>>
    where
        F: Fn(&mut Transaction) -> Result<(), TransactionError> + Send + Sync + 'static,
    {
        if within_transaction() {
            return Err(WriteError::WithinTransaction);
        }
        let Some(set_back) = self.set_back() else { return Ok(None) };
        let first = Arc::new(first);
        let started = Instant::now();
        loop {
            let tried = match self.begin_epoch(&set_back, &attributes, &first).await {
                Ok(()) => self.reload().await.map_err(Failed::Again),
                Err(error) => Err(error),
            };
            let error = match tried {
                Ok(()) => return Ok(Some(self.applied.borrow().1)),
                Err(Failed::Refused(error)) => return Err(error),
                Err(Failed::Again(error)) => error,
            };
            let waited = started.elapsed();
            if waited >= self.options.write_limit {
                return Err(WriteError::Unavailable { reason: error.to_string(), retryable: true, waited });
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Commits the transaction under a new epoch, at the head of the store as it is. Does nothing where the epoch is another
    /// one already: another server was told first, or a try before this one went through without an answer.
    async fn begin_epoch<F>(
        &self,
        set_back: &SetBack,
        attributes: &Arc<Attributes>,
        first: &Arc<F>,
    ) -> Result<(), Failed>
    where
        F: Fn(&mut Transaction) -> Result<(), TransactionError> + Send + Sync + 'static,
    {
        let limit = self.options.write_limit;
        let late = || DriverError::Unavailable(format!("the store did not answer within {limit:?}"));
        let loaded = apply::load(&*self.driver).await?.snapshot;
        if loaded.epoch() != set_back.epoch {
            return Ok(());
        }
        let (_, slots) = self.driver.cluster().await?;
        let known = slots.iter().map(|slot| slot.token).max().unwrap_or_default().max(self.highest_token());
        // Whoever gave tokens out before the store was put back may have died with what it knew.
        let above = SlotToken(known.0.saturating_add(RESTORED_TOKENS_ABOVE));
        let begun = self.driver.begin(loaded.epoch(), loaded.revision(), CATCH_UP_ROWS_MAX);
        let begun = match tokio::time::timeout(limit, begun).await.unwrap_or_else(|_| Err(late())) {
            Err(DriverError::EpochChanged { .. }) => return Ok(()),
            begun => begun?,
        };
        let mut replay = apply::Replay::from(loaded);
        for row in &begun.rows {
            apply::expect_next(replay.revision(), row)?;
            replay.row(row);
        }
        let prepared = self.run_first(replay.finish(), begun.session.now(), attributes.clone(), first.clone()).await;
        let mut batch = Batch { new_epoch: Some(above), ..Batch::default() };
        if let Some(prepared) = prepared.map_err(Failed::Refused)? {
            batch.rows.push(prepared.row);
            batch.records = prepared.records;
        }
        let committed = tokio::time::timeout(limit, begun.session.commit(batch)).await;
        match committed.unwrap_or_else(|_| Err(CommitError::Unknown(late()))) {
            Ok(()) => {
                tracing::warn!(server = %self.server, seen = %set_back.seen, "it is confirmed that the store was put back");
                Ok(())
            }
            // Where it is unknown, the epoch tells at the next try.
            Err(CommitError::NotCommitted(error) | CommitError::Unknown(error)) => Err(Failed::Again(error)),
        }
    }

    /// Runs the transaction that goes with a confirmation, on a thread of its own; none if it writes nothing.
    async fn run_first<F>(
        &self,
        at: Snapshot,
        now: Timestamp,
        attributes: Arc<Attributes>,
        first: Arc<F>,
    ) -> Result<Option<Box<Prepared>>, WriteError<TransactionError>>
    where
        F: Fn(&mut Transaction) -> Result<(), TransactionError> + Send + Sync + 'static,
    {
        let refused: Arc<Mutex<Option<TransactionError>>> = Arc::default();
        let why = refused.clone();
        let closure =
            move |transaction: &mut Transaction| first(transaction).map_err(|error| *why.lock() = Some(error));
        // It may touch every store, and nobody waits behind it: nothing else is written meanwhile.
        let budget = self.options.write_limit;
        let terms = Terms { now, server: self.server.clone(), budget };
        let standing = Standing { tree: Some(at.tree().clone().into()), matcher: Matcher::of(at.tree()), snapshot: at };
        let queue = VecDeque::from([Submission::apart(SubmissionId::random(), attributes, closure)]);
        let group = Group::new(terms, standing, queue);
        let busy = |reason: String| WriteError::Unavailable { reason, retryable: true, waited: Duration::ZERO };
        let thread = ClosureThread::spawn().map_err(|error| busy(error.to_string()))?;
        if !thread.run(Work::Group(group.clone())) {
            return Err(busy("the thread for the transaction has ended".to_owned()));
        }
        // Whether it came to its end or the time is over, the look says how it stands.
        let _ = tokio::time::timeout(budget, group.finished()).await;
        let outcome = match group.look() {
            Look::Finished(mut done, _) | Look::Abandoned { mut done, .. } => done.pop().map(|ran| ran.outcome),
            Look::Running(_) => None,
        };
        match outcome {
            Some(Outcome::Returned { effect, .. }) => Ok(effect),
            Some(Outcome::Rejected) => {
                let error = refused.lock().take();
                Err(WriteError::Rejected(error.unwrap_or_else(|| TransactionError::rejected("without a reason"))))
            }
            Some(Outcome::Failed(Failure::Refused(error))) => Err(WriteError::Rejected(error)),
            Some(Outcome::Failed(Failure::Panicked { message })) => Err(WriteError::Panicked { message }),
            Some(Outcome::Failed(_)) | None => Err(WriteError::OverBudget { budget, taken: budget }),
        }
    }
}
