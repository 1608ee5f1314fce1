//! Thousands of small clusters in process, on memory and on SQLite: what each does and what goes wrong in it is drawn from a
//! seed, time is an injected clock, and at the end of each the same checker looks at it that looks at runs of real processes.
//!
//! A cluster has up to four servers (on SQLite one, as one process has the file). Writers change, delete and are refused; a
//! hook for every change, one for the latest state and one that those trigger end well, fail, panic, wait for a time and
//! count themselves with their acknowledgement; operators retry, discard and cancel. Meanwhile servers die, drain and are
//! started, are held and cut at their points, lose leases, answers, commits and connections, and get other code. Then faults
//! stop, everything comes to rest, and [`verdict`] says what is not as it has to be.
//!
//! | variable | is |
//! |---|---|
//! | `TIDEGATE_SEEDS` | so many seeds are played on each store, from a place that is drawn and printed; without it the first 1 000 on memory, and 50 on SQLite |
//! | `TIDEGATE_SEEDS_FROM` | the first of them |
//! | `TIDEGATE_SEED` | plays this one alone |
//!
//! A seed repeats the cluster, the workload, the faults and what hooks do; in which order tasks have their turns and what
//! jitter is drawn is left to the machine, so a rare failure may take a few tries.
#![allow(clippy::unwrap_used)]

mod hooks;
mod operations;
mod plan;
mod planted;
mod play;
mod seeds;
mod verdict;
mod world;

use tidegate_state::testing::StoreKind;

use self::seeds::{Seeds, play_all};

#[test]
fn x05_seeds_on_memory_break_no_guarantee() {
    let seeds = Seeds::from_environment(1_000);
    let sum = play_all(StoreKind::Memory, seeds);
    assert!(seeds.count < 100 || (sum.faults > 0 && sum.repeated > 0 && sum.refused > 0), "nothing happened: {sum}");
}

#[test]
fn x05_seeds_on_sqlite_break_no_guarantee() {
    let seeds = Seeds::from_environment(50);
    let sum = play_all(StoreKind::Sqlite, seeds);
    assert!(seeds.count < 50 || (sum.faults > 0 && sum.repeated > 0), "nothing happened: {sum}");
}

/// Seeds that found something once, and each time they were played again; in which order tasks have their turns is the
/// machine's, so each is played a few times.
///
/// | seed | found |
/// |---|---|
/// | 132313107 | a run that was held right before it began, as by a machine that stands still, began after its slot had passed on, where its server had not come to notice that its lease was over |
const FOUND_ONCE: [u64; 1] = [132_313_107];
const AGAIN: u64 = 4;

#[test]
fn x05_seeds_that_found_something_once_find_nothing() {
    for seed in FOUND_ONCE {
        for _ in 0..AGAIN {
            play_all(StoreKind::Memory, Seeds { first: seed, count: 1 });
        }
    }
}
