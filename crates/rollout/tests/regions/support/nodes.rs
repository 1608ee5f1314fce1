//! Nodes that fail when told to.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_api::manifest::Manifest;
use tidegate_rollout::engine::embedded::{EmbeddedEngine, NodeReadError};
use tidegate_rollout::engine::{
    Capacity, Engine, EngineError, LoadProgress, LoadableArtifact, Observed, StoreKey, Verification,
};
use tokio_util::sync::CancellationToken;

use super::{text, text_of};

/// A step of an engine, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum On {
    Capacity,
    Load,
    Verify,
    Swap,
    Drop,
    Observe,
}

/// What a step does instead of its work.
#[derive(Clone, Debug)]
pub enum Fault {
    Fails(EngineError),
    Hangs,
    /// Drop alone: the work is done, and the step never ends.
    HangsAfter,
    /// Verify alone: the digest that is found.
    Digest(String),
    /// Capacity alone: what is free beside what is needed, in bytes less.
    ShortBy(u64),
}

#[derive(Default)]
struct Script {
    /// One fault per call, in order.
    once: BTreeMap<(On, Option<String>), VecDeque<Fault>>,
    /// A fault for every call from now on.
    always: BTreeMap<(On, Option<String>), Fault>,
    calls: BTreeMap<(On, String), u64>,
}

/// An embedded engine that fails when told to, and counts.
#[derive(Clone)]
pub struct Node {
    pub name: String,
    folder: PathBuf,
    engine: Arc<Mutex<EmbeddedEngine>>,
    script: Arc<Mutex<Script>>,
}

impl Node {
    pub async fn open(folder: &Path, name: &str) -> Node {
        let folder = folder.join(name);
        let engine = EmbeddedEngine::open(&folder).await.unwrap();
        Node { name: name.to_owned(), folder, engine: Arc::new(Mutex::new(engine)), script: Arc::default() }
    }

    /// The node's process starts again.
    pub async fn restart(&self) {
        let engine = EmbeddedEngine::open(&self.folder).await.unwrap();
        *self.engine.lock() = engine;
    }

    /// The node's process starts again, on an empty disk.
    pub async fn restart_with_nothing(&self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
        self.restart().await;
    }

    pub fn engine(&self) -> EmbeddedEngine {
        self.engine.lock().clone()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn index(&self, store: &StoreKey, version: u64) -> PathBuf {
        self.folder
            .join("stores")
            .join(&store.name)
            .join(store.incarnation.to_string())
            .join(format!("{version}.index"))
    }

    pub fn once(&self, on: On, faults: impl IntoIterator<Item = Fault>) {
        self.script.lock().once.entry((on, None)).or_default().extend(faults);
    }

    pub fn always(&self, on: On, fault: Fault) {
        self.script.lock().always.insert((on, None), fault);
    }

    pub fn always_for(&self, store: &str, on: On, fault: Fault) {
        self.script.lock().always.insert((on, Some(store.to_owned())), fault);
    }

    pub fn well_again(&self) {
        let mut script = self.script.lock();
        script.once.clear();
        script.always.clear();
    }

    pub fn calls(&self, on: On, store: &str) -> u64 {
        self.script.lock().calls.get(&(on, store.to_owned())).copied().unwrap_or(0)
    }

    pub fn serves(&self, store: &str) -> Option<u64> {
        self.engine().reader(store).ok().map(|reader| reader.version())
    }

    /// Reads a key, and checks that it has the value of the version that answers.
    pub fn read(&self, store: &str, key: usize) -> Result<u64, NodeReadError> {
        let answer = self.engine().read(store, &format!("k{key}"))?;
        assert_eq!(text_of(answer.value.as_deref()), text(answer.version, key));
        Ok(answer.version)
    }

    async fn fault(&self, on: On, store: &StoreKey) -> Result<Option<Fault>, EngineError> {
        let fault = {
            let mut script = self.script.lock();
            *script.calls.entry((on, store.name.clone())).or_default() += 1;
            let once = script.once.get_mut(&(on, None)).and_then(VecDeque::pop_front);
            once.or_else(|| script.always.get(&(on, Some(store.name.clone()))).cloned())
                .or_else(|| script.always.get(&(on, None)).cloned())
        };
        match fault {
            Some(Fault::Fails(error)) => Err(error),
            Some(Fault::Hangs) => std::future::pending().await,
            other => Ok(other),
        }
    }
}

#[async_trait]
impl Engine for Node {
    async fn adopt(&self, store: &StoreKey) -> Result<bool, EngineError> {
        self.engine().adopt(store).await
    }

    async fn capacity(&self, store: &StoreKey, version: u64, manifest: &Manifest) -> Result<Capacity, EngineError> {
        let fault = self.fault(On::Capacity, store).await?;
        let mut capacity = self.engine().capacity(store, version, manifest).await?;
        if let Some(Fault::ShortBy(bytes)) = fault {
            capacity.free_bytes = Some(capacity.needed_bytes - bytes);
            capacity.volume = Some(self.name.clone());
        }
        Ok(capacity)
    }

    async fn load(
        &self,
        store: &StoreKey,
        version: u64,
        artifact: &LoadableArtifact,
        progress: &Arc<LoadProgress>,
        cancelled: &CancellationToken,
    ) -> Result<(), EngineError> {
        self.fault(On::Load, store).await?;
        self.engine().load(store, version, artifact, progress, cancelled).await
    }

    async fn verify(&self, store: &StoreKey, version: u64) -> Result<Verification, EngineError> {
        let fault = self.fault(On::Verify, store).await?;
        let mut verification = self.engine().verify(store, version).await?;
        if let Some(Fault::Digest(digest)) = fault {
            verification.content_digest = digest;
        }
        Ok(verification)
    }

    async fn swap(&self, store: &StoreKey, version: Option<u64>) -> Result<(), EngineError> {
        self.fault(On::Swap, store).await?;
        self.engine().swap(store, version).await
    }

    async fn drop_version(&self, store: &StoreKey, version: u64) -> Result<(), EngineError> {
        let fault = self.fault(On::Drop, store).await?;
        self.engine().drop_version(store, version).await?;
        if let Some(Fault::HangsAfter) = fault {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn observe(&self, store: &StoreKey) -> Result<Observed, EngineError> {
        self.fault(On::Observe, store).await?;
        self.engine().observe(store).await
    }

    async fn stores(&self) -> Result<Vec<StoreKey>, EngineError> {
        self.engine().stores().await
    }
}
