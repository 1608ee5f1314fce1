//! Damaged bytes: D7 and D15.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_dataset::artifact::ArtifactStore;
use tidegate_rollout::engine::embedded::{EmbeddedEngine, NodeReadError};
use tidegate_rollout::engine::{Engine, LoadProgress, LoadableArtifact};
use tidegate_rollout::entities::{FailureKind, IngestionStatus};
use tokio_util::sync::CancellationToken;

use crate::support::{On, STORE, World, build_artifact, failed, key, text, text_of};

/// Changes one byte of a file in place, as a failing disk would.
fn flip(path: &Path, at: usize) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at as u64).unwrap();
}

fn size(path: &Path) -> usize {
    usize::try_from(fs::metadata(path).unwrap().len()).unwrap()
}

/// The files of an artifact in a local store.
fn artifact_files(store: &Path, artifact: &LoadableArtifact) -> Vec<PathBuf> {
    let folder = store.join("artifacts").join(&artifact.manifest.artifact_id);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_any_damaged_byte_of_the_regions_copy_is_copied_again_before_it_is_loaded() {
    let mut world = World::serving(2, &[1], 1).await;
    let files = artifact_files(&world.folder().join("own"), world.artifact(1));
    assert_eq!(files.len(), 5, "four parts and the manifest");
    let copied = world.figures().copied_bytes.get();
    let source = artifact_files(&world.folder().join("source"), world.artifact(1));
    let mut again = 0;
    for (number, file) in files.iter().enumerate() {
        // The first byte, the last one, and one in between of each file, one after the other.
        for at in [0, size(file) / 2, size(file) - 1] {
            flip(file, at);
            let node = &world.nodes[number % 2];
            node.restart_with_nothing().await;
            // The agent has loaded from this copy before; it looks at it again after a restart.
            world.restart_agent().await;
            world
                .until_later("the node serves again", |world| {
                    world.nodes.iter().all(|node| node.serves(STORE) == Some(1))
                        && world.report().lagging_nodes.is_empty()
                })
                .await;
            assert_eq!(world.nodes[number % 2].read(STORE, 9), Ok(1));
            assert_eq!(fs::read(file).unwrap(), fs::read(&source[number]).unwrap(), "the copy was mended");
            if !file.file_name().unwrap().to_str().unwrap().starts_with("manifest") {
                again += fs::metadata(file).unwrap().len();
            }
        }
    }
    assert_eq!(world.figures().copied_bytes.get(), copied + again, "what was damaged is copied, and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_damaged_source_fails_the_region_naming_the_file() {
    for number in 0..5 {
        let mut world = World::new(2, 1).await;
        let file = artifact_files(&world.folder().join("source"), world.artifact(1)).remove(number);
        world.start().await;
        flip(&file, size(&file) / 2);
        world.assign(&[1], Some(1));
        world.until_later("the region has failed", |world| failed(world.status(1))).await;
        let Some(IngestionStatus::Failed { kind, message }) = world.status(1) else { unreachable!() };
        assert_eq!(kind, FailureKind::DataDamaged);
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(message.contains(name), "{message} does not name {name}");
        assert_eq!(world.nodes[0].calls(On::Load, STORE), 0);
        // Put right at the source, it goes on by itself.
        flip(&file, size(&file) / 2);
        world.until_later("it is served", |world| world.report().serving == Some(1)).await;
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_each_byte_of_an_index_flipped_while_it_serves_never_gives_a_wrong_value() {
    let folder = tempfile::tempdir().unwrap();
    let store = ArtifactStore::local(folder.path().join("source")).unwrap();
    let keys = 40;
    let artifact = build_artifact(folder.path(), &store, 1, keys, 2).await;
    let node = folder.path().join("node");
    let index = node.join("stores").join(STORE).join(key(STORE).incarnation.to_string()).join("1.index");
    let progress = Arc::new(LoadProgress::default());
    let load = async || {
        let engine = EmbeddedEngine::open(&node).await.unwrap();
        engine.load(&key(STORE), 1, &artifact, &progress, &CancellationToken::new()).await.unwrap();
        engine.swap(&key(STORE), Some(1)).await.unwrap();
        engine
    };
    drop(load().await);
    let (mut at_open, mut at_read, mut by_scrub) = (0, 0, 0);
    for at in 0..size(&index) {
        let engine = EmbeddedEngine::open(&node).await.unwrap();
        flip(&index, at);
        let mut found = false;
        for number in 0..keys {
            match engine.read(STORE, &format!("k{number}")) {
                Ok(answer) => assert_eq!(text_of(answer.value.as_deref()), text(1, number), "byte {at}"),
                Err(NodeReadError::Damaged { version: 1, .. }) => found = true,
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        if found {
            at_read += 1;
            let observed = engine.observe(&key(STORE)).await.unwrap();
            assert!(!observed.holds(1) && observed.serving.is_none(), "byte {at}: damage that was found still counts");
        } else {
            // No read has come by: the scrub finds it.
            assert!(engine.verify(&key(STORE), 1).await.is_err(), "byte {at} is not found");
            assert!(!engine.observe(&key(STORE)).await.unwrap().holds(1));
            by_scrub += 1;
        }
        drop(engine);
        // And so does opening it, for what opening looks at.
        let engine = EmbeddedEngine::open(&node).await.unwrap();
        if !engine.observe(&key(STORE)).await.unwrap().holds(1) {
            assert_eq!(engine.read(STORE, "k1").unwrap_err(), NodeReadError::NoVersion);
            at_open += 1;
        }
        drop(engine);
        flip(&index, at);
    }
    assert!(at_open > 200 && at_read > 1_000 && by_scrub > 200, "{at_open} {at_read} {by_scrub}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_damage_found_by_a_read_is_mended_with_no_word_from_the_control_plane() {
    let world = World::serving(2, &[1], 1).await;
    let revision = world.link.revision();
    let index = world.nodes[0].index(&key(STORE), 1);
    let half = size(&index) / 2;
    for at in half..half + 64 {
        flip(&index, at);
    }
    let damaged = (0..200).filter(|key| world.nodes[0].read(STORE, *key).is_err()).count();
    assert!(damaged > 0, "some record lies there");
    // Whoever read tells the agent.
    world.agent.as_ref().unwrap().look_at(STORE);
    world
        .until("the node is whole again", |world| {
            (0..200).all(|key| world.nodes[0].read(STORE, key) == Ok(1)) && world.report().lagging_nodes.is_empty()
        })
        .await;
    assert_eq!(world.nodes[0].calls(On::Load, STORE), 2);
    assert_eq!(world.nodes[1].calls(On::Load, STORE), 1);
    assert!(world.link.revision() > revision, "reports, and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_damage_that_no_read_meets_is_found_by_the_scrub() {
    let world = World::serving(1, &[1], 1).await;
    let index = world.nodes[0].index(&key(STORE), 1);
    flip(&index, size(&index) / 2);
    let verified = world.nodes[0].calls(On::Verify, STORE);
    world.clock.advance(world.options.limits.scrub_every);
    world
        .until_later("the node has loaded it again and serves", |world| {
            world.nodes[0].calls(On::Load, STORE) == 2 && world.report().serving == Some(1)
        })
        .await;
    assert!(world.nodes[0].calls(On::Verify, STORE) > verified);
    assert!((0..200).all(|key| world.nodes[0].read(STORE, key) == Ok(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d15_an_index_that_is_gone_cut_or_foreign_is_built_again_while_others_answer() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 4] = [
        ("gone", |path| fs::remove_file(path).unwrap()),
        ("cut short", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("of another format", |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[8] ^= 0x55;
            fs::write(path, bytes).unwrap();
        }),
        ("empty", |path| fs::write(path, b"").unwrap()),
    ];
    let mut world = World::serving(2, &[1], 1).await;
    for (what, harm) in harms {
        world.stop().await;
        // What is mapped is not to be cut short under the reader, so the node stops first.
        let index = world.nodes[0].index(&key(STORE), 1);
        let kept = fs::read(&index).unwrap();
        fs::remove_file(&index).unwrap();
        fs::write(&index, kept).unwrap();
        harm(&index);
        world.nodes[0].restart().await;
        assert_eq!(world.nodes[0].read(STORE, 4), Err(NodeReadError::NoVersion), "{what}");
        assert_eq!(world.nodes[1].read(STORE, 4), Ok(1), "{what}: the other node answers");
        world.restart_agent().await;
        world
            .until_later(what, |world| {
                world.nodes[0].serves(STORE) == Some(1)
                    && world.report().lagging_nodes.is_empty()
                    && world.report().serving == Some(1)
            })
            .await;
        assert_eq!(world.nodes[0].read(STORE, 4), Ok(1), "{what}");
        let verification = world.nodes[0].engine().verify(&key(STORE), 1).await.unwrap();
        assert_eq!(verification.content_digest, world.artifact(1).manifest.content_digest);
    }
}
