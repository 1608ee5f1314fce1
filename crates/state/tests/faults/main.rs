//! Section X on PostgreSQL: servers are real processes, the database is a real one, faults are signals, restarts and a
//! proxy that cuts or swallows what goes through it.
//!
//! One mixed run is made for all tests of this binary; each test looks at one side of what came of it. What the run did is
//! drawn from a seed that is printed, and is repeated by giving it:
//!
//! | variable | is |
//! |---|---|
//! | `TIDEGATE_FAULTS_SECONDS` | how long faults are injected (60) |
//! | `TIDEGATE_FAULTS_SERVERS` | how many servers (3) |
//! | `TIDEGATE_FAULTS_SEED` | where faults and workload are drawn from |
//! | `TIDEGATE_FAULTS_KINDS` | which faults of the mixed run: some of `kill,stop,drain,database,cut,silence` (all), or `none` |
//! | `TIDEGATE_FAULTS_EVERY_MS` | how far apart they begin, about (3000) |
//! | `TIDEGATE_FAULTS_ROUNDS` | how many times everything dies at once (6) |
//! | `TIDEGATE_FAULTS_LONG` | `yes`: cases have their own figures, and not a part of them |
//! | `TIDEGATE_FAULTS_FOLDER` | where logs and histories are kept; otherwise they go when the run was sound |
//!
//! `cargo xtask faults` sets them from its flags, and makes a long run of it.
#![allow(clippy::unwrap_used)]

mod aim;
mod backends;
mod builds;
mod by_answers;
mod chaos;
mod evidence;
mod fleet;
mod held;
mod idleness;
mod kept;
mod motion;
mod plan;
mod rounds;
mod run;
mod server;
mod serving;
mod settings;
mod silence;
mod standstill;
mod stops;
mod throughput;
mod towers;
mod turns;
mod upgrade;
mod verdict;
mod workload;

use std::sync::{LazyLock, RwLock};

use tidegate_state::Revision;
use tidegate_state::testing::history::looks_at_spread;
use tidegate_state::testing::postgres;

use self::motion::Motion;
use self::settings::Settings;
use self::verdict::Verdict;

/// The run that most tests look at; none where there is no PostgreSQL.
static MIXED: LazyLock<Option<Verdict>> = LazyLock::new(|| run_with(&Settings::from_environment().mixed()));

fn run_with(settings: &Settings) -> Option<Verdict> {
    let told = format!("a run of {} s with {} servers", settings.seconds, settings.servers);
    alone(settings, &told, async |settings| run::run(settings).await.0)
}

/// A run that has the machine to itself: two of them would take each other's leases for want of time. The others are those
/// that mostly wait.
static MACHINE: RwLock<()> = RwLock::new(());

/// Makes a run, unless there is no PostgreSQL.
fn alone<T>(settings: &Settings, told: &str, run: impl AsyncFnOnce(&Settings) -> T) -> Option<T> {
    if postgres::skipped().is_some() {
        return None;
    }
    let _alone = MACHINE.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    Some(made(settings, told, run))
}

/// Makes a run that mostly waits, beside others that do, unless there is no PostgreSQL.
fn beside<T>(settings: &Settings, told: &str, run: impl AsyncFnOnce(&Settings) -> T) -> Option<T> {
    if postgres::skipped().is_some() {
        return None;
    }
    let _beside = MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    Some(made(settings, told, run))
}

fn made<T>(settings: &Settings, told: &str, run: impl AsyncFnOnce(&Settings) -> T) -> T {
    println!("{told}, TIDEGATE_FAULTS_SEED={}", settings.seed);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(settings))
}

fn assert_sound(verdict: &Verdict) {
    println!("{verdict}");
    assert!(verdict.violations.is_empty(), "{verdict}\n{}", verdict.violations.join("\n"));
}

/// What the run found, or nothing where it could not be made; said in the table of skips then.
fn mixed() -> Option<&'static Verdict> {
    MIXED.as_ref()
}

#[test]
fn x05_servers_that_die_stop_and_are_cut_off_break_no_guarantee() {
    let Some(verdict) = mixed() else { return };
    assert_sound(verdict);
    // As many as the case asks of a minute, and so in proportion of any other time.
    let asked = Settings::from_environment().seconds * 1_000 / 60;
    assert!(verdict.changes as u64 >= asked && verdict.runs > 0, "fewer than {asked} changes: {verdict}");
    assert!(verdict.compacted > Revision::ZERO, "nothing was compacted: {verdict}");
    assert!(verdict.traces < verdict.effects, "nothing was pruned: {verdict}");
}

#[test]
fn x02_without_faults_nothing_runs_twice() {
    let settings = Settings::from_environment().without_faults();
    let told = format!("a run of {} s without faults", settings.seconds);
    let Some((verdict, evidence)) = alone(&settings, &told, async |settings| run::run(settings).await) else { return };
    assert_sound(&verdict);
    assert!(verdict.changes > 0 && verdict.runs > 0 && verdict.repeated == 0, "{verdict}");
    let keys: usize = verdict.keys_by_server.values().sum();
    for (server, own) in &verdict.keys_by_server {
        assert!(own * 5 >= keys, "{server} ran {own} of {keys} keys: {verdict}");
    }
    let within = settings.spread_within.unwrap();
    assert!(looks_at_spread(&evidence.history, within) >= 2, "the slots of both hooks were looked at");
}

#[test]
fn x03_servers_that_are_killed_and_come_back_break_no_guarantee() {
    let settings = Settings::from_environment().with_kills();
    let Some((verdict, _)) = beside(&settings, "servers are killed", async |settings| run::run(settings).await) else {
        return;
    };
    assert_sound(&verdict);
    assert!(verdict.faults > 0 && verdict.runs > 0, "nothing happened: {verdict}");
    assert!(verdict.compacted > Revision::ZERO, "nothing was compacted: {verdict}");
}

#[test]
fn x13_servers_that_drain_in_turn_run_everything_exactly_once() {
    let settings = Settings::from_environment().planned("turns");
    let Some(found) = beside(&settings, "every server leaves in turn", async |settings| turns::run(settings).await)
    else {
        return;
    };
    let (told, broken) = turns::broken(&found, &settings);
    println!("{told}");
    assert_sound(&found.verdict);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(found.verdict.runs > 0 && found.verdict.repeated == 0, "{}", found.verdict);
}

#[test]
fn x04_stopped_at_a_lock_amid_runs_and_amid_upkeep_they_hold_up_nobody_and_what_comes_late_is_refused() {
    let settings = stops::settings(Settings::from_environment());
    let Some(found) =
        beside(&settings, "servers are stopped where it hurts", async |settings| stops::run(settings).await)
    else {
        return;
    };
    let (told, broken) = stops::broken(&found, &settings);
    println!("{told}");
    assert_sound(&found.verdict);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn x04_what_a_stopped_server_still_sends_amid_other_faults_is_refused() {
    let Some(verdict) = mixed() else { return };
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

#[test]
fn x08_sessions_that_die_between_a_statement_and_its_answer_leave_one_effect_at_most_and_no_doubt() {
    let settings = backends::settings(Settings::from_environment());
    let Some((verdict, seen)) =
        beside(&settings, "the database's processes die", async |settings| backends::run(settings).await)
    else {
        return;
    };
    println!("{seen}");
    assert_sound(&verdict);
    assert!(seen.broken.is_empty(), "{}", seen.broken.join("\n"));
    assert_eq!(seen.kills.values().sum::<usize>(), backends::kills(&settings), "{seen}");
    assert!(seen.crashes > 0 && seen.restarts > 1, "{seen}");
}

#[test]
fn x06_what_was_acknowledged_right_before_everything_died_has_its_run() {
    let settings = Settings::from_environment().in_rounds();
    let told = format!("{} rounds of writes and the death of everything", settings.rounds);
    let Some((verdict, _)) = alone(&settings, &told, async |settings| rounds::run(settings).await) else { return };
    assert_sound(&verdict);
    assert!(verdict.changes as u64 >= settings.rounds && verdict.runs > 0, "nothing happened: {verdict}");
}

#[test]
fn x09_what_vanishes_without_a_word_costs_a_lease_and_nothing_else() {
    let settings = Settings::from_environment().planned("silence");
    let Some(found) =
        beside(&settings, "one server, all, one way: silent", async |settings| silence::run(settings).await)
    else {
        return;
    };
    assert_sound(&found.verdict);
    let broken = silence::broken(&found.evidence.history, found.window);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(found.lingering.is_empty(), "{}", found.lingering.join("\n"));
}

#[test]
fn x12_servers_of_two_builds_lose_no_field_and_hold_up_no_hook_of_both() {
    let settings = Settings::from_environment().planned("upgrade");
    let Some(found) = beside(&settings, "servers are replaced by the next build, and back", async |settings| {
        upgrade::run(settings).await
    }) else {
        return;
    };
    let (told, broken) = upgrade::broken(&found, &settings);
    println!("{told}");
    assert_sound(&found.verdict);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(found.verdict.runs > 0 && found.verdict.repeated == 0, "{}", found.verdict);
}

#[test]
fn x14_throughput_follows_the_number_of_servers() {
    let settings = Settings::from_environment();
    let size = throughput::Size::of(settings.long);
    let settings = size.settings(settings);
    let Some(found) = alone(&settings, "servers come and go, and one gets slow", async |settings| {
        throughput::run(settings, size).await
    }) else {
        return;
    };
    let hook = &settings.serving.hooks[0];
    let (room, slots) = (settings.serving.room as usize, hook.slots as usize);
    let throughputs = throughput::throughputs(&found.evidence.history, &found.steps, room, slots);
    let (told, shared) = throughput::badly_shared(&found, &settings);
    println!("{}\n{told}", throughput::table(&throughputs));
    assert_sound(&found.verdict);
    assert_eq!((found.verdict.changes as u64, found.verdict.repeated), (size.requests, 0));
    let broken = [throughput::broken(&throughputs), shared].concat();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn x15_a_foreign_transaction_that_stays_open_keeps_servers_from_nothing() {
    let settings = Settings::from_environment();
    let size = held::Size::of(settings.long);
    let settings = size.settings(settings);
    let Some(found) =
        alone(&settings, "a foreign transaction stays open", async |settings| held::run(settings, size).await)
    else {
        return;
    };
    println!("{}", found.seen);
    assert_sound(&found.verdict);
    let broken = held::broken(&found, settings.lease);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn x17_slots_that_never_rest_lose_no_run_and_hold_up_no_key() {
    in_motion(false);
}

#[test]
fn x17_slots_that_never_rest_break_no_guarantee_through_kills_and_stops() {
    in_motion(true);
}

fn in_motion(faults: bool) {
    let settings = Settings::from_environment();
    for motion in Motion::sizes(settings.long, faults) {
        let settings = motion.settings(settings.clone());
        let told = format!("{} slots in motion, kills and stops: {faults}", motion.slots);
        let Some((verdict, evidence)) = alone(&settings, &told, async |settings| motion::run(settings, motion).await)
        else {
            return;
        };
        let (told, broken) = motion::broken(&evidence, &settings, motion);
        println!("{told}");
        assert_sound(&verdict);
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        assert!(faults || verdict.repeated == 0, "{verdict}");
        assert!(verdict.faults > 0 && verdict.runs > 0, "nothing happened: {verdict}");
    }
}

#[test]
fn x16_towers_of_hanoi_are_solved_through_kills() {
    let settings = Settings::from_environment().with_towers();
    let Some((verdict, evidence)) = alone(&settings, "towers of Hanoi", async |settings| run::run(settings).await)
    else {
        return;
    };
    assert_sound(&verdict);
    let broken = towers::broken(&evidence.stored, settings.towers);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn x05_the_public_chaos_set_of_job_queues_loses_no_request() {
    let settings = Settings::from_environment().planned("chaos");
    let Some((verdict, costs)) = alone(&settings, "the public chaos set", async |settings| chaos::run(settings).await)
    else {
        return;
    };
    println!("{}", chaos::table(&costs));
    assert_sound(&verdict);
    assert!(costs.len() == 7 && costs.iter().all(|cost| cost.lost == 0 && cost.recovered.is_some()), "{costs:?}");
}
