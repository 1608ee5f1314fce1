//! Runs that failed, were interrupted, or ask to be called later: pauses, attempts, dead letters.

use super::*;

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
fn k30_an_interrupted_run_counts_no_attempt() {
    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(1, "a");
    let run = bench.start().unwrap();
    bench.end(&run, RunEnd::Interrupted);
    assert!(bench.store().is_empty());
    assert_eq!(bench.start().unwrap().attempt, 1);
}

#[test]
fn k42_delays_grow_with_jitter_to_their_cap_and_stay_there() {
    let policy = policy(None);
    let delays: Vec<u128> = (1..=6).map(|failed| policy.delay(failed, 0.0).as_millis()).collect();
    assert_eq!(delays, [1_000, 2_000, 4_000, 8_000, 8_000, 8_000]);
    assert_eq!(policy.delay(100, 1.0).as_millis(), 6_000);
    assert!(policy.delay(3, 0.5) < policy.delay(3, 0.0));
}
