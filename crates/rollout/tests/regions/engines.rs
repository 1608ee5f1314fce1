//! N1 to N8: the embedded engine passes the suite, and the suite finds an engine that is broken in any one step.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tempfile::TempDir;
use tidegate_api::manifest::Manifest;
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_rollout::engine::conformance::{self, BegunRead, EngineFactory, Violation, on_disk};
use tidegate_rollout::engine::embedded::EmbeddedEngine;
use tidegate_rollout::engine::{
    Capacity, Engine, EngineError, HeldVersion, LoadProgress, LoadableArtifact, Observed, StoreKey, Verification,
};
use tokio_util::sync::CancellationToken;

use crate::support::{PATIENCE, STORE, build_artifact, key, text, text_of};

struct Nodes {
    folder: TempDir,
    fault: Option<Fault>,
}

/// What one step does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    AdoptsNothing,
    AdoptsEverything,
    AdoptStopsServing,
    NeedsNoRoom,
    NeedsRoomForWhatItHolds,
    NeedsTheSameForAll,
    LoadServes,
    LoadTakesTheSecondAmiss,
    LoadSaysDoneWhenCutOff,
    LoadForgetsAllElse,
    VerifyGuesses,
    VerifyCountsWrong,
    SwapDoesNothing,
    SwapToNoneDoesNothing,
    SwapsToWhatIsNotHeld,
    SwapIsForgottenAtARestart,
    DropDropsWhatServes,
    DropDoesNothing,
    DropRefusesWhatIsNotHeld,
    DropLeavesFiles,
    ObserveSeesNothing,
    ObserveSeesTheDropped,
    ObserveBelievesTheSwap,
    StoresForgets,
    ForgetsIncarnations,
}

const FAULTS: [Fault; 25] = [
    Fault::AdoptsNothing,
    Fault::AdoptsEverything,
    Fault::AdoptStopsServing,
    Fault::NeedsNoRoom,
    Fault::NeedsRoomForWhatItHolds,
    Fault::NeedsTheSameForAll,
    Fault::LoadServes,
    Fault::LoadTakesTheSecondAmiss,
    Fault::LoadSaysDoneWhenCutOff,
    Fault::LoadForgetsAllElse,
    Fault::VerifyGuesses,
    Fault::VerifyCountsWrong,
    Fault::SwapDoesNothing,
    Fault::SwapToNoneDoesNothing,
    Fault::SwapsToWhatIsNotHeld,
    Fault::SwapIsForgottenAtARestart,
    Fault::DropDropsWhatServes,
    Fault::DropDoesNothing,
    Fault::DropRefusesWhatIsNotHeld,
    Fault::DropLeavesFiles,
    Fault::ObserveSeesNothing,
    Fault::ObserveSeesTheDropped,
    Fault::ObserveBelievesTheSwap,
    Fault::StoresForgets,
    Fault::ForgetsIncarnations,
];

struct Broken {
    engine: EmbeddedEngine,
    folder: PathBuf,
    fault: Option<Fault>,
}

impl Broken {
    fn is(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn key(&self, store: &StoreKey) -> StoreKey {
        let mut key = store.clone();
        if self.is(Fault::ForgetsIncarnations) {
            key.incarnation = uuid::Uuid::nil();
        }
        key
    }
}

#[async_trait]
impl Engine for Broken {
    async fn adopt(&self, store: &StoreKey) -> Result<bool, EngineError> {
        match self.fault {
            Some(Fault::AdoptsNothing) => Ok(false),
            Some(Fault::AdoptsEverything) => Ok(true),
            Some(Fault::AdoptStopsServing) => {
                let adopted = self.engine.adopt(store).await?;
                self.engine.swap(store, None).await?;
                Ok(adopted)
            }
            _ => self.engine.adopt(&self.key(store)).await,
        }
    }

    async fn capacity(&self, store: &StoreKey, version: u64, manifest: &Manifest) -> Result<Capacity, EngineError> {
        let mut capacity = self.engine.capacity(&self.key(store), version, manifest).await?;
        match self.fault {
            Some(Fault::NeedsNoRoom) => capacity.needed_bytes = 0,
            Some(Fault::NeedsRoomForWhatItHolds) => capacity.needed_bytes += 1,
            Some(Fault::NeedsTheSameForAll) if capacity.needed_bytes > 0 => capacity.needed_bytes = 1 << 30,
            _ => {}
        }
        Ok(capacity)
    }

    async fn load(
        &self,
        store: &StoreKey,
        version: u64,
        artifact: &LoadableArtifact,
        progress: &Arc<LoadProgress>,
        cancelled: &CancellationToken,
    ) -> Result<(), EngineError> {
        let store = &self.key(store);
        let before = self.engine.observe(store).await?;
        if self.is(Fault::LoadTakesTheSecondAmiss) && before.holds(version) {
            return Err(EngineError::retry("it is there already"));
        }
        let result = self.engine.load(store, version, artifact, progress, cancelled).await;
        match self.fault {
            Some(Fault::LoadServes) => self.engine.swap(store, Some(version)).await?,
            Some(Fault::LoadSaysDoneWhenCutOff) => return Ok(()),
            Some(Fault::LoadForgetsAllElse) => {
                for other in before.held.keys().filter(|other| **other != version && before.serving != Some(**other)) {
                    self.engine.drop_version(store, *other).await?;
                }
            }
            _ => {}
        }
        result
    }

    async fn verify(&self, store: &StoreKey, version: u64) -> Result<Verification, EngineError> {
        let mut verification = self.engine.verify(&self.key(store), version).await?;
        match self.fault {
            Some(Fault::VerifyGuesses) => verification.content_digest = "0".repeat(32),
            Some(Fault::VerifyCountsWrong) => verification.record_count += 1,
            _ => {}
        }
        Ok(verification)
    }

    async fn swap(&self, store: &StoreKey, version: Option<u64>) -> Result<(), EngineError> {
        match (self.fault, version) {
            (Some(Fault::SwapDoesNothing | Fault::ObserveBelievesTheSwap), _)
            | (Some(Fault::SwapToNoneDoesNothing), None) => Ok(()),
            (Some(Fault::SwapsToWhatIsNotHeld), Some(_)) => {
                let _ = self.engine.swap(store, version).await;
                Ok(())
            }
            _ => self.engine.swap(&self.key(store), version).await,
        }
    }

    async fn drop_version(&self, store: &StoreKey, version: u64) -> Result<(), EngineError> {
        let store = &self.key(store);
        let observed = self.engine.observe(store).await?;
        match self.fault {
            Some(Fault::DropDropsWhatServes) if observed.serving == Some(version) => {
                self.engine.swap(store, None).await?;
            }
            Some(Fault::DropDoesNothing) if observed.serving != Some(version) => return Ok(()),
            Some(Fault::DropRefusesWhatIsNotHeld) if !observed.holds(version) => {
                return Err(EngineError::retry("it is not there"));
            }
            Some(Fault::DropLeavesFiles) => std::fs::write(self.folder.join("left"), b"left").unwrap(),
            _ => {}
        }
        self.engine.drop_version(store, version).await
    }

    async fn observe(&self, store: &StoreKey) -> Result<Observed, EngineError> {
        let mut observed = self.engine.observe(&self.key(store)).await?;
        match self.fault {
            Some(Fault::ObserveSeesNothing) => observed = Observed::default(),
            Some(Fault::ObserveSeesTheDropped) if !observed.held.is_empty() => {
                observed.held.insert(1, HeldVersion::default());
            }
            Some(Fault::ObserveBelievesTheSwap) => observed.serving = observed.held.keys().max().copied(),
            _ => {}
        }
        Ok(observed)
    }

    async fn stores(&self) -> Result<Vec<StoreKey>, EngineError> {
        if self.is(Fault::StoresForgets) { Ok(Vec::new()) } else { self.engine.stores().await }
    }
}

#[async_trait]
impl EngineFactory for Nodes {
    type Engine = Broken;

    async fn open(&self, node: &str) -> Broken {
        let folder = self.folder.path().join(node);
        if self.fault == Some(Fault::SwapIsForgottenAtARestart) {
            for entry in std::fs::read_dir(folder.join("stores")).into_iter().flatten() {
                let _ = std::fs::remove_file(entry.unwrap().path().join("serving.json"));
            }
        }
        let engine = EmbeddedEngine::open(&folder).await.unwrap();
        Broken { engine, folder, fault: self.fault }
    }

    async fn lose(&self, node: &str) {
        std::fs::remove_dir_all(self.folder.path().join(node)).unwrap();
    }

    async fn put_live(&self, node: &str, store: &StoreKey, artifact: &LoadableArtifact) -> bool {
        on_disk::put_live(&self.folder.path().join(node), &store.name, artifact).await.unwrap();
        true
    }

    async fn begin_read(&self, engine: &Broken, store: &StoreKey) -> Option<Box<dyn BegunRead>> {
        let reader = engine.engine.reader(&store.name).ok()?;
        Some(Box::new(reader))
    }

    async fn footprint(&self, node: &str) -> Option<u64> {
        Some(on_disk::footprint(&self.folder.path().join(node)).unwrap())
    }
}

async fn run(fault: Option<Fault>) -> Vec<Violation> {
    let nodes = Nodes { folder: tempfile::tempdir().unwrap(), fault };
    conformance::run(&nodes).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n1_to_n8_the_embedded_engine_keeps_every_promise() {
    let violations = run(None).await;
    assert!(violations.is_empty(), "{violations:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n1_to_n8_an_engine_broken_in_any_one_step_fails_the_suite() {
    for fault in FAULTS {
        let violations = run(Some(fault)).await;
        assert!(!violations.is_empty(), "{fault:?} was not found");
    }
}

/// A key that, when it comes to it, says so and waits until it may go on: it holds a batch in the middle.
struct HeldKey {
    text: String,
    held: Option<(std::sync::mpsc::Sender<()>, Mutex<std::sync::mpsc::Receiver<()>>)>,
}

impl AsRef<str> for HeldKey {
    fn as_ref(&self) -> &str {
        if let Some((reached, go_on)) = &self.held {
            reached.send(()).unwrap();
            go_on.lock().recv().unwrap();
        }
        &self.text
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n6_what_serves_is_not_dropped_and_a_batch_under_way_ends_with_its_version() {
    const RECORDS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let source = ArtifactStore::local(folder.path().join("source")).unwrap();
    let engine = EmbeddedEngine::open(folder.path().join("node")).await.unwrap();
    let store = key(STORE);
    for version in [1, 2] {
        let artifact = build_artifact(folder.path(), &source, version, RECORDS, 4).await;
        let (progress, cancelled) = (Arc::new(LoadProgress::default()), CancellationToken::new());
        engine.load(&store, version, &artifact, &progress, &cancelled).await.unwrap();
    }
    engine.swap(&store, Some(1)).await.unwrap();

    // Of the version that serves: refused, for good, and reads go on. Of one that is not held: done already.
    let refused = engine.drop_version(&store, 1).await.unwrap_err();
    assert!(matches!(refused, EngineError::Fatal { .. }), "{refused:?}");
    assert_eq!(engine.observe(&store).await.unwrap().serving, Some(1));
    assert_eq!(text_of(engine.read(STORE, "k3").unwrap().value.as_deref()), text(1, 3));
    engine.drop_version(&store, 9).await.unwrap();

    // A batch is half-way when the node swaps and drops the version that it reads.
    let (reached, half_way) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel();
    let mut held = Some((reached, Mutex::new(wait)));
    let keys: Vec<HeldKey> = (0..RECORDS)
        .map(|number| HeldKey {
            text: format!("k{number}"),
            held: if number == RECORDS / 2 { held.take() } else { None },
        })
        .collect();
    let reading = {
        let engine = engine.clone();
        tokio::task::spawn_blocking(move || engine.read_batch(STORE, &keys))
    };
    let half_way = tokio::task::spawn_blocking(move || half_way.recv_timeout(PATIENCE)).await.unwrap();
    half_way.expect("the batch comes to its middle");
    engine.swap(&store, Some(2)).await.unwrap();
    engine.drop_version(&store, 1).await.unwrap();
    assert!(!engine.observe(&store).await.unwrap().holds(1));
    assert_eq!(text_of(engine.read(STORE, "k3").unwrap().value.as_deref()), text(2, 3), "others read the new one");
    go_on.send(()).unwrap();
    let answer = reading.await.unwrap().unwrap();
    assert_eq!(answer.version, 1);
    for (number, value) in answer.values.iter().enumerate() {
        assert_eq!(text_of(value.as_deref()), text(1, number));
    }
}
