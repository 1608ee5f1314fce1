//! `cargo xtask faults`: thousands of small clusters in process, then real processes on SQLite and on a real PostgreSQL that
//! are killed, stopped and cut off, and what the checkers find in what they leave behind: first servers of the state tree
//! alone, then the whole system. The tests of the crates make the runs; this gives them their settings.

use crate::process::{self, cargo};
use crate::tools;

/// A flag, the variable that the tests read it from, and what it is.
const FLAGS: [(&str, &str, &str); 10] = [
    ("--seconds", SECONDS, "how long faults are injected in the mixed run (60; 1800 with --long yes)"),
    ("--servers", "TIDEGATE_FAULTS_SERVERS", "how many servers"),
    ("--seed", "TIDEGATE_FAULTS_SEED", "where faults and workload are drawn from: each run prints its own"),
    ("--kinds", "TIDEGATE_FAULTS_KINDS", "some of kill,stop,drain,database,cut,silence,client, or none"),
    ("--every", "TIDEGATE_FAULTS_EVERY_MS", "how far apart faults begin, in milliseconds"),
    ("--rounds", "TIDEGATE_FAULTS_ROUNDS", "how many times everything dies at once"),
    ("--long", LONG, "yes: every case has its own figures, and not a part of them; takes hours"),
    ("--folder", "TIDEGATE_FAULTS_FOLDER", "where logs and histories are kept"),
    ("--seeds", SEEDS.0, "how many clusters are played in process, on memory and on SQLite each (2000; 0: none)"),
    (
        "--seeds-from",
        "TIDEGATE_SEEDS_FROM",
        "the first of those seeds: one that failed, with --seeds 1, plays it again",
    ),
];

const LONG: &str = "TIDEGATE_FAULTS_LONG";

/// The test binaries that make runs, with a filter, and whether they play seeds in process.
const RUNS: [(&str, &str, bool); 4] = [
    ("state_seeds", "x05_seeds", true),
    ("state_crash", "x10_", false),
    ("state_faults", "", false),
    ("tidegate_faults", "", false),
];

const SECONDS: &str = "TIDEGATE_FAULTS_SECONDS";

/// How many seeds unless told otherwise: as a part of `test` there are fewer, and runs are shorter.
const SEEDS: (&str, &str) = ("TIDEGATE_SEEDS", "2000");

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let variables = parse(arguments)?;
    tools::postgres()?;
    let is = |variable: (&str, &str)| variables.contains(&variable);
    let mut failed = Vec::new();
    for (binary, filter, seeds) in RUNS {
        if seeds && is((SEEDS.0, "0")) {
            continue;
        }
        let mut command = cargo();
        command.args(["test", "--release", "--workspace", "--test", binary, "--", "--nocapture"]);
        command.args(Some(filter).filter(|filter| !filter.is_empty()));
        command.envs([SEEDS, (SECONDS, if is((LONG, "yes")) { "1800" } else { "60" })]);
        command.envs(variables.iter().copied());
        // What one run finds is no reason not to make the others.
        failed.extend(process::run(&mut command).err());
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

/// `cargo xtask postgres`: the suite on PostgreSQL alone.
pub(crate) fn postgres(filters: &[String]) -> Result<(), String> {
    tools::postgres()?;
    let mut command = cargo();
    command.args(["test", "--release", "--workspace", "--test", "state_postgres", "--"]).args(filters);
    process::run(&mut command)
}

/// Pairs of flag and value as pairs of variable and value.
fn parse(arguments: &[String]) -> Result<Vec<(&'static str, &str)>, String> {
    let mut variables = Vec::new();
    for pair in arguments.chunks(2) {
        let known = FLAGS.iter().find(|(flag, ..)| Some(*flag) == pair.first().map(String::as_str));
        match (known, pair) {
            (Some((_, variable, _)), [_, value]) => variables.push((*variable, value.as_str())),
            _ => {
                let flags = FLAGS.map(|(flag, _, is)| format!("  {flag} VALUE  {is}")).join("\n");
                return Err(format!("{} is no flag with its value. There are:\n{flags}", pair.join(" ")));
            }
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn flags_become_variables_and_others_are_refused() {
        let given = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let arguments = given("--seconds 60 --servers 3");
        let parsed = parse(&arguments);
        assert_eq!(parsed, Ok(vec![("TIDEGATE_FAULTS_SECONDS", "60"), ("TIDEGATE_FAULTS_SERVERS", "3")]));
        for refused in ["--second 60", "--seconds", "60"] {
            assert!(parse(&given(refused)).is_err(), "{refused}");
        }
    }
}
