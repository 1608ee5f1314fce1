//! Reading records, a page at a time.

use std::sync::Arc;

use super::super::super::encoding::decode_keys;
use super::super::super::record_index::{PAGE_BYTES_MAX, PAGE_RECORDS_MAX, end_of_prefix};
use super::super::super::{DriverError, RecordId, RecordRow, StoredDocument};
use super::super::connection::{Call, Value, values};
use super::super::driver::PostgresDriver;
use super::super::log::column_revision;
use super::super::settlement::column_number;
use super::{Kinds, damaged_keys};
use crate::record::{RecordCursor, RecordPage, RecordQuery};
use crate::revision::Timestamp;

/// The statement of a page. Both ends of the range are of one index, so a page costs what its rows cost, wherever it lies.
pub(in crate::driver::postgres) fn page_call(kinds: &Kinds, query: &RecordQuery) -> Result<Call, DriverError> {
    let number = i32::try_from(kinds.declared.index_of(query)?).unwrap_or(i32::MAX);
    let kind = kinds.numbers.get(&query.kind).copied().unwrap_or_default();
    let prefix = query.prefix.clone().into_bytes();
    let mut conditions = String::from("e.kind = $1 AND e.number = $2");
    let mut values: Vec<Value> = values![kind, number];
    let place = |conditions: &mut String, text: &str, cursor: &RecordCursor, values: &mut Vec<Value>| {
        let first = values.len() + 1;
        conditions.push_str(&format!(
            " AND (e.key, e.revision, e.sequence) {text} (${first}, ${}, ${})",
            first + 1,
            first + 2
        ));
        values.extend(values![
            cursor.key.clone(),
            cursor.id.revision.0.cast_signed(),
            cursor.id.sequence.cast_signed()
        ]);
    };
    let end = end_of_prefix(&prefix);
    // A cursor from outside the prefix leaves the range's own end where it is.
    match &query.cursor {
        Some(cursor) if !query.backwards && cursor.key >= prefix => place(&mut conditions, ">", cursor, &mut values),
        _ => {
            values.push(Box::new(prefix));
            conditions.push_str(&format!(" AND e.key >= ${}", values.len()));
        }
    }
    match (&query.cursor, end) {
        (Some(cursor), end) if query.backwards && end.as_ref().is_none_or(|end| cursor.key < *end) => {
            place(&mut conditions, "<", cursor, &mut values);
        }
        (_, Some(end)) => {
            values.push(Box::new(end));
            conditions.push_str(&format!(" AND e.key < ${}", values.len()));
        }
        (_, None) => {}
    }
    let direction = if query.backwards { "DESC" } else { "ASC" };
    let limit = query.limit.clamp(1, PAGE_RECORDS_MAX) + 1;
    values.push(Box::new(i64::try_from(limit).unwrap_or(i64::MAX)));
    let limit = values.len();
    // The running sum ends a page before it is too large; one record always fits, and the next one says that there is more.
    // One statement, so that whether the index has every record is of the same moment as the page.
    let sql = format!(
        "SELECT page.key, page.revision, page.sequence, page.closed, page.at, page.format, page.document, page.keys,
                k.complete
         FROM (SELECT complete FROM record_kinds WHERE number = $1) k
         LEFT JOIN (
             SELECT e.key, e.revision, e.sequence, r.closed, r.at, r.format, r.document, r.keys,
                    sum(octet_length(r.document)) OVER (
                        ORDER BY e.key {direction}, e.revision {direction}, e.sequence {direction}
                        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before
             FROM (SELECT e.key, e.revision, e.sequence, e.kind FROM record_index e WHERE {conditions}
                   ORDER BY e.key {direction}, e.revision {direction}, e.sequence {direction} LIMIT ${limit}) e
             JOIN records r ON r.kind = e.kind AND r.revision = e.revision AND r.sequence = e.sequence
         ) page ON page.before IS NULL OR page.before <= {PAGE_BYTES_MAX}
         ORDER BY page.key {direction}, page.revision {direction}, page.sequence {direction}"
    );
    Ok(Call::new(sql, values))
}

/// Reads a page.
pub(in crate::driver::postgres) async fn query(
    driver: &PostgresDriver,
    query: &RecordQuery,
) -> Result<RecordPage, DriverError> {
    let kinds = driver.kinds();
    let call = page_call(&kinds, query)?;
    let found = driver.read(vec![call]).await?;
    let complete = found[0].first().map_or(0, |row| column_number(row, 8));
    kinds.declared.0[&query.kind].check_complete(&query.kind, kinds.declared.index_of(query)?, complete)?;
    let limit = query.limit.clamp(1, PAGE_RECORDS_MAX);
    let mut page = RecordPage { rows: Vec::new(), next: None };
    let mut last: Option<RecordCursor> = None;
    let mut bytes = 0;
    // One row without a key says only that the kind is there.
    for row in found[0].iter().filter(|row| row.get::<_, Option<&[u8]>>(0).is_some()) {
        let json: Arc<str> = row.get::<_, &str>(6).into();
        bytes += json.len();
        if page.rows.len() == limit || (bytes > PAGE_BYTES_MAX && !page.rows.is_empty()) {
            page.next = last;
            break;
        }
        let id = RecordId { revision: column_revision(row, 1), sequence: column_number(row, 2) };
        last = Some(RecordCursor { key: row.get(0), id });
        page.rows.push(RecordRow {
            kind: query.kind.clone(),
            id,
            closed: row.get(3),
            at: Timestamp(row.get(4)),
            document: StoredDocument { format: column_number(row, 5), json },
            keys: decode_keys(row.get(7)).ok_or_else(damaged_keys)?,
        });
    }
    Ok(page)
}
