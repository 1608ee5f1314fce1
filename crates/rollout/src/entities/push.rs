//! A push: one attempt to bring one version to every region.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_api::manifest::Schema;
use tidegate_state::{Entity, Timestamp};

use super::{RegionPush, Store};

/// `/stores/{s}/pushes/{id}`. Its id is unique over all stores, see [`super::PushName`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Push {
    /// The version that it makes.
    pub version: u64,
    /// Who pushed.
    pub pushed_by: String,
    /// What the user said about it.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// Digest of the input, if the client gave it: a push of the same id with another input is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_digest: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its turn came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// Where it is.
    pub state: PushState,
    /// The clock of the push limit.
    pub clock: PushClock,
    /// What became of the schema that its input has.
    #[serde(default)]
    pub schema: SchemaProgress,
    /// Whether its version may be without records, beside what the store allows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_empty: bool,
    /// When its artifact was complete. From then on its client is not needed any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// How far each region is.
    #[serde(default)]
    pub regions: BTreeMap<String, RegionPush>,
    /// A user's wish to end it, until it is taken up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill: Option<Kill>,
    /// Gates that a user opened, by gate id.
    #[serde(default)]
    pub overrides: BTreeMap<String, Override>,
    /// Whether a new push must wait for it even where the store says `supersede`: it superseded one that had begun to
    /// swap, so ending it too could starve the regions that come last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
    /// The running push that gave way for this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersedes: Option<String>,
    /// The version whose data it releases again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_version: Option<u64>,
    /// Since when half of its limit has been spent while a gate held it: an alarm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alarm: Option<Alarm>,
}

impl Entity for Push {
    const COLLECTION: &'static str = "pushes";
    type Parent = Store;
    type Id = String;
}

/// A push that has spent half of its limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// Since when.
    pub since: Timestamp,
    /// What holds it.
    pub reason: String,
}

/// Where a push is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushState {
    /// It waits for another push to end.
    Queued,
    /// It runs.
    Running(Phase),
    /// It has ended; nothing changes that any more.
    Ended {
        /// How.
        end: PushEnd,
        /// What is left to be told.
        wrap_up: WrapUp,
    },
}

/// What a running push is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The start gate is asked.
    Start,
    /// The client builds: its first pass gives the schema.
    Build,
    /// The schema gate is asked.
    Schema,
    /// The schema is known; parts arrive.
    Upload,
    /// The artifact is complete; regions go their way.
    Regions,
    /// All regions are done; the end gate is asked.
    End,
    /// Every region goes back to what it served before. Nothing holds that up.
    GoingBack(GoingBack),
}

/// A rollback under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoingBack {
    /// How the push ends when all have confirmed, or the limit has come.
    pub end: PushEnd,
    /// Who asked for it: `hook <name>` or a user.
    pub by: String,
    /// When regions that have not confirmed are no longer waited for.
    pub until: Timestamp,
}

/// What is left to be told after the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WrapUp {
    /// Calls whose answers decide nothing still run; `post_end` comes after them.
    Pending,
    /// `post_end` is being called.
    PostEnd,
    /// Everything was told.
    Done,
}

/// How a push ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushEnd {
    /// The status: never `QUEUED` or `STARTED`.
    pub status: PushStatus,
    /// What ended it; absent if it ran to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<EndedBy>,
    /// For people, with the measured value next to its limit.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// A push's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PushStatus {
    /// Waits for another push to end.
    Queued,
    /// Runs.
    Started,
    /// Every region that takes part serves its version.
    Completed,
    /// A gate said so.
    Aborted,
    /// Every region is back on what it served before.
    RolledBack,
    /// Bad input, a fault, a limit, or a region that failed.
    Error,
    /// A user, or a newer push, ended it.
    Killed,
}

impl PushStatus {
    /// Whether nothing changes it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Started)
    }

    /// The word that is written: `ROLLED_BACK`.
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
        }
    }
}

/// What ended a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// A lifecycle hook's answer.
    Gate,
    /// A region that failed or was silent.
    Region,
    /// The push limit, or the client's silence limit.
    Limit,
    /// Data or a schema that can't be accepted.
    Input,
    /// A fault of the machinery.
    Fault,
    /// A user.
    Operator,
    /// A newer push.
    Superseded,
}

impl EndedBy {
    /// The word that is written: `gate`.
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
        }
    }
}

/// The clock of the push limit, which closed windows and freezes stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushClock {
    /// What had been counted at the mark, in milliseconds.
    pub counted_ms: u64,
    /// Since when it has been running; absent while it stands still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_since: Option<Timestamp>,
}

impl PushClock {
    /// What has been counted by `now`.
    #[must_use]
    pub fn counted(&self, now: Timestamp) -> Duration {
        let running = self.running_since.map_or(Duration::ZERO, |since| now.since(since));
        Duration::from_millis(self.counted_ms).saturating_add(running)
    }

    /// Lets it run or stand still from `now` on.
    pub fn run(&mut self, running: bool, now: Timestamp) {
        if running != self.running_since.is_some() {
            self.counted_ms = u64::try_from(self.counted(now).as_millis()).unwrap_or(u64::MAX);
            self.running_since = running.then_some(now);
        }
    }
}

/// What became of the schema that a push's input has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaProgress {
    /// The client has not told it.
    #[default]
    Unknown,
    /// It is new and its gate is asked.
    Proposed {
        /// The schema.
        schema: Schema,
    },
    /// The store knows it.
    Known {
        /// Its number.
        number: u64,
        /// Whether this push brought it.
        registered: bool,
    },
}

/// A user's wish to end a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
    /// Whether a newer push asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<String>,
}

/// A gate that a user opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

impl Push {
    /// The status that people see.
    #[must_use]
    pub fn status(&self) -> PushStatus {
        match &self.state {
            PushState::Queued => PushStatus::Queued,
            PushState::Running(_) => PushStatus::Started,
            PushState::Ended { end, .. } => end.status,
        }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<&PushEnd> {
        match &self.state {
            PushState::Ended { end, .. } => Some(end),
            PushState::Queued | PushState::Running(_) => None,
        }
    }

    /// What it is doing, if it runs.
    #[must_use]
    pub fn phase(&self) -> Option<&Phase> {
        match &self.state {
            PushState::Running(phase) => Some(phase),
            PushState::Queued | PushState::Ended { .. } => None,
        }
    }

    /// Whether its client is still needed.
    #[must_use]
    pub fn needs_client(&self) -> bool {
        match &self.state {
            PushState::Queued => self.from_version.is_none(),
            PushState::Running(phase) => {
                self.from_version.is_none()
                    && matches!(phase, Phase::Start | Phase::Build | Phase::Schema | Phase::Upload)
            }
            PushState::Ended { .. } => false,
        }
    }
}
