//! The log: order, atomicity, catching up.

use std::sync::Arc;
use std::time::Duration;

use super::{Subject, append, declaration, document, path, receipt, revisions, row, rows, slot, submission};
use crate::driver::{
    Batch, CommitError, CommitFault, Driver, DriverError, Faults, FaultyDriver, Fence, LogEntry, RecordWrite, SlotToken,
};
use crate::revision::Revision;

/// Given rows 1 to 3, a batch that would leave out 4 is refused, and the next one takes 4.
pub async fn d01_revisions_have_no_gap_and_a_batch_that_would_make_one_is_refused(subject: Subject) {
    assert_eq!(subject.put(3, &[]).await, Revision(3));
    let refused = subject.commit(|_, now| Batch { rows: vec![row(Revision(5), now, &[])], ..Batch::default() }).await;
    assert!(matches!(refused, Err(CommitError::NotCommitted(_))), "{refused:?}");
    let hole = |head: Revision, now| Batch {
        rows: vec![row(head.next(), now, &[]), row(Revision(head.0 + 3), now, &[])],
        ..Batch::default()
    };
    let refused = subject.commit(hole).await;
    assert!(matches!(refused, Err(CommitError::NotCommitted(_))), "{refused:?}");
    assert_eq!(subject.head().await, Revision(3));
    assert_eq!(subject.put(2, &[]).await, Revision(5));
    let page = subject.driver.read_log(subject.epoch().await, Revision(0), 100).await.unwrap();
    assert_eq!(page.rows, rows(Revision(0), super::START, 5, &[]));
    assert_eq!(page.head, Revision(5));
    let page = subject.driver.read_log(subject.epoch().await, Revision(1), 2).await.unwrap();
    assert_eq!(revisions(&page.rows), [2, 3]);
}

/// Given a batch of rows, records, a receipt and an exception in which one record can't be updated, none of it is there.
pub async fn d01_a_batch_is_applied_whole_or_not_at_all(subject: Subject) {
    subject.driver.open(&[declaration(None)]).await.unwrap();
    subject.put(1, &[]).await;
    let before = subject.driver.stored().await.unwrap();
    let fence = Fence { slot: slot(0), token: SlotToken(1) };
    let broken = |head: Revision, now| {
        let mut batch = append(head, now, &["a", "b"], 0);
        let never_there = crate::driver::RecordId { revision: Revision(1), sequence: 9 };
        batch.records.push(RecordWrite::Update(super::record(never_there, now, "a", 1)));
        batch.receipts.push(receipt(1, fence));
        batch.exceptions.push(super::exception(1, slot(0), crate::driver::ExceptionState::Dead));
        batch
    };
    let refused = subject.commit(broken).await;
    assert!(matches!(refused, Err(CommitError::NotCommitted(DriverError::RecordClosed(_)))), "{refused:?}");
    let after = subject.driver.stored().await.unwrap();
    assert_eq!(after.log, before.log);
    assert_eq!(after.meta, before.meta);
    assert!(after.records.is_empty() && after.receipts.is_empty() && after.exceptions.is_empty());
    assert!(after.index_entries.is_empty());
}

/// Given four tasks that commit 40 groups each while two readers follow the log, each reader gets every row once, in order.
pub async fn d15_readers_see_every_row_in_order_while_many_commit(subject: Subject) {
    const GROUPS: u64 = 40;
    let epoch = subject.epoch().await;
    let writers: Vec<_> = (0..4u64)
        .map(|writer| {
            let driver = subject.driver.clone();
            tokio::spawn(async move {
                let mut seen = Revision(0);
                for group in 0..GROUPS {
                    let begun = driver.begin(epoch, seen, 10_000).await.unwrap();
                    seen = begun.rows.last().map_or(seen, |row| row.revision);
                    let batch = rows(seen, begun.session.now(), 1 + (writer + group) % 3, &[]);
                    let head = batch.last().unwrap().revision;
                    begun.session.commit(Batch { rows: batch, ..Batch::default() }).await.unwrap();
                    seen = head;
                }
            })
        })
        .collect();
    let total: u64 = (0..4).flat_map(|writer| (0..GROUPS).map(move |group| 1 + (writer + group) % 3)).sum();
    let readers: Vec<_> = (0..2)
        .map(|reader| {
            let driver = subject.driver.clone();
            tokio::spawn(async move {
                let mut seen = 0;
                while seen < total {
                    driver.wait_for_news(Revision(seen), Duration::from_secs(20)).await;
                    let page = driver.read_log(epoch, Revision(seen), 7 + reader).await.unwrap();
                    for row in page.rows {
                        assert_eq!(row.revision, Revision(seen + 1));
                        seen += 1;
                    }
                    assert!(page.head >= Revision(seen));
                }
            })
        })
        .collect();
    for task in writers.into_iter().chain(readers) {
        task.await.unwrap();
    }
    assert_eq!(subject.head().await, Revision(total));
}

/// Given committed submissions, each is found with its revision, and an unknown one is not.
pub async fn d16_a_submission_is_found_by_its_id_while_its_row_is_kept(subject: Subject) {
    subject.put(5, &[]).await;
    for revision in 1..=5 {
        let found = subject.driver.find_submission(submission(Revision(revision)), Revision::ZERO).await.unwrap();
        assert_eq!(found, Some(Revision(revision)));
        for (after, is_above) in [(revision - 1, true), (revision, false)] {
            let found = subject.driver.find_submission(submission(Revision(revision)), Revision(after)).await.unwrap();
            assert_eq!(found.is_some(), is_above);
        }
    }
    assert_eq!(subject.driver.find_submission(submission(Revision(6)), Revision::ZERO).await.unwrap(), None);
    // What has the bytes of an id in its text is not taken for it.
    let id = submission(Revision(3));
    let text = String::from_utf8(id.0.as_bytes().to_vec()).unwrap();
    for count in [1, 2] {
        let name_it = |head: Revision, now| {
            let mut rows = rows(head, now, count, &[]);
            Arc::make_mut(&mut rows[0]).attributes = Arc::new([("text".to_owned(), text.clone())].into());
            Batch { rows, ..Batch::default() }
        };
        subject.commit(name_it).await.unwrap();
    }
    assert_eq!(subject.driver.find_submission(id, Revision::ZERO).await.unwrap(), Some(Revision(3)));
    assert_eq!(subject.driver.find_submission(id, Revision(3)).await.unwrap(), None);
}

/// Given commits of many transactions and of one, some of them large, whoever asks for the log, or for what waits in a slot, from
/// any place on gets just what follows, and no more than was asked for.
pub async fn d15_any_part_of_what_was_committed_together_can_be_read(subject: Subject) {
    for (count, length) in [(90, 1), (1, 1), (1, 1), (20, 700), (3, 20_000), (1, 20_000)] {
        let batch = |head: Revision, now| {
            let mut rows = rows(head, now, count, &[]);
            for row in &mut rows {
                let row = Arc::make_mut(row);
                let hooks = if row.revision.0 % 3 == 0 { vec![super::HOOK] } else { vec![] };
                let after = Some(document(&"x".repeat(length)));
                row.entries = vec![LogEntry::Change { path: path(row.revision), before: None, after, hooks }];
            }
            Batch { rows, ..Batch::default() }
        };
        subject.commit(batch).await.unwrap();
    }
    let (epoch, head) = (subject.epoch().await, subject.head().await);
    for after in 0..=head.0 {
        for rows_max in [1, 2, 50, 1_000] {
            let page = subject.driver.read_log(epoch, Revision(after), rows_max).await.unwrap();
            let expected: Vec<u64> = (after + 1..=head.0).take(rows_max).collect();
            assert_eq!((revisions(&page.rows), page.head), (expected, head), "{rows_max} after {after}");
            let pending = subject.driver.pending(slot(0), Revision(after), rows_max).await.unwrap();
            let mut expected = (after + 1..=head.0).filter(|revision| revision % 3 == 0);
            assert_eq!(revisions(&pending.rows), expected.by_ref().take(rows_max).collect::<Vec<_>>());
            let read_to = expected.next().map_or(head.0, |next| next - 1);
            assert_eq!(pending.read_to, Revision(read_to), "{rows_max} after {after}");
        }
    }
}

/// Given a commit that was applied and one that was not, both answered as unknown, the submission tells them apart.
pub async fn d19_a_lost_answer_is_unknown_and_the_submission_says_what_happened(subject: Subject) {
    let faults = Faults::new();
    let driver: Arc<dyn Driver> = Arc::new(FaultyDriver::new(subject.driver.clone(), faults.clone()));
    let subject = Subject { driver, ..subject };
    for (fault, applied) in [(CommitFault::AppliedAnswerLost, true), (CommitFault::NotAppliedAnswerLost, false)] {
        let head = subject.head().await;
        faults.next_commits([fault]);
        let batch = |head, now| Batch { rows: rows(head, now, 1, &[]), ..Batch::default() };
        assert!(matches!(subject.commit(batch).await, Err(CommitError::Unknown(_))));
        let found = subject.driver.find_submission(submission(head.next()), Revision::ZERO).await.unwrap();
        assert_eq!(found, applied.then_some(head.next()));
    }
    faults.set_absent(true);
    let error = subject.driver.meta().await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    faults.set_absent(false);
    // The lock was let go each time.
    subject.put(1, &[]).await;
}

/// Given a caller 50 rows behind that takes at most 10, it is told to catch up, and others get the lock at once.
pub async fn d33_who_is_far_behind_does_not_get_the_lock(subject: Subject) {
    subject.put(50, &[]).await;
    let epoch = subject.epoch().await;
    let refused = subject.driver.begin(epoch, Revision(0), 10).await;
    assert!(matches!(refused, Err(DriverError::Unavailable(_))));
    let begun = subject.driver.begin(epoch, Revision(45), 10).await.unwrap();
    assert_eq!(revisions(&begun.rows), [46, 47, 48, 49, 50]);
    drop(begun);
    subject.put(1, &[]).await;
}

/// Given a session that is dropped, nothing of it is there, and whoever waits for the lock gets it.
pub async fn t19_a_dropped_session_leaves_no_trace_and_lets_go_of_the_lock(subject: Subject) {
    let epoch = subject.epoch().await;
    let held = subject.driver.begin(epoch, Revision(0), 10).await.unwrap();
    let waiting = tokio::spawn({
        let driver = subject.driver.clone();
        async move { driver.begin(epoch, Revision(0), 10).await.map(|begun| begun.rows.len()) }
    });
    drop(held);
    assert_eq!(waiting.await.unwrap().unwrap(), 0);
    assert_eq!(subject.put(1, &[]).await, Revision(1));
}

/// Given commits whose callers go away at once, each group is there whole or not at all, and the next one follows.
pub async fn t19_a_commit_whose_caller_goes_away_is_applied_whole_or_not_at_all(subject: Subject) {
    let epoch = subject.epoch().await;
    for _ in 0..30 {
        let head = subject.head().await;
        let begun = subject.driver.begin(epoch, head, 1_000).await.unwrap();
        let head = begun.rows.last().map_or(head, |row| row.revision);
        let batch = Batch { rows: rows(head, begun.session.now(), 3, &[]), ..Batch::default() };
        let mut commit = begun.session.commit(batch);
        // Polled once, then dropped: the work may have been handed over by then.
        let _ = futures::poll!(&mut commit);
        drop(commit);
    }
    let head = subject.head().await;
    // Taking the lock waits for a commit that is still going.
    let begun = subject.driver.begin(epoch, head, 1_000).await.unwrap();
    let head = begun.rows.last().map_or(head, |row| row.revision);
    assert_eq!(head.0 % 3, 0, "a part of a group was committed");
    drop(begun);
    assert_eq!(subject.put(1, &[]).await, head.next());
}

/// Given a waiter, a commit wakes it; given none, the limit ends the wait; given news already, there is no wait.
pub async fn d06_news_come_at_once_and_waiting_for_them_has_a_limit(subject: Subject) {
    let waiting = tokio::spawn({
        let driver = subject.driver.clone();
        async move { driver.wait_for_news(Revision(0), Duration::from_secs(600)).await }
    });
    subject.put(1, &[]).await;
    waiting.await.unwrap();
    subject.driver.wait_for_news(Revision(0), Duration::from_secs(600)).await;
    subject.driver.wait_for_news(Revision(1), Duration::from_millis(1)).await;
}

/// Given a document of 4 MB, a transaction of 10 000 entries and attributes of 64 KB, they read back as written.
pub async fn d26_large_documents_and_transactions_are_stored_whole(subject: Subject) {
    let large = document(&"x".repeat(4 << 20));
    let written = subject
        .commit(|head, now| {
            let mut wide = (*row(head.next(), now, &[])).clone();
            wide.attributes = Arc::new([("large".to_owned(), "y".repeat(64 << 10))].into());
            wide.entries = (0..10_000)
                .map(|number| LogEntry::Change {
                    path: path(Revision(number)),
                    before: Some(document("é")),
                    after: if number == 7 { Some(large.clone()) } else { None },
                    hooks: Vec::new(),
                })
                .collect();
            Batch { rows: vec![Arc::new(wide)], ..Batch::default() }
        })
        .await
        .unwrap();
    let log = subject.driver.stored().await.unwrap().log;
    assert_eq!(log.last().unwrap().revision, written);
    assert_eq!(log[0].attributes["large"].len(), 64 << 10);
    assert_eq!(log[0].entries.len(), 10_000);
    assert!(matches!(&log[0].entries[7], LogEntry::Change { after: Some(after), .. } if *after == large));
}
