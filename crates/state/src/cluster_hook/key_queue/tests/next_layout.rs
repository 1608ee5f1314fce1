//! A slot whose requests go to the next layout.

use super::*;

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
