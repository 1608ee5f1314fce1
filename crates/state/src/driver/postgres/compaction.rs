//! Compaction: deletes the oldest rows of the log that nothing needs, in small batches, with the receipts of their
//! requests. See the driver's documentation for why it drops no partitions.

use super::super::DriverError;
use super::connection::{Call, values};
use super::contraction::contract;
use super::driver::PostgresDriver;
use super::entities::as_driver_error;
use super::log::{column_revision, head};
use super::schema::{FORMAT, check_format};
use super::settlement::column_number;
use crate::revision::{Epoch, Revision, Timestamp};

/// The hooks that have rows in a table, by one probe of its index for each.
macro_rules! hooks {
    ($table:literal) => {
        concat!(
            "WITH RECURSIVE hooks (hook) AS (
                 (SELECT hook FROM ",
            $table,
            " ORDER BY hook LIMIT 1)
                 UNION ALL
                 SELECT (SELECT r.hook FROM ",
            $table,
            " r WHERE r.hook > hooks.hook ORDER BY r.hook LIMIT 1)
                 FROM hooks WHERE hooks.hook IS NOT NULL
             ) "
        )
    };
}

/// What holds compaction back, as far as the database knows.
pub(super) const BOUNDS: &str = concat!(
    "SELECT m.epoch, m.format, m.compacted,
           CASE WHEN e.damaged THEN m.compacted ELSE e.at END,
           (SELECT min(watermark) FROM slots),
           (",
    head!(),
    "),
           EXISTS (",
    hooks!("receipts"),
    "SELECT FROM hooks CROSS JOIN LATERAL (
         SELECT FROM receipts r WHERE r.hook = hooks.hook AND r.revision <= m.compacted LIMIT 1) l),
           EXISTS (",
    hooks!("receipt_blocks"),
    "SELECT FROM hooks CROSS JOIN LATERAL (
         SELECT FROM receipt_blocks b WHERE b.hook = hooks.hook AND b.last_revision <= m.compacted LIMIT 1) l)
    FROM meta m CROSS JOIN entities_mark e"
);

/// Receipts go with the rows of their requests; a block goes with the last one of these.
pub(super) const PASSED: [&str; 2] = [
    concat!(
        hooks!("receipts"),
        "DELETE FROM receipts r
         WHERE r.hook = ANY (ARRAY(SELECT hook FROM hooks)) AND r.revision > $1 AND r.revision <= $2"
    ),
    concat!(
        hooks!("receipt_blocks"),
        "DELETE FROM receipt_blocks r
         WHERE r.hook = ANY (ARRAY(SELECT hook FROM hooks)) AND r.last_revision > $1 AND r.last_revision <= $2"
    ),
];

/// Receipts that came later for requests below: nothing can ask for those runs again.
const LATE: [&str; 2] = [
    concat!(
        hooks!("receipts"),
        "DELETE FROM receipts r USING (
             SELECT l.hook, l.revision, l.sequence FROM hooks
             CROSS JOIN LATERAL (
                 SELECT hook, revision, sequence FROM receipts
                 WHERE hook = hooks.hook AND revision <= $1 ORDER BY revision, sequence LIMIT $2
             ) l LIMIT $2
         ) gone
         WHERE r.hook = gone.hook AND r.revision = gone.revision AND r.sequence = gone.sequence"
    ),
    concat!(
        hooks!("receipt_blocks"),
        "DELETE FROM receipt_blocks r USING (
             SELECT l.hook, l.last_revision, l.first_revision, l.id FROM hooks
             CROSS JOIN LATERAL (
                 SELECT hook, last_revision, first_revision, id FROM receipt_blocks
                 WHERE hook = hooks.hook AND last_revision <= $1 ORDER BY last_revision LIMIT $2
             ) l LIMIT $2
         ) gone
         WHERE r.hook = gone.hook AND r.last_revision = gone.last_revision AND r.first_revision = gone.first_revision
           AND r.id = gone.id"
    ),
];

struct Bounds {
    format: u32,
    compacted: Revision,
    upto: Revision,
    late_receipts: bool,
}

fn read_bounds(rows: &[tokio_postgres::Row], expected: Epoch, floor: Revision) -> Result<Bounds, DriverError> {
    let row =
        rows.first().ok_or_else(|| DriverError::Unavailable("the store is being made, or was emptied".to_owned()))?;
    let found = Epoch(row.get(0));
    let format = column_number(row, 1);
    check_format(format)?;
    if found != expected {
        return Err(DriverError::EpochChanged { expected, found });
    }
    let watermark = row.get::<_, Option<i64>>(4).map_or(Revision(u64::MAX), |mark| Revision(mark.cast_unsigned()));
    let newest_stays = Revision(column_revision(row, 5).0.saturating_sub(1));
    let upto = floor.min(column_revision(row, 3)).min(watermark).min(newest_stays);
    Ok(Bounds { format, compacted: column_revision(row, 2), upto, late_receipts: row.get(6) || row.get(7) })
}

/// See [`super::super::Driver::compact`].
pub(super) async fn compact(
    driver: &PostgresDriver,
    epoch: Epoch,
    keep: Timestamp,
    floor: Revision,
    rows_max: usize,
) -> Result<Revision, DriverError> {
    let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
    // Without a lock first: mostly there is nothing to do, and nothing should be written then.
    let connection = driver.links.upkeep.get().await?;
    let rows = connection.run(vec![Call::plain(BOUNDS)], driver.shared().options.answer_limit).await?;
    let Bounds { format, compacted, upto, late_receipts } = read_bounds(&rows[0], epoch, floor)?;
    if format < FORMAT
        && let Err(error) = contract(driver, epoch).await
    {
        tracing::warn!(%error, "the tables can't be contracted; it is tried again");
    }
    if upto <= compacted && !late_receipts {
        return Ok(compacted);
    }
    let (mut transaction, rows) = driver
        .links
        .upkeep
        .begin(vec![
            // A taking of slots that never were reads how far the log is compacted: before this or after it.
            Call::plain("SELECT compacted FROM meta FOR NO KEY UPDATE"),
            Call::plain(BOUNDS),
        ])
        .await?;
    let Bounds { compacted, upto, .. } = read_bounds(&rows[1], epoch, floor)?;
    let mut reached = compacted;
    if upto > compacted {
        let look = Call::new(
            "SELECT revision, at FROM changes WHERE revision > $1 AND revision <= $2 ORDER BY revision LIMIT $3",
            values![compacted.0.cast_signed(), upto.0.cast_signed(), limit],
        );
        let rows = transaction.run(vec![look]).await?;
        // In order, up to the first stored row that is to be kept: a clock that was set back leaves no hole. Receipts go with
        // each transaction, so that as many of these count, and not of stored rows.
        for row in &rows[0] {
            let last = column_revision(row, 0);
            let is_much = reached > compacted && last.0 - compacted.0 > rows_max as u64;
            if row.get::<_, i64>(1) >= keep.0 || is_much {
                break;
            }
            reached = last;
        }
    }
    let (from, to) = (compacted.0.cast_signed(), reached.0.cast_signed());
    let mut calls = Vec::new();
    if reached > compacted {
        calls.push(Call::new("DELETE FROM changes WHERE revision > $1 AND revision <= $2", values![from, to]));
        calls.extend(PASSED.map(|passed| Call::new(passed, values![from, to])));
        calls.push(Call::new("UPDATE meta SET compacted = $1", values![to]));
    } else {
        calls.extend(LATE.map(|late| Call::new(late, values![to, limit])));
    }
    transaction.commit(calls).await.map_err(as_driver_error)?;
    Ok(reached)
}
