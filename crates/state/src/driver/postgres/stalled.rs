//! Sessions of servers that were stopped, or cut off, with a part of a statement sent. While the database waits for the rest
//! of it, no time limit of the session runs: that on idle transactions begins where a statement has ended, and that on
//! statements does not end the reading of one. Whoever has waited for a lock in vain ends such sessions.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::connection::{Connection, Role};

/// How much of an application's name the database keeps.
const NAME_BYTES_MAX: usize = 63;

/// Sessions in a transaction that have waited for their client for longer than a lock is kept, wherever in a statement. Of
/// this user alone: others are neither seen nor to be ended by it.
const END: &str = "
    SELECT format('process %s, application %s, from %s', pid, quote_literal(application_name),
                  coalesce(host(client_addr), 'the database''s own machine')),
           pg_terminate_backend(pid)
    FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
      AND application_name = ANY ($1) AND xact_start IS NOT NULL AND wait_event = 'ClientRead'
      AND state_change < clock_timestamp() - $2::bigint * interval '1 millisecond'";

/// Ends the sessions of this installation's servers that keep others waiting. What fails is tried again by the next one
/// that has waited in vain.
pub(super) async fn end_stalled(shared: &Arc<Shared>) {
    match tokio::time::timeout(shared.options.answer_limit, end(shared)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "sessions that keep locks can't be looked at"),
        Err(_) => tracing::debug!("sessions that keep locks could not be looked at in time"),
    }
}

async fn end(shared: &Arc<Shared>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let roles = [Role::Commit, Role::Settle, Role::Read, Role::Upkeep, Role::Watch];
    let names = roles.map(|role| shared.application_name(role).chars().take(NAME_BYTES_MAX).collect::<String>());
    let limit: Duration = shared.options.lock_limit;
    let limit = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
    let connection = Connection::open(shared, Role::Open).await?;
    for row in connection.client().query(END, &[&names.as_slice(), &limit]).await? {
        let (session, ended): (String, bool) = (row.get(0), row.get(1));
        tracing::warn!(%session, ended, "a server has stopped amid a statement, and kept others waiting for its locks");
    }
    Ok(())
}
