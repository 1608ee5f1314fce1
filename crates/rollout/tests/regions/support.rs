//! A region in a temporary folder, a control plane played by a script, and nodes that fail when told to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tempfile::TempDir;
use tidegate_api::manifest::Manifest;
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_dataset::build::{BuildOptions, Builder};
use tidegate_dataset::{Cancel, quiet};
use tidegate_rollout::engine::embedded::{EmbeddedEngine, NodeReadError};
use tidegate_rollout::engine::{
    Capacity, Engine, EngineError, LoadProgress, LoadableArtifact, Observed, StoreKey, Verification,
};
use tidegate_rollout::entities::{AgentHeartbeat, Assignment, EmbeddedPermission, Held, IngestionStatus, Report};
use tidegate_rollout::region::agent::Jitter;
use tidegate_rollout::region::link::{AssignmentWatch, LinkError, LinkItem, Position};
use tidegate_rollout::region::metrics::RegionFigures;
use tidegate_rollout::region::{
    AgentOptions, EmbeddedClients, RegionAgent, RegionArtifacts, RegionLink, RegionMetrics, RegionNode,
};
use tidegate_state::{Clock, Epoch, ManualClock, Revision, Timestamp};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

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

// ---- nodes that fail when told to -----------------------------------------------------------------------------------

/// A step of an engine, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum On {
    Capacity,
    Load,
    Verify,
    Swap,
    Drop,
    Observe,
}

/// What a step does instead of its work.
#[derive(Clone, Debug)]
pub enum Fault {
    Fails(EngineError),
    Hangs,
    /// Verify alone: the digest that is found.
    Digest(String),
    /// Capacity alone: what is free beside what is needed, in bytes less.
    ShortBy(u64),
}

#[derive(Default)]
struct Script {
    /// One fault per call, in order.
    once: BTreeMap<(On, Option<String>), VecDeque<Fault>>,
    /// A fault for every call from now on.
    always: BTreeMap<(On, Option<String>), Fault>,
    calls: BTreeMap<(On, String), u64>,
}

/// An embedded engine that fails when told to, and counts.
#[derive(Clone)]
pub struct Node {
    pub name: String,
    folder: PathBuf,
    engine: Arc<Mutex<EmbeddedEngine>>,
    script: Arc<Mutex<Script>>,
}

impl Node {
    pub async fn open(folder: &Path, name: &str) -> Node {
        let folder = folder.join(name);
        let engine = EmbeddedEngine::open(&folder).await.unwrap();
        Node { name: name.to_owned(), folder, engine: Arc::new(Mutex::new(engine)), script: Arc::default() }
    }

    /// The node's process starts again.
    pub async fn restart(&self) {
        let engine = EmbeddedEngine::open(&self.folder).await.unwrap();
        *self.engine.lock() = engine;
    }

    /// The node's process starts again, on an empty disk.
    pub async fn restart_with_nothing(&self) {
        std::fs::remove_dir_all(&self.folder).unwrap();
        self.restart().await;
    }

    pub fn engine(&self) -> EmbeddedEngine {
        self.engine.lock().clone()
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn index(&self, store: &StoreKey, version: u64) -> PathBuf {
        self.folder
            .join("stores")
            .join(&store.name)
            .join(store.incarnation.to_string())
            .join(format!("{version}.index"))
    }

    pub fn once(&self, on: On, faults: impl IntoIterator<Item = Fault>) {
        self.script.lock().once.entry((on, None)).or_default().extend(faults);
    }

    pub fn always(&self, on: On, fault: Fault) {
        self.script.lock().always.insert((on, None), fault);
    }

    pub fn always_for(&self, store: &str, on: On, fault: Fault) {
        self.script.lock().always.insert((on, Some(store.to_owned())), fault);
    }

    pub fn well_again(&self) {
        let mut script = self.script.lock();
        script.once.clear();
        script.always.clear();
    }

    pub fn calls(&self, on: On, store: &str) -> u64 {
        self.script.lock().calls.get(&(on, store.to_owned())).copied().unwrap_or(0)
    }

    pub fn serves(&self, store: &str) -> Option<u64> {
        self.engine().reader(store).ok().map(|reader| reader.version())
    }

    /// Reads a key, and checks that it has the value of the version that answers.
    pub fn read(&self, store: &str, key: usize) -> Result<u64, NodeReadError> {
        let answer = self.engine().read(store, &format!("k{key}"))?;
        let value = answer.value.unwrap();
        assert_eq!(value["text"], text(answer.version, key));
        Ok(answer.version)
    }

    async fn fault(&self, on: On, store: &StoreKey) -> Result<Option<Fault>, EngineError> {
        let fault = {
            let mut script = self.script.lock();
            *script.calls.entry((on, store.name.clone())).or_default() += 1;
            let once = script.once.get_mut(&(on, None)).and_then(VecDeque::pop_front);
            once.or_else(|| script.always.get(&(on, Some(store.name.clone()))).cloned())
                .or_else(|| script.always.get(&(on, None)).cloned())
        };
        match fault {
            Some(Fault::Fails(error)) => Err(error),
            Some(Fault::Hangs) => std::future::pending().await,
            other => Ok(other),
        }
    }
}

#[async_trait]
impl Engine for Node {
    async fn adopt(&self, store: &StoreKey) -> Result<bool, EngineError> {
        self.engine().adopt(store).await
    }

    async fn capacity(&self, store: &StoreKey, version: u64, manifest: &Manifest) -> Result<Capacity, EngineError> {
        let fault = self.fault(On::Capacity, store).await?;
        let mut capacity = self.engine().capacity(store, version, manifest).await?;
        if let Some(Fault::ShortBy(bytes)) = fault {
            capacity.free_bytes = Some(capacity.needed_bytes - bytes);
            capacity.volume = Some(self.name.clone());
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
        self.fault(On::Load, store).await?;
        self.engine().load(store, version, artifact, progress, cancelled).await
    }

    async fn verify(&self, store: &StoreKey, version: u64) -> Result<Verification, EngineError> {
        let fault = self.fault(On::Verify, store).await?;
        let mut verification = self.engine().verify(store, version).await?;
        if let Some(Fault::Digest(digest)) = fault {
            verification.content_digest = digest;
        }
        Ok(verification)
    }

    async fn swap(&self, store: &StoreKey, version: Option<u64>) -> Result<(), EngineError> {
        self.fault(On::Swap, store).await?;
        self.engine().swap(store, version).await
    }

    async fn drop_version(&self, store: &StoreKey, version: u64) -> Result<(), EngineError> {
        self.fault(On::Drop, store).await?;
        self.engine().drop_version(store, version).await
    }

    async fn observe(&self, store: &StoreKey) -> Result<Observed, EngineError> {
        self.fault(On::Observe, store).await?;
        self.engine().observe(store).await
    }

    async fn stores(&self) -> Result<Vec<StoreKey>, EngineError> {
        self.engine().stores().await
    }
}

// ---- a control plane, played ----------------------------------------------------------------------------------------

struct Plane {
    epoch: Epoch,
    revision: u64,
    assignments: BTreeMap<String, Assignment>,
    log: Vec<(u64, String, Option<Assignment>)>,
    reports: BTreeMap<String, Report>,
    history: Vec<(String, Option<Report>)>,
    cut: bool,
    /// Watches of an earlier connection are over.
    connection: u64,
    removed: bool,
    refused: BTreeSet<String>,
    heartbeats: u64,
}

/// The control plane as one region sees it.
#[derive(Clone)]
pub struct ScriptedLink {
    region: String,
    plane: Arc<Mutex<Plane>>,
    changes: watch::Sender<u64>,
    reports: watch::Sender<u64>,
}

impl ScriptedLink {
    pub fn new(region: &str) -> Self {
        let plane = Plane {
            epoch: Epoch(Uuid::from_u128(77)),
            revision: 1,
            assignments: BTreeMap::new(),
            log: Vec::new(),
            reports: BTreeMap::new(),
            history: Vec::new(),
            cut: false,
            connection: 0,
            removed: false,
            refused: BTreeSet::new(),
            heartbeats: 0,
        };
        ScriptedLink {
            region: region.to_owned(),
            plane: Arc::new(Mutex::new(plane)),
            changes: watch::Sender::new(0),
            reports: watch::Sender::new(0),
        }
    }

    pub fn assign(&self, store: &str, assignment: Option<Assignment>) {
        let mut plane = self.plane.lock();
        plane.revision += 1;
        let revision = plane.revision;
        plane.log.push((revision, store.to_owned(), assignment.clone()));
        match assignment {
            Some(assignment) => plane.assignments.insert(store.to_owned(), assignment),
            None => plane.assignments.remove(store),
        };
        drop(plane);
        self.changes.send_modify(|count| *count += 1);
    }

    /// From now on nothing comes through, or everything does again.
    pub fn cut(&self, cut: bool) {
        {
            let mut plane = self.plane.lock();
            plane.cut = cut;
            plane.connection += 1;
        }
        self.changes.send_modify(|count| *count += 1);
    }

    pub fn remove_region(&self, removed: bool) {
        self.plane.lock().removed = removed;
        self.cut(true);
        self.cut(false);
    }

    pub fn refuse_reports(&self, store: &str, refuse: bool) {
        let mut plane = self.plane.lock();
        if refuse {
            plane.refused.insert(store.to_owned())
        } else {
            plane.refused.remove(store)
        };
    }

    /// The database is put back behind everybody's back: lower revision, same epoch.
    pub fn fall_back(&self, revision: u64, assignments: BTreeMap<String, Assignment>) {
        {
            let mut plane = self.plane.lock();
            plane.revision = revision;
            plane.assignments = assignments;
            plane.log.clear();
        }
        self.cut(true);
        self.cut(false);
    }

    /// The control plane's store is another one.
    pub fn other_epoch(&self, assignments: BTreeMap<String, Assignment>) {
        self.plane.lock().epoch = Epoch(Uuid::from_u128(78));
        self.fall_back(1, assignments);
    }

    pub fn revision(&self) -> u64 {
        self.plane.lock().revision
    }

    pub fn heartbeats(&self) -> u64 {
        self.plane.lock().heartbeats
    }

    pub fn report(&self, store: &str) -> Option<Report> {
        self.plane.lock().reports.get(store).cloned()
    }

    /// Every report on the store that came through.
    pub fn history(&self, store: &str) -> Vec<Option<Report>> {
        let plane = self.plane.lock();
        plane.history.iter().filter(|(of, _)| of == store).map(|(_, report)| report.clone()).collect()
    }

    fn up(&self) -> Result<(), LinkError> {
        if self.plane.lock().cut { Err(LinkError::Unavailable { why: "cut off".to_owned() }) } else { Ok(()) }
    }
}

struct ScriptedWatch {
    link: ScriptedLink,
    changes: watch::Receiver<u64>,
    connection: u64,
    at: Option<u64>,
}

#[async_trait]
impl AssignmentWatch for ScriptedWatch {
    async fn next(&mut self) -> Result<LinkItem, LinkError> {
        loop {
            self.changes.borrow_and_update();
            self.link.up()?;
            {
                let plane = self.link.plane.lock();
                if plane.connection != self.connection {
                    return Err(LinkError::Unavailable { why: "the connection broke".to_owned() });
                }
                let position = |revision| Position { epoch: plane.epoch, revision: Revision(revision) };
                let Some(at) = self.at else {
                    self.at = Some(plane.revision);
                    if plane.removed {
                        return Ok(LinkItem::Removed { position: position(plane.revision) });
                    }
                    return Ok(LinkItem::Snapshot {
                        position: position(plane.revision),
                        assignments: plane.assignments.clone(),
                        unreadable: BTreeSet::new(),
                        reports: plane.reports.clone(),
                    });
                };
                if let Some((revision, store, assignment)) = plane.log.iter().find(|(revision, ..)| *revision > at) {
                    self.at = Some(*revision);
                    return Ok(LinkItem::Change {
                        position: position(*revision),
                        store: store.clone(),
                        assignment: assignment.clone(),
                    });
                }
            }
            self.changes.changed().await.unwrap();
        }
    }
}

#[async_trait]
impl RegionLink for ScriptedLink {
    fn region(&self) -> &str {
        &self.region
    }

    async fn watch(&self, _from: Option<Position>) -> Result<Box<dyn AssignmentWatch>, LinkError> {
        self.up()?;
        let connection = self.plane.lock().connection;
        Ok(Box::new(ScriptedWatch { link: self.clone(), changes: self.changes.subscribe(), connection, at: None }))
    }

    async fn report(&self, store: &str, report: Option<Report>) -> Result<(), LinkError> {
        self.up()?;
        let mut plane = self.plane.lock();
        if plane.removed || plane.refused.contains(store) {
            return Err(LinkError::Refused { why: "not known here".to_owned() });
        }
        plane.revision += 1;
        plane.history.push((store.to_owned(), report.clone()));
        match report {
            Some(report) => plane.reports.insert(store.to_owned(), report),
            None => plane.reports.remove(store),
        };
        drop(plane);
        self.reports.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn heartbeat(&self, _: AgentHeartbeat) -> Result<(), LinkError> {
        self.up()?;
        self.plane.lock().heartbeats += 1;
        Ok(())
    }
}

// ---- a region -------------------------------------------------------------------------------------------------------

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
        let region_nodes =
            nodes.iter().map(|node| RegionNode { name: node.name.clone(), engine: Arc::new(node.clone()) }).collect();
        let shared_clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let mut options = AgentOptions::new("a", folder.path().join("agent"), region_nodes, artifacts, shared_clock);
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
