//! The contract of drivers on PostgreSQL, each test in a schema of its own.

use std::sync::Arc;

use super::{PostgresOptions, PostgresStore};
use crate::testing::driver_contract::{START, Subject};
use crate::testing::postgres;

/// A subject on an empty store; none where there is no PostgreSQL.
async fn subject() -> Option<(Subject, PostgresStore)> {
    if postgres::skipped().is_some() {
        return None;
    }
    let server = postgres::shared().unwrap();
    let clock = crate::clock::ManualClock::new(START);
    let options = PostgresOptions { clock: Some(Arc::new(clock.clone())), ..server.test_options() };
    let store = PostgresStore::new(&server.url(), options).unwrap();
    let driver = store.driver();
    driver.open(&[]).await.unwrap();
    Some((Subject { driver, clock }, store))
}

crate::driver_contract_tests!(match subject().await {
    Some(made) => made,
    None => return,
});
