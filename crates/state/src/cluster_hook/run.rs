//! What a cluster hook is given, and what it answers.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::cause::Cause;
use super::key_queue::KeyIndex;
use super::lease_end::LeaseEnd;
use super::matcher::Definitions;
use super::registration::Delivery;
use crate::change::Change;
use crate::core::Fenced;
use crate::driver::{Fence, RequestId, SlotToken};
use crate::error::WriteError;
use crate::revision::{Attributes, Epoch, Revision, SubmissionId, Timestamp};
use crate::snapshot::Snapshot;
use crate::state::{Committed, State};
use crate::transaction::{Transaction, TransactionError};

/// The attribute of a hook-made change that names the hook.
pub const ATTRIBUTE_HOOK: &str = "hook";
/// The attribute of a hook-made change that names the request.
pub const ATTRIBUTE_REQUEST: &str = "hook-request";
/// The attribute of a hook-made change that has the run's fencing token.
pub const ATTRIBUTE_RUN: &str = "hook-run";

/// The code of a cluster hook.
///
/// It may run for as long as it likes: no lock and no transaction is held meanwhile, and other keys go on. It must not
/// block its thread. It may be cut off (a drain's limit, a lost lease) or run twice for one request, so what it does to
/// the world is to be idempotent ([`Run::idempotency_key`]) or fenced ([`Run::token`]).
#[async_trait]
pub trait ClusterHook: Send + Sync + 'static {
    /// Runs for one request. A panic counts as a failed run.
    async fn run(&self, run: Run) -> Outcome;
}

#[async_trait]
impl<F, Fut> ClusterHook for F
where
    F: Fn(Run) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    async fn run(&self, run: Run) -> Outcome {
        self(run).await
    }
}

/// A number that rises with every run of a key, for ever: a resource that refuses lower ones than it has seen takes no
/// write of a run that was overtaken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(pub u64);

impl FencingToken {
    /// The slot's token, then the run's number under it.
    pub(crate) fn new(token: SlotToken, run: u32) -> FencingToken {
        FencingToken((token.0 << 24) | u64::from(run))
    }

    /// The slot's token that the run was started under.
    #[must_use]
    pub fn slot_token(self) -> SlotToken {
        SlotToken(self.0 >> 24)
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The key of a run: the text that the template makes of the ids.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key(pub(crate) Arc<str>);

impl Key {
    /// The key's text; ids in it are percent-encoded.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What the owner and a run share.
#[derive(Debug, Default)]
pub(crate) struct RunControl {
    revoked: AtomicBool,
    cancelled: OnceLock<CancellationToken>,
    abort: Mutex<Option<AbortHandle>>,
}

impl RunControl {
    /// Signals the run to end; nothing that it still writes is accepted.
    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::SeqCst);
        if let Some(token) = self.cancelled.get() {
            token.cancel();
        }
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }

    fn token(&self) -> CancellationToken {
        let token = self.cancelled.get_or_init(CancellationToken::new);
        if self.is_revoked() {
            token.cancel();
        }
        token.clone()
    }

    pub(crate) fn set_abort(&self, handle: AbortHandle) {
        *self.abort.lock() = Some(handle);
    }

    /// Ends the run's task wherever it is.
    pub(crate) fn abort(&self) {
        self.revoke();
        if let Some(handle) = self.abort.lock().take() {
            handle.abort();
        }
    }
}

/// What runs of a hook that are started together have in common, so that a run counts one reference to it, and not three. Not
/// the hook itself, which may keep a run.
pub(crate) struct RunContext {
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) snapshot: Snapshot,
    pub(crate) state: State,
    pub(crate) lease: Arc<LeaseEnd>,
    pub(crate) installation: uuid::Uuid,
}

/// One run of a cluster hook.
#[derive(Clone)]
pub struct Run {
    pub(crate) context: Arc<RunContext>,
    pub(crate) key: Key,
    /// The key's place in its slot's queue, and the run's number there.
    pub(crate) place: (KeyIndex, u32),
    pub(crate) request: RequestId,
    pub(crate) attempt: u32,
    pub(crate) token: FencingToken,
    pub(crate) fence: Fence,
    pub(crate) cause: Arc<Cause>,
    /// Made of the cause when it is asked for.
    pub(crate) change: OnceLock<Box<Change>>,
    pub(crate) control: Arc<RunControl>,
}

impl Run {
    /// The hook's name.
    #[must_use]
    pub fn hook(&self) -> &str {
        &self.context.definitions.name
    }

    /// The key: no other run of this hook has it at the same time.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The ids of the key's template, by name, decoded.
    #[must_use]
    pub fn ids(&self) -> Vec<(String, Cow<'_, str>)> {
        self.context.definitions.template.ids(&self.key.0)
    }

    /// One id of the key's template.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<String> {
        self.ids().into_iter().find(|(there, _)| there == name).map(|(_, id)| id.into_owned())
    }

    /// The request that the run is for; with `LatestState` the newest one that it covers.
    #[must_use]
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// The request's revision. The snapshot is at or after it.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.request.revision
    }

    /// How many runs of the request there were, this one included, but for interrupted ones; from 1. Begins anew after an
    /// operator's retry.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// To be passed on to whatever can refuse lower numbers than it has seen.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// The same for every run of one request, and for no other request of this or another store, ever.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}/{}", self.context.installation, self.context.snapshot.epoch(), self.request)
    }

    /// The epoch that revisions count in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.context.snapshot.epoch()
    }

    /// The tree at or after the request's revision.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.context.snapshot
    }

    /// The time now by the driver's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.context.state.now()
    }

    /// The change that asked for the run, with before and after. For a run that was asked for what existed: without a
    /// before, and with what was there as after. None for `LatestState`, whose runs stand for any number of changes.
    #[must_use]
    pub fn change(&self) -> Option<&Change> {
        (self.context.definitions.entity.delivery() == Delivery::EveryChange)
            .then(|| &**self.change.get_or_init(|| Box::new(self.cause.change(self.request))))
    }

    /// The path whose change asked for the run; with `LatestState` that of the newest.
    #[must_use]
    pub fn path(&self) -> &crate::path::Path {
        self.cause.path()
    }

    /// What the writer of the change said about it.
    #[must_use]
    pub fn attributes(&self) -> &Attributes {
        self.cause.attributes()
    }

    /// Cancelled when the run is to end: an operator cancelled it, a drain's limit has come, or the lease is lost. What
    /// it writes or returns afterwards is refused.
    #[must_use]
    pub fn cancelled(&self) -> CancellationToken {
        self.control.token()
    }

    /// Whether what it writes or returns may still count: it was not cancelled, and by this server's clocks its lease holds. A
    /// server that stood still knows that at once, while it takes it a moment to cancel its runs.
    #[must_use]
    pub fn is_in_force(&self) -> bool {
        !self.control.is_revoked() && self.context.lease.holds()
    }

    /// This server's state, to read from and to write to without a condition on the token.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.context.state
    }

    /// Writes in mid-run, on condition that the run's token still holds. Unlike what comes with the outcome it is not tied
    /// to the acknowledgement: a repeated run writes it again.
    ///
    /// # Errors
    /// As [`State::write`]; [`WriteError::Fenced`] when the token does not hold any more or the run was cancelled.
    pub async fn write<T, E, F>(&self, closure: F) -> Result<Committed<T>, WriteError<E>>
    where
        F: Fn(&mut Transaction) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<TransactionError> + Send + 'static,
    {
        if self.control.is_revoked() {
            return Err(WriteError::Fenced);
        }
        let control = self.control.clone();
        let checked = move |transaction: &mut Transaction| {
            // An operator may have cancelled the run while the transaction waited; its token holds all the same.
            if control.is_revoked() {
                return Err(E::from(TransactionError::rejected("the run was cancelled")));
            }
            closure(transaction)
        };
        let fenced = Fenced { fence: self.fence, receipts: Vec::new(), exceptions: Vec::new() };
        self.context.state.core().submit(checked, self.write_attributes(), SubmissionId::random(), Some(fenced)).await
    }

    /// What the changes of this run carry: the cause's attributes, and who made them.
    pub(crate) fn write_attributes(&self) -> Arc<Attributes> {
        let mut attributes = (**self.cause.attributes()).clone();
        attributes.insert(ATTRIBUTE_HOOK.to_owned(), self.hook().to_owned());
        attributes.insert(ATTRIBUTE_REQUEST.to_owned(), self.request.to_string());
        attributes.insert(ATTRIBUTE_RUN.to_owned(), self.token.to_string());
        Arc::new(attributes)
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "run of {} for {} ({}), attempt {}, token {}",
            self.hook(),
            self.key,
            self.request,
            self.attempt,
            self.token
        )
    }
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// The request is finished.
    Done,
    /// The request is finished, and these writes commit together with that, or neither.
    DoneWith(Completion),
    /// Run again at this time. Not a failure; with `LatestState` a change brings it forward.
    RetryAt(Timestamp),
    /// Run again at this time, and these writes commit together with that, or neither.
    RetryAtWith(Timestamp, Completion),
    /// The run failed, with an error for people. It is repeated after a backoff, or ends as a dead letter.
    Fail(String),
}

impl Outcome {
    /// Finished, with writes that commit together with the acknowledgement. A closure that errs is a failed run.
    pub fn done_with<F>(closure: F) -> Outcome
    where
        F: Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static,
    {
        Outcome::DoneWith(Completion::new(closure))
    }

    /// Again at a time, with writes that commit together with that.
    pub fn retry_at_with<F>(at: Timestamp, closure: F) -> Outcome
    where
        F: Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static,
    {
        Outcome::RetryAtWith(at, Completion::new(closure))
    }

    /// A failed run.
    pub fn fail(reason: impl fmt::Display) -> Outcome {
        Outcome::Fail(reason.to_string())
    }
}

type Writes = dyn Fn(&mut Transaction) -> Result<(), TransactionError> + Send;

/// Writes that come with an outcome.
#[derive(Clone)]
pub struct Completion(Arc<Mutex<Box<Writes>>>);

impl Completion {
    fn new<F>(closure: F) -> Completion
    where
        F: Fn(&mut Transaction) -> Result<(), TransactionError> + Send + 'static,
    {
        Completion(Arc::new(Mutex::new(Box::new(closure))))
    }

    pub(crate) fn apply(&self, transaction: &mut Transaction) -> Result<(), TransactionError> {
        (self.0.lock())(transaction)
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("writes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_lease_s_first_token_is_above_every_token_of_the_one_before() {
        let last = FencingToken::new(SlotToken(7), super::super::key_queue::RUNS_MAX);
        let next = FencingToken::new(SlotToken(8), 1);
        assert!(next > last);
        assert_eq!(last.slot_token(), SlotToken(7));
    }

    #[tokio::test]
    async fn a_signal_reaches_a_run_that_asks_for_it_only_afterwards() {
        let control = RunControl::default();
        control.revoke();
        assert!(control.token().is_cancelled());
        let control = RunControl::default();
        let token = control.token();
        control.revoke();
        assert!(token.is_cancelled());
    }
}
