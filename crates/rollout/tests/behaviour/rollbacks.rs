//! B: rolling back, freezing, and opening gates by hand.

use std::time::Duration;

use tidegate_lifecycle::Function;
use tidegate_rollout::entities::{
    EmbeddedPermission, EndedBy, FailureKind, FreezeScope, PushStatus, RegionState, VersionStatus,
};

use crate::simulator::{DAY, HOUR, MINUTE, Reply, Simulator};

const SWAP: Function = Function::PreStoreVersionSwap;
const BAKE: Function = Function::PostStoreVersionSwap;

/// A has swapped, B and C wait.
fn first_swapped() -> (Simulator, String) {
    let mut world = Simulator::new();
    world.enable(&["order"]);
    world.script("order", SWAP, "b", &[Reply::Wait]);
    world.script("order", SWAP, "c", &[Reply::Wait, Reply::Wait, Reply::Wait]);
    (world, String::new())
}

#[test]
fn b1_a_rollback_at_a_swap_gate_brings_the_first_region_back() {
    let (mut world, _) = first_swapped();
    world.always("order", SWAP, "b", Reply::Rollback);
    let push = world.push();
    world.advance(MINUTE * 3);
    assert_eq!(world.status(&push), PushStatus::RolledBack);
    assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
    assert_eq!(world.version(2), VersionStatus::RolledBack);
    assert!(world.agents["b"].served.is_empty() && world.agents["c"].served.is_empty());
    assert!(world.holders(2).is_empty());
    world.advance(DAY);
    assert_eq!(world.status(&push), PushStatus::RolledBack);
}

#[test]
fn b2_an_abort_is_no_rollback() {
    let (mut world, _) = first_swapped();
    world.always("order", SWAP, "b", Reply::Abort);
    let push = world.push();
    world.advance(MINUTE * 3);
    assert_eq!((world.status(&push), world.end(&push).by), (PushStatus::Aborted, Some(EndedBy::Gate)));
    assert_eq!(world.serving(), [Some(2), Some(1), Some(1)]);
    assert_eq!(world.version(2), VersionStatus::PartiallyOnline);
}

#[test]
fn b3_a_rollback_before_the_first_swap_moves_no_pointer() {
    for function in [Function::PreStoreVersionCreation, Function::PreStartOfStoreVersionIngestionForDaVinci, SWAP] {
        let mut world = Simulator::new();
        world.enable(&["x"]);
        for region in ["a", "b", "c"] {
            world.always("x", function, region, Reply::Rollback);
        }
        let push = world.push();
        world.advance(MINUTE);
        assert_eq!(world.status(&push), PushStatus::RolledBack, "{function}");
        assert_eq!(world.version(2), VersionStatus::RolledBack);
        assert!(world.agents.values().all(|agent| agent.served.is_empty()), "{function}");
    }
}

#[test]
fn b4_each_region_goes_back_to_what_it_served_before() {
    let mut world = Simulator::empty();
    // C fails in every push so far, and B in the second.
    let broken = Some((FailureKind::Other, "broken".into()));
    world.agent("c").fails = broken.clone();
    world.push();
    world.advance(MINUTE);
    world.agent("b").fails = broken;
    world.push();
    world.advance(MINUTE);
    world.agent("b").fails = None;
    world.agent("c").fails = None;
    world.enable(&["x"]);
    world.script("x", Function::PreEndOfPushJob, "", &[Reply::Rollback]);
    let push = world.start();
    assert_eq!(world.serving(), [Some(2), Some(1), None]);
    world.complete(&push);
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::RolledBack);
    assert_eq!(world.serving(), [Some(2), Some(1), None]);
    assert_eq!(world.agents["c"].served, [Some(3), None]);
}

#[test]
fn b5_going_back_moves_pointers_and_no_data() {
    let mut world = Simulator::new();
    world.push();
    world.advance(MINUTE);
    world.enable(&["x"]);
    world.script("x", Function::PreEndOfPushJob, "", &[Reply::Rollback]);
    let push = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::RolledBack);
    assert_eq!(world.serving(), [Some(2), Some(2), Some(2)]);
    for agent in world.agents.values() {
        assert_eq!(agent.served, [Some(2), Some(3), Some(2)]);
        assert_eq!(agent.loads.get(&2), Some(&1), "version 2 was loaded once, for its own push");
        assert!(!agent.loads.contains_key(&1));
    }
}

#[test]
fn b6_going_back_asks_no_gate_and_cant_loop() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    for region in ["a", "b", "c"] {
        world.always("x", BAKE, region, Reply::Rollback);
    }
    let push = world.push();
    world.advance(HOUR);
    assert_eq!(world.status(&push), PushStatus::RolledBack);
    assert_eq!(world.asked(SWAP, None), 3);
    assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
    assert!(world.agents.values().all(|agent| agent.served.len() <= 2));
}

#[test]
fn b7_a_region_that_is_cut_off_is_named_at_the_confirmation_limit_and_obeys_later() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.script("x", BAKE, "a", &[Reply::Wait, Reply::Rollback]);
    let push = world.push();
    world.advance(Duration::from_secs(30));
    assert_eq!(world.serving(), [Some(2), Some(2), Some(2)]);
    world.agent("c").alive = false;
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Started);
    assert_eq!(world.serving(), [Some(1), Some(1), Some(2)]);
    assert_eq!(world.view.regions["c"].assignment.as_ref().unwrap().serve, Some(1));
    world.advance(MINUTE * 9);
    assert_eq!(world.status(&push), PushStatus::Started);
    world.advance(MINUTE);
    let end = world.end(&push);
    assert_eq!(end.status, PushStatus::RolledBack);
    assert!(end.reason.contains("not confirmed by c"), "{}", end.reason);
    world.agent("c").alive = true;
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
    assert!(matches!(world.region(&push, "c"), RegionState::Stopped { .. }));
}

#[test]
fn b12_what_was_rolled_back_never_counts_as_a_kept_version() {
    let mut world = Simulator::new();
    world.push();
    world.advance(MINUTE);
    world.enable(&["x"]);
    world.script("x", Function::PreEndOfPushJob, "", &[Reply::Rollback]);
    world.push();
    world.advance(MINUTE);
    assert_eq!(world.version(3), VersionStatus::RolledBack);
    let rolled_back_at = world.view.versions[&3].retired_at.unwrap();
    let push = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.holders(4), ["a", "b", "c"]);
    assert_eq!(world.holders(2), ["a", "b", "c"], "the way back");
    assert!(world.holders(1).is_empty() && world.holders(3).is_empty());
    assert!(world.view.versions[&1].artifact().is_none(), "version 1 has had its time");
    // Version 3 is kept up to and at its own retention, and gone a millisecond later.
    let until = rolled_back_at.after(DAY);
    world.advance(until.since(world.now));
    assert!(world.view.versions[&3].artifact().is_some());
    world.advance(Duration::from_millis(1));
    assert!(world.view.versions[&3].artifact().is_none());
    assert!(world.garbage.contains_key("artifact-artifact-3"));
}

#[test]
fn b13_nobody_holds_a_version_in_the_end_that_nobody_should() {
    use PushStatus::{Aborted, Error, Killed, RolledBack};
    for expected in [Error, Aborted, Killed, RolledBack] {
        let mut world = Simulator::new();
        world.enable(&["x"]);
        // A fails, B waits with the data, C still copies.
        if expected == Error {
            world.agent("a").fails = Some((FailureKind::Other, "broken".into()));
        }
        world.agent("c").ingestion = MINUTE * 5;
        world.script("x", SWAP, "b", &[Reply::Wait]);
        world.always("x", SWAP, "b", if expected == RolledBack { Reply::Rollback } else { Reply::Abort });
        world.always("x", SWAP, "a", Reply::Wait);
        let push = world.push();
        world.advance(Duration::from_secs(20));
        assert_eq!(world.status(&push), PushStatus::Started);
        if expected == Killed {
            world.kill(&push);
        }
        world.advance(MINUTE * 10);
        assert_eq!(world.status(&push), expected);
        assert!(world.holders(2).is_empty(), "{expected:?}");
        assert!(world.view.regions.values().all(|facts| !facts.report.as_ref().unwrap().versions.contains_key(&2)));
        assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
    }
}

#[test]
fn b15_a_freeze_holds_every_way_forward_until_it_is_lifted() {
    let cases = [
        (FreezeScope::Store("s".into()), [Some(1), Some(1), Some(1)]),
        (FreezeScope::Region("b".into()), [Some(2), Some(1), Some(2)]),
        (FreezeScope::All, [Some(1), Some(1), Some(1)]),
        (FreezeScope::Store("t".into()), [Some(2), Some(2), Some(2)]),
    ];
    for (scope, expected) in cases {
        let mut world = Simulator::new();
        world.enable(&["x"]);
        for region in ["a", "b", "c"] {
            world.agent(region).ingestion = Duration::from_secs(30);
        }
        let push = world.push();
        world.advance(Duration::from_secs(10));
        world.freeze("f", scope.clone());
        world.advance(HOUR);
        assert_eq!(world.serving(), expected, "{scope:?}");
        // Ingestion went on.
        assert!(world.view.regions.values().all(|facts| facts.holds(&world.view.store, 2)));
        let holds = tidegate_rollout::controller::holds(&world.view, &push, world.now);
        let held: Vec<&str> = holds.iter().filter_map(|hold| hold.region.as_deref()).collect();
        let frozen: Vec<&str> = ["a", "b", "c"]
            .into_iter()
            .zip(expected)
            .filter(|(_, serving)| *serving == Some(1))
            .map(|(region, _)| region)
            .collect();
        assert_eq!(held, frozen);
        if let Some(hold) = holds.first() {
            assert_eq!(hold.reason, "frozen by eve: holidays (freeze f)");
        }
        world.unfreeze("f");
        world.advance(Duration::from_secs(1));
        assert_eq!(world.status(&push), PushStatus::Completed, "{scope:?}");
    }
}

#[test]
fn b16_a_freeze_holds_no_way_back_and_no_bake() {
    for bad in [true, false] {
        let mut world = Simulator::new();
        world.enable(&["health"]);
        world.always("health", SWAP, "b", Reply::Wait);
        world.agent("c").ingestion = HOUR * 5;
        let last = if bad { Reply::Rollback } else { Reply::Proceed };
        world.script("health", BAKE, "a", &[Reply::Wait, last]);
        let push = world.push();
        world.advance(Duration::from_secs(20));
        world.freeze("f", FreezeScope::All);
        world.advance(MINUTE * 2);
        if bad {
            assert_eq!(world.status(&push), PushStatus::RolledBack);
            assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
        } else {
            assert!(matches!(world.region(&push, "a"), RegionState::Done { .. }));
            assert_eq!(world.serving(), [Some(2), Some(1), Some(1)]);
        }
    }
}

#[test]
fn b17_no_embedded_client_starts_to_serve_under_a_freeze() {
    let mut world = Simulator::new();
    world.agent("b").clients = 2;
    world.agent("b").clients_slow = true;
    let push = world.push();
    world.advance(Duration::from_secs(1));
    let permission = |world: &Simulator| world.view.regions["b"].assignment.as_ref().unwrap().hold[&2].embedded;
    assert_eq!(permission(&world), EmbeddedPermission::Serve);
    world.freeze("f", FreezeScope::Region("b".into()));
    assert_eq!(permission(&world), EmbeddedPermission::Ingest);
    world.agent("b").clients_slow = false;
    world.advance(MINUTE);
    assert!(!world.agents["b"].clients_served.contains(&2));
    world.unfreeze("f");
    world.advance(MINUTE);
    assert!(world.agents["b"].clients_served.contains(&2));
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn b18_a_gate_can_be_opened_by_hand_past_a_freeze_a_wait_and_a_call_that_hangs() {
    for how in ["freeze", "wait", "hang"] {
        let mut world = Simulator::new();
        world.enable(&["x"]);
        for region in ["a", "b", "c"] {
            match how {
                "wait" => world.always("x", SWAP, region, Reply::Wait),
                "hang" => world.always("x", SWAP, region, Reply::Silence),
                _ => {}
            }
        }
        if how == "freeze" {
            world.freeze("f", FreezeScope::All);
        }
        let push = world.push();
        world.advance(Duration::from_secs(30));
        assert_eq!(world.serving(), [Some(1), Some(1), Some(1)], "{how}");
        let asked = world.asked(SWAP, Some("b"));
        world.open_by_hand(&push, "pre-swap@b");
        world.advance(Duration::from_secs(1));
        assert_eq!(world.serving(), [Some(1), Some(2), Some(1)], "{how}");
        assert_eq!(world.asked(SWAP, Some("b")), asked, "{how}");
        // Every other gate is asked, and the late answer changes nothing.
        assert_eq!(world.asked(BAKE, Some("b")), 1, "{how}");
        world.clear_scripts();
        world.always("x", SWAP, "b", Reply::Rollback);
        world.advance(MINUTE * 2);
        assert_ne!(world.status(&push), PushStatus::RolledBack, "{how}");
    }
}

#[test]
fn b14_a_gate_that_is_opened_by_hand_does_not_stand_in_for_the_data() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", SWAP, "a", Reply::Wait);
    world.always("x", SWAP, "c", Reply::Wait);
    world.agent("b").ingestion = MINUTE;
    let push = world.push();
    world.open_by_hand(&push, "pre-swap@b");
    world.advance(Duration::from_secs(30));
    assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(1), Some(2), Some(1)]);
    assert_eq!(world.version(2), VersionStatus::PartiallyOnline);
}

#[test]
fn n1_a_rollback_of_the_first_push_leads_back_to_what_was_live_before_it() {
    let mut world = Simulator::empty();
    // Data that no push made is live in A and B, nothing in C.
    for region in ["a", "b"] {
        world.adopt(region);
    }
    world.enable(&["x"]);
    world.script("x", Function::PreEndOfPushJob, "", &[Reply::Rollback]);
    let push = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::RolledBack);
    assert_eq!(world.serving(), [Some(0), Some(0), None]);
    let next = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&next), PushStatus::Completed);
    assert_eq!(world.serving(), [Some(2), Some(2), Some(2)]);
}
