//! D32: a process is stopped while it holds the write lock, wherever it is in what it sends or is told, and goes on later.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rand::RngExt;
use tidegate_state::driver::postgres::PostgresStore;
use tidegate_state::testing::points::name as point;
use tidegate_state::testing::proxy::{Direction, Proxy};
use tidegate_state::{ClusterHook, HookHandle, Outcome, Registration, Run, State, WaitForHooks};

use super::processes::{Process, put_large};
use super::support::*;

/// Nearly as much as an entity can hold: more than the system's buffers take of a statement at once.
const LARGE: usize = 7 << 20;

/// How much longer than the lock limit others may wait for a holder that was stopped: one commit, and a busy machine.
const SLACK: Duration = Duration::from_secs(5);

struct Counting(Arc<AtomicUsize>);

#[async_trait]
impl ClusterHook for Counting {
    async fn run(&self, _run: Run) -> Outcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        Outcome::Done
    }
}

/// A process that reaches its database through a proxy, and a server beside it that does not and runs a hook.
struct World {
    store: PostgresStore,
    proxy: Proxy,
    process: Process,
    beside: State,
    runs: Arc<AtomicUsize>,
    written: i64,
    _handle: HookHandle,
}

impl World {
    async fn open() -> World {
        let schema = shared().fresh_schema();
        let proxy = proxy_to(shared()).await;
        let store = store(&shared().url(), &schema);
        let process = Process::open(&shared().url_at(proxy.port()), &schema).await;
        let (beside, _) = open(&store, "beside").await;
        let runs = Arc::new(AtomicUsize::new(0));
        let each = Registration::new("each", 1).on("/counters/{counter}").key("{counter}").slots(4);
        let handle = beside.register(each, 2, Arc::new(Counting(runs.clone()))).await.unwrap();
        let joined = async { beside.member().wait_for(Option::is_some).await.map(|_| ()) };
        tokio::time::timeout(LIMIT, joined).await.unwrap().unwrap();
        World { store, proxy, process, beside, runs, written: 0, _handle: handle }
    }

    /// The process is stopped now: the server beside it writes within the lock limit, and its lease goes on.
    async fn others_write(&mut self, what: &str) {
        let member = self.beside.member();
        let joined = *member.borrow();
        let started = Instant::now();
        for _ in 0..3 {
            let written = increment(&self.beside, "beside").await;
            let written = written.unwrap_or_else(|error| panic!("{what}: {error}"));
            self.written += 1;
            assert_eq!(written.value, self.written);
        }
        let waited = started.elapsed();
        assert!(waited < LOCK_LIMIT + SLACK, "{what}: others waited {waited:?} for the lock");
        assert!(joined.is_some() && joined == *member.borrow(), "{what}: no lease of theirs runs out");
    }

    /// The process does as it is told, and is stopped when it has sent so many bytes from a point on.
    async fn is_stopped_after(&mut self, order: &str, place: &str, bytes: usize) {
        self.process.does(&format!("hold {place}")).await;
        self.process.order(order);
        self.process.does(&format!("reached {place}")).await;
        self.proxy.silence_after(Direction::Upstream, bytes);
        // Not waited for: should so many bytes be enough, what it says then would be passed over.
        self.process.order(&format!("release {place}"));
        self.proxy.fallen_silent(Direction::Upstream).await;
        self.process.stop();
        self.others_write(&format!("{order}: {bytes} bytes after {place}")).await;
    }

    /// The process goes on, and what it was at is done once.
    async fn goes_on(&mut self) -> String {
        self.process.go_on();
        self.proxy.resume();
        self.process.says("written").await
    }

    /// Everything is sound, and each change was given to the hook once.
    async fn finish(self, by_the_process: usize) {
        let World { store, process, beside, runs, written, .. } = self;
        beside.flush_within(LIMIT).await.unwrap();
        beside.wait_for_hooks(WaitForHooks::all().limit(LIMIT)).await.unwrap();
        let expected = usize::try_from(written).unwrap() + by_the_process;
        assert_eq!(runs.load(Ordering::SeqCst), expected, "no run of theirs starts twice");
        process.kill();
        agree_and_close(&store, vec![beside]).await;
    }
}

/// D32: it is stopped between two statements of a transaction that holds the lock.
async fn d32_a_holder_that_is_stopped_between_two_statements_is_thrown_out() {
    let mut world = World::open().await;
    for (round, place) in (1..).zip([point::COMMIT_LOCKED, point::COMMIT_BEFORE_COMMIT]) {
        world.process.does(&format!("hold {place}")).await;
        world.process.order("increment stopped");
        world.process.does(&format!("reached {place}")).await;
        world.process.stop();
        world.others_write(place).await;
        world.process.order(&format!("release {place}"));
        assert_eq!(world.goes_on().await, round.to_string(), "{place}: one effect");
    }
    world.finish(2).await;
}

/// D32: it is stopped with a part of what it sends on its way: of the round trip that takes the lock, of the one that commits,
/// each with any number of bytes; of a statement as long as they come.
async fn d32_a_holder_that_is_stopped_with_half_of_a_statement_sent_is_thrown_out() {
    let mut random = random();
    let mut world = World::open().await;
    let mut by_the_process = 0;
    for (place, step) in [(point::COMMIT_BEFORE_LOCK, 20..150), (point::COMMIT_BEFORE_COMMIT, 60..250)] {
        let mut bytes = 1;
        for _ in 0..5 {
            by_the_process += 1;
            world.is_stopped_after("increment stopped", place, bytes).await;
            assert_eq!(world.goes_on().await, by_the_process.to_string(), "{bytes} bytes after {place}: one effect");
            bytes += random.random_range(step.clone());
        }
    }
    world.is_stopped_after(&format!("large stopped {LARGE}"), point::COMMIT_BEFORE_COMMIT, LARGE / 2).await;
    let next = world.beside.snapshot().revision().next();
    assert_eq!(world.goes_on().await, next.to_string(), "a large statement: one effect");
    world.beside.flush_within(LIMIT).await.unwrap();
    assert_eq!(world.beside.snapshot().revision(), next);
    world.finish(by_the_process).await;
}

/// D32: it is stopped with the lock taken and all of a statement sent but its last bytes, so that the database has read what to
/// run and not that it is to run it, or that it is over: none of its own limits ends that, and those who wait do.
async fn d32_a_holder_that_is_stopped_at_the_end_of_a_statement_is_thrown_out() {
    const ALL: usize = 1 << 20;
    // Of what says that a statement is to run, 10 bytes long, and that it is over, 5 bytes long.
    const LACKING: [usize; 3] = [3, 8, 14];
    let mut world = World::open().await;
    let (before, locked) = (point::COMMIT_BEFORE_LOCK, point::COMMIT_LOCKED);
    let mut round_trip = ALL;
    let mut by_the_process = 0;
    // The least of a few: other connections send now and then, too.
    for _ in 0..4 {
        by_the_process += 1;
        world.process.does(&format!("hold {before}")).await;
        world.process.does(&format!("hold {locked}")).await;
        world.process.order("increment stopped");
        world.process.does(&format!("reached {before}")).await;
        world.proxy.silence_after(Direction::Upstream, ALL);
        world.process.does(&format!("release {before}")).await;
        world.process.does(&format!("reached {locked}")).await;
        round_trip = round_trip.min(ALL - world.proxy.left(Direction::Upstream).unwrap());
        world.process.order(&format!("release {locked}"));
        assert_eq!(world.goes_on().await, by_the_process.to_string());
    }
    for lacking in LACKING {
        by_the_process += 1;
        world.is_stopped_after("increment stopped", before, round_trip - lacking).await;
        assert_eq!(world.goes_on().await, by_the_process.to_string(), "{lacking} bytes are lacking: one effect");
    }
    world.finish(by_the_process).await;
}

/// D32: it is stopped in the middle of an answer that is larger than what buffers on the way take, with the lock taken: of what
/// others have committed since it last looked.
async fn d32_a_holder_that_is_stopped_amid_a_large_answer_is_thrown_out() {
    let mut world = World::open().await;
    for (round, share) in [(1, 4), (2, 2)] {
        let tail = point::TAIL_BEFORE_APPLY;
        let place = point::COMMIT_BEFORE_LOCK;
        world.process.does(&format!("hold {place}")).await;
        world.process.order("increment stopped");
        world.process.does(&format!("reached {place}")).await;
        world.process.does(&format!("hold {tail}")).await;
        for part in 0..4 {
            put_large(&world.beside, &format!("{round}-{part}"), LARGE).await.unwrap();
        }
        // The tail has its own answer by now, and takes nothing of it in.
        world.process.does(&format!("reached {tail}")).await;
        world.proxy.silence_after(Direction::Downstream, LARGE / share);
        world.process.does(&format!("release {place}")).await;
        world.proxy.fallen_silent(Direction::Downstream).await;
        world.process.stop();
        world.others_write(&format!("a {share}th of a large answer")).await;
        world.process.order(&format!("release {tail}"));
        assert_eq!(world.goes_on().await, round.to_string(), "one effect");
    }
    world.finish(2).await;
}

super::with_postgres! {
    d32_a_holder_that_is_stopped_amid_a_large_answer_is_thrown_out,
    d32_a_holder_that_is_stopped_at_the_end_of_a_statement_is_thrown_out,
    d32_a_holder_that_is_stopped_between_two_statements_is_thrown_out,
    d32_a_holder_that_is_stopped_with_half_of_a_statement_sent_is_thrown_out,
}
