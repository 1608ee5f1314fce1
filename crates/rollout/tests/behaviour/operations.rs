//! What users can do, on a real state tree with the controller's cluster hook at work.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate_api::manifest::{Field, FieldType, Schema};
use tidegate_lifecycle::{Function, Verdict};
use tidegate_rollout::OperationError;
use tidegate_rollout::entities::{
    BuildProgress, EndedBy, FreezeScope, Garbage, OnNewPush, Phase, Push, PushStatus, RegisteredSchema, Store,
    VersionStatus,
};
use tidegate_rollout::operations::{OperatorAction, StartPush};
use tidegate_state::{RecordSearch, Ref};

use crate::world::{LIMIT, World, manifest, schema};

const THREE: [Option<u64>; 3] = [Some(1), Some(1), Some(1)];

fn waits_at(function: Function, region: &'static str) -> impl Fn(&tidegate_lifecycle::Context) -> Verdict {
    move |context| {
        let held = context.function == function && context.region.as_deref() == Some(region);
        if held { Verdict::Wait } else { Verdict::Proceed }
    }
}

#[tokio::test]
async fn a_push_goes_from_its_start_to_every_region_by_cluster_hooks_alone() {
    let world = World::new(true).await;
    world.push("p", "s").await;
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Completed);
    world.serves("s", &THREE).await;
    assert_eq!(world.version("s", 1).status, VersionStatus::Online);
    // The first push brought the schema.
    let asked: Vec<Function> = world.hook.asked.lock().iter().map(|context| context.function).collect();
    let count = |function| asked.iter().filter(|asked| **asked == function).count();
    assert_eq!(count(Function::PreSchemaRegistration), 1);
    assert_eq!(count(Function::PostSchemaRegistration), 1);
    assert_eq!(count(Function::PreStoreVersionSwap), 3);
    assert_eq!(count(Function::PostStoreVersionLeaderReplication), 3);
    assert_eq!(count(Function::PostEndOfPushJob), 1);
    assert_eq!(asked.last(), Some(&Function::PostEndOfPushJob));
}

#[tokio::test]
async fn h3_a_hook_is_told_everything_about_the_push_and_the_regions() {
    let world = World::serving(true).await;
    // Its own configuration: the published table, with the store's overrides key by key, and no other hook's.
    let table = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
    };
    let published =
        BTreeMap::from([("x".to_owned(), table(&[("p", "1"), ("q", "1")])), ("y".to_owned(), table(&[("p", "9")]))]);
    world.configure(&["x"], published).await;
    let set = BTreeMap::from([("x.q".to_owned(), "2".to_owned())]);
    world.operations().set_overrides("s", "ada", set, Default::default()).await.unwrap();
    world.operations().mark_region("c", false, "eve", "power").await.unwrap();
    let request =
        StartPush { attributes: BTreeMap::from([("commit".to_owned(), "abc".to_owned())]), ..World::request("p", "s") };
    let version = world.operations().start_push(request).await.unwrap().push.version;
    world.build("p", version).await;
    world.ended("p").await;
    let asked = world.hook.asked.lock().clone();
    let context = asked
        .iter()
        .find(|context| context.function == Function::PreStoreVersionSwap && context.region.as_deref() == Some("b"))
        .unwrap();
    assert_eq!(context.push.as_deref(), Some("p"));
    assert_eq!(context.pushed_by.as_deref(), Some("ada"));
    assert_eq!(context.attributes["commit"], "abc");
    assert_eq!((context.store.as_str(), context.version, context.previous_version), ("s", Some(2), Some(1)));
    assert_eq!(context.regions.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let region = &context.regions["b"];
    assert!(region.available && region.reached_at.contains_key("ingested") && region.job_status == "COMPLETED");
    assert!(region.gates_opened_at.contains_key("pre-creation"));
    assert_eq!(region.serving, Some(1));
    assert_eq!(region.statistics.as_ref().unwrap().records, 10);
    assert_eq!(context.statistics.as_ref().unwrap().bytes, 1_000);
    assert_eq!((context.attempt, context.memo.clone()), (1, None));
    assert!(context.now.0 > 0 && context.fencing_token > 0 && !context.idempotency_key.is_empty());
    assert_eq!(context.config, table(&[("p", "1"), ("q", "2")]));
    let left_out = &context.regions["c"];
    assert!(!left_out.available);
    assert!(left_out.unavailable_reason.as_ref().unwrap().contains("power"));
    // Each status has the time at which it was reached, by the store's clock.
    let begun = tidegate_state::testing::START;
    assert!(region.reached_at.values().chain(region.gates_opened_at.values()).all(|at| *at >= begun));
    // Of a region that served nothing there is no previous version: the first push of another store.
    world.create_store("t").await;
    world.push("q", "t").await;
    world.ended("q").await;
    let asked = world.hook.asked.lock().clone();
    let mut first =
        asked.iter().filter(|context| context.store == "t" && context.function == Function::PreStoreVersionSwap);
    assert!(
        first.all(|context| context.previous_version.is_none() && context.this_region().unwrap().serving.is_none())
    );
}

#[tokio::test]
async fn h1_without_hooks_no_call_is_made_and_none_is_recorded() {
    let world = World::serving(false).await;
    world.push("p", "s").await;
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Completed);
    assert!(world.hook.asked.lock().is_empty());
    let search = RecordSearch::by("store").prefix(tidegate_state::IndexKey::new().text("s")).limit(10);
    let records = world.state().records::<tidegate_lifecycle::CallRecord>(search).await.unwrap();
    assert!(records.items.is_empty());
    let mut registry = prometheus_client::registry::Registry::default();
    world.lifecycle().metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let moved: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("hook=") && !line.ends_with(" 0") && !line.ends_with(" 0.0"))
        .collect();
    assert!(moved.is_empty(), "{moved:?}");
}

#[tokio::test]
async fn h16_a_new_compatible_schema_is_registered_if_its_hooks_let_it() {
    let world = World::serving(true).await;
    world.hook.say(|context| match context.function {
        Function::PreSchemaRegistration => Verdict::Abort,
        _ => Verdict::Proceed,
    });
    world.operations().start_push(World::request("p", "s")).await.unwrap();
    world.until("p", |push| push.phase() == Some(&Phase::Build)).await;
    world.operations().register_schema("p", schema(&["price"])).await.unwrap();
    world.ended("p").await;
    let store = Ref::<Store>::root("s").unwrap();
    let known = |world: &World| world.state().snapshot().children::<RegisteredSchema>(&store).count();
    assert_eq!(world.status("p"), PushStatus::Aborted);
    assert_eq!(known(&world), 1);

    world.hook.say(|_| Verdict::Proceed);
    world.hook.asked.lock().clear();
    let version = world.operations().start_push(World::request("q", "s")).await.unwrap().push.version;
    world.until("q", |push| push.phase() == Some(&Phase::Build)).await;
    world.operations().register_schema("q", schema(&["price"])).await.unwrap();
    world.until("q", |push| push.phase() == Some(&Phase::Upload)).await;
    world.operations().complete_push("q", manifest(version, schema(&["price"])), "sha".into()).await.unwrap();
    world.ended("q").await;
    assert_eq!((world.status("q"), known(&world)), (PushStatus::Completed, 2));
    let told = world.hook.asked.lock().clone();
    let told = told.iter().find(|context| context.function == Function::PostSchemaRegistration).unwrap();
    assert!(told.schema.as_ref().unwrap().to_string().contains("price"));
    assert_eq!(told.earlier_schemas.len(), 1);
}

#[tokio::test]
async fn h16_a_schema_is_registered_directly_only_if_its_hooks_let_it() {
    let world = World::serving(true).await;
    let store = Ref::<Store>::root("s").unwrap();
    let known = |world: &World| world.state().snapshot().children::<RegisteredSchema>(&store).count();
    let add = |further: &'static [&'static str]| world.operations().add_schema("s", schema(further), "eve", LIMIT);
    world.hook.say(|_| Verdict::Abort);
    let text = World::refusal(add(&["price"]).await);
    assert!(text.contains("x said Abort: 3 of 2"), "{text}");
    assert_eq!(known(&world), 1);

    world.hook.say(|_| Verdict::Proceed);
    world.hook.asked.lock().clear();
    let (number, registered) = add(&["price"]).await.unwrap();
    assert_eq!((number, registered.registered_by.as_str(), registered.push), (2, "eve", None));
    // Again, and twice at once: it is the same one, and nobody is asked anew.
    let (left, right) = tokio::join!(add(&["price"]), add(&["price"]));
    assert_eq!((left.unwrap().0, right.unwrap().0, known(&world)), (2, 2, 2));
    let registrations =
        |snapshot: &tidegate_state::Snapshot| snapshot.all::<tidegate_rollout::entities::SchemaRegistration>().count();
    world.until_state("everyone was told", |snapshot| registrations(snapshot) == 0).await;
    let asked = world.hook.asked.lock().clone();
    let functions: Vec<Function> = asked.iter().map(|context| context.function).collect();
    assert_eq!(functions, [Function::PreSchemaRegistration, Function::PostSchemaRegistration]);
    let told = &asked[1];
    assert!(told.schema.as_ref().unwrap().to_string().contains("price") && told.push.is_none());
    assert_eq!((told.earlier_schemas.len(), told.pushed_by.as_deref()), (1, Some("eve")));
    // What does not fit is refused before anyone is asked.
    let text = World::refusal(add(&["weight"]).await);
    assert!(text.contains("`price`"), "{text}");
    assert_eq!(world.hook.asked.lock().len(), 2);
}

#[tokio::test]
async fn h17_d5_a_schema_that_cant_be_registered_ends_the_push_naming_the_difference() {
    let world = World::serving(true).await;
    let retyped =
        Schema { fields: vec![Field::required("key", FieldType::STRING), Field::nullable("n", FieldType::LONG)] };
    let store = Ref::<Store>::root("s").unwrap();
    // Auto-registration is off: not even a compatible one.
    world.operations().update_store("s", "ada", |store| store.auto_register_schema = false).await.unwrap();
    world.operations().start_push(World::request("p", "s")).await.unwrap();
    world.until("p", |push| push.phase() == Some(&Phase::Build)).await;
    let push = world.operations().register_schema("p", retyped).await.unwrap();
    let end = push.end().unwrap();
    assert_eq!((end.status, end.by), (PushStatus::Error, Some(EndedBy::Input)));
    assert!(end.reason.contains("field `n` (long) is new"), "{}", end.reason);
    // On again: a field that may not be null can't be added.
    world.operations().update_store("s", "ada", |store| store.auto_register_schema = true).await.unwrap();
    world.operations().start_push(World::request("q", "s")).await.unwrap();
    world.until("q", |push| push.phase() == Some(&Phase::Build)).await;
    let required =
        Schema { fields: vec![Field::required("key", FieldType::STRING), Field::required("n", FieldType::LONG)] };
    let push = world.operations().register_schema("q", required).await.unwrap();
    assert!(push.end().unwrap().reason.contains("may not be null"), "{:?}", push.end());
    assert_eq!(world.state().snapshot().children::<RegisteredSchema>(&store).count(), 1);
    // H26: both have ended, and everyone was told so once.
    world.ended("p").await;
    world.ended("q").await;
    let asked = world.hook.asked.lock().clone();
    assert!(asked.iter().all(|context| context.function != Function::PreSchemaRegistration));
    for push in ["p", "q"] {
        let told = asked
            .iter()
            .filter(|context| context.function == Function::PostEndOfPushJob && context.push.as_deref() == Some(push));
        let told: Vec<_> = told.map(|context| (context.push_status.as_str(), context.ended_by.as_deref())).collect();
        assert_eq!(told, [("ERROR", Some("input"))]);
    }
}

#[tokio::test]
async fn c4_two_pushes_at_once() {
    let world = World::with_servers(2, true, Duration::from_secs(86_400)).await;
    world.create_store("t").await;
    world.hook.say(waits_at(Function::PreEndOfPushJob, ""));
    let first = world.operations().start_push(World::request("p", "s")).await.unwrap();
    assert!(first.created);
    // Another id: refused, naming the push, its state, and what the other settings would do.
    let refused = world.operations().start_push(World::request("q", "s")).await;
    let text = World::refusal(refused);
    for part in ["push p", "STARTED", "queue", "supersede"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // Its own id: the same push and version.
    let again = world.operations().start_push(World::request("p", "s")).await.unwrap();
    assert_eq!((again.created, again.push.version), (false, first.push.version));
    // Its id for another store: refused naming the store.
    let text = World::refusal(world.operations().start_push(World::request("p", "t")).await);
    assert!(text.contains("\"s\""), "{text}");
    // Two new ids at two servers at the same instant: exactly one wins. One new id at both: one push, one version.
    let (left, right) = tokio::join!(
        world.operations_of(0).start_push(World::request("left", "t")),
        world.operations_of(1).start_push(World::request("right", "t")),
    );
    assert_eq!(usize::from(left.is_ok()) + usize::from(right.is_ok()), 1);
    world.create_store("u").await;
    let (left, right) = tokio::join!(
        world.operations_of(0).start_push(World::request("both", "u")),
        world.operations_of(1).start_push(World::request("both", "u")),
    );
    let (left, right) = (left.unwrap(), right.unwrap());
    assert_eq!(left.push.version, right.push.version);
    assert_eq!(usize::from(left.created) + usize::from(right.created), 1);
    // Other input under the same id is refused naming both digests (D10).
    let with = |digest: &str| StartPush { input_digest: Some(digest.into()), ..World::request("d", "v") };
    world.create_store("v").await;
    world.operations().start_push(with("one")).await.unwrap();
    let text = World::refusal(world.operations().start_push(with("two")).await);
    assert!(text.contains("one") && text.contains("two"), "{text}");
}

#[tokio::test]
async fn f14_a_kill_after_the_end_changes_nothing() {
    let world = World::serving(true).await;
    let before = world.state().snapshot();
    let text = World::refusal(world.operations().kill_push("first", "ada", "too late").await);
    assert!(text.contains("already ended as COMPLETED"), "{text}");
    let store = Ref::<Store>::root("s").unwrap().child::<Push>("first").unwrap();
    assert_eq!(world.state().snapshot().changed_at(store.path()), before.changed_at(store.path()));
}

#[tokio::test]
async fn f15_f16_a_kill_reads_killed_at_once_and_uploaded_parts_go_after_their_grace() {
    let world = World::serving(true).await;
    world.operations().start_push(World::request("p", "s")).await.unwrap();
    let killed = world.operations().kill_push("p", "ada", "wrong file").await.unwrap();
    assert_eq!(killed.status(), PushStatus::Killed);
    // The client learns it with its next heartbeat.
    let heard = world.operations().heartbeat_push("p", BuildProgress::default()).await.unwrap();
    let end = heard.end().unwrap().clone();
    assert_eq!((end.status, end.by), (PushStatus::Killed, Some(EndedBy::Operator)));
    assert!(end.reason.contains("wrong file"));
    world.ended("p").await;
    assert!(world.removals.0.lock().is_empty());
    let entry = Ref::<Garbage>::root(Garbage::upload_entry("p")).unwrap();
    world.cluster.advance(Duration::from_secs(3_600));
    world.until_state("the upload is gone", |snapshot| !snapshot.contains(entry.path())).await;
    assert_eq!(*world.removals.0.lock(), ["upload of p"]);
    let told: Vec<Function> = world.hook.asked.lock().iter().map(|context| context.function).collect();
    assert_eq!(told.iter().filter(|function| **function == Function::PostEndOfPushJob).count(), 1);
}

#[tokio::test]
async fn f18_a_push_to_no_region_is_refused() {
    let world = World::serving(false).await;
    for region in ["a", "b", "c"] {
        world.operations().mark_region(region, false, "eve", "power").await.unwrap();
    }
    let text = World::refusal(world.operations().start_push(World::request("p", "s")).await);
    assert!(text.contains("power"), "{text}");
    assert!(World::push_value(&world.state().snapshot(), "p").is_none());
    world.operations().mark_region("b", true, "eve", "").await.unwrap();
    world.push("p", "s").await;
    world.ended("p").await;
    world.serves("s", &[Some(1), Some(2), Some(1)]).await;
    world.operations().mark_region("a", true, "eve", "").await.unwrap();
    world.serves("s", &[Some(2), Some(2), Some(1)]).await;
}

#[tokio::test]
async fn b8_an_operator_rolls_back_all_regions_at_once() {
    let world = World::serving(false).await;
    world.push("p", "s").await;
    world.ended("p").await;
    let reasonless = World::refusal(world.operations().roll_back_store("s", None, None, "ada", " ").await);
    assert!(reasonless.contains("reason"), "{reasonless}");
    world.serves("s", &[Some(2), Some(2), Some(2)]).await;
    let to = world.operations().roll_back_store("s", None, None, "ada", "prices are off").await.unwrap();
    assert_eq!(to, BTreeMap::from(["a", "b", "c"].map(|region| (region.to_owned(), 1))));
    world.serves("s", &THREE).await;
    let version = world.version("s", 2);
    assert_eq!(version.status, VersionStatus::RolledBack);
    let back = version.rolled_back.unwrap();
    assert_eq!((back.by.as_str(), back.reason.as_str()), ("ada", "prices are off"));
    assert_eq!(world.status("p"), PushStatus::Completed, "the push stays as it ended");
    let kept = rollbacks(&world).await;
    for region in ["a", "b", "c"] {
        assert_eq!(world.metrics.mismatches("s", region), 0, "{region} was told to go back");
    }
    assert_eq!(kept.len(), 3, "one for each region: {kept:?}");
    assert!(kept.iter().all(|action| action.by == "ada" && action.reason == "prices are off"));
}

#[tokio::test]
async fn b9_an_operator_rolls_back_one_region_after_the_other() {
    let world = World::serving(false).await;
    world.push("p", "s").await;
    world.ended("p").await;
    let (two, one) = (Some(2), Some(1));
    for (region, serving, expected) in [
        ("a", [one, two, two], VersionStatus::PartiallyOnline),
        ("b", [one, one, two], VersionStatus::PartiallyOnline),
        ("c", [one, one, one], VersionStatus::RolledBack),
    ] {
        let to = world.operations().roll_back_store("s", Some(region), None, "ada", "prices are off").await.unwrap();
        assert_eq!(to, BTreeMap::from([(region.to_owned(), 1)]));
        world.serves("s", &serving).await;
        let version = world.version("s", 2);
        assert_eq!(version.status, expected, "after {region}");
        assert_eq!(version.regions[region].status, VersionStatus::RolledBack, "{region}");
    }
    assert_eq!(world.status("p"), PushStatus::Completed);
    let kept = rollbacks(&world).await;
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert!(kept.iter().all(|action| action.by == "ada" && action.reason == "prices are off"));
}

/// A world whose regions all serve version 3 of `s`, and hold version 2 beside it.
async fn serving_the_third() -> World {
    let world = World::serving(false).await;
    for push in ["p", "q"] {
        world.push(push, "s").await;
        world.ended(push).await;
    }
    world
}

#[tokio::test]
async fn b9_what_is_served_in_some_regions_only_is_taken_back_there_and_nowhere_else() {
    let world = serving_the_third().await;
    let (two, three) = (Some(2), Some(3));
    world.operations().roll_back_store("s", Some("a"), None, "ada", "not in a").await.unwrap();
    world.serves("s", &[two, three, three]).await;
    let to = world.operations().roll_back_store("s", None, None, "ada", "nor elsewhere").await.unwrap();
    assert_eq!(to, BTreeMap::from(["b", "c"].map(|region| (region.to_owned(), 2))));
    world.serves("s", &[two, two, two]).await;
    assert_eq!(world.version("s", 2).status, VersionStatus::Online, "nothing was taken back that was good");
}

#[tokio::test]
async fn b8_a_second_rollback_is_refused_while_the_first_goes_on() {
    let world = serving_the_third().await;
    let operations = world.operations();
    let back = |to: Option<u64>| operations.roll_back_store("s", None, to, "ada", "prices are off");
    let (first, second) = tokio::join!(back(None), back(None));
    let text = World::refusal(second);
    assert_eq!(first.unwrap().into_values().collect::<Vec<_>>(), [2, 2, 2]);
    assert!(text.contains("is told to serve version 2 and serves version 3 still"), "{text}");
    world.serves("s", &[Some(2), Some(2), Some(2)]).await;
}

#[tokio::test]
async fn b8_an_order_to_another_version_is_no_second_rollback() {
    let world = serving_the_third().await;
    let operations = world.operations();
    let back = |to: Option<u64>| operations.roll_back_store("s", None, to, "ada", "prices are off");
    let (first, further) = tokio::join!(back(None), back(Some(1)));
    assert_eq!(first.unwrap().into_values().collect::<Vec<_>>(), [2, 2, 2]);
    // One before the last is not kept, which is what it is refused for.
    let text = World::refusal(further);
    assert!(text.contains("no region serves something newer than version 1 and still holds it"), "{text}");
    world.serves("s", &[Some(2), Some(2), Some(2)]).await;
}

/// Every rollback of `s` that is on record.
async fn rollbacks(world: &World) -> Vec<OperatorAction> {
    let search = RecordSearch::by("store").prefix(tidegate_state::IndexKey::new().text("s")).limit(10);
    let kept = world.state().records::<OperatorAction>(search).await.unwrap();
    let kept = kept.items.into_iter().map(|stored| stored.value.unwrap());
    kept.filter(|action| action.what == "rollback to 1").collect()
}

#[tokio::test]
async fn b10_what_has_no_way_back_goes_on_serving() {
    let world = World::serving(false).await;
    let before = world.state().snapshot().revision();
    let text = World::refusal(world.operations().roll_back_store("s", None, None, "ada", "why not").await);
    assert!(text.contains("no region holds an earlier version"), "{text}");
    assert_eq!(World::serving_now(&world.state().snapshot(), "s"), THREE);
    assert_eq!(world.state().snapshot().revision(), before, "a refusal leaves no trace");
}

#[tokio::test]
async fn b11_what_was_rolled_back_is_never_a_target_again() {
    let world = World::serving(true).await;
    world.push("p", "s").await;
    world.ended("p").await;
    let ended = World::push_value(&world.state().snapshot(), "p").unwrap();
    world.operations().roll_back_store("s", None, None, "ada", "bad").await.unwrap();
    world.serves("s", &THREE).await;
    // Asked for by hand, everywhere or in one region: refused, naming the way that there is.
    for region in [None, Some("b")] {
        let text = World::refusal(world.operations().roll_back_store("s", region, Some(2), "ada", "no, good").await);
        assert!(text.contains("push s --from-version 2"), "{text}");
    }
    // The same id again is the same push, ended as it ended, and nothing moves.
    world.hook.asked.lock().clear();
    let again = world.operations().start_push(World::request("p", "s")).await.unwrap();
    assert_eq!((again.created, &again.push), (false, &ended));
    assert!(world.hook.asked.lock().is_empty());
    assert_eq!(World::serving_now(&world.state().snapshot(), "s"), THREE);
    // A new one is accepted at once.
    let accepted = world.operations().start_push(World::request("q", "s")).await.unwrap();
    assert_eq!((accepted.created, accepted.push.version), (true, 3));
    world.build("q", 3).await;
    world.ended("q").await;
    world.serves("s", &[Some(3), Some(3), Some(3)]).await;
}

#[tokio::test]
async fn b19_an_earlier_versions_data_is_released_as_a_new_version() {
    let world = World::serving(true).await;
    world.hook.say(|context| match (context.function, context.version) {
        (Function::PreStoreVersionCreation, Some(2 | 3)) => Verdict::Abort,
        _ => Verdict::Proceed,
    });
    world.push("p", "s").await;
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Aborted);
    let from = |id: &str| StartPush { from_version: Some(2), ..World::request(id, "s") };
    // Every gate is asked: stopped again.
    world.operations().start_push(from("q")).await.unwrap();
    world.ended("q").await;
    assert_eq!(world.status("q"), PushStatus::Aborted);
    assert_eq!(world.version("s", 3).artifact().unwrap().0, "artifact-2");
    // With an override of the gate that stopped it, which is on record.
    let overrides = ["a", "b", "c"].map(|region| (format!("pre-creation@{region}"), "the drop is expected".to_owned()));
    let request = StartPush { overrides: overrides.into(), ..from("r") };
    world.operations().start_push(request).await.unwrap();
    world.ended("r").await;
    assert_eq!(world.status("r"), PushStatus::Completed);
    world.serves("s", &[Some(4), Some(4), Some(4)]).await;
    let push = World::push_value(&world.state().snapshot(), "r").unwrap();
    assert_eq!(push.overrides["pre-creation@b"].reason, "the drop is expected");
    // What was never complete can't be released.
    let request = StartPush { from_version: Some(99), ..World::request("t", "s") };
    let text = World::refusal(world.operations().start_push(request).await);
    assert!(text.contains("version 99"), "{text}");
}

#[tokio::test]
async fn b14_b18_opening_a_gate_by_hand_is_refused_without_data_reason_or_push() {
    let world = World::serving(true).await;
    world.hold.lock().slow.insert("b".into());
    world.hook.say(waits_at(Function::PreStoreVersionSwap, "b"));
    world.push("p", "s").await;
    world
        .until_state("a and c swap", |snapshot| World::serving_now(snapshot, "s") == [Some(2), Some(1), Some(2)])
        .await;
    let operations = world.operations();
    let proceed = |reason: &'static str| operations.proceed_gate("p", "swap", Some("b"), "ada", reason);
    let text = World::refusal(proceed("I know").await);
    assert!(text.contains("0 of the 2 nodes"), "{text}");
    world.hold.lock().slow.clear();
    world.nudge().await;
    world.until("p", |push| push.regions["b"].state.word() == "ingested").await;
    assert!(matches!(proceed("").await, Err(OperationError::ReasonMissing)));
    let text = World::refusal(operations.proceed_gate("p", "swap", None, "ada", "I know").await);
    assert!(text.contains("name the region"), "{text}");
    let text = World::refusal(operations.proceed_gate("p", "post-end", None, "ada", "I know").await);
    assert!(text.contains("pre-swap"), "{text}");
    operations.freeze("f", FreezeScope::Region("b".into()), "eve", "holidays").await.unwrap();
    proceed("I know").await.unwrap();
    world.ended("p").await;
    assert_eq!(world.status("p"), PushStatus::Completed);
    let push = World::push_value(&world.state().snapshot(), "p").unwrap();
    let over = &push.overrides["pre-swap@b"];
    assert_eq!((over.by.as_str(), over.reason.as_str()), ("ada", "I know"));
    let text = World::refusal(proceed("again").await);
    assert!(text.contains("already ended as COMPLETED"), "{text}");
}

#[tokio::test]
async fn c5_supersede_ends_the_running_push_and_the_new_one_follows() {
    let world = World::serving(true).await;
    world.operations().update_store("s", "ada", |store| store.on_new_push = OnNewPush::Supersede).await.unwrap();
    world.hook.say(waits_at(Function::PreStoreVersionSwap, "b"));
    world.push("p", "s").await;
    world.serves("s", &[Some(2), Some(1), Some(2)]).await;
    world.operations().start_push(World::request("q", "s")).await.unwrap();
    world.ended("p").await;
    let push = World::push_value(&world.state().snapshot(), "p").unwrap();
    assert_eq!((push.status(), push.end().unwrap().by), (PushStatus::Killed, Some(EndedBy::Superseded)));
    world.until("q", |push| push.status() == PushStatus::Started).await;
    assert_eq!(World::serving_now(&world.state().snapshot(), "s"), [Some(2), Some(1), Some(2)]);
    // It superseded one that had begun to swap, so it runs to its end: the next one waits (C16).
    world.build("q", 3).await;
    let third = world.operations().start_push(World::request("r", "s")).await.unwrap();
    assert_eq!(third.push.status(), PushStatus::Queued);
    world.hook.say(|_| Verdict::Proceed);
    world.cluster.advance(Duration::from_secs(60));
    world.ended("q").await;
    assert_eq!(world.status("q"), PushStatus::Completed);
    world.build("r", 4).await;
    world.ended("r").await;
    world.serves("s", &[Some(4), Some(4), Some(4)]).await;
}

#[tokio::test]
async fn r14_a_deleted_store_is_let_go_everywhere_and_its_name_is_free() {
    let world = World::serving(false).await;
    world.operations().start_push(World::request("p", "s")).await.unwrap();
    let text = World::refusal(world.operations().delete_store("s", "ada", "").await);
    assert!(text.contains("push p"), "{text}");
    world.operations().kill_push("p", "ada", "").await.unwrap();
    world.operations().delete_store("s", "ada", "unused").await.unwrap();
    let snapshot = world.state().snapshot();
    assert_eq!(snapshot.all::<tidegate_rollout::entities::Assignment>().count(), 0);
    let entry = Ref::<Garbage>::root(Garbage::artifact_entry("artifact-1")).unwrap();
    world.cluster.advance(Duration::from_millis(3_600_000 - 1));
    world.nudge().await;
    assert!(world.state().snapshot().contains(entry.path()));
    world.cluster.advance(Duration::from_millis(1));
    world.until_state("the artifact is gone", |snapshot| !snapshot.contains(entry.path())).await;
    assert!(world.removals.0.lock().contains(&"artifact-1".to_owned()));
    world.create_store("s").await;
    world.push("first", "s").await;
    world.ended("first").await;
    world.serves("s", &THREE).await;
}

#[tokio::test]
async fn r17_what_is_referred_to_again_is_no_garbage() {
    let world = World::serving(false).await;
    world.push("p", "s").await;
    world.ended("p").await;
    world.operations().roll_back_store("s", None, None, "ada", "bad").await.unwrap();
    // Version 2 has reached its own retention: it is let go, and its grace time begins.
    world.cluster.advance(Duration::from_secs(86_400) + Duration::from_millis(1));
    let entry = Ref::<Garbage>::root(Garbage::artifact_entry("artifact-2")).unwrap();
    world.until_state("version 2 is let go", |snapshot| snapshot.contains(entry.path())).await;
    // The very same data is pushed again before it is removed.
    world.operations().start_push(World::request("q", "s")).await.unwrap();
    world.until("q", |push| push.phase() == Some(&Phase::Build)).await;
    world.operations().register_schema("q", schema(&[])).await.unwrap();
    world.operations().complete_push("q", manifest(2, schema(&[])), "sha-2".into()).await.unwrap();
    assert!(!world.state().snapshot().contains(entry.path()));
    world.ended("q").await;
    world.cluster.advance(Duration::from_secs(86_400));
    assert!(world.removals.0.lock().iter().all(|removed| removed != "artifact-2"));
}

#[tokio::test]
async fn r9_d1_an_empty_version_needs_the_stores_or_the_pushs_leave() {
    let world = World::serving(false).await;
    let empty = |version: u64| {
        let mut manifest = manifest(version, schema(&[]));
        manifest.record_count = 0;
        manifest.parts.iter_mut().for_each(|part| part.rows = 0);
        manifest
    };
    world.operations().start_push(World::request("p", "s")).await.unwrap();
    world.until("p", |push| push.phase() == Some(&Phase::Build)).await;
    world.operations().register_schema("p", schema(&[])).await.unwrap();
    let text = World::refusal(world.operations().complete_push("p", empty(2), "sha".into()).await);
    assert!(text.contains("no records"), "{text}");
    world.operations().fail_push("p", EndedBy::Input, "the input is empty").await.unwrap();
    assert_eq!(world.status("p"), PushStatus::Error);
    world.operations().update_store("s", "ada", |store| store.allow_empty = true).await.unwrap();
    world.operations().start_push(World::request("q", "s")).await.unwrap();
    world.until("q", |push| push.phase() == Some(&Phase::Build)).await;
    world.operations().register_schema("q", schema(&[])).await.unwrap();
    world.operations().complete_push("q", empty(3), "sha".into()).await.unwrap();
    world.ended("q").await;
    assert_eq!(world.status("q"), PushStatus::Completed);
    world.push("r", "s").await;
    world.ended("r").await;
}

#[tokio::test]
async fn f22_freshness_is_counted_per_region_and_a_push_that_is_overdue_is_an_alarm() {
    use tidegate_rollout::freshness::freshness;
    let world = World::serving(false).await;
    world
        .operations()
        .update_store("s", "ada", |store| {
            store.freshness.expected_every_ms = Some(86_400_000);
            store.freshness.max_age_ms = Some(172_800_000);
        })
        .await
        .unwrap();
    let completed = World::push_value(&world.state().snapshot(), "first").unwrap().end().unwrap().at;
    let day = Duration::from_secs(86_400);
    let at = |after: Duration| freshness(&world.state().snapshot(), completed.after(after)).remove(0);
    assert!(!at(day).overdue);
    assert!(at(day + Duration::from_millis(1)).overdue);
    // A and B take the next one, C is left out: its age goes on.
    world.operations().mark_region("c", false, "eve", "power").await.unwrap();
    world.cluster.advance(day);
    world.push("p", "s").await;
    world.ended("p").await;
    assert!(!at(day + Duration::from_millis(1)).overdue);
    assert_eq!(at(day * 2 + Duration::from_secs(1)).too_old, ["c"]);
}
