//! The log: reading pages of it, and finding submissions.

use std::sync::Arc;

use tokio_postgres::Row;

use super::super::encoding::decode_row;
use super::super::{DriverError, LogPage, LogRow, check_no_gap};
use super::connection::{Call, values};
use super::schema::check_format;
use crate::revision::{Epoch, Revision, SubmissionId, Timestamp};

/// One statement, so that head, epoch and rows are of one moment. Without rows there is one line all the same.
pub(super) const PAGE: &str = "
    SELECT m.epoch, m.format, m.compacted, h.head, e.damaged,
           coalesce($4, (extract(epoch FROM clock_timestamp()) * 1000)::bigint),
           c.revision, c.at, c.submission, c.body
    FROM meta m
    CROSS JOIN entities_mark e
    CROSS JOIN LATERAL (SELECT coalesce(max(revision), 0) AS head FROM changes) h
    LEFT JOIN LATERAL (
        SELECT revision, at, submission, body FROM changes
        WHERE revision > $1 AND m.epoch = $2 AND m.compacted <= $1 ORDER BY revision LIMIT $3
    ) c ON true
    ORDER BY c.revision";

/// The rows after a revision with what is known of the store at that moment.
pub(super) fn page_call(epoch: Epoch, after: Revision, rows_max: usize, now: Option<i64>) -> Call {
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    Call::new(PAGE, values![after.0.cast_signed(), epoch.0, rows_max, now])
}

/// What a page's statement answers.
pub(super) struct Page {
    pub(super) page: LogPage,
    pub(super) now: Timestamp,
    pub(super) entities_damaged: bool,
}

/// Checks what was read against what the caller knows.
pub(super) fn read_page(rows: &[Row], epoch: Epoch, after: Revision, rows_max: usize) -> Result<Page, DriverError> {
    let first = rows.first().ok_or_else(|| {
        DriverError::Unavailable("the store's own row is not there; the store is being made, or was emptied".to_owned())
    })?;
    let found = Epoch(first.get(0));
    check_format(first.get::<_, i32>(1).cast_unsigned())?;
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
        if row.get::<_, Option<i64>>(6).is_some() {
            log.push(log_row(row, 6)?);
        }
    }
    check_no_gap(after, &log, rows_max, head)?;
    Ok(Page { page: LogPage { rows: log, head }, now: Timestamp(first.get(5)), entities_damaged: first.get(4) })
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
pub(super) fn find_submission_call(submission: SubmissionId) -> Call {
    Call::new(
        "SELECT revision FROM changes WHERE submission = $1 ORDER BY revision DESC LIMIT 1",
        values![submission.0],
    )
}
