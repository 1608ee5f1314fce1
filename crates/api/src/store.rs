//! Stores, their schemas, versions and hook settings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;
use crate::manifest::Schema;

/// Creates a store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StoreCreate {
    /// The store's name, unique in the installation.
    #[schema(example = "airports")]
    pub name: String,
    /// Columns that make up the key, in key order. At least one; fixed for the store's life.
    pub key_columns: Vec<String>,
    /// How many partitions an artifact has. Absent: the server's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// Everything else, with the same meaning as in a later change.
    #[serde(default)]
    pub settings: StorePatch,
    /// Hook settings of this store alone: keys are `<hook>.<key>`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hooks: BTreeMap<String, String>,
}

/// Changes settings of a store. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StorePatch {
    /// The team that may change the store; an empty text: none, so that only operators and admins may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Which changes of the schema are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_mode: Option<SchemaMode>,
    /// Whether a push may register a new compatible schema by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_register_schemas: Option<bool>,
    /// Whether a version without records is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_empty: Option<bool>,
    /// How many good versions a region keeps loaded, the one that it serves included. At least 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<u32>,
    /// See [`StoreView::keep_rejected_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_rejected_ms: Option<u64>,
    /// See [`StoreView::grace_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// See [`StoreView::keep_pushes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_pushes: Option<u32>,
    /// When embedded clients start to serve a version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded_swap: Option<EmbeddedSwap>,
    /// See [`StoreView::embedded_dead_percent_max`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded_dead_percent_max: Option<u8>,
    /// Keys that every version has to have, see [`crate::manifest::GoldenKey`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden_keys: Option<Vec<String>>,
    /// What becomes of a push that comes while another one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_new_push: Option<OnNewPush>,
    /// Limits. Those that are absent stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsPatch>,
    /// How fresh the data has to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freshness: Option<Freshness>,
}

/// What may change from one schema of a store to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchemaMode {
    /// Fields that may be null can be added. Nothing changes its type or goes.
    #[default]
    Compatible,
    /// Fields may also change their type or go. Key columns stay.
    Any,
}

/// What becomes of a push that comes while another one of the store runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnNewPush {
    /// It is refused.
    #[default]
    Refuse,
    /// It waits until the running one has ended; of several that wait, the newest is kept.
    Queue,
    /// The running one is ended.
    Supersede,
}

/// When embedded clients start to serve a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddedSwap {
    /// As soon as they have ingested it; their region's swap waits for them.
    #[default]
    Alone,
    /// When their region swaps.
    WithRegion,
}

/// Limits of a store, all of them in milliseconds but for the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Limits {
    /// How long a push may run, without the time that stopped its clock.
    pub push_ms: u64,
    /// How long a silent region is waited for.
    pub region_ms: u64,
    /// How long a push client may be silent before its artifact is complete.
    pub silence_ms: u64,
    /// How long a rollback waits for regions to confirm it.
    pub confirmation_ms: u64,
    /// Largest size of one value, in bytes.
    pub value_bytes: u64,
}

/// Changes some limits of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsPatch {
    /// See [`Limits::push_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push_ms: Option<u64>,
    /// See [`Limits::region_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region_ms: Option<u64>,
    /// See [`Limits::silence_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence_ms: Option<u64>,
    /// See [`Limits::confirmation_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmation_ms: Option<u64>,
    /// See [`Limits::value_bytes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_bytes: Option<u64>,
}

/// How fresh the data of a store has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Freshness {
    /// A push is expected at least this often, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_every_ms: Option<u64>,
    /// What a region serves may be at most this old, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// A store as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StoreView {
    /// Its name.
    pub name: String,
    /// The team that may change it. Absent: only operators and admins may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// Columns that make up the key, in key order.
    pub key_columns: Vec<String>,
    /// How many partitions an artifact has.
    pub partitions: u32,
    /// Which changes of the schema are allowed.
    pub schema_mode: SchemaMode,
    /// Whether a push may register a new compatible schema by itself.
    pub auto_register_schemas: bool,
    /// Whether a version without records is allowed.
    pub allow_empty: bool,
    /// How many good versions a region keeps loaded, the one that it serves included.
    pub retention: u32,
    /// How long the data of a version that was rolled back, aborted or killed is kept after its
    /// push ended, in milliseconds.
    pub keep_rejected_ms: u64,
    /// How long data stays after the last thing that referred to it let it go, in milliseconds.
    pub grace_ms: u64,
    /// How many ended pushes are kept with their gates.
    pub keep_pushes: u32,
    /// When embedded clients start to serve a version.
    pub embedded_swap: EmbeddedSwap,
    /// How many of a region's embedded clients may be dead, in percent, while it takes a version in. With more the region
    /// fails.
    pub embedded_dead_percent_max: u8,
    /// Keys that every version has to have.
    #[serde(default)]
    pub golden_keys: Vec<String>,
    /// What becomes of a push that comes while another one runs.
    pub on_new_push: OnNewPush,
    /// Limits.
    pub limits: Limits,
    /// How fresh the data has to be.
    #[serde(default)]
    pub freshness: Freshness,
    /// Hook settings of this store alone: keys are `<hook>.<key>`.
    #[serde(default)]
    pub hooks: BTreeMap<String, String>,
    /// When it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<EpochMs>,
    /// Which version each region serves. A region that serves none is not in it.
    #[serde(default)]
    pub serving: BTreeMap<String, u64>,
    /// The push that runs, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<String>,
    /// The push that started last, running or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_push: Option<String>,
    /// The highest schema number, if a schema is registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u64>,
}

/// Changes the hook settings of a store: all of it, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OverridesUpdate {
    /// Settings to be made. Keys are `<hook>.<key>`.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Settings to be cleared.
    #[serde(default)]
    pub unset: Vec<String>,
}

/// The hook settings of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OverridesView {
    /// What the store itself sets. Keys are `<hook>.<key>`.
    pub overrides: BTreeMap<String, String>,
    /// What is in force for the store, hook by hook, with the global settings below its own.
    pub effective: BTreeMap<String, BTreeMap<String, String>>,
}

/// A registered schema.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SchemaView {
    /// Its number in the store, from 1.
    pub id: u64,
    /// Its fields.
    pub schema: Schema,
    /// When it was registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered_at: Option<EpochMs>,
    /// The push that registered it; absent after a direct registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<String>,
}

/// A version of a store as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// Its number in the store, from 1.
    pub version: u64,
    /// The push that made it.
    pub push: String,
    /// Its status.
    pub status: VersionStatus,
    /// Identity of its data, once the artifact is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_id: Option<String>,
    /// Records, once the artifact is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<u64>,
    /// Size of the artifact in bytes, once it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// When it was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<EpochMs>,
    /// The regions that serve it.
    #[serde(default)]
    pub serving: Vec<String>,
}

/// The status of a version, in a region or as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum VersionStatus {
    /// On its way.
    Started,
    /// Ingested, not serving.
    Pushed,
    /// Serving, or kept as the way back.
    Online,
    /// Some regions serve it and some don't. Of the whole version only.
    PartiallyOnline,
    /// It failed.
    Error,
    /// It was stopped.
    Killed,
    /// It was rolled back.
    RolledBack,
    /// A word of a newer server.
    #[serde(other)]
    Unknown,
}

/// Rolls a store back to what was served before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// The one region to roll back; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The version to go back to; absent: where the newest one is served, the one that was served there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Why, for the record.
    pub reason: String,
}

/// Where a rollback leads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RollbackAnswer {
    /// The version that each region is told to serve; null where it is told to serve none.
    pub regions: BTreeMap<String, Option<u64>>,
}
