//! How far one region is with one push.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_state::Timestamp;

use super::FailureKind;

/// A region's part in a push.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegionPush {
    /// What its assignment said to serve before this push; absent where it served nothing. Where a rollback leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<u64>,
    /// Where it is on its way.
    pub state: RegionState,
    /// When each milestone was first reached. Repeating a report moves none of them.
    #[serde(default)]
    pub reached: BTreeMap<Milestone, Timestamp>,
    /// Whether it joined after the push had ended: a region that was added, or was marked unavailable meanwhile.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
}

impl RegionPush {
    /// A region at the start of its way.
    #[must_use]
    pub fn new(previous: Option<u64>) -> Self {
        RegionPush { previous, state: RegionState::Waiting, reached: BTreeMap::new(), late: false }
    }

    /// Whether it joined after the push had ended, and is still on its way.
    #[must_use]
    pub fn is_catching_up(&self) -> bool {
        self.late && !self.state.is_at_rest()
    }

    /// Notes that a milestone was reached, if it was not before.
    pub fn reach(&mut self, milestone: Milestone, at: Timestamp) {
        self.reached.entry(milestone).or_insert(at);
    }
}

/// Where a region is on its way with a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionState {
    /// For the artifact, or for its creation gate.
    Waiting,
    /// It has its assignment and ingests.
    Ingesting {
        /// Since when.
        since: Timestamp,
    },
    /// It has ingested, and waits for its embedded clients or its swap gate.
    Ingested {
        /// Since when.
        since: Timestamp,
    },
    /// It was told to swap and has not confirmed it.
    Swapping {
        /// Since when.
        since: Timestamp,
    },
    /// It serves the version; the round after its swap is open.
    Baking {
        /// Since when it serves.
        since: Timestamp,
    },
    /// It serves the version, and the round after its swap has proceeded.
    Done {
        /// Since when it is done.
        since: Timestamp,
    },
    /// It was told to serve what it served before the push, and has not confirmed it.
    GoingBack {
        /// Since when.
        since: Timestamp,
    },
    /// It failed. It keeps serving what it served.
    Failed(RegionFailure),
    /// It takes no part.
    LeftOut {
        /// Why: marked unavailable, or removed.
        reason: String,
        /// Since when.
        since: Timestamp,
    },
    /// The push ended, or went back, before this region served it for good.
    Stopped {
        /// When.
        at: Timestamp,
    },
}

impl RegionState {
    /// Whether the region's assignment says to serve the push's version.
    #[must_use]
    pub fn is_told_to_serve(&self) -> bool {
        matches!(self, Self::Swapping { .. } | Self::Baking { .. } | Self::Done { .. })
    }

    /// Whether nothing more happens to it in this push.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed(_) | Self::LeftOut { .. } | Self::Stopped { .. })
    }

    /// One word for it, for people.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ingesting { .. } => "ingesting",
            Self::Ingested { .. } => "ingested",
            Self::Swapping { .. } => "swapping",
            Self::Baking { .. } => "baking",
            Self::Done { .. } => "done",
            Self::GoingBack { .. } => "going back",
            Self::Failed(_) => "failed",
            Self::LeftOut { .. } => "left out",
            Self::Stopped { .. } => "stopped",
        }
    }
}

/// Why a region failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionFailure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// The region's own error, or since when it has been silent.
    pub message: String,
    /// When it was taken for failed.
    pub at: Timestamp,
}

/// What a region reaches on its way, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Milestone {
    /// The version was created: the assignment names it.
    Assigned,
    /// It began to copy.
    Progress,
    /// It has ingested.
    Ingested,
    /// Its embedded clients may ingest.
    EmbeddedAllowed,
    /// It was told to swap.
    SwapTold,
    /// It confirmed that it serves the version.
    Serving,
    /// The round after its swap proceeded.
    Done,
    /// It failed.
    Failed,
    /// It went back to what it served before.
    BackConfirmed,
    /// It was stopped.
    Stopped,
}
