//! `docs/acceptance.md`: which tests cover which case, and which cases are open. Written from the tests that there are;
//! a full run of the tests fails if it names one that did not run, leaves one out, or calls a covered case open.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::cases::{Document, HOOKS_AND_ROLLOUTS, STATE_TREE};
use crate::process::{cargo, root, run_by_line};

/// A test: the binary that it is in (`tidegate_state`, `behaviour`, …, without the hash) and its path within.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TestName {
    pub(crate) binary: String,
    pub(crate) name: String,
}

/// The binary that the tests after this line of cargo's are in: its crate and target, as `state/behaviour`.
pub(crate) fn binary_of(line: &str) -> Option<String> {
    let rest = line.trim_start().strip_prefix("Running ")?;
    let (source, artifact) = rest.rsplit_once(" (")?;
    let file = artifact.trim_end_matches(')').rsplit('/').next()?;
    let name = file.rsplit_once('-').map_or(file, |(name, _hash)| name);
    // Test binaries of several crates share a name, so a crate's own tests are told apart by what the binary is built from.
    Some(if source.starts_with("unittests") { name.to_owned() } else { format!("tests/{name}") })
}

fn path() -> PathBuf {
    root().join("docs/acceptance.md")
}

/// Writes the document anew, keeping the remarks that stand in it.
pub(crate) fn write() -> Result<(), String> {
    let mut tests = BTreeSet::new();
    let mut binary = String::new();
    let mut command = cargo();
    command.args(["test", "--release", "--workspace", "--", "--list", "--format", "terse"]);
    let ended = run_by_line(&mut command, |line| {
        if let Some(running) = binary_of(line) {
            binary = running;
        } else if let Some(name) = line.strip_suffix(": test") {
            tests.insert(TestName { binary: binary.clone(), name: name.to_owned() });
        }
    })?;
    if !ended.success() {
        return Err("the tests could not be listed".to_owned());
    }
    let old = std::fs::read_to_string(path()).unwrap_or_default();
    std::fs::write(path(), render(&tests, &remarks(&old))).map_err(|error| error.to_string())
}

/// Fails unless the document says just what the tests that passed say.
pub(crate) fn check(passed: &BTreeSet<TestName>) -> Result<(), String> {
    let document = std::fs::read_to_string(path()).map_err(|error| format!("docs/acceptance.md: {error}"))?;
    let expected = render(passed, &remarks(&document));
    if document == expected {
        return Ok(());
    }
    let difference = document.lines().zip(expected.lines()).find(|(is, should)| is != should);
    let (is, should) = difference.unwrap_or(("(its end)", "(more or fewer lines)"));
    Err(format!(
        "docs/acceptance.md does not say what the tests say; run `cargo xtask acceptance`\n  is:     {is}\n  should: {should}"
    ))
}

/// The remarks by document and case: what a covered case still lacks. Written by hand, in the last column.
fn remarks(document: &str) -> BTreeMap<(String, String), String> {
    let mut title = String::new();
    let mut remarks = BTreeMap::new();
    for line in document.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            title = heading.to_owned();
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let [_, id, _, remark, _] = cells.as_slice() {
            let id = id.trim_end_matches(" ★");
            if !remark.is_empty() && *remark != "open" && id.len() <= 3 {
                remarks.insert((title.clone(), id.to_owned()), (*remark).to_owned());
            }
        }
    }
    remarks
}

fn render(tests: &BTreeSet<TestName>, remarks: &BTreeMap<(String, String), String>) -> String {
    let mut text = String::from(
        "# Acceptance cases and their tests\n\nWritten by `cargo xtask acceptance`; a full test run fails if it lies. A case without a test is open; a remark says what\na covered one still lacks. ★ marks the cases that matter most.\n",
    );
    // A test binary of another crate never carries a case of the state tree, and the other way round.
    let of_state = |test: &&TestName| test.binary == "tidegate_state" || test.binary.starts_with("tests/state_");
    let (state, others): (Vec<&TestName>, Vec<&TestName>) = tests.iter().partition(of_state);
    render_document(&mut text, &STATE_TREE, &state, remarks);
    render_document(&mut text, &HOOKS_AND_ROLLOUTS, &others, remarks);
    text
}

fn render_document(
    text: &mut String,
    document: &Document,
    tests: &[&TestName],
    remarks: &BTreeMap<(String, String), String>,
) {
    let mut by_case: BTreeMap<(char, u32), Vec<String>> = BTreeMap::new();
    for test in tests {
        if let Some(case) = document.case_of(&test.name) {
            by_case.entry(case).or_default().push(format!("`{}::{}`", test.binary, test.name));
        }
    }
    let total: u32 = document.sections.iter().map(|section| section.cases).sum();
    let _ = write!(text, "\n## {}\n\n{} of {total} cases have tests.\n", document.title, by_case.len());
    for section in document.sections {
        let _ =
            write!(text, "\n### {}. {}\n\n| case | tests | remark |\n|---|---|---|\n", section.letter, section.title);
        for number in 1..=section.cases {
            let star = if section.starred.contains(&number) { " ★" } else { "" };
            let tests = by_case.get(&(section.letter, number)).map(|tests| tests.join("<br>")).unwrap_or_default();
            let remark = remarks.get(&(document.title.to_owned(), format!("{}{number}", section.letter)));
            let remark = remark.map_or(if tests.is_empty() { "open" } else { "" }, String::as_str);
            let _ = writeln!(text, "| {}{number}{star} | {tests} | {remark} |", section.letter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_without_a_test_is_open_and_remarks_are_kept() {
        let tests = BTreeSet::from([
            TestName { binary: "tidegate_state".to_owned(), name: "memory::k09_zombie".to_owned() },
            TestName { binary: "tests/rollout_behaviour".to_owned(), name: "h5_hanging".to_owned() },
        ]);
        let first = render(&tests, &BTreeMap::new());
        assert!(first.contains("| K9 ★ | `tidegate_state::memory::k09_zombie` |  |"), "{first}");
        assert!(first.contains("| K8 |  | open |"));
        assert!(first.contains("| H5 ★ | `tests/rollout_behaviour::h5_hanging` |  |"));
        let remarked = first.replace("h5_hanging` |  |", "h5_hanging` | blocking threads only |");
        assert_eq!(render(&tests, &remarks(&remarked)), remarked);
    }

    #[test]
    fn binaries_are_told_by_what_cargo_runs() {
        let line = "     Running unittests src/lib.rs (target/release/deps/tidegate_state-0a1b)";
        assert_eq!(binary_of(line).as_deref(), Some("tidegate_state"));
        let line = "     Running tests/behaviour/main.rs (/x/release/deps/state_behaviour-0a1b)";
        assert_eq!(binary_of(line).as_deref(), Some("tests/state_behaviour"));
        assert_eq!(binary_of("test a ... ok"), None);
    }
}
