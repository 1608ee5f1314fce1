//! How runs end: what follows for their slot's queue, and the writes of hooks together with their receipts, through the
//! committer.
//!
//! Invariant: a run's writes and the receipts of what it covered are one commit; one whose answer was lost is found out
//! before anything follows from it.

use std::sync::Arc;

use super::settle::{AGAIN, AGAIN_MAX};
use super::{CommitEnd, Event, Owner};
use crate::cluster_hook::cause::Cause;
use crate::cluster_hook::key_queue::{Command, KeyIndex, RunEnd};
use crate::cluster_hook::points;
use crate::cluster_hook::run::{Completion, Run};
use crate::cluster_hook::runner::{End, Ended, bounded};
use crate::core::{Core, Fenced};
use crate::driver::{Exception, ExceptionState, Fence, Receipt, ReceiptOutcome, RequestId, SlotId, SlotToken};
use crate::error::WriteError;
use crate::revision::{Revision, SubmissionId, Timestamp};
use crate::testing::points::Pass;
use crate::transaction::{Transaction, TransactionError};

impl Owner {
    /// Runs have ended.
    pub(super) fn runs_ended(&mut self, all: Vec<Ended>) {
        let now = self.core.clock.now();
        let mut out = Vec::new();
        for ended in all {
            let slot = ended.fence.slot;
            self.run_ended(ended, now, &mut out);
            self.obey_queue(slot, out.drain(..));
        }
    }

    fn run_ended(&mut self, ended: Ended, now: Timestamp, out: &mut Vec<Command<Arc<Cause>>>) {
        let Ended { fence, place: (key, number), request, end } = ended;
        let id = fence.slot;
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.fence == fence) else {
            self.end_is_refused(fence, request);
            return;
        };
        let Some(control) = slot.runs.remove(&number) else {
            // It was interrupted, and counted as ended then.
            return;
        };
        if let Some(hook) = self.hooks.get_mut(&id.hook) {
            hook.running = hook.running.saturating_sub(1);
        }
        let Some(queue) = slot.queue_mut() else { return };
        // At the drain's limit: whatever it still says does not count, a failure neither.
        let was_told_to_end = control.is_revoked() && self.drain.as_ref().is_some_and(|drain| drain.signalled);
        let end = match end {
            // What never began is nobody's failure, and has another turn; if an operator has cancelled it, it ends so.
            End::NotBegun => RunEnd::Interrupted,
            _ if was_told_to_end => RunEnd::Interrupted,
            End::Done => RunEnd::Done,
            End::RetryAt(at) => RunEnd::RetryAt(at),
            End::Failed(error) => RunEnd::Failed(error),
            End::Wrote { run, writes, retry_at } => match queue.commit_begins(key, number) {
                Some(covered) => {
                    slot.commits += 1;
                    self.commit_writes(*run, writes, covered, retry_at);
                    return;
                }
                None => retry_at.map_or(RunEnd::Done, RunEnd::RetryAt),
            },
        };
        queue.ended(key, number, end, now, rand::random_range(0.0..1.0), out);
    }

    fn end_is_refused(&self, fence: Fence, request: RequestId) {
        let definitions = self.definitions(fence.slot.hook);
        let hook = definitions.as_ref().map(|definitions| &*definitions.name);
        if let Some(hook) = hook {
            let label = crate::cluster_hook::metrics::label(hook);
            self.core.metrics.hooks.refused.get_or_create(&label).inc();
        }
        tracing::warn!(
            hook,
            %request,
            token = fence.token.0,
            token_now = self.slots.get(&fence.slot).map(|slot| slot.fence.token.0),
            "the end of a run is refused, since its token no longer holds"
        );
    }

    /// A run's writes and what they settle, in one commit.
    fn commit_writes(&mut self, run: Run, writes: Completion, covered: Vec<RequestId>, retry_at: Option<Timestamp>) {
        let (fence, (key, number)) = (run.fence, run.place);
        let mut receipts = Vec::with_capacity(covered.len());
        let mut exceptions = Vec::new();
        let last = covered.len().saturating_sub(1);
        for (at, request) in covered.into_iter().enumerate() {
            match retry_at {
                Some(until) if at == last => {
                    let queue = self.slots.get(&fence.slot).and_then(super::Slot::queue);
                    let cause = queue.and_then(|queue| queue.cause(key, request)).unwrap_or(&run.cause);
                    exceptions.push(Exception {
                        request,
                        slot: fence.slot,
                        state: ExceptionState::Waiting { until },
                        attempts: 0,
                        deaths: 0,
                        error: None,
                        change: cause.requested_change(),
                    });
                }
                Some(_) | None => {
                    let done = request == run.request && retry_at.is_none();
                    let outcome = if done { ReceiptOutcome::Done } else { ReceiptOutcome::Coalesced };
                    receipts.push(Receipt { request, fence, outcome });
                }
            }
        }
        let fenced = Fenced { fence, receipts, exceptions };
        let (core, sender) = (self.core.clone(), self.sender.clone());
        self.spawn(async move {
            let attributes = run.write_attributes();
            let id = SubmissionId::random();
            let before = core.snapshot().revision();
            let mut again = AGAIN;
            let end = loop {
                let passed = core.points.pass(points::RUN_BEFORE_COMPLETION).await;
                if core.stop.is_cancelled() {
                    return;
                }
                if passed == Pass::Cut {
                    tokio::time::sleep(again).await;
                    continue;
                }
                let (writes, control) = (writes.clone(), run.control.clone());
                let closure = move |transaction: &mut Transaction| {
                    // An operator may have cancelled the run since; its token holds all the same.
                    if control.is_revoked() {
                        return Err(TransactionError::rejected("the run was cancelled"));
                    }
                    writes.apply(transaction)
                };
                let result = core.submit(closure, attributes.clone(), id, Some(fenced.clone())).await;
                match result {
                    Ok(_) => break CommitEnd::Committed,
                    Err(WriteError::Fenced) => break CommitEnd::Fenced,
                    Err(WriteError::Closed) => break CommitEnd::Closed,
                    Err(WriteError::Unavailable { retryable: true, reason, .. }) => {
                        tracing::debug!(hook = run.hook(), reason, "a run's writes can't be stored yet");
                    }
                    Err(WriteError::Unknown { submission, .. }) => match resolve(&core, submission, before).await {
                        Standing::Committed => break CommitEnd::Committed,
                        Standing::Closed => break CommitEnd::Closed,
                        Standing::NotCommitted => {
                            tracing::debug!(hook = run.hook(), "a run's writes were not stored; they are sent again")
                        }
                    },
                    Err(error) => break CommitEnd::Rejected(format!("its writes were refused: {error}")),
                }
                tokio::time::sleep(again).await;
                again = (again * 2).min(AGAIN_MAX);
            };
            core.options.recorder.completed(&core.server, &fenced, &end);
            let _ =
                sender.send(Event::Committed { slot: fence.slot, token: fence.token, key, run: number, retry_at, end });
        });
    }

    pub(super) fn committed(
        &mut self,
        id: SlotId,
        token: SlotToken,
        key: KeyIndex,
        run: u32,
        retry_at: Option<Timestamp>,
        end: CommitEnd,
    ) {
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.fence.token == token) else { return };
        slot.commits = slot.commits.saturating_sub(1);
        let fence = slot.fence;
        let end = match end {
            CommitEnd::Committed => {
                let (mut out, mut spent) = (Vec::new(), Vec::new());
                if let Some(queue) = slot.queue_mut() {
                    queue.committed(key, run, retry_at, &mut out);
                    queue.take_spent(&mut spent);
                }
                self.obey_queue(id, out);
                self.let_go(spent);
                return;
            }
            CommitEnd::Fenced => {
                self.token_is_void(fence, "a run's completion with writes");
                return;
            }
            CommitEnd::Rejected(error) => {
                if let Some(hook) = self.hooks.get(&id.hook) {
                    let label = crate::cluster_hook::metrics::label(&hook.declared.name);
                    self.core.metrics.hooks.failures.get_or_create(&label).inc();
                }
                RunEnd::Failed(bounded(error))
            }
            CommitEnd::Closed => RunEnd::Interrupted,
        };
        let Some(queue) = slot.queue_mut() else { return };
        let (now, mut out) = (self.core.clock.now(), Vec::new());
        queue.ended(key, run, end, now, rand::random_range(0.0..1.0), &mut out);
        self.obey_queue(id, out);
    }
}

/// What has become of a submission whose answer was lost.
enum Standing {
    Committed,
    /// It is not, and will not be.
    NotCommitted,
    /// This server is closing, and does not find out any more.
    Closed,
}

/// Finds out whether a submission whose answer was lost is committed. Its commit may still be under way, holding the write
/// lock; so a transaction that changes nothing goes through that lock first, and what is not in the log by then never will
/// be.
async fn resolve(core: &Core, submission: SubmissionId, before: Revision) -> Standing {
    let _ = core.points.pass(points::RUN_OUTCOME_UNKNOWN).await;
    loop {
        let nothing = |_: &mut Transaction| Ok::<(), TransactionError>(());
        match core.submit(nothing, Arc::default(), SubmissionId::random(), None).await {
            Ok(_) => break,
            Err(WriteError::Closed) => return Standing::Closed,
            Err(error) => {
                tracing::debug!(%error, "what has become of a run's writes can't be found out yet");
                tokio::time::sleep(AGAIN_MAX).await;
            }
        }
    }
    loop {
        match core.find_submission(submission, before).await {
            Ok(Some(_)) => return Standing::Committed,
            Ok(None) => return Standing::NotCommitted,
            Err(_) if core.stop.is_cancelled() => return Standing::Closed,
            Err(_) => tokio::time::sleep(AGAIN_MAX).await,
        }
    }
}
