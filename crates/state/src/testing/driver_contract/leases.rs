//! Servers, slots, tokens, and the line between a receipt and a taking over.

use std::time::Duration;

use super::{LEASE, Subject, receipt, rows, server, slot};
use crate::clock::Clock;
use crate::driver::{Batch, DriverError, Fence, ServerRow, Settle, Settled, SlotToken};
use crate::revision::Revision;

/// Given a slot that passes from owner to owner and a new epoch, every token is above all tokens before it.
pub async fn k48_tokens_only_rise_over_slots_owners_and_epochs(subject: Subject) {
    let mut highest = SlotToken(0);
    let mut rises = |fence: Fence| {
        assert!(fence.token > highest, "{fence:?} after {highest:?}");
        highest = fence.token;
        fence
    };
    let first = subject.join(1).await;
    let second = subject.join(2).await;
    let fences = subject.driver.take_slots(first, &[slot(0), slot(1)]).await.unwrap();
    assert_eq!(fences.iter().map(|fence| fence.slot).collect::<Vec<_>>(), [slot(0), slot(1)]);
    let held: Vec<Fence> = fences.into_iter().map(&mut rises).collect();
    assert_eq!(subject.take(second, slot(0)).await, None, "it is leased");
    assert_eq!(subject.take(first, slot(0)).await, None, "by this one already");
    subject.driver.release_slots(&held).await.unwrap();
    rises(subject.take(second, slot(0)).await.unwrap());
    subject.clock.advance(LEASE);
    let third = subject.join(3).await;
    rises(subject.take(third, slot(0)).await.unwrap());
    let counter = subject.driver.stored().await.unwrap().token_counter;
    let epoch = subject.epoch().await;
    assert_ne!(subject.begin_epoch(SlotToken(counter.0 + 1_000)).await, epoch);
    let (servers, slots) = subject.driver.cluster().await.unwrap();
    assert!(servers.is_empty() && slots.iter().all(|slot| slot.owner.is_none()));
    let fourth = subject.join(4).await;
    let fence = rises(subject.take(fourth, slot(0)).await.unwrap());
    assert!(fence.token.0 > counter.0 + 1_000);
}

/// Given a server that died, a process that joins under its name gets its slots when the old lease ends, not before.
pub async fn k07_another_process_under_the_name_waits_for_the_old_lease(subject: Subject) {
    let old = subject.join(1).await;
    let held = subject.take(old, slot(0)).await.unwrap();
    subject.clock.advance(LEASE / 2);
    let new = subject.join(2).await;
    assert_eq!(subject.take(new, slot(0)).await, None);
    subject.clock.advance(LEASE / 2 - Duration::from_millis(1));
    assert_eq!(subject.take(new, slot(0)).await, None);
    assert_eq!(subject.settle_one(Settle::Watermark { fence: held, to: Revision(0) }).await, Settled::Durable);
    subject.clock.advance(Duration::from_millis(1));
    let taken = subject.take(new, slot(0)).await.unwrap();
    assert!(taken.token > held.token);
}

/// Given a lease that has ended, renewing it, taking slots and settling under it are refused, also where nobody has taken
/// the slot over.
pub async fn k43_a_lapsed_lease_is_not_renewed_and_gets_nothing(subject: Subject) {
    let id = subject.join(1).await;
    let fence = subject.take(id, slot(0)).await.unwrap();
    subject.put(1, &[super::HOOK]).await;
    subject.clock.advance(LEASE / 2);
    let renewed = server(1, subject.clock.now());
    subject.driver.heartbeat(renewed).await.unwrap();
    subject.clock.advance(LEASE);
    let late = subject.driver.heartbeat(server(1, subject.clock.now())).await;
    assert!(matches!(late, Err(DriverError::LeaseLapsed)));
    let taken = subject.driver.take_slots(id, &[slot(1)]).await;
    assert!(matches!(taken, Err(DriverError::LeaseLapsed)));
    assert_eq!(subject.settle_one(Settle::Receipt(receipt(1, fence))).await, Settled::Refused);
    let epoch = subject.epoch().await;
    let mut begun = subject.driver.begin(epoch, Revision(1), 10).await.unwrap();
    assert_eq!(begun.session.fence(&[fence]).await.unwrap(), [false]);
    let unknown = subject.driver.heartbeat(server(9, subject.clock.now())).await;
    assert!(matches!(unknown, Err(DriverError::LeaseLapsed)));
}

/// Given a heartbeat that lands after a later one, it shortens no lease and lets no draining server have slots again.
pub async fn k43_a_heartbeat_that_lands_late_takes_nothing_back(subject: Subject) {
    let id = subject.join(1).await;
    let fence = subject.take(id, slot(0)).await.unwrap();
    let late = server(1, subject.clock.now());
    subject.clock.advance(LEASE / 2);
    let until = subject.clock.now().after(LEASE);
    subject.driver.heartbeat(ServerRow { draining: true, ..server(1, subject.clock.now()) }).await.unwrap();
    subject.driver.heartbeat(late).await.unwrap();
    let (servers, _) = subject.driver.cluster().await.unwrap();
    assert_eq!((servers[0].lease_until, servers[0].draining), (until, true));
    assert_eq!(subject.take(id, slot(1)).await, None, "it drains");
    subject.clock.advance(LEASE - Duration::from_millis(1));
    assert_eq!(subject.settle_one(Settle::Watermark { fence, to: Revision(0) }).await, Settled::Durable);
}

/// Given a server that joins again under its id after its lease has ended, its old tokens hold no more than before.
pub async fn k43_joining_anew_under_the_same_id_does_not_bring_old_tokens_back(subject: Subject) {
    let id = subject.join(1).await;
    let old = subject.take(id, slot(0)).await.unwrap();
    subject.clock.advance(LEASE);
    subject.join(1).await;
    assert_eq!(subject.settle_one(Settle::Watermark { fence: old, to: Revision(0) }).await, Settled::Refused);
    let new = subject.take(id, slot(0)).await.unwrap();
    assert!(new.token > old.token);
    assert_eq!(subject.settle_one(Settle::Watermark { fence: new, to: Revision(0) }).await, Settled::Durable);
}

/// Given a released slot, another server has it at once; a stale release frees nothing; a draining server leases none.
pub async fn k30_released_slots_are_free_at_once_and_a_draining_server_gets_none(subject: Subject) {
    let first = subject.join(1).await;
    let second = subject.join(2).await;
    let held = subject.take(first, slot(0)).await.unwrap();
    subject.driver.release_slots(&[held]).await.unwrap();
    let taken = subject.take(second, slot(0)).await.unwrap();
    subject.driver.release_slots(&[held]).await.unwrap();
    assert_eq!(subject.settle_one(Settle::Watermark { fence: taken, to: Revision(0) }).await, Settled::Durable);
    let draining = ServerRow { draining: true, ..server(1, subject.clock.now()) };
    subject.driver.heartbeat(draining).await.unwrap();
    subject.driver.release_slots(&[taken]).await.unwrap();
    assert_eq!(subject.take(first, slot(0)).await, None);
}

/// Given a server that leaves, its slots are free, its tokens hold no more, and its row is gone.
pub async fn k39_a_server_that_leaves_frees_its_slots(subject: Subject) {
    let first = subject.join(1).await;
    let second = subject.join(2).await;
    let held = subject.take(first, slot(0)).await.unwrap();
    subject.driver.leave(first).await.unwrap();
    assert_eq!(subject.settle_one(Settle::Watermark { fence: held, to: Revision(0) }).await, Settled::Refused);
    assert!(subject.take(second, slot(0)).await.unwrap().token > held.token);
    let (servers, slots) = subject.driver.cluster().await.unwrap();
    assert_eq!(servers.iter().map(|server| server.id).collect::<Vec<_>>(), [second]);
    assert_eq!(slots.len(), 1);
    assert_eq!(servers[0], server(2, subject.clock.now()));
}

/// Given a clock that is set back, nothing ends early, and tokens and revisions still rise.
pub async fn d34_leases_end_when_the_clock_says_so_and_not_before(subject: Subject) {
    let first = subject.join(1).await;
    let held = subject.take(first, slot(0)).await.unwrap();
    let head = subject.put(1, &[]).await;
    subject.clock.set(crate::revision::Timestamp(5));
    let second = subject.join(2).await;
    assert_eq!(subject.take(second, slot(0)).await, None);
    assert_eq!(subject.put(1, &[]).await, head.next());
    let taken = subject.take(second, slot(1)).await.unwrap();
    assert!(taken.token > held.token);
    let log = subject.driver.stored().await.unwrap().log;
    assert_eq!(log[1].at, crate::revision::Timestamp(5));
}

/// Given a session in which a token was checked and whose lease then ends, the slot passes on only after the session:
/// what it commits is there for the next owner.
pub async fn k45_a_checked_token_cannot_be_taken_over_before_its_commit(subject: Subject) {
    let first = subject.join(1).await;
    let held = subject.take(first, slot(0)).await.unwrap();
    let second = server(2, subject.clock.now().after(LEASE));
    subject.driver.join(second.clone()).await.unwrap();
    subject.put(1, &[super::HOOK]).await;
    let epoch = subject.epoch().await;
    let mut begun = subject.driver.begin(epoch, Revision(1), 10).await.unwrap();
    assert_eq!(begun.session.fence(&[held]).await.unwrap(), [true]);
    subject.clock.advance(LEASE);
    let taking = tokio::spawn({
        let subject = subject.clone();
        async move {
            let fence = subject.take(second.id, slot(0)).await.unwrap();
            (fence, subject.driver.pending(slot(0), Revision(0), 100).await.unwrap())
        }
    });
    tokio::task::yield_now().await;
    assert!(!taking.is_finished());
    let now = begun.session.now();
    let batch = Batch { rows: rows(Revision(1), now, 1, &[]), receipts: vec![receipt(1, held)], ..Batch::default() };
    begun.session.commit(batch).await.unwrap();
    let (fence, pending) = taking.await.unwrap();
    assert!(fence.token > held.token);
    assert_eq!(pending.receipts, [super::request(1)]);
}

/// Given an owner that settles as fast as it can while its lease ends and another takes over, again and again: what was
/// accepted is what the next owner reads, and nothing is accepted afterwards.
pub async fn k45_receipts_and_taking_over_never_overlap(subject: Subject) {
    const ROUNDS: u64 = 25;
    const REQUESTS: u64 = 40;
    for round in 0..ROUNDS {
        let first_request = round * REQUESTS + 1;
        subject.put(REQUESTS, &[super::HOOK]).await;
        let old = subject.join(u128::from(round) * 2 + 1).await;
        let new = server(u128::from(round) * 2 + 2, subject.clock.now().after(LEASE * 9));
        subject.driver.join(new.clone()).await.unwrap();
        let new = new.id;
        let held = subject.take(old, slot(0)).await.unwrap();
        let settling: Vec<_> = (0..3)
            .map(|part| {
                let subject = subject.clone();
                tokio::spawn(async move {
                    let mut accepted = Vec::new();
                    for number in (part..REQUESTS).step_by(3) {
                        let revision = first_request + number;
                        if subject.settle_one(Settle::Receipt(receipt(revision, held))).await == Settled::Durable {
                            accepted.push(revision);
                        }
                    }
                    accepted
                })
            })
            .collect();
        let taking = tokio::spawn({
            let subject = subject.clone();
            async move {
                // By turns: the slot is handed over, its owner leaves, its lease runs out.
                match round % 3 {
                    0 => subject.driver.release_slots(&[held]).await.unwrap(),
                    1 => subject.driver.leave(old).await.unwrap(),
                    _ => subject.clock.advance(LEASE),
                }
                let fence = subject.take(new, slot(0)).await.unwrap();
                let pending = subject.driver.pending(slot(0), Revision(first_request - 1), 1_000).await.unwrap();
                (fence, pending)
            }
        });
        let mut accepted = Vec::new();
        for task in settling {
            accepted.extend(task.await.unwrap());
        }
        let (fence, pending) = taking.await.unwrap();
        let mut seen: Vec<u64> = pending.receipts.iter().map(|request| request.revision.0).collect();
        accepted.sort_unstable();
        seen.sort_unstable();
        assert_eq!(accepted, seen, "round {round}: what was accepted, and what the next owner has read");
        assert_eq!(subject.settle_one(Settle::Receipt(receipt(first_request, held))).await, Settled::Refused);
        subject.driver.release_slots(&[fence]).await.unwrap();
        subject.driver.leave(new).await.unwrap();
        subject.driver.leave(old).await.unwrap();
    }
}
