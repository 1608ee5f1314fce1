//! Who hosts a region.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Timestamp};
use uuid::Uuid;

use super::Region;

/// `/regions/{r}/hosts/host`: the lease by which one agent at a time hosts the region. Taken and renewed by agents, by the
/// rules of [`crate::region::hosting`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionHosting {
    /// The agent's id.
    pub agent: Uuid,
    /// What people call it.
    pub name: String,
    /// Where it answers reads; absent where it has not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether it is a server. The control plane says so itself, and no agent can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_server: bool,
    /// Goes with every report and every command. Rises whenever the region is taken, also over a restore or a removal of
    /// the region: it is never below the time at which it was given.
    pub token: u64,
    /// Since when this agent hosts the region.
    pub since: Timestamp,
    /// When it was last heard of.
    pub heard_at: Timestamp,
    /// Until when nobody else may host it.
    pub until: Timestamp,
    /// The region's nodes.
    #[serde(default)]
    pub nodes: Vec<RegionHostNode>,
    /// Where the agent before this one answered reads, and those of its nodes that are processes of their own: they serve on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<String>,
}

/// A node of a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionHostNode {
    /// Its name.
    pub name: String,
    /// Where it answers reads; absent for one within the agent's own process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl RegionHosting {
    /// The id of the only one that a region has.
    pub const ID: &'static str = "host";

    /// Where reads are answered in this agent's stead: by those of its nodes that are processes of their own.
    pub fn node_addresses(&self) -> impl Iterator<Item = &String> {
        self.nodes.iter().filter_map(|node| node.address.as_ref())
    }

    /// Whether another agent may take the region.
    #[must_use]
    pub fn has_lapsed(&self, now: Timestamp) -> bool {
        self.until <= now
    }
}

impl Entity for RegionHosting {
    const COLLECTION: &'static str = "hosts";
    type Parent = Region;
    type Id = String;
}
