//! The contract of drivers on PostgreSQL, each test in a schema of its own.

use std::sync::Arc;

use tokio_postgres::NoTls;

use super::connection::Role;
use super::{PostgresOptions, PostgresStore, compaction, driver, log};
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

/// What is asked for at the head of a long log costs the same as at the head of a short one, by a plan that was made when
/// the log was empty: it touches a few pages, and not each row.
#[tokio::test]
async fn d25_what_is_read_at_the_head_of_a_long_log_is_found_by_its_index() {
    const ROWS: i64 = 20_000;
    const PAGES_MAX: u64 = 40;
    let Some((_, store)) = subject().await else { return };
    let (client, connection) = tokio_postgres::connect(&postgres::shared().unwrap().url(), NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(&store.options().settings(Role::Open)).await.unwrap();
    let id = uuid::Uuid::nil();
    let statements = [
        ("page", log::PAGE, format!("({ROWS}, '{id}', 1000, NULL)")),
        ("pending", driver::PENDING, format!("({ROWS}, 1, 1000)")),
        ("bounds", compaction::BOUNDS, String::new()),
    ];
    for (name, sql, given) in &statements {
        client.batch_execute(&format!("PREPARE {name} AS {sql}; EXECUTE {name}{given}")).await.unwrap();
    }
    let fill = "INSERT INTO changes (revision, at, submission, body)
                SELECT n, 0, $1, '' FROM generate_series(1, $2::bigint) n";
    client.execute(fill, &[&id, &ROWS]).await.unwrap();
    for (name, _, given) in &statements {
        let explain = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE {name}{given}");
        let plan: serde_json::Value = serde_json::from_str(
            &client.simple_query(&explain).await.unwrap().iter().find_map(text_of).expect("a plan"),
        )
        .unwrap();
        let pages = plan[0]["Plan"]["Shared Hit Blocks"].as_u64().unwrap();
        let read = plan[0]["Plan"]["Shared Read Blocks"].as_u64().unwrap();
        assert!(pages + read <= PAGES_MAX, "{name} touches {} pages: {plan:#}", pages + read);
    }
    drop(client);
    connection.await.unwrap().unwrap();
}

fn text_of(message: &tokio_postgres::SimpleQueryMessage) -> Option<String> {
    match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }
}
