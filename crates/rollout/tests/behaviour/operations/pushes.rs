//! Starting a push, beside others, and killing it.

use std::time::Duration;

use tidegate_lifecycle::{Function, Verdict};
use tidegate_rollout::entities::{BuildProgress, EndedBy, Garbage, OnNewPush, Phase, Push, PushStatus, Store};
use tidegate_rollout::operations::StartPush;
use tidegate_state::Ref;

use super::waits_at;
use crate::world::{World, manifest, schema};

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
