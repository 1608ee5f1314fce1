//! A region's way with a push: creation gate, assignment, ingestion, swap gate, swap, and the round after it.
//!
//! Every region goes its way by itself: one that waits or fails holds up no other. What their gates refuse is gathered over
//! all regions first, so that the most severe answer counts, whichever region comes first by name.

use tidegate_lifecycle::{Function, GateStep, Verdict};
use tidegate_state::Timestamp;

use super::planner::PushStep;
use crate::entities::{
    Availability, EndedBy, FailureKind, IngestionStatus, Milestone, Phase, Pin, PushState, PushStatus, RegionFailure,
    RegionState, VersionStatus,
};

/// A gate of a region that said no.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) verdict: Verdict,
    pub(super) function: Function,
    pub(super) region: String,
    pub(super) hook: String,
    pub(super) reason: String,
}

impl PushStep<'_> {
    /// All regions, one step each, and what follows when none can move on.
    pub(super) fn regions(&mut self) {
        let names: Vec<String> = self.facts.push.regions.keys().cloned().collect();
        let refusals: Vec<Refusal> = names.iter().filter_map(|name| self.region(name)).collect();
        // The first of the most severe: a later one of the same severity does not take its place.
        let worst =
            refusals.into_iter().reduce(|worst, other| if other.verdict > worst.verdict { other } else { worst });
        match worst {
            Some(refusal) if refusal.verdict == Verdict::Rollback => self.go_back(&refusal),
            Some(refusal) => self.abort(refusal.function, Some(&refusal.region), &refusal.hook, &refusal.reason),
            None => self.when_all_rest(),
        }
    }

    fn when_all_rest(&mut self) {
        let regions = &self.facts.push.regions;
        if regions.values().any(|region| !region.state.is_at_rest()) {
            return;
        }
        let done = regions.values().any(|region| matches!(region.state, RegionState::Done { .. }));
        match self.failures() {
            Some(failures) => self.finish(PushStatus::Error, Some(EndedBy::Region), failures),
            None if done => self.facts.push.state = PushState::Running(Phase::End),
            None => {
                let reason = "no region is left that could take it".to_owned();
                self.finish(PushStatus::Error, Some(EndedBy::Region), reason);
            }
        }
    }

    /// The regions that failed and why, if any did.
    pub(super) fn failures(&self) -> Option<String> {
        let failed: Vec<String> = self
            .facts
            .push
            .regions
            .iter()
            .filter_map(|(name, region)| match &region.state {
                RegionState::Failed(failure) => {
                    Some(format!("region {name} failed ({}): {}", failure.kind.words(), failure.message))
                }
                _ => None,
            })
            .collect();
        (!failed.is_empty()).then(|| failed.join("; "))
    }

    /// One step of one region, or the gate that refused it.
    pub(super) fn region(&mut self, name: &str) -> Option<Refusal> {
        let state = self.facts.push.regions.get(name)?.state.clone();
        if !self.takes_part(name, &state) {
            return None;
        }
        match state {
            RegionState::Waiting => self.create(name),
            RegionState::Ingesting { since } => self.ingest(name, since),
            RegionState::Ingested { since } => self.swap_gate(name, since),
            RegionState::Swapping { since } => {
                self.swapping(name, since);
                None
            }
            RegionState::Baking { .. } => self.bake(name),
            RegionState::GoingBack { .. } => {
                self.confirm_back(name);
                None
            }
            RegionState::Done { .. }
            | RegionState::Failed(_)
            | RegionState::LeftOut { .. }
            | RegionState::Stopped { .. } => None,
        }
    }

    /// Leaves out a region that is gone or was marked unavailable before it was told to serve, and takes one in again
    /// that was left out and is available.
    fn takes_part(&mut self, name: &str, state: &RegionState) -> bool {
        let now = self.now();
        if let Some(reason) = self.pinned(name) {
            return self.rest_while_pinned(name, state, reason);
        }
        let left_out = match self.planner.view.regions.get(name).map(|facts| &facts.region.availability) {
            None => Some("was removed".to_owned()),
            Some(Availability::Unavailable { reason, by, .. }) => Some(format!("marked unavailable by {by}: {reason}")),
            Some(Availability::Available) => None,
        };
        match (left_out, state) {
            (Some(reason), RegionState::Waiting | RegionState::Ingesting { .. } | RegionState::Ingested { .. }) => {
                self.set_region(name, RegionState::LeftOut { reason, since: now });
                self.forget_version_in(name);
                false
            }
            // What was told to serve stays so; only the region itself can say more, and it is gone.
            (
                Some(reason),
                RegionState::Swapping { .. } | RegionState::Baking { .. } | RegionState::GoingBack { .. },
            ) if !self.planner.view.regions.contains_key(name) => {
                self.set_region(name, RegionState::LeftOut { reason, since: now });
                self.forget_version_in(name);
                false
            }
            (None, RegionState::LeftOut { .. }) => {
                let view = &self.planner.view;
                let previous = view.regions.get(name).and_then(|facts| facts.served_before(&view.store));
                if let Some(region) = self.facts.push.regions.get_mut(name) {
                    region.previous = previous;
                    region.state = RegionState::Waiting;
                }
                false
            }
            _ => true,
        }
    }

    /// What is pinned in the region itself, if that is not the push's version.
    fn pinned(&self, name: &str) -> Option<String> {
        let view = &self.planner.view;
        let pin = view.regions.get(name)?.pinned_to_another(&view.store, self.facts.push.version)?;
        Some(pin_text(pin))
    }

    /// A region in which another version is pinned rests: it would confirm nothing, and hold the push up for ever. It is
    /// pointed to what it served before, and goes through its gates once the pin is lifted. What is going back stays so,
    /// and is named as not confirmed.
    fn rest_while_pinned(&mut self, name: &str, state: &RegionState, reason: String) -> bool {
        match state {
            RegionState::Waiting | RegionState::Ingesting { .. } | RegionState::Ingested { .. } => {}
            RegionState::Swapping { .. } | RegionState::Baking { .. } => self.point_back(name),
            _ => return true,
        }
        let since = self.now();
        self.set_region(name, RegionState::LeftOut { reason, since });
        self.forget_version_in(name);
        false
    }

    fn create(&mut self, name: &str) -> Option<Refusal> {
        match self.ask(Function::PreStoreVersionCreation, Some(name)) {
            GateStep::Open => {
                let now = self.now();
                self.set_region(name, RegionState::Ingesting { since: now });
                self.reach(name, Milestone::Assigned);
                self.set_version_in(name, VersionStatus::Started);
                None
            }
            other => refusal(other, Function::PreStoreVersionCreation, name),
        }
    }

    fn ingest(&mut self, name: &str, since: Timestamp) -> Option<Refusal> {
        self.tell(Function::PostStoreVersionCreation, Some(name));
        if let Some(refusal) = self.embedded_gates(name) {
            return Some(refusal);
        }
        match self.reported(name) {
            Some(IngestionStatus::Completed) => {
                let now = self.now();
                self.set_region(name, RegionState::Ingested { since: now });
                self.reach(name, Milestone::Progress);
                self.reach(name, Milestone::Ingested);
                self.set_version_in(name, VersionStatus::Pushed);
            }
            Some(IngestionStatus::Failed { kind, message }) => self.fail(name, kind, message),
            Some(IngestionStatus::Progress { .. }) => {
                self.reach(name, Milestone::Progress);
                self.silence(name, since);
            }
            Some(IngestionStatus::Started) | None => self.silence(name, since),
        }
        None
    }

    fn bake(&mut self, name: &str) -> Option<Refusal> {
        match self.ask(Function::PostStoreVersionSwap, Some(name)) {
            GateStep::Open => {
                let now = self.now();
                self.set_region(name, RegionState::Done { since: now });
                self.reach(name, Milestone::Done);
                None
            }
            other => refusal(other, Function::PostStoreVersionSwap, name),
        }
    }

    /// Counts a region that is being waited for as failed once nothing was heard of it for the region limit, not counting
    /// time in which no server was up to hear it.
    pub(super) fn silence(&mut self, name: &str, since: Timestamp) {
        let now = self.now();
        let view = &self.planner.view;
        let heard = view.regions.get(name).and_then(super::RegionFacts::heard_at);
        let silent_since = heard.map_or(since, |heard| heard.max(since));
        let limit = std::time::Duration::from_millis(view.store.limits.region_ms);
        let silent = view.uptime.listened(silent_since, now);
        if silent < limit {
            self.planner.wake(now.after(limit.saturating_sub(silent)));
            return;
        }
        let message = format!(
            "{name} silent since {} (heard nothing for {}, the limit is {})",
            time_text(silent_since),
            duration_text(silent),
            duration_text(limit)
        );
        self.fail(name, FailureKind::Silent, message);
    }

    /// A region that failed goes on serving what it served.
    pub(super) fn fail(&mut self, name: &str, kind: FailureKind, message: String) {
        let at = self.now();
        let told = self.facts.push.regions.get(name).is_some_and(|region| region.state.is_told_to_serve());
        if told {
            self.point_back(name);
        }
        self.set_region(name, RegionState::Failed(RegionFailure { kind, message, at }));
        self.reach(name, Milestone::Failed);
        self.set_version_in(name, VersionStatus::Error);
    }

    pub(super) fn reported(&self, name: &str) -> Option<IngestionStatus> {
        let view = &self.planner.view;
        view.regions.get(name)?.reported(&view.store, self.facts.push.version).cloned()
    }

    pub(super) fn set_region(&mut self, name: &str, state: RegionState) {
        if let Some(region) = self.facts.push.regions.get_mut(name) {
            region.state = state;
        }
    }

    pub(super) fn reach(&mut self, name: &str, milestone: Milestone) {
        let now = self.now();
        if let Some(region) = self.facts.push.regions.get_mut(name) {
            region.reach(milestone, now);
        }
    }
}

pub(super) fn refusal(step: GateStep, function: Function, region: &str) -> Option<Refusal> {
    let (verdict, hook, reason) = match step {
        GateStep::Abort { hook, reason } => (Verdict::Abort, hook, reason),
        GateStep::Rollback { hook, reason } => (Verdict::Rollback, hook, reason),
        GateStep::Open | GateStep::Ask(_) | GateStep::Waiting { .. } => return None,
    };
    Some(Refusal { verdict, function, region: region.to_owned(), hook, reason })
}

/// A pin, as the push and those who ask it are told.
pub(super) fn pin_text(pin: &Pin) -> String {
    format!("pinned to version {} by {} since {}: {}", pin.version, pin.by, time_text(pin.at), pin.reason)
}

/// A time as people read it, in UTC.
pub(crate) fn time_text(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.0)
        .map_or_else(|_| at.to_string(), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// A duration as people read it.
pub(crate) fn duration_text(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let text = match (days, hours, minutes) {
        (0, 0, 0) => return format!("{}.{:03} s", seconds, duration.subsec_millis()).replace(".000 s", " s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h {minutes} min"),
    };
    // "30 min 0 s" says no more than "30 min", and "14 d 0 h 0 min" no more than "14 d".
    text.replace(" 0 s", "").replace(" 0 min", "").replace(" 0 h", "")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn durations_and_times_are_written_for_people() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (1_800, "30 min"), (90, "1 min 30 s"), (3_600, "1 h"), (1_209_600, "14 d")]
        {
            assert_eq!(duration_text(Duration::from_secs(seconds)), text);
        }
        assert_eq!(duration_text(Duration::from_millis(1_500)), "1.500 s");
        assert_eq!(time_text(Timestamp(0)), "1970-01-01 00:00:00 UTC");
    }
}
