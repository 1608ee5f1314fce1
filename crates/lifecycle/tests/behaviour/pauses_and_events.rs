//! What answers carry beside their outcome: pauses for people, and events for other systems.

use std::time::Duration;

use tidegate_lifecycle::{
    Actor, AnswerDocument, Event, EventDraft, Function, GateStep, Pause, PauseError, PauseRequest, Verdict,
};
use tidegate_state::testing::StoreKind;
use tidegate_state::{Ref, Timestamp, TransactionError};

use crate::world::{Gate, INTERVAL, LEASE_SHORT, LIMIT, Say, Scripted, World, document, proceed};

const SWAP: Function = Function::PreStoreVersionSwap;

fn holds(until: Option<Timestamp>) -> Say {
    let pause = PauseRequest { may_answer: vec!["on-call".into()], until, when_run_out: Verdict::Abort };
    Say::Answer(AnswerDocument { pause: Some(pause), ..document(Verdict::Wait) })
}

/// What the server does when a person answers: the answer and the gate's waking in one transaction.
async fn answer(world: &World, gate: &Ref<Gate>, role: &str, verdict: Verdict) -> Result<(), PauseError> {
    let actor = Actor { user: "ada".into(), roles: vec![role.into()] };
    let (place, gate) = (pause_of(gate), gate.clone());
    let pause = world.state().snapshot().require(&place).unwrap().clone();
    let answered = pause.answered(&actor, verdict, "looked at it", world.state().now())?;
    world
        .write(move |transaction| -> Result<(), TransactionError> {
            transaction.put(&place, answered.clone())?;
            transaction.update(&gate, |gate| gate.state.wake())
        })
        .await;
    Ok(())
}

fn pause_of(gate: &Ref<Gate>) -> Ref<Pause> {
    Pause::of(&gate.path().child("calls", "x").unwrap())
}

#[tokio::test]
async fn h32_a_pause_is_listed_once_and_its_answer_opens_the_gate_at_once() {
    let hook = Scripted::new(|_| holds(None));
    let world = World::with("x", &hook).open().await;
    let gate = world.gate("s", SWAP, "b").await;
    let asked_at = world.state().now();
    assert!(matches!(world.settle_rounds(&gate, 3).await, GateStep::Waiting { .. }));
    let pauses: Vec<_> = world.state().snapshot().roots::<Pause>().map(|pause| pause.unwrap().1.clone()).collect();
    assert_eq!(pauses.len(), 1, "however often it is asked for");
    let pause = &pauses[0];
    assert_eq!((pause.store.as_str(), pause.push.as_deref(), pause.region.as_deref()), ("s", Some("P"), Some("b")));
    assert_eq!((pause.since, pause.until, pause.when_run_out), (asked_at, None, Verdict::Abort));
    assert_eq!(pause.may_answer, ["on-call"]);
    assert_eq!(pause.gate().as_ref(), Some(gate.path()));
    assert!(hook.asked()[1].pause.as_ref().is_some_and(|view| view.since == asked_at), "the hook sees its pause");

    let refused = answer(&world, &gate, "viewer", Verdict::Proceed).await.unwrap_err();
    assert!(matches!(refused, PauseError::NotAllowed { .. }));
    assert!(matches!(world.step(&gate).await, GateStep::Waiting { until: Some(_), .. }), "nothing changed");

    let calls = hook.asked().len();
    answer(&world, &gate, "on-call", Verdict::Proceed).await.unwrap();
    assert_eq!(world.settle(&gate).await, GateStep::Open, "without waiting for the interval");
    assert_eq!(hook.asked().len(), calls, "the person has decided, not the hook");
    let record = world.records("s").await.pop().unwrap();
    assert!(record.by_pause && record.verdict == Verdict::Proceed);
    world.cluster.finish().await;
}

#[tokio::test]
async fn g41_a_pause_that_is_answered_with_rollback_rolls_back() {
    let hook = Scripted::new(|_| holds(None));
    let world = World::with("x", &hook).open().await;
    let gate = world.gate("s", SWAP, "a").await;
    assert!(matches!(world.settle(&gate).await, GateStep::Waiting { .. }));
    answer(&world, &gate, "on-call", Verdict::Rollback).await.unwrap();
    let step = world.settle(&gate).await;
    let GateStep::Rollback { reason, .. } = step else { panic!("{step:?}") };
    assert!(reason.contains("ada answered Rollback") && reason.contains("looked at it"), "{reason}");
    world.cluster.finish().await;
}

#[tokio::test]
async fn h32_a_pause_that_runs_out_does_what_it_names_at_that_time() {
    let runs_out = tidegate_state::testing::START.after(Duration::from_secs(90));
    let hook = Scripted::new(move |_| holds(Some(runs_out)));
    let world = World::with("x", &hook).open().await;
    let gate = world.gate("s", SWAP, "a").await;
    let step = world.settle_rounds(&gate, 2).await;
    assert!(matches!(step, GateStep::Waiting { until: Some(until), .. } if until == runs_out), "{step:?}");
    world.clock().set(runs_out);
    let step = world.settle(&gate).await;
    let GateStep::Abort { reason, .. } = step else { panic!("{step:?}") };
    assert!(reason.contains("ran out"), "{reason}");
    assert_eq!(hook.asked().len(), 2);
    let refused = answer(&world, &gate, "on-call", Verdict::Proceed).await.unwrap_err();
    assert!(matches!(refused, PauseError::RanOut { .. }));
    world.cluster.finish().await;
}

#[tokio::test]
async fn a_hook_that_no_longer_asks_for_its_pause_closes_it() {
    let hook = Scripted::new(|context| if context.attempt == 1 { holds(None) } else { proceed() });
    let world = World::with("x", &hook).open().await;
    let gate = world.gate("s", SWAP, "a").await;
    assert_eq!(world.settle_rounds(&gate, 2).await, GateStep::Open);
    assert_eq!(world.state().snapshot().roots::<Pause>().count(), 0);
    world.cluster.finish().await;
}

fn with_events(kinds: &[&str]) -> Say {
    let events = kinds.iter().map(|kind| EventDraft { kind: (*kind).to_owned(), data: serde_json::json!({"n": 1}) });
    Say::Answer(AnswerDocument { events: events.collect(), ..document(Verdict::Wait) })
}

async fn deliveries(world: &World, count: usize) -> Vec<Event> {
    let wait = async {
        loop {
            let deliveries = world.receiver.deliveries.lock().clone();
            if deliveries.len() >= count {
                return deliveries;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("events were not delivered")
}

#[tokio::test]
async fn h31_events_are_delivered_in_order_with_one_id_on_every_retry_and_no_gate_waits_for_them() {
    let hook = Scripted::new(|context| match context.attempt {
        1 => with_events(&["first", "second"]),
        2 => with_events(&["third"]),
        _ => proceed(),
    });
    let world = World::with("x", &hook).open().await;
    *world.receiver.down.lock() = true;
    let gate = world.gate("s", SWAP, "a").await;
    assert_eq!(world.settle_rounds(&gate, 3).await, GateStep::Open, "the receiver is down");
    deliveries(&world, 1).await;
    *world.receiver.down.lock() = false;
    let before = world.receiver.deliveries.lock().len();
    world.clock().advance(Duration::from_secs(600));
    world.until(|snapshot| snapshot.all::<Event>().count() == 0).await;
    let deliveries = world.receiver.deliveries.lock().clone();
    let (failed, taken) = deliveries.split_at(deliveries.len() - 3);
    assert!(!failed.is_empty() && before >= 1);
    let kinds: Vec<_> = taken.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["first", "second", "third"]);
    assert!(failed.iter().all(|event| event.id == taken[0].id), "one id on every retry");
    assert_eq!((taken[0].push.as_deref(), taken[0].hook.as_str(), taken[0].version), (Some("P"), "x", Some(2)));
    world.cluster.finish().await;
}

#[tokio::test]
async fn h31_events_outlive_the_servers_that_committed_them() {
    for store in [StoreKind::Memory, StoreKind::Sqlite] {
        all_servers_die_after_the_commit(store).await;
    }
}

async fn all_servers_die_after_the_commit(store: StoreKind) {
    let hook = Scripted::new(|context| if context.attempt == 1 { with_events(&["first"]) } else { proceed() });
    let mut world = World::with("x", &hook).servers(2).lease(LEASE_SHORT).on(store).open().await;
    *world.receiver.down.lock() = true;
    let gate = world.gate("s", SWAP, "a").await;
    assert!(matches!(world.settle(&gate).await, GateStep::Waiting { .. }));
    world.kill(0);
    world.kill(1);
    *world.receiver.down.lock() = false;
    world.receiver.deliveries.lock().clear();
    world.clock().advance(INTERVAL);
    world.cluster.restart(0).await;
    world.start(0).await;
    let delivered = deliveries(&world, 1).await;
    assert_eq!(delivered[0].kind, "first");
    world.until(|snapshot| snapshot.all::<Event>().count() == 0).await;
    assert_eq!(world.settle(&gate).await, GateStep::Open);
    world.cluster.finish().await;
}
