//! When a server was up, so that time in which nobody could have listened is not taken for silence.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Root, Timestamp};

/// `/uptime/control-plane`: exists so that the uptime hook has something to run for. Changed by each
/// start of a server alone, so that a mark that an operator has discarded is made again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uptime {
    /// When this installation first ran.
    pub since: Timestamp,
    /// How often a server of it was started.
    #[serde(default)]
    pub starts: u64,
}

impl Uptime {
    /// The id of the only one.
    pub const ID: &'static str = "control-plane";
}

impl Entity for Uptime {
    const COLLECTION: &'static str = "uptime";
    type Parent = Root;
    type Id = String;
}

/// `/uptime/control-plane/marks/last`: written every [`UptimeMark::EVERY`] while a server is up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UptimeMark {
    /// The last mark.
    pub at: Timestamp,
    /// Times in which no server was up, the newest last; at most [`UptimeMark::GAPS_MAX`].
    #[serde(default)]
    pub gaps: Vec<Gap>,
}

/// A time in which no server was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The last mark before it.
    pub from: Timestamp,
    /// The first mark after it.
    pub to: Timestamp,
}

impl UptimeMark {
    /// The id of the only one.
    pub const ID: &'static str = "last";
    /// How often a mark is written.
    pub const EVERY: Duration = Duration::from_secs(20);
    /// Marks further apart than this have a gap between them.
    pub const GAP_MIN: Duration = Duration::from_secs(60);
    /// How many gaps are remembered. Silence limits are minutes or hours; older gaps bear on nothing.
    pub const GAPS_MAX: usize = 64;

    /// The mark after this one.
    #[must_use]
    pub fn marked(&self, now: Timestamp) -> Self {
        let mut gaps = self.gaps.clone();
        gaps.extend(self.open_gap(now));
        let surplus = gaps.len().saturating_sub(Self::GAPS_MAX);
        gaps.drain(..surplus);
        UptimeMark { at: now, gaps }
    }

    /// Before the first mark: nothing is known, so no time counts as a gap.
    #[must_use]
    pub fn unmarked() -> Self {
        UptimeMark { at: Timestamp(i64::MAX), gaps: Vec::new() }
    }

    fn open_gap(&self, now: Timestamp) -> Option<Gap> {
        (now.since(self.at) > Self::GAP_MIN).then_some(Gap { from: self.at, to: now })
    }

    /// How much of the time from `from` to `now` somebody could have listened. A gap that no mark has closed yet counts
    /// as one.
    #[must_use]
    pub fn listened(&self, from: Timestamp, now: Timestamp) -> Duration {
        let deaf: Duration = self
            .gaps
            .iter()
            .copied()
            .chain(self.open_gap(now))
            .map(|gap| gap.to.min(now).since(gap.from.max(from)))
            .sum();
        now.since(from).saturating_sub(deaf)
    }
}

impl Entity for UptimeMark {
    const COLLECTION: &'static str = "marks";
    type Parent = Uptime;
    type Id = String;
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    #[test]
    fn f20_time_in_which_no_server_was_up_is_not_silence() {
        let before = UptimeMark { at: Timestamp(100 * MINUTE), gaps: Vec::new() };
        // An hour later a server is back: nobody could have heard anything since the mark.
        let now = Timestamp(160 * MINUTE);
        assert_eq!(before.listened(Timestamp(95 * MINUTE), now), Duration::from_secs(5 * 60));
        let after = before.marked(now);
        assert_eq!(after.gaps, [Gap { from: Timestamp(100 * MINUTE), to: now }]);
        let later = UptimeMark { at: Timestamp(163 * MINUTE), ..after };
        assert_eq!(later.listened(Timestamp(95 * MINUTE), Timestamp(163 * MINUTE)), Duration::from_secs(8 * 60));
        // Heard within the gap, which can't be: only what lies after it counts.
        assert_eq!(later.listened(Timestamp(130 * MINUTE), Timestamp(163 * MINUTE)), Duration::from_secs(3 * 60));
    }

    #[test]
    fn marks_in_time_leave_no_gap_and_gaps_are_bounded() {
        let mut mark = UptimeMark::default();
        for step in 1..=10 {
            mark = mark.marked(Timestamp(step * 20_000));
        }
        assert!(mark.gaps.is_empty());
        for step in 1..=200 {
            mark = mark.marked(Timestamp(step * 10 * MINUTE));
        }
        assert_eq!(mark.gaps.len(), UptimeMark::GAPS_MAX);
    }
}
