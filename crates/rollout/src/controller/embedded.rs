//! Embedded clients: their two gates, beside ingestion, and what a region's swap waits for.

use tidegate_lifecycle::Function;
use tidegate_lifecycle::GateStep;

use super::planner::PushStep;
use super::region::{Refusal, refusal};
use crate::entities::{EmbeddedSwap, Milestone};

impl PushStep<'_> {
    /// Asks the two gates as far as they are due, or says which refused. The permission itself is part of the assignment.
    pub(super) fn embedded_gates(&mut self, name: &str) -> Option<Refusal> {
        let before = Function::PreStartOfStoreVersionIngestionForDaVinci;
        match self.ask(before, Some(name)) {
            GateStep::Open => self.reach(name, Milestone::EmbeddedAllowed),
            other => return refusal(other, before, name),
        }
        let after = Function::PostStartOfStoreVersionIngestionForDaVinci;
        match self.ask(after, Some(name)) {
            GateStep::Open => None,
            other => refusal(other, after, name),
        }
    }

    /// Whether both gates have opened.
    pub(super) fn embedded_open(&self, name: &str) -> bool {
        self.opened_at(Function::PostStartOfStoreVersionIngestionForDaVinci, Some(name)).is_some()
    }

    /// Whether the region's embedded clients are as far as its swap needs: serving, or holding the version where they swap
    /// with the region. A region without clients is not held up.
    pub(super) fn embedded_ready(&self, name: &str) -> bool {
        let view = &self.planner.view;
        let Some(report) = view.regions.get(name).and_then(|facts| facts.current_report(&view.store)) else {
            return true;
        };
        let counts = report.embedded.versions.get(&self.facts.push.version).copied().unwrap_or_default();
        let ready = match view.store.embedded_swap {
            EmbeddedSwap::Alone => counts.serving,
            EmbeddedSwap::WithRegion => counts.ingested,
        };
        ready >= report.embedded.live
    }

    /// What is wrong, where more of the region's embedded clients are dead than the store allows. Those whose grace time
    /// is not over are not dead yet: the swap waits for them.
    pub(super) fn too_many_dead(&self, name: &str) -> Option<String> {
        let view = &self.planner.view;
        let counts = &view.regions.get(name)?.current_report(&view.store)?.embedded;
        let (dead, all) = (u64::from(counts.dead), u64::from(counts.dead) + u64::from(counts.live));
        let allowed = u64::from(view.store.embedded_dead_percent_max);
        (dead * 100 > all * allowed)
            .then(|| format!("{dead} of {all} embedded clients are dead, and at most {allowed} % may be"))
    }
}
