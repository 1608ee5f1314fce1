//! `tidegate demo`: the main job told live, in one process, on a real dataset.
//!
//! A server with three regions runs inside this process, with its HTTP API; pushes go through the same client as
//! everyone's, and a small application reads all the time. Nothing is staged: what the story tells is read back from the
//! API, and compared with what it should be.

mod application;
mod data;
mod facts;
mod story;

use std::path::Path;

use tidegate_client::Client;
use tidegate_lifecycle::Registry;
use tidegate_server::{Handle, Options, drop_schema};

use self::application::{Application, STORE};
use self::facts::Facts;
use self::story::Story;
use crate::arguments::DemoArguments;
use crate::commands::start_server;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, say};

/// Tells the story; afterwards stays up until it is interrupted, unless it was to be told once.
pub(crate) async fn run(arguments: DemoArguments, registry: Registry, output: Output) -> Result<Exit, Failure> {
    let temporary;
    let folder: &Path = match &arguments.data {
        Some(folder) => folder,
        None => {
            temporary = tempfile::Builder::new().prefix("tidegate-demo-").tempdir()?;
            temporary.path()
        }
    };
    std::fs::create_dir_all(folder)?;
    let inputs = {
        let folder = folder.join("inputs");
        tokio::task::spawn_blocking(move || data::write(&folder)).await.map_err(std::io::Error::other)??
    };

    let mut options = Options::new(folder.join("server"));
    options.listen = Some(arguments.listen);
    options.registry = registry;
    options.database = arguments.database;
    // A demo begins with nothing, also in a database that holds the state of others, and leaves nothing there.
    options.schema = Some(format!("tidegate_demo_{}", std::process::id()));
    let handle = start_server(options.clone()).await?;
    let told = tell(&handle, folder, &inputs, arguments.once, output).await;
    handle.shutdown().await;
    if let Err(error) = drop_schema(&options).await {
        let schema = options.schema.as_deref().unwrap_or_default();
        say(&format!("the schema {schema} of the demo could not be dropped: {error}"));
    }
    told
}

async fn tell(
    handle: &Handle,
    folder: &Path,
    inputs: &data::Inputs,
    once: bool,
    output: Output,
) -> Result<Exit, Failure> {
    let client = Client::new(&handle.url())?;
    let application = Application::start(client.clone()).await?;
    let mut story = Story::new(client, application, folder.join("work"), output);
    let told = story.tell(inputs).await;
    let ended = match told {
        Ok(facts) => finish(&facts, output).map(|()| if facts.as_told { Exit::Done } else { Exit::Failed }),
        Err(failure) => Err(failure),
    };
    if ended.is_ok() && !once {
        invite(&handle.url(), output);
        // Without a signal handler the process ends by the signal itself, and all that is lost is the demo's own folder.
        let _ = tokio::signal::ctrl_c().await;
    }
    story.end().await;
    ended
}

fn finish(facts: &Facts, output: Output) -> Result<(), Failure> {
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
    Ok(())
}

fn invite(url: &str, output: Output) {
    let style = output.error_style;
    say(&format!("\nThe page: {}", style.paint(Paint::Strong, url)));
    say(&format!("From another terminal:\n  export TIDEGATE_URL={url}"));
    for command in [
        "push list",
        "push status demo-3",
        "push calls demo-3",
        "get airports EDDF --region a",
        "store hooks set airports region-order.delay=30s",
        "push airports demo/airports.csv.zst --id mine --watch",
        "push explain mine",
        "push kill mine --reason 'seen enough'",
        "store rollback airports --reason 'I liked it before'",
    ] {
        say(&format!("  tidegate {command}"));
    }
    say(&format!(
        "(`cargo run --release -- …` where it is not installed.) Ctrl-C ends the demo; its store is {STORE:?}."
    ));
}
