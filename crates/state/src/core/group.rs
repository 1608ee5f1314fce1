//! A group of transactions that are committed together: their closures run in order, each on the tree that the one
//! before left, and what one of them does wrong is undone for it alone. Of a closure that has run ahead there is a draft: if it
//! holds on that tree, it is carried out in place of the closure.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::submission::{Failure, Submission};
use crate::change::{Applied, AppliedAction, Change, Changes, Hooks, shared};
use crate::cluster_hook::matcher::Matcher;
use crate::document::{Document, panic_message};
use crate::driver::{LogEntry, LogRow, RecordWrite, ServerName};
use crate::revision::{Revision, Timestamp};
use crate::snapshot::Snapshot;
use crate::transaction::{Draft, Effect, Transaction, TransactionError};
use crate::working_tree::WorkingTree;

/// So many look-ups are done for drafts without the closure thread: that takes about a millisecond.
const STEPS_MAX: usize = 2_048;

/// What a group starts from, and where it stands.
#[derive(Clone)]
pub(super) struct Standing {
    /// The tree of `snapshot`, for the next transaction to change in place. None while that runs, and where a transaction
    /// has not given it back: it is made from the snapshot then.
    pub(super) tree: Option<WorkingTree>,
    /// What was committed or prepared last.
    pub(super) snapshot: Snapshot,
    pub(super) matcher: Arc<Matcher>,
}

/// How a closure ended, with the tree that it worked on.
enum Returned {
    Fine(Effect),
    /// It returned an error.
    Rejected(WorkingTree),
    Refused(WorkingTree, TransactionError),
    /// The tree may be amid a change, and is not used any more.
    Panicked(Box<dyn Any + Send>),
}

impl Returned {
    fn of(returned: std::thread::Result<bool>, transaction: Transaction) -> Returned {
        match (returned, transaction.check_budget()) {
            (Err(panic), _) => Returned::Panicked(panic),
            (Ok(_), Err(error)) => Returned::Refused(transaction.undo(), error),
            (Ok(false), Ok(())) => Returned::Rejected(transaction.undo()),
            (Ok(true), Ok(())) => Returned::Fine(transaction.finish()),
        }
    }

    /// Of a closure whose draft holds on this tree.
    fn ahead(draft: Draft, tree: WorkingTree, revision: Revision) -> Returned {
        match draft.carry_out(tree, revision) {
            Ok(effect) => Returned::Fine(effect),
            Err(tree) => Returned::Rejected(tree),
        }
    }
}

/// What is the same for all transactions of a group.
pub(super) struct Terms {
    pub(super) now: Timestamp,
    pub(super) server: ServerName,
    pub(super) budget: Duration,
}

/// A submission whose closure has run, or was given up.
pub(super) struct Ran {
    pub(super) submission: Submission,
    pub(super) outcome: Outcome,
    /// It had run ahead, and did not have to run again.
    pub(super) ahead: bool,
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

impl Progress {
    /// Takes in how a closure has ended.
    fn settle(&mut self, terms: &Terms, submission: Submission, returned: Returned, ahead: bool) {
        let panicked = |panic: Box<dyn Any + Send>| Failure::Panicked { message: panic_message(&*panic) };
        let standing = &mut self.standing;
        let (tree, outcome) = match returned {
            Returned::Panicked(panic) => (None, Outcome::Failed(panicked(panic))),
            Returned::Refused(tree, TransactionError::OverBudget { budget, taken }) => {
                (Some(tree), Outcome::Failed(Failure::OverBudget { budget, taken }))
            }
            Returned::Refused(tree, error) => (Some(tree), Outcome::Failed(Failure::Refused(error))),
            Returned::Rejected(tree) => (Some(tree), Outcome::Rejected),
            Returned::Fine(effect) if effect.is_nothing() => {
                (Some(effect.tree), Outcome::Returned { revision: standing.snapshot.revision(), effect: None })
            }
            Returned::Fine(effect) => {
                // Foreign patterns are matched here; what goes wrong with them is this transaction's failure as well.
                let prepared = catch_unwind(AssertUnwindSafe(|| prepare(terms, standing, &submission, effect)));
                match prepared {
                    Ok((prepared, tree, matcher)) => {
                        standing.snapshot = prepared.applied.snapshot.clone();
                        standing.matcher = matcher;
                        let revision = standing.snapshot.revision();
                        (Some(tree), Outcome::Returned { revision, effect: Some(Box::new(prepared)) })
                    }
                    Err(panic) => (None, Outcome::Failed(panicked(panic))),
                }
            }
        };
        standing.tree = tree;
        self.done.push(Ran { submission, outcome, ahead });
    }
}

/// How a group stands when the committer looks.
pub(super) enum Look {
    /// All have run. The tree after them is there unless it is to be made from the snapshot.
    Finished(Vec<Ran>, Option<WorkingTree>),
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

    /// Carries out what has run ahead, up to the first that has not, or whose draft does not hold, and as far as that takes no
    /// time to speak of. True if that is all there is. No closure runs, so that this needs no thread of its own.
    pub(super) fn carry_out_drafts(&self) -> bool {
        let mut progress = self.progress.lock();
        let mut steps = 0;
        loop {
            let Progress { standing, queue, .. } = &mut *progress;
            let Some(front) = queue.front_mut() else { return true };
            let Some(tree) = &standing.tree else { return false };
            let size = front.draft.as_deref().map_or(0, Draft::size);
            if steps + size > STEPS_MAX {
                return false;
            }
            steps += size;
            let Some(draft) = front.draft.take().filter(|draft| draft.holds(tree)) else { return false };
            let (Some(submission), Some(tree)) = (queue.pop_front(), standing.tree.take()) else { return false };
            let returned = Returned::ahead(*draft, tree, standing.snapshot.revision().next());
            progress.settle(&self.terms, submission, returned, true);
        }
    }

    /// Runs what is queued, on the closure thread.
    pub(super) fn work(&self) {
        loop {
            let (mut closure, draft, attributes, snapshot, tree) = {
                let mut progress = self.progress.lock();
                if progress.abandoned {
                    return;
                }
                let Some(mut submission) = progress.queue.pop_front() else { break };
                let closure = submission.closure.take().expect("a queued submission has its closure");
                let draft = submission.draft.take();
                let attributes = submission.attributes.clone();
                progress.running = Some((submission, Instant::now()));
                (closure, draft, attributes, progress.standing.snapshot.clone(), progress.standing.tree.take())
            };
            // Not under the lock: making a tree can take long.
            let tree = tree.unwrap_or_else(|| snapshot.tree().clone().into());
            let next = snapshot.revision().next();
            let (returned, ahead) = match draft.filter(|draft| draft.holds(&tree)) {
                Some(draft) => (Returned::ahead(*draft, tree, next), true),
                None => {
                    let mut transaction = Transaction::new(tree, next, self.terms.now, attributes, self.terms.budget);
                    let returned = catch_unwind(AssertUnwindSafe(|| closure.run(&mut transaction)));
                    (Returned::of(returned, transaction), false)
                }
            };
            let mut progress = self.progress.lock();
            if progress.abandoned {
                return;
            }
            let Some((mut submission, _)) = progress.running.take() else { return };
            submission.closure = Some(closure);
            progress.settle(&self.terms, submission, returned, ahead);
        }
        self.finished.notify_one();
    }

    /// Looks how far it is; gives up on a closure that is over its budget.
    pub(super) fn look(&self) -> Look {
        let mut progress = self.progress.lock();
        let budget = self.terms.budget;
        let Some((_, started)) = &progress.running else {
            if progress.queue.is_empty() {
                let tree = progress.standing.tree.take();
                return Look::Finished(std::mem::take(&mut progress.done), tree);
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
        done.push(Ran { submission, outcome: Outcome::Failed(Failure::OverBudget { budget, taken }), ahead: false });
        let rest = std::mem::take(&mut progress.queue);
        Look::Abandoned { done, rest, standing: Box::new(progress.standing.clone()) }
    }
}

/// Makes the log row of a transaction, with the hooks that it requests; with it the tree after it, and what matches then.
fn prepare(
    terms: &Terms,
    standing: &Standing,
    submission: &Submission,
    effect: Effect,
) -> (Prepared, WorkingTree, Arc<Matcher>) {
    let revision = standing.snapshot.revision().next();
    let mut entries = Vec::with_capacity(effect.changes.len() + effect.entries.len());
    let mut changes = Changes::with_capacity(effect.changes.len());
    let mut actions = Vec::new();
    let mut registrations_changed = false;
    for (path, before, after) in effect.changes {
        registrations_changed |= Matcher::concerns(&path);
        // Matched at the head, by the registrations in force before this transaction: every server with any code makes
        // the same requests.
        let existed_since = before.as_ref().map(Document::written_at);
        let requested = standing.matcher.requested(&path, existed_since);
        for hook in requested.existing_first {
            let sequence = place(entries.len());
            actions.push(AppliedAction::Existing { sequence, path: path.clone(), hook });
            entries.push(LogEntry::Existing { path: path.clone(), hook });
        }
        let keep_before = !requested.hooks.is_empty() && standing.matcher.wants_before(&requested.hooks);
        let (sequence, hooks) = (place(entries.len()), Hooks::from_slice(&requested.hooks));
        entries.push(LogEntry::Change {
            path: path.clone(),
            before: if keep_before { before.as_ref().map(Document::to_stored) } else { None },
            after: after.as_ref().map(Document::to_stored),
            hooks: requested.hooks,
        });
        changes.push(Change { path, revision, before, after, sequence, hooks });
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
    let mut tree = effect.tree;
    let matcher = if registrations_changed { Matcher::of(tree.whole()) } else { standing.matcher.clone() };
    let row = LogRow {
        revision,
        submission: submission.id,
        at: terms.now,
        server: terms.server.clone(),
        attributes: submission.attributes.clone(),
        entries,
    };
    let changes = shared(changes);
    let applied = Applied {
        revision,
        at: terms.now,
        attributes: submission.attributes.clone(),
        changes: changes.clone(),
        snapshot: Snapshot::after(standing.snapshot.clone(), changes, revision),
        submission: submission.id,
        actions,
    };
    let prepared = Prepared { row: Arc::new(row), applied: Arc::new(applied), records: effect.records };
    (prepared, tree, matcher)
}

fn place(entries: usize) -> u32 {
    u32::try_from(entries).expect("a transaction's changes are bounded far below")
}
