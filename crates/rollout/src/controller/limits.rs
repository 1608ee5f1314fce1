//! What ends a push by itself or by a user's word: kill, the client's silence, the push limit.

use std::time::Duration;

use super::holds::holds_of;
use super::planner::PushStep;
use super::region::{duration_text, time_text};
use crate::entities::{Alarm, EndedBy, Phase, PushState, PushStatus, RegionState};

impl PushStep<'_> {
    /// Ends the push if something of this has come to pass, and says whether it did.
    pub(super) fn limits(&mut self) -> bool {
        match self.facts.push.state {
            PushState::Ended { .. } | PushState::Running(Phase::GoingBack(_)) => return false,
            PushState::Queued | PushState::Running(_) => {}
        }
        self.killed() || self.client_silent() || self.push_limit()
    }

    fn killed(&mut self) -> bool {
        let Some(kill) = self.facts.push.kill.clone() else { return false };
        let (by, reason) = match kill.superseded_by {
            Some(newer) => (EndedBy::Superseded, format!("superseded by push {newer}")),
            None => (EndedBy::Operator, format!("killed by {}: {}", kill.by, kill.reason)),
        };
        self.finish(PushStatus::Killed, Some(by), reason);
        true
    }

    fn client_silent(&mut self) -> bool {
        if !self.facts.push.needs_client() {
            return false;
        }
        let now = self.now();
        let heard = self.facts.client.as_ref().map_or(self.facts.push.created_at, |client| client.heard_at);
        let since = heard.max(self.facts.push.created_at);
        let limit = Duration::from_millis(self.planner.view.store.limits.client_ms);
        let silent = self.planner.view.uptime.listened(since, now);
        if silent < limit {
            self.planner.wake(now.after(limit.saturating_sub(silent)));
            return false;
        }
        let reason = format!(
            "the push client has been silent since {} ({}, the limit is {}), and its artifact is not complete",
            time_text(since),
            duration_text(silent),
            duration_text(limit)
        );
        self.finish(PushStatus::Error, Some(EndedBy::Limit), reason);
        true
    }

    fn push_limit(&mut self) -> bool {
        let now = self.now();
        let limit = Duration::from_millis(self.planner.view.store.limits.push_ms);
        let counted = self.facts.push.clock.counted(now);
        let running = self.facts.push.clock.running_since.is_some();
        if counted >= limit {
            let held = self.what_holds().map_or(String::new(), |what| format!("; {what}"));
            let reason =
                format!("it has run for {} (the push limit is {}){held}", duration_text(counted), duration_text(limit));
            self.finish(PushStatus::Error, Some(EndedBy::Limit), reason);
            return true;
        }
        if running {
            self.planner.wake(now.after(limit.saturating_sub(counted)));
        }
        self.alarm(counted, limit, running);
        false
    }

    /// Half of the limit spent waiting raises an alarm.
    fn alarm(&mut self, counted: Duration, limit: Duration, running: bool) {
        let now = self.now();
        let half = limit / 2;
        if counted < half {
            if running {
                self.planner.wake(now.after(half.saturating_sub(counted)));
            }
            return;
        }
        if self.facts.push.alarm.is_none()
            && let Some(reason) = self.what_holds()
        {
            self.facts.push.alarm = Some(Alarm { since: now, reason });
        }
    }

    fn what_holds(&self) -> Option<String> {
        let holds = holds_of(&self.planner.view, self.id, self.facts, self.now());
        let texts: Vec<String> = holds.iter().map(ToString::to_string).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    /// Lets the push's clock run or stand still: it stands while a closed window or a freeze holds the push, and nothing
    /// else of it could move.
    pub(super) fn run_clock(&mut self) {
        let PushState::Running(phase) = &self.facts.push.state else { return };
        let now = self.now();
        let holds = holds_of(&self.planner.view, self.id, self.facts, now);
        let stopped = match phase {
            Phase::Regions => {
                let mut waiting = self.facts.push.regions.iter().filter(|(_, region)| !region.state.is_at_rest());
                let all_held = waiting.all(|(name, region)| {
                    // A region that copies, loads or swaps moves, whatever holds the steps after that.
                    let may_be_held = matches!(
                        region.state,
                        RegionState::Waiting | RegionState::Ingested { .. } | RegionState::Baking { .. }
                    );
                    may_be_held && holds.iter().any(|hold| hold.region.as_deref() == Some(name) && hold.stops_clock)
                });
                all_held && holds.iter().any(|hold| hold.stops_clock)
            }
            Phase::Start | Phase::Build | Phase::Schema | Phase::Upload | Phase::End | Phase::GoingBack(_) => {
                holds.iter().any(|hold| hold.region.is_none() && hold.stops_clock)
            }
        };
        self.facts.push.clock.run(!stopped, now);
    }
}
