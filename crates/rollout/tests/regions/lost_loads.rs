//! A version whose load ends the process of its node: it is tried a bounded number of times, over restarts.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use object_store::local::LocalFileSystem;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_rollout::engine::embedded::{EmbeddedEngine, LOADS_LOST_MAX};
use tidegate_rollout::engine::{Engine, EngineError, LoadProgress, LoadableArtifact};
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, STORE, build_artifact, key, text, text_of};

/// Tells the test below, as a process of its own, in which folder to load.
const FOLDER: &str = "TIDEGATE_TEST_LOAD_AND_ABORT";

fn source(folder: &Path) -> ArtifactStore {
    ArtifactStore::local(folder.join("source")).unwrap()
}

fn node(folder: &Path) -> PathBuf {
    folder.join("node")
}

async fn load(engine: &EmbeddedEngine, artifact: &LoadableArtifact) -> Result<(), EngineError> {
    engine.load(&key(STORE), 1, artifact, &Arc::new(LoadProgress::default()), &CancellationToken::new()).await
}

async fn artifact(folder: &Path) -> LoadableArtifact {
    build_artifact(folder, &source(folder), 1, 100, 1).await
}

/// Not a test of its own: the process that the test below starts. It begins a load that never ends, and aborts in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_that_ends_in_the_middle_of_a_load() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let built = source(&folder);
    let artifact_id = std::fs::read_to_string(folder.join("artifact")).unwrap();
    let manifest = built.manifest(&artifact_id).await.unwrap();
    let slow = ThrottleConfig { wait_get_per_call: Duration::from_secs(3_600), ..ThrottleConfig::default() };
    let files = LocalFileSystem::new_with_prefix(folder.join("source")).unwrap();
    let never = ArtifactStore::new(Arc::new(ThrottledStore::new(files, slow)));
    let artifact =
        LoadableArtifact { store: never, manifest: Arc::new(manifest.manifest), manifest_sha256: manifest.digest };
    let engine = EmbeddedEngine::open(node(&folder)).await.unwrap();
    // Looked at before the load can have noted anything.
    let before = begun(&folder);
    let abort = async {
        while begun(&folder) == before {
            tokio::task::yield_now().await;
        }
        // While the load goes on: one that nobody waits for any more ends in order.
        std::process::abort();
    };
    tokio::select! {
        ended = load(&engine, &artifact) => panic!("the load has ended: {ended:?}"),
        noted = tokio::time::timeout(PATIENCE, abort) => noted.expect("the load was not noted"),
    }
}

/// How many loads are noted as begun and not ended.
fn begun(folder: &Path) -> u64 {
    let versions = node(folder).join("stores").join(STORE).join(key(STORE).incarnation.to_string());
    std::fs::metadata(versions.join("1.loading-begun")).map_or(0, |file| file.len())
}

async fn die_in_the_middle(folder: &Path) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "lost_loads::the_process_that_ends_in_the_middle_of_a_load"]).env(FOLDER, folder);
    child.stdout(Stdio::null()).stderr(Stdio::null());
    tokio::task::spawn_blocking(move || child.status().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_whose_load_ends_its_process_is_given_up_after_so_many_and_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let artifact = artifact(folder).await;
    std::fs::write(folder.join("artifact"), &artifact.manifest.artifact_id).unwrap();
    for lost in 1..=u64::from(LOADS_LOST_MAX) {
        let status = die_in_the_middle(folder).await;
        assert_eq!(status.signal(), Some(6), "it aborts: {status}");
        assert_eq!(begun(folder), lost);
    }
    for _ in 0..2 {
        // However often it is started again: it says why, and the process lives.
        let engine = EmbeddedEngine::open(node(folder)).await.unwrap();
        for _ in 0..2 {
            let error = load(&engine, &artifact).await.unwrap_err();
            assert!(matches!(error, EngineError::Fatal { .. }), "{error:?}");
            let text = error.to_string();
            assert!(
                text.contains("5 times in a row (the limit is 5)") && text.contains("Push the data again"),
                "{text}"
            );
        }
    }
    // Let go of, it is forgotten.
    let engine = EmbeddedEngine::open(node(folder)).await.unwrap();
    assert!(engine.observe(&key(STORE)).await.unwrap().remains.contains(&1));
    engine.drop_version(&key(STORE), 1).await.unwrap();
    assert_eq!(std::fs::read_dir(node(folder).join("stores")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_ends_in_order_forgives_those_that_did_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let artifact = artifact(folder).await;
    std::fs::write(folder.join("artifact"), &artifact.manifest.artifact_id).unwrap();
    for _ in 1..LOADS_LOST_MAX {
        assert_eq!(die_in_the_middle(folder).await.signal(), Some(6));
    }
    assert_eq!(begun(folder), u64::from(LOADS_LOST_MAX) - 1);
    let engine = EmbeddedEngine::open(node(folder)).await.unwrap();
    // One that is cut off has ended in order.
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let progress = Arc::new(LoadProgress::default());
    engine.load(&key(STORE), 1, &artifact, &progress, &cancelled).await.unwrap_err();
    assert_eq!(begun(folder), 0);
    drop(engine);
    assert_eq!(die_in_the_middle(folder).await.signal(), Some(6));
    assert_eq!(begun(folder), 1);
    let engine = EmbeddedEngine::open(node(folder)).await.unwrap();
    load(&engine, &artifact).await.unwrap();
    assert_eq!(begun(folder), 0);
    engine.swap(&key(STORE), Some(1)).await.unwrap();
    let answer = engine.read(STORE, "k7").unwrap();
    assert_eq!(text_of(answer.value.as_deref()), text(1, 7));
}
