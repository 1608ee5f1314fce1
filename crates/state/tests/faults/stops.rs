//! X4: servers are stopped at the points where it hurts most, by turns: while they hold the write lock, right before a run
//! begins, while they own slots with runs going, while they write the entities or compact. What they send when they go on is
//! late, and the others must not have waited for them.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidegate_state::driver::{SlotId, SlotToken};
use tidegate_state::testing::history::{HistoryEvent, Line};

use super::aim::{Aim, Hit, HitAt};
use super::chaos::nanoseconds;
use super::evidence::Evidence;
use super::fleet::{Fleet, LOCK_LIMIT};
use super::plan::Action;
use super::serving::HookOrders;
use super::settings::{SHORT_LEASE, Settings};
use super::standstill::HAND_OVER_LIMIT;
use super::verdict::Verdict;
use super::workload::PLAIN;

/// How many rounds of all aims there are in the long form: five minutes.
const LONG_ROUNDS: usize = 6;
/// How long nobody may be able to write, above the lock limit: for one commit, on a busy machine; less than what is left of a
/// lease then, so that a lock which goes with the lease alone is found.
const SLACK: Duration = Duration::from_millis(1_500);

/// The time in which a server was stopped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    server: usize,
    aim: Aim,
    from: u64,
    until: u64,
}

impl Window {
    fn told(self) -> String {
        let Window { server, aim, from, until } = self;
        format!("server-{server} stood still at {aim:?} from {from} to {until}")
    }
}

/// What the run shows beside its verdict.
pub(crate) struct Found {
    pub(crate) verdict: Verdict,
    pub(crate) evidence: Evidence,
    pub(crate) windows: Vec<Window>,
}

/// The aims of a run, in their order: all of them again and again, or, in the short form, one of each kind.
pub(crate) fn aims(settings: &Settings) -> Vec<Aim> {
    if settings.long {
        return Aim::ALL.repeat(LONG_ROUNDS);
    }
    let mut random = StdRng::seed_from_u64(settings.seed);
    let lock = [Aim::WriteLock, Aim::Commit][random.random_range(0..2_usize)];
    let upkeep = [Aim::Entities, Aim::Compaction, Aim::Pruning][random.random_range(0..3_usize)];
    vec![lock, Aim::Start, Aim::Completion, Aim::Receipt, upkeep]
}

/// Settings of the run.
pub(crate) fn settings(settings: Settings) -> Settings {
    let mut stops = Settings { aimed: true, lease: SHORT_LEASE, ..settings.planned("stops").compacting() };
    let slots = stops.serving.hooks[0].slots;
    stops.serving.hooks.push(HookOrders::first(PLAIN, slots));
    stops
}

/// Makes the run and judges it.
pub(crate) async fn run(settings: &Settings) -> Found {
    let (aims, lease, seed) = (aims(settings), settings.lease, settings.seed);
    let fleet = Fleet::start(settings, &[]).await;
    let (fleet, (told, windows)) = fleet
        .drive(move |fleet| {
            let mut windows = Vec::new();
            let stopped = stop_by_turns(fleet, &aims, lease, seed, &mut windows);
            (stopped.and(fleet.come_to_rest()), windows)
        })
        .await;
    let (verdict, evidence) = fleet.judge(told).await;
    Found { verdict, evidence, windows }
}

fn stop_by_turns(
    fleet: &mut Fleet,
    aims: &[Aim],
    lease: Duration,
    seed: u64,
    windows: &mut Vec<Window>,
) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(!seed);
    fleet.hear_all("up")?;
    for (round, aim) in aims.iter().enumerate() {
        // Every server has slots, and runs, when one of them is stopped.
        for number in 0..fleet.servers() {
            fleet.ask(number, "reach", "reached")?;
        }
        let told = HitAt { aim: *aim, hit: Hit::Stop, after_us: random.random_range(0..3_000) };
        // Not every server comes to every point: one at a time writes the entities.
        let mut servers = (0..fleet.servers()).cycle().skip(round).take(fleet.servers() * 2);
        let Some(server) = servers.find(|server| fleet.hits_itself(*server, told)) else {
            return Err(format!("no server came to {aim:?}"));
        };
        let from = nanoseconds();
        std::thread::sleep(lease.mul_f64(random.random_range(2.0..2.5)));
        let until = nanoseconds();
        fleet.do_to(Action::Continue(server));
        windows.push(Window { server, aim: *aim, from, until });
    }
    Ok(())
}

/// What breaks the rules of a cluster of which one server is stopped, and what was seen.
pub(crate) fn broken(found: &Found, settings: &Settings) -> (String, Vec<String>) {
    let evidence = &found.evidence;
    let mut broken = Vec::new();
    for aim in aims(settings) {
        if !evidence.hits.contains_key(&aim) {
            broken.push(format!("no server was stopped at {aim:?}"));
        }
    }
    let (mut longest_write, mut longest_slot) = (Duration::ZERO, Duration::ZERO);
    for window in &found.windows {
        let silent = longest_without_a_commit(evidence, *window);
        longest_write = longest_write.max(silent);
        if silent > LOCK_LIMIT + SLACK {
            broken.push(format!("nothing was written for {silent:?} while {}", window.told()));
        }
        for (slot, passed) in passed_on(&evidence.history, *window) {
            let Some(passed) = passed else {
                broken.push(format!("nobody took over {slot:?} while {}", window.told()));
                continue;
            };
            longest_slot = longest_slot.max(passed);
            if passed > settings.lease + HAND_OVER_LIMIT {
                broken.push(format!("{slot:?} was taken over after {passed:?} only, while {}", window.told()));
            }
        }
    }
    let late = late(&evidence.history);
    if !found.windows.is_empty() && (late.receipts == 0 || late.completions == 0) {
        broken.push(format!("nothing came late: {late:?}"));
    }
    let told = format!(
        "{} stops, nothing written for {longest_write:?} and slots without an owner for {longest_slot:?} at most, {late:?}",
        found.windows.len()
    );
    (told, broken)
}

/// The longest time within a window in which no other server committed anything.
fn longest_without_a_commit(evidence: &Evidence, window: Window) -> Duration {
    let stopped = format!("server-{}", window.server);
    let (from, until) = (window.from / 1_000_000, window.until / 1_000_000);
    let others = evidence.stored.log.iter().filter(|row| *row.server != *stopped);
    let times = others.filter_map(|row| u64::try_from(row.at.0).ok()).filter(|at| (from..until).contains(at));
    let mut last = from;
    let mut longest = 0;
    for at in times.chain([until]) {
        longest = longest.max(at.saturating_sub(last));
        last = at;
    }
    Duration::from_millis(longest)
}

/// The slots that the stopped server owned, and how long after the stop each was another's.
fn passed_on(history: &[Line], window: Window) -> Vec<(SlotId, Option<Duration>)> {
    let stopped = format!("server-{}", window.server);
    let mut owned: HashMap<SlotId, SlotToken> = HashMap::new();
    for line in history.iter().take_while(|line| line.at < window.from) {
        match &line.event {
            HistoryEvent::SlotLeased { fence, .. } if line.server == stopped => {
                owned.insert(fence.slot, fence.token);
            }
            HistoryEvent::SlotLeased { fence, .. }
            | HistoryEvent::SlotReleased { fence }
            | HistoryEvent::SlotLost { fence } => {
                owned.remove(&fence.slot);
            }
            _ => {}
        }
    }
    let mut passed = Vec::new();
    for (slot, token) in owned {
        let next = history.iter().filter(|line| line.at >= window.from).find_map(|line| match &line.event {
            HistoryEvent::SlotLeased { fence, .. } if fence.slot == slot && fence.token > token => Some(line.at),
            _ => None,
        });
        passed.push((slot, next.map(|at| Duration::from_nanos(at - window.from))));
    }
    passed
}

/// What came under a token that no longer held, and was refused.
#[derive(Debug, Default)]
struct Late {
    /// Receipts alone.
    receipts: usize,
    /// Receipts with the writes of their runs.
    completions: usize,
}

fn late(history: &[Line]) -> Late {
    let plain: BTreeSet<_> = history
        .iter()
        .filter_map(|line| match &line.event {
            HistoryEvent::RunStarted { hook, request, .. } if hook == PLAIN => Some(request.hook),
            _ => None,
        })
        .collect();
    let mut late = Late::default();
    for line in history {
        if let HistoryEvent::Receipt { request, durable: false, .. } = &line.event {
            if plain.contains(&request.hook) {
                late.receipts += 1;
            } else {
                late.completions += 1;
            }
        }
    }
    late
}

#[cfg(test)]
mod tests {
    use tidegate_state::driver::ServerId;
    use tidegate_state::testing::history::fence;

    use super::*;

    fn line(milliseconds: u64, server: usize, event: HistoryEvent) -> Line {
        Line { at: milliseconds * 1_000_000, server: format!("server-{server}"), event }
    }

    fn leased(milliseconds: u64, server: usize, slot: u32, token: u64) -> Line {
        let id = ServerId(uuid::Uuid::from_u128(server as u128));
        line(milliseconds, server, HistoryEvent::SlotLeased { id, fence: fence(1, slot, token) })
    }

    #[test]
    fn x04_what_a_stopped_server_owned_and_when_it_was_taken_over_is_told() {
        let window = Window { server: 0, aim: Aim::WriteLock, from: 10_000_000, until: 90_000_000 };
        let released = HistoryEvent::SlotReleased { fence: fence(1, 2, 3) };
        let history = vec![
            leased(1, 0, 0, 1),
            leased(2, 0, 1, 2),
            leased(3, 0, 2, 3),
            line(4, 0, released),
            leased(5, 1, 3, 4),
            leased(35, 1, 0, 5),
        ];
        let mut passed = passed_on(&history, window);
        passed.sort_by_key(|(slot, _)| *slot);
        let of = |slot| fence(1, slot, 0).slot;
        assert_eq!(passed, [(of(0), Some(Duration::from_millis(25))), (of(1), None)]);
    }

    #[test]
    fn x04_the_short_form_stops_at_a_lock_amid_runs_and_amid_upkeep() {
        for seed in 0..20 {
            let settings = Settings { seed, long: false, ..Settings::from_environment() };
            let aims = aims(&settings);
            let any = |kind: &[Aim]| aims.iter().any(|aim| kind.contains(aim));
            assert!(any(&[Aim::WriteLock, Aim::Commit]) && any(&[Aim::Completion]) && any(&[Aim::Receipt]));
            assert!(any(&[Aim::Start]));
            assert!(any(&[Aim::Entities, Aim::Compaction, Aim::Pruning]));
        }
    }
}
