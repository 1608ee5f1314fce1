//! The suite that every engine passes: N1 to N8, as far as they are about one engine.
//!
//! An engine's author implements [`EngineFactory`] and calls [`run`]; an empty list means that the
//! engine keeps what [`engine`](super) promises. What the region's agent does with a conforming
//! engine (retries, failing a region, counting) is tested beside the agent.
//!
//! Each case opens engines through the factory on a node of its own, so that cases don't meet.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::{Engine, LoadableArtifact, StoreKey};

mod cases;
mod fixture;
pub mod on_disk;

pub use fixture::{Fixture, KEYS};

/// How the suite makes, remakes and reads from engines of one kind.
#[async_trait]
pub trait EngineFactory: Send + Sync {
    /// The kind.
    type Engine: Engine;

    /// Opens the node of this name; opened again after a drop, it is the same node after a restart.
    async fn open(&self, node: &str) -> Self::Engine;

    /// Has the closed node lose everything that it kept.
    async fn lose(&self, node: &str);

    /// Makes the artifact's data live on the closed node for this store, as something that no push made would be. `false`
    /// where that can't be with this kind of engine.
    async fn put_live(&self, node: &str, store: &StoreKey, artifact: &LoadableArtifact) -> bool;

    /// Begins a read as an application would: what it gives to the end is of one version. `None`: no version is served.
    async fn begin_read(&self, engine: &Self::Engine, store: &StoreKey) -> Option<Box<dyn BegunRead>>;

    /// How many bytes the node keeps in all, where that can be said: to see that dropping leaves nothing.
    async fn footprint(&self, node: &str) -> Option<u64>;
}

/// A read that has begun.
#[async_trait]
pub trait BegunRead: Send + Sync {
    /// The version that it is of.
    fn version(&self) -> u64;

    /// The value of a key; `None`: there is no such key.
    ///
    /// # Errors
    /// What went wrong: a read that has begun never fails.
    async fn value(&self, key: &str) -> Result<Option<Value>, String>;
}

/// A promise that an engine does not keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The case.
    pub case: &'static str,
    /// What was expected and what was found.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.what)
    }
}

/// What a case gives: nothing, or what was found.
pub type Verdict = Result<(), String>;

/// Runs every case, and lists what does not hold.
///
/// # Errors
/// The suite's own test data could not be made.
pub async fn run<F: EngineFactory>(factory: &F) -> Result<Vec<Violation>, String> {
    let fixture = Arc::new(Fixture::make().await?);
    let mut violations = Vec::new();
    let mut note = |case: &'static str, verdict: Verdict| {
        if let Err(what) = verdict {
            violations.push(Violation { case, what });
        }
    };
    note("N1 adopt", cases::n1_adopt(factory, &fixture).await);
    note("N1 nothing to adopt", cases::n1_nothing_to_adopt(factory, &fixture).await);
    note("N2 capacity", cases::n2_capacity(factory, &fixture).await);
    note("N3 load cut off and repeated", cases::n3_cut_off_and_repeated(factory, &fixture).await);
    note("N3 load cut off and dropped", cases::n3_cut_off_and_dropped(factory, &fixture).await);
    note("N4 verify", cases::n4_verify(factory, &fixture).await);
    note("N5 swap to none", cases::n5_swap_to_none(factory, &fixture).await);
    note("N6 drop", cases::n6_drop(factory, &fixture).await);
    note("N6 drop under a read", cases::n6_drop_under_a_read(factory, &fixture).await);
    note("N7 every step twice", cases::n7_every_step_twice(factory, &fixture).await);
    note("N7 stores apart", cases::n7_stores_are_apart(factory, &fixture).await);
    note("N8 restart", cases::n8_restart(factory, &fixture).await);
    note("N8 everything lost", cases::n8_everything_lost(factory, &fixture).await);
    note("N8 restart in mid-load", cases::n8_restart_in_mid_load(factory, &fixture).await);
    Ok(violations)
}
