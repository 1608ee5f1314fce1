//! Local hooks: run on every server for each change in scope, in revision order, each on a task of its own.
//!
//! Invariants: a hook sees what existed when it registered, then every change after that once; its snapshot is at exactly
//! the change's revision; what it does, and how slowly, concerns nobody else.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::change::{Change, Hooks};
use crate::document::panic_message;
use crate::entity::{Entity, Parent, Ref};
use crate::feed::{Feed, FeedItem};
use crate::metrics::hook_label;
use crate::path::Path;
use crate::revision::{Attributes, Revision};
use crate::snapshot::Snapshot;
use crate::state::{State, WeakState};

/// What a hook may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which changes a local hook is called for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope(Within);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Within {
    /// Every entity at the end of this chain of collections.
    Collection(Vec<&'static str>),
    /// The entities of one collection under one parent.
    ChildrenOf(Path, &'static str),
    /// One path and all below it.
    Subtree(Path),
}

impl Scope {
    /// Every entity of a collection, under any parent.
    #[must_use]
    pub fn collection<E: Entity>() -> Scope {
        Scope(Within::Collection(<E as Parent>::collections()))
    }

    /// The entities of a collection under one parent.
    #[must_use]
    pub fn children_of<E: Entity>(parent: &Ref<E::Parent>) -> Scope
    where
        E::Parent: Entity,
    {
        Scope(Within::ChildrenOf(parent.path().clone(), E::COLLECTION))
    }

    /// A path and all that lies below it; everything for [`Path::root`].
    #[must_use]
    pub fn subtree(path: Path) -> Scope {
        Scope(Within::Subtree(path))
    }

    fn holds(&self, path: &Path) -> bool {
        match &self.0 {
            Within::Collection(collections) => {
                path.depth() == collections.len() && path.expect_collections(collections).is_ok()
            }
            Within::ChildrenOf(parent, collection) => {
                path.depth() == parent.depth() + 1 && path.collection() == *collection && path.is_within(parent)
            }
            Within::Subtree(top) => path.is_within(top),
        }
    }

    /// What exists in scope, parents before children, in id order.
    fn existing(&self, snapshot: &Snapshot) -> Vec<Path> {
        match &self.0 {
            Within::Collection(_) => snapshot.paths().into_iter().filter(|path| self.holds(path)).collect(),
            Within::ChildrenOf(parent, collection) => snapshot.tree().children(parent, collection).cloned().collect(),
            Within::Subtree(top) => snapshot.paths_within(top),
        }
    }
}

/// One call of a local hook.
#[derive(Clone)]
pub struct LocalCall {
    /// What changed. For what exists at registration: no `before`, and `after` as it is.
    pub change: Change,
    /// Whether this is about what existed when the hook registered.
    pub existing: bool,
    /// The revision of the transaction; for what existed, that of the snapshot.
    pub revision: Revision,
    /// What the transaction's writer said about it; empty for what existed.
    pub attributes: Arc<Attributes>,
    /// The tree at exactly that revision.
    pub snapshot: Snapshot,
    /// To write, flush or wait, which a hook may freely do.
    pub state: State,
}

/// The code of a local hook. Implemented by every `Fn(LocalCall) -> impl Future<Output = Result<(), BoxError>>`.
pub trait LocalHook: Send + Sync + 'static {
    /// Runs for one change. Calls of one hook come one after the other. An error or a panic is logged and counted, and the
    /// next change comes all the same.
    fn run(&self, call: LocalCall) -> impl Future<Output = Result<(), BoxError>> + Send;
}

impl<F, R> LocalHook for F
where
    F: Fn(LocalCall) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), BoxError>> + Send,
{
    fn run(&self, call: LocalCall) -> impl Future<Output = Result<(), BoxError>> + Send {
        self(call)
    }
}

/// Why a local hook could not be registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalHookError {
    /// The state has been closed.
    #[error("the state is closed")]
    Closed,
}

/// Keeps a local hook registered. Dropping it ends the hook, after the call that runs.
#[derive(Debug)]
#[must_use = "dropping the handle ends the hook"]
pub struct LocalHookHandle {
    end: CancellationToken,
}

impl Drop for LocalHookHandle {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

pub(crate) struct Registered<H> {
    pub(crate) name: String,
    pub(crate) scope: Scope,
    pub(crate) hook: H,
    pub(crate) state: WeakState,
    pub(crate) end: CancellationToken,
}

impl LocalHookHandle {
    pub(crate) fn new(end: CancellationToken) -> LocalHookHandle {
        LocalHookHandle { end }
    }
}

impl<H: LocalHook> Registered<H> {
    /// Runs until the handle is dropped or the state is closed.
    pub(crate) async fn run(self, mut feed: Feed) {
        let first = feed.snapshot().clone();
        for path in self.scope.existing(&first) {
            let Some(node) = first.tree().get(&path) else { continue };
            let change = Change {
                path,
                revision: first.revision(),
                before: None,
                after: Some(node.document.clone()),
                sequence: 0,
                hooks: Hooks::new(),
            };
            if !self.call(change, true, first.revision(), Arc::default(), first.clone()).await {
                return;
            }
        }
        loop {
            let last = feed.snapshot().clone();
            let item = tokio::select! {
                biased;
                () = self.end.cancelled() => return,
                item = feed.next() => item,
            };
            match item {
                None => return,
                Some(FeedItem::Transaction(applied)) => {
                    for change in applied.changes.iter().filter(|change| self.scope.holds(&change.path)) {
                        let attributes = applied.attributes.clone();
                        let snapshot = applied.snapshot.clone();
                        if !self.call(change.clone(), false, applied.revision, attributes, snapshot).await {
                            return;
                        }
                    }
                    self.report_lag(applied.revision);
                }
                // What happened in between is not to be had: one call for each entity that differs.
                Some(FeedItem::Snapshot(snapshot)) => {
                    for (sequence, (path, before, after)) in last.tree().diff(snapshot.tree()).into_iter().enumerate() {
                        if !self.scope.holds(&path) {
                            continue;
                        }
                        let revision = snapshot.revision();
                        let sequence = u32::try_from(sequence).unwrap_or(u32::MAX);
                        let change = Change { path, revision, before, after, sequence, hooks: Hooks::new() };
                        if !self.call(change, false, revision, Arc::default(), snapshot.clone()).await {
                            return;
                        }
                    }
                    self.report_lag(snapshot.revision());
                }
            }
        }
    }

    fn report_lag(&self, at: Revision) {
        if let Some(state) = self.state.upgrade() {
            let shown = state.snapshot().revision().0;
            let lag = i64::try_from(shown.saturating_sub(at.0)).unwrap_or(i64::MAX);
            state.metrics().local_hook_lag.get_or_create(&hook_label(&self.name)).set(lag);
        }
    }

    /// One call; false if there is to be no further one.
    async fn call(
        &self,
        change: Change,
        existing: bool,
        revision: Revision,
        attributes: Arc<Attributes>,
        snapshot: Snapshot,
    ) -> bool {
        if self.end.is_cancelled() {
            return false;
        }
        let Some(state) = self.state.upgrade() else { return false };
        let label = hook_label(&self.name);
        let metrics = state.metrics();
        metrics.local_hook_calls.get_or_create(&label).inc();
        let shown = state.snapshot().revision().0;
        let lag = i64::try_from(shown.saturating_sub(revision.0)).unwrap_or(i64::MAX);
        metrics.local_hook_lag.get_or_create(&label).set(lag);
        let path = change.path.clone();
        let call = LocalCall { change, existing, revision, attributes, snapshot, state };
        // Made within what is caught, since a hook may panic before its first await.
        let run = AssertUnwindSafe(async { self.hook.run(call).await });
        let run: Pin<Box<dyn Future<Output = _> + Send + '_>> = Box::pin(run.catch_unwind());
        let failed = match run.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => Some(format!("it panicked: {}", panic_message(&*panic))),
        };
        if let Some(error) = failed {
            metrics.local_hook_errors.get_or_create(&label).inc();
            tracing::error!(hook = self.name, %path, %revision, error, "a local hook failed; the next change comes");
        }
        true
    }
}
