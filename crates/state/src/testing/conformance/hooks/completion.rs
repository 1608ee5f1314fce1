//! Runs that complete with writes and records: cut at each point of it, refused, too late.

use std::time::Duration;

use crate::cluster_hook::points;
use crate::driver::{Call, CommitFault, StoredState};
use crate::testing::history::HistoryEvent;
use crate::testing::points::name as point;
use crate::{Outcome, QueueFilter, Record, RequestState, Run, Timestamp, TransactionError};

use super::Case;
use super::faults::{count_of, owner_and_successor};
use super::support::{Effect, Ledger, Probe, Trace, World, counted, effect, per_store, traced};

/// Where a completion can be cut, from before it is sent to before its answer.
const PLACES: [&str; 5] = [
    points::RUN_BEFORE_COMPLETION,
    point::COMMIT_BEFORE_LOCK,
    point::COMMIT_LOCKED,
    point::COMMIT_BEFORE_COMMIT,
    point::COMMIT_AFTER_COMMIT,
];

/// Lets the owner be cut off, or die, on its way through a completion. In the end the request has run as often as it had
/// to: again only where its server died before the commit.
async fn cut_at(case: &Case, place: &'static str, dies: bool, answer: fn(&Run) -> Outcome) -> World {
    let (mut world, first, second) = owner_and_successor(case, 1).await;
    first.answer(answer);
    second.answer(answer);
    first.hold("a");
    world.set(2, "a", 1).await;
    first.started("a", 1).await;
    if dies {
        world.cluster.points(0).die(place);
        first.release("a");
        world.cluster.points(0).reached(place).await;
        world.kill(0);
        world.cluster.points(0).revive(place);
        world.step(Duration::from_secs(12)).await;
    } else {
        world.cluster.points(0).cut(place, 1);
        first.release("a");
    }
    assert!(world.hooks_finish(2).await.finished, "{place}, dies: {dies}");
    let again = dies && place != point::COMMIT_AFTER_COMMIT;
    let runs = first.seen_of("a").len() + second.seen_of("a").len();
    assert_eq!(runs, 1 + usize::from(again), "{place}, dies: {dies}");
    world
}

/// The records of one kind that are stored.
fn records<R: Record>(stored: &StoredState) -> Vec<R> {
    let of_kind = stored.records.iter().filter(|row| &*row.kind == R::KIND);
    of_kind.map(|row| serde_json::from_str(&row.document.json).unwrap()).collect()
}

/// K11: writes and receipt are both there or neither, wherever the completion is cut and whether its server lives.
pub async fn k11_writes_and_receipt_are_one_wherever_a_completion_is_cut(case: Case) {
    for place in PLACES {
        for dies in [false, true] {
            let world = cut_at(&case, place, dies, counted).await;
            assert_eq!(count_of(&world, 2, "a").await, 1, "{place}, dies: {dies}");
            assert_eq!(world.cluster.stored().await.receipts.len(), 1, "{place}, dies: {dies}");
            world.finish().await;
        }
    }
}

/// K11: a completion whose answer is lost while its commit is under way takes effect once, whichever comes first.
pub async fn k11_a_completion_that_is_committed_late_takes_effect_once(case: Case) {
    let mut world = World::configured(&case, 2, |server, mut options| {
        if server == 0 {
            options.write_limit = Duration::from_secs(1);
        }
        options
    })
    .await;
    let probe = Probe::answering(counted);
    world.register(0, &per_store("hook").slots(1), 4, &probe).await;
    world.spread("hook", 1).await;
    probe.hold("a");
    world.set(1, "a", 1).await;
    probe.started("a", 1).await;
    let unknown = world.cluster.points(0).hold(points::RUN_OUTCOME_UNKNOWN);
    world.cluster.faults(0).next_commits([CommitFault::AppliedLate]);
    probe.release("a");
    unknown.reached().await;
    let _ = world.cluster.faults(0).take_calls();
    unknown.release();
    // It does something about it, while the commit still holds the write lock.
    let mut asks = false;
    world
        .eventually("it asks for the write lock", || {
            asks |= world.cluster.faults(0).take_calls().contains_key(&Call::Begin);
            std::future::ready(asks)
        })
        .await;
    world.cluster.faults(0).let_late_commits_arrive();
    assert!(world.hooks_finish(1).await.finished);
    assert_eq!(count_of(&world, 1, "a").await, 1);
    let stored = world.cluster.stored().await;
    assert_eq!((records::<Ledger>(&stored).len(), stored.receipts.len(), probe.seen().len()), (1, 1, 1));
    world.finish().await;
}

/// K11: the same where what the run writes is there already, so that only its receipt is new.
pub async fn k11_a_completion_that_changes_nothing_is_acknowledged_once(case: Case) {
    fn unchanged(_: &Run) -> Outcome {
        Outcome::done_with(|tx| match tx.get(&effect("there"))? {
            Some(_) => tx.put(&effect("there"), Effect { count: 1, last: 1 }),
            None => Err(TransactionError::rejected("it was to be there")),
        })
    }
    for place in [point::COMMIT_LOCKED, point::COMMIT_BEFORE_COMMIT, point::COMMIT_AFTER_COMMIT] {
        let (world, first, _second) = owner_and_successor(&case, 1).await;
        first.answer(unchanged);
        let there = |tx: &mut crate::Transaction| tx.put(&effect("there"), Effect { count: 1, last: 1 });
        world.cluster.server(2).write::<_, TransactionError, _>(there).await.unwrap();
        first.hold("a");
        world.set(2, "a", 1).await;
        first.started("a", 1).await;
        world.cluster.points(0).cut(place, 1);
        first.release("a");
        assert!(world.hooks_finish(2).await.finished, "{place}");
        assert_eq!((first.seen().len(), world.cluster.stored().await.receipts.len()), (1, 1), "{place}");
        world.finish().await;
    }
}

/// R3: what a completion writes and the records that it appends are there with its acknowledgement, once, or not at all.
pub async fn r03_a_completion_and_its_records_are_one(case: Case) {
    for place in PLACES {
        for dies in [false, true] {
            let world = cut_at(&case, place, dies, traced).await;
            assert_eq!(count_of(&world, 2, "a").await, 1, "{place}, dies: {dies}");
            let stored = world.cluster.stored().await;
            let (ledger, traces) = (records::<Ledger>(&stored), records::<Trace>(&stored));
            let steps: Vec<u64> = traces.iter().map(|trace| trace.step).collect();
            assert_eq!((ledger.len(), steps), (1, vec![1, 2]), "{place}, dies: {dies}");
            assert!(traces.iter().all(|trace| trace.token == ledger[0].token), "of one run");
            let revisions: Vec<_> = stored.records.iter().map(|row| row.id.revision).collect();
            assert!(revisions.windows(2).all(|pair| pair[0] == pair[1]), "under one revision: {revisions:?}");
            world.finish().await;
        }
    }
}

/// R3: a completion whose entity write is rejected is a failed attempt, and leaves no record.
pub async fn r03_a_rejected_completion_leaves_no_record(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::answering(|run| {
        if run.attempt() > 1 {
            return traced(run);
        }
        let (id, request, token) = (run.id("store").unwrap(), run.request(), run.token().0);
        Outcome::done_with(move |tx| {
            tx.put(&effect(&id), Effect { count: 77, last: 77 })?;
            (1..=3).try_for_each(|step| tx.append(&Trace { request, token, step }).map(|_| ()))?;
            tx.expect(&effect("absent"), Some(&Effect { count: 1, last: 1 }))
        })
    });
    world.register(0, &per_store("hook"), 4, &probe).await;
    world.set(1, "a", 1).await;
    world
        .eventually("the first attempt has failed", || async {
            let list = world.cluster.server(1).queue().list(QueueFilter::all()).await.unwrap();
            let fails = |entry: &crate::QueueEntry| {
                let says_why = entry.error.as_deref().is_some_and(|error| error.contains("/effects/absent"));
                says_why && entry.attempts == 1 && matches!(entry.state, RequestState::BackingOff(_))
            };
            list.iter().any(fails)
        })
        .await;
    let stored = world.cluster.stored().await;
    assert!(stored.records.is_empty() && stored.receipts.is_empty());
    assert_eq!(count_of(&world, 1, "a").await, 0);
    world.step(Duration::from_secs(4)).await;
    assert!(world.hooks_finish(1).await.finished);
    let stored = world.cluster.stored().await;
    assert_eq!((records::<Ledger>(&stored).len(), records::<Trace>(&stored).len()), (1, 2));
    assert_eq!(count_of(&world, 1, "a").await, 1);
    world.finish().await;
}

/// Waits until the first server was told that its token no longer holds.
async fn refused(world: &World) {
    let refused = || async {
        let refused = |line: &crate::testing::history::Line| {
            line.server == "server-0" && matches!(&line.event, HistoryEvent::Receipt { durable: false, .. })
        };
        world.recorder.lines().iter().any(refused)
    };
    world.eventually("the late completion is refused", refused).await;
}

/// R4: a zombie's completion is refused with its records, whether its server was held or cut off from its store.
pub async fn r04_a_late_completion_brings_no_record(case: Case) {
    for cut_off in [false, true] {
        let (world, first, second) = owner_and_successor(&case, 1).await;
        first.answer(traced);
        second.answer(traced);
        first.hold("a");
        world.set(2, "a", 1).await;
        first.started("a", 1).await;
        let server = world.cluster.points(0).clone();
        // One that is cut off would find out by its own clock that its lease has ended, and cancel the run.
        let lapse = server.hold(points::SLOT_BEFORE_LAPSE);
        let heartbeat = (!cut_off).then(|| server.hold(points::SLOT_BEFORE_HEARTBEAT));
        world.cluster.faults(0).set_absent(cut_off);
        world.step(Duration::from_secs(12)).await;
        second.started("a", 1).await;
        world.hooks_finish(2).await;
        first.release("a");
        first.until("the late run ends", |probe| probe.ended_of("a") == 1).await;
        world.cluster.faults(0).set_absent(false);
        if !cut_off {
            refused(&world).await;
        }
        drop((lapse, heartbeat));
        // The server works again, so that whatever it still had to send was sent.
        world.set(2, "b", 1).await;
        world.hooks_finish(2).await;
        world.cluster.server(0).flush().await.unwrap();
        let stored = world.cluster.stored().await;
        let token = second.seen_of("a")[0].token;
        let of_a: Vec<_> =
            records::<Trace>(&stored).into_iter().filter(|trace| trace.request == first.seen()[0].request).collect();
        assert_eq!(of_a.len(), 2, "cut off: {cut_off}");
        assert!(of_a.iter().all(|trace| trace.token == token), "cut off: {cut_off}");
        assert_eq!(count_of(&world, 2, "a").await, 1);
        world.finish().await;
    }
}

/// R4: a run that was cancelled completes, and not one of its records is stored.
pub async fn r04_a_cancelled_run_brings_no_record(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::answering(traced);
    world.register(0, &per_store("hook").slots(1), 4, &probe).await;
    probe.hold("a");
    world.set(1, "a", 1).await;
    probe.started("a", 1).await;
    let request = probe.seen()[0].request;
    world.cluster.server(1).queue().cancel(request, "operator").await.unwrap();
    world.cluster.server(0).flush().await.unwrap();
    // Later in the log, so when this has run the owner knows of the cancelling.
    world.set(1, "b", 1).await;
    probe.started("b", 1).await;
    probe.release("a");
    probe.until("the cancelled run ends", |probe| probe.ended_of("a") == 1).await;
    world.set(1, "a", 2).await;
    world.hooks_finish(1).await;
    let stored = world.cluster.stored().await;
    assert!(!records::<Trace>(&stored).iter().any(|trace| trace.request == request));
    assert!(!records::<Ledger>(&stored).iter().any(|ledger| ledger.request == request));
    assert_eq!(records::<Trace>(&stored).len(), 4, "those of the runs before and after it");
    assert_eq!(count_of(&world, 1, "a").await, 1);
    world.finish().await;
}

/// R3: with a later time instead of an end the records come too, once each time.
pub async fn r03_records_come_with_a_later_time_too(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::answering(|run| {
        if run.attempt() > 1 || !run.now().eq(&crate::testing::START) {
            return traced(run);
        }
        let (request, token) = (run.request(), run.token().0);
        let later = Timestamp(run.now().0 + 60_000);
        Outcome::retry_at_with(later, move |tx| {
            (1..=3).try_for_each(|step| tx.append(&Trace { request, token, step }).map(|_| ()))
        })
    });
    world.register(0, &per_store("hook"), 4, &probe).await;
    world.cluster.points(0).cut(point::COMMIT_AFTER_COMMIT, 1);
    world.set(1, "a", 1).await;
    world
        .eventually("it waits for its time", || async {
            let list = world.cluster.server(1).queue().list(QueueFilter::all()).await.unwrap();
            list.iter().any(|entry| matches!(entry.state, RequestState::RetryAt(_)))
        })
        .await;
    let stored = world.cluster.stored().await;
    assert_eq!((records::<Trace>(&stored).len(), stored.receipts.len()), (3, 0));
    world.step(Duration::from_secs(61)).await;
    probe.started("a", 2).await;
    assert!(world.hooks_finish(1).await.finished);
    assert_eq!(records::<Trace>(&world.cluster.stored().await).len(), 5);
    world.finish().await;
}
