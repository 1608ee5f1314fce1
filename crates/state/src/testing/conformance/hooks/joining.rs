//! A server that joins while much is waiting, or much is running.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::cluster_hook::points;

use super::Case;
use super::moving::key_per_slot;
use super::support::{Probe, World, per_store};

const KEYS: u64 = 500;
const REQUESTS: u64 = 5_000;

/// Longer than a slot that is to move may wait for what runs in it.
const BEYOND_HAND_OVER: Duration = Duration::from_secs(5);

/// K29: with 5 000 requests of 500 keys waiting a second server joins: each has half of the slots, and the newcomer runs at
/// least a third of the keys that were left; no slot goes to and fro. The history has each in its order, and none twice.
pub async fn k29_a_server_that_joins_runs_its_share_of_what_waits(case: Case) {
    let mut world = World::new(&case, 3).await;
    let (first, second) = (Probe::new(), Probe::new());
    for probe in [&first, &second] {
        probe.pause(Duration::from_millis(1));
    }
    let registration = per_store("hook").slots(16);
    world.register(0, &registration, 8, &first).await;
    world.spread("hook", 1).await;
    let start = world.cluster.points(0).hold(points::RUN_BEFORE_START);
    for value in 1..=REQUESTS / KEYS {
        let writes = (0..KEYS).map(|key| world.set_beside_others(2, format!("k{key}"), value));
        futures::future::join_all(writes).await;
    }
    start.reached().await;
    world.register(1, &registration, 8, &second).await;
    let joined = first.seen().len();
    drop(start);
    world.spread("hook", 2).await;
    assert!(world.hooks_finish(2).await.finished);
    assert_eq!((first.seen().len() + second.seen().len()) as u64, REQUESTS, "each once");
    let keys_of = |probe: &Probe, from: usize| -> HashSet<String> {
        probe.seen()[from..].iter().map(|seen| seen.key.clone()).collect()
    };
    let of_the_second = keys_of(&second, 0);
    let left = keys_of(&first, joined).union(&of_the_second).count();
    let share = of_the_second.len();
    assert!(share * 100 >= left * 35, "the newcomer ran {share} of the {left} keys that were left");
    world.none_came_back();
    world.finish().await;
}

/// K29: a server joins while a run goes on and on in each slot: other keys of those slots go on all the while, wherever they
/// may run, and none of the long runs is interrupted, or begun elsewhere.
pub async fn k29_no_key_stands_still_for_the_long_runs_of_others(case: Case) {
    const SLOTS: u32 = 8;
    let mut world = World::new(&case, 3).await;
    let cancelled = Arc::new(AtomicUsize::new(0));
    let counted = cancelled.clone();
    let probe = Probe::answering(move |run| {
        counted.fetch_add(usize::from(run.cancelled().is_cancelled()), Ordering::SeqCst);
        Outcome::Done
    });
    let registration = per_store("hook").slots(SLOTS);
    world.register(0, &registration, 64, &probe).await;
    world.spread("hook", 1).await;
    let long = key_per_slot(&world, SLOTS);
    for key in &long {
        probe.hold(key);
        world.set(2, key, 1).await;
        probe.started(key, 1).await;
    }
    let others: Vec<String> = (0..24).map(|number| format!("other-{number}")).collect();
    world.register(1, &registration, 64, &probe).await;
    let joined = Instant::now();
    let mut due = tokio::time::interval(Duration::from_millis(100));
    let mut value = 0;
    while joined.elapsed() < BEYOND_HAND_OVER || value < 3 {
        value += 1;
        due.tick().await;
        futures::future::join_all(others.iter().map(|key| world.set_beside_others(2, key, value))).await;
        let all = others.len() * usize::try_from(value).unwrap();
        let ran = |probe: &Probe| probe.seen().iter().filter(|seen| others.contains(&seen.key)).count();
        probe.until("no key stands still", |probe| ran(probe) == all).await;
    }
    assert_eq!(long.iter().map(|key| probe.ended_of(key)).sum::<usize>(), 0, "they still run");
    world.none_came_back();
    for key in &long {
        probe.release(key);
    }
    assert!(world.hooks_finish(2).await.finished);
    assert_eq!(cancelled.load(Ordering::SeqCst), 0, "none is interrupted");
    assert!(long.iter().all(|key| probe.seen_of(key).len() == 1), "none begins again");
    world.finish().await;
}
