//! A serving node of a region as a process of its own: `tidegate node`.
//!
//! The node announces itself to its region's agent, again and again, and is commanded by it. What it holds and serves is
//! on its own disk: it serves on without its agent, and after a restart without it.
//!
//! | file | has |
//! |---|---|
//! | this one | starting, stopping, announcing |
//! | `obeys` | whom it obeys: the highest token that it has ever seen |
//! | `routes` | its HTTP service: orders of the agent, reads, health, metrics |
//!
//! # Invariants
//! - Orders come with a secret that the node has drawn at its start and told its agent alone.
//! - An order with a lower token than one seen before is refused, also after a restart.
//! - A step whose agent has gone away is cut off.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::registry::Registry as MetricsRegistry;
use tidegate_api::agent::{NodeAnnouncement, NodeWelcome};
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_rollout::engine::embedded::EmbeddedEngine;
use tidegate_rollout::engine::remote::wire::Loads;
use tidegate_rollout::region::agent::random_jitter;
use tidegate_rollout::region::{RemoteArtifacts, RemoteClient, RemoteOptions, TokenFile};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::{AgentStartError, Exposure, hosts, secret};
use crate::data_folder::{self, write_private};
use crate::http::metrics::HttpMetrics;
use crate::http::serve::{ConnectionLimits, ConnectionMetrics, Service, drain, serve};

mod obeys;
mod routes;

/// Where a node listens if nobody says.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7620";

/// How often a node announces itself.
pub(crate) const ANNOUNCE_EVERY: Duration = Duration::from_secs(5);

/// The region that the node was last told it belongs to.
const REGION_FILE: &str = "region";

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeSetup {
    /// The agent's address.
    pub agent: String,
    /// Where the region's token is, if the agent wants one.
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) that are trusted beside those of the machine.
    pub trusted: Option<PathBuf>,
    /// The folder that everything is kept in. Made if it is not there.
    pub data: PathBuf,
    /// Where to listen. Port 0: any free one.
    pub listen: SocketAddr,
    /// What makes it listen beyond loopback.
    pub exposure: Exposure,
    /// Where the agent and others reach the node, if that is not where it listens.
    pub advertise: Option<String>,
    /// Its name, which is its own within the region.
    pub name: String,
}

impl NodeSetup {
    /// A node on [`DEFAULT_LISTEN`].
    pub fn new(name: impl Into<String>, agent: impl Into<String>, data: impl Into<PathBuf>) -> Self {
        NodeSetup {
            agent: agent.into(),
            token_file: None,
            trusted: None,
            data: data.into(),
            listen: DEFAULT_LISTEN.parse().expect("a constant address"),
            exposure: Exposure::default(),
            advertise: None,
            name: name.into(),
        }
    }
}

/// A node that runs. [`shutdown`](NodeHandle::shutdown) ends it in order; dropping it ends it at once, as a crash would.
pub struct NodeHandle {
    address: SocketAddr,
    app: NodeApp,
    closing: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
    announcing: JoinHandle<()>,
    _lock: File,
}

impl std::fmt::Debug for NodeHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NodeHandle").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What the node's handlers can reach. Clones are the same.
#[derive(Clone)]
pub(crate) struct NodeApp(Arc<Inner>);

struct Inner {
    name: String,
    /// The region, once the agent has said which.
    region: RwLock<Option<String>>,
    secret: String,
    engine: EmbeddedEngine,
    source: ArtifactStore,
    obeys: obeys::Obeys,
    loads: Loads,
    metrics: MetricsRegistry,
    http: HttpMetrics,
    connections: ConnectionMetrics,
    closing: CancellationToken,
    /// Steps that go on.
    steps: TaskTracker,
}

/// Starts nodes.
#[derive(Debug)]
pub struct Node;

impl Node {
    /// Starts a node. When this returns it answers reads, and serves what it served before.
    ///
    /// # Errors
    /// See [`AgentStartError`].
    pub async fn start(setup: NodeSetup) -> Result<NodeHandle, AgentStartError> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if setup.name.is_empty() || setup.name.len() > 64 || !setup.name.chars().all(is_name) {
            let why = "it has 1 to 64 letters, digits, `-`, `_` and `.`".to_owned();
            return Err(AgentStartError::Setting { what: format!("the node's name {:?}", setup.name), why });
        }
        setup.exposure.check(setup.listen)?;
        let lock = data_folder::take(&setup.data, "node.lock")?;
        let failed = |source| AgentStartError::Listen { address: setup.listen, source };
        let listener = TcpListener::bind(setup.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (app, client) = open(&setup).await?;
        let announcement = NodeAnnouncement {
            address: setup.advertise.clone().unwrap_or_else(|| format!("http://{address}")),
            secret: app.0.secret.clone(),
        };
        let closing = app.0.closing.clone();
        let stop = closing.clone();
        let service = Service {
            router: routes::router(app.clone(), hosts(address, setup.advertise.as_deref())),
            tls: None,
            limits: ConnectionLimits::default(),
            metrics: app.0.connections.clone(),
        };
        let serving = tokio::spawn(serve(listener, service, stop));
        let announcing = tokio::spawn(announce(app.clone(), client, announcement, setup.data.join(REGION_FILE)));
        tracing::info!(node = setup.name, %address, data = %setup.data.display(), "the node serves");
        Ok(NodeHandle { address, app, closing, serving, announcing, _lock: lock })
    }
}

impl NodeHandle {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address for clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The secret with which it is commanded.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.app.0.secret
    }

    /// What it holds data in.
    #[must_use]
    pub fn engine(&self) -> &EmbeddedEngine {
        &self.app.0.engine
    }

    /// Ends the node in order: steps are cut off, and requests that are open are answered.
    pub async fn shutdown(mut self) {
        self.closing.cancel();
        drain(&mut self.serving).await;
        self.app.0.steps.close();
        self.app.0.steps.wait().await;
        // It ends by the same token; a panic in it was logged where it happened.
        let _ = (&mut self.announcing).await;
    }
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        self.closing.cancel();
        self.serving.abort();
        self.announcing.abort();
    }
}

async fn open(setup: &NodeSetup) -> Result<(NodeApp, RemoteClient), AgentStartError> {
    let kept = |source| AgentStartError::Data { path: setup.data.clone(), source };
    let mut remote = RemoteOptions::new([&setup.agent], format!("node {}", setup.name));
    remote.token = setup.token_file.as_ref().map(TokenFile::new);
    remote.trusted.clone_from(&setup.trusted);
    let client = RemoteClient::new(remote)?;
    let engine = EmbeddedEngine::open(setup.data.join("node")).await.map_err(|error| kept(error.source))?;
    let obeys = obeys::Obeys::open(&setup.data).map_err(kept)?;
    let region = std::fs::read_to_string(setup.data.join(REGION_FILE)).ok();
    let mut metrics = MetricsRegistry::default();
    let http = HttpMetrics::register(&mut metrics);
    let connections = ConnectionMetrics::register(&mut metrics);
    let app = NodeApp(Arc::new(Inner {
        name: setup.name.clone(),
        region: RwLock::new(region),
        secret: secret::draw(),
        engine,
        source: ArtifactStore::new(Arc::new(RemoteArtifacts::new(client.clone()))),
        obeys,
        loads: Loads::default(),
        metrics,
        http,
        connections,
        closing: CancellationToken::new(),
        steps: TaskTracker::new(),
    }));
    Ok((app, client))
}

/// Says to the agent where the node is, until the node stops.
async fn announce(app: NodeApp, client: RemoteClient, announcement: NodeAnnouncement, file: PathBuf) {
    let jitter = random_jitter();
    let name = app.0.name.clone();
    let segments = ["v1", "nodes", name.as_str()];
    let mut failures = 0_u32;
    loop {
        let announced = client.json::<NodeWelcome>(&segments, |http, url| http.put(url).json(&announcement));
        let announced = tokio::select! {
            biased;
            () = app.0.closing.cancelled() => return,
            announced = announced => announced,
        };
        match announced {
            Ok(welcome) => {
                failures = 0;
                let known = app.0.region.read().as_ref() == Some(&welcome.region);
                if !known {
                    tracing::info!(region = welcome.region, "the node belongs to this region");
                    let (path, region) = (file.clone(), welcome.region.clone());
                    let kept = tokio::task::spawn_blocking(move || write_private(&path, &region)).await;
                    if let Ok(Err(error)) = kept {
                        tracing::error!(%error, "the region that the node belongs to could not be kept on its disk");
                    }
                    *app.0.region.write() = Some(welcome.region);
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                if failures == 1 {
                    tracing::warn!(%error, "the agent did not take the node's announcement; it serves on, and tries again");
                }
            }
        }
        let pause = ANNOUNCE_EVERY.mul_f64(0.75 + 0.5 * jitter());
        // The first failures may be those of an agent that is just starting.
        let pause = if (1..4).contains(&failures) { pause / 10 } else { pause };
        tokio::select! {
            biased;
            () = app.0.closing.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
