//! What waits in a slot: the rows of the log that concern its hook, and then the receipts and exceptions.

use super::super::encoding::concerns;
use super::super::{DriverError, Pending, SlotId};
use super::connection::{Call, values};
use super::driver::{PostgresDriver, exceptions_sql, read_exceptions};
use super::log::{column_revision, head};
use super::log_blocks::{BLOCK_ROWS, log_rows};
use super::receipts::{read_received, received_calls};
use super::schema::own_row;
use crate::revision::{Epoch, Revision};

/// Stored rows of the log that concern the hook, with the head of the same moment.
pub(super) const PENDING: &str = concat!(
    "SELECT (",
    head!(),
    "), m.epoch, c.revision, c.at, c.submission, c.body
    FROM meta m
    LEFT JOIN LATERAL (
        SELECT revision, at, submission, body FROM changes
        WHERE revision > $1 AND $2 = ANY (hooks) ORDER BY revision LIMIT $3
    ) c ON true
    ORDER BY c.revision"
);

pub(super) async fn pending(
    driver: &PostgresDriver,
    slot: SlotId,
    after: Revision,
    rows_max: usize,
) -> Result<Pending, DriverError> {
    // The rows first, then receipts and exceptions: what they are about is then among the rows, or later.
    let (mut rows, mut read_to, mut known) = (Vec::new(), after, None);
    // How many rows a stored one has is seen when it is read: it is begun as if they were full, and gone on with by what was
    // found. One more than is given out is looked for, to know where the page ends.
    let mut stored_max = rows_max / BLOCK_ROWS + 1;
    let (head, epoch) = loop {
        let limit = i64::try_from(stored_max).unwrap_or(i64::MAX);
        let call = Call::new(PENDING, values![read_to.0.cast_signed(), slot.hook.0.cast_signed(), limit]);
        let found = driver.read(vec![call]).await?;
        let first = own_row(&found[0])?;
        let (head, epoch) = (column_revision(first, 0), Epoch(first.get(1)));
        if known.replace(epoch).is_some_and(|before| before != epoch) {
            // What was read before is of another log.
            rows.clear();
            read_to = after;
            continue;
        }
        let (before, mut stored) = (rows.len(), 0);
        for row in found[0].iter().filter(|row| row.get::<_, Option<i64>>(2).is_some()) {
            let concerned = log_rows(row, 2)?.into_iter();
            rows.extend(concerned.filter(|row| row.revision > after && concerns(row, slot.hook)));
            read_to = column_revision(row, 2);
            stored += 1;
        }
        if let Some(next) = rows.get(rows_max) {
            // The row that does not fit any more is not covered; everything before it is.
            read_to = Revision(next.revision.0 - 1);
            rows.truncate(rows_max);
            break (head, epoch);
        }
        if stored < stored_max {
            read_to = head;
            break (head, epoch);
        }
        let in_each = ((rows.len() - before) / stored).max(1);
        stored_max = (rows_max + 1 - rows.len()).div_ceil(in_each).max(stored_max * 2).min(rows_max + 1);
    };
    let [in_rows, in_blocks] = received_calls(slot.hook, after, read_to);
    let exceptions = Call::new(
        exceptions_sql("slot_hook = $1 AND slot = $2"),
        values![slot.hook.0.cast_signed(), slot.slot.cast_signed()],
    );
    let found = driver.read(vec![in_rows, in_blocks, exceptions]).await?;
    let receipts = read_received(slot.hook, after, read_to, &found[0], &found[1])?;
    Ok(Pending { rows, receipts, exceptions: read_exceptions(&found[2])?, read_to, head, epoch })
}
