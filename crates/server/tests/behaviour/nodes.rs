//! Nodes that are processes of their own: N1 to N8 over HTTP, R7, R12, C19.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::Path as PathIds;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::Value;
use tempfile::TempDir;
use tidegate_client::api::manifest::Manifest;
use tidegate_client::api::{AuditChange, AuditView, PushStatus};
use tidegate_client::{AuditQuery, Client};
use tidegate_dataset::Cancel;
use tidegate_dataset::artifact::{ArtifactStore, FileRange};
use tidegate_dataset::index::{IndexBuilder, IndexCompression};
use tidegate_rollout::engine::conformance::{self, BegunRead, EngineFactory};
use tidegate_rollout::engine::embedded::Reader;
use tidegate_rollout::engine::remote::{NodePlace, RemoteEngine};
use tidegate_rollout::engine::{
    Capacity, Engine, EngineError, LoadProgress, LoadableArtifact, Observed, StoreKey, Verification,
};
use tidegate_rollout::region::remote::http_client;
use tidegate_server::agent::{Agent, AgentHandle, AgentSetup, ControlError, NodeRemoval, remove_node};
use tidegate_server::config::RegionSection;
use tidegate_server::node::{Node, NodeHandle, NodeSetup};
use tokio_util::sync::CancellationToken;

use crate::world::{LIMIT, World};

/// Plays the agent's part: whoever asks is given the artifacts that were last loaded from.
struct Source {
    store: Mutex<Option<ArtifactStore>>,
}

impl Source {
    async fn start() -> (Arc<Self>, String) {
        let source = Arc::new(Source { store: Mutex::new(None) });
        let shared = Arc::clone(&source);
        let file = move |PathIds((artifact, file)): PathIds<(String, String)>, headers: HeaderMap| {
            let store = shared.store.lock().clone();
            async move {
                let Some(store) = store else { return axum::http::StatusCode::NOT_FOUND.into_response() };
                let text = headers.get("range").and_then(|range| range.to_str().ok()).unwrap_or_default();
                let range = text.strip_prefix("bytes=").and_then(|text| text.split_once('-'));
                let range = range
                    .map(|(first, last)| FileRange::Between(first.parse().unwrap(), last.parse::<u64>().unwrap() + 1));
                let opened = store.open_file(&artifact, &file, range).await.unwrap();
                let status = if range.is_some() { 206 } else { 200 };
                let given = format!("bytes {}-{}/{}", opened.range.start, opened.range.end.max(1) - 1, opened.size);
                axum::http::Response::builder()
                    .status(status)
                    .header("content-range", given)
                    .header("content-length", opened.range.end - opened.range.start)
                    .body(axum::body::Body::from_stream(opened.bytes))
                    .unwrap()
            }
        };
        let app = Router::new().route("/v1/artifacts/{artifact}/{file}", get(file));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (source, url)
    }
}

struct Nodes {
    folder: TempDir,
    source: Arc<Source>,
    url: String,
}

impl Nodes {
    fn data(&self, node: &str) -> PathBuf {
        self.folder.path().join(node)
    }
}

/// An engine over HTTP, and the node's process.
struct Remote {
    engine: RemoteEngine,
    node: NodeHandle,
    source: Arc<Source>,
}

#[async_trait]
impl Engine for Remote {
    async fn adopt(&self, store: &StoreKey) -> Result<bool, EngineError> {
        self.engine.adopt(store).await
    }

    async fn capacity(&self, store: &StoreKey, version: u64, manifest: &Manifest) -> Result<Capacity, EngineError> {
        self.engine.capacity(store, version, manifest).await
    }

    async fn load(
        &self,
        store: &StoreKey,
        version: u64,
        artifact: &LoadableArtifact,
        progress: &Arc<LoadProgress>,
        cancelled: &CancellationToken,
    ) -> Result<(), EngineError> {
        *self.source.store.lock() = Some(artifact.store.clone());
        self.engine.load(store, version, artifact, progress, cancelled).await
    }

    async fn verify(&self, store: &StoreKey, version: u64) -> Result<Verification, EngineError> {
        self.engine.verify(store, version).await
    }

    async fn swap(&self, store: &StoreKey, version: Option<u64>) -> Result<(), EngineError> {
        self.engine.swap(store, version).await
    }

    async fn drop_version(&self, store: &StoreKey, version: u64) -> Result<(), EngineError> {
        self.engine.drop_version(store, version).await
    }

    async fn observe(&self, store: &StoreKey) -> Result<Observed, EngineError> {
        self.engine.observe(store).await
    }

    async fn stores(&self) -> Result<Vec<StoreKey>, EngineError> {
        self.engine.stores().await
    }
}

struct Read(Reader);

#[async_trait]
impl BegunRead for Read {
    fn version(&self) -> u64 {
        self.0.version()
    }

    async fn value(&self, key: &str) -> Result<Option<Value>, String> {
        let found = self.0.read(key).map_err(|error| error.to_string())?;
        found.map(|record| serde_json::from_str(record.get()).map_err(|error| error.to_string())).transpose()
    }
}

async fn start_node(name: &str, agent: &str, data: PathBuf) -> NodeHandle {
    let mut setup = NodeSetup::new(name, agent, data);
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    // The process before may take a moment to be gone altogether.
    let started = tokio::time::timeout(LIMIT, async {
        loop {
            match Node::start(setup.clone()).await {
                Ok(node) => return node,
                Err(tidegate_server::agent::AgentStartError::DataInUse { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    });
    started.await.unwrap()
}

fn place(node: &NodeHandle) -> NodePlace {
    NodePlace { address: node.url().parse().unwrap(), secret: node.secret().to_owned() }
}

fn remote(place: NodePlace, token: Arc<AtomicU64>) -> RemoteEngine {
    RemoteEngine::new(place, token, http_client(None).unwrap())
}

#[async_trait]
impl EngineFactory for Nodes {
    type Engine = Remote;

    async fn open(&self, node: &str) -> Remote {
        let node = start_node(node, &self.url, self.data(node)).await;
        let engine = remote(place(&node), Arc::new(AtomicU64::new(7)));
        Remote { engine, node, source: Arc::clone(&self.source) }
    }

    async fn lose(&self, node: &str) {
        std::fs::remove_dir_all(self.data(node)).unwrap();
    }

    async fn put_live(&self, node: &str, store: &StoreKey, artifact: &LoadableArtifact) -> bool {
        let folder = self.data(node).join("node").join("stores").join(&store.name);
        std::fs::create_dir_all(&folder).unwrap();
        let builder = IndexBuilder::new(folder.join("live.index")).compression(IndexCompression::Never);
        let progress = Arc::new(|_| {});
        let manifest = Arc::clone(&artifact.manifest);
        builder.build_from_store(artifact.store.clone(), manifest, progress, Cancel::new()).await.unwrap();
        true
    }

    async fn begin_read(&self, engine: &Remote, store: &StoreKey) -> Option<Box<dyn BegunRead>> {
        engine.node.engine().reader(&store.name).ok().map(|reader| Box::new(Read(reader)) as Box<dyn BegunRead>)
    }

    async fn footprint(&self, node: &str) -> Option<u64> {
        Some(size(&self.data(node).join("node")))
    }
}

fn size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().map_or(0, |data| data.len()) }
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn n1_to_n8_the_engine_over_http_passes_the_suite() {
    let (source, url) = Source::start().await;
    let nodes = Nodes { folder: tempfile::tempdir().unwrap(), source, url };
    let violations = conformance::run(&nodes).await.unwrap();
    assert_eq!(violations, [], "{violations:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_node_obeys_the_highest_token_alone_and_nobody_without_its_secret() {
    let (_, url) = Source::start().await;
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("n");
    let node = start_node("n", &url, data.clone()).await;
    let token = Arc::new(AtomicU64::new(7));
    let first = remote(place(&node), Arc::clone(&token));
    let second = remote(place(&node), Arc::new(AtomicU64::new(8)));
    assert_eq!(first.stores().await.unwrap(), []);
    assert_eq!(second.stores().await.unwrap(), []);
    let refused = first.stores().await.unwrap_err().to_string();
    assert!(refused.contains("token is 7") && refused.contains("with 8"), "{refused}");
    let stranger = NodePlace { secret: "guessed".to_owned(), ..place(&node) };
    let stranger = remote(stranger, Arc::new(AtomicU64::new(9)));
    assert!(stranger.stores().await.unwrap_err().to_string().contains("secret"));
    // Also after it has started again, at another place.
    drop(node);
    let node = start_node("n", &url, data).await;
    first.moved(place(&node));
    assert!(first.stores().await.is_err());
    token.store(9, Ordering::Relaxed);
    assert_eq!(first.stores().await.unwrap(), []);
    node.shutdown().await;
    assert!(first.stores().await.is_err());
}

async fn start_agent(world: &World, name: &str, token_file: Option<PathBuf>) -> AgentHandle {
    let mut setup = AgentSetup::new("b", vec![world.url()], world.folder.path().join(name));
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    setup.lease = Duration::from_secs(3);
    setup.nodes = 1;
    setup.token_file = token_file;
    // Whoever reaches it may read; nodes show the region's token all the same.
    setup.exposure.allow_anyone = true;
    Agent::start(setup).await.unwrap()
}

async fn until_version(what: &str, url: &str, version: u64) {
    let client = Client::new(url).unwrap();
    let waited = tokio::time::timeout(LIMIT, async {
        while client.get("s", "k7", None).await.ok().map(|answer| answer.version) != Some(version) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r12_a_node_joins_its_region_serves_on_by_itself_and_catches_up() {
    let world = World::start_with(|options| {
        let region = RegionSection { agent: true, nodes: 2, enough: Some(1), ..RegionSection::new("b") };
        options.config.regions = vec![region];
    })
    .await;
    world.store().await;
    let push = async |id: &str, value: &str| {
        let outcome = world.push(id, &world.rows(&format!("{id}.csv"), 40, value)).await;
        assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    };
    let token_file = world.folder.path().join("token");
    std::fs::write(&token_file, "of the region").unwrap();
    let agent = start_agent(&world, "agent-1", Some(token_file.clone())).await;
    push("p1", "x").await;

    // Without the region's token it is not taken in.
    let stranger = start_node("stranger", &agent.url(), world.folder.path().join("stranger")).await;
    let mut setup = NodeSetup::new("n-1", agent.url(), world.folder.path().join("n-1"));
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    setup.token_file = Some(token_file.clone());
    setup.exposure.allow_anyone = true;
    let node = Node::start(setup.clone()).await.unwrap();
    until_version("the node has taken in what the region serves", &node.url(), 1).await;
    let answer = Client::new(&node.url()).unwrap().get("s", "k7", None).await.unwrap();
    assert_eq!((answer.region.as_deref(), answer.node.as_deref()), (Some("b"), Some("n-1")));
    assert_eq!(answer.value["v"], "x7");
    let (status, _) = world.raw(reqwest::Client::new().get(format!("{}/readyz", stranger.url()))).await;
    assert_eq!(status, 503);
    push("p2", "y").await;
    until_version("the node serves version 2", &node.url(), 2).await;
    let shown = tokio::time::timeout(LIMIT, async {
        loop {
            let host = world.client.region("b").await.unwrap().host.unwrap();
            if let Some(shown) = host.nodes.iter().find(|shown| shown.name == "n-1") {
                return shown.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(shown.await.unwrap().address, Some(node.url()));

    // It serves on without its agent, and the agent without it.
    agent.shutdown().await;
    until_version("it serves on", &node.url(), 2).await;
    let before = node.address();
    node.shutdown().await;
    let agent = start_agent(&world, "agent-1", Some(token_file)).await;
    push("p3", "z").await;
    until_version("the agent serves on", &agent.url(), 3).await;
    let waited = tokio::time::timeout(LIMIT, async {
        loop {
            let region = world.client.region("b").await.unwrap();
            if region.stores["s"].lagging_nodes == ["n-1"] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("the node that is gone is named");
    // Back, at another place, it catches up.
    setup.agent = agent.url();
    let _taken = std::net::TcpListener::bind(before).unwrap();
    let node = Node::start(setup).await.unwrap();
    until_version("it has caught up", &node.url(), 3).await;
    let shown = tokio::time::timeout(LIMIT, async {
        loop {
            let host = world.client.region("b").await.unwrap().host.unwrap();
            if host.nodes.iter().any(|shown| shown.name == "n-1" && shown.address == Some(node.url())) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    shown.await.expect("it is shown where it is now");
    assert_ne!(node.address(), before);
    node.shutdown().await;
    stranger.shutdown().await;
    agent.shutdown().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_node_that_is_removed_with_the_control_plane_gone_is_in_the_audit_trail_once_with_its_time() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settle = |options: &mut tidegate_server::Options| {
        options.listen = Some(SocketAddr::from(([127, 0, 0, 1], port)));
        options.config.regions = vec![RegionSection { agent: true, ..RegionSection::new("b") }];
    };
    let mut world = World::start_with(settle).await;
    let agent = start_agent(&world, "agent-1", None).await;
    let data = world.folder.path().join("agent-1");
    let mut nodes = Vec::new();
    for name in ["n-1", "n-2"] {
        nodes.push(start_node(name, &agent.url(), world.folder.path().join(name)).await);
    }
    until_left(&world, &["b-1", "n-1", "n-2"]).await;
    world.server.take().unwrap().shutdown().await;
    let before = now_ms();
    remove_node(&data, "n-1", removal(true)).await.unwrap();
    agent.shutdown().await;
    // Where no agent runs, the order is carried out on its folder, and told by the next one.
    remove_node(&data, "n-2", removal(true)).await.unwrap();
    let after = now_ms();

    let mut options = crate::world::options(world.folder.path());
    settle(&mut options);
    let server = tidegate_server::Server::start(options).await.unwrap();
    world.client = Client::new(&server.url()).unwrap();
    world.server = Some(server);
    let up_again = now_ms();
    let agent = start_agent(&world, "agent-1", None).await;
    let query = AuditQuery { region: Some("b".to_owned()), ..AuditQuery::default() };
    let removals = async || -> Vec<AuditView> {
        let entries = world.client.audit(&query).await.unwrap().entries;
        entries.into_iter().filter(|entry| entry.operation == "remove node").collect()
    };
    let told = tokio::time::timeout(LIMIT, async {
        loop {
            let entries = removals().await;
            if entries.len() >= 2 {
                return entries;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let told = told.await.expect("both are reported");
    // The newest first.
    for (entry, node) in told.iter().zip(["n-2", "n-1"]) {
        assert_eq!((entry.user.as_str(), entry.reason.as_deref()), ("me", Some("its machine has burned down")));
        assert!((before..=after).contains(&entry.at), "{before} {after} {entry:#?}");
        let removed = &entry.entities[0];
        assert_eq!((removed.kind.as_str(), removed.id.as_str()), ("node", node));
        assert_eq!(removed.change, AuditChange::Removed);
        let field = |name: &str| removed.fields.iter().find(|field| field.field == name).unwrap();
        assert_eq!(field("region").before.as_deref(), Some("b"));
        let reported_at: u64 = field("reported_at").after.as_ref().unwrap().parse().unwrap();
        assert!(reported_at >= up_again, "{reported_at} {up_again}");
    }
    // Once, also where it was told twice: the agent may not have heard that it was.
    let list: Value = serde_json::from_slice(&std::fs::read(data.join("removals.json")).unwrap()).unwrap();
    let again = serde_json::json!({
        "list": list["id"], "number": 2, "agent": "agent-1", "node": "n-2", "address": "http://127.0.0.1:1",
        "by": "me", "reason": "again", "forced": true, "at": before,
    });
    let http = reqwest::Client::new();
    let url = format!("{}/v1/regions/b/agent/removals", world.url());
    assert_eq!(world.raw(http.post(&url).json(&again)).await.0, 204);
    assert_eq!(removals().await, told);
    let nowhere = url.replace("/b/", "/nowhere/");
    assert_eq!(world.raw(http.post(&nowhere).json(&again)).await.0, 404);
    for node in nodes {
        node.shutdown().await;
    }
    agent.shutdown().await;
    world.end().await;
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// A region with an agent that has one node, and one beside it, both of which have to hold what is pushed.
async fn region_of_two() -> (World, AgentHandle, NodeSetup) {
    let world = World::start_with(|options| {
        let region = RegionSection { agent: true, nodes: 2, enough: Some(2), ..RegionSection::new("b") };
        options.config.regions = vec![region];
    })
    .await;
    world.store().await;
    let agent = start_agent(&world, "agent-1", None).await;
    let mut setup = NodeSetup::new("n-1", agent.url(), world.folder.path().join("n-1"));
    setup.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    (world, agent, setup)
}

async fn until_left(world: &World, nodes: &[&str]) {
    let waited = tokio::time::timeout(LIMIT, async {
        loop {
            let host = world.client.region("b").await.unwrap().host;
            let there: Vec<String> = host.into_iter().flat_map(|host| host.nodes).map(|node| node.name).collect();
            if there == nodes {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("the region never had {nodes:?}"));
}

fn removal(force: bool) -> NodeRemoval {
    NodeRemoval { by: "me".to_owned(), reason: "its machine has burned down".to_owned(), force }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_node_that_is_gone_for_good_holds_pushes_up_until_it_is_removed() {
    let (world, agent, setup) = region_of_two().await;
    let data = world.folder.path().join("agent-1");
    let node = Node::start(setup.clone()).await.unwrap();
    until_left(&world, &["b-1", "n-1"]).await;
    let outcome = world.push("p1", &world.rows("p1.csv", 40, "x")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    until_version("the node serves version 1", &node.url(), 1).await;

    // Given a node that has died, a push comes no further than to those that are left.
    drop(node);
    let job = world.job("p2", &world.rows("p2.csv", 40, "y"));
    let client = world.client.clone();
    let pushing = tokio::spawn(async move { job.run(&client, &mut |_| {}).await });
    let held = async {
        loop {
            let region = world.client.region("b").await.unwrap();
            if region.stores.get("s").is_some_and(|store| store.lagging_nodes == ["n-1"] && store.held.contains_key(&2))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, held).await.expect("the push waits for the node");
    assert!(!pushing.is_finished());
    // When it is removed, the push goes on, and the region is one node smaller.
    // (Forced: it may have been heard of a moment ago.)
    let removed = remove_node(&data, "n-1", removal(true)).await.unwrap();
    assert_eq!((removed.node.as_str(), removed.left.as_slice()), ("n-1", &["b-1".to_owned()][..]));
    let outcome = tokio::time::timeout(LIMIT, pushing).await.expect("the push ends").unwrap().unwrap();
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    assert_eq!(world.serving().await["b"], 2);
    until_left(&world, &["b-1"]).await;
    let refused = remove_node(&data, "n-1", removal(true)).await.unwrap_err();
    assert!(refused.to_string().contains("no such node"), "{refused}");

    // It stays so after a restart of the agent; a node of that name that is started joins, and catches up.
    agent.shutdown().await;
    let agent = start_agent(&world, "agent-1", None).await;
    until_left(&world, &["b-1"]).await;
    let node = Node::start(NodeSetup { agent: agent.url(), ..setup }).await.unwrap();
    until_version("the node is back", &node.url(), 2).await;
    until_left(&world, &["b-1", "n-1"]).await;
    node.shutdown().await;
    agent.shutdown().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c19_a_node_that_is_removed_while_it_serves_is_told_to_end_and_one_that_stops_stays_a_member() {
    let (world, agent, mut setup) = region_of_two().await;
    let data = world.folder.path().join("agent-1");
    let node = Node::start(setup.clone()).await.unwrap();
    until_left(&world, &["b-1", "n-1"]).await;
    // One that stops in order is expected back, and is brought to where the others are.
    setup.listen = node.address();
    node.shutdown().await;
    until_left(&world, &["b-1", "n-1"]).await;
    let node = Node::start(setup).await.unwrap();
    let outcome = world.push("p1", &world.rows("p1.csv", 40, "x")).await;
    assert_eq!(outcome.state.status, PushStatus::Completed, "{outcome:#?}");
    until_version("it is commanded again", &node.url(), 1).await;
    let refused = remove_node(&data, "b-1", removal(true)).await.unwrap_err();
    assert!(refused.to_string().contains("within the agent's own process"), "{refused}");
    let without_reason = NodeRemoval { reason: " ".to_owned(), ..removal(true) };
    assert!(remove_node(&data, "n-1", without_reason).await.unwrap_err().to_string().contains("reason"));
    let refused = remove_node(&data, "n-1", removal(false)).await.unwrap_err();
    let ControlError::Refused(body) = refused else { panic!("{refused}") };
    assert!(body.why.contains("heard of") && body.why.contains("serves"), "{body}");
    assert!(body.consequences.contains("reads that go there fail"), "{body}");
    let removed = remove_node(&data, "n-1", removal(true)).await.unwrap();
    assert!(removed.was_heard && removed.address == node.url(), "{removed:?}");
    let told = tokio::time::timeout(LIMIT, node.removed()).await.expect("it is told");
    assert!(told.what.contains("region `b`"), "{told}");
    until_left(&world, &["b-1"]).await;
    node.shutdown().await;
    agent.shutdown().await;
    world.end().await;
}
