//! The regions of one process on a state of its own: reads, R6, and what reads say when there is nothing to read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tempfile::TempDir;
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_rollout::engine::LoadableArtifact;
use tidegate_rollout::entities::{Assignment, Availability, EmbeddedPermission, Held, Region, Report};
use tidegate_rollout::region::RegionHost;
use tidegate_rollout::region::host::{BATCH_KEYS_MAX, HostError, HostOptions, ReadError, RegionSetup};
use tidegate_state::driver::memory::MemoryStore;
use tidegate_state::{FeedItem, Ref, State, StateOptions, Timestamp, TransactionError};

use crate::support::{PATIENCE, STORE, build_artifact, incarnation, text, text_of};

const KEYS: usize = 200;

struct Fleet {
    state: State,
    host: RegionHost,
    options: HostOptions,
    artifacts: Vec<LoadableArtifact>,
    generation: AtomicU64,
    _folder: TempDir,
}

fn setup(name: &str) -> RegionSetup {
    RegionSetup { name: name.to_owned(), nodes: 2, shares_source: name == "a" }
}

fn region(name: &str) -> Ref<Region> {
    Ref::root(name).unwrap()
}

impl Fleet {
    async fn new(regions: &[&str]) -> Fleet {
        let folder = tempfile::tempdir().unwrap();
        let source = ArtifactStore::local(folder.path().join("source")).unwrap();
        let mut artifacts = Vec::new();
        for version in 1..=2 {
            artifacts.push(build_artifact(folder.path(), &source, version, KEYS, 4).await);
        }
        let state = State::open(MemoryStore::new().driver(), StateOptions::new("server")).await.unwrap();
        for name in regions {
            let entity = region(name);
            let value = Region {
                nodes: 2,
                enough: 2,
                shares_source: *name == "a",
                agent: false,
                availability: Availability::Available,
                added_at: Timestamp(1),
            };
            let written = state.write(move |tx| -> Result<(), TransactionError> { tx.put(&entity, value.clone()) });
            written.await.unwrap();
        }
        let options = HostOptions::new(folder.path().join("regions"), source);
        let setups: Vec<RegionSetup> = regions.iter().map(|name| setup(name)).collect();
        let host = RegionHost::start(state.clone(), options.clone(), setups).await.unwrap();
        Fleet { state, host, options, artifacts, generation: AtomicU64::new(0), _folder: folder }
    }

    async fn assign(&self, name: &str, serve: Option<u64>) {
        let hold = (1..=2_u64)
            .zip(&self.artifacts)
            .map(|(version, artifact)| {
                let held = Held {
                    artifact: artifact.manifest.artifact_id.clone(),
                    manifest_sha256: artifact.manifest_sha256.clone(),
                    embedded: EmbeddedPermission::None,
                };
                (version, held)
            })
            .collect();
        let assignment = Assignment {
            generation: self.generation.fetch_add(1, Ordering::Relaxed) + 1,
            incarnation: incarnation(1),
            hold,
            serve,
            enough: 2,
        };
        let entity: Ref<Assignment> = region(name).child(STORE).unwrap();
        let written =
            self.state.write(move |tx| -> Result<(), TransactionError> { tx.put(&entity, assignment.clone()) });
        written.await.unwrap();
    }

    /// Waits for a report like this.
    async fn until(&self, name: &str, holds: impl Fn(&Report) -> bool) {
        let entity: Ref<Report> = region(name).child(STORE).unwrap();
        let mut feed = self.state.changes(None);
        let waited = tokio::time::timeout(PATIENCE, async {
            while let Some(item) = feed.next().await {
                let snapshot = match item {
                    FeedItem::Snapshot(snapshot) => snapshot,
                    FeedItem::Transaction(applied) => applied.snapshot.clone(),
                };
                if snapshot.get(&entity).unwrap().is_some_and(&holds) {
                    return;
                }
            }
        });
        let last = || self.state.snapshot().get(&entity).unwrap().cloned();
        assert!(waited.await.is_ok(), "waited in vain; the last report is {:#?}", last());
    }

    async fn until_serving(&self, name: &str, version: Option<u64>) {
        self.until(name, |report| report.serving == version && report.versions.len() == 2).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r2_b4_reads_say_what_is_missing_until_something_serves() {
    let fleet = Fleet::new(&["a", "b"]).await;
    let read = |region: &str| fleet.host.read(region, STORE, "k1");
    assert!(matches!(read("x"), Err(ReadError::NoSuchRegion { known, .. }) if known == ["a", "b"]));
    assert!(matches!(read("a"), Err(ReadError::NoSuchStore { .. })));
    fleet.assign("a", None).await;
    fleet.until_serving("a", None).await;
    assert!(matches!(read("a"), Err(ReadError::NoVersion { .. })));
    fleet.assign("a", Some(1)).await;
    fleet.until_serving("a", Some(1)).await;
    let answers = [read("a").unwrap(), read("a").unwrap()];
    assert_eq!(text_of(answers[0].value.as_deref()), text(1, 1));
    let mut nodes = [&*answers[0].node, &*answers[1].node];
    nodes.sort_unstable();
    assert_eq!(nodes, ["a-1", "a-2"], "nodes answer in turn");
    assert!(fleet.host.read("a", STORE, "nobody").unwrap().value.is_none());
    assert!(matches!(read("b"), Err(ReadError::NoSuchStore { .. })));
    let batch = fleet.host.read_batch("a", STORE, &["k2", "nobody", "k3"]).unwrap();
    assert_eq!(batch.version, 1);
    assert_eq!(text_of(batch.values[0].as_deref()), text(1, 2));
    assert!(batch.values[1].is_none());
    let many = vec!["k1"; BATCH_KEYS_MAX + 1];
    assert!(matches!(fleet.host.read_batch("a", STORE, &many), Err(ReadError::TooManyKeys { .. })));
    assert!(matches!(fleet.host.start_region(setup("a")).await, Err(HostError::Runs { .. })));
    fleet.assign("a", None).await;
    fleet.until_serving("a", None).await;
    assert!(matches!(read("a"), Err(ReadError::NoVersion { .. })));
    fleet.host.stop().await;
    assert!(matches!(read("a"), Err(ReadError::NoSuchRegion { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_starts_again_serves_at_once_what_it_served() {
    let fleet = Fleet::new(&["a", "b"]).await;
    for name in ["a", "b"] {
        fleet.assign(name, Some(2)).await;
        fleet.until_serving(name, Some(2)).await;
    }
    fleet.host.stop().await;
    let host = RegionHost::start(fleet.state.clone(), fleet.options.clone(), [setup("a"), setup("b")]).await.unwrap();
    for name in ["a", "b"] {
        assert_eq!(host.read(name, STORE, "k5").unwrap().version, 2);
    }
    host.stop().await;
}

/// Reads without pause, alone and in batches, and checks every answer. Returns how many it made, and how often the
/// version changed on the node that changed most often.
fn reader(host: RegionHost, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<(u64, u64)> {
    std::thread::spawn(move || {
        let batch: Vec<String> = (0..50).map(|key| format!("k{}", key * 4)).collect();
        let mut seen: HashMap<Arc<str>, (u64, u64)> = HashMap::new();
        let mut reads = 0;
        while !stop.load(Ordering::Relaxed) {
            for key in 0..20 {
                let answer = host.read("a", STORE, &format!("k{key}")).expect("no read fails");
                assert_eq!(text_of(answer.value.as_deref()), text(answer.version, key));
                note(&mut seen, answer.node, answer.version);
            }
            let answer = host.read_batch("a", STORE, &batch).expect("no batch fails");
            for (key, value) in answer.values.iter().enumerate() {
                assert_eq!(text_of(value.as_deref()), text(answer.version, key * 4), "a batch mixes versions");
            }
            note(&mut seen, answer.node, answer.version);
            reads += 21;
        }
        (reads, seen.values().map(|(_, changes)| *changes).max().unwrap_or(0))
    })
}

fn note(seen: &mut HashMap<Arc<str>, (u64, u64)>, node: Arc<str>, version: u64) {
    let (last, changes) = seen.entry(node).or_insert((version, 0));
    if *last != version {
        *last = version;
        *changes += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r6_no_read_fails_and_no_batch_mixes_versions_over_200_swaps_and_rollbacks() {
    let fleet = Fleet::new(&["a"]).await;
    fleet.assign("a", Some(1)).await;
    fleet.until_serving("a", Some(1)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2).map(|_| reader(fleet.host.clone(), Arc::clone(&stop))).collect();
    let swaps = 200;
    for swap in 0..swaps {
        let version = 2 - swap % 2;
        fleet.assign("a", Some(version)).await;
        fleet.until_serving("a", Some(version)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        let (reads, changes) = reader.join().expect("no read fails");
        assert!(reads > 0);
        assert!(changes <= swaps, "a node went back and forth: {changes} changes in {swaps} swaps");
    }
    assert_eq!(fleet.host.metrics().of_region("a").swaps.get(), 2 * (swaps + 1));
    let counted: u64 = ["a-1", "a-2"].iter().map(|node| fleet.host.metrics().of_node("a", node).reads.get()).sum();
    assert!(counted > 0);
    fleet.host.stop().await;
}
