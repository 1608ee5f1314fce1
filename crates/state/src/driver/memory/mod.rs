//! The driver for tests: everything in plain collections under one lock, with the rules of every other driver.
//!
//! Invariant: the lock over the data is never held over an await; the write lock is another one, taken in order of
//! arrival, and held by a [`Session`] from `begin` to its end.

mod data;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, watch};

use self::data::Data;
use super::record_index::DeclaredKinds;
use super::{
    Batch, Begun, CommitError, Driver, DriverError, EntityRow, Exception, Faults, FaultyDriver, Fence, HookNumber,
    IndexPage, IndexStep, IndexWork, LogPage, Meta, Pending, ServerId, ServerRow, Session, Settle, Settled, SlotId,
    SlotRow, StoredState, StoredTree,
};
use crate::clock::{Clock, SystemClock};
use crate::record::{IndexDeclaration, RecordPage, RecordQuery, Retention};
use crate::revision::{Epoch, Revision, SubmissionId, Timestamp};

/// How long `begin` waits for the write lock.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// A store in memory. Clones are one store; it lives as long as one of them or a driver on it.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
    faults: Faults,
}

struct Shared {
    data: Mutex<Data>,
    write_lock: Arc<tokio::sync::Mutex<()>>,
    /// The head, sent again whenever anything of the log has changed.
    news: watch::Sender<Revision>,
    clock: Arc<dyn Clock>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new()
    }
}

impl MemoryStore {
    /// An empty store on the machine's clock.
    #[must_use]
    pub fn new() -> Self {
        MemoryStore::with_clock(Arc::new(SystemClock))
    }

    /// An empty store on a clock of the test's.
    #[must_use]
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        MemoryStore {
            shared: Arc::new(Shared {
                data: Mutex::new(Data::new()),
                write_lock: Arc::default(),
                news: watch::Sender::new(Revision::ZERO),
                clock,
            }),
            faults: Faults::new(),
        }
    }

    /// A store with this content, and these kinds of records.
    pub(crate) fn of_backup(state: StoredState, kinds: DeclaredKinds) -> Self {
        let store = MemoryStore::new();
        store.change(|data| *data = data.with_kinds(kinds).replaced_by(state));
        store
    }

    /// The reverse of [`MemoryStore::of_backup`].
    pub(crate) fn to_backup(&self) -> (StoredState, DeclaredKinds) {
        let data = self.shared.data.lock();
        (data.to_stored(), data.kinds().clone())
    }

    /// A driver for a server, behind the store's [`MemoryStore::faults`].
    #[must_use]
    pub fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(FaultyDriver::new(Arc::new(MemoryDriver { shared: self.shared.clone() }), self.faults.clone()))
    }

    /// A driver for a server that has a switch of its own, besides the store's.
    #[must_use]
    pub fn driver_with(&self, faults: Faults) -> Arc<dyn Driver> {
        Arc::new(FaultyDriver::new(self.driver(), faults))
    }

    /// The switch that all drivers of this store are behind.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Drops the store and makes an empty one in its place: another epoch and installation.
    pub fn drop_and_recreate(&self) {
        self.change(|data| *data = data.recreated());
    }

    /// All that is stored, as of now: what [`MemoryStore::restore`] and [`MemoryStore::set_back_to`] take.
    #[must_use]
    pub fn backup(&self) -> StoredState {
        self.shared.data.lock().to_stored()
    }

    /// Restores a backup: another epoch, no leases, tokens above all that either state has given out.
    pub fn restore(&self, backup: StoredState) {
        self.change(|data| {
            let above = data.leases.token_counter().max(backup.token_counter);
            *data = data.replaced_by(backup);
            data.begin_epoch(above);
        });
    }

    /// Puts the store back to an earlier state behind everyone's back: the epoch stays as the backup has it.
    pub fn set_back_to(&self, backup: StoredState) {
        self.change(|data| *data = data.replaced_by(backup));
    }

    /// Changes what is stored behind everyone's back, to plant damage for the linter.
    pub fn tamper(&self, change: impl FnOnce(&mut StoredState)) {
        self.change(|data| {
            let mut stored = data.to_stored();
            change(&mut stored);
            *data = data.replaced_by(stored);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Data)) {
        let head = {
            let mut data = self.shared.data.lock();
            change(&mut data);
            data.head()
        };
        self.shared.news.send_replace(head);
    }
}

/// A server's way to a [`MemoryStore`].
struct MemoryDriver {
    shared: Arc<Shared>,
}

struct MemorySession {
    shared: Arc<Shared>,
    now: Timestamp,
    // Held for as long as the session lives, and let go with it.
    _write_lock: OwnedMutexGuard<()>,
}

#[async_trait]
impl Session for MemorySession {
    fn now(&self) -> Timestamp {
        self.now
    }

    async fn fence(&mut self, fences: &[Fence]) -> Result<Vec<bool>, DriverError> {
        let now = self.shared.clock.now();
        let data = self.shared.data.lock();
        Ok(fences.iter().map(|fence| data.leases.holds(fence, now)).collect())
    }

    async fn commit(self: Box<Self>, batch: Batch) -> Result<(), CommitError> {
        let head = {
            let mut data = self.shared.data.lock();
            data.commit(batch).map_err(CommitError::NotCommitted)?;
            data.head()
        };
        self.shared.news.send_replace(head);
        Ok(())
    }
}

impl MemoryDriver {
    async fn write_lock(&self) -> Result<OwnedMutexGuard<()>, DriverError> {
        tokio::time::timeout(LOCK_LIMIT, self.shared.write_lock.clone().lock_owned())
            .await
            .map_err(|_| DriverError::Unavailable(format!("the write lock was not free within {LOCK_LIMIT:?}")))
    }

    fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }
}

#[async_trait]
impl Driver for MemoryDriver {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.shared.clock.clone()
    }

    async fn open(&self, records: &[IndexDeclaration]) -> Result<Meta, DriverError> {
        let mut data = self.shared.data.lock();
        for declaration in records {
            data.declare(declaration)?;
        }
        Ok(data.meta())
    }

    async fn meta(&self) -> Result<Meta, DriverError> {
        Ok(self.shared.data.lock().meta())
    }

    async fn load(&self) -> Result<StoredTree, DriverError> {
        Ok(self.shared.data.lock().tree())
    }

    async fn read_log(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<LogPage, DriverError> {
        self.shared.data.lock().read_log(epoch, after, rows_max)
    }

    async fn wait_for_news(&self, after: Revision, limit: Duration) {
        let mut news = self.shared.news.subscribe();
        if *news.borrow_and_update() <= after {
            // Whether there was news or the limit is over, the caller looks for itself.
            let _ = tokio::time::timeout(limit, news.changed()).await;
        }
    }

    async fn find_submission(
        &self,
        submission: SubmissionId,
        after: Revision,
    ) -> Result<Option<Revision>, DriverError> {
        Ok(self.shared.data.lock().find_submission(submission, after))
    }

    async fn begin(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<Begun, DriverError> {
        let write_lock = self.write_lock().await?;
        let page = self.shared.data.lock().read_log(epoch, after, rows_max)?;
        if page.rows.last().map_or(after, |row| row.revision) < page.head {
            return Err(DriverError::Unavailable(format!(
                "this server is {} revisions behind, and takes the write lock once it is at most {rows_max} behind",
                page.head.0 - after.0
            )));
        }
        let session = MemorySession { shared: self.shared.clone(), now: self.now(), _write_lock: write_lock };
        Ok(Begun { session: Box::new(session), rows: page.rows })
    }

    async fn query_records(&self, query: &RecordQuery) -> Result<RecordPage, DriverError> {
        self.shared.data.lock().query_records(query)
    }

    async fn prune_records(&self, retention: &Retention, rows_max: usize) -> Result<usize, DriverError> {
        Ok(self.shared.data.lock().prune_records(retention, rows_max))
    }

    async fn records_to_index(&self, kind: &str, indexes: u32, rows_max: usize) -> Result<IndexWork, DriverError> {
        Ok(self.shared.data.lock().records_to_index(kind, indexes, rows_max))
    }

    async fn index_records(&self, page: Arc<IndexPage>, keys: Vec<Vec<Vec<u8>>>) -> Result<IndexStep, DriverError> {
        let _write_lock = self.write_lock().await?;
        Ok(self.shared.data.lock().index_records(&page, &keys))
    }

    async fn join(&self, server: ServerRow) -> Result<(), DriverError> {
        let _write_lock = self.write_lock().await?;
        let now = self.now();
        self.shared.data.lock().leases.join(server, now);
        Ok(())
    }

    async fn heartbeat(&self, server: ServerRow) -> Result<(), DriverError> {
        let now = self.now();
        self.shared.data.lock().leases.heartbeat(server, now).map(|_| ())
    }

    async fn leave(&self, server: ServerId) -> Result<(), DriverError> {
        let _write_lock = self.write_lock().await?;
        self.shared.data.lock().leases.leave(server);
        Ok(())
    }

    async fn cluster(&self) -> Result<(Vec<ServerRow>, Vec<SlotRow>), DriverError> {
        Ok(self.shared.data.lock().leases.rows())
    }

    async fn take_slots(&self, server: ServerId, slots: &[SlotId]) -> Result<Vec<Fence>, DriverError> {
        let _write_lock = self.write_lock().await?;
        let now = self.now();
        let mut data = self.shared.data.lock();
        let compacted = data.compacted;
        data.leases.take(server, slots, compacted, now).map(|(fences, _)| fences)
    }

    async fn release_slots(&self, fences: &[Fence]) -> Result<(), DriverError> {
        let _write_lock = self.write_lock().await?;
        let now = self.now();
        self.shared.data.lock().leases.release(fences, now);
        Ok(())
    }

    async fn pending(&self, slot: SlotId, after: Revision, rows_max: usize) -> Result<Pending, DriverError> {
        Ok(self.shared.data.lock().pending(slot, after, rows_max))
    }

    async fn settle(&self, items: Vec<Settle>) -> Result<Vec<Settled>, DriverError> {
        let now = self.now();
        let mut data = self.shared.data.lock();
        Ok(items.into_iter().map(|item| data.settle(item, now)).collect())
    }

    async fn exceptions(&self, hook: Option<HookNumber>) -> Result<Vec<Exception>, DriverError> {
        let data = self.shared.data.lock();
        Ok(data.exceptions.values().filter(|row| hook.is_none_or(|hook| row.request.hook == hook)).cloned().collect())
    }

    async fn write_entities(
        &self,
        epoch: Epoch,
        from: Revision,
        to: Revision,
        changed: Vec<EntityRow>,
        removed: Vec<crate::path::Path>,
    ) -> Result<(), DriverError> {
        self.shared.data.lock().in_epoch(epoch)?.write_entities(from, to, changed, removed)
    }

    async fn replace_entities(&self, epoch: Epoch, tree: StoredTree) -> Result<(), DriverError> {
        self.shared.data.lock().in_epoch(epoch)?.replace_entities(tree)
    }

    async fn compact(
        &self,
        epoch: Epoch,
        keep: Timestamp,
        floor: Revision,
        rows_max: usize,
    ) -> Result<Revision, DriverError> {
        Ok(self.shared.data.lock().in_epoch(epoch)?.compact(keep, floor, rows_max))
    }

    async fn stored(&self) -> Result<StoredState, DriverError> {
        Ok(self.shared.data.lock().to_stored())
    }
}
