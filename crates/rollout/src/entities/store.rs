//! A store: a named data set with versions, and everything that its owners decide about it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Root, Timestamp};
use uuid::Uuid;

/// `/stores/{s}`. Written by users; starting a push also takes a number from [`Store::next_version`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Store {
    /// Tells this store from one of the same name that was deleted before it. Regions never give a value of the other.
    pub incarnation: Uuid,
    /// When it was created.
    pub created_at: Timestamp,
    /// Who created it.
    pub created_by: String,
    /// The team that may change it, beside operators and admins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<String>,
    /// The columns that make up the key, in key order.
    pub key_columns: Vec<String>,
    /// How many partitions, and so parts, a version has.
    pub partitions: u32,
    /// Which changes of the schema a push may bring.
    #[serde(default)]
    pub schema_mode: SchemaMode,
    /// Whether a push may register an unknown compatible schema. Otherwise such a push fails.
    #[serde(default = "yes")]
    pub auto_register_schema: bool,
    /// Whether a version without records is accepted.
    #[serde(default)]
    pub allow_empty: bool,
    /// The largest value that the client accepts, in bytes; the client's own default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_bytes_max: Option<u64>,
    /// Keys that every version must have; the client reports their values in the manifest.
    #[serde(default)]
    pub golden_keys: Vec<String>,
    /// Settings of hooks for this store: `<hook>.<key>` to value.
    #[serde(default)]
    pub hook_overrides: BTreeMap<String, String>,
    /// What is kept of earlier versions.
    #[serde(default)]
    pub retention: Retention,
    /// How long things may take.
    #[serde(default)]
    pub limits: Limits,
    /// What happens to a push that comes while another runs.
    #[serde(default)]
    pub on_new_push: OnNewPush,
    /// When to raise an alarm over data that is too old.
    #[serde(default)]
    pub freshness: Freshness,
    /// When embedded clients start to serve a version.
    #[serde(default)]
    pub embedded_swap: EmbeddedSwap,
    /// How many of a region's embedded clients may be dead, in percent, while it takes a version in: with more the region
    /// fails, for then something is wrong with the version or with the region, and not with a few machines.
    #[serde(default = "dead_percent_max")]
    pub embedded_dead_percent_max: u8,
    /// The number that the next version gets. Only ever rises, so that no number is used twice.
    pub next_version: u64,
}

fn yes() -> bool {
    true
}

fn dead_percent_max() -> u8 {
    10
}

impl Entity for Store {
    const COLLECTION: &'static str = "stores";
    type Parent = Root;
    type Id = String;
}

impl Store {
    /// A store with the usual settings.
    #[must_use]
    pub fn new(
        incarnation: Uuid,
        created_at: Timestamp,
        created_by: impl Into<String>,
        key_columns: Vec<String>,
    ) -> Self {
        Store {
            incarnation,
            created_at,
            created_by: created_by.into(),
            team: None,
            key_columns,
            partitions: 4,
            schema_mode: SchemaMode::default(),
            auto_register_schema: true,
            allow_empty: false,
            value_bytes_max: None,
            golden_keys: Vec::new(),
            hook_overrides: BTreeMap::new(),
            retention: Retention::default(),
            limits: Limits::default(),
            on_new_push: OnNewPush::default(),
            freshness: Freshness::default(),
            embedded_swap: EmbeddedSwap::default(),
            embedded_dead_percent_max: dead_percent_max(),
            next_version: 1,
        }
    }
}

/// Which changes of the schema a push may bring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SchemaMode {
    /// Nullable fields may be added; no field changes its type or disappears.
    #[default]
    Compatible,
    /// Anything goes.
    Any,
}

/// What is kept of earlier versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retention {
    /// How many good versions a region keeps loaded, the one that it serves included. At least 2, so that there is
    /// always a way back. Versions that were rolled back or never served do not count.
    pub versions: u32,
    /// How long the artifact of a version that was rolled back, aborted or killed is kept after its push ended, in
    /// milliseconds, so that it can be looked into or released as a new version.
    pub rejected_ms: u64,
    /// How long an artifact stays after the last thing that referred to it let it go, in milliseconds.
    pub grace_ms: u64,
    /// How many ended pushes, with their gates, are kept.
    pub pushes: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { versions: 2, rejected_ms: 24 * HOUR_MS, grace_ms: HOUR_MS, pushes: 50 }
    }
}

impl Retention {
    /// [`Retention::rejected_ms`] as a duration.
    #[must_use]
    pub fn rejected(&self) -> Duration {
        Duration::from_millis(self.rejected_ms)
    }

    /// [`Retention::grace_ms`] as a duration.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }
}

const SECOND_MS: u64 = 1_000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;

/// How long things may take, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// How long a push may run. Closed windows and freezes stop this clock.
    pub push_ms: u64,
    /// How long a silent region is waited for.
    pub region_ms: u64,
    /// How long a push client may be silent before its artifact is complete.
    pub client_ms: u64,
    /// How long a rollback waits for regions to confirm it.
    pub confirmation_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            push_ms: 14 * 24 * HOUR_MS,
            region_ms: 30 * MINUTE_MS,
            client_ms: 10 * MINUTE_MS,
            confirmation_ms: 10 * MINUTE_MS,
        }
    }
}

/// What happens to a push that comes while another runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNewPush {
    /// It is refused with the reason.
    #[default]
    Refuse,
    /// The newest waits its turn; one that waited before it is superseded.
    Queue,
    /// The running one is killed. Regions that serve its version keep it until the next.
    Supersede,
}

/// When to raise an alarm over data that is too old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Freshness {
    /// A push is expected to complete this often, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_every_ms: Option<u64>,
    /// What a region serves should not be older than this, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

/// When embedded clients start to serve a version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddedSwap {
    /// As soon as they have ingested it; their region's swap waits for them.
    #[default]
    Alone,
    /// When their region swaps.
    WithRegion,
}
