//! The server: opens what it needs, starts what it hosts, and serves until it is told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::future::IntoFuture;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::RwLock;
use prometheus_client::registry::Registry as MetricsRegistry;
use tidegate_api::{Setting, SettingOrigin};
use tidegate_dataset::artifact::{ArtifactError, ArtifactStore};
use tidegate_lifecycle::{
    CallRecord, FirstPublished, HooksConfiguration, HooksFile, Lifecycle, LifecycleOptions, LogSink, PublishError,
    Refusal, Registry, Surroundings,
};
use tidegate_rollout::entities::{Availability, Call, Push, Region};
use tidegate_rollout::operations::OperatorAction;
use tidegate_rollout::region::RegionHost;
use tidegate_rollout::region::host::{HostError, HostOptions, RegionSetup};
use tidegate_rollout::{
    ArtifactRemover, OperationError, Operations, RolloutDependencies, RolloutHooks, RolloutMetrics,
};
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::{DriverError, HookHandle, OpenError, RegisterError, State, StateOptions};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Inner};
use crate::config::{ConfigError, ConfigFile, RegionSection, ServerLimits, default_regions};
use crate::http::guard::Room;
use crate::http::metrics::HttpMetrics;
use crate::routes;
use crate::uploads::Uploads;

/// Where a server listens if nobody says.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7600";

/// How long open requests have to end when the server stops.
const DRAIN: Duration = Duration::from_secs(10);

/// How long a server that has ended in this process may take to let go of the database.
const LET_GO: Duration = Duration::from_secs(5);

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder that everything is kept in. Made if it is not there.
    pub data: PathBuf,
    /// Where to listen; loopback only. Port 0: any free one. Absent: as the file says, or
    /// [`DEFAULT_LISTEN`].
    pub listen: Option<SocketAddr>,
    /// The configuration.
    pub config: ConfigFile,
    /// Where the configuration came from, for people.
    pub config_path: Option<PathBuf>,
    /// The hooks that this build has.
    pub registry: Registry,
}

impl Options {
    /// Options for a data folder, with no configuration file and the hooks that are shipped.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            listen: None,
            config: ConfigFile::default(),
            config_path: None,
            registry: Registry::shipped(),
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address is not a loopback address.
    #[error(
        "the server can't listen on {address}: there is no access control yet, so whoever reaches \
         it may do anything; choose a loopback address, such as {DEFAULT_LISTEN}, and bring users \
         to it through something that knows them"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
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
    /// The artifact store can't be opened.
    #[error("the artifact store can't be opened: {0}")]
    Artifacts(#[from] ArtifactError),
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

/// A server that runs. [`Handle::shutdown`] ends it in order; dropping it ends it at once, as a
/// crash would.
pub struct Handle {
    address: SocketAddr,
    app: App,
    closing: CancellationToken,
    serving: JoinHandle<io::Result<()>>,
    hooks: Option<(RolloutHooks, Vec<HookHandle>)>,
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
    /// Starts a server. When this returns it serves, and its regions serve what they did before.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(options: Options) -> Result<Handle, StartError> {
        let address = listen_address(&options)?;
        let lock = open_data(&options.data)?;
        let listener = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| StartError::Listen { address, source })?;

        let state = open_state(&options).await?;
        match host(&options, address, &state).await {
            Ok((app, hooks)) => {
                let closing = app.closing();
                let stop = closing.clone();
                let service = axum::serve(listener, routes::router(app.clone()))
                    .with_graceful_shutdown(async move { stop.cancelled().await })
                    .into_future();
                let serving = tokio::spawn(service);
                app.set_not_ready(None);
                tracing::info!(%address, data = %options.data.display(), "serving");
                Ok(Handle { address, app, closing, serving, hooks: Some(hooks), _lock: lock })
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
        format!("http://{}", self.address)
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

    /// Ends the server in order: no new requests, open ones end (watches at once), cluster hooks
    /// hand back what they have, regions stop.
    pub async fn shutdown(mut self) {
        self.app.set_not_ready(Some("The server is stopping."));
        self.closing.cancel();
        if tokio::time::timeout(DRAIN, &mut self.serving).await.is_err() {
            tracing::warn!("requests were cut off: they did not end within {DRAIN:?}");
            self.serving.abort();
        }
        drop(self.hooks.take());
        // Regions report into the state until they are stopped, so the state goes last.
        self.app.regions().stop().await;
        self.app.state().close().await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.closing.cancel();
        self.serving.abort();
    }
}

fn listen_address(options: &Options) -> Result<SocketAddr, StartError> {
    let address = options
        .listen
        .or(options.config.server.listen)
        .unwrap_or_else(|| DEFAULT_LISTEN.parse().expect("a constant address"));
    if address.ip().is_loopback() { Ok(address) } else { Err(StartError::NotLoopback { address }) }
}

/// Makes the data folder, for its owner alone, and takes it for this process.
fn open_data(path: &Path) -> Result<File, StartError> {
    let failed = |path: &Path, source: io::Error| StartError::Data { path: path.to_path_buf(), source };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path).map_err(|error| failed(path, error))?;
    let lock_path = path.join("server.lock");
    let lock = File::create(&lock_path).map_err(|error| failed(&lock_path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StartError::DataInUse { path: path.to_path_buf() }),
        Err(TryLockError::Error(error)) => Err(failed(&lock_path, error)),
    }
}

async fn open_state(options: &Options) -> Result<State, StartError> {
    let store = open_database(&options.data.join("state.sqlite")).await?;
    let name = options.config.server.name.as_deref().unwrap_or("server");
    let state = StateOptions::new(name).record::<CallRecord>().record::<OperatorAction>();
    Ok(State::open(store.driver(), state).await?)
}

/// Opens the database. The data folder is ours by now, so whoever still has the file open in this
/// process is a server that has ended and whose last tasks are letting go of it.
async fn open_database(file: &Path) -> Result<SqliteStore, StartError> {
    let started = Instant::now();
    loop {
        let file = file.to_path_buf();
        let opened = tokio::task::spawn_blocking(move || SqliteStore::open(file, SqliteOptions::default())).await;
        match opened.map_err(|error| StartError::Prepare(error.to_string()))? {
            Err(DriverError::Held(_)) if started.elapsed() < LET_GO => tokio::time::sleep(LET_GO / 100).await,
            opened => return Ok(opened?),
        }
    }
}

/// Everything between an open state and a service.
async fn host(
    options: &Options,
    address: SocketAddr,
    state: &State,
) -> Result<(App, (RolloutHooks, Vec<HookHandle>)), StartError> {
    let registry = Arc::new(options.registry.clone());
    let operations = Operations::new(state.clone(), Arc::clone(&registry));
    let setups = register_regions(options, state, &operations).await?;
    let lifecycle = Lifecycle::new(options.registry.clone(), LifecycleOptions::default());
    let file_differs = publish_hooks(options, state, &lifecycle).await?;

    let root = options.data.join("artifacts");
    let artifacts = ArtifactStore::local(&root)?;
    let uploads =
        Uploads::new(&root, artifacts.clone()).map_err(|source| StartError::Data { path: root.clone(), source })?;
    let uploads = Arc::new(uploads);
    sweep_uploads(state, &uploads).await?;

    let mut metrics = MetricsRegistry::default();
    let http = HttpMetrics::register(&mut metrics);
    state.metrics().register(&mut metrics);
    lifecycle.metrics().register(&mut metrics);
    let rollout_metrics = RolloutMetrics::default();
    rollout_metrics.register(&mut metrics, state.clone());

    let mut host_options = HostOptions::new(options.data.join("regions"), artifacts.clone());
    host_options.name = format!("server {}", state.server());
    host_options.metrics.register(&mut metrics);
    let regions = RegionHost::start(state.clone(), host_options, setups).await?;

    let remover = Remover { artifacts: artifacts.clone(), uploads: Arc::clone(&uploads) };
    let dependencies =
        RolloutDependencies { registry: Arc::clone(&registry), remover: Arc::new(remover), metrics: rollout_metrics };
    let rollout =
        RolloutHooks::register(state, dependencies).await.map_err(|error| StartError::Prepare(error.to_string()))?;
    let source = Arc::new(tidegate_rollout::context::PushContexts);
    let mut calls = lifecycle.register::<Call>(state, source).await?;
    calls.push(lifecycle.deliver_events(state, Arc::new(LogSink)).await?);

    let limits = ServerLimits::from_section(&options.config.server.limits);
    let app = App::new(Inner {
        state: state.clone(),
        operations,
        registry,
        lifecycle,
        regions,
        uploads,
        watches: Room::new("watches", limits.watches, Duration::MAX),
        downloads: Room::new("downloads", limits.uploads, Duration::MAX),
        artifacts,
        metrics,
        http,
        settings: settings(options, address, &limits),
        limits,
        file_differs,
        not_ready: RwLock::new(Some("The server is starting.".to_owned())),
        closing: CancellationToken::new(),
    });
    Ok((app, (rollout, calls)))
}

/// Registers the regions of the configuration, or `a`, `b` and `c` where there are none at all.
/// The regions that this server hosts.
async fn register_regions(
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
        if changed {
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
async fn publish_hooks(options: &Options, state: &State, lifecycle: &Lifecycle) -> Result<Option<String>, StartError> {
    let prepare = |error: String| StartError::Prepare(error);
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

/// Removes what pushes have sent that no longer take parts.
async fn sweep_uploads(state: &State, uploads: &Uploads) -> Result<(), StartError> {
    let snapshot = state.snapshot();
    let mut taking = BTreeSet::new();
    for item in snapshot.all::<Push>() {
        let Ok((push, value)) = item else { continue };
        if value.needs_client() {
            taking.insert(push.id());
        }
    }
    uploads
        .keep_only(&taking)
        .await
        .map_err(|error| StartError::Prepare(format!("what is left of uploads can't be removed: {error}")))
}

/// Every setting with where it came from, by its name in the file.
fn settings(options: &Options, address: SocketAddr, limits: &ServerLimits) -> BTreeMap<String, Setting> {
    let server = &options.config.server;
    let mut settings = limits.settings(&server.limits);
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
    let name = match &server.name {
        Some(name) => (name.clone(), SettingOrigin::File),
        None => ("server".to_owned(), SettingOrigin::Default),
    };
    set("server.name", name.0, name.1);
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

/// Removes bytes that nothing refers to any more.
struct Remover {
    artifacts: ArtifactStore,
    uploads: Arc<Uploads>,
}

#[async_trait]
impl ArtifactRemover for Remover {
    async fn remove_artifact(&self, artifact: &str, _manifest_sha256: &str) -> Result<(), String> {
        self.artifacts.delete(artifact).await.map_err(|error| error.to_string())
    }

    async fn remove_upload(&self, _store: &str, push: &str) -> Result<(), String> {
        self.uploads.remove(push).await.map_err(|error| error.to_string())
    }
}
