//! What every handler can reach.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prometheus_client::registry::Registry as MetricsRegistry;
use tidegate_api::{Role, ServerConfigView, Setting};
use tidegate_dataset::artifact::ArtifactStore;
use tidegate_lifecycle::{Lifecycle, Registry};
use tidegate_rollout::Operations;
use tidegate_rollout::region::RegionHost;
use tidegate_state::{Snapshot, State, Timestamp};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::access::{self, Access, Asked, Bearer, Refusal};
use crate::artifacts::MarkWatch;
use crate::config::ServerLimits;
use crate::forward::Forwarder;
use crate::http::errors::ApiError;
use crate::http::extract::Actor;
use crate::http::guard::{Hosts, Room};
use crate::http::metrics::HttpMetrics;
use crate::http::shares::{Share, Shares};
use crate::look_again::LookAgain;
use crate::uploads::Uploads;
use crate::views::Scene;

/// How long a handler waits until this server shows what it has just written.
const CATCH_UP: Duration = Duration::from_secs(2);

/// What every handler can reach. Clones are the same.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) state: State,
    pub(crate) look_again: LookAgain,
    pub(crate) operations: Operations,
    pub(crate) registry: Arc<Registry>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) regions: RegionHost,
    pub(crate) forwarder: Forwarder,
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) mark: Arc<MarkWatch>,
    pub(crate) limits: ServerLimits,
    pub(crate) watches: Room,
    /// Those of region agents, which nobody else may take.
    pub(crate) agent_watches: Room,
    pub(crate) watch_shares: Arc<Shares>,
    pub(crate) upload_shares: Arc<Shares>,
    pub(crate) downloads: Room,
    pub(crate) artifacts: ArtifactStore,
    pub(crate) metrics: MetricsRegistry,
    pub(crate) http: HttpMetrics,
    pub(crate) settings: BTreeMap<String, Setting>,
    pub(crate) file_differs: Option<String>,
    /// Why the server can't do its work (yet).
    pub(crate) not_ready: RwLock<Option<String>>,
    pub(crate) closing: CancellationToken,
    pub(crate) access: Access,
    pub(crate) hosts: Arc<Hosts>,
}

/// The room that a watch takes, until this is dropped.
pub(crate) struct WatchRoom {
    _permit: OwnedSemaphorePermit,
    _share: Option<Share>,
}

impl App {
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    pub(crate) fn state(&self) -> &State {
        &self.0.state
    }

    /// Operations whose transactions say who asked for them, and in which request, and that leave their mark in the audit
    /// trail.
    pub(crate) fn operations_of(&self, actor: &Actor) -> Operations {
        let operations = self.0.operations.with_attributes(actor.attributes());
        match actor.beside() {
            Some(beside) => operations.with_beside(beside),
            None => operations,
        }
    }

    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }

    /// Whose token this is.
    pub(crate) async fn bearer_of_text(&self, token: &str) -> Result<Bearer, Refusal> {
        self.find_bearer(|snapshot, now| access::bearer_of_text(token, snapshot, now)).await
    }

    /// Who is found in the snapshot, or in a newer one where the token may have been made a moment ago at another server.
    pub(crate) async fn find_bearer(
        &self,
        find: impl Fn(&Snapshot, Timestamp) -> Result<Bearer, Refusal>,
    ) -> Result<Bearer, Refusal> {
        let found = find(&self.0.state.snapshot(), self.0.state.now());
        match found {
            Err(refusal) if refusal.may_be_new() && self.look_again().await => {
                find(&self.0.state.snapshot(), self.0.state.now())
            }
            found => found,
        }
    }

    /// Whether other servers write into the state, so that what is not known here may be known to them.
    pub(crate) fn is_shared(&self) -> bool {
        self.0.look_again.is_shared()
    }

    /// Before it is said that something is unknown: catches up with other servers, and says whether to look again. See
    /// [`crate::look_again`].
    pub(crate) async fn look_again(&self) -> bool {
        self.0.look_again.catch_up(&self.0.state).await
    }

    pub(crate) fn hosts(&self) -> Arc<Hosts> {
        Arc::clone(&self.0.hosts)
    }

    pub(crate) fn lifecycle(&self) -> &Lifecycle {
        &self.0.lifecycle
    }

    pub(crate) fn regions(&self) -> &RegionHost {
        &self.0.regions
    }

    pub(crate) fn forwarder(&self) -> &Forwarder {
        &self.0.forwarder
    }

    /// Whether the artifact store is the installation's.
    pub(crate) fn mark(&self) -> Arc<MarkWatch> {
        Arc::clone(&self.0.mark)
    }

    pub(crate) fn uploads(&self) -> &Uploads {
        &self.0.uploads
    }

    pub(crate) fn limits(&self) -> &ServerLimits {
        &self.0.limits
    }

    pub(crate) fn http_metrics(&self) -> &HttpMetrics {
        &self.0.http
    }

    pub(crate) fn closing(&self) -> CancellationToken {
        self.0.closing.clone()
    }

    pub(crate) fn scene<'a>(&'a self, snapshot: &'a Snapshot) -> Scene<'a> {
        Scene { snapshot, registry: &self.0.registry, now: self.0.state.now() }
    }

    /// Waits until this server shows all that was committed before, so that whoever has written
    /// something can read it. If that takes too long, what is shown may be a little behind.
    pub(crate) async fn caught_up(&self) {
        if let Err(error) = self.0.state.flush_within(CATCH_UP).await {
            tracing::debug!(%error, "an answer may be behind what was written");
        }
    }

    /// Room for one more watch of this caller.
    pub(crate) fn enter_watch(&self, asked: &Asked) -> Result<WatchRoom, ApiError> {
        let bearer = asked.caller.bearer();
        let is_agent = bearer.is_some_and(|bearer| bearer.role == Role::Region);
        let share = self.0.watch_shares.enter(bearer)?;
        let room = if is_agent { &self.0.agent_watches } else { &self.0.watches };
        Ok(WatchRoom { _permit: room.enter()?, _share: share })
    }

    /// One more upload of this caller, within its share.
    pub(crate) fn enter_upload(&self, asked: &Asked) -> Result<Option<Share>, ApiError> {
        self.0.upload_shares.enter(asked.caller.bearer())
    }

    pub(crate) fn enter_download(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.0.downloads.enter()
    }

    pub(crate) fn artifacts(&self) -> &ArtifactStore {
        &self.0.artifacts
    }

    pub(crate) fn metrics(&self) -> &MetricsRegistry {
        &self.0.metrics
    }

    /// Why nothing may be written before an admin has confirmed it, if so: the database was put back.
    pub(crate) fn set_back(&self) -> Option<String> {
        self.0.state.writes_stopped().map(|why| format!("{why}."))
    }

    /// Why the server can't do its work, if it can't.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if let Some(why) = self.0.not_ready.read().clone() {
            return Some(why);
        }
        if let Some(full) = self.0.state.store_full() {
            return Some(format!("Reads are answered, and nothing can be written: {full}."));
        }
        if self.0.state.is_store_silent() {
            // Whoever asks is not known: the database's address and what it says are for the log.
            return Some(
                "Reads are answered from the last state that is known here, and nothing can be written: the database does \
                 not answer. The server goes on by itself once it does."
                    .to_owned(),
            );
        }
        let troubles = self.0.regions.troubles();
        let texts: Vec<String> =
            troubles.iter().map(|(region, why)| format!("of region {region}'s agent, {why}")).collect();
        (!texts.is_empty()).then(|| format!("Not all regions are looked after: {}.", texts.join("; ")))
    }

    pub(crate) fn set_not_ready(&self, why: Option<&str>) {
        *self.0.not_ready.write() = why.map(str::to_owned);
    }

    pub(crate) fn server_config(&self) -> ServerConfigView {
        ServerConfigView {
            server: self.0.state.server().to_string(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            settings: self.0.settings.clone(),
            file_differs: self.0.file_differs.clone(),
        }
    }
}
