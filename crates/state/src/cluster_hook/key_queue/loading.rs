//! Filling a slot's memory with what its owner before left: exceptions first, then the log's requests.

use super::{Command, DEATHS_MAX, Entry, Held, KeyIndex, Phase, SlotQueue, Then, Why, index_from};
use crate::cluster_hook::registration::Delivery;
use crate::driver::{ExceptionState, RequestId};
use crate::revision::{Revision, Timestamp};

impl<P: Clone> SlotQueue<P> {
    /// A request that the slot's exceptions name. Before any [`SlotQueue::request`].
    pub(crate) fn load_exception(
        &mut self,
        request: RequestId,
        key: &str,
        state: ExceptionState,
        (attempts, deaths): (u32, u32),
        error: Option<String>,
        cause: P,
    ) {
        let index = self.index_of(key);
        let key = self.key_mut(index);
        if key.held.iter().any(|held| held.request == request) {
            return;
        }
        key.held.push(Held { request, state, attempts, deaths, error });
        let at = key.queue.partition_point(|entry| entry.id < request);
        key.queue.insert(at, Entry { id: request, cause, stored: true, parking: false });
    }

    /// A request that the slot's owner before has handed to the next layout. Before any [`SlotQueue::request`].
    pub(crate) fn load_handed_over(&mut self, request: RequestId) {
        self.handed_over.insert(request);
    }

    /// Ends the loading: everything up to `head` was given. `crashed` says that the owner before did not release the
    /// slot, so the first requests of the keys may have been running when it died.
    pub(crate) fn activate(&mut self, now: Timestamp, head: Revision, crashed: bool, out: &mut Vec<Command<P>>) {
        self.loading = false;
        self.position = self.position.max(head);
        for index in 0..self.keys.len() {
            let at = index_from(index);
            let Some(key) = self.keys[index].as_mut() else { continue };
            let held = std::mem::take(&mut key.held);
            let governing = match self.delivery {
                Delivery::EveryChange => {
                    key.queue.front().and_then(|front| held.iter().find(|held| held.request == front.id))
                }
                Delivery::LatestState => {
                    held.iter().filter(|held| held.state != ExceptionState::Parked).max_by_key(|held| held.request)
                }
            };
            let newer = governing.is_some_and(|held| key.queue.back().is_some_and(|last| last.id > held.request));
            let revived = self.delivery == Delivery::LatestState && newer;
            let state = governing.map(|held| held.state.clone());
            if let Some(held) = governing {
                (key.attempts, key.deaths, key.error) = (held.attempts, held.deaths, held.error.clone());
            }
            let phase = match state {
                Some(ExceptionState::Dead) if revived => {
                    (key.attempts, key.deaths, key.error) = (0, 0, None);
                    Phase::Ready
                }
                Some(ExceptionState::Dead) => Phase::Dead,
                Some(ExceptionState::Waiting { .. }) if revived => Phase::Ready,
                Some(ExceptionState::Waiting { until }) if until > now => Phase::Until { at: until, why: Why::RetryAt },
                Some(ExceptionState::BackingOff { until }) if until > now => {
                    Phase::Until { at: until, why: Why::BackingOff }
                }
                Some(
                    ExceptionState::Waiting { .. }
                    | ExceptionState::BackingOff { .. }
                    | ExceptionState::Parked
                    | ExceptionState::Started,
                )
                | None => Phase::Ready,
            };
            match phase {
                _ if key.queue.is_empty() => key.phase = Phase::Idle,
                Phase::Ready => {
                    if crashed {
                        // Only a start mark is certain to say that it ran; without one a request is a suspect once.
                        key.deaths = match (&state, key.deaths) {
                            (Some(ExceptionState::Started), deaths) => deaths + 1,
                            (_, 0) => 1,
                            (_, deaths) => deaths,
                        };
                    }
                    if key.deaths >= DEATHS_MAX {
                        let error = format!(
                            "{} servers died while it may have been running, so it is not given to another one",
                            key.deaths
                        );
                        self.hold_dead_now(at, error, out);
                    } else {
                        self.make_ready(at);
                    }
                }
                Phase::Until { at: until, .. } => {
                    key.phase = phase;
                    self.timers.insert((until, at));
                }
                Phase::Dead | Phase::Idle | Phase::Running { .. } | Phase::Settling { .. } => key.phase = phase,
            }
        }
        for index in 0..self.keys.len() {
            if self.keys[index].as_ref().is_some_and(|key| !matches!(key.phase, Phase::Settling { .. })) {
                self.act_on_deferred(index_from(index), out);
            }
        }
    }

    pub(super) fn hold_dead_now(&mut self, index: KeyIndex, error: String, out: &mut Vec<Command<P>>) {
        let covered = match self.delivery {
            Delivery::EveryChange => 1,
            Delivery::LatestState => self.key(index).queue.len(),
        };
        self.key_mut(index).error = Some(error);
        self.settle_held(index, covered, ExceptionState::Dead, Then::HoldDead { covered }, out);
    }
}
