//! S10: what snapshots cost, counted by the allocator.
//!
//! It counts for the whole process, so the measuring is done in a process of its own: this binary, started again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::Command;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_state::driver::memory::MemoryStore;
use tidegate_state::{Entity, Ref, Root, State, StateOptions, Transaction, TransactionError};

struct Counting;

/// How many bytes of the process are allocated.
static LIVE: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    /// How many allocations this thread has made.
    static MADE: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: usize, freed: usize) {
    LIVE.fetch_add(bytes.cast_signed() - freed.cast_signed(), Ordering::Relaxed);
    if bytes > 0 {
        // Gone only while the thread ends.
        let _ = MADE.try_with(|made| made.set(made.get() + 1));
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches nothing but an atomic and a cell
// that needs neither allocation nor destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the pointer came from `System.alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size, layout.size());
        // SAFETY: the pointer came from `System.alloc` with this layout, and the caller vouches for the size.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Tells the process that measures.
const MEASURING: &str = "TIDEGATE_SNAPSHOTS_MEASURED";

const SNAPSHOTS: usize = 1_000;
const CHANGES: u64 = 10_000;

/// How much of the memory that snapshots hold may be left when they are gone: what a map keeps as room.
const LEFT_PERCENT: isize = 10;

/// The most that one change may keep in memory by a snapshot: the nodes on the way to an entity, on every level of the maps.
const BYTES_PER_CHANGE_MAX: isize = 16 << 10;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Thing {
    n: u64,
}
impl Entity for Thing {
    const COLLECTION: &'static str = "things";
    type Parent = Root;
    type Id = u64;
}

async fn put(state: &State, ids: std::ops::Range<u64>, n: u64) {
    let write =
        move |tx: &mut Transaction| ids.clone().try_for_each(|id| tx.put(&Ref::<Thing>::root(id)?, Thing { n }));
    state.write::<(), TransactionError, _>(write).await.unwrap();
}

struct Measured {
    /// Allocations for all snapshots together.
    made: u64,
    /// Bytes that the snapshots held, after the first half of the changes and after all.
    held: [isize; 2],
    /// Bytes of these that were still there when the snapshots were gone.
    left: isize,
    /// Bytes of the tree itself.
    tree: isize,
}

/// Changes entities one by one; takes a snapshot at every so many, and gives them with how many allocations taking them made.
async fn changes(state: &State, entities: u64, count: u64, keep: bool) -> (Vec<tidegate_state::Snapshot>, u64) {
    let (mut held, mut made) = (Vec::with_capacity(SNAPSHOTS), 0);
    let every = CHANGES / u64::try_from(SNAPSHOTS).unwrap();
    for number in 0..count {
        let id = (number * 7_919) % entities;
        put(state, id..id + 1, 1_000_000 + number).await;
        if keep && number % every == 0 {
            let before = MADE.with(Cell::get);
            held.push(state.snapshot());
            made += MADE.with(Cell::get) - before;
        }
    }
    (held, made)
}

fn live() -> isize {
    LIVE.load(Ordering::Relaxed)
}

async fn measure(entities: u64) -> Measured {
    let mut options = StateOptions::new("server");
    // Nothing but what is measured.
    options.entities_behind = Duration::from_secs(3_600);
    options.write_limit = Duration::from_secs(60);
    options.transaction_budget = Duration::from_secs(30);
    let state = State::open(MemoryStore::new().driver(), options).await.unwrap();
    let empty = live();
    for first in (0..entities).step_by(5_000) {
        put(&state, first..entities.min(first + 5_000), 0).await;
    }
    let tree = live() - empty;
    // What changes cost without a snapshot: the log of a store in memory, and what is kept for feeds that resume.
    changes(&state, entities, CHANGES, false).await;
    let start = live();
    changes(&state, entities, CHANGES / 2, false).await;
    let of_half = live() - start;
    let start = live();
    let (first, made_first) = changes(&state, entities, CHANGES / 2, true).await;
    let half = live() - start - of_half;
    let (second, made_second) = changes(&state, entities, CHANGES / 2, true).await;
    let all = live() - start - of_half * 2;
    assert_eq!(first.len() + second.len(), SNAPSHOTS);
    drop((first, second));
    Measured { made: made_first + made_second, held: [half, all], left: live() - start - of_half * 2, tree }
}

#[tokio::test]
async fn s10_snapshots_cost_the_same_on_any_tree_and_hold_what_changed() {
    if std::env::var_os(MEASURING).is_none() {
        let name = "snapshots::s10_snapshots_cost_the_same_on_any_tree_and_hold_what_changed";
        let measuring = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(MEASURING, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&measuring.stdout);
        assert!(measuring.status.success(), "{told}\n{}", String::from_utf8_lossy(&measuring.stderr));
        println!("{told}");
        return;
    }
    for entities in [100, 100_000] {
        let Measured { made, held: [half, all], left, tree } = measure(entities).await;
        println!("{entities} entities of {tree} bytes: held {half}, then {all} bytes; {left} left");
        assert_eq!(made, 0, "taking a snapshot allocates nothing, however large the tree is");
        assert!(all < isize::try_from(CHANGES).unwrap() * BYTES_PER_CHANGE_MAX, "{all} bytes held");
        assert!(all < half * 3 && all > half, "what is held grows with the changes: {half}, then {all} bytes");
        assert!(left * 100 < all * LEFT_PERCENT, "{left} of {all} bytes are still there");
    }
}
