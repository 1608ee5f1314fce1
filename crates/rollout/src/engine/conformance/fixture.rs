//! Small artifacts for the suite: three versions of one store, each value naming its version.

use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_dataset::build::{BuildOptions, Builder};
use tidegate_dataset::{Cancel, quiet};
use uuid::Uuid;

use crate::engine::{LoadableArtifact, StoreKey};

/// How many keys each version has: `k0` and so on.
pub const KEYS: usize = 500;

/// The suite's test data, which lives as long as this does.
pub struct Fixture {
    artifacts: Vec<LoadableArtifact>,
    _folder: TempDir,
}

impl Fixture {
    /// Builds the artifacts of versions 1 to 3.
    ///
    /// # Errors
    /// What could not be built or written.
    pub async fn make() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let store = ArtifactStore::local(folder.path().join("source")).map_err(|error| error.to_string())?;
        let mut artifacts = Vec::new();
        for version in 1..=3_u64 {
            // Later versions have a key more each, so that sizes and counts differ.
            let keys = KEYS + version as usize;
            let rows: String = (0..keys).map(|key| format!("k{key},{}\n", text(version, key))).collect();
            let input = folder.path().join(format!("{version}.csv"));
            let work = folder.path().join(format!("work-{version}"));
            let built = tokio::task::spawn_blocking(move || {
                std::fs::write(&input, format!("key,text\n{rows}")).map_err(|error| error.to_string())?;
                let mut options = BuildOptions::new(["key"], work);
                options.partitions = 4;
                Builder::new(options).build(&[input], &quiet, &Cancel::new()).map_err(|error| error.to_string())
            });
            let built = built.await.map_err(|error| error.to_string())??;
            let id = &built.manifest.artifact_id;
            for part in &built.manifest.parts {
                let stored = store.put_part(id, part, &built.folder.join(&part.name), &Cancel::new()).await;
                stored.map_err(|error| error.to_string())?;
            }
            let manifest_sha256 = store.put_manifest(&built.manifest).await.map_err(|error| error.to_string())?;
            artifacts.push(LoadableArtifact {
                store: store.clone(),
                manifest: Arc::new(built.manifest),
                manifest_sha256,
            });
        }
        Ok(Fixture { artifacts, _folder: folder })
    }

    /// The artifact of this version, 1 to 3.
    #[must_use]
    pub fn artifact(&self, version: u64) -> &LoadableArtifact {
        &self.artifacts[usize::try_from(version).unwrap_or(usize::MAX).saturating_sub(1).min(2)]
    }

    /// What key number `key` has for its value in this version.
    #[must_use]
    pub fn is_value(&self, version: u64, key: usize, value: Option<&Value>) -> bool {
        value.and_then(|value| value.get("text")).and_then(Value::as_str) == Some(&text(version, key))
    }
}

fn text(version: u64, key: usize) -> String {
    format!("value {key} of version {version}")
}

/// A store of this name, always of the same incarnation.
pub(super) fn store(name: &str) -> StoreKey {
    StoreKey { name: name.to_owned(), incarnation: Uuid::from_u128(0x0001_0203_0405) }
}
