//! A process is killed, or stopped, with so many bytes sent of what it is at: of its first start (D4), and of the writing of
//! entities (D42). The bytes are counted by a proxy, so that each step of a transaction is met, and what lies between two.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::RngExt;
use tidegate_state::driver::postgres::PostgresStore;
use tidegate_state::testing::linter::lint;
use tidegate_state::testing::points::name as point;
use tidegate_state::testing::proxy::Direction;
use tidegate_state::{Revision, State, StateOptions};
use tokio_postgres::NoTls;

use super::processes::{Process, initial, raise_pair};
use super::support::*;

/// D4: a process is killed at each step of the migration and of the writing of the initial state. The next start finds nothing
/// or all of it, completes, and has one initial state.
async fn d04_killed_at_each_step_of_the_first_start() {
    let mut random = random();
    let proxy = proxy_to(shared()).await;
    let url = shared().url_at(proxy.port());
    let mut bytes = 0;
    let mut killed = 0;
    loop {
        let schema = shared().fresh_schema();
        bytes += random.random_range(100..800);
        proxy.silence_after(Direction::Upstream, bytes);
        let mut process = Process::start(&url, &schema);
        let opened = tokio::select! {
            () = proxy.fallen_silent(Direction::Upstream) => false,
            _ = process.says("opened") => true,
        };
        process.kill();
        proxy.cut();
        proxy.resume();
        killed += usize::from(!opened);
        let store = store(&shared().url(), &schema);
        let mut options = StateOptions::new("next").initialise(initial);
        (options.lease, options.poll) = (LEASE, POLL);
        let next = State::open(store.driver(), options).await.unwrap();
        assert_eq!(value(&next, "initial"), Some(1), "killed after {bytes} bytes");
        next.flush_within(LIMIT).await.unwrap();
        assert_eq!(next.snapshot().revision(), Revision(1), "killed after {bytes} bytes: one initial state");
        next.close().await;
        let stored = store.driver().stored().await.unwrap();
        assert_eq!(lint(&stored, &[]), []);
        store.drop_schema().await.unwrap();
        if opened {
            break;
        }
    }
    assert!(killed > 10, "{killed} kills amid a start");
}

/// Reads the stored entities as a person does who has only SQL, again and again: each time they are those of one revision, which
/// they name, and that never falls.
struct Reader {
    stop: Arc<AtomicBool>,
    reading: tokio::task::JoinHandle<u64>,
}

impl Reader {
    async fn on(schema: &str) -> Reader {
        let (client, connection) = tokio_postgres::connect(&shared().url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        let sql = format!(
            "SELECT m.at, e.path, e.revision, (e.document ->> 'n')::bigint, m.count
             FROM {schema}.entities_mark m LEFT JOIN {schema}.entities e ON true"
        );
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let reading = tokio::spawn(async move {
            let (mut last, mut looks) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let rows = client.query(&sql, &[]).await.unwrap();
                let at: i64 = rows[0].get(0);
                assert!(at >= last, "the entities went back from {last} to {at}");
                last = at;
                let found: Vec<(String, i64, i64)> = rows
                    .iter()
                    .filter_map(|row| Some((row.get::<_, Option<String>>(1)?, row.get(2), row.get(3))))
                    .collect();
                assert_eq!(rows[0].get::<_, i64>(4), i64::try_from(found.len()).unwrap());
                // Revision 1 is the initial state; each one after it has raised both counters by one.
                for (path, revision, n) in &found {
                    let expected = if path == "/counters/initial" { (1, 1) } else { (at, at - 1) };
                    assert_eq!((*revision, *n), expected, "{path} in the entities at {at}: {found:?}");
                }
                looks += 1;
                // Often enough to look in between any two steps, and not all that the machine does.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            looks
        });
        Reader { stop, reading }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert!(self.reading.await.unwrap() > 0);
    }
}

async fn entities_reach(store: &PostgresStore, head: Revision) {
    let behind = async || store.driver().stored().await.unwrap().tree.revision;
    eventually("the entities are written", async || behind().await >= head).await;
}

/// D42: the process that writes entities is killed at each step of it, or stopped there and goes on when another has long
/// written further. A reader with SQL sees whole transactions only, and of which revision; nothing is ever set back.
async fn d42_killed_or_stopped_at_each_step_of_the_writing_of_entities() {
    let mut random = random();
    let schema = shared().fresh_schema();
    let proxy = proxy_to(shared()).await;
    let url = shared().url_at(proxy.port());
    let store = store(&shared().url(), &schema);
    let mut process = Process::open(&url, &schema).await;
    let (beside, points) = open(&store, "beside").await;
    let reader = Reader::on(&schema).await;
    let place = point::UPKEEP_BEFORE_ENTITIES;
    let mut bytes = 0;
    for round in 0..16 {
        // Only the process writes them now.
        let hold = points.hold(place);
        process.does(&format!("hold {place}")).await;
        let revision = raise_pair(&beside).await.unwrap().revision;
        process.does(&format!("reached {place}")).await;
        bytes = if round % 8 == 0 { 1 } else { bytes + random.random_range(20..350) };
        proxy.silence_after(Direction::Upstream, bytes);
        process.does(&format!("release {place}")).await;
        proxy.fallen_silent(Direction::Upstream).await;
        if round % 2 == 0 {
            process.kill();
            proxy.cut();
            proxy.resume();
            hold.release();
            entities_reach(&store, revision).await;
            process = Process::open(&url, &schema).await;
        } else {
            process.stop();
            hold.release();
            let further = raise_pair(&beside).await.unwrap().revision;
            // The database throws the process out, and the other goes on.
            entities_reach(&store, further).await;
            process.go_on();
            proxy.resume();
            // It is there again: in the next round it is its turn.
        }
    }
    let head = raise_pair(&beside).await.unwrap().revision;
    entities_reach(&store, head).await;
    process.kill();
    reader.end().await;
    agree_and_close(&store, vec![beside]).await;
}

super::with_postgres! {
    d04_killed_at_each_step_of_the_first_start,
    d42_killed_or_stopped_at_each_step_of_the_writing_of_entities,
}
