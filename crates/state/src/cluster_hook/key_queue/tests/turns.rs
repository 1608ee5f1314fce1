//! What starts next: the order within a key, and that keys do not hold each other up.

use super::*;

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
fn g6_a_request_waits_until_its_revision_is_applied() {
    let mut bench = Bench::new(Delivery::EveryChange);
    bench.request(7, "a");
    bench.request(5, "b");
    assert_eq!(bench.start_at(Revision(6)).unwrap().request, id(5));
    assert!(bench.start_at(Revision(6)).is_none());
    assert_eq!(bench.start_at(Revision(7)).unwrap().request, id(7));
}
