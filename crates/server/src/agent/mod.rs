//! A region's agent and its nodes as a process of their own: `tidegate agent`.
//!
//! The process hosts one region, follows it over HTTP, and answers reads. It needs the control plane for news only: what
//! it was told and what its nodes hold is on its own disk.
//!
//! | file | has |
//! |---|---|
//! | this one | starting and stopping |
//! | `routes` | its HTTP service: reads, health, metrics |
//! | `admission` | whether the control plane lets it host its region |
//! | `nodes` | nodes that are processes of their own |
//! | `service` | where it listens, with which certificate, and for whom |
//! | `limits` | what it takes of those who ask, and the file that says so |
//! | `news` | who may ask it: news of tokens |
//! | `removals` | nodes that were removed on this machine, until the control plane has heard of it |
//! | `secret` | secrets that are drawn at a start |
//! | `source` | whether the artifact store that it reads from is known to be the installation's |
//! | `control` | break glass: pins, through the running agent or on its folder |
//! | `offline` | an agent that nobody is connected to, for orders while none runs |
//!
//! # Invariants
//! - One process at a time uses a data folder; it is locked. The agent's identity is in it, so a restart is the same agent.
//! - With the control plane gone the process starts, serves and answers as with it there.
//! - Its routes are rows of the table of [`access`](crate::access). It asks for tokens if it has one itself; those that it
//!   lets in are the control plane's, as it was last told of them. See `access::region`.
//! - It does not let go of its nodes: stopping stops commanding, then answering.

use std::future::IntoFuture;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry as MetricsRegistry;
use tidegate_api::ErrorBody;
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_rollout::region::host::{HostError, HostOptions, HostedRegion, RegionSetup};
use tidegate_rollout::region::remote::{RemoteSetupError, http_client};
use tidegate_rollout::region::{
    AgentLimits, HttpLink, HttpLinkOptions, RegionHost, RegionLink, RemoteArtifacts, RemoteClient, RemoteOptions,
    TokenFile,
};
use tidegate_state::Clock;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::access::config::{Authentication, TlsSection};
use crate::access::region::RegionGuard;
use crate::access::{AccessMetrics, Door, Exposed, Exposure};
use crate::config::check_region_name;
use crate::data_folder::{self, FolderLock, FolderLockError};
use crate::http::guard::Room;
use crate::http::metrics::HttpMetrics;
use crate::http::serve::ConnectionMetrics;
use crate::http::tls::TlsError;
use crate::routes::Unruled;

mod admission;
mod control;
mod limits;
mod news;
mod nodes;
mod offline;
mod removals;
mod routes;
pub(crate) mod secret;
pub(crate) mod service;
mod source;

use admission::{Admission, Answer};
#[cfg(test)]
pub(crate) use control::routes as order_routes;
pub use control::{ControlError, NodeRemoval, pin_version, pins, remove_node, unpin};
#[cfg(test)]
pub(crate) use limits::NAMES as LIMIT_NAMES;
pub use limits::ServiceLimits;
use nodes::Nodes;
use offline::{AgentFile, offline};
use removals::Removals;
#[cfg(test)]
pub(crate) use routes::all as routes;
use service::{Listening, Serving};
use source::Source;

/// Where an agent listens if nobody says.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7610";

/// What an agent's process holds a lock on, in its data folder.
const LOCK_FILE: &str = "agent.lock";

/// How many files nodes may fetch at once.
const DOWNLOADS_MAX: usize = 64;

/// How many nodes one agent has within its process.
const NODES_MAX: u32 = 64;

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct AgentSetup {
    /// The region.
    pub region: String,
    /// The addresses of the control plane's servers. Any of them will do.
    pub control_planes: Vec<String>,
    /// Where the agent's token is, if the control plane wants one.
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
    /// Where others reach the agent, if that is not where it listens.
    pub advertise: Option<String>,
    /// What people call it; by default the machine's name.
    pub name: Option<String>,
    /// How many nodes run within the process.
    pub nodes: u32,
    /// How long after it was last heard of another agent may host the region.
    pub lease: Duration,
}

impl AgentSetup {
    /// An agent with two nodes, on [`DEFAULT_LISTEN`].
    pub fn new(region: impl Into<String>, control_planes: Vec<String>, data: impl Into<PathBuf>) -> Self {
        AgentSetup {
            region: region.into(),
            control_planes,
            token_file: None,
            trusted: None,
            data: data.into(),
            listen: DEFAULT_LISTEN.parse().expect("a constant address"),
            exposure: Exposure::default(),
            limits: ServiceLimits::default(),
            tls: TlsSection::default(),
            advertise: None,
            name: None,
            nodes: 2,
            lease: AgentLimits::default().lease,
        }
    }
}

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentStartError {
    /// A value can't be used.
    #[error("{what} can't be used: {why}")]
    Setting {
        /// Which.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// It would be open, or in the clear, beyond loopback.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The certificate can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address can't be listened on.
    #[error("the process can't listen on {address}: {source}; another one may be running")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Another agent uses the data folder.
    #[error("another agent or node is running on {}; stop it, or choose another folder", path.display())]
    DataInUse {
        /// The folder.
        path: PathBuf,
    },
    /// The data folder can't be used.
    #[error("the data folder {} can't be used: {source}", path.display())]
    Data {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The control plane's addresses can't be used.
    #[error(transparent)]
    ControlPlane(#[from] RemoteSetupError),
    /// The control plane does not let it host its region, and goes on not to.
    #[error("{0}")]
    NotLetIn(Box<ErrorBody>),
    /// The region can't be started.
    #[error("the region can't be started: {0}")]
    Region(#[from] HostError),
}

impl From<FolderLockError> for AgentStartError {
    fn from(error: FolderLockError) -> Self {
        match error {
            FolderLockError::Held { path } => AgentStartError::DataInUse { path },
            FolderLockError::Unusable { path, source } => AgentStartError::Data { path, source },
        }
    }
}

/// An agent that runs. [`shutdown`](AgentHandle::shutdown) ends it in order; dropping it ends it at once, as a crash would.
pub struct AgentHandle {
    address: SocketAddr,
    app: AgentApp,
    closing: CancellationToken,
    url: String,
    serving: Serving,
    controlling: JoinHandle<io::Result<()>>,
    /// What it asks and tells the control plane besides hosting the region. Ended with the handle.
    asking: JoinSet<()>,
    /// To be asked further, if nobody has answered yet.
    admission: Option<Admission>,
    _lock: FolderLock,
}

impl std::fmt::Debug for AgentHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AgentHandle").field("address", &self.address).finish_non_exhaustive()
    }
}

/// What the agent's handlers can reach. Clones are the same.
#[derive(Clone)]
pub(crate) struct AgentApp(Arc<Inner>);

struct Inner {
    region: String,
    host: RegionHost,
    hosted: Arc<HostedRegion>,
    metrics: MetricsRegistry,
    http: HttpMetrics,
    connections: ConnectionMetrics,
    nodes: Nodes,
    /// The region's own copies, from which its nodes load.
    artifacts: ArtifactStore,
    downloads: Room,
    /// The store that the region's artifacts come from.
    source: Source,
    limits: ServiceLimits,
    guard: RegionGuard,
    /// What was removed on this machine and is still to be told.
    removals: Removals,
    /// The control plane's clock, as far as it is known.
    clock: Arc<dyn Clock>,
}

/// Starts agents.
#[derive(Debug)]
pub struct Agent;

impl Agent {
    /// Starts an agent. When this returns it answers reads, and its nodes serve what they served before, whether or not
    /// the control plane can be reached. One that can be reached and refuses what the agent is for keeps it from starting;
    /// for that its first answer is waited for, for two seconds at most.
    ///
    /// # Errors
    /// See [`AgentStartError`].
    pub async fn start(setup: AgentSetup) -> Result<AgentHandle, AgentStartError> {
        check(&setup)?;
        let checked = Listening {
            listen: setup.listen,
            exposure: setup.exposure,
            tls: &setup.tls,
            advertise: setup.advertise.as_deref(),
            has_token: setup.token_file.is_some(),
        };
        let checked = checked.check().await?;
        let authentication = checked.authentication;
        let lock = data_folder::take(&setup.data, LOCK_FILE)?;
        let opened = checked.open().await?;
        let kept = |source| AgentStartError::Data { path: setup.data.clone(), source };
        let token = setup.token_file.as_ref().map(TokenFile::new);
        let client = reach(&setup, token.clone())?;
        let admission = Admission::new(&setup.region, client.clone(), token.clone());
        let admission = match admission.at_start().await {
            Answer::Refused(body) => return Err(AgentStartError::NotLetIn(body)),
            Answer::Heard => None,
            Answer::Nothing => Some(admission),
        };
        AgentFile::new(&setup).save(&setup.data).map_err(kept)?;
        let mut metrics = MetricsRegistry::default();
        let tls_metrics = opened.tls_metrics(&mut metrics);
        let app = host(&setup, opened.advertised(), client.clone(), (token, authentication), metrics).await?;
        let closing = CancellationToken::new();
        // Should the rest fail, what has begun ends with it.
        let failed = closing.clone().drop_guard();
        let (address, url) = (opened.address, opened.url());
        let router = routes::router(app.clone(), opened.hosts()).map_err(unruled)?;
        let serving = opened.serve(router, app.0.connections.clone(), tls_metrics, &setup.limits.service, &closing)?;
        let controlling = control(&setup, app.clone()).await?;
        let mut asking = JoinSet::new();
        let told = (setup.region.clone(), setup.name.clone().unwrap_or_else(machine_name));
        let (reporting, stop) = (removals::report(app.0.removals.clone(), told, client.clone()), closing.clone());
        asking.spawn(async move { _ = stop.run_until_cancelled(reporting).await });
        let (looking, stop) = (source::follow(app.clone(), client.clone()), closing.clone());
        asking.spawn(async move { _ = stop.run_until_cancelled(looking).await });
        // Where nobody is asked for a token there is nothing to know.
        if app.0.guard.is_needed() {
            asking.spawn(news::follow(app.0.guard.clone(), setup.region.clone(), client, closing.clone()));
        }
        tracing::info!(region = setup.region, %address, data = %setup.data.display(), "the agent serves");
        failed.disarm();
        Ok(AgentHandle { address, app, closing, url, serving, controlling, asking, admission, _lock: lock })
    }
}

impl AgentHandle {
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

    /// The region.
    #[must_use]
    pub fn region(&self) -> &HostedRegion {
        &self.app.0.hosted
    }

    /// Ends if the control plane, which could not be asked at the start, turns out not to let the agent host its region: it
    /// will not by itself, and the agent is to be ended.
    pub async fn refused(&self) -> AgentStartError {
        match &self.admission {
            Some(admission) => AgentStartError::NotLetIn(admission.refused().await),
            None => std::future::pending().await,
        }
    }

    /// Ends the agent in order: it commands its nodes no more, lets go of its region, and answers the requests that are
    /// open.
    pub async fn shutdown(mut self) {
        self.app.0.hosted.agent().stop().await;
        self.closing.cancel();
        self.serving.end().await;
        self.controlling.abort();
        // They end by the token too; a panic in one was logged where it happened.
        while self.asking.join_next().await.is_some() {}
        self.app.0.host.stop().await;
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.closing.cancel();
        self.serving.abort();
        self.controlling.abort();
    }
}

/// Starts the control port, on loopback alone.
async fn control(setup: &AgentSetup, app: AgentApp) -> Result<JoinHandle<io::Result<()>>, AgentStartError> {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let failed = |source| AgentStartError::Listen { address: loopback, source };
    let listener = TcpListener::bind(loopback).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let kept = |source| AgentStartError::Data { path: setup.data.clone(), source };
    let router = control::router(app, &setup.data, address).map_err(kept)?;
    let router = router.map_err(unruled)?;
    Ok(tokio::spawn(axum::serve(listener, router).into_future()))
}

fn check(setup: &AgentSetup) -> Result<(), AgentStartError> {
    let bad = |what: &str, why: &str| AgentStartError::Setting { what: what.to_owned(), why: why.to_owned() };
    check_region_name(&setup.region).map_err(|why| bad(&format!("the region's name {:?}", setup.region), why))?;
    if setup.nodes == 0 || setup.nodes > NODES_MAX {
        return Err(bad(&format!("{} nodes", setup.nodes), "an agent has 1 to 64 within its process"));
    }
    if setup.control_planes.iter().any(String::is_empty) {
        return Err(bad("an address of the control plane", "it is empty"));
    }
    let leases = tidegate_rollout::region::hosting::LEASE_MIN..=tidegate_rollout::region::hosting::LEASE_MAX;
    if !leases.contains(&setup.lease) {
        return Err(bad(&format!("a lease of {:?}", setup.lease), "it has to be from 1 s to 10 min"));
    }
    Ok(())
}

/// What reaches the control plane.
fn reach(setup: &AgentSetup, token: Option<TokenFile>) -> Result<RemoteClient, RemoteSetupError> {
    let mut remote = RemoteOptions::new(&setup.control_planes, format!("agent of region {}", setup.region));
    remote.token = token;
    remote.trusted.clone_from(&setup.trusted);
    RemoteClient::new(remote)
}

/// A route without a rule: a mistake, which keeps the process from starting.
pub(crate) fn unruled(unruled: Unruled) -> AgentStartError {
    AgentStartError::Setting { what: "the table of access".to_owned(), why: unruled.to_string() }
}

async fn host(
    setup: &AgentSetup,
    advertised: Option<String>,
    client: RemoteClient,
    (token, authentication): (Option<TokenFile>, Authentication),
    mut metrics: MetricsRegistry,
) -> Result<AgentApp, AgentStartError> {
    let kept = |source| AgentStartError::Data { path: setup.data.clone(), source };
    let link = HttpLink::new(HttpLinkOptions { region: setup.region.clone(), client: client.clone() });
    let source = ArtifactStore::new(Arc::new(RemoteArtifacts::new(client)));

    let nodes = Nodes::open(&setup.data, http_client(setup.trusted.as_deref())?, Some(Instant::now())).map_err(kept)?;
    let mut options = HostOptions::new(setup.data.join("regions"), source);
    options.token = nodes.token();
    options.more_nodes = nodes.known();
    options.limits = AgentLimits::default().with_lease(setup.lease);
    options.name = setup.name.clone().unwrap_or_else(machine_name);
    options.address = advertised;
    let http = HttpMetrics::register(&mut metrics);
    let connections = ConnectionMetrics::register(&mut metrics);
    options.metrics.register(&mut metrics);
    let clock = link.clock();
    let door = Door::new(authentication, &setup.limits.access, AccessMetrics::register(&mut metrics));
    let guard = RegionGuard::open(&setup.data, door, token, Arc::clone(&clock)).map_err(kept)?;
    let from = Source::register(&mut metrics);
    let removals = Removals::open(&setup.data).map_err(kept)?;
    let links = Arc::new(move |_: &str| Ok(Arc::new(link.clone()) as Arc<dyn RegionLink>));
    let region = RegionSetup { name: setup.region.clone(), nodes: setup.nodes, shares_source: false };
    let host = RegionHost::start_linked(links, Arc::clone(&clock), options, [region]).await?;
    let hosted = host.hosted(&setup.region).expect("it was started just now");
    Ok(AgentApp(Arc::new(Inner {
        region: setup.region.clone(),
        artifacts: hosted.artifacts(),
        host,
        hosted,
        metrics,
        http,
        connections,
        nodes,
        downloads: Room::new("downloads", DOWNLOADS_MAX, Duration::MAX),
        source: from,
        limits: setup.limits.clone(),
        guard,
        removals,
        clock,
    })))
}

/// What this machine is called.
fn machine_name() -> String {
    let name =
        std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    let name: String = name.unwrap_or_default().trim().chars().filter(|c| !c.is_control()).take(64).collect();
    if name.is_empty() { "agent".to_owned() } else { name }
}
