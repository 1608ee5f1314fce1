//! Pauses: gates that are held for a person.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;
use crate::view::Verdict;

/// A gate that is held for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseView {
    /// Its id.
    pub id: String,
    /// The store.
    pub store: String,
    /// The push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<String>,
    /// The region whose gate is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The gate's short name, for example `post-swap`.
    pub gate: String,
    /// The hook that asked for it.
    pub hook: String,
    /// Why.
    pub reason: String,
    /// Roles or users who may answer; empty: any operator.
    #[serde(default)]
    pub may_answer: Vec<String>,
    /// Since when.
    pub since: EpochMs,
    /// When it runs out, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<EpochMs>,
    /// What it counts as when it has run out.
    pub when_run_out: Verdict,
    /// What a person said, if one has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<PauseAnswerView>,
}

/// What a person said to a pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseAnswerView {
    /// The answer.
    pub verdict: Verdict,
    /// Who gave it.
    pub by: String,
    /// When.
    pub at: EpochMs,
    /// Why.
    pub comment: String,
}

/// Answers a pause. Its gate is asked at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseAnswerRequest {
    /// `proceed`, `abort` or `rollback`.
    pub verdict: Verdict,
    /// Why, for the record.
    #[serde(default)]
    pub comment: String,
}
