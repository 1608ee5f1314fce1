//! Taking slots and giving them up: to spread, to drain, when the hook's layout changes.
//!
//! Invariant: a slot is released only when nothing runs in it and everything of it is durable. A slot that is given up
//! for balance and can't come to rest within the hand-over limit goes on instead: no key stands still for another's
//! long run.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{Event, Owner, Reason, Retiring, Slot, SlotState, View};
use crate::cluster_hook::balance;
use crate::cluster_hook::key_queue::{RetryPolicy, RunEnd, SlotQueue};
use crate::cluster_hook::points;
use crate::cluster_hook::registration::RegistrationEntity;
use crate::cluster_hook::slots::{RETIRED, SlotLayout, is_permit, permit};
use crate::driver::{DriverError, Fence, HookNumber, ServerId, ServerRow, SlotId, SlotRow};
use crate::entity::Ref;
use crate::error::WriteError;
use crate::path::Path;
use crate::transaction::{Transaction, TransactionError};

/// How long a cancelled run may go on cleaning up before its task ends.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// How long a slot's other keys may stand still for a run that is going, where the slot is given up for balance.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(2);
/// After that, for so long it is not tried again.
const STAYS_FOR: Duration = Duration::from_secs(30);
/// Requests that stand behind a wait for so many revisions are copied out of the log.
pub(super) const PARK_BEHIND: u64 = 20_000;
/// How many at once.
pub(super) const PARK_AT_ONCE: usize = 500;
/// A watermark is raised when it has so far to go, or so much time has passed.
const RAISE_BY: u64 = 1_000;
const RAISE_AFTER: Duration = Duration::from_secs(5);
/// The shortest pause between two looks at the cluster.
const LOOK_MIN: Duration = Duration::from_millis(20);
/// How many entities one transaction asks for.
const CATCH_UP_AT_ONCE: usize = 500;

impl Owner {
    // ---- looking at the cluster ------------------------------------------------------------------------------------

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
                retiring: Retiring::No,
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
            if let Some(queue) = slot.queue_mut() {
                queue.set_bound(bound);
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

    // ---- planning --------------------------------------------------------------------------------------------------

    fn plan(&mut self, server: ServerId, unknown: bool) {
        let Some(view) = &self.view else { return };
        let now = self.core.clock.now();
        let mut take: Vec<SlotId> = Vec::new();
        let mut give: Vec<(HookNumber, Vec<SlotId>, usize)> = Vec::new();
        let mut unsettled = false;
        for (number, hook) in &self.hooks {
            let Some(definitions) = self.matcher.hook(*number) else {
                unsettled = true;
                continue;
            };
            let entity = &definitions.entity;
            let slots: Vec<SlotId> = match active_layout(entity, &view.rows) {
                Some(layout) => layout.slots(*number).filter(|slot| !is_retired(*slot, &view.rows)).collect(),
                None => continue,
            };
            let removed = entity.removed || hook.withdrawn || self.drain.is_some();
            let permits: Vec<SlotId> =
                (0..entity.runs_in_cluster().unwrap_or(0)).map(|index| permit(*number, index)).collect();
            let among = entity.runs_in_cluster().map(|cap| {
                let most = usize::try_from(cap).unwrap_or(usize::MAX);
                balance::chosen(*number, entity.version(), &view.rows, &view.servers, most, now)
            });
            for slots in [slots, permits] {
                let held: Vec<SlotId> = slots
                    .iter()
                    .copied()
                    .filter(|slot| self.slots.get(slot).is_some_and(|slot| slot.stopping.is_none()))
                    .collect();
                let plan = if removed {
                    balance::Plan { take: Vec::new(), give_up: held.len() }
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
                unsettled |= !plan.take.is_empty() || plan.give_up > 0;
                let here = |slot: &SlotId| self.slots.contains_key(slot);
                take.extend(plan.take.iter().copied().filter(|slot| !here(slot)));
                if plan.give_up > 0 {
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
        for (number, held, count) in give {
            let must = self.must_go(number);
            self.give_some(held, count, if must { Reason::Must } else { Reason::Balance });
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

    /// Whether this server may not have slots of the hook at all.
    fn must_go(&self, number: HookNumber) -> bool {
        let Some(hook) = self.hooks.get(&number) else { return true };
        let Some(definitions) = self.matcher.hook(number) else { return false };
        hook.withdrawn
            || self.drain.is_some()
            || definitions.entity.removed
            || hook.declared.version < definitions.entity.version()
    }

    /// Gives up so many of these slots, those without runs first, and among them those in which most waits.
    fn give_some(&mut self, held: Vec<SlotId>, count: usize, reason: Reason) {
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
        for (_, _, id) in candidates.into_iter().take(count) {
            self.stop_slot(id, reason);
        }
    }

    fn take_slots(&mut self, server: ServerId, slots: Vec<SlotId>) {
        if self.taking || self.drain.is_some() || !self.lease_holds(self.core.clock.now()) {
            return;
        }
        self.taking = true;
        let (core, sender) = (self.core.clone(), self.sender.clone());
        self.spawn(async move {
            let _ = core.points.pass(points::SLOT_BEFORE_LEASE).await;
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

    // ---- giving up -------------------------------------------------------------------------------------------------

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
                if let Some(hook) = self.hooks.get_mut(&id.hook)
                    && (reason == Reason::Must && hook.running == 0 || hook.running < hook.permits)
                    && slot.outstanding == 0
                {
                    hook.permits = hook.permits.saturating_sub(1);
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
                    slot.retiring = Retiring::No;
                    slot.last_raise = true;
                    slot.watermark = RETIRED;
                    raises.push((slot.fence, RETIRED));
                    continue;
                }
                Retiring::No => {}
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

    // ---- draining --------------------------------------------------------------------------------------------------

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

    // ---- layouts ---------------------------------------------------------------------------------------------------

    /// Slots of a layout that is not the current one stop once all their requests are known, and hand over what is left.
    fn retire_old_layouts(&mut self) {
        let mut stop = Vec::new();
        for (id, slot) in &self.slots {
            let (SlotState::Active(queue), Some(definitions)) = (&slot.state, self.matcher.hook(id.hook)) else {
                continue;
            };
            let Some(layout) = definitions.layouts().iter().find(|layout| layout.contains(*id)) else { continue };
            let all_known = layout.until.is_some_and(|until| self.position >= until);
            if all_known && slot.stopping.is_none() && !queue.is_missing_some() {
                stop.push(*id);
            }
        }
        for id in stop {
            self.stop_slot(id, Reason::Must);
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.retiring = Retiring::Due;
            }
        }
    }

    fn hand_to_next_layout(&mut self, id: SlotId) {
        let Some(definitions) = self.definitions(id.hook) else { return };
        let layouts = definitions.layouts();
        let Some(place) = layouts.iter().position(|layout| layout.contains(id)) else { return };
        let Some(next) = layouts.get(place + 1).copied() else { return };
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.retiring = Retiring::Handed;
        let items = match slot.queue() {
            Some(queue) => queue.drain_all(),
            None => Vec::new(),
        };
        let items = items.into_iter().map(|(key, item)| (next.slot_of(id.hook, &key), item)).collect();
        self.settle_handed(id, items);
    }

    // ---- watermarks and catching up ----------------------------------------------------------------------------------

    pub(super) fn raise_watermarks(&mut self) {
        let position = self.position;
        let mut raises = Vec::new();
        for slot in self.slots.values_mut() {
            if slot.stopping.is_some() {
                continue;
            }
            let (fence, was, raised) = (slot.fence, slot.watermark, slot.raised);
            let Some(queue) = slot.queue_mut() else { continue };
            queue.passed(position);
            let to = queue.watermark();
            let far = to.0.saturating_sub(was.0);
            if far >= RAISE_BY || far > 0 && raised.elapsed() >= RAISE_AFTER {
                raises.push((fence, to));
                slot.watermark = to;
                slot.raised = Instant::now();
            }
            if slot.queue().is_some_and(SlotQueue::is_worn_out) {
                slot.stopping = Some((Reason::Must, Instant::now()));
            }
        }
        self.settle_watermarks(raises);
    }

    /// Asks for runs for what exists, for hooks that begin with that. One server does it: the owner of the first slot.
    pub(super) fn catch_up(&mut self) {
        let mut begin = Vec::new();
        for (number, hook) in &self.hooks {
            let Some(definitions) = self.matcher.hook(*number) else { continue };
            let first = definitions.entity.current_layout().slot(*number, 0);
            let due = definitions.entity.catch_up.is_some() && !definitions.entity.removed;
            if due && !hook.catching_up && self.slots.contains_key(&first) {
                begin.push((*number, definitions.clone()));
            }
        }
        for (number, definitions) in begin {
            if let Some(hook) = self.hooks.get_mut(&number) {
                hook.catching_up = true;
            }
            let (core, sender) = (self.core.clone(), self.sender.clone());
            self.spawn(async move {
                if let Err(error) = catch_up(&core, &definitions).await {
                    tracing::debug!(hook = %definitions.name, %error, "asking for what exists goes on later");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                let _ = sender.send(Event::CaughtUp { hook: number });
            });
        }
    }
}

/// The layout whose slots are to be leased now: the first that is not wholly retired.
fn active_layout(entity: &RegistrationEntity, rows: &HashMap<SlotId, SlotRow>) -> Option<SlotLayout> {
    let retired = |slot: SlotId| is_retired(slot, rows);
    entity.layouts.iter().find(|layout| layout.until.is_none() || !layout.slots(entity.number).all(retired)).copied()
}

fn is_retired(slot: SlotId, rows: &HashMap<SlotId, SlotRow>) -> bool {
    rows.get(&slot).is_some_and(|row| row.watermark >= RETIRED)
}

/// Asks for a run for each entity in scope that was there before the registration and has not changed since, in batches
/// that begin where the last one ended, whoever made it.
async fn catch_up(
    core: &crate::core::Core,
    definitions: &crate::cluster_hook::matcher::Definitions,
) -> Result<(), WriteError<TransactionError>> {
    let Some(mut progress) = definitions.entity.catch_up.clone() else { return Ok(()) };
    let since = progress.since;
    let snapshot = core.snapshot();
    let mut paths: Vec<Path> = snapshot
        .tree()
        .iter()
        .filter(|(path, node)| node.changed_at() <= since && definitions.covers(path))
        .map(|(path, _)| path.clone())
        .collect();
    paths.sort_unstable();
    let registration: Ref<RegistrationEntity> =
        Ref::root(definitions.name.to_string()).map_err(|error| WriteError::Rejected(TransactionError::Path(error)))?;
    let number = definitions.entity.number;
    loop {
        let from = progress.cursor.clone();
        let begin = paths.partition_point(|path| from.as_ref().is_some_and(|cursor| path <= cursor));
        let batch: Vec<Path> = paths[begin..].iter().take(CATCH_UP_AT_ONCE).cloned().collect();
        let is_last = begin + batch.len() == paths.len();
        let registration = registration.clone();
        let closure = move |transaction: &mut Transaction| {
            let Some(entity) = transaction.get(&registration)? else { return Ok(None) };
            let Some(at_head) = &entity.catch_up else { return Ok(None) };
            if entity.removed || at_head.since != since {
                return Ok(None);
            }
            if at_head.cursor != from {
                // Another server was faster; go on from where it is.
                return Ok(Some(at_head.clone()));
            }
            let mut next = (*entity).clone();
            for path in &batch {
                let unchanged = transaction.tree().get(path).is_some_and(|node| node.changed_at() <= since);
                if unchanged {
                    transaction.request_existing(path.clone(), number);
                }
            }
            next.catch_up = if is_last {
                None
            } else {
                let cursor = batch.last().cloned().or_else(|| from.clone());
                Some(crate::cluster_hook::registration::CatchUp { since, cursor })
            };
            let progress = next.catch_up.clone();
            transaction.put(&registration, next)?;
            Ok(progress)
        };
        let id = crate::revision::SubmissionId::random();
        let committed = core.submit(closure, std::sync::Arc::default(), id, None).await?;
        match committed.value {
            None => return Ok(()),
            Some(next) => progress = next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_hook::registration::{Decision, Registration, decide};
    use crate::driver::SlotToken;
    use crate::revision::Revision;

    #[test]
    fn k49_slots_of_the_next_layout_are_leased_when_all_of_the_one_before_are_retired() {
        let first = Registration::new("a", 1).on("/stores/{s}").key("{s}").slots(2);
        let Ok(Decision::Put(entity)) = decide(None, &first, HookNumber(1), Revision(5)) else { panic!() };
        let second = first.clone().slots(3);
        let mut second = second;
        second.definition.version = 2;
        let Ok(Decision::Put(entity)) = decide(Some(&entity), &second, HookNumber(2), Revision(9)) else { panic!() };
        let row = |index: u32, watermark| {
            let slot = entity.layouts[0].slot(HookNumber(1), index);
            (slot, SlotRow { slot, owner: None, token: SlotToken(1), watermark })
        };
        let generation = |rows: &HashMap<SlotId, SlotRow>| active_layout(&entity, rows).unwrap().generation;
        assert_eq!(generation(&HashMap::new()), 0, "slots that never were have to be retired too");
        assert_eq!(generation(&HashMap::from([row(0, RETIRED), row(1, Revision(9))])), 0);
        assert_eq!(generation(&HashMap::from([row(0, RETIRED), row(1, RETIRED)])), 1);
    }
}
