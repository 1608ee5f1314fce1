//! The whole system under faults: servers on one PostgreSQL, an agent and a node for each region, push clients, all of them
//! the command as a process, with readers at every agent and node all the time.
//!
//! What is done is drawn from a seed that is printed, and is repeated by giving it; how processes then interleave is not.
//!
//! | variable | is |
//! |---|---|
//! | `TIDEGATE_FAULTS_SECONDS` | how long faults are injected (15) |
//! | `TIDEGATE_FAULTS_SERVERS` | how many servers (2), and regions (as many, 2 at least and 3 at most) |
//! | `TIDEGATE_FAULTS_SEED` | where faults and pushes are drawn from |
//! | `TIDEGATE_FAULTS_KINDS` | which faults: some of `kill,stop,drain,database,cut,silence,client` (all), or `none` |
//! | `TIDEGATE_FAULTS_EVERY_MS` | how far apart they begin, about (1500) |
//! | `TIDEGATE_FAULTS_FOLDER` | where logs are kept; otherwise they go when the run was sound |
//!
//! `cargo xtask faults` sets them from its flags, and makes a long run of it.
//!
//! | file | has |
//! |---|---|
//! | `plan` | which faults happen when |
//! | `fleet`, `process` | the processes, and what is done to them |
//! | `readers`, `pushes` | who reads and who pushes |
//! | `evidence` | what a run leaves behind |
//! | `verdict` | the checker: a pure function of the evidence |
#![allow(clippy::unwrap_used)]

mod evidence;
mod fleet;
mod guarantees;
mod plan;
mod process;
mod pushes;
mod readers;
mod run;
mod settings;
mod verdict;
#[cfg(test)]
mod verdict_tests;

use std::sync::LazyLock;

use tidegate_state::testing::postgres;

use self::run::Report;
use self::settings::Settings;
use self::verdict::Rule;

/// The run that the tests look at; none where there is no PostgreSQL.
static MIXED: LazyLock<Option<Report>> = LazyLock::new(|| {
    if postgres::skipped().is_some() {
        return None;
    }
    let settings = Settings::from_environment();
    println!(
        "the whole system: a run of {} s with {} servers and {} regions, TIDEGATE_FAULTS_SEED={}",
        settings.seconds,
        settings.servers,
        settings.regions().len(),
        settings.seed
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let report = runtime.block_on(run::run(&settings));
    println!("{}", report.text());
    Some(report)
});

/// Nothing that the run found breaks one of these rules.
fn holds(rules: &[Rule]) {
    let Some(report) = MIXED.as_ref() else { return };
    let broken = report.verdict.violations.iter().any(|violation| rules.contains(&violation.rule));
    assert!(!broken, "{}", report.text());
    assert!(report.verdict.reads > 0 && !report.verdict.ended.is_empty(), "nothing happened: {}", report.text());
}

#[test]
fn x05_no_read_fails_where_nothing_is_down_and_none_mixes_versions() {
    holds(&[Rule::FailedRead, Rule::MixedVersions, Rule::WrongContent]);
}

#[test]
fn x05_the_hooks_of_the_servers_keep_every_guarantee_and_the_store_is_sound() {
    let Some(report) = MIXED.as_ref() else { return };
    let found = &report.guarantees;
    assert!(found.violations.is_empty(), "{}\n{}", report.text(), found.violations.join("\n"));
    assert!(found.runs > 0, "nothing ran: {}", report.text());
}

#[test]
fn c09_no_region_serves_what_its_assignment_did_not_say() {
    holds(&[Rule::NeverTold, Rule::Outdated]);
}

#[test]
fn c01_every_push_ends_as_its_gates_say_and_its_regions_are_told_so() {
    use Rule::{EndMismatch, FalseAnswer, FinalChanged, ToldAfterEnd, Unended, WrongEnd};
    holds(&[FinalChanged, EndMismatch, ToldAfterEnd, WrongEnd, FalseAnswer, Unended]);
}

#[test]
fn c11_everything_goes_on_by_itself_and_takes_the_next_push() {
    holds(&[Rule::NotAtRest, Rule::NextPush]);
}
