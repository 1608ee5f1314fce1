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
            .filter(|(_, facts)| facts.push.regions.values().any(RegionPush::is_catching_up))
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
                let names = step.catching_up(|_, region| !region.state.is_told_to_serve());
                step.leave_out(names, "a newer push takes it along");
            });
        }
    }
}

impl PushStep<'_> {
    /// The late regions that are on their way, and of which something holds.
    fn catching_up(&self, holds: impl Fn(&str, &RegionPush) -> bool) -> Vec<String> {
        let on_their_way = self.facts.push.regions.iter().filter(|(_, region)| region.is_catching_up());
        on_their_way.filter(|(name, region)| holds(name, region)).map(|(name, _)| name.clone()).collect()
    }

    fn leave_out(&mut self, names: Vec<String>, reason: &str) {
        let since = self.now();
        for name in names {
            self.set_region(&name, RegionState::LeftOut { reason: reason.to_owned(), since });
            self.forget_version_in(&name);
        }
    }

    /// What was rolled back everywhere is nothing to catch up with any more, nor is it where a region was told back from it.
    fn recall_from_what_was_taken_back(&mut self) {
        let number = self.facts.push.version;
        if self.planner.view.versions.get(&number).is_none_or(|version| version.rolled_back.is_none()) {
            return;
        }
        let serves = |name: &str| self.planner.view.regions.get(name).and_then(|facts| facts.serve());
        let names = self.catching_up(|name, region| !region.state.is_told_to_serve() || serves(name) != Some(number));
        self.leave_out(names, &format!("version {number} was rolled back"));
    }

    fn late_regions(&mut self) {
        debug_assert!(matches!(self.facts.push.state, PushState::Ended { .. }));
        self.recall_from_what_was_taken_back();
        for name in self.catching_up(|_, _| true) {
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
