//! What an agent and a node of its own process say to each other: an order, and the lines of its answer.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate_api::manifest::Manifest;
use tokio_util::sync::CancellationToken;

use crate::engine::{
    Capacity, Engine, EngineError, FatalKind, LoadProgress, LoadableArtifact, Observed, StoreKey, Verification,
};

/// An order to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The token by which the agent hosts its region.
    pub token: u64,
    /// What to do.
    pub command: Command,
}

/// A step of an [`Engine`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// See [`Engine::adopt`].
    Adopt {
        /// The store.
        store: StoreKey,
    },
    /// See [`Engine::capacity`].
    Capacity {
        /// The store.
        store: StoreKey,
        /// The version.
        version: u64,
        /// What it would consist of.
        manifest: Box<Manifest>,
    },
    /// See [`Engine::load`]. The node gets the artifact from its agent.
    Load {
        /// The store.
        store: StoreKey,
        /// The version.
        version: u64,
        /// The artifact's id.
        artifact: String,
        /// SHA-256 of its manifest.
        manifest_sha256: String,
    },
    /// Cuts off a load of this version that goes on. Done once it has ended, however it ended.
    CutOff {
        /// The store.
        store: StoreKey,
        /// The version.
        version: u64,
    },
    /// See [`Engine::verify`].
    Verify {
        /// The store.
        store: StoreKey,
        /// The version.
        version: u64,
    },
    /// See [`Engine::swap`].
    Swap {
        /// The store.
        store: StoreKey,
        /// The version, or none.
        version: Option<u64>,
    },
    /// See [`Engine::drop_version`].
    Drop {
        /// The store.
        store: StoreKey,
        /// The version.
        version: u64,
    },
    /// See [`Engine::observe`].
    Observe {
        /// The store.
        store: StoreKey,
    },
    /// See [`Engine::stores`].
    Stores,
}

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The step goes on.
    Alive,
    /// How far a load is, in bytes.
    Progress {
        /// Done.
        done: u64,
        /// In all.
        total: u64,
    },
    /// It is done. The last line.
    Done(Outcome),
    /// It is not done. The last line.
    Failed(Failure),
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Of adopting.
    Adopted {
        /// Whether version 0 is held.
        held: bool,
    },
    /// Of asking for room.
    Capacity {
        /// The figures.
        capacity: Capacity,
    },
    /// Of reading back.
    Verified {
        /// What was read.
        verification: Verification,
    },
    /// Of observing.
    Observed {
        /// What is held and serves.
        observed: Observed,
    },
    /// Of asking for the stores.
    Stores {
        /// The stores.
        stores: Vec<StoreKey>,
    },
    /// Of all else.
    Done,
}

/// Why a step was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Of which kind, if it will not work by itself; absent where it may work later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<FatalKind>,
    /// What happened.
    pub message: String,
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Retry { message } => Failure { kind: None, message },
            EngineError::Fatal { kind, message } => Failure { kind: Some(kind), message },
        }
    }
}

impl From<Failure> for EngineError {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            None => EngineError::retry(failure.message),
            Some(kind) => EngineError::fatal(kind, failure.message),
        }
    }
}

/// The loads that go on at a node, each with what cuts it off and what says that it has ended.
#[derive(Debug, Default)]
pub struct Loads(Mutex<HashMap<(StoreKey, u64), Load>>);

#[derive(Clone, Debug, Default)]
struct Load {
    cut_off: CancellationToken,
    ended: CancellationToken,
}

/// A load that goes on until this is dropped.
struct GoingOn<'a> {
    loads: &'a Loads,
    of: (StoreKey, u64),
    ended: CancellationToken,
}

impl Loads {
    /// `None`: one of this version goes on already, and the engine refuses another.
    fn begin(&self, store: &StoreKey, version: u64, cut_off: &CancellationToken) -> Option<GoingOn<'_>> {
        let of = (store.clone(), version);
        match self.0.lock().entry(of.clone()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => {
                let ended = CancellationToken::new();
                place.insert(Load { cut_off: cut_off.clone(), ended: ended.clone() });
                Some(GoingOn { loads: self, of, ended })
            }
        }
    }

    async fn cut_off(&self, store: StoreKey, version: u64) {
        let load = self.0.lock().get(&(store, version)).cloned();
        if let Some(load) = load {
            load.cut_off.cancel();
            load.ended.cancelled().await;
        }
    }
}

impl Drop for GoingOn<'_> {
    fn drop(&mut self) {
        self.loads.0.lock().remove(&self.of);
        self.ended.cancel();
    }
}

/// Carries an order out on an engine: the node's side. `source` is where artifacts come from.
///
/// # Errors
/// As the engine's step; [`EngineError::Retry`] where the manifest can't be had.
pub async fn carry_out(
    engine: &impl Engine,
    command: Command,
    source: &tidegate_dataset::artifact::ArtifactStore,
    loads: &Loads,
    progress: &Arc<LoadProgress>,
    cancelled: &CancellationToken,
) -> Result<Outcome, EngineError> {
    Ok(match command {
        Command::Adopt { store } => Outcome::Adopted { held: engine.adopt(&store).await? },
        Command::Capacity { store, version, manifest } => {
            Outcome::Capacity { capacity: engine.capacity(&store, version, &manifest).await? }
        }
        Command::Load { store, version, artifact, manifest_sha256 } => {
            let cancelled = cancelled.child_token();
            let _going_on = loads.begin(&store, version, &cancelled);
            let stored = tokio::select! {
                biased;
                () = cancelled.cancelled() => return Err(EngineError::retry("the load was cut off")),
                stored = source.manifest_with_digest(&artifact, &manifest_sha256) => stored,
            };
            let stored = stored.map_err(|error| EngineError::retry(format!("the manifest can't be had: {error}")))?;
            let artifact =
                LoadableArtifact { store: source.clone(), manifest: Arc::new(stored.manifest), manifest_sha256 };
            engine.load(&store, version, &artifact, progress, &cancelled).await?;
            Outcome::Done
        }
        Command::CutOff { store, version } => {
            loads.cut_off(store, version).await;
            Outcome::Done
        }
        Command::Verify { store, version } => Outcome::Verified { verification: engine.verify(&store, version).await? },
        Command::Swap { store, version } => {
            engine.swap(&store, version).await?;
            Outcome::Done
        }
        Command::Drop { store, version } => {
            engine.drop_version(&store, version).await?;
            Outcome::Done
        }
        Command::Observe { store } => Outcome::Observed { observed: engine.observe(&store).await? },
        Command::Stores => Outcome::Stores { stores: engine.stores().await? },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_cuts_a_load_off_is_answered_once_it_has_ended() {
        let store = StoreKey { name: "s".to_owned(), incarnation: uuid::Uuid::from_u128(7) };
        let loads = Loads::default();
        let stop = CancellationToken::new();
        let going_on = loads.begin(&store, 1, &stop).unwrap();
        assert!(loads.begin(&store, 1, &CancellationToken::new()).is_none());
        // None of another version: there is nothing to wait for.
        loads.cut_off(store.clone(), 2).await;
        let mut cut_off = std::pin::pin!(loads.cut_off(store.clone(), 1));
        assert!(futures::poll!(cut_off.as_mut()).is_pending());
        assert!(stop.is_cancelled());
        drop(going_on);
        cut_off.await;
        assert!(loads.begin(&store, 1, &stop).is_some());
    }

    #[test]
    fn what_is_said_is_heard() {
        let store = StoreKey { name: "s/1 é".to_owned(), incarnation: uuid::Uuid::from_u128(7) };
        let held = [(3, crate::engine::HeldVersion { artifact: Some("a".to_owned()) })].into();
        let observed = Observed { held, serving: Some(3), remains: [4].into() };
        for line in [
            Line::Alive,
            Line::Progress { done: 1, total: 2 },
            Line::Done(Outcome::Done),
            Line::Done(Outcome::Observed { observed }),
            Line::Done(Outcome::Stores { stores: vec![store.clone()] }),
            Line::Failed(EngineError::fatal(FatalKind::DiskFull, "full").into()),
            Line::Failed(EngineError::retry("later").into()),
        ] {
            let text = serde_json::to_string(&line).unwrap();
            assert!(!text.contains('\n'));
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line, "{text}");
        }
        let order = Order { token: 7, command: Command::Swap { store, version: None } };
        assert_eq!(serde_json::from_value::<Order>(serde_json::to_value(&order).unwrap()).unwrap(), order);
        let error = EngineError::fatal(FatalKind::MemoryLimit, "full");
        assert_eq!(EngineError::from(Failure::from(error.clone())), error);
    }
}
