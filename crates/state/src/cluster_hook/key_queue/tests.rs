//! Tables and a property test against a naive model for the key queue.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::driver::HookNumber;

const NOW: Timestamp = Timestamp(1_000_000);
const HEAD: Revision = Revision(1_000_000);

fn id(revision: u64) -> RequestId {
    RequestId { revision: Revision(revision), sequence: 0, hook: HookNumber(1) }
}

fn policy(attempts: Option<u32>) -> RetryPolicy {
    RetryPolicy { attempts, first: Duration::from_secs(1), max: Duration::from_secs(8) }
}

/// A queue with the commands that it gave.
struct Bench {
    queue: SlotQueue<u64>,
    out: Vec<Command<u64>>,
    now: Timestamp,
}

impl Bench {
    fn new(delivery: Delivery) -> Bench {
        Bench::bounded(delivery, 1_000)
    }

    fn bounded(delivery: Delivery, bound: usize) -> Bench {
        let mut queue = SlotQueue::loading(delivery, policy(Some(3)), bound);
        let mut out = Vec::new();
        queue.activate(NOW, Revision(0), false, &mut out);
        Bench { queue, out, now: NOW }
    }

    fn request(&mut self, revision: u64, key: &str) {
        self.queue.request(id(revision), key, revision, &mut self.out);
        self.queue.passed(Revision(revision));
    }

    fn start(&mut self) -> Option<Started<u64>> {
        self.start_at(HEAD)
    }

    fn start_at(&mut self, snapshot: Revision) -> Option<Started<u64>> {
        self.queue.start(snapshot, true, &mut self.out)
    }

    fn end(&mut self, started: &Started<u64>, end: RunEnd) {
        self.queue.ended(started.key, started.run, end, self.now, 0.0, &mut self.out);
    }

    /// Everything that was asked to be stored becomes durable; says what it was.
    fn store(&mut self) -> Vec<Item<u64>> {
        let mut stored = Vec::new();
        while !self.out.is_empty() {
            for command in std::mem::take(&mut self.out) {
                if let Command::Settle { item, ticket } = command {
                    self.queue.settled(ticket, &mut self.out);
                    stored.push(item);
                }
            }
        }
        stored
    }

    fn run(&mut self, end: RunEnd) -> RequestId {
        let started = self.start().expect("something can start");
        self.end(&started, end);
        self.store();
        started.request
    }

    fn names(&mut self) -> Vec<(String, u64)> {
        std::iter::from_fn(|| self.start()).map(|run| (run.name.to_string(), run.request.revision.0)).collect()
    }
}

fn failed() -> RunEnd {
    RunEnd::Failed("no".to_owned())
}

#[test]
fn k14_the_next_of_a_key_starts_when_the_one_before_is_durable_and_other_keys_go_on() {
    let mut bench = Bench::new(Delivery::EveryChange);
    for (revision, key) in [(1, "x"), (2, "x"), (3, "x"), (4, "y"), (5, "z")] {
        bench.request(revision, key);
    }
    let x = bench.start().unwrap();
    assert_eq!(x.request, id(1));
    assert_eq!(bench.names(), [("y".to_owned(), 4), ("z".to_owned(), 5)]);
    bench.end(&x, RunEnd::Done);
    assert!(bench.start().is_none(), "its receipt is not durable");
    bench.store();
    let x = bench.start().unwrap();
    assert_eq!(x.request, id(2));
    bench.end(&x, failed());
    bench.store();
    assert!(bench.start().is_none(), "3 stands behind the failed 2");
    bench.queue.wake(NOW.after(Duration::from_secs(1)));
    let again = bench.start().unwrap();
    assert_eq!((again.request, again.attempt), (id(2), 2));
}

#[test]
fn k15_latest_state_runs_once_more_for_all_that_came_during_a_run() {
    let mut bench = Bench::new(Delivery::LatestState);
    bench.request(1, "a");
    let run = bench.start_at(Revision(1)).unwrap();
    for revision in 2..=6 {
        bench.request(revision, "a");
    }
    bench.end(&run, RunEnd::Done);
    assert_eq!(bench.store().len(), 1);
    let run = bench.start_at(Revision(6)).unwrap();
    assert_eq!(run.request, id(6));
    bench.end(&run, RunEnd::Done);
    let stored = bench.store();
    let outcomes: Vec<_> = stored
        .iter()
        .map(|item| match item {
            Item::Receipt { request, outcome } => (request.revision.0, *outcome),
            Item::Exception { .. } => panic!("{item:?}"),
        })
        .collect();
    let coalesced = |revision| (revision, ReceiptOutcome::Coalesced);
    assert_eq!(outcomes, [coalesced(2), coalesced(3), coalesced(4), coalesced(5), (6, ReceiptOutcome::Done)]);
    assert!(bench.start().is_none());
}

#[test]
fn k15_what_comes_while_a_runs_end_is_being_committed_is_not_settled_by_that_commit() {
    for retry_at in [None, Some(NOW.after(Duration::from_secs(5)))] {
        let mut bench = Bench::new(Delivery::LatestState);
        bench.request(1, "a");
        let run = bench.start_at(Revision(5)).unwrap();
        bench.request(2, "a");
        assert_eq!(bench.queue.commit_begins(run.key, run.run), Some(vec![id(1), id(2)]));
        bench.request(3, "a");
        bench.queue.committed(run.key, run.run, retry_at, &mut bench.out);
        assert!(bench.store().is_empty(), "all that the commit settled is durable");
        assert_eq!(bench.queue.watermark(), Revision(2), "3 has neither receipt nor exception");
        // A change brings forward what waits for a time.
        let next = bench.start_at(Revision(5)).expect("3 is not forgotten");
        assert_eq!(next.request, id(3));
        bench.end(&next, RunEnd::Done);
        let stored: Vec<Item<u64>> = bench.store();
        let held = retry_at.map(|_| Item::Receipt { request: id(2), outcome: ReceiptOutcome::Coalesced });
        let done = Item::Receipt { request: id(3), outcome: ReceiptOutcome::Done };
        assert_eq!(stored, held.into_iter().chain([done]).collect::<Vec<_>>());
        assert_eq!(bench.queue.watermark(), Revision(3));
        assert!(bench.start().is_none());
    }
}

#[test]
fn k15_a_commit_that_failed_leaves_what_came_meanwhile_to_the_next_run() {
    for end in [failed(), RunEnd::Interrupted] {
        let mut bench = Bench::new(Delivery::LatestState);
        bench.request(1, "a");
        let run = bench.start_at(Revision(5)).unwrap();
        assert_eq!(bench.queue.commit_begins(run.key, run.run), Some(vec![id(1)]));
        bench.request(2, "a");
        bench.end(&run, end);
        bench.store();
        bench.queue.wake(NOW.after(Duration::from_secs(1)));
        let again = bench.start_at(Revision(5)).unwrap();
        assert_eq!(again.request, id(2));
        assert_eq!(bench.queue.commit_begins(again.key, again.run), Some(vec![id(1), id(2)]));
    }
}

#[test]
fn k15_a_run_covers_what_its_snapshot_has_even_if_the_tail_brings_it_later() {
    let mut bench = Bench::new(Delivery::LatestState);
    bench.request(1, "a");
    let run = bench.start_at(Revision(5)).unwrap();
    bench.request(5, "a");
    bench.request(6, "a");
    bench.end(&run, RunEnd::Done);
    assert_eq!(bench.store().len(), 2);
    assert_eq!(bench.start().unwrap().request, id(6));
}

#[test]
fn k18_a_change_brings_forward_what_waits_for_a_time_and_not_what_backs_off() {
    let later = NOW.after(Duration::from_secs(100));
    let mut bench = Bench::new(Delivery::LatestState);
    bench.request(1, "a");
    bench.run(RunEnd::RetryAt(later));
    assert!(bench.start().is_none());
    bench.request(2, "a");
    assert_eq!(bench.run(failed()), id(2));
    bench.request(3, "a");
    assert!(bench.start().is_none(), "it backs off");
    assert_eq!(bench.queue.next_timer().unwrap(), NOW.after(Duration::from_secs(1)));

    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(1, "a");
    bench.run(RunEnd::RetryAt(later));
    bench.request(2, "a");
    assert!(bench.start().is_none(), "an EveryChange request stands behind");
    bench.queue.wake(later);
    let run = bench.start().unwrap();
    assert_eq!((run.request, run.attempt), (id(1), 1), "waiting is no failure");
}

#[test]
fn k19_a_dead_letter_pauses_its_key_alone_until_it_is_retried_or_discarded() {
    let mut bench = Bench::new(Delivery::EveryChange);
    for (revision, key) in [(1, "a"), (2, "a"), (3, "b")] {
        bench.request(revision, key);
    }
    for attempt in 1..=3 {
        let run = bench.start().unwrap();
        assert_eq!((run.request, run.attempt), (id(1), attempt));
        bench.end(&run, failed());
        let stored = bench.store();
        if attempt == 1 {
            assert_eq!(bench.run(RunEnd::Done), id(3));
        }
        if attempt == 3 {
            assert!(
                matches!(&stored[0], Item::Exception { state: ExceptionState::Dead, attempts: 3, .. }),
                "{stored:?}"
            );
        }
        bench.queue.wake(NOW.after(Duration::from_secs(100)));
    }
    assert!(bench.start().is_none());
    bench.queue.act(id(10), id(1), RequestAction::Retry, &mut bench.out);
    bench.queue.act(id(11), id(1), RequestAction::Retry, &mut bench.out);
    let stored = bench.store();
    assert!(stored.contains(&Item::Receipt { request: id(10), outcome: ReceiptOutcome::Done }));
    assert!(stored.contains(&Item::Receipt { request: id(11), outcome: ReceiptOutcome::Done }), "seen, and too late");
    let run = bench.start().unwrap();
    assert_eq!((run.request, run.attempt), (id(1), 1));
    for _ in 0..3 {
        bench.queue.wake(NOW.after(Duration::from_secs(1_000)));
    }
    bench.end(&run, failed());
    bench.store();
    bench.queue.act(id(12), id(1), RequestAction::Discard, &mut bench.out);
    let stored = bench.store();
    assert!(stored.contains(&Item::Receipt { request: id(1), outcome: ReceiptOutcome::Discarded }));
    assert_eq!(bench.run(RunEnd::Done), id(2));
}

#[test]
fn k19_a_dead_latest_state_key_is_revived_by_the_next_change() {
    let mut bench = Bench::new(Delivery::LatestState);
    bench.request(1, "a");
    for _ in 0..3 {
        bench.run(failed());
        bench.queue.wake(NOW.after(Duration::from_secs(100)));
    }
    assert!(bench.start().is_none());
    bench.request(2, "a");
    bench.store();
    let run = bench.start().unwrap();
    assert_eq!((run.request, run.attempt), (id(2), 1));
    bench.queue.act(id(9), id(1), RequestAction::Retry, &mut bench.out);
    bench.end(&run, RunEnd::Done);
    let stored = bench.store();
    assert!(stored.contains(&Item::Receipt { request: id(1), outcome: ReceiptOutcome::Coalesced }), "{stored:?}");
    assert!(bench.start().is_none());
}

#[test]
fn k20_a_waiting_request_is_cancelled_at_once_and_a_running_one_when_it_has_ended() {
    let mut bench = Bench::new(Delivery::EveryChange);
    for revision in 1..=3 {
        bench.request(revision, "a");
    }
    let run = bench.start().unwrap();
    bench.queue.act(id(10), id(2), RequestAction::Cancel, &mut bench.out);
    bench.queue.act(id(11), id(1), RequestAction::Cancel, &mut bench.out);
    assert!(bench.out.contains(&Command::Cancel { key: run.key, run: run.run }));
    assert_eq!(bench.queue.commit_begins(run.key, run.run), None, "it is cancelled");
    bench.store();
    assert!(bench.start().is_none(), "the next one waits until the run has ended");
    bench.end(&run, RunEnd::Done);
    let stored = bench.store();
    assert_eq!(stored[0], Item::Receipt { request: id(1), outcome: ReceiptOutcome::Cancelled });
    assert_eq!(bench.run(RunEnd::Done), id(3));
}

#[test]
fn k20_a_cancel_lets_go_of_nothing_that_is_newer_than_its_request() {
    let mut bench = Bench::new(Delivery::LatestState);
    for revision in 1..=4 {
        bench.request(revision, "a");
    }
    let run = bench.start_at(Revision(5)).unwrap();
    assert_eq!(run.request, id(4));
    // Its snapshot has this one, so the run covers it.
    bench.request(5, "a");
    bench.queue.act(id(10), id(2), RequestAction::Cancel, &mut bench.out);
    bench.queue.act(id(11), id(3), RequestAction::Cancel, &mut bench.out);
    assert!(bench.out.contains(&Command::Cancel { key: run.key, run: run.run }));
    bench.end(&run, RunEnd::Done);
    let stored = bench.store();
    for revision in 1..=5 {
        let cancelled = Item::Receipt { request: id(revision), outcome: ReceiptOutcome::Cancelled };
        assert_eq!(stored.contains(&cancelled), revision <= 3, "{revision}: {stored:?}");
    }
    assert_eq!(bench.run(RunEnd::Done), id(5));
    bench.queue.passed(Revision(20));
    assert_eq!(bench.queue.watermark(), Revision(20), "nothing is open any more");
}

#[test]
fn k20_an_action_on_what_is_just_being_stored_is_heeded_afterwards() {
    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(1, "a");
    let run = bench.start().unwrap();
    bench.end(&run, failed());
    bench.queue.act(id(10), id(1), RequestAction::Cancel, &mut bench.out);
    let stored = bench.store();
    assert!(stored.contains(&Item::Receipt { request: id(1), outcome: ReceiptOutcome::Cancelled }), "{stored:?}");
    assert!(bench.queue.watermark() >= Revision(1));
}

#[test]
fn k20_a_cancel_during_the_commit_of_a_run_comes_too_late_if_that_succeeds() {
    let mut bench = Bench::new(Delivery::LatestState);
    bench.request(1, "a");
    let run = bench.start().unwrap();
    assert!(bench.queue.commit_begins(run.key, run.run).is_some());
    bench.queue.act(id(2), id(1), RequestAction::Cancel, &mut bench.out);
    assert!(bench.out.contains(&Command::Cancel { key: run.key, run: run.run }), "its writes may still be refused");
    bench.queue.committed(run.key, run.run, None, &mut bench.out);
    assert_eq!(bench.store(), [Item::Receipt { request: id(2), outcome: ReceiptOutcome::Done }]);
    bench.queue.passed(Revision(20));
    assert_eq!(bench.queue.watermark(), Revision(20), "nothing is open any more");
}

#[test]
fn k20_a_cancel_during_the_commit_of_a_run_is_for_the_request_that_waits_then() {
    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(1, "a");
    bench.request(2, "a");
    let run = bench.start().unwrap();
    assert!(bench.queue.commit_begins(run.key, run.run).is_some());
    bench.queue.act(id(3), id(1), RequestAction::Cancel, &mut bench.out);
    bench.queue.committed(run.key, run.run, Some(NOW.after(Duration::from_secs(100))), &mut bench.out);
    let stored = bench.store();
    assert!(stored.contains(&Item::Receipt { request: id(1), outcome: ReceiptOutcome::Cancelled }), "{stored:?}");
    assert!(stored.contains(&Item::Receipt { request: id(3), outcome: ReceiptOutcome::Done }), "{stored:?}");
    assert_eq!(bench.run(RunEnd::Done), id(2));
}

#[test]
fn k20_a_cancel_during_the_commit_of_a_run_counts_if_that_is_refused() {
    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(1, "a");
    let run = bench.start().unwrap();
    assert!(bench.queue.commit_begins(run.key, run.run).is_some());
    bench.queue.act(id(2), id(1), RequestAction::Cancel, &mut bench.out);
    bench.end(&run, failed());
    let cancelled = Item::Receipt { request: id(1), outcome: ReceiptOutcome::Cancelled };
    assert_eq!(bench.store(), [cancelled, Item::Receipt { request: id(2), outcome: ReceiptOutcome::Done }]);
    assert!(bench.start().is_none());
}

#[test]
fn k30_an_interrupted_run_counts_no_attempt() {
    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(1, "a");
    let run = bench.start().unwrap();
    bench.end(&run, RunEnd::Interrupted);
    assert!(bench.store().is_empty());
    assert_eq!(bench.start().unwrap().attempt, 1);
}

#[test]
fn k31_what_a_key_waits_for_is_told_from_what_nobody_does() {
    let awaited = |bench: &Bench| -> Vec<bool> {
        let tickets = bench.out.iter().filter_map(|command| match command {
            Command::Settle { ticket, .. } => Some(*ticket),
            Command::Cancel { .. } => None,
        });
        tickets.map(|ticket| bench.queue.awaits(ticket)).collect()
    };
    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(1, "x");
    bench.request(2, "x");
    for (run, is_awaited) in [(RunEnd::Done, true), (failed(), true)] {
        let started = bench.start().unwrap();
        bench.end(&started, run);
        assert_eq!(awaited(&bench), [is_awaited]);
        bench.store();
    }
    bench.queue.wake(NOW.after(Duration::from_secs(9)));
    let last = bench.start().unwrap();
    bench.end(&last, RunEnd::Done);
    assert_eq!(awaited(&bench), [false], "nothing comes after it");
    bench.request(3, "x");
    assert_eq!(awaited(&bench), [true], "now something does");
}

#[test]
fn k42_delays_grow_with_jitter_to_their_cap_and_stay_there() {
    let policy = policy(None);
    let delays: Vec<u128> = (1..=6).map(|failed| policy.delay(failed, 0.0).as_millis()).collect();
    assert_eq!(delays, [1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
    assert_eq!(policy.delay(100, 1.0).as_millis(), 6_000);
    assert!(policy.delay(3, 0.5) < policy.delay(3, 0.0));
}

#[test]
fn k46_a_new_owner_finds_times_attempts_and_pauses_as_they_were() {
    let waits = ExceptionState::Waiting { until: NOW.after(Duration::from_secs(50)) };
    let backs_off = ExceptionState::BackingOff { until: NOW.after(Duration::from_secs(5)) };
    let mut queue = SlotQueue::loading(Delivery::EveryChange, policy(Some(3)), 100);
    let mut out = Vec::new();
    queue.load_exception(id(1), "waits", waits, (0, 0), None, 1);
    queue.load_exception(id(2), "backs-off", backs_off, (2, 0), Some("no".to_owned()), 2);
    queue.load_exception(id(3), "dead", ExceptionState::Dead, (3, 0), Some("no".to_owned()), 3);
    queue.load_exception(id(4), "parked", ExceptionState::Parked, (0, 0), None, 4);
    for (revision, key) in [(2, "backs-off"), (5, "parked"), (6, "dead"), (7, "waits"), (8, "plain")] {
        queue.request(id(revision), key, revision, &mut out);
    }
    queue.activate(NOW, Revision(9), false, &mut out);
    assert!(out.is_empty());
    let mut bench = Bench { queue, out, now: NOW };
    assert_eq!(bench.queue.watermark(), Revision(4), "5 has neither receipt nor exception");
    let first: BTreeSet<_> = bench.names().into_iter().collect();
    assert_eq!(first, BTreeSet::from([("parked".to_owned(), 4), ("plain".to_owned(), 8)]));
    bench.queue.wake(NOW.after(Duration::from_secs(5)));
    let run = bench.start().unwrap();
    assert_eq!((run.request, run.attempt), (id(2), 3));
    bench.queue.wake(NOW.after(Duration::from_secs(50)));
    assert_eq!(bench.names(), [("waits".to_owned(), 1)]);
}

#[test]
fn k46_actions_that_no_owner_had_carried_out_are_carried_out_by_the_next() {
    let mut queue = SlotQueue::loading(Delivery::EveryChange, policy(Some(3)), 100);
    let mut out = Vec::new();
    queue.load_exception(id(1), "dead", ExceptionState::Dead, (3, 0), None, 1);
    queue.request(id(2), "other", 2, &mut out);
    queue.act(id(3), id(1), RequestAction::Retry, &mut out);
    queue.act(id(4), id(2), RequestAction::Discard, &mut out);
    queue.activate(NOW, Revision(5), false, &mut out);
    let mut bench = Bench { queue, out, now: NOW };
    let stored = bench.store();
    assert!(stored.contains(&Item::Receipt { request: id(2), outcome: ReceiptOutcome::Discarded }), "{stored:?}");
    assert_eq!(bench.names(), [("dead".to_owned(), 1)]);
}

#[test]
fn k47_the_watermark_stays_below_what_is_neither_finished_nor_set_aside() {
    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(10, "slow");
    let slow = bench.start().unwrap();
    for revision in 11..=20 {
        bench.request(revision, "fast");
    }
    for _ in 11..=20 {
        bench.run(RunEnd::Done);
    }
    assert_eq!(bench.queue.watermark(), Revision(9));
    bench.end(&slow, RunEnd::RetryAt(NOW.after(Duration::from_secs(1_000))));
    assert_eq!(bench.queue.watermark(), Revision(9), "the exception is not durable yet");
    bench.store();
    assert_eq!(bench.queue.watermark(), Revision(20));
    bench.request(25, "slow");
    assert_eq!(bench.queue.watermark(), Revision(24));
    bench.queue.park(Revision(25), 10, &mut bench.out);
    let stored = bench.store();
    assert!(matches!(&stored[0], Item::Exception { request, state: ExceptionState::Parked, .. } if *request == id(25)));
    assert_eq!(bench.queue.watermark(), Revision(25));
}

#[test]
fn k47_a_run_does_not_overtake_the_exception_of_its_own_request() {
    for stored_first in [true, false] {
        let mut bench = Bench::new(Delivery::EveryChange);
        bench.request(1, "a");
        bench.request(2, "a");
        bench.request(3, "b");
        bench.run(RunEnd::RetryAt(NOW.after(Duration::from_secs(1))));
        bench.queue.park(Revision(2), 10, &mut bench.out);
        let parked = std::mem::take(&mut bench.out);
        assert_eq!(parked.len(), 1);
        bench.queue.wake(NOW.after(Duration::from_secs(2)));
        // Other keys go on, and neither the one that waited nor the one behind it starts, whose copy is on its way.
        assert_eq!(bench.run(RunEnd::Done), id(3));
        assert!(bench.start().is_none());
        if !stored_first {
            bench.queue.act(id(4), id(1), RequestAction::Discard, &mut bench.out);
            bench.store();
            assert!(bench.start().is_none(), "2 would be free to start");
        }
        bench.out = parked;
        bench.store();
        if stored_first {
            assert_eq!(bench.run(RunEnd::Done), id(1));
        }
        assert_eq!(bench.run(RunEnd::Done), id(2));
        assert_eq!(bench.queue.watermark(), Revision(3));
    }
}

#[test]
fn k47_a_key_is_not_forgotten_while_a_copy_of_its_requests_is_on_its_way() {
    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(1, "a");
    bench.request(2, "a");
    bench.run(RunEnd::RetryAt(NOW.after(Duration::from_secs(100))));
    bench.queue.park(Revision(2), 10, &mut bench.out);
    let parked = std::mem::take(&mut bench.out);
    bench.queue.act(id(3), id(2), RequestAction::Discard, &mut bench.out);
    bench.queue.act(id(4), id(1), RequestAction::Discard, &mut bench.out);
    bench.store();
    bench.request(5, "b");
    bench.request(6, "b");
    bench.run(RunEnd::RetryAt(NOW.after(Duration::from_secs(1))));
    bench.queue.park(Revision(6), 10, &mut bench.out);
    let of_b = std::mem::replace(&mut bench.out, parked);
    bench.store();
    bench.queue.wake(NOW.after(Duration::from_secs(2)));
    assert!(bench.start().is_none(), "the copy of b's second request is not durable, a's alone is");
    bench.out = of_b;
    bench.store();
    assert_eq!(bench.run(RunEnd::Done), id(5));
}

#[test]
fn k50_keys_take_turns_and_one_with_many_requests_is_cut_to_make_room() {
    let mut bench = Bench::bounded(Delivery::EveryChange, 100);
    for revision in 1..=1_000 {
        bench.request(revision, "many");
    }
    for other in 0..60 {
        bench.request(2_000 + other, &format!("other-{other}"));
    }
    assert!(bench.queue.len() <= 100);
    let mut done = BTreeSet::new();
    let mut runs_of_many = 0;
    while done.len() < 60 {
        let run = bench.start().unwrap();
        if &*run.name == "many" {
            runs_of_many += 1;
        } else {
            done.insert(run.name.to_string());
        }
        bench.end(&run, RunEnd::Done);
        bench.store();
    }
    assert!(runs_of_many <= 2, "{runs_of_many}");
}

#[test]
fn k50_a_dead_letter_with_copies_behind_it_does_not_keep_the_longest_key_from_being_cut() {
    let mut bench = Bench::bounded(Delivery::EveryChange, 10);
    bench.queue.retry.attempts = Some(1);
    for revision in 1..=3 {
        bench.request(revision, "dead");
    }
    bench.run(failed());
    bench.queue.park(Revision(3), 10, &mut bench.out);
    bench.store();
    for revision in 4..=30 {
        bench.request(revision, "many");
    }
    bench.request(31, "other");
    assert_eq!(bench.names(), [("many".to_owned(), 4), ("other".to_owned(), 31)]);
}

#[test]
fn k50_with_a_lower_bound_what_is_beyond_it_is_left_in_the_log_and_read_again() {
    for delivery in [Delivery::EveryChange, Delivery::LatestState] {
        let mut bench = Bench::bounded(delivery, 1_000);
        let mut log = Vec::new();
        for revision in 1..=600 {
            let key = if revision % 100 == 0 { format!("other-{revision}") } else { "many".to_owned() };
            bench.request(revision, &key);
            log.push((revision, key));
        }
        bench.queue.set_bound(50);
        assert!(bench.queue.len() <= 50, "{} in memory", bench.queue.len());
        let mut ran: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut finished = HashSet::new();
        loop {
            if let Some(run) = bench.start() {
                ran.entry(run.name.to_string()).or_default().push(run.request.revision.0);
                bench.end(&run, RunEnd::Done);
                finished.extend(bench.store().into_iter().map(|item| match item {
                    Item::Receipt { request, .. } => request,
                    Item::Exception { request, .. } => panic!("an exception of {request}"),
                }));
            } else if let Some(after) = bench.queue.wants_reread() {
                bench.queue.reread_begins();
                for (revision, key) in log.iter().filter(|(revision, _)| *revision > after.0) {
                    bench.queue.reread(id(*revision), key, *revision, &finished, &mut bench.out);
                }
                bench.queue.reread_ends(Revision(600));
            } else {
                break;
            }
            assert!(bench.queue.len() <= 50, "{} in memory", bench.queue.len());
        }
        assert_eq!(finished.len(), 600);
        assert_eq!(ran.len(), 7, "{:?}", ran.keys());
        for (key, revisions) in ran {
            assert!(revisions.is_sorted(), "{key}: {revisions:?}");
            let last = log.iter().rfind(|(_, of)| *of == key).map(|(revision, _)| *revision);
            assert_eq!(revisions.last().copied(), last, "{key}");
        }
    }
}

#[test]
fn k15_a_change_that_did_not_fit_revives_a_dead_key_and_brings_a_waiting_one_forward() {
    for end in [failed(), RunEnd::RetryAt(NOW.after(Duration::from_secs(3_600)))] {
        let mut bench = Bench::bounded(Delivery::LatestState, 3);
        for revision in 1..=3 {
            bench.request(revision, "a");
        }
        let run = bench.start().unwrap();
        bench.request(4, "a");
        bench.end(&run, end.clone());
        bench.store();
        if end == failed() {
            for _ in 1..3 {
                bench.now = bench.now.after(Duration::from_secs(60));
                bench.queue.wake(bench.now);
                bench.run(failed());
            }
        }
        assert!(bench.start().is_none(), "what it stands before is not in memory");
        assert_eq!(bench.queue.wants_reread(), Some(Revision(3)));
        bench.queue.reread_begins();
        bench.queue.reread(id(4), "a", 4, &HashSet::new(), &mut bench.out);
        bench.queue.reread_ends(Revision(4));
        bench.store();
        assert_eq!(bench.run(RunEnd::Done), id(4));
        bench.queue.passed(Revision(20));
        assert_eq!(bench.queue.watermark(), Revision(20), "nothing is missing any more");
    }
}

#[test]
fn k20_an_action_on_what_is_left_in_the_log_is_heeded_when_that_is_read_again() {
    let mut bench = Bench::bounded(Delivery::EveryChange, 2);
    for revision in 1..=4 {
        bench.request(revision, "a");
    }
    assert!(bench.queue.has(id(4)), "it may be, in the log");
    bench.queue.act(id(10), id(3), RequestAction::Discard, &mut bench.out);
    assert_eq!(bench.run(RunEnd::Done), id(1));
    assert_eq!(bench.queue.wants_reread(), Some(Revision(2)));
    bench.queue.reread_begins();
    for revision in 3..=4 {
        bench.queue.reread(id(revision), "a", revision, &HashSet::new(), &mut bench.out);
    }
    bench.queue.reread_ends(Revision(10));
    let stored = bench.store();
    assert!(stored.contains(&Item::Receipt { request: id(3), outcome: ReceiptOutcome::Discarded }), "{stored:?}");
    assert_eq!(bench.run(RunEnd::Done), id(2));
    while bench.queue.wants_reread().is_some() {
        bench.queue.reread_begins();
        bench.queue.reread(id(4), "a", 4, &HashSet::new(), &mut bench.out);
        bench.queue.reread_ends(Revision(10));
    }
    assert_eq!(bench.run(RunEnd::Done), id(4));
}

#[test]
fn k49_what_is_left_in_the_log_behind_a_dead_letter_is_handed_over_too() {
    let mut bench = Bench::bounded(Delivery::EveryChange, 3);
    bench.queue.retry.attempts = Some(1);
    for revision in 1..=20 {
        bench.request(revision, "a");
    }
    assert_eq!(bench.run(failed()), id(1));
    let mut stored = Vec::new();
    for _ in 0..20 {
        bench.queue.empty(500, &mut bench.out);
        stored.extend(bench.store());
        if let Some(after) = bench.queue.wants_reread() {
            bench.queue.reread_begins();
            for revision in after.0 + 1..=20 {
                bench.queue.reread(id(revision), "a", revision, &HashSet::new(), &mut bench.out);
            }
            bench.queue.reread_ends(Revision(20));
        }
    }
    assert!(!bench.queue.is_missing_some());
    assert_eq!(bench.queue.drain_all().len(), 20);
    assert!(stored.len() >= 17, "copied, so that they take no room: {stored:?}");
}

#[test]
fn k49_nothing_starts_in_a_slot_of_which_something_has_been_handed_over() {
    for (bound, at_rest) in [(100, 0), (2, 2)] {
        let mut queue = SlotQueue::loading(Delivery::EveryChange, policy(Some(3)), bound);
        let mut out = Vec::new();
        for revision in 1..=4 {
            queue.load_handed_over(id(revision));
        }
        for revision in 1..=9 {
            queue.request(id(revision), "a", revision, &mut out);
        }
        queue.activate(NOW, Revision(9), true, &mut out);
        let mut bench = Bench { queue, out, now: NOW };
        assert!(bench.start().is_none());
        assert!(!bench.queue.may_have_something_to_start() && bench.queue.ready() == 0);
        let mut parked = 0;
        while bench.queue.is_missing_some() {
            bench.queue.empty(500, &mut bench.out);
            let stored = bench.store();
            parked += stored.len();
            let Some(after) = bench.queue.wants_reread() else {
                assert!(!stored.is_empty(), "it stands still with something missing");
                continue;
            };
            bench.queue.reread_begins();
            for revision in after.0 + 1..=9 {
                bench.queue.reread(id(revision), "a", revision, &HashSet::new(), &mut bench.out);
            }
            bench.queue.reread_ends(Revision(9));
            assert!(bench.start().is_none());
        }
        assert!(parked >= at_rest);
        assert!(bench.queue.is_quiet());
        let left = bench.queue.drain_all().into_iter().map(|(_, item)| match item {
            Item::Receipt { request, .. } | Item::Exception { request, .. } => request,
        });
        let left: Vec<RequestId> = left.collect();
        assert_eq!(left, (5..=9).map(id).collect::<Vec<_>>());
    }
}

#[test]
fn k47_what_was_left_out_while_the_log_was_read_again_is_read_once_more() {
    let mut bench = Bench::bounded(Delivery::EveryChange, 1);
    bench.request(1, "a");
    bench.request(2, "b");
    assert_eq!(bench.run(RunEnd::Done), id(1));
    assert_eq!(bench.queue.wants_reread(), Some(Revision(1)));
    bench.queue.reread_begins();
    bench.request(3, "c");
    // Somebody had finished the other one, so the pass finds nothing to take in.
    bench.queue.reread(id(2), "b", 2, &HashSet::from([id(2)]), &mut bench.out);
    bench.queue.reread_ends(Revision(2));
    assert_eq!(bench.queue.wants_reread(), Some(Revision(2)));
    bench.queue.reread_begins();
    bench.queue.reread(id(3), "c", 3, &HashSet::new(), &mut bench.out);
    bench.queue.reread_ends(Revision(3));
    assert_eq!(bench.run(RunEnd::Done), id(3));
}

#[test]
fn k51_a_request_whose_owners_die_gets_start_marks_and_then_is_dead() {
    let load = |deaths: u32, state: ExceptionState, crashed| {
        let mut queue = SlotQueue::loading(Delivery::EveryChange, policy(Some(3)), 100);
        let mut out = Vec::new();
        if deaths > 0 {
            queue.load_exception(id(1), "killer", state, (0, deaths), None, 1);
        } else {
            queue.request(id(1), "killer", 1, &mut out);
        }
        queue.activate(NOW, Revision(9), crashed, &mut out);
        Bench { queue, out, now: NOW }
    };
    // Released in order: no suspicion, no mark.
    let mut bench = load(0, ExceptionState::Started, false);
    assert!(bench.start().is_some() && bench.out.is_empty());
    // After a crash it is marked before it starts.
    for deaths in 0..DEATHS_MAX - 1 {
        let mut bench = load(deaths, ExceptionState::Started, true);
        assert!(bench.start().is_none());
        let stored = bench.store();
        let marked = deaths + 1;
        assert!(
            matches!(&stored[0], Item::Exception { state: ExceptionState::Started, deaths, .. } if *deaths == marked)
        );
        let run = bench.start().unwrap();
        bench.end(&run, RunEnd::Done);
        assert_eq!(bench.queue.isolated(), 0);
    }
    let mut bench = load(DEATHS_MAX - 1, ExceptionState::Started, true);
    let stored = bench.store();
    assert!(matches!(&stored[0], Item::Exception { state: ExceptionState::Dead, error: Some(_), .. }), "{stored:?}");
    assert!(bench.start().is_none());
}

#[test]
fn k51_suspects_of_several_deaths_run_one_at_a_time() {
    let mut queue = SlotQueue::loading(Delivery::EveryChange, policy(Some(3)), 100);
    let mut out = Vec::new();
    for key in 1..=3 {
        queue.load_exception(id(key), &format!("k{key}"), ExceptionState::Started, (0, 2), None, key);
    }
    queue.activate(NOW, Revision(9), true, &mut out);
    let mut bench = Bench { queue, out, now: NOW };
    for _ in 0..3 {
        assert!(bench.start().is_none());
        assert_eq!(bench.queue.isolated(), 1);
        bench.store();
        let run = bench.queue.start(HEAD, false, &mut bench.out).expect("the one that is marked");
        assert!(bench.queue.start(HEAD, false, &mut bench.out).is_none());
        bench.end(&run, RunEnd::Done);
        bench.store();
        assert_eq!(bench.queue.isolated(), 0);
    }
    assert!(bench.start().is_none());
}

#[test]
fn g6_a_request_waits_until_its_revision_is_applied() {
    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(7, "a");
    bench.request(5, "b");
    assert_eq!(bench.start_at(Revision(6)).unwrap().request, id(5));
    assert!(bench.start_at(Revision(6)).is_none());
    assert_eq!(bench.start_at(Revision(7)).unwrap().request, id(7));
}

/// One step of a random history. What was sent last may become durable first, since batches overtake each other; what is
/// committed together with writes may be refused.
#[derive(Debug, Clone)]
enum Step {
    Request { key: u8 },
    Start,
    End { which: usize, how: u8 },
    Store { most: usize },
    StoreLast,
    Commit { which: usize, refused: bool },
    Park,
    Wake,
    Reread,
    Act { target: u64, action: u8 },
    Bound { to: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_u8..6).prop_map(|key| Step::Request { key }),
        5 => Just(Step::Start),
        4 => (any::<usize>(), 0_u8..8).prop_map(|(which, how)| Step::End { which, how }),
        4 => (0_usize..6).prop_map(|most| Step::Store { most }),
        2 => Just(Step::StoreLast),
        2 => (any::<usize>(), proptest::bool::weighted(0.2)).prop_map(|(which, refused)| Step::Commit { which, refused }),
        2 => Just(Step::Park),
        1 => Just(Step::Wake),
        2 => Just(Step::Reread),
        1 => (1_u64..200, 0_u8..3).prop_map(|(target, action)| Step::Act { target, action }),
        1 => (1_usize..20).prop_map(|to| Step::Bound { to }),
    ];
    proptest::collection::vec(step, 1..250)
}

/// The log, and what is durable of it: all that a naive reader needs.
#[derive(Default)]
struct Model {
    log: BTreeMap<RequestId, String>,
    receipts: BTreeMap<RequestId, ReceiptOutcome>,
    exceptions: BTreeSet<RequestId>,
    let_go: BTreeSet<RequestId>,
    interrupted: BTreeSet<RequestId>,
    started: BTreeMap<String, Vec<RequestId>>,
    running: Vec<(Started<u64>, Revision)>,
    committing: Vec<Committing>,
    seen: BTreeMap<String, Revision>,
}

/// A run's end on its way together with its writes.
struct Committing {
    run: Started<u64>,
    snapshot: Revision,
    sent: Vec<RequestId>,
    retry_at: Option<Timestamp>,
}

impl Model {
    fn has_seen(&mut self, key: &str, snapshot: Revision) {
        let seen = self.seen.entry(key.to_owned()).or_default();
        *seen = (*seen).max(snapshot);
    }

    /// An item becomes durable.
    fn store(&mut self, item: &Item<u64>) -> Result<(), TestCaseError> {
        match item {
            Item::Receipt { request, outcome } => {
                let twice = self.receipts.insert(*request, *outcome);
                prop_assert!(twice.is_none(), "two receipts of {}", request);
                self.exceptions.remove(request);
            }
            // A receipt that is there already wins.
            Item::Exception { request, state, .. } => {
                let finished = self.receipts.contains_key(request);
                prop_assert!(!finished || *state == ExceptionState::Parked, "{} is finished", request);
                if !finished {
                    self.exceptions.insert(*request);
                }
            }
        }
        Ok(())
    }

    /// A run's end becomes durable together with its writes: what was sent, whatever has come up since.
    fn commit(&mut self, committing: &Committing) -> Result<(), TestCaseError> {
        let Committing { run, snapshot, sent, retry_at } = committing;
        let held = sent.last().filter(|_| retry_at.is_some());
        for request in sent.iter().filter(|request| Some(*request) != held) {
            let done = *request == run.request;
            let outcome = if done { ReceiptOutcome::Done } else { ReceiptOutcome::Coalesced };
            self.store(&Item::Receipt { request: *request, outcome })?;
        }
        if let Some(held) = held {
            self.exceptions.insert(*held);
        } else {
            self.has_seen(&run.name, *snapshot);
        }
        Ok(())
    }
}

fn history(delivery: Delivery, bound: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut bench = Bench::bounded(delivery, bound);
    let mut highest_bound = bound;
    let mut model = Model::default();
    let mut revision = 0_u64;
    let mut waiting: VecDeque<(Item<u64>, Ticket)> = VecDeque::new();
    let mut rereading: Option<Vec<(RequestId, String)>> = None;
    let settle_some =
        |bench: &mut Bench, model: &mut Model, waiting: &mut VecDeque<(Item<u64>, Ticket)>, most: usize| {
            for _ in 0..most {
                let Some((item, ticket)) = waiting.pop_front() else { break };
                model.store(&item)?;
                bench.queue.settled(ticket, &mut bench.out);
            }
            Ok::<(), TestCaseError>(())
        };
    for step in steps {
        match step {
            Step::Request { key } => {
                revision += 1;
                let name = format!("k{key}");
                model.log.insert(id(revision), name.clone());
                bench.request(revision, &name);
            }
            Step::Start => {
                if let Some(run) = bench.start_at(Revision(revision)) {
                    let name = run.name.to_string();
                    let others = model.running.iter().any(|(going, _)| *going.name == *name)
                        || model.committing.iter().any(|committing| *committing.run.name == *name);
                    prop_assert!(!others, "two runs of {}", name);
                    prop_assert!(!model.receipts.contains_key(&run.request), "{} ran again", run.request);
                    let before = model.started.entry(name.clone()).or_default();
                    // A run may only fall back behind one that was interrupted, and then let go of or left in the log.
                    let fine =
                        before.last().is_none_or(|last| *last <= run.request || model.interrupted.contains(last));
                    prop_assert!(fine, "{} fell back", name);
                    if delivery == Delivery::EveryChange {
                        // Everything of the key before it is finished. What an operator let go of may be on its way to be.
                        let on_its_way = |id: &RequestId| {
                            let receipt = |item: &Item<u64>| match item {
                                Item::Receipt { request, .. } => request == id,
                                Item::Exception { .. } => false,
                            };
                            model.let_go.contains(id) && waiting.iter().any(|(item, _)| receipt(item))
                        };
                        let unfinished = model.log.iter().find(|(id, key)| {
                            let before = **key == name && **id < run.request;
                            before && !model.receipts.contains_key(id) && !on_its_way(id)
                        });
                        prop_assert!(unfinished.is_none(), "{} overtook {:?}", run.request, unfinished);
                    }
                    before.push(run.request);
                    model.running.push((run, Revision(revision)));
                }
            }
            Step::End { which, how } => {
                if !model.running.is_empty() {
                    let (run, snapshot) = model.running.remove(which % model.running.len());
                    let end = match how {
                        0 => failed(),
                        1 => RunEnd::RetryAt(bench.now.after(Duration::from_secs(5))),
                        2 => RunEnd::Interrupted,
                        _ => RunEnd::Done,
                    };
                    if end == RunEnd::Interrupted {
                        model.interrupted.insert(run.request);
                    }
                    let retry_at = (how == 4).then(|| bench.now.after(Duration::from_secs(5)));
                    let with_writes = matches!(how, 3 | 4);
                    if with_writes && let Some(sent) = bench.queue.commit_begins(run.key, run.run) {
                        model.committing.push(Committing { run, snapshot, sent, retry_at });
                    } else {
                        if end == RunEnd::Done {
                            model.has_seen(&run.name, snapshot);
                        }
                        bench.end(&run, end);
                    }
                }
            }
            Step::Store { most } => settle_some(&mut bench, &mut model, &mut waiting, most)?,
            Step::StoreLast => {
                if let Some(last) = waiting.pop_back() {
                    waiting.push_front(last);
                    settle_some(&mut bench, &mut model, &mut waiting, 1)?;
                }
            }
            Step::Commit { which, refused } => {
                if !model.committing.is_empty() {
                    let committing = model.committing.remove(which % model.committing.len());
                    if refused {
                        bench.end(&committing.run, failed());
                    } else {
                        model.commit(&committing)?;
                        let (key, run) = (committing.run.key, committing.run.run);
                        bench.queue.committed(key, run, committing.retry_at, &mut bench.out);
                    }
                }
            }
            Step::Park => bench.queue.park(Revision(revision), 3, &mut bench.out),
            Step::Bound { to } => {
                bench.queue.set_bound(to);
                highest_bound = highest_bound.max(to);
            }
            Step::Wake => {
                bench.now = bench.now.after(Duration::from_secs(10));
                bench.queue.wake(bench.now);
            }
            Step::Act { target, action } => {
                revision += 1;
                let action = match action {
                    0 => RequestAction::Retry,
                    1 => RequestAction::Discard,
                    _ => RequestAction::Cancel,
                };
                if bench.queue.has(id(target)) {
                    if action != RequestAction::Retry {
                        model.let_go.insert(id(target));
                    }
                    bench.queue.act(id(revision), id(target), action, &mut bench.out);
                }
                bench.queue.passed(Revision(revision));
            }
            Step::Reread => match rereading.take() {
                None => {
                    if let Some(after) = bench.queue.wants_reread() {
                        bench.queue.reread_begins();
                        // The page as it is read now, handed in later.
                        let page = model.log.range(id(after.0 + 1)..).map(|(id, key)| (*id, key.clone())).collect();
                        rereading = Some(page);
                    }
                }
                Some(page) => {
                    let finished: HashSet<RequestId> = model.receipts.keys().copied().collect();
                    let read_to = page.last().map_or(Revision(revision), |(id, _)| id.revision);
                    for (id, key) in page {
                        bench.queue.reread(id, &key, id.revision.0, &finished, &mut bench.out);
                    }
                    bench.queue.reread_ends(read_to);
                }
            },
        }
        for command in std::mem::take(&mut bench.out) {
            if let Command::Settle { item, ticket } = command {
                // One exception of a request may land after another that was sent later.
                let of = |item: &Item<u64>| match item {
                    Item::Exception { request, .. } => Some(*request),
                    Item::Receipt { .. } => None,
                };
                let twice = of(&item).is_some() && waiting.iter().any(|(other, _)| of(other) == of(&item));
                prop_assert!(!twice, "two exceptions of {:?} are on their way", of(&item));
                waiting.push_back((item, ticket));
            }
        }
        let watermark = bench.queue.watermark();
        let below = model
            .log
            .range(..id(watermark.0 + 1))
            .find(|(id, _)| !model.receipts.contains_key(id) && !model.exceptions.contains(id));
        prop_assert!(below.is_none(), "the watermark {} is above {:?}", watermark, below);
        prop_assert!(bench.queue.len() <= highest_bound, "{} in memory", bench.queue.len());
    }
    // Whatever is left comes to its end in time.
    for _ in 0..10_000 {
        for command in std::mem::take(&mut bench.out) {
            if let Command::Settle { item, ticket } = command {
                waiting.push_back((item, ticket));
            }
        }
        settle_some(&mut bench, &mut model, &mut waiting, usize::MAX)?;
        for committing in std::mem::take(&mut model.committing) {
            model.commit(&committing)?;
            let (key, run) = (committing.run.key, committing.run.run);
            bench.queue.committed(key, run, committing.retry_at, &mut bench.out);
        }
        for (run, snapshot) in std::mem::take(&mut model.running) {
            model.has_seen(&run.name, snapshot);
            bench.end(&run, RunEnd::Done);
        }
        if let Some(page) = rereading.take() {
            let finished: HashSet<RequestId> = model.receipts.keys().copied().collect();
            let read_to = page.last().map_or(Revision(revision), |(id, _)| id.revision);
            for (id, key) in page {
                bench.queue.reread(id, &key, id.revision.0, &finished, &mut bench.out);
            }
            bench.queue.reread_ends(read_to);
        } else if let Some(after) = bench.queue.wants_reread() {
            bench.queue.reread_begins();
            rereading = Some(model.log.range(id(after.0 + 1)..).map(|(id, key)| (*id, key.clone())).collect());
        }
        bench.now = bench.now.after(Duration::from_secs(100));
        bench.queue.wake(bench.now);
        while let Some(run) = bench.start_at(Revision(revision)) {
            model.running.push((run, Revision(revision)));
        }
        if model.running.is_empty() && bench.out.is_empty() && waiting.is_empty() && rereading.is_none() {
            break;
        }
    }
    let dead: BTreeSet<&String> = model.exceptions.iter().filter_map(|id| model.log.get(id)).collect();
    for (request, key) in &model.log {
        let paused = dead.contains(key);
        prop_assert!(model.receipts.contains_key(request) || paused, "{} of {} was lost", request, key);
        if model.receipts.get(request) == Some(&ReceiptOutcome::Coalesced) && !paused {
            let covered = model.seen.get(key).is_some_and(|seen| *seen >= request.revision);
            let later_let_go = model.let_go.iter().any(|gone| gone > request && model.log.get(gone) == Some(key));
            prop_assert!(covered || later_let_go, "{} of {} was coalesced into nothing", request, key);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn k13_whatever_happens_every_change_runs_in_order_and_none_is_lost(steps in steps()) {
        history(Delivery::EveryChange, 10_000, steps)?;
    }

    #[test]
    fn k15_whatever_happens_latest_state_sees_the_last_change_of_every_key(steps in steps()) {
        history(Delivery::LatestState, 10_000, steps)?;
    }

    #[test]
    fn k50_with_little_memory_nothing_is_lost_and_nothing_out_of_order(
        steps in steps(),
        bound in 1_usize..12,
        latest in any::<bool>(),
    ) {
        let delivery = if latest { Delivery::LatestState } else { Delivery::EveryChange };
        history(delivery, bound, steps)?;
    }
}
