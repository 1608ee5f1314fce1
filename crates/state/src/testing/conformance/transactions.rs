//! T: transactions.

use std::collections::BTreeSet;
use std::time::Duration;

use super::entities::*;
use super::{Case, LIMIT, Written, agree, within};
use crate::entity::Ref;
use crate::error::WriteError;
use crate::feed::{Feed, FeedItem};
use crate::revision::Revision;
use crate::state::{RunAhead, State};
use crate::testing::Cluster;
use crate::testing::points::name as point;
use crate::transaction::{Transaction, TransactionError};

pub(super) async fn next_transaction(feed: &mut Feed) -> std::sync::Arc<crate::change::Applied> {
    loop {
        match within("the next transaction", feed.next()).await {
            Some(FeedItem::Transaction(applied)) => return applied,
            Some(FeedItem::Snapshot(_)) => {}
            None => panic!("the feed ended"),
        }
    }
}

pub(super) async fn put_counter(case: &Case, state: &State, counter: &Ref<Counter>, n: i64) -> Revision {
    let target = counter.clone();
    case.write(state, move |tx| tx.put(&target, Counter { n })).await.revision
}

async fn rejected_without_trace<T: std::fmt::Debug>(cluster: &Cluster, written: Written<T>) -> TransactionError {
    let head = cluster.stored().await.meta.head;
    let Err(WriteError::Rejected(error)) = written else { panic!("it was to be rejected: {written:?}") };
    assert_eq!(cluster.stored().await.meta.head, head);
    error
}

/// T1: a closure reads the head of the log, not what its server has applied.
pub async fn t01_a_write_reads_the_head(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let first = put_counter(&case, cluster.server(0), &counter, 0).await;
    super::applied(cluster.server(1), first).await;
    let hold = cluster.points(1).hold(point::TAIL_BEFORE_APPLY);
    for n in 1..=50 {
        let target = counter.clone();
        cluster.server(0).write(move |tx: &mut Transaction| tx.put(&target, Counter { n })).await.unwrap();
    }
    hold.reached().await;
    assert!(cluster.server(1).snapshot().require(&counter).unwrap().n < 50);
    let target = counter.clone();
    let written = cluster.server(1).write(move |tx: &mut Transaction| {
        tx.update(&target, |counter| counter.n += 1)?;
        Ok::<_, TransactionError>(tx.require(&target)?.n)
    });
    assert_eq!(within("the write of the one behind", written).await.unwrap().value, 51);
    hold.release();
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T1: what others have committed before a closure runs is shown on its server while it does, however long that takes.
pub async fn t01_what_a_closure_reads_of_others_is_shown_while_it_runs(case: Case) {
    let builder = case.configured(|_, mut options| {
        options.transaction_budget = Duration::from_secs(60);
        // Ahead of the lock it would wait in vain.
        options.run_ahead = RunAhead::Never;
        options
    });
    let cluster = case.open(builder.servers(2)).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let first = put_counter(&case, cluster.server(0), &counter, 0).await;
    super::applied(cluster.server(1), first).await;
    let hold = cluster.points(1).hold(point::TAIL_BEFORE_APPLY);
    let second = put_counter(&case, cluster.server(0), &counter, 1).await;
    hold.reached().await;
    let (is_shown, shown) = std::sync::mpsc::channel::<()>();
    let shown = parking_lot::Mutex::new(shown);
    let (target, state) = (counter.clone(), cluster.server(1).clone());
    let write = async move {
        state
            .write(move |tx: &mut Transaction| {
                let _ = shown.lock().recv();
                tx.update(&target, |counter| counter.n += 1)
            })
            .await
    };
    let look = async {
        while cluster.server(1).snapshot().revision() < second {
            tokio::task::yield_now().await;
        }
        drop(is_shown);
    };
    let (written, ()) = within("a write whose closure waits", async { tokio::join!(write, look) }).await;
    assert_eq!(written.unwrap().revision, second.next());
    hold.release();
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T2: of many increments from many servers none is lost, and their order is that of the revisions.
pub async fn t02_no_increment_is_lost(case: Case) {
    let cluster = case.cluster(3).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    put_counter(&case, cluster.server(0), &counter, 0).await;
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..24 {
        let (state, counter) = (cluster.server(index % 3).clone(), counter.clone());
        tasks.spawn(async move {
            let mut answers = Vec::new();
            for _ in 0..500 {
                let target = counter.clone();
                let increment = move |tx: &mut Transaction| {
                    tx.update(&target, |counter| counter.n += 1)?;
                    Ok::<_, TransactionError>(tx.require(&target)?.n)
                };
                let committed = state.write(increment).await.unwrap();
                answers.push((committed.revision, committed.value));
            }
            answers
        });
    }
    let mut answers = Vec::new();
    while let Some(ended) = within("the increments", tasks.join_next()).await {
        answers.append(&mut ended.unwrap());
    }
    answers.sort_unstable();
    let revisions: BTreeSet<Revision> = answers.iter().map(|(revision, _)| *revision).collect();
    assert_eq!(revisions.len(), 12_000, "each has a revision of its own");
    let values: Vec<i64> = answers.iter().map(|(_, value)| *value).collect();
    assert_eq!(values, (1..=12_000).collect::<Vec<_>>());
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T3: two writers that each read both entities never break a rule over both.
pub async fn t03_transactions_are_serializable(case: Case) {
    const PAIRS: usize = 10;
    let cluster = case.cluster(2).await;
    let pairs = (0..PAIRS).map(|pair| write_skew(&case, &cluster, pair, 1_000 / PAIRS));
    futures::future::join_all(pairs).await;
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// Two entities, of which two servers each want to take the last, so many times.
async fn write_skew(case: &Case, cluster: &Cluster, pair: usize, rounds: usize) {
    let left: Ref<Counter> = Ref::root(case.id(&format!("left{pair}"))).unwrap();
    let right: Ref<Counter> = Ref::root(case.id(&format!("right{pair}"))).unwrap();
    for round in 0..rounds {
        let (a, b) = (left.clone(), right.clone());
        let reset = move |tx: &mut Transaction| {
            tx.put(&a, Counter { n: 1 })?;
            tx.put(&b, Counter { n: 1 })
        };
        cluster.server(round % 2).write(reset).await.unwrap();
        let take = |index: usize, own: &Ref<Counter>| {
            let (left, right, own) = (left.clone(), right.clone(), own.clone());
            let state = cluster.server(index).clone();
            tokio::spawn(async move {
                let written = state.write(move |tx: &mut Transaction| {
                    if tx.require(&left)?.n + tx.require(&right)?.n < 2 {
                        return Err(TransactionError::rejected("too little is left"));
                    }
                    tx.update(&own, |counter| counter.n -= 1)
                });
                written.await.is_ok()
            })
        };
        let (first, second) = (take(0, &left), take(1, &right));
        let taken = usize::from(first.await.unwrap()) + usize::from(second.await.unwrap());
        assert_eq!(taken, 1, "round {round}");
    }
}

/// T4: what one closure does is one revision, seen whole.
pub async fn t04_a_transaction_is_one_revision(case: Case) {
    let cluster = case.cluster(2).await;
    let [gone, made] = ["gone", "made"].map(|id| Ref::<Store>::root(case.id(id)).unwrap());
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let target = gone.clone();
    let before = case.write(cluster.server(0), move |tx| tx.put(&target, store("x", 0))).await.revision;
    super::applied(cluster.server(1), before).await;
    let mut feed = cluster.server(1).changes(Some((cluster.server(1).snapshot().epoch(), before)));
    let (a, b, c) = (gone.clone(), made.clone(), counter.clone());
    let written = case
        .write(cluster.server(0), move |tx| {
            tx.put(&b, store("y", 1))?;
            tx.put(&b.child::<Version>(1_u64)?, Version { rows: 1 })?;
            tx.put(&c, Counter { n: 1 })?;
            tx.delete(&a).map(|_| ())
        })
        .await;
    let applied = next_transaction(&mut feed).await;
    assert_eq!(applied.revision, written.revision);
    assert_eq!(applied.changes.len(), 4);
    assert!(applied.changes.iter().all(|change| change.revision == written.revision));
    let (old, new) = (feed.snapshot().clone(), cluster.server(0).snapshot());
    assert_eq!(super::dump(&old), super::dump(&new));
    assert!(old.get(&gone).unwrap().is_none() && old.get(&made).unwrap().is_some());
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T5: a closure sees its own writes at every step, and nobody else does before the commit.
pub async fn t05_a_closure_sees_its_own_writes(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0).clone();
    let airports: Ref<Store> = Ref::root(case.id("airports")).unwrap();
    let outside = state.clone();
    let target = airports.clone();
    let written = state.write(move |tx: &mut Transaction| {
        assert!(tx.get(&target)?.is_none());
        tx.put(&target, store("a", 1))?;
        assert_eq!(*tx.require(&target)?, store("a", 1));
        let version: Ref<Version> = target.child(7_u64)?;
        tx.put(&version, Version { rows: 1 })?;
        assert_eq!(tx.children::<Version>(&target)?.len(), 1);
        assert_eq!(tx.roots::<Store>()?.len(), 1);
        assert_eq!(tx.all::<Version>()?[0].0, version);
        assert!(tx.delete(&version)?);
        assert!(tx.get(&version)?.is_none());
        assert!(tx.children::<Version>(&target)?.is_empty());
        assert!(!tx.delete(&version)?);
        assert!(outside.snapshot().is_empty());
        Ok::<_, TransactionError>(())
    });
    written.await.unwrap();
    assert_eq!(state.snapshot().len(), 1);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T6: an error comes back unchanged and leaves no trace.
pub async fn t06_rejected_leaves_no_trace(case: Case) {
    let cluster = case.cluster(2).await;
    put_counter(&case, cluster.server(0), &Ref::root(case.id("n")).unwrap(), 1).await;
    let expected = agree(&cluster, None).await;
    let head = cluster.stored().await.meta.head;
    let ids: Vec<String> = (0..5).map(|index| case.id(&format!("s{index}"))).collect();
    let written: Written<()> = cluster
        .server(0)
        .write(move |tx: &mut Transaction| {
            for id in &ids {
                tx.put(&Ref::<Store>::root(id.clone())?, store("a", 1))?;
            }
            tx.append(&Audit { who: "me".to_owned(), what: 1 })?;
            Err(TransactionError::rejected("not today"))
        })
        .await;
    let error = rejected_without_trace(&cluster, written).await;
    assert_eq!(error, TransactionError::rejected("not today"));
    let stored = cluster.stored().await;
    assert_eq!((stored.meta.head, stored.records.len()), (head, 0));
    agree(&cluster, Some(&expected)).await;
    cluster.finish().await;
}

/// T7: a precondition is checked at the head, and says what it expected and found.
pub async fn t07_preconditions_hold_at_the_head(case: Case) {
    let cluster = case.cluster(2).await;
    let [guard, target] = ["guard", "target"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    let first = put_counter(&case, cluster.server(0), &guard, 1).await;
    super::applied(cluster.server(1), first).await;
    let write = |index: usize, expected: Option<Counter>, n: i64| {
        let (guard, target) = (guard.clone(), target.clone());
        let state = cluster.server(index).clone();
        async move {
            let closure = move |tx: &mut Transaction| {
                tx.expect(&guard, expected.as_ref())?;
                tx.put(&target, Counter { n })
            };
            state.write(closure).await
        }
    };
    write(0, Some(Counter { n: 1 }), 10).await.unwrap();
    let differs = rejected_without_trace(&cluster, write(0, Some(Counter { n: 2 }), 11).await).await;
    assert!(
        matches!(&differs, TransactionError::Precondition { expected, found, .. }
            if expected.contains('2') && found.contains('1')),
        "{differs:?}"
    );
    let present = rejected_without_trace(&cluster, write(0, None, 12).await).await;
    assert!(matches!(&present, TransactionError::Precondition { expected, .. } if expected == "nothing"));
    // Held in server 1's snapshot, and no longer at the head.
    let hold = cluster.points(1).hold(point::TAIL_BEFORE_APPLY);
    let absent = guard.clone();
    case.write(cluster.server(0), move |tx| tx.delete(&absent).map(|_| ())).await;
    hold.reached().await;
    assert!(cluster.server(1).snapshot().contains(guard.path()));
    let gone = rejected_without_trace(&cluster, write(1, Some(Counter { n: 1 }), 13).await).await;
    assert!(matches!(&gone, TransactionError::Precondition { found, .. } if found == "nothing"));
    hold.release();
    assert_eq!(cluster.server(0).snapshot().require(&target).unwrap().n, 10);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T8: creating what exists is refused with the path.
pub async fn t08_create_refuses_what_exists(case: Case) {
    let cluster = case.cluster(1).await;
    let airports: Ref<Store> = Ref::root(case.id("airports")).unwrap();
    let create = || {
        let target = airports.clone();
        cluster.server(0).write(move |tx: &mut Transaction| tx.create(&target, store("a", 1)))
    };
    assert!(create().await.unwrap().changed);
    let error = rejected_without_trace(&cluster, create().await).await;
    assert_eq!(error, TransactionError::AlreadyExists { path: airports.path().clone() });
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T9: a child needs every ancestor; the error names the absent one.
pub async fn t09_a_child_needs_its_ancestors(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let airports: Ref<Store> = Ref::root(case.id("airports")).unwrap();
    let version: Ref<Version> = airports.child(1_u64).unwrap();
    let mark: Ref<Mark> = version.child(case.id("m")).unwrap();
    let other: Ref<Counter> = Ref::root(case.id("n")).unwrap();

    let (child, beside) = (version.clone(), other.clone());
    let written = state.write(move |tx: &mut Transaction| {
        tx.put(&beside, Counter { n: 1 })?;
        tx.put(&child, Version { rows: 1 })
    });
    let error = rejected_without_trace(&cluster, written.await).await;
    let absent = |path: &crate::path::Path| TransactionError::AbsentAncestor {
        path: path.clone(),
        ancestor: airports.path().clone(),
    };
    assert_eq!(error, absent(version.path()));
    assert!(!state.snapshot().contains(other.path()));
    let grandchild = mark.clone();
    let written = state.write(move |tx: &mut Transaction| tx.put(&grandchild, Mark { text: "x".to_owned() }));
    assert_eq!(rejected_without_trace(&cluster, written.await).await, absent(mark.path()));
    let (parent, child) = (airports.clone(), version.clone());
    let written = state.write(move |tx: &mut Transaction| {
        tx.put(&child, Version { rows: 1 })?;
        tx.put(&parent, store("a", 1))
    });
    assert_eq!(rejected_without_trace(&cluster, written.await).await, absent(version.path()));
    let (parent, child) = (airports.clone(), version.clone());
    case.write(state, move |tx| {
        tx.put(&parent, store("a", 1))?;
        tx.put(&child, Version { rows: 1 })
    })
    .await;
    assert_eq!(agree(&cluster, None).await.len(), 2);
    cluster.finish().await;
}

/// T10: deleting takes the subtree in one revision, each with its `before`; deleting nothing is no change.
pub async fn t10_deleting_takes_the_subtree(case: Case) {
    let cluster = case.cluster(2).await;
    let state = cluster.server(0);
    let airports: Ref<Store> = Ref::root(case.id("airports")).unwrap();
    let delete = || {
        let target = airports.clone();
        state.write(move |tx: &mut Transaction| tx.delete(&target))
    };
    let nothing = delete().await.unwrap();
    assert!(!nothing.changed && !nothing.value);
    let parent = airports.clone();
    case.write(state, move |tx| {
        tx.put(&parent, store("a", 1))?;
        (1..=3_u64).try_for_each(|number| tx.put(&parent.child::<Version>(number)?, Version { rows: number }))
    })
    .await;
    let mut feed = state.changes(None);
    let gone = delete().await.unwrap();
    assert!(gone.changed && gone.value);
    let applied = next_transaction(&mut feed).await;
    assert_eq!(applied.revision, gone.revision);
    assert_eq!(applied.changes.len(), 4);
    for change in applied.changes.iter() {
        assert!(change.before.is_some() && change.after.is_none(), "{change:?}");
    }
    let again = delete().await.unwrap();
    assert!(!again.changed && !again.value);
    assert!(agree(&cluster, None).await.is_empty());
    cluster.finish().await;
}

/// T11: putting an equal value is no change.
pub async fn t11_an_equal_value_is_no_change(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let first = put_counter(&case, cluster.server(0), &counter, 1).await;
    for index in [0, 1] {
        let target = counter.clone();
        let again = cluster.server(index).write(move |tx: &mut Transaction| tx.put(&target, Counter { n: 1 }));
        let again = again.await.unwrap();
        assert!(!again.changed);
        assert_eq!(again.revision, first);
    }
    assert_eq!(cluster.stored().await.meta.head, first);
    assert_eq!(cluster.server(0).snapshot().changed_at(counter.path()), Some(first));
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T12: one change per path, from first before to last after; none where these are equal.
pub async fn t12_one_change_from_first_before_to_last_after(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let [a, b] = ["a", "b"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    put_counter(&case, state, &a, 0).await;
    let mut feed = state.changes(None);

    let (first, second) = (a.clone(), b.clone());
    let twice = state.write(move |tx: &mut Transaction| {
        tx.put(&first, Counter { n: 1 })?;
        tx.put(&first, Counter { n: 2 })?;
        tx.create(&second, Counter { n: 9 })?;
        tx.delete(&second)
    });
    assert!(twice.await.unwrap().changed);
    let applied = next_transaction(&mut feed).await;
    assert_eq!(applied.changes.len(), 1);
    assert_eq!(applied.changes[0].before::<Counter>().unwrap().unwrap().n, 0);
    assert_eq!(applied.changes[0].after::<Counter>().unwrap().unwrap().n, 2);

    let changed_at = state.snapshot().changed_at(a.path());
    let target = a.clone();
    let back = state.write(move |tx: &mut Transaction| {
        tx.delete(&target)?;
        tx.put(&target, Counter { n: 5 })?;
        tx.put(&target, Counter { n: 2 })
    });
    assert!(!back.await.unwrap().changed);
    assert_eq!(state.snapshot().changed_at(a.path()), changed_at);

    let airports: Ref<Store> = Ref::root(case.id("airports")).unwrap();
    let parent = airports.clone();
    case.write(state, move |tx| {
        tx.put(&parent, store("a", 1))?;
        tx.put(&parent.child::<Version>(1_u64)?, Version { rows: 1 })
    })
    .await;
    next_transaction(&mut feed).await;
    let parent = airports.clone();
    let replaced = state.write(move |tx: &mut Transaction| {
        tx.delete(&parent)?;
        tx.put(&parent, store("a", 1))
    });
    assert!(replaced.await.unwrap().changed);
    let applied = next_transaction(&mut feed).await;
    assert_eq!(applied.changes.len(), 1);
    assert_eq!(applied.changes[0].path, *airports.child::<Version>(1_u64).unwrap().path());
    assert!(applied.changes[0].after.is_none());
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T17: what was answered is seen by the server that wrote at once, and by another that waits for the revision.
pub async fn t17_what_was_answered_is_seen(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    for n in 1..100 {
        let target = counter.clone();
        let written =
            cluster.server(0).write(move |tx: &mut Transaction| tx.put(&target, Counter { n })).await.unwrap();
        assert_eq!(cluster.server(0).snapshot().require(&counter).unwrap().n, n);
        cluster.server(1).wait_for(written.revision, LIMIT).await.unwrap();
        assert_eq!(cluster.server(1).snapshot().require(&counter).unwrap().n, n);
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// T18: each transaction carries exactly its own attributes, on every server.
pub async fn t18_attributes_are_each_transactions_own(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let mut feeds = [cluster.server(0).changes(None), cluster.server(1).changes(None)];
    let a = crate::revision::Attributes::from([("user".to_owned(), "a".to_owned())]);
    let carried = [a.clone(), a, crate::revision::Attributes::new()];
    for (n, attributes) in (1..).zip(carried.iter().cloned()) {
        let target = counter.clone();
        let write = cluster.server(0).transaction().attributes(attributes.clone());
        let inside = move |tx: &mut Transaction| {
            assert_eq!(*tx.attributes(), attributes);
            tx.put(&target, Counter { n })
        };
        write.write(inside).await.unwrap();
    }
    for feed in &mut feeds {
        for attributes in &carried {
            assert_eq!(*next_transaction(feed).await.attributes, *attributes);
        }
    }
    let large = crate::revision::Attributes::from([("k".to_owned(), "v".repeat(64 << 10))]);
    let refused: Written<()> =
        cluster.server(0).transaction().attributes(large).write(|_: &mut Transaction| Ok(())).await;
    assert!(matches!(refused, Err(WriteError::TooLarge { limit: 65_536, .. })), "{refused:?}");
    tokio::time::timeout(Duration::from_secs(60), cluster.finish()).await.unwrap();
}
