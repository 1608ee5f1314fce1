//! What comes of a round that ended short of a commit: what can be is run again, and whoever has waited for too long is told
//! why.

use std::collections::VecDeque;

use super::super::group::{Outcome, Ran};
use super::super::submission::{Answer, Failure};
use super::Committer;
use crate::driver::{DriverError, RecordId, RecordWrite};
use crate::transaction::TransactionError;

/// How a round ended short of a commit.
pub(super) enum Setback {
    /// Certainly nothing was committed.
    Nothing(DriverError),
    /// The tree must be loaded anew first.
    Reload(DriverError),
    /// It must catch up first.
    Behind,
    /// The commit's outcome is unknown.
    Unknown(String),
}

impl From<DriverError> for Setback {
    fn from(error: DriverError) -> Setback {
        match error {
            DriverError::Compacted { .. } | DriverError::EpochChanged { .. } => Setback::Reload(error),
            error => Setback::Nothing(error),
        }
    }
}

impl Committer {
    /// Puts back what has run, to be run again at the head; what failed on its own account is answered.
    pub(super) fn take_back(&mut self, ran: Vec<Ran>) {
        let mut failed = Vec::new();
        let mut again = VecDeque::with_capacity(ran.len() + self.waiting.len());
        for ran in ran {
            match ran.outcome {
                Outcome::Failed(_) => failed.push(ran),
                // A rejection may be owed to a transaction of the group that was not committed.
                Outcome::Returned { .. } | Outcome::Rejected => again.push_back(ran.submission),
            }
        }
        again.append(&mut self.waiting);
        self.waiting = again;
        self.answer(failed);
    }

    /// Fails the transaction that updates a record which is closed or not there; the others run again without it. False if
    /// there is none.
    pub(super) fn refuse_record_update(&mut self, mut ran: Vec<Ran>, id: RecordId) -> bool {
        let mut found = false;
        for ran in &mut ran {
            let Outcome::Returned { effect: Some(prepared), .. } = &ran.outcome else { continue };
            let updates = |write: &RecordWrite| matches!(write, RecordWrite::Update(row) if row.id == id);
            if prepared.records.iter().any(updates) {
                ran.outcome = Outcome::Failed(Failure::Refused(TransactionError::RecordClosed { id }));
                found = true;
                break;
            }
        }
        self.take_back(ran);
        found
    }

    /// Deals with a round that came to nothing; says whether trying again at once makes sense.
    pub(super) async fn meet(&mut self, setback: Setback) -> bool {
        let mut set_back = None;
        let (reason, retryable, progress) = match setback {
            Setback::Behind => {
                ("this server was behind the others each time that it had its turn".to_owned(), true, true)
            }
            Setback::Reload(error) => match self.core.reload().await {
                Ok(()) => return true,
                Err(_) => (error.to_string(), true, false),
            },
            Setback::Nothing(error) => {
                if let DriverError::SetBack { head, seen } = error {
                    self.core.note_set_back(&error, self.epoch).await;
                    if self.core.set_back().is_none() {
                        // It is over: the epoch that it was found in has ended since.
                        return true;
                    }
                    set_back = Some(Failure::SetBack { head, seen });
                }
                self.core.note_failed_write(&error);
                (error.to_string(), error.is_retryable(), false)
            }
            Setback::Unknown(reason) => (reason, true, true),
        };
        let limit = self.core.options.write_limit;
        if retryable {
            self.drain();
        } else {
            // Before anyone is answered: what is submitted after an answer is not to fail for what was before it.
            while let Ok(submission) = self.queue.try_recv() {
                self.waiting.push_back(submission);
            }
        }
        let waiting = std::mem::take(&mut self.waiting);
        for submission in waiting {
            let waited = submission.submitted.elapsed();
            if retryable && waited < limit {
                self.waiting.push_back(submission);
                continue;
            }
            let failure = if submission.unresolved {
                Failure::Unknown { reason: reason.clone() }
            } else if let Some(set_back) = &set_back {
                set_back.clone()
            } else {
                Failure::Unavailable { reason: reason.clone(), retryable, waited }
            };
            // The caller may have gone.
            let _ = submission.answer.send(Answer::Failed(failure));
        }
        progress
    }

    pub(super) fn fail_all(&mut self, failure: &Failure) {
        self.drain();
        for submission in std::mem::take(&mut self.waiting) {
            let failure = match failure {
                Failure::Unavailable { reason, .. } if submission.unresolved => {
                    Failure::Unknown { reason: reason.clone() }
                }
                Failure::SetBack { .. } if submission.unresolved => {
                    Failure::Unknown { reason: "the store was put back before it was found out".to_owned() }
                }
                Failure::Closed if submission.unresolved => Failure::Unknown { reason: "closed".to_owned() },
                failure => failure.clone(),
            };
            let _ = submission.answer.send(Answer::Failed(failure));
        }
    }
}
