//! Records, their indexes, and which of them are due to go.
//!
//! A commit only appends here, but for records that are open: their rows are read and locked first. What retention by
//! number needs to know is appended too (`record_news`: groups to look at), since a counter per group would be updated by
//! every commit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;

use super::super::encoding::{decode_keys, encode_keys};
use super::super::record_index::{
    DeclaredKind, DeclaredKinds, PAGE_BYTES_MAX, PAGE_RECORDS_MAX, end_of_prefix, group_of, key_count,
};
use super::super::{DriverError, RecordId, RecordRow, RecordWrite, StoredDocument};
use super::Shared;
use super::connection::{Call, Connection, Value, values};
use super::driver::PostgresDriver;
use super::log::{column_revision, head};
use super::session::write_lock_call;
use super::settlement::column_number;
use crate::record::{IndexDeclaration, RecordCursor, RecordPage, RecordQuery, Retention};
use crate::revision::{Revision, Timestamp};

/// The number under which a record's group is in `record_index`, beside its declared indexes from 0.
const GROUP: i32 = -1;

/// How many records a declaration looks at in one step.
const DECLARE_STEP: i64 = 5_000;

/// The declared kinds, with the numbers that tables name them by.
#[derive(Debug, Clone, Default)]
pub(super) struct Kinds {
    pub(super) declared: DeclaredKinds,
    pub(super) numbers: BTreeMap<Arc<str>, i32>,
}

pub(super) fn read_kinds_call() -> Call {
    Call::plain("SELECT number, kind, indexes, complete, grouped FROM record_kinds ORDER BY number")
}

impl Kinds {
    pub(super) fn read(rows: &[Row]) -> Result<Self, DriverError> {
        let mut kinds = Kinds::default();
        for row in rows {
            let kind: Arc<str> = row.get::<_, &str>(1).into();
            let indexes: Vec<Arc<str>> = serde_json::from_str(row.get(2))
                .map_err(|error| DriverError::Damaged(format!("the indexes of records of kind {kind}: {error}")))?;
            // How far indexes are built, and how many are complete, is read with each use: other servers change that.
            let (complete, frontiers) = (column_number(row, 3), BTreeMap::new());
            let declared = DeclaredKind { indexes, complete, grouped: row.get(4), frontiers };
            kinds.numbers.insert(kind.clone(), row.get(0));
            kinds.declared.0.insert(kind, declared);
        }
        Ok(kinds)
    }

    /// Whether these declarations would change nothing.
    pub(super) fn know(&self, declarations: &[IndexDeclaration]) -> Result<bool, DriverError> {
        let mut declared = self.declared.clone();
        for declaration in declarations {
            if declared.declare(declaration, true)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The number of the record's kind, and whether it is counted by group.
    fn of(&self, row: &RecordRow) -> Result<(i32, bool), DriverError> {
        let grouped = self.declared.check(row)?.grouped;
        let number = self.numbers.get(&row.kind).copied();
        Ok((number.ok_or_else(|| DriverError::Damaged(format!("kind {} has no number", row.kind)))?, grouped))
    }
}

/// Takes a build's declarations in. The caller holds the lock for migrations.
pub(super) async fn declare(
    shared: &Shared,
    connection: &Connection,
    declarations: &[IndexDeclaration],
    limit: Duration,
) -> Result<Kinds, DriverError> {
    let rows = connection.run(vec![read_kinds_call()], limit).await?;
    let mut kinds = Kinds::read(&rows[0])?;
    for declaration in declarations {
        let number = kinds.numbers.get(&declaration.kind).copied();
        let has_records = match number {
            None => false,
            Some(number) => {
                let sql = "SELECT EXISTS (SELECT FROM records WHERE kind = $1)";
                let rows = connection.run(vec![Call::new(sql, values![number])], limit).await?;
                rows[0].first().is_some_and(|row| row.get(0))
            }
        };
        let was_grouped = kinds.declared.0.get(&declaration.kind).is_some_and(|kind| kind.grouped);
        let Some(kind) = kinds.declared.declare(declaration, has_records)? else { continue };
        if let (Some(number), true) = (number, kind.grouped && !was_grouped && has_records) {
            enter_groups(connection, number, limit).await?;
        }
        // Nothing is committed meanwhile, so that the first record of a build with fewer indexes does not slip in between.
        let rows = match number {
            None => connection.run(vec![put_kind_call(&declaration.kind, &kind)], limit).await?,
            Some(number) => {
                connection.transaction(vec![write_lock_call(shared), grow_kind_call(number, &kind)], limit).await?
            }
        };
        if let Some(row) = rows.iter().flatten().last().filter(|_| number.is_none()) {
            kinds.numbers.insert(declaration.kind.clone(), row.get(0));
        }
    }
    Ok(kinds)
}

/// A kind that is there gets more indexes, or is counted by group from now on. An index has every record where there is none.
fn grow_kind_call(number: i32, kind: &DeclaredKind) -> Call {
    let indexes = serde_json::to_string(&kind.indexes).expect("a list of names has no key that is not text");
    let declared = i32::try_from(kind.indexes.len()).unwrap_or(i32::MAX);
    Call::new(
        "UPDATE record_kinds SET indexes = $2, grouped = $4, pruned_to = NULL,
             complete = CASE WHEN EXISTS (SELECT FROM records WHERE kind = $1) THEN complete ELSE $3 END
         WHERE number = $1",
        values![number, indexes, declared, kind.grouped],
    )
}

pub(super) fn put_kind_call(name: &str, kind: &DeclaredKind) -> Call {
    let indexes = serde_json::to_string(&kind.indexes).expect("a list of names has no key that is not text");
    Call::new(
        "INSERT INTO record_kinds (kind, indexes, complete, grouped) VALUES ($1, $2, $3, $4)
         ON CONFLICT (kind) DO UPDATE SET indexes = excluded.indexes, complete = excluded.complete,
             grouped = excluded.grouped, pruned_to = NULL
         RETURNING number",
        values![name.to_owned(), indexes, kind.complete.cast_signed(), kind.grouped],
    )
}

/// Enters the groups of a kind that was not counted by group so far, in steps.
async fn enter_groups(connection: &Connection, kind: i32, limit: Duration) -> Result<(), DriverError> {
    let mut after = (-1_i64, 0_i32);
    loop {
        let sql = "SELECT revision, sequence, keys FROM records
                   WHERE kind = $1 AND (revision, sequence) > ($2, $3) ORDER BY revision, sequence LIMIT $4";
        let call = Call::new(sql, values![kind, after.0, after.1, DECLARE_STEP]);
        let rows = connection.run(vec![call], limit).await?;
        let mut entries = Entries::default();
        for row in &rows[0] {
            after = (row.get(0), row.get(1));
            let keys = decode_keys(row.get(2)).ok_or_else(damaged_keys)?;
            if let Some(key) = keys.first() {
                entries.push(kind, GROUP, group_of(key), read_id(row));
            }
        }
        if rows[0].is_empty() {
            return Ok(());
        }
        connection.run(vec![entries.insert_call()], limit).await?;
    }
}

/// Rows of `record_index`, as columns.
#[derive(Default)]
pub(super) struct Entries {
    kinds: Vec<i32>,
    numbers: Vec<i32>,
    keys: Vec<Vec<u8>>,
    revisions: Vec<i64>,
    sequences: Vec<i32>,
}

impl Entries {
    pub(super) fn push(&mut self, kind: i32, number: i32, key: &[u8], id: RecordId) {
        self.kinds.push(kind);
        self.numbers.push(number);
        self.keys.push(key.to_vec());
        self.revisions.push(id.revision.0.cast_signed());
        self.sequences.push(id.sequence.cast_signed());
    }

    /// All entries of a record.
    fn push_all(&mut self, kind: i32, grouped: bool, id: RecordId, keys: &[Vec<u8>]) {
        for (number, key) in (0..).zip(keys) {
            self.push(kind, number, key, id);
        }
        if let (true, Some(key)) = (grouped, keys.first()) {
            self.push(kind, GROUP, group_of(key), id);
        }
    }

    /// The group of a record that had no entry so far.
    pub(super) fn push_group(&mut self, kind: i32, id: RecordId, key: &[u8]) {
        self.push(kind, GROUP, group_of(key), id);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    fn values(self) -> Vec<Value> {
        values![self.kinds, self.numbers, self.keys, self.revisions, self.sequences]
    }

    pub(super) fn insert_call(self) -> Call {
        Call::new(
            "INSERT INTO record_index (kind, number, key, revision, sequence)
             SELECT * FROM unnest($1::integer[], $2::integer[], $3::bytea[], $4::bigint[], $5::integer[])
             ON CONFLICT DO NOTHING",
            self.values(),
        )
    }

    fn delete_call(self) -> Call {
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
pub(super) struct RecordChanges {
    kinds: Arc<Kinds>,
    appended: Vec<RecordRow>,
    updated: Vec<RecordRow>,
    /// The revision of the commit.
    revision: Revision,
}

impl RecordChanges {
    pub(super) fn of(
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
    pub(super) fn note_keys_call(&self) -> Option<Call> {
        let mut least: BTreeMap<i32, (u32, RecordId)> = BTreeMap::new();
        for row in self.appended.iter().chain(&self.updated) {
            let number = self.kinds.numbers.get(&row.kind).copied().unwrap_or_default();
            let (keys, id) = least.entry(number).or_insert((u32::MAX, row.id));
            (*keys, *id) = (key_count(&row.keys).min(*keys), row.id.min(*id));
        }
        (!least.is_empty()).then(|| super::record_indexes::note_keys_call(least))
    }

    /// Whether open records have to be read first.
    pub(super) fn needs_look(&self) -> bool {
        !self.updated.is_empty()
    }

    /// Locks the records that are to be updated and reads what is replaced.
    pub(super) fn look_call(&self) -> Call {
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
    pub(super) fn calls(self, found: &[Row]) -> Result<Vec<Call>, DriverError> {
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

pub(super) fn damaged_keys() -> DriverError {
    DriverError::Damaged("the index entries of a record can't be read; restore the store from a backup".to_owned())
}

/// The columns `revision, sequence` at the beginning.
pub(super) fn read_id(row: &Row) -> RecordId {
    RecordId { revision: column_revision(row, 0), sequence: column_number(row, 1) }
}

/// The statement of a page. Both ends of the range are of one index, so a page costs what its rows cost, wherever it lies.
pub(super) fn page_call(kinds: &Kinds, query: &RecordQuery) -> Result<Call, DriverError> {
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
pub(super) async fn query(driver: &PostgresDriver, query: &RecordQuery) -> Result<RecordPage, DriverError> {
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
pub(super) async fn prune(
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
        transaction.commit(calls).await.map_err(super::entities::as_driver_error)?;
    }
    Ok(going.len())
}

fn read_going(rows: &[Row], going: &mut BTreeMap<RecordId, Vec<Vec<u8>>>) -> Result<(), DriverError> {
    for row in rows {
        going.insert(read_id(row), decode_keys(row.get(2)).ok_or_else(damaged_keys)?);
    }
    Ok(())
}
