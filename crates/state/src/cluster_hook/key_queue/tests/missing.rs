//! A bounded memory: what does not fit is left in the log, and read again.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

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
