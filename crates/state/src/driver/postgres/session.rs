//! The write lock and the commit.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use uuid::Uuid;

use super::super::encoding::{concerned_hooks, encode_row};
use super::super::{Batch, Begun, CommitError, DriverError, Exception, Fence, LogRow, Receipt, Session, check_batch};
use super::Shared;
use super::connection::{Call, values};
use super::driver::PostgresDriver;
use super::link::OpenTransaction;
use super::log::{page_call, read_page};
use super::receipts::store_call;
use super::records::RecordChanges;
use super::settlement::{exceptions_call, fences_now_call, held_fences};
use super::slots::new_epoch_calls;
use crate::revision::{Epoch, Revision, Timestamp};

/// The lock of the transaction: in order of arrival, let go after what was committed can be seen.
const LOCK: &str = "SELECT pg_advisory_xact_lock($1)";

/// The rows, and the notification that goes out when they can be seen.
const APPEND: &str = "
    WITH appended AS (
        INSERT INTO changes (revision, at, submission, hooks, body)
        SELECT revision, at, submission, hooks::integer[], body
        FROM unnest($1::bigint[], $2::bigint[], $3::uuid[], $4::text[], $5::bytea[])
            AS given (revision, at, submission, hooks, body)
    )
    SELECT pg_notify($6, $7)";

/// What every commit uses, in the order of its round trips.
pub(super) const STATEMENTS: &[&str] = &["BEGIN", LOCK, super::log::PAGE, APPEND, "COMMIT"];

pub(super) struct PostgresSession {
    driver: PostgresDriver,
    transaction: OpenTransaction,
    epoch: Epoch,
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
    let read = read_page(&rows[1], epoch, after, rows_max.max(1))?;
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
    let session = PostgresSession { driver: driver.clone(), transaction, epoch, head: page.head, now };
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
        let PostgresSession { driver, mut transaction, epoch, head, .. } = *self;
        check_batch(head, &batch).map_err(CommitError::NotCommitted)?;
        let new_head = batch.rows.last().map_or(head, |row| row.revision);
        let changes = RecordChanges::of(driver.kinds(), &batch.records, new_head);
        let changes = changes.map_err(CommitError::NotCommitted)?;
        let mut calls = Vec::with_capacity(8);
        if !batch.rows.is_empty() {
            calls.push(append_call(&batch.rows, driver.shared(), new_head));
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
            calls.push(store_call(&receipts, &[], None, driver.shared().format()));
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

/// Appends rows of the log and tells of the new head.
pub(super) fn append_call(rows: &[Arc<LogRow>], shared: &Shared, head: Revision) -> Call {
    let (mut revisions, mut times, mut submissions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut hooks, mut bodies) = (Vec::new(), Vec::new());
    for row in rows {
        revisions.push(row.revision.0.cast_signed());
        times.push(row.at.0);
        submissions.push(row.submission.0);
        hooks.push(hooks_text(row));
        bodies.push(encode_row(row));
    }
    Call::new(APPEND, values![revisions, times, submissions, hooks, bodies, shared.channel.clone(), head.to_string()])
}

/// The text of an array of numbers; arrays of arrays can't be of different lengths.
fn hooks_text(row: &LogRow) -> Option<String> {
    let concerned = concerned_hooks(row);
    if concerned.is_empty() {
        return None;
    }
    let numbers: Vec<String> = concerned.iter().map(|hook| hook.cast_signed().to_string()).collect();
    Some(format!("{{{}}}", numbers.join(",")))
}
