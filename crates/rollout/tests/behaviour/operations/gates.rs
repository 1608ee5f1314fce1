//! Opening a gate by hand.

use tidegate_lifecycle::Function;
use tidegate_rollout::OperationError;
use tidegate_rollout::entities::{FreezeScope, PushStatus};

use super::waits_at;
use crate::world::World;

#[tokio::test]
async fn b14_b18_opening_a_gate_by_hand_is_refused_without_data_reason_or_push() {
    let world = World::serving(true).await;
    world.hold.lock().slow.insert("b".into());
    world.hook.say(waits_at(Function::PreStoreVersionSwap, "b"));
    world.push("p", "s").await;
    world
        .until_state("a and c swap", |snapshot| World::serving_now(snapshot, "s") == [Some(2), Some(1), Some(2)])
        .await;
    let operations = world.operations();
    let proceed = |reason: &'static str| operations.proceed_gate("p", "swap", Some("b"), "ada", reason);
    let text = World::refusal(proceed("I know").await);
    assert!(text.contains("0 of the 2 nodes"), "{text}");
    world.hold.lock().slow.clear();
    world.nudge().await;
    world.until("p", |push| push.regions["b"].state.word() == "ingested").await;
    assert!(matches!(proceed("").await, Err(OperationError::ReasonMissing)));
    let text = World::refusal(operations.proceed_gate("p", "swap", None, "ada", "I know").await);
    assert!(text.contains("name the region"), "{text}");
    let text = World::refusal(operations.proceed_gate("p", "post-end", None, "ada", "I know").await);
    assert!(text.contains("pre-swap"), "{text}");
    operations.freeze("f", FreezeScope::Region("b".into()), "eve", "holidays").await.unwrap();
    proceed("I know").await.unwrap();
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Completed);
    let push = World::push_value(&world.state().snapshot(), "p").unwrap();
    let over = &push.overrides["pre-swap@b"];
    assert_eq!((over.by.as_str(), over.reason.as_str()), ("ada", "I know"));
    let text = World::refusal(proceed("again").await);
    assert!(text.contains("already ended as COMPLETED"), "{text}");
}
