//! The servers of the control plane, and what each of them runs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;

/// Who is in the cluster, what is leased, and what waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterView {
    /// What stores the state: `sqlite` or `postgres`.
    pub driver: String,
    /// The newest revision that the answering server has applied.
    pub revision: u64,
    /// The time by the clock that all times here are by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<EpochMs>,
    /// The servers, by name.
    pub servers: Vec<ServerView>,
    /// The cluster hooks, by name.
    pub hooks: Vec<ClusterHookView>,
}

/// Confirms that the database was put back to an older state, and that what came after it is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetBackConfirm {
    /// Why, for the record. Not empty.
    pub reason: String,
}

/// What the state goes on from after a confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetBackConfirmed {
    /// The epoch that has begun.
    pub epoch: String,
    /// The revision in it that the answering server has applied.
    pub revision: u64,
}

/// One server process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerView {
    /// The name that operators know it by.
    pub name: String,
    /// Its process: another one under the same name has another id.
    pub id: String,
    /// Whether it answered this request.
    pub answering: bool,
    /// How it stands.
    pub status: ServerStatus,
    /// Until when its lease holds unless it renews it.
    pub lease_until: EpochMs,
    /// The revision that it had applied when it last renewed its lease.
    pub applied: u64,
    /// How many revisions that was behind.
    pub behind: u64,
    /// How many slots it leases, of all hooks.
    pub slots: u64,
    /// The hooks that it runs.
    pub hooks: Vec<ServerHookView>,
}

/// How a server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServerStatus {
    /// It renews its lease.
    Up,
    /// It leaves: it starts nothing more and hands back what it has.
    Draining,
    /// Its lease has run out: it died, was stopped or is cut off. What it ran is run by others.
    Gone,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

/// A hook that a server runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerHookView {
    /// The cluster hook.
    pub hook: String,
    /// The definition version that the server's code has.
    pub version: u32,
    /// How many runs at once it takes.
    pub room: u32,
}

/// One cluster hook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterHookView {
    /// Its name.
    pub hook: String,
    /// How many slots its keys hash to.
    pub slots: u64,
    /// How many of them no live server leases.
    pub free_slots: u64,
    /// Requests that wait for their turn, run, or wait for a time.
    pub open: u64,
    /// Dead letters: requests that failed for good.
    pub dead: u64,
    /// Requests that wait behind a dead letter of their key.
    pub paused: u64,
    /// Requests that no live server can run.
    pub no_server: u64,
    /// Since when the oldest of all these waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<EpochMs>,
}
