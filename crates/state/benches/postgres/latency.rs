//! How soon: from a commit to the start of its hook, and from a change among the servers to slots that run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::{ClusterHook, Outcome, Run, State, StateOptions};
use tokio::runtime::Runtime;

use crate::items::{self, Empty, HOOK, finished, put, registration};
use crate::open;
use crate::server::Server;

/// How often servers are killed, join and leave.
const ROUNDS: u64 = 7;
/// The keys that have a run while a server is killed.
const HELD_KEYS: u64 = 256;
const LEASE: Duration = Duration::from_secs(1);

/// From the answer to the writer to the start of the hook, at 100 changes a second.
pub(crate) async fn commit_to_start(server: &Server, elsewhere: bool) {
    let (store, _) = server.store();
    let (writer, runner) = (open(&store, "writer").await, open(&store, "runner").await);
    let hook = Arc::new(Empty::default());
    let at = if elsewhere { &runner } else { &writer };
    let handle = at.register(registration(), 64, hook.clone()).await.unwrap();
    let waits = items::commit_to_start(&writer, &hook).await;
    let (place, wanted) =
        if elsewhere { ("on another server", "500 µs, 2 ms") } else { ("on the same server", "100 µs, 1 ms") };
    println!("commit to start {place}: {waits}; wanted: {wanted}");
    drop(handle);
    writer.close().await;
    runner.close().await;
}

/// Says which runs started when, and ends none of them while it is told to hold them.
#[derive(Default)]
struct Holding {
    started: Mutex<BTreeMap<String, Instant>>,
    holds: AtomicBool,
}

#[async_trait]
impl ClusterHook for Holding {
    async fn run(&self, run: Run) -> Outcome {
        self.started.lock().insert(run.key().as_str().to_owned(), Instant::now());
        if self.holds.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        Outcome::Done
    }
}

/// A server on a runtime of its own, which can be taken away with all that runs on it: what it leaves is what a killed
/// process leaves.
struct Mortal {
    runtime: Runtime,
    state: State,
    hook: Arc<Holding>,
}

impl Mortal {
    async fn start(store: &PostgresStore, name: String) -> Mortal {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let hook = Arc::new(Holding::default());
        let (store, own) = (store.clone(), hook.clone());
        let starting = runtime.spawn(async move {
            let state = open_with_lease(&store, name).await;
            // The registration ends with its handle, and this server with its runtime.
            std::mem::forget(state.register(registration(), 1_024, own).await.unwrap());
            state
        });
        let state = starting.await.unwrap();
        Mortal { runtime, state, hook }
    }

    fn kill(self) {
        self.runtime.shutdown_background();
        drop(self.state);
    }
}

async fn open_with_lease(store: &PostgresStore, name: String) -> State {
    let options = StateOptions { lease: LEASE, ..StateOptions::new(name) };
    State::open(store.driver(), options).await.unwrap()
}

/// Waits until the slots are spread as is said.
async fn until_spread(state: &State, fits: impl Fn(&BTreeMap<String, usize>) -> bool) {
    loop {
        if fits(&state.cluster().await.unwrap().spread(HOOK)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn is_even(spread: &BTreeMap<String, usize>, servers: usize) -> bool {
    let (least, most) = (spread.values().min().copied().unwrap_or(0), spread.values().max().copied().unwrap_or(0));
    spread.len() == servers && least > 0 && most - least <= 1
}

/// How long until a killed server's runs start elsewhere, a new one has its share, and a drained one has handed over.
pub(crate) async fn hand_over(server: &Server) {
    // A short lease allows for short locks only.
    let (store, _) = server.store_with(|options| PostgresOptions { lock_limit: LEASE / 4, ..options });
    let stays = open_with_lease(&store, "stays".to_owned()).await;
    let hook = Arc::new(Holding::default());
    let handle = stays.register(registration(), 1_024, hook.clone()).await.unwrap();
    let (mut killed, mut joined, mut drained) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let doomed = Mortal::start(&store, format!("doomed-{round}")).await;
        until_spread(&stays, |spread| is_even(spread, 2)).await;
        doomed.hook.holds.store(true, Ordering::Relaxed);
        hook.started.lock().clear();
        put(&stays, 0, HELD_KEYS, round * 10 + 1).await;
        let all_started = || (hook.started.lock().len() + doomed.hook.started.lock().len()) as u64 == HELD_KEYS;
        while !all_started() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let keys: Vec<String> = doomed.hook.started.lock().keys().cloned().collect();
        assert!(!keys.is_empty());
        let at = Instant::now();
        doomed.kill();
        finished(&stays).await;
        let started = hook.started.lock().clone();
        killed.extend(keys.iter().map(|key| started[key].duration_since(at)).max());

        let at = Instant::now();
        let joins = Mortal::start(&store, format!("joins-{round}")).await;
        until_spread(&stays, |spread| is_even(spread, 2)).await;
        joined.push(at.elapsed());
        let at = Instant::now();
        let (state, leaving) = (joins.state.clone(), joins.state.clone());
        let closing = joins.runtime.spawn(async move { leaving.close().await });
        until_spread(&stays, |spread| spread.get("stays") == Some(&spread.values().sum())).await;
        drained.push(at.elapsed());
        closing.await.unwrap();
        drop(state);
        joins.kill();
    }
    let most = |times: &[Duration]| times.iter().max().copied().unwrap_or_default();
    println!(
        "killed server's {HELD_KEYS} runs start elsewhere, lease {LEASE:?}: at most {:?} of {ROUNDS}; wanted: 2 s",
        most(&killed)
    );
    println!("a server that starts has its share of slots: at most {:?} of {ROUNDS}; wanted: 2 s", most(&joined));
    println!(
        "a server that leaves has handed its slots over: at most {:?} of {ROUNDS}; wanted: 500 ms",
        most(&drained)
    );
    drop(handle);
    stays.close().await;
}
