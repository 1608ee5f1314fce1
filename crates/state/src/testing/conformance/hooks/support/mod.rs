//! What the K cases share.

mod entities;
mod probe;
mod world;

use std::time::Duration;

pub(crate) use entities::{Effect, Ledger, Store, Trace, Version, counted, effect, per_store, store, traced};
pub(crate) use probe::{Probe, Seen};
pub(crate) use world::World;

/// How long a test waits for what is about to happen. Only a failure takes as long.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
