//! Starting, feeding and following a push.
//!
//! The client builds; the server sees a manifest and parts. Every request of the protocol may be
//! repeated: the push id makes the first one idempotent, and every later one names a state that
//! is to be reached.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;
use crate::manifest::Schema;

/// Starts a push, or finds the one that has this id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PushStart {
    /// Id of the push, unique over all stores. The same id again is the same push.
    pub id: String,
    /// The store that is pushed to.
    pub store: String,
    /// Who pushes, as told by the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed_by: Option<String>,
    /// Anything hooks or people want to know: a run's id, a commit.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Digest over the bytes of the input files. The same id with another one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_digest: Option<String>,
    /// Whether this version may be without records, beside what the store allows.
    #[serde(default)]
    pub allow_empty: bool,
    /// Release the data of this version again, as a new version: nothing is built or sent, and every gate is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_version: Option<u64>,
    /// Gates to be opened by hand whatever their hooks say, as `pre-creation@a`, each with the reason: on record.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overrides: BTreeMap<String, String>,
}

/// A push was started or found, and this is what its client needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PushAccepted {
    /// Where it is.
    #[serde(flatten)]
    pub state: PushState,
    /// Whether this request created it.
    pub created: bool,
    /// Columns that make up the key, in key order.
    pub key_columns: Vec<String>,
    /// How many partitions the artifact is to have.
    pub partitions: u32,
    /// The newest registered schema, if there is one: the input is parsed by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<RegisteredSchema>,
    /// Whether a new compatible schema may be registered by this push.
    pub auto_register_schemas: bool,
    /// Keys whose values the manifest has to report.
    #[serde(default)]
    pub golden_keys: Vec<String>,
    /// Whether a version without records is allowed.
    pub allow_empty: bool,
    /// Largest size of one value, in bytes.
    pub value_bytes_max: u64,
    /// How often the client is to be heard of.
    pub heartbeat_interval_ms: u64,
    /// How long it may be silent until its artifact is complete.
    pub silence_limit_ms: u64,
}

/// A schema with its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RegisteredSchema {
    /// Its number in the store, from 1.
    pub id: u64,
    /// Its fields.
    pub schema: Schema,
}

/// Where a push is, in short. The answer to every request of the push protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PushState {
    /// Id of the push.
    pub push: String,
    /// Its store.
    pub store: String,
    /// The version that it makes, once it has a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Its status.
    pub status: PushStatus,
    /// The step it is at.
    pub phase: PushPhase,
    /// What ended it, if it has ended otherwise than by completing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<EndedBy>,
    /// Why it ended, or what it waits for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The status of a push. All but the first two are for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PushStatus {
    /// It waits for its turn.
    Queued,
    /// It runs.
    Started,
    /// Every region serves its version, but for those that were left out.
    Completed,
    /// A gate said so.
    Aborted,
    /// Every region is told to serve what it served before.
    RolledBack,
    /// Input, a fault, a limit or a region.
    Error,
    /// Ended by an operator, or by a newer push.
    Killed,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

impl PushStatus {
    /// Whether nothing will change it any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Queued | Self::Started | Self::Unknown => false,
            Self::Completed | Self::Aborted | Self::RolledBack | Self::Error | Self::Killed => true,
        }
    }

    /// The word that people and JSON use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Started => "STARTED",
            Self::Completed => "COMPLETED",
            Self::Aborted => "ABORTED",
            Self::RolledBack => "ROLLED_BACK",
            Self::Error => "ERROR",
            Self::Killed => "KILLED",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// What ended a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// A gate's answer.
    Gate,
    /// A region failed or was silent.
    Region,
    /// A limit of time.
    Limit,
    /// The input, or what the client made of it.
    Input,
    /// A fault of the machinery.
    Fault,
    /// A person.
    Operator,
    /// A newer push.
    Superseded,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

impl EndedBy {
    /// The word that people and JSON use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Region => "region",
            Self::Limit => "limit",
            Self::Input => "input",
            Self::Fault => "fault",
            Self::Operator => "operator",
            Self::Superseded => "superseded",
            Self::Unknown => "unknown",
        }
    }
}

/// The step a push is at. They come in this order; a push may end at each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PushPhase {
    /// It waits for its turn.
    Queued,
    /// The start gate is asked.
    Start,
    /// The client builds, and has not sent the schema.
    Build,
    /// The schema's gate is asked.
    Schema,
    /// The client may send parts, and completes the artifact.
    Upload,
    /// Regions take the version.
    Rollout,
    /// The end gate is asked.
    End,
    /// Regions go back to what they served before.
    RollingBack,
    /// Nothing more is to be done.
    Ended,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

impl PushPhase {
    /// The word that people and JSON use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Start => "start",
            Self::Build => "build",
            Self::Schema => "schema",
            Self::Upload => "upload",
            Self::Rollout => "rollout",
            Self::End => "end",
            Self::RollingBack => "rolling_back",
            Self::Ended => "ended",
            Self::Unknown => "unknown",
        }
    }
}

/// A sign of life of the push client, with how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatRequest {
    /// What it does.
    pub phase: ClientPhase,
    /// Bytes done of this phase: of the input while building, of the artifact while uploading.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes there are to do, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// Records built so far.
    #[serde(default)]
    pub records: u64,
}

/// What a push client does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClientPhase {
    /// It waits to be let in.
    #[default]
    Waiting,
    /// It reads the input for the first time, to learn its schema.
    Inspecting,
    /// It builds the artifact.
    Building,
    /// It sends parts.
    Uploading,
    /// A word of a newer client.
    #[serde(other)]
    Unknown,
}

/// Says which schema the artifact will have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterSchemaRequest {
    /// The schema.
    pub schema: Schema,
}

/// The client can't go on with this push: the input is at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailRequest {
    /// What is wrong, for people: the file and the row, what was found and what was expected.
    pub message: String,
    /// What kind of trouble it is.
    #[serde(default)]
    pub kind: InputFault,
}

/// Why a client gives a push up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputFault {
    /// The input can't be made into a version.
    #[default]
    Input,
    /// The client itself could not go on, for example because its disk is full.
    Fault,
}

/// Ends a push.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    /// Why, for the record.
    pub reason: String,
}

/// Opens one gate by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProceedRequest {
    /// The gate's short name, for example `pre-swap`.
    pub gate: String,
    /// The region, for gates that regions have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Why, for the record. Not empty.
    pub reason: String,
}

/// A push in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PushSummary {
    /// Where it is.
    #[serde(flatten)]
    pub state: PushState,
    /// Who pushed.
    pub pushed_by: String,
    /// When it was accepted.
    pub created_at: EpochMs,
    /// When it ended, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<EpochMs>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_newer_server_is_read_as_unknown() {
        let state: PushState = serde_json::from_str(
            r#"{"push":"p","store":"s","status":"POSTPONED","phase":"meditation","ended_by":"fate"}"#,
        )
        .unwrap();
        assert_eq!(state.status, PushStatus::Unknown);
        assert!(!state.status.is_terminal());
        assert_eq!(state.phase, PushPhase::Unknown);
        assert_eq!(state.ended_by, Some(EndedBy::Unknown));
    }

    #[test]
    fn words_are_those_of_the_json() {
        for status in [
            PushStatus::Queued,
            PushStatus::Started,
            PushStatus::Completed,
            PushStatus::Aborted,
            PushStatus::RolledBack,
            PushStatus::Error,
            PushStatus::Killed,
        ] {
            assert_eq!(serde_json::to_value(status).unwrap(), status.word());
        }
        for phase in [PushPhase::Queued, PushPhase::RollingBack, PushPhase::Ended] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.word());
        }
        for ended_by in [EndedBy::Gate, EndedBy::Superseded] {
            assert_eq!(serde_json::to_value(ended_by).unwrap(), ended_by.word());
        }
    }

    #[test]
    fn what_a_push_was_accepted_with_lies_beside_its_state() {
        let json = r#"{"push":"p","store":"s","version":2,"status":"STARTED","phase":"build",
            "created":true,"key_columns":["k"],"partitions":4,"auto_register_schemas":true,
            "allow_empty":false,"value_bytes_max":1,"heartbeat_interval_ms":10000,
            "silence_limit_ms":600000}"#;
        let accepted: PushAccepted = serde_json::from_str(json).unwrap();
        assert_eq!(accepted.state.version, Some(2));
        let again: PushAccepted = serde_json::from_value(serde_json::to_value(&accepted).unwrap()).unwrap();
        assert_eq!(again, accepted);
    }

    #[test]
    fn a_misspelt_field_of_a_request_is_refused() {
        let error = serde_json::from_str::<PushStart>(r#"{"id":"p","store":"s","atributes":{}}"#).unwrap_err();
        assert!(error.to_string().contains("atributes"), "{error}");
    }
}
