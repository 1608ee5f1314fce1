//! Going back: pointers only, in every region that was told to serve the version, asking no gate and minding no freeze.

use std::time::Duration;

use tidegate_lifecycle::Verdict;

use super::planner::PushStep;
use super::region::{Refusal, pin_text};
use crate::entities::{
    Assignment, EndedBy, GoingBack, Milestone, Phase, PushEnd, PushState, PushStatus, RegionState, RolledBack,
    VersionStatus,
};

impl PushStep<'_> {
    /// Begins to go back because a hook said so. One rollback is one rollback: the phase that follows asks no hook.
    pub(super) fn go_back(&mut self, refusal: &Refusal) {
        debug_assert_eq!(refusal.verdict, Verdict::Rollback);
        let said = format!(
            "{} said Rollback at {} in {}: {}",
            refusal.hook,
            refusal.function.short_name(),
            refusal.region,
            refusal.reason
        );
        self.begin_going_back(format!("hook {}", refusal.hook), said);
    }

    pub(super) fn begin_going_back(&mut self, by: String, reason: String) {
        let now = self.now();
        // A push in which a region failed ends ERROR, whatever its gates then answer.
        let (status, ended_by, reason) = match self.failures() {
            Some(failures) => (PushStatus::Error, EndedBy::Region, format!("{failures}; {reason}")),
            None => (PushStatus::RolledBack, EndedBy::Gate, reason),
        };
        let names: Vec<String> = self.facts.push.regions.keys().cloned().collect();
        for name in &names {
            self.turn_back(name);
        }
        if let Some(version) = self.planner.view.versions.get_mut(&self.facts.push.version) {
            version.rolled_back = Some(RolledBack { by: by.clone(), reason: reason.clone(), at: now });
        }
        let limit = Duration::from_millis(self.planner.view.store.limits.confirmation_ms);
        let end = PushEnd { status, by: Some(ended_by), reason, at: now };
        self.facts.push.state = PushState::Running(Phase::GoingBack(GoingBack { end, by, until: now.after(limit) }));
    }

    /// Turns one region back: its pointer if it was told to serve the version, else it just stops.
    pub(super) fn turn_back(&mut self, name: &str) {
        let now = self.now();
        let Some(region) = self.facts.push.regions.get(name) else { return };
        match region.state.clone() {
            state if state.is_told_to_serve() => {
                self.point_back(name);
                self.set_region(name, RegionState::GoingBack { since: now });
                self.set_version_in(name, VersionStatus::RolledBack);
            }
            RegionState::Waiting | RegionState::Ingesting { .. } | RegionState::Ingested { .. } => self.stop(name),
            _ => {}
        }
    }

    /// A region that has not been told to serve the version lets it go.
    pub(super) fn stop(&mut self, name: &str) {
        let now = self.now();
        let assigned =
            self.facts.push.regions.get(name).is_some_and(|region| region.reached.contains_key(&Milestone::Assigned));
        self.set_region(name, RegionState::Stopped { at: now });
        self.reach(name, Milestone::Stopped);
        if assigned {
            self.set_version_in(name, VersionStatus::Killed);
        }
    }

    /// Waits until every region has confirmed, or the limit has come.
    pub(super) fn going_back(&mut self, back: &GoingBack) {
        let names: Vec<String> = self.facts.push.regions.keys().cloned().collect();
        for name in &names {
            self.confirm_back(name);
        }
        let unconfirmed: Vec<String> = self
            .facts
            .push
            .regions
            .iter()
            .filter(|(_, region)| matches!(region.state, RegionState::GoingBack { .. }))
            .map(|(name, region)| self.unconfirmed(name, region.previous))
            .collect();
        let mut end = back.end.clone();
        if !unconfirmed.is_empty() {
            if self.now() < back.until {
                self.planner.wake(back.until);
                return;
            }
            end.reason = format!("{}; not confirmed by {}", end.reason, unconfirmed.join(", "));
        }
        self.finish(end.status, end.by, end.reason);
    }

    /// A region that has not confirmed, with what is pinned there instead.
    fn unconfirmed(&self, name: &str, previous: Option<u64>) -> String {
        let view = &self.planner.view;
        let report = view.regions.get(name).and_then(|facts| facts.current_report(&view.store));
        match report.and_then(|report| report.pin.as_ref()).filter(|pin| Some(pin.version) != previous) {
            Some(pin) => format!("{name} ({})", pin_text(pin)),
            None => name.to_owned(),
        }
    }

    /// Takes a region's word that it is back. What it said before it could know does not count.
    pub(super) fn confirm_back(&mut self, name: &str) {
        let Some(region) = self.facts.push.regions.get(name) else { return };
        if !matches!(region.state, RegionState::GoingBack { .. }) {
            return;
        }
        let view = &self.planner.view;
        let Some(facts) = view.regions.get(name) else { return };
        let told = self.planner.committed.get(name).and_then(Option::as_ref).filter(|committed| {
            // An answer to what this run is about to say can't be there yet.
            facts.assignment.as_ref().is_some_and(|now| same_but_generation(now, committed))
        });
        let confirmed = told.zip(facts.current_report(&view.store)).is_some_and(|(assignment, report)| {
            report.generation >= assignment.generation && report.serving == region.previous
        });
        if confirmed {
            let now = self.now();
            self.set_region(name, RegionState::Stopped { at: now });
            self.reach(name, Milestone::BackConfirmed);
        }
    }
}

fn same_but_generation(left: &Assignment, right: &Assignment) -> bool {
    left.incarnation == right.incarnation
        && left.hold == right.hold
        && left.serve == right.serve
        && left.enough == right.enough
}
