//! Whose turn it is.

use super::planner::Planner;
use super::view::PushView;
use crate::entities::{EndedBy, OnNewPush, Phase, PushState, PushStatus, RegionPush, RegionState, WrapUp};

/// What a new push finds before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Another push runs or waits, and the store refuses a second one.
    Refused {
        /// That push.
        by: String,
    },
    /// It is accepted, and starts or waits its turn.
    Open {
        /// The pushes that give way for it.
        ended: Vec<String>,
        /// The one of them that runs, if one does.
        supersedes: Option<String>,
        /// Whether the next push has to wait for this one: it ends one that had begun to swap, and ending such ones again
        /// and again would starve the regions that come last.
        protected: bool,
    },
}

/// What becomes of the pushes that run and wait when a new one comes: what the store's `on_new_push` says.
#[must_use]
pub fn way_of_new_push(view: &PushView) -> Way {
    let policy = view.store.on_new_push;
    if let Some(by) = view.busy().filter(|_| policy == OnNewPush::Refuse) {
        return Way::Refused { by: by.clone() };
    }
    // The newest waits its turn: what waited before it is superseded.
    let waiting = view.pushes.iter().filter(|(_, facts)| facts.push.state == PushState::Queued);
    let mut ended: Vec<String> = waiting.map(|(id, _)| id.clone()).collect();
    let gives_way = view.running().filter(|(_, facts)| policy == OnNewPush::Supersede && !facts.push.protected);
    ended.extend(gives_way.map(|(id, _)| id.clone()));
    let protected =
        gives_way.is_some_and(|(_, facts)| facts.push.regions.values().any(|region| region.state.is_told_to_serve()));
    Way::Open { ended, supersedes: gives_way.map(|(id, _)| id.clone()), protected }
}

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
