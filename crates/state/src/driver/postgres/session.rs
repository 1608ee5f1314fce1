//! The write lock and the commit.

use std::time::Instant;

use async_trait::async_trait;
use uuid::Uuid;

use super::super::{Batch, Begun, CommitError, DriverError, Exception, Fence, Receipt, Session, check_batch};
use super::connection::{Call, values};
use super::driver::PostgresDriver;
use super::link::OpenTransaction;
use super::log::{page_call, read_page};
use super::log_blocks::append_call;
use super::receipts::store_call;
use super::records::RecordChanges;
use super::settlement::{exceptions_call, fences_now_call, held_fences};
use super::slots::new_epoch_calls;
use super::{Shared, log, log_blocks};
use crate::revision::{Epoch, Revision, Timestamp};

/// The lock of the transaction: in order of arrival, let go after what was committed can be seen.
const LOCK: &str = "SELECT pg_advisory_xact_lock($1)";

/// What every commit uses, in the order of its round trips.
pub(super) const STATEMENTS: &[&str] = &["BEGIN", LOCK, log::PAGE, log_blocks::APPEND, "COMMIT"];

pub(super) struct PostgresSession {
    driver: PostgresDriver,
    transaction: OpenTransaction,
    epoch: Epoch,
    /// As the tables are while the write lock is held.
    format: u32,
    head: Revision,
    now: Timestamp,
}

/// Takes the write lock, until the transaction ends.
pub(super) fn write_lock_call(shared: &Shared) -> Call {
    Call::new(LOCK, values![shared.lock_key("write")])
}

/// Takes the lock and reads what is new, in one round trip.
pub(super) async fn begin(
    driver: &PostgresDriver,
    epoch: Epoch,
    after: Revision,
    rows_max: usize,
) -> Result<Begun, DriverError> {
    let shared = driver.shared();
    let look = shared.news.look();
    let sent = Instant::now();
    let calls = vec![write_lock_call(shared), page_call(epoch, after, rows_max, None)];
    let (transaction, rows) = driver.links.commit.begin(calls).await?;
    let read = read_page(&rows[1], epoch, after, rows_max.max(1), sent)?;
    driver.took(&read);
    let page = read.page;
    if page.rows.last().map_or(after, |row| row.revision) < page.head {
        // Dropping the transaction lets go.
        return Err(DriverError::Unavailable(format!(
            "this server is {} revisions behind, and takes the write lock once it is at most {rows_max} behind",
            page.head.0 - after.0
        )));
    }
    let now = match &shared.options.clock {
        Some(clock) => clock.now(),
        None => {
            // The lock may have been waited for: the time is of the end of it.
            shared.clock.observe(read.now, sent);
            read.now
        }
    };
    // Nobody needs to be woken: the caller takes these rows in.
    let _ = shared.news.seen(look, epoch, page.head);
    let (driver, head) = (driver.clone(), page.head);
    let session = PostgresSession { driver, transaction, epoch, format: read.format, head, now };
    Ok(Begun { session: Box::new(session), rows: page.rows })
}

#[async_trait]
impl Session for PostgresSession {
    fn now(&self) -> Timestamp {
        self.now
    }

    async fn fence(&mut self, fences: &[Fence]) -> Result<Vec<bool>, DriverError> {
        let now = self.driver.shared().now_given();
        let rows = self.transaction.run(vec![fences_now_call(fences, now)]).await?;
        let held = held_fences(&rows[0]);
        Ok(fences.iter().map(|fence| held.contains(fence)).collect())
    }

    async fn commit(self: Box<Self>, batch: Batch) -> Result<(), CommitError> {
        let PostgresSession { driver, mut transaction, epoch, format, head, .. } = *self;
        check_batch(head, &batch).map_err(CommitError::NotCommitted)?;
        let new_head = batch.rows.last().map_or(head, |row| row.revision);
        let changes = RecordChanges::of(driver.kinds(), &batch.records, new_head);
        let changes = changes.map_err(CommitError::NotCommitted)?;
        let mut calls = Vec::with_capacity(8);
        if !batch.rows.is_empty() {
            calls.push(append_call(&batch.rows, &driver.shared().channel, new_head, format));
        }
        if changes.needs_look() {
            // Open records are read and locked before anything is sent that would commit.
            let look = changes.note_keys_call().into_iter().chain([changes.look_call()]).collect();
            let found = transaction.run(look).await.map_err(CommitError::NotCommitted)?;
            let found = found.last().map_or(&[][..], Vec::as_slice);
            calls.extend(changes.calls(found).map_err(CommitError::NotCommitted)?);
        } else {
            calls.extend(changes.note_keys_call());
            calls.extend(changes.calls(&[]).map_err(CommitError::NotCommitted)?);
        }
        if !batch.receipts.is_empty() {
            // Their tokens were asked for within this transaction.
            let receipts: Vec<&Receipt> = batch.receipts.iter().collect();
            calls.push(store_call(&receipts, &[], None, format));
        }
        if !batch.exceptions.is_empty() {
            let exceptions: Vec<&Exception> = batch.exceptions.iter().collect();
            calls.push(exceptions_call(&exceptions, &[], None));
        }
        if let Some(tokens_above) = batch.new_epoch {
            calls.extend(new_epoch_calls(Uuid::new_v4(), tokens_above));
            calls.push(Call::new("SELECT pg_notify($1, 'epoch')", values![driver.shared().channel.clone()]));
        }
        transaction.commit(calls).await?;
        if batch.new_epoch.is_none() {
            driver.shared().news.committed(epoch, new_head);
        }
        Ok(())
    }
}
