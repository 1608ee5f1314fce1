//! How much per second: commits, a backlog, and both end to end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tidegate_state::HookHandle;
use tidegate_state::driver::postgres::PostgresStore;
use tokio::task::JoinHandle;

use crate::items::{Empty, KEYS, finished, put, registration};
use crate::processor::ProcessorTime;
use crate::server::{Foreign, Measured, Server};
use crate::{BACKLOG_STEP, Node, open};

const SECONDS: u64 = 5;

/// How long a foreign transaction is held open while changes are made and run, and the parts of it that are compared.
const HELD: Duration = Duration::from_secs(60);
const HELD_PART: Duration = Duration::from_secs(10);

/// So many writers on each server, until a time; each says how many changes it has made.
fn writers(nodes: &[&Node], on_each: u64, until: Instant) -> Vec<JoinHandle<u64>> {
    let mut writers = Vec::new();
    for (place, node) in (0..).zip(nodes) {
        for writer in 0..on_each {
            let state = node.state.clone();
            writers.push(node.runtime.spawn(async move {
                let mut written = 0;
                while Instant::now() < until {
                    put(&state, place * 5_000 + writer * 151 + written * 64, 1, written + 2).await;
                    written += 1;
                }
                written
            }));
        }
    }
    writers
}

/// Writes for a while with so many writers on each server; changes per second in all.
async fn write_for_a_while(nodes: &[&Node], on_each: u64) -> f64 {
    let started = Instant::now();
    let mut changes = 0;
    for writer in writers(nodes, on_each, started + Duration::from_secs(SECONDS)) {
        changes += writer.await.unwrap();
    }
    changes as f64 / started.elapsed().as_secs_f64()
}

/// Two servers that both run the hook, and have come to rest.
struct Pair {
    nodes: [Node; 2],
    hook: Arc<Empty>,
    registered: Vec<HookHandle>,
}

impl Pair {
    async fn open(store: &PostgresStore) -> Pair {
        let nodes = [open(store, "first").await, open(store, "second").await];
        let hook = Arc::new(Empty::default());
        let mut registered = Vec::new();
        for node in &nodes {
            registered.push(node.register(registration(), 1_024, hook.clone()).await.unwrap());
        }
        put(&nodes[0], 0, 1, 1).await;
        finished(&nodes[0]).await;
        Pair { nodes, hook, registered }
    }

    async fn close(self) {
        drop(self.registered);
        for node in self.nodes {
            node.close().await;
        }
    }

    fn both(&self) -> [&Node; 2] {
        self.nodes.each_ref()
    }
}

pub(crate) async fn commits(server: &Server) {
    let (store, _) = server.store();
    let first = open(&store, "first").await;
    put(&first, 0, 1, 1).await;
    let measured = Measured::begin(server);
    let time = ProcessorTime::begin(server);
    let alone = write_for_a_while(&[&first], 64).await;
    let cost = time.per_change(alone * SECONDS as f64);
    measured.end("committed transactions, 64 writers on one server", alone, "1.5");
    println!("  {cost}");
    let second = open(&store, "second").await;
    let measured = Measured::begin(server);
    let both = write_for_a_while(&[&first, &second], 64).await;
    measured.end("committed transactions, 64 writers on each of two servers", both, "-");
    println!("two servers: {:.0} % of one server's rate; wanted: 85", 100.0 * both / alone);
    first.close().await;
    second.close().await;
}

/// Drains a backlog, first alone and then while a foreign transaction is open.
pub(crate) async fn backlog(server: &Server, requests: u64) {
    let alone = drain(server, requests, false).await;
    let held = drain(server, requests, true).await;
    println!("with a foreign transaction open: {:.0} % of the rate without; wanted: 90", 100.0 * held / alone);
}

async fn drain(server: &Server, requests: u64, is_held: bool) -> f64 {
    let (store, schema) = server.store();
    let state = open(&store, "server").await;
    state.register_only(registration()).await.unwrap();
    let foreign = is_held.then(|| Foreign::open(server, &schema));
    for round in 0..requests / BACKLOG_STEP {
        put(&state, round * BACKLOG_STEP, BACKLOG_STEP, round + 1).await;
    }
    let measured = Measured::begin(server);
    let hook = Arc::new(Empty::default());
    let (started, time) = (Instant::now(), ProcessorTime::begin(server));
    let handle = state.register(registration(), 1_024, hook.clone()).await.unwrap();
    // Looking for what is not finished costs the database something, so it is done when all have run.
    while hook.runs.load(Ordering::Relaxed) < requests {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    finished(&state).await;
    let rate = requests as f64 / started.elapsed().as_secs_f64();
    let cost = time.per_change(requests as f64);
    assert_eq!(hook.runs.load(Ordering::Relaxed), requests);
    let how = if is_held { ", a foreign transaction open" } else { "" };
    measured.end(&format!("backlog of {requests} over {KEYS} keys, acknowledged durably{how}"), rate, "8");
    println!("  {cost}");
    drop((handle, foreign));
    state.close().await;
    rate
}

pub(crate) async fn end_to_end(server: &Server, writers: u64, wanted: &str) {
    let (store, _) = server.store();
    let pair = Pair::open(&store).await;
    let measured = Measured::begin(server);
    let (started, time) = (Instant::now(), ProcessorTime::begin(server));
    let rate = write_for_a_while(&pair.both(), writers).await;
    let changes = rate * SECONDS as f64;
    finished(&pair.nodes[0]).await;
    let rate = changes / started.elapsed().as_secs_f64();
    let cost = time.per_change(changes);
    measured.end(&format!("committed, run and acknowledged, two servers, {writers} writers on each"), rate, wanted);
    println!("  {cost}");
    pair.close().await;
}

/// Changes that are committed, run and acknowledged for a minute under a foreign transaction: whether they get slower.
pub(crate) async fn held(server: &Server) {
    let (store, schema) = server.store();
    let pair = Pair::open(&store).await;
    let foreign = Foreign::open(server, &schema);
    let started = Instant::now();
    let writers = writers(&pair.both(), 64, started + HELD);
    let mut parts = Vec::new();
    let mut before = pair.hook.runs.load(Ordering::Relaxed);
    for part in 1..=HELD.as_secs() / HELD_PART.as_secs() {
        tokio::time::sleep_until((started + HELD_PART * u32::try_from(part).unwrap()).into()).await;
        let now = pair.hook.runs.load(Ordering::Relaxed);
        parts.push((now - before) as f64 / HELD_PART.as_secs_f64());
        before = now;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    finished(&pair.nodes[0]).await;
    drop(foreign);
    let each: Vec<String> = parts.iter().map(|rate| format!("{rate:.0}")).collect();
    println!(
        "60 s under a foreign transaction, runs/s in each 10 s: {}; the last 10 s are {:.0} % of the first; wanted: 80",
        each.join(", "),
        100.0 * parts[parts.len() - 1] / parts[0]
    );
    pair.close().await;
}
