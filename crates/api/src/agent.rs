//! What a region's agent and the control plane say to each other about who hosts the region.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;

/// An agent says that it hosts a region, or would like to. Sent at the start and then again and again: it takes the
/// region's lease, renews it, and says that the agent lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostClaim {
    /// The agent's id, which it keeps on its own disk: the same after a restart.
    #[schema(value_type = String)]
    pub agent: String,
    /// What people call it.
    pub name: String,
    /// Where it answers reads, if it does so by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// For how long the lease is asked, in milliseconds.
    pub lease_ms: u64,
    /// The token of the lease that it holds; absent where it holds none and would like to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// Whether this is the first claim of the agent's process. Its folder is locked, so whatever process had this id
    /// before is dead, and its lease need not run out.
    #[serde(default)]
    pub starting: bool,
    /// The region's nodes.
    #[serde(default)]
    pub nodes: Vec<HostNode>,
}

/// A node of a region, as its agent knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostNode {
    /// Its name.
    pub name: String,
    /// Where it answers reads; absent for one within the agent's own process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// The agent hosts the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostGrant {
    /// Goes with every report. It rises whenever the region's host changes: whoever has a lower one has been replaced.
    pub token: u64,
    /// For how long, in milliseconds from when the claim was sent.
    pub lease_ms: u64,
    /// The control plane's time.
    pub now: EpochMs,
}

/// Who hosts a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// The agent's id.
    pub agent: String,
    /// What people call it.
    pub name: String,
    /// Where it answers reads; absent where it is part of a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Its token, which rises whenever the host changes.
    pub token: u64,
    /// Since when.
    pub since: EpochMs,
    /// When it was last heard of.
    pub heard_at: EpochMs,
    /// Until when nobody else may host the region.
    pub until: EpochMs,
    /// Whether that time has passed, or the host has let go of the region.
    pub lapsed: bool,
    /// The region's nodes.
    #[serde(default)]
    pub nodes: Vec<HostNode>,
}

/// A version pinned in a region itself: it wins over what the region is told, until it is lifted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinView {
    /// The version.
    pub version: u64,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// Since when.
    pub at: EpochMs,
    /// When it was over; absent while it is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<EpochMs>,
    /// How it ended, and who ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

/// Pins a version in a region itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PinOrder {
    /// The version.
    pub version: u64,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
}

/// A version is pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinAnswer {
    /// The region.
    pub region: String,
    /// The store.
    pub store: String,
    /// The pin.
    pub pin: PinView,
    /// The pin whose place it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced: Option<PinView>,
    /// How many nodes were found to hold the version whole.
    pub nodes: usize,
    /// How many nodes there are.
    pub of_nodes: usize,
    /// Whether the region serves the version already.
    pub serving: bool,
}

/// What is pinned of a store in a region, and was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorePins {
    /// The store.
    pub store: String,
    /// The pin that is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<PinView>,
    /// Pins that are over, the newest last.
    #[serde(default)]
    pub past: Vec<PinView>,
}

/// A node says to its agent where it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeAnnouncement {
    /// Its address.
    pub address: String,
    /// With which it is to be commanded.
    pub secret: String,
}

impl std::fmt::Debug for NodeAnnouncement {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NodeAnnouncement").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The agent has taken the node into its region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeWelcome {
    /// The region.
    pub region: String,
}
