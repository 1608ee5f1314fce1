//! Where the state is kept: in one file below the data folder, or in a PostgreSQL that several servers share.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use tidegate_lifecycle::CallRecord;
use tidegate_rollout::operations::OperatorAction;
use tidegate_state::driver::LEASES_PER_LOCK_LIMIT;
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::testing::history::Recorder;
use tidegate_state::{DriverError, State, StateOptions};

use crate::access::AuditRecord;
use crate::server::{Options, StartError};

/// How long a server that has ended in this process may take to let go of the file.
const LET_GO: Duration = Duration::from_secs(5);

/// The shortest lease: a heartbeat has to fit into it, with a slow disk and a pause of the machine.
pub(crate) const LEASE_MIN: Duration = Duration::from_secs(1);
/// The longest: what a server that dies was running stands still for as long.
pub(crate) const LEASE_MAX: Duration = Duration::from_secs(600);

/// The database's file below the data folder, where it is one.
pub(crate) const FILE: &str = "state.sqlite";

/// What this server remembers of the database's log, below the data folder. Also where the database is a file there: that
/// file alone can be put back.
const SEEN: &str = "seen.json";

/// Declares the records that this build knows.
pub(crate) fn with_records(options: StateOptions) -> StateOptions {
    options.record::<CallRecord>().record::<OperatorAction>().record::<AuditRecord>()
}

/// Opens the state that this server is to work on.
pub(crate) async fn open(options: &Options, address: SocketAddr) -> Result<State, StartError> {
    let mut state = with_records(StateOptions::new(server_name(options, address)));
    if let Some(lease) = options.config.server.lease() {
        state.lease = lease;
    }
    state.seen = Some(options.data.join(SEEN));
    if let Some(file) = &options.config.server.history_file {
        let refused = |source| StartError::HistoryFile { path: file.clone(), source };
        state.recorder = Recorder::to_file(file).map_err(refused)?;
    }
    let driver = match database(options) {
        Some(url) => shared(url, schema(options), state.lease)?.driver(),
        None => own_file(&options.data.join(FILE)).await?.driver(),
    };
    Ok(State::open(driver, state).await?)
}

/// The lease of the regions that this server hosts, where it follows the server's own: another server on the database can
/// take them over. A server by itself has the usual one, unless it is told otherwise.
pub(crate) fn region_lease(options: &Options) -> Option<Duration> {
    let shared = database(options).map(|_| StateOptions::new("default").lease);
    options.config.server.lease().or(shared)
}

/// The database that is shared, if one is named: by flag, or in the file.
pub(crate) fn database(options: &Options) -> Option<&str> {
    options.database.as_deref().or(options.config.server.database.as_deref())
}

/// The name that operators know this server by. Servers that share a database have to have different ones, so a server
/// that is told none goes by its machine and port.
pub(crate) fn server_name(options: &Options, address: SocketAddr) -> String {
    match (&options.config.server.name, database(options)) {
        (Some(name), _) => name.clone(),
        (None, None) => "server".to_owned(),
        (None, Some(_)) => {
            let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
            let machine = machine.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
            let machine = machine.trim();
            format!("{}:{}", if machine.is_empty() { "server" } else { machine }, address.port())
        }
    }
}

fn schema(options: &Options) -> Option<&str> {
    options.schema.as_deref().or(options.config.server.schema.as_deref())
}

/// Removes the schema that a server with these options worked in: for what was made to be thrown away.
///
/// # Errors
/// [`StartError::Database`]: the database can't be reached or refuses.
pub async fn drop_schema(options: &Options) -> Result<(), StartError> {
    if let Some(url) = database(options) {
        shared(url, schema(options), StateOptions::new("drop").lease)?.drop_schema().await?;
    }
    Ok(())
}

fn shared(url: &str, schema: Option<&str>, lease: Duration) -> Result<PostgresStore, StartError> {
    let defaults = schema.map_or_else(PostgresOptions::default, PostgresOptions::in_schema);
    // A server that is stopped while it holds the write lock is cut off well before it could cost the others their leases.
    let lock_limit = defaults.lock_limit.min(lease / LEASES_PER_LOCK_LIMIT);
    Ok(PostgresStore::new(url, PostgresOptions { lock_limit, ..defaults })?)
}

/// Opens the file. The data folder is ours by now, so whoever still has it open in this process is a server that has ended
/// and whose last tasks are letting go of it.
async fn own_file(file: &Path) -> Result<SqliteStore, StartError> {
    let started = Instant::now();
    loop {
        let file = file.to_path_buf();
        // This is the only server on the file: nobody else could mend what is found damaged.
        let options = SqliteOptions { mend_limit: Duration::ZERO, ..SqliteOptions::default() };
        let opened = tokio::task::spawn_blocking(move || SqliteStore::open(file, options)).await;
        match opened.map_err(|error| StartError::Prepare(error.to_string()))? {
            Err(DriverError::Held(_)) if started.elapsed() < LET_GO => tokio::time::sleep(LET_GO / 100).await,
            opened => return Ok(opened?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_share_a_database_have_names_of_their_own() {
        let name = |options: &Options, port| server_name(options, SocketAddr::from(([127, 0, 0, 1], port)));
        let mut options = Options::new("/nowhere");
        assert_eq!(name(&options, 1), "server");
        options.database = Some("postgres://db/tidegate".to_owned());
        assert_ne!(name(&options, 1), name(&options, 2));
        options.config.server.name = Some("x".to_owned());
        assert_eq!(name(&options, 1), "x");
    }

    #[test]
    fn d32_a_stopped_server_is_cut_off_before_it_costs_others_their_leases() {
        for lease in [LEASE_MIN, Duration::from_secs(10), LEASE_MAX] {
            let driver = shared("postgres://127.0.0.1:1/x", None, lease).unwrap().driver();
            let limit = driver.lock_limit().unwrap();
            assert!(limit * LEASES_PER_LOCK_LIMIT <= lease, "{limit:?} of {lease:?}");
        }
    }
}
