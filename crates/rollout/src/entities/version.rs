//! A version of a store's data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_api::manifest::Manifest;
use tidegate_state::{Entity, Timestamp};

use super::{ArtifactId, Store};

/// `/stores/{s}/versions/{n}`. Made when its push starts, kept after its data is gone, so that no number is reused and
/// history can be read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// The push that makes it.
    pub push: String,
    /// When that push was accepted.
    pub created_at: Timestamp,
    /// The state of its data.
    pub data: VersionData,
    /// How it stands as a whole.
    pub status: VersionStatus,
    /// How it stands in each region, and since when.
    #[serde(default)]
    pub regions: BTreeMap<String, RegionVersion>,
    /// Since when it may be let go by retention: when its push ended without it being served, when it was rolled back,
    /// or when the last region let it go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired_at: Option<Timestamp>,
    /// Set once it was rolled back: such a version is never a target again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back: Option<RolledBack>,
    /// The version whose data it releases again (`push --from-version`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_version: Option<u64>,
}

impl Entity for Version {
    const COLLECTION: &'static str = "versions";
    type Parent = Store;
    type Id = u64;
}

impl Version {
    /// A version whose push has just been accepted.
    #[must_use]
    pub fn new(push: impl Into<String>, created_at: Timestamp) -> Self {
        Version {
            push: push.into(),
            created_at,
            data: VersionData::Awaited,
            status: VersionStatus::Started,
            regions: BTreeMap::new(),
            retired_at: None,
            rolled_back: None,
            from_version: None,
        }
    }

    /// Its artifact and the digest of the manifest, as long as the data is there.
    #[must_use]
    pub fn artifact(&self) -> Option<(&ArtifactId, &str)> {
        match &self.data {
            VersionData::Complete { artifact, manifest_sha256, .. } => Some((artifact, manifest_sha256)),
            VersionData::Awaited | VersionData::Gone { .. } => None,
        }
    }
}

/// The state of a version's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionData {
    /// The client has not completed it (yet).
    Awaited,
    /// The artifact is complete.
    Complete {
        /// The artifact.
        artifact: ArtifactId,
        /// SHA-256 of its manifest, in lower-case hexadecimal.
        manifest_sha256: String,
        /// The number of the schema.
        schema: u64,
        /// Records in it.
        record_count: u64,
        /// Size of its parts, in bytes.
        bytes: u64,
        /// When it was completed.
        at: Timestamp,
    },
    /// Let go by retention, or never completed.
    Gone {
        /// When.
        at: Timestamp,
        /// The artifact that it was, if it ever was complete.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        artifact: Option<ArtifactId>,
    },
}

/// How a version stands in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionVersion {
    /// The status.
    pub status: VersionStatus,
    /// When it was reached.
    pub at: Timestamp,
}

/// How a version stands, in a region or as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum VersionStatus {
    /// On its way.
    Started,
    /// Ingested, not serving.
    Pushed,
    /// Serving, or kept as the way back.
    Online,
    /// Failed.
    Error,
    /// Stopped before it served.
    Killed,
    /// Rolled back. Never a target again.
    RolledBack,
    /// As a whole only: served by some regions.
    PartiallyOnline,
}

/// Who took a version back, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// Who: a user's name, or `hook <name>`.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: Timestamp,
}

/// `/stores/{s}/versions/{n}/manifests/manifest`: the manifest with its statistics, apart from the version because it is
/// large and never changes. It outlives the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionManifest {
    /// The manifest as the client completed it.
    pub manifest: Manifest,
}

impl VersionManifest {
    /// The id of the only one that a version has.
    pub const ID: &'static str = "manifest";
}

impl Entity for VersionManifest {
    const COLLECTION: &'static str = "manifests";
    type Parent = Version;
    type Id = String;
}
