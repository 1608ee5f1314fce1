//! Embedded clients played by a script, for tests: each takes a step when it is told to, and keeps
//! the rules that real ones keep.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_state::{Clock, Timestamp};
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
    /// Versions that it has begun to load and not finished; they outlive its process, as what it has ingested does.
    pub unfinished: BTreeSet<u64>,
    /// Since when nothing was heard of it. It hears nothing either.
    pub silent_since: Option<Timestamp>,
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
        let may_load = |version: u64| orders.versions.contains_key(&version) || orders.region_serves == Some(version);
        self.unfinished.retain(|version| may_load(*version));
    }

    /// Its process starts again, with its disk: it serves what it served last, if that is whole, until it hears more.
    fn restart(&mut self) {
        self.serving = self.serving.filter(|version| self.ingested.contains(version));
    }
}

struct Inner {
    clock: Arc<dyn Clock>,
    grace: Duration,
    clients: BTreeMap<(StoreKey, String), ScriptedClient>,
    orders: BTreeMap<StoreKey, ClientOrders>,
    /// Every order that was not the same as the one before it.
    history: Vec<(StoreKey, ClientOrders)>,
}

/// The clients of a region, played.
#[derive(Clone)]
pub struct ScriptedClients {
    inner: Arc<Mutex<Inner>>,
    changes: watch::Sender<u64>,
}

impl std::fmt::Debug for ScriptedClients {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ScriptedClients").finish_non_exhaustive()
    }
}

impl ScriptedClients {
    /// No clients yet. One that is silent counts as dead after the grace time, by this clock.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, grace: Duration) -> Self {
        let inner = Inner { clock, grace, clients: BTreeMap::new(), orders: BTreeMap::new(), history: Vec::new() };
        ScriptedClients { inner: Arc::new(Mutex::new(inner)), changes: watch::Sender::new(0) }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A client registers.
    pub fn register(&self, store: &StoreKey, client: &str) {
        self.inner.lock().clients.entry((store.clone(), client.to_owned())).or_default();
        self.changed();
    }

    /// Nothing is heard of a client any more: its process has died, or it is cut off.
    pub fn fall_silent(&self, store: &StoreKey, client: &str) {
        let mut inner = self.inner.lock();
        let now = inner.clock.now();
        if let Some(client) = inner.clients.get_mut(&(store.clone(), client.to_owned())) {
            client.silent_since.get_or_insert(now);
        }
        drop(inner);
        self.changed();
    }

    /// A client that was silent starts again, with its disk and whether or not anyone can be reached.
    pub fn restart(&self, store: &StoreKey, client: &str) {
        if let Some(client) = self.inner.lock().clients.get_mut(&(store.clone(), client.to_owned())) {
            client.restart();
        }
    }

    /// A client that was silent registers again, and hears what holds now.
    pub fn register_again(&self, store: &StoreKey, client: &str) {
        let mut inner = self.inner.lock();
        let orders = inner.orders.get(store).cloned().unwrap_or_default();
        if let Some(client) = inner.clients.get_mut(&(store.clone(), client.to_owned())) {
            client.silent_since = None;
            client.obey(&orders);
        }
        drop(inner);
        self.changed();
    }

    /// A client begins to load a version, if it may, and does not finish. Answers whether it did.
    pub fn begin(&self, store: &StoreKey, client: &str, version: u64) -> bool {
        let mut inner = self.inner.lock();
        let orders = inner.orders.get(store).cloned().unwrap_or_default();
        let allowed = orders.versions.contains_key(&version) || orders.region_serves == Some(version);
        let Some(client) = inner.clients.get_mut(&(store.clone(), client.to_owned())) else {
            return false;
        };
        if allowed && !client.ingested.contains(&version) && client.unfinished.insert(version) {
            client.loads.push(version);
        }
        allowed
    }

    /// A client loads the version, if it may. Answers whether it did.
    pub fn ingest(&self, store: &StoreKey, client: &str, version: u64) -> bool {
        let mut inner = self.inner.lock();
        let orders = inner.orders.get(store).cloned().unwrap_or_default();
        let allowed = orders.versions.contains_key(&version) || orders.region_serves == Some(version);
        let Some(client) = inner.clients.get_mut(&(store.clone(), client.to_owned())) else {
            return false;
        };
        // What was begun is resumed, and is no load of its own.
        if allowed && client.ingested.insert(version) && !client.unfinished.remove(&version) {
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
            if of == store && client.silent_since.is_none() {
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
            let now = inner.clock.now();
            if client.silent_since.is_some_and(|since| now >= since.after(inner.grace)) {
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
