//! U: the test kit, as who builds on the library uses it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tidegate_state::driver::{ServerRow, SlotRow, StoredState};
use tidegate_state::testing::points::name as point;
use tidegate_state::testing::{Cluster, StoreFactory, StoreKind};
use tidegate_state::{
    ClusterHook, Entity, HookHandle, Outcome, Ref, Registration, Revision, Root, Run, ServerId, Transaction,
    TransactionError, WaitForHooks,
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
async fn u03_the_same_test_on_sqlite_and_postgres_by_one_switch() {
    jobs_are_finished(StoreKind::Sqlite).await;
    on_postgres(jobs_are_finished).await;
}

/// Runs a test on PostgreSQL too, where there is one.
async fn on_postgres<F: Future<Output = ()>>(test: impl Fn(StoreKind) -> F) {
    if StoreKind::Postgres.skipped().is_none() {
        test(StoreKind::Postgres).await;
    }
}

/// A cluster of three servers that run the hook, and that hook's handles.
async fn three_servers(kind: StoreKind, runs: &Arc<AtomicUsize>) -> (Cluster, Vec<HookHandle>) {
    let cluster = Cluster::builder().servers(3).open(&kind).await;
    let mut handles = Vec::new();
    for state in cluster.running() {
        handles.push(state.register(registration(), 2, Arc::new(Finish(runs.clone()))).await.unwrap());
    }
    (cluster, handles)
}

fn registration() -> Registration {
    Registration::new("finish", 1).on("/jobs/{job}").key("{job}").latest_state()
}

async fn make_job(cluster: &Cluster, id: u64) {
    let job: Ref<Job> = Ref::root(id).unwrap();
    let create = move |tx: &mut Transaction| tx.create(&job, Job { done: false });
    cluster.server(0).write::<_, TransactionError, _>(create).await.unwrap();
}

/// What a test draws from its seed: jobs, and before which of them which server is killed.
fn workload(seed: u64) -> Vec<(u64, Option<usize>)> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..20)
        .map(|_| (random.random_range(0..1_000), random.random_bool(0.1).then(|| random.random_range(0..2))))
        .collect()
}

/// Fails, and prints what it drew: for the test below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "fails on purpose; the test below runs it"]
async fn fails_after_a_workload_of_its_seed() {
    let mut cluster = Cluster::builder().servers(2).open(&StoreKind::Memory).await;
    for (id, killed) in workload(cluster.seed()) {
        if let Some(server) = killed {
            cluster.restart(server).await;
        }
        let job: Ref<Job> = Ref::root(id).unwrap();
        let put = move |tx: &mut Transaction| tx.put(&job, Job { done: false });
        cluster.server(1).write::<_, TransactionError, _>(put).await.unwrap();
        println!("drew {id} {killed:?}");
    }
    println!("revision {}", cluster.server(1).flush().await.unwrap());
    panic!("as is wanted");
}

#[test]
fn u03_the_printed_seed_of_a_failed_test_repeats_its_workload_and_faults() {
    let run = |seed: Option<&str>| {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "cluster_kit::fails_after_a_workload_of_its_seed"]);
        command.env_remove("STATE_TEST_SEED").envs(seed.map(|seed| ("STATE_TEST_SEED", seed)));
        let output = command.output().unwrap();
        assert!(!output.status.success(), "it was to fail");
        String::from_utf8(output.stdout).unwrap()
    };
    let drawn = |text: &str| -> Vec<String> {
        let told = text.lines().filter(|line| line.starts_with("drew ") || line.starts_with("revision "));
        told.map(str::to_owned).collect()
    };
    let seed_of = |text: &str| text.lines().find_map(|line| line.strip_prefix("STATE_TEST_SEED=")).map(str::to_owned);
    let first = run(None);
    let seed = seed_of(&first).expect("a failed test prints its seed");
    let again = run(Some(&seed));
    assert_eq!(drawn(&first).len(), 21, "{first}");
    assert_eq!((seed_of(&again), drawn(&again)), (Some(seed), drawn(&first)));
    assert_ne!(drawn(&run(None)), drawn(&first), "without the seed it is another");
}

/// Takes a finished request's receipt away, as if it had never been acknowledged.
async fn lose_a_receipt(cluster: &Cluster, also_the_watermark: bool) {
    let lose = Box::new(move |stored: &mut StoredState| {
        let lost = stored.receipts.pop().expect("something has run");
        for slot in stored.slots.iter_mut().filter(|slot| also_the_watermark && slot.slot == lost.fence.slot) {
            slot.watermark = Revision(lost.request.revision.0 - 1);
        }
    });
    cluster.store().tamper(lose).await.unwrap();
}

/// Has one job done and every server closed, so that its slot's watermark is past it.
async fn one_job_done(cluster: &mut Cluster) {
    make_job(cluster, 7).await;
    cluster.server(0).wait_for_hooks(WaitForHooks::all()).await.unwrap();
    for server in 0..3 {
        cluster.close(server).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[should_panic(expected = "the linter found:\nWatermarkBelowPending")]
async fn u01_what_the_linter_finds_fails_the_test() {
    let (mut cluster, _handles) = three_servers(StoreKind::Memory, &Arc::default()).await;
    one_job_done(&mut cluster).await;
    lose_a_receipt(&cluster, false).await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[should_panic(expected = "the history checker found:")]
async fn u01_what_the_history_checker_finds_fails_the_test() {
    let runs = Arc::new(AtomicUsize::new(0));
    let (mut cluster, _handles) = three_servers(StoreKind::Memory, &runs).await;
    one_job_done(&mut cluster).await;
    // For the linter all is well: there is no receipt, and the request is above the watermark.
    lose_a_receipt(&cluster, true).await;
    let before = runs.load(Ordering::SeqCst);
    cluster.restart(0).await;
    let handler = Arc::new(Finish(runs.clone()));
    let _handle = cluster.server(0).register(registration(), 2, handler).await.unwrap();
    cluster.server(0).wait_for_hooks(WaitForHooks::all()).await.unwrap();
    assert!(runs.load(Ordering::SeqCst) > before);
    cluster.finish().await;
}

/// The server that runs a job is held before its receipt until its lease is over, and is let go, cut or killed there.
async fn another_runs_what_a_held_server_ran(kind: StoreKind, then: Then) {
    let runs = Arc::new(AtomicUsize::new(0));
    let (mut cluster, _handles) = three_servers(kind, &runs).await;
    cluster.move_slot("finish", "7", 2).await;
    let tokens = |slots: Vec<SlotRow>| slots.into_iter().map(|row| (row.slot, row.token)).collect::<HashMap<_, _>>();
    let before = tokens(cluster.leases().await.1);
    let receipt = cluster.points(2).hold(point::RUN_BEFORE_COMPLETION);
    let heartbeat = cluster.points(2).hold(point::SLOT_BEFORE_HEARTBEAT);
    make_job(&cluster, 7).await;
    receipt.reached().await;
    cluster.step(Duration::from_secs(15)).await;
    match then {
        Then::LetGo => receipt.release(),
        Then::Cut => receipt.cut(),
        Then::Kill => {
            cluster.kill(2);
            drop(receipt);
            // It may have joined anew by then, for another lease.
            cluster.step(Duration::from_secs(15)).await;
        }
    }
    drop(heartbeat);
    let report = cluster.server(0).wait_for_hooks(WaitForHooks::all().limit(Duration::from_secs(60))).await.unwrap();
    assert!(report.finished && report.dead.is_empty());
    assert!(runs.load(Ordering::SeqCst) >= 2, "another server runs it");
    let stored = cluster.stored().await;
    let receipt = stored.receipts.iter().find(|receipt| receipt.request.revision <= stored.meta.head).unwrap();
    assert!(receipt.fence.token > before[&receipt.fence.slot], "under a higher token");
    cluster.finish().await;
}

#[derive(Clone, Copy)]
enum Then {
    LetGo,
    Cut,
    Kill,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u02_another_server_runs_what_one_that_is_held_past_its_lease_cut_or_killed_ran() {
    for then in [Then::LetGo, Then::Cut, Then::Kill] {
        another_runs_what_a_held_server_ran(StoreKind::Memory, then).await;
        another_runs_what_a_held_server_ran(StoreKind::Sqlite, then).await;
        on_postgres(|kind| another_runs_what_a_held_server_ran(kind, then)).await;
    }
}

/// A slot goes from server to server and back while its key has work, and nothing runs twice.
async fn a_slot_goes_around(kind: StoreKind) {
    let runs = Arc::new(AtomicUsize::new(0));
    let (cluster, _handles) = three_servers(kind, &runs).await;
    let leases = |rows: &[ServerRow]| rows.iter().map(|row| (row.id, row.lease_until)).collect::<HashMap<_, _>>();
    let leased_by = |rows: &[SlotRow], at: Option<ServerId>| rows.iter().filter(|row| row.owner == at).count();
    // Who has had it has joined.
    for to in [2, 1, 0] {
        cluster.move_slot("finish", "7", to).await;
    }
    let (before, _) = cluster.leases().await;
    for (id, to) in (0..).zip([1, 2, 0, 2, 1]) {
        make_job(&cluster, id).await;
        cluster.move_slot("finish", "7", to).await;
        assert_eq!(cluster.owner_of("finish", "7").await, Some(to));
    }
    make_job(&cluster, 7).await;
    let report = cluster.server(0).wait_for_hooks(WaitForHooks::all()).await.unwrap();
    assert!(report.finished);
    let (after, slots) = cluster.leases().await;
    assert_eq!(leases(&before), leases(&after), "no lease ran out, and nobody joined anew: the clock stands still");
    assert!(after.iter().all(|row| leased_by(&slots, Some(row.id)) > 0), "the others are spread over all");
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn u02_a_slot_is_moved_by_one_call() {
    a_slot_goes_around(StoreKind::Memory).await;
    a_slot_goes_around(StoreKind::Sqlite).await;
    on_postgres(a_slot_goes_around).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[should_panic(expected = "did not move from server-0 to server-1")]
async fn u02_a_slot_that_can_not_move_fails_the_test() {
    let (cluster, _handles) = three_servers(StoreKind::Memory, &Arc::default()).await;
    cluster.move_slot("finish", "7", 0).await;
    // It would have to be released there first.
    let _hold = cluster.points(0).hold(point::SLOT_BEFORE_RELEASE);
    cluster.move_slot_within("finish", "7", 1, Duration::from_millis(300)).await;
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
