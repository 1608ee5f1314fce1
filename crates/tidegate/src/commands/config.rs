//! `tidegate config …`.

use tidegate_api::{ConfigView, HooksConfigView};
use tidegate_client::Client;

use super::confirm;
use crate::arguments::ConfigCommand;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, elapsed, plain, say};

pub(super) async fn run(command: ConfigCommand, client: &Client, output: Output) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Apply { file, yes } => {
            let text = tokio::fs::read_to_string(&file).await.map_err(|error| {
                Failure::usage(
                    format!("{} can't be read", file.display()),
                    error.to_string(),
                    "Name a TOML file with a [hooks] table.",
                )
            })?;
            let (before, after) = (client.config().await?.hooks, client.check_hooks_toml(&text).await?);
            let loss = Loss::between(&before, &after);
            if !output.is_json() {
                loss.lines().iter().for_each(|line| say(&format!("{} {line}", output.error_style.mark(Paint::Held))));
            }
            if !loss.unguarded.is_empty() {
                let hooks = loss.unguarded.join(", ");
                let what = if loss.unguarded.len() == 1 { "hook stops" } else { "hooks stop" };
                confirm(
                    &format!("{} {what} guarding by this file: {}. Publish it?", loss.unguarded.len(), plain(&hooks)),
                    yes,
                )?;
            }
            let hooks = client.publish_hooks_toml(&text).await?;
            output.result(&hooks, hooks_text)?;
        }
        ConfigCommand::Show => {
            let config = client.config().await?;
            output.result(&config, show)?;
        }
    }
    Ok(Exit::Done)
}

/// What a file takes away from what is in force.
#[derive(Debug, Default, PartialEq, Eq)]
struct Loss {
    /// Hooks that are not enabled, or not configured, any more.
    unguarded: Vec<String>,
    /// Single settings, `hook.key`, with their values.
    settings: Vec<(String, String)>,
}

impl Loss {
    fn between(before: &HooksConfigView, after: &HooksConfigView) -> Loss {
        let mut loss = Loss::default();
        let configured = |view: &HooksConfigView, hook: &str| view.hooks.get(hook).is_some_and(|keys| !keys.is_empty());
        for hook in &before.enabled {
            let stops = !after.enabled.contains(hook) || (configured(before, hook) && !configured(after, hook));
            if stops {
                loss.unguarded.push(hook.clone());
            }
        }
        for (hook, settings) in &before.hooks {
            for (key, value) in settings {
                if after.hooks.get(hook).is_none_or(|after| !after.contains_key(key)) {
                    loss.settings.push((format!("{hook}.{key}"), value.clone()));
                }
            }
        }
        loss
    }

    fn lines(&self) -> Vec<String> {
        self.settings.iter().map(|(key, value)| format!("no longer set: {} = {}", plain(key), plain(value))).collect()
    }
}

fn hooks_text(hooks: &HooksConfigView, style: Style) -> String {
    let limit = |milliseconds: u64| elapsed(i64::try_from(milliseconds).unwrap_or(i64::MAX));
    let mut text = format!(
        "{}\n  enabled        {}\n  threads        {}\n  timeout        {}\n  wait_interval  {}\n",
        style.paint(
            Paint::Strong,
            &format!("hooks, generation {} (published by {})", hooks.generation, plain(&hooks.published_by))
        ),
        plain(&hooks.enabled.join(", ")),
        hooks.threads,
        limit(hooks.timeout_ms),
        limit(hooks.wait_interval_ms),
    );
    for (hook, settings) in &hooks.hooks {
        for (key, value) in settings {
            text.push_str(&format!("  {}.{} = {}\n", plain(hook), plain(key), plain(value)));
        }
    }
    text
}

fn show(config: &ConfigView, style: Style) -> String {
    let mut text = hooks_text(&config.hooks, style);
    let server = &config.server;
    text.push_str(
        &style.paint(Paint::Strong, &format!("server {} ({})", plain(&server.server), plain(&server.release))),
    );
    text.push('\n');
    for (name, setting) in &server.settings {
        let origin = format!("{:?}", setting.origin).to_lowercase();
        text.push_str(&format!(
            "  {} = {}  {}\n",
            plain(name),
            plain(&setting.value),
            style.paint(Paint::Quiet, &format!("({origin})"))
        ));
    }
    if let Some(difference) = &server.file_differs {
        text.push_str(&format!(
            "{} its file differs from what is published: {}\n",
            style.mark(Paint::Held),
            plain(difference)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn view(enabled: &[&str], settings: &[(&str, &str)]) -> HooksConfigView {
        let mut hooks: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (hook, key) in settings {
            hooks.entry((*hook).to_owned()).or_default().insert((*key).to_owned(), "1".to_owned());
        }
        let enabled = enabled.iter().map(|name| (*name).to_owned()).collect();
        HooksConfigView { enabled, hooks, ..HooksConfigView::default() }
    }

    #[test]
    fn what_stops_guarding_is_told_from_what_is_configured_otherwise() {
        let before = view(&["a", "b", "c"], &[("a", "x"), ("b", "x"), ("b", "y")]);
        let loss = Loss::between(&before, &view(&["a", "b"], &[("b", "y"), ("b", "z")]));
        assert_eq!(loss.unguarded, ["a", "c"]);
        assert_eq!(loss.lines(), ["no longer set: a.x = 1", "no longer set: b.x = 1"]);
        assert_eq!(Loss::between(&before, &before), Loss::default());
    }
}
