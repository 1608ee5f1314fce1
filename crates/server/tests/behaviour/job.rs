//! The main job: a store, pushes, reads.

use tidegate_client::api::{
    AvailabilityRequest, EndedBy, ExecutionStatus, PushStatus, RollbackRequest, VersionStatus, code,
};
use tidegate_client::{Error, PushEvent};

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r1_a_push_reaches_every_region_and_is_read_there() {
    let world = World::start().await;
    world.store().await;
    let error = world.client.get("s", "k1", Some("a")).await.unwrap_err();
    assert_eq!(error.code(), Some(code::NOT_SERVED));

    let mut told = Vec::new();
    let job = world.job("p1", &world.rows("one.csv", 500, "one-"));
    let outcome = job.run(&world.client, &mut |event: PushEvent| told.push(event)).await.unwrap();

    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    assert_eq!(outcome.state.version, Some(1));
    for region in ["a", "b", "c"] {
        let answer = world.client.get("s", "k7", Some(region)).await.unwrap();
        assert_eq!(answer.version, 1);
        assert_eq!(answer.value["v"], "one-7");
        assert_eq!(answer.region.as_deref(), Some(region));
        let keys = vec!["k3".to_owned(), "none".to_owned(), "k499".to_owned()];
        let batch = world.client.get_batch("s", keys, Some(region)).await.unwrap();
        let values: Vec<bool> = batch.values.iter().map(|pair| pair.value.is_some()).collect();
        assert_eq!((batch.version, values), (1, vec![true, false, true]));
    }
    assert!(world.client.find("s", "none", None).await.unwrap().is_none());

    // r11: each step was shown, in order.
    let position = |wanted: fn(&PushEvent) -> bool| told.iter().position(wanted).unwrap();
    let accepted = position(|event| matches!(event, PushEvent::Accepted(_)));
    let built = position(|event| matches!(event, PushEvent::Built { .. }));
    let completed = position(|event| matches!(event, PushEvent::Completed));
    assert!(accepted < built && built < completed, "{told:?}");
    let Some(PushEvent::View(last)) = told.last() else { panic!("{told:?}") };
    assert_eq!(last.state.status, PushStatus::Completed);
    assert_eq!(last.version_status, Some(VersionStatus::Online));
    for region in &last.regions {
        let times = &region.times;
        assert!(times["STARTED"] <= times["COMPLETED"], "{times:?}");
        assert!(times["COMPLETED"] <= times["ONLINE"], "{times:?}");
    }

    let job = world.client.job_status("p1").await.unwrap();
    assert_eq!(job.status, ExecutionStatus::Completed);
    assert_eq!(job.extra_info.len(), 3);
    assert_eq!(job.extra_info_update_timestamp.len(), 3);
    let explained = world.client.explain_push("p1").await.unwrap();
    assert!(explained.summary.contains("COMPLETED"), "{explained:?}");
    // h1: no hook is configured, so none was called.
    assert!(world.client.push_calls("p1").await.unwrap().is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b8_a_store_goes_back_by_an_operators_word_and_forward_again() {
    let world = World::start().await;
    world.store().await;
    world.push("p1", &world.rows("one.csv", 50, "one-")).await;
    world.push("p2", &world.rows("two.csv", 50, "two-")).await;
    assert!(world.serving().await.values().all(|version| *version == 2));

    let request = RollbackRequest { reason: "wrong prices".to_owned(), ..RollbackRequest::default() };
    let mut options = tidegate_client::Options::new(world.url());
    options.user = Some("Ada Lovelace".to_owned());
    let ada = tidegate_client::Client::with_options(options).unwrap();
    let mut watch = world.client.watch(Some("/stores/s/versions"), None);
    watch.next().await.unwrap();
    let told = ada.roll_back_store("s", &request).await.unwrap();
    // Who did it goes with the transaction, to every watch and every hook.
    let change = crate::watch::next_change(&mut watch).await;
    let tidegate_client::api::WatchEvent::Change { attributes, .. } = change else { panic!("{change:?}") };
    assert_eq!(attributes["user"], "Ada Lovelace");
    assert_eq!(told.regions.len(), 3);
    assert!(told.regions.values().all(|version| *version == Some(1)), "{told:?}");
    for region in ["a", "b", "c"] {
        crate::faults::until_served(&world, region, 1).await;
    }
    let versions = world.client.versions("s").await.unwrap();
    assert_eq!(versions[1].status, VersionStatus::RolledBack);
    assert_eq!(world.client.push("p2").await.unwrap().state.status, PushStatus::Completed);

    let outcome = world.push("p3", &world.rows("three.csv", 50, "three-")).await;
    assert_eq!(outcome.state.version, Some(3));
    assert!(world.serving().await.values().all(|version| *version == 3));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f18_a_region_that_is_marked_unavailable_is_left_out() {
    let world = World::start().await;
    world.store().await;
    let mark = |available, reason: &str| AvailabilityRequest { available, reason: reason.to_owned() };
    let region = world.client.mark_region("c", &mark(false, "power")).await.unwrap();
    assert_eq!((region.available, region.reason.as_deref()), (false, Some("power")));

    let outcome = world.push("p1", &world.rows("one.csv", 20, "one-")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed);
    let view = outcome.view.unwrap();
    assert_eq!(view.version_status, Some(VersionStatus::PartiallyOnline));
    let left_out = view.regions.iter().find(|region| region.region == "c");
    assert!(left_out.is_none_or(|region| region.left_out.is_some()), "{view:#?}");
    assert_eq!(world.serving().await.len(), 2);

    // f19: unmarked, it gets what the others serve, without a new push.
    world.client.mark_region("c", &mark(true, "power is back")).await.unwrap();
    crate::faults::until_served(&world, "c", 1).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h26_input_that_can_not_be_built_ends_the_push_with_the_reason() {
    let world = World::start().await;
    world.store().await;
    for (id, content, named) in [
        ("no-key", "a,b\n1,2\n", vec!["k", "a, b"]),
        ("twice", "k,v\nx,one\nx,two\n", vec!["`x`", "row 1", "row 2"]),
        ("short-row", "k,v\nx\n", vec!["short-row.csv", "row 1"]),
        ("empty", "k,v\n", vec!["empty"]),
    ] {
        let outcome = world.push(id, &world.file(&format!("{id}.csv"), content)).await;
        assert_eq!(outcome.state.status, PushStatus::Error, "{id}");
        assert_eq!(outcome.state.ended_by, Some(EndedBy::Input), "{id}");
        let kept = world.client.push(id).await.unwrap().state.reason.unwrap();
        for part in named {
            assert!(kept.contains(part), "{id}: {part:?} is not in {kept:?}");
        }
    }
    // f2: the next push is accepted at once.
    let outcome = world.push("good", &world.rows("good.csv", 5, "v")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_names_nothing_is_told_before_a_push_is_started() {
    let world = World::start().await;
    world.store().await;
    for name in ["missing.csv", "unknown.format"] {
        if name.starts_with("unknown") {
            world.file(name, "x");
        }
        let job = world.job("p", &world.folder.path().join(name));
        let error = job.run(&world.client, &mut |_| {}).await.unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    assert!(world.client.pushes(None, None).await.unwrap().is_empty());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_a_schema_that_does_not_fit_is_refused_naming_field_and_types() {
    let world = World::start().await;
    world.store().await;
    let numbers = world.file("numbers.csv", "k,v\na,1\nb,2\n");
    assert_eq!(world.push("p1", &numbers).await.state.status, PushStatus::Completed);
    let less = world.file("less.csv", "k\na\nb\n");
    let outcome = world.push("p2", &less).await;
    assert_eq!(outcome.state.status, PushStatus::Error, "{outcome:#?}");
    assert_eq!(outcome.state.ended_by, Some(EndedBy::Input));
    let reason = outcome.state.reason.unwrap();
    assert!(reason.contains('v'), "{reason}");
    assert_eq!(world.client.schemas("s").await.unwrap().len(), 1);
    assert!(world.serving().await.values().all(|version| *version == 1));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d5_a_field_does_not_disappear_since_a_schema_without_it_was_registered_once() {
    let world = World::start().await;
    world.store().await;
    let narrow = world.file("narrow.csv", "k,v\na,1\nb,2\n");
    let wide = world.file("wide.csv", "k,v,w\na,1,x\nb,2,y\n");
    world.push("p1", &narrow).await;
    assert_eq!(world.push("p2", &wide).await.state.status, PushStatus::Completed);
    let outcome = world.push("p3", &narrow).await;
    assert_eq!((outcome.state.status, outcome.state.ended_by), (PushStatus::Error, Some(EndedBy::Input)));
    let reason = outcome.state.reason.unwrap();
    assert!(reason.contains("`w`"), "{reason}");
    // What was taken back has no readers.
    let back = RollbackRequest { reason: "wrong".to_owned(), ..RollbackRequest::default() };
    world.client.roll_back_store("s", &back).await.unwrap();
    assert_eq!(world.push("p4", &narrow).await.state.status, PushStatus::Completed);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d10_a_push_id_that_comes_again_is_the_same_push() {
    let world = World::start().await;
    world.store().await;
    let path = world.rows("one.csv", 30, "one-");
    let first = world.push("p1", &path).await;
    let mut sent = 0;
    let again = world
        .job("p1", &path)
        .run(&world.client, &mut |event: PushEvent| {
            if matches!(event, PushEvent::Uploading { .. } | PushEvent::Built { .. }) {
                sent += 1;
            }
        })
        .await
        .unwrap();
    assert_eq!(again.state, first.state);
    assert_eq!(sent, 0, "something was built or sent again");

    let other = world.rows("two.csv", 30, "two-");
    let error = world.job("p1", &other).run(&world.client, &mut |_| {}).await.unwrap_err();
    let tidegate_client::PushError::Server(Error::Refused { body, .. }) = error else { panic!("{error:?}") };
    assert_eq!(body.code, code::PUSH_ID_TAKEN);
    assert_eq!(world.client.versions("s").await.unwrap().len(), 1);
    world.end().await;
}
