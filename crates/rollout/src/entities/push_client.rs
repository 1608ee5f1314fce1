//! The client of a push, as far as the control plane hears of it.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Timestamp};

use super::Push;

/// `/stores/{s}/pushes/{id}/client/client`. Apart from the push because it changes every ten seconds and nobody has to
/// be woken for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PushClient {
    /// When it was last heard of.
    pub heard_at: Timestamp,
    /// How far it says it is.
    #[serde(default)]
    pub progress: BuildProgress,
}

impl PushClient {
    /// The id of the only one that a push has.
    pub const ID: &'static str = "client";
}

impl Entity for PushClient {
    const COLLECTION: &'static str = "client";
    type Parent = Push;
    type Id = String;
}

/// How far a client is with build and upload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildProgress {
    /// What it is doing.
    pub phase: BuildPhase,
    /// Bytes of input read.
    pub input_bytes: u64,
    /// Bytes of input there are, if known.
    pub input_bytes_total: Option<u64>,
    /// Records built.
    pub records: u64,
    /// Bytes of parts that have arrived.
    pub uploaded_bytes: u64,
    /// Bytes of parts there are, once known.
    pub uploaded_bytes_total: Option<u64>,
}

/// What a push client is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildPhase {
    /// It has not said.
    #[default]
    Waiting,
    /// It reads the input for the first time.
    Reading,
    /// It sorts and writes parts.
    Building,
    /// It sends parts.
    Uploading,
    /// It has sent everything.
    Complete,
}
