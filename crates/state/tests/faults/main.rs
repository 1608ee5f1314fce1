//! Section X on PostgreSQL: servers are real processes, the database is a real one, faults are signals, restarts and a
//! proxy that cuts or swallows what goes through it.
//!
//! One mixed run is made for all tests of this binary; each test looks at one side of what came of it. What the run did is
//! drawn from a seed that is printed, and is repeated by giving it:
//!
//! | variable | is |
//! |---|---|
//! | `TIDEGATE_FAULTS_SECONDS` | how long faults are injected (15) |
//! | `TIDEGATE_FAULTS_SERVERS` | how many servers (3) |
//! | `TIDEGATE_FAULTS_SEED` | where faults and workload are drawn from |
//! | `TIDEGATE_FAULTS_KINDS` | which faults: some of `kill,stop,drain,database,cut,silence` (all), or `none` |
//! | `TIDEGATE_FAULTS_EVERY_MS` | how far apart they begin, about (3000) |
//! | `TIDEGATE_FAULTS_FOLDER` | where logs and histories are kept; otherwise they go when the run was sound |
//!
//! `cargo xtask faults` sets them from its flags, and makes a long run of it.
#![allow(clippy::unwrap_used)]

mod evidence;
mod plan;
mod run;
mod server;
mod settings;
mod verdict;
mod workload;

use std::sync::{LazyLock, Mutex};

use tidegate_state::testing::postgres;

use self::plan::Kind;
use self::settings::Settings;
use self::verdict::Verdict;

/// The run that most tests look at; none where there is no PostgreSQL.
static MIXED: LazyLock<Option<Verdict>> = LazyLock::new(|| run_with(&Settings::from_environment()));

fn run_with(settings: &Settings) -> Option<Verdict> {
    if postgres::skipped().is_some() {
        return None;
    }
    // One run at a time: two of them would take each other's leases for want of time.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!(
        "a run of {} s with {} servers, TIDEGATE_FAULTS_SEED={}",
        settings.seconds, settings.servers, settings.seed
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let verdict = runtime.block_on(run::run(settings));
    println!("{verdict}");
    Some(verdict)
}

/// What the run found, or nothing where it could not be made; said in the table of skips then.
fn mixed() -> Option<&'static Verdict> {
    MIXED.as_ref()
}

#[test]
fn x05_servers_that_die_stop_and_are_cut_off_break_no_guarantee() {
    let Some(verdict) = mixed() else { return };
    assert!(verdict.violations.is_empty(), "{verdict}\n{}", verdict.violations.join("\n"));
    assert!(verdict.changes > 0 && verdict.runs > 0, "nothing happened: {verdict}");
}

#[test]
fn x02_without_faults_nothing_runs_twice() {
    let Some(verdict) = run_with(&Settings::from_environment().without_faults()) else { return };
    assert!(verdict.violations.is_empty(), "{verdict}\n{}", verdict.violations.join("\n"));
    assert!(verdict.changes > 0 && verdict.runs > 0 && verdict.repeated == 0, "{verdict}");
    let keys: usize = verdict.keys_by_server.values().sum();
    for (server, own) in &verdict.keys_by_server {
        assert!(own * 5 >= keys, "{server} ran {own} of {keys} keys: {verdict}");
    }
}

#[test]
fn x03_servers_that_are_killed_and_come_back_break_no_guarantee() {
    let Some(verdict) = run_with(&Settings::from_environment().with_only("kills", Kind::Kill)) else { return };
    assert!(verdict.violations.is_empty(), "{verdict}\n{}", verdict.violations.join("\n"));
    assert!(verdict.faults > 0 && verdict.runs > 0, "nothing happened: {verdict}");
}

#[test]
fn x13_servers_that_drain_in_turn_run_everything_exactly_once() {
    let Some(verdict) = run_with(&Settings::from_environment().with_only("drains", Kind::Drain)) else { return };
    assert!(verdict.violations.is_empty(), "{verdict}\n{}", verdict.violations.join("\n"));
    assert!(verdict.faults > 0 && verdict.runs > 0 && verdict.repeated == 0, "{verdict}");
}

#[test]
fn x04_what_a_stopped_server_still_sends_is_refused() {
    let Some(verdict) = mixed() else { return };
    // That it happens is left to chance; that it is told, if it does, is not.
    assert!(verdict.accepted_late.is_empty(), "{verdict}\n{}", verdict.accepted_late.join("\n"));
}

#[test]
fn x07_each_change_counts_once_however_often_it_ran() {
    let Some(verdict) = mixed() else { return };
    assert!(verdict.miscounted.is_empty(), "{verdict}\n{}", verdict.miscounted.join("\n"));
}

#[test]
fn x08_every_answer_agrees_with_the_log() {
    let Some(verdict) = mixed() else { return };
    assert!(verdict.false_answers.is_empty(), "{verdict}\n{}", verdict.false_answers.join("\n"));
}
