//! `tidegate push …`.

mod end;
mod follow;

use std::path::PathBuf;

use tidegate_api::{CallView, ExplainView, KillRequest, ProceedRequest, PushSummary};
use tidegate_client::Client;
use tidegate_client::push::{PushJob, PushOptions};

pub(crate) use follow::follow_push;

use super::name_and_value;
use crate::arguments::{ProceedArguments, PushArguments, PushCommand};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, elapsed, plain, table, tree};

pub(super) async fn run(arguments: PushArguments, client: &Client, output: Output) -> Result<Exit, Failure> {
    match arguments.command {
        None => push(arguments, client, output).await,
        Some(PushCommand::List { store, limit }) => {
            let limit = u32::try_from(limit).unwrap_or(u32::MAX);
            let pushes = client.pushes(store.as_deref(), Some(limit)).await?;
            output.result(&pushes, |pushes, style| list(pushes, style))?;
            Ok(Exit::Done)
        }
        Some(PushCommand::Status { id, watch, timeout }) => follow::status(client, &id, watch, timeout, output).await,
        Some(PushCommand::Explain { id }) => {
            let explanation = client.explain_push(&id).await?;
            output.result(&explanation, explain)?;
            Ok(Exit::Done)
        }
        Some(PushCommand::Calls { id }) => {
            let calls = client.push_calls(&id).await?;
            output.result(&calls, |calls, style| call_list(calls, style))?;
            Ok(Exit::Done)
        }
        Some(PushCommand::Kill { id, reason }) => {
            let KillRequest { reason } = KillRequest { reason };
            let state = client.kill_push(&id, &reason).await?;
            output.result(&state, |state, style| {
                format!("push {}: {}", plain(&state.push), tree::status(state, style))
            })?;
            Ok(Exit::Done)
        }
        Some(PushCommand::Proceed(ProceedArguments { id, gate, region, reason })) => {
            let state = client.proceed(&id, &ProceedRequest { gate, region, reason }).await?;
            output.result(&state, |state, style| {
                format!("push {}: {}", plain(&state.push), tree::status(state, style))
            })?;
            Ok(Exit::Done)
        }
    }
}

async fn push(arguments: PushArguments, client: &Client, output: Output) -> Result<Exit, Failure> {
    let attributes = arguments.attributes.iter().map(|text| name_and_value(text)).collect::<Result<_, _>>()?;
    let overrides = arguments.overrides.iter().map(|text| name_and_value(text)).collect::<Result<_, _>>()?;
    let user = Some(arguments.user).filter(|user| !user.is_empty()).or_else(|| std::env::var("USER").ok());
    let job = PushJob {
        id: arguments.id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        // clap requires it where there is no subcommand.
        store: arguments.store.unwrap_or_default(),
        paths: arguments.paths.into_iter().map(PathBuf::from).collect(),
        options: PushOptions {
            pushed_by: user,
            attributes,
            allow_empty: arguments.allow_empty,
            from_version: arguments.from_version,
            overrides,
            memory_bytes: Some(arguments.memory.saturating_mul(1024 * 1024)),
            follow: !arguments.detach,
            timeout: arguments.timeout,
            ..PushOptions::default()
        },
    };
    let outcome = follow::run(client, job, arguments.watch, output).await?;
    end::print(&outcome, output)?;
    Ok(end::exit_of(&outcome, !arguments.detach))
}

fn list(pushes: &[PushSummary], style: Style) -> String {
    let rows: Vec<Vec<String>> = pushes
        .iter()
        .map(|push| {
            let version = push.state.version.map_or("-".to_owned(), |version| format!("v{version}"));
            vec![
                push.state.push.clone(),
                push.state.store.clone(),
                version,
                tree::status(&push.state, Style::PLAIN),
                push.pushed_by.clone(),
                push.state.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table::render(style, &["push", "store", "version", "status", "by", "reason"], &rows)
}

fn explain(explanation: &ExplainView, style: Style) -> String {
    let mut text = format!(
        "push {}: {}\n{}\n",
        plain(&explanation.state.push),
        tree::status(&explanation.state, style),
        plain(&explanation.summary)
    );
    for hold in &explanation.holds {
        text.push_str(&format!("  {}\n", tree::hold_text(hold, explanation.now, style)));
    }
    let time = |milliseconds: u64| elapsed(i64::try_from(milliseconds).unwrap_or(i64::MAX));
    for limit in &explanation.limits {
        let region = limit.region.as_deref().map(|region| format!(" ({})", plain(region))).unwrap_or_default();
        let used = format!("{} of {}", time(limit.used_ms), time(limit.limit_ms));
        text.push_str(
            &style.paint(
                Paint::Quiet,
                &format!("  {}{region}: {used}; then: {}", plain(&limit.name), plain(&limit.then)),
            ),
        );
        text.push('\n');
    }
    let when = match explanation.next_at {
        Some(at) if at > explanation.now => format!(" (in {})", time(at - explanation.now)),
        _ => String::new(),
    };
    text.push_str(&format!("next: {}{when}\n", plain(&explanation.next)));
    text
}

fn call_list(calls: &[CallView], style: Style) -> String {
    let rows: Vec<Vec<String>> = calls
        .iter()
        .map(|call| {
            let outcome = match (&call.failed, call.verdict) {
                (Some(failed), _) => format!("failed ({failed})"),
                (None, Some(verdict)) => verdict.word().to_owned(),
                (None, None) => "-".to_owned(),
            };
            vec![
                call.gate.clone(),
                call.region.clone().unwrap_or_else(|| "-".to_owned()),
                call.hook.clone(),
                call.attempt.to_string(),
                outcome,
                elapsed(i64::try_from(call.ended_at.saturating_sub(call.started_at)).unwrap_or(i64::MAX)),
                call.reason.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table::render(style, &["gate", "region", "hook", "attempt", "outcome", "took", "reason"], &rows)
}
