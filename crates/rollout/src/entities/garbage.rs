//! What is to be removed from the object store after a grace time.

use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, Root, Timestamp};

use super::ArtifactId;

/// `/garbage/{id}`: bytes that nothing refers to any more. Written when the last reference goes; the clean-up hook looks
/// again whether anything refers to them when their time has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Garbage {
    /// What it is.
    pub kind: GarbageKind,
    /// The store that it belonged to, for people.
    pub store: String,
    /// Since when nothing refers to it.
    pub since: Timestamp,
    /// Not before this is it removed.
    pub due_at: Timestamp,
    /// How far its removal is.
    #[serde(default)]
    pub state: GarbageState,
}

impl Entity for Garbage {
    const COLLECTION: &'static str = "garbage";
    type Parent = Root;
    type Id = String;
}

impl Garbage {
    /// The id of an artifact's entry.
    #[must_use]
    pub fn artifact_entry(artifact: &str) -> String {
        format!("artifact-{artifact}")
    }

    /// The id of an upload's entry.
    #[must_use]
    pub fn upload_entry(push: &str) -> String {
        use std::hash::{Hash, Hasher};
        // Push ids may be as long as an entity's id can be, so the prefix has to give way to a hash.
        if push.len() <= 200 {
            return format!("upload-{push}");
        }
        let mut hasher = std::hash::DefaultHasher::new();
        push.hash(&mut hasher);
        format!("upload-{:016x}", hasher.finish())
    }
}

/// What kind of bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GarbageKind {
    /// A complete artifact.
    Artifact {
        /// Its id.
        artifact: ArtifactId,
        /// Its manifest.
        manifest_sha256: String,
    },
    /// Parts that a push sent and never completed.
    Upload {
        /// The push.
        push: String,
    },
}

/// How far a removal is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GarbageState {
    /// It waits for its time.
    #[default]
    Waiting,
    /// It is being removed: nothing may refer to it any more. A removal that was cut off goes on.
    Removing,
}
