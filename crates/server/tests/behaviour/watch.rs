//! Watch streams.

use tidegate_client::api::{WatchEvent, code};

use crate::world::{LIMIT, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_everything_then_each_change_and_resumes() {
    let world = World::start().await;
    let mut watch = world.client.watch(Some("/stores"), None);
    let Some(WatchEvent::Snapshot { epoch, revision, entities }) = watch.next().await.unwrap() else {
        panic!("a watch begins with a snapshot")
    };
    assert!(entities.is_empty(), "{entities:?}");

    world.store().await;
    let change = next_change(&mut watch).await;
    let WatchEvent::Change { revision: at, changes, .. } = &change else { panic!("{change:?}") };
    assert!(*at > revision);
    assert_eq!(changes[0].path, "/stores/s");
    assert_eq!(changes[0].document.as_ref().unwrap()["key_columns"][0], "k");

    // From before the change: it comes again. From after it: it does not.
    let mut resumed = world.client.watch(Some("/stores"), Some((epoch.clone(), revision)));
    assert_eq!(next_change(&mut resumed).await, change);
    let mut after = world.client.watch(Some("/stores"), Some((epoch, *at)));
    world.client.delete_store("s").await.unwrap();
    // The store's own cluster hooks may have written something in between.
    loop {
        let WatchEvent::Change { changes, .. } = next_change(&mut after).await else {
            panic!("a deletion is a change")
        };
        if changes.iter().any(|change| change.path == "/stores/s" && change.document.is_none()) {
            break;
        }
    }
    world.end().await;
}

pub(crate) async fn next_change(watch: &mut tidegate_client::Events<WatchEvent>) -> WatchEvent {
    let waited = tokio::time::timeout(LIMIT, async {
        loop {
            match watch.next().await.unwrap().unwrap() {
                change @ WatchEvent::Change { .. } => return change,
                WatchEvent::Heartbeat { .. } => {}
                WatchEvent::Snapshot { .. } => panic!("the watch began anew"),
            }
        }
    });
    waited.await.expect("no change was told")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_the_log_does_not_reach_is_answered_with_410() {
    let world = World::start().await;
    let snapshot = world.server.as_ref().unwrap().state().snapshot();
    let (epoch, head) = (snapshot.epoch().to_string(), snapshot.revision().0);
    let http = reqwest::Client::new();
    for (epoch, revision) in [("0190b0b0-0000-7000-8000-000000000000".to_owned(), 1), (epoch, head + 1_000_000)] {
        let url = format!("{}/v1/watch?epoch={epoch}&revision={revision}", world.url());
        let (status, body) = world.raw(http.get(&url)).await;
        assert_eq!(status, 410, "{body}");
        assert_eq!(body["code"], code::WATCH_GONE);
    }
    // The client begins anew by itself.
    let lost = ("0190b0b0-0000-7000-8000-000000000000".to_owned(), 7);
    let mut watch = world.client.watch(None, Some(lost));
    let first = watch.next().await.unwrap().unwrap();
    assert!(matches!(first, WatchEvent::Snapshot { .. }), "{first:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_have_a_limit_and_give_their_room_back() {
    let world = World::start_with(|options| {
        options.config.server.limits.watches = Some(1);
    })
    .await;
    let http = reqwest::Client::new();
    let url = format!("{}/v1/watch", world.url());
    let first = http.get(&url).send().await.unwrap();
    assert_eq!(first.status(), 200);
    let (status, body) = world.raw(http.get(&url)).await;
    assert_eq!((status, body["code"].as_str()), (503, Some(code::OVERLOADED)));
    assert_eq!(body["retryable"], true);
    drop(first);
    // The room is back once the server has noticed that the reader went away.
    let mut watch = world.client.with_patience(LIMIT).watch(None, None);
    assert!(watch.next().await.unwrap().is_some());
    world.end().await;
}
