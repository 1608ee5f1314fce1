//! The written-behind entities as a table; see [`super::super::entities_mark`].

use rusqlite::{Connection, OptionalExtension, params};

use super::super::entities_mark::{EntitiesMark, Inspection, Loaded, digest_of};
use super::super::{DriverError, EntityRow, StoredDocument, StoredTree, check_entities_step};
use super::tail::Effect;
use super::writer::Writer;
use crate::path::Path;
use crate::revision::Revision;

/// What the table stands for, and its seal.
pub(super) fn read_mark(connection: &Connection) -> rusqlite::Result<(EntitiesMark, [u8; 16])> {
    let sql = "SELECT entities_at, entities_count, entities_sum, entities_seal FROM meta";
    connection.prepare_cached(sql)?.query_row([], |row| {
        let at = Revision(row.get::<_, i64>(0)?.cast_unsigned());
        let count = row.get::<_, i64>(1)?.cast_unsigned();
        let sum = u128::from_be_bytes(row.get(2)?);
        Ok((EntitiesMark { at, count, sum }, row.get(3)?))
    })
}

fn store_mark(mark: &EntitiesMark, connection: &Connection) -> rusqlite::Result<()> {
    let sql = "UPDATE meta SET entities_at = ?1, entities_count = ?2, entities_sum = ?3, entities_seal = ?4";
    let params = params![mark.at.0.cast_signed(), mark.count.cast_signed(), mark.sum_bytes(), mark.seal()];
    connection.prepare_cached(sql)?.execute(params)?;
    Ok(())
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
        store_mark(&mark, &self.connection)?;
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
        store_mark(&mark, &self.connection)?;
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

/// Reads the table within one read transaction.
pub(super) fn load(connection: &Connection) -> Result<Loaded, DriverError> {
    let (mark, seal) = read_mark(connection)?;
    let mut inspection = Inspection::new(mark, seal.to_vec());
    let mut statement =
        connection.prepare_cached("SELECT path, revision, format, document, digest FROM entities ORDER BY path")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let path = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
        let digest = row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?;
        let revision = Revision(row.get::<_, i64>(1)?.cast_unsigned());
        let json = row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?.into();
        let document = StoredDocument { format: row.get(2)?, json };
        inspection.take(path, digest, |path| EntityRow { path, revision, document });
    }
    Ok(inspection.finish())
}
