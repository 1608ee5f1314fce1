//! A group of transactions that are committed together: their closures run in order, each on the tree that the one
//! before left, and what one of them does wrong is undone for it alone.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::submission::{Closure, Failure, Submission};
use crate::change::{Applied, AppliedAction, Change};
use crate::cluster_hook::matcher::Matcher;
use crate::document::{Document, panic_message};
use crate::driver::{LogEntry, LogRow, RecordWrite, ServerName};
use crate::revision::{Epoch, Revision, Timestamp};
use crate::snapshot::Snapshot;
use crate::transaction::{Effect, Transaction, TransactionError};
use crate::tree::{Node, Tree};

/// What a group starts from, and where it stands.
#[derive(Clone)]
pub(super) struct Standing {
    pub(super) tree: Tree,
    pub(super) revision: Revision,
    pub(super) matcher: Arc<Matcher>,
}

/// What is the same for all transactions of a group.
pub(super) struct Terms {
    pub(super) epoch: Epoch,
    pub(super) now: Timestamp,
    pub(super) server: ServerName,
    pub(super) budget: Duration,
}

/// A submission whose closure has run, or was given up.
pub(super) struct Ran {
    pub(super) submission: Submission,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    /// The closure returned a value.
    Returned {
        /// The head that it read, with its own row if it has one.
        revision: Revision,
        /// What is to be committed; none if it changed nothing.
        effect: Option<Box<Prepared>>,
    },
    /// The closure returned an error.
    Rejected,
    /// It could not be carried out.
    Failed(Failure),
}

/// A transaction ready for its commit.
pub(super) struct Prepared {
    pub(super) row: Arc<LogRow>,
    pub(super) applied: Arc<Applied>,
    pub(super) records: Vec<RecordWrite>,
}

pub(super) struct Group {
    terms: Terms,
    progress: Mutex<Progress>,
    finished: Notify,
}

struct Progress {
    standing: Standing,
    queue: VecDeque<Submission>,
    running: Option<(Submission, Instant)>,
    done: Vec<Ran>,
    abandoned: bool,
}

/// How a group stands when the committer looks.
pub(super) enum Look {
    /// All have run.
    Finished(Vec<Ran>),
    /// One is running, and is within its budget for so much longer.
    Running(Duration),
    /// One ran over its budget. What had run before it, and what is left to be run on a fresh thread.
    Abandoned { done: Vec<Ran>, rest: VecDeque<Submission>, standing: Box<Standing> },
}

impl Group {
    pub(super) fn new(terms: Terms, standing: Standing, queue: VecDeque<Submission>) -> Arc<Group> {
        let done = Vec::with_capacity(queue.len());
        let progress = Progress { standing, queue, running: None, done, abandoned: false };
        Arc::new(Group { terms, progress: Mutex::new(progress), finished: Notify::new() })
    }

    /// Ends when the thread has come to the end of the group.
    pub(super) async fn finished(&self) {
        self.finished.notified().await;
    }

    /// Runs what is queued, on the closure thread.
    pub(super) fn work(&self) {
        loop {
            let (mut closure, mut transaction) = {
                let mut progress = self.progress.lock();
                if progress.abandoned {
                    return;
                }
                let Some(mut submission) = progress.queue.pop_front() else { break };
                let closure = submission.closure.take().expect("a queued submission has its closure");
                let transaction = Transaction::new(
                    progress.standing.tree.clone(),
                    progress.standing.revision.next(),
                    self.terms.now,
                    submission.attributes.clone(),
                    self.terms.budget,
                );
                progress.running = Some((submission, Instant::now()));
                (closure, transaction)
            };
            let returned = catch_unwind(AssertUnwindSafe(|| closure.run(&mut transaction)));
            let returned = returned.map(|fine| (fine, transaction.finish()));
            if !self.settle(closure, returned) {
                return;
            }
        }
        self.finished.notify_one();
    }

    /// Takes a run's result in; false if the group was abandoned meanwhile.
    fn settle(
        &self,
        closure: Box<dyn Closure>,
        returned: std::thread::Result<(bool, Result<Effect, TransactionError>)>,
    ) -> bool {
        let mut progress = self.progress.lock();
        if progress.abandoned {
            return false;
        }
        let Some((mut submission, _)) = progress.running.take() else { return false };
        submission.closure = Some(closure);
        let outcome = match returned {
            Err(panic) => Outcome::Failed(Failure::Panicked { message: panic_message(&*panic) }),
            Ok((_, Err(TransactionError::OverBudget { budget, taken }))) => {
                Outcome::Failed(Failure::OverBudget { budget, taken })
            }
            Ok((_, Err(error))) => Outcome::Failed(Failure::Refused(error)),
            Ok((false, Ok(_))) => Outcome::Rejected,
            Ok((true, Ok(effect))) if effect.is_nothing() => {
                Outcome::Returned { revision: progress.standing.revision, effect: None }
            }
            Ok((true, Ok(effect))) => {
                // Foreign patterns are matched here; what goes wrong with them is this transaction's failure as well.
                let standing = &progress.standing;
                let prepared = catch_unwind(AssertUnwindSafe(|| prepare(&self.terms, standing, &submission, effect)));
                match prepared {
                    Ok((prepared, standing)) => {
                        progress.standing = standing;
                        Outcome::Returned { revision: progress.standing.revision, effect: Some(Box::new(prepared)) }
                    }
                    Err(panic) => Outcome::Failed(Failure::Panicked { message: panic_message(&*panic) }),
                }
            }
        };
        progress.done.push(Ran { submission, outcome });
        true
    }

    /// Looks how far it is; gives up on a closure that is over its budget.
    pub(super) fn look(&self) -> Look {
        let mut progress = self.progress.lock();
        let budget = self.terms.budget;
        let Some((_, started)) = &progress.running else {
            if progress.queue.is_empty() {
                return Look::Finished(std::mem::take(&mut progress.done));
            }
            return Look::Running(budget);
        };
        let taken = started.elapsed();
        if taken <= budget {
            return Look::Running(budget - taken);
        }
        progress.abandoned = true;
        let (submission, _) = progress.running.take().expect("it was seen to run, under the same lock");
        let mut done = std::mem::take(&mut progress.done);
        done.push(Ran { submission, outcome: Outcome::Failed(Failure::OverBudget { budget, taken }) });
        let rest = std::mem::take(&mut progress.queue);
        Look::Abandoned { done, rest, standing: Box::new(progress.standing.clone()) }
    }
}

/// Makes the log row of a transaction, with the hooks that it requests, and says where the group stands after it.
fn prepare(terms: &Terms, standing: &Standing, submission: &Submission, effect: Effect) -> (Prepared, Standing) {
    let revision = standing.revision.next();
    let mut entries = Vec::with_capacity(effect.changes.len() + effect.entries.len());
    let mut changes = Vec::with_capacity(effect.changes.len());
    let mut actions = Vec::new();
    let mut registrations_changed = false;
    for (path, before, after) in effect.changes {
        registrations_changed |= Matcher::concerns(&path);
        // Matched at the head, by the registrations in force before this transaction: every server with any code makes
        // the same requests.
        let existed_since = before.as_ref().and_then(|_| standing.tree.get(&path)).map(Node::changed_at);
        let requested = standing.matcher.requested(&path, existed_since);
        for hook in requested.existing_first {
            let sequence = place(entries.len());
            actions.push(AppliedAction::Existing { sequence, path: path.clone(), hook });
            entries.push(LogEntry::Existing { path: path.clone(), hook });
        }
        let keep_before = !requested.hooks.is_empty() && standing.matcher.wants_before(&requested.hooks);
        let sequence = place(entries.len());
        entries.push(LogEntry::Change {
            path: path.clone(),
            before: if keep_before { before.as_ref().map(Document::to_stored) } else { None },
            after: after.as_ref().map(Document::to_stored),
            hooks: requested.hooks.clone(),
        });
        changes.push(Change { path, revision, before, after, sequence, hooks: requested.hooks.into() });
    }
    for entry in effect.entries {
        let sequence = place(entries.len());
        match &entry {
            LogEntry::Existing { path, hook } => {
                actions.push(AppliedAction::Existing { sequence, path: path.clone(), hook: *hook });
            }
            LogEntry::Action { request, action } => {
                actions.push(AppliedAction::Act { sequence, request: *request, action: *action });
            }
            LogEntry::Change { .. } => unreachable!("a transaction's own entries are no changes"),
        }
        entries.push(entry);
    }
    let tree = effect.tree;
    let matcher = if registrations_changed { Matcher::of(&tree) } else { standing.matcher.clone() };
    let row = LogRow {
        revision,
        submission: submission.id,
        at: terms.now,
        server: terms.server.clone(),
        attributes: submission.attributes.clone(),
        entries,
    };
    let applied = Applied {
        revision,
        at: terms.now,
        attributes: submission.attributes.clone(),
        changes: changes.into(),
        snapshot: Snapshot::new(tree.clone(), revision, terms.epoch),
        submission: submission.id,
        actions: actions.into(),
    };
    let prepared = Prepared { row: Arc::new(row), applied: Arc::new(applied), records: effect.records };
    (prepared, Standing { tree, revision, matcher })
}

fn place(entries: usize) -> u32 {
    u32::try_from(entries).expect("a transaction's changes are bounded far below")
}
