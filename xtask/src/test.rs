//! `cargo xtask test`: every test of the workspace, the table of skips, and the check of the map of cases.

use std::collections::BTreeSet;
use std::path::Path;

use crate::acceptance::{self, TestName};
use crate::binaries;
use crate::process::{cargo, run_by_line};
use crate::tools;

pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let mut required = BTreeSet::new();
    let mut filters = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--require" => {
                let names = rest.next().ok_or("--require takes names, separated by commas")?;
                required.extend(names.split(',').map(str::to_owned));
            }
            filter => filters.push(filter.to_owned()),
        }
    }

    tools::postgres()?;
    let skip_log = std::env::temp_dir().join(format!("tidegate-skips-{}", std::process::id()));
    let _ = std::fs::remove_file(&skip_log);
    let mut results = Results::default();
    match binaries::build()? {
        None => results.well = false,
        Some(binaries) => {
            binaries::run(binaries, &filters, &[("TIDEGATE_SKIP_LOG", &skip_log)], |ended| {
                println!("{}", ended.binary.headline());
                results.binary(&ended.binary.headline());
                ended.output.lines().for_each(|line| results.line(line));
                results.well &= ended.well;
            })?;
            let mut examples = cargo();
            examples.args(["test", "--release", "--workspace", "--doc"]);
            if !filters.is_empty() {
                examples.arg("--").args(&filters);
            }
            let ended = run_by_line(&mut examples, |line| results.line(line))?;
            results.well &= ended.success();
        }
    }
    let Results { passed, failed, well, .. } = results;

    let skips = print_skips(&skip_log);
    let _ = std::fs::remove_file(&skip_log);
    if !well {
        // At the end too, where whoever looks at a long log looks first.
        return Err(match failed.as_slice() {
            [] => "the tests could not be built, or one of their programs died; the reason is above".to_owned(),
            names => format!("{} tests failed:\n{}", names.len(), names.join("\n")),
        });
    }
    if let Some((name, reason)) =
        skips.iter().find(|(name, _)| required.iter().any(|required| name.contains(required.as_str())))
    {
        return Err(format!("{name} was skipped ({reason}) and is required"));
    }
    if filters.is_empty() {
        acceptance::check(&passed)?;
    }
    Ok(())
}

/// What the tests have said so far.
struct Results {
    binary: String,
    passed: BTreeSet<TestName>,
    failed: Vec<String>,
    well: bool,
}

impl Default for Results {
    fn default() -> Self {
        Results { binary: String::new(), passed: BTreeSet::new(), failed: Vec::new(), well: true }
    }
}

impl Results {
    /// What follows is of the binary that this line names.
    fn binary(&mut self, headline: &str) {
        if let Some(running) = acceptance::binary_of(headline) {
            self.binary = running;
        }
    }

    fn line(&mut self, line: &str) {
        println!("{line}");
        if let Some(name) = passed_test(line) {
            self.passed.insert(TestName { binary: self.binary.clone(), name: name.to_owned() });
        }
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failed.push(format!("{} {name}", self.binary));
        }
    }
}

/// The test that this line says has passed. One that has to panic is printed with a remark, and listed without it.
fn passed_test(line: &str) -> Option<&str> {
    let name = line.strip_prefix("test ")?.strip_suffix(" ... ok")?;
    Some(name.strip_suffix(" - should panic").unwrap_or(name))
}

/// A test that can't run here appends `name<TAB>reason` to the file that `TIDEGATE_SKIP_LOG` names.
fn print_skips(log: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let skips: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, why)| (name.to_owned(), why.to_owned()))
        .collect();
    if skips.is_empty() {
        println!("\nno test was skipped");
    } else {
        println!("\n| skipped | why |\n|---|---|");
        for (name, reason) in &skips {
            println!("| {name} | {reason} |");
        }
    }
    skips
}

#[cfg(test)]
mod tests {
    use super::passed_test;

    #[test]
    fn a_test_goes_by_one_name_whether_it_is_listed_or_run() {
        assert_eq!(passed_test("test memory::k09_zombie ... ok"), Some("memory::k09_zombie"));
        assert_eq!(passed_test("test kit::u02_held - should panic ... ok"), Some("kit::u02_held"));
        for none in ["test memory::k09_zombie ... FAILED", "test a ... ignored", "running 2 tests"] {
            assert_eq!(passed_test(none), None, "{none}");
        }
    }
}
