//! Restarts, losses and separations: C7, C8, C9, C12, C21, R7, R16, N8.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_rollout::engine::Engine;
use tidegate_rollout::entities::IngestionStatus;
use tidegate_state::Clock;

use crate::support::{Fault, On, STORE, World, key};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c7_an_agent_that_restarts_with_a_version_ingested_does_not_swap_by_itself() {
    let mut world = World::serving(2, &[1, 2], 1).await;
    let before = world.report();
    let (swaps, loads) = (world.figures().swaps.get(), world.nodes[0].calls(On::Load, STORE));
    world.restart_agent().await;
    world.pass(world.options.limits.observe_every).await;
    world.pass(world.options.limits.observe_every).await;
    let after = world.report();
    assert_eq!(after.versions, before.versions, "no status moves, nor its time");
    assert_eq!((after.serving, after.serving_since), (before.serving, before.serving_since));
    assert_eq!(world.figures().swaps.get(), swaps);
    assert_eq!(world.nodes[0].calls(On::Load, STORE), loads);
    assert!(world.nodes.iter().all(|node| node.serves(STORE) == Some(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c8_an_agent_that_dies_before_it_could_report_reports_on_restart_and_ingests_nothing_twice() {
    let mut world = World::new(2, 1).await;
    world.link.refuse_reports(STORE, true);
    world.start().await;
    world.assign(&[1], None);
    world
        .until("both nodes have read it back", |world| {
            world.nodes.iter().all(|node| node.calls(On::Verify, STORE) == 1)
        })
        .await;
    world.stop().await;
    assert_eq!(world.link.report(STORE), None);
    world.link.refuse_reports(STORE, false);
    let copied = world.figures().copied_bytes.get();
    world.restart_agent().await;
    world.until_later("it is reported", |world| world.status(1) == Some(IngestionStatus::Completed)).await;
    assert!(world.nodes.iter().all(|node| node.calls(On::Load, STORE) == 1));
    assert_eq!(world.figures().copied_bytes.get(), copied);
    world.assign(&[1], Some(1));
    world.until_serving(Some(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c9_a_region_that_was_cut_off_goes_straight_to_what_is_wanted() {
    let mut world = World::serving(2, &[1], 1).await;
    for version in 2..=4 {
        world.add_version(version, 200, 4).await;
    }
    world.link.cut(true);
    for version in 2..=3 {
        world.assign(&[1, version], Some(1));
        world.assign(&[1, version], Some(version));
    }
    world.assign(&[1, 4], Some(1));
    assert!(world.nodes.iter().all(|node| node.read(STORE, 5) == Ok(1)));
    world.link.cut(false);
    world.until_later("version 4 is ingested", |world| world.status(4) == Some(IngestionStatus::Completed)).await;
    assert!(world.nodes.iter().all(|node| node.serves(STORE) == Some(1)));
    world.assign(&[1, 4], Some(4));
    world.until_serving(Some(4)).await;
    for node in &world.nodes {
        assert_eq!((node.calls(On::Load, STORE), node.calls(On::Swap, STORE)), (2, 2), "1 and 4, and nothing between");
    }
    let reported: Vec<u64> =
        world.link.history(STORE).iter().flatten().flat_map(|report| report.versions.keys().copied()).collect();
    assert!(!reported.contains(&2) && !reported.contains(&3), "{reported:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_control_plane_a_restarted_region_goes_on_as_it_was_told() {
    let mut world = World::serving(2, &[1, 2], 1).await;
    world.assign(&[1, 2], Some(2));
    world.until_serving(Some(2)).await;
    world.pass(world.options.limits.observe_every).await;
    world.link.cut(true);
    world.stop().await;
    // One node comes back as it was, the other one with nothing.
    world.nodes[0].restart().await;
    world.nodes[1].restart_with_nothing().await;
    assert_eq!(world.nodes[0].read(STORE, 6), Ok(2), "before any agent is there");
    world.restart_agent().await;
    world.until_later("the second node serves again", |world| world.nodes[1].serves(STORE) == Some(2)).await;
    assert_eq!(world.nodes[0].serves(STORE), Some(2));
    world.link.cut(false);
    world
        .until_later("the region is whole again", |world| {
            world.report().lagging_nodes.is_empty() && world.report().serving == Some(2)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_nodes_that_serve_something_else_than_was_reported_are_put_right() {
    let world = World::serving(2, &[1, 2], 2).await;
    let mismatches = world.figures().mismatches.get();
    for node in &world.nodes {
        node.engine().swap(&key(STORE), Some(1)).await.unwrap();
    }
    world.agent.as_ref().unwrap().look_at(STORE);
    world.until("it is put right", |world| world.nodes.iter().all(|node| node.serves(STORE) == Some(2))).await;
    world.until_serving(Some(2)).await;
    assert_eq!(world.figures().mismatches.get(), mismatches + 1);
    // In between it did not count as serving version 2.
    let served: Vec<Option<u64>> = world.link.history(STORE).iter().flatten().map(|report| report.serving).collect();
    assert!(served.iter().rev().skip(1).any(|serving| *serving == Some(1) || serving.is_none()), "{served:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_nodes_restored_from_an_old_disk_get_back_what_is_assigned() {
    let mut world = World::serving(2, &[1], 1).await;
    world.add_version(2, 200, 4).await;
    // A copy of the disks as they were with version 1.
    for node in &world.nodes {
        copy_folder(node.folder(), &world.folder().join(format!("backup-{}", node.name)));
    }
    world.assign(&[1, 2], Some(2));
    world.until_ingested(2).await;
    world.until_serving(Some(2)).await;
    let mismatches = world.figures().mismatches.get();
    for node in &world.nodes {
        std::fs::remove_dir_all(node.folder()).unwrap();
        copy_folder(&world.folder().join(format!("backup-{}", node.name)), node.folder());
        node.restart().await;
        assert_eq!(node.serves(STORE), Some(1));
    }
    let revision = world.link.revision();
    world.pass(world.options.limits.observe_every).await;
    world.until_later("version 2 is back", |world| world.nodes.iter().all(|node| node.serves(STORE) == Some(2))).await;
    world
        .until_later("and reported", |world| {
            world.report().serving == Some(2) && world.report().lagging_nodes.is_empty()
        })
        .await;
    assert_eq!(world.figures().mismatches.get(), mismatches + 1);
    assert!(world.link.revision() > revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r7_n8_a_pointer_that_was_cut_off_is_set_right_from_the_assignment_with_no_push() {
    let mut world = World::serving(2, &[1, 2], 2).await;
    let loads = world.figures().loaded_bytes.get();
    world.stop().await;
    for node in &world.nodes {
        for cut in ["", "{\"format\":1,\"incarn"] {
            std::fs::write(node.folder().join("stores").join(STORE).join("serving.json"), cut).unwrap();
            node.restart().await;
            assert_eq!(node.serves(STORE), None, "nothing is known of what it serves");
        }
    }
    world.restart_agent().await;
    world.until_later("version 2 is back", |world| world.nodes.iter().all(|node| node.serves(STORE) == Some(2))).await;
    world.until_serving(Some(2)).await;
    assert_eq!(world.figures().loaded_bytes.get(), loads, "the version was there, and is not loaded again");
    // Durably.
    world.stop().await;
    for node in &world.nodes {
        node.restart().await;
        assert_eq!(node.serves(STORE), Some(2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_drops_is_no_surprise() {
    let world = World::serving(2, &[1, 2], 2).await;
    let mismatches = world.figures().mismatches.get();
    // Looked at while it drops: it neither has the version any more, nor has the step ended.
    world.nodes.iter().for_each(|node| node.once(On::Drop, [Fault::HangsAfter]));
    world.assign(&[2], Some(2));
    world.until("both drop it", |world| world.nodes.iter().all(|node| node.calls(On::Drop, STORE) == 1)).await;
    world.pass(world.options.limits.observe_every).await;
    assert_eq!(world.figures().mismatches.get(), mismatches);
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n8_a_node_that_lost_everything_does_not_count_until_it_has_it_back() {
    let world = World::serving(2, &[1, 2], 2).await;
    let mismatches = world.figures().mismatches.get();
    for node in &world.nodes {
        node.always(On::Load, Fault::Hangs);
        node.restart_with_nothing().await;
    }
    world.pass(world.options.limits.observe_every).await;
    world.until("the region does not count as serving", |world| world.report().serving.is_none()).await;
    assert_ne!(world.status(2), Some(IngestionStatus::Completed));
    for node in &world.nodes {
        node.well_again();
    }
    world.until_later("the region serves version 2", |world| world.report().serving == Some(2)).await;
    world
        .until_later("and holds both", |world| {
            [1, 2].iter().all(|version| world.status(*version) == Some(IngestionStatus::Completed))
        })
        .await;
    assert_eq!(world.figures().mismatches.get(), mismatches + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n8_a_node_that_restarts_in_mid_load_loads_from_the_start() {
    let mut world = World::new(1, 1).await;
    world.nodes[0].once(On::Load, [Fault::Hangs]);
    world.start().await;
    world.assign(&[1], Some(1));
    world.until("the load is under way", |world| world.nodes[0].calls(On::Load, STORE) == 1).await;
    world.stop().await;
    world.nodes[0].restart().await;
    world.restart_agent().await;
    world
        .until_later("it is served", |world| world.link.report(STORE).is_some_and(|report| report.serving == Some(1)))
        .await;
    assert_eq!(world.nodes[0].calls(On::Load, STORE), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c21_a_control_plane_that_has_fallen_back_is_not_obeyed() {
    let mut world = World::serving(2, &[1], 1).await;
    let old: BTreeMap<_, _> = [(STORE.to_owned(), world.assignment(&[1], Some(1)))].into();
    let old_revision = world.link.revision();
    world.add_version(2, 200, 4).await;
    world.assign(&[1, 2], Some(2));
    world.until_ingested(2).await;
    world.until_serving(Some(2)).await;
    world.link.fall_back(old_revision, old);
    let swaps = world.figures().swaps.get();
    world.pass(world.options.limits.observe_every).await;
    world.pass(world.options.limits.observe_every).await;
    assert!(world.nodes.iter().all(|node| node.serves(STORE) == Some(2)));
    // Nor after a restart of the agent, which has seen more.
    world.restart_agent().await;
    world.pass(world.options.limits.observe_every).await;
    world.pass(world.options.limits.observe_every).await;
    assert!(world.nodes.iter().all(|node| node.serves(STORE) == Some(2)));
    assert_eq!(world.figures().swaps.get(), swaps);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_log_that_does_not_know_a_store_is_no_reason_to_drop_it() {
    let world = World::serving(2, &[1], 1).await;
    world.link.other_epoch(BTreeMap::new());
    world.until_later("time passes", |world| world.nodes[0].calls(On::Observe, STORE) > 10).await;
    assert!(world.nodes.iter().all(|node| node.read(STORE, 2) == Ok(1)));
    // Once that log has a word on the store, it is obeyed.
    let mut world = world;
    world.add_version(2, 200, 4).await;
    world.assign(&[2], Some(2));
    world
        .until_later("version 2 is served", |world| world.nodes.iter().all(|node| node.serves(STORE) == Some(2)))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r16_a_region_that_was_removed_serves_what_it_has_and_its_reports_are_refused() {
    let world = World::serving(2, &[1], 1).await;
    world.link.remove_region(true);
    let refused = world.figures().reports_failed.get();
    world.nodes[0].restart_with_nothing().await;
    world.until_later("its reports are refused", |world| world.figures().reports_failed.get() > refused).await;
    world
        .until_later("it goes on as it was told", |world| world.nodes.iter().all(|node| node.serves(STORE) == Some(1)))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c12_watches_that_break_all_the_time_lose_no_word_and_double_no_step() {
    let mut world = World::new(2, 3).await;
    world.start().await;
    // Every watch breaks every five seconds, whatever the agent is doing.
    let link = world.link.clone();
    let clock = world.clock.clone();
    let stop = tokio_util::sync::CancellationToken::new();
    let breaking = tokio::spawn({
        let stop = stop.clone();
        async move {
            loop {
                let due = Clock::sleep_until(&clock, Clock::now(&clock).after(Duration::from_secs(5)));
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = due => {
                        link.cut(true);
                        link.cut(false);
                    }
                }
            }
        }
    });
    for version in 1..=3_u64 {
        let before = version.checked_sub(1).filter(|before| *before > 0);
        let hold: Vec<u64> = before.into_iter().chain([version]).collect();
        world.assign(&hold, before);
        world.until_later("it is ingested", |world| world.status(version) == Some(IngestionStatus::Completed)).await;
        world.assign(&hold, Some(version));
        world
            .until_later("it is served", |world| {
                world.link.report(STORE).is_some_and(|report| report.serving == Some(version))
            })
            .await;
    }
    stop.cancel();
    breaking.await.unwrap();
    for node in &world.nodes {
        assert_eq!(node.calls(On::Load, STORE), 3, "{}: each version is loaded once", node.name);
        assert_eq!(node.calls(On::Swap, STORE), 3, "{}: and swapped to once", node.name);
    }
    let mut served: Vec<Option<u64>> =
        world.link.history(STORE).into_iter().flatten().map(|report| report.serving).collect();
    served.dedup();
    assert_eq!(served, [None, Some(1), Some(2), Some(3)]);
}
