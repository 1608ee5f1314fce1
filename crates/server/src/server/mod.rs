//! The server: opens what it needs, starts what it hosts, and serves until it is told to stop.

mod error;
mod handle;
mod options;
mod prepare;
mod settings;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::registry::Registry as MetricsRegistry;
use tidegate_lifecycle::{Lifecycle, LifecycleOptions};
use tidegate_rollout::region::RegionHost;
use tidegate_rollout::region::host::HostOptions;
use tidegate_rollout::{Operations, RolloutMetrics};
use tidegate_state::{HookSelection, State};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::access::config::{AccessLimits, Authentication};
use crate::access::{self, Access, AccessMetrics, Clerk, Door};
use crate::app::{App, Inner};
use crate::artifacts::{self, Adoption, MarkWatch};
use crate::config::{ServerLimits, check_advertised};
use crate::data_folder;
use crate::database;
use crate::forward::Forwarder;
use crate::http::address;
use crate::http::guard::{Hosts, Room};
use crate::http::metrics::HttpMetrics;
use crate::http::serve::{ConnectionLimits, ConnectionMetrics, Service, serve};
use crate::http::shares::Shares;
use crate::http::tls::{Certificate, TlsMetrics};
use crate::look_again::LookAgain;
use crate::membership;
use crate::routes;
use crate::selection;
use crate::uploads::Uploads;
use crate::waiting;
use crate::work::{self, HooksSlot, HooksToRun};

pub use error::StartError;
pub use handle::Handle;
pub(crate) use options::LOCK;
pub use options::{DEFAULT_LISTEN, Options};
pub(crate) use prepare::{publish_hooks, register_regions};

use settings::settings;

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
        let selection = selection::selection(&options)?;
        let address = listen_address(&options);
        let has_tls = options.config.tls.pair().is_some();
        let authentication =
            access::authentication(address, &options.config.access, has_tls).map_err(StartError::Exposed)?;
        let certificate = options.config.tls.certificate().await?;
        let lock = data_folder::take(&options.data, LOCK)?;
        let listener = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
        let address = listener.local_addr().map_err(|source| StartError::Listen { address, source })?;

        let (state, listener) = waiting::open(&options, address, listener, certificate.as_ref()).await?;
        match open(&options, address, (authentication, certificate), selection, &state, listener).await {
            Ok(opened) => {
                tracing::info!(%address, data = %options.data.display(), "serving");
                let Opened { app, hooks, serving, tasks, first_token, adoption } = opened;
                let closing = app.closing();
                Ok(Handle { address, app, closing, serving, hooks, tasks, has_tls, first_token, adoption, _lock: lock })
            }
            Err(error) => {
                state.close().await;
                Err(error)
            }
        }
    }
}

fn listen_address(options: &Options) -> SocketAddr {
    let address = options.listen.or(options.config.server.listen);
    address.unwrap_or_else(|| DEFAULT_LISTEN.parse().expect("a constant address"))
}

/// Where it was told that others reach it.
fn told_address(options: &Options) -> Option<&str> {
    options.advertise.as_deref().or(options.config.server.advertise.as_deref())
}

/// Where others reach it, if they can know.
fn advertised(options: &Options, listens: SocketAddr) -> Option<String> {
    address::advertised(told_address(options), listens, options.config.tls.pair().is_some())
}

/// The names that it goes by: those that clients use, and the one by which it is advertised.
fn names(options: &Options) -> Vec<String> {
    options.config.server.hosts.iter().cloned().chain(told_address(options).and_then(address::host_of)).collect()
}

/// What serves.
struct Opened {
    app: App,
    hooks: HooksSlot,
    serving: JoinHandle<io::Result<()>>,
    tasks: Vec<JoinHandle<()>>,
    first_token: Option<String>,
    adoption: Option<Adoption>,
}

/// Everything from an open state to connections that are served.
async fn open(
    options: &Options,
    address: SocketAddr,
    (authentication, certificate): (Authentication, Option<Certificate>),
    selection: HookSelection,
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
    let Hosted { app, begin, adoption } =
        host(options, address, selection, state, (guard, metrics, closing.clone())).await?;
    tasks.push(tokio::spawn(app.mark().keep(closing.clone())));
    let hooks = HooksSlot::default();
    if !is_set_back {
        *hooks.lock() = Some(begin.register().await?);
        app.set_not_ready(None);
    } else {
        tasks.push(tokio::spawn(work::begin_later(begin, app.clone(), Arc::clone(&hooks), options.clone())));
    }
    let router = routes::router(app.clone()).map_err(|unruled| StartError::Prepare(unruled.to_string()))?;
    let limits = ConnectionLimits::of(&ServerLimits::from_section(&options.config.server.limits));
    let service = Service { router, tls, limits, metrics: connection_metrics };
    let serving = tokio::spawn(serve(listener, service, closing));
    failed.disarm();
    Ok(Opened { app, hooks, serving, tasks, first_token, adoption })
}

/// What is between an open state and a service.
struct Hosted {
    app: App,
    begin: HooksToRun,
    adoption: Option<Adoption>,
}

/// Everything between an open state and a service.
async fn host(
    options: &Options,
    address: SocketAddr,
    selection: HookSelection,
    state: &State,
    (access, mut metrics, closing): (Access, MetricsRegistry, CancellationToken),
) -> Result<Hosted, StartError> {
    let registry = Arc::new(options.registry.clone());
    let operations = Operations::new(state.clone(), Arc::clone(&registry));
    let setups = register_regions(options, state, &operations).await?;
    let lifecycle = Lifecycle::new(
        options.registry.clone(),
        LifecycleOptions { selection: selection.clone(), ..LifecycleOptions::default() },
    );
    let file_differs = publish_hooks(options, state, &lifecycle).await?;

    let plan = artifacts::plan(options)?;
    let artifacts = plan.open()?;
    let adoption = artifacts::agree(state, &artifacts, options.adopt_artifact_store).await?;
    let mark = MarkWatch::begin(state, &artifacts, &mut metrics).await;
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
        remover: Arc::new(artifacts::Remover::new(artifacts.clone(), Arc::clone(&uploads), Arc::clone(&mark))),
        metrics: rollout_metrics,
        selection,
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
        mark,
        artifacts,
        limits,
        file_differs,
        not_ready: RwLock::new(Some("The server is starting.".to_owned())),
        closing,
        hosts: Arc::new(Hosts::new(&names(options), !address.ip().is_loopback(), options.config.tls.pair().is_some())),
        access,
    });
    Ok(Hosted { app, begin, adoption })
}
