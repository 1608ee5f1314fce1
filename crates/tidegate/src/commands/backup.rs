//! `tidegate backup`.

use tidegate_server::backup::{self, BackupFailure, Place, Taken};
use tidegate_server::{ConfigFile, Environment};

use crate::arguments::{BackupArguments, PlaceArguments};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, bytes, counted, moment, plain};

pub(super) async fn run(arguments: BackupArguments, output: Output) -> Result<Exit, Failure> {
    let place = place_of(arguments.place)?;
    let taken = backup::back_up(&place, &arguments.to, arguments.with_artifacts)
        .await
        .map_err(|error| failure_of("the backup was not taken", &error))?;
    output.result(&taken, text)?;
    if taken.not_copied.is_empty() {
        return Ok(Exit::Done);
    }
    let list: Vec<String> = taken
        .not_copied
        .iter()
        .map(|failed| format!("version {} of {}: {}", failed.artifact.version, failed.artifact.store, failed.why))
        .collect();
    Err(Failure::new(
        format!("{} could not be copied", counted(list.len() as u64, "artifact")),
        list.join("; "),
        "The state is backed up, and these artifacts are not.",
        "Look at the artifact store, and take another backup.",
    ))
}

fn text(taken: &Taken, style: Style) -> String {
    let mut text = format!(
        "{} {}: revision {} as of {}, {}, {}, {}",
        style.mark(Paint::Good),
        plain(&taken.path.display().to_string()),
        taken.revision,
        moment(taken.taken_at),
        counted(taken.stores, "store"),
        if taken.pushes == 1 { "1 push".to_owned() } else { format!("{} pushes", taken.pushes) },
        bytes(taken.bytes)
    );
    let artifacts = counted(taken.artifacts.len() as u64, "artifact");
    match (&taken.artifacts_folder, &taken.artifact_store) {
        (Some(folder), _) => {
            let copied = taken.artifacts.len() - taken.not_copied.len();
            text.push_str(&format!("\n  {copied} of {artifacts} in {}", plain(&folder.display().to_string())));
        }
        (None, Some(store)) => text.push_str(&format!("\n  {artifacts} named, which stay in {}", plain(store))),
        (None, None) => text.push_str(&format!("\n  {artifacts} named")),
    }
    text
}

/// What the command line and the configuration say about where an installation is.
pub(super) fn place_of(arguments: PlaceArguments) -> Result<Place, Failure> {
    let config = match &arguments.config {
        None => ConfigFile::default(),
        Some(path) => ConfigFile::read(path).map_err(|error| {
            Failure::usage("the configuration can't be used", error.to_string(), "Mend the file that --config names.")
        })?,
    };
    let mut artifacts = config.artifacts;
    if arguments.artifacts.is_some() {
        artifacts.url = arguments.artifacts;
    }
    let database = arguments.database.or(config.server.database);
    if database.is_none() && arguments.data.is_none() {
        return Err(Failure::usage(
            "it is not said which installation",
            "Neither --data nor --database is given, and no configuration names a database.",
            "Name the servers' data folder with --data, or their PostgreSQL with --database.",
        ));
    }
    let environment = Environment::of_process();
    Ok(Place { data: arguments.data, database, schema: config.server.schema, artifacts, environment })
}

pub(super) fn failure_of(what: &str, error: &BackupFailure) -> Failure {
    let countermeasures = match error {
        BackupFailure::NoPlace => "Name the servers' data folder with --data, or their PostgreSQL with --database.",
        BackupFailure::NoArtifactStore => "Name the artifact store with --artifacts, or the data folder with --data.",
        BackupFailure::InUse { .. } => "Stop the server, restore, and start it again.",
        BackupFailure::Backup(error) => match error {
            backup::BackupError::Exists { .. } => "Choose another name.",
            backup::BackupError::NotABackup { .. } => "Name a file that `tidegate backup` has written.",
            backup::BackupError::NewerFormat { .. } => "Use the release that wrote it, or a later one.",
            backup::BackupError::Damaged { .. } => "Take another copy of it, or an earlier backup.",
            _ => "Mend what the text names, and repeat the command.",
        },
        _ => "Mend what the text names, and repeat the command.",
    };
    Failure::new(what, error.to_string(), "Nothing was changed.", countermeasures)
}
