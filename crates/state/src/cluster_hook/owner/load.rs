//! Reading what is pending in slots that were just leased, and reading the log again for what did not fit in memory.
//!
//! Invariants: what is pending is read after the lease was granted, so that every receipt that the taking over waited for
//! is seen; while it is read, what the tail brings is kept; a slot starts runs only when this server has applied all that
//! was read, which only revisions of its own epoch say. Slots of one hook are read together, since they share the log.
//! What lies below the beginning of their layout is not: it was done with, or handed over, before any of them was leased.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::load_entries::{Entry, entries};
use super::{Event, Intake, Owner, SlotState};
use crate::cluster_hook::cause::Cause;
use crate::cluster_hook::points;
use crate::driver::{Exception, Fence, HookNumber, Pending, RequestId, SlotId, SlotRow};
use crate::revision::{Revision, Timestamp};

/// How many rows that ask for runs are read at once.
const ROWS_AT_ONCE: usize = 500;
/// How soon reading is tried again after it failed.
const AGAIN: Duration = Duration::from_millis(100);

/// Slots of one hook whose pending requests are being read.
pub(super) struct Load {
    hook: HookNumber,
    /// Each with the revision above which its own requests are.
    slots: Vec<(Fence, Revision)>,
}

/// The log of one hook being read again.
#[derive(Default)]
pub(super) struct Reread {
    pub(super) slots: Vec<Fence>,
    /// Rows above this are not for it: the tail had not brought them when they were read, and will.
    pub(super) until: Option<Revision>,
}

impl Owner {
    /// Slots were leased: reads what is pending in them.
    pub(super) fn load(&mut self, hook: HookNumber, rows: &[SlotRow]) {
        let definitions = self.definitions(hook);
        let begins = |slot| definitions.as_ref().map_or(Revision::ZERO, |definitions| definitions.begins(slot));
        let settled = |row: &SlotRow| row.watermark.max(begins(row.slot));
        let slots: Vec<(Fence, Revision)> =
            rows.iter().map(|row| (Fence { slot: row.slot, token: row.token }, settled(row))).collect();
        let Some(from) = slots.iter().map(|(_, settled)| *settled).min() else { return };
        let first = slots[0].0.slot;
        let load = self.next_load;
        self.next_load += 1;
        self.loads.insert(load, Load { hook, slots });
        let (core, sender) = (self.core.clone(), self.sender.clone());
        self.spawn(async move {
            let _ = core.points.pass(points::SLOT_LEASED).await;
            let exceptions = loop {
                match core.driver.exceptions(Some(hook)).await {
                    Ok(exceptions) => break exceptions,
                    Err(error) if error.is_retryable() => tokio::time::sleep(AGAIN).await,
                    Err(error) => {
                        tracing::error!(%error, "what is pending in slots can't be read");
                        let _ = sender.send(Event::LoadFailed { load });
                        return;
                    }
                }
            };
            let mut exceptions = Some(exceptions);
            let mut after = from;
            loop {
                match core.driver.pending(first, after, ROWS_AT_ONCE).await {
                    Ok(pending) => {
                        after = pending.read_to;
                        let last = pending.read_to >= pending.head;
                        if last {
                            let _ = core.points.pass(points::SLOT_READ).await;
                        }
                        if sender.send(Event::Page { load, exceptions: exceptions.take(), pending }).is_err() || last {
                            return;
                        }
                    }
                    Err(error) if error.is_retryable() => tokio::time::sleep(AGAIN).await,
                    Err(error) => {
                        tracing::error!(%error, "what is pending in slots can't be read");
                        let _ = sender.send(Event::LoadFailed { load });
                        return;
                    }
                }
            }
        });
    }

    /// A page of what is pending.
    pub(super) fn page(&mut self, id: u64, exceptions: Option<Vec<Exception>>, pending: Pending) {
        let Some(load) = self.loads.get(&id) else { return };
        if pending.epoch != self.epoch {
            // Its revisions are not those that this server has applied: a slot would start what is not in its snapshot.
            self.core.look_for_news();
            self.load_failed(id);
            return;
        }
        let (hook, slots) = (load.hook, load.slots.clone());
        let Some(definitions) = self.definitions(hook) else {
            self.load_failed(id);
            return;
        };
        let wanted = |slot: SlotId| slots.iter().find(|(fence, _)| fence.slot == slot).copied();
        for exception in exceptions.into_iter().flatten() {
            let Some(key) = definitions.key_of(&exception.change.path, exception.request.revision) else { continue };
            let came_from = definitions.earlier_slots(exception.slot, &key).find_map(wanted);
            if let Some(queue) = came_from.and_then(|(fence, _)| self.loading(fence)) {
                queue.load_handed_over(exception.request);
            }
            let Some((fence, _)) = wanted(exception.slot) else { continue };
            let Some(queue) = self.loading(fence) else { continue };
            let counts = (exception.attempts, exception.deaths);
            let cause = Cause::excepted(exception.change.clone());
            queue.load_exception(exception.request, &key, exception.state, counts, exception.error, cause);
        }
        let finished: HashSet<RequestId> = pending.receipts.iter().copied().collect();
        let (snapshot, delivery) = (self.core.snapshot(), definitions.entity.delivery());
        let existing = |path: &crate::path::Path| snapshot.document(path).cloned();
        let mut ignored = Vec::new();
        for row in &pending.rows {
            for entry in entries(row, hook, &definitions) {
                match entry {
                    Entry::Request { id, slot, key, path, documents } => {
                        let Some((fence, settled)) = wanted(slot) else { continue };
                        if id.revision <= settled || finished.contains(&id) {
                            continue;
                        }
                        if let Some(queue) = self.loading(fence) {
                            let cause = Cause::logged(delivery, row, path, documents, existing);
                            queue.request(id, &key, cause, &mut ignored);
                        }
                    }
                    Entry::Act { id, target, action } => {
                        if finished.contains(&id) {
                            continue;
                        }
                        for (fence, _) in &slots {
                            if let Some(queue) = self.loading(*fence) {
                                queue.act(id, target, action, &mut ignored);
                            }
                        }
                    }
                }
            }
        }
        debug_assert!(ignored.is_empty(), "a slot that is being loaded stores nothing");
        self.let_go(pending.rows);
        if pending.read_to >= pending.head {
            self.loads.remove(&id);
            for (fence, _) in slots {
                if let Some(slot) = self.slots.get_mut(&fence.slot).filter(|slot| slot.fence == fence)
                    && let SlotState::Loading { read, .. } = &mut slot.state
                {
                    *read = Some(pending.head);
                }
            }
        }
    }

    fn loading(&mut self, fence: Fence) -> Option<&mut super::SlotQueue<Arc<Cause>>> {
        let slot = self.slots.get_mut(&fence.slot).filter(|slot| slot.fence == fence)?;
        match &mut slot.state {
            SlotState::Loading { queue, .. } => Some(queue),
            SlotState::Active(_) | SlotState::Skipped(_) | SlotState::Releasing | SlotState::Permit => None,
        }
    }

    /// The slots can't be read: they are given back.
    pub(super) fn load_failed(&mut self, id: u64) {
        let Some(load) = self.loads.remove(&id) else { return };
        for (fence, _) in load.slots {
            self.stop_slot(fence.slot, super::Reason::Must);
        }
    }

    /// Slots whose pending requests were read, and whose log this server has applied, begin to run.
    pub(super) fn activate_loaded(&mut self, now: Timestamp) {
        let position = self.position;
        let ready: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(_, slot)| matches!(&slot.state, SlotState::Loading { read: Some(head), .. } if *head <= position))
            .map(|(id, _)| *id)
            .collect();
        for id in ready {
            let mut out = Vec::new();
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            let state = std::mem::replace(&mut slot.state, SlotState::Releasing);
            let SlotState::Loading { mut queue, buffered, crashed, read: Some(head) } = state else {
                slot.state = state;
                continue;
            };
            queue.activate(now, head, crashed, &mut out);
            for intake in buffered {
                match intake {
                    Intake::Request { id, key, cause } if id.revision > head => {
                        queue.request(id, &key, cause, &mut out);
                    }
                    Intake::Act { id, target, action } if id.revision > head => {
                        queue.act(id, target, action, &mut out);
                    }
                    Intake::Request { .. } | Intake::Act { .. } => {}
                }
            }
            queue.passed(position);
            slot.state = SlotState::Active(queue);
            self.obey_queue(id, out);
        }
    }

    /// Copies what stands behind waits out of the log, and reads again what had to be left in it.
    pub(super) fn park_and_reread(&mut self) {
        let until = Revision(self.position.0.saturating_sub(super::layouts::PARK_BEHIND));
        let mut wanting: Vec<(HookNumber, Fence, Revision)> = Vec::new();
        let active: Vec<SlotId> = self.slots.keys().copied().collect();
        for id in active {
            let Some(slot) = self.slots.get_mut(&id).filter(|slot| !slot.has_handed_over()) else { continue };
            let fence = slot.fence;
            let Some(queue) = slot.whole_queue_mut() else { continue };
            if let Some(after) = queue.wants_reread() {
                wanting.push((id.hook, fence, after));
            }
            let mut out = Vec::new();
            queue.park(until, super::layouts::PARK_AT_ONCE, &mut out);
            self.obey_queue(id, out);
        }
        let hooks: HashSet<HookNumber> = wanting.iter().map(|(hook, _, _)| *hook).collect();
        for hook in hooks {
            if self.rereads.contains_key(&hook) {
                continue;
            }
            let slots: Vec<Fence> =
                wanting.iter().filter(|(other, _, _)| *other == hook).map(|(_, fence, _)| *fence).collect();
            let from = wanting.iter().filter(|(other, _, _)| *other == hook).map(|(_, _, after)| *after).min();
            let Some(mut after) = from else { continue };
            let first = slots[0].slot;
            for fence in &slots {
                if let Some(queue) = self.slots.get_mut(&fence.slot).and_then(super::Slot::queue_mut) {
                    queue.reread_begins();
                }
            }
            self.rereads.insert(hook, Reread { slots, until: None });
            if let Some(hook) = self.hooks.get(&hook) {
                let label = crate::cluster_hook::metrics::label(&hook.declared.name);
                self.core.metrics.hooks.rereads.get_or_create(&label).inc();
            }
            let (core, sender) = (self.core.clone(), self.sender.clone());
            self.spawn(async move {
                loop {
                    match core.driver.pending(first, after, ROWS_AT_ONCE).await {
                        Ok(pending) => {
                            after = pending.read_to;
                            let last = pending.read_to >= pending.head;
                            if sender.send(Event::RereadPage { hook, pending }).is_err() || last {
                                return;
                            }
                        }
                        Err(error) if error.is_retryable() => tokio::time::sleep(AGAIN).await,
                        Err(_) => {
                            let _ = sender.send(Event::RereadFailed { hook });
                            return;
                        }
                    }
                }
            });
        }
    }

    pub(super) fn reread_page(&mut self, hook: HookNumber, pending: Pending) {
        if pending.epoch != self.epoch {
            self.end_reread(hook, None);
            return;
        }
        let position = self.position;
        let Some(reread) = self.rereads.get_mut(&hook) else { return };
        if pending.read_to > position && reread.until.is_none() {
            reread.until = Some(position);
        }
        let (slots, until) = (reread.slots.clone(), reread.until.unwrap_or(pending.read_to));
        let Some(definitions) = self.definitions(hook) else { return };
        let finished: HashSet<RequestId> = pending.receipts.iter().copied().collect();
        let (snapshot, delivery) = (self.core.snapshot(), definitions.entity.delivery());
        let existing = |path: &crate::path::Path| snapshot.document(path).cloned();
        let mut outs: Vec<(SlotId, Vec<_>)> = Vec::new();
        for row in pending.rows.iter().filter(|row| row.revision <= until) {
            for entry in entries(row, hook, &definitions) {
                let Entry::Request { id, slot, key, path, documents } = entry else { continue };
                let Some(fence) = slots.iter().find(|fence| fence.slot == slot) else { continue };
                let Some(slot) = self.slots.get_mut(&slot).filter(|slot| slot.fence == *fence) else { continue };
                let Some(queue) = slot.whole_queue_mut() else { continue };
                let mut out = Vec::new();
                let cause = Cause::logged(delivery, row, path, documents, existing);
                queue.reread(id, &key, cause, &finished, &mut out);
                if !out.is_empty() {
                    outs.push((fence.slot, out));
                }
            }
        }
        for (slot, out) in outs {
            self.obey_queue(slot, out);
        }
        if pending.read_to >= pending.head {
            self.end_reread(hook, Some(pending.read_to.min(until)));
        }
    }

    pub(super) fn end_reread(&mut self, hook: HookNumber, read_to: Option<Revision>) {
        let Some(reread) = self.rereads.remove(&hook) else { return };
        for fence in reread.slots {
            let Some(slot) = self.slots.get_mut(&fence.slot).filter(|slot| slot.fence == fence) else { continue };
            if let Some(queue) = slot.queue_mut() {
                match read_to {
                    Some(read_to) => queue.reread_ends(read_to),
                    None => queue.reread_failed(),
                }
            }
        }
    }
}
