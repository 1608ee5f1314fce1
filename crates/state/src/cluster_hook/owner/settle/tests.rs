//! What goes in which batch, and what becomes of what can't be stored.

use super::super::tests::Bench;
use super::*;
use crate::cluster_hook::key_queue::{RetryPolicy, RunEnd, SlotQueue};
use crate::cluster_hook::registration::Delivery;
use crate::driver::{HookNumber, RequestId, SlotToken};
use crate::revision::Timestamp;

fn fence() -> Fence {
    Fence { slot: SlotId { hook: HookNumber(1), slot: 0 }, token: SlotToken(1) }
}

/// What the ends of one run per key ask to be stored, where each covers so many requests.
fn receipts(keys: &[(&str, usize)]) -> Vec<(Settle, Tag)> {
    let retry = RetryPolicy { attempts: None, first: Duration::from_secs(1), max: Duration::from_secs(1) };
    let (mut queue, mut out) = (SlotQueue::loading(Delivery::LatestState, retry, 100_000), Vec::new());
    let now = Timestamp(1);
    queue.activate(now, Revision::ZERO, false, &mut out);
    let mut revision = 0;
    for (key, requests) in keys {
        for _ in 0..*requests {
            revision += 1;
            let id = RequestId { revision: Revision(revision), sequence: 0, hook: HookNumber(1) };
            queue.request(id, key, (), &mut out);
        }
    }
    while let Some(run) = queue.start(Revision(revision), true, &mut out) {
        queue.ended(run.key, run.run, RunEnd::Done, now, 0.0, &mut out);
    }
    let stored = out.into_iter().map(|command| match command {
        Command::Settle { item: Item::Receipt { request, outcome }, ticket } => {
            let receipt = Receipt { request, fence: fence(), outcome };
            (Settle::Receipt(receipt), Tag { fence: fence(), kind: TagKind::Queue(ticket) })
        }
        other => panic!("{other:?}"),
    });
    stored.collect()
}

fn settlements(keys: &[(&str, usize)]) -> Settlements {
    let items = receipts(keys);
    Settlements { unstored: items.len(), items, ..Settlements::default() }
}

#[test]
fn k15_receipts_that_are_cut_off_from_their_key_s_others_wait_until_those_are_durable() {
    let mut settlements = settlements(&[("a", 100), ("b", ITEMS_AT_ONCE), ("c", ITEMS_AT_ONCE)]);
    let sizes: Vec<Option<usize>> = (0..6)
        .map(|_| {
            let batch = settlements.next_batch();
            if batch.is_none() {
                settlements.in_flight -= 1;
            }
            batch.map(|batch| batch.len())
        })
        .collect();
    assert_eq!(sizes, [Some(ITEMS_AT_ONCE), None, Some(ITEMS_AT_ONCE), None, Some(100), None]);
}

#[test]
fn k31_batches_that_end_between_keys_go_beside_each_other() {
    let names: Vec<String> = (0..=BATCHES).map(|number| format!("k{number}")).collect();
    let mut keys: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), ITEMS_AT_ONCE)).collect();
    keys[BATCHES].1 = BESIDE_MIN;
    let mut settlements = settlements(&keys);
    for _ in 0..BATCHES {
        assert_eq!(settlements.next_batch().map(|batch| batch.len()), Some(ITEMS_AT_ONCE));
    }
    assert!(settlements.next_batch().is_none(), "so many are on their way at once");
    settlements.in_flight -= 1;
    assert_eq!(settlements.next_batch().map(|batch| batch.len()), Some(BESIDE_MIN));
}

#[test]
fn k31_few_receipts_wait_for_the_batch_that_is_on_its_way_unless_it_lingers() {
    // Given a batch that is on its way.
    let mut settlements = settlements(&[("a", 1)]);
    assert_eq!(settlements.next_batch().map(|batch| batch.len()), Some(1));
    // When a few more receipts come, then they wait, and go together as soon as it has arrived.
    settlements.items = receipts(&[("b", 1), ("c", 1)]);
    assert!(settlements.next_batch().is_none());
    settlements.arrived(false);
    assert_eq!(settlements.next_batch().map(|batch| batch.len()), Some(2));
    // Nor do they wait for one that takes long, also when another one has arrived since.
    settlements.lingers();
    settlements.items = receipts(&[("d", 1)]);
    assert_eq!(settlements.next_batch().map(|batch| batch.len()), Some(1));
    settlements.items = receipts(&[("e", 1)]);
    assert!(settlements.next_batch().is_none());
    settlements.arrived(false);
    assert_eq!(settlements.next_batch().map(|batch| batch.len()), Some(1));
    settlements.arrived(true);
    settlements.arrived(false);
    // Many never wait.
    settlements.items = receipts(&[("f", 1)]);
    assert_eq!(settlements.next_batch().map(|batch| batch.len()), Some(1));
    settlements.items = receipts(&[("g", BESIDE_MIN)]);
    assert_eq!(settlements.next_batch().map(|batch| batch.len()), Some(BESIDE_MIN));
}

#[tokio::test]
async fn k44_a_slot_of_which_nothing_can_be_stored_is_released_for_others() {
    let mut bench = Bench::new().await;
    let tag = Tag { fence: bench.fence, kind: TagKind::Watermark };
    bench.owner.settled(vec![tag, tag], None, false);
    let row = bench.until_given_up().await;
    assert_eq!(row.owner, None, "its lease goes on with the server's");
}
