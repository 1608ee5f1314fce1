//! U: the test kit, as who builds on the library uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tidegate_state::testing::points::name as point;
use tidegate_state::testing::{Cluster, StoreKind};
use tidegate_state::{
    ClusterHook, Entity, Outcome, Ref, Registration, Root, Run, Transaction, TransactionError, WaitForHooks,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Job {
    done: bool,
}
impl Entity for Job {
    const COLLECTION: &'static str = "jobs";
    type Parent = Root;
    type Id = u64;
}

struct Finish(Arc<AtomicUsize>);

#[async_trait]
impl ClusterHook for Finish {
    async fn run(&self, run: Run) -> Outcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        let Ok(job) = Ref::<Job>::from_path(run.path()) else { return Outcome::Fail("no job".to_owned()) };
        Outcome::done_with(move |tx: &mut Transaction| tx.update(&job, |job| job.done = true))
    }
}

/// A user's whole test: three servers, a hook, no database, no port and no sleep.
async fn jobs_are_finished(kind: StoreKind) {
    let cluster = Cluster::builder().servers(3).open(&kind).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let mut handles = Vec::new();
    for state in cluster.running() {
        let finish = Registration::new("finish", 1).on("/jobs/{job}").key("{job}").latest_state();
        handles.push(state.register(finish, 2, Arc::new(Finish(runs.clone()))).await.unwrap());
    }
    for id in 0..10_u64 {
        let job: Ref<Job> = Ref::root(id).unwrap();
        let create = move |tx: &mut Transaction| tx.create(&job, Job { done: false });
        cluster.server(0).write::<_, TransactionError, _>(create).await.unwrap();
    }
    let wait = WaitForHooks::all().limit(Duration::from_secs(60));
    let report = cluster.server(2).wait_for_hooks(wait).await.unwrap();
    assert!(report.dead.is_empty());
    cluster.server(1).flush().await.unwrap();
    assert!(cluster.server(1).snapshot().roots::<Job>().all(|job| job.unwrap().1.done));
    assert!(runs.load(Ordering::SeqCst) >= 10);
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u01_a_users_test_and_a_hundred_of_them_at_once() {
    let tests = (0..100).map(|_| tokio::spawn(jobs_are_finished(StoreKind::Memory)));
    for test in futures::future::join_all(tests).await {
        test.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u03_the_same_test_on_sqlite_by_one_switch() {
    jobs_are_finished(StoreKind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[should_panic(expected = "server-0 is still held at [\"commit.before-lock\"]")]
async fn u02_a_server_still_held_at_the_end_fails_the_test() {
    let cluster = Cluster::memory(1).await;
    let hold = cluster.points(0).hold(point::COMMIT_BEFORE_LOCK);
    let state = cluster.server(0).clone();
    let job: Ref<Job> = Ref::root(1_u64).unwrap();
    let write = tokio::spawn(async move {
        state.write::<_, TransactionError, _>(move |tx: &mut Transaction| tx.put(&job, Job { done: false })).await
    });
    hold.reached().await;
    cluster.finish().await;
    drop((hold, write));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[should_panic(expected = "point commit.locked of server server-1 was not reached")]
async fn u02_a_point_that_is_never_reached_fails_the_test() {
    let cluster = Cluster::memory(2).await;
    let hold = cluster.points(1).hold(point::COMMIT_LOCKED);
    hold.reached_within(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u02_a_server_killed_at_a_point_leaves_a_sound_store() {
    let mut cluster = Cluster::memory(2).await;
    for point in [point::COMMIT_LOCKED, point::COMMIT_BEFORE_COMMIT, point::COMMIT_AFTER_COMMIT] {
        cluster.points(0).die(point);
        let state = cluster.server(0).clone();
        let job: Ref<Job> = Ref::root(7_u64).unwrap();
        let target = job.clone();
        let write = tokio::spawn(async move {
            let write = move |tx: &mut Transaction| {
                let done = tx.get(&target)?.is_some_and(|job| !job.done);
                tx.put(&target, Job { done })
            };
            state.write::<_, TransactionError, _>(write).await
        });
        cluster.points(0).reached(point).await;
        cluster.kill(0);
        assert!(write.await.unwrap().is_err(), "nobody answers for a server that died at {point}");
        cluster.points(0).revive(point);
        // The write lock is free again, and who comes back has all that was committed.
        let target = job.clone();
        let other = cluster.server(1);
        let write = move |tx: &mut Transaction| tx.put(&target, Job { done: false });
        other.write::<_, TransactionError, _>(write).await.unwrap();
        cluster.restart(0).await;
        assert_eq!(cluster.server(0).snapshot().revision(), cluster.server(1).flush().await.unwrap());
    }
    cluster.finish().await;
}
