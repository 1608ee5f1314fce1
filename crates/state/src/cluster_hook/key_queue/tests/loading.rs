//! What a new owner finds of the one before it.

use std::collections::BTreeSet;

use super::*;

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
