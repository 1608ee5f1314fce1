//! `tidegate server`, and the server that the demo runs within its own process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tidegate_lifecycle::Registry;
use tidegate_server::{ConfigFile, Handle, Options, Server, StartError};

use crate::arguments::ServerArguments;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint};

pub(super) async fn run(arguments: ServerArguments, registry: Registry, output: Output) -> Result<Exit, Failure> {
    let handle = start_server(arguments.data, arguments.listen, arguments.config.as_deref(), registry).await?;
    if output.is_json() {
        output.result(&serde_json::json!({ "url": handle.url() }), |_, _| String::new())?;
    } else {
        eprintln!("{} listening on {}", output.error_style.mark(Paint::Good), handle.url());
    }
    stop_signal().await?;
    eprintln!("{} stopping", output.error_style.mark(Paint::Going));
    handle.shutdown().await;
    Ok(Exit::Done)
}

/// Starts a server in this process.
pub(crate) async fn start_server(
    data: PathBuf,
    listen: Option<SocketAddr>,
    config: Option<&Path>,
    registry: Registry,
) -> Result<Handle, Failure> {
    let mut options = Options::new(data);
    options.listen = listen;
    options.registry = registry;
    if let Some(path) = config {
        options.config = ConfigFile::read(path).map_err(|error| failure_of(error.into()))?;
        options.config_path = Some(path.to_owned());
    }
    Server::start(options).await.map_err(failure_of)
}

fn failure_of(error: StartError) -> Failure {
    let countermeasures = match &error {
        StartError::NotLoopback { .. } => "Choose a loopback address, such as 127.0.0.1:7600.",
        StartError::Listen { .. } => "Stop what listens there, or choose another address with --listen.",
        StartError::DataInUse { .. } => "Stop the other server, or choose another folder with --data.",
        StartError::Data { .. } => "Choose a folder that this user may write, with --data.",
        StartError::Config(_) => "Mend the file that --config names.",
        StartError::Hooks(_) => "Mend [hooks] in the file that --config names.",
        _ => "Mend what the text names, and start the server again.",
    };
    Failure::new("the server did not start", error.to_string(), "Nothing was changed.", countermeasures)
}

/// Ends at the first SIGINT or SIGTERM.
pub(super) async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
