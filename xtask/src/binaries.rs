//! The test binaries of the workspace: built by cargo, then run two at a time, since many of them mostly wait. What each
//! prints is kept together.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};

use crate::process::{cargo, root, run_by_line};

/// How many run at once.
const AT_ONCE: usize = 2;

/// Those that take longest, begun first, so that none of them is left at the end alone.
const LONGEST: [&str; 6] =
    ["state_postgres", "tidegate_behaviour", "state_faults", "tidegate_faults", "state_behaviour", "state_seeds"];

/// A test binary.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    /// What it is built from, as cargo says it: `tests/behaviour/main.rs`, `unittests src/lib.rs`.
    source: String,
    program: PathBuf,
}

impl Binary {
    /// Of a line that cargo prints when it has built tests.
    fn of(line: &str) -> Option<Binary> {
        let rest = line.trim_start().strip_prefix("Executable ")?;
        let (source, program) = rest.strip_suffix(')')?.rsplit_once(" (")?;
        Some(Binary { source: source.to_owned(), program: root().join(program) })
    }

    /// Its name, without the hash.
    pub(crate) fn name(&self) -> &str {
        let file = self.program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        file.rsplit_once('-').map_or(file, |(name, _)| name)
    }

    /// The line that cargo prints before it runs one.
    pub(crate) fn headline(&self) -> String {
        format!("     Running {} ({})", self.source, self.program.display())
    }

    fn rank(&self) -> usize {
        LONGEST.iter().position(|name| *name == self.name()).unwrap_or(LONGEST.len())
    }

    /// The folder of its crate, where cargo runs it.
    fn folder(&self) -> PathBuf {
        let folders =
            std::fs::read_dir(root().join("crates")).into_iter().flatten().flatten().map(|entry| entry.path());
        let folder = folders.filter(|folder| is_of(self, folder)).min();
        folder.unwrap_or_else(root)
    }
}

/// Whether a binary is of the crate in this folder.
fn is_of(binary: &Binary, folder: &Path) -> bool {
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    let package = binary.name().replace('_', "-");
    manifest
        .lines()
        .any(|line| line == format!("name = \"{}\"", binary.name()) || line == format!("name = \"{package}\""))
}

/// What a binary printed, and whether it ended well.
pub(crate) struct Ended {
    pub(crate) binary: Binary,
    pub(crate) output: String,
    pub(crate) well: bool,
}

/// Builds all test binaries; none if they could not be built, which was printed then.
pub(crate) fn build() -> Result<Option<Vec<Binary>>, String> {
    let mut command = cargo();
    command.args(["test", "--release", "--workspace", "--no-run"]);
    let mut binaries = Vec::new();
    let ended = run_by_line(&mut command, |line| {
        println!("{line}");
        binaries.extend(Binary::of(line));
    })?;
    binaries.sort_by_key(Binary::rank);
    Ok(ended.success().then_some(binaries))
}

/// Runs them with these arguments and variables, and gives each to `ended` when it has.
pub(crate) fn run(
    binaries: Vec<Binary>,
    arguments: &[String],
    variables: &[(&str, &Path)],
    mut ended: impl FnMut(Ended),
) -> Result<(), String> {
    let waiting = Mutex::new(VecDeque::from(binaries));
    let next = || waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front();
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            let sender = sender.clone();
            scope.spawn(move || {
                while let Some(binary) = next() {
                    let ended = run_one(&binary, arguments, variables);
                    if sender.send(ended.map(|(output, well)| Ended { binary, output, well })).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for result in receiver {
            ended(result?);
        }
        Ok(())
    })
}

fn run_one(binary: &Binary, arguments: &[String], variables: &[(&str, &Path)]) -> Result<(String, bool), String> {
    let folder = binary.folder();
    let mut command = Command::new(&binary.program);
    command.args(arguments).current_dir(&folder).env("CARGO_MANIFEST_DIR", &folder);
    command.envs(variables.iter().copied()).stdin(Stdio::null());
    let mut output = String::new();
    let status = run_by_line(&mut command, |line| {
        output.push_str(line);
        output.push('\n');
    })?;
    if !status.success() {
        output.push_str(&format!("{} ended with {status}\n", binary.name()));
    }
    Ok((output, status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_is_known_by_the_line_that_cargo_prints_when_it_is_built() {
        let binary = Binary::of("  Executable tests/behaviour/main.rs (/x/release/deps/state_behaviour-0a1b)").unwrap();
        assert_eq!((binary.source.as_str(), binary.name()), ("tests/behaviour/main.rs", "state_behaviour"));
        assert_eq!(binary.headline(), "     Running tests/behaviour/main.rs (/x/release/deps/state_behaviour-0a1b)");
        assert_eq!(binary.folder(), root().join("crates/state"));
        let binary = Binary::of("  Executable unittests src/lib.rs (/x/release/deps/tidegate_dataset-0a1b)").unwrap();
        assert_eq!(binary.folder(), root().join("crates/dataset"));
        assert_eq!(Binary::of("   Compiling tidegate v0.1.0 (/x/crates/tidegate)"), None);
    }
}
