//! The log: reading pages of it, and finding submissions.

use std::sync::Arc;
use std::time::Instant;

use tokio_postgres::Row;

use super::super::{DriverError, LogPage, LogRow, check_no_gap};
use super::connection::{Call, values};
use super::driver::PostgresDriver;
use super::log_blocks::{BLOCK_ROWS, log_rows};
use super::schema::{check_format, own_row};
use super::settlement::clock_time;
use crate::revision::{Epoch, Revision, SubmissionId, Timestamp};

/// The head of the log, alone or in brackets within another statement. Joined to others it would be found by reading the whole
/// log, and not the end of its index.
macro_rules! head {
    () => {
        "SELECT coalesce(max(revision), 0) FROM changes"
    };
}
pub(super) use head;

/// One statement, so that head, epoch and rows are of one moment. Without rows there is one line all the same. What is stored
/// beyond the rows that are asked for may be in one of its own with some of them.
pub(super) const PAGE: &str = concat!(
    "SELECT m.epoch, m.format, m.compacted, (",
    head!(),
    "), e.damaged, e.at, ",
    clock_time!("$4"),
    ",
           c.revision, c.at, c.submission, c.body
    FROM meta m
    CROSS JOIN entities_mark e
    LEFT JOIN LATERAL (
        SELECT revision, at, submission, body FROM changes
        WHERE revision > $1 AND revision <= $5 AND m.epoch = $2 AND m.compacted <= $1 ORDER BY revision LIMIT $3
    ) c ON true
    ORDER BY c.revision"
);

/// The rows alone, where the store is as it was known: a third of what [`PAGE`] takes the database, which is what a hook on
/// another server waits for.
pub(super) const NEWS: &str = "
    SELECT revision, at, submission, body FROM changes
    WHERE revision > $1 AND revision <= $3 AND EXISTS (SELECT FROM meta WHERE epoch = $2 AND compacted <= $1 AND format = $4)
    ORDER BY revision";

/// How many rows, fewer than this, may be all that is new.
pub(super) const NEWS_ROWS: u64 = 64;

/// News of fewer rows than this are read alone. Where more are told of, others commit thick and fast, and by the time of the look
/// there would be more than it reaches to.
pub(super) const NEWS_TOLD: u64 = 8;

/// The few rows after a revision, of a store of this format.
pub(super) fn news_call(epoch: Epoch, after: Revision, format: u32) -> Call {
    // The last one may be the first one of its block.
    let to = after.0.saturating_add(NEWS_ROWS + BLOCK_ROWS as u64 - 1);
    Call::new(NEWS, values![after.0.cast_signed(), epoch.0, to.cast_signed(), format.cast_signed()])
}

/// What [`news_call`] has found, if that is all there is. Nothing may as well mean that the store is not as it was known.
pub(super) fn read_news(rows: &[Row], after: Revision) -> Result<Option<LogPage>, DriverError> {
    let log = rows_after(rows, 0, after)?;
    let Some(head) = log.last().map(|row| row.revision) else { return Ok(None) };
    // A block that begins after so many may end beyond what was looked at.
    if head.0 - after.0 >= NEWS_ROWS {
        return Ok(None);
    }
    check_no_gap(after, &log, log.len(), head)?;
    Ok(Some(LogPage { rows: log, head }))
}

/// The rows after a revision with what is known of the store at that moment.
pub(super) fn page_call(epoch: Epoch, after: Revision, rows_max: usize, now: Option<i64>) -> Call {
    let after = after.0.cast_signed();
    let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
    // The last one that is asked for may be the first one of its block.
    let to = after.saturating_add(limit).saturating_add(BLOCK_ROWS as i64 - 1);
    Call::new(PAGE, values![after, epoch.0, limit, now, to])
}

/// The written-behind entities, as a look at the log sees them.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredEntities {
    pub(super) epoch: Epoch,
    pub(super) at: Revision,
    /// A start has found that they are not what was written.
    pub(super) damaged: bool,
    /// When the look began.
    pub(super) looked_at: Instant,
}

/// What a page's statement answers.
pub(super) struct Page {
    pub(super) page: LogPage,
    pub(super) now: Timestamp,
    pub(super) entities: StoredEntities,
    pub(super) format: u32,
}

/// Checks what was read, by a look that began at a time, against what the caller knows.
pub(super) fn read_page(
    rows: &[Row],
    epoch: Epoch,
    after: Revision,
    rows_max: usize,
    looked_at: Instant,
) -> Result<Page, DriverError> {
    let first = own_row(rows)?;
    let found = Epoch(first.get(0));
    let format = first.get::<_, i32>(1).cast_unsigned();
    check_format(format)?;
    let compacted = column_revision(first, 2);
    let head = column_revision(first, 3);
    if found != epoch {
        return Err(DriverError::EpochChanged { expected: epoch, found });
    }
    if after > head {
        return Err(DriverError::SetBack { head, seen: after });
    }
    if after < compacted {
        return Err(DriverError::Compacted { reaches_back_to: compacted });
    }
    let mut log = rows_after(rows, 7, after)?;
    log.truncate(rows_max);
    check_no_gap(after, &log, rows_max, head)?;
    let entities = StoredEntities { epoch, at: column_revision(first, 5), damaged: first.get(4), looked_at };
    Ok(Page { page: LogPage { rows: log, head }, now: Timestamp(first.get(6)), entities, format })
}

/// The rows of the log in those of an answer, from a column on that is null where there is none.
fn rows_after(rows: &[Row], column: usize, after: Revision) -> Result<Vec<Arc<LogRow>>, DriverError> {
    let mut log = Vec::with_capacity(rows.len());
    for row in rows {
        if row.get::<_, Option<i64>>(column).is_some() {
            log.extend(log_rows(row, column)?);
        }
    }
    // Of a block not all may have been asked for.
    let known = log.partition_point(|row| row.revision <= after);
    log.drain(..known);
    Ok(log)
}

pub(super) fn column_revision(row: &Row, column: usize) -> Revision {
    Revision(row.get::<_, i64>(column).cast_unsigned())
}

/// The newest row before another that has the submission, or a block that has its bytes, perhaps amid something else. Only what
/// may be a block is looked into: what is larger would be fetched from elsewhere.
pub(super) const SUBMISSION: &str = "
    SELECT revision, at, submission, body FROM changes
    WHERE revision > $2 AND revision < $4
      AND (submission = $1 OR (octet_length(body) <= 3900 AND position($3 IN body) > 0))
    ORDER BY revision DESC LIMIT 1";

/// From the newest row back: what is asked for was usually committed a moment ago.
pub(super) async fn find_submission(
    driver: &PostgresDriver,
    submission: SubmissionId,
    after: Revision,
) -> Result<Option<Revision>, DriverError> {
    let mut before = i64::MAX;
    loop {
        let bytes = submission.0.as_bytes().to_vec();
        let call = Call::new(SUBMISSION, values![submission.0, after.0.cast_signed(), bytes, before]);
        let rows = driver.read(vec![call]).await?;
        let Some(row) = rows[0].first() else { return Ok(None) };
        let found = log_rows(row, 0)?.into_iter().find(|row| row.submission == submission);
        if let Some(found) = found {
            return Ok((found.revision > after).then_some(found.revision));
        }
        before = row.get(0);
    }
}
