//! T: transactions whose closures misbehave, whose commits are lost, or whose callers go away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;

use super::entities::*;
use super::transactions::put_counter;
use super::{Case, Written, agree, within};
use crate::entity::Ref;
use crate::error::{WaitError, WriteError};
use crate::revision::Revision;
use crate::state::State;
use crate::testing::Cluster;
use crate::testing::points::{Hold, name as point};
use crate::transaction::{Transaction, TransactionError};

type Answer = tokio::task::JoinHandle<Written<i64>>;
type Increment = Box<dyn Fn(&mut Transaction) -> Result<i64, TransactionError> + Send>;

/// Submits closures in this order while the committer is held, so that they make one group.
async fn grouped(cluster: &Cluster, closures: Vec<Increment>) -> Vec<Written<i64>> {
    let hold = cluster.points(0).hold(point::COMMIT_BEFORE_LOCK);
    let answers = submit_in_order(cluster.server(0), closures, &hold).await;
    hold.release();
    let mut all = Vec::new();
    for answer in answers {
        all.push(within("an answer", answer).await.unwrap());
    }
    all
}

async fn submit_in_order(state: &State, closures: Vec<Increment>, hold: &Hold) -> Vec<Answer> {
    let mut answers = Vec::new();
    for closure in closures {
        let state = state.clone();
        // Polled once here: it is in the queue before the next one is made.
        let mut write = Box::pin(async move { state.write(closure).await });
        assert!(futures::poll!(&mut write).is_pending());
        answers.push(tokio::spawn(write));
        if answers.len() == 1 {
            hold.reached().await;
        }
    }
    answers
}

fn increment(counter: &Ref<Counter>) -> Increment {
    let target = counter.clone();
    Box::new(move |tx| {
        tx.update(&target, |counter| counter.n += 1)?;
        Ok(tx.require(&target)?.n)
    })
}

/// T13: a panic costs its own transaction.
pub async fn t13_a_panic_costs_its_own_transaction(case: Case) {
    let cluster = case.cluster(1).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    put_counter(&case, cluster.server(0), &counter, 0).await;
    let target = counter.clone();
    let panics = Box::new(move |tx: &mut Transaction| {
        tx.update(&target, |counter| counter.n += 100)?;
        panic!("a mistake in a closure")
    });
    let answers = grouped(&cluster, vec![increment(&counter), panics, increment(&counter)]).await;
    assert_eq!(answers[0].as_ref().unwrap().value, 1);
    assert!(matches!(&answers[1], Err(WriteError::Panicked { message }) if message == "a mistake in a closure"));
    assert_eq!(answers[2].as_ref().unwrap().value, 2);
    assert_eq!(cluster.server(0).write(increment(&counter)).await.unwrap().value, 3);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T14: transactions of one group have revisions of their own, in order; one that fails is not there for the next.
pub async fn t14_a_group_has_revisions_of_its_own(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let head = put_counter(&case, cluster.server(0), &counter, 0).await;
    let commits = cluster.server(0).metrics().commits();
    let target = counter.clone();
    let fails = Box::new(move |tx: &mut Transaction| {
        tx.update(&target, |counter| counter.n += 100)?;
        Err(TransactionError::rejected("second"))
    });
    let answers = grouped(&cluster, vec![increment(&counter), fails, increment(&counter)]).await;
    let (first, third) = (answers[0].as_ref().unwrap(), answers[2].as_ref().unwrap());
    assert_eq!((first.value, first.revision), (1, head.next()));
    assert!(matches!(&answers[1], Err(WriteError::Rejected(TransactionError::Rejected(text))) if text == "second"));
    assert_eq!((third.value, third.revision), (2, head.next().next()));
    assert_eq!(cluster.server(0).metrics().commits(), commits + 1, "they were one group");
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T15: a closure that is run again leaves nothing of its earlier run. (What can't be run again does not compile: see
/// [`State::write`].)
pub async fn t15_only_the_last_run_counts(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    put_counter(&case, cluster.server(0), &counter, 0).await;
    for cut in [point::COMMIT_BEFORE_COMMIT, point::COMMIT_LOCKED] {
        let runs = Arc::new(AtomicUsize::new(0));
        let (target, counted) = (counter.clone(), runs.clone());
        let id = case.id("only-in-run");
        let before = cluster.stored().await.records.len();
        cluster.points(0).cut(cut, 1);
        let write = cluster.server(0).write(move |tx: &mut Transaction| {
            let run = counted.fetch_add(1, Ordering::SeqCst);
            tx.update(&target, |counter| counter.n += 1)?;
            tx.put(&Ref::<Counter>::root(format!("{id} {run}"))?, Counter { n: 0 })?;
            tx.append(&Audit { who: "run".to_owned(), what: 1 })?;
            Ok::<_, TransactionError>(run)
        });
        let last = within("the write", write).await.unwrap().value;
        assert_eq!(last + 1, runs.load(Ordering::SeqCst));
        if cut == point::COMMIT_BEFORE_COMMIT {
            assert!(last >= 1, "it ran again");
            for run in 0..last {
                let earlier: Ref<Counter> = Ref::root(format!("{} {run}", case.id("only-in-run"))).unwrap();
                assert!(!cluster.server(0).snapshot().contains(earlier.path()), "run {run} of {last}");
            }
        }
        assert_eq!(cluster.stored().await.records.len(), before + 1);
    }
    assert_eq!(cluster.server(0).snapshot().require(&counter).unwrap().n, 2);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T16: waiting for the own state within a closure is refused at once.
pub async fn t16_waiting_within_a_closure_is_refused(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let inside = state.clone();
    let written = state.write(move |_: &mut Transaction| {
        let write: Written<()> = futures::executor::block_on(inside.write(|_: &mut Transaction| Ok(())));
        assert!(matches!(write, Err(WriteError::WithinTransaction)), "{write:?}");
        let flush = futures::executor::block_on(inside.flush());
        assert!(matches!(flush, Err(WaitError::WithinTransaction)));
        let wait = futures::executor::block_on(inside.wait_for(Revision(9), Duration::from_secs(1)));
        assert!(matches!(wait, Err(WaitError::WithinTransaction)));
        assert!(wait.unwrap_err().to_string().contains("wait for itself"));
        Ok::<_, TransactionError>(())
    });
    within("the write", written).await.unwrap();
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T19: a write whose future is dropped is wholly applied or leaves no trace, and harms nobody.
pub async fn t19_dropped_writes_are_whole_or_absent(case: Case) {
    let cluster = case.cluster(2).await;
    let state = cluster.server(0);
    let points = [point::COMMIT_BEFORE_LOCK, point::COMMIT_BEFORE_COMMIT, point::COMMIT_AFTER_COMMIT];
    for (n, point) in points.into_iter().enumerate() {
        let [left, right, other] =
            ["left", "right", "other"].map(|id| Ref::<Counter>::root(case.id(&format!("{id}{n}"))).unwrap());
        let hold = cluster.points(0).hold(point);
        let (a, b, writer) = (left.clone(), right.clone(), state.clone());
        let mut dropped = async move {
            let write = writer.write(move |tx: &mut Transaction| {
                tx.put(&a, Counter { n: 1 })?;
                tx.put(&b, Counter { n: 1 })
            });
            write.await
        }
        .boxed();
        assert!(futures::poll!(&mut dropped).is_pending());
        let (target, writer) = (other.clone(), state.clone());
        let mut beside =
            Box::pin(async move { writer.write(move |tx: &mut Transaction| tx.put(&target, Counter { n: 1 })).await });
        assert!(futures::poll!(&mut beside).is_pending());
        let beside = tokio::spawn(beside);
        hold.reached().await;
        drop(dropped);
        hold.release();
        within("the other of the group", beside).await.unwrap().unwrap();
        let snapshot = state.snapshot();
        assert!(snapshot.contains(other.path()));
        assert_eq!(snapshot.contains(left.path()), snapshot.contains(right.path()), "all or nothing at {point}");
        if point != point::COMMIT_BEFORE_LOCK {
            assert!(snapshot.contains(left.path()), "its commit was under way at {point}");
        }
        put_counter(&case, state, &left, 7).await;
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T20: a closure over its budget costs its own transaction; the others of the group commit in order.
pub async fn t20_over_budget_costs_its_own_transaction(case: Case) {
    let builder = case.configured(|_, mut options| {
        options.transaction_budget = Duration::from_millis(150);
        options
    });
    let cluster = case.open(builder.servers(2)).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let late: Ref<Counter> = Ref::root(case.id("late")).unwrap();
    put_counter(&case, cluster.server(0), &counter, 0).await;
    // A sender that never sends, kept to the end: who waits for it never returns.
    let (never, waiting) = std::sync::mpsc::channel::<()>();
    let waiting = Arc::new(parking_lot::Mutex::new(waiting));
    let returned = Arc::new(AtomicUsize::new(0));
    for kind in 0..3 {
        let (target, beside, waiting, returned) = (counter.clone(), late.clone(), waiting.clone(), returned.clone());
        let over = Box::new(move |tx: &mut Transaction| {
            tx.put(&beside, Counter { n: kind })?;
            match kind {
                0 => loop {
                    tx.get(&target)?;
                },
                1 => std::thread::sleep(Duration::from_millis(600)),
                _ => {
                    let _ = waiting.lock().recv();
                }
            }
            returned.fetch_add(1, Ordering::SeqCst);
            tx.put(&beside, Counter { n: kind + 10 })?;
            Ok(0)
        });
        let before = cluster.server(0).snapshot().require(&counter).unwrap().n;
        let over_budget = cluster.server(0).metrics().closures_over_budget();
        let answers = grouped(&cluster, vec![increment(&counter), over, increment(&counter)]).await;
        assert_eq!(answers[0].as_ref().unwrap().value, before + 1);
        match &answers[1] {
            Err(WriteError::OverBudget { budget, taken }) => {
                assert_eq!(*budget, Duration::from_millis(150));
                assert!(taken > budget);
            }
            // Reads refuse to go on, and the closure returned that.
            Err(WriteError::Rejected(TransactionError::OverBudget { .. })) if kind == 0 => {}
            other => panic!("kind {kind}: {other:?}"),
        }
        assert_eq!(answers[2].as_ref().unwrap().value, before + 2);
        assert!(answers[2].as_ref().unwrap().revision > answers[0].as_ref().unwrap().revision);
        assert!(cluster.server(0).metrics().closures_over_budget() > over_budget, "kind {kind} is counted");
        let target = counter.clone();
        let other = cluster.server(1).write(move |tx: &mut Transaction| tx.require(&target).map(|_| ()));
        within("a write of the other server", other).await.unwrap();
    }
    drop(never);
    // The threads that were left behind have come back, to no effect.
    within("the closures that were given up", async {
        while returned.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    put_counter(&case, cluster.server(0), &counter, 99).await;
    assert!(!cluster.server(0).snapshot().contains(late.path()));
    agree(&cluster, None).await;
    cluster.finish().await;
}
