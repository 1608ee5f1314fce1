//! Rollbacks by hand while a region does not confirm that it is back.

use std::collections::BTreeMap;

use tidegate_rollout::entities::RegionState;

use crate::world::World;

#[tokio::test]
async fn a_region_that_does_not_come_back_holds_up_no_rollback_of_what_it_never_got() {
    let world = World::serving(false).await;
    world.push("p", "s").await;
    world.ended("p").await;
    // C confirms nothing from now on.
    world.hold.lock().silent.insert("c".into());
    world.operations().roll_back_store("s", None, None, "ada", "bad").await.unwrap();
    world.serves("s", &[Some(1), Some(1), Some(2)]).await;
    world.push("q", "s").await;
    world.serves("s", &[Some(3), Some(3), Some(2)]).await;
    // The push is let end without it; it is expected again by then.
    world.operations().mark_region("c", false, "eve", "power").await.unwrap();
    world.ended("q").await;
    world.operations().mark_region("c", true, "eve", "").await.unwrap();
    let told = world.operations().roll_back_store("s", None, None, "ada", "bad, too").await.unwrap();
    assert_eq!(told, BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]), "C is told nothing new");
    world.serves("s", &[Some(1), Some(1), Some(2)]).await;
    // It is back, and goes where it was told.
    world.hold.lock().silent.clear();
    world.nudge().await;
    world.serves("s", &[Some(1); 3]).await;
}

#[tokio::test]
async fn b9_a_region_that_catches_up_with_what_is_taken_back_stops_there_and_never_serves_it() {
    // Given a region that was left out, is available again, and is on its way to version 2, from version 1.
    let world = World::serving(false).await;
    world.hold.lock().silent.insert("c".into());
    world.push("p", "s").await;
    world.serves("s", &[Some(2), Some(2), Some(1)]).await;
    world.operations().mark_region("c", false, "eve", "power").await.unwrap();
    world.ended("p").await;
    world.operations().mark_region("c", true, "eve", "").await.unwrap();
    world.until("p", |push| push.regions["c"].late && !push.regions["c"].state.is_at_rest()).await;
    // When that is rolled back elsewhere.
    let told = world.operations().roll_back_store("s", None, None, "ada", "bad").await.unwrap();
    assert_eq!(told, BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)]));
    // Then it is not told to serve it, when it is there again.
    world.hold.lock().silent.clear();
    world.nudge().await;
    world.serves("s", &[Some(1); 3]).await;
    world
        .until("p", |push| match &push.regions["c"].state {
            RegionState::LeftOut { reason, .. } => reason.contains("version 2 was rolled back"),
            _ => false,
        })
        .await;
    assert_eq!(*world.served.lock()[&("c".to_owned(), "s".to_owned())], [None, Some(1)]);
    // The next version it gets with the others.
    world.push("q", "s").await;
    world.serves("s", &[Some(3); 3]).await;
}

#[tokio::test]
async fn a_rollback_that_one_region_does_not_confirm_is_not_asked_for_twice_until_that_region_is_marked() {
    let world = World::serving(false).await;
    world.operations().update_store("s", "ada", |store| store.retention.versions = 3).await.unwrap();
    for push in ["p", "q"] {
        world.push(push, "s").await;
        world.ended(push).await;
    }
    world.hold.lock().silent.insert("c".into());
    let roll_back = || world.operations().roll_back_store("s", None, None, "ada", "bad");
    roll_back().await.unwrap();
    world.serves("s", &[Some(2), Some(2), Some(3)]).await;
    let text = World::refusal(roll_back().await);
    assert!(text.contains("region c") && text.contains("tidegate region mark c --unavailable"), "{text}");
    world.operations().mark_region("c", false, "eve", "power").await.unwrap();
    let told = roll_back().await.unwrap();
    assert_eq!(told.get("a"), Some(&1), "{told:?}");
    world.serves("s", &[Some(1), Some(1), Some(3)]).await;
    // Back again, it goes to where the others are, and to no other version on the way.
    world.operations().mark_region("c", true, "eve", "").await.unwrap();
    world.hold.lock().silent.clear();
    world.nudge().await;
    world.serves("s", &[Some(1); 3]).await;
    assert_eq!(world.served.lock()[&("c".to_owned(), "s".to_owned())].last(), Some(&Some(1)));
}
