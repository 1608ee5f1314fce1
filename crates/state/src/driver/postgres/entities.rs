//! The written-behind entities as a table; see [`super::super::entities_mark`].
//!
//! Everything that writes them holds the lock on the row of `entities_mark` and writes rows, digest and revision in one
//! transaction: a reader with SQL sees whole steps only, and of which revision. A server that is stopped in it is thrown
//! out by the lock limit, and another goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Row;

use super::super::entities_mark::{EntitiesMark, Inspection, Loaded, digest_of, replay};
use super::super::{
    CommitError, DriverError, EntityRow, LogRow, StoredDocument, StoredTree, check_entities_step, check_no_gap,
};
use super::connection::{Call, Connection, Role, values};
use super::driver::PostgresDriver;
use super::link::OpenTransaction;
use super::log::{column_revision, head};
use super::log_blocks::log_rows;
use super::schema::check_format;
use super::settlement::column_number;
use crate::path::Path;
use crate::revision::{Epoch, Revision};

/// How many rows are read or written at once.
const STEP: usize = 10_000;

/// How often a start asks whether damage was mended.
const MEND_POLL: Duration = Duration::from_millis(50);

pub(super) const MARK: &str = "SELECT at, count, sum, seal, damaged FROM entities_mark";

/// Epoch and log, the mark, and the head: what every write begins with.
struct Standing {
    epoch: Epoch,
    compacted: Revision,
    mark: EntitiesMark,
    damaged: bool,
    head: Revision,
}

/// Who has sent COMMIT and does not know more may do the same again: nothing of it goes back.
pub(super) fn as_driver_error(error: CommitError) -> DriverError {
    match error {
        CommitError::NotCommitted(error) | CommitError::Unknown(error) => error,
    }
}

pub(super) fn read_mark(row: &Row) -> Result<(EntitiesMark, Vec<u8>, bool), DriverError> {
    let sum: [u8; 16] = row.get::<_, &[u8]>(2).try_into().map_err(|_| {
        DriverError::Damaged("the sum in entities_mark has not 16 bytes; restore the store from a backup".to_owned())
    })?;
    let count = row.get::<_, i64>(1).cast_unsigned();
    let mark = EntitiesMark { at: column_revision(row, 0), count, sum: u128::from_be_bytes(sum) };
    Ok((mark, row.get(3), row.get(4)))
}

/// Begins a write: nobody else writes entities until it has ended, and the epoch stays.
async fn begin(driver: &PostgresDriver) -> Result<(OpenTransaction, Standing), DriverError> {
    let calls = vec![
        Call::plain(format!("{MARK} FOR UPDATE")),
        Call::plain("SELECT epoch, format, compacted FROM meta FOR KEY SHARE"),
        Call::plain(head!()),
    ];
    let (transaction, rows) = driver.links.upkeep.begin(calls).await?;
    let (Some(mark), Some(meta), Some(head)) = (rows[0].first(), rows[1].first(), rows[2].first()) else {
        return Err(DriverError::Unavailable("the store is being made, or was emptied".to_owned()));
    };
    check_format(column_number(meta, 1))?;
    let (mark, seal, damaged) = read_mark(mark)?;
    // One that was changed by hand must not be moved on and sealed anew: that would make it right.
    let damaged = damaged || mark.seal() != *seal;
    let standing = Standing {
        epoch: Epoch(meta.get(0)),
        compacted: column_revision(meta, 2),
        mark,
        damaged,
        head: column_revision(head, 0),
    };
    Ok((transaction, standing))
}

fn expect_epoch(standing: &Standing, expected: Epoch) -> Result<(), DriverError> {
    if standing.epoch == expected { Ok(()) } else { Err(DriverError::EpochChanged { expected, found: standing.epoch }) }
}

/// Until a look at the log says otherwise.
fn seen_sound(driver: &PostgresDriver) {
    if let Some(entities) = driver.links.entities.lock().as_mut() {
        entities.damaged = false;
    }
}

/// Moves the table on; see [`super::super::Driver::write_entities`].
pub(super) async fn write(
    driver: &PostgresDriver,
    epoch: Epoch,
    from: Revision,
    to: Revision,
    changed: Vec<EntityRow>,
    removed: Vec<Path>,
) -> Result<(), DriverError> {
    if from == to && !driver.links.entities.lock().is_some_and(|entities| entities.damaged) {
        return Ok(());
    }
    let (mut transaction, standing) = begin(driver).await?;
    expect_epoch(&standing, epoch)?;
    if standing.damaged {
        return Err(DriverError::Damaged(
            "the stored entities are not what was written; a server that is up writes all of them anew".to_owned(),
        ));
    }
    seen_sound(driver);
    if standing.mark.at >= to {
        return Ok(());
    }
    check_entities_step(standing.mark.at, from, to, standing.head)?;
    let mut mark = standing.mark;
    let mut touched: Vec<&str> = removed.iter().map(Path::as_str).collect();
    touched.extend(changed.iter().map(|row| row.path.as_str()));
    // Once each, though a path may be both removed and changed.
    touched.sort_unstable();
    touched.dedup();
    // In steps, each with a limit of its own: how much has changed since the last write is not bounded.
    for paths in touched.chunks(STEP) {
        for digest in transaction.run(vec![digests_call(paths)]).await?.swap_remove(0) {
            let digest: [u8; 16] = digest
                .get::<_, &[u8]>(0)
                .try_into()
                .map_err(|_| DriverError::Damaged("a digest of the stored entities has not 16 bytes".to_owned()))?;
            mark.subtract(u128::from_be_bytes(digest));
        }
    }
    for paths in removed.chunks(STEP) {
        transaction.run(vec![delete_call(paths)]).await?;
    }
    for rows in changed.chunks(STEP) {
        transaction.run(vec![put_call(rows, &mut mark)]).await?;
    }
    mark.at = to;
    transaction.commit(vec![mark_call(&mark)]).await.map_err(as_driver_error)?;
    Ok(())
}

/// The digests of those that are there.
fn digests_call(paths: &[&str]) -> Call {
    let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
    Call::new(
        "SELECT e.digest FROM unnest($1::text[]) AS given (path)
         JOIN entities e ON e.path = given.path COLLATE \"C\"",
        values![paths],
    )
}

fn delete_call(paths: &[Path]) -> Call {
    let paths: Vec<String> = paths.iter().map(|path| path.as_str().to_owned()).collect();
    Call::new(
        "DELETE FROM entities e USING unnest($1::text[]) AS gone (path) WHERE e.path = gone.path COLLATE \"C\"",
        values![paths],
    )
}

/// Writes rows, and adds them to the mark. One row for each path.
pub(super) fn put_call(rows: &[EntityRow], mark: &mut EntitiesMark) -> Call {
    let (mut paths, mut kinds, mut revisions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut formats, mut documents, mut digests) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let digest = digest_of(row);
        mark.add(digest);
        paths.push(row.path.as_str().to_owned());
        kinds.push(row.path.collection().to_owned());
        revisions.push(row.revision.0.cast_signed());
        formats.push(row.document.format.cast_signed());
        documents.push(row.document.json.to_string());
        digests.push(digest.to_be_bytes().to_vec());
    }
    Call::new(
        "INSERT INTO entities (path, kind, revision, format, document, digest)
         SELECT path, kind, revision, format, document::json, digest
         FROM unnest($1::text[], $2::text[], $3::bigint[], $4::integer[], $5::text[], $6::bytea[])
             AS given (path, kind, revision, format, document, digest)
         ON CONFLICT (path) DO UPDATE SET kind = excluded.kind, revision = excluded.revision,
             format = excluded.format, document = excluded.document, digest = excluded.digest",
        values![paths, kinds, revisions, formats, documents, digests],
    )
}

/// Seals what the table stands for now.
pub(super) fn mark_call(mark: &EntitiesMark) -> Call {
    Call::new(
        "UPDATE entities_mark SET at = $1, count = $2, sum = $3, seal = $4, damaged = false",
        values![mark.at.0.cast_signed(), mark.count.cast_signed(), mark.sum_bytes().to_vec(), mark.seal().to_vec()],
    )
}

/// What a server that is up gives, where the table is damaged or behind.
pub(super) async fn replace(driver: &PostgresDriver, epoch: Epoch, tree: StoredTree) -> Result<(), DriverError> {
    let (transaction, standing) = begin(driver).await?;
    expect_epoch(&standing, epoch)?;
    if standing.mark.at >= tree.revision && !standing.damaged {
        return Ok(());
    }
    // The log has to complete it.
    if tree.revision < standing.compacted || tree.revision > standing.head {
        return Err(DriverError::Unavailable(format!(
            "a tree at revision {} does not fit a log from {} to {}",
            tree.revision, standing.compacted, standing.head
        )));
    }
    put_whole(transaction, &tree).await?;
    seen_sound(driver);
    Ok(())
}

async fn put_whole(mut transaction: OpenTransaction, tree: &StoredTree) -> Result<(), DriverError> {
    transaction.run(vec![Call::plain("DELETE FROM entities")]).await?;
    let mut mark = EntitiesMark { at: tree.revision, ..EntitiesMark::default() };
    for rows in tree.entities.chunks(STEP) {
        transaction.run(vec![put_call(rows, &mut mark)]).await?;
    }
    transaction.commit(vec![mark_call(&mark)]).await.map_err(as_driver_error)?;
    Ok(())
}

/// The table as of one moment, with the mark and how far the log is compacted.
struct Read {
    loaded: Loaded,
    mark: EntitiesMark,
    compacted: Revision,
    log: Vec<Arc<LogRow>>,
}

/// Reads all entities in steps within one transaction that the caller has begun.
pub(super) async fn read_table(
    connection: &Connection,
    limit: Duration,
) -> Result<(Loaded, EntitiesMark), DriverError> {
    let rows = connection.run(vec![Call::plain(MARK)], limit).await?;
    let row = rows[0]
        .first()
        .ok_or_else(|| DriverError::Unavailable("the store is being made, or was emptied".to_owned()))?;
    let (mark, seal, _) = read_mark(row)?;
    let mut inspection = Inspection::new(mark, seal);
    let mut after = String::new();
    loop {
        let sql = "SELECT path, revision, format, document::text, digest FROM entities
                   WHERE path > $1 ORDER BY path LIMIT $2";
        let step = i64::try_from(STEP).unwrap_or(i64::MAX);
        let rows = connection.run(vec![Call::new(sql, values![after.clone(), step])], limit).await?;
        for row in &rows[0] {
            let document = StoredDocument { format: column_number(row, 2), json: row.get::<_, &str>(3).into() };
            let revision = column_revision(row, 1);
            inspection.take(row.get(0), row.get(4), |path| EntityRow { path, revision, document });
        }
        match rows[0].last() {
            Some(last) if rows[0].len() == STEP => last.get::<_, &str>(0).clone_into(&mut after),
            _ => return Ok((inspection.finish(), mark)),
        }
    }
}

/// Reads the table, and the log where it is needed to rebuild it, on a connection of its own: a large tree must not hold
/// up the tail.
async fn read(driver: &PostgresDriver) -> Result<Read, DriverError> {
    let connection = Connection::open(driver.shared(), Role::Open).await?;
    let limit = driver.shared().options.answer_limit * 6;
    let begin = Call::plain("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY");
    connection.run(vec![begin], limit).await?;
    let (loaded, mark) = read_table(&connection, limit).await?;
    let rows = connection.run(vec![Call::plain("SELECT compacted, epoch FROM meta")], limit).await?;
    let compacted = rows[0].first().map_or(Revision::ZERO, |row| column_revision(row, 0));
    let epoch = rows[0].first().map(|row| Epoch(row.get(1)));
    let mut log = Vec::new();
    if !loaded.damage.is_empty() && compacted == Revision::ZERO {
        log = read_log(&connection, limit).await?;
        check_no_gap(Revision::ZERO, &log, usize::MAX, log.last().map_or(Revision::ZERO, |row| row.revision))?;
    }
    connection.run(vec![Call::plain("COMMIT")], limit).await?;
    if let Some(epoch) = epoch {
        driver.follow_epoch(epoch).await?;
    }
    Ok(Read { loaded, mark, compacted, log })
}

/// The whole log in steps, within a transaction that the caller has begun.
pub(super) async fn read_log(connection: &Connection, limit: Duration) -> Result<Vec<Arc<LogRow>>, DriverError> {
    let mut log: Vec<Arc<LogRow>> = Vec::new();
    loop {
        let after = log.last().map_or(0, |row| row.revision.0.cast_signed());
        let sql = "SELECT revision, at, submission, body FROM changes WHERE revision > $1 ORDER BY revision LIMIT $2";
        let step = i64::try_from(STEP).unwrap_or(i64::MAX);
        let rows = connection.run(vec![Call::new(sql, values![after, step])], limit).await?;
        for row in &rows[0] {
            log.extend(log_rows(row, 0)?);
        }
        if rows[0].len() < STEP {
            return Ok(log);
        }
    }
}

/// The entities, or what the log adds up to where it reaches back to the beginning.
async fn load_or_rebuild(
    driver: &PostgresDriver,
) -> Result<Result<StoredTree, (EntitiesMark, DriverError)>, DriverError> {
    let Read { loaded, mark, compacted, log } = read(driver).await?;
    if loaded.damage.is_empty() {
        return Ok(Ok(loaded.tree));
    }
    let damage = loaded.damage.join(", ");
    if compacted > Revision::ZERO {
        let error = DriverError::Damaged(format!(
            "the stored entities are not what was written: {damage}. They can't be rebuilt, since the log reaches back to \
             revision {compacted} only, and no server is up that has them. Restore the store from a backup"
        ));
        return Ok(Err((mark, error)));
    }
    let rebuilt = replay(log.iter().map(|row| &**row));
    tracing::warn!(
        damage,
        revision = rebuilt.revision.0,
        "the stored entities are not what was written; they are rebuilt from the log"
    );
    let (transaction, standing) = begin(driver).await?;
    // Whoever has written them since has done so soundly, or the next start sees it.
    if standing.mark == mark {
        put_whole(transaction, &rebuilt).await?;
    }
    Ok(Ok(rebuilt))
}

/// Loads the tree; where it is damaged and the log does not reach back, asks the servers that are up to write it anew.
pub(super) async fn load_or_mend(driver: &PostgresDriver) -> Result<StoredTree, DriverError> {
    let mark = match load_or_rebuild(driver).await? {
        Ok(tree) => return Ok(tree),
        Err((mark, _)) => mark,
    };
    let shared = driver.shared();
    let tell = vec![
        Call::new(
            "UPDATE entities_mark SET damaged = true WHERE at = $1 AND NOT damaged",
            values![mark.at.0.cast_signed()],
        ),
        Call::new("SELECT pg_notify($1, 'damaged')", values![shared.channel.clone()]),
    ];
    let (transaction, _) = driver.links.upkeep.begin(tell).await?;
    transaction.commit(Vec::new()).await.map_err(as_driver_error)?;
    let until = Instant::now() + shared.options.mend_limit;
    while Instant::now() < until {
        tokio::time::sleep(MEND_POLL).await;
        let rows = driver.read(vec![Call::plain("SELECT damaged FROM entities_mark")]).await?;
        if !rows[0].first().is_some_and(|row| row.get(0)) {
            break;
        }
    }
    // Whether they were renewed or not: what is read now is what counts.
    load_or_rebuild(driver).await?.map_err(|(_, error)| error)
}
