//! The names of what is being filled in.
#![allow(missing_docs, clippy::unused_async, clippy::unused_self)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{RegisterError, Registration};
use crate::change::Change;
use crate::driver::{RequestId, ServerRow, SlotRow};
use crate::error::{WaitError, WriteError};
use crate::path::Path;
use crate::revision::{Attributes, Revision, Timestamp};
use crate::snapshot::Snapshot;
use crate::state::{Committed, State};
use crate::transaction::{Transaction, TransactionError};

pub type Key = Arc<str>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(pub u64);

#[async_trait]
pub trait ClusterHook: Send + Sync + 'static {
    async fn run(&self, run: Run) -> Outcome;
}

pub struct Run {
    change: Option<Change>,
}

impl Run {
    pub fn hook(&self) -> &str {
        unimplemented!()
    }
    pub fn key(&self) -> &Key {
        unimplemented!()
    }
    pub fn id(&self, _name: &str) -> Option<&str> {
        unimplemented!()
    }
    pub fn request(&self) -> RequestId {
        unimplemented!()
    }
    pub fn revision(&self) -> Revision {
        unimplemented!()
    }
    pub fn attempt(&self) -> u32 {
        unimplemented!()
    }
    pub fn token(&self) -> FencingToken {
        unimplemented!()
    }
    pub fn idempotency_key(&self) -> String {
        unimplemented!()
    }
    pub fn snapshot(&self) -> &Snapshot {
        unimplemented!()
    }
    pub fn now(&self) -> Timestamp {
        unimplemented!()
    }
    pub fn change(&self) -> Option<&Change> {
        self.change.as_ref()
    }
    pub fn attributes(&self) -> &Attributes {
        unimplemented!()
    }
    pub fn cancelled(&self) -> CancellationToken {
        unimplemented!()
    }
    pub fn state(&self) -> &State {
        unimplemented!()
    }
    pub async fn write<T, E, F>(&self, _closure: F) -> Result<Committed<T>, WriteError<E>>
    where
        F: Fn(&mut Transaction) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<TransactionError> + Send + 'static,
    {
        unimplemented!()
    }
}

pub struct Completion(#[allow(dead_code)] Box<dyn Fn(&mut Transaction) -> Result<(), TransactionError> + Send>);

pub enum Outcome {
    Done,
    DoneWith(Completion),
    RetryAt(Timestamp),
    RetryAtWith(Timestamp, Completion),
    Fail(String),
}

impl Outcome {
    pub fn done_with(closure: impl Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static) -> Outcome {
        Outcome::DoneWith(Completion(Box::new(closure)))
    }
    pub fn retry_at_with(
        at: Timestamp,
        closure: impl Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static,
    ) -> Outcome {
        Outcome::RetryAtWith(at, Completion(Box::new(closure)))
    }
}

pub struct HookHandle(());

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueState {
    Waiting,
    Running,
    RetryAt(Timestamp),
    BackingOff(Timestamp),
    Dead,
    PausedBehind(RequestId),
    NoServer,
}

#[derive(Debug, Clone)]
pub struct QueueEntry {
    pub request: RequestId,
    pub hook: Arc<str>,
    pub key: Key,
    pub path: Path,
    pub state: QueueState,
    pub attempts: u32,
    pub error: Option<String>,
    pub since: Timestamp,
    pub owner: Option<Arc<str>>,
    pub needs_version: u32,
}

#[derive(Debug, Clone, Default)]
pub struct QueueFilter {
    pub hook: Option<String>,
    pub key: Option<String>,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    #[error("there is no request {0}")]
    Unknown(RequestId),
}

pub struct Queue<'a>(#[allow(dead_code)] &'a State);

impl Queue<'_> {
    pub async fn list(&self, _filter: QueueFilter) -> Vec<QueueEntry> {
        unimplemented!()
    }
    pub async fn retry(&self, _request: RequestId, _by: &str) -> Result<(), QueueError> {
        unimplemented!()
    }
    pub async fn discard(&self, _request: RequestId, _by: &str) -> Result<(), QueueError> {
        unimplemented!()
    }
    pub async fn cancel(&self, _request: RequestId, _by: &str) -> Result<(), QueueError> {
        unimplemented!()
    }
}

#[derive(Debug, Clone, Default)]
pub struct WaitForHooks {
    until: Option<Revision>,
    hook: Option<String>,
    key: Option<String>,
    limit: Option<Duration>,
}

impl WaitForHooks {
    pub fn all() -> Self {
        WaitForHooks::default()
    }
    pub fn until(mut self, revision: Revision) -> Self {
        self.until = Some(revision);
        self
    }
    pub fn hook(mut self, hook: impl Into<String>) -> Self {
        self.hook = Some(hook.into());
        self
    }
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }
}

#[derive(Debug, Clone, Default)]
pub struct HooksReport {
    pub finished: u64,
    pub dead: Vec<QueueEntry>,
    pub paused: Vec<QueueEntry>,
}

#[derive(Debug, Clone, Default)]
pub struct ClusterView {
    pub servers: Vec<ServerRow>,
    pub slots: Vec<SlotRow>,
}

impl State {
    pub async fn register(
        &self,
        _registration: Registration,
        _room: u32,
        _hook: Arc<dyn ClusterHook>,
    ) -> Result<HookHandle, RegisterError> {
        unimplemented!()
    }
    pub async fn unregister(&self, _name: &str) -> Result<(), RegisterError> {
        unimplemented!()
    }
    pub fn queue(&self) -> Queue<'_> {
        Queue(self)
    }
    pub async fn wait_for_hooks(&self, _wait: WaitForHooks) -> Result<HooksReport, WaitError> {
        unimplemented!()
    }
    pub async fn cluster(&self) -> ClusterView {
        unimplemented!()
    }
}
