//! A server's handle on the tree: to read, write, wait and hook.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::cluster_hook::runtime::Runtime;
use crate::core::{Core, within_transaction};
use crate::driver::{Driver, DriverError, ServerId, ServerName};
use crate::error::{OpenError, WaitError, WriteError};
use crate::feed::Feed;
use crate::local_hook::{LocalHook, LocalHookError, LocalHookHandle, Registered, Scope};
use crate::metrics::StateMetrics;
use crate::record::{IndexDeclaration, Record, RecordKeys};
use crate::revision::{Attributes, Epoch, Revision, SubmissionId, Timestamp};
use crate::snapshot::Snapshot;
use crate::testing::history::Recorder;
use crate::testing::placement::Placement;
use crate::testing::points::Points;
use crate::transaction::{Transaction, TransactionError};

/// Writes the initial state of an empty store, in one transaction.
pub type Initialise = fn(&mut Transaction) -> Result<(), TransactionError>;

/// When closures run ahead of the write lock, on what this server knows. What they come to counts only if all that they have read
/// is the same at the head; else they run again there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAhead {
    /// Where the lock has to be waited for, since other servers write, too.
    WhereTheLockIsWaitedFor,
    /// Always; the lock is asked for after that. For tests.
    Always,
    /// Never.
    Never,
}

/// How a state behaves. The defaults suit a server; tests shorten the times.
#[derive(Clone)]
pub struct StateOptions {
    /// The name that operators know this server by; unique among those that live.
    pub server: ServerName,
    /// The kinds of records that this build knows.
    pub records: Vec<IndexDeclaration>,
    /// How indexes of these kinds are built that were added when there were records already.
    pub record_keys: Vec<RecordKeys>,
    /// How long a transaction's closure may run.
    pub transaction_budget: Duration,
    /// How long this server's slots are its own without a renewal.
    pub lease: Duration,
    /// How often the log is looked at when no hint of news arrives; jittered.
    pub poll: Duration,
    /// How long a write is tried before it fails.
    pub write_limit: Duration,
    /// How many transactions one commit carries at most.
    pub commit_group_max: usize,
    /// How far the stored entities are behind the log, about; up to ten times as far where writing them takes long.
    pub entities_behind: Duration,
    /// Compaction and pruning have their turn after so many rounds of `entities_behind`.
    pub compact_every: u64,
    /// How long log rows and receipts are kept at least.
    pub log_keep: Duration,
    /// A transaction of anyone in the store that has been open for longer is warned of, since nothing that went since it
    /// began is cleaned up.
    pub long_transaction: Duration,
    /// How long closing waits for cluster hooks' runs before it cancels them.
    pub drain_limit: Duration,
    /// How many requests of cluster hooks this server keeps in memory at most; further ones are read from the log again
    /// when there is room.
    pub hook_requests_in_memory: usize,
    /// The file in which this server keeps how far it has seen the log, so that it notices after a restart, too, that the
    /// store was put back to a lower head. One file for one server; it is made where there is none. None: it forgets.
    pub seen: Option<PathBuf>,
    /// When closures run ahead of the write lock.
    pub run_ahead: RunAhead,
    /// Named test points; none outside tests.
    pub points: Points,
    /// Slots of cluster hooks that a test wants at certain servers; none outside tests.
    pub placement: Placement,
    /// Writes down what cluster hooks do, for the history checker; nothing outside tests.
    pub recorder: Recorder,
    /// Writes the initial state, once, into a store that is empty.
    pub initialise: Option<Initialise>,
}

impl StateOptions {
    /// The defaults for a server of this name.
    #[must_use]
    pub fn new(server: impl Into<ServerName>) -> StateOptions {
        StateOptions {
            server: server.into(),
            records: Vec::new(),
            record_keys: Vec::new(),
            transaction_budget: Duration::from_millis(250),
            lease: Duration::from_secs(10),
            poll: Duration::from_secs(1),
            write_limit: Duration::from_secs(10),
            commit_group_max: 512,
            entities_behind: Duration::from_secs(1),
            compact_every: 30,
            log_keep: Duration::from_secs(3_600),
            long_transaction: Duration::from_secs(300),
            drain_limit: Duration::from_secs(30),
            hook_requests_in_memory: 250_000,
            seen: None,
            run_ahead: RunAhead::WhereTheLockIsWaitedFor,
            points: Points::none(),
            placement: Placement::none(),
            recorder: Recorder::none(),
            initialise: None,
        }
    }

    /// Declares a kind of record.
    ///
    /// An index that is added at the end of [`Record::INDEXES`] of a kind that has records is built by the servers whose build
    /// has it, one at a time and in small steps, while everyone writes on; a server that is killed amid it leaves off where
    /// the next goes on. Until every record is in it a query by it is refused ([`crate::DriverError::IndexIncomplete`]). A
    /// server of an older build appends records without entries in it: then the index is incomplete again, and the next
    /// query by it, or the next upkeep, enters them. A record that the current type can't read stands in it under an entry
    /// without parts: a query without a prefix lists it, with its error.
    #[must_use]
    pub fn record<R: Record>(mut self) -> Self {
        self.records.push(IndexDeclaration {
            kind: R::KIND.into(),
            indexes: R::INDEXES.iter().map(|index| (*index).to_owned()).collect(),
            retain: R::RETENTION,
        });
        self.record_keys.push(RecordKeys::of::<R>());
        self
    }

    /// Sets what writes the initial state into a store that is empty.
    #[must_use]
    pub fn initialise(mut self, initialise: Initialise) -> Self {
        self.initialise = Some(initialise);
        self
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if self.server.is_empty() {
            return Err("the server's name is empty".to_owned());
        }
        if self.commit_group_max == 0 {
            return Err("commit_group_max is 0; a commit carries at least 1 transaction".to_owned());
        }
        if self.compact_every == 0 {
            return Err("compact_every is 0; it counts rounds from 1".to_owned());
        }
        let times = [
            ("transaction_budget", self.transaction_budget),
            ("lease", self.lease),
            ("poll", self.poll),
            ("write_limit", self.write_limit),
            ("entities_behind", self.entities_behind),
            ("long_transaction", self.long_transaction),
        ];
        match times.iter().find(|(_, time)| time.is_zero()) {
            Some((name, _)) => Err(format!("{name} is 0; it is a time above 0")),
            None => Ok(()),
        }
    }
}

/// What a committed `write` returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed<T> {
    /// What the closure returned.
    pub value: T,
    /// The transaction's revision; if nothing changed, the head that it read.
    pub revision: Revision,
    /// Whether there was anything to commit.
    pub changed: bool,
}

/// One server's handle on a replicated tree. Clones are the same state; when the last one is dropped, its tasks end.
#[derive(Clone)]
pub struct State(Arc<Inner>);

struct Inner {
    core: Arc<Core>,
    runtime: Runtime,
    tasks: Mutex<JoinSet<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The tasks are aborted with their set; the token ends what was spawned from elsewhere.
        self.core.stop.cancel();
    }
}

/// A state that does not keep itself open.
#[derive(Clone)]
pub(crate) struct WeakState(Weak<Inner>);

impl WeakState {
    pub(crate) fn upgrade(&self) -> Option<State> {
        self.0.upgrade().map(State)
    }
}

impl State {
    /// Opens the store, loads the tree and starts this server's tasks. The initial state is written if the store is empty.
    ///
    /// # Errors
    /// [`OpenError`]: the store can't be reached or opened; no tree is invented then.
    pub async fn open(driver: Arc<dyn Driver>, options: StateOptions) -> Result<State, OpenError> {
        let initialise = options.initialise;
        let (core, queue) = Core::open(driver, options).await?;
        let mut tasks = JoinSet::new();
        core.start(queue, &mut tasks);
        let inner = Arc::new_cyclic(|weak: &Weak<Inner>| Inner {
            runtime: Runtime::new(core.clone(), WeakState(weak.clone())),
            core,
            tasks: Mutex::new(tasks),
        });
        let state = State(inner);
        if let Some(initialise) = initialise
            && state.snapshot().revision() == Revision::ZERO
            && state.0.core.set_back().is_none()
        {
            let written = state.write(move |transaction: &mut Transaction| {
                // Another server may have been first: whoever comes to an empty log writes it, once.
                if transaction.revision() == Revision::ZERO.next() { initialise(transaction) } else { Ok(()) }
            });
            written.await.map_err(|error: WriteError<TransactionError>| OpenError::Initialise(error.to_string()))?;
        }
        Ok(state)
    }

    /// The newest snapshot of this server. Costs an atomic load.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.0.core.snapshot()
    }

    /// Runs a closure at the head of the log and commits what it wrote, all or nothing. The closure is synchronous, may
    /// run more than once (only its last run counts), and holds everyone up while it runs: slow work belongs before it.
    /// Where other servers write, too, it may run on an earlier state first ([`RunAhead`]); that counts only if the head would
    /// have told it the same. So what it does may depend on the transaction, and on what it has captured and does not change.
    ///
    /// Dropping the future leaves the transaction wholly applied or without a trace.
    ///
    /// What can't be run again does not compile: a closure that gives its captures away, or an asynchronous one.
    ///
    /// ```compile_fail
    /// # use tidegate_state::*;
    /// # async fn t15(state: State) {
    /// let given_away = String::from("once");
    /// state.write(move |_: &mut Transaction| { drop(given_away); Ok::<_, TransactionError>(()) }).await;
    /// # }
    /// ```
    /// ```compile_fail
    /// # use tidegate_state::*;
    /// # async fn t15(state: State) {
    /// let done: Committed<()> =
    ///     state.write(async move |_: &mut Transaction| Ok::<_, TransactionError>(())).await.unwrap();
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`WriteError`]; but for [`WriteError::Unknown`] nothing was committed.
    pub async fn write<T, E, F>(&self, closure: F) -> Result<Committed<T>, WriteError<E>>
    where
        F: Fn(&mut Transaction) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<TransactionError> + Send + 'static,
    {
        self.0.core.submit(closure, Arc::default(), SubmissionId::random(), None).await
    }

    /// A write with attributes or a submission id of its own.
    pub fn transaction(&self) -> TransactionBuilder {
        TransactionBuilder { state: self.clone(), attributes: Arc::default(), submission: SubmissionId::random() }
    }

    /// Returns when this server has applied all that was committed, anywhere, before the call.
    ///
    /// # Errors
    /// [`WaitError`], after the write limit at the latest.
    pub async fn flush(&self) -> Result<Revision, WaitError> {
        self.flush_within(self.0.core.options.write_limit).await
    }

    /// As [`State::flush`], with a time limit of its own.
    ///
    /// # Errors
    /// [`WaitError`]
    pub async fn flush_within(&self, limit: Duration) -> Result<Revision, WaitError> {
        if within_transaction() {
            return Err(WaitError::WithinTransaction);
        }
        self.0.core.flush(limit).await
    }

    /// Returns when this server has applied a revision.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`] with how far this server is.
    pub async fn wait_for(&self, revision: Revision, limit: Duration) -> Result<(), WaitError> {
        if within_transaction() {
            return Err(WaitError::WithinTransaction);
        }
        self.0.core.wait_for(revision, limit).await
    }

    /// Whether and where a submission was committed, as long as its log row is kept.
    ///
    /// # Errors
    /// [`DriverError::Unavailable`]: the store can't be asked now.
    pub async fn find_submission(&self, submission: SubmissionId) -> Result<Option<Revision>, DriverError> {
        self.0.core.find_submission(submission, Revision::ZERO).await
    }

    /// What this server applies from now on, or from a place that was seen before. Without one, and where what came after
    /// it is not to be had any more, the first item is a snapshot.
    #[must_use]
    pub fn changes(&self, from: Option<(Epoch, Revision)>) -> Feed {
        Feed::resume(self.0.core.clone(), from)
    }

    /// Registers a hook that runs on this server: once for each entity in scope that exists, then for each change, in
    /// order, on a task of its own.
    ///
    /// # Errors
    /// [`LocalHookError::Closed`]
    pub async fn local_hook<H: LocalHook>(
        &self,
        name: impl Into<String>,
        scope: Scope,
        hook: H,
    ) -> Result<LocalHookHandle, LocalHookError> {
        if self.0.core.stop.is_cancelled() {
            return Err(LocalHookError::Closed);
        }
        let end = CancellationToken::new();
        let registered = Registered { name: name.into(), scope, hook, state: self.downgrade(), end: end.clone() };
        let feed = self.0.core.feed_from_now();
        let mut tasks = self.0.tasks.lock();
        // Hooks that have ended need not be remembered.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(registered.run(feed));
        Ok(LocalHookHandle::new(end))
    }

    /// The time by the driver's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.core.clock.now()
    }

    /// The driver's clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.core.clock
    }

    /// The name of this server.
    #[must_use]
    pub fn server(&self) -> &ServerName {
        &self.0.core.server
    }

    /// The id by which this server is in the cluster, now and whenever that changes: none until it has joined with its first
    /// cluster hook, and after it has left; another one when it has joined anew after its lease was over.
    #[must_use]
    pub fn member(&self) -> watch::Receiver<Option<ServerId>> {
        self.0.core.member.subscribe()
    }

    /// What stores the tree.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.0.core.driver
    }

    /// The metrics of this state.
    #[must_use]
    pub fn metrics(&self) -> StateMetrics {
        self.0.core.metrics.clone()
    }

    /// Why this server writes nothing at the moment: the store was put back to a lower head in the same epoch. None
    /// otherwise.
    #[must_use]
    pub fn writes_stopped(&self) -> Option<String> {
        self.0
            .core
            .set_back()
            .map(|set_back| format!("{}; nothing is written until an operator confirms it", set_back.error()))
    }

    /// What the store said when it had no room for the last write that was tried; none once one has succeeded. What is
    /// there can be read meanwhile, and writes are tried on.
    #[must_use]
    pub fn store_full(&self) -> Option<String> {
        self.0.core.full().map(|reason| reason.to_string())
    }

    /// Whether the store does not answer at the moment: what is there is read on, and writes wait and fail.
    #[must_use]
    pub fn is_store_silent(&self) -> bool {
        self.0.core.is_silent()
    }

    /// Ends when this server may write: at once, unless the store was put back ([`State::writes_stopped`]); else when that
    /// was confirmed, here or on another server.
    pub async fn writes_resumed(&self) {
        self.0.core.until_not_set_back().await;
    }

    /// An operator confirms that the store was put back, so that what came after its head is lost: it gets a new epoch,
    /// this server loads it and writes again, and so do the others once they notice. No token that was given out before
    /// holds any more.
    ///
    /// `first` takes account of what is lost, of numbers that must not be given out twice above all. It is committed with
    /// the new epoch, in one step: no server writes before it. It may run more than once; only its last run counts.
    ///
    /// Answers with the revision that was loaded; none if there is nothing to confirm. Where another server was told first,
    /// its transaction counts and `first` leaves no trace.
    ///
    /// # Errors
    /// [`WriteError`]: it could not be done, or not within the write limit. It can be confirmed again.
    pub async fn confirm_lower_head<F>(
        &self,
        attributes: Attributes,
        first: F,
    ) -> Result<Option<Revision>, WriteError<TransactionError>>
    where
        F: Fn(&mut Transaction) -> Result<(), TransactionError> + Send + Sync + 'static,
    {
        self.0.core.confirm_set_back(Arc::new(attributes), first).await
    }

    /// Hands back what this server's cluster hooks have, and leaves the cluster. From then on none runs here, and none can be
    /// registered; everything else goes on until [`State::close`].
    pub async fn drain(&self) {
        self.0.runtime.drain(self.0.core.options.drain_limit).await;
    }

    /// Closes this server: cluster hooks hand back what they have, writes that were accepted are committed, then every
    /// task ends. Later writes are refused.
    pub async fn close(&self) {
        self.drain().await;
        self.0.core.stop_accepting();
        let limit = self.0.core.options.write_limit * 2;
        if tokio::time::timeout(limit, self.0.core.committer_ended()).await.is_err() {
            tracing::warn!(server = %self.0.core.server, "what was accepted was not committed within {limit:?}");
        }
        self.0.core.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock());
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(5), ended).await.is_err() {
            tracing::warn!(server = %self.0.core.server, "some tasks did not end in time and are aborted");
        }
    }

    /// Ends this server at once, as if its process had died: nothing is drained, handed back or answered.
    pub(crate) fn kill(&self) {
        self.0.core.stop.cancel();
        self.0.runtime.kill();
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock());
        tasks.abort_all();
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.0.runtime
    }

    pub(crate) fn downgrade(&self) -> WeakState {
        WeakState(Arc::downgrade(&self.0))
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "State of {} at {:?}", self.server(), self.snapshot())
    }
}

/// A write being put together.
#[must_use = "nothing happens before `write`"]
pub struct TransactionBuilder {
    state: State,
    attributes: Arc<Attributes>,
    submission: SubmissionId,
}

impl TransactionBuilder {
    /// What hooks on every server are told about this transaction; 64 KiB at most.
    pub fn attributes(mut self, attributes: Attributes) -> Self {
        self.attributes = Arc::new(attributes);
        self
    }

    /// The id to look this write up by if its outcome stays unknown.
    pub fn submission(mut self, submission: SubmissionId) -> Self {
        self.submission = submission;
        self
    }

    /// As [`State::write`].
    ///
    /// # Errors
    /// As [`State::write`].
    pub async fn write<T, E, F>(self, closure: F) -> Result<Committed<T>, WriteError<E>>
    where
        F: Fn(&mut Transaction) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<TransactionError> + Send + 'static,
    {
        self.state.0.core.submit(closure, self.attributes, self.submission, None).await
    }
}
