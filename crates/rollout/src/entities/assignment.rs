//! What a region should hold and serve of a store.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_state::Entity;
use uuid::Uuid;

use super::Region;

/// Identity of an artifact: the digest of its parts, see [`tidegate_api::manifest::Manifest::artifact_id`].
pub type ArtifactId = String;

/// `/regions/{r}/assignments/{s}`: desired state, written by the rollout controller alone. A region serves what it says,
/// and nothing that it never said. Its absence means: hold nothing, serve nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Rises with every change.
    pub generation: u64,
    /// The store's incarnation: a store that was deleted and created again is another.
    pub incarnation: Uuid,
    /// The versions to hold, by number. What is not here is to be dropped, but for what is being served.
    pub hold: BTreeMap<u64, Held>,
    /// The version to serve; absent: none. Always one of those held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<u64>,
    /// How many nodes must hold a version before the region has ingested it.
    pub enough: u32,
}

impl Entity for Assignment {
    const COLLECTION: &'static str = "assignments";
    type Parent = Region;
    type Id = String;
}

/// A version to be held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The artifact with its data.
    pub artifact: ArtifactId,
    /// SHA-256 of the artifact's manifest, in lower-case hexadecimal.
    pub manifest_sha256: String,
    /// What embedded clients may do with it.
    pub embedded: EmbeddedPermission,
}

/// What embedded clients may do with a version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddedPermission {
    /// Nothing.
    #[default]
    None,
    /// Load it.
    Ingest,
    /// Load it, and serve it as soon as they have.
    Serve,
}
