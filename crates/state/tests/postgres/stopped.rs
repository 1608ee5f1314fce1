//! D32: a process is stopped while it holds the write lock, and goes on later.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tidegate_state::driver::postgres::PostgresStore;
use tidegate_state::testing::points::name as point;
use tidegate_state::testing::proxy::Proxy;
use tidegate_state::{ClusterHook, HookHandle, Outcome, Registration, Run, State, WaitForHooks};

use super::processes::Process;
use super::support::*;

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
            let written = increment(&self.beside, "beside").await.unwrap();
            self.written += 1;
            assert_eq!(written.value, self.written);
        }
        let waited = started.elapsed();
        assert!(waited < LOCK_LIMIT + SLACK, "{what}: others waited {waited:?} for the lock");
        assert!(joined.is_some() && joined == *member.borrow(), "{what}: no lease of theirs runs out");
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

super::with_postgres! {
    d32_a_holder_that_is_stopped_between_two_statements_is_thrown_out,
}
