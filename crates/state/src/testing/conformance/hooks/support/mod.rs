//! What the K cases share.

mod entities;
mod probe;
mod world;

use std::sync::LazyLock;
use std::time::Duration;

use super::super::awkward;

pub(crate) use entities::{Effect, Ledger, Store, Trace, Version, counted, effect, per_store, store, traced};
pub(crate) use probe::{Probe, Seen};
pub(crate) use world::World;

/// How long a test waits for what is about to happen. Only a failure takes as long.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A limit that is to pass, though not before what has nothing to wait for is done.
pub(crate) const SHORT: Duration = Duration::from_secs(1);

/// The key of a store as a case names it, whether the case's variant makes its id awkward or not.
pub(crate) fn plain_key(key: &str) -> &str {
    static SUFFIX: LazyLock<String> = LazyLock::new(|| key_of(&awkward("")));
    key.strip_suffix(SUFFIX.as_str()).unwrap_or(key)
}

/// The key that a store's id makes: the id as it is in its path.
fn key_of(id: &str) -> String {
    store(id).path().as_str().split('/').nth(2).unwrap().to_owned()
}
