//! Servers that are held, cut off or die: who may still change what, and who runs again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster_hook::points;
use crate::driver::SettleFault;
use crate::testing::history::HistoryEvent;
use crate::testing::points::name as point;
use crate::{Outcome, QueueFilter, RequestState, Transaction, TransactionError, slot_index};

use super::super::within;
use super::Case;
use super::support::{Effect, Probe, World, counted, effect, per_store, plain_key};

/// Two servers and a third that only writes; the first one owns the only slot.
pub(super) async fn owner_and_successor(case: &Case, slots: u32) -> (World, Probe, Probe) {
    let mut world = World::new(case, 3).await;
    let (first, second) = (Probe::answering(counted), Probe::answering(counted));
    let registration = per_store("hook").slots(slots);
    world.register(0, &registration, 8, &first).await;
    world.spread("hook", 1).await;
    if slots == 1 {
        world.register(1, &registration, 8, &second).await;
    }
    (world, first, second)
}

pub(super) async fn count_of(world: &World, server: usize, id: &str) -> u64 {
    let state = world.cluster.server(server);
    state.flush().await.unwrap();
    state.snapshot().get(&world.effect(id)).unwrap().map_or(0, |effect| effect.count)
}

/// K9: an owner that was held past its lease completes, with writes or without, alone or in one group with other
/// transactions, while its successor has completed or still runs: it is refused, and changes nothing.
pub async fn k09_zombie_completion_is_refused(case: Case) {
    for (successor_has_completed, writes) in [(true, true), (true, false), (false, true), (false, false)] {
        let (world, first, second) = owner_and_successor(&case, 1).await;
        if !writes {
            first.answer(|_| Outcome::Done);
        }
        first.hold("a");
        if !successor_has_completed {
            second.hold("a");
        }
        world.set(2, "a", 1).await;
        first.started("a", 1).await;
        let points = world.cluster.points(0).clone();
        let (heartbeat, lapse) = (points.hold(points::SLOT_BEFORE_HEARTBEAT), points.hold(points::SLOT_BEFORE_LAPSE));
        world.step(Duration::from_secs(12)).await;
        second.started("a", 1).await;
        if successor_has_completed {
            world.hooks_finish(2).await;
        }
        // What it writes waits for the lock together with transactions of others on that server.
        let group = points.hold(point::COMMIT_BEFORE_LOCK);
        let beside = world.cluster.server(0).clone();
        let mut beside = Box::pin(async move {
            let put = |tx: &mut Transaction| tx.put(&effect("beside"), Effect { count: 1, last: 0 });
            beside.write::<_, TransactionError, _>(put).await
        });
        assert!(futures::poll!(&mut beside).is_pending());
        group.reached().await;
        first.release("a");
        first.until("the zombie's run ends", |probe| probe.ended_of("a") == 1).await;
        group.release();
        within("the other of the group", beside).await.unwrap();
        let refused = || async {
            world.recorder.lines().iter().any(|line| {
                matches!(&line.event, HistoryEvent::Receipt { durable: false, .. }) && line.server == "server-0"
            })
        };
        world.eventually("the zombie is refused", refused).await;
        second.release("a");
        world.hooks_finish(2).await;
        let (old, new) = (&first.seen()[0], &second.seen()[0]);
        assert_eq!(old.request, new.request);
        assert!(new.token > old.token, "a resource that refuses lower tokens takes no stale write");
        assert_eq!(count_of(&world, 2, "a").await, 1);
        let receipts = world.cluster.stored().await.receipts;
        let of_it: Vec<_> = receipts.iter().filter(|receipt| receipt.request == new.request).collect();
        assert_eq!(of_it.len(), 1);
        assert_eq!(of_it[0].fence.token.0, new.token >> 24, "the successor's receipt stands");
        drop((heartbeat, lapse));
        // It joins anew and works again.
        world.set(2, "b", 1).await;
        world.hooks_finish(2).await;
        world.finish().await;
    }
}

/// K10: what was about to begin when its server came to stand still for longer than a lease does not begin when the server
/// goes on, also where it has not come to notice that its lease is over. Its successor runs it, and no attempt is counted.
pub async fn k10_what_was_about_to_begin_when_the_lease_ended_does_not_begin(case: Case) {
    let (world, first, second) = owner_and_successor(&case, 1).await;
    let points = world.cluster.points(0).clone();
    let begin = points.hold(points::RUN_BEFORE_START);
    world.set(2, "a", 1).await;
    begin.reached().await;
    let (heartbeat, lapse) = (points.hold(points::SLOT_BEFORE_HEARTBEAT), points.hold(points::SLOT_BEFORE_LAPSE));
    world.step(Duration::from_secs(12)).await;
    second.started("a", 1).await;
    begin.release();
    world.hooks_finish(2).await;
    assert_eq!(second.seen()[0].attempt, 1);
    drop((heartbeat, lapse));
    let gives_up = || async {
        let lost = |event: &HistoryEvent| matches!(event, HistoryEvent::SlotLost { .. });
        world.recorder.lines().iter().any(|line| lost(&line.event) && line.server == "server-0")
    };
    world.eventually("it gives its slot up", gives_up).await;
    assert!(first.seen().is_empty(), "{:?}", first.seen());
    // It joins anew and works again.
    world.set(2, "b", 1).await;
    world.hooks_finish(2).await;
    world.finish().await;
}

/// K10: a server that hears nothing cancels its runs when its lease ends.
pub async fn k10_a_server_that_hears_nothing_cancels_its_runs_when_its_lease_ends(case: Case) {
    let (world, first, second) = owner_and_successor(&case, 1).await;
    let cancelled = Arc::new(parking_lot::Mutex::new(None));
    let noted = cancelled.clone();
    first.answer(move |run| {
        *noted.lock() = Some(run.cancelled().is_cancelled());
        Outcome::Done
    });
    first.hold("a");
    world.set(2, "a", 1).await;
    first.started("a", 1).await;
    world.cluster.faults(0).lose_heartbeat_answers(true);
    let heartbeat = world.cluster.points(0).hold(points::SLOT_AFTER_HEARTBEAT);
    world.step(Duration::from_secs(9)).await;
    world.set(2, "b", 1).await;
    first.started("b", 1).await;
    world.step(Duration::from_secs(3)).await;
    world
        .eventually("it gives its slot up", || async {
            world
                .recorder
                .lines()
                .iter()
                .any(|line| matches!(&line.event, HistoryEvent::SlotLost { .. }) && line.server == "server-0")
        })
        .await;
    // It has a while to clean up before it is aborted.
    first.release("a");
    first.until("the run ends", |probe| probe.ended_of("a") == 1).await;
    assert_eq!(*cancelled.lock(), Some(true));
    world.set(2, "c", 1).await;
    world.cluster.server(0).flush().await.unwrap();
    assert!(first.seen_of("c").is_empty(), "it starts nothing more");
    world.cluster.faults(0).lose_heartbeat_answers(false);
    drop(heartbeat);
    world.step(Duration::from_secs(12)).await;
    // Whoever leases the slot next, which may be the same server in its next life.
    world.hooks_finish(2).await;
    assert_eq!(first.seen_of("a").len() + second.seen_of("a").len(), 2);
    world.finish().await;
}

/// K12: refused writes and panics are failed attempts.
pub async fn k12_refused_writes_and_panics_are_failed_attempts(case: Case) {
    let mut world = World::new(&case, 1).await;
    let probe = Probe::answering(|run| match (plain_key(run.key().as_str()), run.attempt()) {
        ("rejected", 1) => Outcome::done_with(|tx| {
            tx.put(&super::support::store("made"), super::support::Store { value: 1 })?;
            Err(crate::TransactionError::rejected("not so"))
        }),
        ("panics", 1) => panic!("as the test wants it"),
        _ => Outcome::Done,
    });
    world.register(0, &per_store("hook"), 1, &probe).await;
    world.set(0, "rejected", 1).await;
    world.set(0, "panics", 1).await;
    world
        .eventually("both back off", || async {
            let list = world.cluster.server(0).queue().list(QueueFilter::all()).await.unwrap();
            list.len() == 2 && list.iter().all(|entry| matches!(entry.state, RequestState::BackingOff(_)))
        })
        .await;
    let list = world.cluster.server(0).queue().list(QueueFilter::all()).await.unwrap();
    let error = |key: &str| list.iter().find(|entry| plain_key(&entry.key) == key).unwrap().error.clone().unwrap();
    assert!(error("rejected").contains("not so"), "{}", error("rejected"));
    assert!(error("panics").contains("as the test wants it"), "{}", error("panics"));
    assert!(!world.cluster.server(0).snapshot().contains(super::support::store("made").path()));
    world.step(Duration::from_secs(4)).await;
    assert!(world.hooks_finish(0).await.finished);
    world.finish().await;
}

/// K12: writes that run over their time budget are a failed attempt, whether they ever come back or not: nothing of them is
/// applied, the place is free again, and the request is tried again.
pub async fn k12_writes_over_their_time_budget_are_a_failed_attempt(case: Case) {
    // Given room for one run, and two hooks' writes that don't end: one goes on reading, one never comes back.
    let mut world = World::configured(&case, 1, |_, mut options| {
        options.transaction_budget = Duration::from_millis(500);
        options
    })
    .await;
    let (never, waiting) = std::sync::mpsc::channel::<()>();
    let waiting = Arc::new(parking_lot::Mutex::new(waiting));
    let came_back = Arc::new(AtomicBool::new(false));
    let noted = came_back.clone();
    let probe = Probe::answering(move |run| {
        let key = plain_key(run.key().as_str()).to_owned();
        if run.attempt() > 1 || key == "other" {
            return counted(run);
        }
        let (path, waiting, noted) = (effect(&run.id("store").unwrap()), waiting.clone(), noted.clone());
        Outcome::done_with(move |tx| {
            tx.put(&path, Effect { count: 77, last: 77 })?;
            if key == "reads" {
                loop {
                    tx.get(&path)?;
                }
            }
            let _ = waiting.lock().recv();
            noted.store(true, Ordering::SeqCst);
            tx.put(&path, Effect { count: 78, last: 78 })
        })
    });
    world.register(0, &per_store("hook"), 1, &probe).await;
    // When both have run.
    world.set(0, "reads", 1).await;
    world.set(0, "stuck", 1).await;
    let list = || async { world.cluster.server(0).queue().list(QueueFilter::all()).await.unwrap() };
    let back_off = || async {
        let list = list().await;
        list.len() == 2 && list.iter().all(|entry| matches!(entry.state, RequestState::BackingOff(_)))
    };
    world.eventually("both back off", back_off).await;
    // Then each is a failed attempt that says why, without an effect, and in nobody's way.
    for entry in list().await {
        let error = entry.error.unwrap();
        assert!(error.contains("its budget is 500ms"), "{}: {error}", entry.key);
        assert_eq!(entry.attempts, 1, "{}", entry.key);
    }
    world.set(0, "other", 1).await;
    world.eventually("another key is run", || async { count_of(&world, 0, "other").await == 1 }).await;
    for key in ["reads", "stuck"] {
        assert_eq!(count_of(&world, 0, key).await, 0, "{key}");
    }
    world.step(Duration::from_secs(4)).await;
    assert!(world.hooks_finish(0).await.finished);
    // What was given up comes back in the end, to no effect.
    drop(never);
    world.eventually("it comes back", || std::future::ready(came_back.load(Ordering::SeqCst))).await;
    world.set(0, "other", 2).await;
    assert!(world.hooks_finish(0).await.finished);
    for key in ["reads", "stuck"] {
        let attempts: Vec<u32> = probe.seen_of(key).iter().map(|seen| seen.attempt).collect();
        assert_eq!((attempts, count_of(&world, 0, key).await), (vec![1, 2], 1), "{key}");
    }
    world.finish().await;
}

/// K5: a run waits until its server has applied the request.
pub async fn k05_a_run_waits_until_its_server_has_applied_the_request(case: Case) {
    let (mut world, first, second) = owner_and_successor(&case, 1).await;
    let tail = world.cluster.points(0).hold(point::TAIL_BEFORE_APPLY);
    let revision = world.set(2, "a", 5).await;
    tail.reached().await;
    assert!(first.seen().is_empty());
    tail.release();
    first.started("a", 1).await;
    world.hooks_finish(2).await;
    assert!(first.seen()[0].snapshot >= revision);
    // The successor finds a request in the log that its own tail has not brought.
    let start = world.cluster.points(0).hold(points::RUN_BEFORE_START);
    let tail = world.cluster.points(1).hold(point::TAIL_BEFORE_APPLY);
    let revision = world.set(2, "a", 6).await;
    start.reached().await;
    tail.reached().await;
    world.kill(0);
    drop(start);
    let read = world.cluster.points(1).hold(points::SLOT_READ);
    world.step(Duration::from_secs(12)).await;
    read.reached().await;
    read.release();
    assert!(second.seen().is_empty());
    tail.release();
    second.started("a", 1).await;
    world.hooks_finish(2).await;
    let seen = second.seen();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].snapshot >= revision);
    assert_eq!((seen[0].before, seen[0].after), (Some(5), Some(6)));
    world.finish().await;
}

/// K45: a receipt is there before the next owner looks or refused.
pub async fn k45_a_receipt_is_there_before_the_next_owner_looks_or_refused(case: Case) {
    let (world, first, second) = owner_and_successor(&case, 1).await;
    first.answer(|_| Outcome::Done);
    second.answer(|_| Outcome::Done);
    // Held before its commit until another owns the slot: refused, and the request runs again there.
    let receipt = world.cluster.points(0).hold(points::RUN_BEFORE_RECEIPT);
    world.set(2, "a", 1).await;
    first.started("a", 1).await;
    receipt.reached().await;
    let points = world.cluster.points(0).clone();
    let (heartbeat, lapse) = (points.hold(points::SLOT_BEFORE_HEARTBEAT), points.hold(points::SLOT_BEFORE_LAPSE));
    world.step(Duration::from_secs(12)).await;
    second.started("a", 1).await;
    world.hooks_finish(2).await;
    receipt.release();
    world
        .eventually("the late receipt is refused", || async {
            world.recorder.lines().iter().any(|line| {
                matches!(&line.event, HistoryEvent::Receipt { durable: false, .. }) && line.server == "server-0"
            })
        })
        .await;
    drop((heartbeat, lapse));
    // Committed, and the answer lost: found to be there, once; the next of the key starts only then.
    second.hold("b");
    world.set(2, "b", 1).await;
    world.set(2, "b", 2).await;
    second.started("b", 1).await;
    world.cluster.faults(1).next_settles([SettleFault::AppliedAnswerLost, SettleFault::NotApplied]);
    second.release("b");
    world.hooks_finish(2).await;
    assert_eq!(second.seen_of("b").len(), 2);
    world.finish().await;
}

/// K45: a batch has receipts of three slots, of which one has passed on: those of the other two count. What passed on
/// runs again under its next owner.
pub async fn k45_a_batch_counts_but_for_the_slot_that_was_lost(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::new();
    world.register(0, &per_store("hook").slots(3), 8, &probe).await;
    world.spread("hook", 1).await;
    let keys = super::moving::key_per_slot(&world, 3);
    let receipts = world.cluster.points(0).hold(points::RUN_BEFORE_RECEIPT);
    for key in &keys {
        world.set(1, key, 1).await;
    }
    for key in &keys {
        probe.started(key, 1).await;
    }
    receipts.reached().await;
    // Behind its back, as by a take-over of which it has not heard.
    let lost = slot_index(&world.key(&keys[0]), 3);
    let change: crate::testing::Tamper = Box::new(move |stored| {
        stored.token_counter.0 += 1;
        let token = stored.token_counter;
        let row = stored.slots.iter_mut().find(|row| row.slot.slot == lost).unwrap();
        (row.owner, row.token) = (None, token);
    });
    world.cluster.store().tamper(change).await.unwrap();
    receipts.release();
    assert!(world.hooks_finish(1).await.finished);
    let runs: Vec<usize> = keys.iter().map(|key| probe.seen_of(key).len()).collect();
    assert_eq!(runs, [2, 1, 1]);
    let seen = probe.seen_of(&keys[0]);
    assert!(seen[1].token > seen[0].token);
    let stored = world.cluster.stored().await;
    assert_eq!(stored.receipts.len(), 3);
    world.finish_over_epochs().await;
}

/// K45: an owner completes with writes, in one group with other transactions, while a take-over of its slot is held: the
/// completion is there before the next owner reads, or it is refused; the others of the group commit.
pub async fn k45_a_completion_and_a_take_over_do_not_cross(case: Case) {
    for completes_first in [true, false] {
        let (world, first, second) = owner_and_successor(&case, 1).await;
        first.hold("a");
        world.set(2, "a", 1).await;
        first.started("a", 1).await;
        let server = world.cluster.points(0).clone();
        let (heartbeat, lapse) = (server.hold(points::SLOT_BEFORE_HEARTBEAT), server.hold(points::SLOT_BEFORE_LAPSE));
        let take = world.cluster.points(1).hold(points::SLOT_BEFORE_LEASE);
        world.step(Duration::from_secs(12)).await;
        take.reached().await;
        let lock = server.hold(point::COMMIT_BEFORE_LOCK);
        let beside = world.cluster.server(0).clone();
        let mut beside = Box::pin(async move {
            let put = |tx: &mut Transaction| tx.put(&effect("beside"), Effect { count: 1, last: 0 });
            beside.write::<_, TransactionError, _>(put).await
        });
        assert!(futures::poll!(&mut beside).is_pending());
        let beside = tokio::spawn(beside);
        first.release("a");
        first.until("its run ends", |probe| probe.ended_of("a") == 1).await;
        let sent = || async { server.count(points::RUN_BEFORE_COMPLETION) > 0 };
        world.eventually("its completion is sent", sent).await;
        lock.reached().await;
        let group = server.hold(point::COMMIT_BEFORE_COMMIT);
        lock.release();
        group.reached().await;
        if completes_first {
            group.release();
            within("the other of the group", beside).await.unwrap().unwrap();
            take.release();
        } else {
            take.release();
            group.release();
            within("the other of the group", beside).await.unwrap().unwrap();
        }
        assert!(world.hooks_finish(2).await.finished);
        let stored = world.cluster.stored().await;
        assert_eq!(stored.receipts.len(), 1, "there once, whoever was first");
        // Either it was there before the next owner read, and does not run again, or it was refused, and does.
        let by_the_first = stored.receipts[0].fence.token.0 == first.seen()[0].token >> 24;
        assert_eq!(second.seen_of("a").len(), usize::from(!by_the_first));
        assert_eq!(count_of(&world, 2, "a").await, 1);
        drop((heartbeat, lapse));
        world.finish().await;
    }
}
