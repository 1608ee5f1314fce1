//! C: a store that is away, notifications that are lost, clocks, and a release that knows more than this one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidegate_lifecycle::{Context, Function, Verdict};
use tidegate_rollout::entities::{Gate, Milestone, Push, PushStatus, Store, VersionStatus};
use tidegate_state::{Clock, ClusterHook, Entity, Outcome, Ref, Registration, Run, Timestamp};

use crate::world::{LIMIT, World};

const MINUTE: Duration = Duration::from_secs(60);
const SWAP: Function = Function::PreStoreVersionSwap;
const EMBEDDED: Function = Function::PreStartOfStoreVersionIngestionForDaVinci;

fn held_in_b(context: &Context) -> Verdict {
    let held = context.function == SWAP && context.region.as_deref() == Some("b");
    if held { Verdict::Wait } else { Verdict::Proceed }
}

/// Idempotency keys of what the hook was asked about a push, in order.
fn keys(world: &World, push: &str) -> Vec<String> {
    let asked = world.hook.asked.lock();
    asked.iter().filter(|context| context.push.as_deref() == Some(push)).map(|c| c.idempotency_key.clone()).collect()
}

/// How often each step was decided: a call that came again under its own key counts once.
fn steps(world: &World, push: &str) -> BTreeMap<(&'static str, Option<String>, u32), BTreeSet<String>> {
    let mut steps: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    let asked = world.hook.asked.lock();
    for context in asked.iter().filter(|context| context.push.as_deref() == Some(push)) {
        let step = (context.function.short_name(), context.region.clone(), context.attempt);
        steps.entry(step).or_default().insert(context.idempotency_key.clone());
    }
    steps
}

#[tokio::test]
async fn c11_with_the_store_away_in_mid_push_nothing_moves_and_then_it_goes_on_by_itself() {
    let world = World::serving(true).await;
    world.hook.say(held_in_b);
    world.push("p", "s").await;
    let before = [Some(2), Some(1), Some(2)];
    world.serves("s", &before).await;
    world.until("p", |push| push.regions["b"].state.word() == "ingested").await;

    // The store is away for ten minutes, in which the gate would be asked again, and would open.
    world.cluster.faults(0).set_absent(true);
    world.hook.say(|_| Verdict::Proceed);
    world.cluster.advance(MINUTE * 10);
    for refused in [
        world.operations().kill_push("p", "ada", "no").await.map(|_| ()),
        world.operations().start_push(World::request("q", "s")).await.map(|_| ()),
        world.operations().freeze("f", tidegate_rollout::entities::FreezeScope::All, "ada", "no").await.map(|_| ()),
    ] {
        let error = refused.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        World::refusal::<()>(Err(error));
    }
    // Reads go on from what is known, and nobody was told to swap.
    let snapshot = world.state().snapshot();
    assert_eq!(World::serving_now(&snapshot, "s"), before);
    assert_eq!(World::push_value(&snapshot, "p").unwrap().status(), PushStatus::Started);

    world.cluster.faults(0).set_absent(false);
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Completed);
    world.serves("s", &[Some(2), Some(2), Some(2)]).await;
    // No call was lost: the attempts at B's gate have no gap; and each was decided once.
    let asked = steps(&world, "p");
    let attempts: Vec<u32> = asked
        .keys()
        .filter(|(function, region, _)| *function == SWAP.short_name() && region.as_deref() == Some("b"))
        .map(|(_, _, attempt)| *attempt)
        .collect();
    assert_eq!(attempts, (1..=u32::try_from(attempts.len()).unwrap()).collect::<Vec<_>>());
    assert!(attempts.len() >= 2, "{attempts:?}");
    assert!(asked.values().all(|keys| keys.len() == 1), "{asked:#?}");
    assert!(World::push_value(&world.state().snapshot(), "q").is_none(), "what was refused left no trace");
    // The next push is accepted.
    world.push("r", "s").await;
    world.ended("r").await;
}

#[tokio::test]
async fn c12_with_every_notification_lost_no_step_is_missed_or_doubled() {
    let world = World::with_servers(3, true, Duration::from_secs(86_400)).await;
    for server in 0..3 {
        world.cluster.faults(server).set_deaf(true);
    }
    // Requests come to another server each time, so that what acts on them learns of it by polling.
    for (number, push) in ["p0", "p1", "p2"].into_iter().enumerate() {
        let accepted = world.operations_of(number).start_push(World::request(push, "s")).await.unwrap();
        world.build(push, accepted.push.version).await;
        world.ended(push).await;
        assert_eq!(world.status(push), PushStatus::Completed);
        world.serves("s", &[Some(accepted.push.version); 3]).await;
    }
    for push in ["p1", "p2"] {
        let asked = steps(&world, push);
        for (function, count) in [
            (Function::PreStartOfPushJob, 1),
            (Function::PreStoreVersionCreation, 3),
            (SWAP, 3),
            (Function::PostStoreVersionSwap, 3),
            (Function::PreEndOfPushJob, 1),
            (Function::PostEndOfPushJob, 1),
        ] {
            let times = asked.keys().filter(|(name, ..)| *name == function.short_name()).count();
            assert_eq!(times, count, "{push}: {function}");
        }
        let distinct: BTreeSet<String> = keys(&world, push).into_iter().collect();
        assert_eq!(distinct.len(), keys(&world, push).len(), "{push}: no call came twice");
    }
    for region in ["a", "b", "c"] {
        let served = world.served.lock()[&(region.to_owned(), "s".to_owned())].clone();
        assert_eq!(served, [None, Some(1), Some(2), Some(3)], "{region} swaps once for each push");
    }
}

#[tokio::test]
async fn c13_delays_are_elapsed_time_by_the_one_clock_of_the_store() {
    let world = World::with_servers(2, false, Duration::from_secs(86_400 * 365)).await;
    world.push("first", "s").await;
    world.ended("first").await;
    let settings = [("order", "a, b, c"), ("delay", "60m")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let hooks = BTreeMap::from([("region-order".to_owned(), BTreeMap::from(settings))]);
    world.configure(&["region-order"], hooks).await;
    // Half an hour before clocks go forward in Europe: 2026-03-29 00:30 UTC. What the machine's own clock and its zone say
    // plays no part: it stands somewhere else altogether.
    let begun = Timestamp(1_774_744_200_000);
    let now = Clock::now(world.cluster.clock());
    world.cluster.advance(begun.since(now));
    world.push("p", "s").await;
    for (done, next, serving) in [("a", "b", [Some(2), Some(1), Some(1)]), ("b", "c", [Some(2), Some(2), Some(1)])] {
        world.serves("s", &serving).await;
        world.until("p", |push| push.regions[done].state.word() == "done").await;
        // The next one has been told when its turn comes, at the first of its gates that the order answers.
        let turn = Clock::now(world.cluster.clock()).after(MINUTE * 60);
        let gate = Ref::<Store>::root("s")
            .and_then(|store| store.child::<Push>("p"))
            .and_then(|push| push.child::<Gate>(Gate::id(EMBEDDED, Some(next))))
            .unwrap();
        world
            .until_state("its turn is known", |snapshot| {
                let gate = snapshot.get(&gate).unwrap();
                gate.and_then(|gate| gate.turn).is_some_and(|known| known.at == turn)
            })
            .await;
        world.cluster.advance(MINUTE * 60 - Duration::from_millis(1));
        assert_eq!(World::serving_now(&world.state().snapshot(), "s"), serving, "a millisecond is missing");
        world.cluster.advance(Duration::from_millis(1));
    }
    world.ended("p").await;
    let push = World::push_value(&world.state().snapshot(), "p").unwrap();
    let reached = |region: &str| push.regions[region].reached[&Milestone::Done];
    assert_eq!(reached("a"), begun, "epoch milliseconds by the store's clock");
    assert_eq!(reached("b").since(reached("a")), MINUTE * 60);
    assert_eq!(reached("c").since(reached("b")), MINUTE * 60);
    assert_eq!(push.end().unwrap().at.since(begun), MINUTE * 120);
}

/// A push as a later release writes it: in a state that this one does not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct LaterPush(serde_json::Map<String, serde_json::Value>);

impl Entity for LaterPush {
    const COLLECTION: &'static str = "pushes";
    type Parent = Store;
    type Id = String;
}

/// The controller of a later release: it only notes for which stores it ran.
struct LaterControl(tokio::sync::mpsc::UnboundedSender<String>);

#[async_trait::async_trait]
impl ClusterHook for LaterControl {
    async fn run(&self, run: Run) -> Outcome {
        let _ = self.0.send(run.id("store").unwrap_or_default());
        Outcome::Done
    }
}

fn later_registration() -> Registration {
    Registration::new("rollout", 2)
        .on("/stores/{store}")
        .on("/stores/{store}/pushes/{push}")
        .key("{store}")
        .latest_state()
        .attempts_unlimited()
        .from_existing()
}

#[tokio::test]
async fn c14_what_a_later_release_writes_is_left_to_it() {
    let mut world = World::with_servers(2, true, Duration::from_secs(10)).await;
    world.create_store("t").await;
    world.push("first", "s").await;
    world.ended("first").await;
    // Server 1 is of the later release, and takes part in the rollout with a later version of the controller.
    world.kill_server(1);
    world.cluster.restart(1).await;
    let (sender, mut ran) = tokio::sync::mpsc::unbounded_channel();
    let later = world.cluster.server(1).clone();
    let control = std::sync::Arc::new(LaterControl(sender));
    let handle = later.register(later_registration(), 4, control).await.unwrap();
    // It writes a state that this release does not know.
    let place = Ref::<Store>::root("s").unwrap().child::<LaterPush>("first").unwrap();
    let written = later.write({
        let place = place.clone();
        move |transaction| -> Result<(), tidegate_state::TransactionError> {
            let mut push = (*transaction.require(&place)?).clone();
            push.0.insert("state".into(), serde_json::json!({ "mirrored": { "to": "another planet" } }));
            transaction.put(&place, push)
        }
    });
    written.await.unwrap();
    world.state().flush().await.unwrap();
    let known = Ref::<Store>::root("s").unwrap().child::<Push>("first").unwrap();
    let document = || world.state().snapshot().document(place.path()).unwrap().json().to_owned();
    let (before, snapshot) = (document(), world.state().snapshot());
    assert!(before.contains("mirrored"), "{before}");
    assert!(snapshot.get(&known).is_err(), "this release can't read it, and says so");
    // What is asked of it here is refused, and changes nothing.
    for refused in [
        world.operations().kill_push("first", "ada", "no").await.map(|_| ()),
        world.operations().heartbeat_push("first", Default::default()).await.map(|_| ()),
        world.operations().start_push(World::request("second", "s")).await.map(|_| ()),
    ] {
        assert!(refused.is_err());
    }
    // The request is the later release's: this one's slots move, and only the other runs it.
    let run = tokio::time::timeout(LIMIT, async {
        loop {
            tokio::select! {
                store = ran.recv() => if store.as_deref() == Some("s") { return },
                () = tokio::time::sleep(Duration::from_millis(20)) => world.cluster.advance(Duration::from_secs(1)),
            }
        }
    });
    run.await.expect("the later release never ran for the store");
    assert_eq!(document(), before, "nobody overwrote it");
    // Another store is nobody's trouble but its own: reading it works as before.
    assert!(World::push_value(&world.state().snapshot(), "second").is_none());
    assert_eq!(world.version("s", 1).status, VersionStatus::Online);
    drop(handle);
}
