//! Calls as entities: run by one server, answered once, recorded, whatever fails or dies meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate_lifecycle::{
    AnswerDocument, Event, EventDraft, FailureKind, Function, GateStep, HooksConfiguration, HooksFile, Lifecycle,
    Pause, PauseRequest, Verdict,
};
use tidegate_state::Ref;
use tidegate_state::testing::StoreKind;
use tidegate_state::testing::points::name as point;
use tokio::sync::Semaphore;

use crate::world::{Call, INTERVAL, LEASE_SHORT, LIMIT, Push, Say, Scripted, Store, World, document, proceed, say};

const SWAP: Function = Function::PreStoreVersionSwap;

#[tokio::test]
async fn h27_every_attempt_is_counted_and_recorded() {
    let hook = Scripted::new(|context| match context.attempt {
        1 => Say::Fail("no disk"),
        2 => Say::Hang,
        3 | 4 => say(Verdict::Wait),
        _ => proceed(),
    });
    let world = World::with("x", &hook).settings("timeout = \"30s\"").open().await;
    let gate = world.gate("s", SWAP, "a").await;
    let GateStep::Waiting { until: Some(until), reason, .. } = world.settle(&gate).await else { panic!("no wait") };
    assert!(reason.contains("failed: no disk"), "{reason}");
    world.clock().set(until);
    assert!(matches!(world.step(&gate).await, GateStep::Waiting { until: None, .. }));
    hook.was_asked(2).await;
    world.clock().advance(Duration::from_secs(30));
    assert_eq!(world.settle_rounds(&gate, 4).await, GateStep::Open);

    let records = world.records("s").await;
    assert_eq!(records.iter().map(|record| record.attempt).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let verdicts: Vec<_> = records.iter().map(|record| record.verdict).collect();
    assert_eq!(verdicts, [Verdict::Wait, Verdict::Wait, Verdict::Wait, Verdict::Wait, Verdict::Proceed]);
    let failed: Vec<_> = records.iter().map(|record| record.failed).collect();
    assert_eq!(failed, [Some(FailureKind::Error), Some(FailureKind::Timeout), None, None, None]);
    for record in &records {
        assert!(record.queued_at <= record.started_at && record.started_at <= record.ended_at, "{record:?}");
        assert_eq!(
            (record.server.as_str(), record.push.as_deref(), record.region.as_deref()),
            ("server-0", Some("P"), Some("a"))
        );
        assert_eq!(record.reason.is_empty(), record.verdict == Verdict::Proceed, "{record:?}");
        assert!(!record.stale && !record.observed && !record.by_pause);
    }
    let text = world.lifecycle(0).metrics().to_text();
    let labels = r#"hook="x",function="pre_store_version_swap""#;
    for line in [
        format!("lifecycle_hook_invocations_total{{{labels}}} 5"),
        format!(r#"lifecycle_hook_outcomes_total{{{labels},outcome="wait"}} 2"#),
        format!(r#"lifecycle_hook_outcomes_total{{{labels},outcome="proceed"}} 1"#),
        format!("lifecycle_hook_failures_total{{{labels}}} 1"),
        format!("lifecycle_hook_timeouts_total{{{labels}}} 1"),
        format!("lifecycle_hook_queue_wait_seconds_count{{{labels}}} 5"),
        format!("lifecycle_hook_duration_seconds_count{{{labels}}} 5"),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    world.cluster.finish().await;
}

#[tokio::test]
async fn h03_the_context_says_which_call_it_is() {
    let hook = Scripted::new(|_| proceed());
    let world = World::with("x", &hook)
        .settings("timeout = \"7s\"\n[hooks.config.x]\na = \"global\"\nb = \"global\"")
        .open()
        .await;
    let gate = world.gate("s", SWAP, "b").await;
    assert_eq!(world.settle(&gate).await, GateStep::Open);
    let context = &hook.asked()[0];
    assert_eq!((context.function, context.store.as_str(), context.region.as_deref()), (SWAP, "s", Some("b")));
    assert_eq!((context.attempt, context.memo.as_ref(), context.now), (1, None, world.state().now()));
    assert_eq!((context.config["a"].as_str(), context.config["b"].as_str()), ("global", "global"));
    assert_eq!(context.timeout_ms, 7_000);
    assert!(!context.idempotency_key.is_empty() && context.fencing_token > 0);
    let record = &world.records("s").await[0];
    assert_eq!((&record.idempotency_key, record.fencing_token), (&context.idempotency_key, context.fencing_token));
    world.cluster.finish().await;
}

#[tokio::test]
async fn h20_a_stores_value_wins_key_by_key_and_changes_count_from_the_next_round() {
    let hook = Scripted::new(|context| match context.config.get("go").map(String::as_str) {
        Some("yes") => proceed(),
        _ => say(Verdict::Wait),
    });
    let other = Scripted::new(|_| proceed());
    let settings = "[hooks.config.x]\nmode = \"off\"\na = \"1\"\n[hooks.config.y]\na = \"2\"";
    let world = World::with("x", &hook).and("y", &other).settings(settings).open().await;
    let (on, off) = (world.gate("s", SWAP, "a").await, world.gate("t", SWAP, "a").await);
    let store = Ref::<Store>::root("s").unwrap();
    let set = async |key: &'static str, value: &'static str| {
        let store = store.clone();
        world
            .write(move |transaction| {
                transaction.update(&store, |store| {
                    store.overrides.insert(key.to_owned(), value.to_owned());
                })
            })
            .await;
    };
    set("x.mode", "enforce").await;
    assert_eq!(world.settle(&off).await, GateStep::Open);
    assert!(hook.asked().is_empty(), "x is off for t");
    assert!(matches!(world.settle(&on).await, GateStep::Waiting { .. }));
    let config = &hook.asked()[0].config;
    assert_eq!((config["a"].as_str(), config["mode"].as_str()), ("1", "enforce"));
    assert_eq!(other.asked()[0].config["a"], "2", "a hook never sees another's table");
    // An override during the Wait counts from the next round; so does the published value.
    set("x.go", "no").await;
    assert!(matches!(world.settle_rounds(&on, 2).await, GateStep::Waiting { .. }));
    assert_eq!(hook.asked()[1].config["go"], "no");
    let mut file = HooksFile::default_of(world.lifecycle(0).registry());
    file.hooks.entry("x".into()).or_default().insert("go".into(), "yes".into());
    world.publish(&file).await;
    assert!(matches!(world.settle_rounds(&on, 2).await, GateStep::Waiting { .. }), "the store's value wins");
    set("x.go", "yes").await;
    assert_eq!(world.settle_rounds(&on, 2).await, GateStep::Open);
    world.cluster.finish().await;
}

#[tokio::test]
async fn h04_what_panics_waits_aborts_or_proceeds_as_its_on_failure_says() {
    for (on_failure, expected) in [("wait", "Waiting"), ("abort", "Abort"), ("proceed", "Open")] {
        let hook = Scripted::new(|_| Say::Panic);
        let settings = format!("[hooks.config.x]\non_failure = \"{on_failure}\"");
        let world = World::with("x", &hook).settings(&settings).open().await;
        let gate = world.gate("s", SWAP, "a").await;
        let step = world.settle(&gate).await;
        assert!(format!("{step:?}").starts_with(expected), "{on_failure}: {step:?}");
        let record = world.records("s").await.remove(0);
        assert_eq!(record.failed, Some(FailureKind::Panic));
        assert!(record.reason.contains("boom"), "{record:?}");
        let told = world.gate("s", Function::PostStoreVersionCreation, "a").await;
        assert_eq!(world.settle(&told).await, GateStep::Open, "a function without outcomes holds nothing");
        world.cluster.finish().await;
    }
}

#[tokio::test]
async fn h04_two_outcomes_abort_after_bounded_retries() {
    let hook = Scripted::new(|_| Say::Fail("no disk"));
    let world = World::with("x", &hook).open().await;
    let gate = world.gate("s", Function::PreStartOfPushJob, "a").await;
    let step = world.settle_rounds(&gate, 4).await;
    let GateStep::Abort { hook: by, reason } = step else { panic!("{step:?}") };
    assert!(by == "x" && reason.contains("4 times in a row") && reason.contains("no disk"), "{reason}");
    assert_eq!(world.records("s").await.len(), 4);
    world.cluster.finish().await;
}

#[tokio::test]
async fn h05_a_hook_that_hangs_holds_its_own_gate_and_no_other_stores() {
    let hook = Scripted::new(|context| if context.store == "s" { Say::Hang } else { proceed() });
    let world = World::with("x", &hook).settings("threads = 2").open().await;
    let (hanging, other) = (world.gate("s", SWAP, "a").await, world.gate("t", SWAP, "a").await);
    assert!(matches!(world.step(&hanging).await, GateStep::Waiting { until: None, .. }));
    hook.was_asked(1).await;
    assert_eq!(world.settle(&other).await, GateStep::Open);
    world.clock().advance(Duration::from_secs(30));
    let step = world.settle(&hanging).await;
    let GateStep::Waiting { until: Some(until), reason, .. } = step else { panic!("{step:?}") };
    assert!(reason.contains("took longer than 30000 ms"), "{reason}");
    assert_eq!(until.since(world.state().now()), INTERVAL);
    assert!(world.lifecycle(0).metrics().to_text().contains("lifecycle_hook_timeouts_total"));
    world.cluster.finish().await;
}

#[tokio::test]
async fn h28_one_call_of_a_hook_for_a_store_at_a_time_and_other_stores_beside_it() {
    let open = Arc::new(Semaphore::new(0));
    let hook = {
        let open = Arc::clone(&open);
        Scripted::new(move |_| Say::When(Arc::clone(&open), AnswerDocument::PROCEED))
    };
    let world = World::with("x", &hook).open().await;
    let mut gates = Vec::new();
    for region in ["a", "b", "c"] {
        gates.push(world.gate("s", SWAP, region).await);
    }
    let other = world.gate("t", SWAP, "a").await;
    for gate in gates.iter().chain([&other]) {
        assert!(matches!(world.step(gate).await, GateStep::Waiting { until: None, .. }));
    }
    // One of s and the one of t run; the other two of s wait for the first.
    hook.was_asked(2).await;
    let stores: std::collections::BTreeSet<_> = hook.asked().iter().map(|context| context.store.clone()).collect();
    assert_eq!(stores.len(), 2, "two calls for one store at once");
    open.add_permits(2);
    hook.was_asked(3).await;
    open.add_permits(2);
    for gate in gates.iter().chain([&other]) {
        assert_eq!(world.settle(gate).await, GateStep::Open);
    }
    let mut of_s = world.records("s").await;
    of_s.sort_by_key(|record| record.fencing_token);
    assert_eq!(of_s.len(), 3);
    assert!(of_s.windows(2).all(|pair| pair[0].fencing_token < pair[1].fencing_token));
    world.cluster.finish().await;
}

#[tokio::test]
async fn h29_a_late_answer_is_recorded_and_changes_nothing() {
    let open = Arc::new(Semaphore::new(0));
    let slow = {
        let open = Arc::clone(&open);
        Scripted::new(move |_| Say::When(Arc::clone(&open), document(Verdict::Rollback)))
    };
    let quick = Scripted::new(|_| proceed());
    let world = World::with("x", &slow).and("y", &quick).settings("enabled = [\"x\"]").open().await;
    let gate = world.gate("s", SWAP, "a").await;
    assert!(matches!(world.step(&gate).await, GateStep::Waiting { until: None, .. }));
    slow.was_asked(1).await;
    // Other hooks of the store do not queue behind it.
    let mut file = HooksFile::default_of(world.lifecycle(0).registry());
    file.enabled = vec!["y".into()];
    world.publish(&file).await;
    let other = world.gate("s", SWAP, "b").await;
    assert_eq!(world.settle(&other).await, GateStep::Open);
    // The push ends; its controller takes the call away.
    let (push, call) = (Ref::<Store>::root("s").unwrap().child::<Push>("P").unwrap(), gate.child::<Call>("x").unwrap());
    let before = {
        let call = call.clone();
        world
            .write(move |transaction| {
                transaction.update(&push, |push| push.ended = true)?;
                transaction.delete(&call).map(|_| ())
            })
            .await;
        world.state().snapshot().require(&gate).unwrap().clone()
    };
    open.add_permits(1);
    let records = world.records_are("s", 2).await;
    let late = records.iter().find(|record| record.hook == "x").unwrap();
    assert!(late.stale && late.verdict == Verdict::Rollback, "{late:?}");
    let snapshot = world.state().snapshot();
    assert_eq!(*snapshot.require(&gate).unwrap(), before);
    assert!(!snapshot.contains(call.path()));
    world.cluster.finish().await;
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_any_more_is_not_made() {
    let open = Arc::new(Semaphore::new(0));
    let hook = {
        let open = Arc::clone(&open);
        Scripted::new(move |_| Say::When(Arc::clone(&open), AnswerDocument::PROCEED))
    };
    let world = World::with("x", &hook).open().await;
    let (first, second) = (world.gate("s", SWAP, "a").await, world.gate("s", SWAP, "b").await);
    assert!(matches!(world.step(&first).await, GateStep::Waiting { .. }));
    hook.was_asked(1).await;
    assert!(matches!(world.step(&second).await, GateStep::Waiting { .. }));
    let gate = second.clone();
    world
        .write(move |transaction| {
            let now = transaction.now();
            transaction.update(&gate, |gate| gate.state.proceed("ada", "she knows", now))
        })
        .await;
    assert_eq!(world.step(&second).await, GateStep::Open);
    open.add_permits(2);
    assert_eq!(world.settle(&first).await, GateStep::Open);
    let third = world.gate("s", SWAP, "c").await;
    assert_eq!(world.settle(&third).await, GateStep::Open);
    let regions: Vec<_> = hook.asked().iter().map(|context| context.region.clone().unwrap()).collect();
    assert_eq!(regions, ["a", "c"], "b's gate had been opened by hand");
    world.cluster.finish().await;
}

#[tokio::test]
async fn c02_h30_a_call_whose_server_dies_comes_again_as_the_same_attempt() {
    for store in [StoreKind::Memory, StoreKind::Sqlite] {
        a_server_dies_between_and_during_attempts(store).await;
    }
}

async fn a_server_dies_between_and_during_attempts(store: StoreKind) {
    let hang = Arc::new(AtomicBool::new(true));
    let hook = {
        let hang = Arc::clone(&hang);
        Scripted::new(move |context| {
            let bad = context.memo.as_deref().map_or(0, |memo| memo.parse::<u32>().unwrap()) + 1;
            match bad {
                3 if hang.load(Ordering::SeqCst) => Say::Hang,
                3 => say(Verdict::Rollback),
                bad => Say::Answer(AnswerDocument { memo: Some(bad.to_string()), ..document(Verdict::Wait) }),
            }
        })
    };
    let mut world = World::with("x", &hook).servers(2).lease(LEASE_SHORT).on(store).open().await;
    let gate = world.gate("s", SWAP, "a").await;
    assert!(matches!(world.settle_rounds(&gate, 2).await, GateStep::Waiting { .. }));
    // Between the second and the third: whoever had the key dies.
    let owner = |name: &str| usize::from(name == "server-1");
    let dies = owner(&world.records("s").await.last().unwrap().server);
    world.kill(dies);
    world.clock().advance(INTERVAL);
    assert!(matches!(world.step(&gate).await, GateStep::Waiting { until: None, .. }));
    hook.was_asked(3).await;
    // During the third: the other one dies too, and the first is back.
    world.cluster.restart(dies).await;
    world.start(dies).await;
    hang.store(false, Ordering::SeqCst);
    world.kill(1 - dies);
    world.clock().advance(Duration::from_secs(60));
    hook.was_asked(4).await;
    let step = world.settle(&gate).await;
    assert!(matches!(step, GateStep::Rollback { .. }), "{step:?}");

    let asked = hook.asked();
    let (cut, again) = (&asked[2], &asked[3]);
    assert_eq!((cut.attempt, cut.memo.as_deref()), (3, Some("2")));
    assert_eq!((again.attempt, &again.memo, &again.idempotency_key), (cut.attempt, &cut.memo, &cut.idempotency_key));
    assert!(again.fencing_token > cut.fencing_token);
    let records = world.records("s").await;
    assert_eq!(records.iter().map(|record| record.attempt).collect::<Vec<_>>(), [1, 2, 3], "one record, one effect");
    world.cluster.finish().await;
}

#[tokio::test]
async fn c03_a_server_that_was_cut_off_past_its_lease_changes_nothing_when_it_is_back() {
    its_late_answer_is_on_record_and_changes_nothing(Notices::First).await;
}

#[tokio::test]
async fn c03_nor_does_it_before_it_has_noticed_that_its_lease_has_ended() {
    its_late_answer_is_on_record_and_changes_nothing(Notices::Later).await;
}

/// When a server that stood still notices that its lease has ended, before or after its hook answers.
enum Notices {
    First,
    Later,
}

async fn its_late_answer_is_on_record_and_changes_nothing(notices: Notices) {
    let open = Arc::new(Semaphore::new(0));
    let first = Arc::new(AtomicBool::new(true));
    let hook = {
        let (open, first) = (Arc::clone(&open), Arc::clone(&first));
        Scripted::new(move |_| match first.swap(false, Ordering::SeqCst) {
            true => Say::When(Arc::clone(&open), document(Verdict::Rollback)),
            false => proceed(),
        })
    };
    let mut world = World::with("x", &hook).lease(LEASE_SHORT).open().await;
    let gate = world.gate("s", SWAP, "a").await;
    assert!(matches!(world.step(&gate).await, GateStep::Waiting { until: None, .. }));
    hook.was_asked(1).await;
    let other = world.cluster.join().await;
    world.lifecycles.push(None);
    world.start(other).await;
    // The first one stands still past its lease, and the other decides.
    let frozen = world.cluster.points(0).hold(point::SLOT_BEFORE_LAPSE);
    world.cluster.faults(0).set_absent(true);
    // No longer than a call may take, whose answer would be that it was cut.
    world.clock().advance(LEASE_SHORT * 2);
    hook.was_asked(2).await;
    world.speak_through = Some(other);
    assert_eq!(world.settle(&gate).await, GateStep::Open);
    // It wakes up, and its hook answers.
    let mut member = world.cluster.server(0).member();
    let of_before = *member.borrow_and_update();
    world.cluster.faults(0).set_absent(false);
    let records = match notices {
        Notices::First => {
            frozen.release();
            let lapsed = member.wait_for(|now| *now != of_before);
            drop(tokio::time::timeout(LIMIT, lapsed).await.expect("its lease lapses").unwrap());
            open.add_permits(1);
            world.records_are("s", 2).await
        }
        Notices::Later => {
            open.add_permits(1);
            let records = world.records_are("s", 2).await;
            frozen.release();
            records
        }
    };
    world.cluster.server(0).flush().await.unwrap();

    let (cut, counted) = (hook.asked()[0].clone(), hook.asked()[1].clone());
    assert!(counted.fencing_token > cut.fencing_token);
    assert_eq!((cut.idempotency_key, cut.attempt), (counted.idempotency_key, counted.attempt));
    for server in [0, other] {
        let snapshot = world.cluster.server(server).snapshot();
        let call = snapshot.require(&gate.child::<Call>("x").unwrap()).unwrap();
        assert_eq!(call.state.answer().unwrap().verdict, Verdict::Proceed);
        assert!(snapshot.require(&gate).unwrap().state.opened_at.is_some());
    }
    // What it came with is on record beside what counted, under the token that it had lost.
    let (late, effective): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.stale);
    assert_eq!((late.len(), effective.len()), (1, 1), "{late:?} {effective:?}");
    assert_eq!((late[0].verdict, effective[0].verdict), (Verdict::Rollback, Verdict::Proceed));
    assert_eq!((late[0].server.as_str(), late[0].fencing_token), ("server-0", cut.fencing_token));
    assert_eq!(effective[0].fencing_token, counted.fencing_token);
    assert_eq!(world.records("s").await.len(), 2);
    world.cluster.finish().await;
}

#[tokio::test]
async fn c20_only_a_server_that_was_built_with_a_hook_runs_it_and_its_gate_waits_for_one() {
    let mine = Scripted::new(|_| proceed());
    let mut world = World::with("mine", &mine).only_on(&[1]).servers(2).lease(LEASE_SHORT).open().await;
    let gate = world.gate("s", SWAP, "a").await;
    assert_eq!(world.settle(&gate).await, GateStep::Open);
    assert_eq!(world.records("s").await[0].server, "server-1");
    let place = HooksConfiguration::place();
    let configuration = world.state().snapshot().require(&place).unwrap().clone();
    let cluster = world.state().cluster().await.unwrap();
    assert!(Lifecycle::hooks_without_server(&configuration, &cluster).is_empty());

    world.kill(1);
    world.clock().advance(Duration::from_secs(60));
    let waiting = world.gate("t", SWAP, "a").await;
    let GateStep::Waiting { until: None, hook, .. } = world.step(&waiting).await else { panic!("does not wait") };
    assert_eq!(hook, "mine");
    let cluster = world.state().cluster().await.unwrap();
    assert_eq!(Lifecycle::hooks_without_server(&configuration, &cluster), ["mine"]);

    world.cluster.restart(1).await;
    world.start(1).await;
    assert_eq!(world.settle(&waiting).await, GateStep::Open);
    world.cluster.finish().await;
}

#[tokio::test]
async fn h34_an_observed_hook_is_recorded_and_holds_nothing() {
    let says = [Verdict::Abort, Verdict::Wait, Verdict::Rollback];
    for verdict in says {
        let hook = Scripted::new(move |_| {
            let pause = PauseRequest { may_answer: vec![], until: None, when_run_out: Verdict::Abort };
            let event = EventDraft { kind: "k".into(), data: serde_json::Value::Null };
            Say::Answer(AnswerDocument { pause: Some(pause), events: vec![event], ..document(verdict) })
        });
        let world = World::with("x", &hook).settings("[hooks.config.x]\nmode = \"observe\"").open().await;
        let gate = world.gate("s", SWAP, "a").await;
        assert_eq!(world.step(&gate).await, GateStep::Open, "opens without waiting for it");
        let records = world.records_are("s", 1).await;
        assert!(records[0].observed && records[0].verdict == verdict, "{records:?}");
        let snapshot = world.state().snapshot();
        assert_eq!(snapshot.roots::<Pause>().count(), 0);
        assert_eq!(snapshot.all::<Event>().count(), 0);
        world.cluster.finish().await;
    }
}
