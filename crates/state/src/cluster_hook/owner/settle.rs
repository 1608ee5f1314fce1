//! Having the ends of runs stored: receipts, exceptions and watermarks in batches, and writes of hooks together with
//! their receipts through the committer.
//!
//! Invariant: of one request nothing is sent before what was sent of it earlier is durable, so that batches may overtake
//! each other; what a batch cuts off from a key's items waits for that batch. A batch that could not be stored is sent again
//! until it is, or until its slots are lost, or given up since it can't be stored at all.

use std::sync::Arc;
use std::time::Duration;

use super::{CommitEnd, Event, Owner};
use crate::cluster_hook::key_queue::{Command, Item, KeyIndex, RunEnd, Ticket};
use crate::cluster_hook::points;
use crate::cluster_hook::run::{Cause, Completion, Outcome};
use crate::cluster_hook::runner::{Ended, bounded};
use crate::core::{Core, Fenced};
use crate::driver::{
    Exception, ExceptionState, Fence, Receipt, ReceiptOutcome, RequestId, Settle, Settled, SlotId, SlotToken,
};
use crate::error::WriteError;
use crate::revision::{Revision, SubmissionId, Timestamp};
use crate::testing::points::Pass;
use crate::transaction::{Transaction, TransactionError};

/// How many items are stored at once.
const ITEMS_AT_ONCE: usize = 2_000;
/// How many batches are on their way at once.
const BATCHES: usize = 4;
/// So many items not yet durable stop further starts.
const ITEMS_MAX: usize = 16_000;
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(1);

/// What one stored item was for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tag {
    fence: Fence,
    kind: TagKind,
}

impl Tag {
    fn is_of_key_of(&self, other: &Tag) -> bool {
        match (self.kind, other.kind) {
            (TagKind::Queue(ticket), TagKind::Queue(of_other)) => {
                self.fence == other.fence && ticket.key() == of_other.key()
            }
            (TagKind::Queue(_) | TagKind::Watermark | TagKind::Handed, _) => false,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum TagKind {
    Queue(Ticket),
    Watermark,
    /// What was left in a slot of an old layout goes to one of the next.
    Handed,
}

/// What waits to be stored.
#[derive(Default)]
pub(super) struct Settlements {
    items: Vec<(Settle, Tag)>,
    in_flight: usize,
    unstored: usize,
    next: Next,
}

/// When the next batch may go.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Beside those that are on their way.
    #[default]
    Beside,
    /// When none is on its way: the last one ends amid a key's items, which become durable in their order.
    After,
}

impl Settlements {
    /// What waits of a slot is not sent any more.
    pub(super) fn forget(&mut self, fence: Fence) {
        let before = self.items.len();
        self.items.retain(|(_, tag)| tag.fence != fence);
        self.unstored = self.unstored.saturating_sub(before - self.items.len());
    }

    /// The next batch, if one may go now.
    fn next_batch(&mut self) -> Option<Vec<(Settle, Tag)>> {
        let room = match self.next {
            Next::Beside => self.in_flight < BATCHES,
            Next::After => self.in_flight == 0,
        };
        if !room || self.items.is_empty() {
            return None;
        }
        let rest = self.items.split_off(self.items.len().min(ITEMS_AT_ONCE));
        let batch = std::mem::replace(&mut self.items, rest);
        let cut = batch.last().zip(self.items.first()).is_some_and(|((_, last), (_, next))| last.is_of_key_of(next));
        self.next = if cut { Next::After } else { Next::Beside };
        self.in_flight += 1;
        Some(batch)
    }

    pub(super) fn is_full(&self) -> bool {
        self.unstored >= ITEMS_MAX
    }
}

impl Owner {
    /// Does what a slot's queue asks for.
    pub(super) fn obey_queue(&mut self, id: SlotId, commands: Vec<Command<Arc<Cause>>>) {
        for command in commands {
            match command {
                Command::Settle { item, ticket } => self.settle(id, item, ticket),
                Command::Cancel { run, .. } => {
                    if let Some(control) = self.slots.get(&id).and_then(|slot| slot.runs.get(&run)) {
                        control.revoke();
                    }
                }
            }
        }
    }

    fn settle(&mut self, id: SlotId, item: Item<Arc<Cause>>, ticket: Ticket) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let fence = slot.fence;
        slot.outstanding += 1;
        if let Item::Exception { state: ExceptionState::Dead, request, error, .. } = &item
            && let Some(hook) = self.hooks.get(&id.hook)
        {
            let label = crate::cluster_hook::metrics::label(&hook.declared.name);
            self.core.metrics.hooks.dead_letters.get_or_create(&label).inc();
            tracing::warn!(hook = %hook.declared.name, %request, ?error, "a request is a dead letter now");
        }
        let settle = stored_form(fence, item);
        self.settlements.items.push((settle, Tag { fence, kind: TagKind::Queue(ticket) }));
        self.settlements.unstored += 1;
    }

    /// What is left in a slot of an old layout goes to the slots of the next one.
    pub(super) fn settle_handed(&mut self, id: SlotId, items: Vec<(SlotId, Item<Arc<Cause>>)>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let fence = slot.fence;
        slot.outstanding += items.len();
        self.settlements.unstored += items.len();
        let tag = Tag { fence, kind: TagKind::Handed };
        for (next, item) in items {
            let mut settle = stored_form(fence, item);
            if let Settle::Exception { exception, .. } = &mut settle {
                exception.slot = next;
            }
            self.settlements.items.push((settle, tag));
        }
    }

    /// Raises a slot's watermark. On a way of its own: nothing waits for it.
    pub(super) fn settle_watermarks(&mut self, raises: Vec<(Fence, Revision)>) {
        if raises.is_empty() {
            return;
        }
        let mut items = Vec::with_capacity(raises.len());
        for (fence, to) in raises {
            if let Some(slot) = self.slots.get_mut(&fence.slot) {
                slot.outstanding += 1;
            }
            items.push((Settle::Watermark { fence, to }, Tag { fence, kind: TagKind::Watermark }));
        }
        self.settlements.unstored += items.len();
        self.send(items, true);
    }

    /// Sends what waits, as far as a batch may go.
    pub(super) fn flush_settlements(&mut self) {
        while let Some(items) = self.settlements.next_batch() {
            self.send(items, false);
        }
    }

    fn send(&mut self, items: Vec<(Settle, Tag)>, watermarks: bool) {
        let (items, tags): (Vec<Settle>, Vec<Tag>) = items.into_iter().unzip();
        let (core, sender) = (self.core.clone(), self.sender.clone());
        let lease = self.core.options.lease;
        self.spawn(async move {
            let (before, after) = if watermarks {
                (points::SLOT_BEFORE_WATERMARK, points::SLOT_BEFORE_WATERMARK)
            } else {
                (points::RUN_BEFORE_RECEIPT, points::RUN_AFTER_RECEIPT)
            };
            let started = tokio::time::Instant::now();
            let mut again = AGAIN;
            let results = loop {
                let passed = core.points.pass(before).await;
                if core.stop.is_cancelled() {
                    return;
                }
                let stored = match passed {
                    // Its token is of a store that is gone.
                    Pass::Go if let Some(set_back) = core.set_back() => Err(set_back.error()),
                    Pass::Go => core.driver.settle(items.clone()).await,
                    Pass::Cut => {
                        Err(crate::driver::DriverError::Unavailable("cut by a test before receipts".to_owned()))
                    }
                };
                let stored = match stored {
                    // The answer is lost on its way here: it is sent again, and found to be there.
                    Ok(_) if !watermarks && core.points.pass(after).await == Pass::Cut => {
                        Err(crate::driver::DriverError::Unavailable("cut by a test after receipts".to_owned()))
                    }
                    stored => stored,
                };
                match stored {
                    Ok(results) => break Some(results),
                    Err(error) => {
                        // It will not be taken any more, from this server at least.
                        if started.elapsed() > lease * 3 && !error.is_retryable() {
                            tracing::error!(%error, items = items.len(), "ends of runs can't be stored");
                            break None;
                        }
                        tracing::debug!(%error, items = items.len(), "ends of runs can't be stored yet");
                        tokio::time::sleep(again).await;
                        again = (again * 2).min(AGAIN_MAX);
                    }
                }
            };
            if let Some(results) = &results {
                core.options.recorder.settled(&core.server, &items, results);
            }
            let _ = sender.send(Event::Settled { tags, results });
        });
    }

    /// A batch was stored, but for what its tokens no longer hold for; without results it can't be stored at all.
    pub(super) fn settled(&mut self, tags: Vec<Tag>, results: Option<&[Settled]>) {
        let only_watermarks = tags.iter().all(|tag| matches!(tag.kind, TagKind::Watermark));
        if !only_watermarks {
            self.settlements.in_flight = self.settlements.in_flight.saturating_sub(1);
        }
        self.settlements.unstored = self.settlements.unstored.saturating_sub(tags.len());
        let Some(results) = results else {
            for tag in tags {
                self.abandon_slot(tag.fence);
            }
            return;
        };
        let mut out = Vec::new();
        for (tag, result) in tags.into_iter().zip(results) {
            let id = tag.fence.slot;
            let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.fence == tag.fence) else { continue };
            slot.outstanding = slot.outstanding.saturating_sub(1);
            match result {
                Settled::Durable => {
                    if let (TagKind::Queue(ticket), Some(queue)) = (tag.kind, slot.queue_mut()) {
                        queue.settled(ticket, &mut out);
                        if !out.is_empty() {
                            let commands = std::mem::take(&mut out);
                            self.obey_queue(id, commands);
                        }
                    }
                }
                Settled::Refused => self.token_is_void(tag.fence, "a settlement"),
            }
        }
    }

    /// The store refused something under a token: the slot is not this server's any more.
    pub(super) fn token_is_void(&mut self, fence: Fence, what: &str) {
        if let Some(hook) = self.hooks.get(&fence.slot.hook) {
            let label = crate::cluster_hook::metrics::label(&hook.declared.name);
            self.core.metrics.hooks.refused.get_or_create(&label).inc();
        }
        let now = self.view.as_ref().and_then(|view| view.rows.get(&fence.slot)).map(|row| row.token.0);
        tracing::warn!(
            server = %self.core.server,
            hook = fence.slot.hook.0,
            slot = fence.slot.slot,
            token = fence.token.0,
            token_last_seen = now,
            "{what} was refused, since its token no longer holds; the slot is given up"
        );
        self.drop_slot(fence.slot);
        // Perhaps the whole lease has ended: the next heartbeat tells.
        self.declare_now();
    }

    // ---- ends of runs ----------------------------------------------------------------------------------------------

    /// A run has ended.
    pub(super) fn run_ended(&mut self, ended: Ended) {
        let Ended { run, key, number, outcome, took } = ended;
        self.core.metrics.hooks.run_seconds.observe(took.as_secs_f64());
        let fence = run.fence;
        let id = fence.slot;
        if let Some(Outcome::Fail(error)) = &outcome {
            let label = crate::cluster_hook::metrics::label(run.hook());
            self.core.metrics.hooks.failures.get_or_create(&label).inc();
            tracing::info!(hook = run.hook(), key = %run.key, request = %run.request, attempt = run.attempt, error, "a run failed");
        }
        let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.fence == fence) else {
            let label = crate::cluster_hook::metrics::label(run.hook());
            self.core.metrics.hooks.refused.get_or_create(&label).inc();
            tracing::warn!(
                hook = run.hook(),
                key = %run.key,
                request = %run.request,
                token = fence.token.0,
                token_now = self.slots.get(&id).map(|slot| slot.fence.token.0),
                "the end of a run is refused, since its token no longer holds"
            );
            return;
        };
        if slot.runs.remove(&number).is_none() {
            // It was interrupted, and counted as ended then.
            return;
        }
        if let Some(hook) = self.hooks.get_mut(&id.hook) {
            hook.running = hook.running.saturating_sub(1);
        }
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let Some(queue) = slot.queue_mut() else { return };
        // What never began is nobody's failure, and has another turn; if an operator has cancelled it, it ends so.
        let Some(outcome) = outcome else {
            self.end_run(id, key, number, RunEnd::Interrupted);
            return;
        };
        if run.control.is_revoked() && self.drain.as_ref().is_some_and(|drain| drain.signalled) {
            // It was told to end at the drain's limit, so whatever it still says does not count, a failure neither.
            self.end_run(id, key, number, RunEnd::Interrupted);
            return;
        }
        let (writes, retry_at, end) = match outcome {
            Outcome::Done => (None, None, RunEnd::Done),
            Outcome::DoneWith(writes) => (Some(writes), None, RunEnd::Done),
            Outcome::RetryAt(at) => (None, Some(at), RunEnd::RetryAt(at)),
            Outcome::RetryAtWith(at, writes) => (Some(writes), Some(at), RunEnd::RetryAt(at)),
            Outcome::Fail(error) => (None, None, RunEnd::Failed(bounded(error))),
        };
        if let Some(writes) = writes
            && let Some(covered) = queue.commit_begins(key, number)
        {
            slot.commits += 1;
            self.commit_writes(run, key, number, writes, covered, retry_at);
            return;
        }
        self.end_run(id, key, number, end);
    }

    fn end_run(&mut self, id: SlotId, key: KeyIndex, run: u32, end: RunEnd) {
        let now = self.core.clock.now();
        let jitter = rand::random_range(0.0..1.0);
        let Some(queue) = self.slots.get_mut(&id).and_then(super::Slot::queue_mut) else { return };
        let mut out = Vec::new();
        queue.ended(key, run, end, now, jitter, &mut out);
        self.obey_queue(id, out);
    }

    /// A run's writes and what they settle, in one commit.
    fn commit_writes(
        &mut self,
        run: crate::cluster_hook::run::Run,
        key: KeyIndex,
        number: u32,
        writes: Completion,
        covered: Vec<RequestId>,
        retry_at: Option<Timestamp>,
    ) {
        let fence = run.fence;
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
                        change: super::load_entries::requested_change(cause),
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
        match end {
            CommitEnd::Committed => {
                let mut out = Vec::new();
                if let Some(queue) = slot.queue_mut() {
                    queue.committed(key, run, retry_at, &mut out);
                }
                self.obey_queue(id, out);
            }
            CommitEnd::Rejected(error) => {
                if let Some(hook) = self.hooks.get(&id.hook) {
                    let label = crate::cluster_hook::metrics::label(&hook.declared.name);
                    self.core.metrics.hooks.failures.get_or_create(&label).inc();
                }
                self.end_run(id, key, run, RunEnd::Failed(bounded(error)));
            }
            CommitEnd::Fenced => self.token_is_void(fence, "a run's completion with writes"),
            CommitEnd::Closed => self.end_run(id, key, run, RunEnd::Interrupted),
        }
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

fn stored_form(fence: Fence, item: Item<Arc<Cause>>) -> Settle {
    match item {
        Item::Receipt { request, outcome } => Settle::Receipt(Receipt { request, fence, outcome }),
        Item::Exception { request, state, attempts, deaths, error, cause } => Settle::Exception {
            exception: Box::new(Exception {
                request,
                slot: fence.slot,
                state,
                attempts,
                deaths,
                error,
                change: super::load_entries::requested_change(&cause),
            }),
            fence,
        },
    }
}

#[cfg(test)]
mod tests;
