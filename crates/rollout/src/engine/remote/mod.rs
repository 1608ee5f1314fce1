//! The engine of a node that is a process of its own: each step is a request to the node.
//!
//! The node answers every step with a stream of lines ([`wire`]): that it lives, how far it is, and in the end what came
//! of it. Whoever stops listening stops the step.
//!
//! # Invariants
//! - A node that says nothing for a while is not waited for: the step may work later.
//! - Each step carries the token of the agent that commands it. A node obeys no lower token than the highest it has seen,
//!   so that of two agents one alone is obeyed.
//! - What a node answers that makes no sense is an error of that step, never of the agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Response, Url};
use tidegate_api::ErrorBody;
use tidegate_api::manifest::Manifest;
use tokio_util::sync::CancellationToken;

use self::wire::{Command, Line, Order, Outcome};
use super::{Capacity, Engine, EngineError, LoadProgress, LoadableArtifact, Observed, StoreKey, Verification};
use crate::region::remote::HttpClient;

pub mod wire;

/// A node says something at least every two seconds; after five times that it counts as lost.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// How long a node may take to end a load that was cut off.
const CUT_OFF_MAX: Duration = Duration::from_secs(10);

/// How often it is told so.
const CUT_OFF_EVERY: Duration = Duration::from_millis(50);

/// The longest line that is read, in bytes: what a node observes of a store is small.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Where a node is, and what it wants to hear.
#[derive(Clone)]
pub struct NodePlace {
    /// Its address, such as `http://127.0.0.1:7620`.
    pub address: Url,
    /// The secret that it has given its agent.
    pub secret: String,
}

impl std::fmt::Debug for NodePlace {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NodePlace").field("address", &self.address.as_str()).finish_non_exhaustive()
    }
}

/// A node that is a process of its own. Clones are the same node.
#[derive(Clone)]
pub struct RemoteEngine(Arc<Remote>);

struct Remote {
    http: HttpClient,
    /// Changes when the node starts again elsewhere.
    place: RwLock<NodePlace>,
    /// The token that the agent has for hosting its region.
    token: Arc<AtomicU64>,
}

impl RemoteEngine {
    /// The node at this place, reached by this client, commanded with whatever token is there at the time.
    #[must_use]
    pub fn new(place: NodePlace, token: Arc<AtomicU64>, http: HttpClient) -> Self {
        RemoteEngine(Arc::new(Remote { http, place: RwLock::new(place), token }))
    }

    /// The node is to be found here from now on.
    pub fn moved(&self, place: NodePlace) {
        *self.0.place.write() = place;
    }

    /// Where the node is.
    #[must_use]
    pub fn address(&self) -> String {
        self.0.place.read().address.as_str().trim_end_matches('/').to_owned()
    }

    /// Tells the node to end a load, until it has: only then may it be ordered something else of that version.
    async fn cut_off(
        &self,
        store: &StoreKey,
        version: u64,
        mut load: std::pin::Pin<&mut impl Future<Output = Result<Outcome, EngineError>>>,
    ) -> Result<Outcome, EngineError> {
        loop {
            let told = async {
                let told = self.order(Command::CutOff { store: store.clone(), version }, None).await;
                // It may have overtaken the load that it is about, so it is told again as long as that has not ended.
                tokio::time::sleep(CUT_OFF_EVERY).await;
                told
            };
            tokio::select! {
                biased;
                outcome = load.as_mut() => return outcome,
                _ = told => {}
            }
        }
    }

    async fn order(&self, command: Command, progress: Option<&LoadProgress>) -> Result<Outcome, EngineError> {
        let place = self.0.place.read().clone();
        let token = self.0.token.load(Ordering::Relaxed);
        let lost = |why: String| EngineError::retry(format!("the node at {} {why}", place.address));
        let mut url = place.address.clone();
        url.path_segments_mut()
            .map_err(|()| lost("has no usable address".to_owned()))?
            .pop_if_empty()
            .extend(["v1", "engine"]);
        let mut secret = HeaderValue::from_str(&format!("Bearer {}", place.secret))
            .map_err(|_| lost("has no usable secret".to_owned()))?;
        secret.set_sensitive(true);
        let request =
            self.0.http.current().await.post(url).header(AUTHORIZATION, secret).json(&Order { token, command });
        let response = match tokio::time::timeout(SILENCE_MAX, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                return Err(lost(format!("can't be reached: {}", crate::region::remote::chain(&error.without_url()))));
            }
            Err(_) => return Err(lost(format!("has not answered for {} s", SILENCE_MAX.as_secs()))),
        };
        let status = response.status();
        let mut lines = Lines { response, buffer: Vec::new() };
        if !status.is_success() {
            let body = lines.rest().await.map_err(lost)?;
            let why =
                serde_json::from_slice::<ErrorBody>(&body).map_or_else(|_| status.to_string(), |body| body.to_string());
            return Err(lost(format!("refused: {why}")));
        }
        loop {
            match lines.next().await.map_err(lost)? {
                Line::Alive => {}
                Line::Progress { done, total } => {
                    if let Some(progress) = progress {
                        progress.set(done, total);
                    }
                }
                Line::Done(outcome) => return Ok(outcome),
                Line::Failed(error) => return Err(error.into()),
            }
        }
    }
}

/// The lines of an answer.
struct Lines {
    response: Response,
    buffer: Vec<u8>,
}

impl Lines {
    async fn more(&mut self) -> Result<bool, String> {
        match tokio::time::timeout(SILENCE_MAX, self.response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                self.buffer.extend_from_slice(&chunk);
                if self.buffer.len() > LINE_BYTES_MAX {
                    return Err(format!("answered with over {LINE_BYTES_MAX} bytes"));
                }
                Ok(true)
            }
            Ok(Ok(None)) => Ok(false),
            Ok(Err(error)) => Err(format!("was lost: {}", crate::region::remote::chain(&error.without_url()))),
            Err(_) => Err(format!("has said nothing for {} s", SILENCE_MAX.as_secs())),
        }
    }

    async fn next(&mut self) -> Result<Line, String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|error| format!("answered what can't be read: {error}"));
            }
            if !self.more().await? {
                return Err("broke off in the middle of a step".to_owned());
            }
        }
    }

    async fn rest(&mut self) -> Result<Vec<u8>, String> {
        while self.more().await? {}
        Ok(std::mem::take(&mut self.buffer))
    }
}

/// An answer to another question than was asked.
fn amiss<T>() -> Result<T, EngineError> {
    Err(EngineError::retry("the node answered something else than it was asked"))
}

#[async_trait]
impl Engine for RemoteEngine {
    async fn adopt(&self, store: &StoreKey) -> Result<bool, EngineError> {
        match self.order(Command::Adopt { store: store.clone() }, None).await? {
            Outcome::Adopted { held } => Ok(held),
            _ => amiss(),
        }
    }

    async fn capacity(&self, store: &StoreKey, version: u64, manifest: &Manifest) -> Result<Capacity, EngineError> {
        let command = Command::Capacity { store: store.clone(), version, manifest: Box::new(manifest.clone()) };
        match self.order(command, None).await? {
            Outcome::Capacity { capacity } => Ok(capacity),
            _ => amiss(),
        }
    }

    async fn load(
        &self,
        store: &StoreKey,
        version: u64,
        artifact: &LoadableArtifact,
        progress: &Arc<LoadProgress>,
        cancelled: &CancellationToken,
    ) -> Result<(), EngineError> {
        let command = Command::Load {
            store: store.clone(),
            version,
            artifact: artifact.manifest.artifact_id.clone(),
            manifest_sha256: artifact.manifest_sha256.clone(),
        };
        if cancelled.is_cancelled() {
            return Err(EngineError::retry("the load was cut off"));
        }
        let mut order = std::pin::pin!(self.order(command, Some(progress.as_ref())));
        let outcome = tokio::select! {
            biased;
            () = cancelled.cancelled() => {
                // A node that can't be told notices that nobody listens any more.
                let cut_off = self.cut_off(store, version, order.as_mut());
                return match tokio::time::timeout(CUT_OFF_MAX, cut_off).await {
                    Ok(Ok(Outcome::Done)) => Ok(()),
                    Ok(Ok(_)) => amiss(),
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(EngineError::retry("the load was cut off")),
                };
            }
            outcome = order.as_mut() => outcome?,
        };
        match outcome {
            Outcome::Done => Ok(()),
            _ => amiss(),
        }
    }

    async fn verify(&self, store: &StoreKey, version: u64) -> Result<Verification, EngineError> {
        match self.order(Command::Verify { store: store.clone(), version }, None).await? {
            Outcome::Verified { verification } => Ok(verification),
            _ => amiss(),
        }
    }

    async fn swap(&self, store: &StoreKey, version: Option<u64>) -> Result<(), EngineError> {
        match self.order(Command::Swap { store: store.clone(), version }, None).await? {
            Outcome::Done => Ok(()),
            _ => amiss(),
        }
    }

    async fn drop_version(&self, store: &StoreKey, version: u64) -> Result<(), EngineError> {
        match self.order(Command::Drop { store: store.clone(), version }, None).await? {
            Outcome::Done => Ok(()),
            _ => amiss(),
        }
    }

    async fn observe(&self, store: &StoreKey) -> Result<Observed, EngineError> {
        match self.order(Command::Observe { store: store.clone() }, None).await? {
            Outcome::Observed { observed } => Ok(observed),
            _ => amiss(),
        }
    }

    async fn stores(&self) -> Result<Vec<StoreKey>, EngineError> {
        match self.order(Command::Stores, None).await? {
            Outcome::Stores { stores } => Ok(stores),
            _ => amiss(),
        }
    }
}
