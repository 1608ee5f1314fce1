//! The log: reading pages of it, and finding submissions.

use std::sync::Arc;

use tokio_postgres::Row;

use super::super::encoding::decode_row;
use super::super::{DriverError, LogPage, LogRow, check_no_gap};
use super::connection::{Call, values};
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

/// One statement, so that head, epoch and rows are of one moment. Without rows there is one line all the same.
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
        WHERE revision > $1 AND m.epoch = $2 AND m.compacted <= $1 ORDER BY revision LIMIT $3
    ) c ON true
    ORDER BY c.revision"
);

/// The rows after a revision with what is known of the store at that moment.
pub(super) fn page_call(epoch: Epoch, after: Revision, rows_max: usize, now: Option<i64>) -> Call {
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    Call::new(PAGE, values![after.0.cast_signed(), epoch.0, rows_max, now])
}

/// The written-behind entities, as a look at the log sees them.
#[derive(Debug, Clone, Copy)]
pub(super) struct StoredEntities {
    pub(super) epoch: Epoch,
    pub(super) at: Revision,
    /// A start has found that they are not what was written.
    pub(super) damaged: bool,
}

/// What a page's statement answers.
pub(super) struct Page {
    pub(super) page: LogPage,
    pub(super) now: Timestamp,
    pub(super) entities: StoredEntities,
    pub(super) format: u32,
}

/// Checks what was read against what the caller knows.
pub(super) fn read_page(rows: &[Row], epoch: Epoch, after: Revision, rows_max: usize) -> Result<Page, DriverError> {
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
    let mut log = Vec::with_capacity(rows.len());
    for row in rows {
        if row.get::<_, Option<i64>>(7).is_some() {
            log.push(log_row(row, 7)?);
        }
    }
    check_no_gap(after, &log, rows_max, head)?;
    let entities = StoredEntities { epoch, at: column_revision(first, 5), damaged: first.get(4) };
    Ok(Page { page: LogPage { rows: log, head }, now: Timestamp(first.get(6)), entities, format })
}

pub(super) fn column_revision(row: &Row, column: usize) -> Revision {
    Revision(row.get::<_, i64>(column).cast_unsigned())
}

/// The columns `revision, at, submission, body` from `column` on.
pub(super) fn log_row(row: &Row, column: usize) -> Result<Arc<LogRow>, DriverError> {
    let submission = SubmissionId(row.get(column + 2));
    let body: &[u8] = row.get(column + 3);
    decode_row(column_revision(row, column), Timestamp(row.get(column + 1)), submission, body).map(Arc::new)
}

/// From the newest row back: what is asked for was usually committed a moment ago.
pub(super) fn find_submission_call(submission: SubmissionId, after: Revision) -> Call {
    Call::new(
        "SELECT revision FROM changes WHERE submission = $1 AND revision > $2 ORDER BY revision DESC LIMIT 1",
        values![submission.0, after.0.cast_signed()],
    )
}
