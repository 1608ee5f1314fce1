//! `tidegate audit`.

use std::time::SystemTime;

use tidegate_api::{AuditChange, AuditEntity, AuditField, AuditView};
use tidegate_client::{AuditQuery, Client};

use crate::arguments::AuditArguments;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Style, moment, table};

/// How many entries one request asks for at most.
const PAGE: usize = 1_000;

/// How many entities of an entry are shown to people; the JSON has all that are kept.
const SHOWN: usize = 4;

pub(super) async fn run(arguments: AuditArguments, client: &Client, output: Output) -> Result<Exit, Failure> {
    let since = arguments.since.and_then(|ago| {
        let since = SystemTime::now().checked_sub(ago)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok()
    });
    let mut query = AuditQuery {
        store: arguments.store,
        user: arguments.user,
        region: arguments.region,
        since,
        ..AuditQuery::default()
    };
    let mut entries: Vec<AuditView> = Vec::new();
    while entries.len() < arguments.limit {
        // Few entries may be of one region: more are looked at than are wanted.
        let wanted = if query.region.is_some() { PAGE } else { arguments.limit - entries.len() };
        query.limit = Some(wanted.min(PAGE));
        let page = client.audit(&query).await?;
        entries.extend(page.entries);
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    entries.truncate(arguments.limit);
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
            // A server of an earlier release says the route alone.
            let operation = if entry.operation.is_empty() { &entry.route } else { &entry.operation };
            vec![
                moment(entry.at),
                entry.user.clone(),
                entry.role.map_or("-", |role| role.word()).to_owned(),
                operation.clone(),
                entry.store.clone().unwrap_or_else(|| "-".to_owned()),
                outcome,
                entry.request.clone(),
                what(entry),
            ]
        })
        .collect();
    table::render(style, &["when", "who", "role", "did", "store", "outcome", "request", "what"], &rows)
}

/// What was made and changed, and why.
fn what(entry: &AuditView) -> String {
    let shown = entry.entities.iter().take(SHOWN).map(|named| entity(named, entry.store.as_deref()));
    let mut text = shown.collect::<Vec<_>>().join("; ");
    let more = u64::try_from(entry.entities.len().saturating_sub(SHOWN)).unwrap_or(u64::MAX) + entry.left_out;
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    if text.is_empty() {
        text.clone_from(&entry.target);
    }
    if let Some(reason) = &entry.reason {
        text.push_str(&format!(" \u{2014} {reason}"));
    }
    text
}

/// An entity and its fields, in one line. Its store is named where the entry's is another.
fn entity(entity: &AuditEntity, store: Option<&str>) -> String {
    let mut text = format!("{} {}", entity.kind, entity.id);
    let of = entity.store.as_deref().filter(|of| Some(*of) != store).map(|of| format!("store {of}"));
    let version = entity.version.map(|version| format!("version {version}"));
    let beside: Vec<String> = [entity.name.clone(), version, of].into_iter().flatten().collect();
    if !beside.is_empty() {
        text.push_str(&format!(" ({})", beside.join(", ")));
    }
    match entity.change {
        AuditChange::Made | AuditChange::Removed => text.push_str(&format!(" {}", entity.change.word())),
        AuditChange::Changed | AuditChange::Named | AuditChange::Unknown => {}
    }
    let fields: Vec<String> = entity.fields.iter().map(field).collect();
    if !fields.is_empty() {
        text.push_str(&format!(": {}", fields.join(", ")));
    }
    text
}

fn field(field: &AuditField) -> String {
    let name = &field.field;
    match (field.hidden, &field.before, &field.after) {
        (true, _, _) => format!("{name} changed (not shown)"),
        (false, Some(before), Some(after)) => format!("{name} {before} \u{2192} {after}"),
        (false, None, Some(after)) => format!("{name} {after}"),
        (false, Some(before), None) => format!("{name} {before} \u{2192} nothing"),
        (false, None, None) => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::{AuditOutcome, Role};

    use super::*;

    fn changed(field: &str, before: Option<&str>, after: Option<&str>) -> AuditField {
        let own = |text: Option<&str>| text.map(str::to_owned);
        AuditField { field: field.to_owned(), before: own(before), after: own(after), hidden: false }
    }

    #[test]
    fn an_entry_says_what_was_made_and_changed_and_why() {
        let push = AuditEntity {
            kind: "push".to_owned(),
            id: "p".to_owned(),
            name: None,
            store: Some("s".to_owned()),
            version: Some(7),
            change: AuditChange::Changed,
            fields: vec![changed("status", Some("STARTED"), Some("KILLED"))],
        };
        let region = AuditEntity {
            kind: "region".to_owned(),
            id: "a".to_owned(),
            store: Some("other".to_owned()),
            version: None,
            fields: vec![changed("serve", Some("7"), None), AuditField { hidden: true, ..changed("x", None, None) }],
            ..push.clone()
        };
        let entry = AuditView {
            at: 0,
            user: "alice".to_owned(),
            role: Some(Role::Operator),
            token: None,
            request: "r-1".to_owned(),
            route: "POST /v1/pushes/{push}/kill".to_owned(),
            target: "/v1/pushes/p/kill".to_owned(),
            operation: "kill push".to_owned(),
            entities: vec![push, region],
            left_out: 3,
            reason: Some("bad data".to_owned()),
            store: Some("s".to_owned()),
            outcome: AuditOutcome::Done,
            status: None,
        };
        let text = list(std::slice::from_ref(&entry), Style::PLAIN);
        let expected = "push p (version 7): status STARTED \u{2192} KILLED; region a (store other): serve 7 \u{2192} nothing, \
                        x changed (not shown); and 3 more \u{2014} bad data";
        assert!(text.contains("kill push") && text.trim_end().ends_with(expected), "{text}");
        // Of an earlier release nothing more is known than the address.
        let old = AuditView { operation: String::new(), entities: Vec::new(), left_out: 0, reason: None, ..entry };
        let text = list(&[old], Style::PLAIN);
        assert!(
            text.contains("POST /v1/pushes/{push}/kill") && text.trim_end().ends_with("/v1/pushes/p/kill"),
            "{text}"
        );
    }
}
