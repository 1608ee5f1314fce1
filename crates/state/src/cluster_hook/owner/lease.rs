//! The server's lease: joining, heartbeats, and giving everything up when it has ended.
//!
//! Invariant: by its own clocks a server holds its lease for no longer than the database does, since it counts from the
//! last renewal that it sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;

use super::{Event, Owner, Slot, SlotState};
use crate::cluster_hook::balance::OVERLOADED_AFTER;
use crate::cluster_hook::points;
use crate::cluster_hook::run::RunControl;
use crate::driver::{DriverError, Fence, HookLoad, ServerHook, ServerId, ServerLoad, ServerRow, SlotId};
use crate::revision::Timestamp;
use crate::testing::points::Pass;

/// How many heartbeats there are in a lease.
const HEARTBEATS: u32 = 4;
/// How soon a heartbeat or joining that failed is tried again. Joining backs off from there up to the longer one.
const AGAIN: Duration = Duration::from_millis(100);
const JOIN_AGAIN_MAX: Duration = Duration::from_secs(3);

/// This server's place in the cluster.
pub(super) struct Membership {
    pub(super) id: ServerId,
    /// Until when the lease holds, by the machine's own monotonic clock and by the driver's.
    until: Instant,
    until_by_clock: Timestamp,
    next: Instant,
    next_by_clock: Timestamp,
    sending: bool,
    /// Something of the row has changed since it was last sent.
    changed: bool,
    lapsing: bool,
    /// The row with `draining` set has been stored.
    pub(super) known_as_draining: bool,
}

impl Membership {
    pub(super) fn next_by_clock(&self, now: Timestamp) -> Timestamp {
        let lapse = if self.lapsing { Timestamp(i64::MAX) } else { self.until_by_clock };
        if self.sending { lapse } else { lapse.min(self.next_by_clock.max(now)) }
    }

    fn has_ended(&self, now: Timestamp) -> bool {
        Instant::now() >= self.until || now >= self.until_by_clock
    }
}

impl Owner {
    /// Whether runs may be started: the lease holds by every clock.
    pub(super) fn lease_holds(&self, now: Timestamp) -> bool {
        self.membership.as_ref().is_some_and(|membership| !membership.lapsing && !membership.has_ended(now))
    }

    /// What this server says of itself.
    fn row(&self, id: ServerId, until: Timestamp) -> ServerRow {
        let hooks = self
            .hooks
            .iter()
            .filter(|(_, hook)| !hook.withdrawn)
            .map(|(number, hook)| ServerHook {
                hook: *number,
                version: hook.declared.version,
                room: hook.declared.room,
            })
            .collect();
        let mut waiting = Vec::new();
        for (number, hook) in &self.hooks {
            let running = u32::try_from(hook.running).unwrap_or(u32::MAX);
            let load = |keys, since| HookLoad { hook: *number, keys, since, running };
            match (hook.probe, hook.overloaded_at) {
                (Some((since, _)), _) => {
                    let ready: usize =
                        hook.slots.iter().filter_map(|slot| Some(self.slots.get(slot)?.queue()?.ready())).sum();
                    waiting.push(load(ready.max(1) as u64, since));
                }
                (None, Some(at)) => waiting.push(load(0, at)),
                (None, None) => {}
            }
        }
        for load in &waiting {
            self.core.options.recorder.crowded(&self.core.server, load.hook);
        }
        ServerRow {
            id,
            name: self.core.server.clone(),
            lease_until: until,
            draining: self.drain.is_some(),
            hooks,
            load: ServerLoad { waiting },
            applied: self.position,
        }
    }

    /// Whether keys have begun to wait for room since the row was sent: others give slots to who seems to have some, and give
    /// them back once it turns out that it has none. It is told before that wait counts.
    fn has_less_room_than_it_says(&self, now: Timestamp) -> bool {
        self.hooks.values().any(|hook| {
            let waited = hook.probe.map(|(since, _)| now.since(since));
            !hook.said_to_wait && waited.is_some_and(|waited| waited > OVERLOADED_AFTER / 2)
        })
    }

    /// The row has changed: it is sent at once, or this server joins.
    pub(super) fn declare_now(&mut self) {
        if let Some(membership) = &mut self.membership {
            membership.changed = true;
        }
        let now = self.core.clock.now();
        self.heartbeat_if_due(now);
    }

    pub(super) fn heartbeat_if_due(&mut self, now: Timestamp) {
        let lease = self.core.options.lease;
        if self.core.set_back().is_some() {
            // What it leased is of a store that is gone. It joins again once an operator has confirmed that.
            self.lapse("the store was put back");
            return;
        }
        let is_news = self.has_less_room_than_it_says(now);
        match &mut self.membership {
            None => self.join(now),
            Some(membership) => {
                let due = membership.changed
                    || is_news
                    || Instant::now() >= membership.next
                    || now >= membership.next_by_clock;
                if !due || membership.sending || membership.lapsing || membership.has_ended(now) {
                    return;
                }
                membership.sending = true;
                membership.changed = false;
                let id = membership.id;
                let (core, sender) = (self.core.clone(), self.sender.clone());
                let row = self.row(id, now.after(lease));
                for hook in self.hooks.values_mut() {
                    hook.said_to_wait = hook.probe.is_some();
                }
                let sent = Instant::now();
                self.spawn(async move {
                    let (until, draining) = (row.lease_until, row.draining);
                    let passed = core.points.pass(points::SLOT_BEFORE_HEARTBEAT).await;
                    if core.stop.is_cancelled() {
                        return;
                    }
                    let result = if passed == Pass::Cut {
                        Err(DriverError::Unavailable("cut by a test before a heartbeat".to_owned()))
                    } else {
                        core.driver.heartbeat(row).await
                    };
                    let result = match core.points.pass(points::SLOT_AFTER_HEARTBEAT).await {
                        Pass::Go => result,
                        Pass::Cut => Err(DriverError::Unavailable("cut by a test after a heartbeat".to_owned())),
                    };
                    let _ = sender.send(Event::Heartbeat { server: id, sent, until, draining, result });
                });
            }
        }
    }

    fn join(&mut self, now: Timestamp) {
        let has_hooks = self.hooks.values().any(|hook| !hook.withdrawn);
        if self.joining || self.drain.is_some() || !has_hooks {
            return;
        }
        self.joining = true;
        // Another id than ever before: what an earlier life of this server leased is not its own any more.
        let id = ServerId(uuid::Uuid::new_v4());
        let until = now.after(self.core.options.lease);
        let row = self.row(id, until);
        let (core, sender) = (self.core.clone(), self.sender.clone());
        let sent = Instant::now();
        let pause = AGAIN.saturating_mul(1 << self.joins_failed.min(8)).min(JOIN_AGAIN_MAX);
        self.spawn(async move {
            let result = core.driver.join(row).await;
            if result.is_err() {
                tokio::time::sleep(pause).await;
            }
            let _ = sender.send(Event::Joined { server: id, sent, until, result });
        });
    }

    pub(super) fn joined(&mut self, id: ServerId, sent: Instant, until: Timestamp, result: Result<(), DriverError>) {
        self.joining = false;
        if let Err(error) = result {
            self.joins_failed = self.joins_failed.saturating_add(1);
            self.core.note_failed_write(&error);
            // Once in a row: it says that it tries again, and it does.
            if self.joins_failed == 1 {
                tracing::warn!(server = %self.core.server, %error, "this server can't join; it tries again until it can");
            } else {
                tracing::debug!(server = %self.core.server, %error, failures = self.joins_failed, "this server can't join");
            }
            return;
        }
        self.joins_failed = 0;
        let lease = self.core.options.lease;
        let pause = lease / HEARTBEATS;
        self.membership = Some(Membership {
            id,
            until: sent + lease,
            until_by_clock: until,
            next: sent + pause.mul_f64(rand::random_range(0.8..1.0)),
            next_by_clock: Timestamp(until.0 - millis(lease) + millis(pause)),
            sending: false,
            // Hooks may have been declared since the row was made.
            changed: true,
            lapsing: false,
            known_as_draining: false,
        });
        self.runner.lease.renewed(sent + lease, until);
        self.core.options.recorder.joined(&self.core.server, id);
        self.core.member.send_replace(Some(id));
        self.look_soon();
        let now = self.core.clock.now();
        self.suspects_from.get_or_insert(now.after(super::starts::SUSPECTS_AFTER));
        self.heartbeat_if_due(now);
    }

    pub(super) fn heartbeat_answered(
        &mut self,
        id: ServerId,
        sent: Instant,
        until: Timestamp,
        draining: bool,
        result: Result<(), DriverError>,
    ) {
        let lease = self.core.options.lease;
        let Some(membership) = self.membership.as_mut().filter(|membership| membership.id == id) else { return };
        membership.sending = false;
        let pause = lease / HEARTBEATS;
        match result {
            Ok(()) => {
                membership.until = sent + lease;
                membership.until_by_clock = until;
                self.runner.lease.renewed(sent + lease, until);
                membership.next = sent + pause.mul_f64(rand::random_range(0.8..1.0));
                membership.next_by_clock = Timestamp(until.0 - millis(lease) + millis(pause));
                membership.known_as_draining |= draining;
                self.look_soon();
            }
            Err(DriverError::LeaseLapsed) => self.lapse("the store says that its lease has ended"),
            // It is not renewed as long as this build runs.
            Err(error @ (DriverError::NewerFormat { .. } | DriverError::OlderFormat { .. })) => {
                self.lapse(&error.to_string());
            }
            Err(error) => {
                membership.next = Instant::now() + AGAIN;
                membership.next_by_clock = self.core.clock.now().after(pause);
                tracing::debug!(server = %self.core.server, %error, "a heartbeat failed; it is tried again");
            }
        }
    }

    /// Notices that the lease has ended by this server's own clocks.
    pub(super) fn check_lease(&mut self, now: Timestamp) {
        let Some(membership) = &mut self.membership else { return };
        if membership.lapsing || !membership.has_ended(now) {
            return;
        }
        membership.lapsing = true;
        let id = membership.id;
        let (core, sender) = (self.core.clone(), self.sender.clone());
        self.spawn(async move {
            let _ = core.points.pass(points::SLOT_BEFORE_LAPSE).await;
            let _ = sender.send(Event::Lapsed { server: id });
        });
    }

    /// The lease has ended: every token of this server is void. Its runs are cancelled, what they return is refused, and
    /// it joins anew.
    pub(super) fn lapse(&mut self, why: &str) {
        let Some(membership) = self.membership.take() else { return };
        self.core.member.send_replace(None);
        let held = self.slots.len();
        tracing::warn!(server = %self.core.server, id = %membership.id.0, held, "{why}; its slots and runs are given up");
        self.core.metrics.hooks.lapses.inc();
        let slots: Vec<_> = self.slots.keys().copied().collect();
        for slot in slots {
            self.drop_slot(slot);
        }
        self.loads.clear();
        self.rereads.clear();
        self.view = None;
        self.taking = false;
        self.look_soon();
    }

    /// Forgets a slot whose token no longer holds, and cancels its runs.
    pub(super) fn drop_slot(&mut self, id: SlotId) {
        let Some(runs) = self.forget_slot(id) else { return };
        if !runs.is_empty() {
            self.spawn(end_runs(runs));
        }
    }

    /// Nothing of a slot can be stored, though its token may hold: it is released for others once its runs have ended. Its
    /// lease goes on with this server's, so nobody else could have it otherwise.
    pub(super) fn abandon_slot(&mut self, fence: Fence) {
        if self.slots.get(&fence.slot).is_none_or(|slot| slot.fence != fence) {
            return;
        }
        let Some(runs) = self.forget_slot(fence.slot) else { return };
        self.settlements.forget(fence);
        let server = self.core.server.clone();
        tracing::error!(%server, hook = fence.slot.hook.0, slot = fence.slot.slot, "nothing can be stored for a slot; it is given up");
        let core = self.core.clone();
        self.spawn(async move {
            end_runs(runs).await;
            while !core.stop.is_cancelled()
                && let Err(error) = core.driver.release_slots(&[fence]).await
            {
                tracing::debug!(%error, "a slot that was given up can't be released yet");
                tokio::time::sleep(AGAIN).await;
            }
        });
        self.look_soon();
    }

    /// Takes a slot out of what this server has; gives its runs, which are told to end.
    fn forget_slot(&mut self, id: SlotId) -> Option<HashMap<u32, Arc<RunControl>, FixedState>> {
        let Slot { fence, state, runs, .. } = self.slots.remove(&id)?;
        for control in runs.values() {
            control.revoke();
        }
        // Only then: no run begins after that line.
        self.core.options.recorder.slot_lost(&self.core.server, fence);
        if let Some(hook) = self.hooks.get_mut(&id.hook) {
            hook.slots.retain(|slot| *slot != id);
            hook.running = hook.running.saturating_sub(runs.len());
            if matches!(state, SlotState::Permit) {
                hook.permits = hook.permits.saturating_sub(1);
            }
        }
        Some(runs)
    }
}

/// Whoever is cancelled may clean up for a while; then its task ends.
async fn end_runs(runs: HashMap<u32, Arc<RunControl>, FixedState>) {
    if runs.is_empty() {
        return;
    }
    tokio::time::sleep(super::giving_up::GRACE).await;
    for control in runs.values() {
        control.abort();
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod in_step;

#[cfg(test)]
mod tests {
    use super::super::tests::Bench;
    use super::*;
    use crate::revision::{Epoch, Revision};

    #[tokio::test]
    async fn d37_given_a_lease_when_the_store_was_put_back_then_it_is_given_up_and_not_taken_again() {
        let mut bench = Bench::new().await;
        let now = bench.owner.core.clock.now();
        bench.owner.joined(
            ServerId(uuid::Uuid::from_u128(1)),
            Instant::now(),
            now.after(Duration::from_secs(9)),
            Ok(()),
        );
        assert!(bench.owner.lease_holds(now) && !bench.owner.slots.is_empty());
        let (epoch, seen) = (bench.owner.epoch, bench.owner.position);
        let error = DriverError::SetBack { head: Revision::ZERO, seen };
        // Of an epoch that is over: it is about nothing any more.
        bench.owner.core.note_set_back(&error, Epoch(uuid::Uuid::nil())).await;
        bench.owner.carry_on();
        assert!(bench.owner.lease_holds(now));
        bench.owner.core.note_set_back(&error, epoch).await;
        for _ in 0..3 {
            bench.owner.carry_on();
            bench.owner.tick();
        }
        assert!(!bench.owner.lease_holds(now) && bench.owner.slots.is_empty());
        assert!(bench.owner.membership.is_none() && !bench.owner.joining);
    }

    /// A server whose lease ends that much later, and whose next heartbeat is due then.
    fn member(now: Timestamp, later: Duration) -> Membership {
        Membership {
            id: ServerId(uuid::Uuid::from_u128(1)),
            until: Instant::now() + later,
            until_by_clock: now.after(later),
            next: Instant::now() + later,
            next_by_clock: now.after(later),
            sending: false,
            changed: false,
            lapsing: false,
            known_as_draining: false,
        }
    }

    #[tokio::test]
    async fn k29_that_keys_wait_is_told_before_it_counts_and_once() {
        let mut bench = Bench::new().await;
        let now = bench.owner.core.clock.now();
        bench.owner.membership = Some(member(now, Duration::from_secs(1_000)));
        bench.owner.hooks.values_mut().for_each(|hook| hook.probe = Some((now, u64::MAX)));
        let mut is_sent_at = |at: Timestamp| {
            bench.owner.heartbeat_if_due(at);
            std::mem::take(&mut bench.owner.membership.as_mut().unwrap().sending)
        };
        assert!(!is_sent_at(now.after(OVERLOADED_AFTER / 2)), "it may be over in a moment");
        assert!(is_sent_at(now.after(OVERLOADED_AFTER)));
        assert!(!is_sent_at(now.after(OVERLOADED_AFTER * 2)), "it has been told");
    }

    #[tokio::test]
    async fn g8_a_heartbeat_that_is_due_by_the_drivers_clock_alone_is_sent_and_not_waited_for_again() {
        let mut bench = Bench::new().await;
        let now = bench.owner.core.clock.now();
        let later = Duration::from_secs(1_000);
        bench.owner.membership = Some(member(now, later));
        bench.owner.membership.as_mut().unwrap().next_by_clock = now;
        bench.owner.carry_on();
        assert!(bench.owner.membership.as_ref().unwrap().sending);
        let (planned, _) = bench.owner.clock_wait.as_ref().unwrap();
        assert!(*planned > now, "a wait that is over at once, again and again, leaves no time for anything else");
    }
}
