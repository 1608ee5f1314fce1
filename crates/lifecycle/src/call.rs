//! A call of one hook at one gate: what is asked, what was answered, and the record that is kept.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, IndexKey, Path, Record, Timestamp};

use crate::configuration::Mode;
use crate::function::Function;
use crate::outcome::Verdict;

/// What one hook is asked at one gate in one round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRequest {
    /// The function.
    pub function: Function,
    /// The hook.
    pub hook: String,
    /// The store.
    pub store: String,
    /// The region, for functions of a region.
    pub region: Option<String>,
    /// The gate's round, from 1.
    pub round: u32,
    /// How often this hook has been asked at this gate, from 1.
    pub attempt: u32,
    /// What its last answer at this gate carried.
    pub memo: Option<String>,
    /// Whether its answer will be obeyed.
    pub mode: Mode,
    /// When the gate asked.
    pub asked_at: Timestamp,
}

/// How a call failed. The reason has the details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The hook returned an error.
    Error,
    /// The hook panicked.
    Panic,
    /// The call took longer than its timeout and was cut.
    Timeout,
    /// The answer breaks a rule: a memo that is too long, an outcome that the function does not have.
    Answer,
    /// The hook could not be made with its configuration.
    Configuration,
}

impl FailureKind {
    /// The serialised name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            FailureKind::Error => "error",
            FailureKind::Panic => "panic",
            FailureKind::Timeout => "timeout",
            FailureKind::Answer => "answer",
            FailureKind::Configuration => "configuration",
        }
    }
}

/// What was answered, as it is kept in the call. A failure has the verdict that the hook's `on_failure` gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedAnswer {
    /// What counts.
    pub verdict: Verdict,
    /// Why; empty only with Proceed.
    pub reason: String,
    /// When to ask again; after the wait interval where it is not given.
    pub ask_again_at: Option<Timestamp>,
    /// While this holds the gate, the push's limit does not run.
    pub stops_clock: bool,
    /// For the next attempt. A failed call leaves the memo as it was.
    pub memo: Option<String>,
    /// How the call failed, if it did.
    pub failed: Option<FailureKind>,
    /// When a worker took the call up.
    pub started_at: Timestamp,
    /// When the answer was there.
    pub ended_at: Timestamp,
    /// The server that ran it.
    pub server: String,
}

/// Where a call stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum CallState {
    /// The hook is to be asked.
    Asked {
        /// What.
        request: CallRequest,
    },
    /// The hook has answered.
    Answered {
        /// What was asked.
        request: CallRequest,
        /// What it said.
        answer: RecordedAnswer,
    },
}

impl CallState {
    /// What was asked, answered or not.
    #[must_use]
    pub fn request(&self) -> &CallRequest {
        match self {
            CallState::Asked { request } | CallState::Answered { request, .. } => request,
        }
    }

    /// The answer, if it is there.
    #[must_use]
    pub fn answer(&self) -> Option<&RecordedAnswer> {
        match self {
            CallState::Asked { .. } => None,
            CallState::Answered { answer, .. } => Some(answer),
        }
    }
}

/// An entity that holds one call. Its id is the hook's name, and its parent is the gate, so that there is at most one
/// call per hook and gate. Only its gate's controller writes `Asked`, and only the runner writes `Answered`.
pub trait CallSite: Entity<Id = String> {
    /// The beginning of the names of the cluster hooks that run such calls. Another one for each type.
    const REGISTRATION: &'static str = crate::lifecycle::CALL_HOOK;

    /// Where the call stands.
    fn state(&self) -> &CallState;

    /// Sets where the call stands.
    fn set_state(&mut self, state: CallState);

    /// The pattern of the paths of all calls of `hook`, as a cluster hook's registration has it. It must bind `{store}`.
    ///
    /// `/stores/{store}/pushes/{push}/gates/{gate}/calls/region-order`
    fn pattern(hook: &str) -> String;
}

/// A finished call, for good. Kind `lifecycle-call`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CallRecord {
    /// The call's path: gate and hook.
    pub call: Path,
    /// The hook.
    pub hook: String,
    /// The function.
    pub function: Function,
    /// The store.
    pub store: String,
    /// The push's id; none for a direct registration of a schema.
    pub push: Option<String>,
    /// The region, for functions of a region.
    pub region: Option<String>,
    /// The gate's round, from 1.
    pub round: u32,
    /// How often this hook has been asked at this gate, from 1.
    pub attempt: u32,
    /// When the gate asked.
    pub queued_at: Timestamp,
    /// When a worker took the call up.
    pub started_at: Timestamp,
    /// When the answer was there.
    pub ended_at: Timestamp,
    /// The outcome that counts. Proceed for functions without outcomes.
    pub verdict: Verdict,
    /// Why; empty only with Proceed.
    pub reason: String,
    /// How the call failed, if it did.
    pub failed: Option<FailureKind>,
    /// Asked in mode `observe`: recorded and not obeyed.
    pub observed: bool,
    /// The answer came when nobody waited for it any more, and changed nothing.
    pub stale: bool,
    /// Decided by a pause that a person answered or that ran out; the hook itself was not asked.
    pub by_pause: bool,
    /// The server that ran it.
    pub server: String,
    /// See [`crate::Context::idempotency_key`].
    pub idempotency_key: String,
    /// See [`crate::Context::fencing_token`].
    pub fencing_token: u64,
}

impl Record for CallRecord {
    const KIND: &'static str = "lifecycle-call";
    /// `store`: store, newest first. `push`: push, oldest first.
    const INDEXES: &'static [&'static str] = &["store", "push"];

    fn index_keys(&self) -> Vec<IndexKey> {
        vec![
            IndexKey::new().text(&self.store).falling(self.ended_at.0),
            IndexKey::new().text(self.push.as_deref().unwrap_or("")).number(self.ended_at.0),
        ]
    }
}
