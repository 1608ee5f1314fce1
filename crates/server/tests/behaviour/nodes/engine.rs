//! The engine over HTTP: N1 to N8, and whom a node obeys (C19).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use axum::Router;
use axum::extract::Path as PathIds;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::get;
use parking_lot::Mutex;
use tempfile::TempDir;
use tidegate_client::api::manifest::Manifest;
use tidegate_dataset::artifact::{ArtifactStore, FileRange};
use tidegate_rollout::engine::conformance::{self, BegunRead, EngineFactory, on_disk};
use tidegate_rollout::engine::remote::{NodePlace, RemoteEngine};
use tidegate_rollout::engine::{
    Capacity, Engine, EngineError, LoadProgress, LoadableArtifact, Observed, StoreKey, Verification,
};
use tidegate_rollout::region::remote::http_client;
use tidegate_server::node::NodeHandle;
use tokio_util::sync::CancellationToken;

use super::start_node;

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
        on_disk::put_live(&self.data(node).join("node"), &store.name, artifact).await.unwrap();
        true
    }

    async fn begin_read(&self, engine: &Remote, store: &StoreKey) -> Option<Box<dyn BegunRead>> {
        engine.node.engine().reader(&store.name).ok().map(|reader| Box::new(reader) as Box<dyn BegunRead>)
    }

    async fn footprint(&self, node: &str) -> Option<u64> {
        Some(on_disk::footprint(&self.data(node).join("node")).unwrap())
    }
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
