//! Definition versions: a hook's registration changes under its name, with servers of both builds up.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::driver::LogEntry;
use crate::testing::history::HistoryEvent;
use crate::{QueueFilter, RegisterError, Registration, Revision, Transaction, TransactionError};

use super::Case;
use super::support::{Probe, Version, World, counted};

/// The first build's.
fn first_version() -> Registration {
    Registration::new("hook", 1).on("/stores/{store}").key("{store}").slots(4)
}

/// The second's: it is for versions too, and has a cap.
fn second_version() -> Registration {
    Registration::new("hook", 2)
        .on("/stores/{store}")
        .on("/stores/{store}/versions/*")
        .key("{store}")
        .slots(4)
        .runs_in_cluster(3)
}

/// Puts a version below a store through a server, and says whether that asked for a run.
async fn asks(world: &World, server: usize, id: &str, value: u64) -> (Revision, bool) {
    let path = world.store(id).child::<Version>(value).unwrap();
    let put = move |tx: &mut Transaction| tx.put(&path, Version { value });
    let revision = world.cluster.server(server).write::<_, TransactionError, _>(put).await.unwrap().revision;
    let stored = world.cluster.stored().await;
    let row = stored.log.iter().find(|row| row.revision == revision).unwrap();
    let asks = |entry: &LogEntry| matches!(entry, LogEntry::Change { hooks, .. } if !hooks.is_empty());
    (revision, row.entries.iter().any(asks))
}

/// How many slots the server of the first build leases.
async fn slots_of_the_old(world: &World) -> usize {
    let view = world.cluster.server(1).cluster().await.unwrap();
    view.slots.iter().filter(|slot| !slot.is_permit && slot.owner.as_deref() == Some("server-0")).count()
}

/// How many runs a server had going at once.
fn most_at_once(world: &World, server: &str) -> usize {
    let (mut going, mut most) = (0_usize, 0);
    for line in world.recorder.lines().iter().filter(|line| line.server == server) {
        match line.event {
            HistoryEvent::RunStarted { .. } => going += 1,
            HistoryEvent::RunEnded { .. } => going -= 1,
            _ => {}
        }
        most = most.max(going);
    }
    most
}

/// K38: version 2 of a definition, with other patterns and a cap, is registered while 20 requests of version 1 wait and 2
/// run. Changes match by it on every server from one revision on; servers that know version 1 alone hand over, and lease
/// nothing again; what was asked for runs once, before what comes later of its key. Version 1 does not come back, and
/// another template is another hook.
pub async fn k38_a_higher_version_takes_over_and_a_lower_one_never_does(case: Case) {
    let mut world = World::new(&case, 4).await;
    let (old, new) = (Probe::answering(counted), Probe::answering(counted));
    world.register(0, &first_version(), 2, &old).await;
    world.spread("hook", 1).await;
    let keys: Vec<String> = (0..22).map(|number| format!("k{number}")).collect();
    for key in &keys {
        old.hold(key);
        world.set(1, key.as_str(), 1).await;
    }
    old.until("two run", |probe| probe.seen().len() == 2).await;
    for server in [0, 1] {
        assert!(!asks(&world, server, "k0", server as u64).await.1, "server {server} matches by version 1");
    }
    new.pause(Duration::from_millis(3));
    world.register(2, &second_version(), 8, &new).await;
    let registered = world.cluster.server(2).flush().await.unwrap();
    // Also those that lack the code, and the one whose code is older.
    for server in [0, 1, 2] {
        for key in &keys[..3] {
            assert!(asks(&world, server, key, 10 + server as u64).await.1, "server {server} matches by version 2");
        }
    }
    let running: BTreeSet<String> = old.seen().iter().map(|seen| seen.key.clone()).collect();
    let slots: BTreeSet<u32> = running.iter().map(|key| crate::slot_index(&world.key(key), 4)).collect();
    world
        .eventually("it keeps the slots of what it runs alone", || async {
            slots_of_the_old(&world).await == slots.len()
        })
        .await;
    for key in &keys {
        old.release(key);
    }
    // An older build starts, and registers what it knows.
    let older = Probe::answering(counted);
    world.register(3, &first_version(), 8, &older).await;
    world.eventually("the old build has no slot", || async { slots_of_the_old(&world).await == 0 }).await;
    for key in &keys {
        world.set(3, key.as_str(), 2).await;
    }
    assert!(world.hooks_finish(1).await.finished);
    assert_eq!(old.seen().len(), 2, "it has started nothing more");
    assert_eq!(older.seen(), []);
    for key in &keys {
        let seen: Vec<_> = old.seen_of(key).into_iter().chain(new.seen_of(key)).collect();
        let of_stores: Vec<u64> = seen.iter().filter_map(|seen| seen.after).collect();
        assert_eq!(of_stores, [1, 2], "{key}");
        assert!(seen.is_sorted_by_key(|seen| seen.request.revision), "{key}: {seen:#?}");
        let of_versions = seen.iter().filter(|seen| seen.after.is_none()).collect::<Vec<_>>();
        assert!(of_versions.iter().all(|seen| seen.request.revision > registered), "{key}");
        assert_eq!(of_versions.len(), if keys[..3].contains(key) { 3 } else { 0 }, "{key}");
    }
    assert!(most_at_once(&world, "server-2") <= 3, "the cap of version 2");
    let view = world.cluster.server(1).cluster().await.unwrap();
    let owners: BTreeSet<&str> = view.slots.iter().filter_map(|slot| slot.owner.as_deref()).collect();
    assert_eq!(owners, BTreeSet::from(["server-2"]));
    let refused = world.cluster.server(1).register_only(Registration::new("hook", 3).on("/stores/{store}").key("all"));
    let refused = refused.await.unwrap_err();
    assert!(matches!(refused, RegisterError::NewHook { what: "the key's template", .. }), "{refused}");
    let said = refused.to_string();
    assert!(said.contains("that is a new hook"), "{said}");
    assert!(world.cluster.server(1).queue().list(QueueFilter::all()).await.unwrap().is_empty());
    // Two of version 1 were going already when version 2 set a cap.
    let mut expectation = world.expectation().await;
    expectation.caps.clear();
    world.finish_checked(expectation).await;
}
