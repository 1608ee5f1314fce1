//! The contract of drivers on PostgreSQL, each test in a schema of its own.

use std::sync::Arc;

use tokio_postgres::NoTls;

use super::connection::Role;
use super::driver::PostgresDriver;
use super::{PostgresOptions, PostgresStore, compaction, log, pending, receipts, records, schema};
use crate::driver::{Driver as _, DriverError, RecordId};
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
    let id: uuid::Uuid = client.query_one("SELECT epoch FROM meta", &[]).await.unwrap().get(0);
    let format = schema::FORMAT;
    let statements = [
        ("page", log::PAGE, format!("({ROWS}, '{id}', 1000, NULL, {ROWS})")),
        ("news", log::NEWS, format!("({ROWS} - 3, '{id}', {ROWS}, {format})")),
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

/// Given blocks of all sizes, a look at the news alone has, after whatever revision, what the whole look has, or nothing where
/// there may be more than it has seen, and nothing in another epoch or from before where the log begins.
#[tokio::test]
async fn d14_a_look_at_the_news_alone_has_all_of_them_or_none() {
    let Some((subject, store)) = subject().await else { return };
    let driver = PostgresDriver::new(store.shared().clone());
    let epoch = subject.epoch().await;
    for count in [1, 2, 64, 63, 1, 1, 200, 3, 64, 64, 1] {
        subject.put(count, &[]).await;
    }
    let head = subject.head().await;
    let news = async |epoch, after| {
        let rows = driver.read(vec![log::news_call(epoch, after, schema::FORMAT)]).await.unwrap();
        log::read_news(&rows[0], after).unwrap()
    };
    let mut seen_alone = 0;
    for after in (0..=head.0).map(Revision) {
        let whole = subject.driver.read_log(epoch, after, 1_000).await.unwrap();
        match news(epoch, after).await {
            Some(alone) => {
                assert_eq!((alone.head, &alone.rows), (head, &whole.rows), "after {after}");
                assert!(!alone.rows.is_empty());
                seen_alone += 1;
            }
            None => assert!(after == head || head.0 - after.0 >= log::NEWS_ROWS, "after {after}"),
        }
    }
    assert_eq!(seen_alone, log::NEWS_ROWS - 1);
    assert!(news(crate::revision::Epoch(uuid::Uuid::nil()), Revision(head.0 - 1)).await.is_none());
    let (client, connection) = tokio_postgres::connect(&postgres::shared().unwrap().url(), NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(&store.options().settings(Role::Open)).await.unwrap();
    client.execute("UPDATE meta SET compacted = $1", &[&(head.0.cast_signed() - 1)]).await.unwrap();
    assert!(news(epoch, Revision(head.0 - 2)).await.is_none());
    assert!(news(epoch, Revision(head.0 - 1)).await.is_some());
    drop(client);
    connection.await.unwrap().unwrap();
}

/// Given a server that has just looked at the log, when it is told of a few rows, it reads these alone; where it was told of
/// anything else, where they are not there, or where the store is not as it was, the whole look is made, and says why.
#[tokio::test]
async fn d14_the_news_are_read_alone_only_where_the_store_is_as_it_was() {
    const ROWS_MAX: usize = 1_000;
    let Some((subject, store)) = subject().await else { return };
    let driver = PostgresDriver::new(store.shared().clone());
    driver.open(&[]).await.unwrap();
    let epoch = subject.epoch().await;
    let (client, connection) = tokio_postgres::connect(&postgres::shared().unwrap().url(), NoTls).await.unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(&store.options().settings(Role::Open)).await.unwrap();
    // However long a step of the test takes.
    let has_just_looked = || {
        let later = std::time::Instant::now() + std::time::Duration::from_secs(3_600);
        driver.links.entities.lock().as_mut().unwrap().looked_at = later;
    };
    let told = |payload: &str| driver.shared().news.heard(payload);
    let first = subject.put(3, &[]).await;
    told(&first.to_string());
    assert!(driver.read_news(epoch, Revision(0), ROWS_MAX).await.unwrap().is_none(), "it has not looked yet");
    assert_eq!(driver.read_log(epoch, Revision(0), ROWS_MAX).await.unwrap().head, first);
    has_just_looked();
    assert!(driver.read_news(epoch, first, ROWS_MAX).await.unwrap().is_none(), "it was told of nothing");

    let second = subject.put(5, &[]).await;
    told(&second.to_string());
    let alone = driver.read_news(epoch, first, ROWS_MAX).await.unwrap().unwrap();
    let whole = subject.driver.read_log(epoch, first, ROWS_MAX).await.unwrap();
    assert_eq!((alone.head, alone.rows), (whole.head, whole.rows.clone()));
    assert!(driver.read_news(epoch, first, 7).await.unwrap().is_none(), "it may be more than was asked for");
    told("epoch");
    assert!(driver.read_news(epoch, first, ROWS_MAX).await.unwrap().is_none(), "it was told of something else");
    assert_eq!(driver.read_log(epoch, first, ROWS_MAX).await.unwrap().rows, whole.rows);
    has_just_looked();

    // Told of what is not there, it looks for that once.
    told(&second.next().to_string());
    assert!(driver.read_news(epoch, second, ROWS_MAX).await.unwrap().is_none());
    assert!(driver.read_log(epoch, second, ROWS_MAX).await.unwrap().rows.is_empty());
    assert!(!driver.shared().news.is_a_few_rows(second, log::NEWS_TOLD));

    let third = subject.put(1, &[]).await;
    has_just_looked();
    told(&third.to_string());
    client.execute("UPDATE meta SET format = format + 1", &[]).await.unwrap();
    let refused = driver.read_log(epoch, second, ROWS_MAX).await;
    assert!(matches!(refused, Err(DriverError::NewerFormat { .. })), "{refused:?}");
    client.execute("UPDATE meta SET format = format - 1, epoch = gen_random_uuid()", &[]).await.unwrap();
    let refused = driver.read_log(epoch, second, ROWS_MAX).await;
    assert!(matches!(refused, Err(DriverError::EpochChanged { .. })), "{refused:?}");
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
