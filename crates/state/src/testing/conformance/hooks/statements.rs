//! What hooks cost and hold in the store while they run: leases, locks, statements; and errors of the store.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cluster_hook::points;
use crate::driver::{Call, DriverError, Faults, Settle, Settled};
use crate::testing::history::HistoryEvent;
use crate::{Outcome, QueueFilter, Transaction, TransactionError, slot_index};

use super::super::within;
use super::Case;
use super::faults::count_of;
use super::moving::key_per_slot;
use super::support::{Probe, Store, World, counted, per_store, plain_key, store};

/// K8: runs that last ten leases start once and end no lease, however many there are and although a receipt is held; one
/// renewal of the server's row stands for all of them.
pub async fn k08_long_runs_keep_their_lease_by_one_row(case: Case) {
    let mut world = World::new(&case, 3).await;
    let (first, second) = (Probe::answering(counted), Probe::new());
    first.answer(|run| if plain_key(run.key().as_str()) == "receipt" { Outcome::Done } else { counted(run) });
    let registration = per_store("hook").slots(64);
    world.register(0, &registration, 64, &first).await;
    world.spread("hook", 1).await;
    let slot_of = |key: &str| slot_index(&world.key(key), 64);
    let busy: Vec<String> =
        key_per_slot(&world, 64).into_iter().filter(|key| slot_of(key) != slot_of("receipt")).take(50).collect();
    for key in &busy {
        first.hold(key);
        world.set(2, key, 1).await;
    }
    first.until("fifty run", |probe| probe.seen().len() == 50).await;
    let receipt = world.cluster.points(0).hold(points::RUN_BEFORE_RECEIPT);
    world.set(2, "receipt", 1).await;
    receipt.reached().await;
    // There is somebody who would take over.
    world.register(1, &registration, 64, &second).await;
    let _ = world.cluster.faults(0).take_calls();
    let started = Instant::now();
    let (steps, step) = (50, Duration::from_secs(2));
    world.step(step * steps).await;
    let renewals = world.cluster.faults(0).take_calls().get(&Call::Heartbeat).copied().unwrap_or(0);
    // One for each step of the clock, those that its machine's clock brings, and a few for changes of its row.
    let most = u64::from(steps) + started.elapsed().as_secs() + 20;
    assert!((10..=most).contains(&renewals), "{renewals} renewals in {steps} steps of {step:?}");
    let stored = world.cluster.stored().await;
    let rows = stored.servers.iter().filter(|row| &*row.name == "server-0").count();
    assert_eq!(rows, 1);
    let lost = |line: &crate::testing::history::Line| matches!(line.event, HistoryEvent::SlotLost { .. });
    assert!(!world.recorder.lines().iter().any(lost), "no lease ended");
    receipt.release();
    for key in &busy {
        first.release(key);
    }
    assert!(world.hooks_finish(2).await.finished);
    for key in &busy {
        assert_eq!((first.seen_of(key).len(), second.seen_of(key).len()), (1, 0), "{key}");
        assert_eq!(count_of(&world, 2, key).await, 1, "{key}");
    }
    world.finish().await;
}

/// K28: while a run is in progress nothing is locked for it: others write, lease, renew and raise watermarks, of the very
/// rows that its fence stands on, and upkeep goes on.
pub async fn k28_a_run_in_progress_holds_no_lock(case: Case) {
    let case = case.upkept();
    let mut world = World::configured(&case, 2, |_, mut options| {
        options.log_keep = Duration::ZERO;
        options.compact_every = 1;
        options.entities_behind = Duration::from_millis(20);
        options
    })
    .await;
    let probe = Probe::answering(counted);
    world.register(0, &per_store("hook").slots(1), 4, &probe).await;
    probe.hold("a");
    world.set(1, "a", 1).await;
    probe.started("a", 1).await;
    // The write lock is free.
    for value in 0..100 {
        within("a write beside the run", world.set(1, "b", value)).await;
    }
    // Its slot's row and its server's can be written.
    let driver = world.cluster.store().driver(Faults::new());
    let (servers, slots) = within("a look at the leases", driver.cluster()).await.unwrap();
    let row = slots[0].clone();
    let owner = servers.into_iter().find(|server| Some(server.id) == row.owner).unwrap();
    let fence = crate::driver::Fence { slot: row.slot, token: row.token };
    let raise = Settle::Watermark { fence, to: row.watermark };
    let raised = within("a watermark beside the run", driver.settle(vec![raise])).await.unwrap();
    assert_eq!(raised, [Settled::Durable]);
    let mut successor = owner.clone();
    successor.id = crate::driver::ServerId(uuid::Uuid::new_v4());
    successor.name = "successor".into();
    within("another server's row", driver.join(successor.clone())).await.unwrap();
    let taken = within("an attempt at its slot", driver.take_slots(successor.id, &[row.slot])).await.unwrap();
    assert!(taken.is_empty(), "it is leased");
    within("another server's end", driver.leave(successor.id)).await.unwrap();
    within("its server's row", driver.heartbeat(owner)).await.unwrap();
    // Entities are written behind, and the log is compacted up to what the run still needs.
    world.cluster.advance(Duration::from_millis(10));
    world
        .eventually("upkeep goes on", || async {
            let stored = world.cluster.stored().await;
            stored.tree.revision == stored.meta.head
        })
        .await;
    probe.release("a");
    assert!(world.hooks_finish(1).await.finished);
    assert_eq!(probe.seen_of("a").len(), 1);
    world.finish().await;
}

/// Servers poll, each after a time of its own and after another one each time: those that were in step once fall out of it.
async fn polls_are_spread(world: &World, poll: Duration) {
    let (shortest, longest) = (poll.mul_f64(0.8), poll.mul_f64(1.2));
    // All within a tenth of what there is: not once in 10^16 times by chance.
    let are_apart = |waits: &[Duration]| {
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(shortest <= *least && *most <= longest, "{waits:?}");
        *most - *least > (longest - shortest) / 10
    };
    let faults: Vec<&Faults> = (0..world.cluster.len()).map(|server| world.cluster.faults(server)).collect();
    let have_polled = || std::future::ready(faults.iter().all(|faults| faults.waits_for_news().len() >= 20));
    world.eventually("each server has polled twenty times", have_polled).await;
    let waits: Vec<Vec<Duration>> = faults.iter().map(|faults| faults.waits_for_news()).collect();
    for (server, waits) in waits.iter().enumerate() {
        assert!(are_apart(waits), "server {server} polls in one beat: {waits:?}");
    }
    let last: Vec<Duration> = waits.iter().map(|waits| waits[waits.len() - 1]).collect();
    assert!(are_apart(&last), "servers poll in step: {last:?}");
}

/// K31: of twenty idle servers the owner of its slot runs a request, by one receipt; the others send nothing for it but
/// what their tails read. When those poll is spread.
pub async fn k31_only_its_owner_sends_statements_for_a_request(case: Case) {
    const SERVERS: usize = 20;
    const REQUESTS: u64 = 1_000;
    const POLL: Duration = Duration::from_millis(50);
    let mut world = World::configured(&case, SERVERS, |_, mut options| {
        options.poll = POLL;
        options
    })
    .await;
    let probe = Probe::new();
    world.register_everywhere(&per_store("hook").slots(40), 4, &probe).await;
    world.spread("hook", SERVERS).await;
    let mut owners: BTreeMap<u32, String> = BTreeMap::new();
    within("an owner for each slot", async {
        // One may just pass on.
        while owners.len() < 40 {
            let view = world.cluster.server(0).cluster().await.unwrap();
            owners =
                view.slots.iter().filter_map(|slot| Some((slot.index, slot.owner.as_ref()?.to_string()))).collect();
        }
    })
    .await;
    // Each slot has been read, and has had a run.
    for key in key_per_slot(&world, 40) {
        world.set(0, key, 1).await;
    }
    assert!(world.hooks_finish(0).await.finished);
    let warm = probe.seen().len() as u64;
    for server in 0..SERVERS {
        let _ = world.cluster.faults(server).take_calls();
    }
    let started = Instant::now();
    for value in 0..REQUESTS {
        let key = format!("r{value}");
        world.set(0, key.as_str(), value).await;
        probe.until("it runs", |probe| probe.seen().len() as u64 > warm + value).await;
    }
    let calls: Vec<BTreeMap<Call, u64>> =
        (0..SERVERS).map(|server| world.cluster.faults(server).take_calls()).collect();
    let taken = started.elapsed();
    world.hooks_finish(0).await;
    for seen in probe.seen() {
        assert_eq!(Some(&seen.server), owners.get(&slot_index(&world.key(&seen.key), 40)), "{}", seen.key);
    }
    let mut settles = 0;
    for (server, calls) in calls.iter().enumerate() {
        let of = |call: Call| calls.get(&call).copied().unwrap_or(0);
        for call in [Call::TakeSlots, Call::ReleaseSlots, Call::Pending, Call::Exceptions, Call::FindSubmission] {
            assert_eq!(of(call), 0, "{call:?} of server {server}: {calls:?}");
        }
        if server > 0 {
            assert_eq!((of(Call::Begin), of(Call::Commit)), (0, 0), "server {server} only runs hooks: {calls:?}");
        }
        settles += of(Call::Settle);
    }
    // The writer's own: each write submitted twice takes the lock twice.
    let begins = calls[0].get(&Call::Begin).copied().unwrap_or(0);
    assert!(begins <= REQUESTS * 2 + 10, "{begins} transactions for {REQUESTS} writes");
    // And each slot's watermark is raised every five seconds.
    let raises = 40 * (taken.as_secs() / 5 + 1);
    // Two that end together share one.
    let expected = REQUESTS - REQUESTS / 4..=REQUESTS + REQUESTS / 4 + raises;
    assert!(expected.contains(&settles), "{settles} settlements for {REQUESTS} requests");
    polls_are_spread(&world, POLL).await;
    world.finish().await;
}

/// D20: each call of the store that hooks depend on fails once in each way that can pass: every request runs, and its
/// effect is there once.
pub async fn d20_hooks_outlast_each_error_of_the_store(case: Case) {
    let errors = || {
        [
            DriverError::Unavailable("injected: the connection was reset".to_owned()),
            DriverError::Unavailable("injected: a statement ran into its limit".to_owned()),
            DriverError::Full("injected".to_owned()),
        ]
    };
    let mut world = World::new(&case, 2).await;
    let probe = Probe::answering(|run| match plain_key(run.key().as_str()).starts_with("written") {
        true => counted(run),
        false => Outcome::Done,
    });
    let calls = [
        Call::Join,
        Call::Heartbeat,
        Call::Cluster,
        Call::TakeSlots,
        Call::Pending,
        Call::Settle,
        Call::ReadLog,
        Call::Begin,
        Call::Fence,
        Call::Commit,
    ];
    for call in calls {
        world.cluster.faults(0).next_errors(call, errors());
    }
    world.register(0, &per_store("hook").slots(4), 8, &probe).await;
    for number in 0..20 {
        world.set(1, format!("written-{number}"), 1).await;
        world.set(1, format!("done-{number}"), 1).await;
    }
    assert!(world.hooks_finish(1).await.finished);
    world.step(Duration::from_secs(12)).await;
    for call in calls {
        assert_eq!(world.cluster.faults(0).errors_left(call), 0, "{call:?} was not made");
    }
    for number in 0..20 {
        assert_eq!(probe.seen_of(&format!("written-{number}")).len(), 1);
        assert_eq!(probe.seen_of(&format!("done-{number}")).len(), 1);
        assert_eq!(count_of(&world, 1, &format!("written-{number}")).await, 1);
    }
    world.finish().await;
}

/// D21: a connection is made anew while a run's completion and receipts are under way on the old one: they fail there,
/// are found out, and nothing else is given up for it, neither lease nor slots.
pub async fn d21_runs_outlast_a_new_connection(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::answering(counted);
    world.register(0, &per_store("hook").slots(1), 8, &probe).await;
    world.spread("hook", 1).await;
    probe.hold("a");
    world.set(1, "a", 1).await;
    probe.started("a", 1).await;
    // Only now: a write that the case's variant repeats would wait for the commit that is held.
    let hold = world.cluster.points(0).hold(crate::testing::points::name::COMMIT_BEFORE_COMMIT);
    probe.release("a");
    hold.reached().await;
    world.cluster.faults(0).reconnect();
    let listed = world.cluster.server(0).queue().list(QueueFilter::all()).await.unwrap();
    assert_eq!(listed.len(), 1, "the new connection serves");
    let _ = world.cluster.faults(0).take_calls();
    hold.release();
    assert!(world.hooks_finish(1).await.finished);
    let calls = world.cluster.faults(0).take_calls();
    for call in [Call::Open, Call::Join, Call::TakeSlots, Call::Load] {
        assert_eq!(calls.get(&call), None, "{calls:?}");
    }
    assert_eq!((probe.seen().len(), count_of(&world, 1, "a").await), (1, 1));
    let more = |tx: &mut Transaction| tx.put(&store("b"), Store { value: 1 });
    world.cluster.server(0).write::<_, TransactionError, _>(more).await.unwrap();
    world.hooks_finish(1).await;
    world.finish().await;
}
