//! Bounded memory: what is left in the log, and reading it again.

use std::collections::HashSet;

use super::{Command, Key, KeyIndex, Phase, Reread, SHORT, SlotQueue, Then, Why, index_from};
use crate::cluster_hook::registration::Delivery;
use crate::driver::RequestId;
use crate::revision::Revision;

impl<P: Clone> SlotQueue<P> {
    /// Leaves a request of the tail in the log.
    pub(super) fn leave_out(&mut self, id: RequestId, index: Option<KeyIndex>) {
        self.missing_from = Some(self.missing_from.map_or(id, |from| from.min(id)));
        match index {
            Some(index) => {
                let key = self.key_mut(index);
                key.closed = true;
                key.tail_last = Some(id);
            }
            None => {
                self.closed = true;
                if let Some(reread) = &mut self.rereading {
                    reread.tail_last = Some(id);
                }
            }
        }
    }

    /// Leaves a request that was read again in the log once more.
    pub(super) fn leave_out_again(&mut self, id: RequestId, index: Option<KeyIndex>) {
        let Some(reread) = &mut self.rereading else { return };
        reread.missing = Some(reread.missing.map_or(id, |from| from.min(id)));
        match index {
            Some(index) => self.key_mut(index).left_out = true,
            None => reread.left_out = true,
        }
    }

    /// Cuts a key that stands still, or the one with the most requests, if that makes room for one of another. Says
    /// whether there is room.
    pub(super) fn make_room(&mut self, wanted: Option<KeyIndex>, thoroughly: bool) -> bool {
        // Once requests of unknown keys are missing, looking for the longest key with each further one would not pay.
        if self.closed && !thoroughly {
            return false;
        }
        let own = wanted.map_or(0, |index| self.key(index).queue.len());
        let longest = self
            .keys
            .iter()
            .enumerate()
            .filter_map(|(index, key)| {
                let key = key.as_ref().filter(|key| key.can_be_cut())?;
                let other = wanted.is_none_or(|wanted| wanted as usize != index);
                Some((other && self.is_at_rest(key), key.queue.len(), index))
            })
            .max();
        let Some((blocked, length, index)) = longest else { return false };
        if !blocked && length <= SHORT.max(own + 1) {
            return false;
        }
        self.cut(index_from(index), length / 2)
    }

    /// Leaves what a key has beyond so many requests in the log, or all but the first where that waits or is dead. Says
    /// whether there was something.
    fn cut(&mut self, index: KeyIndex, most: usize) -> bool {
        let key = self.keys[index as usize].as_mut().expect("found among live keys");
        let kept = match key.phase {
            Phase::Running { covered, .. } => covered.max(most),
            Phase::Settling { then: Then::Finish { covered } | Then::HoldDead { covered }, .. }
            | Phase::Settling { then: Then::HoldUntil { covered, .. }, .. } => covered.max(most),
            Phase::Until { .. } | Phase::Dead => 1,
            Phase::Settling { then: Then::Ready { .. }, .. } | Phase::Idle | Phase::Ready => most,
        };
        let mut cut = false;
        while key.queue.len() > kept.max(1) && key.can_be_cut() {
            let Some(entry) = key.queue.pop_back() else { break };
            self.total -= 1;
            self.open.remove(&entry.id);
            self.missing_from = Some(self.missing_from.map_or(entry.id, |from| from.min(entry.id)));
            key.closed = true;
            // Should the log be read again right now, it may be past this one.
            key.tail_last = key.tail_last.max(Some(entry.id));
            key.left_out = true;
            if let Some(reread) = &mut self.rereading {
                reread.missing = Some(reread.missing.map_or(entry.id, |from| from.min(entry.id)));
            }
            cut = true;
        }
        cut
    }

    /// Whether a further request would change nothing for the key. A `LatestState` key that is dead, or waits for a time that
    /// its hook asked for, goes on with its next one, which may be among what is missing.
    fn stands_still(&self, key: &Key<P>) -> bool {
        match key.phase {
            // All of it is to be handed over.
            _ if self.emptying => false,
            Phase::Dead | Phase::Until { why: Why::RetryAt, .. } => self.delivery == Delivery::EveryChange,
            Phase::Until { why: Why::BackingOff, .. } => true,
            Phase::Idle | Phase::Ready | Phase::Running { .. } | Phase::Settling { .. } => false,
        }
    }

    /// From where the log is to be read again, if there is something missing that could run, and room for it.
    pub(crate) fn wants_reread(&self) -> Option<Revision> {
        let missing = self.missing_from.filter(|_| self.rereading.is_none() && !self.loading)?;
        // A pass that found no room is not repeated before something has gone.
        if self.barren.is_some_and(|total| self.total >= total) {
            return None;
        }
        let unstored = |key: &Key<P>| key.queue.iter().filter(|entry| !entry.stored).count();
        let few = |key: &Key<P>| key.queue.len() <= 1 || self.emptying && unstored(key) == 0;
        let hungry = |key: &Key<P>| key.closed && !self.stands_still(key) && few(key);
        // What stands behind a wait or a dead letter makes room when it is read.
        let blocked = || -> usize { self.keys.iter().flatten().filter(|key| self.is_at_rest(key)).map(unstored).sum() };
        let wanted = self.closed && self.total - blocked() <= self.bound / 2 || self.keys.iter().flatten().any(hungry);
        wanted.then(|| Revision(missing.revision.0.saturating_sub(1)))
    }

    /// The log is read again from where [`SlotQueue::wants_reread`] said.
    pub(crate) fn reread_begins(&mut self) {
        self.rereading = Some(Reread::default());
        self.barren = None;
        for key in self.keys.iter_mut().flatten() {
            key.left_out = false;
            key.tail_last = None;
        }
    }

    /// A request that was read again; `finished` has those with receipts.
    pub(crate) fn reread(
        &mut self,
        id: RequestId,
        key: &str,
        cause: P,
        finished: &HashSet<RequestId>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(reread) = &self.rereading else { return };
        let is_elsewhere = self.handed_over.contains(&id);
        if is_elsewhere || self.open.contains(&id) || finished.contains(&id) || reread.finished.contains(&id) {
            return;
        }
        let index = self.by_name.get(key).copied();
        let again = match index {
            Some(index) => {
                let key = self.key(index);
                if !key.closed || self.knows(key, id) {
                    return;
                }
                // What stands behind a wait or a dead letter would only fill the memory.
                key.left_out || self.stands_still(key) && !key.queue.is_empty()
            }
            None => reread.left_out,
        };
        // An absent key that nothing is missing of can't have an unfinished request, so it is a closed slot's.
        if index.is_none() && !self.closed {
            return;
        }
        if again || self.total >= self.bound && !self.make_room(index, true) {
            self.leave_out_again(id, index);
            return;
        }
        let index = index.unwrap_or_else(|| self.index_of(key));
        // Until the reread is over the tail must not overtake it; and what the tail left out while the key was not in
        // memory may have been of this key.
        let tail_last = self.rereading.as_mut().and_then(|reread| {
            reread.accepted = true;
            reread.tail_last
        });
        let key = self.key_mut(index);
        if !key.closed {
            key.closed = true;
            key.tail_last = tail_last;
        }
        self.take_in(index, id, cause);
        self.noticed(index, id, out);
        for (action_id, action) in self.missing_actions.remove(&id).unwrap_or_default() {
            self.act(action_id, id, action, out);
        }
    }

    /// Whether a request may be among what is left in the log.
    pub(super) fn may_miss(&self, request: RequestId) -> bool {
        self.missing_from.is_some_and(|from| from <= request)
    }

    /// The log was read again up to `read_to`. What the tail brought above that and was left out stays missing.
    pub(crate) fn reread_ends(&mut self, read_to: Revision) {
        let Some(reread) = self.rereading.take() else { return };
        let above = |last: Option<RequestId>| last.filter(|last| last.revision > read_to);
        let mut missing = reread.missing;
        let mut also_missing = |last: Option<RequestId>| {
            if let Some(last) = above(last) {
                let first = RequestId { revision: read_to.next(), sequence: 0, hook: last.hook };
                missing = Some(missing.map_or(first, |from| from.min(first)));
            }
        };
        also_missing(reread.tail_last);
        // What came after the end of the reading had no chance yet: for that it is read again as soon as may be.
        self.barren = (reread.missing.is_some() && !reread.accepted).then_some(self.total);
        self.closed = reread.left_out || above(reread.tail_last).is_some();
        for key in self.keys.iter_mut().flatten() {
            also_missing(key.tail_last);
            key.closed = key.left_out || above(key.tail_last).is_some();
        }
        self.missing_from = missing;
        self.missing_actions.retain(|target, _| missing.is_some_and(|from| from <= *target));
        for index in 0..self.keys.len() {
            if self.keys[index].is_some() {
                self.forget_if_idle(index_from(index));
            }
        }
    }

    /// The log could not be read again; what is missing stays so.
    pub(crate) fn reread_failed(&mut self) {
        self.rereading = None;
    }

    /// The slot has looked at every row up to here.
    pub(crate) fn passed(&mut self, revision: Revision) {
        self.position = self.position.max(revision);
    }

    /// Every request of the slot at or below this has a durable receipt or exception.
    pub(crate) fn watermark(&self) -> Revision {
        let below = |id: &RequestId| Revision(id.revision.0.saturating_sub(1));
        let open = self.open.first().map_or(self.position, below);
        let missing = self.missing_from.as_ref().map_or(self.position, below);
        self.position.min(open).min(missing)
    }

    /// From now on nothing is to be missing: what stands behind a wait or a dead letter is copied out of the log, at most
    /// `most` at once, to make room for what has been left in it.
    pub(crate) fn empty(&mut self, most: usize, out: &mut Vec<Command<P>>) {
        self.emptying = true;
        self.park(self.position, most, out);
    }

    /// Sets how many requests are kept in memory. What is there beyond that is left in the log, but for a few of each key.
    pub(crate) fn set_bound(&mut self, bound: usize) {
        self.bound = bound.max(1);
        let mut most = self.keys.iter().flatten().map(|key| key.queue.len()).max().unwrap_or(0);
        // The longest first. Key by key until there is room would look through all of them with each.
        while self.total > self.bound && most > SHORT {
            most = SHORT.max(most / 2);
            for index in 0..self.keys.len() {
                if self.total > self.bound && self.keys[index].as_ref().is_some_and(|key| key.queue.len() > most) {
                    self.cut(index_from(index), most);
                }
            }
        }
    }
}
