//! Sending the parts of a push.
//!
//! Where the artifact store is a folder of the server, a part goes through the server, in one request. Where it is a
//! bucket, parts go straight there, over URLs that the server signs, chunk by chunk; the server never sees their bytes
//! on the way, and reads them once they are all there.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How many URLs are signed at once.
pub const URLS_MAX: u32 = 64;

/// Parts that have arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartsView {
    /// In order of their names.
    pub parts: Vec<PartView>,
    /// Whether parts go straight into the artifact store; otherwise they go through the server.
    #[serde(default)]
    pub direct: bool,
}

/// A part that has arrived whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartView {
    /// Its file name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 of its bytes in lower-case hexadecimal: as computed by the server, or, where parts go straight into the
    /// store, as announced; there it is computed before the artifact is complete.
    pub sha256: String,
}

/// Asks for URLs over which a part can be put straight into the artifact store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PartUploadRequest {
    /// The id of the artifact that the part will be of.
    pub artifact: String,
    /// SHA-256 of the part's bytes in lower-case hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The upload that is to go on. Absent: a new one is begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
    /// The first chunk to have a URL for, counted from 0.
    #[serde(default)]
    pub from: u32,
}

/// URLs over which chunks of a part can be put.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartUploadView {
    /// The upload that the chunks are of.
    pub upload: String,
    /// The size of each chunk but the last, in bytes.
    pub chunk_bytes: u64,
    /// One URL for each chunk from the one that was asked for, up to 64 of them. The chunk is put with no header but
    /// its length; the answer's `ETag` tells it from others. Secret until it runs out.
    pub urls: Vec<String>,
    /// How long the URLs can be used.
    pub valid_ms: u64,
}

// By hand: the URLs are secrets.
impl fmt::Debug for PartUploadView {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PartUploadView")
            .field("upload", &self.upload)
            .field("chunk_bytes", &self.chunk_bytes)
            .field("urls", &self.urls.len())
            .field("valid_ms", &self.valid_ms)
            .finish()
    }
}

/// Says that all chunks of a part have been put.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PartSentRequest {
    /// The id of the artifact that the part is of.
    pub artifact: String,
    /// SHA-256 of the part's bytes in lower-case hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// The upload that the chunks are of.
    pub upload: String,
    /// What the store called each chunk (`ETag`), in order.
    pub tags: Vec<String>,
}

/// The artifact store of an installation, as servers know it. Nothing in it is secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ArtifactStoreView {
    /// What people know it by.
    pub name: String,
    /// Whether it is a bucket, which others can reach by its address; otherwise it is a folder, reached through the
    /// servers alone.
    pub is_bucket: bool,
    /// Token of the mark that lies in it: a store without that mark is another one.
    pub probe: String,
    /// Why nothing is written into it, if so: it is not known to be the installation's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_not_printed() {
        let view = PartUploadView {
            upload: "u".to_owned(),
            chunk_bytes: 1,
            urls: vec!["https://store/?X-Amz-Signature=hush".to_owned()],
            valid_ms: 1,
        };
        assert!(!format!("{view:?}").contains("hush"));
    }
}
