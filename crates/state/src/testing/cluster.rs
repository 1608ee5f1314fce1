//! Several servers on one store, with an injected clock and named points, in one process and without a port.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::ManualClock;
use crate::driver::{Driver, Faults, Meta, ServerRow, SlotRow, StoredState};
use crate::error::OpenError;
use crate::record::IndexDeclaration;
use crate::revision::Timestamp;
use crate::state::{RunAhead, State, StateOptions};

use super::history::{Expectation, HistoryEvent, Recorder, check};
use super::linter::{Violation, lint};
use super::placement::Placement;
use super::points::{Points, name as point};
use super::store::{StoreFactory, StoreKind, TestStore};

/// Where a cluster's clock stands at first: 2026-01-01 00:00 UTC.
pub const START: Timestamp = Timestamp(1_767_225_600_000);

/// What does not happen within a test.
const LONG: Duration = Duration::from_secs(3_600);

type Configure = Arc<dyn Fn(usize, StateOptions) -> StateOptions + Send + Sync>;

/// The variable that gives a seed.
pub(super) const SEED: &str = "STATE_TEST_SEED";

/// The seed that is given, or one that is drawn.
pub(super) fn seed() -> u64 {
    let given = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(rand::random::<u64>)
}

/// A cluster being put together.
pub struct ClusterBuilder {
    servers: usize,
    seed: u64,
    entities_held_after: Option<usize>,
    configure: Configure,
}

impl ClusterBuilder {
    /// So many servers, opened one after the other.
    #[must_use]
    pub fn servers(mut self, servers: usize) -> Self {
        self.servers = servers;
        self
    }

    /// What [`Cluster::seed`] says, in place of what is given or drawn.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Each server writes the entities so many times, and no more: who is opened later starts from an old table and a long
    /// log.
    #[must_use]
    pub fn entities_held_after(mut self, times: Option<usize>) -> Self {
        self.entities_held_after = times;
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
        // Shown only when the test fails.
        println!("{SEED}={}", self.seed);
        let clock = ManualClock::new(START);
        let store = factory.make(clock.clone()).await;
        let mut cluster = Cluster {
            servers: Vec::new(),
            configure: self.configure,
            onlooker: Some(store.driver(Faults::new())),
            store,
            clock,
            recorder: Recorder::in_memory(),
            placement: Placement::new(),
            records: Vec::new(),
            seed: self.seed,
            entities_held_after: self.entities_held_after,
        };
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
    pub(super) servers: Vec<Server>,
    /// Looks at what is stored, and is of no server; none while the store is opened anew.
    onlooker: Option<Arc<dyn Driver>>,
    configure: Configure,
    store: Box<dyn TestStore>,
    pub(super) clock: ManualClock,
    recorder: Recorder,
    pub(super) placement: Placement,
    records: Vec<IndexDeclaration>,
    seed: u64,
    entities_held_after: Option<usize>,
}

pub(super) struct Server {
    pub(super) name: String,
    pub(super) state: Option<State>,
    pub(super) points: Points,
    pub(super) faults: Faults,
    pub(super) lease: Duration,
}

impl Cluster {
    /// Puts a cluster together.
    #[must_use]
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            servers: 1,
            seed: seed(),
            entities_held_after: None,
            configure: Arc::new(|_, options| options),
        }
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
        // Every second server, of which the seed decides, runs closures ahead wherever it can.
        if ((self.seed >> 12) ^ index as u64).is_multiple_of(2) {
            options.run_ahead = RunAhead::Always;
        }
        options.points = points;
        options.placement = self.placement.clone();
        options.recorder = self.recorder.clone();
        (self.configure)(index, options)
    }

    async fn add(&mut self, index: usize) {
        let name = format!("server-{index}");
        let (points, faults) = (Points::new(&*name), Faults::new());
        let server = Server { points, faults, state: None, lease: Duration::ZERO, name };
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

    /// Where a test draws its workload and its faults from. It is printed when the test fails; given as the variable
    /// `STATE_TEST_SEED` it is the same again.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
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

    fn onlooker(&self) -> &Arc<dyn Driver> {
        self.onlooker.as_ref().expect("the store is open but for the moment in which it is opened anew")
    }

    /// Who is in the cluster and leases what, as it is stored.
    ///
    /// # Panics
    /// If the store can't be read.
    pub async fn leases(&self) -> (Vec<ServerRow>, Vec<SlotRow>) {
        match self.onlooker().cluster().await {
            Ok(leases) => leases,
            Err(error) => panic!("the store can't be read: {error}"),
        }
    }

    /// What the store says of itself: its epoch, its head, how far it is compacted.
    ///
    /// # Panics
    /// If the store can't be read.
    pub async fn meta(&self) -> Meta {
        match self.onlooker().meta().await {
            Ok(meta) => meta,
            Err(error) => panic!("the store can't be read: {error}"),
        }
    }

    /// Everything that is stored, as of now.
    ///
    /// # Panics
    /// If the store can't be read.
    pub async fn stored(&self) -> StoredState {
        match self.onlooker().stored().await {
            Ok(stored) => stored,
            Err(error) => panic!("the store can't be read: {error}"),
        }
    }

    /// Ends a server at once, as if its process had died: nothing is drained, handed back or answered.
    pub fn kill(&mut self, index: usize) {
        if let Some(state) = self.servers[index].state.take() {
            state.kill();
            let what = format!("{} is killed", self.servers[index].name);
            self.recorder.write("test", HistoryEvent::Fault { what });
        }
    }

    /// Closes a server in order.
    pub async fn close(&mut self, index: usize) {
        if self.servers[index].state.is_some() {
            self.closing(index).await;
            self.servers[index].state = None;
        }
    }

    /// Closes a server in order, beside what a test does meanwhile. It counts as running until [`Cluster::close`] is called too,
    /// or [`Cluster::restart`].
    ///
    /// # Panics
    /// If it is not running.
    pub fn closing(&self, index: usize) -> impl Future<Output = ()> + Send + use<> {
        self.servers[index].points.let_go(point::UPKEEP_BEFORE_ENTITIES);
        let state = self.server(index).clone();
        async move { state.close().await }
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
        if let Some(times) = self.entities_held_after {
            server.points.hold_after(point::UPKEEP_BEFORE_ENTITIES, times);
        }
        let options = self.options(index, &server.name, server.points.clone());
        let driver = self.store.driver(server.faults.clone());
        self.records.clone_from(&options.records);
        self.servers[index].lease = options.lease;
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
        self.onlooker = None;
        if let Err(error) = self.store.reopen().await {
            panic!("the store can't be opened again: {error}");
        }
        self.onlooker = Some(self.store.driver(Faults::new()));
    }

    /// A server opened for one look: its tree comes from the store alone.
    ///
    /// # Panics
    /// If it can't be opened.
    pub async fn latecomer(&self) -> State {
        let mut options = self.options(usize::MAX, "latecomer", Points::none());
        options.initialise = None;
        // It only looks.
        options.entities_behind = LONG;
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
        // With a recorder of its own a test looks at the history itself.
        if history.iter().any(|line| !matches!(line.event, HistoryEvent::Fault { .. })) {
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
