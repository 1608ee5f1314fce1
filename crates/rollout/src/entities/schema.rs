//! A schema that is known to a store.

use serde::{Deserialize, Serialize};
use tidegate_api::manifest::Schema;
use tidegate_state::{Entity, Timestamp};

use super::Store;

/// `/stores/{s}/schemas/{n}`, numbered from 1. Never changed once registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegisteredSchema {
    /// The fields.
    pub schema: Schema,
    /// When it was registered.
    pub registered_at: Timestamp,
    /// Who registered it: the push's user, or whoever asked directly.
    pub registered_by: String,
    /// The push that brought it; absent if it was registered directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<String>,
}

impl Entity for RegisteredSchema {
    const COLLECTION: &'static str = "schemas";
    type Parent = Store;
    type Id = u64;
}
