//! D39: a release beside the one before it, on that one's store, and what ends that.
//!
//! The release before is played by its own statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_state::driver::postgres::{PostgresOptions, PostgresStore};
use tidegate_state::testing::points::{Points, name as point};
use tidegate_state::{ClusterHook, HookHandle, Outcome, Registration, Run, State, StateOptions};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use super::support::*;

/// A server of format 1, as far as the database sees it.
struct ReleaseBefore {
    id: Uuid,
    sql: Client,
}

impl ReleaseBefore {
    async fn connect(schema: &str) -> ReleaseBefore {
        let (sql, connection) = tokio_postgres::connect(&shared().url(), NoTls).await.unwrap();
        // It ends with the client.
        tokio::spawn(connection);
        sql.batch_execute(&format!("SET search_path = {schema}")).await.unwrap();
        ReleaseBefore { id: Uuid::new_v4(), sql }
    }

    /// Enters itself for an hour; false if it is refused.
    async fn join(&self) -> bool {
        let enter = r#"
            INSERT INTO servers (id, name, lease_until, draining, applied, hooks, load)
            SELECT $1, 'before', 3600000 + (extract(epoch FROM transaction_timestamp()) * 1000)::bigint, false, 0,
                   '[]', '{"waiting": []}'
            WHERE (SELECT format FROM meta) <= 1"#;
        self.sql.execute(enter, &[&self.id]).await.unwrap() == 1
    }

    async fn is_let_live(&self) -> bool {
        let heartbeat = "UPDATE servers SET applied = applied WHERE id = $1 AND (SELECT format FROM meta) <= 1";
        self.sql.execute(heartbeat, &[&self.id]).await.unwrap() == 1
    }

    async fn leave(&self) {
        self.sql.execute("DELETE FROM servers WHERE id = $1", &[&self.id]).await.unwrap();
    }

    /// As a server that was killed does not.
    async fn lapse(&self) {
        self.sql.execute("UPDATE servers SET lease_until = 0 WHERE id = $1", &[&self.id]).await.unwrap();
    }

    /// Commits what was committed last once more, while nobody else does. Its revision.
    async fn write(&self) -> u64 {
        let append = "
            INSERT INTO changes (revision, at, submission, hooks, body)
            SELECT revision + 1, at, gen_random_uuid(), hooks, body FROM changes ORDER BY revision DESC LIMIT 1";
        self.sql.batch_execute(append).await.unwrap();
        self.number("SELECT max(revision) FROM changes").await.unsigned_abs()
    }

    /// The receipts that it can read.
    async fn receipts(&self) -> i64 {
        self.number("SELECT count(*) FROM receipts").await
    }

    async fn number(&self, query: &str) -> i64 {
        self.sql.query_one(query, &[]).await.unwrap().get(0)
    }

    /// The rows of the log that it can't read.
    async fn blocks(&self) -> i64 {
        self.number("SELECT count(*) FROM changes WHERE get_byte(body, 0) = 2").await
    }

    async fn format(&self) -> i64 {
        self.number("SELECT format::bigint FROM meta").await
    }
}

/// So many changes that can be committed together.
async fn at_once(state: &State, count: usize) {
    for made in futures::future::join_all((0..count).map(|_| increment(state, "a"))).await {
        made.unwrap();
    }
}

struct Counts(AtomicUsize);

#[async_trait]
impl ClusterHook for Counts {
    async fn run(&self, _run: Run) -> Outcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        Outcome::Done
    }
}

fn in_every_round(mut options: StateOptions) -> StateOptions {
    options.compact_every = 1;
    options
}

/// A server of this release, with the hook.
async fn start(store: &PostgresStore, name: &str, counts: &Arc<Counts>) -> (State, HookHandle, Points) {
    let (state, points) = open_with(store, name, in_every_round).await;
    let each = Registration::new("each", 1).on("/counters/{counter}").key("{counter}").slots(4);
    let handle = state.register(each, 4, counts.clone()).await.unwrap();
    (state, handle, points)
}

/// Given a store of the release before with one of its servers, this release runs on it and keeps to its format, so that what
/// the other one reads is there, whichever of them goes and comes back. With the last one of that release gone the store is
/// contracted: nothing is lost and nothing runs again, and that release is refused from then on.
async fn d39_two_releases_share_a_store_until_the_older_one_is_gone() {
    let schema = shared().fresh_schema();
    let options = PostgresOptions { contract_after: Duration::from_millis(300), ..options(&schema) };
    let store = PostgresStore::new(&shared().url(), options).unwrap();
    store.make_in_format(1).await.unwrap();
    let before = ReleaseBefore::connect(&schema).await;
    assert!(before.join().await, "its own store");
    // Somebody who reads every table for long, as a backup does, holds up no release.
    let reader = ReleaseBefore::connect(&schema).await;
    reader.sql.batch_execute("BEGIN; SELECT * FROM servers, slots, receipts, changes, meta, exceptions").await.unwrap();
    let counts = Arc::new(Counts(AtomicUsize::new(0)));
    let ran = async |times| {
        eventually("all have run", async || counts.0.load(Ordering::SeqCst) >= times).await;
        assert_eq!(counts.0.load(Ordering::SeqCst), times, "each once");
    };

    // This release joins: it adds to the tables, and writes what the other one reads.
    let (state, handle, _) = start(&store, "this", &counts).await;
    at_once(&state, 10).await;
    ran(10).await;
    drop(reader);
    eventually("the other one sees all receipts", async || before.receipts().await == 10).await;
    assert_eq!((before.number("SELECT count(*) FROM receipt_blocks").await, before.blocks().await), (0, 0));
    assert!(before.is_let_live().await);

    // The other one writes on, and this one follows; what that asked for is run here.
    let revision = before.write().await;
    arrives(&state, tidegate_state::Revision(revision)).await;
    ran(11).await;

    // One goes back to the release before, on a store that both have written.
    drop(handle);
    state.close().await;
    let back = ReleaseBefore::connect(&schema).await;
    assert!(back.join().await && before.format().await == 1);
    assert_eq!(back.receipts().await, 11);
    let (state, handle, points) = start(&store, "again", &counts).await;
    before.leave().await;
    increment(&state, "a").await.unwrap();
    ran(12).await;
    let rounds = points.count(point::UPKEEP_COMPACTION);
    eventually("upkeep has been at it", async || points.count(point::UPKEEP_COMPACTION) > rounds + 2).await;
    assert_eq!((back.format().await, back.receipts().await), (1, 12), "as long as one is there");

    // All are replaced, the last one by being killed.
    back.lapse().await;
    eventually("the store is contracted", async || back.format().await == 2).await;
    assert!(!back.is_let_live().await && !before.join().await, "that release is refused");
    let mut asked = 12;
    eventually("this server knows", async || {
        at_once(&state, 10).await;
        asked += 10;
        before.number("SELECT count(*) FROM receipt_blocks").await > 0 && before.blocks().await > 0
    })
    .await;
    ran(asked).await;
    let receipts = async || before.number("SELECT count(*) FROM stored_receipts").await.unsigned_abs();
    eventually("all have receipts", async || receipts().await == asked as u64).await;
    let in_rows = before.receipts().await;

    // Who takes its slots over knows the receipts of both.
    drop(handle);
    state.close().await;
    let (state, handle, _) = start(&store, "last", &counts).await;
    increment(&state, "a").await.unwrap();
    ran(asked + 1).await;
    assert_eq!(before.receipts().await, in_rows, "those of before stay as they are, and there are no more");
    drop(handle);
    agree_and_close(&store, vec![state]).await;
}

super::with_postgres! {
    d39_two_releases_share_a_store_until_the_older_one_is_gone,
}
