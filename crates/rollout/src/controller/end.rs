//! The end of a push: the end gate, what happens to every region, and `post_end`, once, after everything else.

use tidegate_lifecycle::{Function, GateStep, Outcomes};

use super::planner::PushStep;
use crate::entities::{
    EndedBy, Garbage, GarbageKind, GarbageState, PushEnd, PushState, PushStatus, RegionState, VersionData, WrapUp,
};

impl PushStep<'_> {
    /// All regions are done: the end gate decides.
    pub(super) fn end_gate(&mut self) {
        match self.ask(Function::PreEndOfPushJob, None) {
            GateStep::Open => {
                let left_out: Vec<String> = self
                    .facts
                    .push
                    .regions
                    .iter()
                    .filter_map(|(name, region)| match &region.state {
                        RegionState::LeftOut { reason, .. } => Some(format!("{name} left out ({reason})")),
                        _ => None,
                    })
                    .collect();
                let reason = if left_out.is_empty() {
                    "every region serves it".to_owned()
                } else {
                    format!("every other region serves it; {}", left_out.join("; "))
                };
                self.finish(PushStatus::Completed, None, reason);
            }
            GateStep::Abort { hook, reason } => self.abort(Function::PreEndOfPushJob, None, &hook, &reason),
            GateStep::Rollback { hook, reason } => {
                let said = format!("{hook} said Rollback at pre-end: {reason}");
                self.begin_going_back(format!("hook {hook}"), said);
            }
            GateStep::Ask(_) | GateStep::Waiting { .. } => {}
        }
    }

    /// Ends the push. Regions that were told to serve its version keep it, all others let it go.
    pub(super) fn finish(&mut self, status: PushStatus, by: Option<EndedBy>, reason: String) {
        let now = self.now();
        if matches!(self.facts.push.state, PushState::Ended { .. }) {
            return;
        }
        let names: Vec<String> = self.facts.push.regions.keys().cloned().collect();
        for name in &names {
            let state = self.facts.push.regions.get(name).map(|region| &region.state);
            if let Some(RegionState::Waiting | RegionState::Ingesting { .. } | RegionState::Ingested { .. }) = state {
                self.stop(name);
            }
        }
        self.facts.push.clock.run(false, now);
        self.facts.push.kill = None;
        self.facts.push.alarm = None;
        let end = PushEnd { status, by, reason, at: now };
        self.facts.push.state = PushState::Ended { end, wrap_up: WrapUp::Pending };
        self.drop_upload();
    }

    /// Parts that arrived for a version that will never be complete are garbage.
    fn drop_upload(&mut self) {
        let now = self.now();
        let grace = self.planner.view.store.retention.grace();
        let Some(version) = self.planner.view.versions.get_mut(&self.facts.push.version) else { return };
        if version.data != VersionData::Awaited {
            return;
        }
        version.data = VersionData::Gone { at: now, artifact: None };
        let garbage = Garbage {
            kind: GarbageKind::Upload { push: self.id.to_owned() },
            store: self.planner.view.name.clone(),
            since: now,
            due_at: now.after(grace),
            state: GarbageState::Waiting,
        };
        self.planner.garbage.insert(Garbage::upload_entry(self.id), garbage);
    }

    /// After the end: swaps that were under way are still followed, then what is left is told.
    pub(super) fn wrap_up(&mut self, end: PushEnd, wrap_up: WrapUp) {
        self.follow_swaps();
        self.follow_back();
        let next = match wrap_up {
            WrapUp::Pending if self.all_told() => WrapUp::PostEnd,
            WrapUp::PostEnd if self.tell(Function::PostEndOfPushJob, None) => WrapUp::Done,
            unchanged => unchanged,
        };
        if next != wrap_up {
            self.facts.push.state = PushState::Ended { end, wrap_up: next };
        }
    }

    /// A region that had been told to swap when the push ended goes through with it; one that can't goes back.
    fn follow_swaps(&mut self) {
        let swapping: Vec<_> = self
            .facts
            .push
            .regions
            .iter()
            .filter_map(|(name, region)| match region.state {
                RegionState::Swapping { since } if !region.late => Some((name.clone(), since)),
                _ => None,
            })
            .collect();
        for (name, since) in swapping {
            // Once a newer push or a rollback has pointed the region elsewhere, there is nothing to follow.
            let version = self.version();
            let still = self.planner.view.regions.get(&name).is_some_and(|facts| facts.serve() == Some(version));
            if still {
                self.swapping(&name, since);
            } else {
                let now = self.now();
                self.set_region(&name, RegionState::Stopped { at: now });
            }
        }
    }

    /// A region that had not confirmed when the limit came still does, later.
    fn follow_back(&mut self) {
        let names: Vec<String> = self
            .facts
            .push
            .regions
            .iter()
            .filter(|(_, region)| matches!(region.state, RegionState::GoingBack { .. }) && !region.late)
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.confirm_back(&name);
        }
    }

    /// Whether everyone has been told what has no outcome. Calls that had not been made when the push ended still are.
    fn all_told(&mut self) -> bool {
        let open: Vec<(Function, Option<String>)> = self
            .facts
            .gates
            .values()
            .map(|facts| &facts.gate.state)
            .filter(|gate| gate.function.outcomes() == Outcomes::None && !gate.is_decided())
            .map(|gate| (gate.function, gate.region.clone()))
            .collect();
        let mut all = true;
        for (function, region) in open {
            all &= self.tell(function, region.as_deref());
        }
        all
    }
}
