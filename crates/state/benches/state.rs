//! What the tree costs, as ratios to a baseline of the same run: reads against a std `HashMap` of the same paths, commits
//! on SQLite against a bare connection. Run with `cargo xtask bench state`.

#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tidegate_state::driver::memory::MemoryStore;
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::{Entity, Path, Ref, Root, State, StateOptions, Transaction, TransactionError};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Item {
    name: String,
    count: u64,
    ratio: f64,
}
impl Entity for Item {
    const COLLECTION: &'static str = "items";
    type Parent = Root;
    type Id = String;
}

/// Counts what is allocated, for the memory per entity.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ENTITIES: usize = 100_000;
const SECONDS: f64 = 2.0;
const ROUNDS: usize = 15;

fn item(index: usize) -> Item {
    Item { name: format!("item number {index}"), count: index as u64, ratio: 0.5 }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(reads());
    runtime.block_on(writes());
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds per call, over all of `keys` once or more.
fn time<K>(keys: &[K], mut call: impl FnMut(&K)) -> f64 {
    let repeats = (200_000 / keys.len()).max(1);
    let start = Instant::now();
    for _ in 0..repeats {
        for key in keys {
            call(key);
        }
    }
    start.elapsed().as_secs_f64() * 1e9 / (repeats * keys.len()) as f64
}

/// One way to read, by the keys' places.
type Read<'a> = (&'a str, Box<dyn FnMut() -> f64 + 'a>);

/// Measures the ways by turns, so that a neighbour's noise falls on all of them alike. Each is printed with the median of
/// its rounds, and of its ratios to the first way in the same round.
fn compare(title: &str, mut ways: Vec<Read<'_>>) {
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for (place, (_, read)) in ways.iter_mut().enumerate() {
            times[place].push(read());
        }
    }
    let baseline = times[0].clone();
    for ((what, _), times) in ways.iter().zip(times) {
        let ratios = times.iter().zip(&baseline).map(|(time, baseline)| time / baseline).collect();
        println!("{:<62} {:>8.1} {:>8.2}", format!("{what}, {title}"), median(times), median(ratios));
    }
}

async fn reads() {
    let store = MemoryStore::new();
    let state = State::open(store.driver(), StateOptions::new("bench")).await.unwrap();
    for from in (0..ENTITIES).step_by(5_000) {
        let fill = move |tx: &mut Transaction| {
            (from..from + 5_000).try_for_each(|index| tx.put(&Ref::root(format!("item-{index}"))?, item(index)))
        };
        let _: () = state.write::<_, TransactionError, _>(fill).await.unwrap().value;
    }
    state.close().await;
    // Loaded anew, so that what is measured is what a server has after its start.
    drop(state);
    let before = ALLOCATED.load(Ordering::Relaxed);
    let state = State::open(store.driver(), StateOptions::new("bench")).await.unwrap();
    let snapshot = state.snapshot();
    assert_eq!(snapshot.len(), ENTITIES);

    let mut order: Vec<usize> = (0..ENTITIES).collect();
    order.shuffle(&mut StdRng::seed_from_u64(7));
    let refs: Vec<Ref<Item>> = order.iter().map(|index| Ref::root(format!("item-{index}")).unwrap()).collect();
    for entity in &refs {
        black_box(snapshot.require(entity).unwrap());
    }
    let refs_own = refs.iter().map(|entity| entity.path().as_str().len() + 48 + 8).sum::<usize>() + order.len() * 8;
    let bytes = (ALLOCATED.load(Ordering::Relaxed) - before).saturating_sub(refs_own);
    println!("memory per small entity, text and decoded value: {} bytes (limit 1 024)", bytes / ENTITIES);

    // Filled in the order in which the tree was, not in that of the reads, which would be kinder to the cache.
    let mut by_text: HashMap<String, Arc<Item>> = HashMap::new();
    let mut by_path: HashMap<Path, Arc<Item>> = HashMap::new();
    for index in 0..ENTITIES {
        let entity: Ref<Item> = Ref::root(format!("item-{index}")).unwrap();
        by_text.insert(entity.path().as_str().to_owned(), Arc::new(item(index)));
        by_path.insert(entity.path().clone(), Arc::new(item(index)));
    }
    let texts: Vec<String> = refs.iter().map(|entity| entity.path().as_str().to_owned()).collect();
    // As a listing gives them, they share their text with the tree.
    let listed: HashMap<Path, Ref<Item>> =
        snapshot.roots::<Item>().map(|found| found.unwrap().0).map(|found| (found.path().clone(), found)).collect();
    let listed: Vec<Ref<Item>> = refs.iter().map(|entity| listed[entity.path()].clone()).collect();
    println!("{:<62} {:>8} {:>8}", "one read", "ns", "x std");
    for (title, count) in [("random among 100 000", ENTITIES), ("among 256 hot ones", 256)] {
        let (refs, texts, listed) = (&refs[..count], &texts[..count], &listed[..count]);
        let by_ref = |entity: &Ref<Item>| {
            black_box(snapshot.require(entity).unwrap().count);
        };
        compare(
            title,
            vec![
                (
                    "std HashMap by text",
                    Box::new(|| {
                        time(texts, |text| {
                            black_box(by_text.get(text).unwrap().count);
                        })
                    }),
                ),
                (
                    "std HashMap by Path (which carries its hash)",
                    Box::new(|| {
                        time(refs, |entity| {
                            black_box(by_path.get(entity.path()).unwrap().count);
                        })
                    }),
                ),
                ("Snapshot::get by a Ref made for it", Box::new(|| time(refs, by_ref))),
                ("Snapshot::get by a Ref from a listing", Box::new(|| time(listed, by_ref))),
            ],
        );
    }
    let nothing = [(); 100_000];
    let take = median(
        (0..ROUNDS)
            .map(|_| {
                time(&nothing, |()| {
                    black_box(state.snapshot());
                })
            })
            .collect(),
    );
    println!("taking a snapshot: {take:.1} ns (limit 50)");
    state.close().await;
}

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

struct Load {
    rate: f64,
    cpu_us: f64,
    group: f64,
}

async fn load(writers: usize) -> Load {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("state.db"), SqliteOptions::default()).unwrap();
    let state = State::open(store.driver(), StateOptions::new("bench")).await.unwrap();
    let fill = |tx: &mut Transaction| {
        (0..10_000).try_for_each(|index| tx.put(&Ref::root(format!("item-{index}"))?, item(index)))
    };
    let _: () = state.write::<_, TransactionError, _>(fill).await.unwrap().value;
    let (transactions, commits) = (state.metrics().transactions(), state.metrics().commits());
    let cpu = cpu_seconds();
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let state = state.clone();
        tasks.spawn(async move {
            let mut random = StdRng::seed_from_u64(writer as u64);
            while start.elapsed() < Duration::from_secs_f64(SECONDS) {
                let target: Ref<Item> = Ref::root(format!("item-{}", random.random_range(0..10_000))).unwrap();
                let write = move |tx: &mut Transaction| tx.update(&target, |item| item.count += 1);
                state.write::<_, TransactionError, _>(write).await.unwrap();
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    let elapsed = start.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    let transactions = (state.metrics().transactions() - transactions) as f64;
    let commits = (state.metrics().commits() - commits) as f64;
    state.close().await;
    Load { rate: transactions / elapsed, cpu_us: cpu * 1e6 / transactions, group: transactions / commits }
}

async fn writes() {
    println!(
        "{:<44} {:>9} {:>7} {:>9} {:>10} {:>8}",
        "SQLite, synchronous=FULL", "tx/s", "x bare", "x writer", "CPU us/tx", "group"
    );
    let bare = median((0..3).map(|_| bare_inserts()).collect());
    println!("{:<44} {bare:>9.0} {:>7.2}", "bare connection, one insert per commit", 1.0);
    let mut one = None;
    for writers in [1, 64, 512] {
        let mut loads = Vec::new();
        for _ in 0..3 {
            loads.push(load(writers).await);
        }
        let rate = median(loads.iter().map(|load| load.rate).collect());
        let cpu = median(loads.iter().map(|load| load.cpu_us).collect());
        let group = median(loads.iter().map(|load| load.group).collect());
        let one = *one.get_or_insert(rate);
        println!(
            "{:<44} {rate:>9.0} {:>7.2} {:>9.2} {cpu:>10.1} {group:>8.1}",
            format!("{writers} writers through the state"),
            rate / bare,
            rate / one,
        );
    }
}
