//! D33: a server that is far behind, with a write of its own, while others commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};

use super::drivers::compact_whole_log;
use super::entities::Counter;
use super::transactions::put_counter;
use super::{Case, LIMIT, Written, agree, applied, within};
use crate::entity::Ref;
use crate::revision::Revision;
use crate::state::State;
use crate::testing::Cluster;
use crate::testing::points::name as point;
use crate::transaction::Transaction;

/// How many transactions of how many changes a server lacks: more of them than it may take in with the write lock held, and
/// 200 000 changes.
const TRANSACTIONS: u64 = 2_000;
const CHANGES: u64 = 100;
const WRITERS: u64 = 16;

/// How many commits of others there are while it stands still as it catches up.
const OTHERS: i64 = 100;

/// What is not polled for within a case.
const NEVER: Duration = Duration::from_secs(3_600);

fn put(state: &State, id: String, n: i64) -> impl Future<Output = Written<()>> + Send + use<> {
    let state = state.clone();
    async move { state.write(move |tx: &mut Transaction| tx.put(&Ref::root(id.clone())?, Counter { n })).await }
}

/// Commits without a pause until it is told to stop.
struct Busy {
    stop: Arc<AtomicBool>,
    writing: JoinHandle<()>,
}

impl Busy {
    fn start(state: &State, id: String) -> Busy {
        let stop = Arc::new(AtomicBool::new(false));
        let (state, stopped) = (state.clone(), stop.clone());
        let writing = tokio::spawn(async move {
            let mut n = 0;
            while !stopped.load(Ordering::Relaxed) {
                n += 1;
                put(&state, id.clone(), n).await.unwrap();
            }
        });
        Busy { stop, writing }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        within("the last of the others' writes", self.writing).await.unwrap();
    }
}

/// Commits what the server behind is to lack.
async fn commit_much(case: &Case, state: &State) {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (state, id) = (state.clone(), case.id(&format!("w{writer}")));
        writers.spawn(async move {
            for n in 0..(TRANSACTIONS / WRITERS).cast_signed() {
                let id = id.clone();
                let many = state.write(move |tx: &mut Transaction| {
                    (0..CHANGES).try_for_each(|part| tx.put(&Ref::root(format!("{id}-{part}"))?, Counter { n }))
                });
                many.await.unwrap();
            }
        });
    }
    while let Some(ended) = within("the writers", writers.join_next()).await {
        ended.unwrap();
    }
}

/// D33: a server 200 000 changes behind is refused the write lock and reads the log without it: as long as it stands still
/// there, others commit. It writes at the head in the end, and they have never paused.
pub async fn d33_a_server_far_behind_catches_up_and_writes(case: Case) {
    let cluster = case.cluster(2).await;
    cluster.faults(1).set_absent(true);
    commit_much(&case, cluster.server(0)).await;
    assert!(cluster.meta().await.head >= Revision(TRANSACTIONS));
    assert_eq!(cluster.server(1).snapshot().revision(), Revision::ZERO);

    let points = cluster.points(1);
    let hold = points.hold(point::TAIL_BEFORE_APPLY);
    let reading = points.count(point::TAIL_BEFORE_APPLY);
    let locked = points.count(point::COMMIT_LOCKED);
    cluster.faults(1).set_absent(false);
    let write = tokio::spawn(put(cluster.server(1), case.id("n"), 1));
    within("its tail and its committer read the log", async {
        while points.count(point::TAIL_BEFORE_APPLY) < reading + 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for n in 0..OTHERS {
        within("a commit of others", put(cluster.server(0), case.id("other"), n)).await.unwrap();
    }
    assert_eq!(points.count(point::COMMIT_LOCKED), locked, "it did not have the lock");
    assert!(!write.is_finished());
    let busy = Busy::start(cluster.server(0), case.id("busy"));
    hold.release();
    let written = within("the write of the one behind", write).await.unwrap().unwrap();
    assert!(written.revision > Revision(TRANSACTIONS + OTHERS.unsigned_abs()), "at the head: {}", written.revision);
    assert!(points.count(point::COMMIT_LOCKED) > locked);
    busy.end().await;
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// Lets the second server lack more than the log reaches back. Its tail hears nothing and does not look.
async fn leave_behind(case: &Case, cluster: &Cluster) {
    let counter: Ref<Counter> = Ref::root(case.id("kept")).unwrap();
    let at = put_counter(case, cluster.server(0), &counter, 1).await;
    applied(cluster.server(1), at).await;
    cluster.faults(1).set_deaf(true);
    // It may have begun to wait before: that is over with the first of these.
    for n in 0..200 {
        put_counter(case, cluster.server(0), &counter, n + 2).await;
    }
    compact_whole_log(cluster, 0).await;
    let (reaches_back_to, has) = (cluster.meta().await.compacted, cluster.server(1).snapshot().revision());
    assert!(has < reaches_back_to, "the log reaches back to {reaches_back_to}, and the server has {has}");
}

/// D33: a server behind a compacted log loads the tree anew before it has the write lock, while others commit, and then writes
/// at the head.
pub async fn d33_a_server_behind_a_compacted_log_catches_up_and_writes(case: Case) {
    let case = case.upkept();
    let builder = case.configured(|index, mut options| {
        options.log_keep = Duration::ZERO;
        if index == 1 {
            options.poll = NEVER;
        }
        options
    });
    let cluster = case.open(builder.servers(2)).await;
    leave_behind(&case, &cluster).await;
    let head = cluster.meta().await.head;
    let reloads = cluster.server(1).metrics().reloads();
    let locked = cluster.points(1).count(point::COMMIT_LOCKED);
    let busy = Busy::start(cluster.server(0), case.id("busy"));
    let hold = cluster.points(1).hold(point::COMMIT_LOCKED);
    let write = tokio::spawn(put(cluster.server(1), case.id("n"), 1));
    hold.reached().await;
    // Nobody but its committer could have loaded it.
    assert!(cluster.server(1).metrics().reloads() > reloads, "it has the lock, and not the tree");
    assert_eq!(cluster.points(1).count(point::COMMIT_LOCKED), locked + 1, "it did not have the lock before");
    hold.release();
    let written = within("the write of the one behind", write).await.unwrap().unwrap();
    assert!(written.revision > head, "at the head");
    busy.end().await;
    assert_eq!(cluster.server(1).flush_within(LIMIT).await.unwrap(), cluster.meta().await.head);
    agree(&cluster, None).await;
    cluster.finish().await;
}
