//! C: several servers, and servers that die.

use std::time::Duration;

use tidegate_lifecycle::{Function, Verdict};
use tidegate_rollout::entities::{PushStatus, VersionStatus};

use crate::world::World;

const LEASE: Duration = Duration::from_secs(10);

/// Kills the acting server after so many commits of a push, lets another take over, and says whether it came to that.
async fn killed_after(commits: u64, all: bool) -> bool {
    let mut world = World::with_servers(3, true, LEASE).await;
    world.push("first", "s").await;
    world.ended("first").await;
    world.hook.asked.lock().clear();
    let begun = world.state().snapshot().revision();
    let accepted = world.operations().start_push(World::request("p", "s")).await.unwrap();
    world.until("p", |push| push.phase() == Some(&tidegate_rollout::entities::Phase::Build)).await;
    world.operations().register_schema("p", crate::world::schema(&[])).await.unwrap();
    let manifest = crate::world::manifest(accepted.push.version, crate::world::schema(&[]));
    world.operations().complete_push("p", manifest, "sha-2".into()).await.unwrap();
    // Which server acts for `s` is for its slot to say, so the commit that is waited for is whoever's it is.
    let target = begun.0 + commits;
    let reached = tokio::time::timeout(Duration::from_secs(20), async {
        world
            .until_state("the commit", |snapshot| {
                let ended = World::push_value(snapshot, "p").is_some_and(|push| push.status().is_final());
                snapshot.revision().0 >= target || ended
            })
            .await;
    });
    reached.await.unwrap();
    let ended = World::push_value(&world.state().snapshot(), "p").is_some_and(|push| push.status().is_final());
    if all {
        for server in 0..3 {
            world.kill_server(server);
        }
        world.cluster.restart(0).await;
        world.start_server(0).await;
    } else {
        // Two of three die, whoever acted among them or not; the last one takes over when their leases have run out.
        world.kill_server(1);
        world.kill_server(2);
    }
    world.follow_regions();
    for _ in 0..6 {
        world.cluster.advance(LEASE / 2);
        tokio::task::yield_now().await;
    }
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Completed, "killed after {commits} commits");
    world.serves("s", &[Some(2), Some(2), Some(2)]).await;
    assert_eq!(world.version("s", 2).status, VersionStatus::Online);
    for region in ["a", "b", "c"] {
        // What was reported twice, by the region's player before and after the death, is one swap.
        let mut served = world.served.lock()[&(region.to_owned(), "s".to_owned())].clone();
        served.dedup();
        assert_eq!(served, [None, Some(1), Some(2)], "{region} swaps once");
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

#[tokio::test]
async fn c1_whichever_server_dies_after_whichever_commit_the_push_ends_the_same() {
    for all in [false, true] {
        for commits in (1..).step_by(4) {
            if !killed_after(commits, all).await {
                break;
            }
        }
    }
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
