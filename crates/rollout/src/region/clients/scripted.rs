//! Embedded clients played by a script, for tests: each takes a step when it is told to, and keeps
//! the rules that real ones keep.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{ClientOrders, EmbeddedClients};
use crate::engine::StoreKey;
use crate::entities::{EmbeddedCounts, EmbeddedPermission};

/// One client, for one store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScriptedClient {
    /// Versions that it has loaded.
    pub ingested: BTreeSet<u64>,
    /// The version that it serves.
    pub serving: Option<u64>,
    /// Loads that it has begun, one entry each.
    pub loads: Vec<u64>,
    /// Whether it has stopped counting.
    pub dead: bool,
}

impl ScriptedClient {
    /// What it does on orders by itself: lets go what it may not have, and serves the newest version
    /// that it may serve and has, else what the region serves if it has that.
    fn obey(&mut self, orders: &ClientOrders) {
        let may_serve = |version: &u64| {
            orders.versions.get(version).is_some_and(|order| order.permission == EmbeddedPermission::Serve)
        };
        let newest = self.ingested.iter().rev().copied().find(may_serve);
        let region = orders.region_serves.filter(|version| self.ingested.contains(version));
        let keeps = self.serving.filter(|version| orders.versions.contains_key(version));
        self.serving = newest.or(keeps).or(region).or(self.serving.filter(|_| orders.region_serves.is_some()));
        let serving = self.serving;
        self.ingested.retain(|version| orders.versions.contains_key(version) || serving == Some(*version));
    }
}

#[derive(Debug, Default)]
struct Inner {
    clients: BTreeMap<(StoreKey, String), ScriptedClient>,
    orders: BTreeMap<StoreKey, ClientOrders>,
    /// Every order that was not the same as the one before it.
    history: Vec<(StoreKey, ClientOrders)>,
}

/// The clients of a region, played.
#[derive(Clone, Debug)]
pub struct ScriptedClients {
    inner: Arc<Mutex<Inner>>,
    changes: watch::Sender<u64>,
}

impl Default for ScriptedClients {
    fn default() -> Self {
        ScriptedClients { inner: Arc::default(), changes: watch::Sender::new(0) }
    }
}

impl ScriptedClients {
    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A client registers.
    pub fn register(&self, store: &StoreKey, client: &str) {
        self.inner.lock().clients.entry((store.clone(), client.to_owned())).or_default();
        self.changed();
    }

    /// A client stops counting.
    pub fn die(&self, store: &StoreKey, client: &str) {
        if let Some(client) = self.inner.lock().clients.get_mut(&(store.clone(), client.to_owned())) {
            client.dead = true;
        }
        self.changed();
    }

    /// A client loads the version, if it may. Answers whether it did.
    pub fn ingest(&self, store: &StoreKey, client: &str, version: u64) -> bool {
        let mut inner = self.inner.lock();
        let orders = inner.orders.get(store).cloned().unwrap_or_default();
        let allowed = orders.versions.contains_key(&version) || orders.region_serves == Some(version);
        let Some(client) = inner.clients.get_mut(&(store.clone(), client.to_owned())) else {
            return false;
        };
        if allowed && client.ingested.insert(version) {
            client.loads.push(version);
        }
        client.obey(&orders);
        drop(inner);
        self.changed();
        allowed
    }

    /// A client as it is now.
    #[must_use]
    pub fn client(&self, store: &StoreKey, client: &str) -> Option<ScriptedClient> {
        self.inner.lock().clients.get(&(store.clone(), client.to_owned())).cloned()
    }

    /// What the clients of a store were told last.
    #[must_use]
    pub fn orders(&self, store: &StoreKey) -> Option<ClientOrders> {
        self.inner.lock().orders.get(store).cloned()
    }

    /// Everything that was said, without repetitions.
    #[must_use]
    pub fn history(&self, store: &StoreKey) -> Vec<ClientOrders> {
        let inner = self.inner.lock();
        inner.history.iter().filter(|(of, _)| of == store).map(|(_, orders)| orders.clone()).collect()
    }
}

#[async_trait]
impl EmbeddedClients for ScriptedClients {
    async fn order(&self, store: &StoreKey, orders: Option<ClientOrders>) {
        let mut inner = self.inner.lock();
        let orders = orders.unwrap_or_default();
        if inner.orders.get(store) == Some(&orders) {
            return;
        }
        inner.orders.insert(store.clone(), orders.clone());
        inner.history.push((store.clone(), orders.clone()));
        for ((of, _), client) in &mut inner.clients {
            if of == store {
                client.obey(&orders);
            }
        }
        drop(inner);
        self.changed();
    }

    fn counts(&self, store: &StoreKey) -> EmbeddedCounts {
        let inner = self.inner.lock();
        let mut counts = EmbeddedCounts::default();
        for ((of, _), client) in &inner.clients {
            if of != store {
                continue;
            }
            if client.dead {
                counts.dead += 1;
                continue;
            }
            counts.live += 1;
            for version in &client.ingested {
                counts.versions.entry(*version).or_default().ingested += 1;
            }
            if let Some(version) = client.serving {
                counts.versions.entry(version).or_default().serving += 1;
            }
        }
        counts
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
