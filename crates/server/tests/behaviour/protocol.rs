//! Several pushes, gates, and who may do what when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tidegate_client::PushEvent;
use tidegate_client::api::{EndedBy, GateStatus, HoldKind, ProceedRequest, PushStart, PushStatus, Verdict, code};
use tidegate_lifecycle::{
    Answer, Context, HookError, Registry, StoreLifecycleEventOutcome, StoreLifecycleHooks,
    StoreVersionLifecycleEventOutcome,
};

use crate::world::World;

fn start(id: &str, store: &str) -> PushStart {
    PushStart { id: id.to_owned(), store: store.to_owned(), ..PushStart::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c4_a_push_while_another_runs_is_refused_naming_it() {
    let world = World::start().await;
    world.store().await;
    let first = world.client.start_push(&start("p1", "s")).await.unwrap();
    assert!(first.created);

    let error = world.client.start_push(&start("p2", "s")).await.unwrap_err();
    let body = error.body().unwrap();
    assert_eq!(body.code, code::PUSH_RUNNING);
    assert_eq!(body.subjects, ["p1"]);
    for word in ["queue", "supersede"] {
        assert!(body.countermeasures.contains(word), "{body:?}");
    }

    let again = world.client.start_push(&start("p1", "s")).await.unwrap();
    assert!(!again.created);
    assert_eq!(again.state.version, first.state.version);

    let other = tidegate_client::api::StoreCreate {
        name: "t".to_owned(),
        key_columns: vec!["k".to_owned()],
        ..Default::default()
    };
    world.client.create_store(&other).await.unwrap();
    let error = world.client.start_push(&start("p1", "t")).await.unwrap_err();
    assert_eq!(error.code(), Some(code::PUSH_ID_TAKEN));
    assert!(error.to_string().contains("\"s\""), "{error}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c4_of_two_new_ids_at_the_same_instant_exactly_one_wins() {
    let world = World::start().await;
    world.store().await;
    let (p1, p2) = (start("p1", "s"), start("p2", "s"));
    let (first, second) = tokio::join!(world.client.start_push(&p1), world.client.start_push(&p2));
    assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1, "{first:?} {second:?}");
    assert_eq!(world.client.pushes(Some("s"), None).await.unwrap().len(), 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d10_two_clients_with_one_id_make_one_push_and_one_artifact() {
    let world = World::start().await;
    world.store().await;
    let path = world.rows("one.csv", 2_000, "one-");
    let (job, other) = (world.job("p1", &path), world.job("p1", &path));
    let (mut quiet, mut quiet_too) = (|_: PushEvent| {}, |_: PushEvent| {});
    let (first, second) = tokio::join!(job.run(&world.client, &mut quiet), other.run(&world.client, &mut quiet_too));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.state.status, PushStatus::Completed, "{first:#?}");
    assert_eq!(first.state, second.state);
    assert_eq!(world.client.versions("s").await.unwrap().len(), 1);
    world.end().await;
}

/// Refuses to start pushes whose attribute says so, and holds the swap in `b` until it is told to
/// let go.
struct Gatekeeper {
    holds: Arc<AtomicBool>,
}

#[async_trait]
impl StoreLifecycleHooks for Gatekeeper {
    async fn pre_start_of_push_job(&self, context: &Context) -> Result<Answer<StoreLifecycleEventOutcome>, HookError> {
        let refused = context.attributes.get("please").is_some_and(|word| word == "refuse");
        Ok(if refused {
            let reason = "the attribute asks for it".to_owned();
            StoreLifecycleEventOutcome::Abort { reason }.into()
        } else {
            StoreLifecycleEventOutcome::Proceed.into()
        })
    }

    async fn pre_store_version_swap(
        &self,
        context: &Context,
    ) -> Result<Answer<StoreVersionLifecycleEventOutcome>, HookError> {
        let held = context.region.as_deref() == Some("b") && self.holds.load(Ordering::SeqCst);
        Ok(if held {
            StoreVersionLifecycleEventOutcome::Wait {
                reason: "3 tickets are open (limit 0)".to_owned(),
                ask_again_at: None,
            }
            .into()
        } else {
            StoreVersionLifecycleEventOutcome::Proceed.into()
        })
    }
}

async fn world_with_gatekeeper() -> (World, Arc<AtomicBool>) {
    let holds = Arc::new(AtomicBool::new(true));
    let shared = Arc::clone(&holds);
    let world = World::start_with(move |options| {
        options.registry = Registry::shipped().with("gatekeeper", move |_: &BTreeMap<_, _>| {
            Ok(Arc::new(Gatekeeper { holds: Arc::clone(&shared) }) as Arc<dyn StoreLifecycleHooks>)
        });
    })
    .await;
    world.store().await;
    (world, holds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h8_a_start_gate_that_says_abort_ends_the_push_before_anything_is_built() {
    let (world, _) = world_with_gatekeeper().await;
    let mut job = world.job("p1", &world.rows("one.csv", 10, "v"));
    job.options.attributes.insert("please".to_owned(), "refuse".to_owned());
    let mut built = false;
    let outcome = job
        .run(&world.client, &mut |event: PushEvent| {
            built |= matches!(event, PushEvent::Built { .. });
        })
        .await
        .unwrap();
    assert_eq!(outcome.state.status, PushStatus::Aborted, "{outcome:#?}");
    assert_eq!(outcome.state.ended_by, Some(EndedBy::Gate));
    let reason = outcome.state.reason.unwrap();
    assert!(reason.contains("gatekeeper") && reason.contains("the attribute asks for it"));
    assert!(!built);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b18_a_gate_that_waits_is_explained_and_opened_by_hand() {
    let (world, _) = world_with_gatekeeper().await;
    let mut job = world.job("p1", &world.rows("one.csv", 10, "v"));
    job.options.follow = false;
    job.run(&world.client, &mut |_| {}).await.unwrap();

    // Until `a` and `c` serve it and `b` is held.
    let mut events = world.client.watch_push("p1");
    let held = tokio::time::timeout(crate::world::LIMIT, async {
        loop {
            let view = events.next().await.unwrap().expect("the push has not ended");
            let served = view.regions.iter().filter(|region| region.serving == Some(1)).count();
            let waits = view.holds.iter().any(|hold| hold.kind == HoldKind::Gate && hold.until.is_some());
            if served == 2 && waits {
                return view;
            }
        }
    })
    .await
    .expect("the gate is not reached");
    let hold = held.holds.iter().find(|hold| hold.until.is_some()).unwrap();
    assert_eq!((hold.region.as_deref(), hold.gate.as_deref()), (Some("b"), Some("pre-swap")));
    assert!(hold.reason.contains("3 tickets are open (limit 0)"), "{hold:?}");
    let region = held.regions.iter().find(|region| region.region == "b").unwrap();
    let gate = region.gates.iter().find(|gate| gate.gate == "pre-swap").unwrap();
    assert_eq!(gate.status, GateStatus::Waiting, "{gate:?}");
    assert_eq!(gate.hooks[0].verdict, Some(Verdict::Wait));

    let explained = world.client.explain_push("p1").await.unwrap();
    assert!(explained.summary.contains("3 tickets are open"), "{explained:?}");
    assert!(explained.limits.iter().any(|limit| limit.name == "push limit"), "{explained:?}");

    let mut proceed =
        ProceedRequest { gate: "pre-swap".to_owned(), region: Some("b".to_owned()), reason: String::new() };
    let error = world.client.proceed("p1", &proceed).await.unwrap_err();
    assert!(error.to_string().contains("reason"), "{error}");
    proceed.reason = "the tickets are about something else".to_owned();
    world.client.proceed("p1", &proceed).await.unwrap();
    let state = world.until("p1", |state| state.status.is_terminal()).await;
    assert_eq!(state.status, PushStatus::Completed);

    let view = world.client.push("p1").await.unwrap();
    let region = view.regions.iter().find(|region| region.region == "b").unwrap();
    let gate = region.gates.iter().find(|gate| gate.gate == "pre-swap").unwrap();
    assert_eq!(gate.status, GateStatus::Overridden, "{gate:?}");
    assert_eq!(gate.overridden.as_ref().unwrap().reason, proceed.reason);

    let calls = world.client.push_calls("p1").await.unwrap();
    let waited: Vec<_> = calls.iter().filter(|call| call.verdict == Some(Verdict::Wait)).collect();
    assert!(!waited.is_empty());
    for call in waited {
        assert!(call.queued_at <= call.started_at && call.started_at <= call.ended_at);
        assert!(call.reason.as_deref().is_some_and(|reason| !reason.is_empty()));
        assert!(!call.server.is_empty());
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b15_a_freeze_holds_the_swap_says_whose_it_is_and_lets_go_when_it_is_lifted() {
    let world = World::start().await;
    world.store().await;
    let freeze = tidegate_client::api::FreezeRequest {
        id: "holidays".to_owned(),
        scope: tidegate_client::api::FreezeScope::Region("b".to_owned()),
        reason: "nobody is there".to_owned(),
    };
    world.client.freeze(&freeze).await.unwrap();
    assert_eq!(world.client.freezes().await.unwrap()[0].reason, "nobody is there");
    let mut job = world.job("p1", &world.rows("one.csv", 10, "v"));
    job.options.follow = false;
    job.run(&world.client, &mut |_| {}).await.unwrap();

    let mut events = world.client.watch_push("p1");
    let held = tokio::time::timeout(crate::world::LIMIT, async {
        loop {
            let view = events.next().await.unwrap().expect("the push has not ended");
            let frozen = view.holds.iter().find(|hold| hold.kind == HoldKind::Freeze).cloned();
            let served = view.regions.iter().filter(|region| region.serving == Some(1)).count();
            if let (Some(frozen), 2) = (frozen, served) {
                return frozen;
            }
        }
    })
    .await
    .expect("the freeze does not hold");
    assert_eq!((held.region.as_deref(), held.by.as_deref()), (Some("b"), Some("holidays")));
    assert!(held.reason.contains("nobody is there"), "{held:?}");

    world.client.lift_freeze("holidays", Some("all are back")).await.unwrap();
    let state = world.until("p1", |state| state.status.is_terminal()).await;
    assert_eq!(state.status, PushStatus::Completed);
    let error = world.client.lift_freeze("holidays", None).await.unwrap_err();
    assert!(error.body().is_some_and(|body| body.why.contains("holidays")), "{error}");
    world.end().await;
}

/// Asks for a person at the end gate.
struct Asks;

#[async_trait]
impl StoreLifecycleHooks for Asks {
    async fn pre_end_of_push_job(&self, _: &Context) -> Result<Answer<StoreVersionLifecycleEventOutcome>, HookError> {
        let wait =
            StoreVersionLifecycleEventOutcome::Wait { reason: "somebody has to look".to_owned(), ask_again_at: None };
        let mut answer = Answer::from(wait);
        answer.pause = Some(tidegate_lifecycle::PauseRequest {
            may_answer: Vec::new(),
            until: None,
            when_run_out: tidegate_lifecycle::Verdict::Abort,
        });
        Ok(answer)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h32_a_pause_is_listed_and_answered_and_its_gate_opens_at_once() {
    let world = World::start_with(|options| {
        options.registry =
            Registry::shipped().with("asks", |_: &BTreeMap<_, _>| Ok(Arc::new(Asks) as Arc<dyn StoreLifecycleHooks>));
    })
    .await;
    world.store().await;
    let mut job = world.job("p1", &world.rows("one.csv", 10, "v"));
    job.options.follow = false;
    job.run(&world.client, &mut |_| {}).await.unwrap();

    let mut watch = world.client.watch(Some("/pauses"), None);
    let pause = tokio::time::timeout(crate::world::LIMIT, async {
        loop {
            if let Some(pause) = world.client.pauses().await.unwrap().pop() {
                return pause;
            }
            watch.next().await.unwrap();
        }
    })
    .await
    .expect("no pause is listed");
    assert_eq!((pause.push.as_deref(), pause.gate.as_str(), pause.hook.as_str()), (Some("p1"), "pre-end", "asks"));
    assert_eq!(pause.reason, "somebody has to look");

    let mut answer = tidegate_client::api::PauseAnswerRequest { verdict: Verdict::Wait, comment: "looked".to_owned() };
    let error = world.client.answer_pause(&pause.id, &answer).await.unwrap_err();
    assert_eq!(error.code(), Some(code::INVALID));
    answer.verdict = Verdict::Proceed;
    let answered = world.client.answer_pause(&pause.id, &answer).await.unwrap();
    assert_eq!(answered.answer.unwrap().comment, "looked");
    let state = world.until("p1", |state| state.status.is_terminal()).await;
    assert_eq!(state.status, PushStatus::Completed);
    world.end().await;
}
