//! Every way a push can end, and what comes after it.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_lifecycle::Function;
use tidegate_rollout::entities::{EndedBy, FailureKind, Kill, PushStatus, VersionStatus};

use crate::simulator::{DAY, HOUR, MINUTE, Reply, Simulator};

/// Brings a push to its end, and says which.
type Course = fn(&mut Simulator) -> String;

fn courses() -> Vec<(&'static str, Course, PushStatus, Option<EndedBy>)> {
    use Function as F;
    use PushStatus::{Aborted, Completed, Error, Killed, RolledBack};
    fn refused(world: &mut Simulator, function: Function, region: &str, reply: Reply) -> String {
        world.script("x", function, region, &[reply]);
        let push = world.push();
        world.advance(MINUTE * 2);
        push
    }
    let gate = Some(EndedBy::Gate);
    vec![
        ("success", |world| refused(world, F::PreEndOfPushJob, "", Reply::Wait), Completed, None),
        ("abort at start", |world| refused(world, F::PreStartOfPushJob, "", Reply::Abort), Aborted, gate),
        ("abort at creation", |world| refused(world, F::PreStoreVersionCreation, "a", Reply::Abort), Aborted, gate),
        (
            "abort before clients",
            |world| refused(world, F::PreStartOfStoreVersionIngestionForDaVinci, "b", Reply::Abort),
            Aborted,
            gate,
        ),
        (
            "abort after clients",
            |world| refused(world, F::PostStartOfStoreVersionIngestionForDaVinci, "b", Reply::Abort),
            Aborted,
            gate,
        ),
        ("abort before the swap", |world| refused(world, F::PreStoreVersionSwap, "c", Reply::Abort), Aborted, gate),
        ("abort after the swap", |world| refused(world, F::PostStoreVersionSwap, "c", Reply::Abort), Aborted, gate),
        ("abort at the end", |world| refused(world, F::PreEndOfPushJob, "", Reply::Abort), Aborted, gate),
        ("rollback", |world| refused(world, F::PostStoreVersionSwap, "a", Reply::Rollback), RolledBack, gate),
        (
            "kill",
            |world| {
                world.always("x", F::PreStoreVersionSwap, "a", Reply::Wait);
                let push = world.push();
                world.advance(MINUTE);
                world.kill(&push);
                push
            },
            Killed,
            Some(EndedBy::Operator),
        ),
        (
            "lost client",
            |world| {
                let push = world.start();
                world.advance(MINUTE * 11);
                push
            },
            Error,
            Some(EndedBy::Limit),
        ),
        (
            "push limit",
            |world| {
                world.view.hooks.wait_interval = HOUR;
                world.always("x", F::PreEndOfPushJob, "", Reply::Wait);
                let push = world.push();
                world.advance(DAY * 15);
                push
            },
            Error,
            Some(EndedBy::Limit),
        ),
        (
            "all regions failed",
            |world| {
                for region in ["a", "b", "c"] {
                    world.agent(region).fails = Some((FailureKind::Other, "broken".into()));
                }
                let push = world.push();
                world.advance(MINUTE);
                push
            },
            Error,
            Some(EndedBy::Region),
        ),
        (
            "supersession",
            |world| {
                world.always("x", F::PreStoreVersionSwap, "a", Reply::Wait);
                let push = world.push();
                world.advance(MINUTE);
                let (now, kill) = (world.now, "p99".to_owned());
                let kill = Kill { by: "ada".into(), reason: "newer".into(), at: now, superseded_by: Some(kill) };
                world.view.pushes.get_mut(&push).unwrap().push.kill = Some(kill);
                world.settle();
                push
            },
            Killed,
            Some(EndedBy::Superseded),
        ),
    ]
}

#[test]
fn h26_post_end_takes_effect_once_after_everything_else_however_a_push_ends() {
    for (name, course, status, by) in courses() {
        let mut world = Simulator::new();
        world.enable(&["x"]);
        let push = course(&mut world);
        let end = world.end(&push).clone();
        assert_eq!((end.status, end.by), (status, by), "{name}: {}", end.reason);
        assert!(!end.reason.is_empty(), "{name}");
        world.advance(MINUTE);
        assert_eq!(world.asked(Function::PostEndOfPushJob, None), 1, "{name}");
        assert_eq!(world.calls.last().unwrap().1.function, Function::PostEndOfPushJob, "{name}");
        assert!(world.wrapped_up(&push), "{name}");
    }
}

#[test]
fn f2_whatever_ended_a_push_the_next_one_is_accepted_and_completes() {
    for (name, course, status, _) in courses() {
        let mut world = Simulator::new();
        world.enable(&["x"]);
        let push = course(&mut world);
        assert_eq!(world.status(&push), status, "{name}");
        world.clear_scripts();
        for agent in world.agents.values_mut() {
            agent.fails = None;
        }
        let next = world.push();
        world.advance(MINUTE);
        assert_eq!(world.status(&next), PushStatus::Completed, "{name}");
        assert_eq!(world.serving(), [Some(3), Some(3), Some(3)], "{name}");
        // What was left of the version before is reclaimed, at its retention at the latest.
        let kept = matches!(world.version(2), VersionStatus::Online | VersionStatus::PartiallyOnline);
        world.advance(DAY * 2);
        assert!(kept || world.view.versions[&2].artifact().is_none(), "{name}");
    }
}

#[test]
fn f14_late_reports_change_no_end() {
    // The linter compares every end with what it was; this lets everything happen after it.
    for (name, course, status, _) in courses() {
        let mut world = Simulator::new();
        world.enable(&["x"]);
        let push = course(&mut world);
        world.clear_scripts();
        world.kill(&push);
        world.heartbeat(&push);
        world.agent("b").alive = false;
        world.advance(HOUR * 2);
        world.agent("b").alive = true;
        world.advance(HOUR * 2);
        assert_eq!(world.status(&push), status, "{name}");
    }
}

#[test]
fn post_end_waits_for_calls_that_decide_nothing() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", Function::PostStoreVersionCreation, "b", Reply::Silence);
    let push = world.push();
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Completed, "the push itself does not wait");
    assert_eq!(world.asked(Function::PostEndOfPushJob, None), 0);
    world.clear_scripts();
    world.settle();
    assert_eq!(world.asked(Function::PostEndOfPushJob, None), 1);
}

#[test]
fn c5_a_push_that_waits_starts_when_the_one_before_it_has_been_wrapped_up() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", Function::PreStoreVersionSwap, "b", Reply::Wait);
    let first = world.push();
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)]);
    // A newer push waits behind it; what `supersede` does is that the first is killed.
    let second = world.start();
    assert_eq!(world.status(&second), PushStatus::Queued);
    world.always("x", Function::PostEndOfPushJob, "", Reply::Silence);
    world.kill(&first);
    assert_eq!(world.status(&first), PushStatus::Killed);
    assert_eq!(world.status(&second), PushStatus::Queued, "post_end comes first");
    world.clear_scripts();
    world.settle();
    assert_eq!(world.status(&second), PushStatus::Started);
    assert_eq!(world.serving(), [Some(2), Some(1), Some(2)], "regions keep what they serve until the next");
    world.complete(&second);
    world.advance(MINUTE);
    assert_eq!(world.serving(), [Some(3), Some(3), Some(3)]);
}

#[test]
fn c6_a_push_that_waits_for_days_is_never_taken_for_lost() {
    let mut world = Simulator::new();
    world.view.hooks.wait_interval = HOUR;
    world.enable(&["x"]);
    world.always("x", Function::PreStoreVersionSwap, "b", Reply::Wait);
    let push = world.push();
    world.advance(DAY * 6);
    assert_eq!(world.status(&push), PushStatus::Started);
}

#[test]
fn c6_old_pushes_are_forgotten_with_their_gates_and_their_versions() {
    let mut world = Simulator::new();
    world.view.store.retention.pushes = 3;
    for _ in 0..8 {
        let push = world.push();
        world.advance(MINUTE);
        assert_eq!(world.status(&push), PushStatus::Completed);
    }
    assert_eq!(world.view.pushes.len(), 3);
    let versions: BTreeMap<u64, bool> =
        world.view.versions.iter().map(|(number, version)| (*number, version.artifact().is_some())).collect();
    assert_eq!(versions, BTreeMap::from([(7, false), (8, true), (9, true)]));
}

#[test]
fn a_swap_under_way_when_its_push_ends_is_followed_to_its_end() {
    let mut world = Simulator::new();
    world.enable(&["x"]);
    world.always("x", Function::PreStoreVersionSwap, "b", Reply::Wait);
    world.always("x", Function::PreStoreVersionSwap, "c", Reply::Wait);
    let push = world.start();
    world.complete(&push);
    // A is told to swap and dies before it does.
    world.agent("a").ingestion = Duration::from_secs(2);
    world.agent("a").refuses_swap = false;
    world.advance(Duration::from_secs(1));
    world.kill(&push);
    world.advance(MINUTE);
    assert_eq!(world.status(&push), PushStatus::Killed);
    let serving = world.serving();
    assert!(serving.iter().all(|version| *version == Some(1)) || world.version(2) == VersionStatus::PartiallyOnline);
}
