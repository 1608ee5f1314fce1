//! The committer: takes the write lock, catches up, runs the waiting closures at the head, commits them in one batch,
//! and only then shows and answers.
//!
//! Invariants: nothing is shown or answered before it is durable; a submission whose commit is unknown is not run again
//! before it is found out, under the lock or in the log, whether that commit took place.

mod ahead;
mod setback;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{MutexGuard, mpsc};

use setback::Setback;

use super::closure_thread::{ClosureThread, Work};
use super::drafts::Worth;
use super::group::{Group, Look, Outcome, Prepared, Ran, Standing, Terms};
use super::shown::{Unshown, changes_of};
use super::submission::{Answer, Failure, Submission};
use super::{Core, Head};
use crate::change::Applied;
use crate::driver::{Batch, CommitError, DriverError, Session};
use crate::revision::Epoch;
use crate::testing::points::{Pass, name as point};
use crate::working_tree::WorkingTree;

/// How far behind the head the lock is still taken; beyond it this server catches up first.
const CATCH_UP_ROWS_MAX: usize = 1_000;
/// How long the next commit waits for as many writers as were answered last time.
const GATHER: Duration = Duration::from_micros(150);
/// A lock that took longer to be had was waited for, or is far away: whoever is to come has come by then.
const CONTENDED: Duration = Duration::from_micros(500);
const RETRY_FIRST: Duration = Duration::from_millis(2);
const RETRY_MAX: Duration = Duration::from_millis(250);

struct Committer {
    core: Arc<Core>,
    queue: mpsc::Receiver<Submission>,
    /// Taken from the queue and not answered yet, in order.
    waiting: VecDeque<Submission>,
    thread: Option<ClosureThread>,
    /// How many were answered last time.
    answered: usize,
    /// How long the lock was waited for last time.
    waited: Duration,
    /// Whether closures run ahead meanwhile.
    worth: Worth,
    /// The epoch that the last round began in.
    epoch: Epoch,
}

/// The committer reads the log, as long as this lives.
struct Reads<'core>(&'core Core);

impl Reads<'_> {
    fn begin(core: &Core) -> Reads<'_> {
        core.committer_reads.send_replace(true);
        Reads(core)
    }
}

impl Drop for Reads<'_> {
    fn drop(&mut self) {
        self.0.committer_reads.send_replace(false);
    }
}

/// Runs until the state is closed and everything that was accepted is answered.
pub(super) async fn run(core: Arc<Core>, queue: mpsc::Receiver<Submission>) {
    let epoch = core.applied.borrow().0;
    let mut committer = Committer {
        core,
        queue,
        waiting: VecDeque::new(),
        thread: None,
        answered: 1,
        waited: Duration::ZERO,
        worth: Worth::default(),
        epoch,
    };
    let mut retry = RETRY_FIRST;
    loop {
        if committer.waiting.is_empty() && !committer.wait_for_work().await {
            committer.core.committer_ended.send_replace(true);
            return;
        }
        committer.gather().await;
        match committer.round().await {
            Ok(()) => retry = RETRY_FIRST,
            Err(setback) => {
                let progress = committer.meet(setback).await;
                if committer.core.stop.is_cancelled() {
                    committer.fail_all(&Failure::Closed);
                } else if !progress && !committer.waiting.is_empty() {
                    // Spread by a random part, so that servers do not come back in step.
                    let pause = retry.mul_f64(rand::random_range(0.5..1.0));
                    tokio::time::sleep(pause).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }
}

/// Keeps the tree after what was committed last, if anything was.
fn keep(head: &mut Head, tree: Option<WorkingTree>, last: Option<&Arc<Applied>>, changes: usize) {
    let snapshot = last.map_or(&head.snapshot, |last| &last.snapshot);
    match tree {
        Some(tree) => head.tree.put(tree, &head.snapshot, snapshot, changes),
        None if last.is_some() => head.tree.put_lost(snapshot),
        None => {}
    }
}

impl Committer {
    /// Waits for a submission; false once there will be none.
    async fn wait_for_work(&mut self) -> bool {
        if self.core.closing.is_cancelled() {
            // What got into the queue before it was closed is still committed.
            self.queue.close();
        }
        let closing = self.core.closing.clone();
        tokio::select! {
            biased;
            submission = self.queue.recv() => match submission {
                Some(submission) => {
                    self.waiting.push_back(submission);
                    true
                }
                None => false,
            },
            () = closing.cancelled(), if !closing.is_cancelled() => {
                self.queue.close();
                match self.queue.recv().await {
                    Some(submission) => {
                        self.waiting.push_back(submission);
                        true
                    }
                    None => false,
                }
            }
        }
    }

    /// Takes what is queued, waiting a little for as many writers as were answered last time: they tend to come back,
    /// and a commit that carries all of them saves a flush. Where other servers commit, too, the lock is waited for, and what
    /// comes meanwhile is taken in then.
    async fn gather(&mut self) {
        let wanted = self.answered.min(self.core.options.commit_group_max);
        self.drain();
        if self.waited > CONTENDED {
            return;
        }
        let mut started = None;
        while self.waiting.len() < wanted {
            if started.get_or_insert_with(Instant::now).elapsed() > GATHER {
                break;
            }
            tokio::task::yield_now().await;
            self.drain();
        }
    }

    fn drain(&mut self) {
        while self.waiting.len() < self.core.options.commit_group_max {
            match self.queue.try_recv() {
                Ok(submission) => self.waiting.push_back(submission),
                Err(_) => return,
            }
        }
    }

    async fn round(&mut self) -> Result<(), Setback> {
        let core = self.core.clone();
        if let Some(set_back) = core.set_back() {
            self.fail_all(&Failure::SetBack { head: set_back.head, seen: set_back.seen });
            return Ok(());
        }
        if core.points.pass(point::COMMIT_BEFORE_LOCK).await == Pass::Cut {
            return Err(Setback::Nothing(DriverError::Unavailable("cut by a test before the lock".to_owned())));
        }
        let (epoch, after, drafts) = {
            let mut head = core.head.lock().await;
            (head.snapshot.epoch(), head.snapshot.revision(), self.drafts(&mut head))
        };
        self.epoch = epoch;
        let reads = Reads::begin(&core);
        let (begun, mut ran_ahead) = self.begin(epoch, after, drafts).await;
        let begun = match begun {
            Ok(begun) => begun,
            // Too far behind is told like an absent store; catching up finds out which it was.
            Err(DriverError::Unavailable(reason)) => {
                return match core.catch_up().await {
                    Ok(caught_up) if caught_up => Err(Setback::Behind),
                    _ => Err(Setback::Nothing(DriverError::Unavailable(reason))),
                };
            }
            Err(error) => return Err(error.into()),
        };
        let mut session = begun.session;
        if core.points.pass(point::COMMIT_LOCKED).await == Pass::Cut {
            return Err(Setback::Nothing(DriverError::Unavailable("cut by a test".to_owned())));
        }
        let mut head = core.head.lock().await;
        if head.snapshot.epoch() != epoch {
            return Err(Setback::Behind);
        }
        // What others have committed. It is shown while this server's closures run, or its commit is on its way.
        let mut brought = core.follow(&mut head, &begun.rows)?;
        let head_under_lock = begun.rows.last().map_or(after, |row| row.revision);
        if head.snapshot.revision() > head_under_lock {
            // The tail has brought what others have committed since: the lock was lost.
            return Err(Setback::Behind);
        }
        drop(reads);
        if !head.unresolved.is_empty() {
            // Whoever is told that a commit took place is to find it there.
            brought.show();
        }
        self.resolve(&mut head);
        self.drain();
        self.waiting.retain(|submission| {
            let has_gone = submission.answer.is_closed();
            // What it came to is not looked at.
            ran_ahead = ran_ahead.saturating_sub(usize::from(has_gone && submission.draft.is_some()));
            !has_gone
        });
        if self.waiting.is_empty() {
            return Ok(());
        }
        let refused = self.refused_fences(&mut *session, &mut brought).await?;
        let mut group: VecDeque<Submission> = VecDeque::with_capacity(self.waiting.len());
        let mut ran = Vec::with_capacity(self.waiting.len());
        let taken = std::mem::take(&mut self.waiting);
        for (position, submission) in taken.into_iter().enumerate() {
            if refused.contains(&position) {
                ran.push(Ran { submission, outcome: Outcome::Failed(Failure::Fenced), ahead: false });
            } else {
                group.push_back(submission);
            }
        }
        let standing =
            Standing { tree: Some(head.take_tree()), snapshot: head.snapshot.clone(), matcher: head.matcher.clone() };
        let (in_order, tree) = self.run_closures(standing, session.now(), group, &mut brought).await;
        self.note_ahead(ran_ahead, in_order.iter().filter(|ran| ran.ahead).count());
        ran.extend(in_order);
        self.commit(head, session, ran, tree, brought).await
    }

    /// Answers those whose unknown commit has turned up, and lets the others run again: the lock is held and every row is
    /// applied, so that what has not turned up was not committed.
    fn resolve(&mut self, head: &mut Head) {
        if head.unresolved.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.waiting);
        for mut submission in waiting {
            if submission.unresolved {
                match head.unresolved.get(&submission.id) {
                    Some(Some(revision)) => {
                        let closure = submission.closure.take().expect("it came back from its run");
                        let answer = Answer::Committed { closure, revision: *revision, changed: true };
                        // The caller may have gone; the commit stands either way.
                        let _ = submission.answer.send(answer);
                        continue;
                    }
                    Some(None) | None => submission.unresolved = false,
                }
            }
            self.waiting.push_back(submission);
        }
        head.unresolved.clear();
    }

    /// The places of those whose token no longer holds. The others' tokens hold until the session ends.
    async fn refused_fences(
        &mut self,
        session: &mut dyn Session,
        brought: &mut Unshown<'_>,
    ) -> Result<Vec<usize>, Setback> {
        let mut places = Vec::new();
        let mut fences = Vec::new();
        for (place, submission) in self.waiting.iter().enumerate() {
            if let Some(fenced) = &submission.fenced {
                places.push(place);
                fences.push(fenced.fence);
            }
        }
        if fences.is_empty() {
            return Ok(places);
        }
        let show = async {
            // Once the question is on its way.
            tokio::task::yield_now().await;
            brought.show();
        };
        let (hold, ()) = tokio::join!(session.fence(&fences), show);
        Ok(places.into_iter().zip(hold?).filter(|(_, holds)| !holds).map(|(place, _)| place).collect())
    }

    /// Carries out what has run ahead, and runs the other closures on the closure thread, leaving behind those that do not come
    /// back within their budget. With them comes the tree after them, unless it is to be made from the snapshot.
    async fn run_closures(
        &mut self,
        standing: Standing,
        now: crate::revision::Timestamp,
        queue: VecDeque<Submission>,
        brought: &mut Unshown<'_>,
    ) -> (Vec<Ran>, Option<WorkingTree>) {
        let core = self.core.clone();
        let terms = || Terms { now, server: core.server.clone(), budget: core.options.transaction_budget };
        let mut ran: Vec<Ran> = Vec::with_capacity(queue.len());
        let mut group = Group::new(terms(), standing, queue);
        if group.carry_out_drafts()
            && let Look::Finished(mut done, tree) = group.look()
        {
            ran.append(&mut done);
            return (ran, tree);
        }
        loop {
            match self.give(Work::Group(group.clone())) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    brought.show();
                    tracing::error!(%error, "the thread for closures can't be started; trying again");
                    tokio::time::sleep(RETRY_MAX).await;
                    continue;
                }
            }
            brought.show();
            let mut patience = self.core.options.transaction_budget;
            loop {
                // Whether it came to its end or the time is over, the look says how it stands.
                let _ = tokio::time::timeout(patience, group.finished()).await;
                match group.look() {
                    Look::Running(longer) => patience = longer.max(Duration::from_millis(1)),
                    Look::Finished(mut done, tree) => {
                        ran.append(&mut done);
                        return (ran, tree);
                    }
                    Look::Abandoned { mut done, rest, standing } => {
                        ran.append(&mut done);
                        self.left_behind();
                        if rest.is_empty() {
                            return (ran, None);
                        }
                        group = Group::new(terms(), *standing, rest);
                        break;
                    }
                }
            }
        }
    }

    async fn commit(
        &mut self,
        mut head: MutexGuard<'_, Head>,
        session: Box<dyn Session>,
        mut ran: Vec<Ran>,
        mut tree: Option<WorkingTree>,
        mut brought: Unshown<'_>,
    ) -> Result<(), Setback> {
        let core = self.core.clone();
        let mut batch = Batch::default();
        let mut transactions = Vec::with_capacity(ran.len());
        for ran in &mut ran {
            let Outcome::Returned { effect, .. } = &mut ran.outcome else { continue };
            if let Some(prepared) = effect {
                let Prepared { row, applied, records } = &mut **prepared;
                batch.rows.push(row.clone());
                batch.records.append(&mut records.clone());
                transactions.push(applied.clone());
            }
            if let Some(fenced) = &ran.submission.fenced {
                batch.receipts.extend(fenced.receipts.iter().cloned());
                batch.exceptions.extend(fenced.exceptions.iter().cloned());
            }
        }
        let changes = changes_of(&transactions);
        if batch.rows.is_empty() && batch.receipts.is_empty() && batch.exceptions.is_empty() {
            drop(session);
            drop(brought);
            keep(&mut head, tree, None, changes);
            drop(head);
            self.answer(ran);
            return Ok(());
        }
        let size = batch.rows.len();
        let started = Instant::now();
        let committed = if core.points.pass(point::COMMIT_BEFORE_COMMIT).await == Pass::Cut {
            drop(session);
            Err(CommitError::Unknown(DriverError::Unavailable("cut by a test before the commit".to_owned())))
        } else {
            let limit = core.options.write_limit;
            let meanwhile = async {
                // Once the commit is on its way.
                tokio::task::yield_now().await;
                brought.show();
                // It is not shown before it is durable, but it takes as long to be made.
                if let (Some(tree), Some(last), true) = (&mut tree, transactions.last(), head.tree.is_due(changes)) {
                    last.snapshot.complete(tree.whole().clone());
                }
            };
            let (committed, ()) = tokio::join!(tokio::time::timeout(limit, session.commit(batch)), meanwhile);
            let committed = committed.unwrap_or_else(|_| {
                Err(CommitError::Unknown(DriverError::Unavailable(format!("no answer within {limit:?}"))))
            });
            if core.points.pass(point::COMMIT_AFTER_COMMIT).await == Pass::Cut {
                Err(CommitError::Unknown(DriverError::Unavailable("cut by a test after the commit".to_owned())))
            } else {
                committed
            }
        };
        // Before what follows it.
        drop(brought);
        match committed {
            Ok(()) => {
                core.note_write();
                core.metrics.commits.inc();
                core.metrics.transactions.inc_by(size as u64);
                core.metrics.group_size.observe(size as f64);
                core.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
                keep(&mut head, tree, transactions.last(), changes);
                core.publish(&mut head, &transactions);
                drop(head);
                self.answer(ran);
                Ok(())
            }
            Err(CommitError::NotCommitted(DriverError::RecordClosed(id))) => {
                if self.refuse_record_update(ran, id) {
                    Err(Setback::Behind)
                } else {
                    Err(Setback::Nothing(DriverError::RecordClosed(id)))
                }
            }
            Err(CommitError::NotCommitted(error)) => {
                self.take_back(ran);
                Err(error.into())
            }
            Err(CommitError::Unknown(error)) => {
                core.metrics.unknown_commits.inc();
                for ran in &mut ran {
                    if let Outcome::Returned { effect: Some(_), .. } = &ran.outcome {
                        ran.submission.unresolved = true;
                        head.unresolved.insert(ran.submission.id, None);
                    }
                }
                drop(head);
                self.take_back(ran);
                Err(Setback::Unknown(error.to_string()))
            }
        }
    }

    /// Answers what has run, once it is durable.
    fn answer(&mut self, ran: Vec<Ran>) {
        self.answered = ran.len();
        for ran in ran {
            self.answer_one(ran);
        }
    }

    fn answer_one(&self, ran: Ran) {
        let Ran { mut submission, outcome, .. } = ran;
        let answer = match outcome {
            Outcome::Failed(failure) => {
                if let Failure::OverBudget { .. } = failure {
                    self.core.metrics.closures_over_budget.inc();
                }
                Answer::Failed(failure)
            }
            Outcome::Rejected => {
                Answer::Rejected { closure: submission.closure.take().expect("it came back from its run") }
            }
            Outcome::Returned { revision, effect } => Answer::Committed {
                closure: submission.closure.take().expect("it came back from its run"),
                revision,
                changed: effect.is_some(),
            },
        };
        // The caller may have gone; that changes nothing about the transaction.
        let _ = submission.answer.send(answer);
    }
}
