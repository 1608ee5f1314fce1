//! `tidegate server`, and the server that the demo runs within its own process.

use std::path::Path;

use tidegate_lifecycle::Registry;
use tidegate_server::{ConfigFile, Handle, Options, Server, StartError};
use tidegate_state::OpenError;
use tidegate_state::driver::DriverError;

use crate::arguments::ServerArguments;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, say};
use crate::parent::Parent;

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
    options.registry = registry;
    if let Some(path) = arguments.config {
        options.config = ConfigFile::read(&path).map_err(|error| failure_of(error.into()))?;
        options.config_path = Some(path);
    }
    options.config.access.allow_plain_http |= arguments.exposure.allow_plain_http;
    options.config.access.allow_anyone |= arguments.exposure.allow_anyone;
    let mut handle = tokio::select! {
        started = start_server(options) => started?,
        // It may still wait for its database.
        stopped = stop_signal(parent) => {
            stopped?;
            return Ok(Exit::Done);
        }
    };
    if let Some(token) = handle.take_first_token() {
        // Nothing but this shows it, and nothing keeps it.
        let mark = output.error_style.mark(Paint::Good);
        say(&format!("{mark} the first admin token; this is the only time that it is shown:\n{token}"));
    }
    if output.is_json() {
        output.result(&serde_json::json!({ "url": handle.url() }), |_, _| String::new())?;
    } else {
        say(&format!("{} listening on {}", output.error_style.mark(Paint::Good), handle.url()));
    }
    stop_signal(parent).await?;
    say(&format!("{} stopping", output.error_style.mark(Paint::Going)));
    handle.shutdown().await;
    Ok(Exit::Done)
}

/// Starts a server in this process.
pub(crate) async fn start_server(options: Options) -> Result<Handle, Failure> {
    let database = options.data.join("state.sqlite");
    let shared = options.database.is_some() || options.config.server.database.is_some();
    Server::start(options).await.map_err(|error| match error {
        StartError::Database(DriverError::Damaged(_))
        | StartError::State(OpenError::Driver(DriverError::Damaged(_)))
            if !shared =>
        {
            damaged(&database, &error)
        }
        error => failure_of(error),
    })
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
             it, the folder `probe` included."
        }
        StartError::NameTaken { .. } => {
            "Give each server a name of its own (`name` in [server] of the file that --config names), or stop the other one \
             and wait until it has gone from `tidegate cluster`."
        }
        StartError::Hooks(_) => "Mend [hooks] in the file that --config names.",
        _ => "Mend what the text names, and start the server again.",
    };
    Failure::new("the server did not start", error.to_string(), "Nothing was changed.", countermeasures)
}

/// Ends at the first SIGINT or SIGTERM, or when whoever started this process has gone.
pub(crate) async fn stop_signal(parent: &Parent) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = parent.gone() => {}
    }
    Ok(())
}
