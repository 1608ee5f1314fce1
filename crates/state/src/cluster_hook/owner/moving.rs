//! Looking at the cluster, and leasing what this server should have of it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::giving_up::LOOK_MIN;
use super::{Event, Owner, Reason, Slot, SlotState, View};
use crate::cluster_hook::balance;
use crate::cluster_hook::key_queue::{RetryPolicy, SlotQueue};
use crate::cluster_hook::points;
use crate::cluster_hook::slots::{RETIRED, is_permit, permit};
use crate::driver::{Fence, HookNumber, ServerId, ServerRow, SlotId, SlotRow};
use crate::revision::Timestamp;

impl Owner {
    /// Something has changed that may move slots.
    pub(super) fn look_soon(&mut self) {
        self.next_view = self.next_view.min(Instant::now() + LOOK_MIN);
    }

    pub(super) fn look_if_due(&mut self) {
        if self.viewing || self.taking || Instant::now() < self.next_view {
            return;
        }
        let Some(server) = self.membership.as_ref().map(|membership| membership.id) else { return };
        self.viewing = true;
        let (core, sender) = (self.core.clone(), self.sender.clone());
        self.spawn(async move {
            let event = match core.driver.cluster().await {
                Ok((servers, slots)) => Event::View { server, servers, slots, taken: false },
                Err(error) => {
                    tracing::debug!(%error, "the cluster can't be looked at");
                    Event::ViewFailed { taken: false }
                }
            };
            let _ = sender.send(event);
        });
        self.next_view = Instant::now() + self.core.options.poll.mul_f64(rand::random_range(0.8..1.2));
    }

    pub(super) fn viewed(&mut self, server: ServerId, servers: Vec<ServerRow>, slots: Vec<SlotRow>, taken: bool) {
        if taken {
            self.taking = false;
        } else {
            self.viewing = false;
        }
        if self.membership.as_ref().is_none_or(|membership| membership.id != server) {
            return;
        }
        let crashed: HashSet<SlotId> = match &self.view {
            Some(before) if taken => {
                before.rows.values().filter(|row| row.owner.is_some()).map(|row| row.slot).collect()
            }
            Some(_) | None => HashSet::new(),
        };
        let rows: HashMap<SlotId, SlotRow> = slots.into_iter().map(|row| (row.slot, row)).collect();
        if taken {
            self.adopt(server, &rows, &crashed);
        }
        // A lease whose answer was lost shows here: it is taken up by looking again as after taking.
        let unknown =
            rows.values().any(|row| row.owner == Some(server) && Some(row.token) > self.highest_token(server));
        self.view = Some(View { servers, rows });
        self.plan(server, unknown && !taken);
    }

    fn highest_token(&self, server: ServerId) -> Option<crate::driver::SlotToken> {
        self.adopted.filter(|(of, _)| *of == server).map(|(_, token)| token)
    }

    /// Takes up the slots that this server leases and did not know of.
    fn adopt(&mut self, server: ServerId, rows: &HashMap<SlotId, SlotRow>, crashed: &HashSet<SlotId>) {
        let known = self.highest_token(server);
        let mut new: Vec<&SlotRow> = rows
            .values()
            .filter(|row| row.owner == Some(server) && Some(row.token) > known && !self.slots.contains_key(&row.slot))
            .collect();
        new.sort_by_key(|row| row.slot);
        let Some(highest) = new.iter().map(|row| row.token).max() else { return };
        self.adopted = Some((server, highest));
        let mut loads: HashMap<HookNumber, Vec<SlotRow>> = HashMap::new();
        for row in new {
            let fence = Fence { slot: row.slot, token: row.token };
            self.core.saw_token(row.token);
            self.core.options.recorder.slot_leased(&self.core.server, server, fence);
            let Some(definitions) = self.definitions(row.slot.hook) else { continue };
            let entity = &definitions.entity;
            let state = if is_permit(row.slot) {
                SlotState::Permit
            } else {
                let retry = RetryPolicy {
                    attempts: entity.attempts(),
                    first: Duration::from_millis(entity.definition.backoff_first_ms),
                    max: Duration::from_millis(entity.definition.backoff_max_ms),
                };
                loads.entry(row.slot.hook).or_default().push(row.clone());
                SlotState::Loading {
                    queue: Box::new(SlotQueue::loading(entity.delivery(), retry, self.memory_per_slot())),
                    buffered: Vec::new(),
                    crashed: crashed.contains(&row.slot),
                    read: None,
                }
            };
            let held_permit = matches!(state, SlotState::Permit);
            let slot = Slot {
                fence,
                state,
                runs: HashMap::default(),
                outstanding: 0,
                commits: 0,
                stopping: None,
                last_raise: false,
                watermark: row.watermark,
                raised: Instant::now(),
                stays_until: None,
                retiring: super::Retiring::No,
            };
            self.slots.insert(row.slot, slot);
            if let Some(hook) = self.hooks.get_mut(&row.slot.hook) {
                if held_permit {
                    hook.permits += 1;
                } else {
                    hook.slots.push(row.slot);
                }
            }
            if held_permit && row.watermark < RETIRED {
                self.settle_watermarks(vec![(fence, RETIRED)]);
            }
            if self.drain.is_some() || self.hooks.get(&row.slot.hook).is_none_or(|hook| hook.withdrawn) {
                self.stop_slot(row.slot, Reason::Must);
            }
        }
        let bound = self.memory_per_slot();
        for slot in self.slots.values_mut() {
            // Those too that are only about to be filled: they were made one by one, each with a larger share.
            match &mut slot.state {
                SlotState::Loading { queue, .. } | SlotState::Active(queue) | SlotState::Skipped(queue) => {
                    queue.set_bound(bound);
                }
                SlotState::Releasing | SlotState::Permit => {}
            }
        }
        for (hook, rows) in loads {
            self.load(hook, &rows);
        }
    }

    /// Each slot's share of the requests that this server keeps in memory.
    fn memory_per_slot(&self) -> usize {
        (self.core.options.hook_requests_in_memory / self.slots.len().max(1)).max(16)
    }

    pub(super) fn plan(&mut self, server: ServerId, unknown: bool) {
        let Some(view) = &self.view else { return };
        let now = self.core.clock.now();
        let mut take: Vec<SlotId> = Vec::new();
        let mut give: Vec<(HookNumber, Vec<SlotId>, usize)> = Vec::new();
        let mut relief: Vec<(HookNumber, Vec<SlotId>, usize)> = Vec::new();
        let mut misplaced: Vec<SlotId> = Vec::new();
        let mut unsettled = false;
        for (number, hook) in &self.hooks {
            let Some(definitions) = self.matcher.hook(*number) else {
                unsettled = true;
                continue;
            };
            let entity = &definitions.entity;
            let mut slots: Vec<SlotId> = match super::layouts::active_layout(entity, &view.rows) {
                Some(layout) => {
                    layout.slots(*number).filter(|slot| !super::layouts::is_retired(*slot, &view.rows)).collect()
                }
                None => continue,
            };
            let removed = entity.removed || hook.withdrawn || self.drain.is_some();
            let permits: Vec<SlotId> =
                (0..entity.runs_in_cluster().unwrap_or(0)).map(|index| permit(*number, index)).collect();
            let among = entity.runs_in_cluster().map(|cap| {
                let most = usize::try_from(cap).unwrap_or(usize::MAX);
                balance::chosen(*number, entity.version(), &view.rows, &view.servers, most, now)
            });
            for (slot, at) in self.placed(*number, entity.version(), view, now) {
                let Some(place) = slots.iter().position(|there| *there == slot) else { continue };
                slots.swap_remove(place);
                if removed || at != server {
                    misplaced.push(slot);
                } else if !self.slots.contains_key(&slot) {
                    unsettled = true;
                    let owner = view.rows.get(&slot).and_then(|row| row.owner);
                    if !view.servers.iter().any(|row| Some(row.id) == owner && row.lease_until > now) {
                        take.push(slot);
                    }
                }
            }
            for slots in [slots, permits] {
                let held: Vec<SlotId> = slots
                    .iter()
                    .copied()
                    .filter(|slot| self.slots.get(slot).is_some_and(|slot| slot.stopping.is_none()))
                    .collect();
                let plan = if removed {
                    balance::Plan { take: Vec::new(), give_up: held.len(), is_relief: false }
                } else {
                    let view = balance::View {
                        hook: *number,
                        version: entity.version(),
                        slots: &slots,
                        rows: &view.rows,
                        servers: &view.servers,
                        among: among.as_deref(),
                        now,
                    };
                    balance::plan(&view, server, held.len())
                };
                unsettled |= !plan.take.is_empty() || plan.give_up > 0 && !plan.is_relief;
                let here = |slot: &SlotId| self.slots.contains_key(slot);
                take.extend(plan.take.iter().copied().filter(|slot| !here(slot)));
                if plan.is_relief {
                    let gave_at =
                        if held.iter().any(|id| is_permit(*id)) { hook.gave_permit_at } else { hook.gave_slot_at };
                    if gave_at.is_none_or(|at| now.since(at) >= balance::RELIEF_PAUSE) {
                        relief.push((*number, held, plan.give_up));
                    }
                } else if plan.give_up > 0 {
                    give.push((*number, held, plan.give_up));
                }
            }
            // Slots of no layout in force, or held without being allowed to, go.
            if hook.declared.version < entity.version() {
                let held: Vec<SlotId> = hook.slots.clone();
                let count = held.len();
                give.push((*number, held, count));
            }
            let free = |row: &SlotRow| row.slot.hook == *number && row.owner.is_none() && row.watermark < RETIRED;
            let asks_for_more = view.rows.values().any(free);
            unsettled |= asks_for_more;
        }
        for (number, held, count) in relief {
            let of_permits = held.iter().any(|id| is_permit(*id));
            if self.give_waiting(held, count) {
                self.note_gift(number, of_permits, now);
            }
        }
        for (number, held, count) in give {
            let must = self.must_go(number);
            let of_permits = held.iter().any(|id| is_permit(*id));
            if self.give_some(held, count, if must { Reason::Must } else { Reason::Balance }) {
                self.note_gift(number, of_permits, now);
            }
        }
        for slot in misplaced {
            self.stop_slot(slot, Reason::Must);
        }
        self.retire_old_layouts();
        if !take.is_empty() || unknown {
            self.take_slots(server, take);
        }
        if unsettled {
            let soon = Instant::now() + (self.core.options.poll / 10).max(LOOK_MIN);
            self.next_view = self.next_view.min(soon);
        }
    }

    fn note_gift(&mut self, number: HookNumber, of_permits: bool, now: Timestamp) {
        let Some(hook) = self.hooks.get_mut(&number) else { return };
        let gave_at = if of_permits { &mut hook.gave_permit_at } else { &mut hook.gave_slot_at };
        *gave_at = Some(now);
    }

    /// The slots of a hook that a test has placed, each with the server that it is placed at, where that can have it.
    fn placed(&self, hook: HookNumber, version: u32, view: &View, now: Timestamp) -> Vec<(SlotId, ServerId)> {
        let can = |name: &str| {
            let mut willing = view.servers.iter().filter(|row| balance::is_willing(row, hook, version, now));
            willing.find(|row| *row.name == *name).map(|row| row.id)
        };
        let placed = self.core.options.placement.of(hook).into_iter();
        placed.filter_map(|(slot, server)| Some((slot, can(&server)?))).collect()
    }

    /// Whether this server may not have slots of the hook at all.
    fn must_go(&self, number: HookNumber) -> bool {
        let Some(hook) = self.hooks.get(&number) else { return true };
        let Some(definitions) = self.matcher.hook(number) else { return false };
        hook.withdrawn
            || self.drain.is_some()
            || definitions.entity.removed
            || hook.declared.version < definitions.entity.version()
    }

    /// Gives up so many of these slots, those without runs first, and among them those in which most waits. Says whether there
    /// was one.
    fn give_some(&mut self, held: Vec<SlotId>, count: usize, reason: Reason) -> bool {
        let now = Instant::now();
        let mut candidates: Vec<(usize, std::cmp::Reverse<usize>, SlotId)> = held
            .into_iter()
            .filter_map(|id| {
                let slot = self.slots.get(&id)?;
                let stays = reason == Reason::Balance && slot.stays_until.is_some_and(|until| until > now);
                if stays || slot.stopping.is_some() {
                    return None;
                }
                let waiting = slot.queue().map_or(0, SlotQueue::ready);
                Some((slot.runs.len(), std::cmp::Reverse(waiting), id))
            })
            .collect();
        candidates.sort_unstable();
        candidates.truncate(count);
        for (_, _, id) in &candidates {
            self.stop_slot(*id, reason);
        }
        !candidates.is_empty()
    }

    /// Gives up so many of these slots for others to run what waits in them. The last one in which something waits stays where
    /// nothing runs in another: it would only keep another server busy in place of this one. Says whether there was one.
    fn give_waiting(&mut self, held: Vec<SlotId>, count: usize) -> bool {
        let waits = |id: &SlotId| {
            let queue = self.slots.get(id).and_then(Slot::queue);
            is_permit(*id) || queue.is_some_and(|queue| queue.ready() > 0)
        };
        let runs = |id: &SlotId| self.slots.get(id).is_some_and(|slot| !slot.runs.is_empty());
        let (waiting, others): (Vec<SlotId>, Vec<SlotId>) = held.into_iter().partition(waits);
        let stay = usize::from(!others.iter().any(runs));
        let count = count.min(waiting.len().saturating_sub(stay));
        self.give_some(waiting, count, Reason::Balance)
    }

    fn take_slots(&mut self, server: ServerId, slots: Vec<SlotId>) {
        if self.taking || self.drain.is_some() || !self.lease_holds(self.core.clock.now()) {
            return;
        }
        self.taking = true;
        let (core, sender) = (self.core.clone(), self.sender.clone());
        self.spawn(async move {
            let _ = core.points.pass(points::SLOT_BEFORE_LEASE).await;
            if core.stop.is_cancelled() {
                return;
            }
            if !slots.is_empty()
                && let Err(error) = core.driver.take_slots(server, &slots).await
            {
                tracing::debug!(%error, "slots could not be leased, or it is not known whether they were");
            }
            // What was leased, also where the answer was lost, and from which watermark: both as of now.
            let event = match core.driver.cluster().await {
                Ok((servers, slots)) => Event::View { server, servers, slots, taken: true },
                Err(_) => Event::ViewFailed { taken: true },
            };
            let _ = sender.send(event);
        });
    }
}
