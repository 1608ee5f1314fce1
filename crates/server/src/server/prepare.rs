//! What a start writes into the state: the regions of its configuration, and its hooks configuration.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_lifecycle::{FirstPublished, HooksConfiguration, HooksFile, Lifecycle, PublishError, Surroundings};
use tidegate_rollout::Operations;
use tidegate_rollout::entities::{Availability, Region};
use tidegate_rollout::region::host::RegionSetup;
use tidegate_state::State;

use super::{Options, StartError};
use crate::config::{RegionSection, default_regions};

/// Registers the regions of the configuration, or `a`, `b` and `c` where there are none at all.
/// The regions that this server hosts.
pub(crate) async fn register_regions(
    options: &Options,
    state: &State,
    operations: &Operations,
) -> Result<Vec<RegionSetup>, StartError> {
    let mut known = BTreeMap::new();
    for item in state.snapshot().roots::<Region>() {
        let (region, value) = item.map_err(|error| StartError::Prepare(error.to_string()))?;
        known.insert(region.id(), value.clone());
    }
    let sections = if options.config.regions.is_empty() && known.is_empty() {
        default_regions()
    } else {
        options.config.regions.clone()
    };
    if sections.is_empty() {
        // The file names none: those that exist go on.
        let ours = known.iter().filter(|(_, region)| !region.agent);
        return Ok(ours.map(|(name, region)| setup(name, region)).collect());
    }
    let named: BTreeSet<&String> = sections.iter().map(|section| &section.name).collect();
    for (name, _) in known.iter().filter(|(name, region)| !named.contains(name) && !region.agent) {
        tracing::warn!(region = name, "a region that the configuration does not name is not hosted here");
    }
    let mut setups = Vec::new();
    for section in &sections {
        let region = region_of(section);
        let changed = known.get(&section.name).is_none_or(|there| {
            (there.nodes, there.enough, there.shares_source, there.agent)
                != (region.nodes, region.enough, region.shares_source, region.agent)
        });
        if changed && state.writes_stopped().is_none() {
            operations.register_region(&section.name, region.clone(), state.server()).await?;
        }
        if !region.agent {
            setups.push(setup(&section.name, &region));
        }
    }
    Ok(setups)
}

fn region_of(section: &RegionSection) -> Region {
    Region {
        nodes: section.nodes,
        enough: section.enough(),
        shares_source: section.shares_source,
        agent: section.agent,
        availability: Availability::Available,
        added_at: tidegate_state::Timestamp::default(),
    }
}

fn setup(name: &str, region: &Region) -> RegionSetup {
    RegionSetup { name: name.to_owned(), nodes: region.nodes, shares_source: region.shares_source }
}

/// Publishes the hooks configuration of this server's file if none is published. In which way the
/// file differs from what is, if it does.
pub(crate) async fn publish_hooks(
    options: &Options,
    state: &State,
    lifecycle: &Lifecycle,
) -> Result<Option<String>, StartError> {
    let prepare = |error: String| StartError::Prepare(error);
    if state.writes_stopped().is_some() {
        return Ok(None);
    }
    let file = match &options.config.hooks {
        // A server that is told nothing about hooks has nothing to say about what is published.
        None if state.snapshot().contains(HooksConfiguration::place().path()) => return Ok(None),
        None => Ok(HooksFile::default_of(lifecycle.registry())),
        Some(table) => {
            let table = serde_json::to_value(table).map_err(|error| prepare(error.to_string()))?;
            HooksFile::from_json(table, lifecycle.registry())
        }
    };
    let mut regions = BTreeSet::new();
    for item in state.snapshot().roots::<Region>() {
        regions.insert(item.map_err(|error| prepare(error.to_string()))?.0.id());
    }
    let surroundings = Surroundings { regions: Some(regions), now: state.now() };
    let file = file.as_ref().map_err(Clone::clone);
    match lifecycle.publish_first(state, file, &surroundings).await {
        Ok(FirstPublished::Published | FirstPublished::Equal { .. }) => Ok(None),
        Ok(FirstPublished::Differs { differences, .. }) => Ok(Some(differences.join("; "))),
        Err(PublishError::Refused(refusal)) => Err(StartError::Hooks(refusal)),
        Err(PublishError::Write(error)) => Err(prepare(error.to_string())),
    }
}
