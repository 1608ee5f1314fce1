//! Times, requests set aside, and handing over to the slots of another layout.

use std::sync::Arc;

use super::{Command, Item, Phase, SlotQueue, Ticket, TicketKind, Why, index_from};
use crate::cluster_hook::registration::Delivery;
use crate::driver::ExceptionState;
use crate::revision::{Revision, Timestamp};

impl<P: Clone> SlotQueue<P> {
    /// Requests whose time has come may start.
    pub(crate) fn wake(&mut self, now: Timestamp) {
        while let Some(&(at, index)) = self.timers.first() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(key) = self.keys[index as usize].as_ref() else { continue };
            if matches!(key.phase, Phase::Until { at: until, .. } if until <= now) {
                self.barren = None;
                self.make_ready(index);
            }
        }
    }

    /// When [`SlotQueue::wake`] has something to do next.
    pub(crate) fn next_timer(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Copies requests that stand behind a dead letter or a wait, and came at or before `until`, out of the log, so that
    /// the watermark can pass them. At most `most` at once.
    pub(crate) fn park(&mut self, until: Revision, most: usize, out: &mut Vec<Command<P>>) {
        if self.open.first().is_none_or(|first| first.revision > until) {
            return;
        }
        let mut left = most;
        for index in 0..self.keys.len() {
            if self.keys[index].as_ref().is_none_or(|key| !self.is_at_rest(key)) {
                continue;
            }
            let Some(key) = &mut self.keys[index] else { continue };
            for entry in &mut key.queue {
                if entry.stored || entry.parking || entry.id.revision > until {
                    continue;
                }
                if left == 0 {
                    return;
                }
                left -= 1;
                entry.parking = true;
                key.parking += 1;
                let item = Item::Exception {
                    request: entry.id,
                    state: ExceptionState::Parked,
                    attempts: 0,
                    deaths: 0,
                    error: None,
                    cause: entry.cause.clone(),
                };
                let ticket = Ticket { key: index_from(index), request: entry.id, kind: TicketKind::Park };
                out.push(Command::Settle { item, ticket });
            }
        }
    }

    /// Copies everything that is left out of the log, for the slots of the next layout to take over. Nothing may be
    /// running or being stored, and nothing missing. Gives the requests with their keys.
    pub(crate) fn drain_all(&self) -> Vec<(Arc<str>, Item<P>)> {
        let mut items = Vec::new();
        for key in self.keys.iter().flatten() {
            for (at, entry) in key.queue.iter().enumerate() {
                let governs = match self.delivery {
                    Delivery::EveryChange => at == 0,
                    Delivery::LatestState => entry.stored,
                };
                let state = match (&key.phase, governs) {
                    (Phase::Until { at, why: Why::RetryAt }, true) => ExceptionState::Waiting { until: *at },
                    (Phase::Until { at, why: Why::BackingOff }, true) => ExceptionState::BackingOff { until: *at },
                    (Phase::Dead, true) => ExceptionState::Dead,
                    (_, true | false) => ExceptionState::Parked,
                };
                let (attempts, deaths, error) =
                    if governs { (key.attempts, key.deaths, key.error.clone()) } else { (0, 0, None) };
                let cause = entry.cause.clone();
                items.push((
                    key.name.clone(),
                    Item::Exception { request: entry.id, state, attempts, deaths, error, cause },
                ));
            }
        }
        items
    }
}
