//! The demo with every part as a process of its own, on this machine.
//!
//! ```text
//!  server-1  server-2 (with a PostgreSQL)          application
//!     ▲         ▲                                    │ reads
//!     └────┬────┘                                    ▼
//!      agent-a  agent-b  agent-c    node-a  node-b  node-c
//! ```
//!
//! The parts are started as a user would start them, with tokens that a user would make. This process starts again what
//! dies, as a service manager would, so that whoever kills a part sees the story go on.
//!
//! | file | has |
//! |---|---|
//! | this one | the demo from its start to its end |
//! | `parts` | which parts there are, and in which order they start and stop |
//! | `part` | one part that is kept running |
//! | `process` | one process: started, ready, its output kept, ended |
//!
//! # Invariants
//! - No part outlives this process, however this one ends: each watches its standard input, see [`crate::parent`].
//! - Tokens are in files that their owner alone may read, and in no log.

mod part;
mod parts;
mod process;

use std::path::{Path, PathBuf};

use tidegate_server::Options;

use self::parts::Parts;
use super::data::Inputs;
use super::reading::Reading;
use super::story::Story;
use super::{finish, invite, leave, schema};
use crate::arguments::DemoArguments;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, say};
use crate::parent::Parent;
use crate::stop::StopSignal;

/// The first server's name, and its folder below the demo's.
pub(super) const FIRST_SERVER: &str = "server-1";

/// Where what the processes say is kept.
pub(super) fn logs(folder: &Path) -> PathBuf {
    folder.join("logs")
}

/// Starts the parts, tells the story, and ends them, in order and whatever happens meanwhile.
pub(super) async fn run(
    arguments: DemoArguments,
    folder: &Path,
    inputs: &Inputs,
    output: Output,
) -> Result<Exit, Failure> {
    let mut options = Options::new(folder);
    options.database.clone_from(&arguments.database);
    options.schema = Some(schema());
    let mut parts = Parts::new(folder, output)?;
    let (mut told, mut stop) = (None, StopSignal::listen(&Parent::none())?);
    let ended = tokio::select! {
        biased;
        () = stop.told() => Ok(told.unwrap_or(Exit::Interrupted)),
        ended = tell(&arguments, &mut parts, &mut told, (folder, inputs), output) => ended,
    };
    if !output.is_json() {
        say(&format!("{} stopping", output.error_style.mark(Paint::Going)));
    }
    parts.stop().await;
    leave(&options).await;
    ended
}

/// Ends with what came of the story, or, if it is to stay up, with what keeps it from that. `told` is what came of it by then.
async fn tell(
    arguments: &DemoArguments,
    parts: &mut Parts,
    told: &mut Option<Exit>,
    (folder, inputs): (&Path, &Inputs),
    output: Output,
) -> Result<Exit, Failure> {
    let stage = parts.start(arguments).await?;
    let story = Story::new(stage.client, Reading::new(stage.application)?, folder.join("work"), output);
    let facts = tokio::select! {
        biased;
        fallen = parts.fallen() => return Err(fallen),
        facts = story.tell(inputs) => facts?,
    };
    let ended = finish(&facts, output)?;
    *told = Some(ended);
    if arguments.once {
        return Ok(ended);
    }
    invite(&stage.servers[0], Some(&stage.token_file), output);
    say("Its processes, each to be killed at will (kill -9); it is started again on what it has on its disk:");
    for (name, process, url) in parts.list() {
        say(&format!("  {name:<12} {process:>8}  {url}"));
    }
    say(&format!("What they say is in {}.", logs(folder).display()));
    // Until it is interrupted.
    Err(parts.fallen().await)
}
