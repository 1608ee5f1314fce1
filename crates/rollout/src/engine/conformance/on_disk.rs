//! What factories share whose nodes are [embedded engines](crate::engine::embedded), however they are reached: what is on
//! the node's disk, and its reads.

use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use tidegate_dataset::Cancel;
use tidegate_dataset::index::{IndexBuilder, IndexCompression};

use super::BegunRead;
use crate::engine::LoadableArtifact;
use crate::engine::embedded::Reader;

#[async_trait]
impl BegunRead for Reader {
    fn version(&self) -> u64 {
        Reader::version(self)
    }

    async fn value(&self, key: &str) -> Result<Option<Value>, String> {
        let found = self.read(key).map_err(|error| error.to_string())?;
        found.map(|record| serde_json::from_str(record.get()).map_err(|error| error.to_string())).transpose()
    }
}

/// Makes the artifact's data live in a store of the engine that keeps its files in `folder` and is closed.
///
/// # Errors
/// Why it could not be made.
pub async fn put_live(folder: &Path, store: &str, artifact: &LoadableArtifact) -> Result<(), String> {
    let folder = folder.join("stores").join(store);
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let builder = IndexBuilder::new(folder.join("live.index")).compression(IndexCompression::Never);
    let manifest = Arc::clone(&artifact.manifest);
    let built = builder.build_from_store(artifact.store.clone(), manifest, Arc::new(|_| {}), Cancel::new()).await;
    built.map(|_| ()).map_err(|error| error.to_string())
}

/// How many bytes are below a folder; none where there is no folder.
///
/// # Errors
/// What is there can't be read.
pub fn footprint(folder: &Path) -> io::Result<u64> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(0) };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        // What has gone meanwhile takes no room.
        bytes += if path.is_dir() { footprint(&path)? } else { entry.metadata().map_or(0, |data| data.len()) };
    }
    Ok(bytes)
}
