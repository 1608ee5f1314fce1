//! X14: requests wait while servers come and go, and one gets slow. How much is going on follows the number of servers, none
//! idles while keys of another wait, and slots move no more than that takes. Judged by the recorded history: what counts is
//! how many of the servers' places are taken by runs, whatever the machine makes of their length.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use tidegate_state::RequestId;
use tidegate_state::testing::history::{HistoryEvent, Line, moves};

use super::chaos::nanoseconds;
use super::evidence::Evidence;
use super::fleet::Fleet;
use super::idleness;
use super::plan::Action;
use super::settings::Settings;
use super::standstill::{self, HAND_OVER_LIMIT, number_of};
use super::verdict::Verdict;

/// How many servers are up in each step.
const STEPS: [usize; 4] = [1, 3, 6, 2];
/// How much of the servers' places is taken at least while keys wait.
const TAKEN_MIN: f64 = 0.75;
/// How much longer the runs of the slow server take.
const SLOWER: u64 = 10;

/// How much is run, and for how long it is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) requests: u64,
    /// How long a run takes.
    pub(crate) pace: Duration,
    pub(crate) window: Duration,
}

impl Size {
    /// The size of the case, or a small one of it. In that runs take longer, so that they and not the machine set the pace.
    pub(crate) fn of(long: bool) -> Size {
        let (requests, pace, window) = if long { (10_000, 20, 5_000) } else { (2_400, 50, 1_500) };
        Size { requests, pace: Duration::from_millis(pace), window: Duration::from_millis(window) }
    }

    /// Settings of a run of this size.
    pub(crate) fn settings(self, settings: Settings) -> Settings {
        let mut settings = Settings { servers: 6, writers: 0, begin_with: Some(STEPS[0]), ..settings.planned("steps") };
        settings.serving.hooks.truncate(1);
        settings.serving.room = 2;
        settings.serving.pace_ms = u64::try_from(self.pace.as_millis()).unwrap();
        settings
    }
}

/// A step, and the time in which its throughput is looked at, in nanoseconds of the machine's clock.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    servers: Vec<usize>,
    /// How many were up before.
    before: usize,
    begun: u64,
    from: u64,
    until: u64,
}

/// What the run shows beside its verdict.
pub(crate) struct Found {
    pub(crate) verdict: Verdict,
    pub(crate) evidence: Evidence,
    pub(crate) steps: Vec<Step>,
    /// When one server got slow.
    pub(crate) slow_from: u64,
}

/// Makes the run and judges it.
pub(crate) async fn run(settings: &Settings, size: Size) -> Found {
    let fleet = Fleet::start(settings, &[]).await;
    let pace = settings.serving.pace_ms;
    let (fleet, (told, steps, slow_from)) = fleet
        .drive(move |fleet| {
            let mut steps = Vec::new();
            let stepped = go_through(fleet, size, &mut steps);
            let slow_from = nanoseconds();
            fleet.note("slow".to_owned());
            fleet.tell(1, &format!("pace {}", pace * SLOWER));
            let told = fleet.come_to_rest_as_it_is();
            (stepped.and(told), steps, slow_from)
        })
        .await;
    let (verdict, evidence) = fleet.judge(told).await;
    Found { verdict, evidence, steps, slow_from }
}

fn go_through(fleet: &mut Fleet, size: Size, steps: &mut Vec<Step>) -> Result<(), String> {
    fleet.hear_all("up")?;
    fleet.ask(0, &format!("fill {}", size.requests), "filled")?;
    let mut before = 0;
    for servers in STEPS {
        let begun = nanoseconds();
        for server in before..servers {
            if server > 0 {
                fleet.do_to(Action::Start(server));
            }
        }
        for server in servers..before {
            fleet.do_to(Action::Drain(server));
        }
        for server in servers..before {
            fleet.gone(server);
        }
        if servers > before && before > 0 {
            (before..servers).try_for_each(|server| fleet.hear(server, "up"))?;
        }
        // Slots pass on within the hand-over limit.
        std::thread::sleep(HAND_OVER_LIMIT);
        let from = nanoseconds();
        std::thread::sleep(size.window);
        steps.push(Step { servers: (0..servers).collect(), before, begun, from, until: nanoseconds() });
        before = servers;
    }
    Ok(())
}

/// What is going on in a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Throughput {
    servers: usize,
    /// Starts of runs in a second, of all servers together.
    started: f64,
    /// How much of the time of all places runs took.
    taken: f64,
    /// How many slots were leased since the step began, and how many leases it takes at most.
    leases: (usize, usize),
}

/// What is wrong with how work was shared, and what is to be told of it: servers that idled for longer than a lease and the
/// hand-over limit, and more leases than moving each slot there and back takes since one server got slow.
pub(crate) fn badly_shared(found: &Found, settings: &Settings) -> (String, Vec<String>) {
    let (history, slots) = (&found.evidence.history, settings.serving.hooks[0].slots);
    let asked = standstill::asked(&found.evidence.stored, history);
    let room = usize::try_from(settings.serving.room).unwrap();
    let judged = idleness::Judged { history, asked: &asked, slots, room };
    let (longest, mut broken) = idleness::find(&judged, settings.lease + HAND_OVER_LIMIT);
    let ran = |line: &&Line| matches!(line.event, HistoryEvent::RunEnded { .. });
    let end = history.iter().rev().find(ran).map_or(found.slow_from, |line| line.at);
    let (moved, took) =
        (leases(history, found.slow_from, end), Duration::from_nanos(end.saturating_sub(found.slow_from)));
    if moved > 2 * usize::try_from(slots).unwrap() {
        broken.push(format!("{moved} leases of slots since one of two servers got slow, of {slots} slots"));
    }
    let told =
        format!("idle for {longest:?} at most; with a slow server {took:?} and {moved} leases of slots until the end");
    (told, broken)
}

struct Going {
    server: usize,
    from: u64,
    until: u64,
}

fn runs(history: &[Line]) -> Vec<Going> {
    let end = history.last().map_or(0, |line| line.at);
    let mut open: HashMap<(RequestId, u64), Going> = HashMap::new();
    let mut ended = Vec::new();
    for line in history {
        match (&line.event, number_of(&line.server)) {
            (HistoryEvent::RunStarted { request, token, .. }, Some(server)) => {
                open.insert((*request, *token), Going { server, from: line.at, until: end });
            }
            (HistoryEvent::RunEnded { request, token, .. }, Some(_)) => {
                if let Some(going) = open.remove(&(*request, *token)) {
                    ended.push(Going { until: line.at, ..going });
                }
            }
            _ => {}
        }
    }
    ended.extend(open.into_values());
    ended
}

fn is_within(at: u64, from: u64, until: u64) -> bool {
    (from..until).contains(&at)
}

fn leases(history: &[Line], from: u64, until: u64) -> usize {
    moves(history).filter(|(line, _)| is_within(line.at, from, until)).count()
}

/// How many leases it takes at most that servers come or go one after the other: each that comes takes its share, and each
/// that goes leaves its own. Each that was there may give one more to a newcomer that has not said yet that its keys wait.
fn leases_max(before: usize, after: usize, slots: usize) -> usize {
    let shares =
        |servers: std::ops::RangeInclusive<usize>| -> usize { servers.map(|servers| slots.div_ceil(servers)).sum() };
    if after >= before { shares(before + 1..=after) + before } else { shares(after + 1..=before) }
}

/// What was going on in each step.
pub(crate) fn throughputs(history: &[Line], steps: &[Step], room: usize, slots: usize) -> Vec<Throughput> {
    let runs = runs(history);
    let of_step = |step: &Step| {
        let length = step.until - step.from;
        let own = runs.iter().filter(|run| step.servers.contains(&run.server));
        let taken: u64 = own.map(|run| run.until.min(step.until).saturating_sub(run.from.max(step.from))).sum();
        let started = runs.iter().filter(|run| is_within(run.from, step.from, step.until)).count();
        Throughput {
            servers: step.servers.len(),
            started: started as f64 / Duration::from_nanos(length).as_secs_f64(),
            taken: taken as f64 / (length as f64 * (room * step.servers.len()) as f64),
            leases: (leases(history, step.begun, step.until), leases_max(step.before, step.servers.len(), slots)),
        }
    };
    steps.iter().map(of_step).collect()
}

/// The table of a run.
pub(crate) fn table(throughputs: &[Throughput]) -> String {
    let mut text = String::from(
        "| servers | starts in a second | places taken | leases of slots | at most |\n|---|---|---|---|---|\n",
    );
    for of in throughputs {
        let (leases, most) = of.leases;
        writeln!(text, "| {} | {:.0} | {:.0} % | {leases} | {most} |", of.servers, of.started, of.taken * 100.0)
            .unwrap();
    }
    text
}

/// What is wrong with a run's throughput.
pub(crate) fn broken(throughputs: &[Throughput]) -> Vec<String> {
    let mut found = Vec::new();
    for of in throughputs {
        if of.taken < TAKEN_MIN {
            found.push(format!("{} servers had {:.0} % of their places taken", of.servers, of.taken * 100.0));
        }
        if of.leases.0 > of.leases.1 {
            found.push(format!("{} leases of slots for a step to {} servers: {of:?}", of.leases.0, of.servers));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use tidegate_state::driver::{HookNumber, ServerId};
    use tidegate_state::testing::history::{HistoryEvent, RunOutcome, fence};
    use tidegate_state::{Delivery, Revision};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn run(from: u64, until: u64, server: usize, revision: u64) -> [Line; 2] {
        let request = RequestId { revision: Revision(revision), sequence: 0, hook: HookNumber(1) };
        let (hook, key, token) = ("every".to_owned(), revision.to_string(), revision);
        let started = HistoryEvent::RunStarted {
            hook: hook.clone(),
            version: 1,
            delivery: Delivery::EveryChange,
            key: key.clone(),
            fence: fence(1, 0, 1),
            token,
            request,
            attempt: 1,
            snapshot: Revision(revision),
        };
        let ended = HistoryEvent::RunEnded { hook, key, token, request, outcome: RunOutcome::Done };
        let line = |at, event| Line { at: at * SECOND, server: format!("server-{server}"), event };
        [line(from, started), line(until, ended)]
    }

    fn leased(at: u64, slot: u32, token: u64, server: u64) -> Line {
        let id = ServerId(uuid::Uuid::nil());
        let event = HistoryEvent::SlotLeased { id, fence: fence(1, slot, token) };
        Line { at: at * SECOND, server: format!("server-{server}"), event }
    }

    /// Two servers are up from second 0 on, after one; what counts is from second 10 to 20.
    fn of(history: Vec<Line>) -> Throughput {
        let (begun, from, until) = (0, 10 * SECOND, 20 * SECOND);
        let step = Step { servers: vec![0, 1], before: 1, begun, from, until };
        throughputs(&history, &[step], 1, 4).remove(0)
    }

    #[test]
    fn x14_places_that_are_not_taken_are_found() {
        let half = of([run(5, 30, 0, 1), run(12, 14, 1, 2)].concat());
        assert!((half.taken - 0.6).abs() < 1e-9, "{half:?}");
        assert_eq!(broken(&[half]).len(), 1);
        let all = of([run(5, 30, 0, 1), run(11, 19, 1, 2)].concat());
        assert_eq!(broken(&[all]), Vec::<String>::new());
    }

    #[test]
    fn x14_more_leases_than_a_step_takes_are_found() {
        let busy = [run(5, 30, 0, 1), run(5, 30, 1, 2)].concat();
        let with = |owners: &[u64]| {
            let leases: Vec<Line> = (0..).zip(owners).map(|(token, owner)| leased(3, 0, token, *owner)).collect();
            broken(&[of([busy.clone(), leases].concat())]).len()
        };
        assert_eq!((with(&[0, 1, 0]), with(&[0, 1, 0, 1]), with(&[0, 1, 1, 1])), (0, 1, 0));
    }

    #[test]
    fn x14_servers_that_come_or_go_in_turn_take_their_shares() {
        assert_eq!((leases_max(0, 1, 32), leases_max(1, 3, 32), leases_max(3, 6, 32)), (32, 27 + 1, 21 + 3));
        assert_eq!(leases_max(6, 2, 32), 6 + 7 + 8 + 11);
    }
}
