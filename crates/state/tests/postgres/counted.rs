//! What is written, row by row, as the database itself counts it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tidegate_state::driver::ServerId;
use tidegate_state::testing::points::name as point;
use tidegate_state::{
    ClusterHook, HookHandle, Outcome, Ref, Registration, Run, State, StateOptions, Transaction, WaitForHooks,
};
use tokio_postgres::{Client, NoTls};

use super::processes::Large;
use super::support::*;

const SLOTS: u32 = 4;

/// Rows of one table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Rows {
    inserted: i64,
    updated: i64,
    deleted: i64,
}

/// The database's counts of one schema.
struct Counts {
    client: Client,
    schema: String,
}

impl Counts {
    async fn of(schema: &str) -> Counts {
        let (client, connection) = tokio_postgres::connect(&shared().url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        Counts { client, schema: schema.to_owned() }
    }

    /// By table, with all that was done before. A session tells what it has done when it likes, and in any case as it ends: so
    /// those that there are are ended, and servers make new ones.
    async fn now(&self) -> BTreeMap<String, Rows> {
        let end = "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE application_name LIKE 'tidegate-%' AND split_part(application_name, ' ', 2) = $1";
        let ended = self.client.query(end, &[&self.schema]).await.unwrap();
        let ended: Vec<i32> = ended.iter().map(|row| row.get(0)).collect();
        let there = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)";
        eventually("sessions end", async || {
            self.client.query_one(there, &[&ended]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
        let counts =
            "SELECT relname::text, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE schemaname = $1";
        let rows = self.client.query(counts, &[&self.schema]).await.unwrap();
        let of_row = |row: &tokio_postgres::Row| {
            (row.get(0), Rows { inserted: row.get(1), updated: row.get(2), deleted: row.get(3) })
        };
        rows.iter().map(of_row).collect()
    }
}

/// Notes each run in the tree, with its acknowledgement.
struct Noting;

#[async_trait]
impl ClusterHook for Noting {
    async fn run(&self, run: Run) -> Outcome {
        let note: Ref<Large> = Ref::root(format!("of {}", run.key().as_str())).unwrap();
        let text = run.request().revision.to_string();
        Outcome::done_with(move |tx: &mut Transaction| tx.put(&note, Large { text: text.clone() }))
    }
}

async fn register(state: &State) -> HookHandle {
    let hook = Registration::new("noting", 1).on("/counters/{counter}").key("{counter}").slots(SLOTS);
    state.register(hook, 4, Arc::new(Noting)).await.unwrap()
}

async fn hooks_finish(state: &State) {
    let report = state.wait_for_hooks(WaitForHooks::all().limit(LIMIT)).await.unwrap();
    assert!(report.finished);
}

/// D24: two servers that run a hook and have nothing to do, for 200 of their rounds, each of which is longer than a polling
/// interval: by the database's counts no row is written but that each server renews its one lease.
async fn d24_idle_servers_write_their_leases_and_nothing_else() {
    const ROUNDS: usize = 200;
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let driver = store.driver();
    let quick = |mut options: StateOptions| {
        options.poll = Duration::from_millis(4);
        options.entities_behind = Duration::from_millis(8);
        options.compact_every = 1;
        options
    };
    let (first, points_of_first) = open_with(&store, "first", quick).await;
    let (second, points_of_second) = open_with(&store, "second", quick).await;
    let handles = [register(&first).await, register(&second).await];
    for id in ["a", "b", "c", "d"] {
        increment(&first, id).await.unwrap();
    }
    hooks_finish(&second).await;
    eventually("slots are spread and all that is behind is written", async || {
        let stored = driver.stored().await.unwrap();
        let head = stored.meta.head;
        let mut owned: BTreeMap<ServerId, usize> = BTreeMap::new();
        for owner in stored.slots.iter().filter_map(|slot| slot.owner) {
            *owned.entry(owner).or_default() += 1;
        }
        let is_even = owned.len() == 2 && owned.values().all(|slots| *slots == SLOTS as usize / 2);
        is_even && stored.tree.revision == head && stored.slots.iter().all(|slot| slot.watermark >= head)
    })
    .await;

    let counts = Counts::of(&schema).await;
    let before = counts.now().await;
    let leases = async || {
        let (servers, _) = driver.cluster().await.unwrap_or_default();
        servers.into_iter().map(|server| (server.id, server.lease_until)).collect::<BTreeMap<_, _>>()
    };
    let mut leased = BTreeMap::new();
    // Its own session was ended with the others.
    eventually("the leases can be read again", async || {
        leased = leases().await;
        leased.len() == 2
    })
    .await;
    let points = [points_of_first, points_of_second];
    // A round that finds nothing to compact passes the point twice.
    let rounds = points.each_ref().map(|points| points.count(point::UPKEEP_COMPACTION) + 2 * ROUNDS);
    eventually("so many rounds, with a renewal of each lease", async || {
        let now = leases().await;
        let renewed = leased.iter().all(|(id, until)| now.get(id).is_some_and(|now| now > until));
        let far = points.iter().zip(rounds).all(|(points, rounds)| points.count(point::UPKEEP_COMPACTION) >= rounds);
        renewed && far
    })
    .await;
    let after = counts.now().await;
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (table, now) in &after {
        let was = before[table];
        let (inserted, deleted) = (now.inserted - was.inserted, now.deleted - was.deleted);
        let updated = now.updated - was.updated;
        assert_eq!((inserted, deleted), (0, 0), "{table} neither grows nor shrinks");
        assert_eq!(updated > 0, table == "servers", "{updated} rows of {table} were updated");
    }
    eventually("the servers have made new sessions", async || {
        first.flush_within(LIMIT).await.is_ok() && second.flush_within(LIMIT).await.is_ok()
    })
    .await;
    drop(handles);
    agree_and_close(&store, vec![first, second]).await;
}

/// D25: one, ten and 500 transactions at once, each of which asks for a run that completes with a write, and 5 000 changes in
/// one, with two servers: by the database's counts no row of log or receipts is ever updated or deleted.
async fn d25_no_row_of_log_or_receipts_is_updated_or_deleted() {
    const MANY: usize = 5_000;
    let schema = shared().fresh_schema();
    let store = store(&shared().url(), &schema);
    let (first, _) = open(&store, "first").await;
    let (second, _) = open(&store, "second").await;
    let handles = [register(&first).await, register(&second).await];
    for waiting in [1, 10, 500] {
        let writes = (0..waiting).map(|place| {
            let state = if place % 2 == 0 { &first } else { &second };
            async move { increment(state, &format!("n{place}")).await }
        });
        for written in futures::future::join_all(writes).await {
            written.unwrap();
        }
    }
    let many = first.write(|tx: &mut Transaction| {
        (0..MANY).try_for_each(|place| tx.put(&Ref::root(format!("many{place}"))?, Large { text: String::new() }))
    });
    many.await.unwrap();
    hooks_finish(&second).await;
    assert_eq!(value(&first, "n0"), Some(3));
    drop(handles);
    agree_and_close(&store, vec![first, second]).await;

    let written = Counts::of(&schema).await.now().await;
    for (table, is_used) in [("changes", true), ("receipt_blocks", true), ("receipts", false)] {
        let Rows { inserted, updated, deleted } = written[table];
        assert_eq!(inserted > 0, is_used, "{table}: {inserted} rows");
        assert_eq!((updated, deleted), (0, 0), "{table}");
    }
    let stored = store.driver().stored().await.unwrap();
    assert_eq!(stored.receipts.len(), 511, "one for each run");
    assert!(written["changes"].inserted < stored.log.len().try_into().unwrap(), "transactions share rows");
}

super::with_postgres! {
    d24_idle_servers_write_their_leases_and_nothing_else,
    d25_no_row_of_log_or_receipts_is_updated_or_deleted,
}
