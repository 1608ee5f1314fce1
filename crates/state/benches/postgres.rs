//! Commits and cluster hooks on PostgreSQL, flushed durably, as ratios to `pgbench -c 32` with one insert per commit,
//! measured before and after each of them: disks are noisy, and a ratio of one run says more.
//!
//! `cargo bench --workspace --bench postgres [-- PART…]`, where the parts are `commits`, `backlog`, `end-to-end` and
//! `commit-to-start`; all of them if none is named. The server is this run's own, or the one whose address (`postgres://…`)
//! is in `TIDEGATE_BENCH_POSTGRES`; `psql` and `pgbench` are then those in `PATH`, and the schemas of the run stay behind.
//! `TIDEGATE_BENCH_BACKLOG` is how many requests are drained, a multiple of 50.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::testing::postgres::PostgresServer;
use tidegate_state::{
    ClusterHook, Entity, Outcome, Ref, Registration, Root, Run, State, StateOptions, Transaction, TransactionError,
    WaitForHooks, WriteError,
};

/// How many requests are drained, if the environment does not say.
const BACKLOG: u64 = 200_000;
/// Changes per transaction while the backlog is made.
const BACKLOG_STEP: u64 = 50;
const KEYS: u64 = 10_000;
const PARTS: [&str; 4] = ["commits", "backlog", "end-to-end", "commit-to-start"];
const SECONDS: u64 = 5;
const LONG: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Item {
    value: u64,
}
impl Entity for Item {
    const COLLECTION: &'static str = "items";
    type Parent = Root;
    type Id = u64;
}

/// Does nothing but count, and note when it started.
#[derive(Default)]
struct Empty {
    runs: AtomicU64,
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

/// The server that is measured on.
struct Server {
    url: String,
    /// Unless the environment names another.
    own: Option<&'static PostgresServer>,
    schemas: AtomicU64,
}

impl Server {
    fn find() -> Result<Server, &'static str> {
        let schemas = AtomicU64::new(0);
        match std::env::var("TIDEGATE_BENCH_POSTGRES") {
            Ok(url) => Ok(Server { url, own: None, schemas }),
            Err(_) => {
                let own = tidegate_state::testing::postgres::shared()?;
                Ok(Server { url: own.url(), own: Some(own), schemas })
            }
        }
    }

    fn store(&self) -> PostgresStore {
        // Another run may have left its schemas on a server that is not this run's own.
        let schema = format!("bench_{}_{}", std::process::id(), self.schemas.fetch_add(1, Ordering::Relaxed));
        PostgresStore::new(&self.url, PostgresOptions::in_schema(schema)).unwrap()
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let path = self.own.map_or_else(|| PathBuf::from(program), |own| own.program(program));
        let output = Command::new(path).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn registration() -> Registration {
    Registration::new("empty", 1).on("/items/{item}").key("{item}")
}

async fn open(store: &PostgresStore, name: &str) -> State {
    State::open(store.driver(), StateOptions::new(name)).await.unwrap()
}

async fn put(state: &State, from: u64, count: u64, value: u64) {
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

async fn finished(state: &State) {
    assert!(state.wait_for_hooks(WaitForHooks::all().limit(LONG)).await.unwrap().finished);
}

/// One row per commit into a table without index, by so many clients; commits per second.
fn pgbench(server: &Server, clients: u32) -> f64 {
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "INSERT INTO pgbench_rows (text) VALUES ('some text of a row');\n").unwrap();
    let make = "DROP TABLE IF EXISTS pgbench_rows; CREATE TABLE pgbench_rows (text text)";
    server.run("psql", &["-q", "-c", make, &server.url]);
    let (clients, script) = (clients.to_string(), script.path().to_str().unwrap());
    let told = server
        .run("pgbench", &["-n", "-c", &clients, "-j", "2", "-T", "3", "-M", "prepared", "-f", script, &server.url]);
    let rate = told.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.unwrap()
}

/// A figure and what it is of the baseline before and after it.
struct Measured<'server> {
    before: f64,
    server: &'server Server,
}

impl Measured<'_> {
    fn begin(server: &Server) -> Measured<'_> {
        Measured { before: pgbench(server, 32), server }
    }

    fn end(self, what: &str, rate: f64, wanted: &str) {
        let baseline = f64::midpoint(self.before, pgbench(self.server, 32));
        println!("{what}: {rate:.0}/s = {:.2} x pgbench -c 32 ({baseline:.0}/s); wanted: {wanted}", rate / baseline);
    }
}

/// Writes for a while with so many writers on each state; changes per second in all.
async fn write_for_a_while(states: &[State], writers: u64) -> f64 {
    let started = Instant::now();
    let mut tasks = Vec::new();
    for (place, state) in (0..).zip(states) {
        for writer in 0..writers {
            let state = state.clone();
            tasks.push(tokio::spawn(async move {
                let mut written = 0;
                while started.elapsed() < Duration::from_secs(SECONDS) {
                    put(&state, place * 5_000 + writer * 151 + written * 64, 1, written + 2).await;
                    written += 1;
                }
                written
            }));
        }
    }
    let mut changes = 0;
    for written in futures::future::join_all(tasks).await {
        changes += written.unwrap();
    }
    changes as f64 / started.elapsed().as_secs_f64()
}

async fn commits(server: &Server) {
    let store = server.store();
    let (first, second) = (open(&store, "first").await, open(&store, "second").await);
    put(&first, 0, 1, 1).await;
    let measured = Measured::begin(server);
    let alone = write_for_a_while(std::slice::from_ref(&first), 64).await;
    measured.end("committed transactions, 64 writers on one server", alone, "1.5");
    let measured = Measured::begin(server);
    let both = write_for_a_while(&[first.clone(), second.clone()], 64).await;
    measured.end("committed transactions, 64 writers on each of two servers", both, "-");
    println!("two servers: {:.0} % of one server's rate; wanted: 85", 100.0 * both / alone);
    first.close().await;
    second.close().await;
}

async fn backlog(server: &Server, requests: u64) {
    let store = server.store();
    let state = open(&store, "server").await;
    state.register_only(registration()).await.unwrap();
    for round in 0..requests / BACKLOG_STEP {
        put(&state, round * BACKLOG_STEP, BACKLOG_STEP, round + 1).await;
    }
    let measured = Measured::begin(server);
    let hook = Arc::new(Empty::default());
    let started = Instant::now();
    let handle = state.register(registration(), 1_024, hook.clone()).await.unwrap();
    finished(&state).await;
    let rate = requests as f64 / started.elapsed().as_secs_f64();
    assert_eq!(hook.runs.load(Ordering::Relaxed), requests);
    measured.end(&format!("backlog of {requests} over {KEYS} keys, acknowledged durably"), rate, "8");
    drop(handle);
    state.close().await;
}

async fn end_to_end(server: &Server, writers: u64, wanted: &str) {
    let store = server.store();
    let states = [open(&store, "first").await, open(&store, "second").await];
    let hook = Arc::new(Empty::default());
    let mut handles = Vec::new();
    for state in &states {
        handles.push(state.register(registration(), 1_024, hook.clone()).await.unwrap());
    }
    put(&states[0], 0, 1, 1).await;
    finished(&states[0]).await;
    let measured = Measured::begin(server);
    let started = Instant::now();
    let rate = write_for_a_while(&states, writers).await;
    let changes = rate * SECONDS as f64;
    finished(&states[0]).await;
    let rate = changes / started.elapsed().as_secs_f64();
    measured.end(&format!("committed, run and acknowledged, two servers, {writers} writers on each"), rate, wanted);
    drop(handles);
    for state in states {
        state.close().await;
    }
}

/// From the answer to the writer to the start of the hook, at 100 changes a second.
async fn commit_to_start(server: &Server, elsewhere: bool) {
    let store = server.store();
    let (writer, runner) = (open(&store, "writer").await, open(&store, "runner").await);
    let hook = Arc::new(Empty::default());
    let at = if elsewhere { &runner } else { &writer };
    let handle = at.register(registration(), 64, hook.clone()).await.unwrap();
    put(&writer, 0, 1, 1).await;
    finished(&writer).await;
    hook.note.store(true, Ordering::Relaxed);
    let mut committed = Vec::new();
    for number in 0..500 {
        put(&writer, number, 1, number + 10).await;
        committed.push(Instant::now());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    finished(&writer).await;
    let starts = hook.starts.lock().clone();
    assert_eq!(starts.len(), committed.len());
    let mut waits: Vec<Duration> = committed
        .iter()
        .zip(&starts)
        .map(|(committed, started)| started.saturating_duration_since(*committed))
        .collect();
    waits.sort_unstable();
    let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize];
    let (place, wanted) =
        if elsewhere { ("on another server", "500 µs, 2 ms") } else { ("on the same server", "100 µs, 1 ms") };
    println!("commit to start {place}: p50 {:?}, p99 {:?}, most {:?}; wanted: {wanted}", at(0.5), at(0.99), at(1.0));
    drop(handle);
    writer.close().await;
    runner.close().await;
}

fn main() {
    // cargo adds `--bench`.
    let named: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let Some(unknown) = named.iter().find(|name| !PARTS.contains(&name.as_str())) {
        println!("there is no part {unknown:?}; there are {}", PARTS.join(", "));
        std::process::exit(2);
    }
    let wanted = |part: &str| named.is_empty() || named.iter().any(|name| name == part);
    let requests = std::env::var("TIDEGATE_BENCH_BACKLOG").map_or(BACKLOG, |count| count.parse().unwrap());
    assert!(requests > 0 && requests.is_multiple_of(BACKLOG_STEP), "TIDEGATE_BENCH_BACKLOG: a multiple of 50");
    let server = match Server::find() {
        Ok(server) => server,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("pgbench -c 1: {:.0}/s", pgbench(&server, 1));
    runtime.block_on(async {
        if wanted("commits") {
            commits(&server).await;
        }
        if wanted("backlog") {
            backlog(&server, requests).await;
        }
        if wanted("end-to-end") {
            end_to_end(&server, 64, "1.5").await;
            end_to_end(&server, 512, "2.5").await;
        }
        if wanted("commit-to-start") {
            commit_to_start(&server, false).await;
            commit_to_start(&server, true).await;
        }
    });
}
