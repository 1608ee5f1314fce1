//! Starting runs, and what their ends ask to be stored.

use super::{
    Cancelled, Command, DEATHS_ISOLATED, KeyIndex, Phase, RUNS_MAX, RunEnd, SlotQueue, Stage, Started, Then, Ticket,
    TicketKind, Why, action_done,
};
use crate::cluster_hook::registration::Delivery;
use crate::driver::{ExceptionState, ReceiptOutcome, RequestAction, RequestId};
use crate::revision::{Revision, Timestamp};

impl<P: Clone> SlotQueue<P> {
    /// The next run to start: the first request of the key whose turn it is. `snapshot` is what the run will read;
    /// `isolated_allowed` says that a request which several servers have died with may run here, and that no other such
    /// one does.
    pub(crate) fn start(
        &mut self,
        snapshot: Revision,
        isolated_allowed: bool,
        out: &mut Vec<Command<P>>,
    ) -> Option<Started<P>> {
        if self.is_partly_handed_over() {
            return None;
        }
        if isolated_allowed {
            for index in std::mem::take(&mut self.set_aside) {
                self.ready.push_back(index);
            }
        }
        let mut turns = self.ready.len();
        while turns > 0 && self.counter < RUNS_MAX {
            turns -= 1;
            let index = self.ready.pop_front()?;
            let latest = self.delivery == Delivery::LatestState;
            let others_isolated = self.isolated > 0;
            let key = self.key_mut(index);
            key.in_ready = false;
            if key.phase != Phase::Ready {
                if key.phase == Phase::Idle {
                    self.forget_if_idle(index);
                }
                continue;
            }
            // In line again once the copies are durable.
            if key.parking > 0 {
                continue;
            }
            let Some(front) = key.queue.front() else { continue };
            if front.id.revision > snapshot {
                key.in_ready = true;
                self.ready.push_back(index);
                continue;
            }
            if key.deaths > 0 && !key.marked {
                let isolated = key.deaths >= DEATHS_ISOLATED;
                if isolated && (!isolated_allowed || others_isolated) {
                    key.in_ready = true;
                    self.set_aside.push(index);
                    continue;
                }
                key.isolated = isolated;
                self.isolated += usize::from(isolated);
                self.settle_front(index, ExceptionState::Started, Then::Ready { marked: true }, out);
                continue;
            }
            let covered =
                if latest { key.queue.iter().take_while(|entry| entry.id.revision <= snapshot).count() } else { 1 };
            let (name, attempt) = (key.name.clone(), key.attempts.saturating_add(1));
            let lead = &key.queue[covered - 1];
            let (request, cause) = (lead.id, lead.cause.clone());
            self.counter += 1;
            let run = self.counter;
            let stage = Stage::Going { snapshot };
            self.set_phase(index, Phase::Running { run, lead: request, covered, stage, cancelled: None });
            return Some(Started { key: index, run, name, request, cause, attempt });
        }
        None
    }

    /// The end of a run is to be committed together with its writes: gives the requests that it finishes or holds, the one
    /// that it was given last. From here on it covers no other. Then [`SlotQueue::committed`], or [`SlotQueue::ended`] if
    /// the commit failed. None, and nothing is to be committed, if this is not the run that goes or an operator has
    /// cancelled it.
    pub(crate) fn commit_begins(&mut self, index: KeyIndex, run: u32) -> Option<Vec<RequestId>> {
        let key = self.keys.get_mut(index as usize)?.as_mut()?;
        match &mut key.phase {
            Phase::Running { run: going, covered, stage, cancelled: None, .. } if *going == run => {
                *stage = Stage::Committing;
                Some(key.queue.iter().take(*covered).map(|entry| entry.id).collect())
            }
            Phase::Idle
            | Phase::Ready
            | Phase::Running { .. }
            | Phase::Settling { .. }
            | Phase::Until { .. }
            | Phase::Dead => None,
        }
    }

    /// What a run's request was asked by; for exceptions that commit together with writes.
    pub(crate) fn cause(&self, index: KeyIndex, request: RequestId) -> Option<&P> {
        let key = self.keys.get(index as usize)?.as_ref()?;
        key.queue.iter().find(|entry| entry.id == request).map(|entry| &entry.cause)
    }

    /// A run has ended. `jitter` from 0 to 1 is for its backoff.
    pub(crate) fn ended(
        &mut self,
        index: KeyIndex,
        run: u32,
        end: RunEnd,
        now: Timestamp,
        jitter: f64,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(key) = self.keys.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Phase::Running { run: going, lead, covered, cancelled, .. } = key.phase else { return };
        if going != run {
            return;
        }
        if let Some(Cancelled { action, target }) = cancelled {
            let covered = key.queue.iter().take(covered).take_while(|entry| entry.id <= target).count();
            self.settle_receipts(index, covered, |_| ReceiptOutcome::Cancelled, out);
            self.action_receipt(index, action, out);
            return;
        }
        match end {
            RunEnd::Done => {
                let outcome = |id| if id == lead { ReceiptOutcome::Done } else { ReceiptOutcome::Coalesced };
                self.settle_receipts(index, covered, outcome, out);
            }
            RunEnd::RetryAt(at) => {
                (key.attempts, key.deaths, key.error) = (0, 0, None);
                let then = Then::HoldUntil { covered, at, why: Why::RetryAt };
                self.settle_held(index, covered, ExceptionState::Waiting { until: at }, then, out);
            }
            RunEnd::Failed(error) => {
                key.attempts = key.attempts.saturating_add(1);
                key.error = Some(error);
                let failed = key.attempts;
                if self.retry.attempts.is_some_and(|attempts| failed >= attempts) {
                    self.settle_held(index, covered, ExceptionState::Dead, Then::HoldDead { covered }, out);
                } else {
                    let at = now.after(self.retry.delay(failed, jitter));
                    let then = Then::HoldUntil { covered, at, why: Why::BackingOff };
                    self.settle_held(index, covered, ExceptionState::BackingOff { until: at }, then, out);
                }
            }
            RunEnd::Interrupted => self.make_ready(index),
        }
    }

    /// A run's end was committed together with its writes; everything that it covers is durable.
    pub(crate) fn committed(
        &mut self,
        index: KeyIndex,
        run: u32,
        retry_at: Option<Timestamp>,
        out: &mut Vec<Command<P>>,
    ) {
        let Some(key) = self.keys.get_mut(index as usize).and_then(Option::as_mut) else { return };
        let Phase::Running { run: going, covered, stage: Stage::Committing, cancelled, .. } = key.phase else { return };
        if going != run {
            return;
        }
        let mut too_late = None;
        let then = match retry_at {
            None => {
                too_late = cancelled.map(|cancelled| cancelled.action);
                Then::Finish { covered }
            }
            Some(at) => {
                (key.attempts, key.deaths, key.error) = (0, 0, None);
                // What an operator did meanwhile is for the request that waits now.
                let held = key.queue.get(covered - 1).map(|held| held.id);
                match cancelled {
                    Some(Cancelled { action, target }) if Some(target) == held => {
                        key.deferred.push((action, target, RequestAction::Cancel));
                    }
                    Some(Cancelled { action, .. }) => too_late = Some(action),
                    None => {}
                }
                Then::HoldUntil { covered, at, why: Why::RetryAt }
            }
        };
        if let Some(action) = too_late {
            self.side(index, action, action_done(action), out);
        }
        self.set_phase(index, Phase::Settling { outstanding: 0, then });
        self.advance(index, then, out);
    }

    /// An item is durable.
    pub(crate) fn settled(&mut self, ticket: Ticket, out: &mut Vec<Command<P>>) {
        match ticket.kind {
            TicketKind::Side => self.close(ticket.request),
            TicketKind::Park => {
                self.close(ticket.request);
                let Some(key) = self.keys.get_mut(ticket.key as usize).and_then(Option::as_mut) else { return };
                if let Ok(at) = key.queue.binary_search_by(|entry| entry.id.cmp(&ticket.request)) {
                    self.total -= usize::from(!key.queue[at].stored);
                    key.queue[at].stored = true;
                }
                key.parking = key.parking.saturating_sub(1);
                match key.phase {
                    Phase::Ready if key.parking == 0 => self.make_ready(ticket.key),
                    Phase::Idle => self.forget_if_idle(ticket.key),
                    Phase::Ready
                    | Phase::Running { .. }
                    | Phase::Settling { .. }
                    | Phase::Until { .. }
                    | Phase::Dead => {}
                }
            }
            TicketKind::Phase => {
                let Some(key) = self.keys.get_mut(ticket.key as usize).and_then(Option::as_mut) else { return };
                let Phase::Settling { outstanding, then } = &mut key.phase else { return };
                *outstanding = outstanding.saturating_sub(1);
                let (left, then) = (*outstanding, *then);
                // Receipts of actions are no entries of the queue, and are closed here.
                if key.queue.binary_search_by(|entry| entry.id.cmp(&ticket.request)).is_err() {
                    self.open.remove(&ticket.request);
                }
                if left == 0 {
                    self.advance(ticket.key, then, out);
                }
            }
        }
    }
}
