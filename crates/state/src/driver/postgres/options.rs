//! How a store is configured, and the settings of connections that follow from it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::super::DriverError;
use super::connection::Role;
use crate::clock::Clock;

/// The longest name of a schema: with what is put before it, the name of a channel has at most 63 bytes.
const SCHEMA_BYTES_MAX: usize = 50;

/// Settings of every connection. Plans: a statement is planned once, and never by what a table held at that moment.
const PLANS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off; \
                     SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; \
                     SET default_transaction_isolation = 'read committed'; SET client_min_messages = 'error'";

/// What was answered is durable, whatever the database's default is; a stricter one is left as it is.
const DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', false) \
                       WHERE current_setting('synchronous_commit') = 'off'";

/// How a store in PostgreSQL is opened. The defaults are what an installation wants.
#[derive(Clone)]
pub struct PostgresOptions {
    /// The schema that everything is in: lower-case letters, digits and underscores. Made at the first start.
    pub schema: String,
    /// The clock that leases and times go by. None: the database's, as it has to be where servers are several processes.
    /// With one of their own, tests hold and step it.
    pub clock: Option<Arc<dyn Clock>>,
    /// How long a transaction of a server that does not move keeps its locks. A lease has to be
    /// [`crate::driver::LEASES_PER_LOCK_LIMIT`] times as long.
    pub lock_limit: Duration,
    /// How long any answer of the database may take; only reading everything may take longer.
    pub answer_limit: Duration,
    /// How long making a connection may take.
    pub connect_limit: Duration,
    /// How often a silent connection is asked whether it is still there.
    pub keepalive: Duration,
    /// How long no server of the release before was seen before the tables are contracted to this release's format, after
    /// which that one is refused. Longer than servers are away when the database was.
    pub contract_after: Duration,
    /// How long a start that finds the stored entities damaged waits for a server that is up to write them anew.
    pub mend_limit: Duration,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        PostgresOptions {
            schema: "tidegate".to_owned(),
            clock: None,
            lock_limit: Duration::from_secs(2),
            answer_limit: Duration::from_secs(10),
            connect_limit: Duration::from_secs(5),
            keepalive: Duration::from_secs(5),
            contract_after: Duration::from_secs(120),
            mend_limit: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PostgresOptions")
            .field("schema", &self.schema)
            .field("lock_limit", &self.lock_limit)
            .field("answer_limit", &self.answer_limit)
            .finish_non_exhaustive()
    }
}

impl PostgresOptions {
    /// The defaults in another schema.
    #[must_use]
    pub fn in_schema(schema: impl Into<String>) -> Self {
        PostgresOptions { schema: schema.into(), ..PostgresOptions::default() }
    }

    pub(super) fn check(&self) -> Result<(), DriverError> {
        let refused = |why: String| Err(DriverError::Configuration(why));
        let mut bytes = self.schema.bytes();
        let first = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_');
        let rest = bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        if !first || !rest || self.schema.len() > SCHEMA_BYTES_MAX || self.schema.starts_with("pg_") {
            return refused(format!(
                "{:?} can't be the schema of a store: it has 1 to {SCHEMA_BYTES_MAX} lower-case letters, digits and \
                 underscores, begins with no digit and not with pg_",
                self.schema
            ));
        }
        for (name, limit) in [
            ("lock_limit", self.lock_limit),
            ("answer_limit", self.answer_limit),
            ("connect_limit", self.connect_limit),
            ("keepalive", self.keepalive),
            ("contract_after", self.contract_after),
        ] {
            if limit < Duration::from_millis(10) {
                return refused(format!("{name} is {limit:?}; it is 10 ms or more"));
            }
        }
        if self.answer_limit < self.wait_limit() {
            return refused(format!(
                "answer_limit is {:?}; with a lock_limit of {:?} others may wait for a lock for {:?}, and an answer may \
                 take longer than that",
                self.answer_limit,
                self.lock_limit,
                self.wait_limit()
            ));
        }
        Ok(())
    }

    /// How long a lock is waited for: longer than a holder that has stopped can keep it.
    pub(super) fn wait_limit(&self) -> Duration {
        self.lock_limit * 2 + Duration::from_secs(1)
    }

    /// What a connection of this role is set to.
    pub(super) fn settings(&self, role: Role) -> String {
        let lock = self.lock_limit.as_millis();
        let (statement, wait, idle) = match role {
            Role::Commit | Role::Settle | Role::Read => {
                (self.answer_limit.as_millis(), self.wait_limit().as_millis(), lock)
            }
            Role::Watch => (self.answer_limit.as_millis(), lock, lock),
            // Whatever it takes; others do not wait for it but where it says so.
            Role::Upkeep => (self.answer_limit.as_millis() * 6, lock, lock),
            Role::Open => (0, 0, self.answer_limit.as_millis()),
        };
        let keepalive = self.keepalive.as_secs().max(1);
        format!(
            "{PLANS}; {DURABLE}; SET search_path = \"{}\"; SET statement_timeout = {statement}; SET lock_timeout = {wait}; \
             SET idle_in_transaction_session_timeout = {idle}; SET tcp_user_timeout = {lock}; \
             SET tcp_keepalives_idle = {keepalive}; SET tcp_keepalives_interval = {}; SET tcp_keepalives_count = 3",
            self.schema,
            (keepalive / 3).max(1)
        )
    }

    /// Lets the database notice in mid-statement that nobody is there any more, where its system can tell.
    pub(super) fn connection_check(&self) -> String {
        format!("SET client_connection_check_interval = {}", (self.lock_limit / 2).as_millis().max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d40_a_schema_is_a_plain_name_and_limits_fit_each_other() {
        for schema in ["tidegate", "_a1", "x"] {
            assert!(PostgresOptions::in_schema(schema).check().is_ok(), "{schema}");
        }
        for schema in ["", "1a", "A", "a-b", "a\"b", "pg_x", &"a".repeat(51)] {
            assert!(PostgresOptions::in_schema(schema).check().is_err(), "{schema}");
        }
        let options = PostgresOptions { answer_limit: Duration::from_secs(4), ..PostgresOptions::default() };
        assert!(options.check().unwrap_err().to_string().contains("answer_limit"));
    }
}
