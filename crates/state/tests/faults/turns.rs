//! X13: every server in turn is told to leave, leaves and comes back, round by round, while the others write and run.

use std::time::Duration;

use super::evidence::Evidence;
use super::fleet::Fleet;
use super::motion::ended_leases;
use super::plan::Action;
use super::settings::Settings;
use super::standstill::{self, Judged};
use super::verdict::Verdict;
use super::workload::{EVERY, LATEST};

/// How many times each server has its turn.
const ROUNDS: usize = 5;
/// How long a server may take to leave: no run takes long, so its drain has nothing to wait for.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// What the run shows beside its verdict.
pub(crate) struct Found {
    pub(crate) verdict: Verdict,
    pub(crate) evidence: Evidence,
    /// How long each server took to leave.
    pub(crate) drains: Vec<Duration>,
}

/// Makes the run and judges it.
pub(crate) async fn run(settings: &Settings) -> Found {
    let fleet = Fleet::start(settings, &[]).await;
    let (fleet, (told, drains)) = fleet
        .drive(|fleet| {
            let mut drains = Vec::new();
            let turned = turn(fleet, &mut drains);
            (turned.and(fleet.come_to_rest()), drains)
        })
        .await;
    let (verdict, evidence) = fleet.judge(told).await;
    Found { verdict, evidence, drains }
}

fn turn(fleet: &mut Fleet, drains: &mut Vec<Duration>) -> Result<(), String> {
    fleet.hear_all("up")?;
    for server in (0..fleet.servers()).cycle().take(fleet.servers() * ROUNDS) {
        let begun = std::time::Instant::now();
        fleet.do_to(Action::Drain(server));
        fleet.gone(server);
        drains.push(begun.elapsed());
        fleet.do_to(Action::Start(server));
        fleet.hear(server, "up")?;
    }
    Ok(())
}

/// What breaks the rules of servers that leave in order, and how long they took.
pub(crate) fn broken(found: &Found, settings: &Settings) -> (String, Vec<String>) {
    let history = &found.evidence.history;
    let asked = standstill::asked(&found.evidence.stored, history);
    let room = usize::try_from(settings.serving.room).unwrap();
    let judged = Judged { history, asked: &asked, hooks: &[EVERY, LATEST], room };
    let still = standstill::find(&judged, DRAIN_LIMIT);
    let longest = found.drains.iter().max().copied().unwrap_or_default();
    let told = format!(
        "{} drains, the longest {longest:?}; the longest standstill of a key {:?}",
        found.drains.len(),
        still.longest
    );
    let mut broken = still.broken;
    broken.extend(ended_leases(history));
    if found.drains.len() != settings.servers * ROUNDS || longest > DRAIN_LIMIT {
        broken.push(told.clone());
    }
    (told, broken)
}
