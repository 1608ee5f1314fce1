//! The artifacts that the versions of a tree name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_dataset::{Cancel, quiet};
use tidegate_rollout::entities::{Push, SourceStore, Store, Version};
use tidegate_state::backup::OnEntity;
use tidegate_state::driver::StoredDocument;
use tidegate_state::{Entity, Path, Ref, Snapshot};

use super::BackupFailure;

/// The artifact of a version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct NamedArtifact {
    /// The store.
    pub store: String,
    /// The version.
    pub version: u64,
    /// The artifact's id.
    pub artifact: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
}

/// An artifact that could not be copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CopyError {
    /// Which.
    #[serde(flatten)]
    pub artifact: NamedArtifact,
    /// Why.
    pub why: String,
}

impl NamedArtifact {
    fn of(place: &Ref<Version>, version: &Version) -> Option<Self> {
        let (artifact, manifest_sha256) = version.artifact()?;
        let store = place.parent().id();
        let (artifact, manifest_sha256) = (artifact.to_string(), manifest_sha256.to_owned());
        Some(Self { store, version: place.id(), artifact, manifest_sha256 })
    }

    /// All that a tree names.
    pub(crate) fn all_of(snapshot: &Snapshot) -> Vec<Self> {
        let versions = snapshot.all::<Version>().filter_map(Result::ok);
        let mut all: Vec<Self> = versions.filter_map(|(place, version)| Self::of(&place, version)).collect();
        all.sort();
        all
    }
}

/// What is noted of a tree while it passes by, entity by entity.
#[derive(Default)]
pub(super) struct Passing {
    versions: HashMap<Path, StoredDocument>,
    source: Option<StoredDocument>,
    stores: HashSet<Path>,
    pushes: HashSet<Path>,
}

/// What was in a tree.
#[derive(Debug, Default)]
pub(super) struct Noted {
    pub(super) artifacts: Vec<NamedArtifact>,
    /// What the artifact store was called by the server that first used it.
    pub(super) artifact_store: Option<String>,
    pub(super) stores: u64,
    pub(super) pushes: u64,
}

impl Passing {
    /// One to be told of a tree, and where to look afterwards.
    pub(super) fn listen() -> (Arc<Mutex<Passing>>, OnEntity) {
        let passing = Arc::new(Mutex::new(Passing::default()));
        let heard = Arc::clone(&passing);
        (passing, Box::new(move |path, document| heard.lock().hear(path, document)))
    }

    fn hear(&mut self, path: &Path, document: Option<&StoredDocument>) {
        let keep = |kept: &mut HashSet<Path>| match document {
            Some(_) => kept.insert(path.clone()),
            None => kept.remove(path),
        };
        match (path.collection(), path.depth()) {
            (Version::COLLECTION, 2) => match document {
                Some(document) => drop(self.versions.insert(path.clone(), document.clone())),
                None => drop(self.versions.remove(path)),
            },
            (Store::COLLECTION, 1) => {
                keep(&mut self.stores);
            }
            (Push::COLLECTION, 2) => {
                keep(&mut self.pushes);
            }
            (SourceStore::COLLECTION, 1) => self.source = document.cloned(),
            _ => {}
        }
    }

    pub(super) fn note(&self) -> Noted {
        let named = self.versions.iter().filter_map(|(path, document)| {
            let version: Version = serde_json::from_str(&document.json).ok()?;
            NamedArtifact::of(&Ref::from_path(path).ok()?, &version)
        });
        let mut artifacts: Vec<NamedArtifact> = named.collect();
        artifacts.sort();
        let source = self.source.as_ref().and_then(|document| serde_json::from_str::<SourceStore>(&document.json).ok());
        Noted {
            artifacts,
            artifact_store: source.map(|source| source.name),
            stores: self.stores.len() as u64,
            pushes: self.pushes.len() as u64,
        }
    }
}

/// Which of them are not in a store.
pub(super) async fn missing(
    store: &ArtifactStore,
    named: &[NamedArtifact],
) -> Result<Vec<NamedArtifact>, BackupFailure> {
    let mut missing = Vec::new();
    for artifact in named {
        match store.manifest_with_digest(&artifact.artifact, &artifact.manifest_sha256).await {
            Ok(_) => {}
            Err(ArtifactError::NotFound { .. } | ArtifactError::Damaged { .. } | ArtifactError::BadManifest { .. }) => {
                missing.push(artifact.clone());
            }
            Err(source) => return Err(BackupFailure::Artifacts { store: store.name().to_owned(), source }),
        }
    }
    Ok(missing)
}

/// Copies artifacts, each once however many versions name it; those that can't be are told of, and the others go on.
pub(super) async fn copy(from: &ArtifactStore, to: &ArtifactStore, named: &[NamedArtifact]) -> Vec<CopyError> {
    let mut done: HashMap<(&str, &str), Option<String>> = HashMap::new();
    let mut failed = Vec::new();
    for artifact in named {
        let key = (artifact.artifact.as_str(), artifact.manifest_sha256.as_str());
        let outcome = match done.get(&key) {
            Some(outcome) => outcome.clone(),
            None => {
                let copied = from.copy_to(to, key.0, Some(key.1), &quiet, &Cancel::new()).await;
                copied.err().map(|error| error.to_string())
            }
        };
        if let Some(why) = &outcome {
            failed.push(CopyError { artifact: artifact.clone(), why: why.clone() });
        }
        done.insert(key, outcome);
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(json: &str) -> StoredDocument {
        StoredDocument { format: 1, json: json.into() }
    }

    #[test]
    fn d35_the_last_that_is_heard_of_an_entity_counts() {
        let (passing, mut hear) = Passing::listen();
        let store = Path::root().child("stores", "s").unwrap();
        let version = |number: &str| store.child("versions", number).unwrap();
        let complete = |artifact: &str| {
            document(&format!(
                "{{\"push\":\"p\",\"created_at\":1,\"status\":\"ONLINE\",\"data\":{{\"complete\":{{\"artifact\":\
                 \"{artifact}\",\"manifest_sha256\":\"m\",\"schema\":1,\"record_count\":1,\"bytes\":1,\"at\":1}}}}}}"
            ))
        };
        hear(&store, Some(&document("{}")));
        hear(&version("1"), Some(&complete("gone")));
        hear(
            &version("2"),
            Some(&document("{\"push\":\"p\",\"created_at\":1,\"status\":\"STARTED\",\"data\":\"awaited\"}")),
        );
        hear(&store.child("pushes", "p").unwrap(), Some(&document("{}")));
        hear(&version("2"), Some(&complete("here")));
        hear(&version("1"), None);
        let noted = passing.lock().note();
        assert_eq!((noted.stores, noted.pushes), (1, 1));
        let named: Vec<(u64, &str)> =
            noted.artifacts.iter().map(|named| (named.version, named.artifact.as_str())).collect();
        assert_eq!(named, [(2, "here")]);
    }
}
