//! Stores that are deleted, and data that nothing refers to.

use std::time::Duration;

use tidegate_rollout::entities::{Garbage, Phase};
use tidegate_state::Ref;

use super::THREE;
use crate::world::{World, manifest, schema};

#[tokio::test]
async fn r14_a_deleted_store_is_let_go_everywhere_and_its_name_is_free() {
    let world = World::serving(false).await;
    world.operations().start_push(World::request("p", "s")).await.unwrap();
    let text = World::refusal(world.operations().delete_store("s", "ada", "").await);
    assert!(text.contains("push p"), "{text}");
    world.operations().kill_push("p", "ada", "").await.unwrap();
    world.operations().delete_store("s", "ada", "unused").await.unwrap();
    let snapshot = world.state().snapshot();
    assert_eq!(snapshot.all::<tidegate_rollout::entities::Assignment>().count(), 0);
    let entry = Ref::<Garbage>::root(Garbage::artifact_entry("artifact-1")).unwrap();
    world.cluster.advance(Duration::from_millis(3_600_000 - 1));
    world.nudge().await;
    assert!(world.state().snapshot().contains(entry.path()));
    world.cluster.advance(Duration::from_millis(1));
    world.until_state("the artifact is gone", |snapshot| !snapshot.contains(entry.path())).await;
    assert!(world.removals.0.lock().contains(&"artifact-1".to_owned()));
    world.create_store("s").await;
    world.push("first", "s").await;
    world.ended("first").await;
    world.serves("s", &THREE).await;
}

#[tokio::test]
async fn r17_what_is_referred_to_again_is_no_garbage() {
    let world = World::serving(false).await;
    world.push("p", "s").await;
    world.ended("p").await;
    world.operations().roll_back_store("s", None, None, "ada", "bad").await.unwrap();
    // Version 2 has reached its own retention: it is let go, and its grace time begins.
    world.cluster.advance(Duration::from_secs(86_400) + Duration::from_millis(1));
    let entry = Ref::<Garbage>::root(Garbage::artifact_entry("artifact-2")).unwrap();
    world.until_state("version 2 is let go", |snapshot| snapshot.contains(entry.path())).await;
    // The very same data is pushed again before it is removed.
    world.operations().start_push(World::request("q", "s")).await.unwrap();
    world.until("q", |push| push.phase() == Some(&Phase::Build)).await;
    world.operations().register_schema("q", schema(&[])).await.unwrap();
    world.operations().complete_push("q", manifest(2, schema(&[])), "sha-2".into()).await.unwrap();
    assert!(!world.state().snapshot().contains(entry.path()));
    world.ended("q").await;
    world.cluster.advance(Duration::from_secs(86_400));
    assert!(world.removals.0.lock().iter().all(|removed| removed != "artifact-2"));
}
