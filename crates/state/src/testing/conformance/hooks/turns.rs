//! Whose turn it is among the keys of one slot.

use std::time::Duration;

use crate::cluster_hook::points;
use crate::driver::RequestId;
use crate::testing::history::{HistoryEvent, Line};
use crate::{Outcome, QueueFilter, RequestState, Run};

use super::Case;
use super::support::{Probe, Seen, Store, World, counted, per_store, plain_key};

const OTHERS: [&str; 2] = ["y", "z"];

fn is_set_to(run: &Run, value: u64) -> bool {
    let after = run.change().and_then(|change| change.after::<Store>().unwrap());
    after.is_some_and(|store| store.value == value)
}

/// Where the history says that a request's receipt is durable.
fn durable_at(lines: &[Line], of: RequestId) -> Option<usize> {
    let is_it =
        |event: &HistoryEvent| matches!(event, HistoryEvent::Receipt { request, durable: true, .. } if *request == of);
    lines.iter().position(|line| is_it(&line.event))
}

/// The other keys of the slot get their next change, which is run and acknowledged.
async fn others_go_on(world: &World, probe: &Probe, value: u64) {
    for key in OTHERS {
        world.set(1, key, value).await;
    }
    let acknowledged = || async {
        let lines = world.recorder.lines();
        OTHERS.iter().all(|key| {
            let seen = probe.seen_of(key);
            seen.len() as u64 == value && seen.iter().all(|seen| durable_at(&lines, seen.request).is_some())
        })
    };
    world.eventually("the other keys' runs are acknowledged", acknowledged).await;
}

/// Each request of a key started only after the receipt of the one before was durable.
fn each_started_after_the_receipt_before(lines: &[Line], seen: &[Seen]) {
    for pair in seen.windows(2).filter(|pair| pair[0].request != pair[1].request) {
        let (before, next) = (pair[0].request, pair[1].request);
        let starts =
            |event: &HistoryEvent| matches!(event, HistoryEvent::RunStarted { request, .. } if *request == next);
        let started = lines.iter().position(|line| starts(&line.event)).unwrap();
        assert!(durable_at(lines, before).unwrap() < started, "{next} started before {before} was durable");
    }
}

/// K14: while a key's run goes on, while its receipt is held before its commit, and while it waits to be tried again, the
/// key's next request does not start; other keys of the slot start, end and are acknowledged.
pub async fn k14_a_key_waits_for_its_receipt_and_other_keys_of_its_slot_do_not(case: Case) {
    // A receipt is sent by itself, or together with what its run wrote. The others' take the way that is not held.
    for (writes, place) in [(false, points::RUN_BEFORE_RECEIPT), (true, points::RUN_BEFORE_COMPLETION)] {
        // Given one slot with keys x, y and z, of which x has four requests and runs the first.
        let mut world = World::new(&case, 2).await;
        let probe = Probe::answering(move |run| {
            let is_x = plain_key(run.key().as_str()) == "x";
            if is_x && run.attempt() == 1 && is_set_to(run, 3) {
                return Outcome::fail("not yet");
            }
            if is_x == writes { counted(run) } else { Outcome::Done }
        });
        world.register(0, &per_store("hook").slots(1), 8, &probe).await;
        probe.hold("x");
        for value in 1..=4 {
            world.set(1, "x", value).await;
        }
        let mut changes_of_others = 1..;
        for number in 1..=2 {
            // When its run goes on, and when that has ended and its receipt is held.
            probe.started("x", number).await;
            others_go_on(&world, &probe, changes_of_others.next().unwrap()).await;
            assert_eq!(probe.seen_of("x").len(), number, "{place}: run {number} goes on");
            let receipt = world.cluster.points(0).hold(place);
            probe.release("x");
            receipt.reached().await;
            probe.hold("x");
            others_go_on(&world, &probe, changes_of_others.next().unwrap()).await;
            // Then the next one has not started.
            assert_eq!(probe.seen_of("x").len(), number, "{place}: the receipt of {number} is not durable");
            receipt.release();
        }
        // When the third fails, to be tried again, then the fourth waits behind it.
        probe.started("x", 3).await;
        probe.release("x");
        let backs_off = || async {
            let list = world.cluster.server(1).queue().list(QueueFilter::all()).await.unwrap();
            let is_held = |state: &RequestState| matches!(state, RequestState::BackingOff(_));
            list.iter().any(|entry| plain_key(&entry.key) == "x" && is_held(&entry.state))
        };
        world.eventually("the third is to be tried again", backs_off).await;
        others_go_on(&world, &probe, changes_of_others.next().unwrap()).await;
        assert_eq!(probe.seen_of("x").len(), 3, "{place}: the fourth waits behind the failed third");
        world.step(Duration::from_secs(4)).await;
        assert!(world.hooks_finish(1).await.finished, "{place}");
        let seen = probe.seen_of("x");
        let values: Vec<_> = seen.iter().map(|seen| seen.after).collect();
        assert_eq!(values, [1, 2, 3, 3, 4].map(Some), "{place}");
        each_started_after_the_receipt_before(&world.recorder.lines(), &seen);
        world.finish().await;
    }
}
