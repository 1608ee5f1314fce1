//! Removing what retention lets go.

use std::collections::BTreeMap;

use tokio_postgres::Row;

use super::super::super::encoding::decode_keys;
use super::super::super::{DriverError, RecordId};
use super::super::connection::{Call, values};
use super::super::driver::PostgresDriver;
use super::super::entities;
use super::super::log::head;
use super::{Entries, damaged_keys, read_id};
use crate::record::Retention;

const GROUPS_ALL: &str = "
    WITH RECURSIVE groups (key) AS (
        (SELECT key FROM record_index WHERE kind = $1 AND number = -1 ORDER BY key LIMIT 1)
        UNION ALL
        SELECT (SELECT e.key FROM record_index e WHERE e.kind = $1 AND e.number = -1 AND e.key > groups.key
                ORDER BY e.key LIMIT 1)
        FROM groups WHERE groups.key IS NOT NULL
    )";

const GROUPS_NEW: &str = "
    WITH groups (key) AS (SELECT DISTINCT key FROM record_news WHERE kind = $1)";

const EXCESS: &str = "
    SELECT e.revision, e.sequence FROM groups
    CROSS JOIN LATERAL (
        SELECT e.revision, e.sequence FROM record_index e WHERE e.kind = $1 AND e.number = -1 AND e.key = groups.key
        ORDER BY e.key DESC, e.revision DESC, e.sequence DESC OFFSET $2
    ) e
    WHERE groups.key IS NOT NULL
    ORDER BY e.revision, e.sequence LIMIT $3";

/// Removes what the retention lets go, at most `rows_max`, in one transaction. One server at a time for each kind.
pub(in crate::driver::postgres) async fn prune(
    driver: &PostgresDriver,
    retention: &Retention,
    rows_max: usize,
) -> Result<usize, DriverError> {
    let kinds = driver.kinds();
    let Some(kind) = kinds.numbers.get(&retention.kind).copied() else { return Ok(0) };
    let grouped = kinds.declared.0.get(&retention.kind).is_some_and(|kind| kind.grouped);
    let room = i64::try_from(rows_max).unwrap_or(i64::MAX);
    let before = retention.before.map_or(i64::MIN, |before| before.0);
    let (mut transaction, rows) = driver
        .links
        .upkeep
        .begin(vec![
            Call::new("SELECT pruned_to FROM record_kinds WHERE number = $1 FOR UPDATE", values![kind]),
            // What was committed up to here is seen by every statement after this one.
            Call::plain(head!()),
            Call::new(
                "SELECT revision, sequence, keys FROM records WHERE kind = $1 AND at < $2
                 ORDER BY at, revision, sequence LIMIT $3 FOR UPDATE",
                values![kind, before, room],
            ),
        ])
        .await?;
    let pruned_to: Option<i64> = rows[0].first().and_then(|row| row.get(0));
    let head: i64 = rows[1].first().map_or(0, |row| row.get(0));
    let mut going: BTreeMap<RecordId, Vec<Vec<u8>>> = BTreeMap::new();
    read_going(&rows[2], &mut going)?;
    let room = room - i64::try_from(going.len()).unwrap_or(i64::MAX);
    let mut settled = None;
    if let (Some(per_key), true, true) = (retention.per_key, grouped, room > 0) {
        let per_key = i64::try_from(per_key).unwrap_or(i64::MAX);
        let all = pruned_to.is_none_or(|pruned_to| pruned_to > per_key);
        let excess = format!("{}{EXCESS}", if all { GROUPS_ALL } else { GROUPS_NEW });
        let found = transaction.run(vec![Call::new(excess, values![kind, per_key, room])]).await?;
        let (revisions, sequences): (Vec<i64>, Vec<i32>) =
            found[0].iter().map(|row| (row.get::<_, i64>(0), row.get::<_, i32>(1))).unzip();
        if i64::try_from(revisions.len()).unwrap_or(i64::MAX) < room {
            settled = Some(if all { per_key } else { pruned_to.unwrap_or(per_key).max(per_key) });
        }
        let look = Call::new(
            "SELECT r.revision, r.sequence, r.keys
             FROM unnest($2::bigint[], $3::integer[]) AS given (revision, sequence)
             JOIN records r ON r.kind = $1 AND r.revision = given.revision AND r.sequence = given.sequence
             ORDER BY r.revision, r.sequence FOR UPDATE OF r",
            values![kind, revisions, sequences],
        );
        let found = transaction.run(vec![look]).await?;
        read_going(&found[0], &mut going)?;
    }
    let mut calls = Vec::new();
    if !going.is_empty() {
        let mut entries = Entries::default();
        let (mut revisions, mut sequences) = (Vec::new(), Vec::new());
        for (id, keys) in &going {
            entries.push_all(kind, grouped, *id, keys);
            revisions.push(id.revision.0.cast_signed());
            sequences.push(id.sequence.cast_signed());
        }
        calls.push(entries.delete_call());
        calls.push(Call::new(
            "DELETE FROM records r USING unnest($2::bigint[], $3::integer[]) AS gone (revision, sequence)
             WHERE r.kind = $1 AND r.revision = gone.revision AND r.sequence = gone.sequence",
            values![kind, revisions, sequences],
        ));
    }
    if let Some(settled) = settled {
        if Some(settled) != pruned_to {
            calls.push(Call::new("UPDATE record_kinds SET pruned_to = $2 WHERE number = $1", values![kind, settled]));
        }
        calls.push(Call::new("DELETE FROM record_news WHERE kind = $1 AND revision <= $2", values![kind, head]));
    }
    if !calls.is_empty() {
        transaction.commit(calls).await.map_err(entities::as_driver_error)?;
    }
    Ok(going.len())
}

fn read_going(rows: &[Row], going: &mut BTreeMap<RecordId, Vec<Vec<u8>>>) -> Result<(), DriverError> {
    for row in rows {
        going.insert(read_id(row), decode_keys(row.get(2)).ok_or_else(damaged_keys)?);
    }
    Ok(())
}
