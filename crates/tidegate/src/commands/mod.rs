//! What each command does. One file per group.

mod agent;
mod config;
mod diff;
mod node;
mod push;
mod queue;
mod region;
mod server;
mod store;

use clap::CommandFactory;
use tidegate_client::Client;
use tidegate_lifecycle::Registry;

use crate::arguments::{Arguments, Command};
use crate::demo;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, plain};

pub(crate) use push::follow_push;
pub(crate) use server::start_server;

/// Runs a command to its end.
pub(crate) async fn run(arguments: Arguments, registry: Registry, output: Output) -> Result<Exit, Failure> {
    let client = || Client::new(&arguments.global.url);
    match arguments.command {
        Command::Demo(demo) => demo::run(demo, registry, output).await,
        Command::Server(server) => server::run(server, registry, output).await,
        Command::Agent(agent) => agent::run(agent, output).await,
        Command::Node(node) => node::run(node, output).await,
        Command::Store(command) => store::run(command, &client()?, output).await,
        Command::Push(push) => push::run(push, &client()?, output).await,
        Command::Get { store, key, region } => {
            let key = if key.contains(',') { composite_key(&key) } else { key };
            let answer = client()?.get(&store, &key, Some(&region)).await?;
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
        Command::Queue(command) => queue::run(command, &client()?, output).await,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "tidegate", &mut std::io::stdout());
            Ok(Exit::Done)
        }
    }
}

/// Several key columns are written with commas on the command line, and as a JSON array in the API.
fn composite_key(text: &str) -> String {
    let parts: Vec<serde_json::Value> = text
        .split(',')
        .map(|part| part.parse::<i64>().map_or_else(|_| serde_json::Value::from(part), serde_json::Value::from))
        .collect();
    serde_json::Value::from(parts).to_string()
}

/// Asks on the terminal; without one, nothing dangerous is done unless the flag says so.
fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    use std::io::{BufRead, IsTerminal, Write};
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
    eprint!("{question} [y/N] ");
    std::io::stderr().flush()?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_key_columns_become_an_array() {
        assert_eq!(composite_key("de,7"), r#"["de",7]"#);
    }

    #[test]
    fn a_value_may_hold_equals_signs_and_a_name_may_not_be_empty() {
        assert_eq!(name_and_value("a.b=c=d").map_err(|_| ()), Ok(("a.b".to_owned(), "c=d".to_owned())));
        assert!(name_and_value("=x").is_err());
        assert!(name_and_value("x").is_err());
    }
}
