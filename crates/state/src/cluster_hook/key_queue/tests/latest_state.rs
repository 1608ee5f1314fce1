//! `LatestState`: what a run covers, and what is left to the next one.

use super::*;

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
