//! What a region holds and serves of a store, as it says itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Timestamp};
use uuid::Uuid;

use super::Region;

/// `/regions/{r}/reports/{s}`: observed state, written by the region's agent alone: at every change at once, progress
/// alone at most once a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The generation of the assignment that the agent has seen and acts on.
    pub generation: u64,
    /// The store's incarnation in that assignment.
    pub incarnation: Uuid,
    /// The versions that it holds, loads, or failed to load. Those that it dropped are absent.
    #[serde(default)]
    pub versions: BTreeMap<u64, HeldReport>,
    /// What its nodes really serve: a version only once enough of them do; absent where they serve nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<u64>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving_since: Option<Timestamp>,
    /// Nodes that do not hold or serve what they should; at most 16 are named.
    #[serde(default)]
    pub lagging_nodes: Vec<String>,
    /// Embedded clients, as counts.
    #[serde(default)]
    pub embedded: EmbeddedCounts,
    /// A version that someone pinned in the region itself; it wins over the assignment until it is lifted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// Pins that are over, the newest last; at most [`PAST_PINS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past_pins: Vec<PastPin>,
    /// When the agent wrote this.
    pub at: Timestamp,
}

/// How many pins that are over a report names.
pub const PAST_PINS_MAX: usize = 16;

impl Entity for Report {
    const COLLECTION: &'static str = "reports";
    type Parent = Region;
    type Id = String;
}

/// How a region stands with one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldReport {
    /// How far it is.
    pub status: IngestionStatus,
    /// Since when it has been in this status. Repeating a report does not move it.
    pub since: Timestamp,
    /// Content digest of what its nodes hold, once they hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// How many nodes hold it with that digest.
    #[serde(default)]
    pub nodes: u32,
    /// The last error of a step that is being tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrying: Option<String>,
}

/// How far a region is with a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IngestionStatus {
    /// It has seen its assignment.
    Started,
    /// It copies or loads.
    Progress {
        /// Bytes done.
        bytes: u64,
        /// Bytes there are.
        of: u64,
    },
    /// Enough nodes hold it and their digests agree.
    Completed,
    /// It has given up: loading it, or (after `Completed`) swapping to it.
    Failed {
        /// What kind of failure.
        kind: FailureKind,
        /// The engine's or the agent's own error.
        message: String,
    },
}

/// What kind of failure a region met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No room on disk, or the version would not fit.
    DiskFull,
    /// No room in memory.
    MemoryLimitReached,
    /// Too many embedded clients are dead.
    TooManyDeadInstances,
    /// The data is damaged, or nodes do not agree on it.
    DataDamaged,
    /// The engine refuses to swap.
    SwapRefused,
    /// Nothing was heard of it for the region limit.
    Silent,
    /// Anything else.
    Other,
}

impl FailureKind {
    /// One word or two for it, for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::DiskFull => "disk full",
            Self::MemoryLimitReached => "memory limit reached",
            Self::TooManyDeadInstances => "too many dead instances",
            Self::DataDamaged => "data damaged",
            Self::SwapRefused => "swap refused",
            Self::Silent => "silent",
            Self::Other => "failed",
        }
    }
}

/// Embedded clients of a store in a region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmbeddedCounts {
    /// Clients that count: registered, and alive or dead for no longer than the grace time.
    pub live: u32,
    /// Clients that stopped counting: dead for longer than the grace time, and not yet forgotten.
    pub dead: u32,
    /// How many of the live ones are how far, by version.
    pub versions: BTreeMap<u64, EmbeddedVersionCounts>,
}

/// How far the live embedded clients are with one version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmbeddedVersionCounts {
    /// How many hold it (those that serve it included).
    pub ingested: u32,
    /// How many serve it.
    pub serving: u32,
}

/// A version pinned in a region itself, with the control plane out of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The version.
    pub version: u64,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A pin that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastPin {
    /// What it was.
    pub pin: Pin,
    /// When it was over.
    pub ended_at: Timestamp,
    /// How it ended, and who ended it: lifted, or another pin took its place.
    pub ended: String,
}
