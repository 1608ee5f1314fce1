//! Freezes: nothing swaps where one is in force, and the way back stays open.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;

/// What a freeze holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FreezeScope {
    /// One store, in every region.
    Store(String),
    /// One region, for every store.
    Region(String),
    /// Everything.
    All,
}

/// Sets a freeze.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FreezeRequest {
    /// Its id, by which it is lifted. The same id again with the same scope is the same freeze.
    #[schema(example = "holidays")]
    pub id: String,
    /// What it holds.
    pub scope: FreezeScope,
    /// Why, for the record and for those who wait. Not empty.
    pub reason: String,
}

/// A freeze in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FreezeView {
    /// Its id.
    pub id: String,
    /// What it holds.
    pub scope: FreezeScope,
    /// Why.
    pub reason: String,
    /// Who set it.
    pub by: String,
    /// Since when.
    pub since: EpochMs,
}
