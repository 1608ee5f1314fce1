//! A switch in front of a driver that plays an absent store and lost answers, for tests of what is above it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{
    Batch, Begun, Burden, CommitError, Driver, DriverError, EntityRow, Exception, Fence, HookNumber, IndexPage,
    IndexStep, IndexWork, LogPage, Meta, Pending, ServerId, ServerRow, Session, Settle, Settled, SlotId, SlotRow,
    StoredState, StoredTree,
};
use crate::clock::Clock;
use crate::record::{IndexDeclaration, RecordPage, RecordQuery, Retention};
use crate::revision::{Epoch, Revision, SubmissionId, Timestamp};

/// What happens to one commit.
#[derive(Debug, Clone)]
pub enum CommitFault {
    /// Nothing.
    None,
    /// It is applied, and its answer is lost: [`CommitError::Unknown`].
    AppliedAnswerLost,
    /// It is not applied, and that is not known either: [`CommitError::Unknown`].
    NotAppliedAnswerLost,
    /// It is still on its way, holding the write lock, when its answer is lost, and is applied on
    /// [`Faults::let_late_commits_arrive`]: [`CommitError::Unknown`].
    AppliedLate,
    /// It is refused with this error, and certainly not applied.
    Refused(DriverError),
}

/// What happens to one settlement, or to one taking over of slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettleFault {
    /// Nothing.
    None,
    /// It is applied, and answered [`DriverError::Unavailable`].
    AppliedAnswerLost,
    /// It is not applied, and answered [`DriverError::Unavailable`].
    NotApplied,
}

/// A call of the driver's contract, to be counted or failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the method of its name")]
pub enum Call {
    Open,
    Meta,
    Load,
    ReadLog,
    FindSubmission,
    Begin,
    Fence,
    Commit,
    QueryRecords,
    PruneRecords,
    RecordsToIndex,
    IndexRecords,
    Join,
    Heartbeat,
    Leave,
    Cluster,
    TakeSlots,
    ReleaseSlots,
    Pending,
    Settle,
    Exceptions,
    WriteEntities,
    ReplaceEntities,
    Compact,
}

/// How many of a server's waits for news are kept.
const WAITS_KEPT: usize = 64;

/// The switch. Clones are one switch; every server of a test can have its own, before the same store.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Switch>);

#[derive(Debug)]
struct Switch {
    absent: watch::Sender<bool>,
    calls: Mutex<BTreeMap<Call, u64>>,
    errors: Mutex<BTreeMap<Call, VecDeque<DriverError>>>,
    /// Sessions that were begun under an earlier number are cut off.
    connection: AtomicU64,
    deaf: watch::Sender<bool>,
    commits: Mutex<VecDeque<CommitFault>>,
    late_commits_arrive: watch::Sender<bool>,
    late_commits: Mutex<JoinSet<()>>,
    settles: Mutex<VecDeque<SettleFault>>,
    takes: Mutex<VecDeque<SettleFault>>,
    heartbeat_answers_lost: watch::Sender<bool>,
    waits_for_news: Mutex<VecDeque<Duration>>,
}

impl Default for Faults {
    fn default() -> Self {
        Faults::new()
    }
}

impl Faults {
    /// A switch that lets everything pass.
    #[must_use]
    pub fn new() -> Self {
        Faults(Arc::new(Switch {
            absent: watch::Sender::new(false),
            calls: Mutex::default(),
            errors: Mutex::default(),
            connection: AtomicU64::new(0),
            deaf: watch::Sender::new(false),
            commits: Mutex::default(),
            late_commits_arrive: watch::Sender::new(false),
            late_commits: Mutex::default(),
            settles: Mutex::default(),
            takes: Mutex::default(),
            heartbeat_answers_lost: watch::Sender::new(false),
            waits_for_news: Mutex::default(),
        }))
    }

    /// While set, every call is answered [`DriverError::Unavailable`] and nothing is done; news come late.
    pub fn set_absent(&self, absent: bool) {
        self.0.absent.send_replace(absent);
    }

    /// Whether the store is played absent.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        *self.0.absent.borrow()
    }

    /// While set, no news come by themselves: a server learns of the others' changes by polling alone.
    pub fn set_deaf(&self, deaf: bool) {
        self.0.deaf.send_replace(deaf);
    }

    /// What happens to the next commits, one after the other.
    pub fn next_commits(&self, faults: impl IntoIterator<Item = CommitFault>) {
        self.0.commits.lock().extend(faults);
    }

    /// Lets every [`CommitFault::AppliedLate`] be applied, from now on at once.
    pub fn let_late_commits_arrive(&self) {
        self.0.late_commits_arrive.send_replace(true);
    }

    /// What happens to the next settlements, one after the other.
    pub fn next_settles(&self, faults: impl IntoIterator<Item = SettleFault>) {
        self.0.settles.lock().extend(faults);
    }

    /// What happens to the next takings of slots, one after the other.
    pub fn next_takes(&self, faults: impl IntoIterator<Item = SettleFault>) {
        self.0.takes.lock().extend(faults);
    }

    /// While set, heartbeats are applied, but their answers are lost.
    pub fn lose_heartbeat_answers(&self, lost: bool) {
        self.0.heartbeat_answers_lost.send_replace(lost);
    }

    /// What the next calls of one kind are answered, one after the other; nothing is done for them.
    pub fn next_errors(&self, call: Call, errors: impl IntoIterator<Item = DriverError>) {
        self.0.errors.lock().entry(call).or_default().extend(errors);
    }

    /// How many of the errors set up for this call have not been answered yet.
    #[must_use]
    pub fn errors_left(&self, call: Call) -> usize {
        self.0.errors.lock().get(&call).map_or(0, VecDeque::len)
    }

    /// Plays a connection that broke and was made anew: transactions begun before fail, all that is begun from now on
    /// is not touched.
    pub fn reconnect(&self) {
        self.0.connection.fetch_add(1, Ordering::SeqCst);
    }

    /// How often each call was made since the switch was made or the counts were last taken.
    #[must_use]
    pub fn take_calls(&self) -> BTreeMap<Call, u64> {
        std::mem::take(&mut *self.0.calls.lock())
    }

    /// For how long the server was willing to wait for news the last times that it did.
    #[must_use]
    pub fn waits_for_news(&self) -> Vec<Duration> {
        self.0.waits_for_news.lock().iter().copied().collect()
    }

    fn note_wait_for_news(&self, limit: Duration) {
        let mut waits = self.0.waits_for_news.lock();
        if waits.len() == WAITS_KEPT {
            waits.pop_front();
        }
        waits.push_back(limit);
    }

    fn check(&self, call: Call) -> Result<(), DriverError> {
        *self.0.calls.lock().entry(call).or_default() += 1;
        if self.is_absent() {
            return Err(DriverError::Unavailable("played absent".to_owned()));
        }
        match self.0.errors.lock().get_mut(&call).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

fn answer_lost() -> DriverError {
    DriverError::Unavailable("played: the answer was lost".to_owned())
}

/// A driver behind a [`Faults`] switch.
pub struct FaultyDriver {
    inner: Arc<dyn Driver>,
    faults: Faults,
}

impl FaultyDriver {
    /// Puts the switch before the driver.
    #[must_use]
    pub fn new(inner: Arc<dyn Driver>, faults: Faults) -> Self {
        FaultyDriver { inner, faults }
    }
}

struct FaultySession {
    inner: Box<dyn Session>,
    faults: Faults,
    connection: u64,
}

impl FaultySession {
    fn check(&self, call: Call) -> Result<(), DriverError> {
        self.faults.check(call)?;
        if self.connection == self.faults.0.connection.load(Ordering::SeqCst) {
            Ok(())
        } else {
            Err(DriverError::Unavailable("played: the connection of this transaction is gone".to_owned()))
        }
    }
}

#[async_trait]
impl Session for FaultySession {
    fn now(&self) -> Timestamp {
        self.inner.now()
    }

    async fn fence(&mut self, fences: &[Fence]) -> Result<Vec<bool>, DriverError> {
        self.check(Call::Fence)?;
        self.inner.fence(fences).await
    }

    async fn commit(self: Box<Self>, batch: Batch) -> Result<(), CommitError> {
        self.check(Call::Commit).map_err(CommitError::NotCommitted)?;
        let fault = self.faults.0.commits.lock().pop_front().unwrap_or(CommitFault::None);
        match fault {
            CommitFault::None => self.inner.commit(batch).await,
            CommitFault::AppliedAnswerLost => {
                self.inner.commit(batch).await?;
                Err(CommitError::Unknown(answer_lost()))
            }
            CommitFault::NotAppliedAnswerLost => Err(CommitError::Unknown(answer_lost())),
            CommitFault::AppliedLate => {
                let mut arrive = self.faults.0.late_commits_arrive.subscribe();
                let session = self.inner;
                self.faults.0.late_commits.lock().spawn(async move {
                    // Fails only when the switch is gone, and this task with it.
                    let _ = arrive.wait_for(|arrive| *arrive).await;
                    let _ = session.commit(batch).await;
                });
                Err(CommitError::Unknown(answer_lost()))
            }
            CommitFault::Refused(error) => Err(CommitError::NotCommitted(error)),
        }
    }
}

#[async_trait]
impl Driver for FaultyDriver {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.inner.clock()
    }

    fn entities_at(&self, epoch: Epoch) -> Revision {
        self.inner.entities_at(epoch)
    }

    fn lock_limit(&self) -> Option<Duration> {
        self.inner.lock_limit()
    }

    async fn open(&self, records: &[IndexDeclaration]) -> Result<Meta, DriverError> {
        self.faults.check(Call::Open)?;
        self.inner.open(records).await
    }

    async fn meta(&self) -> Result<Meta, DriverError> {
        self.faults.check(Call::Meta)?;
        self.inner.meta().await
    }

    async fn load(&self) -> Result<StoredTree, DriverError> {
        self.faults.check(Call::Load)?;
        self.inner.load().await
    }

    async fn read_log(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<LogPage, DriverError> {
        self.faults.check(Call::ReadLog)?;
        self.inner.read_log(epoch, after, rows_max).await
    }

    async fn wait_for_news(&self, after: Revision, limit: Duration) {
        self.faults.note_wait_for_news(limit);
        if self.faults.is_absent() {
            let mut absent = self.faults.0.absent.subscribe();
            // Either the store comes back or the limit is over: both are news.
            let _ = tokio::time::timeout(limit, absent.wait_for(|absent| !absent)).await;
        } else if *self.faults.0.deaf.borrow() {
            tokio::time::sleep(limit).await;
        } else {
            self.inner.wait_for_news(after, limit).await;
        }
    }

    async fn find_submission(
        &self,
        submission: SubmissionId,
        after: Revision,
    ) -> Result<Option<Revision>, DriverError> {
        self.faults.check(Call::FindSubmission)?;
        self.inner.find_submission(submission, after).await
    }

    async fn begin(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<Begun, DriverError> {
        self.faults.check(Call::Begin)?;
        let connection = self.faults.0.connection.load(Ordering::SeqCst);
        let Begun { session, rows } = self.inner.begin(epoch, after, rows_max).await?;
        let session = Box::new(FaultySession { inner: session, faults: self.faults.clone(), connection });
        Ok(Begun { session, rows })
    }

    async fn query_records(&self, query: &RecordQuery) -> Result<RecordPage, DriverError> {
        self.faults.check(Call::QueryRecords)?;
        self.inner.query_records(query).await
    }

    async fn prune_records(&self, retention: &Retention, rows_max: usize) -> Result<usize, DriverError> {
        self.faults.check(Call::PruneRecords)?;
        self.inner.prune_records(retention, rows_max).await
    }

    async fn records_to_index(&self, kind: &str, indexes: u32, rows_max: usize) -> Result<IndexWork, DriverError> {
        self.faults.check(Call::RecordsToIndex)?;
        self.inner.records_to_index(kind, indexes, rows_max).await
    }

    async fn index_records(&self, page: Arc<IndexPage>, keys: Vec<Vec<Vec<u8>>>) -> Result<IndexStep, DriverError> {
        self.faults.check(Call::IndexRecords)?;
        self.inner.index_records(page, keys).await
    }

    async fn join(&self, server: ServerRow) -> Result<(), DriverError> {
        self.faults.check(Call::Join)?;
        self.inner.join(server).await
    }

    async fn heartbeat(&self, server: ServerRow) -> Result<(), DriverError> {
        self.faults.check(Call::Heartbeat)?;
        self.inner.heartbeat(server).await?;
        if *self.faults.0.heartbeat_answers_lost.borrow() { Err(answer_lost()) } else { Ok(()) }
    }

    async fn leave(&self, server: ServerId) -> Result<(), DriverError> {
        self.faults.check(Call::Leave)?;
        self.inner.leave(server).await
    }

    async fn cluster(&self) -> Result<(Vec<ServerRow>, Vec<SlotRow>), DriverError> {
        self.faults.check(Call::Cluster)?;
        self.inner.cluster().await
    }

    async fn take_slots(&self, server: ServerId, slots: &[SlotId]) -> Result<Vec<Fence>, DriverError> {
        self.faults.check(Call::TakeSlots)?;
        let fault = self.faults.0.takes.lock().pop_front().unwrap_or(SettleFault::None);
        if fault == SettleFault::NotApplied {
            return Err(answer_lost());
        }
        let fences = self.inner.take_slots(server, slots).await?;
        if fault == SettleFault::AppliedAnswerLost { Err(answer_lost()) } else { Ok(fences) }
    }

    async fn release_slots(&self, fences: &[Fence]) -> Result<(), DriverError> {
        self.faults.check(Call::ReleaseSlots)?;
        self.inner.release_slots(fences).await
    }

    async fn pending(&self, slot: SlotId, after: Revision, rows_max: usize) -> Result<Pending, DriverError> {
        self.faults.check(Call::Pending)?;
        self.inner.pending(slot, after, rows_max).await
    }

    async fn settle(&self, items: Vec<Settle>) -> Result<Vec<Settled>, DriverError> {
        self.faults.check(Call::Settle)?;
        let fault = self.faults.0.settles.lock().pop_front().unwrap_or(SettleFault::None);
        if fault == SettleFault::NotApplied {
            return Err(answer_lost());
        }
        let settled = self.inner.settle(items).await?;
        if fault == SettleFault::AppliedAnswerLost { Err(answer_lost()) } else { Ok(settled) }
    }

    async fn exceptions(&self, hook: Option<HookNumber>) -> Result<Vec<Exception>, DriverError> {
        self.faults.check(Call::Exceptions)?;
        self.inner.exceptions(hook).await
    }

    async fn write_entities(
        &self,
        epoch: Epoch,
        from: Revision,
        to: Revision,
        changed: Vec<EntityRow>,
        removed: Vec<crate::path::Path>,
    ) -> Result<(), DriverError> {
        self.faults.check(Call::WriteEntities)?;
        self.inner.write_entities(epoch, from, to, changed, removed).await
    }

    async fn replace_entities(&self, epoch: Epoch, tree: StoredTree) -> Result<(), DriverError> {
        self.faults.check(Call::ReplaceEntities)?;
        self.inner.replace_entities(epoch, tree).await
    }

    async fn compact(
        &self,
        epoch: Epoch,
        keep: Timestamp,
        floor: Revision,
        rows_max: usize,
    ) -> Result<Revision, DriverError> {
        self.faults.check(Call::Compact)?;
        self.inner.compact(epoch, keep, floor, rows_max).await
    }

    async fn burden(&self) -> Result<Burden, DriverError> {
        self.inner.burden().await
    }

    async fn stored(&self) -> Result<StoredState, DriverError> {
        // The linter looks at what is stored whatever is played: it is no server.
        self.inner.stored().await
    }
}
