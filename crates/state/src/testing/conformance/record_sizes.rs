//! R7 and R9 with as many records as they are for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::entities::*;
use super::records::all;
use super::{Case, Variant, within};
use crate::cluster_hook::{ClusterHook, Outcome, Registration, Run, WaitForHooks};
use crate::driver::{Call, RecordRow};
use crate::entity::Ref;
use crate::local_hook::{LocalCall, Scope};
use crate::path::Path;
use crate::record_search::Stored;
use crate::revision::Revision;
use crate::state::State;
use crate::testing::Cluster;
use crate::testing::points::name as point;
use crate::transaction::{Transaction, TransactionError};

/// Appends so many audits of one user, some thousand to a transaction.
async fn append(state: &State, who: &str, count: i64) {
    let mut from = 0;
    while from < count {
        let (until, who) = (count.min(from + 5_000), who.to_owned());
        let write = state.write(move |tx: &mut Transaction| {
            (from..until).try_for_each(|what| tx.append(&Audit { who: who.clone(), what }).map(|_| ()))
        });
        within("the audits", write).await.unwrap();
        from = until;
    }
}

fn audits(records: &[RecordRow]) -> usize {
    records.iter().filter(|record| &*record.kind == "audit").count()
}

/// Writers that go on until they are told to stop; each transaction changes an entity and appends a record that is kept.
struct Load {
    stop: Arc<AtomicBool>,
    writers: tokio::task::JoinSet<i64>,
}

impl Load {
    fn on(state: &State, counter: &Ref<Counter>) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (state, counter, stop) = (state.clone(), counter.clone(), stop.clone());
            writers.spawn(async move {
                let mut written = 0;
                while !stop.load(Ordering::Relaxed) {
                    let counter = counter.clone();
                    let write = state.write(move |tx: &mut Transaction| {
                        let n = tx.get(&counter)?.map_or(0, |counter| counter.n);
                        tx.put(&counter, Counter { n: n + 1 })?;
                        let kept = Execution { store: "load".to_owned(), started: n, text: String::new() };
                        tx.append(&kept).map(|_| ())
                    });
                    within("a write under load", write).await.unwrap();
                    written += 1;
                    // Some thousand a second are load enough.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                written
            });
        }
        Load { stop, writers }
    }

    async fn end(mut self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = 0;
        while let Some(of_one) = self.writers.join_next().await {
            written += of_one.unwrap();
        }
        written
    }
}

/// R7: retention by age and by number lets many records go while others write. It is killed amid that, between two batches and
/// in one, goes on where it stopped, and two servers at once let nothing go that is within it.
pub async fn r07_many_records_go_under_load_and_through_kills(case: Case) {
    let mut cluster = case.upkept().cluster(2).await;
    let writer = cluster.server(0).clone();
    let many = case.variant == Variant::Plain && writer.driver().name() != "postgres";
    let old: i64 = if many { 90_000 } else { 6_000 };
    append(&writer, "old", old).await;
    cluster.advance(Duration::from_secs(3_601));
    for key in 0..10 {
        append(&writer, &format!("key {key}"), 1_000).await;
    }
    append(&writer, "few", 20).await;
    let kept = 10 * 100 + 20;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let load = Load::on(&writer, &counter);
    let mut left = audits(&cluster.stored().await.records);
    assert_eq!(left, usize::try_from(old).unwrap() + 10 * 1_000 + 20);
    for in_a_batch in [false, true, false, true] {
        let hold = cluster.points(1).hold(point::UPKEEP_PRUNING);
        let state = cluster.server(1).clone();
        let pruning = tokio::spawn(async move { state.core().prune().await });
        hold.reached().await;
        // Between two batches nobody holds a lock that a writer needs.
        within("a write", writer.write(|tx: &mut Transaction| tx.append(&execution_of("between")))).await.unwrap();
        hold.release();
        let before = cluster.points(1).count(point::UPKEEP_PRUNING);
        within("some batches", async {
            while cluster.points(1).count(point::UPKEEP_PRUNING) < before + 3 && !pruning.is_finished() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        if !in_a_batch {
            let hold = cluster.points(1).hold(point::UPKEEP_PRUNING);
            if !pruning.is_finished() {
                hold.reached().await;
            }
            pruning.abort();
            let _ = pruning.await;
            cluster.kill(1);
            hold.release();
        } else {
            pruning.abort();
            let _ = pruning.await;
            cluster.kill(1);
        }
        let now = audits(&cluster.stored().await.records);
        assert!(now <= left && now >= kept, "{now} of {left} are left, {kept} have to be");
        left = now;
        assert!(cluster.lint().await.is_empty(), "no record is half gone");
        cluster.restart(1).await;
    }
    within("two servers", async {
        while audits(&cluster.stored().await.records) > kept {
            let (first, second) = tokio::join!(cluster.server(0).core().prune(), cluster.server(1).core().prune());
            first.unwrap();
            second.unwrap();
        }
    })
    .await;
    let written = load.end().await;
    let there: Vec<Stored<Audit>> = all(cluster.server(1), "by-who").await;
    let mut by_user: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for audit in there.iter().map(|item| item.value.as_ref().unwrap()) {
        by_user.entry(audit.who.clone()).or_default().push(audit.what);
    }
    for (who, what) in by_user {
        let expected: Vec<i64> = if who == "few" { (0..20).collect() } else { (900..1_000).collect() };
        assert_eq!(what, expected, "{who}: the newest, and all that is within the limits");
    }
    let state = cluster.server(1);
    state.flush().await.unwrap();
    assert_eq!(state.snapshot().get(&counter).unwrap().unwrap().n, written, "the writers lost nothing");
    let appends = u64::try_from(old / 5_000 + i64::from(old % 5_000 != 0)).unwrap() + 11;
    let revisions = appends + 4 + u64::try_from(written).unwrap();
    assert_eq!(state.snapshot().revision().0, revisions, "what went made no revision");
    drop(writer);
    cluster.finish().await;
}

fn execution_of(store: &str) -> Execution {
    Execution { store: store.to_owned(), started: 0, text: String::new() }
}

/// Counts its runs.
struct Counting(Arc<AtomicUsize>);

#[async_trait]
impl ClusterHook for Counting {
    async fn run(&self, _run: Run) -> Outcome {
        self.0.fetch_add(1, Ordering::SeqCst);
        Outcome::Done
    }
}

/// What a server asks its store for from its start until it has applied everything.
async fn calls_of_a_start(cluster: &mut Cluster, server: usize) -> BTreeMap<Call, u64> {
    cluster.kill(server);
    let _ = cluster.faults(server).take_calls();
    cluster.restart(server).await;
    let mut calls = cluster.faults(server).take_calls();
    // What it does from then on by its own rhythm.
    calls.retain(|call, _| matches!(call, Call::Open | Call::Load | Call::QueryRecords));
    calls
}

/// R9: many records are in no snapshot and no listing, and call no hook on the whole tree, local or of the cluster; a start
/// asks for as much as without them. What it costs is counted, not timed.
pub async fn r09_many_records_cost_nothing_elsewhere(case: Case) {
    let mut cluster = case.upkept().cluster(2).await;
    let state = cluster.server(0).clone();
    let many = case.variant == Variant::Plain && state.driver().name() != "postgres";
    let count: i64 = if many { 100_000 } else { 5_000 };
    let counters: Vec<Ref<Counter>> = (0..10).map(|n| Ref::root(case.id(&format!("n{n}"))).unwrap()).collect();
    let written = counters.clone();
    case.write(&state, move |tx| written.iter().try_for_each(|counter| tx.put(counter, Counter { n: 1 }))).await;

    let local = Arc::new(AtomicUsize::new(0));
    let heard = Arc::new(AtomicU64::new(0));
    let (calls, up_to) = (local.clone(), heard.clone());
    let hook = move |call: LocalCall| {
        calls.fetch_add(1, Ordering::SeqCst);
        up_to.fetch_max(call.revision.0, Ordering::SeqCst);
        async { Ok(()) }
    };
    let handle_of_local = state.local_hook("everything", Scope::subtree(Path::root()), hook).await.unwrap();
    let runs = Arc::new(AtomicUsize::new(0));
    let everything = Registration::new("everything", 1).on("/counters/{counter}").key("{counter}");
    let handle = state.register(everything, 4, Arc::new(Counting(runs.clone()))).await.unwrap();
    // Once both hooks have had the change of this revision.
    let settled = async |state: &State, revision: Revision| {
        state.flush().await.unwrap();
        within("the hooks", state.wait_for_hooks(WaitForHooks::all())).await.unwrap();
        within("the local hook", async {
            while heard.load(Ordering::SeqCst) < revision.0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        (local.load(Ordering::SeqCst), runs.load(Ordering::SeqCst))
    };
    let change = async |n: i64| {
        let target = counters[0].clone();
        state.write(move |tx: &mut Transaction| tx.put(&target, Counter { n })).await.unwrap().revision
    };
    let last = change(2).await;
    let first = settled(&state, last).await;
    assert!(first.0 >= 11 && first.1 == 1, "{first:?}");
    let entities = state.snapshot().len();
    let receipts = cluster.stored().await.receipts.len();
    let start = calls_of_a_start(&mut cluster, 1).await;

    let revision = state.snapshot().revision();
    let mut from = 0;
    while from < count {
        let until = count.min(from + 5_000);
        let write = state.write(move |tx: &mut Transaction| {
            (from..until).try_for_each(|number| {
                let record = Execution { store: "n0".to_owned(), started: number, text: "x".to_owned() };
                tx.append(&record).map(|_| ())
            })
        });
        let committed = within("the records", write).await.unwrap();
        assert!(committed.changed, "a transaction of records alone takes a revision");
        from = until;
    }
    assert_eq!(settled(&state, last).await, first, "no call and no run for {count} records");
    let transactions = u64::try_from(count / 5_000).unwrap();
    assert_eq!(state.snapshot().revision().0, revision.0 + transactions);
    assert_eq!(state.snapshot().len(), entities);
    assert_eq!(state.snapshot().roots::<Counter>().count(), 10);
    assert_eq!(cluster.stored().await.receipts.len(), receipts);
    assert_eq!(calls_of_a_start(&mut cluster, 1).await, start, "a start asks for no more");
    assert_eq!(cluster.server(1).snapshot().len(), entities);

    // One more change is one more call and one more run; the entity that they speak of goes, and they stay.
    let last = change(3).await;
    assert_eq!(settled(&state, last).await, (first.0 + 1, first.1 + 1));
    let target = counters[0].clone();
    let delete = move |tx: &mut Transaction| tx.delete(&target).map(|_| ());
    let last = state.write::<_, TransactionError, _>(delete).await.unwrap().revision;
    assert_eq!(settled(&state, last).await, (first.0 + 2, first.1 + 2));
    let there = cluster.stored().await.records.iter().filter(|record| &*record.kind == "execution").count();
    assert_eq!(there, usize::try_from(count).unwrap());
    drop(handle);
    drop(handle_of_local);
    drop(state);
    cluster.finish().await;
}
