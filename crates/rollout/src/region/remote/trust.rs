//! A client that trusts the certificates of a file, which is read again when it changes.
//!
//! Whoever replaces an authority writes a file with both, waits until everybody trusts both, and renews certificates. So a
//! file that can't be used changes nothing: what was trusted before still is, until a good one is there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::Mutex;

use super::stamp::Stamp;
use super::{RemoteSetupError, chain, http_builder};

/// How often the file is looked at, at most: it is looked at when somebody is about to ask.
const LOOK: Duration = Duration::from_secs(1);

/// What a client has beside what every client has.
type Settle = Arc<dyn Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder + Send + Sync>;

/// Makes requests, and trusts what its file says at the time. Clones are the same.
#[derive(Clone)]
pub struct HttpClient(Arc<Inner>);

struct Inner {
    /// The certificates; without them nothing changes.
    trusted: Option<PathBuf>,
    settle: Settle,
    current: RwLock<reqwest::Client>,
    seen: Mutex<Seen>,
}

/// What was last seen of the file, and when.
struct Seen {
    at: Instant,
    stamp: Option<Stamp>,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HttpClient").field("trusted", &self.0.trusted).finish_non_exhaustive()
    }
}

impl HttpClient {
    /// A client as [`http_builder`] makes it, with what `settle` adds.
    pub(super) fn new(
        trusted: Option<&Path>,
        settle: impl Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder + Send + Sync + 'static,
    ) -> Result<Self, RemoteSetupError> {
        // The stamp comes first: what is written meanwhile has another one at the next look.
        let stamp = trusted.and_then(|path| std::fs::metadata(path).ok()).map(|metadata| Stamp::of(&metadata));
        let settle: Settle = Arc::new(settle);
        let current = build(trusted, &settle)?;
        let seen = Mutex::new(Seen { at: Instant::now(), stamp });
        let trusted = trusted.map(Path::to_owned);
        Ok(HttpClient(Arc::new(Inner { trusted, settle, current: RwLock::new(current), seen })))
    }

    /// The client to make a request with now.
    pub async fn current(&self) -> reqwest::Client {
        if let Some(path) = &self.0.trusted {
            self.look(path).await;
        }
        self.0.current.read().clone()
    }

    async fn look(&self, path: &Path) {
        // Where somebody is looking, what was trusted a moment ago will do.
        let Ok(mut seen) = self.0.seen.try_lock() else { return };
        if seen.at.elapsed() < LOOK {
            return;
        }
        seen.at = Instant::now();
        let stamp = tokio::fs::metadata(path).await.ok().map(|metadata| Stamp::of(&metadata));
        if stamp == seen.stamp {
            return;
        }
        // Once for each change, also where it can't be used.
        seen.stamp = stamp;
        let (trusted, settle) = (path.to_owned(), Arc::clone(&self.0.settle));
        let built = tokio::task::spawn_blocking(move || build(Some(&trusted), &settle)).await;
        match built {
            Ok(Ok(client)) => {
                // Requests that are under way end with the client before.
                *self.0.current.write() = client;
                tracing::info!(certificates = %path.display(), "the certificates that are trusted have changed");
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the certificates that are trusted have changed and can't be used; those before are still trusted");
            }
            Err(error) => tracing::error!(%error, "the certificates that are trusted could not be read again"),
        }
    }
}

fn build(trusted: Option<&Path>, settle: &Settle) -> Result<reqwest::Client, RemoteSetupError> {
    settle(http_builder(trusted)?).build().map_err(|error| RemoteSetupError::Trusted {
        path: trusted.map_or_else(String::new, |path| path.display().to_string()),
        why: chain(&error),
    })
}
