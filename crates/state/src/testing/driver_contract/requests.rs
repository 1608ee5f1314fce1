//! Receipts, exceptions, watermarks, and what a slot's new owner finds.

use std::sync::Arc;

use super::{HOOK, Subject, exception, path, receipt, request, revisions, row, slot};
use crate::driver::{
    Batch, ExceptionState, Fence, HookNumber, LogEntry, ReceiptOutcome, RequestAction, Settle, Settled, SlotToken,
};
use crate::revision::{Revision, Timestamp};

async fn owned(subject: &Subject, count: u64) -> Fence {
    let id = subject.join(1).await;
    subject.put(count, &[HOOK]).await;
    subject.take(id, slot(0)).await.unwrap()
}

/// Given items under a token that holds and one that does not, each counts by its own.
pub async fn k45_a_settlement_is_judged_item_by_item(subject: Subject) {
    let fence = owned(&subject, 4).await;
    let stale = Fence { token: SlotToken(0), ..fence };
    let never_leased = Fence { slot: slot(7), ..fence };
    let park = |revision, fence| Settle::Exception {
        exception: Box::new(exception(revision, slot(0), ExceptionState::Parked)),
        fence,
    };
    let items = vec![
        Settle::Receipt(receipt(1, fence)),
        Settle::Receipt(receipt(2, stale)),
        Settle::Receipt(receipt(2, never_leased)),
        park(3, fence),
        park(4, stale),
        Settle::Watermark { fence, to: Revision(1) },
        Settle::Watermark { fence: stale, to: Revision(4) },
    ];
    let settled = subject.driver.settle(items).await.unwrap();
    use Settled::{Durable, Refused};
    assert_eq!(settled, [Durable, Refused, Refused, Durable, Refused, Durable, Refused]);
    let stored = subject.driver.stored().await.unwrap();
    assert_eq!(stored.receipts, [receipt(1, fence)]);
    assert_eq!(stored.exceptions, [exception(3, slot(0), ExceptionState::Parked)]);
    assert_eq!(stored.slots[0].watermark, Revision(1));
    assert_eq!(subject.driver.settle(Vec::new()).await.unwrap(), []);
}

/// Given settlements of a receipt and an exception, as an operator's action and what it changes are, whoever reads beside
/// them sees both or neither, each time.
pub async fn k45_a_settlement_is_there_whole_or_not_at_all(subject: Subject) {
    const SETTLEMENTS: u64 = 100;
    let fence = owned(&subject, 2 * SETTLEMENTS).await;
    let settling = async {
        for place in 1..=SETTLEMENTS {
            let parked = Box::new(exception(2 * place, slot(0), ExceptionState::Parked));
            let both =
                vec![Settle::Exception { exception: parked, fence }, Settle::Receipt(receipt(2 * place - 1, fence))];
            assert_eq!(subject.driver.settle(both).await.unwrap(), [Settled::Durable, Settled::Durable]);
        }
    };
    let reading = async {
        loop {
            let stored = subject.driver.stored().await.unwrap();
            assert_eq!(stored.receipts.len(), stored.exceptions.len());
            if stored.receipts.len() as u64 == SETTLEMENTS {
                return;
            }
        }
    };
    tokio::join!(settling, reading);
}

/// Given a receipt that is settled again since its answer was lost, it counts, is there once and as it was first.
pub async fn k45_a_lost_answer_can_be_asked_for_again(subject: Subject) {
    let fence = owned(&subject, 1).await;
    let again = crate::driver::Receipt { outcome: ReceiptOutcome::Cancelled, ..receipt(1, fence) };
    for receipt in [receipt(1, fence), receipt(1, fence), again] {
        assert_eq!(subject.settle_one(Settle::Receipt(receipt)).await, Settled::Durable);
    }
    assert_eq!(subject.driver.stored().await.unwrap().receipts, [receipt(1, fence)]);
}

/// Given an exception, a receipt of its request removes it, and none comes back after it: by settling or in a commit.
pub async fn g05_a_receipt_wins_over_an_exception(subject: Subject) {
    let fence = owned(&subject, 3).await;
    let wait = |revision| exception(revision, slot(0), ExceptionState::Waiting { until: Timestamp(9) });
    let settle = |revision| Settle::Exception { exception: Box::new(wait(revision)), fence };
    let exceptions = || async { subject.driver.exceptions(None).await.unwrap() };
    subject.settle_one(settle(1)).await;
    assert_eq!(exceptions().await, [wait(1)]);
    let both = vec![Settle::Receipt(receipt(1, fence)), settle(1)];
    assert_eq!(subject.driver.settle(both).await.unwrap(), [Settled::Durable, Settled::Durable]);
    assert_eq!(exceptions().await, []);
    let both = vec![settle(2), Settle::Receipt(receipt(2, fence))];
    subject.driver.settle(both).await.unwrap();
    assert_eq!(exceptions().await, []);
    subject.settle_one(settle(3)).await;
    subject
        .commit(|head, now| Batch {
            rows: vec![row(head.next(), now, &[])],
            receipts: vec![receipt(3, fence)],
            exceptions: vec![wait(3), wait(4)],
            ..Batch::default()
        })
        .await
        .unwrap();
    assert_eq!(exceptions().await, [wait(4)]);
}

/// Given a commit with a receipt, rows and receipt are there together.
pub async fn k11_receipts_of_a_commit_are_stored_with_its_rows(subject: Subject) {
    let fence = owned(&subject, 1).await;
    let revision = subject
        .commit(|head, now| Batch {
            rows: vec![row(head.next(), now, &[])],
            receipts: vec![receipt(1, fence)],
            ..Batch::default()
        })
        .await
        .unwrap();
    let stored = subject.driver.stored().await.unwrap();
    assert_eq!((stored.meta.head, stored.receipts), (revision, vec![receipt(1, fence)]));
    // A receipt without any transaction is one too.
    subject.commit(|_, _| Batch { receipts: vec![receipt(2, fence)], ..Batch::default() }).await.unwrap();
    assert_eq!(subject.driver.stored().await.unwrap().receipts.len(), 2);
}

/// Given requests of two hooks, actions and transactions of neither, a page has what concerns the hook, whole rows in
/// order, and says how far it has looked; receipts are those of the page.
pub async fn k46_what_waits_is_read_page_by_page(subject: Subject) {
    let fence = owned(&subject, 3).await;
    subject.put(2, &[HookNumber(2)]).await;
    subject.put(2, &[]).await;
    subject.put(1, &[HookNumber(2), HOOK]).await;
    let act = LogEntry::Action { request: request(2), action: RequestAction::Cancel };
    let existing = LogEntry::Existing { path: path(Revision(1)), hook: HOOK };
    for entry in [act, existing] {
        subject
            .commit(|head, now| {
                let mut acting = (*row(head.next(), now, &[])).clone();
                acting.entries.push(entry);
                Batch { rows: vec![Arc::new(acting)], ..Batch::default() }
            })
            .await
            .unwrap();
    }
    let receipts = [1, 3, 8].map(|revision| Settle::Receipt(receipt(revision, fence)));
    subject.driver.settle(receipts.to_vec()).await.unwrap();
    let dead = exception(2, slot(0), ExceptionState::Dead);
    let elsewhere = exception(3, slot(1), ExceptionState::Dead);
    subject.settle_one(Settle::Exception { exception: Box::new(dead.clone()), fence }).await;
    subject.settle_one(Settle::Exception { exception: Box::new(elsewhere), fence }).await;

    let all = subject.driver.pending(slot(0), Revision(0), 100).await.unwrap();
    assert_eq!(revisions(&all.rows), [1, 2, 3, 8, 9, 10]);
    assert_eq!((all.read_to, all.head, all.epoch), (Revision(10), Revision(10), subject.epoch().await));
    assert_eq!(all.receipts, [request(1), request(3), request(8)]);
    assert_eq!(all.exceptions, std::slice::from_ref(&dead));

    let mut after = Revision(0);
    let mut paged = (Vec::new(), Vec::new());
    loop {
        let page = subject.driver.pending(slot(0), after, 2).await.unwrap();
        assert!(page.rows.len() <= 2 && page.exceptions == std::slice::from_ref(&dead));
        paged.0.extend(revisions(&page.rows));
        paged.1.extend(page.receipts);
        after = page.read_to;
        if after == page.head {
            break;
        }
    }
    assert_eq!(paged, (revisions(&all.rows), all.receipts));
    let rest = subject.driver.pending(slot(0), Revision(8), 100).await.unwrap();
    assert_eq!((revisions(&rest.rows), rest.receipts), (vec![9, 10], vec![]));
}

/// Given an exception of every state, with a deleted entity and awkward texts, all of it reads back, and a later one of
/// the request takes its place.
pub async fn k46_exceptions_read_back_as_they_were_written(subject: Subject) {
    let fence = owned(&subject, 5).await;
    let states = [
        ExceptionState::Waiting { until: Timestamp(1) },
        ExceptionState::BackingOff { until: Timestamp(i64::MAX) },
        ExceptionState::Dead,
        ExceptionState::Parked,
        ExceptionState::Started,
    ];
    let written: Vec<_> = states.into_iter().zip(1..).map(|(state, at)| exception(at, slot(0), state)).collect();
    for exception in &written {
        let item = Settle::Exception { exception: Box::new(exception.clone()), fence };
        assert_eq!(subject.settle_one(item).await, Settled::Durable);
    }
    assert_eq!(subject.driver.exceptions(Some(HOOK)).await.unwrap(), written);
    assert_eq!(subject.driver.exceptions(Some(HookNumber(2))).await.unwrap(), []);
    let mut later = exception(3, slot(0), ExceptionState::Parked);
    later.attempts = 0;
    later.error = None;
    subject.settle_one(Settle::Exception { exception: Box::new(later.clone()), fence }).await;
    let found = subject.driver.exceptions(None).await.unwrap();
    assert_eq!((found.len(), &found[2]), (5, &later));
}

/// Given a watermark, a lower one changes nothing, and one under a token that has passed on is refused.
pub async fn k47_a_watermark_is_never_lowered_and_never_raised_by_a_stale_owner(subject: Subject) {
    let fence = owned(&subject, 9).await;
    let watermark = || async { subject.driver.cluster().await.unwrap().1[0].watermark };
    let raise = |fence, to| Settle::Watermark { fence, to: Revision(to) };
    assert_eq!(subject.settle_one(raise(fence, 5)).await, Settled::Durable);
    assert_eq!(subject.settle_one(raise(fence, 3)).await, Settled::Durable);
    assert_eq!(watermark().await, Revision(5));
    subject.driver.release_slots(&[fence]).await.unwrap();
    let second = subject.join(2).await;
    let taken = subject.take(second, slot(0)).await.unwrap();
    assert_eq!(watermark().await, Revision(5), "it passes on with the slot");
    assert_eq!(subject.settle_one(raise(fence, 9)).await, Settled::Refused);
    assert_eq!(watermark().await, Revision(5));
    assert_eq!(subject.settle_one(raise(taken, 9)).await, Settled::Durable);
    assert_eq!(watermark().await, Revision(9));
}
