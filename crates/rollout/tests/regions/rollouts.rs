//! What a region does when everything works: R2, R5, R13, B5, and what is no longer wanted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tidegate_dataset::Cancel;
use tidegate_dataset::index::IndexBuilder;
use tidegate_rollout::engine::embedded::NodeReadError;
use tidegate_rollout::engine::{Engine, Observed};
use tidegate_rollout::entities::IngestionStatus;

use crate::support::{Fault, On, STORE, World, incarnation, key, text_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r2_a_first_version_is_ingested_and_serves_on_the_word() {
    let mut world = World::new(2, 1).await;
    world.start().await;
    world.assign(&[1], None);
    world.until_ingested(1).await;
    for node in &world.nodes {
        assert_eq!(node.read(STORE, 3), Err(NodeReadError::NoVersion));
    }
    let report = world.report();
    assert_eq!(report.versions[&1].nodes, 2);
    assert_eq!(report.versions[&1].digest.as_ref(), Some(&world.artifact(1).manifest.content_digest));
    world.assign(&[1], Some(1));
    world.until_serving(Some(1)).await;
    for node in &world.nodes {
        assert_eq!(node.read(STORE, 3), Ok(1));
    }
    assert_eq!(world.report().generation, 2);
    assert_eq!(world.report().lagging_nodes, Vec::<String>::new());
    assert!(world.link.heartbeats() > 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r5_a_region_serves_what_its_assignment_says_for_as_long_as_it_says_so() {
    let world = World::serving(2, &[1, 2], 1).await;
    for _ in 0..3 {
        world.pass(world.options.limits.observe_every).await;
    }
    for node in &world.nodes {
        assert_eq!(node.serves(STORE), Some(1));
        assert_eq!(node.calls(On::Swap, STORE), 1);
    }
    world.assign(&[1, 2], Some(2));
    world.until_serving(Some(2)).await;
    assert!(world.nodes.iter().all(|node| node.serves(STORE) == Some(2)));
}

/// Every file below a folder, with when it was written.
fn files(folder: &Path, found: &mut BTreeMap<String, SystemTime>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.insert(path.display().to_string(), path.metadata().unwrap().modified().unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r13_a_swap_of_4096_partitions_writes_what_one_of_4_does() {
    let mut world = World::sharing(1).await;
    world.add_version(1, 200, 4).await;
    world.add_version(2, 5_000, 4096).await;
    world.start().await;
    world.assign(&[1, 2], None);
    world.until_ingested(1).await;
    world.until_ingested(2).await;
    let mut written = Vec::new();
    for version in [1, 2, 1, 2] {
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        files(world.nodes[0].folder(), &mut before);
        let (swaps, calls) = (world.figures().swaps.get(), world.nodes[0].calls(On::Swap, STORE));
        let reports = world.link.history(STORE).len();
        world.assign(&[1, 2], Some(version));
        world.until_serving(Some(version)).await;
        files(world.nodes[0].folder(), &mut after);
        let changed: Vec<String> =
            after.iter().filter(|(file, at)| before.get(*file) != Some(at)).map(|(file, _)| file.clone()).collect();
        let name = Path::new(&changed[0]).file_name().unwrap().to_owned();
        assert_eq!(name, "serving.json");
        written.push((
            changed.len(),
            world.figures().swaps.get() - swaps,
            world.nodes[0].calls(On::Swap, STORE) - calls,
            world.link.history(STORE).len() - reports,
        ));
    }
    assert!(written.iter().all(|of_swap| of_swap.0 == 1 && of_swap.1 == 1 && of_swap.2 == 1), "{written:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b5_a_rollback_moves_pointers_only() {
    let world = World::serving(2, &[1, 2], 1).await;
    world.assign(&[1, 2], Some(2));
    world.until_serving(Some(2)).await;
    let figures = world.figures();
    let manifests: u64 = (1..=2).map(|version| world.artifact(version).manifest.bytes).sum();
    assert_eq!(figures.copied_bytes.get(), manifests, "each version is copied to the region once");
    assert_eq!(figures.loaded_bytes.get(), manifests * 2, "and loaded by each node once");
    world.assign(&[1, 2], Some(1));
    world.until_serving(Some(1)).await;
    assert_eq!((figures.copied_bytes.get(), figures.loaded_bytes.get()), (manifests, manifests * 2));
    for node in &world.nodes {
        assert_eq!(node.read(STORE, 7), Ok(1));
        assert_eq!(node.calls(On::Load, STORE), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b5_a_rollback_is_carried_out_while_another_version_is_being_loaded() {
    let mut world = World::serving(2, &[1, 2], 2).await;
    world.add_version(3, 200, 4).await;
    for node in &world.nodes {
        node.always(On::Load, Fault::Hangs);
    }
    world.assign(&[1, 2, 3], Some(2));
    world.until("loads hang", |world| world.nodes.iter().all(|node| node.calls(On::Load, STORE) == 3)).await;
    world.assign(&[1, 2, 3], Some(1));
    world.until_serving(Some(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n3_what_is_no_longer_wanted_is_cut_off_and_leaves_nothing() {
    let mut world = World::serving(1, &[1], 1).await;
    world.add_version(2, 200, 4).await;
    world.nodes[0].always(On::Load, Fault::Hangs);
    world.assign(&[1, 2], Some(1));
    world.until("the load hangs", |world| world.nodes[0].calls(On::Load, STORE) == 2).await;
    world.assign(&[1], Some(1));
    world.until_later("version 2 is not reported any more", |world| world.status(2).is_none()).await;
    let id = world.artifact(2).manifest.artifact_id.clone();
    world
        .until_later("the region's copy is gone", |world| {
            !world.folder().join("own/artifacts").join(&id).join("manifest").exists()
                && std::fs::read_dir(world.folder().join("own/artifacts").join(&id))
                    .map_or(true, |mut entries| entries.next().is_none())
        })
        .await;
    assert_eq!(world.nodes[0].read(STORE, 1), Ok(1));
    let observed = world.nodes[0].engine().observe(&key(STORE)).await.unwrap();
    assert_eq!(observed.held.keys().copied().collect::<Vec<_>>(), [1]);
    assert!(observed.remains.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_let_go_is_dropped_but_never_while_it_serves() {
    let world = World::serving(2, &[1, 2], 1).await;
    // Nothing says what to serve in its place, so it goes on.
    world.assign(&[2], Some(2));
    world.until_serving(Some(2)).await;
    world.until("version 1 is dropped", |world| world.status(1).is_none()).await;
    for node in &world.nodes {
        let observed = node.engine().observe(&key(STORE)).await.unwrap();
        assert_eq!(observed.held.keys().copied().collect::<Vec<_>>(), [2]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r9_an_empty_version_is_ingested_and_serves() {
    let mut world = World::new(2, 1).await;
    let folder = world.folder().to_owned();
    let source = world.source.clone();
    // The second version has one key, so that the first of its partitions are empty parts.
    world.add_version(2, 1, 8).await;
    assert!(folder.exists() && source.list().await.unwrap().len() == 2);
    world.start().await;
    world.assign(&[1, 2], Some(2));
    world.until_serving(Some(2)).await;
    assert_eq!(world.nodes[0].read(STORE, 0), Ok(2));
    let absent = world.nodes[0].engine().read(STORE, "k5").unwrap();
    assert!(absent.value.is_none() && absent.version == 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_reported_at_most_once_a_second_and_news_at_once() {
    let mut world = World::new(1, 1).await;
    world.start().await;
    world.assign(&[1], None);
    world.until_ingested(1).await;
    // The clock stood still: of all progress that there was, at most one figure was written.
    let history = world.link.history(STORE);
    let progress = history
        .iter()
        .flatten()
        .filter(|report| {
            report.versions.get(&1).is_some_and(|held| matches!(held.status, IngestionStatus::Progress { .. }))
        })
        .count();
    assert!(progress <= 2, "{progress} reports of progress within no time");
    // And what stays as it is is not written again.
    let written = history.len();
    for _ in 0..3 {
        world.pass(world.options.limits.observe_every).await;
    }
    assert_eq!(world.link.history(STORE).len(), written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r14_a_store_that_is_deleted_is_let_go_and_its_namesake_is_another() {
    let mut world = World::serving(2, &[1], 1).await;
    world.add_version(2, 200, 4).await;
    world.link.assign(STORE, None);
    world.until("the report is gone", |world| world.link.report(STORE).is_none()).await;
    for node in &world.nodes {
        assert_eq!(node.read(STORE, 1), Err(NodeReadError::NoVersion));
        assert!(node.engine().stores().await.unwrap().is_empty());
    }
    world.until("the agent forgets it", |world| !world.agent.as_ref().unwrap().follows(STORE)).await;
    let kept: Vec<_> =
        std::fs::read_dir(world.folder().join("agent")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(kept, ["identity"], "who the agent is, and nothing of the store");
    // A store of the same name, with the same version number and other data.
    let mut assignment = world.assignment(&[2], None);
    assignment.incarnation = incarnation(2);
    let held = assignment.hold.remove(&2).unwrap();
    assignment.hold.insert(1, held);
    assignment.serve = Some(1);
    world.link.assign(STORE, Some(assignment));
    world.until_serving(Some(1)).await;
    for node in &world.nodes {
        let answer = node.engine().read(STORE, "k1").unwrap();
        assert_eq!(text_of(answer.value.as_deref()), "value 1 of version 2");
        assert_eq!(node.engine().observe(&key(STORE)).await.unwrap(), Observed::default());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r14_a_region_that_was_cut_off_never_gives_a_value_of_the_deleted_store() {
    let mut world = World::serving(2, &[1], 1).await;
    world.add_version(2, 200, 4).await;
    world.link.cut(true);
    world.link.assign(STORE, None);
    let mut assignment = world.assignment(&[2], None);
    assignment.incarnation = incarnation(2);
    world.link.assign(STORE, Some(assignment.clone()));
    assert_eq!(world.nodes[0].read(STORE, 1), Ok(1), "it can't know yet");
    world.link.cut(false);
    world.until_later("the new store is ingested", |world| world.status(2) == Some(IngestionStatus::Completed)).await;
    for node in &world.nodes {
        assert_eq!(node.read(STORE, 1), Err(NodeReadError::NoVersion));
    }
    assert_eq!(world.report().incarnation, incarnation(2));
    assignment.serve = Some(2);
    world.link.assign(STORE, Some(assignment));
    world.until_serving(Some(2)).await;
    assert_eq!(world.nodes[1].read(STORE, 1), Ok(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n1_what_was_live_before_the_first_push_is_the_way_back_from_it() {
    let mut world = World::new(2, 2).await;
    for node in &world.nodes {
        let folder = node.folder().join("stores").join(STORE);
        std::fs::create_dir_all(&folder).unwrap();
        let artifact = world.artifact(2).clone();
        let builder = IndexBuilder::new(folder.join("live.index"));
        builder.build_from_store(artifact.store, artifact.manifest, Arc::new(|_| {}), Cancel::new()).await.unwrap();
        node.restart().await;
    }
    world.start().await;
    world.assign(&[1], None);
    world.until_ingested(1).await;
    world.until_serving(Some(0)).await;
    assert_eq!(world.report().versions[&0].status, IngestionStatus::Completed);
    let live = |world: &World| {
        world.nodes.iter().all(|node| {
            let answer = node.engine().read(STORE, "k1").unwrap();
            answer.version == 0 && text_of(answer.value.as_deref()) == "value 1 of version 2"
        })
    };
    assert!(live(&world), "nobody has said to serve anything else");
    world.assign(&[1], Some(1));
    world.until_serving(Some(1)).await;
    let loaded = world.figures().loaded_bytes.get();
    world.assign(&[1], Some(0));
    world.until_serving(Some(0)).await;
    assert!(live(&world));
    assert_eq!(world.figures().loaded_bytes.get(), loaded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n5_the_way_back_from_a_first_version_is_to_serve_none() {
    let world = World::serving(2, &[1], 1).await;
    world.assign(&[1], None);
    world.until_serving(None).await;
    for node in &world.nodes {
        assert_eq!(node.read(STORE, 1), Err(NodeReadError::NoVersion));
    }
    assert_eq!(world.status(1), Some(IngestionStatus::Completed));
}
