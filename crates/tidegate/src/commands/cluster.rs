//! `tidegate cluster`.

use tidegate_api::{ClusterView, ServerStatus};
use tidegate_client::Client;

use super::confirm;
use crate::arguments::{ClusterArguments, ClusterCommand};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, table};

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
    let servers: Vec<Vec<String>> = view
        .servers
        .iter()
        .map(|server| {
            let name = if server.answering { format!("{} (answering)", server.name) } else { server.name.clone() };
            let runs: Vec<String> = server.hooks.iter().map(|hook| format!("{}×{}", hook.hook, hook.room)).collect();
            vec![
                name,
                status(server.status).to_owned(),
                server.behind.to_string(),
                server.slots.to_string(),
                if runs.is_empty() { "none".to_owned() } else { runs.join(", ") },
            ]
        })
        .collect();
    let hooks: Vec<Vec<String>> = view
        .hooks
        .iter()
        .map(|hook| {
            vec![
                hook.hook.clone(),
                hook.slots.to_string(),
                hook.free_slots.to_string(),
                hook.open.to_string(),
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
        table::render(style, &["server", "status", "behind", "slots", "runs"], &servers),
        table::render(
            style,
            &["cluster hook", "slots", "free", "open", "without server", "paused", "dead letters"],
            &hooks
        ),
    )
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
    use tidegate_api::{ClusterHookView, ServerHookView, ServerView};

    use super::*;

    #[test]
    fn a_cluster_is_two_tables() {
        let view = ClusterView {
            driver: "postgres".to_owned(),
            revision: 40,
            servers: vec![ServerView {
                name: "x".to_owned(),
                id: "1".to_owned(),
                answering: true,
                status: ServerStatus::Up,
                lease_until: 5,
                applied: 38,
                behind: 2,
                slots: 64,
                hooks: vec![ServerHookView { hook: "rollout".to_owned(), version: 1, room: 8 }],
            }],
            hooks: vec![ClusterHookView { hook: "rollout".to_owned(), slots: 64, dead: 1, ..Default::default() }],
        };
        let text = show(&view, Style::PLAIN);
        assert_eq!(
            text,
            "state in postgres, at revision 40\n\n\
             SERVER         STATUS  BEHIND  SLOTS  RUNS\n\
             x (answering)  up      2       64     rollout×8\n\n\
             CLUSTER HOOK  SLOTS  FREE  OPEN  WITHOUT SERVER  PAUSED  DEAD LETTERS\n\
             rollout       64     0     0     0               0       1\n"
        );
    }
}
