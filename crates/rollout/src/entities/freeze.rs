//! A freeze holds every way forward, and never the way back.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Root, Timestamp};

/// `/freezes/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// What it holds.
    pub scope: FreezeScope,
    /// Why.
    pub reason: String,
    /// Who set it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

impl Entity for Freeze {
    const COLLECTION: &'static str = "freezes";
    type Parent = Root;
    type Id = String;
}

impl Freeze {
    /// Whether it holds this store's swaps in this region.
    #[must_use]
    pub fn holds(&self, store: &str, region: &str) -> bool {
        match &self.scope {
            FreezeScope::Store(frozen) => frozen == store,
            FreezeScope::Region(frozen) => frozen == region,
            FreezeScope::All => true,
        }
    }
}

/// What a freeze holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FreezeScope {
    /// One store, in every region.
    Store(String),
    /// One region, for every store.
    Region(String),
    /// Everything.
    All,
}
