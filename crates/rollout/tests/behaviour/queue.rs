//! C15 and C6: pushes that come while another runs, where the store queues or refuses them.

use std::time::Duration;

use tidegate_lifecycle::{Function, Verdict};
use tidegate_rollout::OperationError;
use tidegate_rollout::controller::{HoldKind, holds};
use tidegate_rollout::entities::{EndedBy, FailureKind, Gate, OnNewPush, Push, PushStatus, Store};
use tidegate_state::Ref;

use crate::simulator::{MINUTE, Reply, Simulator};
use crate::world::World;

const DAY: Duration = Duration::from_secs(86_400);

/// One way in which the push that runs ends: how it is brought to where it stays, and how it is ended from there.
struct Ending {
    name: &'static str,
    status: PushStatus,
    by: Option<EndedBy>,
    begin: fn(&mut Simulator) -> String,
    end: fn(&mut Simulator, &str),
}

fn waits(world: &mut Simulator, function: Function, region: &str) -> String {
    world.always("x", function, region, Reply::Wait);
    let push = world.push();
    world.advance(MINUTE);
    push
}

fn says(world: &mut Simulator, function: Function, region: &str, reply: Reply) {
    world.clear_scripts();
    world.script("x", function, region, &[reply]);
    world.advance(MINUTE);
}

fn endings() -> Vec<Ending> {
    use Function::{PostStoreVersionSwap, PreEndOfPushJob, PreStoreVersionSwap};
    let gate = Some(EndedBy::Gate);
    vec![
        Ending {
            name: "it completes",
            status: PushStatus::Completed,
            by: None,
            begin: |world| waits(world, PreEndOfPushJob, ""),
            end: |world, _| says(world, PreEndOfPushJob, "", Reply::Proceed),
        },
        Ending {
            name: "a gate aborts it",
            status: PushStatus::Aborted,
            by: gate,
            begin: |world| waits(world, PreStoreVersionSwap, "b"),
            end: |world, _| says(world, PreStoreVersionSwap, "b", Reply::Abort),
        },
        Ending {
            name: "a gate rolls it back",
            status: PushStatus::RolledBack,
            by: gate,
            begin: |world| waits(world, PostStoreVersionSwap, "b"),
            end: |world, _| says(world, PostStoreVersionSwap, "b", Reply::Rollback),
        },
        Ending {
            name: "all its regions fail",
            status: PushStatus::Error,
            by: Some(EndedBy::Region),
            begin: |world| {
                for region in ["a", "b", "c"] {
                    let agent = world.agent(region);
                    agent.fails = Some((FailureKind::Other, "broken".into()));
                    agent.ingestion = MINUTE * 2;
                }
                let push = world.push();
                world.advance(MINUTE);
                push
            },
            end: |world, _| {
                world.advance(MINUTE);
                for region in ["a", "b", "c"] {
                    let agent = world.agent(region);
                    agent.fails = None;
                    agent.ingestion = Duration::from_secs(1);
                }
            },
        },
        Ending {
            name: "its client falls silent",
            status: PushStatus::Error,
            by: Some(EndedBy::Limit),
            begin: |world| {
                let push = world.start();
                world.advance(MINUTE * 5);
                push
            },
            end: |world, _| world.advance(MINUTE * 5),
        },
        Ending {
            name: "it is killed",
            status: PushStatus::Killed,
            by: Some(EndedBy::Operator),
            begin: |world| waits(world, PreStoreVersionSwap, "b"),
            end: |world, push| {
                world.clear_scripts();
                world.kill(push);
            },
        },
    ]
}

/// The gates that were asked of a push, apart from the call that tells its end.
fn gates(world: &Simulator, push: &str) -> Vec<String> {
    let told = Gate::id(Function::PostEndOfPushJob, None);
    world.facts(push).gates.keys().filter(|gate| **gate != told).cloned().collect()
}

/// What it waits for, if it waits for a push.
fn waits_for(world: &Simulator, push: &str) -> Option<String> {
    let holds = holds(&world.view, push, world.now);
    let [hold] = &holds[..] else { panic!("{holds:?}") };
    assert_eq!(hold.kind, HoldKind::Queue);
    let by = hold.by.clone()?;
    assert_eq!(hold.reason, format!("waits for push {by} to end"));
    Some(by)
}

#[test]
fn c15_however_the_push_before_it_ends_the_newest_in_the_queue_starts_at_once_and_none_is_asked_before() {
    for ending in endings() {
        let name = ending.name;
        let mut world = Simulator::new();
        world.view.store.on_new_push = OnNewPush::Queue;
        world.enable(&["x"]);
        let first = (ending.begin)(&mut world);
        assert_eq!(world.status(&first), PushStatus::Started, "{name}");
        let second = world.start();
        assert_eq!(waits_for(&world, &second).as_ref(), Some(&first), "{name}");
        let third = world.start();
        let superseded = world.end(&second);
        assert_eq!((superseded.status, superseded.by), (PushStatus::Killed, Some(EndedBy::Superseded)), "{name}");
        assert_eq!(superseded.reason, format!("superseded by push {third}"), "{name}");
        assert_eq!(
            (world.status(&third), waits_for(&world, &third)),
            (PushStatus::Queued, Some(first.clone())),
            "{name}"
        );
        assert!(gates(&world, &second).is_empty() && gates(&world, &third).is_empty(), "{name}");

        (ending.end)(&mut world, &first);
        let end = world.end(&first).clone();
        assert_eq!((end.status, end.by), (ending.status, ending.by), "{name}: {}", end.reason);
        let started = world.facts(&third).push.started_at.unwrap_or_else(|| panic!("{name}: it has not started"));
        assert_eq!(started, end.at, "{name}: at once");
        assert!(gates(&world, &second).is_empty(), "{name}");
        assert!(gates(&world, &third).contains(&Gate::id(Function::PreStartOfPushJob, None)), "{name}");
        world.clear_scripts();
        world.complete(&third);
        world.advance(MINUTE * 2);
        assert_eq!(world.status(&third), PushStatus::Completed, "{name}");
        assert_eq!(world.serving(), [Some(4), Some(4), Some(4)], "{name}");
    }
}

#[test]
fn c15_a_push_whose_client_falls_silent_in_the_queue_ends_at_the_limit_and_never_starts() {
    let mut world = Simulator::new();
    world.view.store.on_new_push = OnNewPush::Queue;
    world.enable(&["x"]);
    let first = waits(&mut world, Function::PreStoreVersionSwap, "b");
    let second = world.start();
    world.advance(MINUTE * 10 - Duration::from_millis(1));
    assert_eq!(world.status(&second), PushStatus::Queued);
    world.advance(Duration::from_millis(1));
    let end = world.end(&second);
    assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Limit)));
    assert!(end.reason.contains("has been silent") && end.reason.contains("the limit is 10 min"), "{}", end.reason);
    assert_eq!(world.facts(&second).push.started_at, None);
    assert!(gates(&world, &second).is_empty());
    // The one that runs is none the worse for it, and another takes the place in the queue.
    assert_eq!(world.status(&first), PushStatus::Started);
    let third = world.start();
    world.clear_scripts();
    world.advance(MINUTE);
    assert_eq!((world.status(&first), world.status(&third)), (PushStatus::Completed, PushStatus::Started));
}

fn waits_at(function: Function, region: &'static str) -> impl Fn(&tidegate_lifecycle::Context) -> Verdict {
    move |context| {
        let here = context.function == function && context.region.as_deref().unwrap_or_default() == region;
        if here { Verdict::Wait } else { Verdict::Proceed }
    }
}

#[tokio::test]
async fn c15_in_a_queue_the_newest_waits_its_turn() {
    let world = World::serving(true).await;
    world.operations().update_store("s", "ada", |store| store.on_new_push = OnNewPush::Queue).await.unwrap();
    world.hook.say(waits_at(Function::PreEndOfPushJob, ""));
    world.operations().start_push(World::request("p", "s")).await.unwrap();
    world.operations().start_push(World::request("q", "s")).await.unwrap();
    world.operations().start_push(World::request("r", "s")).await.unwrap();
    world.ended("q").await;
    let push = World::push_value(&world.state().snapshot(), "q").unwrap();
    assert_eq!((push.status(), push.end().unwrap().by), (PushStatus::Killed, Some(EndedBy::Superseded)));
    assert_eq!(world.status("r"), PushStatus::Queued);
    let asked = |push: &str| {
        let asked = world.hook.asked.lock();
        let of_push = asked.iter().filter(|context| context.push.as_deref() == Some(push));
        of_push.filter(|context| context.function != Function::PostEndOfPushJob).count()
    };
    assert_eq!((asked("q"), asked("r")), (0, 0), "no gate of a push is asked before its turn");
    // It ends because its client says that its input is bad.
    world.operations().fail_push("p", EndedBy::Input, "the input is empty").await.unwrap();
    assert_eq!(world.status("p"), PushStatus::Error);
    world.until("r", |push| push.status() == PushStatus::Started).await;
    assert_eq!(asked("q"), 0);
}

#[tokio::test]
async fn c6_while_a_push_waits_for_days_another_is_refused_and_is_accepted_once_its_records_are_pruned() {
    let world = World::serving(true).await;
    world.operations().update_store("s", "ada", |store| store.retention.pushes = 1).await.unwrap();
    world.hook.say(waits_at(Function::PreStoreVersionSwap, "b"));
    world.push("p", "s").await;
    world.until("p", |push| push.regions["b"].state.word() == "ingested").await;
    for _ in 0..6 {
        world.cluster.advance(DAY);
        let refused = world.operations().start_push(World::request("q", "s")).await;
        assert!(
            matches!(&refused, Err(OperationError::PushRunning { running, .. }) if running == "p"),
            "its client is long gone, and it is not lost: {refused:?}"
        );
        assert_eq!(world.status("p"), PushStatus::Started);
    }
    world.hook.say(|_| Verdict::Proceed);
    world.cluster.advance(MINUTE);
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Completed);
    // What was kept of it is pruned once it is neither the newest nor the way back.
    for push in ["q", "q2"] {
        world.push(push, "s").await;
        world.ended(push).await;
    }
    let place = Ref::<Store>::root("s").and_then(|store| store.child::<Push>("p")).unwrap();
    world.until_state("p is forgotten", |snapshot| !snapshot.contains(place.path())).await;
    let accepted = world.operations().start_push(World::request("r", "s")).await.unwrap();
    assert!(accepted.created);
    world.build("r", accepted.push.version).await;
    world.ended("r").await;
    assert_eq!(world.status("r"), PushStatus::Completed);
    world.serves("s", &[Some(5); 3]).await;
    // Its id is free, too: it is another push then.
    let again = world.operations().start_push(World::request("p", "s")).await.unwrap();
    assert_eq!((again.created, again.push.version), (true, 6));
}
