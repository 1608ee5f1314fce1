//! What tests ask of the world.

use tidegate_lifecycle::Function;
use tidegate_rollout::controller::PushFacts;
use tidegate_rollout::entities::{PushEnd, PushState, PushStatus, RegionState, VersionStatus, WrapUp};

use super::Simulator;

impl Simulator {
    pub(crate) fn facts(&self, id: &str) -> &PushFacts {
        &self.view.pushes[id]
    }

    pub(crate) fn status(&self, id: &str) -> PushStatus {
        self.view.pushes[id].push.status()
    }

    pub(crate) fn end(&self, id: &str) -> &PushEnd {
        self.view.pushes[id].push.end().unwrap_or_else(|| {
            panic!("{id} has not ended: {:?}", self.view.pushes[id].push);
        })
    }

    pub(crate) fn region(&self, id: &str, region: &str) -> &RegionState {
        &self.view.pushes[id].push.regions[region].state
    }

    /// What the regions' nodes serve.
    pub(crate) fn serving(&self) -> Vec<Option<u64>> {
        self.view.regions.values().map(|facts| facts.report.as_ref().and_then(|report| report.serving)).collect()
    }

    pub(crate) fn version(&self, number: u64) -> VersionStatus {
        self.view.versions[&number].status
    }

    /// Who has been told to hold a version.
    pub(crate) fn holders(&self, number: u64) -> Vec<&str> {
        self.view
            .regions
            .iter()
            .filter(|(_, facts)| {
                facts.assignment.as_ref().is_some_and(|assignment| assignment.hold.contains_key(&number))
            })
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// How often a function was asked, in one region or (without one) anywhere.
    pub(crate) fn asked(&self, function: Function, region: Option<&str>) -> usize {
        self.calls
            .iter()
            .filter(|(_, call)| call.function == function)
            .filter(|(_, call)| region.is_none() || call.region.as_deref() == region)
            .count()
    }

    pub(crate) fn wrapped_up(&self, id: &str) -> bool {
        matches!(self.view.pushes[id].push.state, PushState::Ended { wrap_up: WrapUp::Done, .. })
    }
}
