//! Indexes that are added to kinds of records which have records already.
//!
//! How far they are built is in `record_index` under number -2: by a number of indexes (four bytes, the highest first), the
//! first record that may lack an entry in one of so many. What is read outside the write lock is only a proposal: a step
//! takes the lock, so that no commit is under way, and looks whether all is still as it was read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio_postgres::Row;

use super::super::encoding::{decode_keys, encode_keys};
use super::super::record_index::{DeclaredKind, PAGE_BYTES_MAX, group_of, key_count, step_of};
use super::super::{DriverError, IndexPage, IndexStep, IndexWork, RecordId, RecordRow, StoredDocument};
use super::connection::{Call, values};
use super::driver::PostgresDriver;
use super::link::OpenTransaction;
use super::log::column_revision;
use super::records::{Entries, damaged_keys, read_id};
use super::session::write_lock_call;
use super::settlement::column_number;
use crate::revision::Timestamp;

/// The number under which it is in `record_index` how far indexes are built.
const FRONTIER: i32 = -2;

/// Lowers how many indexes of the kinds are complete, and how far others are built, where a record that came has fewer entries.
/// By kind: with how few, and the first record that may have so few.
pub(super) fn note_keys_call(least: BTreeMap<i32, (u32, RecordId)>) -> Call {
    let (mut kinds, mut keys) = (Vec::new(), Vec::new());
    let (mut revisions, mut sequences) = (Vec::new(), Vec::new());
    for (kind, (count, id)) in least {
        kinds.push(kind);
        keys.push(count.cast_signed());
        revisions.push(id.revision.0.cast_signed());
        sequences.push(id.sequence.cast_signed());
    }
    Call::new(
        "WITH given AS (
             SELECT * FROM unnest($1::integer[], $2::integer[], $3::bigint[], $4::integer[])
                 AS given (kind, keys, revision, sequence)
         ), set_back AS (
             UPDATE record_index e SET revision = given.revision, sequence = given.sequence FROM given
             WHERE e.kind = given.kind AND e.number = -2 AND e.key > int4send(given.keys)
               AND (e.revision, e.sequence) > (given.revision, given.sequence)
         ), lowered AS (
             UPDATE record_kinds k SET complete = given.keys FROM given JOIN record_kinds old ON old.number = given.kind
             WHERE k.number = old.number AND k.complete > given.keys
             RETURNING k.number, old.complete, given.revision, given.sequence
         )
         INSERT INTO record_index (kind, number, key, revision, sequence)
         SELECT number, -2, int4send(complete), revision, sequence FROM lowered",
        values![kinds, keys, revisions, sequences],
    )
}

/// How many indexes of a kind are complete, and how far others are built, in one row for each of these, or one.
fn standing_call(kind: &Arc<str>, number: i32) -> Call {
    Call::new(
        "SELECT k.complete, e.key, e.revision, e.sequence
         FROM record_kinds k LEFT JOIN record_index e ON e.kind = k.number AND e.number = -2
         WHERE k.number = $1 AND k.kind = $2",
        values![number, kind.to_string()],
    )
}

/// None if the kind is not there under its number: the store was made anew.
fn read_standing(rows: &[Row]) -> Result<Option<DeclaredKind>, DriverError> {
    let mut frontiers = BTreeMap::new();
    for row in rows {
        let Some(key) = row.get::<_, Option<&[u8]>>(1) else { continue };
        let indexes = u32::from_be_bytes(key.try_into().map_err(|_| damaged_keys())?);
        let id = RecordId { revision: column_revision(row, 2), sequence: column_number(row, 3) };
        frontiers.insert(indexes, id);
    }
    let complete = rows.first().map(|row| column_number(row, 0));
    Ok(complete.map(|complete| DeclaredKind { indexes: Vec::new(), complete, grouped: false, frontiers }))
}

fn read_keys(row: &Row, column: usize) -> Result<Vec<Vec<u8>>, DriverError> {
    decode_keys(row.get(column)).ok_or_else(damaged_keys)
}

/// See [`super::super::Driver::records_to_index`].
pub(super) async fn records_to_index(
    driver: &PostgresDriver,
    name: &str,
    indexes: u32,
    rows_max: usize,
) -> Result<IndexWork, DriverError> {
    let kinds = driver.kinds();
    let Some((name, number)) = kinds.numbers.get_key_value(name) else { return Ok(IndexWork::Complete) };
    let found = driver.read(vec![standing_call(name, *number)]).await?;
    let Some(kind) = read_standing(&found[0])?.filter(|kind| kind.complete < indexes) else {
        return Ok(IndexWork::Complete);
    };
    let from = kind.frontier(indexes);
    let rows_max = rows_max.max(1);
    let limit = i64::try_from(rows_max).unwrap_or(i64::MAX - 1);
    let sizes = Call::new(
        "SELECT revision, sequence, keys, octet_length(document) FROM records
         WHERE kind = $1 AND (revision, sequence) >= ($2, $3) ORDER BY revision, sequence LIMIT $4::bigint + 1",
        values![*number, from.revision.0.cast_signed(), from.sequence.cast_signed(), limit],
    );
    let found = driver.read(vec![sizes]).await?;
    let mut page = IndexPage { kind: name.clone(), indexes, from, to: from, lacking: Vec::new(), last: true };
    let (mut revisions, mut sequences, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (place, row) in found[0].iter().enumerate() {
        let lacks = key_count(&read_keys(row, 2)?) < indexes;
        bytes += if lacks { usize::try_from(row.get::<_, i32>(3)).unwrap_or(0) } else { 0 };
        if place == rows_max || (bytes > PAGE_BYTES_MAX && !revisions.is_empty()) {
            page.last = false;
            break;
        }
        page.to = read_id(row).next();
        if lacks {
            revisions.push(row.get::<_, i64>(0));
            sequences.push(row.get::<_, i32>(1));
        }
    }
    if !revisions.is_empty() {
        let documents = Call::new(
            "SELECT r.revision, r.sequence, r.keys, r.closed, r.at, r.format, r.document
             FROM unnest($2::bigint[], $3::integer[]) AS given (revision, sequence)
             JOIN records r ON r.kind = $1 AND r.revision = given.revision AND r.sequence = given.sequence
             ORDER BY r.revision, r.sequence",
            values![*number, revisions, sequences],
        );
        for row in &driver.read(vec![documents]).await?[0] {
            page.lacking.push(RecordRow {
                kind: name.clone(),
                id: read_id(row),
                closed: row.get(3),
                at: Timestamp(row.get(4)),
                document: StoredDocument { format: column_number(row, 5), json: row.get::<_, &str>(6).into() },
                keys: read_keys(row, 2)?,
            });
        }
    }
    Ok(IndexWork::Page(page))
}

/// See [`super::super::Driver::index_records`].
pub(super) async fn index_records(
    driver: &PostgresDriver,
    page: &IndexPage,
    keys: &[Vec<Vec<u8>>],
) -> Result<IndexStep, DriverError> {
    let kinds = driver.kinds();
    let Some(number) = kinds.numbers.get(&page.kind).copied() else { return Ok(IndexStep::Overtaken) };
    let grouped = kinds.declared.0.get(&page.kind).is_some_and(|kind| kind.grouped);
    let (from, to) = (page.from, page.to);
    // Pruning locks the kind before its records, too.
    let calls = vec![
        write_lock_call(driver.shared()),
        Call::new("SELECT number FROM record_kinds WHERE number = $1 FOR UPDATE", values![number]),
        standing_call(&page.kind, number),
        Call::new(
            "SELECT revision, sequence, keys FROM records
             WHERE kind = $1 AND (revision, sequence) >= ($2, $3) AND (revision, sequence) < ($4, $5)",
            values![
                number,
                from.revision.0.cast_signed(),
                from.sequence.cast_signed(),
                to.revision.0.cast_signed(),
                to.sequence.cast_signed()
            ],
        ),
        documents_call(number, page),
    ];
    let (mut transaction, found) = driver.links.upkeep.begin(calls).await?;
    let Some(kind) = read_standing(&found[2])? else { return Ok(IndexStep::Overtaken) };
    if !kind.is_as_read(page) {
        return Ok(IndexStep::Overtaken);
    }
    let open: BTreeMap<RecordId, Arc<str>> =
        found[4].iter().map(|row| (read_id(row), row.get::<_, &str>(2).into())).collect();
    let mut there = Vec::with_capacity(found[3].len());
    for row in &found[3] {
        let id = read_id(row);
        there.push((id, read_keys(row, 2)?, open.get(&id).cloned()));
    }
    let Some(changed) = step_of(page, keys, there.into_iter()) else { return Ok(IndexStep::Overtaken) };
    let every_one = page.last && has_every_one(&mut transaction, number, page).await?;
    let mut calls = enter_calls(number, grouped, &changed);
    calls.extend(advance_calls(number, page, every_one));
    transaction.commit(calls).await.map_err(super::entities::as_driver_error)?;
    Ok(if every_one { IndexStep::Complete } else { IndexStep::Entered })
}

/// The content of those records of the page that were open when it was read.
fn documents_call(number: i32, page: &IndexPage) -> Call {
    let open = page.lacking.iter().filter(|row| !row.closed);
    let (revisions, sequences): (Vec<i64>, Vec<i32>) =
        open.map(|row| (row.id.revision.0.cast_signed(), row.id.sequence.cast_signed())).unzip();
    Call::new(
        "SELECT r.revision, r.sequence, r.document FROM unnest($2::bigint[], $3::integer[]) AS given (revision, sequence)
         JOIN records r ON r.kind = $1 AND r.revision = given.revision AND r.sequence = given.sequence",
        values![number, revisions, sequences],
    )
}

/// Whether every record that came since the page was read has all entries. Only few can have come.
async fn has_every_one(transaction: &mut OpenTransaction, number: i32, page: &IndexPage) -> Result<bool, DriverError> {
    let call = Call::new(
        "SELECT revision, sequence, keys FROM records WHERE kind = $1 AND (revision, sequence) >= ($2, $3)",
        values![number, page.to.revision.0.cast_signed(), page.to.sequence.cast_signed()],
    );
    let found = transaction.run(vec![call]).await?;
    for row in &found[0] {
        if key_count(&read_keys(row, 2)?) < page.indexes {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Stores the new keys of records, and what they have more of in the indexes.
fn enter_calls(number: i32, grouped: bool, changed: &[(RecordId, Vec<Vec<u8>>, Vec<Vec<u8>>)]) -> Vec<Call> {
    if changed.is_empty() {
        return Vec::new();
    }
    let mut entries = Entries::default();
    let (mut revisions, mut sequences, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let mut groups = BTreeSet::new();
    for (id, old, new) in changed {
        revisions.push(id.revision.0.cast_signed());
        sequences.push(id.sequence.cast_signed());
        keys.push(encode_keys(new));
        for (index, key) in (0..).zip(new).skip(old.len()) {
            entries.push(number, index, key, *id);
        }
        if let (true, true, Some(key)) = (grouped, old.is_empty(), new.first()) {
            entries.push_group(number, *id, key);
            groups.insert(group_of(key).to_vec());
        }
    }
    let mut calls = vec![
        Call::new(
            "UPDATE records r SET keys = given.keys
             FROM unnest($2::bigint[], $3::integer[], $4::bytea[]) AS given (revision, sequence, keys)
             WHERE r.kind = $1 AND r.revision = given.revision AND r.sequence = given.sequence",
            values![number, revisions, sequences, keys],
        ),
        entries.insert_call(),
    ];
    if !groups.is_empty() {
        // To be looked at by the next pruning, as if they had got a record.
        let groups: Vec<Vec<u8>> = groups.into_iter().collect();
        calls.push(Call::new(
            "INSERT INTO record_news (kind, key, revision) SELECT $1, key, 0 FROM unnest($2::bytea[]) AS given (key)
             ON CONFLICT DO NOTHING",
            values![number, groups],
        ));
    }
    calls
}

/// Stores how far the indexes are built.
fn advance_calls(number: i32, page: &IndexPage, every_one: bool) -> Vec<Call> {
    let key = page.indexes.to_be_bytes().to_vec();
    if every_one {
        return vec![
            Call::new(
                "DELETE FROM record_index WHERE kind = $1 AND number = $2 AND key <= $3",
                values![number, FRONTIER, key],
            ),
            Call::new(
                "UPDATE record_kinds SET complete = greatest(complete, $2) WHERE number = $1",
                values![number, page.indexes.cast_signed()],
            ),
        ];
    }
    vec![
        Call::new(
            "DELETE FROM record_index WHERE kind = $1 AND number = $2 AND key = $3",
            values![number, FRONTIER, key.clone()],
        ),
        Call::new(
            "INSERT INTO record_index (kind, number, key, revision, sequence) VALUES ($1, $2, $3, $4, $5)",
            values![number, FRONTIER, key, page.to.revision.0.cast_signed(), page.to.sequence.cast_signed()],
        ),
    ]
}
