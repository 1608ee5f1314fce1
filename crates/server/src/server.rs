//! The server: opens what it needs, starts what it hosts, and serves until it is told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::registry::Registry as MetricsRegistry;
use tidegate_api::{Setting, SettingOrigin};
use tidegate_dataset::artifact::ArtifactError;
use tidegate_dataset::location::{Environment, LocationError, StorePlan};
use tidegate_lifecycle::{
    FirstPublished, HooksConfiguration, HooksFile, Lifecycle, LifecycleOptions, PublishError, Refusal, Registry,
    Surroundings,
};
use tidegate_rollout::entities::{Availability, Region};
use tidegate_rollout::region::RegionHost;
use tidegate_rollout::region::host::{HostError, HostOptions, RegionSetup};
use tidegate_rollout::region::remote::RemoteSetupError;
use tidegate_rollout::{OperationError, Operations, RolloutMetrics};
use tidegate_state::{DriverError, OpenError, RegisterError, State};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::access::config::{AccessLimits, Authentication};
use crate::access::{self, Access, AccessMetrics, Clerk, Door};
use crate::app::{App, Inner};
use crate::artifacts;
use crate::config::{ConfigError, ConfigFile, RegionSection, ServerLimits, check_advertised, default_regions};
use crate::data_folder::{self, FolderError};
use crate::database;
use crate::forward::Forwarder;
use crate::http::guard::{Hosts, Room};
use crate::http::metrics::HttpMetrics;
use crate::http::serve::{ConnectionLimits, ConnectionMetrics, Service, drain, serve};
use crate::http::shares::Shares;
use crate::http::tls::{Certificate, TlsError, TlsMetrics};
use crate::look_again::LookAgain;
use crate::membership;
use crate::routes;
use crate::uploads::Uploads;
use crate::waiting;
use crate::work::{self, HooksSlot, HooksToRun};

/// Where a server listens if nobody says.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7600";

/// The lock of the data folder, which a server holds while it runs.
pub(crate) const LOCK: &str = "server.lock";

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder that everything is kept in. Made if it is not there.
    pub data: PathBuf,
    /// A PostgreSQL that servers share (`postgres://…`), for their state. Absent: as the file says, or a file of this
    /// server's own below the data folder.
    pub database: Option<String>,
    /// The schema of that database that the installation is in. Absent: as the file says, or `tidegate`.
    pub schema: Option<String>,
    /// End if the database that is shared can't be reached, where the server would wait for it, answering that it is not
    /// ready.
    pub fail_fast: bool,
    /// Where to listen. Beyond loopback TLS and authentication are needed, unless `[access]` says
    /// otherwise by name. Port 0: any free one. Absent: as the file says, or [`DEFAULT_LISTEN`].
    pub listen: Option<SocketAddr>,
    /// Where other servers reach it. Absent: as the file says, or where it listens, unless that is all addresses.
    pub advertise: Option<String>,
    /// The configuration.
    pub config: ConfigFile,
    /// Where the configuration came from, for people.
    pub config_path: Option<PathBuf>,
    /// Where artifacts are kept, `s3://bucket/prefix` or `file:///a/folder`. Absent: as the file says, or a folder below
    /// [`Options::data`].
    pub artifacts: Option<String>,
    /// The variables that credentials and other settings of a bucket are taken from.
    pub environment: Environment,
    /// The hooks that this build has.
    pub registry: Registry,
}

impl Options {
    /// Options for a data folder, with no configuration file and the hooks that are shipped.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            database: None,
            schema: None,
            fail_fast: false,
            listen: None,
            advertise: None,
            config: ConfigFile::default(),
            config_path: None,
            artifacts: None,
            environment: Environment::of_process(),
            registry: Registry::shipped(),
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The server would be open, or in the clear, beyond loopback.
    #[error("{0}")]
    Exposed(access::Exposed),
    /// The certificate can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address can't be listened on.
    #[error("the server can't listen on {address}: {source}; another one may be running")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Another server uses the data folder.
    #[error("another server is running on {}; stop it, or choose another folder", path.display())]
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
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The hooks configuration is refused, and none is published that could be gated by.
    #[error("{}: {}. {} {}", .0.what, .0.why, .0.consequences, .0.countermeasures)]
    Hooks(Refusal),
    /// The database can't be opened.
    #[error("the database can't be opened: {0}")]
    Database(#[from] DriverError),
    /// The state can't be loaded.
    #[error("the state can't be loaded: {0}")]
    State(#[from] OpenError),
    /// The artifact store is described in a way that can't be used, or its credentials can't.
    #[error(transparent)]
    ArtifactsDescribed(#[from] LocationError),
    /// The artifact store does not do what it has to.
    #[error("the artifact store {store} can't be used: {source}")]
    Artifacts {
        /// What people know it by.
        store: String,
        /// What is wrong with it.
        source: ArtifactError,
    },
    /// The artifact store is not the one that the installation's other servers use.
    #[error(
        "this server's artifact store is not the installation's: {store} was given to it, and {why}; the installation's \
         was called {known} when it was set up"
    )]
    OtherStore {
        /// What people know the given store by.
        store: String,
        /// What tells it from the right one.
        why: String,
        /// What the right one was called by the server that first used it.
        known: String,
    },
    /// Another server on the database has the name.
    #[error(
        "another server on this database is called {name} and lives (id {id}); operators and the others tell servers apart \
         by their names"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The other's id in the cluster.
        id: String,
    },
    /// The certificates by which it knows others can't be used.
    #[error(transparent)]
    Trusted(#[from] RemoteSetupError),
    /// A region can't be registered.
    #[error("a region can't be registered: {0}")]
    Register(#[from] OperationError),
    /// A region can't be started.
    #[error("a region can't be started: {0}")]
    Region(#[from] HostError),
    /// A cluster hook can't be registered.
    #[error("a cluster hook can't be registered: {0}")]
    ClusterHook(#[from] RegisterError),
    /// The state could not be written.
    #[error("the state could not be prepared: {0}")]
    Prepare(String),
}

impl From<FolderError> for StartError {
    fn from(error: FolderError) -> Self {
        match error {
            FolderError::InUse { path } => StartError::DataInUse { path },
            FolderError::Unusable { path, source } => StartError::Data { path, source },
        }
    }
}

/// A server that runs. [`Handle::shutdown`] ends it in order; dropping it ends it at once, as a
/// crash would.
pub struct Handle {
    address: SocketAddr,
    app: App,
    closing: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
    hooks: HooksSlot,
    /// The clerk, what completes the start once writes go on, and what looks after the certificate; they end when the server
    /// closes.
    tasks: Vec<JoinHandle<()>>,
    has_tls: bool,
    first_token: Option<String>,
    _lock: File,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handle").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Starts servers.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Starts a server. When this returns it serves, and its regions serve what they did before. It does not as long as a
    /// database that is shared can't be reached; dropped meanwhile, it ends.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(options: Options) -> Result<Handle, StartError> {
        if let Some(address) = &options.advertise {
            check_advertised("--advertise", address)?;
        }
        let address = listen_address(&options);
        let has_tls = options.config.tls.pair().is_some();
        let authentication =
            access::authentication(address, &options.config.access, has_tls).map_err(StartError::Exposed)?;
        let certificate = match options.config.tls.pair() {
            Some((certificate, key)) => Some(Certificate::read(certificate, key).await?),
            None => None,
        };
        let lock = data_folder::take(&options.data, LOCK)?;
        let listener = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| StartError::Listen { address, source })?;

        let (state, listener) = waiting::open(&options, address, listener, certificate.as_ref()).await?;
        match open(&options, address, authentication, certificate, &state, listener).await {
            Ok(opened) => {
                tracing::info!(%address, data = %options.data.display(), "serving");
                let Opened { app, hooks, serving, tasks, first_token } = opened;
                let closing = app.closing();
                Ok(Handle { address, app, closing, serving, hooks, tasks, has_tls, first_token, _lock: lock })
            }
            Err(error) => {
                state.close().await;
                Err(error)
            }
        }
    }
}

impl Handle {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address for clients.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.has_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The admin token of an installation that had none, once: to be shown to whoever started the
    /// server, and kept nowhere.
    #[must_use]
    pub fn take_first_token(&mut self) -> Option<String> {
        self.first_token.take()
    }

    /// The state that it works on.
    #[must_use]
    pub fn state(&self) -> &State {
        self.app.state()
    }

    /// The regions that it hosts.
    #[must_use]
    pub fn regions(&self) -> &RegionHost {
        self.app.regions()
    }

    /// Ends the server in order: no new requests, open ones end (watches at once) while cluster hooks hand back what they
    /// have; then regions stop, and at last the state.
    pub async fn shutdown(mut self) {
        self.app.set_not_ready(Some("The server is stopping."));
        self.closing.cancel();
        // Other servers can take over what the hooks hand back while requests still end here.
        let state = self.app.state().clone();
        tokio::join!(drain(&mut self.serving), state.drain());
        for task in self.tasks.drain(..) {
            // They end as soon as they see that the server closes.
            if let Err(error) = task.await {
                tracing::warn!(%error, "a task of the server did not end in order");
            }
        }
        let hooks = self.hooks.lock().take();
        drop(hooks);
        // Regions report into the state until they are stopped, so the state goes last.
        self.app.regions().stop().await;
        self.app.state().close().await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.closing.cancel();
        self.serving.abort();
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn listen_address(options: &Options) -> SocketAddr {
    let address = options.listen.or(options.config.server.listen);
    address.unwrap_or_else(|| DEFAULT_LISTEN.parse().expect("a constant address"))
}

/// Where others reach it; none where it listens on all addresses and was not told which is meant.
fn advertised(options: &Options, address: SocketAddr) -> Option<String> {
    let told = options.advertise.as_ref().or(options.config.server.advertise.as_ref());
    let scheme = if options.config.tls.pair().is_some() { "https" } else { "http" };
    told.cloned().or_else(|| (!address.ip().is_unspecified()).then(|| format!("{scheme}://{address}")))
}

/// The names that it goes by: those that clients use, and the one by which it is advertised.
fn names(options: &Options) -> Vec<String> {
    let told = options.advertise.as_ref().or(options.config.server.advertise.as_ref());
    let told = told.and_then(|url| url.parse::<axum::http::Uri>().ok());
    let told = told.as_ref().and_then(axum::http::Uri::host).map(str::to_owned);
    options.config.server.hosts.iter().cloned().chain(told).collect()
}

/// What serves.
struct Opened {
    app: App,
    hooks: HooksSlot,
    serving: JoinHandle<io::Result<()>>,
    tasks: Vec<JoinHandle<()>>,
    first_token: Option<String>,
}

/// Everything from an open state to connections that are served.
async fn open(
    options: &Options,
    address: SocketAddr,
    authentication: Authentication,
    certificate: Option<Certificate>,
    state: &State,
    listener: TcpListener,
) -> Result<Opened, StartError> {
    if database::database(options).is_some() {
        membership::claim_name(state, &options.data).await?;
    }
    // Asked once: it may be confirmed on another server while this one starts.
    let is_set_back = state.writes_stopped().is_some();
    let closing = CancellationToken::new();
    // Should the start fail, what has begun by then ends with it.
    let failed = closing.clone().drop_guard();
    let (clerk, clerking) = Clerk::start(state.clone(), closing.clone());
    let mut metrics = MetricsRegistry::default();
    let connection_metrics = ConnectionMetrics::register(&mut metrics);
    let limits = AccessLimits::from_section(&options.config.access.limits);
    let access_metrics = AccessMetrics::register(&mut metrics);
    let door = Door::new(authentication, &limits, access_metrics);
    let guard = Access { door, clerk, secure_cookies: certificate.is_some() };
    let first_token = match authentication {
        // Nothing can be written then; whoever has a token confirms it.
        Authentication::Required if is_set_back => None,
        Authentication::Required => access::first_admin(state).await.map_err(StartError::Prepare)?,
        Authentication::Off => None,
    };
    let tls = certificate.as_ref().map(Certificate::acceptor).transpose()?;
    let mut tasks = vec![clerking];
    if let Some(certificate) = certificate {
        let looking = certificate.keep(TlsMetrics::register(&mut metrics), closing.clone());
        tasks.push(tokio::spawn(looking));
    }
    if database::database(options).is_some() {
        tasks.push(tokio::spawn(membership::remember(state.clone(), options.data.clone(), closing.clone())));
    }
    let (app, begin) = host(options, address, state, (guard, metrics, closing.clone())).await?;
    let hooks = HooksSlot::default();
    if !is_set_back {
        *hooks.lock() = Some(begin.register().await?);
        app.set_not_ready(None);
    } else {
        tasks.push(tokio::spawn(work::begin_later(begin, app.clone(), Arc::clone(&hooks), options.clone())));
    }
    let router = routes::router(app.clone()).map_err(|unruled| StartError::Prepare(unruled.to_string()))?;
    let limits = ConnectionLimits::default();
    let service = Service { router, tls, limits, metrics: connection_metrics };
    let serving = tokio::spawn(serve(listener, service, closing));
    failed.disarm();
    Ok(Opened { app, hooks, serving, tasks, first_token })
}

/// Everything between an open state and a service.
async fn host(
    options: &Options,
    address: SocketAddr,
    state: &State,
    (access, mut metrics, closing): (Access, MetricsRegistry, CancellationToken),
) -> Result<(App, HooksToRun), StartError> {
    let registry = Arc::new(options.registry.clone());
    let operations = Operations::new(state.clone(), Arc::clone(&registry));
    let setups = register_regions(options, state, &operations).await?;
    let lifecycle = Lifecycle::new(options.registry.clone(), LifecycleOptions::default());
    let file_differs = publish_hooks(options, state, &lifecycle).await?;

    let plan = artifacts::plan(options)?;
    let artifacts = plan.open()?;
    let source_store = artifacts::agree(state, &artifacts).await?;
    let uploads = Uploads::new(artifacts.clone())
        .map_err(|source| StartError::Data { path: options.data.join("artifacts"), source })?;
    let uploads = Arc::new(uploads);
    if state.writes_stopped().is_none() {
        // An older state knows nothing of the pushes that came after it, whose parts these may be.
        artifacts::sweep_uploads(state, &uploads).await?;
    }

    let http = HttpMetrics::register(&mut metrics);
    state.metrics().register(&mut metrics);
    lifecycle.metrics().register(&mut metrics);
    let rollout_metrics = RolloutMetrics::default();
    rollout_metrics.register(&mut metrics, state.clone());

    let mut host_options = HostOptions::new(options.data.join("regions"), artifacts.clone());
    host_options.name = format!("server {}", state.server());
    host_options.address = advertised(options, address);
    if let Some(lease) = database::region_lease(options) {
        host_options.limits = host_options.limits.with_lease(lease);
    }
    host_options.metrics.register(&mut metrics);
    let regions = RegionHost::start(state.clone(), host_options, setups).await?;

    let begin = HooksToRun {
        state: state.clone(),
        operations: operations.clone(),
        registry: Arc::clone(&registry),
        lifecycle: lifecycle.clone(),
        remover: Arc::new(artifacts::Remover::new(artifacts.clone(), Arc::clone(&uploads))),
        metrics: rollout_metrics,
    };

    let forwarder = Forwarder::new(options.config.server.ca_file.as_deref(), &mut metrics)?;
    let limits = ServerLimits::from_section(&options.config.server.limits);
    let app = App::new(Inner {
        state: state.clone(),
        look_again: LookAgain::new(database::database(options).is_some()),
        operations,
        registry,
        lifecycle,
        regions,
        forwarder,
        uploads,
        watches: Room::new("watches", limits.watches, Duration::MAX),
        agent_watches: Room::new("watches of agents", limits.watches, Duration::MAX),
        watch_shares: Shares::half_of("watches", limits.watches),
        upload_shares: Shares::half_of("uploads", limits.uploads),
        downloads: Room::new("downloads", limits.uploads, Duration::MAX),
        metrics,
        http,
        settings: settings(options, address, &limits, &plan, access.is_required()),
        artifact_store: artifacts::view(&artifacts, &source_store),
        artifacts,
        limits,
        file_differs,
        not_ready: RwLock::new(Some("The server is starting.".to_owned())),
        closing,
        hosts: Arc::new(Hosts::new(&names(options), !address.ip().is_loopback(), options.config.tls.pair().is_some())),
        access,
    });
    Ok((app, begin))
}

/// Registers the regions of the configuration, or `a`, `b` and `c` where there are none at all.
/// The regions that this server hosts.
pub(crate) async fn register_regions(
    options: &Options,
    state: &State,
    operations: &Operations,
) -> Result<Vec<RegionSetup>, StartError> {
    let mut known = BTreeMap::new();
    for item in state.snapshot().roots::<Region>() {
        let (region, value) = item.map_err(|error| StartError::Prepare(error.to_string()))?;
        known.insert(region.id(), value.clone());
    }
    let sections = if options.config.regions.is_empty() && known.is_empty() {
        default_regions()
    } else {
        options.config.regions.clone()
    };
    if sections.is_empty() {
        // The file names none: those that exist go on.
        let ours = known.iter().filter(|(_, region)| !region.agent);
        return Ok(ours.map(|(name, region)| setup(name, region)).collect());
    }
    let named: BTreeSet<&String> = sections.iter().map(|section| &section.name).collect();
    for (name, _) in known.iter().filter(|(name, region)| !named.contains(name) && !region.agent) {
        tracing::warn!(region = name, "a region that the configuration does not name is not hosted here");
    }
    let mut setups = Vec::new();
    for section in &sections {
        let region = region_of(section);
        let changed = known.get(&section.name).is_none_or(|there| {
            (there.nodes, there.enough, there.shares_source, there.agent)
                != (region.nodes, region.enough, region.shares_source, region.agent)
        });
        if changed && state.writes_stopped().is_none() {
            operations.register_region(&section.name, region.clone(), state.server()).await?;
        }
        if !region.agent {
            setups.push(setup(&section.name, &region));
        }
    }
    Ok(setups)
}

fn region_of(section: &RegionSection) -> Region {
    Region {
        nodes: section.nodes,
        enough: section.enough(),
        shares_source: section.shares_source,
        agent: section.agent,
        availability: Availability::Available,
        added_at: tidegate_state::Timestamp::default(),
    }
}

fn setup(name: &str, region: &Region) -> RegionSetup {
    RegionSetup { name: name.to_owned(), nodes: region.nodes, shares_source: region.shares_source }
}

/// Publishes the hooks configuration of this server's file if none is published. In which way the
/// file differs from what is, if it does.
pub(crate) async fn publish_hooks(
    options: &Options,
    state: &State,
    lifecycle: &Lifecycle,
) -> Result<Option<String>, StartError> {
    let prepare = |error: String| StartError::Prepare(error);
    if state.writes_stopped().is_some() {
        return Ok(None);
    }
    let file = match &options.config.hooks {
        // A server that is told nothing about hooks has nothing to say about what is published.
        None if state.snapshot().contains(HooksConfiguration::place().path()) => return Ok(None),
        None => Ok(HooksFile::default_of(lifecycle.registry())),
        Some(table) => {
            let table = serde_json::to_value(table).map_err(|error| prepare(error.to_string()))?;
            HooksFile::from_json(table, lifecycle.registry())
        }
    };
    let mut regions = BTreeSet::new();
    for item in state.snapshot().roots::<Region>() {
        regions.insert(item.map_err(|error| prepare(error.to_string()))?.0.id());
    }
    let surroundings = Surroundings { regions: Some(regions), now: state.now() };
    let file = file.as_ref().map_err(Clone::clone);
    match lifecycle.publish_first(state, file, &surroundings).await {
        Ok(FirstPublished::Published | FirstPublished::Equal { .. }) => Ok(None),
        Ok(FirstPublished::Differs { differences, .. }) => Ok(Some(differences.join("; "))),
        Err(PublishError::Refused(refusal)) => Err(StartError::Hooks(refusal)),
        Err(PublishError::Write(error)) => Err(prepare(error.to_string())),
    }
}

/// Every setting with where it came from, by its name in the file.
fn settings(
    options: &Options,
    address: SocketAddr,
    limits: &ServerLimits,
    plan: &StorePlan,
    is_required: bool,
) -> BTreeMap<String, Setting> {
    let server = &options.config.server;
    let mut settings = limits.settings(&server.limits);
    settings.extend(plan.settings().clone());
    if options.artifacts.is_some()
        && let Some(url) = settings.get_mut("artifacts.url")
    {
        url.origin = SettingOrigin::Flag;
    }
    let authentication = if is_required { Authentication::Required } else { Authentication::Off };
    let (access, tls) = (&options.config.access, &options.config.tls);
    settings.extend(access::config::settings(authentication, access, tls, &server.hosts));
    let mut set = |name: &str, value: String, origin: SettingOrigin| {
        settings.insert(name.to_owned(), Setting { value, origin });
    };
    set("server.data", options.data.display().to_string(), SettingOrigin::Flag);
    let listen = match (options.listen, server.listen) {
        (Some(_), _) => SettingOrigin::Flag,
        (None, Some(_)) => SettingOrigin::File,
        (None, None) => SettingOrigin::Default,
    };
    set("server.listen", address.to_string(), listen);
    if let Some(advertised) = advertised(options, address) {
        let origin = match (&options.advertise, &server.advertise) {
            (Some(_), _) => SettingOrigin::Flag,
            (None, Some(_)) => SettingOrigin::File,
            (None, None) => SettingOrigin::Default,
        };
        set("server.advertise", advertised, origin);
    }
    if let Some(path) = &server.ca_file {
        set("server.ca_file", path.display().to_string(), SettingOrigin::File);
    }
    let named = if server.name.is_some() { SettingOrigin::File } else { SettingOrigin::Default };
    set("server.name", database::server_name(options, address), named);
    let shared = match (&options.database, &server.database) {
        (Some(_), _) => SettingOrigin::Flag,
        (None, Some(_)) => SettingOrigin::File,
        (None, None) => SettingOrigin::Default,
    };
    // The address may hold a password, so it is not shown.
    let shown = if shared == SettingOrigin::Default { "sqlite, below server.data" } else { "postgres" };
    set("server.database", shown.to_owned(), shared);
    if let Some(path) = &options.config_path {
        set("config", path.display().to_string(), SettingOrigin::Flag);
    }
    let origin = if options.config.regions.is_empty() { SettingOrigin::Default } else { SettingOrigin::File };
    let sections = if options.config.regions.is_empty() { default_regions() } else { options.config.regions.clone() };
    for region in sections {
        let value = format!("{} nodes, {} are enough", region.nodes, region.enough());
        set(&format!("regions.{}", region.name), value, origin);
    }
    settings
}
