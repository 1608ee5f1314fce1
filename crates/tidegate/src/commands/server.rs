//! `tidegate server`, and the server that the demo runs within its own process.

use std::path::Path;

use tidegate_lifecycle::Registry;
use tidegate_server::{Adoption, ConfigFile, Handle, MissingVersion, Options, Server, StartError};
use tidegate_state::OpenError;
use tidegate_state::driver::DriverError;

use crate::arguments::ServerArguments;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, say};
use crate::parent::Parent;
use crate::stop::StopSignal;

/// How many versions are named that an adopted store lacks.
const MISSING_SHOWN: usize = 50;

pub(super) async fn run(
    arguments: ServerArguments,
    registry: Registry,
    parent: &Parent,
    output: Output,
) -> Result<Exit, Failure> {
    let mut options = Options::new(arguments.data);
    options.database = arguments.database;
    options.listen = arguments.listen;
    options.advertise = arguments.advertise;
    options.fail_fast = arguments.fail_fast;
    options.artifacts = arguments.artifacts;
    options.adopt_artifact_store = arguments.adopt_artifact_store;
    options.registry = registry;
    if let Some(path) = arguments.config {
        options.config = ConfigFile::read(&path).map_err(|error| failure_of(error.into()))?;
        options.config_path = Some(path);
    }
    options.config.access.allow_plain_http |= arguments.exposure.allow_plain_http;
    options.config.access.allow_anyone |= arguments.exposure.allow_anyone;
    let mut stop = StopSignal::listen(parent)?;
    let mut handle = tokio::select! {
        started = start_server(options) => started?,
        // It may still wait for its database.
        () = stop.told() => return Ok(Exit::Done),
    };
    if let Some(token) = handle.take_first_token() {
        // Nothing but this shows it, and nothing keeps it.
        let mark = output.error_style.mark(Paint::Good);
        say(&format!("{mark} the first admin token; this is the only time that it is shown:\n{token}"));
    }
    if let Some(adoption) = handle.take_adoption() {
        say(&adopted(&adoption));
    }
    if output.is_json() {
        output.result(&serde_json::json!({ "url": handle.url() }), |_, _| String::new())?;
    } else {
        say(&format!("{} listening on {}", output.error_style.mark(Paint::Good), handle.url()));
    }
    stop.told().await;
    say(&format!("{} stopping", output.error_style.mark(Paint::Going)));
    handle.shutdown().await;
    Ok(Exit::Done)
}

/// What an adopted store lacks, for people.
fn adopted(adoption: &Adoption) -> String {
    let Adoption { store, versions, missing } = adoption;
    let mut text = format!("the artifact store {store} is the installation's from now on; its mark was left anew");
    if missing.is_empty() {
        text.push_str(&format!("\nnothing is missing there: it has the artifacts of all {versions} versions"));
        return text;
    }
    text.push_str(&format!("\nit lacks the artifacts of {} of {versions} versions:", missing.len()));
    for version in missing.iter().take(MISSING_SHOWN) {
        let MissingVersion { store, version, lacks, served_by, held_by, .. } = version;
        let names = |regions: Vec<&String>| regions.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let mut standing = Vec::new();
        if !served_by.is_empty() {
            standing.push(format!("{} serve it, from their own copies", names(served_by.iter().collect())));
        }
        let others: Vec<&String> = held_by.difference(served_by).collect();
        if !others.is_empty() {
            standing.push(format!("{} are to hold it, and can only if they have their own copy", names(others)));
        }
        if standing.is_empty() {
            standing.push("no region is to hold it".to_owned());
        }
        text.push_str(&format!("\n  version {version} of {store}: {lacks}; {}", standing.join("; ")));
    }
    if missing.len() > MISSING_SHOWN {
        text.push_str(&format!("\n  and {} more", missing.len() - MISSING_SHOWN));
    }
    text.push_str(
        "\nRegions go on serving what they hold. A node that has to load such a version anew can't: push the data again, or put \
         the artifacts back from a backup.",
    );
    text
}

/// Starts a server in this process.
pub(crate) async fn start_server(options: Options) -> Result<Handle, Failure> {
    let database = options.data.join("state.sqlite");
    let shared = options.database.is_some() || options.config.server.database.is_some();
    Server::start(options).await.map_err(|error| match of_store(&error) {
        Some(DriverError::Damaged(_)) if !shared => damaged(&database, &error),
        _ => failure_of(error),
    })
}

/// What the store itself has said.
fn of_store(error: &StartError) -> Option<&DriverError> {
    match error {
        StartError::Database(error) | StartError::State(OpenError::Driver(error)) => Some(error),
        _ => None,
    }
}

fn damaged(database: &Path, error: &StartError) -> Failure {
    let file = database.display();
    Failure::new(
        format!("the server did not start: its database {file} is damaged"),
        error.to_string(),
        "Nothing was changed, and nothing is served.",
        &format!(
            "Move {file} and the files beside it whose names begin with it away, put a backup in its place, and start the server again."
        ),
    )
}

fn failure_of(error: StartError) -> Failure {
    let countermeasures = match &error {
        StartError::Exposed(_) => "Do what the text says, or choose a loopback address, such as 127.0.0.1:7600.",
        StartError::Tls(_) => "Mend the files that [tls] names in the file that --config names.",
        StartError::Trusted(_) => "Mend what `ca_file` in [server] of the file that --config names points to.",
        StartError::Listen { .. } => "Stop what listens there, or choose another address with --listen.",
        StartError::DataInUse { .. } => "Stop the other server, or choose another folder with --data.",
        StartError::Data { .. } => "Choose a folder that this user may write, with --data.",
        StartError::Config(_) => "Mend the file that --config names.",
        StartError::ArtifactsDescribed(_) | StartError::Artifacts { .. } => {
            "Mend [artifacts] in the file that --config names, --artifacts, or the credentials that the text names."
        }
        StartError::OtherStore { .. } => {
            "Give this server the store of the others, by [artifacts] or --artifacts. If the store was moved, move all of \
             it, the folder `probe` included. If what was in it is lost, start this once with --adopt-artifact-store: that \
             leaves the mark anew, and says which versions are missing and which regions serve them."
        }
        StartError::AnothersStore { .. } => {
            "Give this server a store of its own, by [artifacts] or --artifacts. If nothing else uses this one, remove its \
             folder `probe`, and start the server again with --adopt-artifact-store."
        }
        StartError::NameTaken { .. } => {
            "Give each server a name of its own (`name` in [server] of the file that --config names), or stop the other one \
             and wait until it has gone from `tidegate cluster`."
        }
        StartError::Hooks(_) => "Mend [hooks] in the file that --config names.",
        _ => match of_store(&error) {
            Some(DriverError::NewerFormat { .. }) => {
                "Start the release that brought the store to its format, or a later one. To go back behind that release, \
                 restore a backup from before it (`tidegate restore`)."
            }
            Some(DriverError::OlderFormat { .. }) => {
                "Start a server of the release in between first, and then this one."
            }
            _ => "Mend what the text names, and start the server again.",
        },
    };
    Failure::new("the server did not start", error.to_string(), "Nothing was changed.", countermeasures)
}
