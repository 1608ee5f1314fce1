//! A push as people see it: regions, gates, and who holds what and why.
//!
//! [`PushView`] has all that a live tree in a terminal or on the page shows, so that neither has
//! to ask for anything else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;
use crate::job::ExecutionStatus;
use crate::push::{ClientPhase, PushState};
use crate::store::VersionStatus;

/// Everything about a push.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PushView {
    /// Where it is.
    #[serde(flatten)]
    pub state: PushState,
    /// Who pushed.
    pub pushed_by: String,
    /// What the client told about the push.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    /// The server's time when this was put together: ages are counted from it.
    pub now: EpochMs,
    /// When the push was accepted.
    pub created_at: EpochMs,
    /// When its artifact was complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<EpochMs>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<EpochMs>,
    /// The push client, until the artifact is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientView>,
    /// The artifact, once it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ArtifactView>,
    /// The status of the version as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_status: Option<VersionStatus>,
    /// Gates of the push itself (start, schema, end), in the order in which they come.
    #[serde(default)]
    pub gates: Vec<GateView>,
    /// Regions in the order in which they go, where one is set; else by name.
    #[serde(default)]
    pub regions: Vec<PushRegionView>,
    /// Everything that holds the push at the moment.
    #[serde(default)]
    pub holds: Vec<HoldView>,
}

/// The push client, as far as it was heard of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClientView {
    /// What it does.
    pub phase: ClientPhase,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// When it was heard of last.
    pub heard_at: EpochMs,
}

/// How far something is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Done.
    pub bytes: u64,
    /// All there is to do, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
}

impl Progress {
    /// Share that is done, from 0 to 1, if the whole is known.
    #[must_use]
    pub fn ratio(self) -> Option<f64> {
        match self.of {
            Some(0) => Some(1.0),
            Some(of) => Some((self.bytes as f64 / of as f64).min(1.0)),
            None => None,
        }
    }
}

/// What the push's version consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactView {
    /// Identity of the data.
    pub id: String,
    /// Records.
    pub records: u64,
    /// Input rows that repeated a record, and were dropped.
    pub duplicates: u64,
    /// Parts, one per partition.
    pub parts: u64,
    /// Size of all parts, in bytes.
    pub bytes: u64,
}

/// One region's way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PushRegionView {
    /// The region.
    pub region: String,
    /// The step it is at.
    pub stage: RegionStage,
    /// The version's status here, once it is assigned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_status: Option<VersionStatus>,
    /// The same in the words of VIP-4's `/job`.
    pub job_status: ExecutionStatus,
    /// When each status was reached first, in epoch milliseconds, by its word: those of
    /// [`VersionStatus`] and of [`ExecutionStatus`].
    #[serde(default)]
    pub times: BTreeMap<String, EpochMs>,
    /// How far copying and loading is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Why it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<RegionFailure>,
    /// Why it takes no part, if it was left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// What it served when the push started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_version: Option<u64>,
    /// What it serves now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<u64>,
    /// Since when it serves that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving_since: Option<EpochMs>,
    /// When it reported last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_at: Option<EpochMs>,
    /// Whether its operator calls it available.
    pub available: bool,
    /// Nodes that do not do what the region does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lagging_nodes: Vec<String>,
    /// The version that is pinned there; it wins over what the region is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<crate::agent::PinView>,
    /// Embedded clients.
    #[serde(default)]
    pub embedded: EmbeddedCounts,
    /// Gates of the region, in the order in which they come.
    #[serde(default)]
    pub gates: Vec<GateView>,
}

/// The step a region is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RegionStage {
    /// The artifact is not complete.
    Waiting,
    /// The creation gate is asked.
    Creation,
    /// The version is copied and loaded.
    Ingestion,
    /// It is ingested, and embedded clients take it.
    Embedded,
    /// The swap gate is asked.
    SwapGate,
    /// The region is told to serve it, and has not confirmed.
    Swapping,
    /// It serves it, and the gate after the swap is asked.
    Bake,
    /// It serves it, and nothing more is asked.
    Done,
    /// It is told to serve what it served before, and has not confirmed.
    GoingBack,
    /// It serves what it served before.
    WentBack,
    /// It was stopped.
    Stopped,
    /// It failed.
    Failed,
    /// It takes no part.
    LeftOut,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

impl RegionStage {
    /// The word that people and JSON use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Creation => "creation",
            Self::Ingestion => "ingestion",
            Self::Embedded => "embedded",
            Self::SwapGate => "swap_gate",
            Self::Swapping => "swapping",
            Self::Bake => "bake",
            Self::Done => "done",
            Self::GoingBack => "going_back",
            Self::WentBack => "went_back",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::LeftOut => "left_out",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a region failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegionFailure {
    /// The kind of failure, for example `disk_full` or `silent`.
    pub kind: String,
    /// What happened, with the measured value next to its limit.
    pub message: String,
}

/// Embedded clients of a region as counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EmbeddedCounts {
    /// Registered and alive.
    pub alive: u64,
    /// Of these, those that hold the version.
    pub ingested: u64,
    /// Of these, those that serve the version.
    pub serving: u64,
    /// Silent for longer than the grace time.
    pub dead: u64,
}

/// A gate and what was answered there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GateView {
    /// Short name, for example `pre-swap`.
    pub gate: String,
    /// Name of the function that is asked, for example `pre_store_version_swap`.
    pub function: String,
    /// The region, for gates that regions have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// How it stands.
    pub status: GateStatus,
    /// The round that is asked or was asked last, from 1.
    pub round: u32,
    /// When it was asked first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<EpochMs>,
    /// When it opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened_at: Option<EpochMs>,
    /// When its hooks are asked again, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_ask_at: Option<EpochMs>,
    /// Hooks in the order in which they are asked.
    #[serde(default)]
    pub hooks: Vec<HookAnswerView>,
    /// Who opened it by hand, if somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<OverrideView>,
}

/// How a gate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateStatus {
    /// Hooks are asked.
    Asking,
    /// A hook said Wait, or failed; they are asked again.
    Waiting,
    /// All proceeded, or nobody was to be asked.
    Open,
    /// A hook said Abort.
    Aborted,
    /// A hook said Rollback.
    RolledBack,
    /// Somebody opened it by hand.
    Overridden,
    /// It had not opened when the push ended, and nobody is asked any more.
    NotAskedAnyMore,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

impl GateStatus {
    /// The word that people and JSON use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::Waiting => "waiting",
            Self::Open => "open",
            Self::Aborted => "aborted",
            Self::RolledBack => "rolled_back",
            Self::Overridden => "overridden",
            Self::NotAskedAnyMore => "not_asked_any_more",
            Self::Unknown => "unknown",
        }
    }
}

/// What a hook answered last at a gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HookAnswerView {
    /// The hook.
    pub hook: String,
    /// Whether it is obeyed.
    pub mode: Mode,
    /// How often it was asked at this gate.
    pub attempts: u32,
    /// Whether it is asked right now.
    pub asking: bool,
    /// Its last answer, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// The answer's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How the call failed, if it did: `error`, `panic`, `timeout`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// When it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<EpochMs>,
    /// When it wants to be asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ask_again_at: Option<EpochMs>,
    /// Whether the push's clock stands still for it.
    #[serde(default)]
    pub stops_clock: bool,
}

/// Whether a hook is obeyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Asked and obeyed.
    #[default]
    Enforce,
    /// Asked and recorded, never obeyed.
    Observe,
    /// Not asked.
    Off,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

/// What a hook said, from mild to severe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Go on.
    Proceed,
    /// Ask again later.
    Wait,
    /// This step and every later one do not happen.
    Abort,
    /// Every region goes back to what it served before.
    Rollback,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

impl Verdict {
    /// The word that people and JSON use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Proceed => "proceed",
            Self::Wait => "wait",
            Self::Abort => "abort",
            Self::Rollback => "rollback",
            Self::Unknown => "unknown",
        }
    }
}

/// Who opened a gate by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OverrideView {
    /// Who did it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: EpochMs,
}

/// Something that holds a push, or one region's part in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HoldView {
    /// What kind of thing holds.
    pub kind: HoldKind,
    /// The region that is held; absent: the push itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The gate's short name, where a gate holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// The hook, the freeze's id, the push that is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Why, with the measured value next to its limit.
    pub reason: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<EpochMs>,
    /// When something happens by itself, at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<EpochMs>,
    /// What happens then, or who has to do something.
    pub then: String,
}

/// What kind of thing holds a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HoldKind {
    /// A hook's answer, or that it has not answered.
    Gate,
    /// A freeze.
    Freeze,
    /// The region copies, loads, swaps or is silent.
    Region,
    /// The push client builds, uploads or is silent.
    Client,
    /// An earlier push.
    Queue,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

/// Why a push is where it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExplainView {
    /// Where it is.
    #[serde(flatten)]
    pub state: PushState,
    /// The server's time when this was put together.
    pub now: EpochMs,
    /// One sentence.
    pub summary: String,
    /// Everything that holds it.
    pub holds: Vec<HoldView>,
    /// Limits that run, with how much of each is used.
    pub limits: Vec<LimitView>,
    /// What happens next.
    pub next: String,
    /// When, if a time is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<EpochMs>,
}

/// A limit that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitView {
    /// Which one, for people: `push limit`, `silence limit of the client`.
    pub name: String,
    /// The region it is for, if it is for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// How much of it is used.
    pub used_ms: u64,
    /// The limit.
    pub limit_ms: u64,
    /// What happens when it is reached.
    pub then: String,
}

/// A finished call of a hook, as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CallView {
    /// The hook.
    pub hook: String,
    /// Name of the function, for example `pre_store_version_swap`.
    pub function: String,
    /// Short name of the function, for example `pre-swap`.
    pub gate: String,
    /// The region, for functions that are asked per region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The round, from 1.
    pub round: u32,
    /// The attempt of this hook at this gate, from 1.
    pub attempt: u32,
    /// Whether it was obeyed.
    pub mode: Mode,
    /// When it was asked for.
    pub queued_at: EpochMs,
    /// When it started.
    pub started_at: EpochMs,
    /// When it ended.
    pub ended_at: EpochMs,
    /// What came out. Absent for functions without an outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How it failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The server that ran it.
    pub server: String,
    /// Whether the answer came too late to count.
    #[serde(default)]
    pub stale: bool,
}
