//! What hooks are asked and told on the way of a push.

use std::collections::BTreeMap;

use tidegate_lifecycle::Function;
use tidegate_rollout::entities::{PushStatus, VersionStatus};
use tidegate_rollout::operations::StartPush;
use tidegate_state::RecordSearch;

use super::THREE;
use crate::world::World;

#[tokio::test]
async fn a_push_goes_from_its_start_to_every_region_by_cluster_hooks_alone() {
    let world = World::new(true).await;
    world.push("p", "s").await;
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Completed);
    world.serves("s", &THREE).await;
    assert_eq!(world.version("s", 1).status, VersionStatus::Online);
    // The first push brought the schema.
    let asked: Vec<Function> = world.hook.asked.lock().iter().map(|context| context.function).collect();
    let count = |function| asked.iter().filter(|asked| **asked == function).count();
    assert_eq!(count(Function::PreSchemaRegistration), 1);
    assert_eq!(count(Function::PostSchemaRegistration), 1);
    assert_eq!(count(Function::PreStoreVersionSwap), 3);
    assert_eq!(count(Function::PostStoreVersionLeaderReplication), 3);
    assert_eq!(count(Function::PostEndOfPushJob), 1);
    assert_eq!(asked.last(), Some(&Function::PostEndOfPushJob));
}

#[tokio::test]
async fn h3_a_hook_is_told_everything_about_the_push_and_the_regions() {
    let world = World::serving(true).await;
    // Its own configuration: the published table, with the store's overrides key by key, and no other hook's.
    let table = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let published =
        BTreeMap::from([("x".to_owned(), table(&[("p", "1"), ("q", "1")])), ("y".to_owned(), table(&[("p", "9")]))]);
    world.configure(&["x"], published).await;
    let set = BTreeMap::from([("x.q".to_owned(), "2".to_owned())]);
    world.operations().set_overrides("s", "ada", set, Default::default()).await.unwrap();
    world.operations().mark_region("c", false, "eve", "power").await.unwrap();
    let request =
        StartPush { attributes: BTreeMap::from([("commit".to_owned(), "abc".to_owned())]), ..World::request("p", "s") };
    let version = world.operations().start_push(request).await.unwrap().push.version;
    world.build("p", version).await;
    world.ended("p").await;
    let asked = world.hook.asked.lock().clone();
    let context = asked
        .iter()
        .find(|context| context.function == Function::PreStoreVersionSwap && context.region.as_deref() == Some("b"))
        .unwrap();
    assert_eq!(context.push.as_deref(), Some("p"));
    assert_eq!(context.pushed_by.as_deref(), Some("ada"));
    assert_eq!(context.attributes["commit"], "abc");
    assert_eq!((context.store.as_str(), context.version, context.previous_version), ("s", Some(2), Some(1)));
    assert_eq!(context.regions.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let region = &context.regions["b"];
    assert!(region.available && region.reached_at.contains_key("ingested") && region.job_status == "COMPLETED");
    assert!(region.gates_opened_at.contains_key("pre-creation"));
    assert_eq!(region.serving, Some(1));
    assert_eq!(region.statistics.as_ref().unwrap().records, 10);
    assert_eq!(context.statistics.as_ref().unwrap().bytes, 1_000);
    assert_eq!((context.attempt, context.memo.clone()), (1, None));
    assert!(context.now.0 > 0 && context.fencing_token > 0 && !context.idempotency_key.is_empty());
    assert_eq!(context.config, table(&[("p", "1"), ("q", "2")]));
    let left_out = &context.regions["c"];
    assert!(!left_out.available);
    assert!(left_out.unavailable_reason.as_ref().unwrap().contains("power"));
    // Each status has the time at which it was reached, by the store's clock.
    let begun = tidegate_state::testing::START;
    assert!(region.reached_at.values().chain(region.gates_opened_at.values()).all(|at| *at >= begun));
    // Of a region that served nothing there is no previous version: the first push of another store.
    world.create_store("t").await;
    world.push("q", "t").await;
    world.ended("q").await;
    let asked = world.hook.asked.lock().clone();
    let mut first =
        asked.iter().filter(|context| context.store == "t" && context.function == Function::PreStoreVersionSwap);
    assert!(
        first.all(|context| context.previous_version.is_none() && context.this_region().unwrap().serving.is_none())
    );
}

#[tokio::test]
async fn h1_without_hooks_no_call_is_made_and_none_is_recorded() {
    let world = World::serving(false).await;
    world.push("p", "s").await;
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Completed);
    assert!(world.hook.asked.lock().is_empty());
    let search = RecordSearch::by("store").prefix(tidegate_state::IndexKey::new().text("s")).limit(10);
    let records = world.state().records::<tidegate_lifecycle::CallRecord>(search).await.unwrap();
    assert!(records.items.is_empty());
    let mut registry = prometheus_client::registry::Registry::default();
    world.lifecycle().metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let moved: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("hook=") && !line.ends_with(" 0") && !line.ends_with(" 0.0"))
        .collect();
    assert!(moved.is_empty(), "{moved:?}");
}
