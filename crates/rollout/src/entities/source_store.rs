//! The store that every server and agent takes artifacts from.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Root, Timestamp};

/// `/artifact-store/source`: how the installation's artifact store is told from others. Written by the first server,
/// never changed. A server or an agent that does not find the probe in the store that it was given was given another
/// one, and must not work with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStore {
    /// The token whose mark lies in the store.
    pub probe: String,
    /// What the store was called by the server that left the mark, for people.
    pub name: String,
    /// When that was.
    pub since: Timestamp,
}

impl SourceStore {
    /// The id of the only one.
    pub const ID: &'static str = "source";
}

impl Entity for SourceStore {
    const COLLECTION: &'static str = "artifact-store";
    type Parent = Root;
    type Id = String;
}
