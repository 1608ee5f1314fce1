//! A node's index, as the engine uses it: the dataset's index with the engine's errors.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde_json::value::RawValue;
use tidegate_api::manifest::Manifest;
use tidegate_dataset::index::{Index, IndexBuilder, IndexError, bytes_estimate};
use tidegate_dataset::{Cancel, Progress};
use tokio_util::sync::CancellationToken;

use crate::engine::{EngineError, FatalKind, LoadProgress, LoadableArtifact, Verification};

/// What a look-up gives.
pub(super) enum LookUp {
    /// The record, and how many bytes its value takes in the index.
    Found(Box<RawValue>, usize),
    Absent,
    BadKey(String),
    Damaged(String),
}

/// An open index.
pub(super) struct NodeIndex(Index);

/// Builds the index of an artifact at this path, each part checked before it is used.
pub(super) async fn build(
    artifact: &LoadableArtifact,
    path: &Path,
    progress: Arc<LoadProgress>,
    cancelled: &CancellationToken,
) -> Result<(), EngineError> {
    let cancel = Cancel::new();
    let bytes = artifact.manifest.bytes;
    progress.set(0, bytes);
    let on_progress = Arc::new(move |at: Progress| {
        // Records are all alike as far as progress goes.
        let done = u128::from(bytes) * u128::from(at.done) / u128::from(at.total.max(1));
        progress.set(u64::try_from(done).unwrap_or(bytes).min(bytes), bytes);
    });
    let builder = IndexBuilder::new(path);
    let building =
        builder.build_from_store(artifact.store.clone(), Arc::clone(&artifact.manifest), on_progress, cancel.clone());
    tokio::pin!(building);
    let built = tokio::select! {
        biased;
        built = &mut building => built,
        () = cancelled.cancelled() => {
            cancel.cancel();
            building.await
        }
    };
    built.map(|_| ()).map_err(|error| failure(&error))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn failure(error: &IndexError) -> EngineError {
    let message = format!("the index can't be built: {error}");
    match error {
        IndexError::Disk { source, .. } if is_full(source) => EngineError::fatal(FatalKind::DiskFull, message),
        IndexError::Artifact(artifact) if artifact.is_disk_full() => EngineError::fatal(FatalKind::DiskFull, message),
        IndexError::Content { .. } => EngineError::fatal(FatalKind::DigestMismatch, message),
        IndexError::Part { .. }
        | IndexError::WrongPartition { .. }
        | IndexError::DuplicateKey { .. }
        | IndexError::MoreThanSaid { .. }
        | IndexError::ValueTooLarge { .. } => EngineError::fatal(FatalKind::Other, message),
        // A damaged or missing part is copied again, and the load repeated.
        IndexError::Artifact(_) | IndexError::Disk { .. } | IndexError::Open(_) | IndexError::Cancelled => {
            EngineError::retry(message)
        }
    }
}

/// The room that loading takes at most: the index, and beside it one part at a time with its sorted records.
pub(super) fn bytes_needed(manifest: &Manifest) -> u64 {
    let part = manifest.parts.iter().map(|part| part.bytes).max().unwrap_or(0);
    let records = manifest.data_bytes / u64::from(manifest.partition_count.max(1));
    bytes_estimate(manifest).saturating_add(part.saturating_mul(2)).saturating_add(records)
}

impl NodeIndex {
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        Index::open(path).map(NodeIndex).map_err(|error| error.to_string())
    }

    pub(super) fn artifact_id(&self) -> String {
        self.0.artifact_id()
    }

    /// Reads every record back. Blocks for as long as that takes.
    pub(super) fn verify(&self) -> Result<Verification, String> {
        match self.0.verify(&Cancel::new()) {
            Ok(Some(content)) => {
                Ok(Verification { content_digest: content.content_digest, record_count: content.record_count })
            }
            Ok(None) => Err("reading it back was cut off".to_owned()),
            Err(damaged) => Err(damaged.to_string()),
        }
    }

    pub(super) fn look_up(&self, key: &str) -> LookUp {
        let key = match self.0.key(key) {
            Ok(key) => key,
            Err(error) => return LookUp::BadKey(error.to_string()),
        };
        let found = self.0.get(&key).and_then(|found| {
            found.map(|value| self.0.to_json(&key, &value).map(|record| (record, value.len()))).transpose()
        });
        match found {
            Ok(Some((record, bytes))) => LookUp::Found(record, bytes),
            Ok(None) => LookUp::Absent,
            Err(damaged) => LookUp::Damaged(damaged.to_string()),
        }
    }
}
