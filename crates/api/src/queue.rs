//! Requests of cluster hooks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;

/// A request that waits, runs or is dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueEntryView {
    /// Its id.
    pub request: String,
    /// The cluster hook.
    pub hook: String,
    /// The key; requests of one key run one after the other.
    pub key: String,
    /// The entity whose change made it.
    pub path: String,
    /// How it stands.
    pub state: QueueEntryState,
    /// The request that it waits behind, if the key is paused by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<String>,
    /// How often it was tried.
    pub attempts: u32,
    /// The last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the change that asked for it was committed.
    pub since: EpochMs,
    /// The server that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// How a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueueEntryState {
    /// It waits for its turn.
    Waiting,
    /// It runs.
    Running,
    /// It asked for a later time.
    RetryAt,
    /// It failed and is tried again later.
    BackingOff,
    /// It failed for good; an operator decides.
    Dead,
    /// Its key is held by a dead one.
    Paused,
    /// No live server runs this hook.
    NoServer,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

/// What an operator can do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum QueueAction {
    /// Try it again now.
    Retry,
    /// Forget it: it will not run.
    Discard,
    /// Stop the run.
    Cancel,
}

impl QueueAction {
    /// The word that the route uses.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
            Self::Cancel => "cancel",
        }
    }
}
