//! The whole store at once: read for a start, a backup or the linter, and replaced by a restore.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use super::super::encoding::{decode_keys, decode_requested_change, decode_row, outcome_of};
use super::super::leases::{LeaseChanges, Leases};
use super::super::record_index::{DeclaredKind, DeclaredKinds};
use super::super::{
    DriverError, Exception, Fence, HookNumber, IndexEntry, LogRow, Receipt, RecordId, RecordRow, RequestId, ServerId,
    ServerRow, SlotId, SlotRow, SlotToken, StoredDocument, StoredState,
};
use super::entities;
use super::records::Kinds;
use super::schema::FORMAT;
use super::tail::{Effect, Known, Tail};
use super::writer::Writer;
use crate::path::Path;
use crate::revision::{Epoch, Revision, SubmissionId, Timestamp};

fn damaged(what: &str) -> DriverError {
    DriverError::Damaged(format!("{what} can't be read; restore the store from a backup"))
}

fn column_uuid(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    Ok(Uuid::from_bytes(row.get(column)?))
}

fn column_revision(row: &Row<'_>, column: usize) -> rusqlite::Result<Revision> {
    Ok(Revision(row.get::<_, i64>(column)?.cast_unsigned()))
}

/// The head: the newest row of the log.
pub(super) fn read_head(connection: &Connection) -> rusqlite::Result<Revision> {
    connection
        .prepare_cached("SELECT coalesce(max(revision), 0) FROM changes")?
        .query_row([], |row| column_revision(row, 0))
}

pub(super) fn read_epoch(connection: &Connection) -> rusqlite::Result<Epoch> {
    connection.prepare_cached("SELECT epoch FROM meta")?.query_row([], |row| Ok(Epoch(column_uuid(row, 0)?)))
}

/// What servers are told without the store being asked.
pub(super) fn read_known(connection: &Connection, tail_bounds: (usize, usize)) -> Result<Known, DriverError> {
    let sql = "SELECT epoch, installation, token_counter, compacted FROM meta";
    let (epoch, installation, token_counter, compacted) = connection.prepare_cached(sql)?.query_row([], |row| {
        let token_counter = SlotToken(row.get::<_, i64>(2)?.cast_unsigned());
        Ok((Epoch(column_uuid(row, 0)?), column_uuid(row, 1)?, token_counter, column_revision(row, 3)?))
    })?;
    let head = read_head(connection)?;
    Ok(Known {
        epoch,
        installation,
        format: FORMAT,
        head,
        compacted,
        tail: Tail::new(head, tail_bounds.0, tail_bounds.1),
        leases: Leases::new(read_servers(connection)?, read_slots(connection)?, token_counter),
        kinds: Arc::new(Kinds::read(connection)?),
    })
}

fn read_servers(connection: &Connection) -> Result<Vec<ServerRow>, DriverError> {
    let sql = "SELECT id, name, lease_until, draining, applied, hooks, load FROM servers";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut servers = Vec::new();
    while let Some(row) = rows.next()? {
        servers.push(ServerRow {
            id: ServerId(column_uuid(row, 0)?),
            name: row.get(1)?,
            lease_until: Timestamp(row.get(2)?),
            draining: row.get(3)?,
            applied: column_revision(row, 4)?,
            hooks: serde_json::from_str(&row.get::<_, String>(5)?).map_err(|_| damaged("a server's row"))?,
            load: serde_json::from_str(&row.get::<_, String>(6)?).map_err(|_| damaged("a server's row"))?,
        });
    }
    Ok(servers)
}

fn read_slots(connection: &Connection) -> Result<Vec<SlotRow>, DriverError> {
    let mut statement = connection.prepare_cached("SELECT hook, slot, owner, token, watermark FROM slots")?;
    let rows = statement.query_map([], |row| {
        let owner: Option<[u8; 16]> = row.get(2)?;
        Ok(SlotRow {
            slot: SlotId { hook: HookNumber(row.get(0)?), slot: row.get(1)? },
            owner: owner.map(|owner| ServerId(Uuid::from_bytes(owner))),
            token: SlotToken(row.get::<_, i64>(3)?.cast_unsigned()),
            watermark: column_revision(row, 4)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The columns `revision, at, submission, body` as a log row.
pub(super) fn read_log_row(row: &Row<'_>) -> Result<Arc<LogRow>, DriverError> {
    let submission = SubmissionId(column_uuid(row, 2)?);
    let body = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
    decode_row(column_revision(row, 0)?, Timestamp(row.get(1)?), submission, body).map(Arc::new)
}

/// Rows after a revision, in order.
pub(super) fn read_log(
    connection: &Connection,
    after: Revision,
    rows_max: usize,
) -> Result<Vec<Arc<LogRow>>, DriverError> {
    let sql = "SELECT revision, at, submission, body FROM changes WHERE revision > ?1 ORDER BY revision LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![after.0.cast_signed(), limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read_log_row(row)?);
    }
    Ok(found)
}

fn read_request(row: &Row<'_>) -> rusqlite::Result<RequestId> {
    Ok(RequestId { hook: HookNumber(row.get(0)?), revision: column_revision(row, 1)?, sequence: row.get(2)? })
}

/// Gives all receipts, one by one.
pub(super) fn each_receipt<E: From<DriverError>>(
    connection: &Connection,
    mut take: impl FnMut(Receipt) -> Result<(), E>,
) -> Result<(), E> {
    let sql = "SELECT hook, revision, sequence, slot_hook, slot, token, outcome FROM receipts";
    let mut statement = connection.prepare_cached(sql).map_err(DriverError::from)?;
    let mut rows = statement.query([]).map_err(DriverError::from)?;
    while let Some(row) = rows.next().map_err(DriverError::from)? {
        take(read_receipt(row)?)?;
    }
    Ok(())
}

fn read_receipt(row: &Row<'_>) -> Result<Receipt, DriverError> {
    let outcome = outcome_of(row.get(6)?).ok_or_else(|| damaged("a receipt"))?;
    let slot = SlotId { hook: HookNumber(row.get(3)?), slot: row.get(4)? };
    let fence = Fence { slot, token: SlotToken(row.get::<_, i64>(5)?.cast_unsigned()) };
    Ok(Receipt { request: read_request(row)?, fence, outcome })
}

fn read_receipts(connection: &Connection) -> Result<Vec<Receipt>, DriverError> {
    let mut receipts = Vec::new();
    each_receipt::<DriverError>(connection, |receipt| {
        receipts.push(receipt);
        Ok(())
    })?;
    Ok(receipts)
}

/// Which exceptions are asked for.
pub(super) enum ExceptionsOf {
    Everything,
    Hook(HookNumber),
    Slot(SlotId),
}

/// Reads exceptions in order of hook and request.
pub(super) fn read_exceptions(connection: &Connection, of: ExceptionsOf) -> Result<Vec<Exception>, DriverError> {
    let columns = "SELECT hook, revision, sequence, slot_hook, slot, state, attempts, deaths, error, path, change";
    let (condition, first, second) = match of {
        ExceptionsOf::Everything => ("?1 = ?2", 0, 0),
        ExceptionsOf::Hook(hook) => ("hook = ?1 AND ?2 = 0", hook.0, 0),
        ExceptionsOf::Slot(slot) => ("slot_hook = ?1 AND slot = ?2", slot.hook.0, slot.slot),
    };
    let sql = format!("{columns} FROM exceptions WHERE {condition} ORDER BY hook, revision, sequence");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([first, second])?;
    let mut exceptions = Vec::new();
    while let Some(row) = rows.next()? {
        let path = Path::parse(row.get_ref(9)?.as_str().map_err(rusqlite::Error::from)?);
        let body = row.get_ref(10)?.as_blob().map_err(rusqlite::Error::from)?;
        let change = path.ok().and_then(|path| decode_requested_change(path, body));
        exceptions.push(Exception {
            request: read_request(row)?,
            slot: SlotId { hook: HookNumber(row.get(3)?), slot: row.get(4)? },
            state: serde_json::from_str(&row.get::<_, String>(5)?).map_err(|_| damaged("an exception"))?,
            attempts: row.get(6)?,
            deaths: row.get(7)?,
            error: row.get(8)?,
            change: change.ok_or_else(|| damaged("an exception"))?,
        });
    }
    Ok(exceptions)
}

/// Gives all records, one by one.
pub(super) fn each_record<E: From<DriverError>>(
    connection: &Connection,
    kinds: &Kinds,
    mut take: impl FnMut(RecordRow) -> Result<(), E>,
) -> Result<(), E> {
    let names: BTreeMap<i64, &Arc<str>> = kinds.numbers.iter().map(|(kind, number)| (*number, kind)).collect();
    let sql = "SELECT kind, revision, sequence, closed, at, format, document, keys FROM records ORDER BY id";
    let mut statement = connection.prepare(sql).map_err(DriverError::from)?;
    let mut rows = statement.query([]).map_err(DriverError::from)?;
    while let Some(row) = rows.next().map_err(DriverError::from)? {
        take(read_record(row, &names)?)?;
    }
    Ok(())
}

fn read_record(row: &Row<'_>, names: &BTreeMap<i64, &Arc<str>>) -> Result<RecordRow, DriverError> {
    let kind = *names.get(&row.get(0)?).ok_or_else(|| damaged("a record of an unknown kind"))?;
    let keys = decode_keys(row.get_ref(7)?.as_blob().map_err(rusqlite::Error::from)?);
    Ok(RecordRow {
        kind: kind.clone(),
        id: RecordId { revision: column_revision(row, 1)?, sequence: row.get(2)? },
        closed: row.get(3)?,
        at: Timestamp(row.get(4)?),
        document: StoredDocument { format: row.get(5)?, json: row.get(6)? },
        keys: keys.ok_or_else(|| damaged("a record"))?,
    })
}

fn read_records(connection: &Connection, kinds: &Kinds) -> Result<Vec<RecordRow>, DriverError> {
    let mut records = Vec::new();
    each_record::<DriverError>(connection, kinds, |record| {
        records.push(record);
        Ok(())
    })?;
    Ok(records)
}

fn read_index_entries(connection: &Connection, kinds: &Kinds) -> Result<Vec<IndexEntry>, DriverError> {
    let names: BTreeMap<i64, &Arc<str>> = kinds.numbers.iter().map(|(kind, number)| (*number, kind)).collect();
    let sql = "SELECT kind, number, key, revision, sequence FROM record_index WHERE number >= 0";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let kind = *names.get(&row.get(0)?).ok_or_else(|| damaged("an index entry of an unknown kind"))?;
        let number = usize::try_from(row.get::<_, i64>(1)?).map_err(|_| damaged("an index entry"))?;
        let index = kinds.declared.0.get(kind).and_then(|declared| declared.indexes.get(number));
        entries.push(IndexEntry {
            kind: kind.clone(),
            index: index.ok_or_else(|| damaged("an index entry"))?.clone(),
            key: row.get(2)?,
            id: RecordId { revision: column_revision(row, 3)?, sequence: row.get(4)? },
        });
    }
    Ok(entries)
}

/// Everything that is stored, within one read transaction.
pub(super) fn read_stored(connection: &Connection) -> Result<StoredState, DriverError> {
    let known = read_known(connection, (0, 0))?;
    let (servers, slots) = known.leases.rows();
    Ok(StoredState {
        meta: known.meta(),
        token_counter: known.leases.token_counter(),
        log: read_log(connection, Revision::ZERO, usize::MAX)?,
        tree: entities::load(connection)?.tree,
        receipts: read_receipts(connection)?,
        exceptions: read_exceptions(connection, ExceptionsOf::Everything)?,
        slots,
        servers,
        records: read_records(connection, &known.kinds)?,
        index_entries: read_index_entries(connection, &known.kinds)?,
        record_kinds: known.kinds.declared.rows(),
    })
}

impl Writer {
    /// Puts `state` in place of all that is stored. Kinds of records that only this store knows stay declared.
    pub(super) fn replace(&mut self, state: &StoredState, kinds: Option<&DeclaredKinds>) -> Result<(), DriverError> {
        let tables =
            ["changes", "receipts", "exceptions", "servers", "slots", "records", "record_index", "record_groups"];
        for table in tables {
            self.connection.execute(&format!("DELETE FROM {table}"), [])?;
        }
        self.connection.execute(
            "UPDATE meta SET epoch = ?1, installation = ?2, token_counter = ?3, compacted = ?4",
            params![
                state.meta.epoch.0.as_bytes(),
                state.meta.installation.as_bytes(),
                state.token_counter.0.cast_signed(),
                state.meta.compacted.0.cast_signed()
            ],
        )?;
        for row in &state.log {
            self.insert_log_row(row, &super::super::encoding::encode_row(row))?;
        }
        self.replace_entities(&state.tree)?;
        for receipt in &state.receipts {
            self.insert_receipt(receipt)?;
        }
        for exception in &state.exceptions {
            self.put_exception(exception)?;
        }
        self.store_leases(&LeaseChanges {
            servers: state.servers.clone(),
            slots: state.slots.clone(),
            ..LeaseChanges::default()
        })?;
        if let Some(kinds) = kinds {
            for (kind, declared) in &kinds.0 {
                let here = self.kinds.declared.0.get(kind);
                let adopted = here.map_or_else(|| declared.clone(), |here| here.restored(declared));
                self.adopt_kind(kind, &adopted)?;
            }
        }
        self.kinds = Arc::new(Kinds::read(&self.connection)?);
        for row in &state.records {
            self.append_record(row)?;
        }
        self.replace_index_entries(&state.index_entries)?;
        self.follow_replacement()
    }

    fn adopt_kind(&mut self, kind: &str, declared: &DeclaredKind) -> Result<(), DriverError> {
        let indexes = serde_json::to_string(&declared.indexes).expect("a list of names has no key that is not text");
        self.connection.execute(
            "INSERT INTO record_kinds (kind, indexes, complete, grouped) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (kind) DO UPDATE
             SET indexes = excluded.indexes, complete = excluded.complete, grouped = excluded.grouped",
            params![kind, indexes, declared.complete, declared.grouped],
        )?;
        Ok(())
    }

    /// The entries as given, which in a damaged state need not be those of the records.
    fn replace_index_entries(&mut self, entries: &[IndexEntry]) -> Result<(), DriverError> {
        self.connection.execute("DELETE FROM record_index WHERE number >= 0", [])?;
        let mut insert = self.connection.prepare_cached(
            "INSERT OR IGNORE INTO record_index (kind, number, key, revision, sequence) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for entry in entries {
            let number = self.kinds.numbers.get(&entry.kind);
            let declared = self.kinds.declared.0.get(&entry.kind);
            let place = declared.and_then(|kind| kind.indexes.iter().position(|name| *name == entry.index));
            if let (Some(number), Some(place)) = (number, place) {
                let (revision, sequence) = (entry.id.revision.0.cast_signed(), entry.id.sequence);
                insert.execute(params![number, place as i64, entry.key, revision, sequence])?;
            }
        }
        Ok(())
    }

    /// Reads everything anew, and shows it to all servers once it is durable.
    pub(super) fn follow_replacement(&mut self) -> Result<(), DriverError> {
        self.reload()?;
        let known = read_known(&self.connection, self.shared.options.tail_bounds())?;
        self.stage(Effect::Replaced(Box::new(known)));
        Ok(())
    }
}
