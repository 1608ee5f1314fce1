//! Records, their indexes, and which of them are due to go.
//!
//! A commit only appends here, but for records that are open: their rows are read and locked first. What retention by
//! number needs to know is appended too (`record_news`: groups to look at), since a counter per group would be updated by
//! every commit.

mod changes;
mod pages;
mod retention;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;

use super::super::encoding::decode_keys;
use super::super::record_index::{DeclaredKind, DeclaredKinds, group_of};
use super::super::{DriverError, RecordId, RecordRow};
use super::Shared;
use super::connection::{Call, Connection, values};
use super::log::column_revision;
use super::session::write_lock_call;
use super::settlement::column_number;
use crate::record::IndexDeclaration;

pub(super) use self::changes::{Entries, RecordChanges};
#[cfg(test)]
pub(super) use self::pages::page_call;
pub(super) use self::pages::query;
pub(super) use self::retention::prune;

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

pub(super) fn damaged_keys() -> DriverError {
    DriverError::Damaged("the index entries of a record can't be read; restore the store from a backup".to_owned())
}

/// The columns `revision, sequence` at the beginning.
pub(super) fn read_id(row: &Row) -> RecordId {
    RecordId { revision: column_revision(row, 0), sequence: column_number(row, 1) }
}
