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
//! - Its routes are rows of the table of [`access`](crate::access). It asks for tokens if it has one itself; which it lets in
//!   it hears from its agent.
//! - Orders come with a secret that the node has drawn at its start and told its agent alone.
//! - An order with a lower token than one seen before is refused, also after a restart.
//! - A step whose agent has gone away is cut off.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::registry::Registry as MetricsRegistry;
use tidegate_api::agent::{NodeAnnouncement, NodeWelcome};
use tidegate_api::{ErrorBody, code};
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_rollout::engine::embedded::EmbeddedEngine;
use tidegate_rollout::engine::remote::wire::Loads;
use tidegate_rollout::region::agent::random_jitter;
use tidegate_rollout::region::remote::RemoteError;
use tidegate_rollout::region::{RemoteArtifacts, RemoteClient, RemoteOptions, TokenFile};
use tidegate_state::SystemClock;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::config::{Authentication, TlsSection};
use crate::access::region::RegionGuard;
use crate::access::{AccessMetrics, Door, Exposure};
use crate::agent::service::{Listening, Serving};
use crate::agent::{AgentStartError, ServiceLimits, secret, unruled};
use crate::data_folder::{self, FolderLock, write_private};
use crate::http::metrics::HttpMetrics;
use crate::http::serve::ConnectionMetrics;

mod obeys;
mod routes;

#[cfg(test)]
pub(crate) use routes::all as routes;

/// Where a node listens if nobody says.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7620";

/// How often a node announces itself.
pub(crate) const ANNOUNCE_EVERY: Duration = Duration::from_secs(5);

/// The shortest pause between two announcements, however many wait for news of tokens.
const ANNOUNCE_REST: Duration = Duration::from_millis(500);

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
    /// What protects it from more than it can take.
    pub limits: ServiceLimits,
    /// Its certificate and key; absent: it speaks plain HTTP.
    pub tls: TlsSection,
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
            limits: ServiceLimits::default(),
            tls: TlsSection::default(),
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
    url: String,
    serving: Serving,
    announcing: JoinHandle<()>,
    /// What the agent said when it let go of the node.
    removed: watch::Receiver<Option<Box<ErrorBody>>>,
    _lock: FolderLock,
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
    limits: ServiceLimits,
    guard: RegionGuard,
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
        let checked = Listening {
            listen: setup.listen,
            exposure: setup.exposure,
            tls: &setup.tls,
            advertise: setup.advertise.as_deref(),
            has_token: setup.token_file.is_some(),
        };
        let checked = checked.check().await?;
        let authentication = checked.authentication;
        let lock = data_folder::take(&setup.data, "node.lock")?;
        let opened = checked.open().await?;
        let Some(advertised) = opened.advertised() else {
            return Err(AgentStartError::Setting {
                what: format!("{} as the address by which the agent reaches the node", setup.listen),
                why: "it stands for all of the machine's addresses; say by which one (--advertise)".to_owned(),
            });
        };
        let mut metrics = MetricsRegistry::default();
        let tls_metrics = opened.tls_metrics(&mut metrics);
        let (app, client) = open(&setup, authentication, metrics).await?;
        let closing = app.0.closing.clone();
        // Should the rest fail, what has begun ends with it.
        let failed = closing.clone().drop_guard();
        let (address, url) = (opened.address, opened.url());
        let router = routes::router(app.clone(), opened.hosts()).map_err(unruled)?;
        let serving = opened.serve(router, app.0.connections.clone(), tls_metrics, &setup.limits.service, &closing)?;
        let (told, removed) = watch::channel(None);
        let announcing = announce(app.clone(), client, advertised, setup.data.join(REGION_FILE), told);
        let announcing = tokio::spawn(announcing);
        tracing::info!(node = setup.name, %address, data = %setup.data.display(), "the node serves");
        failed.disarm();
        Ok(NodeHandle { address, app, closing, url, serving, announcing, removed, _lock: lock })
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
        self.url.clone()
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
        self.serving.end().await;
        self.app.0.steps.close();
        self.app.0.steps.wait().await;
        // It ends by the same token; a panic in it was logged where it happened.
        let _ = (&mut self.announcing).await;
    }
}

impl NodeHandle {
    /// Ends if the agent lets go of the node: what it serves gets old from then on, and it is to be ended.
    pub async fn removed(&self) -> Box<ErrorBody> {
        let mut removed = self.removed.clone();
        match removed.wait_for(Option::is_some).await.ok().and_then(|body| body.clone()) {
            Some(body) => body,
            // The node is stopping.
            None => std::future::pending().await,
        }
    }
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        self.closing.cancel();
        self.serving.abort();
        self.announcing.abort();
    }
}

async fn open(
    setup: &NodeSetup,
    authentication: Authentication,
    mut metrics: MetricsRegistry,
) -> Result<(NodeApp, RemoteClient), AgentStartError> {
    let kept = |source| AgentStartError::Data { path: setup.data.clone(), source };
    let mut remote = RemoteOptions::new([&setup.agent], format!("node {}", setup.name));
    let token = setup.token_file.as_ref().map(TokenFile::new);
    remote.token.clone_from(&token);
    remote.trusted.clone_from(&setup.trusted);
    let client = RemoteClient::new(remote)?;
    let engine = EmbeddedEngine::open(setup.data.join("node")).await.map_err(|error| kept(error.source))?;
    let obeys = obeys::Obeys::open(&setup.data).map_err(kept)?;
    let region = std::fs::read_to_string(setup.data.join(REGION_FILE)).ok();
    let http = HttpMetrics::register(&mut metrics);
    let connections = ConnectionMetrics::register(&mut metrics);
    let door = Door::new(authentication, &setup.limits.access, AccessMetrics::register(&mut metrics));
    let guard = RegionGuard::open(&setup.data, door, token, Arc::new(SystemClock)).map_err(kept)?;
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
        limits: setup.limits.clone(),
        guard,
        closing: CancellationToken::new(),
        steps: TaskTracker::new(),
    }));
    Ok((app, client))
}

/// Says to the agent where the node is, and hears from it who may ask the node, until the node stops or is told that it was
/// removed.
async fn announce(
    app: NodeApp,
    client: RemoteClient,
    address: String,
    file: PathBuf,
    told: watch::Sender<Option<Box<ErrorBody>>>,
) {
    let jitter = random_jitter();
    let name = app.0.name.clone();
    let segments = ["v1", "nodes", name.as_str()];
    let guard = &app.0.guard;
    let mut failures = 0_u32;
    let mut look_again = false;
    loop {
        let announcement = NodeAnnouncement {
            address: address.clone(),
            secret: app.0.secret.clone(),
            access_mark: Some(guard.mark()),
            look_again,
        };
        let announced = client.json::<NodeWelcome>(&segments, |http, url| http.put(url).json(&announcement));
        let announced = tokio::select! {
            biased;
            () = app.0.closing.cancelled() => return,
            announced = announced => announced,
        };
        match announced {
            Ok(NodeWelcome { region, access }) => {
                failures = 0;
                guard.heard(access).await;
                let known = app.0.region.read().as_ref() == Some(&region);
                if !known {
                    tracing::info!(region, "the node belongs to this region");
                    let (path, text) = (file.clone(), region.clone());
                    let kept = tokio::task::spawn_blocking(move || write_private(&path, &text)).await;
                    if let Ok(Err(error)) = kept {
                        tracing::error!(%error, "the region that the node belongs to could not be kept on its disk");
                    }
                    *app.0.region.write() = Some(region);
                }
            }
            Err(RemoteError::Refused { body, .. }) if body.code == code::NODE_REMOVED => {
                tracing::warn!(why = %body, "the node was removed from its region");
                told.send_replace(Some(body));
                return;
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
        let waiting = async {
            tokio::time::sleep(ANNOUNCE_REST.min(pause)).await;
            // Whoever asked meanwhile is remembered.
            tokio::time::timeout(pause, guard.wanted()).await.is_ok()
        };
        look_again = tokio::select! {
            biased;
            () = app.0.closing.cancelled() => return,
            is_wanted = waiting => is_wanted,
        };
    }
}
