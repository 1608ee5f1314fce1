//! Slots that pass from server to server: joins, drains, the end of leases, other builds.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cluster_hook::points;
use crate::{QueueFilter, Registration, RequestState, slot_index};

use super::Case;
use super::support::{Probe, World, per_store, plain_key};

/// One key for each of so many slots.
pub(super) fn key_per_slot(world: &World, slots: u32) -> Vec<String> {
    let mut keys: BTreeMap<u32, String> = BTreeMap::new();
    let mut number = 0;
    while keys.len() < slots as usize {
        let key = format!("k{number}");
        keys.entry(slot_index(&world.key(&key), slots)).or_insert(key);
        number += 1;
    }
    keys.into_values().collect()
}

/// K30: a drain hands back at once what does not run.
pub async fn k30_a_drain_hands_back_at_once_what_does_not_run(case: Case) {
    let mut world = World::configured(&case, 3, |index, mut options| {
        if index == 0 {
            // Fifteen keys pass on within it.
            options.drain_limit = Duration::from_secs(8);
        }
        options
    })
    .await;
    let (first, second) = (Probe::new(), Probe::new());
    let registration = per_store("hook").slots(20);
    world.register(0, &registration, 10, &first).await;
    world.spread("hook", 1).await;
    let keys = key_per_slot(&world, 20);
    let (running, waiting) = keys.split_at(10);
    for key in running {
        first.hold(key);
        world.set(2, key, 1).await;
    }
    first.until("ten run", |probe| probe.seen().len() == 10).await;
    for key in waiting {
        world.set(2, key, 1).await;
    }
    for key in running {
        world.set(2, key, 2).await;
    }
    let lease = world.cluster.points(1).hold(points::SLOT_BEFORE_LEASE);
    world.register(1, &registration, 20, &second).await;
    let draining = tokio::spawn(world.cluster.closing(0));
    lease.release();
    // The clock stands still, so no lease can end.
    for key in waiting {
        second.started(key, 1).await;
    }
    assert_eq!(first.seen().len(), 10, "it starts nothing more");
    for key in &running[..5] {
        first.release(key);
        second.started(key, 1).await;
        assert_eq!(second.seen_of(key)[0].after, Some(2), "what had finished does not run again");
    }
    // At the limit the others are cancelled and handed back, with no attempt counted.
    for key in &running[5..] {
        second.started(key, 2).await;
        let seen = second.seen_of(key);
        assert_eq!((seen[0].after, seen[0].attempt), (Some(1), 1));
        assert_eq!(seen[1].after, Some(2));
    }
    draining.await.unwrap();
    world.close(0).await;
    world.hooks_finish(2).await;
    world.finish().await;
}

/// K7: a killed server s slots pass on when its lease ends.
pub async fn k07_a_killed_server_s_slots_pass_on_when_its_lease_ends(case: Case) {
    let mut world = World::new(&case, 3).await;
    let (first, second) = (Probe::new(), Probe::new());
    let registration = per_store("hook").slots(5);
    world.register(0, &registration, 8, &first).await;
    world.spread("hook", 1).await;
    let keys = key_per_slot(&world, 5);
    for key in &keys {
        first.hold(key);
        world.set(2, key, 1).await;
        world.set(2, key, 2).await;
    }
    first.until("five run", |probe| probe.seen().len() == 5).await;
    world.register(1, &registration, 8, &second).await;
    world.kill(0);
    world.restart(0).await;
    let again = Probe::new();
    world.register(0, &registration, 8, &again).await;
    world.step(Duration::from_secs(6)).await;
    assert!(second.seen().is_empty() && again.seen().is_empty(), "the old lease holds");
    world.step(Duration::from_secs(6)).await;
    world.hooks_finish(2).await;
    for key in &keys {
        let old = first.seen_of(key)[0].clone();
        let new: Vec<_> = second.seen_of(key).into_iter().chain(again.seen_of(key)).collect();
        assert_eq!(new.len(), 2);
        assert_eq!((new[0].request, new[0].attempt), (old.request, 1));
        assert!(new[0].token > old.token);
        assert!(new[1].token > new[0].token);
    }
    world.finish().await;
}

/// K21: a request waits for a server that knows its hook.
pub async fn k21_a_request_waits_for_a_server_that_knows_its_hook(case: Case) {
    let mut world = World::new(&case, 2).await;
    let old = Probe::new();
    let version = |version| Registration::new("hook", version).on("/stores/{store}").key("{store}").slots(4);
    world.register(0, &version(1), 4, &old).await;
    world.spread("hook", 1).await;
    let new = Probe::new();
    world.register(1, &version(2), 4, &new).await;
    world
        .eventually("the old build hands its slots over", || async {
            let view = world.cluster.server(0).cluster().await.unwrap();
            view.spread("hook").get("server-1") == Some(&4)
        })
        .await;
    world.close(1).await;
    world.set(0, "a", 1).await;
    let entry = || async {
        let list = world.cluster.server(0).queue().list(QueueFilter::all()).await.unwrap();
        list.into_iter().find(|entry| plain_key(&entry.key) == "a").unwrap()
    };
    let listed = entry().await;
    assert_eq!((listed.state, listed.attempts, listed.needs_version), (RequestState::NoServer, 0, Some(2)));
    assert_eq!(listed.owner, None);
    assert!(old.seen().is_empty());
    world.restart(1).await;
    world.register(1, &version(2), 4, &new).await;
    new.started("a", 1).await;
    world.hooks_finish(0).await;
    assert!(old.seen().is_empty());
    assert_eq!(new.seen().len(), 1);
    world.finish().await;
}

/// K24: many servers register one hook at the same moment.
pub async fn k24_many_servers_register_one_hook_at_the_same_moment(case: Case) {
    let world = World::new(&case, 8).await;
    for key in 0..30 {
        world.set(0, format!("k{key}"), 1).await;
    }
    let probe = Probe::new();
    let registrations = (0..8).map(|server| {
        let (state, hook) = (world.cluster.server(server).clone(), std::sync::Arc::new(probe.clone()));
        async move { state.register(per_store("hook").from_existing(), 1, hook).await.unwrap() }
    });
    let handles = futures::future::join_all(registrations).await;
    assert!(handles.windows(2).all(|pair| pair[0].number() == pair[1].number()));
    probe.until("what exists has run", |probe| probe.seen().len() >= 30).await;
    world.spread("hook", 8).await;
    let state = world.cluster.server(0).clone();
    // The last of them may still be making its row.
    crate::testing::conformance::within("a row for each slot", async {
        while state.cluster().await.unwrap().slots.len() != 8 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    world.hooks_finish(0).await;
    drop(handles);
    for server in 0..8 {
        let state = world.cluster.server(server);
        state.register_only(per_store("hook").from_existing()).await.unwrap();
        let other = per_store("hook").from_existing().attempts(99);
        let refused = state.register_only(other).await.unwrap_err().to_string();
        assert!(refused.contains("attempts: 5 is registered, 99 was asked for"), "{refused}");
    }
    let asked = world.cluster.stored().await.log;
    let existing = |entry: &&crate::driver::LogEntry| matches!(entry, crate::driver::LogEntry::Existing { .. });
    assert_eq!(
        asked.iter().flat_map(|row| &row.entries).filter(existing).count(),
        30,
        "asked for once, by one of them"
    );
    assert_eq!(probe.seen().len(), 30);
    world.finish().await;
}

/// K40: a server runs no more than it declares.
pub async fn k40_a_server_runs_no_more_than_it_declares(case: Case) {
    let mut world = World::new(&case, 2).await;
    let probe = Probe::new();
    world.register(0, &per_store("hook"), 2, &probe).await;
    let number = world.cluster.server(1).register_only(per_store("unrun")).await.unwrap();
    for key in 0..6 {
        probe.hold(&format!("k{key}"));
        world.set(1, &format!("k{key}"), 1).await;
    }
    probe.until("two run", |probe| probe.seen().len() == 2).await;
    world.step(Duration::from_secs(4)).await;
    assert_eq!(probe.seen().len(), 2);
    let view = world.cluster.server(1).cluster().await.unwrap();
    assert!(!view.slots.iter().any(|slot| slot.number == number && slot.owner.is_some()));
    let unrun = world.cluster.server(0).queue().list(QueueFilter::all().hook("unrun")).await.unwrap();
    assert_eq!(unrun.len(), 6);
    assert!(unrun.iter().all(|entry| entry.state == RequestState::NoServer));
    for key in 0..6 {
        probe.release(&format!("k{key}"));
    }
    probe.until("all ran", |probe| probe.seen().len() == 6).await;
    world.finish_waiting().await;
}
