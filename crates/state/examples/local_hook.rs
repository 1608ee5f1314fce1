//! A local hook keeps an index of its own in memory on every server: which stores belong to whom. It starts with what
//! exists, misses nothing and never holds up a write.
//!
//! Run with `cargo run --release -p tidegate-state --example local_hook`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_state::driver::memory::MemoryStore;
use tidegate_state::{
    BoxError, Entity, LocalCall, Ref, Root, Scope, State, StateOptions, Transaction, TransactionError,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Store {
    owner: String,
}
impl Entity for Store {
    const COLLECTION: &'static str = "stores";
    type Parent = Root;
    type Id = String;
}

/// Owner to stores, kept in step with the tree by a local hook.
#[derive(Clone, Default)]
struct ByOwner(Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>);

impl ByOwner {
    fn follow(&self, call: &LocalCall) -> Result<(), BoxError> {
        let id = Ref::<Store>::from_path(&call.change.path)?.id();
        let mut index = self.0.lock().map_err(|_| "the index is poisoned")?;
        if let Some(before) = call.change.before::<Store>()?
            && let Some(stores) = index.get_mut(&before.owner)
        {
            stores.remove(&id);
        }
        if let Some(after) = call.change.after::<Store>()? {
            index.entry(after.owner.clone()).or_default().insert(id);
        }
        Ok(())
    }

    fn stores_of(&self, owner: &str) -> Vec<String> {
        let index = self.0.lock().map(|index| index.get(owner).cloned().unwrap_or_default());
        index.unwrap_or_default().into_iter().collect()
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let store = MemoryStore::new();
    let one = State::open(store.driver(), StateOptions::new("one")).await?;
    let other = State::open(store.driver(), StateOptions::new("other")).await?;
    put(&one, "airports", "kim").await?;

    // The hook runs on the other server. It is called for `airports`, which exists, and then for each change.
    let index = ByOwner::default();
    let own = index.clone();
    let hook = move |call: LocalCall| {
        let followed = own.follow(&call);
        async move { followed }
    };
    let handle = other.local_hook("by-owner", Scope::collection::<Store>(), hook).await?;

    put(&one, "runways", "kim").await?;
    put(&one, "airports", "lee").await?;
    other.flush().await?;
    // A hook follows on a task of its own, so a reader who needs to be sure waits for what it wants to see.
    while index.stores_of("lee").is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    println!("kim has {:?}, lee has {:?}", index.stores_of("kim"), index.stores_of("lee"));

    drop(handle);
    one.close().await;
    other.close().await;
    Ok(())
}

async fn put(state: &State, id: &str, owner: &str) -> Result<(), BoxError> {
    let entity: Ref<Store> = Ref::root(id)?;
    let store = Store { owner: owner.to_owned() };
    let write = move |tx: &mut Transaction| tx.put(&entity, store.clone());
    state.write::<_, TransactionError, _>(write).await?;
    Ok(())
}
