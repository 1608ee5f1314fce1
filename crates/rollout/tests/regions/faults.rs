//! Regions in which something goes wrong: R12, F6, F12, N2, N4, N7, C10.

use std::time::Duration;

use tidegate_rollout::engine::{Engine, EngineError, FatalKind};
use tidegate_rollout::entities::{FailureKind, IngestionStatus};

use crate::support::{Fault, On, STORE, World, failed, key};

fn retry(message: &str) -> Fault {
    Fault::Fails(EngineError::retry(message))
}

fn fatal(kind: FatalKind, message: &str) -> Fault {
    Fault::Fails(EngineError::fatal(kind, message))
}

fn failure(world: &World, version: u64) -> (FailureKind, String) {
    match world.status(version) {
        Some(IngestionStatus::Failed { kind, message }) => (kind, message),
        other => panic!("version {version} has not failed: {other:?}"),
    }
}

async fn three_nodes_of_which_two_are_enough() -> World {
    let mut world = World::new(3, 2).await;
    world.start().await;
    world
}

fn assign(world: &World, hold: &[u64], serve: Option<u64>) {
    let mut assignment = world.assignment(hold, serve);
    assignment.enough = 2;
    world.link.assign(STORE, Some(assignment));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_node_that_is_down_is_not_needed_where_two_are_enough() {
    let world = three_nodes_of_which_two_are_enough().await;
    world.nodes[2].always(On::Observe, retry("connection refused"));
    assign(&world, &[1], None);
    world.until_ingested(1).await;
    assign(&world, &[1], Some(1));
    world.until_serving(Some(1)).await;
    let report = world.report();
    assert_eq!((report.versions[&1].nodes, &report.lagging_nodes), (2, &vec!["node-3".to_owned()]));
    // Once it is back, it catches up by itself.
    world.nodes[2].well_again();
    world.until_later("the third node catches up", |world| world.report().lagging_nodes.is_empty()).await;
    assert_eq!(world.nodes[2].serves(STORE), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_node_that_is_needed_and_has_died_is_named_at_once_and_the_others_load() {
    let mut world = World::serving(2, &[1], 1).await;
    world.add_version(2, 200, 4).await;
    for step in [On::Observe, On::Capacity] {
        world.nodes[1].always(step, retry("connection refused"));
    }
    assign(&world, &[1, 2], Some(1));
    // The clock stands still: no look that is due anyway finds it.
    world.until("it is named", |world| world.report().lagging_nodes == ["node-2"]).await;
    world
        .until_later("the other one has the version", |world| {
            world.report().versions.get(&2).is_some_and(|held| held.nodes == 1)
        })
        .await;
    world.nodes[1].well_again();
    world.until_later("both have it", |world| world.status(2) == Some(IngestionStatus::Completed)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_node_whose_digest_differs_never_counts_and_never_serves() {
    let world = three_nodes_of_which_two_are_enough().await;
    world.nodes[2].always(On::Verify, Fault::Digest("another".to_owned()));
    assign(&world, &[1], None);
    world.until_ingested(1).await;
    assign(&world, &[1], Some(1));
    world.until_serving(Some(1)).await;
    world.until_later("it was tried often", |world| world.nodes[2].calls(On::Load, STORE) > 5).await;
    assert_eq!(world.nodes[2].serves(STORE), None);
    assert_eq!(world.nodes[2].calls(On::Swap, STORE), 0);
    let report = world.report();
    assert_eq!((report.versions[&1].nodes, &report.lagging_nodes), (2, &vec!["node-3".to_owned()]));
    assert_eq!(report.versions[&1].status, IngestionStatus::Completed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n4_a_digest_that_differs_once_is_loaded_again_and_only_then_counts() {
    let mut world = World::new(1, 1).await;
    world.nodes[0].once(On::Verify, [Fault::Digest("another".to_owned())]);
    world.start().await;
    world.assign(&[1], Some(1));
    world.until("the difference is seen", |world| world.figures().failures("verify").get() == 1).await;
    assert_eq!(world.nodes[0].serves(STORE), None);
    world.until_later("it is ingested", |world| world.status(1) == Some(IngestionStatus::Completed)).await;
    assert_eq!(world.nodes[0].calls(On::Load, STORE), 2);
    world.until_serving(Some(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n4_a_digest_that_always_differs_fails_the_region_naming_both() {
    let mut world = World::new(1, 1).await;
    world.nodes[0].always(On::Verify, Fault::Digest("another".to_owned()));
    world.start().await;
    world.assign(&[1], Some(1));
    world.until_later("the region has failed", |world| failed(world.status(1))).await;
    let (kind, message) = failure(&world, 1);
    assert_eq!(kind, FailureKind::DataDamaged);
    assert!(message.contains("another") && message.contains(&world.artifact(1).manifest.content_digest), "{message}");
    assert_eq!(world.nodes[0].calls(On::Swap, STORE), 0);
    assert_eq!(world.nodes[0].calls(On::Load, STORE), u64::from(world.options.limits.attempts));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n7_an_error_that_passes_is_seen_and_tried_again_with_growing_pauses() {
    let mut world = World::new(1, 1).await;
    world.nodes[0].once(On::Load, (0..4).map(|time| retry(&format!("try {time} failed"))));
    world.start().await;
    world.assign(&[1], None);
    for (time, pause) in [1_u64, 2, 4, 8].into_iter().enumerate() {
        let calls = time as u64 + 1;
        world
            .until("the failure is reported", |world| {
                let retrying = world.link.report(STORE).and_then(|report| report.versions.get(&1)?.retrying.clone());
                world.nodes[0].calls(On::Load, STORE) == calls
                    && retrying.is_some_and(|retrying| retrying.contains(&format!("try {time} failed")))
            })
            .await;
        // Half the pause is not enough; the whole is.
        world.clock.advance(Duration::from_millis(pause * 500));
        world.until("nothing else happens", |world| world.nodes[0].calls(On::Load, STORE) == calls).await;
        world.clock.advance(Duration::from_millis(pause * 500));
    }
    world.until_ingested(1).await;
    assert_eq!(world.nodes[0].calls(On::Load, STORE), 5);
    assert_eq!(world.report().versions[&1].retrying, None);
    assert_eq!(world.figures().failures("load").get(), 4);
    assert_eq!(world.figures().given_up("load").get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f12_n7_every_kind_of_fatal_error_fails_the_region_at_once_as_its_kind() {
    for (kind, shown) in [
        (FatalKind::DiskFull, FailureKind::DiskFull),
        (FatalKind::MemoryLimit, FailureKind::MemoryLimitReached),
        (FatalKind::TooManyDead, FailureKind::TooManyDeadInstances),
        (FatalKind::Other, FailureKind::Other),
    ] {
        let mut world = World::new(2, 1).await;
        world.nodes[1].always(On::Load, fatal(kind, "the engine's own text"));
        world.start().await;
        world.assign(&[1], None);
        world.until("the region has failed", |world| failed(world.status(1))).await;
        let (kind, message) = failure(&world, 1);
        assert_eq!(kind, shown);
        assert!(message.contains("the engine's own text"), "{message}");
        assert_eq!(world.nodes[1].calls(On::Load, STORE), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f6_a_swap_that_is_always_refused_fails_the_region_after_bounded_tries() {
    let world = World::serving(2, &[1, 2], 1).await;
    for node in &world.nodes {
        node.always(On::Swap, retry("the engine refuses"));
    }
    let before = world.nodes[0].calls(On::Swap, STORE);
    world.assign(&[1, 2], Some(2));
    world
        .until_later("the region has failed", |world| {
            failed(world.status(2)) && world.figures().given_up("swap").get() == 2
        })
        .await;
    let (kind, message) = failure(&world, 2);
    assert_eq!(kind, FailureKind::SwapRefused);
    assert!(message.contains("the engine refuses"), "{message}");
    assert_eq!(world.nodes[0].calls(On::Swap, STORE) - before, u64::from(world.options.limits.attempts));
    let report = world.report();
    assert_eq!(report.serving, Some(1));
    assert_eq!(report.versions[&1].status, IngestionStatus::Completed);
    // The controller takes it back: version 1 is what is wanted, and nothing has to be done for that.
    world.assign(&[1, 2], Some(1));
    world.until("version 2 is whole again", |world| world.status(2) == Some(IngestionStatus::Completed)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n2_a_version_that_would_not_fit_fails_before_anything_is_copied() {
    let mut world = World::serving(2, &[1], 1).await;
    world.add_version(2, 200, 4).await;
    let copied = world.figures().copied_bytes.get();
    for node in &world.nodes {
        node.always(On::Capacity, Fault::ShortBy(1));
    }
    world.assign(&[1, 2], Some(1));
    world.until("the region has failed", |world| failed(world.status(2))).await;
    let (kind, message) = failure(&world, 2);
    assert_eq!(kind, FailureKind::DiskFull);
    let capacity = world.nodes[0].engine().capacity(&key(STORE), 2, &world.artifact(2).manifest).await.unwrap();
    let needed = capacity.needed_bytes;
    assert!(message.contains(&format!("{needed} bytes needed")), "{message}");
    assert!(message.contains(&format!("{} free", needed - 1)), "{message}");
    assert_eq!(world.nodes[0].calls(On::Load, STORE), 1, "version 1 alone was loaded");
    assert_eq!(world.figures().copied_bytes.get(), copied);
    assert!(!world.folder().join("own/artifacts").join(&world.artifact(2).manifest.artifact_id).exists());
    assert_eq!(world.nodes[0].read(STORE, 1), Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n2_a_load_that_runs_full_fails_with_its_kind_and_leaves_nothing() {
    let mut world = World::serving(1, &[1], 1).await;
    world.add_version(2, 200, 4).await;
    world.nodes[0].always(On::Load, fatal(FatalKind::DiskFull, "no space left on device"));
    world.assign(&[1, 2], Some(1));
    world.until("the region has failed", |world| failed(world.status(2))).await;
    assert_eq!(failure(&world, 2).0, FailureKind::DiskFull);
    let observed = world.nodes[0].engine().observe(&key(STORE)).await.unwrap();
    assert!(observed.remains.is_empty() && !observed.holds(2));
    assert_eq!(world.nodes[0].read(STORE, 1), Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c10_one_stores_trouble_holds_up_no_other() {
    let mut world = World::new(2, 2).await;
    world.options.limits.heavy_steps = 2;
    world.options.limits.step = Duration::from_secs(60);
    for node in &world.nodes {
        node.always_for("engine-error", On::Load, retry("this store's load always fails"));
        node.always_for("hanging-swap", On::Swap, Fault::Hangs);
    }
    world.link.refuse_reports("refused-reports", true);
    world.start().await;
    // One store's artifact is damaged at the source.
    let mut damaged = world.assignment(&[1], None);
    damaged.hold.get_mut(&1).unwrap().manifest_sha256 = "0".repeat(64);
    world.link.assign("damaged", Some(damaged));
    for store in ["engine-error", "hanging-swap", "refused-reports"] {
        world.assign_store(store, &[1], Some(1));
    }
    for store in ["t", "u"] {
        world.assign_store(store, &[1], Some(1));
    }
    // Time stands still for those that are well: nothing of theirs waits for a pause.
    for store in ["t", "u"] {
        world
            .until(&format!("{store} is served"), |world| {
                world.link.report(store).is_some_and(|report| report.serving == Some(1))
            })
            .await;
    }
    world
        .until_later("the damaged store has failed", |world| {
            world.link.report("damaged").is_some_and(|report| {
                report.versions.get(&1).is_some_and(|held| matches!(held.status, IngestionStatus::Failed { .. }))
            })
        })
        .await;
    world
        .until_later("the engine's error has failed the region for its store", |world| {
            world.link.report("engine-error").is_some_and(|report| {
                report.versions.get(&1).is_some_and(|held| matches!(held.status, IngestionStatus::Failed { .. }))
            })
        })
        .await;
    // It is still tried, visibly, and others still get new versions.
    let tried = world.nodes[0].calls(On::Load, "engine-error");
    for store in ["t", "u"] {
        world.assign_store(store, &[1, 2], Some(2));
        world
            .until(&format!("{store} serves version 2"), |world| {
                world.link.report(store).is_some_and(|report| report.serving == Some(2))
            })
            .await;
    }
    world.until_later("it is tried again", |world| world.nodes[0].calls(On::Load, "engine-error") > tried).await;
    assert!(world.figures().stores_in_trouble.get() >= 3);
    // The store whose reports were refused was served all the same, and tells once it may.
    assert_eq!(world.nodes[0].serves("refused-reports"), Some(1));
    world.link.refuse_reports("refused-reports", false);
    world
        .until_later("it reports", |world| {
            world.link.report("refused-reports").is_some_and(|report| report.serving == Some(1))
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_without_any_progress_is_cut_off_and_tried_again() {
    let mut world = World::new(1, 1).await;
    world.nodes[0].once(On::Load, [Fault::Hangs]);
    world.start().await;
    world.assign(&[1], None);
    world.until("the load hangs", |world| world.nodes[0].calls(On::Load, STORE) == 1).await;
    world.until_later("it is ingested all the same", |world| world.status(1) == Some(IngestionStatus::Completed)).await;
    assert_eq!(world.nodes[0].calls(On::Load, STORE), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c10_an_agent_whose_tasks_die_says_so_and_is_started_again() {
    let mut world = World::new(1, 1).await;
    world.start().await;
    world.until("it follows", |world| world.link.heartbeats() > 0).await;
    world.link.panic(true);
    let trouble = |world: &World| world.agent.as_ref().unwrap().trouble();
    world
        .until_later("both are dead", |world| {
            let trouble = trouble(world).unwrap_or_default();
            trouble.contains("follows the control plane") && trouble.contains("keeps the region's lease")
        })
        .await;
    assert!(trouble(&world).unwrap().contains("told to panic"), "{:?}", trouble(&world));
    world.assign(&[1], Some(1));
    world.link.panic(false);
    world.until_later("it serves", |world| world.nodes[0].serves(STORE) == Some(1)).await;
    world.until_later("it is well", |world| trouble(world).is_none()).await;
}
