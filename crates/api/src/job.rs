//! The status of a push in the words of VIP-4's `/job`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::EpochMs;

/// VIP-4's `JobStatusQueryResponse`, extended by times, under the field names that Venice uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// The store.
    pub name: String,
    /// The version that the push makes, 0 before it has a number.
    pub version: u64,
    /// The push.
    pub push_job_id: String,
    /// Over all regions. Nothing terminal as long as a region may still move.
    pub status: ExecutionStatus,
    /// When the overall status was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_update_timestamp: Option<EpochMs>,
    /// Details for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_details: Option<String>,
    /// Status by region.
    pub extra_info: BTreeMap<String, ExecutionStatus>,
    /// When each region reached its status.
    pub extra_info_update_timestamp: BTreeMap<String, EpochMs>,
    /// Details by region, for people.
    #[serde(default)]
    pub extra_details: BTreeMap<String, String>,
}

/// Those of Venice's `ExecutionStatus` words that Tidegate uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ExecutionStatus {
    /// No region takes part yet.
    New,
    /// Nothing is assigned.
    NotCreated,
    /// Assigned.
    Started,
    /// Copying or loading.
    Progress,
    /// All data is there.
    EndOfPushReceived,
    /// Ingested.
    Completed,
    /// Failed.
    Error,
    /// An embedded client's disk is full.
    DvcIngestionErrorDiskFull,
    /// An embedded client reached its memory limit.
    DvcIngestionErrorMemoryLimitReached,
    /// Too many embedded clients are dead.
    DvcIngestionErrorTooManyDeadInstances,
    /// Embedded clients failed otherwise.
    DvcIngestionErrorOther,
    /// Silent.
    #[serde(other)]
    Unknown,
}

impl ExecutionStatus {
    /// The word that people and JSON use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::NotCreated => "NOT_CREATED",
            Self::Started => "STARTED",
            Self::Progress => "PROGRESS",
            Self::EndOfPushReceived => "END_OF_PUSH_RECEIVED",
            Self::Completed => "COMPLETED",
            Self::Error => "ERROR",
            Self::DvcIngestionErrorDiskFull => "DVC_INGESTION_ERROR_DISK_FULL",
            Self::DvcIngestionErrorMemoryLimitReached => "DVC_INGESTION_ERROR_MEMORY_LIMIT_REACHED",
            Self::DvcIngestionErrorTooManyDeadInstances => "DVC_INGESTION_ERROR_TOO_MANY_DEAD_INSTANCES",
            Self::DvcIngestionErrorOther => "DVC_INGESTION_ERROR_OTHER",
            Self::Unknown => "UNKNOWN",
        }
    }
}
