//! What each command does. One file per group.

mod agent;
mod audit;
mod backup;
mod cluster;
mod config;
mod diff;
mod node;
mod push;
mod queue;
mod region;
mod restore;
mod server;
mod store;
mod token;

use std::time::Duration;

use std::sync::atomic::{AtomicBool, Ordering};

use clap::CommandFactory;
use tidegate_client::Client;
use tidegate_lifecycle::Registry;

use crate::arguments::{Arguments, Command};
use crate::connection;
use crate::demo;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, ask, plain, say};
use crate::parent::Parent;

pub(crate) use push::follow_push;
pub(crate) use server::start_server;

/// Runs a command to its end.
pub(crate) async fn run(
    arguments: Arguments,
    registry: Registry,
    parent: Parent,
    output: Output,
) -> Result<Exit, Failure> {
    let client = || connection::client(&arguments.global).map(|client| with_notice(client, output));
    match arguments.command {
        Command::Demo(demo) => demo::run(demo, registry, output).await,
        Command::DemoApplication(application) => {
            demo::run_application(&arguments.global, application, &parent, output).await
        }
        Command::Server(server) => server::run(server, registry, &parent, output).await,
        Command::Agent(agent) => agent::run(agent, &parent, output).await,
        Command::Node(node) => node::run(node, &parent, output).await,
        Command::Store(command) => store::run(command, &client()?, output).await,
        Command::Push(push) => push::run(push, &client()?, output).await,
        Command::Get { store, key, region } => {
            let client = client()?;
            let key = if key.contains(',') { key_of(&key, &client.store(&store).await?.key_columns)? } else { key };
            let answer = client.get(&store, &key, Some(&region)).await?;
            output.result(&answer, |answer, _| {
                let fields = match &answer.value {
                    serde_json::Value::Object(fields) => fields
                        .iter()
                        .map(|(name, value)| format!("{}: {}", plain(name), plain(&value.to_string())))
                        .collect(),
                    other => vec![plain(&other.to_string())],
                };
                format!("{}\n(version {})", fields.join("\n"), answer.version)
            })?;
            Ok(Exit::Done)
        }
        Command::Region(command) => region::run(command, &client()?, output).await,
        Command::Diff { before, after, key } => diff::run(before, after, key, output).await,
        Command::Config(command) => config::run(command, &client()?, output).await,
        Command::Cluster(arguments) => cluster::run(arguments, &client()?, output).await,
        Command::Queue(command) => queue::run(command, &client()?, output).await,
        Command::Ready => {
            // Asked again and again by whoever wants to know, so it is asked once.
            client()?.with_patience(Duration::ZERO).is_ready().await?;
            output.result(&serde_json::json!({ "ready": true }), |_, _| "ready".to_owned())?;
            Ok(Exit::Done)
        }
        Command::Token(command) => token::run(command, &client()?, output).await,
        Command::Audit(arguments) => audit::run(arguments, &client()?, output).await,
        Command::Backup(arguments) => backup::run(arguments, output).await,
        Command::Restore(arguments) => restore::run(arguments, output).await,
        Command::Completions { shell } => {
            // Into memory first: the generator panics when it can't write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "tidegate", &mut script);
            output.text(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Done)
        }
    }
}

/// Says soon, and once, that a server does not answer and is tried on.
fn with_notice(client: Client, output: Output) -> Client {
    let told = AtomicBool::new(output.is_json());
    client.with_notice(move |error, patience| {
        if error.is_unreachable() && !told.swap(true, Ordering::Relaxed) {
            let style = output.error_style;
            let limit = crate::output::elapsed(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
            say(&format!("{} the server does not answer; trying on for up to {limit}", style.mark(Paint::Held)));
        }
    })
}

/// Several key columns are written with commas on the command line, and as a JSON array in the API; the array itself is
/// taken as it is. Each part goes as text, which the server reads by its column's type, so that `01` stays what it is. The
/// text of a single column is the key, whatever is in it.
fn key_of(text: &str, columns: &[String]) -> Result<String, Failure> {
    if columns.len() < 2 || text.starts_with('[') {
        return Ok(text.to_owned());
    }
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() != columns.len() {
        return Err(Failure::usage(
            format!("{text:?} is no key of this store"),
            format!("It has {} parts, and the key has {} columns: {}.", parts.len(), columns.len(), columns.join(", ")),
            "Write one part for each, or, where a part has a comma in it, a JSON array: '[\"a,b\", \"c\"]'.",
        ));
    }
    Ok(serde_json::Value::from(parts).to_string())
}

/// Asks on the terminal; without one, nothing dangerous is done unless the flag says so.
fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    use std::io::{BufRead, IsTerminal};
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            question,
            "There is no terminal to ask on.",
            "Add --yes to do it without being asked.",
        ));
    }
    ask(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::new(question, "The answer was no.", "Nothing was done.", "Nothing has to be done."))
    }
}

/// Splits `NAME=VALUE` at the first equals sign.
fn name_and_value(text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::usage(
            format!("{text:?} is not a setting"),
            "A setting is NAME=VALUE.",
            "Write for instance retention=3.",
        )),
    }
}

/// Who gives an order at this machine, for the record.
fn local_user() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    named.into_iter().find(|user| !user.is_empty()).unwrap_or_else(|| "local user".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_split_only_where_the_store_has_several_key_columns() {
        let columns = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let key = |text: &str, names: &[&str]| key_of(text, &columns(names)).map_err(|_| ());
        assert_eq!(key("de,07", &["country", "number"]), Ok(r#"["de","07"]"#.to_owned()));
        assert_eq!(key(r#"["a,b", 7]"#, &["country", "number"]), Ok(r#"["a,b", 7]"#.to_owned()));
        assert_eq!(key("Berlin, Tegel", &["name"]), Ok("Berlin, Tegel".to_owned()));
        assert_eq!(key("[1,2]", &["name"]), Ok("[1,2]".to_owned()));
        assert!(key("a,b,c", &["country", "number"]).is_err());
    }

    #[test]
    fn a_value_may_hold_equals_signs_and_a_name_may_not_be_empty() {
        assert_eq!(name_and_value("a.b=c=d").map_err(|_| ()), Ok(("a.b".to_owned(), "c=d".to_owned())));
        assert!(name_and_value("=x").is_err());
        assert!(name_and_value("x").is_err());
    }
}
