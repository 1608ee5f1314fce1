//! The whole store into a backup, a few rows at a time, as of one moment: others write on meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;

use super::super::entities_mark::Inspection;
use super::super::{DriverError, EntityRow, SlotToken, StoredDocument, check_entities_sound, check_no_gap};
use super::connection::{Call, Connection, Role};
use super::driver::{exceptions_sql, read_exceptions};
use super::entities::{MARK, read_mark};
use super::log::column_revision;
use super::log_blocks::log_rows;
use super::receipts::{RECEIPT_BLOCKS, RECEIPT_ROWS, read_blocks, read_receipt};
use super::records::{Kinds, read_kinds_call};
use super::schema::{read_tables, tables_call};
use super::settlement::column_number;
use super::slots::{cluster_calls, read_cluster};
use super::stored::{damaged, names, read_record};
use super::{Shared, schema};
use crate::backup::{BackupError, BackupHeader, BackupWriter, Item, OnEntity, Written};
use crate::revision::{Revision, Timestamp};

/// How many stored rows are in memory at once.
const STEP: usize = 1_000;

/// How long the database keeps the transaction while this side writes to its disk.
const DISK_LIMIT: Duration = Duration::from_secs(300);

/// Writes the backup; the file appears when it is whole.
pub(super) async fn write(
    shared: &Arc<Shared>,
    to: &std::path::Path,
    on_entity: OnEntity,
) -> Result<Written, BackupError> {
    let connection = Connection::open(shared, Role::Open).await?;
    let limit = shared.options.answer_limit * 6;
    let mut calls = vec![
        Call::plain("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"),
        Call::plain(format!("SET LOCAL idle_in_transaction_session_timeout = {}", DISK_LIMIT.as_millis())),
        schema::meta(),
        Call::plain("SELECT counter, (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM tokens"),
        read_kinds_call(),
        Call::plain(MARK),
    ];
    calls.extend(cluster_calls());
    calls.push(tables_call(shared));
    let rows = connection.run(calls, limit).await?;
    let meta = schema::read_meta(&rows[2])?;
    let tokens = rows[3].first().ok_or_else(|| damaged("the token counter"))?;
    let kinds = Kinds::read(&rows[4])?;
    let (mark, seal, _) = read_mark(rows[5].first().ok_or_else(|| damaged("entities_mark"))?)?;
    let (_, slots) = read_cluster(&rows[6], &rows[7])?;
    let taken_at = shared.options.clock.as_ref().map_or(Timestamp(tokens.get(1)), |clock| clock.now());
    let header = BackupHeader {
        format: crate::backup::FORMAT,
        installation: meta.installation,
        epoch: meta.epoch,
        revision: meta.head,
        taken_at,
        driver: "postgres".to_owned(),
        tables: meta.format,
        compacted: meta.compacted,
        entities_at: mark.at,
        token_counter: SlotToken(tokens.get::<_, i64>(0).cast_unsigned()),
    };
    let to = to.to_owned();
    let writer = blocking(move || BackupWriter::new(&to, header, on_entity)).await?;
    let mut copy = Copy { connection: &connection, limit, writer: Some(writer) };
    copy.put(kinds.declared.0.iter().map(|(name, kind)| Item::Kind(name.clone(), kind.clone())).collect()).await?;
    copy.entities(Inspection::passing(mark, seal)).await?;
    copy.log(meta.compacted, meta.head).await?;
    copy.each("receipts", RECEIPT_ROWS, |rows| rows.iter().map(|row| read_receipt(row).map(Item::Receipt)).collect())
        .await?;
    // A store that only the release before has opened has none.
    if read_tables(&rows[8]).are_expanded {
        copy.each("receipt_blocks", RECEIPT_BLOCKS, |rows| {
            Ok(read_blocks(rows, meta.compacted)?.into_iter().map(Item::Receipt).collect())
        })
        .await?;
    }
    copy.each("exceptions", &exceptions_sql("true"), |rows| {
        Ok(read_exceptions(rows)?.into_iter().map(|exception| Item::Exception(Box::new(exception))).collect())
    })
    .await?;
    copy.put(slots.into_iter().map(Item::Slot).collect()).await?;
    let records = "SELECT revision, sequence, kind, closed, at, format, document, keys FROM records";
    let names = names(&kinds);
    copy.each("records", records, |rows| rows.iter().map(|row| read_record(row, &names).map(Item::Record)).collect())
        .await?;
    connection.run(vec![Call::plain("COMMIT")], limit).await?;
    let writer = copy.writer.take().expect("every step has given it back");
    blocking(move || writer.finish()).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| BackupError::Driver(DriverError::Unavailable(error.to_string())))?
}

/// A transaction that is read, and the file that is written.
struct Copy<'a> {
    connection: &'a Connection,
    limit: Duration,
    /// Away while it writes.
    writer: Option<BackupWriter>,
}

impl Copy<'_> {
    async fn put(&mut self, items: Vec<Item>) -> Result<(), BackupError> {
        let mut writer = self.writer.take().expect("every step has given it back");
        let writer = blocking(move || {
            for item in &items {
                writer.put(item)?;
            }
            Ok(writer)
        });
        self.writer = Some(writer.await?);
        Ok(())
    }

    /// Puts all rows that a statement gives, some at a time.
    async fn each(
        &mut self,
        cursor: &str,
        sql: &str,
        mut items: impl FnMut(&[Row]) -> Result<Vec<Item>, DriverError>,
    ) -> Result<(), BackupError> {
        let declare = Call::plain(format!("DECLARE backup_{cursor} NO SCROLL CURSOR FOR {sql}"));
        self.connection.run(vec![declare], self.limit).await?;
        loop {
            let fetch = Call::plain(format!("FETCH {STEP} FROM backup_{cursor}"));
            let rows = self.connection.run(vec![fetch], self.limit).await?;
            if rows[0].is_empty() {
                return Ok(());
            }
            self.put(items(&rows[0])?).await?;
        }
    }

    async fn entities(&mut self, inspection: Inspection) -> Result<(), BackupError> {
        let mut inspection = inspection;
        let sql = "SELECT path, revision, format, document::text, digest FROM entities ORDER BY path";
        self.each("entities", sql, |rows| {
            let read = |row: &Row| {
                let document = StoredDocument { format: column_number(row, 2), json: row.get::<_, &str>(3).into() };
                let revision = column_revision(row, 1);
                let entity = inspection.pass(row.get(0), row.get(4), |path| EntityRow { path, revision, document });
                entity.map(Item::Entity)
            };
            Ok(rows.iter().filter_map(read).collect())
        })
        .await?;
        Ok(check_entities_sound(&inspection.finish().damage)?)
    }

    async fn log(&mut self, compacted: Revision, head: Revision) -> Result<(), BackupError> {
        let mut after = compacted;
        let sql = "SELECT revision, at, submission, body FROM changes ORDER BY revision";
        self.each("log", sql, |rows| {
            let mut log = Vec::with_capacity(rows.len());
            for row in rows {
                log.extend(log_rows(row, 0)?);
            }
            // What a compaction has not removed yet.
            log.retain(|row| row.revision > compacted);
            check_no_gap(after, &log, log.len(), head)?;
            after = log.last().map_or(after, |row| row.revision);
            Ok(log.into_iter().map(Item::Log).collect())
        })
        .await?;
        Ok(check_no_gap(after, &[], 1, head)?)
    }
}
