//! What a region's agent and the control plane say to each other about who hosts the region.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;
use crate::access::Role;

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
    /// Where it answers reads; absent where it has not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether it is a server, and not an agent of the region's own.
    #[serde(default)]
    pub is_server: bool,
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

/// Who may ask a region's agent and its nodes: what the control plane hands out of its tokens, so that they can be judged
/// with the control plane gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegionAccess {
    /// Another one whenever anything below is.
    pub mark: String,
    /// Tokens that hold, by id. None is here that may ask neither data nor what this region's agent is for.
    pub tokens: BTreeMap<String, RegionToken>,
    /// Of the stores that the region holds, the team that each belongs to.
    pub teams: BTreeMap<String, String>,
}

/// What an agent and its nodes know of a token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegionToken {
    /// SHA-256 of its secret, in hexadecimal. The secret is random and as long, so nobody finds it from this.
    pub digest: String,
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Its team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<EpochMs>,
}

impl std::fmt::Debug for RegionToken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RegionToken")
            .field("name", &self.name)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// A node is let go of: neither commanded nor counted any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRemoved {
    /// The region.
    pub region: String,
    /// The node.
    pub node: String,
    /// Where it was.
    pub address: String,
    /// Whether it was heard of a moment ago, so that it may be serving.
    pub was_heard: bool,
    /// The nodes that the region has left.
    pub left: Vec<String>,
}

/// An agent says that a node was removed on its machine, for the audit trail. Said again until it was heard; the same list and
/// number are the same removal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRemoval {
    /// The list that the agent's folder keeps.
    #[schema(value_type = String)]
    pub list: String,
    /// Its place there, from 1.
    pub number: u64,
    /// What people call the agent.
    pub agent: String,
    /// The node.
    pub node: String,
    /// Where it was.
    pub address: String,
    /// Who removed it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Whether it was removed though it may have served.
    pub forced: bool,
    /// When.
    pub at: EpochMs,
}

/// A node says to its agent where it is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeAnnouncement {
    /// Its address.
    pub address: String,
    /// With which it is to be commanded.
    pub secret: String,
    /// The mark of the [`RegionAccess`] that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_mark: Option<String>,
    /// Whether somebody has shown it a token that is not in there: it may be new.
    #[serde(default)]
    pub look_again: bool,
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
    /// Who may ask the node, where it knows that otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<RegionAccess>,
}
