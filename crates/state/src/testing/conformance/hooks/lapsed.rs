//! A server whose lease has ended with runs in many slots: what others have taken over, and what nobody has.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cluster_hook::points;
use crate::driver::{Faults, ServerId, ServerRow, SlotToken};
use crate::testing::history::{HistoryEvent, Line};

use super::Case;
use super::faults::count_of;
use super::moving::key_per_slot;
use super::support::{Probe, World, counted, per_store};

const SLOTS: u32 = 20;
/// So many of them are another's by the time that the server goes on.
const TAKEN: usize = 8;

/// K43: a server with a run in each of twenty slots is stopped past its lease, and eight of them are taken over. It goes on:
/// its lease is not renewed, every run is cancelled and none of their receipts counts; it joins anew, and runs again what
/// was going in the other twelve, under tokens above the old ones.
pub async fn k43_a_lapsed_lease_is_not_renewed_and_all_its_runs_are_void(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::new();
    let ended: Arc<Mutex<Vec<(SlotToken, bool)>>> = Arc::default();
    let noted = ended.clone();
    probe.answer(move |run| {
        noted.lock().push((run.token().slot_token(), run.cancelled().is_cancelled()));
        counted(run)
    });
    world.register(0, &per_store("hook").slots(SLOTS), SLOTS, &probe).await;
    world.spread("hook", 1).await;
    let keys = key_per_slot(&world, SLOTS);
    for key in &keys {
        probe.hold(key);
        world.set(1, key.as_str(), 1).await;
    }
    probe.until("all run", |probe| probe.seen().len() == keys.len()).await;
    let (rows, slots) = world.cluster.leases().await;
    let old = rows.into_iter().find(|row| &*row.name == "server-0").unwrap();
    let highest = slots.iter().map(|row| row.token).max().unwrap();
    let stopped = world.cluster.points(0).clone();
    let holds = (stopped.hold(points::SLOT_BEFORE_HEARTBEAT), stopped.hold(points::SLOT_BEFORE_LAPSE));
    world.step(Duration::from_secs(12)).await;
    // Another server, of which there is no more than its row.
    let driver = world.cluster.store().driver(Faults::new());
    let other = ServerRow {
        id: ServerId(uuid::Uuid::new_v4()),
        name: "other".into(),
        lease_until: world.cluster.server(1).now().after(Duration::from_secs(3_600)),
        // It wants no further slots.
        hooks: Vec::new(),
        ..old
    };
    driver.join(other.clone()).await.unwrap();
    let wanted: Vec<_> = slots.iter().map(|row| row.slot).take(TAKEN).collect();
    assert_eq!(driver.take_slots(other.id, &wanted).await.unwrap().len(), TAKEN);
    // Those that run now stay held, and what is started from here on is not.
    let running: Vec<_> = keys.iter().map(|key| probe.keep_held(key)).collect();
    drop(holds);
    let is_lost = |line: &Line| {
        matches!(&line.event, HistoryEvent::SlotLost { fence } if fence.token <= highest) && line.server == "server-0"
    };
    let all_lost = || async { world.recorder.lines().iter().filter(|line| is_lost(line)).count() == keys.len() };
    world.eventually("it gives up all twenty", all_lost).await;
    drop(running);
    let theirs = |key: &String| wanted.iter().any(|slot| slot.slot == crate::slot_index(&world.key(key), SLOTS));
    let (taken, free): (Vec<String>, Vec<String>) = keys.iter().cloned().partition(theirs);
    assert_eq!(taken.len(), TAKEN);
    for key in &free {
        probe.started(key, 2).await;
    }
    let left = || async { count_of(&world, 1, &free[0]).await == 1 };
    world.eventually("what was going in the other twelve is done", left).await;
    for key in &taken {
        assert_eq!(probe.seen_of(key).len(), 1, "{key} is another's");
    }
    driver.leave(other.id).await.unwrap();
    assert!(world.hooks_finish(1).await.finished);
    for key in &keys {
        let seen = probe.seen_of(key);
        assert_eq!(seen.len(), 2, "{key}: {seen:#?}");
        assert!(SlotToken(seen[1].token >> 24) > highest, "{key}: above all the old ones");
        assert_eq!(count_of(&world, 1, key).await, 1, "{key}");
    }
    let joined = |line: &Line| line.server == "server-0" && matches!(line.event, HistoryEvent::Joined { .. });
    let joins = world.recorder.lines().iter().filter(|line| joined(line)).count();
    assert_eq!(joins, 2, "it joins anew, once");
    for (token, is_cancelled) in ended.lock().iter() {
        assert_eq!(*is_cancelled, *token <= highest, "runs of the old lease are cancelled, and no others");
    }
    let stored = world.cluster.stored().await;
    assert_eq!(stored.receipts.len(), keys.len());
    assert!(stored.receipts.iter().all(|receipt| receipt.fence.token > highest), "none of the old ones counts");
    world.finish().await;
}
