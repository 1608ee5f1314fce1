//! X8: the database's processes die in mid-commit and in mid-receipt, between the first statement and the answer: one session
//! is ended, or all of them with a crash, and every so often the whole database is restarted.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

use super::aim::Aim;
use super::chaos::Sql;
use super::evidence::Evidence;
use super::fleet::Fleet;
use super::plan::Action;
use super::server::Answer;
use super::settings::Settings;
use super::verdict::Verdict;

/// How many kills there are.
const KILLS: usize = 12;
const LONG_KILLS: usize = 200;
/// How far apart restarts of the database are.
const RESTART_EVERY: Duration = Duration::from_secs(10);
/// And after how many kills at the latest, so that a short run has both kinds.
const RESTART_AFTER: usize = 5;
/// How long the database may take to answer after a crash.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Where a server is held when its session dies.
const AIMS: [Aim; 4] = [Aim::Commit, Aim::Completion, Aim::WriteLock, Aim::Receipt];

/// What was done, and what came of what had been submitted.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Kills, by where the server was.
    pub(crate) kills: BTreeMap<Aim, usize>,
    pub(crate) crashes: usize,
    pub(crate) restarts: usize,
    /// Submissions by how they ended.
    pub(crate) answers: BTreeMap<&'static str, usize>,
    /// Servers whose processes ended, and submissions whose end nobody found out.
    pub(crate) broken: Vec<String>,
}

impl fmt::Display for Seen {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "sessions killed {:?}, {} of them with the whole database, {} restarts; submissions {:?}",
            self.kills, self.crashes, self.restarts, self.answers
        )
    }
}

/// Settings of the run.
pub(crate) fn settings(settings: Settings) -> Settings {
    let mut settings = Settings { aimed: true, ..settings.planned("backends") };
    let slots = settings.serving.hooks[0].slots;
    settings.serving.hooks.push(super::serving::HookOrders::first(super::workload::PLAIN, slots));
    settings
}

/// How many kills a run has.
pub(crate) fn kills(settings: &Settings) -> usize {
    if settings.long { LONG_KILLS } else { KILLS }
}

/// Makes the run and judges it.
pub(crate) async fn run(settings: &Settings) -> (Verdict, Seen) {
    let (seed, kills) = (settings.seed, kills(settings));
    let fleet = Fleet::start(settings, &[]).await;
    let (fleet, (told, mut seen)) = fleet
        .drive(move |fleet| {
            let mut seen = Seen::default();
            let killed = kill(fleet, seed, kills, &mut seen);
            // Looked at before those that ended would be started again.
            let ended = fleet.ended();
            seen.broken.extend(ended.iter().map(|server| format!("{server} had to be restarted")));
            (killed.and(fleet.come_to_rest()), seen)
        })
        .await;
    let (verdict, evidence) = fleet.judge(told).await;
    count_answers(&evidence, &mut seen);
    (verdict, seen)
}

fn kill(fleet: &mut Fleet, seed: u64, kills: usize, seen: &mut Seen) -> Result<(), String> {
    let mut random = StdRng::seed_from_u64(seed);
    fleet.hear_all("up")?;
    fleet.ask(0, "reach", "reached")?;
    let mut restarted = Instant::now();
    let mut since_restart = 0;
    // Not every server comes to every point at once: it may be about to connect again.
    for round in 0..kills * 4 {
        if seen.kills.values().sum::<usize>() == kills {
            return Ok(());
        }
        let (server, aim) = (round % fleet.servers(), AIMS[round % AIMS.len()]);
        if !fleet.ask_either(server, &format!("hold {}", serde_json::to_string(&aim).unwrap()), "at", "missed") {
            continue;
        }
        let crash = random.random_bool(0.5);
        let pids = sessions(fleet, aim)?;
        // Some die before the next statement is sent, and some while it is carried out or answered.
        let after = Duration::from_micros(random.random_range(0..2_500));
        if random.random_bool(0.8) {
            fleet.tell(server, "go");
            std::thread::sleep(after);
        }
        let one = usize::from(crash).min(pids.len());
        for pid in pids.iter().take(if crash { one } else { pids.len() }) {
            // One that ended a moment ago is as dead.
            let _ = kill_process(*pid, if crash { Signal::KILL } else { Signal::TERM });
        }
        fleet.tell(server, "go");
        if pids.is_empty() {
            continue;
        }
        fleet.note(format!("a session of server-{server} dies at {aim:?}, crash {crash}"));
        *seen.kills.entry(aim).or_default() += 1;
        since_restart += 1;
        if crash {
            seen.crashes += 1;
        }
        if restarted.elapsed() > RESTART_EVERY || since_restart >= RESTART_AFTER {
            fleet.do_to(Action::StopDatabase { crash: seen.restarts.is_multiple_of(2) });
            fleet.do_to(Action::StartDatabase);
            seen.restarts += 1;
            (restarted, since_restart) = (Instant::now(), 0);
        }
    }
    Err(format!("servers came to their points {:?} times only", seen.kills))
}

/// The sessions that carry out what is hit: the one that has the write lock, or those that write receipts.
fn sessions(fleet: &Fleet, aim: Aim) -> Result<Vec<Pid>, String> {
    let statement = match aim {
        Aim::Receipt => {
            "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE application_name LIKE 'tidegate-settle%'"
        }
        Aim::WriteLock | Aim::Commit => {
            "SELECT string_agg(a.pid::text, ' ') FROM pg_stat_activity a JOIN pg_locks l USING (pid) \
             WHERE a.application_name LIKE 'tidegate-commit%' AND l.locktype = 'advisory' AND l.granted"
        }
        // The writes of a run go the way of every commit.
        Aim::Start | Aim::Completion | Aim::Entities | Aim::Compaction | Aim::Pruning => {
            "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE application_name LIKE 'tidegate-commit%'"
        }
    };
    let until = Instant::now() + ANSWER_LIMIT;
    let found = loop {
        // A database that is about to crash lets one in, and ends the session a moment later.
        match Sql::connect(fleet).and_then(|mut sql| sql.text(statement)) {
            Err(_) if Instant::now() < until => {}
            found => break found?.unwrap_or_default(),
        }
    };
    Ok(found.split(' ').filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect())
}

fn count_answers(evidence: &Evidence, seen: &mut Seen) {
    for answered in &evidence.answers {
        let ended = match (answered.answer, answered.resolved) {
            (Some(Answer::Committed { .. } | Answer::Unchanged), _) => "ok",
            (Some(Answer::Rejected), _) => "rejected",
            (Some(Answer::Failed), _) => "failed",
            (Some(Answer::Unknown), Some(_)) => "unknown, then resolved",
            (Some(Answer::Unknown), None) | (None, _) => {
                seen.broken.push(format!("nobody knows what became of {answered:?}"));
                continue;
            }
        };
        *seen.answers.entry(ended).or_default() += 1;
    }
}
