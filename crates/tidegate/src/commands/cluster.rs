//! `tidegate cluster`.

use std::collections::BTreeMap;

use tidegate_api::{ClusterView, ServerHookView, ServerStatus, ServerView};
use tidegate_client::Client;

use super::confirm;
use crate::arguments::{ClusterArguments, ClusterCommand};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, counted, elapsed, table};

pub(super) async fn run(arguments: ClusterArguments, client: &Client, output: Output) -> Result<Exit, Failure> {
    if let Some(ClusterCommand::ConfirmSetBack { reason, yes }) = arguments.command {
        confirm("Go on from the database as it is? What came after its state is lost for good.", yes)?;
        let confirmed = client.confirm_set_back(&reason).await?;
        output.result(&confirmed, |confirmed, style| {
            format!(
                "{} the servers go on from here: epoch {}, revision {}",
                style.mark(Paint::Good),
                confirmed.epoch,
                confirmed.revision
            )
        })?;
        return Ok(Exit::Done);
    }
    let view = client.cluster().await?;
    output.result(&view, show)?;
    Ok(Exit::Done)
}

fn show(view: &ClusterView, style: Style) -> String {
    let now = view.now.unwrap_or_else(epoch_ms);
    let usual = usual(&view.servers);
    let servers: Vec<Vec<String>> = view
        .servers
        .iter()
        .map(|server| {
            let name = if server.answering { format!("{} (answering)", server.name) } else { server.name.clone() };
            let left = server.lease_until.saturating_sub(now);
            vec![
                name,
                status(server.status).to_owned(),
                if left == 0 { "over".to_owned() } else { lasting(left) },
                server.behind.to_string(),
                server.slots.to_string(),
                runs(&server.hooks, &usual),
            ]
        })
        .collect();
    let hooks: Vec<Vec<String>> = view
        .hooks
        .iter()
        .map(|hook| {
            vec![
                hook.hook.clone(),
                usual.get(hook.hook.as_str()).map_or_else(|| "-".to_owned(), |(_, room)| room.to_string()),
                hook.slots.to_string(),
                hook.free_slots.to_string(),
                hook.open.to_string(),
                hook.oldest.map_or_else(|| "-".to_owned(), |since| lasting(now.saturating_sub(since))),
                hook.no_server.to_string(),
                hook.paused.to_string(),
                hook.dead.to_string(),
            ]
        })
        .collect();
    format!(
        "state in {}, at revision {}\n\n{}\n{}",
        view.driver,
        view.revision,
        table::render(style, &["server", "status", "lease", "behind", "slots", "runs"], &servers),
        table::render(
            style,
            &["cluster hook", "at once", "slots", "free", "open", "oldest", "without server", "paused", "dead letters"],
            &hooks
        ),
    )
}

/// The version and room that most servers that live have of each hook.
fn usual(servers: &[ServerView]) -> BTreeMap<&str, (u32, u32)> {
    let mut counts: BTreeMap<&str, BTreeMap<(u32, u32), usize>> = BTreeMap::new();
    for hook in servers.iter().filter(|server| server.status != ServerStatus::Gone).flat_map(|server| &server.hooks) {
        *counts.entry(&hook.hook).or_default().entry((hook.version, hook.room)).or_default() += 1;
    }
    let most = |kinds: BTreeMap<(u32, u32), usize>| {
        kinds.into_iter().max_by_key(|(kind, count)| (*count, *kind)).map(|(kind, _)| kind)
    };
    counts.into_iter().filter_map(|(hook, kinds)| Some((hook, most(kinds)?))).collect()
}

/// What a server runs: how many hooks, and in what it differs from the others.
fn runs(hooks: &[ServerHookView], usual: &BTreeMap<&str, (u32, u32)>) -> String {
    if hooks.is_empty() {
        return "none".to_owned();
    }
    let mut differences = Vec::new();
    for (name, (version, room)) in usual {
        match hooks.iter().find(|hook| hook.hook == *name) {
            None => differences.push(format!("without {name}")),
            Some(hook) if hook.version != *version => differences.push(format!("{name} at version {}", hook.version)),
            Some(hook) if hook.room != *room => differences.push(format!("{name} {} at once", hook.room)),
            Some(_) => {}
        }
    }
    let alone = hooks.iter().filter(|hook| !usual.contains_key(hook.hook.as_str()));
    differences.extend(alone.map(|hook| format!("and {}", hook.hook)));
    let count = counted(hooks.len() as u64, "hook");
    if differences.is_empty() { count } else { format!("{count}: {}", differences.join(", ")) }
}

fn lasting(ms: u64) -> String {
    elapsed(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// The time here, where the server does not tell its own.
fn epoch_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn status(status: ServerStatus) -> &'static str {
    match status {
        ServerStatus::Up => "up",
        ServerStatus::Draining => "draining",
        ServerStatus::Gone => "gone",
        ServerStatus::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use tidegate_api::ClusterHookView;

    use super::*;

    fn hook(name: &str, version: u32, room: u32) -> ServerHookView {
        ServerHookView { hook: name.to_owned(), version, room }
    }

    fn server(name: &str, status: ServerStatus, lease_until: u64, hooks: Vec<ServerHookView>) -> ServerView {
        ServerView {
            name: name.to_owned(),
            id: "1".to_owned(),
            answering: name == "x",
            status,
            lease_until,
            applied: 38,
            behind: 2,
            slots: 32,
            hooks,
        }
    }

    #[test]
    fn a_cluster_is_two_tables() {
        let all = || vec![hook("calls", 1, 4), hook("rollout", 1, 8)];
        let rollout = ClusterHookView { hook: "rollout".to_owned(), slots: 64, dead: 1, ..Default::default() };
        let view = ClusterView {
            driver: "postgres".to_owned(),
            revision: 40,
            now: Some(100_000),
            servers: vec![
                server("x", ServerStatus::Up, 107_500, all()),
                server("y", ServerStatus::Up, 104_000, all()),
                server("z", ServerStatus::Gone, 90_000, vec![hook("rollout", 1, 2)]),
            ],
            hooks: vec![ClusterHookView { open: 3, oldest: Some(35_000), ..rollout }],
        };
        let text = show(&view, Style::PLAIN);
        assert_eq!(
            text,
            "state in postgres, at revision 40\n\n\
             SERVER         STATUS  LEASE  BEHIND  SLOTS  RUNS\n\
             x (answering)  up      7s     2       32     2 hooks\n\
             y              up      4s     2       32     2 hooks\n\
             z              gone    over   2       32     1 hook: without calls, rollout 2 at once\n\n\
             CLUSTER HOOK  AT ONCE  SLOTS  FREE  OPEN  OLDEST  WITHOUT SERVER  PAUSED  DEAD LETTERS\n\
             rollout       8        64     0     3     1m05s   0               0       1\n"
        );
    }

    #[test]
    fn what_a_server_runs_otherwise_than_the_others_is_named() {
        let servers = [
            server("x", ServerStatus::Up, 1, vec![hook("a", 1, 4), hook("b", 1, 4)]),
            server("y", ServerStatus::Up, 1, vec![hook("a", 1, 4), hook("b", 1, 4)]),
            server("z", ServerStatus::Up, 1, vec![hook("a", 2, 4), hook("b", 1, 2), hook("c", 1, 1)]),
            server("gone", ServerStatus::Gone, 1, vec![hook("old", 1, 1)]),
            server("new", ServerStatus::Up, 1, vec![]),
        ];
        let usual = usual(&servers);
        let texts: Vec<String> = servers.iter().map(|server| runs(&server.hooks, &usual)).collect();
        assert_eq!(
            texts,
            [
                "2 hooks: without c",
                "2 hooks: without c",
                "3 hooks: a at version 2, b 2 at once",
                "1 hook: without a, without b, without c, and old",
                "none"
            ]
        );
    }
}
