//! Every server dies with requests in every state that there is.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Clock;
use crate::cluster_hook::points;
use crate::driver::RequestId;
use crate::testing::points::name as point;
use crate::{
    Outcome, QueueEntry, QueueFilter, RequestState, Run, Timestamp, Transaction, TransactionError, WriteError,
};

use super::super::within;
use super::Case;
use super::faults::count_of;
use super::support::{Probe, Store, World, counted, per_store, plain_key};

/// What does not run by itself once a server has started again, or not yet.
const STANDING: [&str; 3] = ["waits", "backs-off", "dead"];

/// What runs when they die, as much as there is room for.
const RUNNING: [&str; 3] = ["running", "running-too", "running-three"];

fn answers(run: &Run) -> Outcome {
    match plain_key(run.key().as_str()) {
        "waits" => Outcome::RetryAt(Timestamp(run.now().0 + 200_000)),
        "backs-off" | "dead" | "dead-discarded" => Outcome::fail("as the test wants it"),
        _ => counted(run),
    }
}

async fn list(world: &World, server: usize) -> Vec<QueueEntry> {
    within("the queue", world.cluster.server(server).queue().list(QueueFilter::all())).await.unwrap()
}

/// A request of a key, and how often it has failed with which error.
type Listed = BTreeMap<RequestId, (String, u32, Option<String>)>;

fn listed(entries: &[QueueEntry]) -> Listed {
    let of = |entry: &QueueEntry| (plain_key(&entry.key).to_owned(), entry.attempts, entry.error.clone());
    entries.iter().map(|entry| (entry.request, of(entry))).collect()
}

/// How those stand that do not run by themselves.
fn standing(entries: &[QueueEntry]) -> BTreeMap<RequestId, RequestState> {
    let stands = |entry: &&QueueEntry| STANDING.contains(&plain_key(&entry.key));
    entries.iter().filter(stands).map(|entry| (entry.request, entry.state.clone())).collect()
}

/// Brings requests into every state, with two servers of which the first runs them.
async fn every_state(world: &mut World, probe: &Probe) {
    for key in ["done", "waits", "dead", "dead-discarded"] {
        world.set(1, key, 1).await;
    }
    probe.until("first attempts", |probe| probe.seen().len() == 4).await;
    let letters = ["dead", "dead-discarded"];
    for attempts in 2..=3 {
        // A backoff is counted from when the failure is seen, so the clock waits for that.
        world
            .eventually("what failed backs off", || async {
                let list = list(world, 1).await;
                let failed = |key: &str, times: usize| {
                    list.iter().any(|entry| {
                        let backs_off = matches!(entry.state, RequestState::BackingOff(_));
                        plain_key(&entry.key) == key && backs_off && entry.attempts as usize == times
                    })
                };
                letters.iter().all(|key| failed(key, attempts - 1)) && (attempts == 2 || failed("backs-off", 1))
            })
            .await;
        world.step(Duration::from_secs(61)).await;
        for key in letters {
            probe.started(key, attempts).await;
        }
        if attempts == 2 {
            world.set(1, "backs-off", 1).await;
            probe.started("backs-off", 1).await;
        }
    }
    probe.started("backs-off", 2).await;
    world.set(1, "dead", 2).await;
    world
        .eventually("two letters are dead, and the third request has failed twice", || async {
            let list = list(world, 1).await;
            list.iter().filter(|entry| entry.state == RequestState::Dead).count() == 2
                && list.iter().any(|entry| plain_key(&entry.key) == "backs-off" && entry.attempts == 2)
        })
        .await;
    let letter = list(world, 1).await.into_iter().find(|entry| plain_key(&entry.key) == "dead-discarded").unwrap();
    world.cluster.server(1).queue().discard(letter.request, "operator").await.unwrap();
    gone(world, letter.request).await;
}

async fn gone(world: &World, request: RequestId) {
    let is_gone = || async { !list(world, 1).await.iter().any(|entry| entry.request == request) };
    world.eventually("it is gone", is_gone).await;
}

/// K46: every server dies with requests that none has applied yet, queued, running, run and unacknowledged, acknowledged,
/// waiting for a time, backing off after the second attempt, dead, paused behind that, discarded and cancelled. One that starts
/// and has seen none of it lists what was listed before, and, once it runs the hook, all of that but for what has run. The others
/// run when their time comes, or an operator asks for it, in order per key, their attempts going on.
pub async fn k46_everything_is_as_it_was_after_all_servers_died(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::answering(answers);
    let registration = per_store("hook").attempts(3).backoff(Duration::from_secs(60), Duration::from_secs(60)).slots(4);
    world.register(0, &registration, 3, &probe).await;
    every_state(&mut world, &probe).await;
    // One has run and is not acknowledged; three take all the room; the others wait, and one of them is cancelled.
    let completion = world.cluster.points(0).hold(points::RUN_BEFORE_COMPLETION);
    world.set(1, "run", 1).await;
    completion.reached().await;
    for key in RUNNING {
        probe.hold(key);
        world.set(1, key, 1).await;
        probe.started(key, 1).await;
    }
    world.set(1, "queued", 1).await;
    world.set(1, "running", 2).await;
    let of_running = |entry: &QueueEntry| plain_key(&entry.key) == "running";
    let second = list(&world, 1).await.into_iter().filter(of_running).nth(1).unwrap().request;
    world.cluster.server(1).queue().cancel(second, "operator").await.unwrap();
    gone(&world, second).await;
    world.set(1, "running", 3).await;
    // One is committed, and no server has applied it.
    let tails = [0, 1].map(|server| world.cluster.points(server).hold(point::TAIL_BEFORE_APPLY));
    let commit = world.cluster.points(1).hold(point::COMMIT_AFTER_COMMIT);
    let (state, unapplied) = (world.cluster.server(1).clone(), world.store("unapplied"));
    let writing = tokio::spawn(async move {
        let put = move |tx: &mut Transaction| tx.put(&unapplied, Store { value: 1 });
        let _: Result<_, WriteError<TransactionError>> = state.write(put).await;
    });
    commit.reached().await;
    let head = world.cluster.meta().await.head;
    assert!([0, 1].iter().all(|server| world.cluster.server(*server).snapshot().revision() < head));

    let before = list(&world, 1).await;
    let keys: Vec<String> = listed(&before).into_values().map(|(key, ..)| key).collect();
    let count = |key: &str| keys.iter().filter(|there| *there == key).count();
    let once = ["waits", "backs-off", "run", "running-too", "running-three", "queued", "unapplied"];
    assert!(once.iter().all(|key| count(key) == 1) && count("dead") == 2 && count("running") == 2, "{before:#?}");
    assert_eq!(keys.len(), 11, "{before:#?}");
    assert!(probe.seen_of("queued").is_empty());
    world.kill(0);
    world.kill(1);
    drop((completion, commit, tails));
    writing.await.unwrap();
    world.cluster.advance(Duration::from_secs(11));

    let fresh = world.cluster.join().await;
    assert_eq!(listed(&list(&world, fresh).await), listed(&before), "before anything runs");
    let after_all = Probe::answering(answers);
    world.register(fresh, &registration, 8, &after_all).await;
    let only_standing = || async {
        let left = list(&world, fresh).await;
        left.iter().all(|entry| STANDING.contains(&plain_key(&entry.key)))
    };
    world.eventually("what could run is done", only_standing).await;
    let after = list(&world, fresh).await;
    assert_eq!(standing(&after), standing(&before));
    let mut left = listed(&before);
    left.retain(|_, (key, ..)| STANDING.contains(&key.as_str()));
    assert_eq!(listed(&after), left);
    let mut ran: Vec<_> = after_all.seen().into_iter().map(|seen| (seen.key, seen.after)).collect();
    ran.sort();
    let mut expected: Vec<_> = ["queued", "run", "unapplied"].iter().chain(&RUNNING).map(|key| (*key, 1)).collect();
    expected.push(("running", 3));
    expected.sort_unstable();
    let expected: Vec<_> = expected.into_iter().map(|(key, value)| (key.to_owned(), Some(value))).collect();
    assert_eq!(ran, expected, "nothing else, and nothing twice");
    for key in ["done", "run", "running-too", "running-three", "queued", "unapplied"] {
        assert_eq!(count_of(&world, fresh, key).await, 1, "{key}");
    }
    assert_eq!(count_of(&world, fresh, "running").await, 2);

    // Their time comes.
    after_all.answer(counted);
    let until = |key: &str| {
        let entry = after.iter().find(|entry| plain_key(&entry.key) == key).unwrap();
        match entry.state {
            RequestState::BackingOff(until) | RequestState::RetryAt(until) => until,
            _ => panic!("{entry:?}"),
        }
    };
    assert!(until("backs-off") < until("waits"));
    for (key, attempt) in [("backs-off", 3), ("waits", 1)] {
        let early = until(key).since(Clock::now(world.cluster.clock())).saturating_sub(Duration::from_millis(1));
        world.step(early).await;
        assert!(after_all.seen_of(key).is_empty(), "{key} runs before its time");
        world.step(Duration::from_millis(1)).await;
        after_all.started(key, 1).await;
        assert_eq!(after_all.seen_of(key)[0].attempt, attempt, "{key}");
    }
    let letter = after.iter().find(|entry| entry.state == RequestState::Dead).unwrap().request;
    world.cluster.server(fresh).queue().retry(letter, "operator").await.unwrap();
    assert!(world.hooks_finish(fresh).await.finished);
    let values: Vec<_> = after_all.seen_of("dead").iter().map(|seen| seen.after).collect();
    assert_eq!(values, [Some(1), Some(2)], "the letter, and then what was paused behind it");
    assert!(after_all.seen_of("dead-discarded").is_empty());
    world.finish().await;
}
