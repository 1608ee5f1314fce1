//! A server that runs, and its end.

use std::io;
use std::net::SocketAddr;

use tidegate_rollout::region::RegionHost;
use tidegate_state::State;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::artifacts::Adoption;
use crate::data_folder::FolderLock;
use crate::http::address;
use crate::http::serve::drain;
use crate::work::HooksSlot;

/// A server that runs. [`Handle::shutdown`] ends it in order; dropping it ends it at once, as a
/// crash would.
pub struct Handle {
    pub(super) address: SocketAddr,
    pub(super) app: App,
    pub(super) closing: CancellationToken,
    pub(super) serving: JoinHandle<io::Result<()>>,
    pub(super) hooks: HooksSlot,
    /// The clerk, what completes the start once writes go on, and what looks after the certificate; they end when the server
    /// closes.
    pub(super) tasks: Vec<JoinHandle<()>>,
    pub(super) has_tls: bool,
    pub(super) first_token: Option<String>,
    pub(super) adoption: Option<Adoption>,
    pub(super) _lock: FolderLock,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handle").field("address", &self.address).finish_non_exhaustive()
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
        address::url(self.address, self.has_tls)
    }

    /// The admin token of an installation that had none, once: to be shown to whoever started the
    /// server, and kept nowhere.
    #[must_use]
    pub fn take_first_token(&mut self) -> Option<String> {
        self.first_token.take()
    }

    /// What came of adopting the artifact store, if this start has: to be shown to whoever started the server.
    #[must_use]
    pub fn take_adoption(&mut self) -> Option<Adoption> {
        self.adoption.take()
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
