//! The written-behind entities, and the digest by which a start knows that they are what was written.
//!
//! Every row has a digest of its content; their sum, their number and the revision that they stand for are sealed in
//! `meta`, in the same transaction. So a row that was changed, removed, added or put back, a table that was emptied, and a
//! revision that was raised or lowered by hand do not fit any more.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use xxhash_rust::xxh3::Xxh3;

use super::super::{DriverError, EntityRow, LogEntry, LogRow, StoredDocument, StoredTree, check_entities_step};
use super::tail::Effect;
use super::writer::Writer;
use crate::path::Path;
use crate::revision::Revision;

/// How many damaged paths an error names.
const NAMED_MAX: usize = 10;

/// What `entities` stand for, and what they add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct EntitiesMark {
    pub(super) at: Revision,
    pub(super) count: u64,
    pub(super) sum: u128,
}

impl EntitiesMark {
    pub(super) fn sum_bytes(&self) -> [u8; 16] {
        self.sum.to_be_bytes()
    }

    pub(super) fn seal(&self) -> [u8; 16] {
        let mut hasher = Xxh3::new();
        hasher.update(&self.at.0.to_be_bytes());
        hasher.update(&self.count.to_be_bytes());
        hasher.update(&self.sum_bytes());
        hasher.digest128().to_be_bytes()
    }

    fn add(&mut self, digest: u128) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(digest);
    }

    fn subtract(&mut self, digest: u128) {
        self.count = self.count.saturating_sub(1);
        self.sum = self.sum.wrapping_sub(digest);
    }

    pub(super) fn read(connection: &Connection) -> rusqlite::Result<(Self, [u8; 16])> {
        let sql = "SELECT entities_at, entities_count, entities_sum, entities_seal FROM meta";
        connection.prepare_cached(sql)?.query_row([], |row| {
            let at = Revision(row.get::<_, i64>(0)?.cast_unsigned());
            let count = row.get::<_, i64>(1)?.cast_unsigned();
            let sum = u128::from_be_bytes(row.get(2)?);
            Ok((EntitiesMark { at, count, sum }, row.get(3)?))
        })
    }

    pub(super) fn store(&self, connection: &Connection) -> rusqlite::Result<()> {
        let sql = "UPDATE meta SET entities_at = ?1, entities_count = ?2, entities_sum = ?3, entities_seal = ?4";
        let params = params![self.at.0.cast_signed(), self.count.cast_signed(), self.sum_bytes(), self.seal()];
        connection.prepare_cached(sql)?.execute(params)?;
        Ok(())
    }
}

fn digest_of(row: &EntityRow) -> u128 {
    let mut hasher = Xxh3::new();
    let path = row.path.as_str().as_bytes();
    hasher.update(&(path.len() as u64).to_be_bytes());
    hasher.update(path);
    hasher.update(&row.revision.0.to_be_bytes());
    hasher.update(&row.document.format.to_be_bytes());
    hasher.update(row.document.json.as_bytes());
    hasher.digest128()
}

impl Writer {
    /// Moves the table on; see [`super::super::Driver::write_entities`].
    pub(super) fn write_entities(
        &mut self,
        from: Revision,
        to: Revision,
        changed: &[EntityRow],
        removed: &[Path],
    ) -> Result<(), DriverError> {
        if self.shared.entities_damaged() {
            return Err(DriverError::Damaged(
                "the stored entities are not what was written; a server that is up writes all of them anew".to_owned(),
            ));
        }
        if self.entities.at >= to {
            return Ok(());
        }
        check_entities_step(self.entities.at, from, to, self.head)?;
        let mut mark = self.entities;
        {
            let mut old = self.connection.prepare_cached("SELECT digest FROM entities WHERE path = ?1")?;
            let mut delete = self.connection.prepare_cached("DELETE FROM entities WHERE path = ?1")?;
            for path in removed {
                let digest: Option<[u8; 16]> = old.query_row([path.as_str()], |row| row.get(0)).optional()?;
                if let Some(digest) = digest {
                    mark.subtract(u128::from_be_bytes(digest));
                    delete.execute([path.as_str()])?;
                }
            }
            let mut put = self.connection.prepare_cached(PUT)?;
            for row in changed {
                let path = row.path.as_str();
                let digest: Option<[u8; 16]> = old.query_row([path], |row| row.get(0)).optional()?;
                if let Some(digest) = digest {
                    mark.subtract(u128::from_be_bytes(digest));
                }
                mark.add(put_row(&mut put, row)?);
            }
        }
        mark.at = to;
        mark.store(&self.connection)?;
        self.entities = mark;
        Ok(())
    }

    /// What a server that is up gives, where the table is damaged or behind.
    pub(super) fn renew_entities(&mut self, tree: &StoredTree) -> Result<(), DriverError> {
        if self.entities.at >= tree.revision && !self.shared.entities_damaged() {
            return Ok(());
        }
        // The log has to complete it.
        if tree.revision < self.compacted || tree.revision > self.head {
            return Err(DriverError::Unavailable(format!(
                "a tree at revision {} does not fit a log from {} to {}",
                tree.revision, self.compacted, self.head
            )));
        }
        self.replace_entities(tree)?;
        self.stage(Effect::EntitiesReplaced);
        Ok(())
    }

    /// What a start has rebuilt from the log.
    pub(super) fn renew_rebuilt(&mut self, tree: &StoredTree) -> Result<(), DriverError> {
        self.replace_entities(tree)?;
        self.stage(Effect::EntitiesReplaced);
        Ok(())
    }

    /// Puts a whole tree in place of the table.
    pub(super) fn replace_entities(&mut self, tree: &StoredTree) -> Result<(), DriverError> {
        self.connection.execute("DELETE FROM entities", [])?;
        let mut mark = EntitiesMark { at: tree.revision, ..EntitiesMark::default() };
        {
            let mut put = self.connection.prepare_cached(PUT)?;
            for row in &tree.entities {
                mark.add(put_row(&mut put, row)?);
            }
        }
        mark.store(&self.connection)?;
        self.entities = mark;
        Ok(())
    }
}

const PUT: &str = "INSERT OR REPLACE INTO entities (path, kind, revision, format, document, digest)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

fn put_row(put: &mut rusqlite::Statement<'_>, row: &EntityRow) -> rusqlite::Result<u128> {
    let digest = digest_of(row);
    put.execute(params![
        row.path.as_str(),
        row.path.collection(),
        row.revision.0.cast_signed(),
        row.document.format,
        &*row.document.json,
        digest.to_be_bytes(),
    ])?;
    Ok(digest)
}

/// The table as it is, and what of it does not fit its digests.
pub(super) struct Loaded {
    pub(super) tree: StoredTree,
    /// Texts for people: paths whose row was changed, or that the table as a whole was.
    pub(super) damage: Vec<String>,
}

/// Reads the table within one read transaction.
pub(super) fn load(connection: &Connection) -> Result<Loaded, DriverError> {
    let (mark, seal) = EntitiesMark::read(connection)?;
    let mut found = EntitiesMark { at: mark.at, ..EntitiesMark::default() };
    let mut damage = Vec::new();
    let mut entities = Vec::with_capacity(usize::try_from(mark.count).unwrap_or(0).min(1 << 20));
    let mut statement =
        connection.prepare_cached("SELECT path, revision, format, document, digest FROM entities ORDER BY path")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let text = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        let Ok(path) = Path::parse(text) else {
            damage.push(text.to_owned());
            continue;
        };
        let json = row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?.into();
        let entity = EntityRow {
            revision: Revision(row.get::<_, i64>(1)?.cast_unsigned()),
            document: StoredDocument { format: row.get(2)?, json },
            path,
        };
        let digest = digest_of(&entity);
        if row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)? != digest.to_be_bytes() {
            damage.push(entity.path.to_string());
        }
        found.add(digest);
        entities.push(entity);
    }
    if damage.is_empty() && (found != mark || mark.seal() != seal) {
        damage.push(format!(
            "the table as a whole ({} rows at revision {}, where {} rows were written): rows were removed, added or put \
             back, or its revision was changed",
            found.count, mark.at, mark.count
        ));
    }
    let surplus = damage.len().saturating_sub(NAMED_MAX);
    if surplus > 0 {
        damage.truncate(NAMED_MAX);
        damage.push(format!("and {surplus} more"));
    }
    Ok(Loaded { tree: StoredTree { revision: mark.at, entities }, damage })
}

/// The tree that a log adds up to, from its very beginning.
pub(super) fn replay<'a>(rows: impl Iterator<Item = &'a LogRow>) -> StoredTree {
    let mut revision = Revision::ZERO;
    let mut entities: BTreeMap<Path, EntityRow> = BTreeMap::new();
    for row in rows {
        revision = row.revision;
        for entry in &row.entries {
            match entry {
                LogEntry::Change { path, after: Some(document), .. } => {
                    let entity = EntityRow { path: path.clone(), revision, document: document.clone() };
                    entities.insert(path.clone(), entity);
                }
                LogEntry::Change { path, after: None, .. } => {
                    entities.remove(path);
                }
                LogEntry::Existing { .. } | LogEntry::Action { .. } => {}
            }
        }
    }
    StoredTree { revision, entities: entities.into_values().collect() }
}
