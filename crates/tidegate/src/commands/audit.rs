//! `tidegate audit`.

use std::time::SystemTime;

use tidegate_api::AuditView;
use tidegate_client::{AuditQuery, Client};

use crate::arguments::AuditArguments;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Style, moment, table};

/// How many entries one request asks for at most.
const PAGE: usize = 1_000;

pub(super) async fn run(arguments: AuditArguments, client: &Client, output: Output) -> Result<Exit, Failure> {
    let since = arguments.since.and_then(|ago| {
        let since = SystemTime::now().checked_sub(ago)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok()
    });
    let mut query = AuditQuery { store: arguments.store, user: arguments.user, since, ..AuditQuery::default() };
    let mut entries: Vec<AuditView> = Vec::new();
    while entries.len() < arguments.limit {
        query.limit = Some((arguments.limit - entries.len()).min(PAGE));
        let page = client.audit(&query).await?;
        entries.extend(page.entries);
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    output.result(&entries, |entries, style| list(entries, style))?;
    Ok(Exit::Done)
}

fn list(entries: &[AuditView], style: Style) -> String {
    if entries.is_empty() {
        return "nothing was changed".to_owned();
    }
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            let outcome = match entry.status {
                Some(status) => format!("{} ({status})", entry.outcome.word()),
                None => entry.outcome.word().to_owned(),
            };
            vec![
                moment(entry.at),
                entry.user.clone(),
                entry.role.map_or("-", |role| role.word()).to_owned(),
                entry.route.split_once(' ').map_or("", |(method, _)| method).to_owned(),
                entry.target.clone(),
                entry.store.clone().unwrap_or_else(|| "-".to_owned()),
                outcome,
                entry.request.clone(),
            ]
        })
        .collect();
    table::render(style, &["when", "who", "role", "method", "what", "store", "outcome", "request"], &rows)
}
