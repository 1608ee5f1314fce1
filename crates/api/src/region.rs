//! Regions and what they hold and serve.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;
use crate::agent::{HostView, PinView};
use crate::job::ExecutionStatus;
use crate::view::Progress;

/// A region as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegionView {
    /// Its name.
    pub name: String,
    /// How many serving nodes it has.
    pub nodes: u32,
    /// How many of them have to hold a version before it counts as ingested.
    pub enough: u32,
    /// Whether it loads from the source store, so that nothing is copied.
    pub shares_source: bool,
    /// Whether an agent of its own hosts it, so that servers leave it alone.
    #[serde(default)]
    pub agent: bool,
    /// Who hosts it; absent where nobody ever has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostView>,
    /// Whether its operator calls it available.
    pub available: bool,
    /// Why not, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<EpochMs>,
    /// What it is told and what it does, by store.
    #[serde(default)]
    pub stores: BTreeMap<String, RegionStoreView>,
}

/// One store in a region: what it is told and what it does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegionStoreView {
    /// What it is told to serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_to_serve: Option<u64>,
    /// What it is told to hold.
    #[serde(default)]
    pub told_to_hold: Vec<u64>,
    /// What it serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<u64>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving_since: Option<EpochMs>,
    /// What it holds, by version.
    #[serde(default)]
    pub held: BTreeMap<u64, HeldVersionView>,
    /// Nodes that do not do what the region does.
    #[serde(default)]
    pub lagging_nodes: Vec<String>,
    /// When it reported last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_at: Option<EpochMs>,
    /// The version that is pinned there; it wins over what the region is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<PinView>,
    /// Pins that are over, the newest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past_pins: Vec<PinView>,
}

/// A version that a region holds or is about to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HeldVersionView {
    /// How far it is.
    pub status: ExecutionStatus,
    /// Since when it has that status.
    pub since: EpochMs,
    /// How far copying and loading is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What went wrong, if something did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Adds a region, or changes its settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegionSettings {
    /// How many serving nodes it has.
    pub nodes: u32,
    /// How many of them have to hold a version before it counts as ingested; more than half where it is absent.
    #[serde(default)]
    pub enough: Option<u32>,
    /// Whether it loads from the source store, so that nothing is copied.
    #[serde(default)]
    pub shares_source: bool,
    /// Whether an agent of its own hosts it, so that servers leave it alone.
    #[serde(default)]
    pub agent: bool,
}

/// Marks a region as available or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AvailabilityRequest {
    /// Whether new versions go there.
    pub available: bool,
    /// Why, for the record. Needed to mark it unavailable.
    #[serde(default)]
    pub reason: String,
}
