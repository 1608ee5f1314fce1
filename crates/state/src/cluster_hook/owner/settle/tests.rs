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
    let mut settlements = Settlements::default();
    come(&mut settlements, keys, Instant::now());
    settlements
}

/// They come at this time, and nothing waits for them.
fn come(settlements: &mut Settlements, keys: &[(&str, usize)], now: Instant) {
    for item in receipts(keys) {
        settlements.push(item, false, || now);
    }
}

fn next_size(settlements: &mut Settlements, now: Instant) -> Option<usize> {
    settlements.next_batch(now).map(|batch| batch.len())
}

#[test]
fn k15_receipts_that_are_cut_off_from_their_key_s_others_wait_until_those_are_durable() {
    let now = Instant::now();
    let mut settlements = settlements(&[("a", 100), ("b", ITEMS_AT_ONCE), ("c", ITEMS_AT_ONCE)]);
    let sizes: Vec<Option<usize>> = (0..6)
        .map(|_| {
            let size = next_size(&mut settlements, now);
            if size.is_none() {
                settlements.arrived();
            }
            size
        })
        .collect();
    assert_eq!(sizes, [Some(ITEMS_AT_ONCE), None, Some(ITEMS_AT_ONCE), None, Some(100), None]);
}

#[test]
fn k31_batches_that_end_between_keys_go_beside_each_other() {
    let now = Instant::now();
    let names: Vec<String> = (0..=BATCHES).map(|number| format!("k{number}")).collect();
    let mut keys: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), ITEMS_AT_ONCE)).collect();
    keys[BATCHES].1 = FULL;
    let mut settlements = settlements(&keys);
    for _ in 0..BATCHES {
        assert_eq!(next_size(&mut settlements, now), Some(ITEMS_AT_ONCE));
    }
    assert_eq!(next_size(&mut settlements, now + COMPANY), None, "so many are on their way at once");
    assert_eq!(settlements.next_due(), None, "no time lets it go then");
    settlements.arrived();
    assert_eq!(next_size(&mut settlements, now), Some(FULL));
}

#[test]
fn k31_receipts_that_come_now_and_then_go_at_once_and_wait_for_what_is_on_its_way_for_a_moment_only() {
    let now = Instant::now();
    let mut settlements = settlements(&[("a", 1)]);
    assert_eq!(next_size(&mut settlements, now), Some(1));
    come(&mut settlements, &[("b", 1)], now);
    come(&mut settlements, &[("c", 1)], now + COMPANY / 2);
    // As soon as the one before has arrived.
    assert_eq!(next_size(&mut settlements, now), None);
    settlements.arrived();
    assert_eq!(next_size(&mut settlements, now), Some(2));
    // Or beside it, where it lingers.
    come(&mut settlements, &[("d", 1)], now);
    assert_eq!(settlements.next_due(), Some(now + COMPANY));
    assert_eq!(next_size(&mut settlements, now + COMPANY), Some(1));
    assert_eq!(settlements.next_due(), None);
}

#[test]
fn k31_where_runs_end_thick_and_fast_receipts_get_company_unless_something_waits_for_them() {
    // Given a batch that was a large one, and has arrived.
    let now = Instant::now();
    let thick = |now| {
        let mut settlements = settlements(&[("a", THICK)]);
        assert_eq!(next_size(&mut settlements, now), Some(THICK));
        settlements.arrived();
        settlements
    };
    // When a few come, then they wait for more, from the first of them on.
    let mut paced = thick(now);
    come(&mut paced, &[("b", 1)], now);
    come(&mut paced, &[("c", 1)], now + COMPANY / 2);
    assert_eq!(next_size(&mut paced, now + COMPANY / 2), None);
    assert_eq!(next_size(&mut paced, now + COMPANY), Some(2));
    // They were few: the next one goes at once again.
    paced.arrived();
    come(&mut paced, &[("d", 1)], now);
    assert_eq!(next_size(&mut paced, now), Some(1));
    // When something waits for one of them, or there are many, they do not wait.
    let mut awaited = thick(now);
    come(&mut awaited, &[("b", 1)], now);
    awaited.push(receipts(&[("c", 1)]).remove(0), true, || now);
    assert_eq!(next_size(&mut awaited, now), Some(2));
    let mut full = thick(now);
    come(&mut full, &[("b", FULL)], now);
    assert_eq!(next_size(&mut full, now), Some(FULL));
    // When a slot is given up, everything goes.
    let mut given_up = thick(now);
    come(&mut given_up, &[("b", 1)], now);
    given_up.hurry();
    assert_eq!(next_size(&mut given_up, now), Some(1));
}

#[tokio::test]
async fn k44_a_slot_of_which_nothing_can_be_stored_is_released_for_others() {
    let mut bench = Bench::new().await;
    let tag = Tag { fence: bench.fence, kind: TagKind::Watermark };
    bench.owner.settled(vec![tag, tag], None);
    let row = bench.until_given_up().await;
    assert_eq!(row.owner, None, "its lease goes on with the server's");
}

#[test]
fn k44_what_waits_of_a_slot_that_is_given_up_is_not_sent_and_the_rest_goes_in_its_order() {
    // Given what waits of two slots, in turns.
    let other = Fence { token: SlotToken(2), ..fence() };
    let mut settlements = Settlements::default();
    for (place, (item, tag)) in receipts(&[("a", 300), ("b", 300)]).into_iter().enumerate() {
        let tag = if place % 2 == 0 { tag } else { Tag { fence: other, ..tag } };
        settlements.push((item, tag), false, Instant::now);
    }
    // When one of them is given up, then what is sent is the other's, each item with what it was for.
    settlements.forget(other);
    assert_eq!((settlements.waiting.len(), settlements.unstored), (300, 300));
    let mut sent = Vec::new();
    let mut waiting = std::mem::take(&mut settlements.waiting);
    while !waiting.is_empty() {
        let Tagged { items, tags } = waiting.take(128);
        assert_eq!(items.len(), tags.len());
        for (item, tag) in items.into_iter().zip(tags) {
            let (Settle::Receipt(receipt), TagKind::Queue(ticket)) = (item, tag.kind) else { panic!("no receipt") };
            assert_eq!((tag.fence, ticket.request()), (fence(), receipt.request));
            sent.push(receipt.request.revision.0);
        }
    }
    assert_eq!(sent, (1..=600).step_by(2).collect::<Vec<u64>>());
}
