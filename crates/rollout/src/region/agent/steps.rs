//! Carrying out one step: the I/O around what [`plan`](crate::region::plan) asks for. Every step has a limit, can be cut
//! off, and survives an engine that panics.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tidegate_api::manifest::Manifest;
use tidegate_state::Clock;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::options::{AgentLimits, RegionNode};
use crate::engine::{
    Capacity, EngineError, FatalKind, LoadProgress, LoadableArtifact, Observed, StoreKey, Verification,
};
use crate::region::artifacts::{ArtifactName, RegionArtifacts};
use crate::region::capacity::{self, NodeNeed};
use crate::region::metrics::RegionFigures;
use crate::region::plan::NodeTask;

/// What every step of one store needs.
#[derive(Clone)]
pub(super) struct Tools {
    pub(super) key: StoreKey,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: AgentLimits,
    pub(super) heavy: Arc<Semaphore>,
    pub(super) artifacts: RegionArtifacts,
    pub(super) figures: RegionFigures,
}

/// What a step of a node gave.
pub(super) enum NodeResult {
    Observed { observed: Observed, older: bool },
    Verified(Verification),
    Done,
}

/// What a step for a version gave.
pub(super) enum VersionResult {
    Manifest(Arc<Manifest>),
    Fits { without_room: Vec<(usize, EngineError)> },
    Copied,
    Removed,
}

impl Tools {
    /// Runs a step of the engine: an error after `limit`, and where it panics.
    async fn limited<T>(
        &self,
        what: &str,
        limit: Duration,
        step: impl Future<Output = Result<T, EngineError>> + Send,
    ) -> Result<T, EngineError> {
        let deadline = self.clock.sleep_until(self.clock.now().after(limit));
        tokio::select! {
            biased;
            result = AssertUnwindSafe(step).catch_unwind() => match result {
                Ok(result) => result,
                Err(_) => Err(EngineError::retry(format!("{what} panicked; the log has more"))),
            },
            () = deadline => Err(EngineError::retry(format!("{what} did not end within {} s", limit.as_secs()))),
        }
    }

    /// Runs a long step, which ends with an error once it makes no progress for the stall limit.
    async fn watched<T>(
        &self,
        what: &str,
        progress: &LoadProgress,
        cancelled: &CancellationToken,
        step: impl Future<Output = Result<T, EngineError>> + Send,
    ) -> Result<T, EngineError> {
        let step = AssertUnwindSafe(step).catch_unwind();
        let mut step = std::pin::pin!(step);
        let mut before = progress.get();
        let error = loop {
            tokio::select! {
                biased;
                result = &mut step => {
                    return match result {
                        Ok(result) => result,
                        Err(_) => Err(EngineError::retry(format!("{what} panicked; the log has more"))),
                    };
                }
                () = cancelled.cancelled() => break EngineError::retry(format!("{what} was cut off")),
                () = self.clock.sleep_until(self.clock.now().after(self.limits.stall)) => {
                    let now = progress.get();
                    if now == before {
                        let minutes = self.limits.stall.as_secs() / 60;
                        break EngineError::retry(format!("{what} made no progress for {minutes} min ({} of {} bytes)", now.0, now.1));
                    }
                    before = now;
                }
            }
        };
        cancelled.cancel();
        // It is told to stop; one that does not listen is left behind after a while.
        let patience = self.clock.sleep_until(self.clock.now().after(self.limits.stop));
        tokio::select! {
            biased;
            _ = step => {}
            () = patience => tracing::warn!(store = %self.key, what, "a step did not stop when it was cut off; it is left to itself, and what it comes to counts for nothing"),
        }
        Err(error)
    }

    async fn heavy<T>(
        &self,
        cancelled: &CancellationToken,
        step: impl Future<Output = Result<T, EngineError>> + Send,
    ) -> Result<T, EngineError> {
        // Waiting for a turn counts for no limit, and the turn is given back however the step ends.
        let _turn = tokio::select! {
            biased;
            () = cancelled.cancelled() => return Err(EngineError::retry("was cut off before its turn came")),
            turn = self.heavy.acquire() => turn.map_err(|_| EngineError::retry("the agent is stopping"))?,
        };
        step.await
    }

    pub(super) async fn node(
        self,
        node: RegionNode,
        task: NodeTask,
        artifact: Option<LoadableArtifact>,
        progress: Arc<LoadProgress>,
        cancelled: CancellationToken,
    ) -> Result<NodeResult, EngineError> {
        let engine = &node.engine;
        let limit = self.limits.step;
        let of_node = |step: &str| format!("{step} on node {}", node.name);
        match task {
            NodeTask::Observe => {
                let observe = async {
                    let observed = engine.observe(&self.key).await?;
                    let stores = engine.stores().await?;
                    let older = stores.iter().any(|store| store.name == self.key.name && *store != self.key);
                    Ok(NodeResult::Observed { observed, older })
                };
                self.limited(&of_node("observe"), limit, observe).await
            }
            NodeTask::LetGoOlder => {
                let let_go = async {
                    for store in engine.stores().await? {
                        if store.name == self.key.name && store != self.key {
                            tracing::info!(region_node = %node.name, %store, incarnation = %store.incarnation, "lets an older store of this name go");
                            let observed = engine.observe(&store).await?;
                            engine.swap(&store, None).await?;
                            for version in observed.held.keys().chain(&observed.remains) {
                                engine.drop_version(&store, *version).await?;
                            }
                        }
                    }
                    Ok(NodeResult::Done)
                };
                self.limited(&of_node("letting an older store go"), limit, let_go).await
            }
            NodeTask::Adopt => {
                let adopt = async { engine.adopt(&self.key).await.map(|_| NodeResult::Done) };
                self.limited(&of_node("adopt"), limit, adopt).await
            }
            NodeTask::Load(version) => {
                let Some(artifact) = artifact else {
                    return Err(EngineError::retry("the artifact is not known yet"));
                };
                let load = async {
                    let load = engine.load(&self.key, version, &artifact, &progress, &cancelled);
                    self.watched(&of_node("load"), &progress, &cancelled, load).await?;
                    self.figures.loaded_bytes.inc_by(artifact.manifest.bytes);
                    Ok(NodeResult::Done)
                };
                self.heavy(&cancelled, load).await
            }
            NodeTask::Verify(version) => {
                let verify = async {
                    let verify = async { engine.verify(&self.key, version).await.map(NodeResult::Verified) };
                    self.limited(&of_node("verify"), self.limits.verify, verify).await
                };
                self.heavy(&cancelled, verify).await
            }
            NodeTask::Swap(version) => {
                let swap = async { engine.swap(&self.key, version).await.map(|()| NodeResult::Done) };
                let done = self.limited(&of_node("swap"), limit, swap).await?;
                self.figures.swaps.inc();
                Ok(done)
            }
            NodeTask::Drop(version) => {
                let drop = async { engine.drop_version(&self.key, version).await.map(|()| NodeResult::Done) };
                self.limited(&of_node("drop"), limit, drop).await
            }
        }
    }

    /// Reads a version back without waiting for a turn.
    pub(super) async fn verify_at_once(self, node: RegionNode, version: u64) -> Result<NodeResult, EngineError> {
        let verify = async { node.engine.verify(&self.key, version).await.map(NodeResult::Verified) };
        self.limited(&format!("verify on node {}", node.name), self.limits.verify, verify).await
    }

    pub(super) async fn read_manifest(self, name: ArtifactName) -> Result<VersionResult, EngineError> {
        let read = async { self.artifacts.manifest(&name).await.map(VersionResult::Manifest) };
        self.limited("reading the manifest", self.limits.step, read).await
    }

    /// Compares what the nodes at these places and the region's copy need with what is free.
    pub(super) async fn check_capacity(
        self,
        version: u64,
        manifest: Arc<Manifest>,
        missing: Vec<(usize, RegionNode)>,
        holding: usize,
        enough: usize,
    ) -> Result<VersionResult, EngineError> {
        let check = async {
            let copy: Option<Capacity> = self.artifacts.capacity(&manifest).await?;
            let mut needs = Vec::with_capacity(missing.len());
            for (place, node) in &missing {
                match node.engine.capacity(&self.key, version, &manifest).await {
                    Ok(capacity) => needs.push(NodeNeed { place: *place, name: node.name.clone(), capacity }),
                    Err(error) if missing.len() + holding <= enough => return Err(error),
                    // A node that does not answer now is asked by its own steps; the others go on.
                    Err(_) => {}
                }
            }
            let without_room = capacity::check(copy.as_ref(), &needs, holding, enough)?;
            Ok(VersionResult::Fits { without_room })
        };
        self.limited("checking the capacity", self.limits.step, check).await
    }

    pub(super) async fn copy(
        self,
        name: ArtifactName,
        suspect: bool,
        progress: Arc<LoadProgress>,
        cancelled: CancellationToken,
    ) -> Result<VersionResult, EngineError> {
        let copy = async {
            let copy = self.artifacts.ensure(&name, suspect, &progress, &cancelled);
            let copied = self.watched("copying the artifact to the region", &progress, &cancelled, copy).await?;
            self.figures.copied_bytes.inc_by(copied);
            Ok(VersionResult::Copied)
        };
        self.heavy(&cancelled, copy).await
    }

    pub(super) async fn remove_copy(self, version: u64, name: ArtifactName) -> Result<VersionResult, EngineError> {
        let store = self.key.name.clone();
        let remove = async { self.artifacts.release(&store, version, &name).await.map(|()| VersionResult::Removed) };
        self.limited("removing the region's copy", self.limits.step, remove).await
    }
}

/// The error of a version whose content is not what the manifest says.
pub(super) fn digest_mismatch(node: &str, version: u64, found: &Verification, expected: &str) -> EngineError {
    EngineError::fatal(
        FatalKind::DigestMismatch,
        format!(
            "node {node} read version {version} back with content digest {} ({} records), the manifest says {expected}; \
             it is not served, but dropped and loaded again",
            found.content_digest, found.record_count
        ),
    )
}
