//! Regions that come late: added, or marked available again, while no push runs. They get what is served elsewhere,
//! through their own gates, without a new push. The push whose version it is has ended, and stays as it ended.

use tidegate_lifecycle::Verdict;

use super::planner::{Planner, PushStep};
use crate::entities::{Availability, PushState, RegionPush, RegionState, VersionStatus};

impl Planner {
    pub(super) fn catch_up(&mut self) {
        let busy = self.view.pushes.values().any(|facts| !facts.push.status().is_final());
        if busy {
            return;
        }
        self.invite();
        let ids: Vec<String> = self
            .view
            .pushes
            .iter()
            .filter(|(_, facts)| facts.push.regions.values().any(|region| region.late && !region.state.is_at_rest()))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            self.with_push(&id, |step| step.late_regions());
        }
    }

    /// Lets every region begin that lacks the version which is released.
    fn invite(&mut self) {
        let Some((number, version)) = self.view.released() else { return };
        let push = version.push.clone();
        let lacking: Vec<(String, Option<u64>)> = self
            .view
            .regions
            .iter()
            .filter(|(_, facts)| matches!(facts.region.availability, Availability::Available))
            // What is pinned there wins until it is lifted.
            .filter(|(_, facts)| facts.pinned_to_another(&self.view.store, number).is_none())
            .filter(|(_, facts)| facts.serve().is_none_or(|serving| serving < number))
            .map(|(name, facts)| (name.clone(), facts.served_before(&self.view.store)))
            .collect();
        self.with_push(&push, |step| {
            for (name, serving) in lacking {
                let joins = match step.facts.push.regions.get(&name) {
                    None => true,
                    Some(region) => matches!(region.state, RegionState::LeftOut { .. }),
                };
                // An operator who took it back here meant it.
                let taken_back = step
                    .planner
                    .view
                    .versions
                    .get(&number)
                    .and_then(|version| version.regions.get(&name))
                    .is_some_and(|region| region.status == VersionStatus::RolledBack);
                if joins && !taken_back {
                    let region = RegionPush { late: true, ..RegionPush::new(serving) };
                    step.facts.push.regions.insert(name, region);
                }
            }
        });
    }

    /// A new push takes every region along, so those that are still catching up stop.
    pub(super) fn recall_late_regions(&mut self) {
        let ids: Vec<String> = self.view.pushes.keys().cloned().collect();
        for id in ids {
            self.with_push(&id, |step| {
                let now = step.now();
                let names: Vec<String> = step
                    .facts
                    .push
                    .regions
                    .iter()
                    .filter(|(_, region)| region.late && !region.state.is_at_rest() && !region.state.is_told_to_serve())
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in names {
                    let reason = "a newer push takes it along".to_owned();
                    step.set_region(&name, RegionState::LeftOut { reason, since: now });
                    step.forget_version_in(&name);
                }
            });
        }
    }
}

impl PushStep<'_> {
    fn late_regions(&mut self) {
        debug_assert!(matches!(self.facts.push.state, PushState::Ended { .. }));
        let names: Vec<String> = self
            .facts
            .push
            .regions
            .iter()
            .filter(|(_, region)| region.late && !region.state.is_at_rest())
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            match self.region(&name) {
                // What a gate refuses concerns this region alone: all others have served the version for a while.
                Some(refusal) if refusal.verdict == Verdict::Rollback => self.turn_back(&name),
                Some(_) if self.told_to_serve(&name) => {
                    let since = self.now();
                    self.set_region(&name, RegionState::Done { since });
                }
                Some(_) => self.stop(&name),
                None => {}
            }
        }
    }

    fn told_to_serve(&self, name: &str) -> bool {
        self.facts.push.regions.get(name).is_some_and(|region| region.state.is_told_to_serve())
    }
}
