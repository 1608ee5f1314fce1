//! C: several servers, and servers that die.

use std::time::Duration;

use futures::StreamExt;
use tidegate_lifecycle::{Function, Verdict};
use tidegate_rollout::Operations;
use tidegate_rollout::entities::{Phase, PushStatus, VersionStatus};
use tidegate_state::{Clock, Snapshot, State, slot_index};

use crate::world::World;

const LEASE: Duration = Duration::from_secs(10);

/// How many worlds are played at once: they mostly wait.
const AT_ONCE: usize = 8;

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    /// The server whose slot the store's rollout is in, whichever that is.
    TheActing,
    /// All three.
    All,
}

/// The server that acts for a store: the owner of the slot of its rollout.
async fn acting_for(world: &World, store: &str) -> usize {
    let look = async {
        loop {
            let view = world.state().cluster().await.unwrap();
            let count = view.slots.iter().filter(|slot| slot.hook == "rollout").count();
            let spread = view.spread("rollout");
            let even = spread.values().max().unwrap_or(&0) - spread.values().min().unwrap_or(&0) <= 1;
            if count > 0 && even && spread.values().sum::<usize>() == count {
                let index = slot_index(store, u32::try_from(count).unwrap());
                let slot = view.slots.iter().find(|slot| slot.hook == "rollout" && slot.index == index).unwrap();
                return slot.owner.as_ref().unwrap().trim_start_matches("server-").parse().unwrap();
            }
            // Nothing tells of slots that pass on.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(crate::world::LIMIT, look).await.expect("the slots come to rest")
}

/// What the client of a push does, through one server.
async fn client(state: State, operations: Operations) {
    let accepted = operations.start_push(World::request("p", "s")).await.unwrap();
    let is_in = |phase: Phase| {
        move |snapshot: &Snapshot| World::push_value(snapshot, "p").is_some_and(|push| push.phase() == Some(&phase))
    };
    World::until_state_of(&state, "it may build", is_in(Phase::Build)).await;
    operations.register_schema("p", crate::world::schema(&[])).await.unwrap();
    World::until_state_of(&state, "it may upload", is_in(Phase::Upload)).await;
    let manifest = crate::world::manifest(accepted.push.version, crate::world::schema(&[]));
    operations.complete_push("p", manifest, "sha-2".into()).await.unwrap();
}

/// Lets the clock go on until the leases of the dead have ended. Those that live renew theirs.
async fn outlive_leases(world: &World) {
    let names: Vec<String> = world.cluster.running().iter().map(|state| state.server().to_string()).collect();
    for _ in 0..6 {
        world.cluster.advance(LEASE / 4);
        let renewed = async {
            loop {
                let now = world.cluster.clock().now();
                let servers = world.cluster.stored().await.servers;
                let is_fresh = |name: &String| {
                    let mut rows = servers.iter().filter(|row| *row.name == **name);
                    rows.any(|row| row.lease_until >= now.after(LEASE / 2))
                };
                if names.iter().all(is_fresh) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(crate::world::LIMIT, renewed).await.expect("leases are renewed");
    }
}

/// Kills servers right after so many commits of a push, from its start on, lets others take over, and says whether it
/// came to that before the push had ended.
async fn killed_after(commits: u64, dies: Dies) -> bool {
    let mut world = World::with_servers(3, true, LEASE).await;
    world.push("first", "s").await;
    world.ended("first").await;
    world.hook.asked.lock().clear();
    let acting = acting_for(&world, "s").await;
    let survivor = (acting + 1) % 3;
    let state = world.cluster.server(survivor).clone();
    state.flush().await.unwrap();
    let target = state.snapshot().revision().0 + commits;
    let mut client = tokio::spawn(client(state.clone(), world.operations_of(survivor).clone()));
    if dies == Dies::All {
        // A client whose server dies would have to begin again.
        (&mut client).await.unwrap();
    }
    let has_ended = |snapshot: &Snapshot| World::push_value(snapshot, "p").is_some_and(|push| push.status().is_final());
    let reached = |snapshot: &Snapshot| snapshot.revision().0 >= target || has_ended(snapshot);
    World::until_state_of(&state, "the commit", reached).await;
    let ended = has_ended(&state.snapshot());
    match dies {
        Dies::TheActing => world.kill_server(acting),
        Dies::All => {
            for server in 0..3 {
                world.kill_server(server);
            }
            world.cluster.restart(0).await;
            world.start_server(0).await;
        }
    }
    drop(state);
    world.follow_regions();
    outlive_leases(&world).await;
    if dies == Dies::TheActing {
        client.await.unwrap();
    }
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Completed, "{dies:?} after {commits} commits");
    world.serves("s", &[Some(2), Some(2), Some(2)]).await;
    assert_eq!(world.version("s", 2).status, VersionStatus::Online);
    for region in ["a", "b", "c"] {
        let served = world.served.lock()[&(region.to_owned(), "s".to_owned())].clone();
        assert_eq!(served, [None, Some(1), Some(2)], "{region} swaps once: {dies:?} after {commits} commits");
    }
    // A call may come again, with the same idempotency key: it takes effect once.
    let asked = world.hook.asked.lock().clone();
    let mut keys: Vec<&str> = asked
        .iter()
        .filter(|context| context.function == Function::PostEndOfPushJob && context.push.as_deref() == Some("p"))
        .map(|context| context.idempotency_key.as_str())
        .collect();
    keys.dedup();
    assert_eq!(keys.len(), 1, "post_end takes effect once");
    !ended
}

/// Plays a push for each so many commits, until it has ended before. Says how many that were.
async fn killed_after_each(dies: Dies) -> usize {
    let came_to_that = futures::stream::iter(1..).map(|commits| killed_after(commits, dies)).buffered(AT_ONCE);
    came_to_that.take_while(|came_to_that| std::future::ready(*came_to_that)).count().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_whichever_commit_the_acting_server_dies_after_the_push_ends_the_same() {
    let deaths = killed_after_each(Dies::TheActing).await;
    assert!(deaths > 20, "only {deaths} commits of a push, its start and its schema among them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c1_whichever_commit_all_servers_die_after_the_push_ends_the_same() {
    let deaths = killed_after_each(Dies::All).await;
    assert!(deaths > 8, "only {deaths} commits of a push after its upload");
}

#[tokio::test]
async fn r10_many_stores_push_at_once_and_one_that_waits_holds_up_no_other() {
    let world = World::with_servers(2, true, Duration::from_secs(86_400)).await;
    world.hook.say(|context| {
        let held = context.store == "t7" && context.function == Function::PreStoreVersionSwap;
        if held { Verdict::Wait } else { Verdict::Proceed }
    });
    world.hook.hold(Some("t9"));
    let stores: Vec<String> = (0..200).map(|number| format!("t{number}")).collect();
    for store in &stores {
        world.create_store(store).await;
    }
    let pushes = stores.iter().map(|store| {
        let world = &world;
        async move { world.push(&format!("push of {store}"), store).await }
    });
    futures::future::join_all(pushes).await;
    for store in stores.iter().filter(|store| !["t7", "t9"].contains(&store.as_str())) {
        let push = format!("push of {store}");
        world.ended(&push).await;
        assert_eq!(world.status(&push), PushStatus::Completed);
    }
    for held in ["push of t7", "push of t9"] {
        assert_eq!(world.status(held), PushStatus::Started);
    }
    world.hook.hold(None);
    world.ended("push of t9").await;
    assert_eq!(world.status("push of t9"), PushStatus::Completed);
}
