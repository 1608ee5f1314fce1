//! The contract of drivers on PostgreSQL, each test in a schema of its own.

use std::sync::Arc;

use tokio_postgres::NoTls;

use super::connection::Role;
use super::{PostgresOptions, PostgresStore, compaction, log, pending, receipts, records};
use crate::driver::RecordId;
use crate::record::{IndexKey, RecordCursor, RecordQuery};
use crate::revision::Revision;
use crate::testing::driver_contract::{self as contract, START, Subject};
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
        ("page", log::PAGE, format!("({ROWS}, '{id}', 1000, NULL, {ROWS})")),
        ("pending", pending::PENDING, format!("({ROWS}, 1, 1000)")),
        ("bounds", compaction::BOUNDS, String::new()),
        ("passed_rows", compaction::PASSED[0], format!("({ROWS}, {ROWS})")),
        ("passed_blocks", compaction::PASSED[1], format!("({ROWS}, {ROWS})")),
        ("received", receipts::RECEIVED_BLOCKS, format!("(1, {ROWS}, {ROWS})")),
    ];
    for (name, sql, given) in &statements {
        client.batch_execute(&format!("PREPARE {name} AS {sql}; EXECUTE {name}{given}")).await.unwrap();
    }
    let fill = "INSERT INTO changes (revision, at, submission, body)
                SELECT n, 0, $1, '' FROM generate_series(1, $2::bigint) n";
    client.execute(fill, &[&id, &ROWS]).await.unwrap();
    let fill = "INSERT INTO receipt_blocks (hook, first_revision, last_revision, receipts)
                SELECT 1, n, n, '' FROM generate_series(1, $1::bigint) n";
    client.execute(fill, &[&ROWS]).await.unwrap();
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

/// Given 100 000 records, a page wherever it lies in an index is a search in it, by a plan that was made when there was no
/// record: nothing is read through, skipped or sorted, and the last page costs what the first does, forwards and back.
#[tokio::test]
async fn r06_the_last_page_costs_what_the_first_does() {
    const ROWS: i64 = 100_000;
    const LIMIT: usize = 50;
    let Some((subject, store)) = subject().await else { return };
    subject.driver.open(&[contract::declaration(None)]).await.unwrap();
    let (client, connection) = tokio_postgres::connect(&postgres::shared().unwrap().url(), NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(&store.options().settings(Role::Read)).await.unwrap();
    let kinds = records::Kinds::read(&client.query(&*records::read_kinds_call().sql, &[]).await.unwrap()).unwrap();
    let after = |row: i64| {
        let id = RecordId { revision: Revision(row.unsigned_abs()), sequence: 0 };
        Some(RecordCursor { key: row.to_be_bytes().to_vec(), id })
    };
    let page = i64::try_from(LIMIT).unwrap();
    let places = [
        ("first", None, false),
        ("last", after(ROWS - page), false),
        ("first_back", None, true),
        ("last_back", after(page + 1), true),
    ];
    let mut executed = Vec::new();
    for (place, cursor, backwards) in places {
        let (kind, index, prefix) = ("run".into(), "by-number".to_owned(), IndexKey::new());
        let query = RecordQuery { kind, index, prefix, cursor, backwards, limit: LIMIT };
        let call = records::page_call(&kinds, &query).unwrap();
        let given: Vec<String> = call.values.iter().map(|value| literal(&format!("{value:?}"))).collect();
        let execute = format!("EXECUTE {place}({})", given.join(", "));
        client.batch_execute(&format!("PREPARE {place} AS {}; {execute}", call.sql)).await.unwrap();
        executed.push((place, execute));
    }
    let fill = format!(
        "INSERT INTO records SELECT {kind}, n, 0, true, 0, 1, '{{}}', '' FROM generate_series(1, {ROWS}) n;
         INSERT INTO record_index SELECT {kind}, 1, int8send(n), n, 0 FROM generate_series(1, {ROWS}) n",
        kind = kinds.numbers["run"]
    );
    client.batch_execute(&fill).await.unwrap();
    let mut touched = Vec::new();
    for (place, execute) in executed {
        let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) {execute}");
        let lines: Vec<String> = client.simple_query(&explain).await.unwrap().iter().filter_map(text_of).collect();
        let plan = lines.join("\n");
        // What is put in order at the end is the page alone.
        let within: Vec<&String> = lines.iter().filter(|line| line.contains("->")).collect();
        assert!(!within.iter().any(|line| line.contains("Seq Scan") || line.contains("Sort")), "{place}: {plan}");
        let range = within.iter().find(|line| line.contains("record_index_pkey")).expect("a search in the index");
        let read = [LIMIT, LIMIT + 1].map(|rows| range.contains(&format!("(actual rows={rows} loops=1)")));
        assert!(read.contains(&true) && !plan.contains("Rows Removed by Filter"), "{place}: {plan}");
        let buffers = lines.iter().find(|line| line.contains("Buffers:")).expect("what was touched");
        let pages = |what: &str| -> u64 {
            let count = buffers.split_once(&format!("{what}=")).map(|(_, rest)| rest.split(' ').next().unwrap());
            count.map_or(0, |count| count.parse().unwrap())
        };
        touched.push((place, pages("hit") + pages("read"), plan));
    }
    for (place, pages, plan) in &touched {
        // Each record is looked up by its id, in an index of three levels.
        assert!(*pages <= 6 * (LIMIT as u64 + 1), "{place} touches {pages} pages: {plan}");
    }
    let costs: Vec<u64> = touched.iter().map(|(_, pages, _)| *pages).collect();
    let (least, most) = (costs.iter().min().unwrap(), costs.iter().max().unwrap());
    assert!(most - least <= least / 4, "pages touched: {costs:?}");
    drop(client);
    connection.await.unwrap().unwrap();
}

/// A value as SQL has it, from how it is shown.
fn literal(shown: &str) -> String {
    let Some(bytes) = shown.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else { return shown.to_owned() };
    let bytes = bytes.split(", ").filter(|byte| !byte.is_empty());
    let hex: String = bytes.map(|byte| format!("{:02x}", byte.parse::<u8>().unwrap())).collect();
    format!("'\\x{hex}'::bytea")
}

fn text_of(message: &tokio_postgres::SimpleQueryMessage) -> Option<String> {
    match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }
}
