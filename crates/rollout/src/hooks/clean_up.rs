//! Removes bytes from the object store that nothing refers to, once their grace time is over.
//!
//! Whoever refers to an artifact again deletes its entry in the same transaction, and can't once it is being removed. So an
//! entry that still waits at the head of the log says that nothing refers to it anew; what referred to it all along is
//! found in the snapshot, which is no older than the entry.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_state::{ClusterHook, Outcome, Ref, Registration, Run, Snapshot, TransactionError};

use super::{RolloutDependencies, level_triggered};
use crate::entities::{Garbage, GarbageKind, GarbageState, Push, Store, Version};

/// Removes bytes from the source object store. Both are idempotent: what is gone already is no error, and what is not
/// ours is left alone.
#[async_trait]
pub trait ArtifactRemover: Send + Sync {
    /// Removes a complete artifact: manifest first, then its parts.
    ///
    /// # Errors
    /// A text for people; it is tried again.
    async fn remove_artifact(&self, artifact: &str, manifest_sha256: &str) -> Result<(), String>;

    /// Removes the parts of a push that never completed.
    ///
    /// # Errors
    /// A text for people; it is tried again.
    async fn remove_upload(&self, store: &str, push: &str) -> Result<(), String>;
}

pub(super) fn registration() -> Registration {
    level_triggered("rollout-clean-up", 1).on("/garbage/{entry}").key("{entry}").from_existing().slots(4)
}

pub(super) fn hook(dependencies: &RolloutDependencies) -> Arc<CleanUp> {
    Arc::new(CleanUp { remover: Arc::clone(&dependencies.remover) })
}

pub(super) struct CleanUp {
    remover: Arc<dyn ArtifactRemover>,
}

#[async_trait]
impl ClusterHook for CleanUp {
    async fn run(&self, run: Run) -> Outcome {
        match self.remove(&run).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Fail(error),
        }
    }
}

impl CleanUp {
    async fn remove(&self, run: &Run) -> Result<Outcome, String> {
        let Some(entry) = run.id("entry") else { return Err("the run's key names no entry".to_owned()) };
        let place = Ref::<Garbage>::root(entry).map_err(|error| error.to_string())?;
        let Some(garbage) = run.snapshot().get(&place).map_err(|error| error.to_string())? else {
            return Ok(Outcome::Done);
        };
        let garbage = garbage.clone();
        if run.now() < garbage.due_at {
            return Ok(Outcome::RetryAt(garbage.due_at));
        }
        if garbage.state == GarbageState::Waiting {
            if is_referred_to(run.snapshot(), &garbage).map_err(|error| error.to_string())? {
                let place = place.clone();
                return Ok(Outcome::done_with(move |transaction| transaction.delete(&place).map(|_| ())));
            }
            if !take(run, &place, &garbage).await? {
                return Ok(Outcome::Done);
            }
        }
        match &garbage.kind {
            GarbageKind::Artifact { artifact, manifest_sha256 } => {
                self.remover.remove_artifact(artifact, manifest_sha256).await?;
            }
            GarbageKind::Upload { push } => self.remover.remove_upload(&garbage.store, push).await?,
        }
        Ok(Outcome::done_with(move |transaction| transaction.delete(&place).map(|_| ())))
    }
}

/// Says that it is being removed from now on; false if it is no garbage any more.
async fn take(run: &Run, place: &Ref<Garbage>, garbage: &Garbage) -> Result<bool, String> {
    let (place, garbage) = (place.clone(), garbage.clone());
    let committed = run
        .write(move |transaction| -> Result<bool, TransactionError> {
            let still = transaction.get(&place)?.is_some_and(|there| *there == garbage);
            if still {
                transaction.put(&place, Garbage { state: GarbageState::Removing, ..garbage.clone() })?;
            }
            Ok(still)
        })
        .await;
    committed.map(|committed| committed.value).map_err(|error| error.to_string())
}

fn is_referred_to(snapshot: &Snapshot, garbage: &Garbage) -> Result<bool, TransactionError> {
    match &garbage.kind {
        GarbageKind::Artifact { artifact, .. } => {
            for version in snapshot.all::<Version>() {
                let (_, version) = version?;
                if version.artifact().is_some_and(|(other, _)| other == artifact) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        GarbageKind::Upload { push } => {
            let push = Ref::<Store>::root(garbage.store.clone())?.child::<Push>(push.clone())?;
            Ok(snapshot.get(&push)?.is_some_and(|push| !push.status().is_final()))
        }
    }
}
