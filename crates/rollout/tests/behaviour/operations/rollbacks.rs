//! Rolling back by hand, and releasing an earlier version's data.

use std::collections::BTreeMap;

use tidegate_lifecycle::{Function, Verdict};
use tidegate_rollout::entities::{PushStatus, VersionStatus};
use tidegate_rollout::operations::{OperatorAction, StartPush};
use tidegate_state::RecordSearch;

use super::THREE;
use crate::world::World;

/// A world whose regions all serve version 3 of `s`, and hold version 2 beside it.
async fn serving_the_third() -> World {
    let world = World::serving(false).await;
    for push in ["p", "q"] {
        world.push(push, "s").await;
        world.ended(push).await;
    }
    world
}

/// Every rollback of `s` that is on record.
async fn rollbacks(world: &World) -> Vec<OperatorAction> {
    let search = RecordSearch::by("store").prefix(tidegate_state::IndexKey::new().text("s")).limit(10);
    let kept = world.state().records::<OperatorAction>(search).await.unwrap();
    let kept = kept.items.into_iter().map(|stored| stored.value.unwrap());
    kept.filter(|action| action.what == "rollback to 1").collect()
}

#[tokio::test]
async fn b8_an_operator_rolls_back_all_regions_at_once() {
    let world = World::serving(false).await;
    world.push("p", "s").await;
    world.ended("p").await;
    let reasonless = World::refusal(world.operations().roll_back_store("s", None, None, "ada", " ").await);
    assert!(reasonless.contains("reason"), "{reasonless}");
    world.serves("s", &[Some(2), Some(2), Some(2)]).await;
    let to = world.operations().roll_back_store("s", None, None, "ada", "prices are off").await.unwrap();
    assert_eq!(to, BTreeMap::from(["a", "b", "c"].map(|region| (region.to_owned(), 1))));
    world.serves("s", &THREE).await;
    let version = world.version("s", 2);
    assert_eq!(version.status, VersionStatus::RolledBack);
    let back = version.rolled_back.unwrap();
    assert_eq!((back.by.as_str(), back.reason.as_str()), ("ada", "prices are off"));
    assert_eq!(world.status("p"), PushStatus::Completed, "the push stays as it ended");
    let kept = rollbacks(&world).await;
    for region in ["a", "b", "c"] {
        assert_eq!(world.metrics.mismatches("s", region), 0, "{region} was told to go back");
    }
    assert_eq!(kept.len(), 3, "one for each region: {kept:?}");
    assert!(kept.iter().all(|action| action.by == "ada" && action.reason == "prices are off"));
}

#[tokio::test]
async fn b9_an_operator_rolls_back_one_region_after_the_other() {
    let world = World::serving(false).await;
    world.push("p", "s").await;
    world.ended("p").await;
    let (two, one) = (Some(2), Some(1));
    for (region, serving, expected) in [
        ("a", [one, two, two], VersionStatus::PartiallyOnline),
        ("b", [one, one, two], VersionStatus::PartiallyOnline),
        ("c", [one, one, one], VersionStatus::RolledBack),
    ] {
        let to = world.operations().roll_back_store("s", Some(region), None, "ada", "prices are off").await.unwrap();
        assert_eq!(to, BTreeMap::from([(region.to_owned(), 1)]));
        world.serves("s", &serving).await;
        let version = world.version("s", 2);
        assert_eq!(version.status, expected, "after {region}");
        assert_eq!(version.regions[region].status, VersionStatus::RolledBack, "{region}");
    }
    assert_eq!(world.status("p"), PushStatus::Completed);
    let kept = rollbacks(&world).await;
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert!(kept.iter().all(|action| action.by == "ada" && action.reason == "prices are off"));
}

#[tokio::test]
async fn b9_what_is_served_in_some_regions_only_is_taken_back_there_and_nowhere_else() {
    let world = serving_the_third().await;
    let (two, three) = (Some(2), Some(3));
    world.operations().roll_back_store("s", Some("a"), None, "ada", "not in a").await.unwrap();
    world.serves("s", &[two, three, three]).await;
    let to = world.operations().roll_back_store("s", None, None, "ada", "nor elsewhere").await.unwrap();
    assert_eq!(to, BTreeMap::from(["b", "c"].map(|region| (region.to_owned(), 2))));
    world.serves("s", &[two, two, two]).await;
    assert_eq!(world.version("s", 2).status, VersionStatus::Online, "nothing was taken back that was good");
}

#[tokio::test]
async fn b8_a_second_rollback_is_refused_while_the_first_goes_on() {
    let world = serving_the_third().await;
    let operations = world.operations();
    let back = |to: Option<u64>| operations.roll_back_store("s", None, to, "ada", "prices are off");
    let (first, second) = tokio::join!(back(None), back(None));
    let text = World::refusal(second);
    assert_eq!(first.unwrap().into_values().collect::<Vec<_>>(), [2, 2, 2]);
    assert!(text.contains("is told to serve version 2 and serves version 3 still"), "{text}");
    world.serves("s", &[Some(2), Some(2), Some(2)]).await;
}

#[tokio::test]
async fn b8_an_order_to_another_version_is_no_second_rollback() {
    let world = serving_the_third().await;
    let operations = world.operations();
    let back = |to: Option<u64>| operations.roll_back_store("s", None, to, "ada", "prices are off");
    let (first, further) = tokio::join!(back(None), back(Some(1)));
    assert_eq!(first.unwrap().into_values().collect::<Vec<_>>(), [2, 2, 2]);
    // One before the last is not kept, which is what it is refused for.
    let text = World::refusal(further);
    assert!(text.contains("no region serves something newer than version 1 and still holds it"), "{text}");
    world.serves("s", &[Some(2), Some(2), Some(2)]).await;
}

#[tokio::test]
async fn b10_what_has_no_way_back_goes_on_serving() {
    let world = World::serving(false).await;
    let before = world.state().snapshot().revision();
    let text = World::refusal(world.operations().roll_back_store("s", None, None, "ada", "why not").await);
    assert!(text.contains("no region holds an earlier version"), "{text}");
    assert_eq!(World::serving_now(&world.state().snapshot(), "s"), THREE);
    assert_eq!(world.state().snapshot().revision(), before, "a refusal leaves no trace");
}

#[tokio::test]
async fn b11_what_was_rolled_back_is_never_a_target_again() {
    let world = World::serving(true).await;
    world.push("p", "s").await;
    world.ended("p").await;
    let ended = World::push_value(&world.state().snapshot(), "p").unwrap();
    world.operations().roll_back_store("s", None, None, "ada", "bad").await.unwrap();
    world.serves("s", &THREE).await;
    // Asked for by hand, everywhere or in one region: refused, naming the way that there is.
    for region in [None, Some("b")] {
        let text = World::refusal(world.operations().roll_back_store("s", region, Some(2), "ada", "no, good").await);
        assert!(text.contains("push s --from-version 2"), "{text}");
    }
    // The same id again is the same push, ended as it ended, and nothing moves.
    world.hook.asked.lock().clear();
    let again = world.operations().start_push(World::request("p", "s")).await.unwrap();
    assert_eq!((again.created, &again.push), (false, &ended));
    assert!(world.hook.asked.lock().is_empty());
    assert_eq!(World::serving_now(&world.state().snapshot(), "s"), THREE);
    // A new one is accepted at once.
    let accepted = world.operations().start_push(World::request("q", "s")).await.unwrap();
    assert_eq!((accepted.created, accepted.push.version), (true, 3));
    world.build("q", 3).await;
    world.ended("q").await;
    world.serves("s", &[Some(3), Some(3), Some(3)]).await;
}

#[tokio::test]
async fn b19_an_earlier_versions_data_is_released_as_a_new_version() {
    let world = World::serving(true).await;
    world.hook.say(|context| match (context.function, context.version) {
        (Function::PreStoreVersionCreation, Some(2 | 3)) => Verdict::Abort,
        _ => Verdict::Proceed,
    });
    world.push("p", "s").await;
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Aborted);
    let from = |id: &str| StartPush { from_version: Some(2), ..World::request(id, "s") };
    // Every gate is asked: stopped again.
    world.operations().start_push(from("q")).await.unwrap();
    world.ended("q").await;
    assert_eq!(world.status("q"), PushStatus::Aborted);
    assert_eq!(world.version("s", 3).artifact().unwrap().0, "artifact-2");
    // With an override of the gate that stopped it, which is on record.
    let overrides = ["a", "b", "c"].map(|region| (format!("pre-creation@{region}"), "the drop is expected".to_owned()));
    let request = StartPush { overrides: overrides.into(), ..from("r") };
    world.operations().start_push(request).await.unwrap();
    world.ended("r").await;
    assert_eq!(world.status("r"), PushStatus::Completed);
    world.serves("s", &[Some(4), Some(4), Some(4)]).await;
    let push = World::push_value(&world.state().snapshot(), "r").unwrap();
    assert_eq!(push.overrides["pre-creation@b"].reason, "the drop is expected");
    // What was never complete can't be released.
    let request = StartPush { from_version: Some(99), ..World::request("t", "s") };
    let text = World::refusal(world.operations().start_push(request).await);
    assert!(text.contains("version 99"), "{text}");
}
