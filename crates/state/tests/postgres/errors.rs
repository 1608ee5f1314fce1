//! What people are told when the database can't be used.

use std::sync::Arc;

use async_trait::async_trait;
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::testing::postgres::PASSWORD_USER;
use tidegate_state::{ClusterHook, DriverError, Outcome, Registration, Run};

use super::support::*;

async fn told(url: &str, schema: &str) -> DriverError {
    let store = PostgresStore::new(url, options(schema)).unwrap();
    let error = store.driver().open(&[]).await.unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    error
}

/// D11: wrong port, host, password, user, database, and missing rights: each its own message, with what to do, and without
/// the secret.
async fn d11_each_way_of_not_reaching_the_database_has_its_message() {
    let (port, schema) = (shared().port(), shared().fresh_schema());
    let admin = store(&shared().url(), &schema);
    let make = format!(
        "DROP ROLE IF EXISTS {PASSWORD_USER}; CREATE ROLE {PASSWORD_USER} LOGIN PASSWORD 'correct';
         REVOKE CREATE ON DATABASE postgres FROM PUBLIC"
    );
    sql(&admin, &make).await;
    let unreachable = told("postgres://u:hunter2@127.0.0.1:1/d?sslmode=disable", "x").await;
    assert!(unreachable.is_retryable() && unreachable.to_string().contains("host and port"), "{unreachable}");
    let unknown = told("postgres://u:hunter2@no-such-host.invalid/d?sslmode=disable", "x").await;
    assert!(unknown.is_retryable() && unknown.to_string().contains("no-such-host.invalid"), "{unknown}");
    let guarded =
        |password: &str| format!("postgres://{PASSWORD_USER}{password}@127.0.0.1:{port}/postgres?sslmode=disable");
    let wrong = told(&guarded(":hunter2"), "x").await;
    assert!(matches!(&wrong, DriverError::Configuration(text) if text.contains("refuses the password")), "{wrong}");
    let none = told(&guarded(""), "x").await;
    assert!(matches!(&none, DriverError::Configuration(text) if text.contains("PGPASSWORD")), "{none}");
    let rights = told(&guarded(":correct"), &schema).await;
    assert!(matches!(&rights, DriverError::Configuration(text) if text.contains("GRANT CREATE")), "{rights}");
    let database = told(&format!("postgres://tidegate:hunter2@127.0.0.1:{port}/nothing?sslmode=disable"), "x").await;
    assert!(matches!(&database, DriverError::Configuration(text) if text.contains("createdb")), "{database}");
    let plain = told(&format!("postgres://tidegate@127.0.0.1:{port}/postgres?sslmode=require"), "x").await;
    assert!(matches!(&plain, DriverError::Configuration(text) if text.contains("sslmode")), "{plain}");
}

/// Runs and does nothing.
struct Nothing;

#[async_trait]
impl ClusterHook for Nothing {
    async fn run(&self, _: Run) -> Outcome {
        Outcome::Done
    }
}

/// D5: tables of a newer format: a start is refused and nothing is written; a running server writes no more and reads on, and
/// what it owned passes on, since its lease is not renewed.
async fn d05_a_newer_format_is_refused_and_said() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let (state, _) = open(&store, "server").await;
    let hook = Registration::new("nothing", 1).on("/counters/{counter}").key("{counter}");
    let registered = state.register(hook, 1, Arc::new(Nothing)).await.unwrap();
    let lives = async || state.cluster().await.unwrap().servers.iter().any(|server| server.lives);
    eventually("it joins", lives).await;
    put(&state, "n", 1).await.unwrap();
    sql(&store, &format!("UPDATE {schema}.meta SET format = 99")).await;
    let refused = put(&state, "n", 2).await.unwrap_err();
    assert!(refused.to_string().contains("99") && refused.to_string().contains('2'), "{refused}");
    assert_eq!(value(&state, "n"), Some(1));
    let start = store.driver().open(&[]).await;
    assert!(matches!(start, Err(DriverError::NewerFormat { found: 99, known: 2 })), "{start:?}");
    eventually("its lease ends", async || !lives().await).await;
    sql(&store, &format!("UPDATE {schema}.meta SET format = 2")).await;
    eventually("it joins again", lives).await;
    put(&state, "n", 3).await.unwrap();
    drop(registered);
    agree_and_close(&store, vec![state]).await;
}

/// D3: many servers come to an empty database at once: one epoch, and the tables are made once.
async fn d03_many_servers_make_the_tables_once() {
    let schema = shared().fresh_schema();
    let options = PostgresOptions { connect_limit: LIMIT, answer_limit: LIMIT, ..options(&schema) };
    let store = PostgresStore::new(&shared().url(), options).unwrap();
    let opening = (0..8).map(|_| {
        let driver = store.driver();
        tokio::spawn(async move { driver.open(&[]).await.unwrap() })
    });
    let metas = futures::future::join_all(opening).await;
    let first = metas[0].as_ref().unwrap().clone();
    assert!(metas.iter().all(|meta| *meta.as_ref().unwrap() == first));
}

super::with_postgres! {
    d11_each_way_of_not_reaching_the_database_has_its_message,
    d05_a_newer_format_is_refused_and_said,
    d03_many_servers_make_the_tables_once,
}
