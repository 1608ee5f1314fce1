//! The wait for the write lock, and what is done meanwhile: closures run ahead where the lock was waited for last time, too,
//! since another server is likely to have it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::Head;
use super::super::closure_thread::{ClosureThread, Work};
use super::super::drafts::{Drafts, Look, Terms};
use super::super::group::{Outcome, Ran};
use super::super::submission::Failure;
use super::{CATCH_UP_ROWS_MAX, CONTENDED, Committer};
use crate::driver::{Begun, DriverError};
use crate::revision::{Epoch, Revision};
use crate::state::RunAhead;

/// Sees to it that callers are not kept waiting by others' closures where the committer is ended while it waits.
struct Watched<'drafts>(&'drafts Drafts);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

impl Committer {
    /// What closures run ahead in during this round, if they are to.
    pub(super) fn drafts(&mut self, head: &mut Head) -> Option<Arc<Drafts>> {
        let core = &self.core;
        let wanted = match core.options.run_ahead {
            RunAhead::Never => false,
            RunAhead::Always => true,
            RunAhead::WhereTheLockIsWaitedFor => self.waited > CONTENDED && self.worth.try_it(),
        };
        // What became of those whose commit is unknown has to be found out before they run again.
        if !wanted || self.waiting.iter().any(|submission| submission.unresolved) {
            return None;
        }
        let tree = head.tree.fork(&head.snapshot)?;
        let (revision, now) = (head.snapshot.revision().next(), core.clock.now());
        Some(Drafts::new(tree, Terms { revision, now, budget: core.options.transaction_budget }))
    }

    /// Waits for the write lock, and reads what is new in the log. What waits, or comes meanwhile, runs ahead. With it comes how
    /// many have.
    pub(super) async fn begin(
        &mut self,
        epoch: Epoch,
        after: Revision,
        drafts: Option<Arc<Drafts>>,
    ) -> (Result<Begun, DriverError>, usize) {
        let core = self.core.clone();
        let watched = drafts.as_deref().map(Watched);
        if let Some(drafts) = &drafts {
            self.hand_over(drafts);
            if core.options.run_ahead == RunAhead::Always {
                drafts.come_to_rest().await;
            }
        }
        let limit = core.options.write_limit;
        let asked = Instant::now();
        let begin = tokio::time::timeout(limit, core.driver.begin(epoch, after, CATCH_UP_ROWS_MAX));
        let begun = match &drafts {
            None => begin.await,
            Some(drafts) => self.run_ahead(drafts, begin).await,
        };
        self.waited = asked.elapsed();
        let ran_ahead = match &drafts {
            None => 0,
            Some(drafts) => self.take_back_drafts(drafts).await,
        };
        drop(watched);
        let late = || DriverError::Unavailable(format!("the write lock was not had within {limit:?}"));
        (begun.unwrap_or_else(|_| Err(late())), ran_ahead)
    }

    /// Lets what comes run ahead until the lock is had.
    async fn run_ahead<B>(&mut self, drafts: &Arc<Drafts>, begin: impl Future<Output = B>) -> B {
        let mut begin = std::pin::pin!(begin);
        let mut room = self.core.options.commit_group_max.saturating_sub(drafts.len());
        let mut came = Vec::new();
        loop {
            tokio::select! {
                biased;
                begun = &mut begin => return begun,
                count = self.queue.recv_many(&mut came, room), if room > 0 => {
                    // None when there will be none any more.
                    room = if count == 0 { 0 } else { room - count };
                    self.waiting.extend(came.drain(..));
                    self.hand_over(drafts);
                }
            }
        }
    }

    fn hand_over(&mut self, drafts: &Arc<Drafts>) {
        let any = self.core.options.run_ahead == RunAhead::Always;
        let wakes = drafts.push(self.waiting.drain(..), any);
        if wakes && !matches!(self.give(Work::Drafts(drafts.clone())), Ok(true)) {
            drafts.not_woken();
        }
    }

    /// Gives the closure thread something to do; false if it has ended.
    pub(super) fn give(&mut self, work: Work) -> std::io::Result<bool> {
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => ClosureThread::spawn()?,
        };
        let given = thread.run(work);
        if given {
            self.thread = Some(thread);
        }
        Ok(given)
    }

    /// Says how many have run.
    async fn take_back_drafts(&mut self, drafts: &Drafts) -> usize {
        loop {
            let mut back = match drafts.end() {
                Look::Running(longer) => {
                    // Whether it came to rest or the time is over, the next look says how it stands.
                    let _ = tokio::time::timeout(longer.max(Duration::from_millis(1)), drafts.at_rest()).await;
                    continue;
                }
                Look::Back(back) => back,
                Look::Abandoned { others, late, taken } => {
                    self.left_behind();
                    let budget = self.core.options.transaction_budget;
                    let outcome = Outcome::Failed(Failure::OverBudget { budget, taken });
                    self.answer_one(Ran { submission: *late, outcome, ahead: false });
                    others
                }
            };
            back.append(&mut self.waiting);
            self.waiting = back;
            return drafts.ran();
        }
    }

    /// The thread's closure has run over its budget.
    pub(super) fn left_behind(&mut self) {
        tracing::warn!(
            server = %self.core.server, budget = ?self.core.options.transaction_budget,
            "a transaction's closure ran over its budget; its thread is left behind until it returns"
        );
        self.thread = None;
    }

    /// Takes note of how many of those that have run ahead did not have to run again.
    pub(super) fn note_ahead(&mut self, ran: usize, held: usize) {
        if ran == 0 {
            return;
        }
        self.worth.note(ran, held);
        let metrics = &self.core.metrics;
        metrics.closures_ahead.inc_by(ran as u64);
        metrics.closures_ahead_in_vain.inc_by(ran.saturating_sub(held) as u64);
    }
}
