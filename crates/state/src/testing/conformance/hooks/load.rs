//! Hooks that hang, kill, or have too much to do.

use std::time::Duration;

use crate::driver::Call;
use crate::{LocalCall, QueueFilter, RequestState, Scope, slot_index};

use super::Case;
use super::faults::count_of;
use super::support::{Probe, Store, World, counted, per_store, plain_key};

/// K27: hanging hooks hold up nothing else.
pub async fn k27_hanging_hooks_hold_up_nothing_else(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::new();
    world.register(0, &per_store("hook").slots(2), 64, &probe).await;
    for key in 0..50 {
        let key = format!("hangs-{key}");
        probe.hold(&key);
        world.set(1, key, 1).await;
    }
    probe.until("fifty hang", |probe| probe.seen().len() == 50).await;
    let local = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let called = local.clone();
    let _handle = world
        .cluster
        .server(0)
        .local_hook("local", Scope::collection::<Store>(), move |_call: LocalCall| {
            called.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            async { Ok(()) }
        })
        .await
        .unwrap();
    for value in 1..=20 {
        world.set(1, "other", value).await;
    }
    probe.until("other keys go on", |probe| probe.ended_of("other") == 20).await;
    world.cluster.server(0).flush().await.unwrap();
    world.eventually("local hooks go on", || async { local.load(std::sync::atomic::Ordering::SeqCst) >= 70 }).await;
    for key in 0..50 {
        probe.release(&format!("hangs-{key}"));
    }
    world.hooks_finish(1).await;
    world.finish().await;
}

/// K29: slots leave a server without room for one that has it.
pub async fn k29_slots_leave_a_server_without_room_for_one_that_has_it(case: Case) {
    let mut world = World::new(&case, 3).await;
    let (busy, idle) = (Probe::new(), Probe::new());
    world.register(0, &per_store("hook").slots(8), 2, &busy).await;
    world.spread("hook", 1).await;
    for key in 0..24 {
        busy.hold(&format!("k{key}"));
        world.set(2, format!("k{key}"), 1).await;
    }
    busy.until("its room is taken", |probe| probe.seen().len() == 2).await;
    // Slots in which nothing runs can all go, and their keys with them.
    let slot_of = |key: &str| slot_index(&world.key(key), 8);
    let stay: Vec<u32> = busy.seen().iter().map(|seen| slot_of(&seen.key)).collect();
    let can_go = (0..24).filter(|key| !stay.contains(&slot_of(&format!("k{key}")))).count();
    assert!(can_go > 0);
    world.register(1, &per_store("hook").slots(8), 64, &idle).await;
    // Half of the slots first; then, since keys wait for over a second, more and more of the others.
    let all_run = || async { idle.seen().len() >= can_go };
    world.eventually_as_time_passes("the idle server runs what waited", all_run).await;
    world.none_came_back();
    assert_eq!(busy.seen().len(), 2, "none of its runs was interrupted");
    for key in 0..24 {
        busy.release(&format!("k{key}"));
    }
    world.hooks_finish(2).await;
    world.finish().await;
}

/// K29: a server without room gives slots to one that has some until that one is busy too; from then on all stay where they
/// are, however long keys wait.
pub async fn k29_slots_pass_on_until_who_takes_them_is_busy(case: Case) {
    let mut world = World::new(&case, 3).await;
    let (first, second) = (Probe::new(), Probe::new());
    let registration = per_store("hook").slots(8);
    world.register(0, &registration, 2, &first).await;
    world.spread("hook", 1).await;
    let keys: Vec<String> = (0..40).map(|key| format!("k{key}")).collect();
    for key in &keys {
        first.hold(key);
        second.hold(key);
        world.set(2, key, 1).await;
    }
    first.until("its room is taken", |probe| probe.seen().len() == 2).await;
    world.register(1, &registration, 2, &second).await;
    second.until("its room is taken, too", |probe| probe.seen().len() == 2).await;
    world.spread("hook", 2).await;
    // Each learns that the other has no room by its next heartbeat; who seems to have some may be given a slot until then.
    let are_known_as_busy = || async {
        let (rows, _) = world.cluster.leases().await;
        rows.iter().filter(|row| row.load.waiting.iter().any(|load| load.keys > 0)).count() == 2
    };
    world.eventually("both say that keys wait", are_known_as_busy).await;
    // What either read before the other had said so is handled by then.
    for server in [0, 1] {
        let mut looks = 0;
        let _ = world.cluster.faults(server).take_calls();
        let has_looked = || {
            let calls = world.cluster.faults(server).take_calls();
            looks += calls.get(&Call::Cluster).copied().unwrap_or(0);
            std::future::ready(looks >= 2)
        };
        world.eventually("it looks at the cluster twice more", has_looked).await;
    }
    let spread = || async { world.cluster.server(2).cluster().await.unwrap().spread("hook") };
    // A slot may be on its way still: they have come to rest when all are leased, and stay for longer than it takes to notice
    // that keys wait.
    let mut before = spread().await;
    for looks in 1.. {
        world.step(Duration::from_secs(4)).await;
        let now = spread().await;
        if now == before && now.values().sum::<usize>() == 8 {
            break;
        }
        assert!(looks < 10, "slots come to no rest: {now:?} after {before:?}");
        before = now;
    }
    // Longer than a server that had no room is taken to be short of it.
    world.step(Duration::from_secs(40)).await;
    assert_eq!(spread().await, before, "both are busy");
    assert_eq!((first.seen().len(), second.seen().len()), (2, 2));
    world.none_came_back();
    for key in &keys {
        first.release(key);
        second.release(key);
    }
    assert!(world.hooks_finish(2).await.finished);
    assert_eq!(first.seen().len() + second.seen().len(), keys.len(), "each once");
    world.finish().await;
}

/// K51: a hook that kills its servers is found.
pub async fn k51_a_hook_that_kills_its_servers_is_found(case: Case) {
    let mut world = World::new(&case, 2).await;
    let mut deaths = 0;
    loop {
        let probe = Probe::answering(counted);
        probe.hold("killer");
        world.register(0, &per_store("hook").slots(2), 8, &probe).await;
        if deaths == 0 {
            world.set(1, "killer", 1).await;
            world.set(1, "beside", 1).await;
        }
        let dead = || async {
            let list = world.cluster.server(1).queue().list(QueueFilter::all()).await.unwrap();
            list.iter().any(|entry| entry.state == RequestState::Dead)
        };
        // Either it starts once more, or it has become a dead letter.
        let mut is_dead = false;
        // What several servers have died with waits until its next one has been there for a while.
        world
            .eventually_as_time_passes("it starts or is dead", || async {
                !probe.seen_of("killer").is_empty() || dead().await
            })
            .await;
        if dead().await {
            is_dead = true;
        }
        if is_dead {
            break;
        }
        deaths += 1;
        assert!(deaths <= 10, "server after server dies");
        world.kill_and_restart(0).await;
    }
    assert_eq!(deaths, 5);
    // What ran beside it may be suspected, too, until it has run.
    world.step(Duration::from_secs(2)).await;
    let report = world.hooks_finish(1).await;
    assert_eq!(report.dead.len(), 1);
    assert_eq!(plain_key(&report.dead[0].key), "killer");
    assert!(report.dead[0].error.as_deref().unwrap().contains("servers died"), "{:?}", report.dead[0].error);
    let listed = world.cluster.server(1).queue().list(QueueFilter::all()).await.unwrap();
    assert!(listed.iter().all(|entry| plain_key(&entry.key) == "killer"), "nothing else waits or is blamed");
    assert_eq!(count_of(&world, 1, "beside").await, 1, "what was asked for beside it is done, once");
    world.finish_waiting().await;
}

/// K51: what servers die of anyway is no request's fault.
pub async fn k51_a_request_is_not_blamed_for_servers_that_die_as_soon_as_they_are_up(case: Case) {
    // Given a request that two servers have died with, so that it may have been what killed them.
    let mut world = World::new(&case, 2).await;
    let hook = per_store("hook").slots(1);
    for life in 0..2 {
        let probe = Probe::answering(counted);
        probe.hold("suspect");
        world.register(0, &hook, 8, &probe).await;
        if life == 0 {
            world.set(1, "suspect", 1).await;
        }
        probe.until("it starts", |probe| !probe.seen_of("suspect").is_empty()).await;
        world.kill_and_restart(0).await;
    }
    // When one server after the other dies soon after it has come up and run something else of the same slot.
    for life in 0..8 {
        let probe = Probe::answering(counted);
        probe.hold("suspect");
        world.register(0, &hook, 8, &probe).await;
        let other = format!("other-{life}");
        world.set(1, other.clone(), 1).await;
        world.eventually("another one is run", || async { count_of(&world, 1, &other).await == 1 }).await;
        assert_eq!(probe.seen_of("suspect"), [], "it starts on none that has only just come up");
        world.kill_and_restart(0).await;
    }
    // Then the one that stays runs it after all.
    world.register(0, &hook, 8, &Probe::answering(counted)).await;
    let has_run = || async { count_of(&world, 1, "suspect").await == 1 };
    world.eventually_as_time_passes("it is run", has_run).await;
    assert!(world.hooks_finish(1).await.dead.is_empty());
    world.finish().await;
}
