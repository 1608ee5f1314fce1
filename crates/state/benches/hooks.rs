//! Cluster hooks on SQLite with `synchronous=FULL`, acknowledged durably: a backlog, end to end, and commit to start.
//! Each figure is printed with the baseline of the same run that it is a ratio of.
//!
//! `cargo bench --bench hooks`
#![allow(clippy::unwrap_used)]

mod items;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::{State, StateOptions};

use self::items::{Empty, KEYS, finished, put, registration};

const BACKLOG: u64 = 200_000;
const WRITERS: u64 = 64;
/// How often what is compared is measured, by turns: a neighbour's noise then falls on both alike.
const ROUNDS: usize = 5;

async fn open(folder: &tempfile::TempDir, name: &str) -> State {
    let store = SqliteStore::open(folder.path().join(name), SqliteOptions::default()).unwrap();
    State::open(store.driver(), StateOptions::new("bench")).await.unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One row per commit on a bare connection, for a second; per second.
fn baseline(folder: &tempfile::TempDir) -> f64 {
    let connection = rusqlite::Connection::open(folder.path().join("baseline")).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection.pragma_update(None, "synchronous", "full").unwrap();
    connection.execute_batch("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, text TEXT)").unwrap();
    let mut statement = connection.prepare("INSERT INTO rows (text) VALUES ('some text of a row')").unwrap();
    let started = Instant::now();
    let mut rows = 0_u32;
    while started.elapsed() < Duration::from_secs(1) {
        statement.execute([]).unwrap();
        rows += 1;
    }
    f64::from(rows) / started.elapsed().as_secs_f64()
}

/// Runs per second, all acknowledged, of what waits when a server that runs the hook comes.
async fn backlog_once(folder: &tempfile::TempDir, name: &str) -> f64 {
    let state = open(folder, name).await;
    state.register_only(registration()).await.unwrap();
    for round in 0..BACKLOG / 50 {
        put(&state, round * 50, 50, round + 1).await;
    }
    let hook = Arc::new(Empty::default());
    let started = Instant::now();
    let handle = state.register(registration(), 1_024, hook.clone()).await.unwrap();
    while hook.runs.load(Ordering::Relaxed) < BACKLOG {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    finished(&state).await;
    let acknowledged = started.elapsed();
    assert_eq!(hook.runs.load(Ordering::Relaxed), BACKLOG);
    drop(handle);
    state.close().await;
    BACKLOG as f64 / acknowledged.as_secs_f64()
}

async fn backlog(folder: &tempfile::TempDir) {
    let (mut rates, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let bare = baseline(folder);
        let rate = backlog_once(folder, &format!("backlog-{round}")).await;
        rates.push(rate);
        ratios.push(rate / bare);
    }
    println!(
        "backlog of {BACKLOG}, {KEYS} keys: {:.0} runs/s acknowledged = {:.1} × a bare connection's inserts (rates {rates:.0?}); wanted: 100000",
        median(rates.clone()),
        median(ratios),
    );
}

/// Changes per second that 64 writers have written, run and acknowledged, for two seconds.
async fn changes(state: &State, round: u64) -> f64 {
    let started = Instant::now();
    let writers = (0..WRITERS).map(|writer| {
        let state = state.clone();
        tokio::spawn(async move {
            let mut written = 0;
            while started.elapsed() < Duration::from_secs(2) {
                put(&state, writer * 151 + written * 64, 1, round * 1_000_000 + written + 2).await;
                written += 1;
            }
            written
        })
    });
    let mut changes = 0;
    for written in futures::future::join_all(writers).await {
        changes += written.unwrap();
    }
    finished(state).await;
    changes as f64 / started.elapsed().as_secs_f64()
}

async fn end_to_end(folder: &tempfile::TempDir) {
    let state = open(folder, "end-to-end").await;
    let hook = Arc::new(Empty::default());
    let handle = state.register(registration(), 1_024, hook.clone()).await.unwrap();
    put(&state, 0, 1, 1).await;
    finished(&state).await;
    let (mut bare, mut rates, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let before = baseline(folder);
        let rate = changes(&state, round as u64).await;
        let around = (before + baseline(folder)) / 2.0;
        bare.push(around);
        rates.push(rate);
        ratios.push(rate / around);
    }
    println!(
        "end to end, {WRITERS} writers: {:.0} changes/s written, run and acknowledged = {:.1} × a bare connection ({:.0} inserts/s; ratios {ratios:.1?}); wanted: 3",
        median(rates),
        median(ratios.clone()),
        median(bare),
    );
    drop(handle);
    state.close().await;
}

async fn commit_to_start(folder: &tempfile::TempDir) {
    let state = open(folder, "latency").await;
    let hook = Arc::new(Empty::default());
    let handle = state.register(registration(), 64, hook.clone()).await.unwrap();
    let waits = items::commit_to_start(&state, &hook).await;
    println!("commit to start, 100 changes/s: {waits}; wanted: 200 µs, 2 ms");
    drop(handle);
    state.close().await;
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        backlog(&folder).await;
        end_to_end(&folder).await;
        commit_to_start(&folder).await;
    });
}
