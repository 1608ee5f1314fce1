//! A server that joins while much is waiting.

use std::collections::HashSet;
use std::time::Duration;

use crate::cluster_hook::points;

use super::Case;
use super::support::{Probe, World, per_store};

const KEYS: u64 = 500;
const REQUESTS: u64 = 5_000;

/// K29: with 5 000 requests of 500 keys waiting a second server joins: each has half of the slots, and the newcomer runs at
/// least a third of the keys that were left. The history has each in its order, and none twice.
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
    world.finish().await;
}
