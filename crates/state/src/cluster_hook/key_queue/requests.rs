//! New requests, and operators' actions on requests.

use super::{
    Cancelled, Command, Entry, Item, Key, KeyIndex, Phase, SlotQueue, Stage, Then, Ticket, TicketKind, Why,
    action_done, index_from, phase_ticket,
};
use crate::cluster_hook::registration::Delivery;
use crate::driver::{ExceptionState, ReceiptOutcome, RequestAction, RequestId};

impl<P: Clone> SlotQueue<P> {
    /// Whether nothing of this request is to be taken in, since it is there already.
    pub(super) fn knows(&self, key: &Key<P>, id: RequestId) -> bool {
        // Mostly it is the newest of all, and neither has to be searched.
        if self.open.last().is_none_or(|last| *last < id) && key.queue.back().is_none_or(|last| last.id < id) {
            return false;
        }
        self.open.contains(&id) || key.queue.binary_search_by(|entry| entry.id.cmp(&id)).is_ok()
    }

    /// A request of the slot, in the order of the log.
    pub(crate) fn request(&mut self, id: RequestId, key: &str, cause: P, out: &mut Vec<Command<P>>) {
        if self.handed_over.contains(&id) {
            return;
        }
        let index = match self.by_name.get(key) {
            Some(&index) => {
                let key = self.key(index);
                if self.loading && self.knows(key, id) {
                    return;
                }
                if key.closed {
                    self.leave_out(id, Some(index));
                    return;
                }
                Some(index)
            }
            None if self.closed => {
                self.leave_out(id, None);
                return;
            }
            None => None,
        };
        if self.total >= self.bound && !self.make_room(index, false) {
            self.leave_out(id, index);
            return;
        }
        let index = index.unwrap_or_else(|| self.index_of(key));
        // Making room may have cut this very key.
        if self.key(index).closed {
            self.leave_out(id, Some(index));
            return;
        }
        self.take_in(index, id, cause);
        if !self.loading {
            self.noticed(index, id, out);
        }
    }

    pub(super) fn take_in(&mut self, index: KeyIndex, id: RequestId, cause: P) {
        let key = self.key_mut(index);
        let at = if key.queue.back().is_none_or(|last| last.id < id) {
            key.queue.len()
        } else {
            key.queue.partition_point(|entry| entry.id < id)
        };
        key.queue.insert(at, Entry { id, cause, stored: false, parking: false });
        self.total += 1;
        self.open.insert(id);
    }

    /// What a new request does to its key's phase.
    pub(super) fn noticed(&mut self, index: KeyIndex, id: RequestId, out: &mut Vec<Command<P>>) {
        let latest = self.delivery == Delivery::LatestState;
        let key = self.key_mut(index);
        match &mut key.phase {
            Phase::Idle => self.make_ready(index),
            Phase::Until { why: Why::RetryAt, .. } if latest => self.make_ready(index),
            Phase::Dead if latest => self.revive(index, out),
            Phase::Running { covered, stage: Stage::Going { snapshot }, cancelled: None, .. }
                if latest && id.revision <= *snapshot =>
            {
                // The run reads a snapshot that has the change, if all before it are covered as well.
                if *covered + 1 == key.queue.len() {
                    *covered += 1;
                }
            }
            Phase::Ready | Phase::Running { .. } | Phase::Settling { .. } | Phase::Until { .. } | Phase::Dead => {}
        }
    }

    /// A dead `LatestState` key gets another life: the letter becomes an ordinary waiting request.
    pub(super) fn revive(&mut self, index: KeyIndex, out: &mut Vec<Command<P>>) {
        let key = self.key_mut(index);
        (key.attempts, key.deaths, key.error, key.marked) = (0, 0, None, false);
        self.settle_front(index, ExceptionState::Parked, Then::Ready { marked: false }, out);
    }

    /// An operator acted on a request, by an entry of the log that is `id` itself. Ignored where the request is not (or
    /// no longer) what the action is for.
    pub(crate) fn act(&mut self, id: RequestId, target: RequestId, action: RequestAction, out: &mut Vec<Command<P>>) {
        let found = self.keys.iter().enumerate().find_map(|(index, key)| {
            let key = key.as_ref()?;
            let at = key.queue.binary_search_by(|entry| entry.id.cmp(&target)).ok()?;
            Some((index_from(index), at))
        });
        let Some((index, at)) = found else {
            if self.may_miss(target) {
                self.missing_actions.entry(target).or_default().push((id, action));
            }
            return;
        };
        if self.loading {
            self.open.insert(id);
            self.key_mut(index).deferred.push((id, target, action));
            return;
        }
        let key = self.key_mut(index);
        match (&mut key.phase, action) {
            (Phase::Settling { .. }, _) => {
                key.deferred.push((id, target, action));
                self.open.insert(id);
            }
            (Phase::Dead, RequestAction::Retry) if at == 0 => {
                (key.attempts, key.deaths, key.error, key.marked) = (0, 0, None, false);
                self.settle_front(index, ExceptionState::Parked, Then::Ready { marked: false }, out);
                self.action_receipt(index, id, out);
            }
            (Phase::Running { covered, run, cancelled, .. }, RequestAction::Cancel)
                if at < *covered && cancelled.is_none() =>
            {
                // The action is finished together with the run, so that a crash in between does not lose it. A commit of its
                // writes that is under way may still succeed: then the action came too late.
                *cancelled = Some(Cancelled { action: id, target });
                out.push(Command::Cancel { key: index, run: *run });
                self.open.insert(id);
            }
            // For whatever the run is followed by.
            (Phase::Running { covered, cancelled: Some(_), .. }, RequestAction::Cancel) if at < *covered => {
                key.deferred.push((id, target, action));
                self.open.insert(id);
            }
            // It came too late, or twice. On record as seen, so that no later owner takes it for a new one.
            (_, RequestAction::Retry) => self.side(index, id, action_done(id), out),
            (Phase::Running { covered, .. }, RequestAction::Discard | RequestAction::Cancel) if at < *covered => {
                self.side(index, id, action_done(id), out);
            }
            (
                Phase::Idle | Phase::Ready | Phase::Until { .. } | Phase::Dead | Phase::Running { .. },
                RequestAction::Discard | RequestAction::Cancel,
            ) => {
                let outcome = match action {
                    RequestAction::Cancel => ReceiptOutcome::Cancelled,
                    RequestAction::Discard | RequestAction::Retry => ReceiptOutcome::Discarded,
                };
                let blocking = at == 0 && !matches!(key.phase, Phase::Running { .. });
                let receipt = Item::Receipt { request: target, outcome };
                if blocking {
                    self.set_phase(index, Phase::Settling { outstanding: 1, then: Then::Finish { covered: 1 } });
                    out.push(Command::Settle { item: receipt, ticket: phase_ticket(index, target) });
                    self.action_receipt(index, id, out);
                } else {
                    let entry = key.queue.remove(at);
                    self.total -= usize::from(entry.is_some_and(|entry| !entry.stored));
                    self.side(index, target, receipt, out);
                    self.side(index, id, action_done(id), out);
                }
            }
        }
    }

    /// Whether the slot has this request, or may have it once it is read again, and would heed an action on it.
    pub(crate) fn has(&self, request: RequestId) -> bool {
        let is_here = |key: &Key<P>| key.queue.binary_search_by(|entry| entry.id.cmp(&request)).is_ok();
        self.may_miss(request) || self.keys.iter().flatten().any(is_here)
    }

    /// An action that a key's phase waits for.
    pub(super) fn action_receipt(&mut self, index: KeyIndex, id: RequestId, out: &mut Vec<Command<P>>) {
        self.open.insert(id);
        if let Phase::Settling { outstanding, .. } = &mut self.key_mut(index).phase {
            *outstanding += 1;
        }
        out.push(Command::Settle { item: action_done(id), ticket: phase_ticket(index, id) });
    }

    pub(super) fn side(&mut self, index: KeyIndex, request: RequestId, item: Item<P>, out: &mut Vec<Command<P>>) {
        self.open.insert(request);
        out.push(Command::Settle { item, ticket: Ticket { key: index, request, kind: TicketKind::Side } });
    }
}
