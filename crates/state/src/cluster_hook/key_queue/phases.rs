//! What a key does next when what it waited for is durable.

use super::{Command, Item, KeyIndex, Phase, SlotQueue, Then, Why, count, phase_ticket};
use crate::cluster_hook::registration::Delivery;
use crate::driver::{ExceptionState, ReceiptOutcome, RequestId};

impl<P: Clone> SlotQueue<P> {
    /// All that a key waited for is durable.
    pub(super) fn advance(&mut self, index: KeyIndex, then: Then, out: &mut Vec<Command<P>>) {
        if self.key(index).closed || matches!(then, Then::HoldUntil { .. } | Then::HoldDead { .. }) {
            self.barren = None;
        }
        let latest = self.delivery == Delivery::LatestState;
        match then {
            Then::Finish { covered } => {
                self.pop(index, covered);
                let key = self.key_mut(index);
                (key.attempts, key.deaths, key.error) = (0, 0, None);
                self.next(index);
            }
            Then::HoldUntil { covered, at, why } => {
                self.pop(index, covered - 1);
                self.front_is_stored(index);
                let newer = self.key(index).queue.len() > 1;
                if latest && newer && why == Why::RetryAt {
                    self.make_ready(index);
                } else {
                    self.set_phase(index, Phase::Until { at, why });
                    self.timers.insert((at, index));
                }
            }
            Then::HoldDead { covered } => {
                self.pop(index, covered - 1);
                self.front_is_stored(index);
                self.set_phase(index, Phase::Dead);
                if latest && self.key(index).queue.len() > 1 {
                    self.revive(index, out);
                }
            }
            Then::Ready { marked } => {
                self.front_is_stored(index);
                self.make_ready(index);
                let key = self.key_mut(index);
                key.marked = marked;
                if marked {
                    // A marked suspect goes first, so that no time passes in which it is blamed without running.
                    self.ready.retain(|ready| *ready != index);
                    self.ready.push_front(index);
                }
            }
        }
        self.act_on_deferred(index, out);
    }

    pub(super) fn act_on_deferred(&mut self, index: KeyIndex, out: &mut Vec<Command<P>>) {
        let deferred = match self.keys[index as usize].as_mut() {
            Some(key) if !key.deferred.is_empty() => std::mem::take(&mut key.deferred),
            Some(_) | None => return,
        };
        for (id, target, action) in deferred {
            self.open.remove(&id);
            self.act(id, target, action, out);
        }
    }

    /// It has a durable receipt or exception.
    pub(super) fn close(&mut self, request: RequestId) {
        self.open.remove(&request);
        if let Some(reread) = &mut self.rereading {
            reread.finished.insert(request);
        }
    }

    pub(super) fn pop(&mut self, index: KeyIndex, count: usize) {
        for _ in 0..count {
            let Some(entry) = self.key_mut(index).queue.pop_front() else { return };
            self.total -= usize::from(!entry.stored);
            self.close(entry.id);
            self.spent.push(entry.cause);
        }
    }

    pub(super) fn front_is_stored(&mut self, index: KeyIndex) {
        if let Some(front) = self.key_mut(index).queue.front_mut() {
            let (id, was_stored) = (front.id, front.stored);
            front.stored = true;
            self.total -= usize::from(!was_stored);
            self.close(id);
        }
    }

    /// The key's next request may start, if there is one.
    pub(super) fn next(&mut self, index: KeyIndex) {
        let key = self.key_mut(index);
        key.marked = false;
        if key.queue.is_empty() {
            self.set_phase(index, Phase::Idle);
            self.forget_if_idle(index);
        } else {
            self.make_ready(index);
        }
    }

    pub(super) fn forget_if_idle(&mut self, index: KeyIndex) {
        let key = self.key(index);
        let idle = key.phase == Phase::Idle && key.queue.is_empty() && key.deferred.is_empty();
        // Its place is not given away while copies are on their way: what comes back would be taken for another key's.
        if idle && !key.closed && !key.in_ready && key.parking == 0 {
            let name = key.name.clone();
            self.by_name.remove(&name);
            self.keys[index as usize] = None;
            self.free.push(index);
        }
    }

    pub(super) fn settle_receipts(
        &mut self,
        index: KeyIndex,
        covered: usize,
        outcome: impl Fn(RequestId) -> ReceiptOutcome,
        out: &mut Vec<Command<P>>,
    ) {
        let outstanding = count(covered);
        let key = self.key(index);
        for entry in key.queue.iter().take(covered) {
            let item = Item::Receipt { request: entry.id, outcome: outcome(entry.id) };
            out.push(Command::Settle { item, ticket: phase_ticket(index, entry.id) });
        }
        self.set_phase(index, Phase::Settling { outstanding, then: Then::Finish { covered } });
    }

    /// Of the covered requests the last is held as an exception, which stands for the others too.
    pub(super) fn settle_held(
        &mut self,
        index: KeyIndex,
        covered: usize,
        state: ExceptionState,
        then: Then,
        out: &mut Vec<Command<P>>,
    ) {
        let key = self.key(index);
        for entry in key.queue.iter().take(covered - 1) {
            let item = Item::Receipt { request: entry.id, outcome: ReceiptOutcome::Coalesced };
            out.push(Command::Settle { item, ticket: phase_ticket(index, entry.id) });
        }
        let entry = &key.queue[covered - 1];
        let item = Item::Exception {
            request: entry.id,
            state,
            attempts: key.attempts,
            deaths: key.deaths,
            error: key.error.clone(),
            cause: entry.cause.clone(),
        };
        out.push(Command::Settle { item, ticket: phase_ticket(index, entry.id) });
        self.set_phase(index, Phase::Settling { outstanding: count(covered), then });
    }

    pub(super) fn settle_front(
        &mut self,
        index: KeyIndex,
        state: ExceptionState,
        then: Then,
        out: &mut Vec<Command<P>>,
    ) {
        let covered = 1;
        self.settle_held(index, covered, state, then, out);
    }

    pub(super) fn make_ready(&mut self, index: KeyIndex) {
        self.set_phase(index, Phase::Ready);
        let key = self.key_mut(index);
        if !key.in_ready {
            key.in_ready = true;
            self.ready.push_back(index);
        }
    }

    pub(super) fn set_phase(&mut self, index: KeyIndex, phase: Phase) {
        let key = self.keys[index as usize].as_mut().expect("phases are set of live keys only");
        let was = std::mem::replace(&mut key.phase, phase);
        let now_running = matches!(key.phase, Phase::Running { .. });
        let now_settling = matches!(key.phase, Phase::Settling { .. });
        let was_running = matches!(was, Phase::Running { .. });
        self.running = self.running + usize::from(now_running) - usize::from(was_running);
        self.settling = self.settling + usize::from(now_settling) - usize::from(matches!(was, Phase::Settling { .. }));
        // From its start mark to the end of its run the suspect is the only one.
        let about_to_run =
            matches!(key.phase, Phase::Settling { then: Then::Ready { marked: true }, .. } | Phase::Ready)
                && !was_running;
        if key.isolated && !about_to_run && !now_running {
            key.isolated = false;
            self.isolated -= 1;
        }
    }
}
