//! The whole store at once: read for a backup or the linter, and replaced by a restore.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::Row;
use uuid::Uuid;

use super::super::encoding::decode_keys;
use super::super::entities_mark::EntitiesMark;
use super::super::record_index::DeclaredKinds;
use super::super::{
    DriverError, Exception, IndexEntry, Receipt, RecordId, RecordRow, RecordWrite, SlotToken, StoredDocument,
    StoredState, restored_tokens_above, without_repeats,
};
use super::connection::{Call, Connection, Role, values};
use super::driver::{PostgresDriver, exceptions_sql, read_exceptions};
use super::entities::{mark_call, put_call, read_log, read_table};
use super::errors::is_deadlock;
use super::log::{column_revision, head};
use super::log_blocks::append_call;
use super::receipts::{RECEIPT_BLOCKS, RECEIPT_ROWS, read_blocks, read_receipt, store_call};
use super::records::{Entries, Kinds, RecordChanges, damaged_keys, put_kind_call, read_kinds_call};
use super::session::write_lock_call;
use super::settlement::{column_number, exceptions_call};
use super::slots::{cluster_calls, new_epoch_calls, read_cluster};
use super::{PostgresStore, Shared, schema};
use crate::backup::{Backup, BackupError, OnEntity, Written};
use crate::revision::{Revision, Timestamp};

/// How many rows one statement writes.
const STEP: usize = 5_000;

pub(super) fn damaged(what: &str) -> DriverError {
    DriverError::Damaged(format!("{what} can't be read; restore the store from a backup"))
}

/// See [`super::super::Driver::stored`].
pub(super) async fn read(driver: &PostgresDriver) -> Result<StoredState, DriverError> {
    read_all(driver.shared()).await
}

async fn read_all(shared: &Arc<Shared>) -> Result<StoredState, DriverError> {
    let connection = Connection::open(shared, Role::Open).await?;
    let limit = shared.options.answer_limit * 6;
    let mut calls = vec![
        Call::plain("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"),
        schema::meta(),
        Call::plain("SELECT counter FROM tokens"),
        read_kinds_call(),
        Call::plain(RECEIPT_ROWS),
        Call::plain(RECEIPT_BLOCKS),
        Call::plain(exceptions_sql("true")),
        Call::plain(
            "SELECT revision, sequence, kind, closed, at, format, document, keys FROM records
                     ORDER BY revision, sequence, kind",
        ),
        Call::plain("SELECT kind, number, key, revision, sequence FROM record_index WHERE number >= 0"),
    ];
    calls.extend(cluster_calls());
    let rows = connection.run(calls, limit).await?;
    let log = read_log(&connection, limit).await?;
    let (loaded, _) = read_table(&connection, limit).await?;
    connection.run(vec![Call::plain("COMMIT")], limit).await?;
    let meta = schema::read_meta(&rows[1])?;
    let token_counter = rows[2].first().ok_or_else(|| damaged("the token counter"))?.get::<_, i64>(0);
    let kinds = Kinds::read(&rows[3])?;
    let (servers, slots) = read_cluster(&rows[9], &rows[10])?;
    let mut receipts = rows[4].iter().map(read_receipt).collect::<Result<Vec<_>, _>>()?;
    receipts.extend(read_blocks(&rows[5], meta.compacted)?);
    receipts.sort_by_key(|receipt| (receipt.request.hook, receipt.request));
    Ok(StoredState {
        meta,
        token_counter: SlotToken(token_counter.cast_unsigned()),
        log,
        tree: loaded.tree,
        receipts: without_repeats(receipts),
        exceptions: read_exceptions(&rows[6])?,
        slots,
        servers,
        records: read_records(&rows[7], &kinds)?,
        index_entries: read_index_entries(&rows[8], &kinds)?,
        record_kinds: kinds.declared.rows(),
    })
}

pub(super) fn names(kinds: &Kinds) -> BTreeMap<i32, &Arc<str>> {
    kinds.numbers.iter().map(|(kind, number)| (*number, kind)).collect()
}

fn read_records(rows: &[Row], kinds: &Kinds) -> Result<Vec<RecordRow>, DriverError> {
    let names = names(kinds);
    rows.iter().map(|row| read_record(row, &names)).collect()
}

pub(super) fn read_record(row: &Row, names: &BTreeMap<i32, &Arc<str>>) -> Result<RecordRow, DriverError> {
    let kind = *names.get(&row.get(2)).ok_or_else(|| damaged("a record of an unknown kind"))?;
    Ok(RecordRow {
        kind: kind.clone(),
        id: RecordId { revision: column_revision(row, 0), sequence: column_number(row, 1) },
        closed: row.get(3),
        at: Timestamp(row.get(4)),
        document: StoredDocument { format: column_number(row, 5), json: row.get::<_, &str>(6).into() },
        keys: decode_keys(row.get(7)).ok_or_else(damaged_keys)?,
    })
}

fn read_index_entries(rows: &[Row], kinds: &Kinds) -> Result<Vec<IndexEntry>, DriverError> {
    let names = names(kinds);
    let mut entries = Vec::with_capacity(rows.len());
    for row in rows {
        let kind = *names.get(&row.get(0)).ok_or_else(|| damaged("an index entry of an unknown kind"))?;
        let number = usize::try_from(row.get::<_, i32>(1)).map_err(|_| damaged("an index entry"))?;
        let index = kinds.declared.0.get(kind).and_then(|declared| declared.indexes.get(number));
        entries.push(IndexEntry {
            kind: kind.clone(),
            index: index.ok_or_else(|| damaged("an index entry"))?.clone(),
            key: row.get(2),
            id: RecordId { revision: column_revision(row, 3), sequence: column_number(row, 4) },
        });
    }
    entries.sort();
    Ok(entries)
}

impl PostgresStore {
    /// Writes a backup of the whole store, as of one revision, to a file that must not be there yet. Others write on
    /// meanwhile.
    ///
    /// # Errors
    /// Why it could not be written; nothing of it stays then.
    pub async fn backup(&self, to: impl AsRef<std::path::Path>, on_entity: OnEntity) -> Result<Written, BackupError> {
        super::backup::write(&self.shared(), to.as_ref(), on_entity).await
    }

    /// Whether there is a store in the schema. Nothing is made.
    ///
    /// # Errors
    /// The database can't be reached.
    pub async fn exists(&self) -> Result<bool, DriverError> {
        schema::exists(&self.shared()).await
    }

    /// Puts a backup in place of all that is stored, under a new epoch, with no leases and with tokens above all that
    /// were given out. Servers that are up notice and load it. Makes the tables where there are none.
    ///
    /// # Errors
    /// Why it could not be stored; then everything is as it was.
    pub async fn restore(&self, backup: &Backup) -> Result<(), DriverError> {
        self.replace(&backup.state, Some(&backup.kinds), true).await
    }

    /// Puts the store back to a backup behind everyone's back, its epoch as the backup has it: for tests of what happens
    /// when an operator copies an old database over it.
    ///
    /// # Errors
    /// As [`PostgresStore::restore`].
    pub async fn set_back_to(&self, backup: &Backup) -> Result<(), DriverError> {
        self.replace(&backup.state, Some(&backup.kinds), false).await
    }

    /// Drops the schema and makes an empty store in its place: another epoch and installation. For tests.
    ///
    /// # Errors
    /// Why that could not be done.
    pub async fn drop_and_recreate(&self) -> Result<(), DriverError> {
        self.drop_schema().await?;
        schema::open(&self.shared(), &[]).await.map(drop)
    }

    /// Makes an empty store of an earlier format where there is none, as the release of that format would have. For tests.
    ///
    /// # Errors
    /// Why that could not be done.
    pub async fn make_in_format(&self, format: u32) -> Result<(), DriverError> {
        schema::make_in_format(&self.shared(), format).await
    }

    /// Drops the schema with everything in it. For tests.
    ///
    /// # Errors
    /// Why that could not be done.
    pub async fn drop_schema(&self) -> Result<(), DriverError> {
        self.tamper_sql(&format!("DROP SCHEMA IF EXISTS \"{}\" CASCADE", self.options.schema)).await
    }

    /// Changes what is stored behind everyone's back, to plant damage for the linter. Digests fit the damage.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn tamper(&self, change: impl FnOnce(&mut StoredState) + Send) -> Result<(), DriverError> {
        let mut state = read_all(&self.shared()).await?;
        change(&mut state);
        self.replace(&state, None, false).await
    }

    /// Runs SQL behind everyone's back, to plant damage that digests do not fit.
    ///
    /// # Errors
    /// Why nothing was changed.
    pub async fn tamper_sql(&self, sql: &str) -> Result<(), DriverError> {
        let connection = Connection::open(&self.shared(), Role::Open).await?;
        connection.client().batch_execute(sql).await?;
        Ok(())
    }

    /// Puts `state` in place of all that is stored. Kinds of records that only this store knows stay declared.
    ///
    /// Servers that are up lock rows in another order, each as its work comes; where the database breaks a deadlock with
    /// one of them at this end, nothing was changed, and it is begun anew.
    async fn replace(
        &self,
        state: &StoredState,
        kinds: Option<&DeclaredKinds>,
        new_epoch: bool,
    ) -> Result<(), DriverError> {
        const ATTEMPTS: u32 = 5;
        let mut attempt = 1;
        loop {
            match self.replace_once(state, kinds, new_epoch).await {
                Err(DriverError::Unavailable(reason)) if is_deadlock(&reason) && attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }

    async fn replace_once(
        &self,
        state: &StoredState,
        kinds: Option<&DeclaredKinds>,
        new_epoch: bool,
    ) -> Result<(), DriverError> {
        let shared = self.shared();
        // Makes the tables where there are none.
        let (meta, _) = schema::open(&shared, &[]).await?;
        let connection = Connection::open(&shared, Role::Open).await?;
        let limit = shared.options.answer_limit * 6;
        let run = |calls: Vec<Call>| connection.run(calls, limit);
        let rows = run(vec![
            Call::plain("BEGIN"),
            write_lock_call(&shared),
            Call::plain("SELECT counter FROM tokens FOR UPDATE"),
            Call::plain("SELECT installation FROM meta FOR UPDATE"),
            Call::plain("SELECT at FROM entities_mark FOR UPDATE"),
            Call::plain(head!()),
        ])
        .await?;
        let counter = rows[2].first().map_or(0, |row| row.get::<_, i64>(0).cast_unsigned());
        let installation = rows[3].first().map_or(Uuid::nil(), |row| row.get(0));
        let head = rows[5].first().map_or(Revision::ZERO, |row| column_revision(row, 0));
        let above = restored_tokens_above(state, SlotToken(counter), installation, head);
        // Slots first, as a settlement locks them first: none of what was leased by then is stored after this.
        for table in [
            "slots",
            "servers",
            "server_formats",
            "changes",
            "receipts",
            "receipt_blocks",
            "exceptions",
            "entities",
            "records",
            "record_index",
            "record_news",
        ] {
            run(vec![Call::plain(format!("DELETE FROM {table}"))]).await?;
        }
        run(vec![
            Call::new(
                "UPDATE meta SET epoch = $1, installation = $2, compacted = $3",
                values![state.meta.epoch.0, state.meta.installation, state.meta.compacted.0.cast_signed()],
            ),
            Call::new("UPDATE tokens SET counter = $1", values![state.token_counter.0.cast_signed()]),
            Call::plain("UPDATE record_kinds SET pruned_to = NULL"),
        ])
        .await?;
        for rows in state.log.chunks(STEP) {
            run(vec![append_call(rows, &shared.channel, state.meta.head, meta.format)]).await?;
        }
        let mut mark = EntitiesMark { at: state.tree.revision, ..EntitiesMark::default() };
        for rows in state.tree.entities.chunks(STEP) {
            run(vec![put_call(rows, &mut mark)]).await?;
        }
        run(vec![mark_call(&mark)]).await?;
        for receipts in state.receipts.chunks(STEP) {
            let receipts: Vec<&Receipt> = receipts.iter().collect();
            run(vec![store_call(&receipts, &[], None, meta.format)]).await?;
        }
        for exceptions in state.exceptions.chunks(STEP) {
            let exceptions: Vec<&Exception> = exceptions.iter().collect();
            run(vec![exceptions_call(&exceptions, &[], None)]).await?;
        }
        run(lease_calls(state)).await?;
        self.replace_records(&connection, state, kinds).await?;
        let mut last = Vec::new();
        if new_epoch {
            last.extend(new_epoch_calls(Uuid::new_v4(), above));
        }
        last.push(Call::new("SELECT pg_notify($1, 'replaced')", values![shared.channel.clone()]));
        last.push(Call::plain("COMMIT"));
        run(last).await.map(drop)
    }

    async fn replace_records(
        &self,
        connection: &Connection,
        state: &StoredState,
        kinds: Option<&DeclaredKinds>,
    ) -> Result<(), DriverError> {
        let limit = self.options.answer_limit * 6;
        let rows = connection.run(vec![read_kinds_call()], limit).await?;
        let mut here = Kinds::read(&rows[0])?;
        for (name, kind) in kinds.iter().flat_map(|kinds| &kinds.0) {
            let kind = here.declared.0.get(name).map_or_else(|| kind.clone(), |here| here.restored(kind));
            connection.run(vec![put_kind_call(name, &kind)], limit).await?;
        }
        let rows = connection.run(vec![read_kinds_call()], limit).await?;
        here = Kinds::read(&rows[0])?;
        let here = Arc::new(here);
        for records in state.records.chunks(STEP) {
            // One row for each id, as the table has it.
            let last: BTreeMap<_, _> = records.iter().map(|row| ((row.kind.clone(), row.id), row)).collect();
            let writes: Vec<RecordWrite> = last.into_values().cloned().map(RecordWrite::Append).collect();
            let changes = RecordChanges::of(here.clone(), &writes, Revision::ZERO)?;
            connection.run(changes.calls(&[])?, limit).await?;
        }
        // The entries as given, which in a damaged state need not be those of the records.
        connection.run(vec![Call::plain("DELETE FROM record_index WHERE number >= 0")], limit).await?;
        for chunk in state.index_entries.chunks(STEP) {
            let mut entries = Entries::default();
            for entry in chunk {
                let number = here.numbers.get(&entry.kind);
                let declared = here.declared.0.get(&entry.kind);
                let place = declared.and_then(|kind| kind.indexes.iter().position(|name| *name == entry.index));
                if let (Some(number), Some(place)) = (number, place) {
                    entries.push(*number, i32::try_from(place).unwrap_or(i32::MAX), &entry.key, entry.id);
                }
            }
            connection.run(vec![entries.insert_call()], limit).await?;
        }
        Ok(())
    }
}

/// The rows of servers and slots, as they are given.
fn lease_calls(state: &StoredState) -> Vec<Call> {
    let mut calls = Vec::new();
    for server in &state.servers {
        let hooks = serde_json::to_string(&server.hooks).expect("a server's hooks have only text keys");
        let load = serde_json::to_string(&server.load).expect("a server's load has only text keys");
        calls.push(Call::new(
            "INSERT INTO servers (id, name, lease_until, draining, applied, hooks, load)
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
            values![
                server.id.0,
                server.name.to_string(),
                server.lease_until.0,
                server.draining,
                server.applied.0.cast_signed(),
                hooks,
                load
            ],
        ));
    }
    for slot in &state.slots {
        calls.push(Call::new(
            "INSERT INTO slots (hook, slot, owner, token, watermark) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            values![
                slot.slot.hook.0.cast_signed(),
                slot.slot.slot.cast_signed(),
                slot.owner.map(|owner| owner.0),
                slot.token.0.cast_signed(),
                slot.watermark.0.cast_signed()
            ],
        ));
    }
    calls
}
