//! D: what every driver does, without faults.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::entities::*;
use super::transactions::{next_transaction, put_counter};
use super::{Case, LIMIT, Oracle, Written, agree, carry_out, dump, script, within};
use crate::driver::{Call, Faults};
use crate::entity::Ref;
use crate::error::{WaitError, WriteError};
use crate::feed::FeedItem;
use crate::revision::{Revision, Timestamp};
use crate::state::{State, StateOptions};
use crate::testing::points::name as point;
use crate::testing::{Cluster, START};
use crate::transaction::{Transaction, TransactionError};

fn initial(tx: &mut Transaction) -> Result<(), TransactionError> {
    tx.create(&Ref::root("initial".to_owned())?, Counter { n: 1 })
}

/// D3: however many servers open an empty store at once, there is one epoch and one initial state.
pub async fn d03_one_initial_state_however_many_open(case: Case) {
    let cluster = case.cluster(0).await;
    let open = |name: String| {
        let driver = cluster.store().driver(Faults::new());
        let options = declare_records(StateOptions::new(name)).initialise(initial);
        State::open(driver, options)
    };
    let opened = futures::future::join_all((0..8).map(|index| open(format!("server-{index}")))).await;
    let states: Vec<State> = opened.into_iter().map(Result::unwrap).collect();
    let mut epochs = BTreeSet::new();
    for state in &states {
        state.flush().await.unwrap();
        epochs.insert(state.snapshot().epoch().to_string());
        assert_eq!(state.snapshot().revision(), Revision(1));
        assert_eq!(state.snapshot().len(), 1);
    }
    assert_eq!(epochs.len(), 1);
    states[0].write(|tx: &mut Transaction| tx.delete(&Ref::<Counter>::root("initial".to_owned())?)).await.unwrap();
    let later = open("later".to_owned()).await.unwrap();
    assert!(later.snapshot().is_empty(), "the initialiser is not called for a store that has a log");
    for state in states {
        state.close().await;
    }
    later.close().await;
}

/// D6: flush returns only when this server has applied what was committed before; it never falsely succeeds.
pub async fn d06_flush_waits_for_the_tail(case: Case) {
    let cluster = case.cluster(2).await;
    let hold = cluster.points(1).hold(point::TAIL_BEFORE_APPLY);
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let written = put_counter(&case, cluster.server(0), &counter, 1).await;
    hold.reached().await;
    let error = cluster.server(1).flush_within(Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(error, WaitError::TimedOut { wanted, applied, .. } if wanted == written && applied < written));
    let state = cluster.server(1).clone();
    let mut flush = Box::pin(async move { state.flush_within(LIMIT).await });
    assert!(futures::poll!(&mut flush).is_pending());
    hold.release();
    assert!(within("the flush", flush).await.unwrap() >= written);
    assert!(cluster.server(1).snapshot().revision() >= written);
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D7: waits end in time; closing leaves no waiter.
pub async fn d07_waits_end_and_close_leaves_no_waiter(case: Case) {
    let mut cluster = case.cluster(1).await;
    let state = cluster.server(0).clone();
    state.flush().await.unwrap();
    let flushes = futures::future::join_all((0..100).map(|_| state.flush())).await;
    assert!(flushes.iter().all(Result::is_ok));
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let at = put_counter(&case, &state, &counter, 1).await;
    state.wait_for(at, Duration::ZERO).await.unwrap();
    let error = state.wait_for(at.next(), Duration::from_millis(50)).await.unwrap_err();
    assert!(error.to_string().contains(&format!("has applied {at}")), "{error}");
    let waiter = state.clone();
    let mut future = Box::pin(async move { waiter.wait_for(at.next(), LIMIT).await });
    assert!(futures::poll!(&mut future).is_pending());
    put_counter(&case, &state, &counter, 2).await;
    within("the wait for a future revision", future).await.unwrap();

    let hold = cluster.points(0).hold(point::COMMIT_BEFORE_COMMIT);
    let mut writes = Vec::new();
    for n in 0..20 {
        let (state, target) = (state.clone(), counter.clone());
        let mut write =
            Box::pin(
                async move { state.write(move |tx: &mut Transaction| tx.put(&target, Counter { n: n + 10 })).await },
            );
        assert!(futures::poll!(&mut write).is_pending());
        writes.push(tokio::spawn(write));
    }
    let waiter = state.clone();
    let wait = tokio::spawn(async move { waiter.wait_for(Revision(1_000_000), LIMIT).await });
    hold.reached().await;
    let closer = tokio::spawn(async move {
        cluster.close(0).await;
        cluster
    });
    tokio::task::yield_now().await;
    hold.release();
    let cluster = within("the close", closer).await.unwrap();
    for write in writes {
        let written: Written<()> = within("a write's answer", write).await.unwrap();
        assert!(matches!(written, Ok(_) | Err(WriteError::Closed)), "{written:?}");
    }
    assert!(matches!(within("the wait", wait).await.unwrap(), Err(WaitError::Closed)));
    let late: Written<()> = state.write(|_: &mut Transaction| Ok(())).await;
    assert!(matches!(late, Err(WriteError::Closed)), "{late:?}");
    agree(&cluster, None).await;
}

/// D14, as far as it concerns every driver: when no hint of news arrives, the poll finds what changed, and flush stays
/// exact. (Losing PostgreSQL's notifications is that driver's own case.)
pub async fn d14_without_hints_the_poll_finds_changes(case: Case) {
    let cluster = case.cluster(2).await;
    cluster.faults(1).set_deaf(true);
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    for n in 0..20 {
        let at = put_counter(&case, cluster.server(0), &counter, n).await;
        cluster.server(1).wait_for(at, LIMIT).await.unwrap();
    }
    assert!(cluster.server(1).flush().await.unwrap() >= cluster.server(0).snapshot().revision());
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D15, as far as it concerns every driver: nobody applies a revision before the ones below it. A commit is held with its
/// revisions taken while another server wants to write.
pub async fn d15_revisions_come_in_order_without_a_gap(case: Case) {
    let cluster = case.cluster(3).await;
    let [first, second] = ["first", "second"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    let mut feed = cluster.server(2).changes(None);
    let _ = feed.next().await;
    for cut in [false, true] {
        let hold = cluster.points(0).hold(point::COMMIT_BEFORE_COMMIT);
        let write = |index: usize, target: &Ref<Counter>| {
            let (state, target) = (cluster.server(index).clone(), target.clone());
            tokio::spawn(async move {
                let written = state.write(move |tx: &mut Transaction| {
                    let n = tx.get(&target)?.map_or(0, |counter| counter.n);
                    tx.put(&target, Counter { n: n + 1 })
                });
                written.await
            })
        };
        let held = write(0, &first);
        hold.reached().await;
        let other = write(1, &second);
        tokio::task::yield_now().await;
        if cut {
            hold.cut()
        } else {
            hold.release()
        }
        let revisions = [
            within("the held write", held).await.unwrap().unwrap().revision,
            within("the other write", other).await.unwrap().unwrap().revision,
        ];
        let mut expected = feed.snapshot().revision();
        for _ in revisions {
            let applied = next_transaction(&mut feed).await;
            assert_eq!(applied.revision, expected.next(), "cut: {cut}");
            expected = applied.revision;
            assert!(revisions.contains(&applied.revision));
        }
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D22: a server that starts while others write, entities are written behind and the log is compacted loses nothing.
pub async fn d22_a_start_under_load_loses_nothing(case: Case) {
    let case = case.upkept();
    let builder = case.configured(|_, mut options| {
        options.log_keep = Duration::ZERO;
        options.entities_behind = Duration::from_millis(20);
        options.compact_every = 1;
        options
    });
    let mut cluster = case.open(builder.servers(2)).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let (state, stop, id) = (cluster.server(writer % 2).clone(), stop.clone(), case.id(&format!("n{writer}")));
        writers.spawn(async move {
            let counter: Ref<Counter> = Ref::root(id).unwrap();
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let target = counter.clone();
                state.write(move |tx: &mut Transaction| tx.put(&target, Counter { n })).await.unwrap();
            }
        });
    }
    for _ in 0..5 {
        let index = cluster.join().await;
        let mut feed = cluster.server(index).changes(None);
        let Some(FeedItem::Snapshot(first)) = feed.next().await else { panic!("a feed begins with a snapshot") };
        let mut last = first.revision();
        for _ in 0..50 {
            match within("the next item", feed.next()).await.unwrap() {
                FeedItem::Transaction(applied) => {
                    assert_eq!(applied.revision, last.next(), "none lost, none twice");
                    last = applied.revision;
                }
                // Under this compaction a slow reader may be told to start again.
                FeedItem::Snapshot(snapshot) => {
                    assert!(snapshot.revision() > last);
                    last = snapshot.revision();
                }
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = within("the writers", writers.join_next()).await {
        ended.unwrap();
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D23: a server whose log was compacted away while it was held reloads; flush waits for the fresh tree.
pub async fn d23_a_server_behind_the_compaction_reloads(case: Case) {
    let case = case.upkept();
    let builder = case.configured(|_, mut options| {
        options.log_keep = Duration::ZERO;
        options
    });
    let cluster = case.open(builder.servers(2)).await;
    let [kept, gone] = ["kept", "gone"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    put_counter(&case, cluster.server(0), &kept, 0).await;
    put_counter(&case, cluster.server(0), &gone, 0).await;
    cluster.server(1).flush().await.unwrap();
    cluster.faults(1).set_absent(true);
    for n in 1..200 {
        put_counter(&case, cluster.server(0), &kept, n).await;
    }
    let target = gone.clone();
    case.write(cluster.server(0), move |tx| tx.delete(&target).map(|_| ())).await;
    compact_whole_log(&cluster, 0).await;
    let reloads = cluster.server(1).metrics().reloads();
    cluster.faults(1).set_absent(false);
    cluster.server(1).flush_within(LIMIT).await.unwrap();
    assert!(cluster.server(1).metrics().reloads() > reloads);
    assert_eq!(cluster.server(1).snapshot().require(&kept).unwrap().n, 199);
    assert!(!cluster.server(1).snapshot().contains(gone.path()));
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// Writes the entities behind and compacts the log as far as it goes.
pub(super) async fn compact_whole_log(cluster: &Cluster, index: usize) {
    let state = cluster.server(index);
    state.flush_within(LIMIT).await.unwrap();
    cluster.advance(Duration::from_millis(1));
    within("the compaction", async {
        loop {
            // Another round of upkeep may have the entities in hand.
            state.core().write_entities().await.unwrap();
            state.core().compact().await.unwrap();
            let stored = cluster.stored().await;
            if stored.tree.revision == stored.meta.head && stored.log.len() <= 1 {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// D24: an idle cluster writes nothing.
pub async fn d24_idle_writes_nothing(case: Case) {
    let case = case.upkept();
    let builder = case.configured(|_, mut options| {
        options.poll = Duration::from_millis(2);
        options.entities_behind = Duration::from_millis(2);
        options.compact_every = 1;
        options
    });
    let cluster = case.open(builder.servers(2)).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    put_counter(&case, cluster.server(0), &counter, 1).await;
    agree(&cluster, None).await;
    within("the entities are written", async {
        while cluster.stored().await.tree.revision < cluster.stored().await.meta.head {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut before = cluster.stored().await;
    let rounds = cluster.points(0).count(point::UPKEEP_COMPACTION);
    within("200 rounds", async {
        while cluster.points(0).count(point::UPKEEP_COMPACTION) < rounds + 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut after = cluster.stored().await;
    // Compaction may have removed what was older than the log is kept; the rest is as it was.
    before.log.clear();
    after.log.clear();
    assert_eq!(before.meta.head, after.meta.head);
    assert_eq!(before.tree.entities, after.tree.entities);
    assert_eq!(before.tree.revision, after.tree.revision);
    assert_eq!((before.records.len(), before.slots.len()), (after.records.len(), after.slots.len()));
    cluster.finish().await;
}

/// D25: waiting transactions share commits, however many there are.
pub async fn d25_waiting_transactions_share_commits(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    for waiting in [1_u64, 10, 500] {
        let hold = cluster.points(0).hold(point::COMMIT_BEFORE_LOCK);
        let mut writes = tokio::task::JoinSet::new();
        for n in 0..waiting {
            let (state, id) = (state.clone(), case.id(&format!("n{n}")));
            let mut write = Box::pin(async move {
                let write = move |tx: &mut Transaction| {
                    let target: Ref<Counter> = Ref::root(id.clone())?;
                    let n = tx.get(&target)?.map_or(0, |counter| counter.n);
                    tx.put(&target, Counter { n: n + 1 })
                };
                state.write(write).await
            });
            assert!(futures::poll!(&mut write).is_pending());
            writes.spawn(write);
        }
        hold.reached().await;
        let before = state.metrics().commits();
        let _ = cluster.faults(0).take_calls();
        hold.release();
        while let Some(ended) = within("the writes", writes.join_next()).await {
            ended.unwrap().unwrap();
        }
        let commits = state.metrics().commits() - before;
        assert!(commits <= 3, "{waiting} transactions took {commits} commits");
        expect_few_statements(&cluster, 0, &format!("{waiting} transactions"));
    }
    for records in [0, 5_000] {
        let _ = cluster.faults(0).take_calls();
        let many = state.write(move |tx: &mut Transaction| {
            (0..5_000).try_for_each(|n| tx.put(&Ref::root(format!("many{n}"))?, Counter { n: n + records }))?;
            (0..records).try_for_each(|what| tx.append(&Audit { who: "many".to_owned(), what }).map(|_| ()))
        });
        many.await.unwrap();
        expect_few_statements(&cluster, 0, &format!("5 000 changes and {records} records"));
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// What a server has sent for its writes since the calls were last taken is a few rounds, however much they carried.
pub(super) fn expect_few_statements(cluster: &Cluster, server: usize, what: &str) {
    let calls = cluster.faults(server).take_calls();
    for call in [Call::Begin, Call::Fence, Call::Commit, Call::FindSubmission] {
        let count = calls.get(&call).copied().unwrap_or(0);
        assert!(count <= 4, "{what} took {count} of {call:?}: {calls:?}");
    }
}

/// D26: large documents, transactions and attributes are stored whole, or refused with the limit.
pub async fn d26_large_documents_and_transactions_are_whole(case: Case) {
    let cluster = case.cluster(2).await;
    let large: Ref<Store> = Ref::root(case.id("large")).unwrap();
    let (target, owner) = (large.clone(), "x".repeat(4 << 20));
    case.write(cluster.server(0), move |tx| tx.put(&target, store(&owner, 0))).await;
    let (target, owner) = (large.clone(), "x".repeat(9 << 20));
    let refused = cluster.server(0).write(move |tx: &mut Transaction| tx.put(&target, store(&owner, 0))).await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains(large.path().as_str()) && error.contains(&(8 << 20).to_string()), "{error}");
    let many = cluster.server(0).write(|tx: &mut Transaction| {
        (0..10_000).try_for_each(|n| tx.put(&Ref::root(format!("many{n}"))?, Counter { n }))
    });
    let at = many.await.unwrap().revision;
    super::applied(cluster.server(1), at).await;
    let attributes = crate::revision::Attributes::from([("k".to_owned(), "v".repeat((64 << 10) - 1))]);
    let mut feed = cluster.server(1).changes(Some((cluster.server(1).snapshot().epoch(), at)));
    let target: Ref<Counter> = Ref::root("many1".to_owned()).unwrap();
    let write = cluster.server(0).transaction().attributes(attributes.clone());
    write.write(move |tx: &mut Transaction| tx.update(&target, |counter| counter.n = 9)).await.unwrap();
    assert_eq!(*next_transaction(&mut feed).await.attributes, attributes);
    assert_eq!(agree(&cluster, None).await.len(), 10_001);
    cluster.finish().await;
}

/// D34: times are those of the injected clock; stepping it back lets revisions rise all the same.
pub async fn d34_time_is_the_injected_clocks(case: Case) {
    let cluster = case.cluster(1).await;
    let state = cluster.server(0);
    let write = || {
        state.write(|tx: &mut Transaction| {
            tx.append(&Audit { who: "t".to_owned(), what: 1 })?;
            Ok::<_, TransactionError>(tx.now())
        })
    };
    let first = write().await.unwrap();
    assert_eq!(first.value, START);
    assert_eq!(state.now(), START);
    state.core().prune().await.unwrap();
    assert_eq!(cluster.stored().await.records.len(), 1, "nothing falls due while the clock stands still");
    cluster.advance(Duration::from_secs(10));
    let second = write().await.unwrap();
    assert_eq!(second.value, START.after(Duration::from_secs(10)));
    cluster.clock().set(Timestamp(START.0 - 5_000));
    let third = write().await.unwrap();
    assert_eq!(third.value, Timestamp(START.0 - 5_000));
    assert!(third.revision > second.revision && second.revision > first.revision);
    cluster.clock().set(START.after(Duration::from_secs(3_605)));
    state.core().prune().await.unwrap();
    assert_eq!(cluster.stored().await.records.len(), 1, "exactly those that are old enough go");
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D41: a start needs the written-behind entities and the log after them, in any state of the two.
pub async fn d41_a_start_needs_entities_and_the_log_after(case: Case) {
    let case = case.upkept();
    let builder = case.configured(|_, mut options| {
        options.log_keep = Duration::ZERO;
        options.entities_behind = Duration::from_secs(3_600);
        options
    });
    let mut cluster = case.open(builder.servers(1)).await;
    let mut oracle = Oracle::default();
    for (round, ops) in script(case.seed, 400, &|name| case.id(name)).iter().enumerate() {
        oracle.apply(ops);
        let own = ops.clone();
        let _ = cluster.server(0).write(move |tx: &mut Transaction| carry_out(&own, tx)).await;
        match round % 40 {
            7 => cluster.server(0).core().write_entities().await.unwrap(),
            19 => {
                cluster.advance(Duration::from_millis(1));
                cluster.server(0).core().compact().await.unwrap();
            }
            29 => {
                cluster.restart_store().await;
                cluster.restart(0).await;
                assert_eq!(dump(&cluster.server(0).snapshot()), oracle.tree, "round {round}");
                assert_eq!(cluster.server(0).snapshot().revision(), Revision(oracle.revision));
            }
            _ => {}
        }
    }
    let stored = cluster.stored().await;
    assert!(stored.meta.compacted <= stored.tree.revision, "compaction took nothing that a start needs");
    assert_eq!(stored.records.len(), oracle.records.len());
    agree(&cluster, Some(&oracle.tree)).await;
    cluster.finish().await;
}
