//! Taking in what the tail brings.

use std::sync::Arc;

use smallvec::smallvec;

use super::{Intake, Owner, Reason, SlotState};
use crate::change::{Applied, AppliedAction, Change};
use crate::cluster_hook::cause::Cause;
use crate::cluster_hook::matcher::Matcher;
use crate::driver::{HookNumber, RequestAction, RequestId, SlotId};
use crate::feed::FeedItem;

impl Owner {
    pub(super) fn take_in(&mut self, item: FeedItem) {
        match item {
            FeedItem::Transaction(applied) => self.take_in_transaction(&applied),
            FeedItem::Snapshot(snapshot) => {
                if snapshot.revision() == self.position && snapshot.epoch() == self.epoch {
                    return;
                }
                // What came in between was not seen here. It is in the log, for whoever leases the slots next.
                self.matcher = Matcher::of(snapshot.tree());
                self.position = snapshot.revision();
                self.epoch = snapshot.epoch();
                let slots: Vec<SlotId> = self.slots.keys().copied().collect();
                for id in slots {
                    self.stop_slot(id, Reason::Must);
                    if let Some(slot) = self.slots.get_mut(&id) {
                        slot.skip_rows();
                    }
                }
            }
        }
    }

    fn take_in_transaction(&mut self, applied: &Arc<Applied>) {
        let changes = applied.changes.iter().filter(|change| !change.hooks.is_empty());
        if applied.actions.is_empty() {
            for change in changes {
                self.take_in_change(applied, change);
            }
        } else {
            // Entries of both kinds are taken in as they stand in the log.
            let mut order: Vec<(u32, Result<&Change, &AppliedAction>)> =
                changes.map(|change| (change.sequence, Ok(change))).collect();
            order.extend(super::of_row(applied).map(|action| match action {
                AppliedAction::Existing { sequence, .. } | AppliedAction::Act { sequence, .. } => {
                    (*sequence, Err(action))
                }
            }));
            order.sort_by_key(|(sequence, _)| *sequence);
            for (_, entry) in order {
                match entry {
                    Ok(change) => self.take_in_change(applied, change),
                    Err(AppliedAction::Existing { sequence, path, hook }) => {
                        let before = applied.changes.iter().find(|change| change.path == *path);
                        let there = match before {
                            Some(change) => change.before.clone(),
                            None => applied.snapshot.document(path).cloned(),
                        };
                        let change = Change {
                            path: path.clone(),
                            revision: applied.revision,
                            before: None,
                            after: there,
                            sequence: *sequence,
                            hooks: smallvec![*hook],
                        };
                        self.take_in_for(applied, &change, *hook);
                    }
                    Err(AppliedAction::Act { sequence, request, action }) => {
                        let id = RequestId { revision: applied.revision, sequence: *sequence, hook: request.hook };
                        self.take_in_action(id, *request, *action);
                    }
                }
            }
        }
        self.position = applied.revision;
        if applied.changes.iter().any(|change| Matcher::concerns(&change.path)) {
            self.matcher = Matcher::of(applied.snapshot.tree());
            self.look_soon();
        }
    }

    fn take_in_change(&mut self, applied: &Applied, change: &Change) {
        for hook in change.hooks.iter() {
            self.take_in_for(applied, change, *hook);
        }
    }

    fn take_in_for(&mut self, applied: &Applied, change: &Change, hook: HookNumber) {
        if self.hooks.get(&hook).is_none_or(|hook| hook.slots.is_empty()) {
            return;
        }
        let id = RequestId { revision: applied.revision, sequence: change.sequence, hook };
        let Some(definitions) = self.matcher.hook(hook) else { return };
        let Some((slot_id, key)) = definitions.slot_of(&change.path, id) else { return };
        let Some(slot) = self.slots.get_mut(&slot_id) else { return };
        let cause = || Cause::applied(definitions.entity.delivery(), applied, change);
        match &mut slot.state {
            SlotState::Active(queue) => {
                let cause = cause();
                let mut out = Vec::new();
                queue.request(id, &key, cause, &mut out);
                if !out.is_empty() {
                    self.obey_queue(slot_id, out);
                }
            }
            SlotState::Loading { buffered, .. } => {
                buffered.push(Intake::Request { id, key: key.into_owned().into(), cause: cause() });
            }
            SlotState::Skipped(_) | SlotState::Releasing | SlotState::Permit => {}
        }
    }

    pub(super) fn take_in_action(&mut self, id: RequestId, target: RequestId, action: RequestAction) {
        let Some(hook) = self.hooks.get(&target.hook) else { return };
        for slot_id in hook.slots.clone() {
            let Some(slot) = self.slots.get_mut(&slot_id) else { continue };
            if slot.has_handed_over() {
                continue;
            }
            match &mut slot.state {
                SlotState::Active(queue) | SlotState::Skipped(queue) => {
                    if queue.has(target) {
                        let mut out = Vec::new();
                        queue.act(id, target, action, &mut out);
                        self.obey_queue(slot_id, out);
                    }
                }
                SlotState::Loading { buffered, .. } => buffered.push(Intake::Act { id, target, action }),
                SlotState::Releasing | SlotState::Permit => {}
            }
        }
    }
}
