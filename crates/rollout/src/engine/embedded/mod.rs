//! The engine of our own nodes: one memory-mapped index file per version, and a pointer to the one that serves.
//!
//! Reads go through one atomic pointer to an immutable map from store to the version that serves. A
//! read takes what the pointer shows at its start and uses that to its end, so that a swap makes no
//! read wait or fail, and a batch is answered by one version. A version that a read still uses is kept
//! in memory by that read, whatever happens to its file.
//!
//! # Invariants
//! - What serves changes in [`swap`](Engine::swap) alone (and in `drop_version` of what is damaged): first durably, then
//!   for reads. After a restart a node serves what it served.
//! - A damaged index answers no read with a wrong value: every record is checked when it is read. From the first error
//!   on, the version is not held; reads of other records go on until another file has taken its place.
//! - A load is noted durably before it begins, and its end when it has ended, however. So a version whose load ends the
//!   process (it takes all memory, or meets a fault of ours) is found at the next start, and is given up after
//!   [`LOADS_LOST_MAX`] such loads in a row, where the process would end at each start for ever.
//! - The index is disposable. It is built from the region's copy of the artifact, part by part, each checked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_api::manifest::Manifest;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::folder::{Found, NodeFolder, Pointed};
use self::index::NodeIndex;
use super::{
    ADOPTED_VERSION, Capacity, Engine, EngineError, FatalKind, HeldVersion, LoadProgress, LoadableArtifact, Observed,
    StoreKey, Verification, file::remove_if_there, volume,
};

mod folder;
mod index;
mod read;

pub use read::{Answer, BATCH_BYTES_MAX, BatchAnswer, NodeReadError, Reader};

/// After how many loads in a row that ended their process a version is given up. A process that is killed from without in
/// the middle of a load counts as well, so it is more than one or two.
pub const LOADS_LOST_MAX: u32 = 5;

/// A node of our own, in one folder. Clones are the same node.
#[derive(Clone)]
pub struct EmbeddedEngine(Arc<Node>);

struct Node {
    folder: NodeFolder,
    /// What reads see: by store name, what serves. Replaced as a whole.
    serving: ArcSwap<HashMap<String, Serving>>,
    stores: Mutex<HashMap<StoreKey, Store>>,
    /// How many loads of a version in a row have ended the processes before this one; forgotten when one has ended in order.
    lost: Mutex<HashMap<(StoreKey, u64), u32>>,
    /// One change of a store's pointer at a time.
    pointers: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct Store {
    held: BTreeMap<u64, Arc<Version>>,
    remains: BTreeSet<u64>,
    loading: BTreeSet<u64>,
}

impl Store {
    fn is_empty(&self) -> bool {
        self.held.is_empty() && self.remains.is_empty() && self.loading.is_empty()
    }
}

/// A version that is open.
struct Version {
    index: NodeIndex,
    artifact: Option<String>,
    /// Set for good by the first record that fails its checksum.
    damaged: AtomicBool,
}

impl Version {
    fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }
}

/// What answers reads of a store.
#[derive(Clone)]
struct Serving {
    key: StoreKey,
    number: u64,
    version: Arc<Version>,
}

/// Why a node can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("the node's folder {folder} can't be used: {source}")]
pub struct NodeOpenError {
    /// The folder.
    pub folder: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl EmbeddedEngine {
    /// Opens the node in this folder, which is made if it is not there. It serves what it served before. One engine at a
    /// time uses a folder.
    ///
    /// # Errors
    /// The folder can't be read or made. An index that can't be opened is no error: it is not held, and is loaded again.
    pub async fn open(folder: impl Into<PathBuf>) -> Result<Self, NodeOpenError> {
        let folder = folder.into();
        let opening = folder.clone();
        let opened = tokio::task::spawn_blocking(move || open(&opening)).await;
        let opened = opened.unwrap_or_else(|error| Err(io::Error::other(error)));
        opened.map(|node| EmbeddedEngine(Arc::new(node))).map_err(|source| NodeOpenError { folder, source })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&NodeFolder) -> io::Result<T> + Send + 'static,
    ) -> Result<T, EngineError> {
        let node = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&node.folder)).await;
        done.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| failure(what, &error))
    }

    async fn alone_with(&self, store: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let pointer = Arc::clone(self.0.pointers.lock().entry(store.to_owned()).or_default());
        pointer.lock_owned().await
    }

    fn held(&self, store: &StoreKey, version: u64) -> Option<Arc<Version>> {
        self.0.stores.lock().get(store)?.held.get(&version).filter(|held| !held.is_damaged()).cloned()
    }

    fn shows(&self, store: &StoreKey) -> Option<Serving> {
        self.0.serving.load().get(&store.name).filter(|serving| serving.key == *store).cloned()
    }

    fn show(&self, store: &str, serving: Option<Serving>) {
        self.0.serving.rcu(|before| {
            let mut map = HashMap::clone(before);
            match &serving {
                Some(serving) => map.insert(store.to_owned(), serving.clone()),
                None => map.remove(store),
            };
            map
        });
    }

    fn forget_if_empty(&self, store: &StoreKey) {
        let mut stores = self.0.stores.lock();
        if stores.get(store).is_some_and(Store::is_empty) {
            stores.remove(store);
        }
    }

    fn end_load(&self, store: &StoreKey, version: u64) {
        if let Some(of_store) = self.0.stores.lock().get_mut(store) {
            of_store.loading.remove(&version);
        }
        self.forget_if_empty(store);
    }

    /// Builds and opens the version. Runs on a task of its own: what has begun ends in order, even if nobody waits for it.
    async fn build(
        self,
        store: StoreKey,
        version: u64,
        artifact: LoadableArtifact,
        progress: Arc<LoadProgress>,
        cancelled: CancellationToken,
    ) -> Result<(), EngineError> {
        let mut loading = Loading { engine: &self, store: &store, version, is_noted: false };
        let lost = self.0.lost.lock().get(&(store.clone(), version)).copied().unwrap_or_default();
        let (key, noted) = (store.clone(), (lost + 1).min(LOADS_LOST_MAX));
        self.blocking("a load can't begin", move |folder| folder.note_begun(&key, version, noted)).await?;
        if lost >= LOADS_LOST_MAX {
            // The note stays, so that the next process knows it, too.
            return Err(given_up(version, lost));
        }
        loading.is_noted = true;
        let built = self.build_noted(&store, version, artifact, progress, cancelled).await;
        let key = store.clone();
        self.blocking("the end of a load can't be noted", move |folder| folder.note_ended(&key, version)).await?;
        loading.is_noted = false;
        self.0.lost.lock().remove(&(store.clone(), version));
        built
    }

    async fn build_noted(
        &self,
        store: &StoreKey,
        version: u64,
        artifact: LoadableArtifact,
        progress: Arc<LoadProgress>,
        cancelled: CancellationToken,
    ) -> Result<(), EngineError> {
        let key = store.clone();
        let begun =
            self.blocking("a load can't begin", move |folder| folder.begin_load(&key, version, Uuid::new_v4())).await?;
        index::build(&artifact, &begun, progress, &cancelled).await?;
        let key = store.clone();
        let opened = self.blocking("a load can't be finished", move |folder| {
            if cancelled.is_cancelled() {
                remove_if_there(&begun)?;
                return Ok(Err("it was cut off".to_owned()));
            }
            let path = folder.finish_load(&key, version, &begun)?;
            Ok(NodeIndex::open(&path))
        });
        let index =
            opened.await?.map_err(|error| EngineError::retry(format!("the index of version {version}: {error}")))?;
        let mut stores = self.0.stores.lock();
        let of_store = stores.entry(store.clone()).or_default();
        of_store.held.insert(version, Arc::new(Version::new(version, index)));
        of_store.remains.remove(&version);
        Ok(())
    }
}

impl Version {
    fn new(number: u64, index: NodeIndex) -> Self {
        // What was adopted was made from whatever it was made from.
        let artifact = (number != ADOPTED_VERSION).then(|| index.artifact_id());
        Version { index, artifact, damaged: AtomicBool::new(false) }
    }
}

fn open(folder: &Path) -> io::Result<Node> {
    let folder = NodeFolder::open(folder)?;
    let mut stores: HashMap<StoreKey, Store> = HashMap::new();
    let mut serving = HashMap::new();
    let mut lost = HashMap::new();
    for found in folder.scan()? {
        for (incarnation, versions) in found.incarnations {
            if versions.is_empty() {
                continue;
            }
            let key = StoreKey { name: found.name.clone(), incarnation };
            let store = stores.entry(key.clone()).or_default();
            for version in versions {
                match version {
                    Found::Partial { version } => {
                        store.remains.insert(version);
                    }
                    Found::Begun { version, loads } => {
                        store.remains.insert(version);
                        lost.insert((key.clone(), version), loads);
                    }
                    Found::Index { version, path } => match NodeIndex::open(&path) {
                        Ok(index) => {
                            store.held.insert(version, Arc::new(Version::new(version, index)));
                        }
                        Err(error) => {
                            tracing::warn!(store = %key, version, %error, "an index can't be used and is built again from the artifact");
                            store.remains.insert(version);
                        }
                    },
                }
            }
            let Store { held, remains, .. } = store;
            remains.retain(|version| !held.contains_key(version));
            lost.retain(|(of, version), _| *of != key || !held.contains_key(version));
            if let Some(pointer) = found.pointer
                && pointer.incarnation == incarnation
                && let Some(number) = pointer.version
                && let Some(version) = store.held.get(&number)
            {
                serving.insert(found.name.clone(), Serving { key, number, version: Arc::clone(version) });
            }
        }
    }
    Ok(Node {
        folder,
        serving: ArcSwap::from_pointee(serving),
        stores: Mutex::new(stores),
        lost: Mutex::new(lost),
        pointers: Mutex::default(),
    })
}

fn given_up(version: u64, lost: u32) -> EngineError {
    EngineError::fatal(
        FatalKind::Other,
        format!(
            "loading version {version} has ended the node's process {lost} times in a row (the limit is {LOADS_LOST_MAX}), so it \
             is not tried again; the end of that process's log, or the system's (out of memory?), says more. Push the data \
             again once the cause is gone"
        ),
    )
}

fn failure(what: &str, error: &io::Error) -> EngineError {
    let message = format!("{what}: {error}");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => EngineError::fatal(FatalKind::DiskFull, message),
        io::ErrorKind::OutOfMemory => EngineError::fatal(FatalKind::MemoryLimit, message),
        io::ErrorKind::InvalidInput => EngineError::fatal(FatalKind::Other, message),
        _ => EngineError::retry(message),
    }
}

/// Ends a load, however it ends.
struct Loading<'a> {
    engine: &'a EmbeddedEngine,
    store: &'a StoreKey,
    version: u64,
    /// Whether it is noted as begun.
    is_noted: bool,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        // Only where the whole process ends in order and lets its tasks go: there is nobody left to wait for.
        if self.is_noted
            && let Err(error) = self.engine.0.folder.note_ended(self.store, self.version)
        {
            tracing::warn!(store = %self.store, version = self.version, %error, "the end of a load can't be noted");
        }
        self.engine.end_load(self.store, self.version);
    }
}

#[async_trait]
impl Engine for EmbeddedEngine {
    async fn adopt(&self, store: &StoreKey) -> Result<bool, EngineError> {
        let _alone = self.alone_with(&store.name).await;
        let nothing_held = self.0.stores.lock().get(store).is_none_or(|of_store| of_store.held.is_empty());
        let key = store.clone();
        let (pointer, taken) = self
            .blocking("live data can't be adopted", move |folder| {
                let pointer = folder.pointer(&key.name)?;
                let never = pointer == Pointed::Never;
                let taken = if never && nothing_held { folder.take_live(&key)? } else { None };
                Ok((pointer, taken.map(|path| NodeIndex::open(&path))))
            })
            .await?;
        if let Some(opened) = taken {
            let index = opened.map_err(|error| {
                EngineError::fatal(FatalKind::Other, format!("the live data of {store} can't be adopted: {error}"))
            })?;
            let version = Arc::new(Version::new(ADOPTED_VERSION, index));
            self.0.stores.lock().entry(store.clone()).or_default().held.insert(ADOPTED_VERSION, version);
        }
        let Some(version) = self.held(store, ADOPTED_VERSION) else {
            return Ok(false);
        };
        if pointer == Pointed::Never {
            let key = store.clone();
            self.blocking("the pointer can't be written", move |folder| {
                folder.set_pointer(&key, Some(ADOPTED_VERSION))
            })
            .await?;
            self.show(&store.name, Some(Serving { key: store.clone(), number: ADOPTED_VERSION, version }));
        }
        Ok(true)
    }

    async fn capacity(&self, store: &StoreKey, version: u64, manifest: &Manifest) -> Result<Capacity, EngineError> {
        let held = self.held(store, version).is_some();
        let room = volume::room(self.0.folder.root()).await?;
        Ok(Capacity {
            needed_bytes: if held { 0 } else { index::bytes_needed(manifest) },
            free_bytes: Some(room.free_bytes),
            volume: Some(room.volume),
        })
    }

    async fn load(
        &self,
        store: &StoreKey,
        version: u64,
        artifact: &LoadableArtifact,
        progress: &Arc<LoadProgress>,
        cancelled: &CancellationToken,
    ) -> Result<(), EngineError> {
        {
            let mut stores = self.0.stores.lock();
            let of_store = stores.entry(store.clone()).or_default();
            if let Some(held) = of_store.held.get(&version).filter(|held| !held.is_damaged()) {
                if held.artifact.as_ref() == Some(&artifact.manifest.artifact_id) {
                    return Ok(());
                }
                return Err(EngineError::fatal(
                    FatalKind::Other,
                    format!("version {version} is held with other data; it has to be dropped first"),
                ));
            }
            if !of_store.loading.insert(version) {
                return Err(EngineError::retry(format!("version {version} is being loaded already")));
            }
        }
        // Whoever stops waiting stops the load.
        let stop = cancelled.child_token();
        let _stop = stop.clone().drop_guard();
        let building = self.clone().build(store.clone(), version, artifact.clone(), Arc::clone(progress), stop);
        let built = tokio::spawn(building).await;
        built.unwrap_or_else(|error| {
            Err(EngineError::retry(format!("the load of version {version} broke off: {error}")))
        })
    }

    async fn verify(&self, store: &StoreKey, version: u64) -> Result<Verification, EngineError> {
        let Some(held) = self.held(store, version) else {
            return Err(EngineError::retry(format!("version {version} is not held")));
        };
        let reading = Arc::clone(&held);
        let verified = tokio::task::spawn_blocking(move || reading.index.verify()).await;
        match verified.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(verification) => Ok(verification),
            Err(error) => {
                held.damaged.store(true, Ordering::Relaxed);
                Err(EngineError::retry(format!(
                    "the index of version {version} is damaged and is built again: {error}"
                )))
            }
        }
    }

    async fn swap(&self, store: &StoreKey, version: Option<u64>) -> Result<(), EngineError> {
        let _alone = self.alone_with(&store.name).await;
        let shown = self.shows(store);
        let next = match version {
            None => None,
            Some(number) => match self.held(store, number) {
                Some(version) => Some(Serving { key: store.clone(), number, version }),
                None => return Err(EngineError::retry(format!("version {number} is not held and can't serve"))),
            },
        };
        let same = match (&shown, &next) {
            (None, None) => true,
            (Some(shown), Some(next)) => shown.number == next.number && Arc::ptr_eq(&shown.version, &next.version),
            _ => false,
        };
        let key = store.clone();
        let written = self.blocking("the pointer can't be written", move |folder| {
            let done = folder.pointer(&key.name).ok().and_then(Pointed::known).is_some_and(|before| {
                // Serving none of a store that is not the one pointed to changes nothing for the one that is.
                let of_another = before.incarnation != key.incarnation;
                if of_another { version.is_none() } else { before.version == version }
            });
            if done { Ok(()) } else { folder.set_pointer(&key, version) }
        });
        written.await?;
        if !same {
            self.show(&store.name, next);
        }
        Ok(())
    }

    async fn drop_version(&self, store: &StoreKey, version: u64) -> Result<(), EngineError> {
        let _alone = self.alone_with(&store.name).await;
        if let Some(shown) = self.shows(store)
            && shown.number == version
        {
            if !shown.version.is_damaged() {
                return Err(EngineError::fatal(
                    FatalKind::Other,
                    format!("version {version} of {store} serves and can't be dropped; swap first"),
                ));
            }
            self.show(&store.name, None);
        }
        {
            let mut stores = self.0.stores.lock();
            if let Some(of_store) = stores.get_mut(store) {
                if of_store.loading.contains(&version) {
                    return Err(EngineError::retry(format!("version {version} is being loaded; cut that off first")));
                }
                // Whatever happens to the files below: what is being removed is not held.
                if of_store.held.remove(&version).is_some() {
                    of_store.remains.insert(version);
                }
            }
        }
        let key = store.clone();
        self.blocking("a version can't be removed", move |folder| {
            if let Ok(Pointed::To(pointer)) = folder.pointer(&key.name)
                && pointer.incarnation == key.incarnation
                && pointer.version == Some(version)
            {
                folder.set_pointer(&key, None)?;
            }
            folder.remove_version(&key, version)
        })
        .await?;
        if let Some(of_store) = self.0.stores.lock().get_mut(store) {
            of_store.remains.remove(&version);
        }
        self.forget_if_empty(store);
        Ok(())
    }

    async fn observe(&self, store: &StoreKey) -> Result<Observed, EngineError> {
        let shown = self.shows(store);
        let stores = self.0.stores.lock();
        let Some(of_store) = stores.get(store) else {
            return Ok(Observed::default());
        };
        let mut observed = Observed { remains: of_store.remains.clone(), ..Observed::default() };
        for (number, version) in &of_store.held {
            if version.is_damaged() {
                observed.remains.insert(*number);
            } else {
                observed.held.insert(*number, HeldVersion { artifact: version.artifact.clone() });
            }
        }
        // What serves counts only while it is the file that is held: a damaged one goes on answering what it can until
        // its successor is swapped in.
        observed.serving = shown.and_then(|shown| {
            let held = of_store.held.get(&shown.number)?;
            (Arc::ptr_eq(held, &shown.version) && !held.is_damaged()).then_some(shown.number)
        });
        Ok(observed)
    }

    async fn stores(&self) -> Result<Vec<StoreKey>, EngineError> {
        Ok(self.0.stores.lock().keys().cloned().collect())
    }
}
