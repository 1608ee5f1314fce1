//! H: what hooks' answers come to.

use std::time::Duration;

use tidegate_lifecycle::{Function, Mode};
use tidegate_rollout::controller::PushView;
use tidegate_rollout::entities::{Assignment, EndedBy, FreezeScope, PushStatus, RegionState, Report, VersionStatus};

use crate::simulator::{DAY, HOUR, MINUTE, Reply, Simulator};

const SWAP: Function = Function::PreStoreVersionSwap;
const BAKE: Function = Function::PostStoreVersionSwap;

#[test]
fn h1_without_hooks_every_gate_opens_at_once_and_nobody_is_called() {
    let mut world = Simulator::new();
    let push = world.push();
    world.advance(Duration::from_secs(1));
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.version(2), VersionStatus::Online);
    assert_eq!(world.serving(), [Some(2), Some(2), Some(2)]);
    assert!(world.calls.is_empty());
    assert!(world.wrapped_up(&push));
}

#[test]
fn h2_each_function_is_called_as_often_as_its_step_is_taken() {
    let without_hooks = {
        let mut world = Simulator::new();
        world.view.regions.get_mut("a").unwrap().region.shares_source = true;
        world.push();
        world.advance(Duration::from_secs(1));
        world
    };
    let mut world = Simulator::new();
    world.view.regions.get_mut("a").unwrap().region.shares_source = true;
    world.enable(&["recorder"]);
    let push = world.push();
    world.advance(Duration::from_secs(1));
    assert_eq!(world.status(&push), PushStatus::Completed);
    // Apart from the records of what was asked, the end is that of H1.
    let (with, without) = (&world.view, &without_hooks.view);
    assert_eq!((&with.store, &with.versions), (&without.store, &without.versions));
    let come_to = |view: &PushView| {
        let regions = view.regions.iter().map(|(name, facts)| {
            // In how many steps it came to that is no part of it.
            let assignment = Assignment { generation: 0, ..facts.assignment.clone().unwrap() };
            let report = Report { generation: 0, ..facts.report.clone().unwrap() };
            (name.clone(), assignment, report)
        });
        regions.collect::<Vec<_>>()
    };
    assert_eq!(come_to(with), come_to(without));
    assert_eq!(with.pushes[&push].push, without.pushes[&push].push);
    let expected = [
        (Function::ValidateHookConfig, 0),
        (Function::PreStartOfPushJob, 1),
        (Function::PostStartOfPushJob, 1),
        (Function::PreSchemaRegistration, 0),
        (Function::PostSchemaRegistration, 0),
        (Function::PreStoreVersionCreation, 3),
        (Function::PostStoreVersionCreation, 3),
        (Function::PreStartOfStoreVersionIngestionForDaVinci, 3),
        (Function::PostStartOfStoreVersionIngestionForDaVinci, 3),
        (Function::PostStoreVersionLeaderReplication, 3),
        (Function::PreStoreVersionSwap, 3),
        (Function::PostStoreVersionSwap, 3),
        (Function::PreEndOfPushJob, 1),
        (Function::PostEndOfPushJob, 1),
    ];
    for (function, count) in expected {
        assert_eq!(world.asked(function, None), count, "{function}");
    }
    // Each `pre` comes before its step and each `post` after it: the calls of a region are in the order of its way.
    for region in ["a", "b", "c"] {
        let order: Vec<Function> = world
            .calls
            .iter()
            .filter(|(_, call)| call.region.as_deref() == Some(region))
            .map(|(_, call)| call.function)
            .collect();
        let place = |function| order.iter().position(|called| *called == function).unwrap();
        assert!(place(Function::PreStoreVersionCreation) < place(Function::PostStoreVersionCreation));
        assert!(place(Function::PostStoreVersionCreation) < place(Function::PostStoreVersionLeaderReplication));
        assert!(place(Function::PostStartOfStoreVersionIngestionForDaVinci) < place(SWAP));
        assert!(place(SWAP) < place(BAKE));
    }
    assert_eq!(world.calls.last().unwrap().1.function, Function::PostEndOfPushJob);
}

#[test]
fn h4_a_hook_that_fails_waits_at_four_outcomes_aborts_at_two_and_is_passed_at_none() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", Function::PreStartOfPushJob, "", Reply::Fail);
    let push = world.start();
    world.advance(HOUR);
    assert_eq!(world.status(&push), PushStatus::Aborted);
    assert_eq!(world.end(&push).by, Some(EndedBy::Gate));
    assert!(world.end(&push).reason.contains("the hook failed"), "{}", world.end(&push).reason);
    let attempts = world.asked(Function::PreStartOfPushJob, None);
    assert!((2..10).contains(&attempts), "{attempts} attempts are a bounded number of retries");

    world.clear_scripts();
    world.script("x", SWAP, "a", &[Reply::Fail]);
    world.script("x", Function::PostStoreVersionCreation, "b", &[Reply::Fail]);
    let push = world.push();
    world.advance(Duration::from_secs(59));
    assert!(matches!(world.region(&push, "a"), RegionState::Ingested { .. }));
    assert!(matches!(world.region(&push, "b"), RegionState::Done { .. }));
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn h8_a_gate_of_two_outcomes_stops_at_the_first_abort() {
    let mut world = Simulator::new();
    world.enable(&["x", "y"]);
    world.script("x", Function::PreStartOfPushJob, "", &[Reply::Abort]);
    let push = world.start();
    world.advance(MINUTE);
    let end = world.end(&push);
    assert_eq!((end.status, end.by), (PushStatus::Aborted, Some(EndedBy::Gate)));
    assert!(end.reason.starts_with("x said Abort"), "{}", end.reason);
    let called: Vec<(&str, Function)> =
        world.calls.iter().map(|(_, call)| (call.hook.as_str(), call.function)).collect();
    let post_end = Function::PostEndOfPushJob;
    assert_eq!(called, [("x", Function::PreStartOfPushJob), ("x", post_end), ("y", post_end)]);
}

#[test]
fn h9_answers_combine_by_severity_whatever_the_order_of_hooks() {
    use Reply::{Abort, Proceed, Rollback, Wait};
    let cases = [
        ([Proceed, Proceed], PushStatus::Completed),
        ([Proceed, Abort], PushStatus::Aborted),
        ([Abort, Wait], PushStatus::Aborted),
        ([Wait, Proceed], PushStatus::Started),
        ([Wait, Rollback], PushStatus::RolledBack),
        ([Abort, Rollback], PushStatus::RolledBack),
        ([Rollback, Abort], PushStatus::RolledBack),
    ];
    for ([x, y], expected) in cases {
        let mut world = Simulator::new();
        world.enable(&["x", "y"]);
        world.script("x", SWAP, "b", std::slice::from_ref(&x));
        world.script("y", SWAP, "b", std::slice::from_ref(&y));
        let push = world.push();
        world.advance(Duration::from_secs(5));
        assert_eq!(world.status(&push), expected, "{x:?}, {y:?}");
        let asked: Vec<&str> = world
            .calls
            .iter()
            .filter(|(_, call)| call.function == SWAP && call.region.as_deref() == Some("b"))
            .map(|(_, call)| call.hook.as_str())
            .collect();
        assert_eq!(asked, ["x", "y"], "{x:?}, {y:?}");
    }
}

#[test]
fn h10_all_must_proceed_in_the_same_round() {
    use Reply::{Proceed, Wait};
    let mut world = Simulator::new();
    world.enable(&["x", "y"]);
    world.script("x", Function::PreEndOfPushJob, "", &[Proceed, Wait, Proceed]);
    world.script("y", Function::PreEndOfPushJob, "", &[Wait, Proceed, Proceed]);
    let push = world.push();
    world.advance(Duration::from_secs(2));
    assert_eq!(world.status(&push), PushStatus::Started);
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Started);
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.asked(Function::PreEndOfPushJob, None), 6);
}

#[test]
fn h11_a_wait_is_asked_again_each_interval_until_it_proceeds() {
    use Reply::Wait;
    let mut world = Simulator::new();
    world.enable(&["x"]);
    for region in ["a", "b", "c"] {
        world.script("x", SWAP, region, &[Wait, Wait, Wait, Wait, Wait]);
    }
    let push = world.push();
    world.advance(Duration::from_secs(1) + MINUTE * 5 - Duration::from_millis(1));
    assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.status(&push), PushStatus::Completed);
    let times: Vec<_> = world
        .calls
        .iter()
        .filter(|(_, call)| call.function == SWAP && call.region.as_deref() == Some("a"))
        .map(|(at, call)| (call.attempt, *at))
        .collect();
    assert_eq!(times.len(), 6);
    for (first, second) in times.iter().zip(&times[1..]) {
        assert_eq!((second.0, second.1.since(first.1)), (first.0 + 1, MINUTE));
    }
    world.advance(HOUR);
    assert_eq!(world.asked(SWAP, Some("a")), 6);
}

#[test]
fn h12_ask_again_at_the_time_that_the_answer_names() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    let ask_at = world.now.after(Duration::from_secs(1) + MINUTE * 10);
    world.script("x", Function::PreEndOfPushJob, "", &[Reply::WaitUntil(ask_at)]);
    let push = world.push();
    world.advance(MINUTE * 10);
    assert_eq!(world.asked(Function::PreEndOfPushJob, None), 1);
    world.advance(Duration::from_secs(1));
    assert_eq!(world.status(&push), PushStatus::Completed);

    // A second from now, and not at the interval.
    world.calls.clear();
    let soon = world.now.after(Duration::from_secs(2));
    world.script("x", Function::PreEndOfPushJob, "", &[Reply::WaitUntil(soon)]);
    let push = world.push();
    world.advance(Duration::from_secs(2) - Duration::from_millis(1));
    assert_eq!(world.status(&push), PushStatus::Started);
    world.advance(Duration::from_millis(1));
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.asked(Function::PreEndOfPushJob, None), 2);

    // A time that is past is asked soon, and not in a busy loop.
    let past = world.now;
    world.calls.clear();
    world.script("x", Function::PreEndOfPushJob, "", &[Reply::WaitUntil(past), Reply::WaitUntil(past)]);
    let push = world.push();
    world.advance(Duration::from_secs(4));
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.asked(Function::PreEndOfPushJob, None), 3);

    // Beyond the push limit: never, and the push ends with the hook's name in the reason.
    let never = world.now.after(DAY * 30);
    world.always("x", Function::PreEndOfPushJob, "", Reply::WaitUntil(never));
    let push = world.push();
    world.advance(DAY * 15);
    let end = world.end(&push);
    assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Limit)));
    assert!(end.reason.contains("pre-end") && end.reason.contains("x: not yet"), "{}", end.reason);
}

#[test]
fn h13_a_region_whose_creation_gate_waits_holds_up_no_other() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.script("x", Function::PreStoreVersionCreation, "b", &[Reply::Wait]);
    let push = world.push();
    world.advance(Duration::from_secs(30));
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)]);
    assert_eq!(world.holders(2), ["a", "c"]);
    assert!(world.agents["b"].loads.is_empty());
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.serving(), [Some(2), Some(2), Some(2)]);
}

#[test]
fn h14_an_abort_at_one_creation_gate_stops_every_region() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.script("x", Function::PreStoreVersionCreation, "b", &[Reply::Abort]);
    let push = world.push();
    world.advance(MINUTE);
    let end = world.end(&push);
    assert_eq!((end.status, end.by), (PushStatus::Aborted, Some(EndedBy::Gate)));
    assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
    assert!(world.holders(2).is_empty());
    assert_eq!(world.version(2), VersionStatus::Killed);
    let next = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&next), PushStatus::Completed);
}

#[test]
fn h15_one_rollback_is_one_rollback_however_many_ask_for_it() {
    let mut world = Simulator::new();
    world.enable(&["x", "y"]);
    for hook in ["x", "y"] {
        for region in ["a", "b"] {
            world.always(hook, BAKE, region, Reply::Rollback);
        }
    }
    let push = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::RolledBack);
    assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
    // The linter has seen one rollback; `post_end` was told once to each hook.
    assert_eq!(world.asked(Function::PostEndOfPushJob, None), 2);
}

#[test]
fn h21_a_rollback_after_the_first_swap_brings_every_region_back() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.script("x", BAKE, "a", &[Reply::Rollback]);
    world.agent("b").ingestion = MINUTE;
    world.agent("c").ingestion = MINUTE;
    let push = world.push();
    world.advance(MINUTE * 2);
    assert_eq!(world.status(&push), PushStatus::RolledBack);
    assert_eq!(world.version(2), VersionStatus::RolledBack);
    assert_eq!(world.serving(), [Some(1), Some(1), Some(1)]);
    assert_eq!(world.agents["a"].served, [Some(2), Some(1)]);
    assert!(world.agents["b"].served.is_empty());
}

#[test]
fn h22_an_abort_after_the_first_swap_leaves_it_where_it_is() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", SWAP, "b", Reply::Wait);
    world.always("x", SWAP, "c", Reply::Wait);
    world.script("x", BAKE, "a", &[Reply::Abort]);
    let push = world.push();
    world.advance(MINUTE);
    assert_eq!((world.status(&push), world.end(&push).by), (PushStatus::Aborted, Some(EndedBy::Gate)));
    assert_eq!(world.version(2), VersionStatus::PartiallyOnline);
    assert_eq!(world.serving(), [Some(2), Some(1), Some(1)]);
    assert_eq!(world.holders(2), ["a"]);
}

#[test]
fn h23_a_bake_holds_the_end_and_no_other_region() {
    use Reply::Wait;
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.script("x", BAKE, "a", &[Wait, Wait, Wait]);
    let push = world.push();
    world.advance(MINUTE * 2);
    assert_eq!(world.serving(), [Some(2), Some(2), Some(2)]);
    assert_eq!(world.asked(Function::PreEndOfPushJob, None), 0);
    world.advance(MINUTE * 2);
    assert_eq!(world.status(&push), PushStatus::Completed);
    assert_eq!(world.asked(BAKE, Some("a")), 4);
}

#[test]
fn h24_the_round_after_the_swap_comes_once_after_the_swap() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.script("x", SWAP, "b", &[Reply::Wait]);
    let push = world.push();
    world.advance(Duration::from_secs(30));
    assert_eq!(world.asked(BAKE, Some("b")), 0);
    world.advance(MINUTE);
    assert_eq!(world.asked(BAKE, Some("b")), 1);
    for _ in 0..5 {
        let now = world.now;
        world.view.regions.get_mut("b").unwrap().report.as_mut().unwrap().at = now;
        world.advance(MINUTE);
    }
    assert_eq!(world.asked(BAKE, Some("b")), 1);
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn h25_the_end_gate_holds_the_end_and_an_abort_there_leaves_the_data() {
    use Reply::{Abort, Wait};
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.script("x", Function::PreEndOfPushJob, "", &[Wait]);
    let push = world.push();
    world.advance(Duration::from_secs(30));
    assert_eq!(world.status(&push), PushStatus::Started);
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed);

    world.script("x", Function::PreEndOfPushJob, "", &[Wait, Abort]);
    let push = world.push();
    world.advance(MINUTE * 2);
    assert_eq!(world.status(&push), PushStatus::Aborted);
    assert_eq!(world.version(3), VersionStatus::Online);
    assert_eq!(world.serving(), [Some(3), Some(3), Some(3)]);
}

#[test]
fn h29_nothing_waits_for_a_call_but_its_own_gate() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", SWAP, "a", Reply::Silence);
    world.agent("c").ingestion = Duration::from_secs(10);
    let push = world.push();
    world.advance(Duration::from_secs(20));
    assert_eq!(world.serving(), [Some(1), Some(2), Some(2)]);
    world.kill(&push);
    assert_eq!(world.status(&push), PushStatus::Killed);
    assert_eq!(world.end(&push).by, Some(EndedBy::Operator));
}

#[test]
fn h34_an_observed_hook_is_asked_and_never_obeyed_or_waited_for() {
    use Reply::{Abort, Rollback, Silence, Wait};
    for reply in [Abort, Wait, Rollback, Reply::Fail, Silence] {
        let mut world = Simulator::new();
        world.enable_in(&[("x", Mode::Observe), ("y", Mode::Enforce)]);
        for region in ["a", "b", "c"] {
            world.always("x", SWAP, region, reply.clone());
            world.always("x", BAKE, region, reply.clone());
        }
        let push = world.push();
        world.advance(Duration::from_secs(2));
        assert_eq!(world.status(&push), PushStatus::Completed, "{reply:?}");
        let asked = world.calls.iter().filter(|(_, call)| call.hook == "x" && call.function == SWAP).count();
        assert_eq!(asked, if reply == Silence { 0 } else { 3 }, "{reply:?}");
    }
}

#[test]
fn h35_switching_a_hook_off_counts_from_the_next_round() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    for region in ["a", "b", "c"] {
        world.always("x", SWAP, region, Reply::Wait);
    }
    let push = world.push();
    world.advance(Duration::from_secs(10));
    assert_eq!(world.status(&push), PushStatus::Started);
    // What an override does to the store and to the hooks that take part.
    world.view.store.hook_overrides.insert("x.mode".into(), "off".into());
    world.enable(&[]);
    world.settle();
    world.advance(Duration::from_secs(1));
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn r4_a_changed_setting_asks_a_waiting_gate_again_at_once() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    let later = world.now.after(HOUR);
    world.script("x", SWAP, "b", &[Reply::WaitUntil(later)]);
    let push = world.push();
    world.advance(MINUTE * 10);
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)]);
    let asked = world.asked(SWAP, Some("b"));
    world.view.store.hook_overrides.insert("x.delay".into(), "0s".into());
    world.settle();
    world.advance(Duration::from_secs(1));
    assert_eq!(world.asked(SWAP, Some("b")), asked + 1);
    assert_eq!(world.status(&push), PushStatus::Completed);
}

#[test]
fn b15_answers_from_before_a_freeze_open_nothing_after_it() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", SWAP, "a", Reply::Silence);
    let push = world.push();
    world.advance(Duration::from_secs(10));
    world.freeze("f", FreezeScope::All);
    // The answer comes under the freeze: it opens nothing, and when the freeze is lifted the round is asked anew.
    world.clear_scripts();
    world.settle();
    world.advance(MINUTE);
    assert_eq!(world.asked(SWAP, Some("a")), 1);
    assert_eq!(world.serving(), [Some(1), Some(2), Some(2)]);
    world.unfreeze("f");
    world.advance(Duration::from_secs(1));
    assert_eq!(world.asked(SWAP, Some("a")), 2);
    assert_eq!(world.status(&push), PushStatus::Completed);
}
