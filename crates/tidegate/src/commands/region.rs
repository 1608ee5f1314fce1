//! `tidegate region …`.

use tidegate_api::{AvailabilityRequest, HostView, PinView, RegionSettings, RegionView};
use tidegate_client::Client;

use super::confirm;
use crate::arguments::RegionCommand;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Paint, Style, moment, plain, table};

pub(super) async fn run(command: RegionCommand, client: &Client, output: Output) -> Result<Exit, Failure> {
    match command {
        RegionCommand::List => {
            let regions = client.regions().await?;
            output.result(&regions, |regions, style| list(regions, style))?;
        }
        RegionCommand::Show { region } => {
            let region = client.region(&region).await?;
            output.result(&region, show)?;
        }
        RegionCommand::Add { region, nodes, enough, by_server } => {
            let settings = RegionSettings { nodes, enough, shares_source: false, agent: !by_server };
            let region = client.set_region(&region, &settings).await?;
            output.result(&region, |region, style| list(std::slice::from_ref(region), style))?;
        }
        RegionCommand::Remove { region, reason, yes } => {
            confirm(&format!("Remove region {}?", plain(&region)), yes)?;
            client.remove_region(&region, &reason).await?;
            output.result(&serde_json::json!({ "removed": region }), |_, _| format!("removed {}", plain(&region)))?;
        }
        // clap requires one of the two flags.
        RegionCommand::Mark { region, available, unavailable: _, reason } => {
            let reason = reason.unwrap_or_default();
            let region = client.mark_region(&region, &AvailabilityRequest { available, reason }).await?;
            output.result(&region, marked)?;
        }
    }
    Ok(Exit::Done)
}

/// What marking it has led to.
fn marked(region: &RegionView, style: Style) -> String {
    let name = plain(&region.name);
    let said = match (region.available, region.host.as_ref().is_some_and(|host| !host.lapsed)) {
        (false, _) => format!("{}; pushes leave it out, and it goes on serving what it has", availability(region)),
        (true, true) => "available; pushes go there, and what it missed is brought to it".to_owned(),
        (true, false) => "available; pushes go there, but nobody hosts it at the moment".to_owned(),
    };
    format!("{} region {name} is {said}", style.mark(if region.available { Paint::Good } else { Paint::Held }))
}

fn availability(region: &RegionView) -> String {
    match (&region.reason, region.available) {
        (_, true) => "available".to_owned(),
        (Some(reason), false) => format!("unavailable: {}", plain(reason)),
        (None, false) => "unavailable".to_owned(),
    }
}

fn host(host: Option<&HostView>) -> String {
    match host {
        None => "nobody".to_owned(),
        Some(host) if host.lapsed => format!("nobody since {}, last {}", moment(host.until), plain(&host.name)),
        Some(host) => plain(&host.name),
    }
}

fn list(regions: &[RegionView], style: Style) -> String {
    let rows: Vec<Vec<String>> = regions
        .iter()
        .map(|region| {
            let serving = region
                .stores
                .iter()
                .filter_map(|(store, state)| {
                    let pinned = if state.pin.is_some() { " (pinned)" } else { "" };
                    state.serving.map(|version| format!("{}:v{version}{pinned}", plain(store)))
                })
                .collect::<Vec<_>>()
                .join(" ");
            vec![
                plain(&region.name),
                availability(region),
                host(region.host.as_ref()),
                format!("{} ({} enough)", nodes(region), region.enough),
                serving,
            ]
        })
        .collect();
    table::render(style, &["region", "availability", "hosted by", "nodes", "serving"], &rows)
}

/// How many nodes there are: as whoever hosts the region says, else as it was set.
fn nodes(region: &RegionView) -> u64 {
    match &region.host {
        Some(host) if !host.nodes.is_empty() => u64::try_from(host.nodes.len()).unwrap_or(u64::MAX),
        _ => region.nodes.into(),
    }
}

fn show(region: &RegionView, style: Style) -> String {
    let mut lines = vec![format!("{}  {}", style.paint(Paint::Going, &plain(&region.name)), availability(region))];
    lines.push(format!("  hosted by {}", host(region.host.as_ref())));
    if let Some(host) = &region.host {
        lines.push(format!(
            "    agent {}, since {}, heard of at {}",
            host.agent,
            moment(host.since),
            moment(host.heard_at)
        ));
        if let Some(address) = &host.address {
            lines.push(format!("    answers reads at {}", plain(address)));
        }
    }
    lines.push(format!("  {} nodes, {} are enough", nodes(region), region.enough));
    for node in region.host.iter().flat_map(|host| &host.nodes) {
        let at =
            node.address.as_ref().map_or("within the agent".to_owned(), |address| format!("at {}", plain(address)));
        lines.push(format!("    {} {at}", plain(&node.name)));
    }
    for (store, state) in &region.stores {
        let version = |version: Option<u64>| version.map_or("nothing".to_owned(), |version| format!("v{version}"));
        let mut line = format!("  {} serves {}", plain(store), version(state.serving));
        if state.told_to_serve != state.serving {
            line.push_str(&format!(", told to serve {}", version(state.told_to_serve)));
        }
        lines.push(line);
        if let Some(pin) = &state.pin {
            lines.push(format!("    {} {}", style.mark(Paint::Held), pinned(pin)));
        }
        for pin in state.past_pins.iter().rev() {
            let ended = pin.ended.as_deref().unwrap_or("over");
            let at = pin.ended_at.map(moment).unwrap_or_default();
            lines.push(format!("    was {}; {} at {at}", pinned(pin), plain(ended)));
        }
        for (version, held) in &state.held {
            let message = held.message.as_ref().map(|message| format!(": {}", plain(message))).unwrap_or_default();
            lines.push(format!("    v{version} {}{message}", held.status.word()));
        }
        if !state.lagging_nodes.is_empty() {
            lines.push(format!("    behind: {}", plain(&state.lagging_nodes.join(", "))));
        }
    }
    lines.join("\n")
}

fn pinned(pin: &PinView) -> String {
    format!("pinned to v{} by {} since {}: {}", pin.version, plain(&pin.by), moment(pin.at), plain(&pin.reason))
}
