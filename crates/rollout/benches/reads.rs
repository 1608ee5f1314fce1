//! Reads of a region in process, swaps under full read load, and how soon an ingested version is reported.
//!
//! Every figure is printed with the baseline of the same run that it is to be compared with.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_dataset::build::{BuildOptions, Builder};
use tidegate_dataset::{Cancel, quiet};
use tidegate_rollout::entities::{Assignment, Availability, EmbeddedPermission, Held, IngestionStatus, Region, Report};
use tidegate_rollout::region::RegionHost;
use tidegate_rollout::region::host::{HostOptions, RegionSetup};
use tidegate_state::driver::memory::MemoryStore;
use tidegate_state::{FeedItem, Ref, State, StateOptions, Timestamp, TransactionError};
use uuid::Uuid;

const STORE: &str = "bench";
const KEYS: usize = 200_000;
const READS: usize = 400_000;
const SWAPS: u64 = 500;
const INGESTIONS: usize = 21;

struct Bench {
    state: State,
    host: RegionHost,
    held: Vec<Held>,
    generation: AtomicU64,
}

fn region() -> Ref<Region> {
    Ref::root("a").unwrap()
}

impl Bench {
    async fn assign(&self, hold: &[u64], serve: Option<u64>) {
        let assignment = Assignment {
            generation: self.generation.fetch_add(1, Ordering::Relaxed) + 1,
            incarnation: Uuid::from_u128(1),
            hold: hold.iter().map(|version| (*version, self.held[(*version % 2) as usize].clone())).collect(),
            serve,
            enough: 2,
        };
        let entity: Ref<Assignment> = region().child(STORE).unwrap();
        let write = self.state.write(move |tx| -> Result<(), TransactionError> { tx.put(&entity, assignment.clone()) });
        write.await.unwrap();
    }

    async fn until(&self, holds: impl Fn(&Report) -> bool) {
        let entity: Ref<Report> = region().child(STORE).unwrap();
        let mut feed = self.state.changes(None);
        while let Some(item) = feed.next().await {
            let snapshot = match item {
                FeedItem::Snapshot(snapshot) => snapshot,
                FeedItem::Transaction(applied) => applied.snapshot.clone(),
            };
            if snapshot.get(&entity).unwrap().is_some_and(&holds) {
                return;
            }
        }
    }
}

fn key(number: usize) -> String {
    format!("key-{number:07}")
}

/// Every key once, in an order without any.
fn shuffled() -> Vec<String> {
    let mut keys: Vec<String> = (0..KEYS).map(key).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for place in (1..keys.len()).rev() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        keys.swap(place, (random >> 33) as usize % (place + 1));
    }
    keys
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

fn print(what: &str, mut times: Vec<Duration>, baseline: Option<Duration>) -> Duration {
    times.sort_unstable();
    let (p50, p99) = (quantile(&times, 0.5), quantile(&times, 0.99));
    match baseline {
        Some(baseline) => {
            let ratio = p50.as_secs_f64() / baseline.as_secs_f64().max(1e-9);
            println!("{what}: p50 {p50:?}, p99 {p99:?}; {ratio:.2} × the baseline of {baseline:?}");
        }
        None => println!("{what}: p50 {p50:?}, p99 {p99:?}"),
    }
    p50
}

async fn start(folder: &std::path::Path) -> Bench {
    let source = ArtifactStore::local(folder.join("source")).unwrap();
    let mut held = Vec::new();
    for version in 0..2 {
        let rows: String = (0..KEYS).map(|number| format!("{},{version}-{number:090}\n", key(number))).collect();
        let input = folder.join(format!("{version}.csv"));
        std::fs::write(&input, format!("key,value\n{rows}")).unwrap();
        let work = folder.join(format!("work-{version}"));
        let build = move || Builder::new(BuildOptions::new(["key"], work)).build(&[input], &quiet, &Cancel::new());
        let built = tokio::task::spawn_blocking(build).await.unwrap().unwrap();
        for part in &built.manifest.parts {
            let file = built.folder.join(&part.name);
            source.put_part(&built.manifest.artifact_id, part, &file, &Cancel::new()).await.unwrap();
        }
        let manifest_sha256 = source.put_manifest(&built.manifest).await.unwrap();
        let artifact = built.manifest.artifact_id;
        held.push(Held { artifact, manifest_sha256, embedded: EmbeddedPermission::None });
    }
    let state = State::open(MemoryStore::new().driver(), StateOptions::new("bench")).await.unwrap();
    let write = state.write(|tx| -> Result<(), TransactionError> {
        let value = Region {
            nodes: 2,
            enough: 2,
            shares_source: true,
            agent: false,
            availability: Availability::Available,
            added_at: Timestamp(1),
        };
        tx.put(&region(), value)
    });
    write.await.unwrap();
    let setup = RegionSetup { name: "a".to_owned(), nodes: 2, shares_source: true };
    let options = HostOptions::new(folder.join("regions"), source);
    let host = RegionHost::start(state.clone(), options, [setup]).await.unwrap();
    Bench { state, host, held, generation: AtomicU64::new(0) }
}

fn reads(bench: &Bench) {
    let keys = shuffled();
    let map: HashMap<String, String> = keys.iter().map(|key| (key.clone(), "x".repeat(100))).collect();
    let timed = |read: &mut dyn FnMut(&str)| -> Vec<Duration> {
        keys.iter()
            .cycle()
            .take(READS)
            .map(|key| {
                let begin = Instant::now();
                read(key);
                begin.elapsed()
            })
            .collect()
    };
    let baseline = print(
        "look-up of 100 bytes in a HashMap, as JSON",
        timed(&mut |key| {
            black_box(serde_json::json!({ "key": key, "value": map[key] }));
        }),
        None,
    );
    let _ = print(
        "read of one key of 200 000 through the region",
        timed(&mut |key| {
            black_box(bench.host.read("a", STORE, key).unwrap());
        }),
        Some(baseline),
    );
    let batches = keys.chunks(100).map(|batch| {
        let begin = Instant::now();
        black_box(bench.host.read_batch("a", STORE, batch).unwrap());
        begin.elapsed() / 100
    });
    let _ = print("the same in batches of 100, by key", batches.collect(), Some(baseline));
}

async fn swaps(bench: &Bench) {
    let stop = Arc::new(AtomicBool::new(false));
    let keys = Arc::new(shuffled());
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (host, stop, keys) = (bench.host.clone(), Arc::clone(&stop), Arc::clone(&keys));
            std::thread::spawn(move || {
                let (mut reads, mut failed, mut mixed) = (0_u64, 0_u64, 0_u64);
                for batch in keys.chunks(20).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    reads += 1;
                    match host.read_batch("a", STORE, batch) {
                        Err(_) => failed += 1,
                        Ok(answer) => {
                            let version = (answer.version % 2).to_string();
                            let of_version = |record: &Option<Box<RawValue>>| {
                                record.as_ref().is_some_and(|record| {
                                    let record: serde_json::Value = serde_json::from_str(record.get()).unwrap();
                                    record["value"].as_str().is_some_and(|text| text.starts_with(&version))
                                })
                            };
                            mixed += u64::from(!answer.values.iter().all(of_version));
                        }
                    }
                }
                (reads, failed, mixed)
            })
        })
        .collect();
    let mut times = Vec::new();
    for swap in 0..SWAPS {
        let version = 2 - swap % 2;
        let begin = Instant::now();
        bench.assign(&[1, 2], Some(version)).await;
        bench.until(|report| report.serving == Some(version)).await;
        times.push(begin.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    let (mut reads, mut failed, mut mixed) = (0, 0, 0);
    for reader in readers {
        let of_reader = reader.join().unwrap();
        reads += of_reader.0;
        failed += of_reader.1;
        mixed += of_reader.2;
    }
    println!("{SWAPS} swaps under full read load: {reads} batches of 20 read, {failed} failed, {mixed} mixed versions");
    let _ = print("assignment written to swap reported, under that load", times, None);
    assert_eq!((failed, mixed), (0, 0));
}

async fn ingestions(bench: &Bench) {
    let mut times = Vec::new();
    let entity: Ref<Report> = region().child(STORE).unwrap();
    for number in 0..INGESTIONS {
        let version = 3 + number as u64;
        bench.assign(&[1, 2, version], Some(1)).await;
        bench
            .until(|report| report.versions.get(&version).is_some_and(|held| held.status == IngestionStatus::Completed))
            .await;
        // The file of the node that was last, by the clock that both it and this process read.
        let seen = std::time::SystemTime::now();
        let last = bench.state.snapshot().get(&entity).unwrap().unwrap().versions[&version].since;
        let seen_ms = seen.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
        times.push(Duration::from_millis(u64::try_from(seen_ms - last.0).unwrap_or(0)));
        bench.assign(&[1, 2], Some(1)).await;
        bench.until(|report| !report.versions.contains_key(&version)).await;
    }
    let _ = print("last node read back to report seen", times, None);
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    runtime.block_on(async {
        let bench = start(folder.path()).await;
        let begin = Instant::now();
        bench.assign(&[1, 2], Some(1)).await;
        bench.until(|report| report.serving == Some(1) && report.versions.len() == 2).await;
        println!("two versions of {KEYS} records ingested by two nodes, and one served: {:?}", begin.elapsed());
        reads(&bench);
        swaps(&bench).await;
        ingestions(&bench).await;
        bench.host.stop().await;
    });
}
