//! Giving slots up: to spread, to drain, when the hook's layout changes.
//!
//! Invariant: a slot is released only when nothing runs in it and everything of it is durable. A slot that is given up
//! for balance and can't come to rest within the hand-over limit goes on instead: no key stands still for another's
//! long run.

use std::time::{Duration, Instant};

use super::{Event, Owner, Reason, Retiring, SlotState};
use crate::cluster_hook::key_queue::RunEnd;
use crate::cluster_hook::points;
use crate::cluster_hook::slots::RETIRED;
use crate::driver::{DriverError, Fence, SlotId};

/// How long a cancelled run may go on cleaning up before its task ends.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// How long a slot's other keys may stand still for a run that is going, where the slot is given up for balance.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(2);
/// After that, for so long it is not tried again.
const STAYS_FOR: Duration = Duration::from_secs(30);
/// The shortest pause between two looks at the cluster.
pub(super) const LOOK_MIN: Duration = Duration::from_millis(20);

impl Owner {
    /// Starts nothing more in a slot, and releases it when it is quiet.
    pub(super) fn stop_slot(&mut self, id: SlotId, reason: Reason) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        match &mut slot.stopping {
            Some((was, _)) => {
                if reason == Reason::Must {
                    *was = Reason::Must;
                }
            }
            None => {
                slot.stopping = Some((reason, Instant::now()));
                slot.last_raise = false;
                self.settlements.hurry();
            }
        }
    }

    /// Releases the stopped slots that are quiet; lets those go on that can't come to rest.
    pub(super) fn give_up_slots(&mut self) {
        let position = self.position;
        let mut release = Vec::new();
        let mut raises = Vec::new();
        let mut retired = Vec::new();
        for (id, slot) in &mut self.slots {
            let Some((reason, since)) = slot.stopping else { continue };
            if let SlotState::Permit = slot.state {
                // Of a hook that was withdrawn while it was being leased nothing runs, and nobody counts by it.
                let mut hook = self.hooks.get_mut(&id.hook);
                let is_free = hook
                    .as_ref()
                    .is_none_or(|hook| reason == Reason::Must && hook.running == 0 || hook.running < hook.permits);
                if is_free && slot.outstanding == 0 {
                    if let Some(hook) = &mut hook {
                        hook.permits = hook.permits.saturating_sub(1);
                    }
                    slot.state = SlotState::Releasing;
                    release.push(slot.fence);
                } else if reason == Reason::Balance && since.elapsed() > HAND_OVER_LIMIT {
                    slot.stopping = None;
                }
                continue;
            }
            if !slot.is_quiet() {
                if reason == Reason::Balance && since.elapsed() > HAND_OVER_LIMIT {
                    slot.stopping = None;
                    slot.stays_until = Some(Instant::now() + STAYS_FOR);
                }
                continue;
            }
            match slot.retiring {
                Retiring::Due => {
                    retired.push(*id);
                    continue;
                }
                Retiring::Handed => {
                    slot.retiring = Retiring::Left;
                    slot.last_raise = true;
                    slot.watermark = RETIRED;
                    raises.push((slot.fence, RETIRED));
                    continue;
                }
                Retiring::No | Retiring::Left => {}
            }
            if let SlotState::Active(queue) = &mut slot.state
                && !slot.last_raise
            {
                // What it leaves behind is read again by the next owner, so it leaves as little as it can.
                slot.last_raise = true;
                queue.passed(position);
                let to = queue.watermark();
                if to > slot.watermark {
                    slot.watermark = to;
                    raises.push((slot.fence, to));
                    continue;
                }
            }
            slot.state = SlotState::Releasing;
            release.push(slot.fence);
        }
        self.settle_watermarks(raises);
        for id in retired {
            self.hand_to_next_layout(id);
        }
        if release.is_empty() {
            return;
        }
        for fence in &release {
            self.core.options.recorder.slot_released(&self.core.server, *fence);
        }
        let (core, sender) = (self.core.clone(), self.sender.clone());
        self.spawn(async move {
            let _ = core.points.pass(points::SLOT_BEFORE_RELEASE).await;
            if core.stop.is_cancelled() {
                return;
            }
            let result = core.driver.release_slots(&release).await;
            if result.is_err() {
                tokio::time::sleep(LOOK_MIN * 5).await;
            }
            let _ = sender.send(Event::Released { fences: release, result });
        });
    }

    pub(super) fn released(&mut self, fences: Vec<Fence>, result: Result<(), DriverError>) {
        if let Err(error) = result {
            tracing::debug!(%error, "slots can't be released yet");
            let (core, sender) = (self.core.clone(), self.sender.clone());
            let held = |fence: &Fence| self.slots.get(&fence.slot).is_some_and(|slot| slot.fence == *fence);
            let fences: Vec<Fence> = fences.into_iter().filter(held).collect();
            if fences.is_empty() {
                return;
            }
            self.spawn(async move {
                let result = core.driver.release_slots(&fences).await;
                if result.is_err() {
                    tokio::time::sleep(LOOK_MIN * 10).await;
                }
                let _ = sender.send(Event::Released { fences, result });
            });
            return;
        }
        for fence in fences {
            if self.slots.get(&fence.slot).is_some_and(|slot| slot.fence == fence) {
                self.slots.remove(&fence.slot);
                if let Some(hook) = self.hooks.get_mut(&fence.slot.hook) {
                    hook.slots.retain(|slot| *slot != fence.slot);
                }
            }
        }
        self.look_soon();
        self.forget_withdrawn();
    }

    /// Hooks that were withdrawn and have nothing left here are forgotten.
    pub(super) fn forget_withdrawn(&mut self) {
        let slots = &self.slots;
        self.hooks.retain(|number, hook| !hook.withdrawn || slots.keys().any(|slot| slot.hook == *number));
    }

    pub(super) fn proceed_with_drain(&mut self) {
        let Some(drain) = &mut self.drain else { return };
        let late = Instant::now() >= drain.limit;
        if late && !drain.signalled {
            drain.signalled = true;
            for control in self.slots.values().flat_map(|slot| slot.runs.values()) {
                control.revoke();
            }
        }
        if !drain.interrupted && Instant::now() >= drain.limit + GRACE {
            drain.interrupted = true;
            self.interrupt_runs();
        }
        let Some(drain) = &mut self.drain else { return };
        let given_back = self.slots.is_empty() && !self.taking && !self.joining;
        let gave_up_waiting = late && Instant::now() >= drain.limit + GRACE * 5;
        if drain.left || !(given_back || gave_up_waiting) {
            return;
        }
        drain.left = true;
        let Some(membership) = self.membership.take() else {
            self.ended = true;
            return;
        };
        self.core.member.send_replace(None);
        self.core.options.recorder.left(&self.core.server, membership.id);
        let (core, sender) = (self.core.clone(), self.sender.clone());
        self.spawn(async move {
            if let Err(error) = core.driver.leave(membership.id).await {
                tracing::debug!(%error, "leaving failed; the lease runs out by itself");
            }
            let _ = sender.send(Event::Lapsed { server: membership.id });
            let _ = sender.send(Event::Left);
        });
    }

    /// What still runs a while after the drain's limit is handed back, no attempt counted.
    fn interrupt_runs(&mut self) {
        let ids: Vec<SlotId> = self.slots.keys().copied().collect();
        for id in ids {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            let mut runs = std::mem::take(&mut slot.runs);
            for control in runs.values() {
                control.revoke();
            }
            let count = runs.len();
            let Some(queue) = slot.queue_mut() else { continue };
            let now = self.core.clock.now();
            let mut out = Vec::new();
            for (key, run) in queue.runs() {
                if runs.contains_key(&run) {
                    queue.ended(key, run, RunEnd::Interrupted, now, 0.0, &mut out);
                }
            }
            if let Some(hook) = self.hooks.get_mut(&id.hook) {
                hook.running = hook.running.saturating_sub(count);
            }
            // Their tasks end here: another server may start the same requests as soon as the slot is released.
            for (_, control) in runs.drain() {
                control.abort();
            }
            self.obey_queue(id, out);
        }
    }
}
