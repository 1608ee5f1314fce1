//! F: failures and partial outcomes.

use std::time::Duration;

use tidegate_lifecycle::Function;
use tidegate_rollout::entities::{EndedBy, FailureKind, FreezeScope, PushStatus, RegionState, VersionStatus};

use crate::simulator::{DAY, HOUR, MINUTE, Reply, Simulator};

const SWAP: Function = Function::PreStoreVersionSwap;

fn fails(world: &mut Simulator, region: &str) {
    world.agent(region).fails = Some((FailureKind::DiskFull, "needs 100 bytes, 7 are free".into()));
}

#[test]
fn f1_behind_a_failed_region_an_order_aborts_and_the_push_ends_by_the_region() {
    for silent in [false, true] {
        let mut world = Simulator::new();
        world.enable(&["order"]);
        for region in ["a", "b", "c"] {
            world.agent(region).clients = 1;
        }
        for region in ["b", "c"] {
            // The order waits for A, and says Abort once A has failed.
            world.script("order", SWAP, region, &[Reply::Wait, Reply::Abort]);
            world.script(
                "order",
                Function::PreStartOfStoreVersionIngestionForDaVinci,
                region,
                &[Reply::Wait, Reply::Abort],
            );
        }
        if silent {
            world.agent("a").alive = false;
        } else {
            world.agent("a").ingestion = Duration::from_secs(5);
            fails(&mut world, "a");
        }
        let push = world.push();
        if silent {
            world.advance(Duration::from_secs(20));
            for region in ["b", "c"] {
                world.always("order", Function::PreStartOfStoreVersionIngestionForDaVinci, region, Reply::Wait);
                world.script("order", Function::PreStartOfStoreVersionIngestionForDaVinci, region, &[]);
            }
            world.advance(MINUTE * 29);
            for region in ["b", "c"] {
                world.always("order", Function::PreStartOfStoreVersionIngestionForDaVinci, region, Reply::Abort);
            }
        }
        world.advance(HOUR);
        let end = world.end(&push);
        assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Region)), "silent: {silent}");
        assert!(end.reason.contains("region a failed"), "{}", end.reason);
        let detail = if silent { "silent since" } else { "7 are free" };
        assert!(end.reason.contains(detail), "{}", end.reason);
        assert_eq!(world.version(2), VersionStatus::Error);
        assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
        assert!(world.holders(2).is_empty());
        // A's own gate had let its clients; nothing reached those behind it.
        assert!(["b", "c"].iter().all(|region| !world.agents[*region].clients_served.contains(&2)));
    }
}

#[test]
fn f3_regions_that_are_fine_keep_the_version_and_the_push_names_those_that_are_not() {
    for failing in [vec!["b"], vec!["b", "c"], vec!["a", "b", "c"]] {
        let mut world = Simulator::new();
        for region in &failing {
            fails(&mut world, region);
        }
        world.agent("a").ingestion = Duration::from_secs(20);
        let push = world.push();
        world.advance(MINUTE);
        let end = world.end(&push);
        assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Region)));
        for region in &failing {
            assert!(end.reason.contains(&format!("region {region} failed")), "{}", end.reason);
        }
        let expected: Vec<Option<u64>> =
            ["a", "b", "c"].iter().map(|region| Some(if failing.contains(region) { 1 } else { 2 })).collect();
        assert_eq!(world.serving(), expected);
        let whole = if failing.len() == 3 { VersionStatus::Error } else { VersionStatus::PartiallyOnline };
        assert_eq!(world.version(2), whole);
        assert!(world.view.versions[&2].regions.values().all(|region| region.status != VersionStatus::Pushed));
        // The next push is accepted with no help.
        for region in ["a", "b", "c"] {
            world.agent(region).fails = None;
        }
        let next = world.push();
        world.advance(MINUTE);
        assert_eq!(world.status(&next), PushStatus::Completed);
    }
}

#[test]
fn f4_a_region_that_fails_after_the_first_swap_leaves_that_one_be() {
    for refused_swap in [false, true] {
        let mut world = Simulator::new();
        world.enable(&["order"]);
        if refused_swap {
            world.agent("b").refuses_swap = true;
        } else {
            world.agent("b").ingestion = Duration::from_secs(10);
            fails(&mut world, "b");
        }
        world.script("order", SWAP, "c", &[Reply::Wait, Reply::Wait]);
        world.always("order", SWAP, "c", Reply::Abort);
        if refused_swap {
            world.script("order", SWAP, "b", &[Reply::Wait]);
        }
        let push = world.push();
        world.advance(MINUTE * 5);
        let end = world.end(&push);
        assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Region)), "refused: {refused_swap}");
        assert!(end.reason.contains("region b failed"), "{}", end.reason);
        assert_eq!(world.serving(), [Some(2), Some(1), Some(1)]);
        assert!(world.agents["c"].served.is_empty());
        assert_eq!(world.holders(2), ["a"]);
        assert_eq!(world.version(2), VersionStatus::PartiallyOnline);
    }
}

#[test]
fn f5_a_silent_region_counts_as_failed_at_the_limit_and_not_before() {
    let mut world = Simulator::new();
    world.agent("b").alive = false;
    let push = world.push();
    world.advance(MINUTE * 30 - Duration::from_millis(1));
    assert_eq!(world.status(&push), PushStatus::Started);
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)]);
    world.advance(Duration::from_millis(1));
    let end = world.end(&push);
    assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Region)));
    assert!(end.reason.contains("b silent since 2023-11-14"), "{}", end.reason);
    world.agent("b").alive = true;
    world.advance(HOUR);
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)]);
}

#[test]
fn f5_time_in_which_no_server_was_up_is_not_a_regions_silence() {
    let mut world = Simulator::new();
    world.agent("b").alive = false;
    let push = world.push();
    world.advance(MINUTE * 10);
    world.blackout(HOUR * 5);
    assert_eq!(world.status(&push), PushStatus::Started);
    world.advance(MINUTE * 10);
    assert_eq!(world.status(&push), PushStatus::Started);
    world.advance(MINUTE * 11);
    assert_eq!(world.status(&push), PushStatus::Error);
}

#[test]
fn f6_a_swap_that_is_refused_for_good_fails_that_region_with_the_engines_words() {
    let mut world = Simulator::new();
    world.agent("b").refuses_swap = true;
    let push = world.push();
    world.advance(MINUTE);
    let end = world.end(&push);
    assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Region)));
    assert!(end.reason.contains("the engine refuses to swap"), "{}", end.reason);
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)]);
    assert_eq!(world.view.regions["b"].assignment.as_ref().unwrap().serve, Some(1));
}

#[test]
fn f7_a_region_with_no_part_in_a_step_cant_stop_it() {
    let mut world = Simulator::new();
    world.enable(&["order"]);
    world.script("order", SWAP, "b", &[Reply::Wait]);
    world.script("order", SWAP, "c", &[Reply::Wait, Reply::Wait, Reply::Wait]);
    let push = world.push();
    world.advance(Duration::from_secs(10));
    world.agent("c").alive = false;
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(2), Some(2), Some(1)]);
    assert!(!matches!(world.region(&push, "c"), RegionState::Failed(_)));
}

#[test]
fn f9_a_wait_for_ever_ends_at_the_push_limit_with_the_hook_named() {
    let mut world = Simulator::new();
    world.view.hooks.wait_interval = HOUR;
    world.enable(&["x"]);
    world.always("x", SWAP, "b", Reply::Wait);
    let push = world.push();
    world.advance(DAY * 14 - Duration::from_secs(1));
    assert_eq!(world.status(&push), PushStatus::Started);
    world.advance(Duration::from_secs(1));
    let end = world.end(&push);
    assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Limit)));
    for part in ["14 d", "pre-swap", "b:", "x: not yet"] {
        assert!(end.reason.contains(part), "{part} in {}", end.reason);
    }
    world.clear_scripts();
    let next = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&next), PushStatus::Completed);
}

#[test]
fn f12_each_kind_of_failure_is_a_failed_region_and_the_kind_is_shown() {
    for kind in
        [FailureKind::DiskFull, FailureKind::MemoryLimitReached, FailureKind::TooManyDeadInstances, FailureKind::Other]
    {
        let mut world = Simulator::new();
        world.agent("a").fails = Some((kind, "details".into()));
        let push = world.push();
        world.advance(MINUTE);
        let end = world.end(&push);
        assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Region)));
        assert!(end.reason.contains(kind.words()), "{}", end.reason);
    }
}

#[test]
fn f16_a_kill_counts_at_once_whoever_has_confirmed_it() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    for region in ["a", "b", "c"] {
        world.agent(region).ingestion = HOUR;
    }
    let push = world.push();
    world.advance(MINUTE);
    world.agent("b").alive = false;
    let calls = world.calls.len();
    world.kill(&push);
    assert_eq!((world.status(&push), world.end(&push).by), (PushStatus::Killed, Some(EndedBy::Operator)));
    assert!(world.holders(2).is_empty());
    world.advance(DAY);
    // Nothing but `post_end` was called after the kill.
    assert_eq!(world.calls.len(), calls + 1);
    let held =
        |world: &Simulator, region: &str| world.view.regions[region].report.as_ref().unwrap().versions.contains_key(&2);
    assert_eq!([held(&world, "a"), held(&world, "b"), held(&world, "c")], [false, true, false]);
    world.agent("b").alive = true;
    world.advance(MINUTE);
    assert!(!held(&world, "b"));
}

#[test]
fn f17_a_silent_client_ends_its_push_at_the_limit_before_the_artifact_is_complete() {
    let mut world = Simulator::new();
    let push = world.start();
    world.advance(MINUTE * 9);
    world.heartbeat(&push);
    world.advance(MINUTE * 10 - Duration::from_millis(1));
    assert_eq!(world.status(&push), PushStatus::Started);
    world.advance(Duration::from_millis(1));
    let end = world.end(&push);
    assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Limit)));
    assert!(end.reason.contains("10 min"), "{}", end.reason);
    // What had been uploaded is garbage, due after the grace time.
    let garbage = world.garbage.values().next().unwrap();
    assert_eq!(garbage.due_at.since(garbage.since), HOUR);
    let next = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&next), PushStatus::Completed);
}

#[test]
fn f20_time_in_which_no_server_was_up_is_not_the_clients_silence() {
    let mut world = Simulator::new();
    let push = world.start();
    world.advance(MINUTE * 5);
    world.blackout(HOUR);
    world.advance(MINUTE * 2);
    assert_eq!(world.status(&push), PushStatus::Started);
    world.complete(&push);
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn f21_closed_windows_and_freezes_stop_the_clock_of_the_push_limit() {
    let mut world = Simulator::new();
    world.view.hooks.wait_interval = HOUR;
    world.enable(&["x"]);
    world.always("x", SWAP, "a", Reply::Wait);
    let push = world.push();
    world.advance(DAY * 4);
    world.always("x", SWAP, "a", Reply::Closed);
    world.advance(HOUR);
    world.advance(DAY * 5);
    world.freeze("f", FreezeScope::Store("s".into()));
    world.advance(DAY * 3);
    world.always("x", SWAP, "a", Reply::Wait);
    world.unfreeze("f");
    world.advance(DAY * 2);
    // Six of fourteen days have counted, and no alarm.
    assert!(world.facts(&push).push.alarm.is_none());
    world.advance(DAY * 2);
    let alarm = world.facts(&push).push.alarm.clone().unwrap();
    assert!(alarm.reason.contains("x: not yet") && alarm.reason.contains("a:"), "{}", alarm.reason);
    world.advance(DAY * 5);
    assert_eq!(world.status(&push), PushStatus::Started);
    world.advance(DAY * 2);
    assert_eq!((world.status(&push), world.end(&push).by), (PushStatus::Error, Some(EndedBy::Limit)));
}

#[test]
fn c9_a_region_that_was_cut_off_goes_straight_to_the_newest() {
    let mut world = Simulator::new();
    world.agent("a").alive = false;
    for _ in 0..2 {
        let push = world.push();
        world.advance(HOUR);
        assert_eq!(world.status(&push), PushStatus::Error);
    }
    let push = world.push();
    world.advance(MINUTE);
    world.agent("a").alive = true;
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.agents["a"].served, [Some(4)]);
    assert!(!world.agents["a"].loads.contains_key(&2) && !world.agents["a"].loads.contains_key(&3));
}

#[test]
fn f8_a_delay_that_is_over_by_more_than_a_tenth_shows_until_the_region_swaps() {
    let mut world = Simulator::new();
    world.enable(&["region-order", "x"]);
    let turn = world.now.after(Duration::from_secs(1) + HOUR);
    world.script("region-order", SWAP, "b", &[Reply::WaitUntil(turn)]);
    // When its turn has come, another hook holds it.
    world.script("x", SWAP, "b", &[Reply::Wait]);
    world.always("x", SWAP, "b", Reply::Wait);
    let push = world.push();
    let overdue = |world: &Simulator| {
        let gate = &world.facts(&push).gates["pre-swap@b"].gate;
        gate.state.opened_at.is_none() && gate.turn.is_some_and(|turn| turn.is_overdue(world.now))
    };
    world.advance(HOUR + MINUTE * 6);
    assert!(!overdue(&world));
    world.advance(Duration::from_secs(2));
    assert!(overdue(&world));
    world.open_by_hand(&push, "pre-swap@b");
    world.advance(Duration::from_secs(1));
    assert!(!overdue(&world));
    assert_eq!(world.status(&push), PushStatus::Completed);
}
