//! Records and their indexes as tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::super::encoding::{decode_keys, encode_keys};
use super::super::record_index::{
    DeclaredKind, DeclaredKinds, PAGE_BYTES_MAX, PAGE_RECORDS_MAX, end_of_prefix, group_of, key_count,
};
use super::super::{DriverError, RecordId, RecordRow, RecordWrite, StoredDocument};
use super::tail::Effect;
use super::writer::Writer;
use crate::record::{IndexDeclaration, RecordCursor, RecordPage, RecordQuery, Retention};
use crate::revision::{Revision, Timestamp};

/// The number under which a record's group is in `record_index`, beside its declared indexes from 0.
const GROUP: i64 = -1;

/// The declared kinds, with the numbers that tables name them by.
#[derive(Debug, Clone, Default)]
pub(super) struct Kinds {
    pub(super) declared: DeclaredKinds,
    pub(super) numbers: BTreeMap<Arc<str>, i64>,
}

impl Kinds {
    pub(super) fn read(connection: &Connection) -> Result<Self, DriverError> {
        let mut kinds = Kinds::default();
        let mut statement =
            connection.prepare_cached("SELECT number, kind, indexes, complete, grouped FROM record_kinds")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let kind: Arc<str> = row.get(1)?;
            let indexes: Vec<Arc<str>> = serde_json::from_str(&row.get::<_, String>(2)?)
                .map_err(|error| DriverError::Damaged(format!("the indexes of records of kind {kind}: {error}")))?;
            let number = row.get(0)?;
            let frontiers = super::record_indexes::read_frontiers(connection, number)?;
            let declared = DeclaredKind { indexes, complete: row.get(3)?, grouped: row.get(4)?, frontiers };
            kinds.numbers.insert(kind.clone(), number);
            kinds.declared.0.insert(kind, declared);
        }
        Ok(kinds)
    }
}

/// A record's row in `records`.
struct Found {
    place: i64,
    closed: bool,
    keys: Vec<Vec<u8>>,
}

impl Writer {
    /// Takes a build's declarations in.
    pub(super) fn declare(&mut self, declarations: &[IndexDeclaration]) -> Result<(), DriverError> {
        let mut kinds = (*self.kinds).clone();
        let mut changed = false;
        for declaration in declarations {
            let number = kinds.numbers.get(&declaration.kind).copied();
            let has_records = match number {
                Some(number) => self
                    .connection
                    .prepare_cached("SELECT EXISTS (SELECT 1 FROM records WHERE kind = ?1)")?
                    .query_row([number], |row| row.get(0))?,
                None => false,
            };
            let was_grouped = kinds.declared.0.get(&declaration.kind).is_some_and(|kind| kind.grouped);
            let Some(kind) = kinds.declared.declare(declaration, has_records)? else { continue };
            changed = true;
            let indexes = serde_json::to_string(&kind.indexes).expect("a list of names has no key that is not text");
            let number = self
                .connection
                .prepare_cached(
                    "INSERT INTO record_kinds (kind, indexes, complete, grouped) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (kind) DO UPDATE
                     SET indexes = excluded.indexes, complete = excluded.complete, grouped = excluded.grouped
                     RETURNING number",
                )?
                .query_row(params![&*declaration.kind, indexes, kind.complete, kind.grouped], |row| row.get(0))?;
            kinds.numbers.insert(declaration.kind.clone(), number);
            if kind.grouped && !was_grouped && has_records {
                self.count_groups(number)?;
            }
        }
        if changed {
            self.kinds = Arc::new(kinds);
            self.stage(Effect::Kinds(self.kinds.clone()));
        }
        Ok(())
    }

    /// Enters the groups of a kind that was not counted by group so far.
    pub(super) fn count_groups(&mut self, kind: i64) -> Result<(), DriverError> {
        let mut statement = self.connection.prepare("SELECT revision, sequence, keys FROM records WHERE kind = ?1")?;
        let mut rows = statement.query([kind])?;
        while let Some(row) = rows.next()? {
            let keys =
                decode_keys(row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?).ok_or_else(damaged_keys)?;
            self.enter_group(kind, row.get(0)?, row.get(1)?, &keys)?;
        }
        Ok(())
    }

    pub(super) fn write_records(&mut self, writes: &[RecordWrite]) -> Result<(), DriverError> {
        for write in writes {
            let row = match write {
                RecordWrite::Append(row) => {
                    self.append_record(row)?;
                    row
                }
                RecordWrite::Update(row) => {
                    self.update_record(row)?;
                    row
                }
            };
            self.note_keys(&row.kind, key_count(&row.keys), row.id)?;
        }
        Ok(())
    }

    /// The number of the record's kind, and whether it is counted by group.
    fn kind_of(&self, row: &RecordRow) -> Result<(i64, bool), DriverError> {
        let grouped = self.kinds.declared.check(row)?.grouped;
        let number = self.kinds.numbers.get(&row.kind).copied();
        Ok((number.ok_or_else(|| DriverError::Damaged(format!("kind {} has no number", row.kind)))?, grouped))
    }

    pub(super) fn append_record(&mut self, row: &RecordRow) -> Result<(), DriverError> {
        let (kind, grouped) = self.kind_of(row)?;
        let (revision, sequence) = (row.id.revision.0.cast_signed(), row.id.sequence);
        self.connection
            .prepare_cached(
                "INSERT INTO records (kind, revision, sequence, closed, at, format, document, keys)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                kind,
                revision,
                sequence,
                row.closed,
                row.at.0,
                row.document.format,
                &*row.document.json,
                encode_keys(&row.keys)
            ])?;
        for (number, key) in row.keys.iter().enumerate() {
            self.enter_index(kind, number as i64, key, revision, sequence)?;
        }
        if grouped {
            self.enter_group(kind, revision, sequence, &row.keys)?;
        }
        Ok(())
    }

    pub(super) fn enter_index(
        &self,
        kind: i64,
        number: i64,
        key: &[u8],
        revision: i64,
        sequence: u32,
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT OR IGNORE INTO record_index (kind, number, key, revision, sequence) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![kind, number, key, revision, sequence])?;
        Ok(())
    }

    pub(super) fn enter_group(
        &self,
        kind: i64,
        revision: i64,
        sequence: u32,
        keys: &[Vec<u8>],
    ) -> rusqlite::Result<()> {
        let Some(key) = keys.first() else { return Ok(()) };
        let group = group_of(key);
        self.enter_index(kind, GROUP, group, revision, sequence)?;
        self.connection
            .prepare_cached(
                "INSERT INTO record_groups (kind, key, records) VALUES (?1, ?2, 1)
                 ON CONFLICT (kind, key) DO UPDATE SET records = records + 1",
            )?
            .execute(params![kind, group])?;
        Ok(())
    }

    fn find_record(&self, kind: i64, id: RecordId) -> Result<Option<Found>, DriverError> {
        let found: Option<(i64, bool, Vec<u8>)> = self
            .connection
            .prepare_cached("SELECT id, closed, keys FROM records WHERE kind = ?1 AND revision = ?2 AND sequence = ?3")?
            .query_row(params![kind, id.revision.0.cast_signed(), id.sequence], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        found
            .map(|(place, closed, keys)| {
                Ok(Found { place, closed, keys: decode_keys(&keys).ok_or_else(damaged_keys)? })
            })
            .transpose()
    }

    fn update_record(&mut self, row: &RecordRow) -> Result<(), DriverError> {
        let (kind, grouped) = self.kind_of(row)?;
        let (revision, sequence) = (row.id.revision.0.cast_signed(), row.id.sequence);
        let Some(Found { place, closed: false, keys: old }) = self.find_record(kind, row.id)? else {
            return Err(DriverError::RecordClosed(row.id));
        };
        if old != row.keys {
            self.leave_indexes(kind, row.id, &old, grouped)?;
            for (number, key) in row.keys.iter().enumerate() {
                self.enter_index(kind, number as i64, key, revision, sequence)?;
            }
            if grouped {
                self.enter_group(kind, revision, sequence, &row.keys)?;
            }
        }
        self.connection
            .prepare_cached("UPDATE records SET closed = ?2, format = ?3, document = ?4, keys = ?5 WHERE id = ?1")?
            .execute(params![place, row.closed, row.document.format, &*row.document.json, encode_keys(&row.keys)])?;
        Ok(())
    }

    fn leave_indexes(&self, kind: i64, id: RecordId, keys: &[Vec<u8>], grouped: bool) -> rusqlite::Result<()> {
        let mut delete = self.connection.prepare_cached(
            "DELETE FROM record_index WHERE kind = ?1 AND number = ?2 AND key = ?3 AND revision = ?4 AND sequence = ?5",
        )?;
        let (revision, sequence) = (id.revision.0.cast_signed(), id.sequence);
        for (number, key) in keys.iter().enumerate() {
            delete.execute(params![kind, number as i64, key, revision, sequence])?;
        }
        if let (true, Some(key)) = (grouped, keys.first()) {
            let group = group_of(key);
            delete.execute(params![kind, GROUP, group, revision, sequence])?;
            self.connection
                .prepare_cached("UPDATE record_groups SET records = records - 1 WHERE kind = ?1 AND key = ?2")?
                .execute(params![kind, group])?;
            self.connection
                .prepare_cached("DELETE FROM record_groups WHERE kind = ?1 AND key = ?2 AND records <= 0")?
                .execute(params![kind, group])?;
        }
        Ok(())
    }

    /// Removes what the retention lets go, at most `rows_max`.
    pub(super) fn prune_records(&mut self, retention: &Retention, rows_max: usize) -> Result<usize, DriverError> {
        let Some(kind) = self.kinds.numbers.get(&retention.kind).copied() else { return Ok(0) };
        let grouped = self.kinds.declared.0.get(&retention.kind).is_some_and(|kind| kind.grouped);
        let mut going: Vec<RecordId> = Vec::new();
        if let Some(before) = retention.before {
            let mut statement = self.connection.prepare_cached(
                "SELECT revision, sequence FROM records WHERE kind = ?1 AND at < ?2 ORDER BY at, id LIMIT ?3",
            )?;
            let rows = statement.query_map(params![kind, before.0, rows_max as i64], read_id)?;
            going.extend(rows.collect::<rusqlite::Result<Vec<_>>>()?);
        }
        let mut removed = self.remove_records(kind, &going, grouped)?;
        if let (Some(per_key), true) = (retention.per_key, grouped && removed < rows_max) {
            let groups: Vec<(Vec<u8>, i64)> = self
                .connection
                .prepare_cached("SELECT key, records FROM record_groups WHERE kind = ?1 AND records > ?2 LIMIT ?3")?
                .query_map(params![kind, per_key.cast_signed(), rows_max as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            for (group, count) in groups {
                let room = (rows_max - removed) as i64;
                if room == 0 {
                    break;
                }
                let excess = (count - per_key.cast_signed()).min(room);
                let going: Vec<RecordId> = self
                    .connection
                    .prepare_cached(
                        "SELECT revision, sequence FROM record_index WHERE kind = ?1 AND number = ?2 AND key = ?3
                         ORDER BY revision, sequence LIMIT ?4",
                    )?
                    .query_map(params![kind, GROUP, group, excess], read_id)?
                    .collect::<rusqlite::Result<_>>()?;
                removed += self.remove_records(kind, &going, grouped)?;
            }
        }
        Ok(removed)
    }

    fn remove_records(&mut self, kind: i64, ids: &[RecordId], grouped: bool) -> Result<usize, DriverError> {
        for id in ids {
            if let Some(Found { place, keys, .. }) = self.find_record(kind, *id)? {
                self.leave_indexes(kind, *id, &keys, grouped)?;
                self.connection.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([place])?;
            }
        }
        Ok(ids.len())
    }
}

pub(super) fn read_id(row: &rusqlite::Row<'_>) -> rusqlite::Result<RecordId> {
    Ok(RecordId { revision: Revision(row.get::<_, i64>(0)?.cast_unsigned()), sequence: row.get(1)? })
}

pub(super) fn damaged_keys() -> DriverError {
    DriverError::Damaged("the index entries of a record can't be read; restore the store from a backup".to_owned())
}

/// The statement of a page, and its values. Both ends of the range are of one index, so a page costs what its rows cost,
/// wherever it lies.
pub(super) fn page_statement(kinds: &Kinds, query: &RecordQuery) -> Result<(String, Vec<Value>), DriverError> {
    let number = kinds.declared.index_of(query)?;
    let kind = kinds.numbers.get(&query.kind).copied().unwrap_or_default();
    let prefix = query.prefix.clone().into_bytes();
    let mut conditions = String::from("e.kind = ? AND e.number = ?");
    let mut values = vec![Value::Integer(kind), Value::Integer(number as i64)];
    let mut bound = |condition: &str, more: Vec<Value>| {
        conditions.push_str(condition);
        values.extend(more);
    };
    let cursor_values = |cursor: &RecordCursor| {
        vec![
            Value::Blob(cursor.key.clone()),
            Value::Integer(cursor.id.revision.0.cast_signed()),
            Value::Integer(i64::from(cursor.id.sequence)),
        ]
    };
    let end = end_of_prefix(&prefix);
    // A cursor from outside the prefix leaves the range's own end where it is.
    match &query.cursor {
        Some(cursor) if !query.backwards && cursor.key >= prefix => {
            bound(" AND (e.key, e.revision, e.sequence) > (?, ?, ?)", cursor_values(cursor));
        }
        _ => bound(" AND e.key >= ?", vec![Value::Blob(prefix)]),
    }
    match (&query.cursor, end) {
        (Some(cursor), end) if query.backwards && end.as_ref().is_none_or(|end| cursor.key < *end) => {
            bound(" AND (e.key, e.revision, e.sequence) < (?, ?, ?)", cursor_values(cursor));
        }
        (_, Some(end)) => bound(" AND e.key < ?", vec![Value::Blob(end)]),
        (_, None) => {}
    }
    let direction = if query.backwards { "DESC" } else { "ASC" };
    let limit = query.limit.clamp(1, PAGE_RECORDS_MAX) + 1;
    values.push(Value::Integer(limit as i64));
    let sql = format!(
        "SELECT e.key, e.revision, e.sequence, r.closed, r.at, r.format, r.document, r.keys
         FROM record_index e CROSS JOIN records r
           ON r.kind = e.kind AND r.revision = e.revision AND r.sequence = e.sequence
         WHERE {conditions}
         ORDER BY e.key {direction}, e.revision {direction}, e.sequence {direction} LIMIT ?"
    );
    Ok((sql, values))
}

/// Reads a page within one read transaction.
pub(super) fn query_records(
    connection: &Connection,
    kinds: &Kinds,
    query: &RecordQuery,
) -> Result<RecordPage, DriverError> {
    let (sql, values) = page_statement(kinds, query)?;
    let limit = query.limit.clamp(1, PAGE_RECORDS_MAX);
    // As of the same transaction as the page, not as this process has it in memory.
    let complete = connection
        .prepare_cached("SELECT complete FROM record_kinds WHERE kind = ?1")?
        .query_row([&*query.kind], |row| row.get(0))
        .optional()?;
    kinds.declared.0[&query.kind].check_complete(
        &query.kind,
        kinds.declared.index_of(query)?,
        complete.unwrap_or(0),
    )?;
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut page = RecordPage { rows: Vec::new(), next: None };
    let mut last: Option<RecordCursor> = None;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let json: Arc<str> = row.get_ref(6)?.as_str().map_err(rusqlite::Error::from)?.into();
        bytes += json.len();
        if page.rows.len() == limit || (bytes > PAGE_BYTES_MAX && !page.rows.is_empty()) {
            page.next = last;
            break;
        }
        let id = RecordId { revision: Revision(row.get::<_, i64>(1)?.cast_unsigned()), sequence: row.get(2)? };
        last = Some(RecordCursor { key: row.get(0)?, id });
        page.rows.push(RecordRow {
            kind: query.kind.clone(),
            id,
            closed: row.get(3)?,
            at: Timestamp(row.get(4)?),
            document: StoredDocument { format: row.get(5)?, json },
            keys: decode_keys(row.get_ref(7)?.as_blob().map_err(rusqlite::Error::from)?).ok_or_else(damaged_keys)?,
        });
    }
    Ok(page)
}
