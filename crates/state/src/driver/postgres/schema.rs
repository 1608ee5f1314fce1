//! Tables and their format: made and migrated once, however many servers come at once.

use std::sync::Arc;

use tokio_postgres::{Client, Config, NoTls, Row};
use uuid::Uuid;

use super::super::entities_mark::EntitiesMark;
use super::super::format::Formats;
use super::super::{DriverError, Meta};
use super::Shared;
use super::connection::{Call, Connection, Role, values};
use super::log::head;
use super::records::Kinds;
use crate::record::IndexDeclaration;
use crate::revision::{Epoch, Revision};

/// The newest format that this build knows: the number of the last migration.
pub(super) const FORMAT: u32 = 2;
/// The first format whose log and receipts are in blocks.
pub(super) const BLOCKS_FORMAT: u32 = 2;
const FORMATS: Formats = Formats { oldest: 1, newest: FORMAT };

mod embedded {
    #![allow(unreachable_pub, missing_docs, clippy::unwrap_used)]
    refinery::embed_migrations!("src/driver/postgres/migrations");
}

const META: &str = concat!("SELECT epoch, installation, format, compacted, (", head!(), ") FROM meta");

/// The store's own row, and the head.
pub(super) fn meta() -> Call {
    Call::plain(META)
}

/// The row of a statement that reads the store's own.
pub(super) fn own_row(rows: &[Row]) -> Result<&Row, DriverError> {
    rows.first().ok_or_else(|| {
        DriverError::Unavailable("the store's own row is not there; the store is being made, or was emptied".to_owned())
    })
}

pub(super) fn read_meta(rows: &[Row]) -> Result<Meta, DriverError> {
    let row = own_row(rows)?;
    let meta = Meta {
        epoch: Epoch(row.get(0)),
        installation: row.get(1),
        format: row.get::<_, i32>(2).cast_unsigned(),
        compacted: Revision(row.get::<_, i64>(3).cast_unsigned()),
        head: Revision(row.get::<_, i64>(4).cast_unsigned()),
    };
    check_format(meta.format)?;
    Ok(meta)
}

pub(super) fn check_format(found: u32) -> Result<(), DriverError> {
    FORMATS.check(found)
}

/// Makes or migrates the tables where that is due, declares kinds of records, and says what is there.
pub(super) async fn open(
    shared: &Arc<Shared>,
    declarations: &[IndexDeclaration],
) -> Result<(Meta, Kinds), DriverError> {
    let connection = Connection::open(shared, Role::Open).await?;
    if let Some((meta, kinds)) = read_as_it_is(&connection, shared, declarations).await? {
        return Ok((meta, kinds));
    }
    // One server at a time from here on; the others find it done.
    let key = shared.lock_key("migration");
    let limit = shared.options.mend_limit + shared.options.answer_limit * 6;
    connection.run(vec![Call::new("SELECT pg_advisory_lock($1)", values![key])], limit).await?;
    if let Some((meta, kinds)) = read_as_it_is(&connection, shared, declarations).await? {
        return Ok((meta, kinds));
    }
    migrate(&connection, shared, FORMAT).await?;
    connection.transaction(enter_calls(FORMAT), limit).await?;
    let kinds = super::records::declare(shared, &connection, declarations, limit).await?;
    let rows = connection.run(vec![meta()], limit).await?;
    // The lock goes with the connection.
    Ok((read_meta(&rows[0])?, kinds))
}

/// Makes an empty store as a build of an earlier format would have.
pub(super) async fn make_in_format(shared: &Arc<Shared>, format: u32) -> Result<(), DriverError> {
    let connection = Connection::open(shared, Role::Open).await?;
    migrate(&connection, shared, format).await?;
    connection.transaction(enter_calls(format), shared.options.answer_limit).await.map(drop)
}

/// The rows that a store begins with; those that are there stay.
fn enter_calls(format: u32) -> Vec<Call> {
    let mark = EntitiesMark::default();
    vec![
        Call::new(
            "INSERT INTO meta (epoch, installation, format, compacted) VALUES ($1, $2, $3, 0) ON CONFLICT DO NOTHING",
            values![Uuid::new_v4(), Uuid::new_v4(), format.cast_signed()],
        ),
        Call::plain("INSERT INTO tokens (counter) VALUES (0) ON CONFLICT DO NOTHING"),
        Call::new(
            "INSERT INTO entities_mark (at, count, sum, seal) VALUES (0, 0, $1, $2) ON CONFLICT DO NOTHING",
            values![mark.sum_bytes().to_vec(), mark.seal().to_vec()],
        ),
    ]
}

/// Whether the tables of the oldest format are there, and whether what this build's format adds to them is.
pub(super) fn tables_call(shared: &Shared) -> Call {
    Call::new(
        "SELECT to_regclass($1 || '.meta') IS NOT NULL AND to_regclass($1 || '.record_news') IS NOT NULL,
                to_regclass($1 || '.server_formats') IS NOT NULL",
        values![format!("\"{}\"", shared.options.schema)],
    )
}

/// What [`tables_call`] has found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables {
    are_there: bool,
    pub(super) are_expanded: bool,
}

pub(super) fn read_tables(rows: &[Row]) -> Tables {
    let says = |column| rows.first().is_some_and(|row| row.get(column));
    Tables { are_there: says(0), are_expanded: says(1) }
}

/// Whether the tables are there, with the store's own row.
pub(super) async fn exists(shared: &Arc<Shared>) -> Result<bool, DriverError> {
    let connection = Connection::open(shared, Role::Open).await?;
    let rows = connection.run(vec![tables_call(shared)], shared.options.answer_limit).await?;
    if !read_tables(&rows[0]).are_there {
        return Ok(false);
    }
    let rows = connection.run(vec![meta()], shared.options.answer_limit).await?;
    Ok(!rows[0].is_empty())
}

/// What is there, if it is complete and knows the declarations already: nothing has to be written then.
async fn read_as_it_is(
    connection: &Connection,
    shared: &Shared,
    declarations: &[IndexDeclaration],
) -> Result<Option<(Meta, Kinds)>, DriverError> {
    let limit = shared.options.answer_limit;
    let rows = connection.run(vec![tables_call(shared)], limit).await?;
    let tables = read_tables(&rows[0]);
    if !tables.are_there {
        return Ok(None);
    }
    // By itself, since the other tables of a format that this build does not know may look otherwise; and before anything is
    // added to them.
    let rows = connection.run(vec![meta()], limit).await?;
    if !rows[0].is_empty() {
        read_meta(&rows[0])?;
    }
    if !tables.are_expanded {
        return Ok(None);
    }
    let rows = connection.snapshot(vec![meta(), super::records::read_kinds_call()], limit).await?;
    if rows[0].is_empty() {
        return Ok(None);
    }
    let meta = read_meta(&rows[0])?;
    let kinds = Kinds::read(&rows[1])?;
    Ok(kinds.know(declarations)?.then_some((meta, kinds)))
}

/// Migrations need a client of their own, since they open transactions by themselves.
async fn migrate(connection: &Connection, shared: &Arc<Shared>, format: u32) -> Result<(), DriverError> {
    let schema = &shared.options.schema;
    let limit = shared.options.answer_limit * 6;
    let there = Call::new("SELECT to_regnamespace($1) IS NOT NULL", values![format!("\"{schema}\"")]);
    let rows = connection.run(vec![there], limit).await?;
    if !rows[0].first().is_some_and(|row| row.get(0)) {
        let make = Call::plain(format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\""));
        connection.run(vec![make], limit).await.map_err(|error| match error {
            DriverError::Configuration(why) => DriverError::Configuration(format!(
                "the schema {schema:?} can't be made in {}: {why}. GRANT CREATE ON DATABASE to this user, or make the \
                 schema and give it to this user (CREATE SCHEMA {schema} AUTHORIZATION …)",
                shared.target.place
            )),
            error => error,
        })?;
    }
    let run = async {
        let (mut client, task) = plain_client(shared).await?;
        // A later release may have added to the tables already, and this one runs beside it.
        let mut runner = embedded::migrations::runner().set_abort_missing(false);
        runner = runner.set_target(refinery::Target::Version(format.cast_signed()));
        let outcome = runner.run_async(&mut client).await;
        drop(client);
        task.abort();
        outcome.map(|_| ()).map_err(|error| migration_failed(&error, shared))
    };
    tokio::time::timeout(limit, run)
        .await
        .map_err(|_| DriverError::Unavailable(format!("the migration has not ended within {limit:?}")))?
}

fn migration_failed(error: &refinery::Error, shared: &Shared) -> DriverError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(database) = cause.downcast_ref::<tokio_postgres::Error>() {
            return match super::errors::statement_failed(database) {
                DriverError::Configuration(why) => DriverError::Configuration(format!(
                    "the tables can't be made in schema {:?}: {why}",
                    shared.options.schema
                )),
                error => error,
            };
        }
        source = cause.source();
    }
    DriverError::Configuration(format!("a migration of schema {:?} failed: {error}", shared.options.schema))
}

async fn plain_client(shared: &Arc<Shared>) -> Result<(Client, tokio::task::JoinHandle<()>), DriverError> {
    let mut config: Config = shared.target.config();
    config.application_name(shared.application_name(Role::Open));
    let failed = |error: tokio_postgres::Error| super::errors::connect_failed(&error, &shared.target.place);
    let (client, task) = match shared.target.tls.connector() {
        None => {
            let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
            // How it ends is seen by whoever uses the client.
            (client, tokio::spawn(async move { drop(connection.await) }))
        }
        Some(connector) => {
            let (client, connection) = config.connect(connector).await.map_err(failed)?;
            (client, tokio::spawn(async move { drop(connection.await) }))
        }
    };
    // Whoever reads a table for long is waited for no longer than others can wait behind this.
    let settings = format!(
        "SET search_path = \"{}\"; SET client_min_messages = 'error'; SET lock_timeout = {}",
        shared.options.schema,
        shared.options.lock_limit.as_millis()
    );
    client.batch_execute(&settings).await?;
    Ok((client, task))
}
