//! What a hook is told: the push, the regions, the statistics, its configuration, and the identity of the call.
//!
//! All of it is plain data and serialisable, since `exec` hands it to programs as JSON. What concerns pushes and
//! regions is filled in by a [`crate::ContextSource`]; what concerns the call itself by the runner.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_state::Timestamp;

use crate::function::Function;
use crate::pause::PauseView;

/// What a hook is told when it is asked. Times are milliseconds since the Unix epoch, by one clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// The function that is asked.
    pub function: Function,
    /// The store.
    pub store: String,
    /// The push's id; none for a direct registration of a schema.
    pub push: Option<String>,
    /// The user who started the push or the registration.
    pub pushed_by: Option<String>,
    /// What the push's client said about it (`commit`, `job`, `execution` …).
    pub attributes: BTreeMap<String, String>,
    /// When the push started.
    pub push_started_at: Option<Timestamp>,
    /// Where the push stands, in its own words: `STARTED`; how it ended for `post_end_of_push_job`: `ABORTED`.
    pub push_status: String,
    /// What ended the push (`gate`, `region`, `limit`, `input`, `fault`, `operator`, `superseded`), once it has ended.
    pub ended_by: Option<String>,
    /// Why the push ended so, for people.
    pub push_reason: Option<String>,
    /// The region that is asked about; none for functions of the whole push.
    pub region: Option<String>,
    /// The new version's number; none before there is one.
    pub version: Option<u64>,
    /// What the region serves (for functions of the whole push: the newest version that any region serves).
    pub previous_version: Option<u64>,
    /// Every region by name, those that take no part in the push too.
    pub regions: BTreeMap<String, RegionStatus>,
    /// Statistics of the new version, once its manifest is complete.
    pub statistics: Option<VersionStatistics>,
    /// The schema that is (to be) registered, for the two functions of schemas.
    pub schema: Option<serde_json::Value>,
    /// The schemas registered earlier, oldest first, for the two functions of schemas.
    pub earlier_schemas: Vec<serde_json::Value>,
    /// How long a region may be silent before it counts as failed, in milliseconds.
    pub region_limit_ms: Option<u64>,
    /// This hook's own configuration: the published table, with the store's overrides key by key. Keys are clipped:
    /// `delay`, not `region-order.delay`.
    pub config: BTreeMap<String, String>,
    /// How often this hook has been asked at this gate, from 1. The same when a call comes again after a crash.
    pub attempt: u32,
    /// What this hook's last answer at this gate carried.
    pub memo: Option<String>,
    /// The pause that this hook holds this gate with, if any. Open: an answered one is not asked about.
    pub pause: Option<PauseView>,
    /// Now.
    pub now: Timestamp,
    /// How long this call may take, in milliseconds, before it is cut and counts as failed.
    pub timeout_ms: u64,
    /// Names this attempt for good: the same when the call comes again after a crash. For systems that deduplicate.
    pub idempotency_key: String,
    /// Rises with every run of this hook for this store. For systems that refuse late callers.
    pub fencing_token: u64,
}

impl Context {
    /// A context that says nothing yet but function and store.
    #[must_use]
    pub fn new(function: Function, store: impl Into<String>) -> Self {
        Context {
            function,
            store: store.into(),
            push: None,
            pushed_by: None,
            attributes: BTreeMap::new(),
            push_started_at: None,
            push_status: String::new(),
            ended_by: None,
            push_reason: None,
            region: None,
            version: None,
            previous_version: None,
            regions: BTreeMap::new(),
            statistics: None,
            schema: None,
            earlier_schemas: Vec::new(),
            region_limit_ms: None,
            config: BTreeMap::new(),
            attempt: 1,
            memo: None,
            pause: None,
            now: Timestamp(0),
            timeout_ms: 0,
            idempotency_key: String::new(),
            fencing_token: 0,
        }
    }

    /// The region that is asked about, if it is one that is known.
    #[must_use]
    pub fn this_region(&self) -> Option<&RegionStatus> {
        self.regions.get(self.region.as_deref()?)
    }
}

/// A region as it stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RegionStatus {
    /// Where the push stands in this region.
    pub status: RegionPushStatus,
    /// The job status in Venice's `ExecutionStatus` words: `STARTED`, `COMPLETED`, `DVC_INGESTION_ERROR_DISK_FULL`.
    pub job_status: String,
    /// When each status was first reached, by the status' serialised name.
    pub reached_at: BTreeMap<String, Timestamp>,
    /// Whether operators count on the region. An unavailable one is left out of pushes.
    pub available: bool,
    /// Why it is not available.
    pub unavailable_reason: Option<String>,
    /// When each of its gates opened, by the function's short name: `pre-swap`, `post-swap`.
    pub gates_opened_at: BTreeMap<String, Timestamp>,
    /// The version that it serves.
    pub serving: Option<u64>,
    /// Since when it serves that.
    pub serving_since: Option<Timestamp>,
    /// Statistics of the version that it serves.
    pub statistics: Option<VersionStatistics>,
    /// Why the push failed here.
    pub error: Option<String>,
}

/// Where a push stands in one region.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionPushStatus {
    /// It has no part in the push: unavailable, or added later.
    #[default]
    LeftOut,
    /// It has no assignment yet.
    NotCreated,
    /// It copies and loads.
    Ingesting,
    /// It holds the version and serves the previous one.
    Ingested,
    /// It was told to serve the version, and has not said that it does.
    Swapping,
    /// It serves the version; its post-swap round is not over.
    Swapped,
    /// It serves the version, and every gate of it has opened.
    Done,
    /// The push failed here.
    Failed,
    /// It was told to stop.
    Stopped,
}

impl RegionPushStatus {
    /// The serialised name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            RegionPushStatus::LeftOut => "left_out",
            RegionPushStatus::NotCreated => "not_created",
            RegionPushStatus::Ingesting => "ingesting",
            RegionPushStatus::Ingested => "ingested",
            RegionPushStatus::Swapping => "swapping",
            RegionPushStatus::Swapped => "swapped",
            RegionPushStatus::Done => "done",
            RegionPushStatus::Failed => "failed",
            RegionPushStatus::Stopped => "stopped",
        }
    }
}

/// What is known about a version's data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VersionStatistics {
    /// How many records there are.
    pub records: u64,
    /// Size of all keys and values before encoding and compression, in bytes.
    pub bytes: u64,
    /// Input rows that repeated a key with the same value and were dropped.
    pub duplicates: u64,
    /// By field name.
    pub fields: BTreeMap<String, FieldStatistics>,
    /// The records with the smallest key hashes.
    pub sample: Sample,
    /// What became of the keys that the store names as golden, by key.
    pub golden: BTreeMap<String, GoldenValue>,
}

/// What is known about one field.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FieldStatistics {
    /// Records in which it has a value.
    pub count: u64,
    /// Records in which it is null.
    pub nulls: u64,
    /// Approximate number of distinct values.
    pub distinct: u64,
    /// Values that are NaN (floating point fields).
    pub nans: u64,
    /// Mean of the Euclidean norms of all vectors without a NaN component; none where there is none.
    pub mean_norm: Option<f64>,
    /// Vectors with a component that is NaN.
    pub vectors_with_nan: u64,
}

impl FieldStatistics {
    /// Share of records in which the field is null, from 0 to 1; none without records.
    #[must_use]
    pub fn null_ratio(&self) -> Option<f64> {
        let records = self.count.checked_add(self.nulls)?;
        (records > 0).then(|| self.nulls as f64 / records as f64)
    }
}

/// The records of a version whose keys have the smallest hashes: the same keys in every version that has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// How many it holds at most; with fewer in it, it holds every record of the version.
    pub limit: u64,
    /// Ascending by hash.
    pub records: Vec<SampledRecord>,
}

/// A record of a [`Sample`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampledRecord {
    /// Hash of the key, 16 hexadecimal digits.
    pub hash: String,
    /// The key as people write it.
    pub key: String,
    /// Equal only where the whole value is.
    pub value_digest: String,
}

/// What a version holds for a golden key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GoldenValue {
    /// Digest of the value, comparable between versions; none if the key is not there.
    pub value_digest: Option<String>,
}
