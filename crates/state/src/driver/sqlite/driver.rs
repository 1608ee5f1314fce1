//! The contract of [`Driver`] on top of the writer, the readers and what is kept in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{OptionalExtension, params};
use tokio::sync::OwnedMutexGuard;

use super::super::encoding::{encode_row, names_hook};
use super::super::entities_mark::replay;
use super::super::{
    Batch, Begun, CommitError, Driver, DriverError, EntityRow, Exception, Fence, HookNumber, IndexPage, IndexStep,
    IndexWork, LogPage, LogRow, Meta, Pending, RequestId, ServerId, ServerRow, Session, Settle, Settled, SlotId,
    SlotRow, StoredState, StoredTree, check_no_gap,
};
use super::stored::{ExceptionsOf, read_epoch, read_exceptions, read_head, read_log, read_log_row, read_stored};
use super::writer::{Failed, Writer};
use super::{Shared, Store, entities, record_indexes, records};
use crate::clock::Clock;
use crate::path::Path;
use crate::record::{IndexDeclaration, RecordPage, RecordQuery, Retention};
use crate::revision::{Epoch, Revision, SubmissionId, Timestamp};

/// How many rows of the tail are looked at while it is locked.
const TAIL_STEP: usize = 1_000;

pub(super) struct SqliteDriver {
    store: Arc<Store>,
}

/// The store's write lock. It travels with a commit to the writer, so that nobody else begins before that has ended,
/// whatever becomes of who asked.
pub(super) struct WriteLock {
    shared: Arc<Shared>,
    is_session: bool,
    _guard: OwnedMutexGuard<()>,
}

impl Drop for WriteLock {
    fn drop(&mut self) {
        if self.is_session {
            self.shared.sessions.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Store {
    /// Waits for the write lock, in order of arrival. A session's commit is expected by the writer.
    pub(super) async fn write_lock(&self, is_session: bool) -> Result<WriteLock, DriverError> {
        let limit = self.shared.options.limit;
        let guard = tokio::time::timeout(limit, self.shared.write_lock.clone().lock_owned())
            .await
            .map_err(|_| DriverError::Unavailable(format!("the write lock was not free within {limit:?}")))?;
        if is_session {
            self.shared.sessions.fetch_add(1, Ordering::AcqRel);
        }
        Ok(WriteLock { shared: self.shared.clone(), is_session, _guard: guard })
    }
}

struct SqliteSession {
    store: Arc<Store>,
    lock: WriteLock,
    now: Timestamp,
}

#[async_trait]
impl Session for SqliteSession {
    fn now(&self) -> Timestamp {
        self.now
    }

    async fn fence(&mut self, fences: &[Fence]) -> Result<Vec<bool>, DriverError> {
        let shared = &self.store.shared;
        let now = shared.options.clock.now();
        let known = shared.known.lock();
        Ok(fences.iter().map(|fence| known.leases.holds(fence, now)).collect())
    }

    async fn commit(self: Box<Self>, batch: Batch) -> Result<(), CommitError> {
        let SqliteSession { store, lock, .. } = *self;
        let bodies: Vec<Vec<u8>> = batch.rows.iter().map(|row| encode_row(row)).collect();
        let limit = store.shared.options.limit;
        let outcome = store.shared.queue.run(limit, true, lock, move |writer| writer.commit(&batch, &bodies)).await;
        outcome.map_err(
            |Failed { error, unknown }| {
                if unknown { CommitError::Unknown(error) } else { CommitError::NotCommitted(error) }
            },
        )
    }
}

impl SqliteDriver {
    pub(super) fn new(store: Arc<Store>) -> Self {
        SqliteDriver { store }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.store.shared
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&rusqlite::Connection) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        self.shared().readers.read(self.shared().options.limit, read).await
    }

    async fn write<T: Send + 'static>(
        &self,
        apply: impl FnMut(&mut Writer) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let limit = self.shared().options.limit;
        self.shared().queue.run(limit, false, (), apply).await.map_err(|failed| failed.error)
    }

    /// As [`SqliteDriver::write`], under the write lock, which goes with the work.
    async fn write_locked<T: Send + 'static>(
        &self,
        apply: impl FnMut(&mut Writer) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let lock = self.store.write_lock(false).await?;
        let limit = self.shared().options.limit;
        self.shared().queue.run(limit, false, lock, apply).await.map_err(|failed| failed.error)
    }

    /// The entities, or what the log adds up to where it reaches back to the beginning.
    async fn load_or_rebuild(&self) -> Result<StoredTree, DriverError> {
        let (loaded, rebuilt) = self
            .read(|connection| {
                let loaded = entities::load(connection)?;
                if loaded.damage.is_empty() {
                    return Ok((loaded, None));
                }
                let compacted: i64 = connection.query_row("SELECT compacted FROM meta", [], |row| row.get(0))?;
                let head = read_head(connection)?;
                if compacted > 0 {
                    return Err(DriverError::Damaged(format!(
                        "the stored entities are not what was written: {}. They can't be rebuilt, since the log reaches \
                         back to revision {compacted} only, and no server is up that has them. Restore the store from a \
                         backup",
                        loaded.damage.join(", ")
                    )));
                }
                let log = read_log(connection, Revision::ZERO, usize::MAX)?;
                check_no_gap(Revision::ZERO, &log, usize::MAX, head)?;
                Ok((loaded, Some(replay(log.iter().map(|row| &**row)))))
            })
            .await?;
        let Some(rebuilt) = rebuilt else { return Ok(loaded.tree) };
        tracing::warn!(
            damage = loaded.damage.join(", "),
            revision = rebuilt.revision.0,
            "the stored entities are not what was written; they are rebuilt from the log"
        );
        let rebuilt = Arc::new(rebuilt);
        let tree = rebuilt.clone();
        self.write_locked(move |writer| writer.renew_rebuilt(&tree)).await?;
        Ok((*rebuilt).clone())
    }

    /// Rows from memory; none if they are older than what is kept there.
    fn tail_page(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<Option<LogPage>, DriverError> {
        let known = self.shared().known.lock();
        if epoch != known.epoch {
            return Err(DriverError::EpochChanged { expected: epoch, found: known.epoch });
        }
        if after > known.head {
            return Err(DriverError::SetBack { head: known.head, seen: after });
        }
        if after < known.compacted {
            return Err(DriverError::Compacted { reaches_back_to: known.compacted });
        }
        Ok(known.tail.after(after, rows_max).map(|rows| LogPage { rows, head: known.head }))
    }
}

#[async_trait]
impl Driver for SqliteDriver {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.shared().options.clock.clone()
    }

    async fn open(&self, records: &[IndexDeclaration]) -> Result<Meta, DriverError> {
        let records = records.to_vec();
        self.write(move |writer| writer.declare(&records)).await?;
        self.meta().await
    }

    async fn meta(&self) -> Result<Meta, DriverError> {
        Ok(self.shared().known.lock().meta())
    }

    async fn load(&self) -> Result<StoredTree, DriverError> {
        let mut renewed = self.shared().entities_renewed.subscribe();
        match self.load_or_rebuild().await {
            Err(DriverError::Damaged(_)) => {}
            loaded => return loaded,
        }
        // Servers that are up ask after it each time they write behind.
        self.shared().entities_damaged.store(true, Ordering::Release);
        let limit = self.shared().options.mend_limit;
        // Whether they were renewed or not: what is read now is what counts.
        let _ = tokio::time::timeout(limit, renewed.changed()).await;
        self.load_or_rebuild().await.map_err(|error| super::schema::of_file(&self.shared().path, error))
    }

    async fn read_log(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<LogPage, DriverError> {
        let rows_max = rows_max.max(1);
        if let Some(page) = self.tail_page(epoch, after, rows_max)? {
            return Ok(page);
        }
        self.read(move |connection| {
            // Read in the same transaction: compaction may have gone on since.
            let compacted: i64 = connection.query_row("SELECT compacted FROM meta", [], |row| row.get(0))?;
            let compacted = Revision(compacted.cast_unsigned());
            if after < compacted {
                return Err(DriverError::Compacted { reaches_back_to: compacted });
            }
            let head = read_head(connection)?;
            let rows = read_log(connection, after, rows_max)?;
            check_no_gap(after, &rows, rows_max, head)?;
            Ok(LogPage { rows, head })
        })
        .await
    }

    async fn wait_for_news(&self, after: Revision, limit: Duration) {
        let mut news = self.shared().news.subscribe();
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
        if self.shared().uncertain.load(Ordering::Acquire) {
            return Err(DriverError::Unavailable(
                "whether the last commit took place is known once the disk takes another write".to_owned(),
            ));
        }
        // From the newest row back: what is asked for was usually committed a moment ago.
        let sql = "SELECT revision FROM changes WHERE submission = ?1 AND revision > ?2 ORDER BY revision DESC LIMIT 1";
        self.read(move |connection| {
            let wanted = rusqlite::params![submission.0.as_bytes(), after.0.cast_signed()];
            let found: Option<i64> = connection.prepare_cached(sql)?.query_row(wanted, |row| row.get(0)).optional()?;
            Ok(found.map(|revision| Revision(revision.cast_unsigned())))
        })
        .await
    }

    async fn begin(&self, epoch: Epoch, after: Revision, rows_max: usize) -> Result<Begun, DriverError> {
        let lock = self.store.write_lock(true).await?;
        let page = self.read_log(epoch, after, rows_max).await?;
        if page.rows.last().map_or(after, |row| row.revision) < page.head {
            return Err(DriverError::Unavailable(format!(
                "this server is {} revisions behind, and takes the write lock once it is at most {rows_max} behind",
                page.head.0 - after.0
            )));
        }
        let now = self.shared().options.clock.now();
        let session = SqliteSession { store: self.store.clone(), lock, now };
        Ok(Begun { session: Box::new(session), rows: page.rows })
    }

    async fn query_records(&self, query: &RecordQuery) -> Result<RecordPage, DriverError> {
        let query = query.clone();
        let kinds = self.shared().known.lock().kinds.clone();
        self.read(move |connection| records::query_records(connection, &kinds, &query)).await
    }

    async fn prune_records(&self, retention: &Retention, rows_max: usize) -> Result<usize, DriverError> {
        let retention = retention.clone();
        self.write(move |writer| writer.prune_records(&retention, rows_max)).await
    }

    async fn records_to_index(&self, kind: &str, indexes: u32, rows_max: usize) -> Result<IndexWork, DriverError> {
        let kind: Arc<str> = kind.into();
        self.read(move |connection| record_indexes::records_to_index(connection, &kind, indexes, rows_max)).await
    }

    async fn index_records(&self, page: Arc<IndexPage>, keys: Vec<Vec<Vec<u8>>>) -> Result<IndexStep, DriverError> {
        // The one writer carries it out between two commits.
        self.write(move |writer| writer.index_records(&page, &keys)).await
    }

    async fn join(&self, server: ServerRow) -> Result<(), DriverError> {
        self.write_locked(move |writer| {
            let now = writer.now();
            let changes = writer.leases.join(server.clone(), now);
            writer.change_leases(changes)
        })
        .await
    }

    async fn heartbeat(&self, server: ServerRow) -> Result<(), DriverError> {
        self.write(move |writer| {
            let now = writer.now();
            let changes = writer.leases.heartbeat(server.clone(), now)?;
            writer.change_leases(changes)
        })
        .await
    }

    async fn leave(&self, server: ServerId) -> Result<(), DriverError> {
        self.write_locked(move |writer| {
            let changes = writer.leases.leave(server);
            writer.change_leases(changes)
        })
        .await
    }

    async fn cluster(&self) -> Result<(Vec<ServerRow>, Vec<SlotRow>), DriverError> {
        Ok(self.shared().known.lock().leases.rows())
    }

    async fn take_slots(&self, server: ServerId, slots: &[SlotId]) -> Result<Vec<Fence>, DriverError> {
        let slots = slots.to_vec();
        self.write_locked(move |writer| {
            let now = writer.now();
            let (fences, changes) = writer.leases.take(server, &slots, writer.compacted, now)?;
            writer.change_leases(changes)?;
            Ok(fences)
        })
        .await
    }

    async fn release_slots(&self, fences: &[Fence]) -> Result<(), DriverError> {
        let fences = fences.to_vec();
        self.write_locked(move |writer| {
            let now = writer.now();
            let changes = writer.leases.release(&fences, now);
            writer.change_leases(changes)
        })
        .await
    }

    async fn pending(&self, slot: SlotId, after: Revision, rows_max: usize) -> Result<Pending, DriverError> {
        // The rows first, then receipts and exceptions: what they are about is then among the rows, or later.
        let in_tail = PendingRows::from_tail(self.shared(), slot.hook, after, rows_max.max(1));
        self.read(move |connection| {
            let page = match in_tail {
                Some(page) => page,
                None => PendingRows::read(connection, slot.hook, after, rows_max.max(1))?,
            };
            let sql = "SELECT revision, sequence FROM receipts WHERE hook = ?1 AND revision > ?2 AND revision <= ?3";
            let receipts = connection
                .prepare_cached(sql)?
                .query_map(params![slot.hook.0, after.0.cast_signed(), page.read_to.0.cast_signed()], |row| {
                    let revision = Revision(row.get::<_, i64>(0)?.cast_unsigned());
                    Ok(RequestId { revision, sequence: row.get(1)?, hook: slot.hook })
                })?
                .collect::<rusqlite::Result<_>>()?;
            let exceptions = read_exceptions(connection, ExceptionsOf::Slot(slot))?;
            let PendingRows { rows, read_to, head, epoch } = page;
            Ok(Pending { rows, receipts, exceptions, read_to, head, epoch })
        })
        .await
    }

    async fn settle(&self, items: Vec<Settle>) -> Result<Vec<Settled>, DriverError> {
        self.write(move |writer| {
            let now = writer.now();
            writer.settle(&items, now)
        })
        .await
    }

    async fn exceptions(&self, hook: Option<HookNumber>) -> Result<Vec<Exception>, DriverError> {
        let of = hook.map_or(ExceptionsOf::Everything, ExceptionsOf::Hook);
        self.read(move |connection| read_exceptions(connection, of)).await
    }

    async fn write_entities(
        &self,
        epoch: Epoch,
        from: Revision,
        to: Revision,
        changed: Vec<EntityRow>,
        removed: Vec<Path>,
    ) -> Result<(), DriverError> {
        if from == to && !self.shared().entities_damaged() {
            return Ok(());
        }
        self.write(move |writer| {
            writer.expect_epoch(epoch)?;
            writer.write_entities(from, to, &changed, &removed)
        })
        .await
    }

    async fn replace_entities(&self, epoch: Epoch, tree: StoredTree) -> Result<(), DriverError> {
        self.write(move |writer| {
            writer.expect_epoch(epoch)?;
            writer.renew_entities(&tree)
        })
        .await
    }

    async fn compact(
        &self,
        epoch: Epoch,
        keep: Timestamp,
        floor: Revision,
        rows_max: usize,
    ) -> Result<Revision, DriverError> {
        self.write(move |writer| {
            writer.expect_epoch(epoch)?;
            writer.compact(keep, floor, rows_max)
        })
        .await
    }

    async fn stored(&self) -> Result<StoredState, DriverError> {
        self.read(read_stored).await
    }
}

impl Writer {
    fn now(&self) -> Timestamp {
        self.shared.options.clock.now()
    }
}

/// The rows of one page of what waits in a slot.
struct PendingRows {
    rows: Vec<Arc<LogRow>>,
    read_to: Revision,
    head: Revision,
    epoch: Epoch,
}

impl PendingRows {
    /// None where the tail does not reach back far enough. It is looked at in steps, so that nobody waits for it for long.
    fn from_tail(shared: &Shared, hook: HookNumber, after: Revision, rows_max: usize) -> Option<Self> {
        let epoch = shared.known.lock().epoch;
        let mut page = PendingRows { rows: Vec::new(), read_to: after, head: after, epoch };
        loop {
            let step = {
                let known = shared.known.lock();
                if known.epoch != epoch {
                    return None;
                }
                page.head = known.head;
                known.tail.after(page.read_to, TAIL_STEP)?
            };
            for row in &step {
                if row.concerns(hook) {
                    if page.rows.len() == rows_max {
                        return Some(page);
                    }
                    page.rows.push(row.clone());
                }
                page.read_to = row.revision;
            }
            if step.len() < TAIL_STEP {
                page.read_to = page.read_to.max(page.head);
                return Some(page);
            }
        }
    }

    fn read(
        connection: &rusqlite::Connection,
        hook: HookNumber,
        after: Revision,
        rows_max: usize,
    ) -> Result<Self, DriverError> {
        let head = read_head(connection)?;
        let mut page = PendingRows { rows: Vec::new(), read_to: head, head, epoch: read_epoch(connection)? };
        let sql = "SELECT revision, at, submission, body, hooks FROM changes
                   WHERE revision > ?1 AND hooks IS NOT NULL ORDER BY revision";
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query([after.0.cast_signed()])?;
        while let Some(row) = rows.next()? {
            let hooks = row.get_ref(4)?.as_blob_or_null().map_err(rusqlite::Error::from)?;
            if !names_hook(hooks, hook) {
                continue;
            }
            if page.rows.len() == rows_max {
                // The row that does not fit any more is not covered; everything before it is.
                page.read_to = Revision(row.get::<_, i64>(0)?.cast_unsigned() - 1);
                break;
            }
            page.rows.push(read_log_row(row)?);
        }
        Ok(page)
    }
}
