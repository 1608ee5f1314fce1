//! Copies out of the log, and the low watermark that they let rise.

use super::*;

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
