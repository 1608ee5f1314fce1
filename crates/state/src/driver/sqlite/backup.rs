//! The whole store into a backup, row by row, within one read transaction: others write on meanwhile, and the write-ahead
//! log keeps what they write apart.

use std::path::Path;

use rusqlite::Connection;

use super::super::entities_mark::Inspection;
use super::super::{DriverError, EntityRow, StoredDocument};
use super::entities::read_mark;
use super::records::Kinds;
use super::schema;
use super::stored::{ExceptionsOf, each_receipt, each_record, read_exceptions, read_known, read_log};
use crate::backup::{BackupError, BackupHeader, BackupWriter, Item, OnEntity, Written};
use crate::revision::{Revision, Timestamp};

/// How many rows of the log are in memory at once.
const STEP: usize = 1_000;

/// Writes the backup of the file at `database`, which a server may have open. Blocks.
pub(super) fn write(
    database: &Path,
    to: &Path,
    taken_at: Timestamp,
    on_entity: OnEntity,
) -> Result<Written, BackupError> {
    let connection = schema::open_beside(database)?;
    // From the first read on, all is as of one moment.
    connection.execute_batch("BEGIN").map_err(DriverError::from)?;
    let written = write_all(&connection, to, taken_at, on_entity);
    let ended = connection.execute_batch("COMMIT").map_err(DriverError::from);
    let written = written.map_err(|error| match error {
        BackupError::Driver(error) => BackupError::Driver(schema::of_file(database, error)),
        error => error,
    })?;
    ended?;
    Ok(written)
}

fn write_all(
    connection: &Connection,
    to: &Path,
    taken_at: Timestamp,
    on_entity: OnEntity,
) -> Result<Written, BackupError> {
    let known = read_known(connection, (0, 0))?;
    let (mark, seal) = read_mark(connection).map_err(DriverError::from)?;
    let header = BackupHeader {
        format: crate::backup::FORMAT,
        installation: known.installation,
        epoch: known.epoch,
        revision: known.head,
        taken_at,
        driver: "sqlite".to_owned(),
        tables: known.format,
        compacted: known.compacted,
        entities_at: mark.at,
        token_counter: known.leases.token_counter(),
    };
    let mut writer = BackupWriter::new(to, header, on_entity)?;
    for (name, kind) in &known.kinds.declared.0 {
        writer.put(&Item::Kind(name.clone(), kind.clone()))?;
    }
    put_entities(connection, Inspection::passing(mark, seal.to_vec()), &mut writer)?;
    put_log(connection, known.compacted, known.head, &mut writer)?;
    each_receipt(connection, |receipt| writer.put(&Item::Receipt(receipt)))?;
    for exception in read_exceptions(connection, ExceptionsOf::Everything)? {
        writer.put(&Item::Exception(Box::new(exception)))?;
    }
    for slot in known.leases.rows().1 {
        writer.put(&Item::Slot(slot))?;
    }
    put_records(connection, &known.kinds, &mut writer)?;
    writer.finish()
}

fn put_entities(
    connection: &Connection,
    mut inspection: Inspection,
    writer: &mut BackupWriter,
) -> Result<(), BackupError> {
    let damage = {
        let sql = "SELECT path, revision, format, document, digest FROM entities ORDER BY path";
        let mut statement = connection.prepare(sql).map_err(DriverError::from)?;
        let mut rows = statement.query([]).map_err(DriverError::from)?;
        while let Some(row) = rows.next().map_err(DriverError::from)? {
            if let Some(entity) = read_entity(row, &mut inspection)? {
                writer.put(&Item::Entity(entity))?;
            }
        }
        inspection.finish().damage
    };
    super::super::check_entities_sound(&damage).map_err(BackupError::from)
}

fn read_entity(row: &rusqlite::Row<'_>, inspection: &mut Inspection) -> Result<Option<EntityRow>, DriverError> {
    let path = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
    let digest = row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?;
    let revision = Revision(row.get::<_, i64>(1)?.cast_unsigned());
    let json = row.get_ref(3)?.as_str().map_err(rusqlite::Error::from)?.into();
    let document = StoredDocument { format: row.get(2)?, json };
    Ok(inspection.pass(path, digest, |path| EntityRow { path, revision, document }))
}

fn put_log(
    connection: &Connection,
    compacted: Revision,
    head: Revision,
    writer: &mut BackupWriter,
) -> Result<(), BackupError> {
    let mut after = compacted;
    while after < head {
        let rows = read_log(connection, after, STEP)?;
        super::super::check_no_gap(after, &rows, STEP, head)?;
        for row in rows {
            after = row.revision;
            writer.put(&Item::Log(row))?;
        }
    }
    Ok(())
}

fn put_records(connection: &Connection, kinds: &Kinds, writer: &mut BackupWriter) -> Result<(), BackupError> {
    each_record(connection, kinds, |record| writer.put(&Item::Record(record)))
}
