//! Commits and cluster hooks on PostgreSQL, flushed durably, as ratios to `pgbench -c 32` with one insert per commit,
//! measured before and after each of them: disks are noisy, and a ratio of one run says more.
//!
//! `cargo xtask bench --driver postgres [PART…]`, where the parts are those of [`PARTS`]; all of them if none is named. The
//! server is this run's own, or the one whose address (`postgres://…`) is in `TIDEGATE_BENCH_POSTGRES`; `psql` and `pgbench`
//! are then those in `PATH`, and the schemas of the run stay behind. `TIDEGATE_BENCH_BACKLOG` is how many requests are
//! drained, a multiple of 50, and `TIDEGATE_BENCH_LOG` how many changes are compacted.
#![allow(clippy::unwrap_used)]

/// As the product has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[path = "../items/mod.rs"]
mod items;
mod latency;
mod processor;
mod rates;
mod server;
mod size;

use tidegate_state::driver::postgres::PostgresStore;
use tidegate_state::{State, StateOptions};
use tokio::runtime::{Handle, Runtime};

use self::server::{Server, pgbench};

/// How many requests are drained, if the environment does not say.
const BACKLOG: u64 = 200_000;
/// Changes per transaction while the backlog is made.
const BACKLOG_STEP: u64 = 50;
const PARTS: [&str; 8] =
    ["commits", "backlog", "end-to-end", "held", "commit-to-start", "hand-over", "start", "compaction"];

/// A server of the state tree with a runtime of its own, as servers in processes of their own have: tasks of one do not
/// queue up behind those of another.
struct Node {
    state: State,
    runtime: Handle,
}

impl std::ops::Deref for Node {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

async fn open(store: &PostgresStore, name: &str) -> Node {
    // Never dropped: that has to wait for what it runs, which can't be done here.
    let runtime = Box::leak(Box::new(runtime())).handle().clone();
    let opened = State::open(store.driver(), StateOptions::new(name));
    let state = runtime.spawn(opened).await.unwrap().unwrap();
    Node { state, runtime }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
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
    println!("pgbench -c 1: {:.0}/s", pgbench(&server, 1));
    runtime().block_on(async {
        if wanted("commits") {
            rates::commits(&server).await;
        }
        if wanted("backlog") {
            rates::backlog(&server, requests).await;
        }
        if wanted("end-to-end") {
            rates::end_to_end(&server, 64, "1.5").await;
            rates::end_to_end(&server, 512, "2.5").await;
        }
        if wanted("held") {
            rates::held(&server).await;
        }
        if wanted("commit-to-start") {
            latency::commit_to_start(&server, false).await;
            latency::commit_to_start(&server, true).await;
        }
        if wanted("hand-over") {
            latency::hand_over(&server).await;
        }
        if wanted("start") {
            size::start(&server).await;
        }
        if wanted("compaction") {
            size::compaction(&server).await;
        }
    });
}
