//! What PostgreSQL's errors mean for who asked. No message has a password or a connection string in it.

use std::error::Error as _;

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, Severity, SqlState};

use super::super::{CommitError, DriverError};

/// What a statement's error means. Everything that may pass by itself is told as unavailable.
pub(super) fn statement_failed(error: &Error) -> DriverError {
    let Some(db) = error.as_db_error() else {
        return DriverError::Unavailable(plain(error));
    };
    let text = described(db);
    match db.code() {
        code if *code == SqlState::DISK_FULL => DriverError::Full(text),
        code if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::INVALID_SCHEMA_NAME => {
            DriverError::Unavailable(format!(
                "the store's tables are not there ({text}); put them back from a backup, or start with an empty store"
            ))
        }
        code if *code == SqlState::INSUFFICIENT_PRIVILEGE => DriverError::Configuration(format!(
            "the database refuses what the store needs ({text}); the user has to own the schema's tables"
        )),
        code if *code == SqlState::READ_ONLY_SQL_TRANSACTION => DriverError::Unavailable(format!(
            "the database is read only ({text}); it may be a standby that is not promoted yet"
        )),
        code if *code == SqlState::DATA_CORRUPTED || *code == SqlState::INDEX_CORRUPTED => {
            DriverError::Damaged(format!("{text}; restore the database from a backup"))
        }
        code if passes(code) => DriverError::Unavailable(text),
        _ => DriverError::Configuration(text),
    }
}

/// Whether waiting may help: by the class of the code (connection, transaction state, rollback, resources, operators,
/// system).
fn passes(code: &SqlState) -> bool {
    let class = code.code().get(..2).unwrap_or_default();
    matches!(class, "08" | "25" | "40" | "53" | "55" | "57" | "58")
}

/// Whether the database has broken a deadlock at this end, by the code in the text that [`statement_failed`] gives.
pub(super) fn is_deadlock(reason: &str) -> bool {
    reason.contains(&format!("[{}]", SqlState::T_R_DEADLOCK_DETECTED.code()))
}

/// What the answer of COMMIT itself means, everything before it having been done.
pub(super) fn commit_failed(error: &Error) -> CommitError {
    match error.as_db_error() {
        // The database says that it has rolled back.
        Some(db) if matches!(db.parsed_severity(), Some(Severity::Error)) => {
            CommitError::NotCommitted(statement_failed(error))
        }
        // It ended in the middle of it, before or after the record of the commit was flushed.
        _ => CommitError::Unknown(DriverError::Unavailable(plain(error))),
    }
}

/// What an error before COMMIT means. COMMIT was sent behind it, so only an answer of the database makes it certain.
pub(super) fn before_commit_failed(error: &Error) -> CommitError {
    match error.as_db_error() {
        Some(_) => CommitError::NotCommitted(statement_failed(error)),
        None => CommitError::Unknown(DriverError::Unavailable(plain(error))),
    }
}

/// What a connection that could not be made means. `place` names host, port, database and user.
pub(super) fn connect_failed(error: &Error, place: &str) -> DriverError {
    let Some(db) = error.as_db_error() else {
        let text = plain(error);
        let lower = text.to_lowercase();
        return if lower.contains("tls") || lower.contains("certificate") {
            DriverError::Configuration(format!(
                "no encrypted connection to {place}: {text}; sslmode, sslrootcert and the name in the server's certificate \
                 have to fit each other"
            ))
        } else if lower.contains("password") {
            DriverError::Configuration(format!(
                "{place} asks for a password and none is given; put it in the connection string, PGPASSWORD or the file \
                 that PGPASSFILE names"
            ))
        } else {
            DriverError::Unavailable(format!(
                "{place} can't be reached: {text}; check host and port, and that the database is up and listens there"
            ))
        };
    };
    let text = described(db);
    let code = db.code();
    if *code == SqlState::INVALID_PASSWORD {
        DriverError::Configuration(format!("{place} refuses the password ({text}); check user and password"))
    } else if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION && text.contains("certificate") {
        // That it asks for one is in its words alone.
        DriverError::Configuration(format!(
            "{place} lets this user in by a certificate ({text}); give sslcert=FILE and sslkey=FILE, a certificate whose name \
             is the user's, of an authority that the database trusts (ssl_ca_file)"
        ))
    } else if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
        DriverError::Configuration(format!(
            "{place} refuses this user ({text}); pg_hba.conf has to let it in from here, and it has to be there"
        ))
    } else if *code == SqlState::INVALID_CATALOG_NAME {
        DriverError::Configuration(format!("{place}: there is no such database ({text}); make it with createdb"))
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        DriverError::Configuration(format!("{place} refuses this user ({text}); it needs CONNECT on the database"))
    } else if *code == SqlState::TOO_MANY_CONNECTIONS {
        DriverError::Unavailable(format!(
            "{place} has no connection left ({text}); a server needs five: raise max_connections"
        ))
    } else if passes(code) {
        DriverError::Unavailable(format!("{place}: {text}"))
    } else {
        DriverError::Configuration(format!("{place}: {text}"))
    }
}

/// The database's own words, with the code that people look up.
fn described(db: &DbError) -> String {
    format!("{} [{}]", db.message(), db.code().code())
}

/// An error on this side, with its cause.
pub(super) fn plain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

impl From<Error> for DriverError {
    fn from(error: Error) -> Self {
        statement_failed(&error)
    }
}
