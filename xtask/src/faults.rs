//! `cargo xtask faults`: real processes on a real PostgreSQL that are killed, stopped and cut off, and what the checkers
//! find in what they leave behind: first servers of the state tree alone, then the whole system. The tests of the crates
//! make the runs; this gives them their settings.

use crate::process::{self, cargo};
use crate::tools;

/// A flag, the variable that the tests read it from, and what it is.
const FLAGS: [(&str, &str, &str); 8] = [
    ("--seconds", "TIDEGATE_FAULTS_SECONDS", "how long faults are injected"),
    ("--servers", "TIDEGATE_FAULTS_SERVERS", "how many servers"),
    ("--seed", "TIDEGATE_FAULTS_SEED", "where faults and workload are drawn from"),
    ("--kinds", "TIDEGATE_FAULTS_KINDS", "some of kill,stop,drain,database,cut,silence,client, or none"),
    ("--every", "TIDEGATE_FAULTS_EVERY_MS", "how far apart faults begin, in milliseconds"),
    ("--rounds", "TIDEGATE_FAULTS_ROUNDS", "how many times everything dies at once"),
    ("--long", "TIDEGATE_FAULTS_LONG", "yes: cases with figures of their own have those"),
    ("--folder", "TIDEGATE_FAULTS_FOLDER", "where logs and histories are kept"),
];

/// The test binaries that make runs.
const RUNS: [&str; 2] = ["state_faults", "tidegate_faults"];

/// How long faults are injected unless told otherwise; as a part of `test` a run is shorter.
const SECONDS: (&str, &str) = ("TIDEGATE_FAULTS_SECONDS", "60");

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let variables = parse(arguments)?;
    tools::postgres()?;
    let mut failed = Vec::new();
    for binary in RUNS {
        let mut command = cargo();
        command.args(["test", "--release", "--workspace", "--test", binary, "--", "--nocapture"]);
        command.envs([SECONDS]).envs(variables.iter().copied());
        // What one run finds is no reason not to make the other.
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
