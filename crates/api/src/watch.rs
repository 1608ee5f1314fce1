//! Events of the watch streams (server-sent events, the data of each as JSON).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;

/// An event of `/v1/watch`. The event's name is the variant's word; its id is
/// `{epoch}:{revision}`, from which a watch can be resumed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WatchEvent {
    /// Everything in scope as of one revision. Comes first unless the watch resumes, and again
    /// when the server had to start over: what was known before is to be forgotten.
    Snapshot {
        /// The epoch that revisions count in.
        epoch: String,
        /// The revision.
        revision: u64,
        /// All entities in scope, in order of their paths.
        entities: Vec<EntityDocument>,
    },
    /// One transaction, as far as it is in scope.
    Change {
        /// The epoch that revisions count in.
        epoch: String,
        /// The transaction's revision.
        revision: u64,
        /// When it was committed.
        at: EpochMs,
        /// What was attached to it: who, which request.
        #[serde(default)]
        attributes: BTreeMap<String, String>,
        /// Entities that it changed, in scope.
        changes: Vec<ChangedEntity>,
    },
    /// Nothing happened for a while; all up to this revision was sent.
    Heartbeat {
        /// The epoch that revisions count in.
        epoch: String,
        /// The revision.
        revision: u64,
    },
}

impl WatchEvent {
    /// Epoch and revision to resume from.
    #[must_use]
    pub fn position(&self) -> (&str, u64) {
        match self {
            Self::Snapshot { epoch, revision, .. }
            | Self::Change { epoch, revision, .. }
            | Self::Heartbeat { epoch, revision } => (epoch, *revision),
        }
    }
}

/// An entity with its document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EntityDocument {
    /// Its path, for example `/stores/airports`.
    pub path: String,
    /// Its document.
    #[schema(value_type = Object)]
    pub document: serde_json::Value,
}

/// An entity that a transaction changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChangedEntity {
    /// Its path.
    pub path: String,
    /// Its document after the transaction; absent if it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub document: Option<serde_json::Value>,
}
