//! How large: a start with many entities, and a long log that is compacted under writers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidegate_state::{Ref, State, StateOptions, Transaction, TransactionError, WriteError};

use crate::items::{Item, KEYS, put};
use crate::open;
use crate::server::Server;

const ENTITIES: u64 = 100_000;
const STEP: u64 = 500;
const STARTS: usize = 5;

/// Changes in the log that is compacted, if the environment does not say (`TIDEGATE_BENCH_LOG`).
const LOG: u64 = 1_000_000;
const WRITERS: u64 = 8;
const LIMIT: Duration = Duration::from_secs(300);

/// Writes so many entities.
async fn fill(state: &State, from: u64, count: u64, value: u64) {
    let written: Result<_, WriteError<TransactionError>> = state
        .write(move |tx: &mut Transaction| {
            for number in from..from + count {
                tx.put(&Ref::<Item>::root(number)?, Item { value })?;
            }
            Ok(())
        })
        .await;
    written.unwrap();
}

pub(crate) async fn start(server: &Server) {
    let (store, _) = server.store();
    let first = open(&store, "first").await;
    for from in (0..ENTITIES).step_by(STEP as usize) {
        fill(&first, from, STEP, 1).await;
    }
    first.close().await;
    let mut times = Vec::new();
    for number in 0..STARTS {
        let begun = Instant::now();
        let state = open(&store, &format!("next-{number}")).await;
        state.flush().await.unwrap();
        times.push(begun.elapsed());
        state.close().await;
    }
    times.sort_unstable();
    println!(
        "a server starts with {ENTITIES} entities: {:?}, at most {:?}; wanted: 1 s",
        times[STARTS / 2],
        times[STARTS - 1]
    );
}

/// Writes without pause, and says how long each write took, with the time of its end.
async fn write_on(state: State, writer: u64, stop: Arc<AtomicBool>) -> Vec<(Instant, Duration)> {
    let mut took = Vec::new();
    let mut value = 0;
    while !stop.load(Ordering::Relaxed) {
        value += 1;
        let begun = Instant::now();
        put(&state, writer * 16 + value % 16, 1, value).await;
        took.push((Instant::now(), begun.elapsed()));
    }
    took
}

pub(crate) async fn compaction(server: &Server) {
    let changes = std::env::var("TIDEGATE_BENCH_LOG").map_or(LOG, |count| count.parse().unwrap());
    let (store, schema) = server.store();
    let count = format!("SELECT count(*) FROM {schema}.changes");
    let first = open(&store, "first").await;
    for from in (0..changes).step_by(STEP as usize) {
        fill(&first, from % KEYS, STEP, from).await;
    }
    first.close().await;
    let (rows, last) = (server.ask(&count), server.ask(&format!("SELECT max(revision) FROM {schema}.changes")));
    let options = StateOptions { log_keep: Duration::from_secs(1), compact_every: 1, ..StateOptions::new("second") };
    let second = State::open(store.driver(), options).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write_on(second.clone(), writer, Arc::clone(&stop)))).collect();
    let begun = Instant::now();
    let left = loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let left = server.ask(&format!("{count} WHERE revision <= {last}"));
        if left == 0 || begun.elapsed() > LIMIT {
            break left;
        }
    };
    let compacted = Instant::now();
    stop.store(true, Ordering::Relaxed);
    let mut took: Vec<Duration> = Vec::new();
    for writer in writers {
        took.extend(writer.await.unwrap().into_iter().filter(|(at, _)| *at <= compacted).map(|(_, took)| took));
    }
    took.sort_unstable();
    println!(
        "a log of {changes} changes in {rows} rows is compacted within {:?} ({left} left) under {WRITERS} writers: {} \
         commits meanwhile, p50 {:?}, p99 {:?}, longest {:?}; wanted: writers go on",
        compacted - begun,
        took.len(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        took[took.len() - 1]
    );
    second.close().await;
}
