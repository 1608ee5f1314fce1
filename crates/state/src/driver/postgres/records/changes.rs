//! What a commit does to records and to the entries of their indexes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::Row;

use super::super::super::encoding::{decode_keys, encode_keys};
use super::super::super::record_index::{group_of, key_count};
use super::super::super::{DriverError, RecordId, RecordRow, RecordWrite};
use super::super::connection::{Call, Value, values};
use super::super::record_indexes;
use super::{GROUP, Kinds, damaged_keys, read_id};
use crate::revision::Revision;

/// Rows of `record_index`, as columns.
#[derive(Default)]
pub(in crate::driver::postgres) struct Entries {
    kinds: Vec<i32>,
    numbers: Vec<i32>,
    keys: Vec<Vec<u8>>,
    revisions: Vec<i64>,
    sequences: Vec<i32>,
}

impl Entries {
    pub(in crate::driver::postgres) fn push(&mut self, kind: i32, number: i32, key: &[u8], id: RecordId) {
        self.kinds.push(kind);
        self.numbers.push(number);
        self.keys.push(key.to_vec());
        self.revisions.push(id.revision.0.cast_signed());
        self.sequences.push(id.sequence.cast_signed());
    }

    /// All entries of a record.
    pub(super) fn push_all(&mut self, kind: i32, grouped: bool, id: RecordId, keys: &[Vec<u8>]) {
        for (number, key) in (0..).zip(keys) {
            self.push(kind, number, key, id);
        }
        if let (true, Some(key)) = (grouped, keys.first()) {
            self.push(kind, GROUP, group_of(key), id);
        }
    }

    /// The group of a record that had no entry so far.
    pub(in crate::driver::postgres) fn push_group(&mut self, kind: i32, id: RecordId, key: &[u8]) {
        self.push(kind, GROUP, group_of(key), id);
    }

    pub(in crate::driver::postgres) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    fn values(self) -> Vec<Value> {
        values![self.kinds, self.numbers, self.keys, self.revisions, self.sequences]
    }

    pub(in crate::driver::postgres) fn insert_call(self) -> Call {
        Call::new(
            "INSERT INTO record_index (kind, number, key, revision, sequence)
             SELECT * FROM unnest($1::integer[], $2::integer[], $3::bytea[], $4::bigint[], $5::integer[])
             ON CONFLICT DO NOTHING",
            self.values(),
        )
    }

    pub(super) fn delete_call(self) -> Call {
        Call::new(
            "DELETE FROM record_index e
             USING unnest($1::integer[], $2::integer[], $3::bytea[], $4::bigint[], $5::integer[])
                 AS gone (kind, number, key, revision, sequence)
             WHERE e.kind = gone.kind AND e.number = gone.number AND e.key = gone.key
               AND e.revision = gone.revision AND e.sequence = gone.sequence",
            self.values(),
        )
    }
}

/// What a commit does to records: of each, only how it ends.
pub(in crate::driver::postgres) struct RecordChanges {
    kinds: Arc<Kinds>,
    appended: Vec<RecordRow>,
    updated: Vec<RecordRow>,
    /// The revision of the commit.
    revision: Revision,
}

impl RecordChanges {
    pub(in crate::driver::postgres) fn of(
        kinds: Arc<Kinds>,
        writes: &[RecordWrite],
        revision: Revision,
    ) -> Result<RecordChanges, DriverError> {
        let mut changes = RecordChanges { kinds, appended: Vec::new(), updated: Vec::new(), revision };
        let mut appended: BTreeMap<(Arc<str>, RecordId), usize> = BTreeMap::new();
        let mut updated: BTreeMap<(Arc<str>, RecordId), usize> = BTreeMap::new();
        for write in writes {
            match write {
                RecordWrite::Append(row) => {
                    changes.kinds.of(row)?;
                    appended.insert((row.kind.clone(), row.id), changes.appended.len());
                    changes.appended.push(row.clone());
                }
                RecordWrite::Update(row) => {
                    changes.kinds.of(row)?;
                    let key = (row.kind.clone(), row.id);
                    let earlier = match (appended.get(&key), updated.get(&key)) {
                        (Some(place), _) => Some(&mut changes.appended[*place]),
                        (None, Some(place)) => Some(&mut changes.updated[*place]),
                        (None, None) => None,
                    };
                    match earlier {
                        Some(earlier) if earlier.closed => return Err(DriverError::RecordClosed(row.id)),
                        Some(earlier) => *earlier = RecordRow { at: earlier.at, ..row.clone() },
                        None => {
                            updated.insert(key, changes.updated.len());
                            changes.updated.push(row.clone());
                        }
                    }
                }
            }
        }
        Ok(changes)
    }

    /// Takes note of records that have fewer entries than there are indexes, which another build may have added since this
    /// server was opened. Nothing is changed where there are none. Runs before [`RecordChanges::look_call`], since whoever
    /// prunes or builds locks the kind before its records.
    pub(in crate::driver::postgres) fn note_keys_call(&self) -> Option<Call> {
        let mut least: BTreeMap<i32, (u32, RecordId)> = BTreeMap::new();
        for row in self.appended.iter().chain(&self.updated) {
            let number = self.kinds.numbers.get(&row.kind).copied().unwrap_or_default();
            let (keys, id) = least.entry(number).or_insert((u32::MAX, row.id));
            (*keys, *id) = (key_count(&row.keys).min(*keys), row.id.min(*id));
        }
        (!least.is_empty()).then(|| record_indexes::note_keys_call(least))
    }

    /// Whether open records have to be read first.
    pub(in crate::driver::postgres) fn needs_look(&self) -> bool {
        !self.updated.is_empty()
    }

    /// Locks the records that are to be updated and reads what is replaced.
    pub(in crate::driver::postgres) fn look_call(&self) -> Call {
        let (mut kinds, mut revisions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for row in &self.updated {
            kinds.push(self.kinds.numbers.get(&row.kind).copied().unwrap_or_default());
            revisions.push(row.id.revision.0.cast_signed());
            sequences.push(row.id.sequence.cast_signed());
        }
        Call::new(
            "SELECT r.revision, r.sequence, r.keys, r.kind, r.closed
             FROM unnest($1::integer[], $2::bigint[], $3::integer[]) AS given (kind, revision, sequence)
             JOIN records r ON r.kind = given.kind AND r.revision = given.revision AND r.sequence = given.sequence
             ORDER BY r.kind, r.revision, r.sequence FOR UPDATE OF r",
            values![kinds, revisions, sequences],
        )
    }

    /// The statements, given what [`RecordChanges::look_call`] found.
    pub(in crate::driver::postgres) fn calls(self, found: &[Row]) -> Result<Vec<Call>, DriverError> {
        let mut open: BTreeMap<(i32, RecordId), Vec<Vec<u8>>> = BTreeMap::new();
        for row in found {
            if !row.get::<_, bool>(4) {
                let keys = decode_keys(row.get(2)).ok_or_else(damaged_keys)?;
                open.insert((row.get(3), read_id(row)), keys);
            }
        }
        let mut calls = Vec::new();
        let (mut entered, mut left, mut news) = (Entries::default(), Entries::default(), BTreeMap::new());
        let note = |news: &mut BTreeMap<(i32, Vec<u8>), ()>, kind, grouped, keys: &[Vec<u8>]| {
            if let (true, Some(key)) = (grouped, keys.first()) {
                news.insert((kind, group_of(key).to_vec()), ());
            }
        };
        for row in &self.updated {
            let (kind, grouped) = self.kinds.of(row)?;
            let old = open.get(&(kind, row.id)).ok_or(DriverError::RecordClosed(row.id))?;
            if *old != row.keys {
                left.push_all(kind, grouped, row.id, old);
                entered.push_all(kind, grouped, row.id, &row.keys);
                note(&mut news, kind, grouped, &row.keys);
            }
        }
        for row in &self.appended {
            let (kind, grouped) = self.kinds.of(row)?;
            entered.push_all(kind, grouped, row.id, &row.keys);
            note(&mut news, kind, grouped, &row.keys);
        }
        if !self.updated.is_empty() {
            calls.push(Call::new(
                "UPDATE records r SET closed = given.closed, format = given.format, document = given.document,
                     keys = given.keys
                 FROM unnest($1::integer[], $2::bigint[], $3::integer[], $4::boolean[], $5::bigint[], $6::integer[],
                             $7::text[], $8::bytea[])
                     AS given (kind, revision, sequence, closed, at, format, document, keys)
                 WHERE r.kind = given.kind AND r.revision = given.revision AND r.sequence = given.sequence",
                self.record_values(&self.updated)?,
            ));
        }
        if !self.appended.is_empty() {
            calls.push(Call::new(
                "INSERT INTO records (kind, revision, sequence, closed, at, format, document, keys)
                 SELECT * FROM unnest($1::integer[], $2::bigint[], $3::integer[], $4::boolean[], $5::bigint[],
                                      $6::integer[], $7::text[], $8::bytea[])",
                self.record_values(&self.appended)?,
            ));
        }
        if !left.is_empty() {
            calls.push(left.delete_call());
        }
        if !entered.is_empty() {
            calls.push(entered.insert_call());
        }
        if !news.is_empty() {
            let (kinds, keys): (Vec<i32>, Vec<Vec<u8>>) = news.into_keys().unzip();
            calls.push(Call::new(
                "INSERT INTO record_news (kind, key, revision)
                 SELECT kind, key, $3 FROM unnest($1::integer[], $2::bytea[]) AS given (kind, key)
                 ON CONFLICT DO NOTHING",
                values![kinds, keys, self.revision.0.cast_signed()],
            ));
        }
        Ok(calls)
    }

    fn record_values(&self, rows: &[RecordRow]) -> Result<Vec<Value>, DriverError> {
        let (mut kinds, mut revisions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        let (mut closed, mut times, mut formats) = (Vec::new(), Vec::new(), Vec::new());
        let (mut documents, mut keys) = (Vec::new(), Vec::new());
        for row in rows {
            kinds.push(self.kinds.of(row)?.0);
            revisions.push(row.id.revision.0.cast_signed());
            sequences.push(row.id.sequence.cast_signed());
            closed.push(row.closed);
            times.push(row.at.0);
            formats.push(row.document.format.cast_signed());
            documents.push(row.document.json.to_string());
            keys.push(encode_keys(&row.keys));
        }
        Ok(values![kinds, revisions, sequences, closed, times, formats, documents, keys])
    }
}
