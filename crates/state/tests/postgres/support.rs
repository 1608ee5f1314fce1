//! Servers on one schema, as separate processes would be: the clock is the database's, and limits are short.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::SeedableRng;
use serde::{Deserialize, Serialize};
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::testing::linter::lint;
use tidegate_state::testing::points::Points;
use tidegate_state::testing::postgres::PostgresServer;
use tidegate_state::testing::proxy::Proxy;
use tidegate_state::{
    Committed, Entity, Ref, Revision, Root, State, StateOptions, Transaction, TransactionError, WriteError,
};

/// How long a test waits for what is about to happen. Only a failure takes as long.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// How long a transaction that does not move keeps its locks here.
pub(crate) const LOCK_LIMIT: Duration = Duration::from_millis(500);

/// A lease, as short as the lock limit allows for.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

pub(crate) const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counter {
    pub(crate) n: i64,
}
impl Entity for Counter {
    const COLLECTION: &'static str = "counters";
    type Parent = Root;
    type Id = String;
}

pub(crate) fn counter(id: &str) -> Ref<Counter> {
    Ref::root(id).unwrap()
}

/// The server that this process's tests share.
pub(crate) fn shared() -> &'static PostgresServer {
    tidegate_state::testing::postgres::shared().unwrap()
}

/// Limits as the cases of this module need them.
pub(crate) fn options(schema: &str) -> PostgresOptions {
    PostgresOptions {
        lock_limit: LOCK_LIMIT,
        answer_limit: Duration::from_secs(3),
        connect_limit: Duration::from_secs(3),
        keepalive: Duration::from_secs(1),
        mend_limit: Duration::from_secs(5),
        ..PostgresOptions::in_schema(schema)
    }
}

pub(crate) fn store(url: &str, schema: &str) -> PostgresStore {
    PostgresStore::new(url, options(schema)).unwrap()
}

pub(crate) async fn proxy_to(server: &PostgresServer) -> Proxy {
    Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()))).await.unwrap()
}

/// Opens a server of this name. Its points are for the test to hold.
pub(crate) async fn open(store: &PostgresStore, name: &str) -> (State, Points) {
    open_with(store, name, |options| options).await
}

pub(crate) async fn open_with(
    store: &PostgresStore,
    name: &str,
    configure: impl FnOnce(StateOptions) -> StateOptions,
) -> (State, Points) {
    let points = Points::new(name);
    let mut options = StateOptions::new(name);
    options.lease = LEASE;
    options.poll = POLL;
    options.entities_behind = Duration::from_millis(100);
    options.points = points.clone();
    (State::open(store.driver(), configure(options)).await.unwrap(), points)
}

/// Where a case draws from.
pub(crate) fn random() -> rand::rngs::StdRng {
    let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    // Shown only when the case fails.
    println!("seed: TIDEGATE_SEED={seed}");
    rand::rngs::StdRng::seed_from_u64(seed)
}

pub(crate) type Written<T> = Result<Committed<T>, WriteError<TransactionError>>;

pub(crate) async fn put(state: &State, id: &str, n: i64) -> Written<()> {
    let target = counter(id);
    state.write(move |tx: &mut Transaction| tx.put(&target, Counter { n })).await
}

pub(crate) async fn increment(state: &State, id: &str) -> Written<i64> {
    let target = counter(id);
    let write = state.write(move |tx: &mut Transaction| {
        let n = tx.get(&target)?.map_or(0, |counter| counter.n) + 1;
        tx.put(&target, Counter { n })?;
        Ok(n)
    });
    write.await
}

pub(crate) fn value(state: &State, id: &str) -> Option<i64> {
    state.snapshot().get(&counter(id)).unwrap().map(|counter| counter.n)
}

/// Waits until a server has applied a revision by itself.
pub(crate) async fn arrives(state: &State, revision: Revision) {
    state.wait_for(revision, LIMIT).await.unwrap();
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs SQL beside everyone.
pub(crate) async fn sql(store: &PostgresStore, text: &str) {
    store.tamper_sql(text).await.unwrap();
}

/// Closes the servers, and checks that all of them and a latecomer have one tree, and that what is stored is sound.
pub(crate) async fn agree_and_close(store: &PostgresStore, states: Vec<State>) {
    let (latecomer, _) = open(store, "latecomer").await;
    let expected = latecomer.snapshot();
    for state in &states {
        state.flush_within(LIMIT).await.unwrap();
        let snapshot = state.snapshot();
        assert_eq!(snapshot.revision(), expected.revision(), "{}", state.server());
        let counters = |snapshot: &tidegate_state::Snapshot| {
            snapshot
                .roots::<Counter>()
                .map(|found| found.unwrap())
                .map(|(path, counter)| (path.to_string(), counter.n))
                .collect::<Vec<_>>()
        };
        assert_eq!(counters(&snapshot), counters(&expected), "{}", state.server());
    }
    latecomer.close().await;
    for state in states {
        state.close().await;
    }
    let found = lint(&store.driver().stored().await.unwrap(), &[]);
    assert!(found.is_empty(), "{found:#?}");
}
