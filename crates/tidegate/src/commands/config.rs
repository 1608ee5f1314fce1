//! `tidegate config …`.

use tidegate_api::{ConfigView, HooksConfigView};
use tidegate_client::Client;

use crate::arguments::ConfigCommand;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, elapsed, plain};

pub(super) async fn run(command: ConfigCommand, client: &Client, output: Output) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Apply { file } => {
            let text = tokio::fs::read_to_string(&file).await.map_err(|error| {
                Failure::usage(
                    format!("{} can't be read", file.display()),
                    error.to_string(),
                    "Name a TOML file with a [hooks] table.",
                )
            })?;
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
