//! What the benchmarks of cluster hooks write, and the hook that runs for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate_state::{
    ClusterHook, Entity, Outcome, Ref, Registration, Root, Run, State, Transaction, TransactionError, WaitForHooks,
    WriteError,
};

pub(crate) const KEYS: u64 = 10_000;
pub(crate) const HOOK: &str = "empty";
const LONG: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Item {
    pub(crate) value: u64,
}
impl Entity for Item {
    const COLLECTION: &'static str = "items";
    type Parent = Root;
    type Id = u64;
}

/// Does nothing but count, and note when it started.
#[derive(Default)]
pub(crate) struct Empty {
    pub(crate) runs: AtomicU64,
    starts: Mutex<Vec<Instant>>,
    note: AtomicBool,
}

#[async_trait]
impl ClusterHook for Empty {
    async fn run(&self, _run: Run) -> Outcome {
        if self.note.load(Ordering::Relaxed) {
            self.starts.lock().push(Instant::now());
        }
        self.runs.fetch_add(1, Ordering::Relaxed);
        Outcome::Done
    }
}

pub(crate) fn registration() -> Registration {
    Registration::new(HOOK, 1).on("/items/{item}").key("{item}")
}

pub(crate) async fn put(state: &State, from: u64, count: u64, value: u64) {
    let written: Result<_, WriteError<TransactionError>> = state
        .write(move |tx: &mut Transaction| {
            for number in from..from + count {
                tx.put(&Ref::<Item>::root(number % KEYS)?, Item { value })?;
            }
            Ok(())
        })
        .await;
    written.unwrap();
}

pub(crate) async fn finished(state: &State) {
    assert!(state.wait_for_hooks(WaitForHooks::all().limit(LONG)).await.unwrap().finished);
}

/// How long each of 500 changes, 100 a second, waited from the answer to its writer to the start of its hook, which runs where
/// it is registered; the shortest first.
pub(crate) async fn commit_to_start(writer: &State, hook: &Empty) -> Waits {
    put(writer, 0, 1, 1).await;
    finished(writer).await;
    hook.note.store(true, Ordering::Relaxed);
    let mut committed = Vec::new();
    for number in 0..500 {
        put(writer, number, 1, number + 10).await;
        committed.push(Instant::now());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    finished(writer).await;
    let starts = hook.starts.lock().clone();
    assert_eq!(starts.len(), committed.len());
    let mut waits: Vec<Duration> = committed
        .iter()
        .zip(&starts)
        .map(|(committed, started)| started.saturating_duration_since(*committed))
        .collect();
    waits.sort_unstable();
    Waits(waits)
}

pub(crate) struct Waits(Vec<Duration>);

impl std::fmt::Display for Waits {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |part: f64| self.0[((self.0.len() - 1) as f64 * part) as usize];
        write!(formatter, "p50 {:?}, p99 {:?}, most {:?}", at(0.5), at(0.99), at(1.0))
    }
}
