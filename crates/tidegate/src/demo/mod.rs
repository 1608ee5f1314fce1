//! `tidegate demo`: the main job told live, on a real dataset.
//!
//! A server with three regions runs inside this process, with its HTTP API; or, with `--processes`, every part runs as a
//! process of its own. Pushes go through the same client as everyone's, and a small application reads all the time. Nothing
//! is staged: what the story tells is read back from the API, and compared with what it should be.
//!
//! | file | has |
//! |---|---|
//! | this one | the demo in one process; what is said at its end |
//! | `processes` | the demo in many |
//! | `story` | the story itself |
//! | `data` | what is pushed |
//! | `application` | the application that reads |
//! | `reading` | what the story asks of it |
//! | `facts` | what is read back, and what of it is not as told |

mod application;
mod data;
mod facts;
mod processes;
mod reading;
mod story;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tidegate_client::Client;
use tidegate_lifecycle::Registry;
use tidegate_server::{Handle, Options, drop_schema};

use self::application::{Application, Places, STORE};
use self::facts::Facts;
use self::reading::Reading;
use self::story::{REGIONS, Story};
use crate::arguments::{DemoApplicationArguments, DemoArguments, GlobalArguments};
use crate::commands::start_server;
use crate::connection;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, say};
use crate::parent::Parent;
use crate::stop::StopSignal;

/// Any free port of this machine.
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The server's folder below the demo's.
const SERVER: &str = "server";

/// Tells the story; afterwards stays up until it is interrupted, unless it was to be told once.
pub(crate) async fn run(arguments: DemoArguments, registry: Registry, output: Output) -> Result<Exit, Failure> {
    let mut temporary = None;
    let folder = match &arguments.data {
        Some(folder) => folder.clone(),
        None => {
            let made = tempfile::Builder::new().prefix("tidegate-demo-").tempdir()?;
            temporary.insert(made).path().to_owned()
        }
    };
    refuse_begun(&folder)?;
    std::fs::create_dir_all(&folder)?;
    // Other processes are told of it, and URLs are made of it.
    let folder = std::fs::canonicalize(folder)?;
    let inputs = {
        let folder = folder.join("inputs");
        tokio::task::spawn_blocking(move || data::write(&folder)).await.map_err(std::io::Error::other)??
    };
    if !arguments.processes {
        return within(arguments, registry, &folder, &inputs, output).await;
    }
    let ended = processes::run(arguments, &folder, &inputs, output).await;
    if !matches!(ended, Ok(Exit::Done | Exit::Interrupted))
        && let Some(folder) = temporary
    {
        // What the processes said stays, for whoever wants to know why.
        let folder = folder.keep();
        say(&format!("what the processes said is in {}", processes::logs(&folder).display()));
    }
    ended
}

/// Refuses a folder that has an earlier demo's data: the story begins with nothing.
fn refuse_begun(folder: &Path) -> Result<(), Failure> {
    let Some(data) =
        [SERVER, processes::FIRST_SERVER].map(|name| folder.join(name)).into_iter().find(|path| path.exists())
    else {
        return Ok(());
    };
    let place = folder.display();
    // A server in a database of its own, or among processes, needs more than its folder.
    let keeps = data.ends_with(SERVER) && data.join("state.sqlite").exists();
    let or_serve = if keeps {
        format!(" `tidegate server --data {}` serves what the earlier one has left.", data.display())
    } else {
        String::new()
    };
    let data = data.display();
    Err(Failure::new(
        format!("the demo can't begin in {place}"),
        format!("It has the data of an earlier demo, in {data}, and the story begins with nothing."),
        "Nothing was changed.",
        &format!(
            "Remove the folder (`rm -r {place}`), or name another with --data; without --data the demo makes one that goes \
             with it.{or_serve}"
        ),
    ))
}

/// The reading application as a process of its own.
pub(crate) async fn run_application(
    global: &GlobalArguments,
    arguments: DemoApplicationArguments,
    parent: &Parent,
    output: Output,
) -> Result<Exit, Failure> {
    let mut places = Places::new();
    for place in &arguments.places {
        let (region, url) = place.split_once('=').ok_or_else(|| {
            Failure::usage(format!("{place:?} is no place to read"), "It has no `=`.", "Write REGION=URL.")
        })?;
        places
            .entry(region.to_owned())
            .or_default()
            .push(connection::client(&GlobalArguments { url: url.to_owned(), ..global.clone() })?);
    }
    let mut stop = StopSignal::listen(parent)?;
    let application = Application::start(arguments.listen, places).await?;
    output.result(&serde_json::json!({ "url": application.url() }), |_, _| application.url())?;
    stop.told().await;
    application.stop().await;
    Ok(Exit::Done)
}

/// Everything within this process.
async fn within(
    arguments: DemoArguments,
    registry: Registry,
    folder: &Path,
    inputs: &data::Inputs,
    output: Output,
) -> Result<Exit, Failure> {
    let mut options = Options::new(folder.join(SERVER));
    options.listen = Some(arguments.listen);
    options.registry = registry;
    options.database = arguments.database;
    // A demo begins with nothing, also in a database that holds the state of others, and leaves nothing there.
    options.schema = Some(schema());
    let handle = start_server(options.clone()).await?;
    let told = tell(&handle, folder, inputs, arguments.once, output).await;
    handle.shutdown().await;
    leave(&options).await;
    told
}

/// The schema of this demo, in a database that it is given.
fn schema() -> String {
    format!("tidegate_demo_{}", std::process::id())
}

/// Leaves nothing in the database.
async fn leave(options: &Options) {
    if let Err(error) = drop_schema(options).await {
        let schema = options.schema.as_deref().unwrap_or_default();
        say(&format!("the schema {schema} of the demo could not be dropped: {error}"));
    }
}

async fn tell(
    handle: &Handle,
    folder: &Path,
    inputs: &data::Inputs,
    once: bool,
    output: Output,
) -> Result<Exit, Failure> {
    let client = Client::new(&handle.url())?;
    let places = REGIONS.map(|region| (region.to_owned(), vec![client.clone()])).into();
    let application = Application::start(ANY_PORT, places).await?;
    let ended = match Reading::new(application.url()) {
        Ok(reading) => Story::new(client, reading, folder.join("work"), output).tell(inputs).await,
        Err(failure) => Err(failure),
    };
    let ended = ended.and_then(|facts| finish(&facts, output));
    if ended.is_ok() && !once {
        invite(&handle.url(), None, output);
        // Without a signal handler the process ends by the signal itself, and all that is lost is the demo's own folder.
        let _ = tokio::signal::ctrl_c().await;
    }
    application.stop().await;
    ended
}

/// Prints what came of the story.
fn finish(facts: &Facts, output: Output) -> Result<Exit, Failure> {
    output.result(facts, |facts, style| {
        let mut text = String::new();
        for deviation in &facts.deviations {
            text.push_str(&format!("{} {deviation}\n", style.mark(Paint::Bad)));
        }
        let reads: u64 = facts.pushes.iter().map(|push| push.reads.made).sum();
        let failed: u64 = facts.pushes.iter().map(|push| push.reads.failed).sum();
        let (mark, verdict) = if facts.as_told {
            (style.mark(Paint::Good), "Every step ended as told")
        } else {
            (style.mark(Paint::Bad), "Not every step ended as told")
        };
        text.push_str(&format!(
            "{mark} {verdict}; the application made {reads} reads meanwhile, of which {failed} failed."
        ));
        text
    })?;
    Ok(if facts.as_told { Exit::Done } else { Exit::Failed })
}

/// What to do next, once the story is told.
fn invite(url: &str, token_file: Option<&Path>, output: Output) {
    let style = output.error_style;
    say(&format!("\nThe page: {}", style.paint(Paint::Strong, url)));
    say(&format!("From another terminal:\n  export TIDEGATE_URL={url}"));
    if let Some(file) = token_file {
        say(&format!("  export TIDEGATE_TOKEN_FILE={}      # the page asks for what is in it", file.display()));
    }
    // A region that has an agent of its own is read there, and not at a server.
    let read: &[&str] = match token_file {
        None => &["get airports EDDF --region a"],
        Some(_) => &["cluster", "region show a"],
    };
    let commands = [
        &["push list", "push status demo-3", "push calls demo-3"],
        read,
        &[
            "store hooks set airports region-order.delay=30s",
            "push airports demo/airports.csv.zst --id mine --watch",
            "push explain mine",
            "push kill mine --reason 'seen enough'",
            "store rollback airports --reason 'I liked it before'",
        ],
    ];
    for command in commands.into_iter().flatten() {
        say(&format!("  tidegate {command}"));
    }
    say(&format!(
        "(`cargo run --release -- …` where it is not installed.) Ctrl-C ends the demo; its store is {STORE:?}."
    ));
}
