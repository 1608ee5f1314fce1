//! What dies, is damaged, or is missing.

use std::time::Duration;

use tidegate_client::api::manifest::Part;
use tidegate_client::api::{
    EndedBy, FailRequest, InputFault, OnNewPush, PushPhase, PushStart, PushStatus, StorePatch, code,
};
use tidegate_client::{Error, PushEvent};

use crate::world::{LIMIT, World, manifest_without_last};

/// Waits until a region serves a version.
pub(crate) async fn until_served(world: &World, region: &str, version: u64) {
    let waited = tokio::time::timeout(LIMIT, async {
        let mut events = world.client.watch(Some(&format!("/regions/{region}")), None);
        loop {
            if world.serving().await.get(region) == Some(&version) {
                return;
            }
            events.next().await.unwrap();
        }
    });
    waited.await.expect("the region does not serve it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_an_incomplete_upload_is_refused_naming_the_parts_and_goes_on() {
    let world = World::start().await;
    world.store().await;
    let built = world.upload("p1", &world.rows("one.csv", 40, "one-")).await;
    let parts = &built.manifest.parts;

    // Nothing has arrived: all are named.
    let error = world.client.complete_push("p1", &built.manifest).await.unwrap_err();
    assert_eq!(error.code(), Some(code::PARTS_MISSING));
    let named = &error.body().unwrap().subjects;
    assert_eq!(named, &parts.iter().map(|part| part.name.clone()).collect::<Vec<_>>());

    // A part with other bytes than announced is never kept.
    let first = &parts[0];
    let other = world.file("other", "these are not the bytes");
    let refused = world.client.put_part("p1", &first.name, &first.sha256, &other).await;
    assert_eq!(refused.unwrap_err().code(), Some(code::PART_DAMAGED));
    assert!(world.client.parts("p1").await.unwrap().parts.is_empty());

    // One of two has arrived: the other is named.
    let file = built.folder.join(&first.name);
    world.client.put_part("p1", &first.name, &first.sha256, &file).await.unwrap();
    let error = world.client.complete_push("p1", &built.manifest).await.unwrap_err();
    assert_eq!(error.body().unwrap().subjects, [parts[1].name.clone()]);

    // A manifest that leaves it out is refused too.
    let without = manifest_without_last(&built.manifest);
    let error = world.client.complete_push("p1", &without).await.unwrap_err();
    assert_eq!(error.code(), Some(code::MANIFEST_REFUSED));

    // So is one with more parts than the store has partitions, before anything is done for each of them.
    let mut huge = built.manifest.clone();
    huge.partition_count = 95_000;
    huge.parts = (0..95_000).map(|n| Part { name: format!("part-{n}"), ..parts[0].clone() }).collect();
    let error = world.client.complete_push("p1", &huge).await.unwrap_err();
    assert_eq!(error.code(), Some(code::MANIFEST_REFUSED));
    assert!(error.to_string().contains("95000 parts for 95000 partitions, and the store has 2"), "{error}");

    world.put_all("p1", &built).await;
    world.client.complete_push("p1", &built.manifest).await.unwrap();
    let state = world.until("p1", |state| state.status.is_terminal()).await;
    assert_eq!(state.status, PushStatus::Completed);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f15_a_kill_during_the_upload_is_learnt_with_the_next_part() {
    let world = World::start().await;
    world.store().await;
    let built = world.upload("p1", &world.rows("one.csv", 40, "one-")).await;
    let first = &built.manifest.parts[0];
    let file = built.folder.join(&first.name);
    world.client.put_part("p1", &first.name, &first.sha256, &file).await.unwrap();

    let killed = world.client.kill_push("p1", "wrong file").await.unwrap();
    assert_eq!(killed.status, PushStatus::Killed);
    assert_eq!(killed.ended_by, Some(EndedBy::Operator));

    let second = &built.manifest.parts[1];
    let file = built.folder.join(&second.name);
    let error = world.client.put_part("p1", &second.name, &second.sha256, &file).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Some(code::PUSH_ENDED));
    assert!(error.to_string().contains("wrong file"), "{error}");

    // f14: a late kill changes nothing.
    let error = world.client.kill_push("p1", "again").await.unwrap_err();
    assert_eq!(error.code(), Some(code::PUSH_ENDED));
    assert!(error.to_string().contains("already ended as KILLED"), "{error}");
    let state = world.client.push("p1").await.unwrap().state;
    assert!(state.reason.unwrap().contains("wrong file"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f15_a_client_that_is_at_work_stops_when_its_push_is_killed() {
    let world = World::start().await;
    world.store().await;
    let killer = world.client.clone();
    let path = world.rows("big.csv", 200_000, "a-rather-long-value-");
    let mut killed = None;
    let outcome = world
        .job("p1", &path)
        .run(&world.client, &mut |event: PushEvent| {
            if killed.is_none() && matches!(event, PushEvent::Building { .. }) {
                let killer = killer.clone();
                killed = Some(tokio::spawn(async move { killer.kill_push("p1", "stop").await }));
            }
        })
        .await
        .unwrap();
    killed.expect("the build was seen").await.unwrap().unwrap();
    assert_eq!(outcome.state.status, PushStatus::Killed, "{outcome:#?}");
    assert_eq!(outcome.state.ended_by, Some(EndedBy::Operator));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r8_a_complete_push_needs_no_client() {
    let mut world = World::start().await;
    world.store().await;
    let mut job = world.job("p1", &world.rows("one.csv", 40, "one-"));
    job.options.follow = false;
    let outcome = job.run(&world.client, &mut |_| {}).await.unwrap();
    assert!(outcome.state.phase >= PushPhase::Rollout, "{outcome:?}");
    // The server goes down too, and comes back.
    world.restart().await;
    let state = world.until("p1", |state| state.status.is_terminal()).await;
    assert_eq!(state.status, PushStatus::Completed);
    assert_eq!(world.client.get("s", "k1", Some("b")).await.unwrap().version, 1);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_what_had_arrived_survives_a_restart_of_the_server() {
    let mut world = World::start().await;
    world.store().await;
    let built = world.upload("p1", &world.rows("one.csv", 40, "one-")).await;
    let first = &built.manifest.parts[0];
    let file = built.folder.join(&first.name);
    world.client.put_part("p1", &first.name, &first.sha256, &file).await.unwrap();

    world.restart().await;
    let arrived = world.client.parts("p1").await.unwrap().parts;
    assert_eq!(arrived.len(), 1);
    assert_eq!((&arrived[0].name, &arrived[0].sha256), (&first.name, &first.sha256));

    // The client that comes back sends only what is missing, and it is the same version.
    let mut bytes_before = 0;
    let outcome = world
        .job("p1", &world.folder.path().join("one.csv"))
        .run(&world.client, &mut |event: PushEvent| {
            if let PushEvent::Uploading { bytes_before: before, .. } = event {
                bytes_before = before;
            }
        })
        .await
        .unwrap();
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    assert_eq!(outcome.state.version, Some(1));
    assert_eq!(bytes_before, first.bytes);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_a_client_goes_on_through_a_restart_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = crate::world::options(folder.path());
    let server = tidegate_server::Server::start(options.clone()).await.unwrap();
    // The address stays the same over the restart, as it would in the field.
    options.listen = Some(server.address());
    let client = tidegate_client::Client::new(&server.url()).unwrap();
    let mut world = World { folder, server: Some(server), client };
    world.store().await;
    let job = world.job("p1", &world.rows("one.csv", 100_000, "a-value-"));
    let (sender, mut building) = tokio::sync::mpsc::unbounded_channel();
    let client = world.client.clone();
    let push = tokio::spawn(async move {
        let observer = &mut move |event: PushEvent| {
            if matches!(event, PushEvent::Building { .. }) {
                let _ = sender.send(());
            }
        };
        job.run(&client, observer).await
    });
    building.recv().await.unwrap();
    world.server.take().unwrap().shutdown().await;
    world.server = Some(tidegate_server::Server::start(options).await.unwrap());
    let outcome = tokio::time::timeout(LIMIT, push).await.unwrap().unwrap().unwrap();
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_without_a_server_the_client_says_where_it_looked_and_for_how_long() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = tidegate_client::Client::new(&format!("http://{address}")).unwrap();
    let error = client.with_patience(Duration::from_millis(300)).stores().await.unwrap_err();
    let Error::Unreachable { url, tried_for, .. } = &error else { panic!("{error:?}") };
    assert!(url.contains(&address.to_string()), "{error}");
    assert!(*tried_for >= Duration::from_millis(300), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f11_a_client_that_has_waited_long_enough_says_so_and_the_push_goes_on() {
    let world = World::start().await;
    world.store().await;
    // Another push is before it, whose client never comes.
    let queue = StorePatch { on_new_push: Some(OnNewPush::Queue), ..StorePatch::default() };
    world.client.update_store("s", &queue).await.unwrap();
    let before = PushStart { id: "p0".to_owned(), store: "s".to_owned(), ..PushStart::default() };
    world.client.start_push(&before).await.unwrap();
    let mut job = world.job("p1", &world.rows("one.csv", 40, "one-"));
    // It is how long the first answer may take, too.
    job.options.timeout = Some(Duration::from_secs(3));
    let outcome = job.run(&world.client, &mut |_| {}).await.unwrap();
    assert!(outcome.timed_out, "{outcome:?}");
    assert!(!outcome.state.status.is_terminal(), "{outcome:?}");
    let failure = FailRequest { message: "given up by the test".to_owned(), kind: InputFault::Fault };
    let state = world.client.fail_push("p1", &failure).await.unwrap();
    assert_eq!((state.status, state.ended_by), (PushStatus::Error, Some(EndedBy::Fault)));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f17_a_silent_client_ends_its_push_by_the_limit_and_the_next_one_is_accepted() {
    let world = World::start().await;
    world.store().await;
    let patch = tidegate_client::api::StorePatch {
        limits: Some(tidegate_client::api::LimitsPatch { silence_ms: Some(300), ..Default::default() }),
        ..Default::default()
    };
    world.client.update_store("s", &patch).await.unwrap();
    let start = tidegate_client::api::PushStart { id: "p1".to_owned(), store: "s".to_owned(), ..Default::default() };
    world.client.start_push(&start).await.unwrap();
    let state = world.until("p1", |state| state.status.is_terminal()).await;
    assert_eq!((state.status, state.ended_by), (PushStatus::Error, Some(EndedBy::Limit)));
    let reason = state.reason.unwrap();
    assert!(reason.contains("silent") && reason.contains("0.300 s"), "{reason}");

    let patch = tidegate_client::api::StorePatch {
        limits: Some(tidegate_client::api::LimitsPatch { silence_ms: Some(600_000), ..Default::default() }),
        ..Default::default()
    };
    world.client.update_store("s", &patch).await.unwrap();
    let outcome = world.push("p2", &world.rows("one.csv", 5, "v")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed);
    world.end().await;
}
