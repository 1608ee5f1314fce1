//! `tidegate region …`.

use tidegate_api::{AvailabilityRequest, RegionView};
use tidegate_client::Client;

use crate::arguments::RegionCommand;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{Output, Style, table};

pub(super) async fn run(command: RegionCommand, client: &Client, output: Output) -> Result<Exit, Failure> {
    match command {
        RegionCommand::List => {
            let regions = client.regions().await?;
            output.result(&regions, |regions, style| list(regions, style))?;
        }
        // clap requires one of the two flags.
        RegionCommand::Mark { region, available, unavailable: _, reason } => {
            let region = client.mark_region(&region, &AvailabilityRequest { available, reason }).await?;
            output.result(&region, |region, style| list(std::slice::from_ref(region), style))?;
        }
    }
    Ok(Exit::Done)
}

fn list(regions: &[RegionView], style: Style) -> String {
    let rows: Vec<Vec<String>> = regions
        .iter()
        .map(|region| {
            let availability = match (&region.reason, region.available) {
                (_, true) => "available".to_owned(),
                (Some(reason), false) => format!("unavailable: {reason}"),
                (None, false) => "unavailable".to_owned(),
            };
            let serving = region
                .stores
                .iter()
                .filter_map(|(store, state)| state.serving.map(|version| format!("{store}:v{version}")))
                .collect::<Vec<_>>()
                .join(" ");
            vec![region.name.clone(), availability, format!("{} ({} enough)", region.nodes, region.enough), serving]
        })
        .collect();
    table::render(style, &["region", "availability", "nodes", "serving"], &rows)
}
