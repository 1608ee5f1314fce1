//! What the database could not clean up yet, and what keeps it from that: dead rows of the tables, and the oldest transaction
//! in the database. Another user's transaction is seen with the rights of `pg_monitor` alone.

use std::time::Duration;

use super::super::{Burden, DriverError, OldestTransaction};
use super::connection::Call;
use super::driver::PostgresDriver;

const DEAD_ROWS: &str = "
    SELECT relname::text, n_dead_tup FROM pg_stat_user_tables WHERE schemaname = current_schema() ORDER BY relname";

/// Of sessions, and prepared ones that nobody has ended: both keep every row that was deleted since they began.
const OLDEST: &str = "
    SELECT who, (extract(epoch FROM clock_timestamp() - since) * 1000)::bigint
    FROM (
        SELECT format('process %s, user %s, application %s, from %s', pid, usename, quote_literal(application_name),
                      coalesce(host(client_addr), 'the database''s own machine')) AS who, xact_start AS since
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
          AND xact_start IS NOT NULL AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
        UNION ALL
        SELECT format('prepared transaction %s of user %s', quote_literal(gid), owner), prepared
        FROM pg_prepared_xacts WHERE database = current_database()
    ) open ORDER BY since LIMIT 1";

/// See [`super::super::Driver::burden`].
pub(super) async fn burden(driver: &PostgresDriver) -> Result<Burden, DriverError> {
    let rows = driver.read(vec![Call::plain(DEAD_ROWS), Call::plain(OLDEST)]).await?;
    let count = |dead: i64| u64::try_from(dead).unwrap_or(0);
    let dead_rows = rows[0].iter().map(|row| (row.get(0), count(row.get(1)))).collect();
    let oldest = rows[1].first().map(|row| OldestTransaction {
        connection: row.get(0),
        age: Duration::from_millis(u64::try_from(row.get::<_, i64>(1)).unwrap_or(0)),
    });
    Ok(Burden { dead_rows, oldest })
}
