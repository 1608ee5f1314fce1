//! C17, C18: what a push does about a region in which a version is pinned.

use tidegate_lifecycle::Function;
use tidegate_rollout::entities::{PushStatus, RegionState};

use crate::simulator::{DAY, MINUTE, Reply, Simulator};

const SWAP: Function = Function::PreStoreVersionSwap;
const BAKE: Function = Function::PostStoreVersionSwap;

fn left_out(world: &Simulator, push: &str, region: &str) -> String {
    match world.region(push, region) {
        RegionState::LeftOut { reason, .. } => reason.clone(),
        other => panic!("{region} is not left out: {other:?}"),
    }
}

/// A, B and C serve v2.
fn second_served() -> Simulator {
    let mut world = Simulator::new();
    world.push();
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(2); 3]);
    world
}

#[test]
fn c17_a_pinned_region_rests_and_the_others_go_on_and_once_lifted_it_catches_up() {
    let mut world = second_served();
    world.pin("a", Some(1));
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(1), Some(2), Some(2)]);
    let push = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.serving(), [Some(1), Some(3), Some(3)]);
    let reason = left_out(&world, &push, "a");
    for part in ["pinned to version 1", "ann", "prices are wrong"] {
        assert!(reason.contains(part), "{part} in {reason}");
    }
    assert!(world.end(&push).reason.contains("pinned"), "{}", world.end(&push).reason);
    // It was not even told to hold what it would not serve, and does what its assignment says once it may.
    assert_eq!(world.holders(3), ["b", "c"]);
    world.advance(DAY);
    assert_eq!(world.serving(), [Some(1), Some(3), Some(3)]);
    world.enable(&["x"]);
    world.pin("a", None);
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(3); 3]);
    assert_eq!(world.asked(SWAP, Some("a")), 1, "through its own gates");
}

#[test]
fn c17_a_pin_in_mid_push_takes_the_region_out_and_lifted_in_mid_push_takes_it_in() {
    for at in [SWAP, BAKE] {
        let mut world = Simulator::new();
        world.enable(&["x"]);
        world.always("x", at, "a", Reply::Wait);
        world.always("x", SWAP, "b", Reply::Wait);
        let push = world.push();
        world.advance(MINUTE);
        world.pin("a", Some(1));
        world.advance(MINUTE);
        assert!(left_out(&world, &push, "a").contains("pinned"), "{at}");
        assert_eq!(world.serving(), [Some(1), Some(1), Some(2)], "{at}");
        assert_eq!(world.view.regions["a"].serve(), Some(1), "{at}");
        world.clear_scripts();
        world.pin("a", None);
        world.advance(MINUTE * 5);
        assert_eq!(world.status(&push), PushStatus::Completed, "{at}");
        assert_eq!(world.serving(), [Some(2); 3], "{at}");
    }
}

#[test]
fn c17_a_pin_to_the_very_version_that_is_pushed_holds_nothing() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.script("x", BAKE, "a", &[Reply::Wait]);
    let push = world.push();
    world.advance(MINUTE / 2);
    world.pin("a", Some(2));
    world.advance(MINUTE * 5);
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.serving(), [Some(2); 3]);
}

#[test]
fn c18_a_pinned_region_is_named_as_not_confirmed_in_a_rollback() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.script("x", Function::PreEndOfPushJob, "", &[Reply::Wait]);
    let push = world.push();
    world.advance(MINUTE / 2);
    // A has served v2 to the end of its round when it is pinned to it.
    world.pin("a", Some(2));
    world.always("x", Function::PreEndOfPushJob, "", Reply::Rollback);
    world.advance(MINUTE * 5);
    assert_eq!(world.serving(), [Some(2), Some(1), Some(1)]);
    world.advance(MINUTE * 10);
    assert_eq!(world.status(&push), PushStatus::RolledBack);
    let reason = &world.end(&push).reason;
    for part in ["not confirmed by a", "pinned to version 2 by ann"] {
        assert!(reason.contains(part), "{part} in {reason}");
    }
    world.pin("a", None);
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(1); 3]);
}
