//! Requests that an operator cancels, whatever is under way just then.

use super::*;

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
