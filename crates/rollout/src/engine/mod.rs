//! Engines: what a node of a region holds versions in and serves them from.
//!
//! A region's agent drives every node through the same seven steps, whatever the node is made of:
//!
//! | step | meaning |
//! |---|---|
//! | [`adopt`](Engine::adopt) | what is live, though no push made it, becomes version 0 |
//! | [`capacity`](Engine::capacity) | whether a version would fit, before anything is copied |
//! | [`load`](Engine::load) | take in a version beside those that are held; nothing serves it yet |
//! | [`verify`](Engine::verify) | read the whole version back and say what it consists of |
//! | [`swap`](Engine::swap) | serve this version, or none |
//! | [`drop_version`](Engine::drop_version) | let a version go that does not serve |
//! | [`observe`](Engine::observe) | what is held and what serves, as it is now |
//!
//! # Invariants
//! Every engine keeps these; [`conformance`] is the suite that checks them.
//! - **Each step is idempotent.** Done twice in a row, the second changes nothing and answers the same.
//! - **Each step may be cut off** at any point, by cancellation or by the death of either side, and
//!   be repeated. What was half done is never seen: a version is in [`Observed::held`] whole or not
//!   at all, and reads are answered by one version or the other.
//! - **Only `swap` changes what serves.** Not `load`, `verify` or `drop_version`, not a restart.
//! - **A swap is one change of a pointer.** It takes the same few operations whatever the version's
//!   size, no read fails for it, none mixes two versions, and reads that began before it end with the
//!   version that they began with.
//! - **What serves is never dropped**; that is refused with [`Fatal`](EngineError::Fatal).
//! - **What is damaged is not held.** A version that an engine knows to be damaged is missing from
//!   what it observes, so that the agent loads it again; damaged data is never given as an answer.
//! - Steps on different versions and stores may run at the same time; of one version of one store at
//!   most one of load, verify and drop runs at a time (the agent sees to that).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tidegate_api::manifest::Manifest;
use tidegate_dataset::artifact::ArtifactStore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub mod conformance;
pub mod embedded;
pub(crate) mod file;
pub mod remote;
pub(crate) mod volume;

/// The version number of data that was live before the first push.
pub const ADOPTED_VERSION: u64 = 0;

/// Names a store for good: one that was deleted and created again under the same name is another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoreKey {
    /// The store's name, as users write it.
    pub name: String,
    /// Which of the stores that ever had this name.
    pub incarnation: Uuid,
}

impl fmt::Display for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// An artifact that a node can load: complete, and kept where the node can read it.
#[derive(Clone)]
pub struct LoadableArtifact {
    /// Where its parts are: the region's copy, or the source store where the region shares it.
    pub store: ArtifactStore,
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// SHA-256 of the manifest's file, which with the id names it in the store.
    pub manifest_sha256: String,
}

impl fmt::Debug for LoadableArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadableArtifact")
            .field("artifact", &self.manifest.artifact_id)
            .field("manifest_sha256", &self.manifest_sha256)
            .finish_non_exhaustive()
    }
}

/// What a version would take on a node, and what is free there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Bytes that the version needs there, beside what is held already.
    pub needed_bytes: u64,
    /// Bytes that are free there; `None` where the engine has no figure.
    pub free_bytes: Option<u64>,
    /// Which disk or memory the figures are about. Nodes with the same one share what is free.
    pub volume: Option<String>,
}

/// Why a version failed, in the kinds that job statuses know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FatalKind {
    /// No room on a disk.
    DiskFull,
    /// No room in memory, or over a limit that was set for it.
    MemoryLimit,
    /// Too few nodes or clients are alive.
    TooManyDead,
    /// What was read back is not what the manifest says.
    DigestMismatch,
    /// Anything else; the message says what.
    Other,
}

impl FatalKind {
    /// The kind as one word for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FatalKind::DiskFull => "disk_full",
            FatalKind::MemoryLimit => "memory_limit",
            FatalKind::TooManyDead => "too_many_dead",
            FatalKind::DigestMismatch => "digest_mismatch",
            FatalKind::Other => "other",
        }
    }
}

/// Why a step was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// It may work later: a node is down, a connection broke, a file was damaged and is copied again.
    /// The agent repeats the step with growing pauses, a bounded number of times.
    #[error("{message}")]
    Retry {
        /// What happened, for people.
        message: String,
    },
    /// It will not work by itself. The node counts as failed for this version at once.
    #[error("{message}")]
    Fatal {
        /// Which kind of failure it is.
        kind: FatalKind,
        /// What happened, for people, with measured values next to their limits.
        message: String,
    },
}

impl EngineError {
    /// An error that may pass.
    #[must_use]
    pub fn retry(message: impl Into<String>) -> Self {
        EngineError::Retry { message: message.into() }
    }

    /// An error that will not pass.
    #[must_use]
    pub fn fatal(kind: FatalKind, message: impl Into<String>) -> Self {
        EngineError::Fatal { kind, message: message.into() }
    }

    /// The kind that a failure for good by this error has.
    #[must_use]
    pub fn kind(&self) -> FatalKind {
        match self {
            EngineError::Retry { .. } => FatalKind::Other,
            EngineError::Fatal { kind, .. } => *kind,
        }
    }
}

/// What a node says about one store, read from what it has and not from what it was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Versions that are there whole and not known to be damaged.
    pub held: BTreeMap<u64, HeldVersion>,
    /// The version that answers reads, if any does and it is not known to be damaged.
    pub serving: Option<u64>,
    /// Versions that are not held, but of which a cut-off load or damage has left something.
    pub remains: BTreeSet<u64>,
}

impl Observed {
    /// Whether the version is held whole.
    #[must_use]
    pub fn holds(&self, version: u64) -> bool {
        self.held.contains_key(&version)
    }
}

/// A version that a node holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldVersion {
    /// The artifact that it was loaded from; `None` for what was adopted, or where the engine does
    /// not know.
    pub artifact: Option<String>,
}

/// What reading a whole version back gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// The digest over all records that [`Manifest::content_digest`] must equal.
    pub content_digest: String,
    /// How many records there are.
    pub record_count: u64,
}

/// How far a load is. Shared between the engine, which writes it, and the agent, which reads it.
#[derive(Debug, Default)]
pub struct LoadProgress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl LoadProgress {
    /// Says how far the load is, in bytes of parts.
    pub fn set(&self, done_bytes: u64, total_bytes: u64) {
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
        self.done_bytes.store(done_bytes, Ordering::Relaxed);
    }

    /// Bytes done, and bytes in all.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.done_bytes.load(Ordering::Relaxed), self.total_bytes.load(Ordering::Relaxed))
    }
}

/// One node. See the [module](self) for the steps and for what every engine keeps.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Makes what is live for this store, though no push made it, version 0 of the store, without
    /// copying or changing it. Answers whether version 0 is held afterwards.
    ///
    /// # Errors
    /// See [`EngineError`].
    async fn adopt(&self, store: &StoreKey) -> Result<bool, EngineError>;

    /// What this version would need here, and what is free. A version that is held needs nothing.
    ///
    /// # Errors
    /// See [`EngineError`].
    async fn capacity(&self, store: &StoreKey, version: u64, manifest: &Manifest) -> Result<Capacity, EngineError>;

    /// Takes the artifact in as this version, beside those that are held. It serves nothing.
    ///
    /// Every byte of a part is checked against the manifest's SHA-256 before what was made from it
    /// counts. `cancelled` stops it soon; what was done so far may be kept for the next attempt, but
    /// is not held and is removed by [`drop_version`](Engine::drop_version).
    ///
    /// # Errors
    /// [`EngineError::Retry`] too where it was cancelled.
    async fn load(
        &self,
        store: &StoreKey,
        version: u64,
        artifact: &LoadableArtifact,
        progress: &Arc<LoadProgress>,
        cancelled: &CancellationToken,
    ) -> Result<(), EngineError>;

    /// Reads the whole version back, as it would be served, and says what it consists of. What it
    /// finds damaged is no longer held.
    ///
    /// # Errors
    /// See [`EngineError`]; `Retry` where the version is not held.
    async fn verify(&self, store: &StoreKey, version: u64) -> Result<Verification, EngineError>;

    /// Serves this version from now on, or none. Durable when it returns.
    ///
    /// # Errors
    /// See [`EngineError`]; `Retry` where the version is not held.
    async fn swap(&self, store: &StoreKey, version: Option<u64>) -> Result<(), EngineError>;

    /// Removes this version and all that is left of attempts to load it. One that is not held is
    /// done already.
    ///
    /// # Errors
    /// See [`EngineError`]; `Fatal` where the version serves.
    async fn drop_version(&self, store: &StoreKey, version: u64) -> Result<(), EngineError>;

    /// What is held of this store and what serves.
    ///
    /// # Errors
    /// See [`EngineError`]; an error means that nothing is known about the node.
    async fn observe(&self, store: &StoreKey) -> Result<Observed, EngineError>;

    /// The stores, in all their incarnations, that anything is kept of here, remains of cut-off
    /// loads included.
    ///
    /// # Errors
    /// See [`EngineError`].
    async fn stores(&self) -> Result<Vec<StoreKey>, EngineError>;
}

#[async_trait]
impl<E: Engine + ?Sized> Engine for Arc<E> {
    async fn adopt(&self, store: &StoreKey) -> Result<bool, EngineError> {
        (**self).adopt(store).await
    }

    async fn capacity(&self, store: &StoreKey, version: u64, manifest: &Manifest) -> Result<Capacity, EngineError> {
        (**self).capacity(store, version, manifest).await
    }

    async fn load(
        &self,
        store: &StoreKey,
        version: u64,
        artifact: &LoadableArtifact,
        progress: &Arc<LoadProgress>,
        cancelled: &CancellationToken,
    ) -> Result<(), EngineError> {
        (**self).load(store, version, artifact, progress, cancelled).await
    }

    async fn verify(&self, store: &StoreKey, version: u64) -> Result<Verification, EngineError> {
        (**self).verify(store, version).await
    }

    async fn swap(&self, store: &StoreKey, version: Option<u64>) -> Result<(), EngineError> {
        (**self).swap(store, version).await
    }

    async fn drop_version(&self, store: &StoreKey, version: u64) -> Result<(), EngineError> {
        (**self).drop_version(store, version).await
    }

    async fn observe(&self, store: &StoreKey) -> Result<Observed, EngineError> {
        (**self).observe(store).await
    }

    async fn stores(&self) -> Result<Vec<StoreKey>, EngineError> {
        (**self).stores().await
    }
}
