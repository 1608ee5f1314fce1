//! The swap of a region: its gate, the word to swap, and the region's answer.

use tidegate_lifecycle::{Function, GateStep};
use tidegate_state::Timestamp;

use super::planner::PushStep;
use super::region::{Refusal, refusal};
use crate::entities::{FailureKind, IngestionStatus, Milestone, RegionState, VersionStatus};

impl PushStep<'_> {
    /// A region that has ingested: everything that its swap waits for.
    pub(super) fn swap_gate(&mut self, name: &str, since: Timestamp) -> Option<Refusal> {
        self.tell(Function::PostStoreVersionCreation, Some(name));
        self.tell(Function::PostStoreVersionLeaderReplication, Some(name));
        if let Some(IngestionStatus::Failed { kind, message }) = self.reported(name) {
            self.fail(name, kind, message);
            return None;
        }
        if let Some(refusal) = self.embedded_gates(name) {
            return Some(refusal);
        }
        let function = Function::PreStoreVersionSwap;
        // Each gate is opened by its own name only.
        if !self.embedded_open(name) {
            return None;
        }
        let overridden = self.facts.push.overrides.contains_key(&crate::entities::Gate::id(function, Some(name)));
        if !overridden {
            if let Some(message) = self.too_many_dead(name) {
                self.fail(name, FailureKind::TooManyDeadInstances, message);
                return None;
            }
            if !self.embedded_ready(name) {
                self.silence(name, since);
                return None;
            }
        }
        let frozen = self.planner.view.freeze_of(name).map(|(id, freeze)| format!("freeze {id}: {}", freeze.reason));
        let step = match frozen {
            Some(reason) => self.hold(function, name, reason),
            None => self.ask(function, Some(name)),
        };
        match step {
            // Enough nodes may have held it a while ago and lost it since: a gate is opened, not the data's absence.
            GateStep::Open if self.reported(name) == Some(IngestionStatus::Completed) => {
                self.tell_to_serve(name);
                None
            }
            GateStep::Open => {
                self.silence(name, since);
                None
            }
            other => refusal(other, function, name),
        }
    }

    fn tell_to_serve(&mut self, name: &str) {
        let version = self.version();
        let now = self.now();
        if let Some(assignment) = self.planner.view.regions.get_mut(name).and_then(|facts| facts.assignment.as_mut()) {
            assignment.serve = Some(version);
            self.set_region(name, RegionState::Swapping { since: now });
            self.reach(name, Milestone::SwapTold);
        }
    }

    /// A region that was told to swap: only what its nodes really serve counts.
    pub(super) fn swapping(&mut self, name: &str, since: Timestamp) {
        let version = self.version();
        let view = &self.planner.view;
        let serves = view.regions.get(name).is_some_and(|facts| facts.serves(&view.store, version));
        if serves {
            let now = self.now();
            self.set_region(name, RegionState::Baking { since: now });
            self.reach(name, Milestone::Serving);
            self.set_version_in(name, VersionStatus::Online);
            return;
        }
        match self.reported(name) {
            Some(IngestionStatus::Failed { kind, message }) => self.fail(name, kind, message),
            _ => self.silence(name, since),
        }
    }

    /// Points a region back to what it served before this push.
    pub(super) fn point_back(&mut self, name: &str) {
        let previous = self.facts.push.regions.get(name).and_then(|region| region.previous);
        if let Some(assignment) = self.planner.view.regions.get_mut(name).and_then(|facts| facts.assignment.as_mut()) {
            assignment.serve = previous;
        }
    }
}
