//! Wakes a store's controller for what concerns every store.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Revision};

use super::Store;

/// `/stores/{s}/wake/{cause}`: the revision of a cause that lies outside the store: a freeze, a region, the hooks'
/// configuration. Written by the fan-out hook; only that it changes matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wake {
    /// The revision of the cause.
    pub revision: Revision,
}

impl Entity for Wake {
    const COLLECTION: &'static str = "wake";
    type Parent = Store;
    type Id = String;
}
