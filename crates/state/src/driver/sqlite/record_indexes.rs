//! Indexes that are added to kinds of records which have records already.
//!
//! How far they are built is in `record_index` under number -2: by a number of indexes (four bytes, the highest first), the
//! first record that may lack an entry in one of so many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::super::encoding::{decode_keys, encode_keys};
use super::super::record_index::{DeclaredKind, PAGE_BYTES_MAX, key_count, step_of};
use super::super::{DriverError, IndexPage, IndexStep, IndexWork, RecordId, RecordRow, StoredDocument};
use super::records::{Kinds, damaged_keys, read_id};
use super::tail::Effect;
use super::writer::Writer;
use crate::revision::Timestamp;

/// The number under which it is in `record_index` how far indexes are built, beside the declared ones from 0.
const FRONTIER: i64 = -2;

/// How far the indexes of a kind are built.
pub(super) fn read_frontiers(connection: &Connection, kind: i64) -> Result<BTreeMap<u32, RecordId>, DriverError> {
    let sql = "SELECT revision, sequence, key FROM record_index WHERE kind = ?1 AND number = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([kind, FRONTIER])?;
    let mut frontiers = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let indexes = row.get_ref(2)?.as_blob().ok().and_then(|key| key.try_into().ok()).ok_or_else(damaged_keys)?;
        frontiers.insert(u32::from_be_bytes(indexes), read_id(row)?);
    }
    Ok(frontiers)
}

/// See [`super::super::Driver::records_to_index`].
pub(super) fn records_to_index(
    connection: &Connection,
    name: &Arc<str>,
    indexes: u32,
    rows_max: usize,
) -> Result<IndexWork, DriverError> {
    let kinds = Kinds::read(connection)?;
    let (Some(kind), Some(number)) = (kinds.declared.0.get(name), kinds.numbers.get(name)) else {
        return Ok(IndexWork::Complete);
    };
    if kind.complete >= indexes {
        return Ok(IndexWork::Complete);
    }
    let from = kind.frontier(indexes);
    let mut page = IndexPage { kind: name.clone(), indexes, from, to: from, lacking: Vec::new(), last: true };
    let mut statement = connection.prepare_cached(
        "SELECT revision, sequence, keys, closed, at, format, document FROM records
         WHERE kind = ?1 AND (revision, sequence) >= (?2, ?3) ORDER BY revision, sequence",
    )?;
    let mut rows = statement.query(params![number, from.revision.0.cast_signed(), from.sequence])?;
    let (mut looked_at, mut bytes) = (0, 0);
    while let Some(row) = rows.next()? {
        let (id, keys) = (read_id(row)?, read_keys(row)?);
        let lacking = if key_count(&keys) < indexes {
            let json: Arc<str> = row.get_ref(6)?.as_str().map_err(rusqlite::Error::from)?.into();
            bytes += json.len();
            let document = StoredDocument { format: row.get(5)?, json };
            Some(RecordRow { kind: name.clone(), id, closed: row.get(3)?, at: Timestamp(row.get(4)?), document, keys })
        } else {
            None
        };
        if looked_at == rows_max.max(1) || (bytes > PAGE_BYTES_MAX && !page.lacking.is_empty()) {
            page.last = false;
            break;
        }
        looked_at += 1;
        page.to = id.next();
        page.lacking.extend(lacking);
    }
    Ok(IndexWork::Page(page))
}

/// The columns `revision, sequence, keys` at the beginning.
fn read_keys(row: &rusqlite::Row<'_>) -> Result<Vec<Vec<u8>>, DriverError> {
    decode_keys(row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?).ok_or_else(damaged_keys)
}

impl Writer {
    /// Takes note of a record that has fewer entries than there are indexes.
    pub(super) fn note_keys(&mut self, kind: &Arc<str>, keys: u32, id: RecordId) -> Result<(), DriverError> {
        if self.kinds.declared.0.get(kind).is_some_and(|kind| kind.is_lowered_by(keys, id)) {
            self.change_kind(kind, |kind| kind.lower(keys, id))?;
        }
        Ok(())
    }

    /// Stores what has changed of a kind, and shows it once it is durable.
    fn change_kind(&mut self, name: &Arc<str>, change: impl FnOnce(&mut DeclaredKind)) -> Result<(), DriverError> {
        let kinds = Arc::make_mut(&mut self.kinds);
        let (Some(kind), Some(number)) = (kinds.declared.0.get_mut(name), kinds.numbers.get(name)) else {
            return Ok(());
        };
        change(kind);
        self.connection
            .prepare_cached("UPDATE record_kinds SET complete = ?2 WHERE number = ?1")?
            .execute(params![number, kind.complete])?;
        self.connection
            .prepare_cached("DELETE FROM record_index WHERE kind = ?1 AND number = ?2")?
            .execute([*number, FRONTIER])?;
        for (indexes, frontier) in &kind.frontiers {
            self.connection
                .prepare_cached(
                    "INSERT INTO record_index (kind, number, key, revision, sequence) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![
                    number,
                    FRONTIER,
                    indexes.to_be_bytes(),
                    frontier.revision.0.cast_signed(),
                    frontier.sequence
                ])?;
        }
        self.stage(Effect::Kinds(self.kinds.clone()));
        Ok(())
    }

    /// See [`super::super::Driver::index_records`].
    pub(super) fn index_records(&mut self, page: &IndexPage, keys: &[Vec<Vec<u8>>]) -> Result<IndexStep, DriverError> {
        let kinds = self.kinds.clone();
        let (Some(kind), Some(number)) = (kinds.declared.0.get(&page.kind), kinds.numbers.get(&page.kind)) else {
            return Ok(IndexStep::Overtaken);
        };
        if !kind.is_as_read(page) {
            return Ok(IndexStep::Overtaken);
        }
        let Some(changed) = step_of(page, keys, self.records_between(*number, page)?.into_iter()) else {
            return Ok(IndexStep::Overtaken);
        };
        for (id, old, new) in changed {
            let (revision, sequence) = (id.revision.0.cast_signed(), id.sequence);
            self.connection
                .prepare_cached("UPDATE records SET keys = ?4 WHERE kind = ?1 AND revision = ?2 AND sequence = ?3")?
                .execute(params![number, revision, sequence, encode_keys(&new)])?;
            for (index, key) in (0..).zip(&new).skip(old.len()) {
                self.enter_index(*number, index, key, revision, sequence)?;
            }
            if kind.grouped && old.is_empty() {
                self.enter_group(*number, revision, sequence, &new)?;
            }
        }
        let every_one = page.last && self.has_every_one(*number, page)?;
        self.change_kind(&page.kind, |kind| kind.advance(page.indexes, page.to, every_one))?;
        Ok(if every_one { IndexStep::Complete } else { IndexStep::Entered })
    }

    /// The records of the page's range as they are now, with the content of those that were open when it was read.
    fn records_between(
        &self,
        kind: i64,
        page: &IndexPage,
    ) -> Result<Vec<(RecordId, Vec<Vec<u8>>, Option<Arc<str>>)>, DriverError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT revision, sequence, keys FROM records
             WHERE kind = ?1 AND (revision, sequence) >= (?2, ?3) AND (revision, sequence) < (?4, ?5)",
        )?;
        let range = params![
            kind,
            page.from.revision.0.cast_signed(),
            page.from.sequence,
            page.to.revision.0.cast_signed(),
            page.to.sequence
        ];
        let mut rows = statement.query(range)?;
        let mut there = Vec::new();
        let open: BTreeSet<RecordId> = page.lacking.iter().filter(|row| !row.closed).map(|row| row.id).collect();
        while let Some(row) = rows.next()? {
            let id = read_id(row)?;
            let json = if open.contains(&id) { self.document_of(kind, id)? } else { None };
            there.push((id, read_keys(row)?, json));
        }
        Ok(there)
    }

    fn document_of(&self, kind: i64, id: RecordId) -> Result<Option<Arc<str>>, DriverError> {
        let document = self
            .connection
            .prepare_cached("SELECT document FROM records WHERE kind = ?1 AND revision = ?2 AND sequence = ?3")?
            .query_row(params![kind, id.revision.0.cast_signed(), id.sequence], |row| row.get::<_, Arc<str>>(0))
            .optional()?;
        Ok(document)
    }

    /// Whether every record that came since the page was read has all entries.
    fn has_every_one(&self, kind: i64, page: &IndexPage) -> Result<bool, DriverError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT revision, sequence, keys FROM records WHERE kind = ?1 AND (revision, sequence) >= (?2, ?3)",
        )?;
        let mut rows = statement.query(params![kind, page.to.revision.0.cast_signed(), page.to.sequence])?;
        while let Some(row) = rows.next()? {
            if key_count(&read_keys(row)?) < page.indexes {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
