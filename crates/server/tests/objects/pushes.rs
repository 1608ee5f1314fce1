//! Pushes whose artifacts are in a bucket: parts go straight there, and count only once the server has read them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::Method;
use tidegate_client::api::{PartSentRequest, PartUploadRequest, PushPhase, PushStatus, code};
use tidegate_client::{Error, PushEvent};
use tidegate_dataset::artifact::chunk_bytes;
use tidegate_server::config::RegionSection;

use crate::bucket::{Asked, Fault};
use crate::world::World;

fn is_chunk(asked: &Asked) -> bool {
    asked.method == Method::PUT && asked.query.contains("uploadId=")
}

#[tokio::test]
async fn a_push_reaches_every_region_and_its_parts_do_not_pass_through_the_server() {
    // One of the regions shares the source, the others copy.
    let mut shares = RegionSection::new("shares");
    shares.shares_source = true;
    let regions = vec![RegionSection::new("copies"), shares];
    let world = World::start_with(|options| options.config.regions = regions).await;
    let input = world.rows("in.csv", 1_000, 30, 5);
    world.bucket.asked();
    let outcome = world.push("p1", &input).await;
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    let serving = world.client.store("s").await.unwrap().serving;
    assert_eq!(serving.into_iter().collect::<Vec<_>>(), [("copies".to_owned(), 1), ("shares".to_owned(), 1)]);
    for region in ["copies", "shares"] {
        let answer = world.client.get("s", "k17", Some(region)).await.unwrap();
        assert_eq!(answer.version, 1);
    }
    let sent: Vec<Asked> = world.bucket.asked().into_iter().filter(Asked::sends_a_part).collect();
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert!(sent.iter().all(Asked::is_presigned), "{sent:?}");
    // Nothing is left of the way there, on either side.
    assert_eq!(world.left("").await, [] as [String; 0]);
    assert!(!world.folder.path().join("data/artifacts").exists());
    world.end().await;
}

#[tokio::test]
async fn parts_that_are_sent_the_other_way_are_refused_with_what_to_do() {
    let world = World::start().await;
    let built = world.upload("p", &world.rows("in.csv", 50, 5, 1)).await;
    let part = &built.manifest.parts[0];
    let file = built.folder.join(&part.name);
    let error = world.client.put_part("p", &part.name, &part.sha256, &file).await.unwrap_err();
    assert_eq!(error.code(), Some(code::INVALID), "{error}");
    let body = error.body().unwrap();
    assert!(body.countermeasures.contains("/upload"), "{body:?}");
    world.end().await;
}

#[tokio::test]
async fn d6_parts_in_a_bucket_that_are_missing_or_other_are_refused_by_name_and_never_listed() {
    let world = World::start().await;
    let built = world.upload("p", &world.rows("in.csv", 400, 30, 1)).await;
    let (id, parts) = (&built.manifest.artifact_id, &built.manifest.parts);
    let missing = |error: Error, expected: &[&str]| {
        assert_eq!(error.code(), Some(code::PARTS_MISSING), "{error}");
        assert_eq!(error.body().unwrap().subjects, expected);
        error.to_string()
    };
    let complete = || world.client.complete_push("p", &built.manifest);
    missing(complete().await.unwrap_err(), &[&parts[0].name, &parts[1].name]);

    // One is whole; of the other so many bytes come as there should be, but not those.
    world.client.put_part_direct("p", id, &parts[0], &built.folder.join(&parts[0].name)).await.unwrap();
    let mut other = std::fs::read(built.folder.join(&parts[1].name)).unwrap();
    *other.last_mut().unwrap() ^= 1;
    let file = world.folder.path().join("other");
    std::fs::write(&file, other).unwrap();
    world.client.put_part_direct("p", id, &parts[1], &file).await.unwrap();
    let text = missing(complete().await.unwrap_err(), &[&parts[1].name]);
    assert!(text.contains(&parts[1].sha256), "{text}");
    let store = world.bucket.store();
    assert_eq!(store.list().await.unwrap(), [] as [String; 0]);
    assert_eq!(store.has_parts(id, parts).await.unwrap(), [true, false]);
    let known = world.client.parts("p").await.unwrap().parts;
    assert!(known.iter().all(|part| part.name != parts[1].name), "{known:?}");

    world.client.put_part_direct("p", id, &parts[1], &built.folder.join(&parts[1].name)).await.unwrap();
    complete().await.unwrap();
    assert_eq!(store.list().await.unwrap(), std::slice::from_ref(id));
    world.until("p", |state| state.status == PushStatus::Completed).await;
    world.end().await;
}

#[tokio::test]
async fn d9_a_client_that_comes_back_sends_only_what_had_not_arrived() {
    let mut world = World::start().await;
    let input = world.rows("in.csv", 2_000, 30, 9);
    // The first part arrives; at the second the client is cut off.
    let chunks = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&chunks);
    world
        .bucket
        .fail(move |asked| (is_chunk(asked) && seen.fetch_add(1, Ordering::SeqCst) >= 1).then_some(Fault::Silence));
    let mut job = world.job("p", &input);
    job.options.uploads = 1;
    let client = world.client.clone();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let first = tokio::spawn(async move {
        let mut observer = |event: PushEvent| {
            if let PushEvent::Uploading { parts, .. } = event {
                let _ = tell.send(parts);
            }
        };
        let _ = job.run(&client, &mut observer).await;
    });
    while told.recv().await.expect("it uploads") < 1 {}
    first.abort();
    let _ = first.await;
    world.bucket.well();
    // The server is another one by then: what has arrived is known from the bucket alone.
    world.restart().await;
    assert_eq!(world.client.parts("p").await.unwrap().parts.len(), 1);
    world.bucket.asked();
    let outcome = world.push("p", &input).await;
    assert_eq!((outcome.state.status, outcome.state.version), (PushStatus::Completed, Some(1)));
    let sent = world.bucket.asked().into_iter().filter(Asked::sends_a_part).count();
    assert_eq!(sent, 1);
    world.end().await;
}

#[tokio::test]
async fn d9_an_upload_that_is_cut_in_the_middle_of_a_part_goes_on_with_its_chunk() {
    let world = World::start().await;
    let input = world.rows("large.csv", 60_000, 1_000, 11);
    let built = world.upload("p", &input).await;
    let (id, part) = (&built.manifest.artifact_id, &built.manifest.parts[0]);
    let chunks = usize::try_from(part.bytes.div_ceil(chunk_bytes(part.bytes))).unwrap();
    assert!(chunks > 1, "{}", part.bytes);
    world.bucket.asked();
    let is_last = format!("partNumber={chunks}");
    let faults = [Fault::CutRequest(100_000), Fault::Status(500), Fault::Status(503), Fault::Status(403)];
    let mut left = faults.to_vec();
    world.bucket.fail(move |asked| if is_chunk(asked) && asked.query.contains(&is_last) { left.pop() } else { None });
    world.client.put_part_direct("p", id, part, &built.folder.join(&part.name)).await.unwrap();
    let asked = world.bucket.asked();
    let count = |number: usize| {
        let number = format!("partNumber={number}&");
        asked.iter().filter(|asked| is_chunk(asked) && format!("{}&", asked.query).contains(&number)).count()
    };
    assert_eq!((count(1), count(chunks)), (1, 1 + faults.len()), "{asked:#?}");
    assert_eq!(world.client.parts("p").await.unwrap().parts.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn d9_what_an_ended_push_has_left_in_the_bucket_is_removed() {
    let mut world = World::start().await;
    let built = world.upload("ended", &world.rows("in.csv", 50, 5, 1)).await;
    let (id, part) = (&built.manifest.artifact_id, &built.manifest.parts[0]);
    let send = async |push: &str| {
        world.client.put_part_direct(push, id, part, &built.folder.join(&part.name)).await.unwrap();
    };
    send("ended").await;
    assert_eq!(world.left("/ended").await.len(), 1);
    world.client.kill_push("ended", "not wanted any more").await.unwrap();
    world.until("ended", |state| state.status == PushStatus::Killed).await;
    // The clean-up may or may not have come to it; a server that starts leaves nothing.
    world.restart().await;
    assert_eq!(world.left("/ended").await, [] as [String; 0]);
    world.end().await;
}

#[tokio::test]
async fn what_is_asked_for_an_upload_is_bounded_and_stays_in_its_place() {
    let world = World::start_with(|options| options.config.server.limits.part_bytes = Some(1_000)).await;
    let built = world.upload("p", &world.rows("in.csv", 50, 5, 1)).await;
    let part = &built.manifest.parts[0];
    let good = PartUploadRequest {
        artifact: built.manifest.artifact_id.clone(),
        sha256: part.sha256.clone(),
        bytes: 1_000,
        ..PartUploadRequest::default()
    };
    world.client.sign_part("p", &part.name, &good).await.unwrap();
    let cases: [(&str, PartUploadRequest, &str); 7] = [
        (&part.name, PartUploadRequest { bytes: 1_001, ..good.clone() }, code::TOO_LARGE),
        (&part.name, PartUploadRequest { bytes: 0, ..good.clone() }, code::BAD_REQUEST),
        (&part.name, PartUploadRequest { from: 1, ..good.clone() }, code::BAD_REQUEST),
        (&part.name, PartUploadRequest { artifact: "../x".to_owned(), ..good.clone() }, code::BAD_REQUEST),
        (&part.name, PartUploadRequest { sha256: "x".to_owned(), ..good.clone() }, code::BAD_REQUEST),
        (&part.name, PartUploadRequest { upload: Some("a b".to_owned()), ..good.clone() }, code::BAD_REQUEST),
        ("manifest-x", good.clone(), code::INVALID),
    ];
    for (name, request, expected) in cases {
        let error = world.client.sign_part("p", name, &request).await.unwrap_err();
        assert_eq!(error.code(), Some(expected), "{name} {request:?}: {error}");
    }
    let sent = PartSentRequest {
        artifact: good.artifact.clone(),
        sha256: good.sha256.clone(),
        bytes: good.bytes,
        upload: "u".to_owned(),
        tags: vec![],
    };
    for tags in [vec![], vec!["a".to_owned(), "b".to_owned()], vec!["a".repeat(200)], vec!["a b".to_owned()]] {
        let error =
            world.client.part_sent("p", &part.name, &PartSentRequest { tags, ..sent.clone() }).await.unwrap_err();
        assert_eq!(error.code(), Some(code::BAD_REQUEST), "{error}");
    }
    // A push that does not take parts (yet).
    let error = world.client.sign_part("unknown", &part.name, &good).await.unwrap_err();
    assert_eq!(error.code(), Some(code::PUSH_UNKNOWN), "{error}");
    assert_eq!(world.client.push("p").await.unwrap().state.phase, PushPhase::Upload);
    world.end().await;
}
