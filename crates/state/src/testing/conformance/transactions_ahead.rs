//! T: transactions whose closures run while another server has the write lock.

use std::time::Duration;

use futures::FutureExt;
use tokio::sync::mpsc;

use super::entities::*;
use super::transactions::put_counter;
use super::{Case, Written, agree, within};
use crate::entity::Ref;
use crate::error::WriteError;
use crate::state::RunAhead;
use crate::testing::points::name as point;
use crate::transaction::{Transaction, TransactionError};

type Closure = fn(&mut Transaction, &Counters) -> Result<i64, TransactionError>;

/// What the transactions are about.
#[derive(Clone)]
struct Counters {
    /// Set to 10 by the other server.
    changed: Ref<Counter>,
    /// Made by the other server.
    made: Ref<Counter>,
    /// As it was.
    beside: Ref<Counter>,
}

/// One closure, how often it runs, and what it comes to.
struct Ahead {
    what: &'static str,
    closure: Closure,
    runs: u64,
    expected: Result<i64, fn(&TransactionError) -> bool>,
}

const AHEAD: [Ahead; 10] = [
    Ahead {
        what: "it has read what is as it was",
        closure: |tx, counters| {
            tx.update(&counters.beside, |counter| counter.n += 1)?;
            Ok(tx.require(&counters.beside)?.n)
        },
        runs: 1,
        expected: Ok(1),
    },
    Ahead {
        what: "it writes nothing",
        closure: |tx, counters| Ok(tx.require(&counters.beside)?.n),
        runs: 1,
        expected: Ok(0),
    },
    Ahead {
        what: "it rejects what is as it was",
        closure: |tx, counters| tx.create(&counters.beside, Counter { n: 5 }).map(|()| 0),
        runs: 1,
        expected: Err(|error| matches!(error, TransactionError::AlreadyExists { .. })),
    },
    Ahead {
        what: "it has read what was changed",
        closure: |tx, counters| {
            tx.update(&counters.changed, |counter| counter.n += 1)?;
            Ok(tx.require(&counters.changed)?.n)
        },
        runs: 2,
        expected: Ok(11),
    },
    Ahead {
        what: "it puts over what was changed",
        closure: |tx, counters| tx.put(&counters.changed, Counter { n: 10 }).map(|()| 0),
        runs: 2,
        expected: Ok(0),
    },
    Ahead {
        what: "it expects what is no more",
        closure: |tx, counters| {
            tx.expect(&counters.changed, Some(&Counter { n: 0 }))?;
            tx.put(&counters.beside, Counter { n: 7 }).map(|()| 7)
        },
        runs: 2,
        expected: Err(|error| matches!(error, TransactionError::Precondition { .. })),
    },
    Ahead {
        what: "it expects what was not yet",
        closure: |tx, counters| {
            tx.expect(&counters.changed, Some(&Counter { n: 10 }))?;
            tx.put(&counters.beside, Counter { n: 7 }).map(|()| 7)
        },
        runs: 2,
        expected: Ok(7),
    },
    Ahead {
        what: "it has not found what was made",
        closure: |tx, counters| Ok(i64::from(tx.contains(counters.made.path()))),
        runs: 2,
        expected: Ok(1),
    },
    Ahead {
        what: "it asks for the revision",
        closure: |tx, counters| {
            tx.require(&counters.beside)?;
            Ok(i64::from(tx.revision() > crate::revision::Revision::ZERO))
        },
        runs: 2,
        expected: Ok(1),
    },
    Ahead {
        what: "it lists, and deletes",
        closure: |tx, counters| {
            let others = tx.roots::<Counter>()?.len();
            tx.delete(&counters.beside)?;
            Ok(i64::try_from(others).unwrap_or(0))
        },
        runs: 2,
        expected: Ok(3),
    },
];

/// T1: a closure runs while another server commits; if all that it has read is the same after that, it does not run again, and
/// else what it comes to at the head counts.
pub async fn t01_what_ran_ahead_counts_if_it_is_so_at_the_head(case: Case) {
    for Ahead { what, closure, runs, expected } in AHEAD {
        let builder = case.configured(|index, mut options| {
            options.run_ahead = if index == 1 { RunAhead::Always } else { RunAhead::WhereTheLockIsWaitedFor };
            options
        });
        let cluster = case.open(builder.servers(2)).await;
        let counter = |name: &str| Ref::<Counter>::root(case.id(name)).unwrap();
        let counters = Counters { changed: counter("changed"), made: counter("made"), beside: counter("beside") };
        put_counter(&case, cluster.server(0), &counters.changed, 0).await;
        let first = put_counter(&case, cluster.server(0), &counters.beside, 0).await;
        super::applied(cluster.server(1), first).await;
        let before = cluster.server(1).metrics().closures_ahead();

        let hold = cluster.points(0).hold(point::COMMIT_LOCKED);
        let (state, theirs) = (cluster.server(0).clone(), counters.clone());
        let other: tokio::task::JoinHandle<Written<()>> = tokio::spawn(async move {
            let write = state.write(move |tx: &mut Transaction| {
                tx.put(&theirs.changed, Counter { n: 10 })?;
                tx.put(&theirs.made, Counter { n: 1 })
            });
            write.await
        });
        hold.reached().await;
        let (run, mut ran) = mpsc::unbounded_channel();
        let state = cluster.server(1).clone();
        let answer: tokio::task::JoinHandle<Written<i64>> = tokio::spawn(async move {
            let write = state.write(move |tx: &mut Transaction| {
                let _ = run.send(());
                closure(tx, &counters)
            });
            write.await
        });
        within("a run ahead", ran.recv()).await.unwrap();
        hold.release();
        within("the other server's commit", other).await.unwrap().unwrap();
        match (within("an answer", answer).await.unwrap(), expected) {
            (Ok(committed), Ok(value)) => assert_eq!(committed.value, value, "{what}"),
            (Err(WriteError::Rejected(error)), Err(is_expected)) => assert!(is_expected(&error), "{what}: {error}"),
            (other, _) => panic!("{what}: {other:?}"),
        }
        let mut all = 1;
        while within("the end of the runs", ran.recv()).await.is_some() {
            all += 1;
        }
        assert_eq!(all, runs, "{what}");
        let after = cluster.server(1).metrics().closures_ahead();
        assert_eq!((after.0 - before.0, after.1 - before.1), (1, runs - 1), "{what}");
        agree(&cluster, None).await;
        cluster.finish().await;
    }
}

/// T2: of the increments of many writers, who wait for the lock of another server, none is lost, and each has a revision of its
/// own in the order in which they were submitted; also where some of them ran ahead, reject what they find, or have gone.
pub async fn t02_increments_of_many_who_run_ahead_keep_their_order(case: Case) {
    let builder = case.configured(|_, mut options| {
        options.run_ahead = RunAhead::WhereTheLockIsWaitedFor;
        options
    });
    let cluster = case.open(builder.servers(2)).await;
    let counters: Vec<Ref<Counter>> = (0..3).map(|n| Ref::root(case.id(&n.to_string())).unwrap()).collect();
    let theirs: Ref<Counter> = Ref::root(case.id("theirs")).unwrap();
    for counter in counters.iter().chain([&theirs]) {
        let first = put_counter(&case, cluster.server(0), counter, 0).await;
        super::applied(cluster.server(1), first).await;
    }
    let state = cluster.server(1);
    let (mut expected, mut round) = ([0; 3], 0);
    // Whether the lock is waited for is known from the round before.
    let rounds = async {
        while state.metrics().closures_ahead().0 == 0 {
            round += 1;
            let hold = cluster.points(0).hold(point::COMMIT_LOCKED);
            let (first, target) = (cluster.server(0).clone(), theirs.clone());
            let other = tokio::spawn(async move {
                first.write(move |tx: &mut Transaction| tx.put(&target, Counter { n: round })).await.map(|_| ())
            });
            hold.reached().await;
            let mut writes: Vec<_> = (0..48_usize)
                .map(|place| {
                    let target = counters[place % 3].clone();
                    let mut write = Box::pin(state.write(move |tx: &mut Transaction| {
                        tx.update(&target, |counter| counter.n += 1)?;
                        if place % 12 == 5 {
                            Err(TransactionError::rejected("one of twelve"))
                        } else {
                            Ok(tx.require(&target)?.n)
                        }
                    }));
                    // Polled once here: it is in the queue before the next one is made.
                    assert!((&mut write).now_or_never().is_none());
                    Some(write)
                })
                .collect();
            writes[7] = None;
            // So that the lock is waited for.
            tokio::time::sleep(Duration::from_millis(2)).await;
            hold.release();
            other.await.unwrap().unwrap();
            let mut last = crate::revision::Revision::ZERO;
            for (place, write) in writes.into_iter().enumerate() {
                let Some(write) = write else { continue };
                match write.await {
                    Ok(committed) if place % 12 != 5 => {
                        expected[place % 3] = committed.value;
                        assert!(committed.revision > last, "{place} of round {round}");
                        last = committed.revision;
                    }
                    Err(WriteError::Rejected(_)) if place % 12 == 5 => {}
                    other => panic!("{place} of round {round}: {other:?}"),
                }
            }
        }
    };
    within("a round in which closures run ahead", rounds).await;
    // Whoever read what the one that has gone had put runs again.
    let (ran, in_vain) = state.metrics().closures_ahead();
    assert!(in_vain < ran, "{in_vain} of {ran}");
    for (place, (counter, expected)) in counters.iter().zip(expected).enumerate() {
        let n = state.snapshot().require(counter).unwrap().n;
        assert_eq!(n, expected);
        // Each twelfth is rejected; the one that has gone counts wholly or not at all.
        let written = (0..48).filter(|of| of % 3 == place && of % 12 != 5).count();
        let most = i64::try_from(written).unwrap() * round;
        let gone = if place == 7 % 3 { round } else { 0 };
        assert!((most - gone..=most).contains(&n), "counter {place} is {n} after {round} rounds");
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}
