//! A region: where data is served.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Root, Timestamp};

/// `/regions/{r}`. Written by users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// How many nodes it has.
    pub nodes: u32,
    /// How many nodes must hold a version, with equal digests, for the region to have ingested it.
    pub enough: u32,
    /// Whether it reads the source's object store as its own, so that there is nothing to copy.
    #[serde(default)]
    pub shares_source: bool,
    /// Whether an agent of its own hosts it, so that servers leave it alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub agent: bool,
    /// Whether pushes go there.
    #[serde(default)]
    pub availability: Availability,
    /// When it was added.
    #[serde(default)]
    pub added_at: Timestamp,
}

impl Entity for Region {
    const COLLECTION: &'static str = "regions";
    type Parent = Root;
    type Id = String;
}

/// Whether pushes go to a region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Availability {
    /// They do.
    #[default]
    Available,
    /// They leave it out until it is marked available again.
    Unavailable {
        /// Why.
        reason: String,
        /// Who marked it.
        by: String,
        /// Since when.
        since: Timestamp,
    },
}

impl Availability {
    /// Whether pushes go there.
    #[must_use]
    pub fn is_available(&self) -> bool {
        matches!(self, Self::Available)
    }
}

/// `/regions/{r}/heartbeats/agent`: the region's agent lives. Written about every ten seconds; a region counts as silent
/// when neither this nor its report on a store has moved for the store's region limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHeartbeat {
    /// When.
    pub at: Timestamp,
    /// Which agent, for people.
    #[serde(default)]
    pub agent: String,
}

impl AgentHeartbeat {
    /// The id of the only one that a region has.
    pub const ID: &'static str = "agent";
}

impl Entity for AgentHeartbeat {
    const COLLECTION: &'static str = "heartbeats";
    type Parent = Region;
    type Id = String;
}
