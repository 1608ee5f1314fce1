//! X17: slots that never rest. Servers join, drain, run no hook for a while, or have no room for a while, and hooks get
//! other numbers of slots; then the same while servers are killed and stopped.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidegate_state::driver::{SlotId, SlotToken};
use tidegate_state::testing::history::{HistoryEvent, Line};

use super::evidence::Evidence;
use super::fleet::Fleet;
use super::plan::{Kind, plan, slot_changes};
use super::settings::Settings;
use super::standstill::{self, HAND_OVER_LIMIT, Judged};
use super::verdict::Verdict;
use super::workload::{EVERY, LATEST};

/// How far apart faults begin, about.
const EVERY_SECOND: Duration = Duration::from_secs(1);

/// How long a run is, and how far apart changes of the number of slots are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Motion {
    pub(crate) length: Duration,
    pub(crate) slots: u32,
    pub(crate) slots_every: Duration,
    /// Servers are killed and stopped too.
    pub(crate) faults: bool,
}

impl Motion {
    /// The sizes of the case, or a short one of it.
    pub(crate) fn sizes(long: bool, faults: bool) -> Vec<Motion> {
        if long {
            let (length, slots_every) = (Duration::from_secs(600), Duration::from_secs(20));
            [32, 512].map(|slots| Motion { length, slots, slots_every, faults }).to_vec()
        } else {
            let (length, slots_every) = (Duration::from_secs(11), Duration::from_secs(4));
            vec![Motion { length, slots: 32, slots_every, faults }]
        }
    }

    /// Settings of a run of this size.
    pub(crate) fn settings(self, settings: Settings) -> Settings {
        let name = if self.faults { "motion-with-faults" } else { "motion" };
        let mut settings = Settings { servers: settings.servers.max(4), ..settings.planned(name) };
        for hook in &mut settings.serving.hooks {
            hook.slots = self.slots;
        }
        settings
    }

    /// How long a key may stand still with room elsewhere: two hand-over limits; with faults, the leases too of a server that
    /// can't hand over any more and of the next one, which may have been hit as well.
    fn still_limit(self, lease: Duration) -> Duration {
        HAND_OVER_LIMIT * 2 + if self.faults { lease * 2 } else { Duration::ZERO }
    }
}

/// Makes the run and judges it.
pub(crate) async fn run(settings: &Settings, motion: Motion) -> (Verdict, Evidence) {
    let mut kinds = Kind::MOVING.to_vec();
    if motion.faults {
        kinds.extend([Kind::Kill, Kind::Stop]);
    }
    let seed = settings.seed;
    let mut actions = plan(seed, &kinds, settings.servers, EVERY_SECOND, settings.lease, motion.length);
    actions.extend(slot_changes(seed, motion.slots, motion.slots_every, motion.length));
    actions.sort_by_key(|(at, _)| *at);
    let fleet = Fleet::start(settings, &[]).await;
    let (fleet, told) = fleet
        .drive(move |fleet| {
            let up = fleet.hear_all("up");
            let started = Instant::now();
            for (at, action) in actions {
                std::thread::sleep(at.saturating_sub(started.elapsed()));
                fleet.do_to(action);
            }
            std::thread::sleep(motion.length.saturating_sub(started.elapsed()));
            up.and(fleet.come_to_rest())
        })
        .await;
    fleet.judge(told).await
}

/// What breaks the rules of slots in motion, and how much was moved.
pub(crate) fn broken(evidence: &Evidence, settings: &Settings, motion: Motion) -> (String, Vec<String>) {
    let asked = standstill::asked(&evidence.stored, &evidence.history);
    let room = usize::try_from(settings.serving.room).unwrap();
    let judged = Judged { history: &evidence.history, asked: &asked, hooks: &[EVERY, LATEST], room };
    let still = standstill::find(&judged, motion.still_limit(settings.lease));
    let leases = evidence.history.iter().filter(|line| matches!(line.event, HistoryEvent::SlotLeased { .. })).count();
    let told = format!("{leases} leases of slots, the longest standstill of a key {:?}", still.longest);
    let mut found = still.broken;
    if !motion.faults {
        found.extend(ended_leases(&evidence.history));
    }
    (told, found)
}

/// Slots that passed on, or were lost, without having been released: a lease has ended.
pub(crate) fn ended_leases(history: &[Line]) -> Vec<String> {
    let mut held: HashMap<SlotId, SlotToken> = HashMap::new();
    let mut found = Vec::new();
    for line in history {
        match &line.event {
            HistoryEvent::SlotLeased { fence, .. } => {
                if let Some(before) = held.insert(fence.slot, fence.token) {
                    found.push(format!("token {} was never released: {line:?}", before.0));
                }
            }
            HistoryEvent::SlotReleased { fence } => {
                if held.get(&fence.slot) == Some(&fence.token) {
                    held.remove(&fence.slot);
                }
            }
            HistoryEvent::SlotLost { .. } => found.push(format!("a lease has ended: {line:?}")),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use tidegate_state::driver::ServerId;
    use tidegate_state::testing::history::fence;

    use super::*;

    fn history(events: &[HistoryEvent]) -> Vec<Line> {
        let line = |(at, event): (usize, &HistoryEvent)| Line {
            at: at as u64,
            server: "server-0".to_owned(),
            event: event.clone(),
        };
        events.iter().enumerate().map(line).collect()
    }

    fn leased(token: u64) -> HistoryEvent {
        HistoryEvent::SlotLeased { id: ServerId(uuid::Uuid::nil()), fence: fence(1, 3, token) }
    }

    #[test]
    fn x17_a_lease_that_ended_is_found_and_a_release_is_none() {
        let released = HistoryEvent::SlotReleased { fence: fence(1, 3, 5) };
        let lost = HistoryEvent::SlotLost { fence: fence(1, 3, 5) };
        assert_eq!(ended_leases(&history(&[leased(5), released, leased(6)])).len(), 0);
        assert_eq!(ended_leases(&history(&[leased(5), leased(6)])).len(), 1);
        assert_eq!(ended_leases(&history(&[leased(5), lost])).len(), 1);
    }
}
