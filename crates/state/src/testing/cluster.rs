//! Several servers on one store, with an injected clock and named points, in one process and without a port.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::ManualClock;
use crate::driver::{Faults, StoredState};
use crate::error::OpenError;
use crate::record::IndexDeclaration;
use crate::revision::Timestamp;
use crate::state::{State, StateOptions};

use super::history::{Expectation, Recorder, check};
use super::linter::{Violation, lint};
use super::points::Points;
use super::store::{StoreFactory, StoreKind, TestStore};

/// Where a cluster's clock stands at first: 2026-01-01 00:00 UTC.
pub const START: Timestamp = Timestamp(1_767_225_600_000);

type Configure = Arc<dyn Fn(usize, StateOptions) -> StateOptions + Send + Sync>;

/// A cluster being put together.
pub struct ClusterBuilder {
    servers: usize,
    configure: Configure,
}

impl ClusterBuilder {
    /// So many servers, opened one after the other.
    #[must_use]
    pub fn servers(mut self, servers: usize) -> Self {
        self.servers = servers;
        self
    }

    /// Changes the options of each server (records, budgets, the initial state …).
    #[must_use]
    pub fn configure(
        mut self,
        configure: impl Fn(usize, StateOptions) -> StateOptions + Send + Sync + 'static,
    ) -> Self {
        self.configure = Arc::new(configure);
        self
    }

    /// Opens the servers on a fresh store.
    ///
    /// # Panics
    /// If a server can't be opened.
    pub async fn open(self, factory: &dyn StoreFactory) -> Cluster {
        let clock = ManualClock::new(START);
        let store = factory.make(clock.clone()).await;
        let recorder = Recorder::in_memory();
        let records = Vec::new();
        let mut cluster = Cluster { servers: Vec::new(), configure: self.configure, store, clock, recorder, records };
        for index in 0..self.servers {
            cluster.add(index).await;
        }
        cluster
    }
}

/// Several servers on one store. Their clock stands still until a test steps it.
///
/// Dropping it kills the servers; [`Cluster::finish`] closes them, and checks that none is still held at a point.
pub struct Cluster {
    // Before the store, which they hold open.
    servers: Vec<Server>,
    configure: Configure,
    store: Box<dyn TestStore>,
    clock: ManualClock,
    recorder: Recorder,
    records: Vec<IndexDeclaration>,
}

struct Server {
    name: String,
    state: Option<State>,
    points: Points,
    faults: Faults,
}

impl Cluster {
    /// Puts a cluster together.
    #[must_use]
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder { servers: 1, configure: Arc::new(|_, options| options) }
    }

    /// So many servers on a store in memory.
    pub async fn memory(servers: usize) -> Cluster {
        Cluster::builder().servers(servers).open(&StoreKind::Memory).await
    }

    /// So many servers on a SQLite file in a folder of its own.
    pub async fn sqlite(servers: usize) -> Cluster {
        Cluster::builder().servers(servers).open(&StoreKind::Sqlite).await
    }

    /// Options as a test wants them: short waits by the machine's clock, since only failures wait.
    fn options(&self, index: usize, name: &str, points: Points) -> StateOptions {
        let mut options = StateOptions::new(name);
        options.poll = Duration::from_millis(50);
        options.entities_behind = Duration::from_millis(100);
        options.transaction_budget = Duration::from_secs(2);
        options.points = points;
        options.recorder = self.recorder.clone();
        (self.configure)(index, options)
    }

    async fn add(&mut self, index: usize) {
        let name = format!("server-{index}");
        let server = Server { points: Points::new(&*name), faults: Faults::new(), state: None, name };
        self.servers.push(server);
        self.restart(index).await;
    }

    /// The state of a server.
    ///
    /// # Panics
    /// If it is not running.
    #[must_use]
    pub fn server(&self, index: usize) -> &State {
        let server = &self.servers[index];
        server.state.as_ref().unwrap_or_else(|| panic!("{} is not running", server.name))
    }

    /// The states of all servers that run.
    #[must_use]
    pub fn running(&self) -> Vec<State> {
        self.servers.iter().filter_map(|server| server.state.clone()).collect()
    }

    /// How many servers there are, running or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether there is no server.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// The points of a server; the same ones through its restarts.
    #[must_use]
    pub fn points(&self, index: usize) -> &Points {
        &self.servers[index].points
    }

    /// The switch between a server and the store.
    #[must_use]
    pub fn faults(&self, index: usize) -> &Faults {
        &self.servers[index].faults
    }

    /// The clock of the store, and so of all servers.
    #[must_use]
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// The store, to do to it what no server can.
    #[must_use]
    pub fn store(&self) -> &dyn TestStore {
        &*self.store
    }

    /// Everything that is stored, as of now.
    ///
    /// # Panics
    /// If the store can't be read.
    pub async fn stored(&self) -> StoredState {
        match self.store.driver(Faults::new()).stored().await {
            Ok(stored) => stored,
            Err(error) => panic!("the store can't be read: {error}"),
        }
    }

    /// Ends a server at once, as if its process had died: nothing is drained, handed back or answered.
    pub fn kill(&mut self, index: usize) {
        if let Some(state) = self.servers[index].state.take() {
            state.kill();
        }
    }

    /// Closes a server in order.
    pub async fn close(&mut self, index: usize) {
        if let Some(state) = self.servers[index].state.take() {
            state.close().await;
        }
    }

    /// Starts a server that was killed or closed, under its name.
    ///
    /// # Panics
    /// If it can't be opened.
    pub async fn restart(&mut self, index: usize) {
        if let Err(error) = self.try_restart(index).await {
            panic!("{} can't be opened: {error}", self.servers[index].name);
        }
    }

    /// As [`Cluster::restart`], where that may fail.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn try_restart(&mut self, index: usize) -> Result<(), OpenError> {
        self.kill(index);
        let server = &self.servers[index];
        let options = self.options(index, &server.name, server.points.clone());
        let driver = self.store.driver(server.faults.clone());
        self.records.clone_from(&options.records);
        self.servers[index].state = Some(State::open(driver, options).await?);
        Ok(())
    }

    /// Adds a server; says its index.
    pub async fn join(&mut self) -> usize {
        let index = self.servers.len();
        self.add(index).await;
        index
    }

    /// Kills every server and opens the store anew, as after a restart of the whole machine. No server runs then.
    ///
    /// # Panics
    /// If the store can't be opened.
    pub async fn restart_store(&mut self) {
        for index in 0..self.servers.len() {
            self.kill(index);
        }
        if let Err(error) = self.store.reopen().await {
            panic!("the store can't be opened again: {error}");
        }
    }

    /// A server opened for one look: its tree comes from the store alone.
    ///
    /// # Panics
    /// If it can't be opened.
    pub async fn latecomer(&self) -> State {
        let mut options = self.options(usize::MAX, "latecomer", Points::none());
        options.initialise = None;
        match State::open(self.store.driver(Faults::new()), options).await {
            Ok(state) => state,
            Err(error) => panic!("the latecomer can't be opened: {error}"),
        }
    }

    /// What does not hold of what is stored now, by the linter.
    pub async fn lint(&self) -> Vec<Violation> {
        lint(&self.stored().await, &self.records)
    }

    /// Closes the servers in order, and checks what is stored and what cluster hooks did. Call it at the end of a test.
    ///
    /// # Panics
    /// If a server is still held at a point (naming both), and on what the linter or the history checker finds.
    pub async fn finish(mut self) {
        for server in &self.servers {
            let held = server.points.held();
            assert!(held.is_empty(), "{} is still held at {held:?} at the end of the test", server.name);
        }
        for index in 0..self.servers.len() {
            self.close(index).await;
        }
        let stored = self.stored().await;
        let found = lint(&stored, &self.records);
        assert!(found.is_empty(), "the linter found:\n{}", lines(&found));
        let history = self.recorder.lines();
        if !history.is_empty() {
            // What waits at the end of a test may wait.
            let expectation = Expectation { stored: Some(stored), may_wait: true, ..Expectation::default() };
            let found = check(&history, &expectation);
            assert!(found.is_empty(), "the history checker found:\n{}", lines(&found));
        }
    }
}

fn lines(found: &[impl std::fmt::Display]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for index in 0..self.servers.len() {
            self.kill(index);
        }
    }
}
