//! What a commit costs in SQLite, as ratios to a bare connection in the same run: one insert per commit, against groups of
//! transactions and settlements through the driver. Run with `cargo bench -p tidegate-state --bench driver_sqlite`.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::driver::{
    Batch, Driver, Fence, HookNumber, LogEntry, LogRow, Receipt, ReceiptOutcome, RequestId, ServerId, ServerLoad,
    ServerRow, Settle, Settled, SlotId, StoredDocument,
};
use tidegate_state::{Epoch, Path, Revision, SubmissionId, Timestamp};

const HOOK: HookNumber = HookNumber(1);
const SECONDS: f64 = 2.0;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("{:<44} {:>10} {:>9} {:>11}", "", "tx/s", "x bare", "CPU us/tx");
    let bare = median((0..3).map(|_| bare_inserts()).collect());
    println!("{:<44} {bare:>10.0} {:>9.2}", "bare connection, one insert per commit", 1.0);
    for (group, hooks) in [(1, false), (64, false), (64, true), (512, false)] {
        let runs: Vec<(f64, f64)> = (0..3).map(|_| runtime.block_on(commits(group, hooks))).collect();
        let rate = median(runs.iter().map(|run| run.0).collect());
        let cpu = median(runs.iter().map(|run| run.1).collect());
        let what = if hooks { "commits, and as many receipts beside them" } else { "commits" };
        println!("{:<44} {rate:>10.0} {:>9.2} {cpu:>11.1}", format!("{what}, groups of {group}"), rate / bare);
    }
    let (each, rate) = runtime.block_on(settlements());
    println!("settlement of 1 000 receipts: median {:.2} ms, {rate:.0} receipts/s one after the other", each * 1e3);
    runtime.block_on(upkeep());
    let empty = runtime.block_on(empty_sessions());
    println!("taking the lock and letting go of it: {:.1} us", empty * 1e6);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// User and system time of this process, in seconds; zero where the system does not say.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    ticks / 100.0
}

fn bare_inserts() -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(folder.path().join("bare.db")).unwrap();
    connection.pragma_update(None, "journal_mode", "WAL").unwrap();
    connection.pragma_update(None, "synchronous", "FULL").unwrap();
    connection.execute_batch("CREATE TABLE log (revision INTEGER PRIMARY KEY, body BLOB)").unwrap();
    let mut insert = connection.prepare("INSERT INTO log (body) VALUES (?1)").unwrap();
    let body = [7u8; 150];
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed().as_secs_f64() < SECONDS {
        insert.execute([&body[..]]).unwrap();
        count += 1;
    }
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn rows(head: Revision, at: Timestamp, count: u64, hooks: bool) -> Vec<Arc<LogRow>> {
    (head.0 + 1..=head.0 + count)
        .map(|revision| {
            let entry = LogEntry::Change {
                path: Path::root().child("stores", &(revision % 10_000).to_string()).unwrap(),
                before: None,
                after: Some(StoredDocument {
                    format: 1,
                    json: format!("{{\"rows\":{revision},\"owner\":\"someone\"}}").into(),
                }),
                hooks: if hooks { vec![HOOK] } else { Vec::new() },
            };
            Arc::new(LogRow {
                revision: Revision(revision),
                submission: SubmissionId::random(),
                at,
                server: "bench".into(),
                attributes: Arc::default(),
                entries: vec![entry],
            })
        })
        .collect()
}

fn open() -> (tempfile::TempDir, Arc<dyn Driver>) {
    let folder = tempfile::tempdir().unwrap();
    let driver = SqliteStore::open(folder.path().join("store.db"), SqliteOptions::default()).unwrap().driver();
    (folder, driver)
}

async fn own_slots(driver: &dyn Driver, count: u32) -> Vec<Fence> {
    let id = ServerId(uuid::Uuid::new_v4());
    let lease_until = driver.clock().now().after(Duration::from_secs(600));
    let server = ServerRow {
        id,
        name: "bench".into(),
        lease_until,
        draining: false,
        hooks: Vec::new(),
        load: ServerLoad::default(),
        applied: Revision::ZERO,
    };
    driver.join(server).await.unwrap();
    let slots: Vec<SlotId> = (0..count).map(|slot| SlotId { hook: HOOK, slot }).collect();
    driver.take_slots(id, &slots).await.unwrap()
}

fn receipts(from: Revision, to: Revision, fences: &[Fence]) -> Vec<Settle> {
    (from.0 + 1..=to.0)
        .map(|revision| {
            let request = RequestId { revision: Revision(revision), sequence: 0, hook: HOOK };
            let fence = fences[revision as usize % fences.len()];
            Settle::Receipt(Receipt { request, fence, outcome: ReceiptOutcome::Done })
        })
        .collect()
}

async fn commit_group(driver: &dyn Driver, epoch: Epoch, seen: Revision, group: u64, hooks: bool) -> Revision {
    let begun = driver.begin(epoch, seen, 10_000).await.unwrap();
    let batch = rows(seen, begun.session.now(), group, hooks);
    begun.session.commit(Batch { rows: batch, ..Batch::default() }).await.unwrap();
    Revision(seen.0 + group)
}

/// Transactions per second, and CPU microseconds of each.
async fn commits(group: u64, hooks: bool) -> (f64, f64) {
    let (_folder, driver) = open();
    let epoch = driver.meta().await.unwrap().epoch;
    let fences = own_slots(&*driver, 32).await;
    let cpu = cpu_seconds();
    let start = Instant::now();
    let (committed, mut done) = tokio::sync::watch::channel(Revision::ZERO);
    let settling = tokio::spawn({
        let driver = driver.clone();
        async move {
            let mut settled = Revision::ZERO;
            while hooks && done.changed().await.is_ok() {
                let to = *done.borrow_and_update();
                let answers = driver.settle(receipts(settled, to, &fences)).await.unwrap();
                assert!(answers.iter().all(|answer| *answer == Settled::Durable));
                settled = to;
            }
        }
    });
    let mut seen = Revision::ZERO;
    while start.elapsed().as_secs_f64() < SECONDS {
        seen = commit_group(&*driver, epoch, seen, group, hooks).await;
        committed.send_replace(seen);
    }
    drop(committed);
    settling.await.unwrap();
    let elapsed = start.elapsed().as_secs_f64();
    (seen.0 as f64 / elapsed, (cpu_seconds() - cpu) * 1e6 / seen.0 as f64)
}

/// Seconds of one settlement of 1 000 receipts, and receipts per second.
async fn settlements() -> (f64, f64) {
    let (_folder, driver) = open();
    let fences = own_slots(&*driver, 32).await;
    let mut times = Vec::new();
    let start = Instant::now();
    for number in 0..200u64 {
        let items = receipts(Revision(number * 1_000), Revision((number + 1) * 1_000), &fences);
        let one = Instant::now();
        driver.settle(items).await.unwrap();
        times.push(one.elapsed().as_secs_f64());
    }
    (median(times), 200_000.0 / start.elapsed().as_secs_f64())
}

/// Prints what writing entities behind and compacting cost, and how long a commit takes beside them.
async fn upkeep() {
    const ROWS: u64 = 300_000;
    let (folder, driver) = open();
    let epoch = driver.meta().await.unwrap().epoch;
    let mut seen = Revision::ZERO;
    let mut times = Vec::new();
    while seen.0 < ROWS {
        let one = Instant::now();
        seen = commit_group(&*driver, epoch, seen, 64, false).await;
        times.push(one.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let [median, late, last] = [times.len() / 2, times.len() * 99 / 100, times.len() - 1].map(|at| times[at] * 1e3);
    let log = std::fs::metadata(folder.path().join("store.db-wal")).map_or(0, |file| file.len() >> 20);
    println!("commit of 64: median {median:.2}, p99 {late:.2}, longest {last:.1} ms; write-ahead log {log} MiB");
    let entity = |number: u64| tidegate_state::driver::EntityRow {
        path: Path::root().child("stores", &number.to_string()).unwrap(),
        revision: seen,
        document: StoredDocument { format: 1, json: format!("{{\"rows\":{number},\"owner\":\"someone\"}}").into() },
    };
    for (what, from, to) in [("new", 0, ROWS / 2), ("changed", ROWS / 2, ROWS)] {
        let one = Instant::now();
        driver
            .write_entities(
                driver.meta().await.unwrap().epoch,
                Revision(from),
                Revision(to),
                (0..10_000).map(entity).collect(),
                vec![],
            )
            .await
            .unwrap();
        println!("10 000 {what} entities written behind: {:.1} ms", one.elapsed().as_secs_f64() * 1e3);
    }
    let start = Instant::now();
    let mut longest = 0.0f64;
    let mut compacted = Revision::ZERO;
    while compacted.0 < ROWS - 1 {
        let one = Instant::now();
        compacted = driver
            .compact(driver.meta().await.unwrap().epoch, Timestamp(i64::MAX), Revision(u64::MAX), 5_000)
            .await
            .unwrap();
        longest = longest.max(one.elapsed().as_secs_f64());
    }
    let rate = ROWS as f64 / start.elapsed().as_secs_f64();
    println!("compaction in steps of 5 000: {rate:.0} rows/s, longest step {:.1} ms", longest * 1e3);
}

/// Seconds of a session that commits nothing.
async fn empty_sessions() -> f64 {
    let (_folder, driver) = open();
    let epoch = driver.meta().await.unwrap().epoch;
    let start = Instant::now();
    for _ in 0..10_000 {
        drop(driver.begin(epoch, Revision::ZERO, 10).await.unwrap());
    }
    start.elapsed().as_secs_f64() / 10_000.0
}
