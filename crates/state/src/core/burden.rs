//! Looks at what the store can't clean up, for the metrics, and warns of a transaction that keeps it from that for long.

use std::sync::Arc;

use super::Core;
use crate::driver::{Burden, OldestTransaction};

/// So many looks there are in the time after which a transaction is warned of.
const LOOKS: u32 = 10;

pub(super) async fn run(core: Arc<Core>) {
    let mut warned_of: Option<String> = None;
    loop {
        let pause = core.options.long_transaction.mul_f64(rand::random_range(0.8..1.2)) / LOOKS;
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        match core.driver.burden().await {
            Ok(burden) => warned_of = core.report_burden(&burden, warned_of),
            // It says nothing of the store's work, which tells by itself when the store is away.
            Err(error) => tracing::debug!(server = %core.server, %error, "dead rows can't be counted"),
        }
    }
}

impl Core {
    /// Says which connection was warned of, so that each is once.
    fn report_burden(&self, burden: &Burden, warned_of: Option<String>) -> Option<String> {
        for (table, dead) in &burden.dead_rows {
            self.metrics.set_dead_rows(table, *dead);
        }
        let age = burden.oldest.as_ref().map_or(0, |oldest| oldest.age.as_secs());
        self.metrics.oldest_transaction.set(i64::try_from(age).unwrap_or(i64::MAX));
        let Some(OldestTransaction { connection, age }) = &burden.oldest else { return None };
        if *age < self.options.long_transaction {
            return None;
        }
        if warned_of.as_ref() != Some(connection) {
            tracing::warn!(
                server = %self.server,
                %connection,
                "a transaction has been open for {age:?}: until it ends, the database cleans nothing up that was deleted \
                 or replaced since it began, and its tables grow; end it, or have it ended by \
                 idle_in_transaction_session_timeout"
            );
        }
        Some(connection.clone())
    }
}
