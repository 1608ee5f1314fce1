//! Entities written behind, compaction, epochs, and reading everything.

use std::time::Duration;

use super::{HOOK, Subject, append, declaration, entity, exception, path, receipt, revisions, rows, server, slot};
use crate::clock::Clock;
use crate::driver::{DriverError, ExceptionState, HookNumber, Settle, SlotId, SlotToken};
use crate::revision::{Epoch, Revision, Timestamp};

const FOREVER: Timestamp = Timestamp(i64::MAX);
const NO_FLOOR: Revision = Revision(u64::MAX);

/// Given steps in order, repeated, late and overlapping, the entities only move on; a step that leaves something out is
/// refused.
pub async fn d41_entities_are_written_behind_and_never_go_back(subject: Subject) {
    subject.put(9, &[]).await;
    let tree = || async { subject.driver.load().await.unwrap() };
    assert_eq!((tree().await.revision, tree().await.entities.len()), (Revision(0), 0));
    subject.write_behind(Revision(0), Revision(4)).await;
    let expected: Vec<_> = (1..=4).map(|revision| entity(Revision(revision))).collect();
    assert_eq!((tree().await.revision, tree().await.entities), (Revision(4), expected.clone()));
    // Late: by a server that was stopped meanwhile.
    subject.write_behind(Revision(0), Revision(2)).await;
    subject
        .driver
        .write_entities(subject.epoch().await, Revision(2), Revision(4), vec![], vec![path(Revision(1))])
        .await
        .unwrap();
    assert_eq!((tree().await.revision, tree().await.entities), (Revision(4), expected));
    let beyond = subject
        .driver
        .write_entities(subject.epoch().await, Revision(6), Revision(8), vec![entity(Revision(7))], vec![])
        .await;
    assert!(matches!(beyond, Err(DriverError::Unavailable(_))), "{beyond:?}");
    let ahead = subject.driver.write_entities(subject.epoch().await, Revision(4), Revision(10), vec![], vec![]).await;
    assert!(matches!(ahead, Err(DriverError::Unavailable(_))), "{ahead:?}");
    assert_eq!(tree().await.revision, Revision(4));
    // Overlapping: it covers what is there and more. Removing what is not there is nothing.
    let mut changed: Vec<_> = (3..=6).map(|revision| entity(Revision(revision))).collect();
    changed[0].revision = Revision(6);
    let removed = vec![path(Revision(1)), path(Revision(9))];
    subject
        .driver
        .write_entities(subject.epoch().await, Revision(2), Revision(6), changed.clone(), removed)
        .await
        .unwrap();
    changed.insert(0, entity(Revision(2)));
    let tree = tree().await;
    assert_eq!((tree.revision, tree.entities), (Revision(6), changed));
}

/// Given what holds compaction back one after the other (entities, a slot's watermark, the caller's floor, the time, the
/// newest row), it goes exactly so far.
pub async fn d41_compaction_takes_nothing_that_is_needed(subject: Subject) {
    subject.put_each(10, &[HOOK]).await;
    let compact = |keep, floor| {
        let driver = subject.driver.clone();
        async move {
            let epoch = driver.meta().await.unwrap().epoch;
            driver.compact(epoch, keep, floor, 1_000).await.unwrap()
        }
    };
    let other_store = Epoch(uuid::Uuid::nil());
    let told = subject.driver.compact(other_store, FOREVER, NO_FLOOR, 1_000).await;
    assert!(matches!(told, Err(DriverError::EpochChanged { .. })), "{told:?}");
    let told = subject.driver.write_entities(other_store, Revision(0), Revision(8), vec![], vec![]).await;
    assert!(matches!(told, Err(DriverError::EpochChanged { .. })), "{told:?}");
    assert_eq!(compact(FOREVER, NO_FLOOR).await, Revision(0), "no entities were written behind");
    subject.write_behind(Revision(0), Revision(8)).await;
    let id = subject.join(1).await;
    let fence = subject.take(id, slot(0)).await.unwrap();
    let other = subject.take(id, SlotId { hook: HookNumber(2), slot: 0 }).await.unwrap();
    assert_eq!(compact(FOREVER, NO_FLOOR).await, Revision(0), "a slot's watermark is 0");
    subject.settle_one(Settle::Watermark { fence, to: Revision(10) }).await;
    subject.settle_one(Settle::Watermark { fence: other, to: Revision(5) }).await;
    assert_eq!(compact(FOREVER, Revision(2)).await, Revision(2), "the floor");
    assert_eq!(compact(super::START, NO_FLOOR).await, Revision(2), "nothing is older");
    assert_eq!(compact(FOREVER, NO_FLOOR).await, Revision(5), "the other slot");
    subject.settle_one(Settle::Watermark { fence: other, to: Revision(10) }).await;
    assert_eq!(compact(FOREVER, NO_FLOOR).await, Revision(8), "the entities");
    subject.write_behind(Revision(8), Revision(10)).await;
    assert_eq!(compact(FOREVER, NO_FLOOR).await, Revision(9), "the newest row stays");

    let epoch = subject.epoch().await;
    let meta = subject.driver.meta().await.unwrap();
    assert_eq!((meta.head, meta.compacted), (Revision(10), Revision(9)));
    let behind = subject.driver.read_log(epoch, Revision(8), 10).await;
    assert!(matches!(behind, Err(DriverError::Compacted { reaches_back_to: Revision(9) })), "{behind:?}");
    let behind = subject.driver.begin(epoch, Revision(3), 10).await.map(|_| ());
    assert!(matches!(behind, Err(DriverError::Compacted { .. })), "{behind:?}");
    assert_eq!(subject.driver.read_log(epoch, Revision(9), 10).await.unwrap().rows.len(), 1);
    assert_eq!(subject.driver.find_submission(super::submission(Revision(3)), Revision::ZERO).await.unwrap(), None);
    assert_eq!(subject.put(1, &[]).await, Revision(11));
    // A row that is to be kept by its time keeps those after it, whatever time the clock gave them.
    subject.write_behind(Revision(10), Revision(11)).await;
    subject.settle_one(Settle::Watermark { fence, to: Revision(11) }).await;
    subject.settle_one(Settle::Watermark { fence: other, to: Revision(11) }).await;
    subject.clock.set(Timestamp(7));
    subject.put(3, &[]).await;
    assert_eq!(compact(Timestamp(8), NO_FLOOR).await, Revision(9));
}

/// Given commits of ten transactions each, compaction never goes beyond what holds it back amid one, what it has left is whole, and
/// what nothing holds back goes.
pub async fn d41_of_what_was_committed_together_nothing_goes_that_is_needed(subject: Subject) {
    for _ in 0..3 {
        subject.put(10, &[HOOK]).await;
    }
    subject.write_behind(Revision(0), Revision(30)).await;
    let id = subject.join(1).await;
    let fence = subject.take(id, slot(0)).await.unwrap();
    let receipts = (1..=30).map(|revision| Settle::Receipt(receipt(revision, fence))).collect();
    subject.driver.settle(receipts).await.unwrap();
    subject.settle_one(Settle::Watermark { fence, to: Revision(30) }).await;
    let epoch = subject.epoch().await;
    let mut before = Revision::ZERO;
    for floor in [3, 9, 10, 15, 20, 25, 29, 30] {
        let reached = subject.driver.compact(epoch, FOREVER, Revision(floor), 1_000).await.unwrap();
        assert!(before <= reached && reached.0 <= floor.min(29), "{reached} with a floor of {floor}");
        assert!(floor - reached.0 < 11, "{reached} with a floor of {floor}: a commit or less stays for it");
        let log = subject.driver.read_log(epoch, reached, 100).await.unwrap();
        assert_eq!(revisions(&log.rows), (reached.0 + 1..=30).collect::<Vec<_>>());
        let pending = subject.driver.pending(slot(0), reached, 100).await.unwrap();
        assert_eq!((pending.rows.len() as u64, pending.receipts.len() as u64), (30 - reached.0, 30 - reached.0));
        before = reached;
    }
    subject.put(1, &[]).await;
    subject.write_behind(Revision(30), Revision(31)).await;
    assert_eq!(
        subject.driver.compact(epoch, FOREVER, NO_FLOOR, 1_000).await.unwrap(),
        Revision(30),
        "all but the newest"
    );
    let stored = subject.driver.stored().await.unwrap();
    assert_eq!((stored.log.len(), stored.receipts.len()), (1, 0));
}

/// Given 30 rows and receipts, each step removes no more rows than it was allowed, and receipts go with their rows; a
/// receipt that comes for a parked request later goes with the next step.
pub async fn k34_compaction_goes_in_small_steps_and_prunes_receipts(subject: Subject) {
    subject.put_each(30, &[HOOK]).await;
    subject.write_behind(Revision(0), Revision(30)).await;
    let id = subject.join(1).await;
    let fence = subject.take(id, slot(0)).await.unwrap();
    let parked = exception(4, slot(0), ExceptionState::Parked);
    let mut items: Vec<Settle> =
        (1..=30).filter(|revision| *revision != 4).map(|revision| Settle::Receipt(receipt(revision, fence))).collect();
    items.push(Settle::Exception { exception: Box::new(parked.clone()), fence });
    items.push(Settle::Watermark { fence, to: Revision(30) });
    subject.driver.settle(items).await.unwrap();
    for expected in [7, 14, 21, 28, 29, 29] {
        assert_eq!(
            subject.driver.compact(subject.epoch().await, FOREVER, NO_FLOOR, 7).await.unwrap(),
            Revision(expected)
        );
        let stored = subject.driver.stored().await.unwrap();
        assert!(stored.receipts.iter().all(|receipt| receipt.request.revision > Revision(expected)));
        assert_eq!(stored.log.len() as u64, 30 - expected);
    }
    assert_eq!(subject.driver.exceptions(None).await.unwrap(), [parked]);
    subject.settle_one(Settle::Receipt(receipt(4, fence))).await;
    assert_eq!(subject.driver.exceptions(None).await.unwrap(), []);
    subject.driver.compact(subject.epoch().await, FOREVER, NO_FLOOR, 7).await.unwrap();
    assert_eq!(subject.driver.stored().await.unwrap().receipts, [receipt(30, fence)]);
}

/// Given a log that was compacted before a hook's slot was ever leased, its watermark begins there.
pub async fn k34_a_slot_that_never_was_begins_where_the_log_does(subject: Subject) {
    subject.put_each(5, &[]).await;
    subject.write_behind(Revision(0), Revision(5)).await;
    assert_eq!(subject.driver.compact(subject.epoch().await, FOREVER, Revision(3), 100).await.unwrap(), Revision(3));
    let id = subject.join(1).await;
    subject.take(id, slot(0)).await.unwrap();
    let (_, slots) = subject.driver.cluster().await.unwrap();
    assert_eq!(slots[0].watermark, Revision(3));
    let pending = subject.driver.pending(slot(0), slots[0].watermark, 10).await.unwrap();
    assert_eq!((pending.rows.len(), pending.read_to), (0, Revision(5)));
}

/// Given another epoch than the store's, reading the log and taking the lock say so, and the lock is free.
pub async fn d08_another_epoch_is_noticed_by_every_call_that_names_one(subject: Subject) {
    subject.put(2, &[]).await;
    let old = subject.epoch().await;
    let foreign = Epoch(uuid::Uuid::from_u128(1));
    let refused = subject.driver.read_log(foreign, Revision(0), 10).await;
    assert!(matches!(refused, Err(DriverError::EpochChanged { found, .. }) if found == old), "{refused:?}");
    let new = subject.begin_epoch(SlotToken(0)).await;
    assert_ne!(new, old);
    let refused = subject.driver.begin(old, Revision(2), 10).await.map(|_| ());
    assert!(matches!(refused, Err(DriverError::EpochChanged { .. })), "{refused:?}");
    let late = subject.driver.write_entities(old, Revision(0), Revision(2), vec![entity(Revision(1))], vec![]).await;
    assert!(matches!(late, Err(DriverError::EpochChanged { .. })), "{late:?}");
    let tree = crate::driver::StoredTree { revision: Revision(2), entities: vec![entity(Revision(1))] };
    let late = subject.driver.replace_entities(old, tree).await;
    assert!(matches!(late, Err(DriverError::EpochChanged { .. })), "{late:?}");
    assert_eq!(subject.driver.load().await.unwrap().revision, Revision(0));
    let late = subject.driver.compact(old, FOREVER, NO_FLOOR, 10).await;
    assert!(matches!(late, Err(DriverError::EpochChanged { .. })), "{late:?}");
    assert_eq!(subject.put(1, &[]).await, Revision(3));
}

/// Given a caller that has seen more than there is, in the same epoch, it is told of it and gets no lock.
pub async fn d37_a_head_below_what_was_seen_is_told(subject: Subject) {
    subject.put(2, &[]).await;
    let epoch = subject.epoch().await;
    let told = subject.driver.read_log(epoch, Revision(3), 10).await;
    assert!(matches!(told, Err(DriverError::SetBack { head: Revision(2), seen: Revision(3) })), "{told:?}");
    let told = subject.driver.begin(epoch, Revision(9), 10).await.map(|_| ());
    assert!(matches!(told, Err(DriverError::SetBack { .. })), "{told:?}");
    assert_eq!(subject.put(1, &[]).await, Revision(3));
}

/// Given a store with some of everything, the linter's view has all of it.
pub async fn u04_all_that_is_stored_can_be_read(subject: Subject) {
    let meta = subject.driver.open(&[declaration(Some(9))]).await.unwrap();
    let id = subject.join(1).await;
    subject.put(2, &[HOOK]).await;
    subject.commit(|head, now| append(head, now, &["a"], 1)).await.unwrap();
    let fence = subject.take(id, slot(0)).await.unwrap();
    subject.settle_one(Settle::Receipt(receipt(1, fence))).await;
    let dead = exception(2, slot(0), ExceptionState::Dead);
    subject.settle_one(Settle::Exception { exception: Box::new(dead.clone()), fence }).await;
    subject.write_behind(Revision(0), Revision(2)).await;
    let stored = subject.driver.stored().await.unwrap();
    assert_eq!((stored.meta.epoch, stored.meta.installation), (meta.epoch, meta.installation));
    assert_eq!((stored.meta.head, stored.token_counter), (Revision(3), fence.token));
    assert_eq!(stored.log[..2], rows(Revision(0), super::START, 2, &[HOOK]));
    assert!(stored.log[2].entries.is_empty());
    assert_eq!(stored.tree.entities, [entity(Revision(1)), entity(Revision(2))]);
    assert_eq!((stored.receipts, stored.exceptions), (vec![receipt(1, fence)], vec![dead]));
    assert_eq!(stored.servers, [server(1, subject.clock.now())]);
    assert_eq!((stored.slots.len(), stored.slots[0].owner), (1, Some(id)));
    assert_eq!((stored.records.len(), stored.index_entries.len()), (1, 2));
    assert_eq!(stored.index_entries[0].id, stored.records[0].id);
    subject.clock.advance(Duration::from_secs(1));
}
