//! How old what regions serve is.

use std::time::Duration;

use tidegate_rollout::freshness::freshness;

use crate::world::World;

#[tokio::test]
async fn f22_freshness_is_counted_per_region_and_a_push_that_is_overdue_is_an_alarm() {
    let world = World::serving(false).await;
    world
        .operations()
        .update_store("s", "ada", |store| {
            store.freshness.expected_every_ms = Some(86_400_000);
            store.freshness.max_age_ms = Some(172_800_000);
        })
        .await
        .unwrap();
    let completed = World::push_value(&world.state().snapshot(), "first").unwrap().end().unwrap().at;
    let day = Duration::from_secs(86_400);
    let at = |after: Duration| freshness(&world.state().snapshot(), completed.after(after)).remove(0);
    assert!(!at(day).overdue);
    assert!(at(day + Duration::from_millis(1)).overdue);
    // A and B take the next one, C is left out: its age goes on.
    world.operations().mark_region("c", false, "eve", "power").await.unwrap();
    world.cluster.advance(day);
    world.push("p", "s").await;
    world.ended("p").await;
    assert!(!at(day + Duration::from_millis(1)).overdue);
    assert_eq!(at(day * 2 + Duration::from_secs(1)).too_old, ["c"]);
}
