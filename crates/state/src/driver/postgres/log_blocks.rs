//! Rows of the log as they are stored, and read again.
//!
//! From format 2 on a stored row has up to [`BLOCK_ROWS`] of them that were committed together: a stored row for each is most
//! of what the log costs the database. It stands under the last one's revision, time and submission. In a store of format 1,
//! which servers of the release before share, each is stored for itself, and such rows are read in both.
//!
//! # Invariants
//! - The rows of a block follow each other without a gap, so that its last revision and their number say all of them.
//! - A block is stored, read and removed as a whole. Who asks for rows amid it leaves the others out.
//! - A row that is alone is stored as it is in format 1, whatever the format.

use std::sync::Arc;

use tokio_postgres::Row;
use uuid::Uuid;

use super::super::encoding::{
    concerned_hooks, decode, decode_row, decode_row_after, hooks_at_most, put_number, put_row,
};
use super::super::{DriverError, LogRow};
use super::connection::{Call, values};
use super::log::column_revision;
use super::schema::BLOCKS_FORMAT;
use crate::revision::{Revision, SubmissionId, Timestamp};

/// How many rows of the log a stored row has at most.
pub(super) const BLOCK_ROWS: usize = 64;

/// The bytes of a block at most, with the numbers of the hooks that stand beside it. Two stored rows fill a page of the database
/// then, and none of them is large enough to be compressed or moved out of the table (see the table's `toast_tuple_target`).
const BLOCK_BYTES: usize = 3_900;

/// Begins a block; what begins otherwise is the body of one row.
const BLOCK: u8 = 2;

/// The bytes of a block beside those of the bodies, at most: its head, what each row has before its body, and a hook's number.
const HEAD_BYTES: usize = 3;
const ROW_BYTES: usize = 8 + 16 + 3;
const HOOK_BYTES: usize = 4;

/// The rows, and the notification that goes out when they can be seen.
pub(super) const APPEND: &str = "
    WITH appended AS (
        INSERT INTO changes (revision, at, submission, hooks, body)
        SELECT revision, at, submission, hooks::integer[], body
        FROM unnest($1::bigint[], $2::bigint[], $3::uuid[], $4::text[], $5::bytea[])
            AS given (revision, at, submission, hooks, body)
    )
    SELECT pg_notify($6, $7)";

/// Appends rows of the log, as a store of this format has them, and tells of the new head.
pub(super) fn append_call(rows: &[Arc<LogRow>], channel: &str, head: Revision, format: u32) -> Call {
    let (mut revisions, mut times, mut submissions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut hooks, mut bodies) = (Vec::new(), Vec::new());
    let rows_max = if format < BLOCKS_FORMAT { 1 } else { BLOCK_ROWS };
    for (rows, body) in stored(rows, rows_max) {
        let Some(last) = rows.last() else { continue };
        revisions.push(last.revision.0.cast_signed());
        times.push(last.at.0);
        submissions.push(last.submission.0);
        hooks.push(hooks_text(rows));
        bodies.push(body);
    }
    Call::new(APPEND, values![revisions, times, submissions, hooks, bodies, channel.to_owned(), head.to_string()])
}

/// The text of an array of numbers; arrays of arrays can't be of different lengths.
fn hooks_text(rows: &[Arc<LogRow>]) -> Option<String> {
    let concerned = concerned_hooks(rows.iter().map(|row| &**row));
    if concerned.is_empty() {
        return None;
    }
    let numbers: Vec<String> = concerned.iter().map(|hook| hook.cast_signed().to_string()).collect();
    Some(format!("{{{}}}", numbers.join(",")))
}

/// Puts rows together, at most so many; each part with the body that it is stored with.
fn stored(rows: &[Arc<LogRow>], rows_max: usize) -> Vec<(&[Arc<LogRow>], Vec<u8>)> {
    let mut bodies = Vec::with_capacity(rows.len() * 128);
    let mut ends = Vec::with_capacity(rows.len() + 1);
    ends.push(0);
    for row in rows {
        put_row(&mut bodies, row);
        ends.push(bodies.len());
    }
    let body = |place: usize| &bodies[ends[place]..ends[place + 1]];
    let bytes_of = |place: usize| ROW_BYTES + body(place).len() + HOOK_BYTES * hooks_at_most(&rows[place]);
    let mut stored = Vec::with_capacity(rows.len().div_ceil(rows_max) + 1);
    let mut from = 0;
    while from < rows.len() {
        let mut to = from + 1;
        let mut bytes = HEAD_BYTES + bytes_of(from);
        while to < rows.len() && to - from < rows_max && rows[to].revision == rows[to - 1].revision.next() {
            let with = bytes + bytes_of(to);
            if with > BLOCK_BYTES {
                break;
            }
            bytes = with;
            to += 1;
        }
        let part = &rows[from..to];
        let whole = match part {
            [_] => body(from).to_vec(),
            _ => block(part, (from..to).map(body), bytes),
        };
        stored.push((part, whole));
        from = to;
    }
    stored
}

fn block<'a>(rows: &[Arc<LogRow>], bodies: impl Iterator<Item = &'a [u8]>, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes);
    out.push(BLOCK);
    put_number(&mut out, rows.len() as u64);
    for (row, body) in rows.iter().zip(bodies) {
        out.extend(row.at.0.to_be_bytes());
        out.extend(row.submission.0.as_bytes());
        put_number(&mut out, body.len() as u64);
        out.extend(body);
    }
    out
}

/// The rows of a stored one, in order, from its columns `revision, at, submission, body` from `column` on.
pub(super) fn log_rows(row: &Row, column: usize) -> Result<Vec<Arc<LogRow>>, DriverError> {
    let last = column_revision(row, column);
    let body: &[u8] = row.get(column + 3);
    if body.first() == Some(&BLOCK) {
        return rows_of(last, body);
    }
    let submission = SubmissionId(row.get(column + 2));
    Ok(vec![Arc::new(decode_row(last, Timestamp(row.get(column + 1)), submission, body)?)])
}

fn rows_of(last: Revision, block: &[u8]) -> Result<Vec<Arc<LogRow>>, DriverError> {
    let damaged = || DriverError::Damaged(format!("the log's block that ends with {last} can't be read"));
    let read = decode(block, |bytes| {
        if bytes.byte()? != BLOCK {
            return None;
        }
        let count = bytes.count()?;
        let mut revision = Revision(last.0.checked_sub(count as u64)?);
        let mut rows: Vec<Arc<LogRow>> = Vec::with_capacity(count);
        for _ in 0..count {
            revision = revision.next();
            let at = Timestamp(i64::from_be_bytes(bytes.take(8)?.try_into().ok()?));
            let submission = SubmissionId(Uuid::from_slice(bytes.take(16)?).ok()?);
            let length = bytes.count()?;
            let before = rows.last().map(|row| &**row);
            match decode_row_after(before, revision, at, submission, bytes.take(length)?) {
                Ok(row) => rows.push(Arc::new(row)),
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(rows))
    });
    match read {
        Some(Err(error)) => Err(error),
        Some(Ok(rows)) => Ok(rows),
        None => Err(damaged()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::driver::encoding::encode_row;
    use crate::driver::{HookNumber, LogEntry};
    use crate::path::Path;
    use crate::revision::Attributes;

    fn row(revision: u64, length: usize) -> Arc<LogRow> {
        let path = Path::root().child("things", &"x".repeat(length.max(1))).unwrap();
        let entries = vec![LogEntry::Existing { path, hook: HookNumber(u32::try_from(revision % 3).unwrap()) }];
        let attributes = Attributes::from([("number".to_owned(), (revision % 2).to_string())]);
        Arc::new(LogRow {
            revision: Revision(revision),
            submission: SubmissionId(Uuid::from_u128(u128::from(revision))),
            at: Timestamp(i64::try_from(revision).unwrap() * 10),
            server: if revision.is_multiple_of(5) { "a".into() } else { "b".into() },
            attributes: Arc::new(attributes),
            entries,
        })
    }

    fn sizes(rows: &[Arc<LogRow>], rows_max: usize) -> Vec<usize> {
        stored(rows, rows_max).iter().map(|(rows, _)| rows.len()).collect()
    }

    #[test]
    fn a_block_is_full_or_too_large_or_ends_at_a_gap() {
        let many: Vec<_> = (1..=65).map(|revision| row(revision, 1)).collect();
        assert_eq!(sizes(&many, BLOCK_ROWS), [64, 1]);
        assert_eq!(sizes(&many[..3], 1), [1, 1, 1]);
        assert_eq!(sizes(&[row(1, 200), row(2, 200), row(4, 200)], BLOCK_ROWS), [2, 1]);
        let large: Vec<_> = (1..=40).map(|revision| row(revision, 200)).collect();
        let parts = stored(&large, BLOCK_ROWS);
        assert!(parts.len() > 1 && parts.iter().all(|(_, body)| body.len() <= BLOCK_BYTES), "{:?}", sizes(&large, 64));
    }

    #[test]
    fn one_that_is_alone_is_stored_as_in_format_1() {
        let alone = row(7, 200);
        let in_format_1 = encode_row(&alone);
        assert_eq!(stored(&[alone], BLOCK_ROWS)[0].1, in_format_1);
        assert_ne!(in_format_1[0], BLOCK);
    }

    #[test]
    fn a_block_that_was_cut_off_is_damage() {
        let rows = [row(1, 1), row(2, 1)];
        let (_, body) = &stored(&rows, BLOCK_ROWS)[0];
        assert_eq!(rows_of(Revision(2), body).unwrap(), rows);
        for length in 0..body.len() {
            assert!(matches!(rows_of(Revision(2), &body[..length]), Err(DriverError::Damaged(_))), "{length}");
        }
        assert!(matches!(rows_of(Revision(1), body), Err(DriverError::Damaged(_))), "there is no revision below 0");
    }

    #[test]
    fn the_table_goes_by_the_same_size() {
        let table = include_str!("migrations/V2__blocks.sql");
        let target = table.split_once("toast_tuple_target = ").unwrap().1.split(')').next().unwrap();
        // The head of a stored row and its other columns.
        assert!(BLOCK_BYTES + 120 <= target.parse().unwrap());
        assert!(super::super::log::SUBMISSION.contains(&format!("octet_length(body) <= {BLOCK_BYTES}")));
    }

    proptest! {
        #[test]
        fn blocks_have_what_was_put_into_them(
            given in prop::collection::vec((1_u64..3, 1_usize..250), 0..200),
            rows_max in 1_usize..70,
        ) {
            let revisions = given.iter().scan(0, |revision, (step, _)| {
                *revision += if *step == 2 && *revision % 7 == 0 { 2 } else { 1 };
                Some(*revision)
            });
            let rows: Vec<_> = revisions.zip(&given).map(|(revision, (_, length))| row(revision, *length)).collect();
            let mut found = Vec::new();
            for (part, body) in stored(&rows, rows_max) {
                prop_assert!(part.len() <= rows_max);
                if part.len() > 1 {
                    found.extend(rows_of(part.last().unwrap().revision, &body).unwrap());
                } else {
                    found.extend(part.iter().cloned());
                }
            }
            prop_assert_eq!(found, rows);
        }
    }
}
