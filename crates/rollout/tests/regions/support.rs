//! A region in a temporary folder, a control plane played by a script, and nodes that fail when told to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_dataset::build::{BuildOptions, Builder};
use tidegate_dataset::{Cancel, quiet};
use tidegate_rollout::engine::{LoadableArtifact, StoreKey};
use tidegate_rollout::entities::{Assignment, EmbeddedPermission, Held, IngestionStatus, Report};
use tidegate_rollout::region::agent::Jitter;
use tidegate_rollout::region::metrics::RegionFigures;
use tidegate_rollout::region::{
    AgentOptions, EmbeddedClients, RegionAgent, RegionArtifacts, RegionLink, RegionMetrics, RegionNode,
};
use tidegate_state::{Clock, ManualClock, Timestamp};
use uuid::Uuid;

mod nodes;
mod plane;

pub use nodes::{Fault, Node, On};
pub use plane::ScriptedLink;

/// A wait that takes longer than this has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const STORE: &str = "s";

pub fn incarnation(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub fn key(store: &str) -> StoreKey {
    StoreKey { name: store.to_owned(), incarnation: incarnation(1) }
}

/// The value that key `k{key}` has in a version.
pub fn text(version: u64, key: usize) -> String {
    format!("value {key} of version {version}")
}

/// The field `text` of a record that was read.
pub fn text_of(record: Option<&serde_json::value::RawValue>) -> String {
    let record: serde_json::Value = serde_json::from_str(record.expect("the key is there").get()).unwrap();
    record["text"].as_str().unwrap().to_owned()
}

/// Builds a small artifact and puts it into the store.
pub async fn build_artifact(
    folder: &Path,
    store: &ArtifactStore,
    version: u64,
    keys: usize,
    partitions: u32,
) -> LoadableArtifact {
    let input = folder.join(format!("input-{version}.csv"));
    let work = folder.join(format!("work-{version}"));
    let built = tokio::task::spawn_blocking(move || {
        let rows: String = (0..keys).map(|key| format!("k{key},{}\n", text(version, key))).collect();
        std::fs::write(&input, format!("key,text\n{rows}")).unwrap();
        let mut options = BuildOptions::new(["key"], work);
        options.partitions = partitions;
        options.threads = 2;
        Builder::new(options).build(&[input], &quiet, &Cancel::new()).unwrap()
    });
    let built = built.await.unwrap();
    for part in &built.manifest.parts {
        let file = built.folder.join(&part.name);
        store.put_part(&built.manifest.artifact_id, part, &file, &Cancel::new()).await.unwrap();
    }
    let manifest_sha256 = store.put_manifest(&built.manifest).await.unwrap();
    LoadableArtifact { store: store.clone(), manifest: Arc::new(built.manifest), manifest_sha256 }
}

/// A region and everything around it.
pub struct World {
    pub clock: ManualClock,
    pub link: ScriptedLink,
    pub nodes: Vec<Node>,
    pub source: ArtifactStore,
    pub metrics: RegionMetrics,
    pub options: AgentOptions,
    pub agent: Option<RegionAgent>,
    artifacts: BTreeMap<u64, LoadableArtifact>,
    generation: AtomicU64,
    folder: TempDir,
}

fn still() -> Jitter {
    Arc::new(|| 0.5)
}

impl World {
    /// A region with so many nodes and copies of its own, and versions 1 to `versions` at the source.
    pub async fn new(nodes: usize, versions: u64) -> World {
        let folder = tempfile::tempdir().unwrap();
        let source = ArtifactStore::local(folder.path().join("source")).unwrap();
        let own = ArtifactStore::local(folder.path().join("own")).unwrap();
        let mut world = World::with(folder, nodes, source.clone(), RegionArtifacts::copied(source, own)).await;
        for version in 1..=versions {
            world.add_version(version, 200, 4).await;
        }
        world
    }

    /// A region that shares the source's store.
    pub async fn sharing(nodes: usize) -> World {
        let folder = tempfile::tempdir().unwrap();
        let source = ArtifactStore::local(folder.path().join("source")).unwrap();
        World::with(folder, nodes, source.clone(), RegionArtifacts::shared(source)).await
    }

    async fn with(folder: TempDir, count: usize, source: ArtifactStore, artifacts: RegionArtifacts) -> World {
        let clock = ManualClock::new(Timestamp(1_000_000));
        let mut nodes = Vec::new();
        for number in 1..=count {
            nodes.push(Node::open(&folder.path().join("nodes"), &format!("node-{number}")).await);
        }
        let metrics = RegionMetrics::default();
        let region_nodes = nodes
            .iter()
            .map(|node| RegionNode { name: node.name.clone(), address: None, engine: Arc::new(node.clone()) })
            .collect();
        let shared_clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let mut options = AgentOptions::new("a", folder.path().join("agent"), region_nodes, artifacts, shared_clock);
        // Time goes on much faster here than any disk is.
        options.limits.step = Duration::from_secs(3_600);
        options.jitter = still();
        options.metrics = metrics.clone();
        // Real time, for what is stopped.
        options.limits.stop = Duration::from_secs(5);
        World {
            clock,
            link: ScriptedLink::new("a"),
            nodes,
            source,
            metrics,
            options,
            agent: None,
            artifacts: BTreeMap::new(),
            generation: AtomicU64::new(0),
            folder,
        }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub async fn add_version(&mut self, version: u64, keys: usize, partitions: u32) {
        let artifact = build_artifact(self.folder.path(), &self.source, version, keys, partitions).await;
        self.artifacts.insert(version, artifact);
    }

    pub fn artifact(&self, version: u64) -> &LoadableArtifact {
        &self.artifacts[&version]
    }

    pub fn with_clients(mut self, clients: Arc<dyn EmbeddedClients>) -> World {
        self.options.clients = clients;
        self
    }

    pub async fn start(&mut self) {
        let link: Arc<dyn RegionLink> = Arc::new(self.link.clone());
        self.agent = Some(RegionAgent::start(self.options.clone(), link).await.unwrap());
    }

    pub async fn stop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop().await;
        }
    }

    /// The agent's process starts again: it has its disk, and nothing else.
    pub async fn restart_agent(&mut self) {
        self.stop().await;
        let own = ArtifactStore::local(self.folder.path().join("own")).unwrap();
        self.options.artifacts = RegionArtifacts::copied(self.source.clone(), own);
        self.start().await;
    }

    pub fn figures(&self) -> RegionFigures {
        self.metrics.of_region("a")
    }

    pub fn assignment(&self, hold: &[u64], serve: Option<u64>) -> Assignment {
        let held = |version: &u64| {
            let artifact = &self.artifacts[version];
            let held = Held {
                artifact: artifact.manifest.artifact_id.clone(),
                manifest_sha256: artifact.manifest_sha256.clone(),
                embedded: EmbeddedPermission::None,
            };
            (*version, held)
        };
        Assignment {
            generation: self.generation.fetch_add(1, Ordering::Relaxed) + 1,
            incarnation: incarnation(1),
            hold: hold.iter().map(held).collect(),
            serve,
            enough: u32::try_from(self.nodes.len()).unwrap(),
        }
    }

    /// Says what to hold and serve; all nodes are needed.
    pub fn assign(&self, hold: &[u64], serve: Option<u64>) {
        self.assign_store(STORE, hold, serve);
    }

    pub fn assign_store(&self, store: &str, hold: &[u64], serve: Option<u64>) {
        self.link.assign(store, Some(self.assignment(hold, serve)));
    }

    pub fn report(&self) -> Report {
        self.link.report(STORE).unwrap()
    }

    pub fn status(&self, version: u64) -> Option<IngestionStatus> {
        Some(self.link.report(STORE)?.versions.get(&version)?.status.clone())
    }

    /// Waits until it is so, at a standing clock.
    pub async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        self.wait(what, Duration::ZERO, holds).await;
    }

    /// Waits until it is so, while time passes.
    pub async fn until_later(&self, what: &str, holds: impl Fn(&World) -> bool) {
        self.wait(what, Duration::from_millis(500), holds).await;
    }

    async fn wait(&self, what: &str, step: Duration, holds: impl Fn(&World) -> bool) {
        let mut reports = self.link.reports.subscribe();
        let waited = tokio::time::timeout(PATIENCE, async {
            while !holds(self) {
                // Looked at after each report, and now and then for what no report tells.
                let _ = tokio::time::timeout(Duration::from_millis(10), reports.changed()).await;
                self.clock.advance(step);
            }
        });
        if waited.await.is_err() {
            panic!("waited in vain for: {what}; the last report is {:#?}", self.link.report(STORE));
        }
    }

    /// Lets time pass, with everything that it leads to: the agent has looked at its nodes once more.
    pub async fn pass(&self, time: Duration) {
        let before: Vec<u64> = self.nodes.iter().map(|node| node.calls(On::Observe, STORE)).collect();
        self.clock.advance(time.max(self.options.limits.observe_every));
        self.until("the nodes are looked at once more", |world| {
            world.nodes.iter().zip(&before).all(|(node, before)| node.calls(On::Observe, STORE) > *before)
        })
        .await;
    }

    pub async fn until_ingested(&self, version: u64) {
        self.until(&format!("version {version} is ingested"), |world| {
            world.status(version) == Some(IngestionStatus::Completed)
        })
        .await;
    }

    pub async fn until_serving(&self, version: Option<u64>) {
        self.until(&format!("{version:?} is served"), |world| {
            world.link.report(STORE).is_some_and(|report| report.serving == version)
        })
        .await;
    }

    /// A region that holds these versions and serves one of them.
    pub async fn serving(nodes: usize, versions: &[u64], serve: u64) -> World {
        let mut world = World::new(nodes, versions.iter().copied().max().unwrap_or(0)).await;
        world.start().await;
        world.assign(versions, Some(serve));
        for version in versions {
            world.until_ingested(*version).await;
        }
        world.until_serving(Some(serve)).await;
        world
    }
}

pub fn failed(status: Option<IngestionStatus>) -> bool {
    matches!(status, Some(IngestionStatus::Failed { .. }))
}
