//! What the tasks of one state share: the head of the log as this server knows it, the published snapshot, and the
//! queue of submissions. The committer and the tail move the head, one at a time, in revision order.

mod apply;
mod behind;
mod burden;
mod closure_thread;
mod committer;
mod drafts;
mod group;
mod head_tree;
mod record_indexes;
mod seen;
mod set_back;
mod shown;
mod submission;
mod tail;
mod upkeep;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{Mutex, Notify, broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use apply::Replay;
pub(crate) use closure_thread::within_transaction;
pub(crate) use submission::{Fenced, Submission};

use self::behind::Behind;
use self::head_tree::HeadTree;
use self::set_back::SetBack;
use crate::change::Applied;
use crate::clock::Clock;
use crate::cluster_hook::matcher::Matcher;
use crate::driver::{Driver, DriverError, LEASES_PER_LOCK_LIMIT, ServerId, ServerName, SlotToken};
use crate::error::{OpenError, WaitError};
use crate::feed::{Feed, FeedEvent};
use crate::metrics::StateMetrics;
use crate::revision::{Epoch, Revision, SubmissionId};
use crate::snapshot::{self, Snapshot};
use crate::state::StateOptions;
use crate::testing::points::Points;
use crate::working_tree::WorkingTree;

/// How many transactions a feed may fall behind before it rereads the log.
const FEED_CAPACITY: usize = 1_024;
/// How many submissions wait in the queue; more wait outside it.
const SUBMISSIONS_MAX: usize = 4_096;

/// What one server knows and shares between its tasks.
pub(crate) struct Core {
    pub(crate) server: ServerName,
    /// The id by which this server is in the cluster, while it is.
    pub(crate) member: watch::Sender<Option<ServerId>>,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) options: StateOptions,
    pub(crate) metrics: StateMetrics,
    pub(crate) points: Points,
    /// Cancelled when the state is closed or dropped: every task ends.
    pub(crate) stop: CancellationToken,
    /// Cancelled when no further submission is accepted.
    closing: CancellationToken,
    head: Mutex<Head>,
    published: ArcSwap<snapshot::Inner>,
    applied: watch::Sender<(Epoch, Revision)>,
    feed: broadcast::Sender<FeedEvent>,
    /// The last transactions, for feeds that resume.
    recent: parking_lot::Mutex<VecDeque<Arc<Applied>>>,
    /// The highest token that this server has seen, for an epoch that begins after the store was put back.
    highest_token: AtomicU64,
    submissions: mpsc::Sender<Submission>,
    /// True once the committer has answered everything.
    committer_ended: watch::Sender<bool>,
    /// Wakes the tail to read the log now.
    tail_wake: Notify,
    /// Whether the committer is about to read the log, under the lock that it waits for.
    committer_reads: watch::Sender<bool>,
    /// Nothing may be written until an operator confirms it (a head lower than one that was seen).
    set_back: ArcSwapOption<SetBack>,
    /// Wakes whoever keeps that over a restart.
    set_back_noticed: Notify,
    /// Held by who enters records into indexes that they lack: of this server, one at a time.
    indexing: Mutex<()>,
    /// That the store had no room for the last write, and what it said.
    full: ArcSwapOption<String>,
    /// Whether the store did not answer when the log was last to be read.
    silent: AtomicBool,
}

/// The head of the log as this server has applied it.
struct Head {
    snapshot: Snapshot,
    tree: HeadTree,
    matcher: Arc<Matcher>,
    /// Submissions whose commit is unknown, and the revision once a row of theirs was applied.
    unresolved: HashMap<SubmissionId, Option<Revision>>,
    behind: Behind,
}

impl Head {
    /// See [`HeadTree::take`].
    fn take_tree(&mut self) -> WorkingTree {
        self.tree.take(&self.snapshot)
    }
}

impl Core {
    /// Loads the tree and makes the core; its tasks are started by [`Core::start`].
    pub(crate) async fn open(
        driver: Arc<dyn Driver>,
        options: StateOptions,
    ) -> Result<(Arc<Core>, mpsc::Receiver<Submission>), OpenError> {
        options.check().map_err(OpenError::Options)?;
        if let Some(limit) = driver.lock_limit()
            && options.lease < limit * LEASES_PER_LOCK_LIMIT
        {
            return Err(OpenError::Options(format!(
                "lease is {:?}, and the store keeps the locks of a server that has stopped for {limit:?}; a lease is at \
                 least {LEASES_PER_LOCK_LIMIT} times as long, so that no other server loses its own meanwhile",
                options.lease
            )));
        }
        driver.open(&options.records).await?;
        let loaded = apply::load(&*driver).await?;
        let (epoch, head) = (loaded.snapshot.epoch(), loaded.snapshot.revision());
        let seen = match &options.seen {
            Some(file) => seen::read(file).await?,
            None => None,
        };
        let set_back = seen.and_then(|seen| seen.against(epoch, head)).map(Arc::new);
        if let Some(set_back) = &set_back {
            set_back.report(&options.server);
        }
        let (submissions, queue) = mpsc::channel(SUBMISSIONS_MAX);
        let snapshot = loaded.snapshot.clone();
        let core = Core {
            server: options.server.clone(),
            member: watch::Sender::new(None),
            clock: driver.clock(),
            driver,
            metrics: StateMetrics::new(),
            points: options.points.clone(),
            options,
            stop: CancellationToken::new(),
            closing: CancellationToken::new(),
            published: ArcSwap::new(snapshot.clone().into_inner()),
            applied: watch::Sender::new((snapshot.epoch(), snapshot.revision())),
            head: Mutex::new(loaded.into_head()),
            feed: broadcast::Sender::new(FEED_CAPACITY),
            recent: parking_lot::Mutex::new(VecDeque::with_capacity(FEED_CAPACITY)),
            highest_token: AtomicU64::new(0),
            submissions,
            committer_ended: watch::Sender::new(false),
            tail_wake: Notify::new(),
            committer_reads: watch::Sender::new(false),
            set_back: ArcSwapOption::new(set_back),
            set_back_noticed: Notify::new(),
            indexing: Mutex::new(()),
            full: ArcSwapOption::empty(),
            silent: AtomicBool::new(false),
        };
        Ok((Arc::new(core), queue))
    }

    /// Starts the committer, the tail, the upkeep, and what remembers how far the log was seen.
    pub(crate) fn start(self: &Arc<Core>, queue: mpsc::Receiver<Submission>, tasks: &mut JoinSet<()>) {
        tasks.spawn(committer::run(self.clone(), queue));
        tasks.spawn(tail::run(self.clone()));
        tasks.spawn(upkeep::run(self.clone()));
        tasks.spawn(burden::run(self.clone()));
        if let Some(file) = &self.options.seen {
            tasks.spawn(seen::run(self.clone(), file.clone()));
        }
    }

    /// The newest snapshot that this server has published.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::from_inner(self.published.load_full())
    }

    /// From now on, in order and without a gap.
    pub(crate) fn feed_from_now(self: &Arc<Core>) -> Feed {
        // Subscribed first, so that nothing is published between the snapshot and the first item.
        let receiver = self.feed.subscribe();
        Feed::new(self.clone(), receiver, self.snapshot())
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<FeedEvent> {
        self.feed.subscribe()
    }

    /// Ends when the committer has answered everything.
    pub(crate) async fn committer_ended(&self) {
        self.submissions.closed().await;
        let mut ended = self.committer_ended.subscribe();
        // The sender is in the core, so the wait only ends by the condition.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// No further submission is accepted; what waits is committed.
    pub(crate) fn stop_accepting(&self) {
        self.closing.cancel();
    }

    /// Waits until this server has applied a revision.
    pub(crate) async fn wait_for(&self, wanted: Revision, limit: Duration) -> Result<(), WaitError> {
        self.wait_until(wanted, limit, |(_, applied)| *applied >= wanted).await
    }

    async fn wait_until(
        &self,
        wanted: Revision,
        limit: Duration,
        reached: impl FnMut(&(Epoch, Revision)) -> bool,
    ) -> Result<(), WaitError> {
        let mut applied = self.applied.subscribe();
        tokio::select! {
            biased;
            found = applied.wait_for(reached) => found.map(|_| ()).map_err(|_| WaitError::Closed),
            () = self.stop.cancelled() => Err(WaitError::Closed),
            () = tokio::time::sleep(limit) => {
                let applied = self.applied.borrow().1;
                Err(WaitError::TimedOut { wanted, applied, waited: limit })
            }
        }
    }

    /// The tail looks at the log at once, without waiting for a hint.
    pub(crate) fn look_for_news(&self) {
        self.tail_wake.notify_one();
    }

    /// Waits until this server has applied all that was committed before the call.
    pub(crate) async fn flush(&self, limit: Duration) -> Result<Revision, WaitError> {
        let started = tokio::time::Instant::now();
        let applied = self.applied.borrow().1;
        let meta = match tokio::time::timeout(limit, self.driver.meta()).await {
            Ok(meta) => meta.map_err(WaitError::Store)?,
            Err(_) => return Err(WaitError::TimedOut { wanted: applied, applied, waited: limit }),
        };
        self.look_for_news();
        let left = limit.saturating_sub(started.elapsed());
        self.wait_until(meta.head, left, |(epoch, applied)| *epoch == meta.epoch && *applied >= meta.head).await?;
        Ok(meta.head)
    }

    /// Remembers a token, so that those of a later epoch are above it.
    pub(crate) fn saw_token(&self, token: SlotToken) {
        self.highest_token.fetch_max(token.0, Ordering::Relaxed);
    }

    fn highest_token(&self) -> SlotToken {
        SlotToken(self.highest_token.load(Ordering::Relaxed))
    }

    /// Where a submission is known to have been committed, above what was the head when it was made.
    pub(crate) async fn find_submission(
        &self,
        submission: SubmissionId,
        after: Revision,
    ) -> Result<Option<Revision>, DriverError> {
        self.driver.find_submission(submission, after).await
    }
}
