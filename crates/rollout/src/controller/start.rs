//! The way of a push from its start to the complete artifact, and the turn of every other phase.

use tidegate_lifecycle::{Function, GateStep};

use super::planner::PushStep;
use crate::entities::{EndedBy, Phase, PushState, PushStatus};

impl PushStep<'_> {
    /// One turn: what is due for this push as it stands.
    pub(super) fn turn(&mut self) {
        if self.limits() {
            return;
        }
        match self.facts.push.state.clone() {
            PushState::Queued => {}
            PushState::Running(Phase::Start) => self.start(),
            PushState::Running(Phase::Build) => {
                self.tell(Function::PostStartOfPushJob, None);
            }
            PushState::Running(Phase::Schema) => self.schema(),
            PushState::Running(Phase::Upload) => self.told_before_regions(),
            PushState::Running(Phase::Regions) => {
                self.told_before_regions();
                self.regions();
            }
            PushState::Running(Phase::End) => self.end_gate(),
            PushState::Running(Phase::GoingBack(back)) => self.going_back(&back),
            PushState::Ended { end, wrap_up } => self.wrap_up(end, wrap_up),
        }
        self.run_clock();
    }

    fn start(&mut self) {
        match self.ask(Function::PreStartOfPushJob, None) {
            GateStep::Open => {
                // A version made from an earlier one's data has nothing to build.
                let phase = if self.facts.push.completed_at.is_some() { Phase::Regions } else { Phase::Build };
                self.facts.push.state = PushState::Running(phase);
            }
            GateStep::Abort { hook, reason } | GateStep::Rollback { hook, reason } => {
                self.abort(Function::PreStartOfPushJob, None, &hook, &reason);
            }
            GateStep::Ask(_) | GateStep::Waiting { .. } => {}
        }
    }

    /// What has to be told once the phases before have passed. Telling again changes nothing.
    fn told_before_regions(&mut self) {
        self.tell(Function::PostStartOfPushJob, None);
        self.tell_schema();
    }

    /// Ends the push because a gate said Abort. Where a region failed before, that is what ended it.
    pub(super) fn abort(&mut self, function: Function, region: Option<&str>, hook: &str, reason: &str) {
        let place = region.map_or(String::new(), |region| format!(" in {region}"));
        let said = format!("{hook} said Abort at {}{place}: {reason}", function.short_name());
        match self.failures() {
            Some(failures) => self.finish(PushStatus::Error, Some(EndedBy::Region), format!("{failures}; {said}")),
            None => self.finish(PushStatus::Aborted, Some(EndedBy::Gate), said),
        }
    }
}
