//! Compaction of the log and of receipts: what is pending keeps all that it needs, the rest goes, and nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::testing::START;
use crate::testing::points::name as point;
use crate::{
    Attributes, Outcome, QueueEntry, QueueFilter, RequestState, Revision, Run, Timestamp, Transaction, TransactionError,
};

use super::super::within;
use super::Case;
use super::support::{Effect, Probe, Store, World, effect, per_store, plain_key};

/// Requests that stand behind a wait for 20 000 revisions are copied out of the log.
const LOAD: u64 = 21_000;
const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// Next year.
const LATER: Timestamp = Timestamp(START.0 + 365 * 86_400_000);

/// Servers that compact all that can go, as soon as it can.
async fn compacting(case: &Case, servers: usize) -> World {
    World::configured(&case.upkept(), servers, |server, mut options| {
        options.log_keep = Duration::ZERO;
        options.compact_every = 1;
        // One writes them for all; not a server that is to be let alone.
        options.entities_behind = if server < 2 { Duration::from_millis(20) } else { Duration::from_secs(3_600) };
        options
    })
    .await
}

/// A change whose run is told by whom it was asked for.
async fn set(world: &World, id: &str, value: u64) -> Revision {
    let entity = world.store(id);
    let attributes: Attributes = [("by".to_owned(), format!("{id}-{value}"))].into();
    let put = move |tx: &mut Transaction| tx.put(&entity, Store { value });
    let write = world.cluster.server(2).transaction().attributes(attributes).write::<_, TransactionError, _>(put);
    write.await.unwrap().revision
}

async fn list(world: &World) -> Vec<QueueEntry> {
    world.cluster.server(2).queue().list(QueueFilter::all()).await.unwrap()
}

/// Changes that are finished as soon as they are committed, since no hook is for them. None waits for upkeep.
async fn load(world: &World, from: u64, to: u64) {
    let numbers: Vec<u64> = (from..to).collect();
    for some in numbers.chunks(3_000) {
        let writes = some.iter().map(|number| {
            let (state, count) = (world.cluster.server(2).clone(), *number);
            async move {
                let put = move |tx: &mut Transaction| tx.put(&effect("load"), Effect { count, last: 0 });
                state.write::<_, TransactionError, _>(put).await.unwrap();
            }
        });
        within("writes beside upkeep", futures::future::join_all(writes)).await;
        world.cluster.advance(Duration::from_millis(10));
    }
}

/// K34: under load, and with servers killed at each point of upkeep, the log and the receipts go, but for what a pending
/// request needs; what waits for next year, lies dead or stands behind that is copied out of the log. When its turn comes,
/// each runs in its order, with before, after, attributes and attempts.
pub async fn k34_the_log_keeps_what_is_pending_and_lets_the_rest_go(case: Case) {
    let mut world = compacting(&case, 3).await;
    let told: Arc<Mutex<Vec<(String, u64)>>> = Arc::default();
    let noted = told.clone();
    let answer = move |run: &Run| {
        if let Some(by) = run.attributes().get("by") {
            noted.lock().push((by.clone(), u64::from(run.attempt())));
        }
        match plain_key(run.key().as_str()) {
            "dead" => Outcome::fail("no"),
            "year" if run.now() < LATER => Outcome::RetryAt(LATER),
            _ => Outcome::Done,
        }
    };
    let probe = Probe::answering(answer);
    let registration = per_store("hook").slots(4).attempts(1);
    for server in [0, 1] {
        world.register(server, &registration, 8, &probe).await;
    }
    world.spread("hook", 2).await;
    for value in 1..=20 {
        set(&world, "finished", value).await;
    }
    probe.hold("runs");
    let mut last = Revision::ZERO;
    for value in 1..=3 {
        for key in ["dead", "year", "runs"] {
            last = set(&world, key, value).await;
        }
    }
    let stands = || async {
        let list = list(&world).await;
        let is = |state: fn(&RequestState) -> bool| list.iter().filter(|entry| state(&entry.state)).count();
        let paused = is(|state| matches!(state, RequestState::PausedBehind(_)));
        (list.len(), is(|state| matches!(state, RequestState::RetryAt(_))), paused) == (9, 1, 2)
    };
    world.eventually("one is dead, one waits for its time, one runs", stands).await;
    let before: Vec<_> = list(&world).await.into_iter().filter(|entry| plain_key(&entry.key) != "runs").collect();
    let part = LOAD / 3;
    load(&world, 0, part).await;
    for (round, place) in (1..).zip([point::UPKEEP_BEFORE_ENTITIES, point::UPKEEP_COMPACTION]) {
        // Whose turn it is to write the entities is for the servers to find out.
        let before = [0, 1].map(|server| world.cluster.points(server).count(place));
        for server in [0, 1] {
            world.cluster.points(server).die(place);
        }
        load(&world, part * round, part * (round + 1)).await;
        let has_come = |server: &usize| world.cluster.points(*server).count(place) > before[*server];
        world.eventually("one of them comes there", || async { [0, 1].iter().any(has_come) }).await;
        let server = [0, 1].into_iter().find(has_come).unwrap();
        world.kill(server);
        for server in [0, 1] {
            world.cluster.points(server).revive(place);
        }
        world.step(Duration::from_secs(12)).await;
        world.restart(server).await;
        world.register(server, &registration, 8, &probe).await;
    }
    // What runs on is above all that may go.
    let runs = probe.seen_of("runs")[0].request.revision;
    assert!(world.cluster.stored().await.meta.compacted < runs);
    probe.release("runs");
    // Two servers have died with it, and the next one runs it when it has been there for a while.
    let others_run = || async { probe.seen_of("runs").last().unwrap().after == Some(3) };
    world.eventually_as_time_passes("the others of its key run", others_run).await;
    // More of the same, so that what stands behind a wait is far enough behind.
    load(&world, LOAD, LOAD + 2_000).await;
    let gone = || async {
        world.cluster.advance(Duration::from_millis(10));
        world.cluster.meta().await.compacted > last
    };
    world.eventually("the log is compacted past what is pending", gone).await;
    let stored = world.cluster.stored().await;
    assert_eq!(stored.exceptions.len(), 6, "what is kept is what is pending: {:#?}", stored.exceptions);
    assert!(stored.receipts.iter().all(|receipt| receipt.request.revision > last), "{:?}", stored.receipts);
    let after: Vec<_> = list(&world).await;
    let facts = |entries: &[QueueEntry]| -> Vec<_> {
        let facts = entries.iter().map(|entry| (entry.key.clone(), entry.request, entry.state.clone(), entry.attempts));
        facts.collect()
    };
    assert_eq!(facts(&after), facts(&before));
    // Their turn comes.
    let letter = after.iter().find(|entry| entry.state == RequestState::Dead).unwrap().request;
    let noted = told.clone();
    probe.answer(move |run| {
        if let Some(by) = run.attributes().get("by") {
            noted.lock().push((by.clone(), u64::from(run.attempt())));
        }
        Outcome::Done
    });
    world.cluster.server(2).queue().retry(letter, "operator").await.unwrap();
    // Before every lease ends with that year, so that what is done by then is not done again.
    let only_next_year = || async { list(&world).await.iter().all(|entry| plain_key(&entry.key) == "year") };
    world.eventually("the letter and what stood behind it are done", only_next_year).await;
    world.cluster.advance(YEAR);
    assert!(world.hooks_finish(2).await.finished);
    for key in ["dead", "year"] {
        let seen: Vec<_> = probe.seen_of(key).iter().map(|seen| (seen.before, seen.after)).collect();
        let first = (None, Some(1));
        assert_eq!(seen, [first, first, (Some(1), Some(2)), (Some(2), Some(3))], "{key}");
        let by: Vec<_> = told.lock().iter().filter(|(by, _)| by.starts_with(key)).cloned().collect();
        let expected = [1, 1, 2, 3].map(|value| (format!("{key}-{value}"), 1));
        assert_eq!(by, expected, "each with its attributes, and its attempts afresh");
    }
    assert_eq!(probe.seen_of("finished").len(), 20, "nothing that is finished runs again");
    world.finish().await;
}

/// K34: what belongs to a hook that no server runs is kept in the log, whole, however much is committed after it; once it
/// has run, the log goes.
pub async fn k34_what_no_server_runs_is_kept_in_the_log(case: Case) {
    let mut world = compacting(&case, 3).await;
    world.cluster.server(2).register_only(per_store("unrun").slots(4)).await.unwrap();
    let other = Probe::new();
    world.register(0, &per_store("other").slots(4), 8, &other).await;
    let mut first = Revision::ZERO;
    for value in 1..=3 {
        let revision = set(&world, "a", value).await;
        first = if value == 1 { revision } else { first };
    }
    world.delete(2, "a").await;
    assert!(world.cluster.server(2).wait_for_hooks(crate::WaitForHooks::all().hook("other")).await.unwrap().finished);
    load(&world, 0, 3_000).await;
    // Nothing else holds it: entities are written, and the slots that somebody leases are done with it.
    let may_go = || async {
        let stored = world.cluster.stored().await;
        stored.tree.revision > first && stored.slots.iter().all(|slot| slot.watermark > first)
    };
    world.eventually("all but the hook that nobody runs is done with the log", may_go).await;
    let points = world.cluster.points(0).clone();
    let rounds = points.count(point::UPKEEP_COMPACTION);
    let compacts = || std::future::ready(points.count(point::UPKEEP_COMPACTION) > rounds + 2);
    world.eventually("a compaction has come and gone", compacts).await;
    assert!(world.cluster.stored().await.meta.compacted < first);
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = told.clone();
    let probe = Probe::answering(move |run| {
        noted.lock().extend(run.attributes().get("by").cloned());
        Outcome::Done
    });
    let joins =
        world.cluster.server(1).register(per_store("unrun").slots(4), 8, Arc::new(probe.clone())).await.unwrap();
    probe.started("a", 4).await;
    assert!(world.hooks_finish(2).await.finished);
    let seen: Vec<_> = probe.seen_of("a").iter().map(|seen| (seen.before, seen.after)).collect();
    assert_eq!(seen, [(None, Some(1)), (Some(1), Some(2)), (Some(2), Some(3)), (Some(3), None)]);
    assert_eq!(*told.lock(), ["a-1", "a-2", "a-3"]);
    // Its watermarks are raised with a thousand revisions to go.
    load(&world, 3_000, 5_000).await;
    let gone = || async {
        world.cluster.advance(Duration::from_millis(10));
        world.cluster.meta().await.compacted > first
    };
    world.eventually("the log goes", gone).await;
    drop(joins);
    world.finish().await;
}
