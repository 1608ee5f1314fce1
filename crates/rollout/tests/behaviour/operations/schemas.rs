//! Schemas that come with a push, and without one.

use tidegate_api::manifest::{Field, FieldType, Schema};
use tidegate_lifecycle::{Function, Verdict};
use tidegate_rollout::entities::{EndedBy, Phase, PushStatus, RegisteredSchema, Store};
use tidegate_state::Ref;

use crate::world::{LIMIT, World, manifest, schema};

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
