//! `tidegate diff`: two datasets compared, without any server.

use std::path::PathBuf;

use tidegate_dataset::Cancel;
use tidegate_dataset::diff::{DiffError, DiffInput, DiffOptions, diff};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, plain};

pub(super) async fn run(before: PathBuf, after: PathBuf, key: Vec<String>, output: Output) -> Result<Exit, Failure> {
    let work = tempfile::Builder::new().prefix("tidegate-diff-").tempdir()?;
    let options = DiffOptions::new(key, work.path());
    let sides = (input(before), input(after));
    let cancel = Cancel::default();
    let stop = cancel.clone();
    let comparing = tokio::task::spawn_blocking(move || diff(&sides.0, &sides.1, &options, &|_| {}, &stop));
    let report = tokio::select! {
        report = comparing => report.map_err(std::io::Error::other)?,
        _ = tokio::signal::ctrl_c() => {
            cancel.cancel();
            return Ok(Exit::Failed);
        }
    };
    let report = report.map_err(|error| {
        Failure::new(
            "the two could not be compared",
            words(&error),
            "Nothing was changed.",
            "Mend what the text names, and repeat the command.",
        )
    })?;
    output.result(&report, |report, _| plain(&report.to_string()))?;
    Ok(Exit::Done)
}

/// What is wrong, naming the side once: most texts about an input name it themselves.
fn words(error: &DiffError) -> String {
    match error {
        DiffError::Build { side, source } if source.to_string().starts_with(side.as_str()) => source.to_string(),
        other => other.to_string(),
    }
}

/// A folder with a manifest is an artifact; anything else is input.
fn input(path: PathBuf) -> DiffInput {
    if path.join("manifest.json").is_file() { DiffInput::Artifact(path) } else { DiffInput::Files(vec![path]) }
}
