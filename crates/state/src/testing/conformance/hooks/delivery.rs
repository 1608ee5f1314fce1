//! What a hook is given, how often, and in which order.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::{Outcome, Transaction, TransactionError, WriteError};

use super::Case;
use super::support::{LIMIT, Probe, Store, World, counted, per_store, plain_key};

/// K2: no fault each change once.
pub async fn k02_no_fault_each_change_once(case: Case) {
    let mut world = World::new(&case, 3).await;
    let every = Probe::answering(counted);
    let every_too = Probe::new();
    let latest = Probe::new();
    world.register_everywhere(&per_store("every"), 16, &every).await;
    world.register_everywhere(&per_store("every-too").slots(3), 2, &every_too).await;
    world.register_everywhere(&per_store("latest").latest_state(), 16, &latest).await;
    for hook in ["every", "every-too", "latest"] {
        world.spread(hook, 3).await;
    }
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut committed = HashSet::new();
    for round in 0..20 {
        let mut writes = Vec::new();
        for key in 0..100 {
            let id = format!("store-{key}");
            let value = round * 1_000 + key;
            last.insert(id.clone(), value);
            let (state, entity) = (world.cluster.server((key % 3) as usize).clone(), world.store(&id));
            writes.push(async move {
                let write = state.write(move |tx: &mut Transaction| tx.put(&entity, Store { value }));
                let done: Result<_, WriteError<TransactionError>> = write.await;
                done.unwrap().revision
            });
        }
        committed.extend(futures::future::join_all(writes).await);
    }
    let report = world.hooks_finish(1).await;
    assert!(report.finished, "{report:?}");
    for probe in [&every, &every_too] {
        let seen: Vec<_> = probe.seen().iter().map(|seen| seen.request.revision).collect();
        assert_eq!(seen.len(), 2_000);
        assert_eq!(seen.iter().copied().collect::<HashSet<_>>(), committed);
        assert!(probe.seen().iter().all(|seen| seen.attempt == 1));
    }
    for (id, value) in last {
        assert_eq!(latest.seen_of(&id).last().unwrap().after, Some(value), "{id}");
    }
    world.finish().await;
}

/// K13: keys in order one at a time.
pub async fn k13_keys_in_order_one_at_a_time(case: Case) {
    for slots in [1, 5] {
        let mut world = World::new(&case, 3).await;
        let probe = Probe::new();
        probe.pause(Duration::from_millis(2));
        world.register_everywhere(&per_store("hook").slots(slots), 4, &probe).await;
        world.spread("hook", 3.min(slots as usize)).await;
        for value in 0..200 {
            let writes = (0..5).map(|key| world.set((value % 3) as usize, format!("k{key}"), value + 1));
            futures::future::join_all(writes).await;
        }
        world.hooks_finish(0).await;
        for key in 0..5 {
            let values: Vec<_> = probe.seen_of(&format!("k{key}")).iter().map(|seen| seen.after.unwrap()).collect();
            assert_eq!(values, (1..=200).collect::<Vec<_>>(), "k{key} with {slots} slots");
        }
        world.finish().await;
    }
}

/// K15: latest state coalesces into one further run.
pub async fn k15_latest_state_coalesces_into_one_further_run(case: Case) {
    let mut world = World::new(&case, 1).await;
    let probe = Probe::new();
    world.register(0, &per_store("hook").latest_state(), 4, &probe).await;
    for fails_first in [false, true] {
        let key = if fails_first { "failing" } else { "fine" };
        probe.hold(key);
        world.set(0, key, 1).await;
        probe.started(key, 1).await;
        let mut fifth = world.set(0, key, 2).await;
        for value in 3..=6 {
            fifth = world.set(0, key, value).await;
        }
        probe.answer(move |run| {
            if fails_first && run.attempt() == 1 && plain_key(run.key().as_str()) == "failing" && run.revision() < fifth
            {
                Outcome::fail("not yet")
            } else {
                Outcome::Done
            }
        });
        let label = crate::cluster_hook::metrics::label("hook");
        let queued = || async { world.cluster.server(0).metrics().hooks.queued.get_or_create(&label).get() == 6 };
        world.eventually("its owner has them all", queued).await;
        probe.release(key);
        if fails_first {
            probe.until("the first run ends", |probe| probe.ended_of(key) >= 1).await;
            world
                .eventually("it backs off", || async {
                    let list = world.cluster.server(0).queue().list(crate::QueueFilter::all()).await.unwrap();
                    list.iter().any(|entry| matches!(entry.state, crate::RequestState::BackingOff(_)))
                })
                .await;
            world.step(Duration::from_secs(2)).await;
        }
        world.hooks_finish(0).await;
        let seen = probe.seen_of(key);
        assert_eq!(seen.len(), 2, "{seen:#?}");
        assert!(seen[1].snapshot >= fifth);
        assert_eq!(seen[1].after, Some(6));
    }
    world.finish().await;
}

/// K3: what did not happen asks for no run.
pub async fn k03_what_did_not_happen_asks_for_no_run(case: Case) {
    let mut world = World::configured(&case, 1, |_, mut options| {
        options.write_limit = Duration::from_millis(500);
        options
    })
    .await;
    let probe = Probe::new();
    world.register(0, &per_store("hook"), 4, &probe).await;
    let state = world.cluster.server(0).clone();
    let (a, b) = (world.store("a"), world.store("b"));
    let target = a.clone();
    let refused: Result<_, WriteError<TransactionError>> = state
        .write(move |tx: &mut Transaction| {
            tx.put(&target, Store { value: 1 })?;
            Err::<(), _>(TransactionError::rejected("no"))
        })
        .await;
    assert!(refused.is_err());
    let target = a.clone();
    let differs: Result<_, WriteError<TransactionError>> = state
        .write(move |tx: &mut Transaction| {
            tx.put(&target, Store { value: 1 })?;
            tx.expect(&b, Some(&Store { value: 1 }))
        })
        .await;
    assert!(differs.is_err());
    world.delete(0, "nothing").await;
    let target = a.clone();
    let undone: Result<_, WriteError<TransactionError>> = state
        .write(move |tx: &mut Transaction| {
            tx.put(&target, Store { value: 1 })?;
            tx.delete(&target).map(|_| ())
        })
        .await;
    undone.unwrap();
    // A commit whose outcome is unknown, and which failed.
    let hold = world.cluster.points(0).hold(crate::testing::points::name::COMMIT_AFTER_COMMIT);
    world.cluster.faults(0).next_commits([crate::driver::CommitFault::NotAppliedAnswerLost]);
    let writer = state.clone();
    let unknown = tokio::spawn(async move {
        let done: Result<_, WriteError<TransactionError>> =
            writer.write(move |tx: &mut Transaction| tx.put(&a, Store { value: 1 })).await;
        done.map(|_| ())
    });
    hold.reached().await;
    world.cluster.faults(0).set_absent(true);
    hold.release();
    let unknown = super::super::within("the unknown write's answer", unknown).await.unwrap();
    assert!(matches!(unknown, Err(WriteError::Unknown { .. })), "{unknown:?}");
    world.cluster.faults(0).set_absent(false);
    world.cluster.server(0).flush().await.unwrap();
    world.hooks_finish(0).await;
    assert!(probe.seen().is_empty());
    let stored = world.cluster.stored().await;
    let asks = |entry: &crate::driver::LogEntry| matches!(entry, crate::driver::LogEntry::Change { hooks, .. } if !hooks.is_empty());
    assert!(!stored.log.iter().any(|row| row.entries.iter().any(asks)));
    world.finish().await;
}

/// K17: a delete reaches its hook after everyone died.
pub async fn k17_a_delete_reaches_its_hook_after_everyone_died(case: Case) {
    let mut world = World::new(&case, 2).await;
    let (every, latest) = (Probe::new(), Probe::new());
    world.register_everywhere(&per_store("every"), 4, &every).await;
    world.register_everywhere(&per_store("latest").latest_state(), 4, &latest).await;
    world.set(0, "a", 7).await;
    world.hooks_finish(0).await;
    // Nobody applies what is committed from here on.
    let hold = world.cluster.points(0).hold(crate::testing::points::name::COMMIT_AFTER_COMMIT);
    let tail = world.cluster.points(1).hold(crate::testing::points::name::TAIL_BEFORE_APPLY);
    let state = world.cluster.server(0).clone();
    let target = world.store("a");
    let deleting = tokio::spawn(async move {
        let done: Result<_, WriteError<TransactionError>> =
            state.write(move |tx: &mut Transaction| tx.delete(&target).map(|_| ())).await;
        done.map(|_| ())
    });
    hold.reached().await;
    world.kill(0);
    world.kill(1);
    drop((hold, tail));
    let _ = deleting.await;
    let (every_again, latest_again) = (Probe::new(), Probe::new());
    world.cluster.advance(Duration::from_secs(11));
    world.restart(1).await;
    world.register(1, &per_store("every"), 4, &every_again).await;
    world.register(1, &per_store("latest").latest_state(), 4, &latest_again).await;
    every_again.started("a", 1).await;
    latest_again.started("a", 1).await;
    world.hooks_finish(1).await;
    let seen = every_again.seen_of("a");
    assert_eq!((seen.len(), seen[0].before, seen[0].after), (1, Some(7), None));
    assert_eq!(latest_again.seen_of("a").last().unwrap().after, None);
    world.finish().await;
}

/// K1: every server dies before it applied the change.
pub async fn k01_every_server_dies_before_it_applied_the_change(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::new();
    world.register_everywhere(&per_store("hook"), 4, &probe).await;
    let hold = world.cluster.points(0).hold(crate::testing::points::name::COMMIT_AFTER_COMMIT);
    let tail = world.cluster.points(1).hold(crate::testing::points::name::TAIL_BEFORE_APPLY);
    let state = world.cluster.server(0).clone();
    let target = world.store("a");
    let writing = tokio::spawn(async move {
        let done: Result<_, WriteError<TransactionError>> =
            state.write(move |tx: &mut Transaction| tx.put(&target, Store { value: 1 })).await;
        done.map(|_| ())
    });
    hold.reached().await;
    world.kill(0);
    world.kill(1);
    drop((hold, tail));
    let _ = writing.await;
    assert!(probe.seen().is_empty());
    world.cluster.advance(Duration::from_secs(11));
    world.restart(0).await;
    let probe = Probe::new();
    world.register(0, &per_store("hook"), 4, &probe).await;
    probe.started("a", 1).await;
    world.hooks_finish(0).await;
    assert_eq!(probe.seen().len(), 1);
    world.finish().await;
}

/// K16: latest state without room runs at most twice.
pub async fn k16_latest_state_without_room_runs_at_most_twice(case: Case) {
    let mut world = World::new(&case, 1).await;
    let probe = Probe::new();
    world.register(0, &per_store("hook").latest_state(), 1, &probe).await;
    probe.hold("busy");
    world.set(0, "busy", 1).await;
    probe.started("busy", 1).await;
    for value in 1..=100 {
        world.set(0, "a", value).await;
    }
    world.set(0, "gone", 1).await;
    world.delete(0, "gone").await;
    probe.release("busy");
    world.hooks_finish(0).await;
    let seen = probe.seen_of("a");
    assert!(seen.len() <= 2, "{}", seen.len());
    assert_eq!(seen.last().unwrap().after, Some(100));
    assert_eq!(probe.seen_of("gone").last().unwrap().after, None);
    assert!(tokio::time::timeout(LIMIT, world.finish()).await.is_ok());
}
