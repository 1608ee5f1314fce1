//! Layouts that give way to the next one, watermarks, and asking for what exists.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Event, Owner, Reason, Retiring, SlotState};
use crate::cluster_hook::key_queue::SlotQueue;
use crate::cluster_hook::registration::RegistrationEntity;
use crate::cluster_hook::slots::{RETIRED, SlotLayout};
use crate::driver::{SlotId, SlotRow};
use crate::entity::Ref;
use crate::error::WriteError;
use crate::path::Path;
use crate::transaction::{Transaction, TransactionError};

/// Requests that stand behind a wait for so many revisions are copied out of the log.
pub(super) const PARK_BEHIND: u64 = 20_000;
/// How many at once.
pub(super) const PARK_AT_ONCE: usize = 500;
/// A watermark is raised when it has so far to go, or so much time has passed; but not again at once, however fast it goes. Each
/// raise is another version of the slot's row, and while a foreign transaction is open all of them are read to find the last.
const RAISE_BY: u64 = 1_000;
const RAISE_AFTER: Duration = Duration::from_secs(5);
const RAISE_PAUSE: Duration = Duration::from_secs(1);
/// How many entities one transaction asks for.
const CATCH_UP_AT_ONCE: usize = 500;

impl Owner {
    /// Slots of a layout that is not the current one stop once all their requests are known, and hand over what is left.
    pub(super) fn retire_old_layouts(&mut self) {
        let mut stop = Vec::new();
        let mut commands = Vec::new();
        for (id, slot) in &mut self.slots {
            let stopping = slot.stopping.is_some();
            let (SlotState::Active(queue), Some(definitions)) = (&mut slot.state, self.matcher.hook(id.hook)) else {
                continue;
            };
            let Some(layout) = definitions.layouts().iter().find(|layout| layout.contains(*id)) else { continue };
            let all_known = layout.until.is_some_and(|until| self.position >= until);
            if !all_known || stopping {
                continue;
            }
            if queue.is_missing_some() {
                let mut out = Vec::new();
                queue.empty(PARK_AT_ONCE, &mut out);
                commands.push((*id, out));
            } else {
                stop.push(*id);
            }
        }
        for (id, out) in commands {
            self.obey_queue(id, out);
        }
        for id in stop {
            self.stop_slot(id, Reason::Must);
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.retiring = Retiring::Due;
            }
        }
    }

    pub(super) fn hand_to_next_layout(&mut self, id: SlotId) {
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

    pub(super) fn raise_watermarks(&mut self) {
        let position = self.position;
        let mut raises = Vec::new();
        for slot in self.slots.values_mut() {
            if slot.stopping.is_some() {
                continue;
            }
            let (fence, was, raised) = (slot.fence, slot.watermark, slot.raised);
            let Some(queue) = slot.whole_queue_mut() else { continue };
            queue.passed(position);
            let to = queue.watermark();
            let far = to.0.saturating_sub(was.0);
            let pause = if far >= RAISE_BY { RAISE_PAUSE } else { RAISE_AFTER };
            if far > 0 && raised.elapsed() >= pause {
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
pub(super) fn active_layout(entity: &RegistrationEntity, rows: &HashMap<SlotId, SlotRow>) -> Option<SlotLayout> {
    let retired = |slot: SlotId| is_retired(slot, rows);
    entity.layouts.iter().find(|layout| layout.until.is_none() || !layout.slots(entity.number).all(retired)).copied()
}

pub(super) fn is_retired(slot: SlotId, rows: &HashMap<SlotId, SlotRow>) -> bool {
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
    use crate::driver::{HookNumber, SlotToken};
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
