//! Where a region's nodes load from: the region's own copy of an artifact, or the source where the region shares it.
//!
//! A copy is used by every store and version that has the same data, so it is removed only when the last of them has let
//! it go. Who uses what is claimed before anything else is done with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tidegate_api::manifest::Manifest;
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_dataset::{Cancel, Phase, Progress};
use tokio_util::sync::CancellationToken;

use crate::engine::volume;
use crate::engine::{Capacity, EngineError, FatalKind, LoadProgress};

/// Names an artifact with its manifest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactName {
    /// The artifact's id.
    pub id: String,
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
}

/// Where a region's artifacts come from and are kept.
#[derive(Clone)]
pub struct RegionArtifacts {
    source: ArtifactStore,
    own: Option<Own>,
    users: Arc<Mutex<Users>>,
}

#[derive(Clone)]
struct Own {
    store: ArtifactStore,
    /// One copy or removal of an artifact at a time.
    busy: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

#[derive(Default)]
struct Users {
    by_artifact: BTreeMap<ArtifactName, BTreeSet<(String, u64)>>,
    /// Nobody uses them any more, and they are still to be removed.
    orphans: BTreeSet<ArtifactName>,
}

impl RegionArtifacts {
    /// A region whose nodes read the source's store themselves: there is nothing to copy.
    #[must_use]
    pub fn shared(source: ArtifactStore) -> Self {
        RegionArtifacts { source, own: None, users: Arc::default() }
    }

    /// A region with a store of its own, into which artifacts are copied.
    #[must_use]
    pub fn copied(source: ArtifactStore, store: ArtifactStore) -> Self {
        let own = Own { store, busy: Arc::default() };
        RegionArtifacts { source, own: Some(own), users: Arc::default() }
    }

    /// The store that the region's nodes load from.
    #[must_use]
    pub fn region_store(&self) -> ArtifactStore {
        self.own.as_ref().map_or(&self.source, |own| &own.store).clone()
    }

    /// Notes that this version of this store uses the artifact.
    pub(crate) fn claim(&self, store: &str, version: u64, name: &ArtifactName) {
        let mut users = self.users.lock();
        users.orphans.remove(name);
        users.by_artifact.entry(name.clone()).or_default().insert((store.to_owned(), version));
    }

    /// Notes that this version of this store does not use the artifact any more; what nobody uses is removed by the next
    /// [`sweep`](RegionArtifacts::sweep).
    pub(crate) fn disown(&self, store: &str, version: u64, name: &ArtifactName) {
        let mut users = self.users.lock();
        if let Some(of_artifact) = users.by_artifact.get_mut(name) {
            of_artifact.remove(&(store.to_owned(), version));
            if of_artifact.is_empty() {
                users.by_artifact.remove(name);
                users.orphans.insert(name.clone());
            }
        }
    }

    /// As [`disown`](RegionArtifacts::disown), and removes the copy at once if nobody else uses it.
    pub(crate) async fn release(&self, store: &str, version: u64, name: &ArtifactName) -> Result<(), EngineError> {
        self.disown(store, version, name);
        self.remove(name).await
    }

    /// Removes the copies that nobody uses.
    pub(crate) async fn sweep(&self) -> Result<(), EngineError> {
        let orphans: Vec<ArtifactName> = self.users.lock().orphans.iter().cloned().collect();
        for name in orphans {
            self.remove(&name).await?;
        }
        Ok(())
    }

    async fn remove(&self, name: &ArtifactName) -> Result<(), EngineError> {
        let Some(own) = &self.own else {
            self.users.lock().orphans.remove(name);
            return Ok(());
        };
        let busy = own.busy_with(&name.id);
        let _alone = busy.lock().await;
        let used = {
            let users = self.users.lock();
            !users.orphans.contains(name) || users.by_artifact.keys().any(|used| used.id == name.id)
        };
        if !used {
            own.store.delete(&name.id).await.map_err(|error| retry("the region's copy can't be removed", &error))?;
        }
        self.users.lock().orphans.remove(name);
        Ok(())
    }

    /// The manifest, from the region's copy if it has it, else from the source.
    pub(crate) async fn manifest(&self, name: &ArtifactName) -> Result<Arc<Manifest>, EngineError> {
        if let Some(own) = &self.own
            && let Ok(stored) = own.store.manifest_with_digest(&name.id, &name.manifest_sha256).await
        {
            return Ok(Arc::new(stored.manifest));
        }
        let stored = self.source.manifest_with_digest(&name.id, &name.manifest_sha256).await;
        stored
            .map(|stored| Arc::new(stored.manifest))
            .map_err(|error| failure("the source's manifest can't be read", &error))
    }

    /// What the region's copy needs and has room for; `None` where nothing is copied.
    pub(crate) async fn capacity(&self, manifest: &Manifest) -> Result<Option<Capacity>, EngineError> {
        let Some(own) = &self.own else {
            return Ok(None);
        };
        let present = own.store.has_parts(&manifest.artifact_id, &manifest.parts).await;
        let present = present.map_err(|error| failure("the region's copy", &error))?;
        let missing = manifest.parts.iter().zip(present).filter(|(_, present)| !present);
        let needed = missing.map(|(part, _)| part.bytes).sum();
        let (free_bytes, volume) = match own.store.folder() {
            None => (None, None),
            Some(folder) => {
                let room = volume::room(folder).await?;
                (Some(room.free_bytes), Some(room.volume))
            }
        };
        Ok(Some(Capacity { needed_bytes: needed, free_bytes, volume }))
    }

    /// Makes sure that the region's copy is complete and every part is what the manifest says: what is there is read,
    /// what is missing or damaged is copied. Answers how many bytes were copied. Where the region shares the source, there
    /// is nothing to do but, if a load has found something wrong, to look for what it is.
    pub(crate) async fn ensure(
        &self,
        name: &ArtifactName,
        suspect: bool,
        progress: &Arc<LoadProgress>,
        cancelled: &CancellationToken,
    ) -> Result<u64, EngineError> {
        let cancel = Cancel::new();
        let stop = cancel.clone();
        let told = cancelled.clone();
        let relay = tokio::spawn(async move {
            told.cancelled().await;
            stop.cancel();
        });
        let seen = Mutex::new(BTreeSet::new());
        let on_progress = |at: Progress| {
            progress.set(at.done, at.total);
            if at.phase == Phase::Copying {
                seen.lock().insert(at.done);
            }
        };
        let digest = Some(name.manifest_sha256.as_str());
        let result = match &self.own {
            None if !suspect => Ok(0),
            None => self.source.verify(&name.id, digest, &on_progress, &cancel).await.map(|_| 0),
            Some(own) => {
                let busy = own.busy_with(&name.id);
                let _alone = busy.lock().await;
                // A copy that is whole needs nobody else: the region goes on with the source out of reach.
                match own.store.verify(&name.id, digest, &tidegate_dataset::quiet, &cancel).await {
                    Ok(_) => {
                        relay.abort();
                        return Ok(0);
                    }
                    Err(ArtifactError::Cancelled) => {}
                    Err(error) => tracing::debug!(artifact = %name.id, %error, "the region's copy is not whole"),
                }
                let copied = self.source.copy_to(&own.store, &name.id, digest, &on_progress, &cancel).await;
                copied.map(|copied| copied_bytes(&copied.manifest.manifest, &seen.lock()))
            }
        };
        relay.abort();
        result.map_err(|error| failure("the artifact can't be copied to the region", &error))
    }
}

/// The bytes of the parts that were copied: those in which progress was seen.
fn copied_bytes(manifest: &Manifest, seen: &BTreeSet<u64>) -> u64 {
    let mut begin = 0_u64;
    let mut copied = 0;
    for part in &manifest.parts {
        let end = begin.saturating_add(part.bytes);
        if part.bytes > 0 && seen.range(begin + 1..=end).next().is_some() {
            copied += part.bytes;
        }
        begin = end;
    }
    copied
}

impl Own {
    fn busy_with(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.busy.lock().entry(id.to_owned()).or_default())
    }
}

fn retry(what: &str, error: &ArtifactError) -> EngineError {
    EngineError::retry(format!("{what}: {error}"))
}

/// What an error of the artifact store means for a version.
fn failure(what: &str, error: &ArtifactError) -> EngineError {
    if error.is_disk_full() {
        EngineError::fatal(FatalKind::DiskFull, format!("{what}: {error}"))
    } else if matches!(error, ArtifactError::Damaged { .. } | ArtifactError::BadManifest { .. }) {
        EngineError::fatal(FatalKind::DigestMismatch, format!("{what}: {error}"))
    } else {
        retry(what, error)
    }
}
