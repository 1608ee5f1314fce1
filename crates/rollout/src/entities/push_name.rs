//! Push ids are unique over all stores.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Root};
use uuid::Uuid;

/// `/push-names/{id}`: which store a push belongs to. Found without looking into every store, and what makes an id
/// unique over all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushName {
    /// The store.
    pub store: String,
    /// Its incarnation.
    pub incarnation: Uuid,
}

impl Entity for PushName {
    const COLLECTION: &'static str = "push-names";
    type Parent = Root;
    type Id = String;
}
