//! X1: each planted fault is found and named, and clean histories pass.

use std::sync::Arc;

use uuid::Uuid;

use super::super::fence;
use super::*;
use crate::driver::{LogRow, Meta, Receipt, SlotRow, StoredDocument, StoredState};
use crate::path::Path;
use crate::revision::{SubmissionId, Timestamp};

const HOOK: HookNumber = HookNumber(1);

fn id(revision: u64) -> RequestId {
    RequestId { revision: Revision(revision), sequence: 0, hook: HOOK }
}

fn server_id(server: usize) -> ServerId {
    ServerId(Uuid::from_u128(server as u128 + 1))
}

/// A history being told.
struct Story {
    lines: Vec<Line>,
    log: Vec<Arc<LogRow>>,
    receipts: Vec<Receipt>,
    runs: u64,
    token: u64,
    delivery: Delivery,
    expectation: Expectation,
}

impl Story {
    fn new() -> Story {
        let mut expectation = Expectation::default();
        expectation.versions.insert(HOOK, 1);
        for server in 0..3 {
            expectation.declared.insert(format!("server-{server}"), HashMap::from([(HOOK, 1)]));
        }
        Story {
            lines: Vec::new(),
            log: Vec::new(),
            receipts: Vec::new(),
            runs: 0,
            token: 0,
            delivery: Delivery::EveryChange,
            expectation,
        }
    }

    fn say(&mut self, server: usize, event: HistoryEvent) -> usize {
        let at = self.lines.len() as u64;
        self.lines.push(Line { at, server: format!("server-{server}"), event });
        self.lines.len() - 1
    }

    /// The next change, of this key.
    fn change(&mut self, key: &str) -> RequestId {
        let revision = Revision(self.log.len() as u64 + 1);
        let document = StoredDocument { format: 1, json: "{}".into() };
        let entry = LogEntry::Change {
            path: Path::parse(&format!("/stores/{key}")).unwrap(),
            before: None,
            after: Some(document),
            hooks: vec![HOOK],
        };
        self.log.push(Arc::new(LogRow {
            revision,
            submission: SubmissionId(Uuid::from_u128(u128::from(revision.0))),
            at: Timestamp(0),
            server: "server-0".into(),
            attributes: Arc::default(),
            entries: vec![entry],
        }));
        self.expectation.keys.insert(id(revision.0), key.to_owned());
        id(revision.0)
    }

    fn lease(&mut self, server: usize, slot: u32) -> crate::driver::Fence {
        self.token += 1;
        let fence = fence(HOOK.0, slot, self.token);
        self.say(server, HistoryEvent::SlotLeased { id: server_id(server), fence });
        fence
    }

    fn release(&mut self, server: usize, fence: crate::driver::Fence) {
        self.say(server, HistoryEvent::SlotReleased { fence });
    }

    fn start(&mut self, server: usize, fence: crate::driver::Fence, key: &str, request: RequestId) -> u64 {
        self.start_reading(server, fence, key, request, Revision(self.log.len() as u64))
    }

    fn start_reading(
        &mut self,
        server: usize,
        fence: crate::driver::Fence,
        key: &str,
        request: RequestId,
        snapshot: Revision,
    ) -> u64 {
        self.runs += 1;
        let token = (fence.token.0 << 24) + self.runs;
        let delivery = self.delivery;
        let event = HistoryEvent::RunStarted {
            hook: "hook".to_owned(),
            version: 1,
            delivery,
            key: key.to_owned(),
            fence,
            token,
            request,
            attempt: 1,
            snapshot,
        };
        self.say(server, event);
        token
    }

    fn end(&mut self, server: usize, key: &str, request: RequestId, token: u64) {
        let (hook, key, outcome) = ("hook".to_owned(), key.to_owned(), RunOutcome::Done);
        self.say(server, HistoryEvent::RunEnded { hook, key, token, request, outcome });
    }

    fn receipt(&mut self, server: usize, fence: crate::driver::Fence, request: RequestId) {
        let outcome = ReceiptOutcome::Done;
        self.say(server, HistoryEvent::Receipt { request, fence, outcome, durable: true });
        self.receipts.push(Receipt { request, fence, outcome });
    }

    /// A change that is run and acknowledged.
    fn whole(&mut self, server: usize, fence: crate::driver::Fence, key: &str) -> RequestId {
        let request = self.change(key);
        let token = self.start(server, fence, key, request);
        self.end(server, key, request, token);
        self.receipt(server, fence, request);
        request
    }

    fn rules(mut self) -> Vec<Rule> {
        let mut slots: HashMap<SlotId, SlotRow> = HashMap::new();
        for line in &self.lines {
            if let HistoryEvent::SlotLeased { id, fence } = &line.event {
                let (slot, token) = (fence.slot, fence.token);
                slots.insert(slot, SlotRow { slot, owner: Some(*id), token, watermark: Revision(0) });
            }
        }
        let empty = StoredState::empty();
        self.expectation.stored = Some(StoredState {
            meta: Meta { head: Revision(self.log.len() as u64), ..empty.meta.clone() },
            token_counter: SlotToken(self.token),
            log: self.log,
            receipts: self.receipts,
            slots: slots.into_values().collect(),
            ..empty
        });
        let mut rules: Vec<Rule> =
            check(&self.lines, &self.expectation).into_iter().map(|violation| violation.rule).collect();
        rules.dedup();
        rules
    }
}

#[test]
fn x01_a_clean_history_passes() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    for round in 0..50 {
        story.whole(0, fence, &format!("k{}", round % 7));
    }
    assert_eq!(story.rules(), []);
}

#[test]
fn x01_a_clean_history_with_a_thousand_hand_overs_passes() {
    let mut story = Story::new();
    for round in 0..1_000 {
        let server = round % 3;
        let fence = story.lease(server, 0);
        story.whole(server, fence, "a");
        story.whole(server, fence, "b");
        story.release(server, fence);
    }
    assert_eq!(story.rules(), []);
}

#[test]
fn x01_a_run_that_is_repeated_after_the_end_of_a_lease_is_clean() {
    let mut story = Story::new();
    let old = story.lease(0, 0);
    let request = story.change("a");
    let token = story.start(0, old, "a", request);
    let new = story.lease(1, 0);
    let again = story.start(1, new, "a", request);
    story.end(0, "a", request, token);
    story.say(0, HistoryEvent::Receipt { request, fence: old, outcome: ReceiptOutcome::Done, durable: false });
    story.end(1, "a", request, again);
    story.receipt(1, new, request);
    assert_eq!(story.rules(), []);
}

#[test]
fn x01_lost_run() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    story.whole(0, fence, "a");
    story.change("a");
    assert_eq!(story.rules(), [Rule::LostRun]);
}

#[test]
fn x01_a_coalesced_request_that_no_run_saw_is_a_lost_run() {
    let mut story = Story::new();
    story.delivery = Delivery::LatestState;
    let fence = story.lease(0, 0);
    let first = story.whole(0, fence, "a");
    let second = story.change("a");
    assert!(second > first);
    let outcome = ReceiptOutcome::Coalesced;
    story.say(0, HistoryEvent::Receipt { request: second, fence, outcome, durable: true });
    story.receipts.push(Receipt { request: second, fence, outcome });
    assert_eq!(story.rules(), [Rule::LostRun]);
}

#[test]
fn x01_phantom() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    story.whole(0, fence, "a");
    let nobody_asked = RequestId { revision: Revision(1), sequence: 7, hook: HOOK };
    let token = story.start(0, fence, "b", nobody_asked);
    story.end(0, "b", nobody_asked, token);
    assert_eq!(story.rules(), [Rule::Phantom]);
}

#[test]
fn x01_duplicate_without_a_fault() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    let request = story.whole(0, fence, "a");
    let token = story.start(0, fence, "a", request);
    story.end(0, "a", request, token);
    assert_eq!(story.rules(), [Rule::Duplicate]);
}

#[test]
fn x01_a_duplicate_over_a_hand_over_in_order_is_found_too() {
    let mut story = Story::new();
    let old = story.lease(0, 0);
    let request = story.whole(0, old, "a");
    story.release(0, old);
    let new = story.lease(1, 0);
    let token = story.start(1, new, "a", request);
    story.end(1, "a", request, token);
    assert_eq!(story.rules(), [Rule::Duplicate]);
}

#[test]
fn x01_overlap() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    let (first, second) = (story.change("a"), story.change("a"));
    let one = story.start(0, fence, "a", first);
    let two = story.start(0, fence, "a", second);
    for (request, token) in [(first, one), (second, two)] {
        story.end(0, "a", request, token);
        story.receipt(0, fence, request);
    }
    assert_eq!(story.rules(), [Rule::Overlap]);
}

#[test]
fn x01_falling_revision() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    let (first, second) = (story.change("a"), story.change("a"));
    for request in [second, first] {
        let token = story.start(0, fence, "a", request);
        story.end(0, "a", request, token);
        story.receipt(0, fence, request);
    }
    assert_eq!(story.rules(), [Rule::FallingRevision]);
}

#[test]
fn x01_falling_token() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    story.runs = 10;
    story.whole(0, fence, "a");
    story.runs = 0;
    story.whole(0, fence, "a");
    assert_eq!(story.rules(), [Rule::FallingToken]);
}

#[test]
fn x01_early_snapshot() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    story.whole(0, fence, "a");
    let request = story.change("a");
    let token = story.start_reading(0, fence, "a", request, Revision(1));
    story.end(0, "a", request, token);
    story.receipt(0, fence, request);
    assert_eq!(story.rules(), [Rule::EarlySnapshot]);
}

#[test]
fn x01_stale_effect() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    let request = story.change("a");
    story.receipt(0, fence, request);
    story.whole(0, fence, "b");
    assert_eq!(story.rules(), [Rule::StaleEffect]);
}

#[test]
fn x01_stale_record() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    let request = story.whole(0, fence, "a");
    story.expectation.records.push((request, (fence.token.0 << 24) + 1));
    story.expectation.records.push((request, (99 << 24) + 1));
    assert_eq!(story.rules(), [Rule::StaleRecord]);
}

#[test]
fn x01_receipt_under_a_lost_token() {
    let mut story = Story::new();
    let old = story.lease(0, 0);
    let request = story.change("a");
    let token = story.start(0, old, "a", request);
    let new = story.lease(1, 0);
    let again = story.start(1, new, "a", request);
    story.end(0, "a", request, token);
    story.receipt(0, old, request);
    story.end(1, "a", request, again);
    assert_eq!(story.rules(), [Rule::ReceiptUnderLostToken]);
}

#[test]
fn x01_second_receipt() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    let request = story.whole(0, fence, "a");
    story.say(0, HistoryEvent::Receipt { request, fence, outcome: ReceiptOutcome::Done, durable: true });
    assert_eq!(story.rules(), [Rule::SecondReceipt]);
}

#[test]
fn x01_start_before_the_receipt_of_the_one_before() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    let (first, second) = (story.change("a"), story.change("a"));
    let one = story.start(0, fence, "a", first);
    story.end(0, "a", first, one);
    let two = story.start(0, fence, "a", second);
    story.receipt(0, fence, first);
    story.end(0, "a", second, two);
    story.receipt(0, fence, second);
    assert_eq!(story.rules(), [Rule::StartBeforeReceipt]);
}

#[test]
fn x01_start_after_a_release() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    story.whole(0, fence, "a");
    story.release(0, fence);
    story.whole(0, fence, "a");
    assert_eq!(story.rules(), [Rule::StartAfterRelease]);
}

#[test]
fn x01_token_given_twice() {
    let mut story = Story::new();
    let first = story.lease(0, 0);
    story.whole(0, first, "a");
    story.release(0, first);
    story.token -= 1;
    let second = story.lease(1, 1);
    story.whole(1, second, "b");
    assert_eq!(story.rules(), [Rule::TokenGivenTwice]);
}

#[test]
fn x01_slot_owned_by_a_server_that_does_not_know_the_hook() {
    let mut story = Story::new();
    story.expectation.declared.insert("server-2".to_owned(), HashMap::from([(HOOK, 0)]));
    story.lease(2, 0);
    assert_eq!(story.rules(), [Rule::SlotOfUnknownHook]);
}

#[test]
fn x01_unknown_hook_run() {
    let mut story = Story::new();
    let fence = story.lease(0, 0);
    let request = story.change("a");
    let token = story.start(9, fence, "a", request);
    story.end(9, "a", request, token);
    story.receipt(0, fence, request);
    assert_eq!(story.rules(), [Rule::UnknownHookRun]);
}

#[test]
fn x01_cap_exceeded() {
    let mut story = Story::new();
    story.expectation.caps.insert(HOOK, 1);
    let fence = story.lease(0, 0);
    let (first, second) = (story.change("a"), story.change("b"));
    let one = story.start(0, fence, "a", first);
    let two = story.start(0, fence, "b", second);
    for (key, request, token) in [("a", first, one), ("b", second, two)] {
        story.end(0, key, request, token);
        story.receipt(0, fence, request);
    }
    assert_eq!(story.rules(), [Rule::CapExceeded]);
}

#[test]
fn x01_a_cap_does_not_count_the_runs_of_a_server_whose_lease_is_over() {
    let mut story = Story::new();
    story.expectation.caps.insert(HOOK, 1);
    let (dead, passes_on) = (story.lease(0, 1), story.lease(0, 2));
    let (a, b) = (story.change("a"), story.change("b"));
    story.start(0, dead, "a", a);
    // The slot in which it ran has not passed on yet, and another has: it was not given up, so the lease has ended.
    let fence = story.lease(1, passes_on.slot.slot);
    let token = story.start(1, fence, "b", b);
    story.end(1, "b", b, token);
    story.receipt(1, fence, b);
    assert_eq!(story.rules(), [Rule::LostRun]);
}

#[test]
fn x01_a_cap_counts_the_runs_of_a_server_that_gave_up_another_slot() {
    let mut story = Story::new();
    story.expectation.caps.insert(HOOK, 1);
    let (runs, passes_on) = (story.lease(0, 1), story.lease(0, 2));
    let (a, b) = (story.change("a"), story.change("b"));
    story.start(0, runs, "a", a);
    story.release(0, passes_on);
    let fence = story.lease(1, passes_on.slot.slot);
    let token = story.start(1, fence, "b", b);
    story.end(1, "b", b, token);
    story.receipt(1, fence, b);
    assert_eq!(story.rules(), [Rule::LostRun, Rule::CapExceeded]);
}

#[test]
fn x01_too_many_attempts() {
    let mut story = Story::new();
    story.expectation.attempts.insert(HOOK, 0);
    let fence = story.lease(0, 0);
    story.whole(0, fence, "a");
    assert_eq!(story.rules(), [Rule::TooManyAttempts]);
}

#[path = "told_tests.rs"]
mod told;
