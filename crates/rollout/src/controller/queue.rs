//! Whose turn it is.

use super::planner::Planner;
use crate::entities::{EndedBy, Phase, PushState, PushStatus, RegionPush, RegionState, WrapUp};

impl Planner {
    /// Starts the push that waits, once the one before it has ended. Where it waited for another, that one's `post_end`
    /// comes first.
    pub(super) fn admit(&mut self) {
        if self.view.running().is_some() {
            return;
        }
        // One waits at most, but what was superseded ends in the same turn as its successor is admitted.
        let waiting = self
            .view
            .pushes
            .iter()
            .filter(|(_, facts)| facts.push.state == PushState::Queued && facts.push.kill.is_none())
            .max_by_key(|(_, facts)| facts.push.version)
            .map(|(id, facts)| (id.clone(), facts.push.created_at));
        let Some((id, created_at)) = waiting else { return };
        let predecessor_open = self.view.pushes.values().any(|facts| match &facts.push.state {
            PushState::Ended { end, wrap_up } => *wrap_up != WrapUp::Done && end.at >= created_at,
            PushState::Queued | PushState::Running(_) => false,
        });
        if predecessor_open {
            return;
        }
        self.activate(&id);
    }

    fn activate(&mut self, id: &str) {
        self.recall_late_regions();
        let now = self.now;
        let regions = self.view.regions.iter().map(|(name, facts)| {
            let mut region = RegionPush::new(facts.served_before(&self.view.store));
            if let crate::entities::Availability::Unavailable { reason, by, .. } = &facts.region.availability {
                let reason = format!("marked unavailable by {by}: {reason}");
                region.state = RegionState::LeftOut { reason, since: now };
            }
            (name.clone(), region)
        });
        let regions: std::collections::BTreeMap<_, _> = regions.collect();
        let none = !regions.values().any(|region| region.state == RegionState::Waiting);
        self.with_push(id, |step| {
            step.facts.push.regions = regions;
            step.facts.push.started_at = Some(now);
            step.facts.push.clock.run(true, now);
            step.facts.push.state = PushState::Running(Phase::Start);
            if none {
                let reason = "every region is marked unavailable, or there is none".to_owned();
                step.finish(PushStatus::Error, Some(EndedBy::Region), reason);
            }
        });
    }
}
