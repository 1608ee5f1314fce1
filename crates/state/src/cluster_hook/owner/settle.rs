//! Having the ends of runs stored: receipts, exceptions and watermarks, in batches.
//!
//! Invariant: of one request nothing is sent before what was sent of it earlier is durable, so that batches may overtake
//! each other; what a batch cuts off from a key's items waits for that batch. A batch that could not be stored is sent again
//! until it is, or until its slots are lost, or given up since it can't be stored at all.
//!
//! What a batch costs the database is hardly a matter of how many receipts it has. So where runs end thick and fast, what
//! nothing waits for gets company for a few milliseconds; what something waits for goes as soon as the batch before has
//! arrived, and where runs end now and then, everything does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Event, Owner};
use crate::cluster_hook::cause::Cause;
use crate::cluster_hook::key_queue::{Command, Item, Ticket};
use crate::cluster_hook::points;
use crate::core::Core;
use crate::driver::{DriverError, Exception, ExceptionState, Fence, Receipt, Settle, Settled, SlotId};
use crate::revision::Revision;
use crate::testing::points::Pass;

/// How many items are stored at once.
const ITEMS_AT_ONCE: usize = 2_000;
/// How many batches are on their way at once.
const BATCHES: usize = 4;
/// So many items are a batch of their own, whatever is on its way.
const FULL: usize = 256;
/// A batch of so many says that runs end thick and fast: what comes next gets company.
const THICK: usize = 16;
/// How long items wait for company at most, also behind a batch that lingers or can't be stored.
const COMPANY: Duration = Duration::from_millis(5);
/// So many items not yet durable stop further starts.
const ITEMS_MAX: usize = 16_000;
/// How long passes before what was not stored is sent again, at first and at most.
pub(super) const AGAIN: Duration = Duration::from_millis(50);
pub(super) const AGAIN_MAX: Duration = Duration::from_secs(1);

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

/// What is to be stored, and what each of it was for: apart, since the driver takes the one, and its answer brings back the
/// other.
#[derive(Debug, Default)]
struct Tagged {
    items: Vec<Settle>,
    tags: Vec<Tag>,
}

impl Tagged {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn push(&mut self, (item, tag): (Settle, Tag)) {
        self.items.push(item);
        self.tags.push(tag);
    }

    /// The first ones, at most so many. Leaves room for as many again.
    fn take(&mut self, at_most: usize) -> Tagged {
        let taken = self.len().min(at_most);
        let mut rest = Tagged { items: Vec::with_capacity(taken), tags: Vec::with_capacity(taken) };
        rest.items.extend(self.items.drain(taken..));
        rest.tags.extend(self.tags.drain(taken..));
        std::mem::replace(self, rest)
    }

    fn forget(&mut self, fence: Fence) {
        let mut kept = self.tags.iter().map(|tag| tag.fence != fence);
        self.items.retain(|_| kept.next().unwrap_or(true));
        self.tags.retain(|tag| tag.fence != fence);
    }
}

/// What waits to be stored.
#[derive(Default)]
pub(super) struct Settlements {
    waiting: Tagged,
    /// When those that wait go, however few they are; none where none waits.
    due: Option<Instant>,
    /// Something waits for one of them to be durable.
    awaited: bool,
    /// The last batch was a large one.
    thick: bool,
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
    fn push(&mut self, item: (Settle, Tag), awaited: bool, now: impl FnOnce() -> Instant) {
        self.due = self.due.or_else(|| Some(now() + COMPANY));
        self.awaited |= awaited;
        self.unstored += 1;
        self.waiting.push(item);
    }

    /// What waits of a slot is not sent any more.
    pub(super) fn forget(&mut self, fence: Fence) {
        let before = self.waiting.len();
        self.waiting.forget(fence);
        self.unstored = self.unstored.saturating_sub(before - self.waiting.len());
    }

    /// Something waits for all that there is.
    pub(super) fn hurry(&mut self) {
        self.awaited = true;
    }

    /// Whether there is room for a batch on its way.
    fn has_room(&self) -> bool {
        match self.next {
            Next::Beside => self.in_flight < BATCHES,
            Next::After => self.in_flight == 0,
        }
    }

    /// Whether those that wait are to go now, where there is room.
    fn is_worth_it(&self, now: Instant) -> bool {
        let goes_alone = self.in_flight == 0 && (self.awaited || !self.thick);
        goes_alone || self.waiting.len() >= FULL || self.due.is_some_and(|due| now >= due) || self.next == Next::After
    }

    /// When the next batch goes, if no event lets it go before.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.filter(|_| self.has_room() && !self.waiting.is_empty())
    }

    /// The next batch, if one may go now.
    fn next_batch(&mut self, now: Instant) -> Option<Tagged> {
        if self.waiting.is_empty() || !self.has_room() || !self.is_worth_it(now) {
            return None;
        }
        let batch = self.waiting.take(ITEMS_AT_ONCE);
        let cut = batch.tags.last().zip(self.waiting.tags.first()).is_some_and(|(last, next)| last.is_of_key_of(next));
        self.next = if cut { Next::After } else { Next::Beside };
        self.thick = batch.len() >= THICK;
        if self.waiting.is_empty() {
            (self.due, self.awaited) = (None, false);
        }
        self.in_flight += 1;
        Some(batch)
    }

    /// A batch is not on its way any more.
    fn arrived(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(super) fn is_full(&self) -> bool {
        self.unstored >= ITEMS_MAX
    }
}

impl Owner {
    /// Does what a slot's queue asks for.
    pub(super) fn obey_queue(&mut self, id: SlotId, commands: impl IntoIterator<Item = Command<Arc<Cause>>>) {
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
        let awaited = slot.stopping.is_some() || slot.queue().is_some_and(|queue| queue.awaits(ticket));
        let settle = stored_form(fence, item);
        self.settlements.push((settle, Tag { fence, kind: TagKind::Queue(ticket) }), awaited, Instant::now);
    }

    /// What is left in a slot of an old layout goes to the slots of the next one.
    pub(super) fn settle_handed(&mut self, id: SlotId, items: Vec<(SlotId, Item<Arc<Cause>>)>) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let fence = slot.fence;
        slot.outstanding += items.len();
        let tag = Tag { fence, kind: TagKind::Handed };
        for (next, item) in items {
            let mut settle = stored_form(fence, item);
            if let Settle::Exception { exception, .. } = &mut settle {
                exception.slot = next;
            }
            self.settlements.push((settle, tag), true, Instant::now);
        }
    }

    /// Raises a slot's watermark. On a way of its own: nothing waits for it.
    pub(super) fn settle_watermarks(&mut self, raises: Vec<(Fence, Revision)>) {
        if raises.is_empty() {
            return;
        }
        let mut raising = Tagged::default();
        for (fence, to) in raises {
            if let Some(slot) = self.slots.get_mut(&fence.slot) {
                slot.outstanding += 1;
            }
            raising.push((Settle::Watermark { fence, to }, Tag { fence, kind: TagKind::Watermark }));
        }
        self.settlements.unstored += raising.len();
        self.send(raising, true);
    }

    /// Sends what waits, as far as a batch may go.
    pub(super) fn flush_settlements(&mut self) {
        while let Some(batch) = self.settlements.next_batch(Instant::now()) {
            self.send(batch, false);
        }
    }

    fn send(&mut self, Tagged { items, tags }: Tagged, watermarks: bool) {
        let (core, sender) = (self.core.clone(), self.sender.clone());
        self.spawn(async move {
            let results = match store(&core, &items, watermarks).await {
                Stored::Answered(results) => Some(results),
                Stored::GivenUp => None,
                Stored::Closed => return,
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
            self.settlements.arrived();
        }
        self.settlements.unstored = self.settlements.unstored.saturating_sub(tags.len());
        let Some(results) = results else {
            for tag in tags {
                self.abandon_slot(tag.fence);
            }
            return;
        };
        let (mut out, mut spent) = (Vec::new(), Vec::new());
        for (tag, result) in tags.into_iter().zip(results) {
            let id = tag.fence.slot;
            let Some(slot) = self.slots.get_mut(&id).filter(|slot| slot.fence == tag.fence) else { continue };
            slot.outstanding = slot.outstanding.saturating_sub(1);
            match result {
                Settled::Durable => {
                    if let (TagKind::Queue(ticket), Some(queue)) = (tag.kind, slot.queue_mut()) {
                        queue.settled(ticket, &mut out);
                        queue.take_spent(&mut spent);
                        self.obey_queue(id, out.drain(..));
                    }
                }
                Settled::Refused => self.token_is_void(tag.fence, "a settlement"),
            }
        }
        self.let_go(spent);
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
}

/// How having a batch stored ended.
enum Stored {
    Answered(Vec<Settled>),
    /// It will not be taken any more, from this server at least.
    GivenUp,
    /// This server is closing.
    Closed,
}

/// Sends a batch until there is an answer, or no sense in sending it again.
async fn store(core: &Core, items: &[Settle], watermarks: bool) -> Stored {
    let (before, after) = if watermarks {
        (points::SLOT_BEFORE_WATERMARK, points::SLOT_BEFORE_WATERMARK)
    } else {
        (points::RUN_BEFORE_RECEIPT, points::RUN_AFTER_RECEIPT)
    };
    let started = tokio::time::Instant::now();
    let mut again = AGAIN;
    loop {
        let passed = core.points.pass(before).await;
        if core.stop.is_cancelled() {
            return Stored::Closed;
        }
        let stored = match passed {
            // Its token is of a store that is gone.
            Pass::Go if let Some(set_back) = core.set_back() => Err(set_back.error()),
            Pass::Go => core.driver.settle(items.to_vec()).await,
            Pass::Cut => Err(DriverError::Unavailable("cut by a test before receipts".to_owned())),
        };
        let stored = match stored {
            // The answer is lost on its way here: it is sent again, and of two receipts the first one counts.
            Ok(_) if !watermarks && core.points.pass(after).await == Pass::Cut => {
                Err(DriverError::Unavailable("cut by a test after receipts".to_owned()))
            }
            stored => stored,
        };
        match stored {
            Ok(results) => return Stored::Answered(results),
            Err(error) => {
                if started.elapsed() > core.options.lease * 3 && !error.is_retryable() {
                    tracing::error!(%error, items = items.len(), "ends of runs can't be stored");
                    return Stored::GivenUp;
                }
                tracing::debug!(%error, items = items.len(), "ends of runs can't be stored yet");
                tokio::time::sleep(again).await;
                again = (again * 2).min(AGAIN_MAX);
            }
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
                change: cause.requested_change(),
            }),
            fence,
        },
    }
}

#[cfg(test)]
mod tests;
