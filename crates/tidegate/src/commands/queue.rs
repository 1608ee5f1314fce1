//! `tidegate queue …`.

use tidegate_api::{QueueAction, QueueEntryState, QueueEntryView};
use tidegate_client::Client;

use super::confirm;
use crate::arguments::QueueCommand;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, plain, table};

pub(super) async fn run(command: QueueCommand, client: &Client, output: Output) -> Result<Exit, Failure> {
    match command {
        QueueCommand::List { hook, state } => {
            let state = state.as_deref().map(parse_state).transpose()?;
            let entries = client.queue(hook.as_deref(), state).await?;
            output.result(&entries, |entries, style| list(entries, style))?;
        }
        QueueCommand::Show { request } => {
            let entries = client.queue(None, None).await?;
            let Some(entry) = entries.into_iter().find(|entry| entry.request == request) else {
                return Err(Failure::new(
                    format!("there is no request {request} in the queue"),
                    "It is done, was discarded, or never was.",
                    "Nothing waits for it.",
                    "See `tidegate queue list`.",
                ));
            };
            output.result(&entry, |entry, style| {
                let error =
                    entry.error.as_deref().map(|error| format!("\nlast error: {}", plain(error))).unwrap_or_default();
                format!("{}made by: {}{error}", list(std::slice::from_ref(entry), style), plain(&entry.path))
            })?;
        }
        QueueCommand::Retry { request } => act(&request, QueueAction::Retry, client, output).await?,
        QueueCommand::Discard { request, yes } => {
            confirm(&format!("Let go of request {} for good?", plain(&request)), yes)?;
            act(&request, QueueAction::Discard, client, output).await?;
        }
    }
    Ok(Exit::Done)
}

async fn act(request: &str, action: QueueAction, client: &Client, output: Output) -> Result<(), Failure> {
    client.queue_act(request, action).await?;
    let done = serde_json::json!({ "request": request, "action": action });
    output.result(&done, |_, style| format!("{} {} {}", style.mark(Paint::Good), action.word(), plain(request)))?;
    Ok(())
}

fn parse_state(text: &str) -> Result<QueueEntryState, Failure> {
    match serde_json::from_value(serde_json::Value::from(text)) {
        Ok(QueueEntryState::Unknown) | Err(_) => Err(Failure::usage(
            format!("{text:?} is no state of a request"),
            "Only the states below are known.",
            "Write waiting, running, retry_at, backing_off, dead, paused or no_server.",
        )),
        Ok(state) => Ok(state),
    }
}

fn list(entries: &[QueueEntryView], style: Style) -> String {
    if entries.is_empty() {
        return "nothing waits\n".to_owned();
    }
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            let state = match serde_json::to_value(entry.state) {
                Ok(serde_json::Value::String(word)) => word,
                _ => "unknown".to_owned(),
            };
            let behind = entry.behind.as_deref().map(|behind| format!(" behind {behind}")).unwrap_or_default();
            vec![
                entry.request.clone(),
                entry.hook.clone(),
                entry.key.clone(),
                format!("{state}{behind}"),
                entry.attempts.to_string(),
                entry.owner.clone().unwrap_or_else(|| "-".to_owned()),
                entry.error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table::render(style, &["request", "hook", "key", "state", "attempts", "server", "error"], &rows)
}
