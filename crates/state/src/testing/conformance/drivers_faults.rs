//! D: what every driver does when the store is away, answers are lost, or it is replaced.

use std::time::Duration;

use super::entities::*;
use super::transactions::put_counter;
use super::{Case, LIMIT, Written, agree, within};
use crate::driver::{Call, CommitFault, DriverError, Faults, RecordId};
use crate::entity::Ref;
use crate::error::{OpenError, WriteError};
use crate::feed::FeedItem;
use crate::revision::{Attributes, Revision, SubmissionId};
use crate::state::{State, StateOptions};
use crate::testing::points::name as point;
use crate::transaction::{Transaction, TransactionError};

/// D8: a store that was dropped and made anew is noticed and loaded, also where the head's number is the same.
pub async fn d08_a_recreated_store_is_loaded_anew(case: Case) {
    let cluster = case.cluster(1).await;
    let [old, new] = ["old", "new"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    put_counter(&case, cluster.server(0), &old, 1).await;
    let epoch = cluster.server(0).snapshot().epoch();
    cluster.faults(0).set_absent(true);
    cluster.store().drop_and_recreate().await.unwrap();
    let other = cluster.latecomer().await;
    put_counter(&case, &other, &new, 2).await;
    assert_eq!(other.snapshot().revision(), cluster.server(0).snapshot().revision(), "the numbers coincide");
    cluster.faults(0).set_absent(false);
    cluster.server(0).flush_within(LIMIT).await.unwrap();
    let snapshot = cluster.server(0).snapshot();
    assert_ne!(snapshot.epoch(), epoch);
    assert!(!snapshot.contains(old.path()) && snapshot.contains(new.path()));
    put_counter(&case, cluster.server(0), &old, 3).await;
    other.close().await;
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D9: while the store is away the last snapshot is served and writes fail as retryable; what comes back is taken up
/// without a restart and without a flush.
pub async fn d09_a_store_that_comes_back_is_taken_up(case: Case) {
    let builder = case.configured(|_, mut options| {
        options.write_limit = Duration::from_secs(2);
        options
    });
    let cluster = case.open(builder.servers(1)).await;
    let [old, new] = ["old", "new"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    put_counter(&case, cluster.server(0), &old, 1).await;
    cluster.faults(0).set_absent(true);
    let target = old.clone();
    let failed = cluster.server(0).write(move |tx: &mut Transaction| tx.put(&target, Counter { n: 2 })).await;
    assert!(failed.as_ref().is_err_and(WriteError::is_retryable), "{failed:?}");
    assert_eq!(cluster.server(0).snapshot().require(&old).unwrap().n, 1);
    cluster.store().drop_and_recreate().await.unwrap();
    let other = cluster.latecomer().await;
    put_counter(&case, &other, &new, 2).await;
    put_counter(&case, &other, &new, 3).await;
    let mut feed = cluster.server(0).changes(None);
    let _ = feed.next().await;
    cluster.faults(0).set_absent(false);
    let Some(FeedItem::Snapshot(fresh)) = within("the fresh tree", feed.next()).await else {
        panic!("a feed starts again with a snapshot")
    };
    assert!(!fresh.contains(old.path()) && fresh.contains(new.path()));
    other.close().await;
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D10: without its store a state does not open, and no tree is invented; the next try finds what is there.
pub async fn d10_a_start_without_a_store_invents_nothing(case: Case) {
    let cluster = case.cluster(1).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    put_counter(&case, cluster.server(0), &counter, 1).await;
    let faults = Faults::new();
    faults.set_absent(true);
    let open = || {
        let options = declare_records(StateOptions::new("late"))
            .initialise(|tx| tx.put(&Ref::root("invented".to_owned())?, Counter { n: 0 }));
        State::open(cluster.store().driver(faults.clone()), options)
    };
    let refused = open().await;
    assert!(matches!(&refused, Err(OpenError::Driver(error)) if error.is_retryable()), "{refused:?}");
    faults.set_absent(false);
    let state = open().await.unwrap();
    assert_eq!(state.snapshot().require(&counter).unwrap().n, 1);
    assert_eq!(state.snapshot().len(), 1);
    state.close().await;
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D12, as far as it concerns every driver: with the store away under load reads go on, writes fail within their limit as
/// retryable, and all resumes by itself, the tail too.
pub async fn d12_writes_fail_in_time_and_all_resumes(case: Case) {
    let builder = case.configured(|_, mut options| {
        options.write_limit = Duration::from_secs(2);
        options
    });
    let cluster = case.open(builder.servers(2)).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    put_counter(&case, cluster.server(0), &counter, 0).await;
    cluster.faults(0).set_absent(true);
    let writes = futures::future::join_all((0..50).map(|n| {
        let target = counter.clone();
        cluster.server(0).write(move |tx: &mut Transaction| tx.put(&target, Counter { n }))
    }));
    for failed in within("the writes' failures", writes).await {
        assert!(failed.as_ref().is_err_and(WriteError::is_retryable), "{failed:?}");
    }
    assert_eq!(cluster.server(0).snapshot().require(&counter).unwrap().n, 0);
    let at = put_counter(&case, cluster.server(1), &counter, 77).await;
    cluster.faults(0).set_absent(false);
    // Nobody writes or flushes on this server.
    cluster.server(0).wait_for(at, LIMIT).await.unwrap();
    put_counter(&case, cluster.server(0), &counter, 78).await;
    agree(&cluster, None).await;
    cluster.finish().await;
}

async fn increment_once(cluster: &crate::testing::Cluster, counter: &Ref<Counter>, fault: CommitFault) -> Written<i64> {
    cluster.faults(0).next_commits([fault]);
    let target = counter.clone();
    let written = cluster.server(0).write(move |tx: &mut Transaction| {
        tx.update(&target, |counter| counter.n += 1)?;
        Ok::<_, TransactionError>(tx.require(&target)?.n)
    });
    within("the write", written).await
}

/// D16: a commit whose answer was lost had taken place: it counts once, and the caller is told its revision.
pub async fn d16_unknown_and_committed_counts_once(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let head = put_counter(&case, cluster.server(0), &counter, 0).await;
    let written = increment_once(&cluster, &counter, CommitFault::AppliedAnswerLost).await.unwrap();
    assert_eq!((written.value, written.revision, written.changed), (1, head.next(), true));
    assert_eq!(cluster.server(0).snapshot().require(&counter).unwrap().n, 1);
    cluster.points(0).cut(point::COMMIT_AFTER_COMMIT, 1);
    let written = increment_once(&cluster, &counter, CommitFault::None).await.unwrap();
    assert_eq!((written.value, written.revision), (2, head.next().next()));
    assert_eq!(cluster.stored().await.meta.head, head.next().next());
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D17: a commit whose answer was lost had not taken place: it is submitted again at the head, once.
pub async fn d17_unknown_and_not_committed_is_submitted_again(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let head = put_counter(&case, cluster.server(0), &counter, 0).await;
    let written = increment_once(&cluster, &counter, CommitFault::NotAppliedAnswerLost).await.unwrap();
    assert_eq!((written.value, written.revision), (1, head.next()));
    let refused = CommitFault::Refused(crate::driver::DriverError::Unavailable("busy".to_owned()));
    let written = increment_once(&cluster, &counter, refused).await.unwrap();
    assert_eq!(written.value, 2);
    assert_eq!(cluster.stored().await.meta.head, head.next().next());
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D18: before an unknown commit is resolved another server changes the same entity; that change is not overwritten by a
/// blind repeat.
pub async fn d18_an_unknown_commit_overwrites_nothing(case: Case) {
    for fault in [CommitFault::AppliedAnswerLost, CommitFault::NotAppliedAnswerLost] {
        let cluster = case.cluster(2).await;
        let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
        put_counter(&case, cluster.server(0), &counter, 0).await;
        cluster.server(1).flush().await.unwrap();
        let hold = cluster.points(0).hold(point::COMMIT_AFTER_COMMIT);
        cluster.faults(0).next_commits([fault.clone()]);
        let (state, target) = (cluster.server(0).clone(), counter.clone());
        let unknown = tokio::spawn(async move {
            let written = state.write(move |tx: &mut Transaction| {
                tx.update(&target, |counter| counter.n += 1)?;
                Ok::<_, TransactionError>(tx.require(&target)?.n)
            });
            written.await
        });
        hold.reached().await;
        let target = counter.clone();
        let other = cluster.server(1).write(move |tx: &mut Transaction| tx.update(&target, |counter| counter.n += 100));
        within("the other server's write", other).await.unwrap();
        hold.release();
        let value = within("the unknown write", unknown).await.unwrap().unwrap().value;
        cluster.server(0).flush().await.unwrap();
        assert_eq!(cluster.server(0).snapshot().require(&counter).unwrap().n, 101, "{fault:?}");
        let expected = if matches!(fault, CommitFault::AppliedAnswerLost) { 1 } else { 101 };
        assert_eq!(value, expected, "{fault:?}");
        agree(&cluster, None).await;
        cluster.finish().await;
    }
}

/// D19: an unknown commit that can't be resolved in time is said to be unknown; asked later, it is answered yes or no.
pub async fn d19_unknown_past_the_limit_says_unknown(case: Case) {
    let builder = case.configured(|_, mut options| {
        options.write_limit = Duration::from_secs(2);
        options
    });
    let cluster = case.open(builder.servers(1)).await;
    for (fault, committed) in [(CommitFault::AppliedAnswerLost, true), (CommitFault::NotAppliedAnswerLost, false)] {
        let counter: Ref<Counter> = Ref::root(case.id(&format!("n{committed}"))).unwrap();
        let hold = cluster.points(0).hold(point::COMMIT_AFTER_COMMIT);
        cluster.faults(0).next_commits([fault]);
        let id = SubmissionId::random();
        let (write, target) = (cluster.server(0).transaction().submission(id), counter.clone());
        let unknown =
            tokio::spawn(
                async move { write.write(move |tx: &mut Transaction| tx.put(&target, Counter { n: 1 })).await },
            );
        hold.reached().await;
        cluster.faults(0).set_absent(true);
        hold.release();
        let answer = within("the answer", unknown).await.unwrap();
        assert!(matches!(&answer, Err(WriteError::Unknown { submission, .. }) if *submission == id), "{answer:?}");
        assert!(!answer.unwrap_err().is_retryable());
        cluster.faults(0).set_absent(false);
        assert_eq!(cluster.server(0).find_submission(id).await.unwrap().is_some(), committed);
        cluster.server(0).flush_within(LIMIT).await.unwrap();
        assert_eq!(cluster.server(0).snapshot().contains(counter.path()), committed);
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D19: a write whose commit is unknown when writing stops is said to be unknown, and not to have been refused.
pub async fn d19_unknown_stays_unknown_when_writing_stops(case: Case) {
    let cluster = case.cluster(1).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let head = put_counter(&case, cluster.server(0), &counter, 1).await;
    let committed = cluster.points(0).hold(point::COMMIT_AFTER_COMMIT);
    cluster.faults(0).next_commits([CommitFault::AppliedAnswerLost]);
    let id = SubmissionId::random();
    let (write, target) = (cluster.server(0).transaction().submission(id), counter.clone());
    let unknown =
        tokio::spawn(async move { write.write(move |tx: &mut Transaction| tx.put(&target, Counter { n: 2 })).await });
    committed.reached().await;
    let again = cluster.points(0).hold(point::COMMIT_BEFORE_LOCK);
    committed.release();
    again.reached().await;
    let lower = DriverError::SetBack { head: Revision(0), seen: head };
    cluster.faults(0).next_errors(Call::ReadLog, [lower]);
    within("the notice", async {
        while cluster.server(0).writes_stopped().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    again.cut();
    let answer = within("the answer", unknown).await.unwrap();
    assert!(matches!(&answer, Err(WriteError::Unknown { submission, .. }) if *submission == id), "{answer:?}");
    assert!(cluster.server(0).find_submission(id).await.unwrap().is_some());
    let confirmed = cluster.server(0).confirm_lower_head(Attributes::new(), |_| Ok(())).await.unwrap();
    assert!(confirmed.is_some());
    put_counter(&case, cluster.server(0), &counter, 3).await;
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D20: each kind of error, once where a transaction begins, once where it commits: retried to its end or reported with
/// whether a retry makes sense, never half applied; and the next write works.
pub async fn d20_each_error_of_the_store_is_retried_or_reported(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    put_counter(&case, cluster.server(0), &counter, 0).await;
    let epoch = cluster.server(0).snapshot().epoch();
    let text = || "injected".to_owned();
    // A head that was put back stops all writing (D37).
    let errors = [
        (DriverError::Unavailable(text()), true),
        (DriverError::Full(text()), true),
        (DriverError::LeaseLapsed, true),
        (DriverError::Compacted { reaches_back_to: Revision(1) }, true),
        (DriverError::EpochChanged { expected: epoch, found: epoch }, true),
        (DriverError::NewerFormat { found: 9, known: 1 }, false),
        (DriverError::Held(text()), false),
        (DriverError::Configuration(text()), false),
        (DriverError::Damaged(text()), false),
        (DriverError::RecordClosed(RecordId { revision: Revision(1), sequence: 7 }), false),
        (DriverError::NoIndex { kind: text(), indexes: Vec::new() }, false),
    ];
    let mut n = 0;
    for (error, passes) in errors {
        for call in [Call::Begin, Call::Commit] {
            cluster.faults(0).next_errors(call, [error.clone()]);
            let target = counter.clone();
            let increment = move |tx: &mut Transaction| {
                tx.update(&target, |counter| counter.n += 1)?;
                let n = tx.require(&target)?.n;
                tx.append(&Audit { who: "counter".to_owned(), what: n })?;
                Ok::<_, TransactionError>(n)
            };
            let written = within("the answer", cluster.server(0).write(increment.clone())).await;
            assert_eq!(cluster.faults(0).errors_left(call), 0);
            if passes {
                n += 1;
                assert_eq!(written.unwrap().value, n, "{call:?}: {error}");
            } else {
                let reported = written.unwrap_err();
                let says = matches!(&reported, WriteError::Unavailable { retryable: false, .. });
                assert!(says && reported.to_string().contains(&error.to_string()), "{call:?}: {reported}");
            }
            n += 1;
            assert_eq!(cluster.server(0).write(increment).await.unwrap().value, n, "after {call:?}: {error}");
            let stored = cluster.stored().await;
            let whats = stored.records.iter().map(|row| {
                let audit: Audit = serde_json::from_str(&row.document.json).unwrap();
                audit.what
            });
            assert_eq!(whats.collect::<Vec<_>>(), (1..=n).collect::<Vec<_>>(), "after {call:?}: {error}");
        }
    }
    // A tail that is answered an error reads on.
    for error in [DriverError::Unavailable(text()), DriverError::Compacted { reaches_back_to: Revision(1) }] {
        cluster.faults(1).next_errors(Call::ReadLog, [error]);
        n += 1;
        let at = put_counter(&case, cluster.server(0), &counter, n).await;
        cluster.server(1).wait_for(at, LIMIT).await.unwrap();
    }
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D21: a transaction that was begun on a connection which is gone fails there, and is carried out on the new one, which
/// nobody gives up for it.
pub async fn d21_a_transaction_of_the_old_connection_fails_alone(case: Case) {
    let cluster = case.cluster(2).await;
    let counter: Ref<Counter> = Ref::root(case.id("n")).unwrap();
    let before = put_counter(&case, cluster.server(0), &counter, 0).await;
    let hold = cluster.points(0).hold(point::COMMIT_BEFORE_COMMIT);
    let (state, target) = (cluster.server(0).clone(), counter.clone());
    let held = tokio::spawn(async move {
        state.write(move |tx: &mut Transaction| tx.update(&target, |counter| counter.n += 1)).await
    });
    hold.reached().await;
    cluster.faults(0).reconnect();
    // The new one is in use before the old one's failure is known.
    let id = SubmissionId::random();
    assert_eq!(cluster.server(0).find_submission(id).await.unwrap(), None);
    let reloads = cluster.server(0).metrics().reloads();
    let _ = cluster.faults(0).take_calls();
    hold.release();
    let written = within("the write", held).await.unwrap().unwrap();
    assert_eq!(written.revision, before.next(), "carried out once");
    let calls = cluster.faults(0).take_calls();
    assert_eq!(calls.get(&Call::Commit), Some(&2), "refused once: {calls:?}");
    assert!(!calls.contains_key(&Call::Open) && !calls.contains_key(&Call::Load), "{calls:?}");
    assert_eq!(cluster.server(0).metrics().reloads(), reloads);
    put_counter(&case, cluster.server(0), &counter, 5).await;
    agree(&cluster, None).await;
    cluster.finish().await;
}

/// D35, as far as it concerns the tree: a restored backup has a new epoch; whoever resumes by (epoch, revision) notices,
/// also once the head is above the old one, and nothing of what was lost remains.
pub async fn d35_a_restored_backup_is_noticed(case: Case) {
    let mut cluster = case.cluster(2).await;
    let [kept, lost, later] = ["kept", "lost", "later"].map(|id| Ref::<Counter>::root(case.id(id)).unwrap());
    put_counter(&case, cluster.server(0), &kept, 1).await;
    let backup = cluster.store().back_up().await.unwrap();
    let mut at = put_counter(&case, cluster.server(0), &lost, 1).await;
    for n in 2..50 {
        at = put_counter(&case, cluster.server(0), &lost, n).await;
    }
    let epoch = cluster.server(0).snapshot().epoch();
    // One server is down while it is restored.
    cluster.close(1).await;
    let mut feed = cluster.server(0).changes(Some((epoch, at)));
    cluster.store().restore(backup).await.unwrap();
    cluster.server(0).flush_within(LIMIT).await.unwrap();
    cluster.restart(1).await;
    for state in cluster.running() {
        let snapshot = state.snapshot();
        assert_ne!(snapshot.epoch(), epoch);
        assert!(snapshot.contains(kept.path()) && !snapshot.contains(lost.path()));
    }
    let Some(FeedItem::Snapshot(fresh)) = within("the watch's restart", feed.next()).await else {
        panic!("a watch of the old epoch starts again")
    };
    assert!(!fresh.contains(lost.path()));
    for n in 0..100 {
        put_counter(&case, cluster.server(1), &later, n).await;
    }
    cluster.server(0).flush_within(LIMIT).await.unwrap();
    let mut resumed = cluster.server(0).changes(Some((epoch, at)));
    assert!(matches!(resumed.next().await, Some(FeedItem::Snapshot(_))), "the number alone is not taken for a place");
    agree(&cluster, None).await;
    cluster.finish().await;
}
