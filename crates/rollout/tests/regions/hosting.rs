//! C19: a region is hosted by one agent at a time.

use std::time::Duration;

use tidegate_rollout::entities::IngestionStatus;
use tidegate_rollout::region::Standing;

use crate::support::{On, STORE, World};

async fn until_replaced(world: &World, replaced: bool) {
    world
        .until_later("the agent knows who hosts the region", |world| {
            let standing = world.agent.as_ref().unwrap().standing().borrow().clone();
            matches!(standing, Standing::Replaced { .. }) == replaced
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_an_agent_that_was_replaced_commands_nothing_reports_nothing_and_says_why() {
    let world = World::serving(2, &[1, 2], 1).await;
    // Cut off past its lease, and another takes over; then it is back.
    world.link.cut(true);
    world.link.hosted_by(Some("agent other (id 7), since 2026"));
    world.clock.advance(Duration::from_secs(60));
    world.link.cut(false);
    until_replaced(&world, true).await;
    let standing = world.agent.as_ref().unwrap().standing().borrow().words();
    assert!(standing.contains("agent other (id 7)") && standing.contains("commands its nodes no more"), "{standing}");
    let reports = world.link.history(STORE).len();
    let swaps: Vec<u64> = world.nodes.iter().map(|node| node.calls(On::Swap, STORE)).collect();
    let observed: Vec<u64> = world.nodes.iter().map(|node| node.calls(On::Observe, STORE)).collect();
    world.assign(&[1, 2], Some(2));
    for _ in 0..10 {
        let heartbeats = world.link.claims();
        world.until_later("it asks again for the region", |world| world.link.claims() > heartbeats).await;
    }
    assert_eq!(world.link.history(STORE).len(), reports);
    assert_eq!(world.nodes.iter().map(|node| node.calls(On::Swap, STORE)).collect::<Vec<_>>(), swaps);
    assert_eq!(world.nodes.iter().map(|node| node.calls(On::Observe, STORE)).collect::<Vec<_>>(), observed);
    // No read fails for it, and once the other is gone it does what is wanted.
    assert!(world.nodes.iter().all(|node| node.read(STORE, 5) == Ok(1)));
    world.link.hosted_by(None);
    until_replaced(&world, false).await;
    world.until_later("it serves what is wanted", |world| world.report().serving == Some(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_an_agent_that_was_replaced_stays_so_over_a_restart_with_the_control_plane_gone() {
    let mut world = World::serving(2, &[1, 2], 1).await;
    world.link.hosted_by(Some("another"));
    until_replaced(&world, true).await;
    world.link.cut(true);
    world.restart_agent().await;
    let swaps = world.nodes[0].calls(On::Swap, STORE);
    let agent = world.agent.as_ref().unwrap();
    assert!(matches!(&*agent.standing().borrow(), Standing::Replaced { .. }));
    assert!(agent.is_elsewhere());
    assert_eq!(world.nodes[0].calls(On::Swap, STORE), swaps);
    world.link.hosted_by(None);
    world.link.cut(false);
    until_replaced(&world, false).await;
    assert!(!world.agent.as_ref().unwrap().is_elsewhere());
    world.assign(&[1, 2], Some(2));
    world.until_later("it serves what is wanted", |world| world.report().serving == Some(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_load_is_cut_off_where_another_agent_takes_over() {
    let mut world = World::new(1, 1).await;
    world.nodes[0].once(On::Load, [crate::support::Fault::Hangs]);
    world.start().await;
    world.assign(&[1], None);
    world.until("the load has begun", |world| world.nodes[0].calls(On::Load, STORE) == 1).await;
    world.link.hosted_by(Some("another"));
    until_replaced(&world, true).await;
    world.link.hosted_by(None);
    until_replaced(&world, false).await;
    world.until_later("it is loaded", |world| world.status(1) == Some(IngestionStatus::Completed)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_region_that_is_let_go_of_is_taken_at_once() {
    let world = World::serving(2, &[1, 2], 1).await;
    world.link.hosted_by(Some("another"));
    until_replaced(&world, true).await;
    // When the other lets go of it, then no heartbeat is waited for: the clock stands still.
    world.link.hosted_by(None);
    let hosts = |world: &World| matches!(&*world.agent.as_ref().unwrap().standing().borrow(), Standing::Hosts(_));
    world.until("the agent hosts the region", hosts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_region_that_only_seems_to_be_free_is_not_claimed_again_and_again() {
    let world = World::serving(1, &[1], 1).await;
    world.link.hosted_by(Some("another"));
    until_replaced(&world, true).await;
    let before = world.link.claims();
    world.link.seems_free(true);
    world.until("it claims it", |world| world.link.claims() > before).await;
    let seconds = 5;
    for second in 1..=seconds {
        world.clock.advance(Duration::from_secs(1));
        world.until("it claims it again", |world| world.link.claims() > before + second).await;
    }
    // One each second, and what a heartbeat may have added.
    assert!(world.link.claims() <= before + seconds + 2, "{} claims", world.link.claims() - before);
}
