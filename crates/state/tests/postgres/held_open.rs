//! K34: a foreign transaction that has read every table stays open beside compaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_state::driver::postgres::PostgresStore;
use tidegate_state::{
    ClusterHook, Outcome, QueueFilter, Registration, RequestState, Revision, Run, State, StateOptions,
};
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};

use super::support::*;

/// What compaction deletes from.
const APPENDED: [&str; 2] = ["changes", "receipt_blocks"];

async fn connect() -> Client {
    let (client, connection) = tokio_postgres::connect(&shared().url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A transaction that no server knows of, with a snapshot of every table.
struct Foreign {
    client: Client,
    schema: String,
}

impl Foreign {
    async fn open(schema: &str) -> Foreign {
        let client = connect().await;
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()").await.unwrap();
        let foreign = Foreign { client, schema: schema.to_owned() };
        let tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = $1";
        let tables = foreign.client.query(tables, &[&schema]).await.unwrap();
        assert!(tables.len() > 8, "{} tables", tables.len());
        for table in tables {
            foreign.rows(table.get(0)).await;
        }
        foreign
    }

    async fn rows(&self, table: &str) -> i64 {
        let count = format!("SELECT count(*) FROM {}.{table}", self.schema);
        self.client.query_one(&count, &[]).await.unwrap().get(0)
    }

    async fn close(self) {
        self.client.batch_execute("ROLLBACK").await.unwrap();
    }
}

/// How many dead rows of a table a vacuum leaves, since somebody may still read them.
async fn dead_rows_after_vacuum(sql: &Client, schema: &str, table: &str) -> i64 {
    sql.batch_execute(&format!("VACUUM (TRUNCATE false) {schema}.{table}")).await.unwrap();
    let dead = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = $2";
    sql.query_one(dead, &[&schema, &table]).await.unwrap().get(0)
}

/// Runs of `/counters/held` do not return before they are let go.
struct Held {
    runs: AtomicUsize,
    go_on: watch::Sender<bool>,
}

#[async_trait]
impl ClusterHook for Held {
    async fn run(&self, run: Run) -> Outcome {
        self.runs.fetch_add(1, Ordering::SeqCst);
        if run.key().as_str() == "held" {
            let _ = self.go_on.subscribe().wait_for(|go_on| *go_on).await;
        }
        Outcome::Done
    }
}

fn compacting(mut options: StateOptions) -> StateOptions {
    options.log_keep = Duration::ZERO;
    options.compact_every = 1;
    options
}

async fn compacted(store: &PostgresStore) -> Revision {
    store.driver().meta().await.unwrap().compacted
}

/// So many changes by several writers at once; the revision of the last.
async fn change(states: [&State; 2], id: &str, times: usize) -> Revision {
    let writes = (0..times).map(|place| increment(states[place % 2], id));
    let written = futures::future::join_all(writes).await;
    written.into_iter().map(|written| written.unwrap().revision).max().unwrap()
}

async fn all_but_one_finish(state: &State) {
    let is_one = async || {
        let list = state.queue().list(QueueFilter::all()).await.unwrap();
        list.len() == 1 && list[0].key == "held" && list[0].state != RequestState::Dead
    };
    eventually("all but the request that is held finish", is_one).await;
}

/// K34: while the foreign transaction is open, changes commit, reach the other server, run and are acknowledged, and the log
/// goes with its receipts, but for the request that runs on, and with that one too once it has ended; who starts beside it has
/// the whole tree. What can't be done then is to use the room of what went: that is done when it has closed.
async fn k34_a_foreign_transaction_that_stays_open_holds_up_nothing() {
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let (writer, _) = open_with(&store, "writer", compacting).await;
    let (runs, _) = open_with(&store, "runs", compacting).await;
    let held = Arc::new(Held { runs: AtomicUsize::new(0), go_on: watch::Sender::new(false) });
    let each = Registration::new("each", 1).on("/counters/{counter}").key("{counter}").slots(4);
    let handle = runs.register(each, 4, held.clone()).await.unwrap();
    change([&writer, &runs], "before", 50).await;
    let waits = increment(&writer, "held").await.unwrap().revision;
    let sql = connect().await;

    let foreign = Foreign::open(&schema).await;
    let seen = foreign.rows("changes").await;
    assert!(seen > 0, "the last change at least is in the log");
    // Watermarks are raised with a thousand revisions to go.
    let mut last = Revision::ZERO;
    for _ in 0..8 {
        last = change([&writer, &runs], "amid", 250).await;
    }
    arrives(&runs, last).await;
    all_but_one_finish(&writer).await;
    eventually("the log goes up to the request that is held", async || compacted(&store).await.next() == waits).await;
    held.go_on.send_replace(true);
    eventually("the log goes past it", async || compacted(&store).await >= waits).await;
    let (late, _) = open(&store, "late").await;
    assert_eq!(value(&late, "amid"), Some(2_000));
    let dead = dead_rows_after_vacuum(&sql, &schema, "changes").await;
    assert_eq!(foreign.rows("changes").await, seen, "it has been open throughout");
    assert!(dead >= seen, "what it may still read can't be cleaned up: {dead} of {seen}");

    foreign.close().await;
    let queue = async || writer.queue().list(QueueFilter::all()).await.unwrap();
    eventually("all finish", async || queue().await.is_empty()).await;
    assert_eq!(held.runs.load(Ordering::SeqCst), 50 + 1 + 2_000, "each once");
    drop(handle);
    agree_and_close(&store, vec![writer, runs, late]).await;
    for table in APPENDED {
        let is_clean = async || dead_rows_after_vacuum(&sql, &schema, table).await == 0;
        eventually("what went is cleaned up", is_clean).await;
    }
}

super::with_postgres! {
    k34_a_foreign_transaction_that_stays_open_holds_up_nothing,
}
