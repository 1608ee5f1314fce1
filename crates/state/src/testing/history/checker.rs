//! Finds in a history what should not have happened, and names the lines.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use super::declared::{Declarations, declarations};
use super::registered::{Registered, registered};
use super::{HistoryEvent, Line, RunOutcome};
use crate::cluster_hook::Delivery;
use crate::driver::{
    HookNumber, LogEntry, ReceiptOutcome, RequestAction, RequestId, ServerId, SlotId, SlotToken, StoredState,
};
use crate::revision::Revision;

/// Which rule a violation is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Rule {
    /// G1, G3: a change in scope was never run, and nothing on record says why.
    LostRun,
    /// G2: a run for a request that no committed change made.
    Phantom,
    /// G4: a request started twice without a reason.
    Duplicate,
    /// G5: a request has a durable receipt that no run of its own, and no operator, explains.
    StaleEffect,
    /// G5: a record of a run under a token that did not hold.
    StaleRecord,
    /// G5: a receipt was accepted under a token that no longer held.
    ReceiptUnderLostToken,
    /// G5: a request was acknowledged twice.
    SecondReceipt,
    /// G6: a run's snapshot is before its request.
    EarlySnapshot,
    /// G7: two runs of one key under tokens that hold overlap.
    Overlap,
    /// G7: the requests of a key were not run in the order of their revisions.
    FallingRevision,
    /// G7: a key's fencing tokens fell.
    FallingToken,
    /// G7: a run started before it was durable how the one before it ended.
    StartBeforeReceipt,
    /// A run started under a token after its slot was released or lost.
    StartAfterRelease,
    /// A token was given out twice, or not above the ones before.
    TokenGivenTwice,
    /// G10: a slot is leased by a server that does not run the hook, or only in a lower definition version.
    SlotOfUnknownHook,
    /// G10: a server ran a hook that it does not run.
    UnknownHookRun,
    /// More runs at once than the hook's cap allows in the cluster, or a server declared.
    CapExceeded,
    /// G9: more attempts than the hook allows.
    TooManyAttempts,
    /// G8: slots, or the keys that ran, are not spread evenly over the servers that run the hook.
    Uneven,
}

/// One violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryViolation {
    /// The rule.
    pub rule: Rule,
    /// What was found.
    pub what: String,
    /// The places of the lines in the history.
    pub lines: Vec<usize>,
}

impl fmt::Display for HistoryViolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {} (lines {:?})", self.rule, self.what, self.lines)
    }
}

/// What a history is checked against besides itself. What servers declare of their hooks is taken from the history, and what
/// registrations bound from the stored log; what is named here besides holds as well.
#[derive(Debug, Clone, Default)]
pub struct Expectation {
    /// What is stored at the end. Without it the checks that need it are left out.
    pub stored: Option<StoredState>,
    /// The highest definition version of each hook that each server's code has, by the server's name. Empty: not checked.
    pub declared: HashMap<String, HashMap<HookNumber, u32>>,
    /// How many runs of a hook each server takes at once, by its name.
    pub rooms: HashMap<(String, HookNumber), usize>,
    /// The caps in the cluster.
    pub caps: HashMap<HookNumber, usize>,
    /// The definition version that each hook's registration has.
    pub versions: HashMap<HookNumber, u32>,
    /// How many failed runs make a dead letter; absent for unlimited.
    pub attempts: HashMap<HookNumber, u32>,
    /// The key of each request that the log makes, so that what was coalesced is known.
    pub keys: HashMap<RequestId, String>,
    /// Requests that need not be finished at the end, since they wait.
    pub may_wait: bool,
    /// The fencing tokens that records of runs carry, with the request each; one record per effect.
    pub records: Vec<(RequestId, u64)>,
    /// G8: so long after something joined, left or went wrong slots are spread evenly. None: not looked at.
    pub spread_within: Option<std::time::Duration>,
}

#[derive(Debug, Clone)]
pub(super) struct RunLine {
    pub(super) line: usize,
    pub(super) server: String,
    pub(super) key: (HookNumber, String),
    pub(super) slot: SlotId,
    pub(super) slot_token: SlotToken,
    token: u64,
    pub(super) request: RequestId,
    attempt: u32,
    pub(super) snapshot: Revision,
    pub(super) delivery: Delivery,
    pub(super) ended: Option<(usize, RunOutcome)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Leased { line: usize, until: Option<usize> },
}

/// Checks a history.
#[must_use]
pub fn check(lines: &[Line], expectation: &Expectation) -> Vec<HistoryViolation> {
    let mut checker = Checker {
        lines,
        expectation,
        found: Vec::new(),
        runs: Vec::new(),
        leases: HashMap::new(),
        owners: HashMap::new(),
        outlived: HashMap::new(),
        registered: expectation.stored.as_ref().map(registered).unwrap_or_default(),
        declarations: declarations(lines),
    };
    checker.leases();
    checker.gather_runs();
    checker.starts();
    checker.keys();
    checker.receipts();
    checker.caps();
    checker.spread();
    checker.against_what_is_stored();
    checker.found.sort_by_key(|violation| (violation.rule, violation.lines.clone()));
    checker.found
}

pub(super) struct Checker<'a> {
    pub(super) lines: &'a [Line],
    pub(super) expectation: &'a Expectation,
    found: Vec<HistoryViolation>,
    pub(super) runs: Vec<RunLine>,
    leases: HashMap<(SlotId, SlotToken), Held>,
    /// To whom each token was given.
    pub(super) owners: HashMap<(SlotId, SlotToken), ServerId>,
    /// Where it shows that the lease of a server was over: another has a slot that it had not given up.
    pub(super) outlived: HashMap<ServerId, usize>,
    pub(super) registered: HashMap<HookNumber, Registered>,
    pub(super) declarations: Declarations<'a>,
}

impl Checker<'_> {
    pub(super) fn violation(&mut self, rule: Rule, lines: &[usize], what: String) {
        self.found.push(HistoryViolation { rule, what, lines: lines.to_vec() });
    }

    /// Whether the token held at a line: it was leased before, and not released, lost or passed on.
    pub(super) fn held_at(&self, slot: SlotId, token: SlotToken, line: usize) -> bool {
        match self.leases.get(&(slot, token)) {
            Some(Held::Leased { line: from, until }) => *from <= line && until.is_none_or(|until| line < until),
            None => true,
        }
    }

    fn leases(&mut self) {
        let lines = self.lines;
        let mut last: HashMap<SlotId, (SlotToken, usize)> = HashMap::new();
        let mut owned: HashMap<SlotId, ServerId> = HashMap::new();
        let mut servers: HashMap<ServerId, Vec<(SlotId, SlotToken)>> = HashMap::new();
        let mut tokens: HashMap<SlotToken, usize> = HashMap::new();
        for (place, line) in lines.iter().enumerate() {
            match &line.event {
                HistoryEvent::SlotLeased { id, fence } => {
                    if let Some(earlier) = tokens.insert(fence.token, place) {
                        let what = format!("token {} was given out twice", fence.token.0);
                        self.violation(Rule::TokenGivenTwice, &[earlier, place], what);
                    } else if let Some((before, at)) = last.get(&fence.slot).copied()
                        && before >= fence.token
                    {
                        let what = format!("token {} of {:?} is not above {}", fence.token.0, fence.slot, before.0);
                        self.violation(Rule::TokenGivenTwice, &[at, place], what);
                    }
                    if let Some((before, _)) = last.insert(fence.slot, (fence.token, place)) {
                        self.end_lease(fence.slot, before, place);
                    }
                    if let Some(before) = owned.insert(fence.slot, *id).filter(|before| before != id) {
                        self.outlived.entry(before).or_insert(place);
                    }
                    self.owners.insert((fence.slot, fence.token), *id);
                    servers.entry(*id).or_default().push((fence.slot, fence.token));
                    self.leases.insert((fence.slot, fence.token), Held::Leased { line: place, until: None });
                    self.check_declared(Rule::SlotOfUnknownHook, &line.server, fence.slot.hook, place);
                }
                HistoryEvent::SlotReleased { fence } | HistoryEvent::SlotLost { fence } => {
                    self.end_lease(fence.slot, fence.token, place);
                    if last.get(&fence.slot).is_some_and(|(token, _)| *token == fence.token) {
                        owned.remove(&fence.slot);
                    }
                }
                HistoryEvent::LeaseEnded { id } => {
                    for (slot, token) in servers.get(id).cloned().unwrap_or_default() {
                        self.end_lease(slot, token, place);
                    }
                }
                HistoryEvent::RunStarted { .. }
                | HistoryEvent::RunEnded { .. }
                | HistoryEvent::Joined { .. }
                | HistoryEvent::Left { .. }
                | HistoryEvent::Declared { .. }
                | HistoryEvent::Withdrawn { .. }
                | HistoryEvent::Crowded { .. }
                | HistoryEvent::Halted { .. }
                | HistoryEvent::Receipt { .. }
                | HistoryEvent::Held { .. }
                | HistoryEvent::Committed { .. }
                | HistoryEvent::Acted { .. }
                | HistoryEvent::Fault { .. } => {}
            }
        }
    }

    fn end_lease(&mut self, slot: SlotId, token: SlotToken, at: usize) {
        if let Some(Held::Leased { until, .. }) = self.leases.get_mut(&(slot, token)) {
            *until = Some(until.map_or(at, |until| until.min(at)));
        }
    }

    fn gather_runs(&mut self) {
        let mut open: HashMap<(HookNumber, u64, RequestId, String), usize> = HashMap::new();
        for (place, line) in self.lines.iter().enumerate() {
            match &line.event {
                HistoryEvent::RunStarted { delivery, key, fence, token, request, attempt, snapshot, .. } => {
                    open.insert((request.hook, *token, *request, line.server.clone()), self.runs.len());
                    self.runs.push(RunLine {
                        line: place,
                        server: line.server.clone(),
                        key: (request.hook, key.clone()),
                        slot: fence.slot,
                        slot_token: fence.token,
                        token: *token,
                        request: *request,
                        attempt: *attempt,
                        snapshot: *snapshot,
                        delivery: *delivery,
                        ended: None,
                    });
                }
                HistoryEvent::RunEnded { token, request, outcome, .. } => {
                    let id = (request.hook, *token, *request, line.server.clone());
                    if let Some(at) = open.remove(&id) {
                        self.runs[at].ended = Some((place, *outcome));
                    }
                }
                HistoryEvent::Joined { .. }
                | HistoryEvent::Left { .. }
                | HistoryEvent::Declared { .. }
                | HistoryEvent::Withdrawn { .. }
                | HistoryEvent::Crowded { .. }
                | HistoryEvent::Halted { .. }
                | HistoryEvent::SlotLeased { .. }
                | HistoryEvent::SlotReleased { .. }
                | HistoryEvent::SlotLost { .. }
                | HistoryEvent::Receipt { .. }
                | HistoryEvent::Held { .. }
                | HistoryEvent::Committed { .. }
                | HistoryEvent::LeaseEnded { .. }
                | HistoryEvent::Acted { .. }
                | HistoryEvent::Fault { .. } => {}
            }
        }
    }

    /// What each start must satisfy by itself: G6, G9, G10, the slot's lease; and G4.
    fn starts(&mut self) {
        let runs = self.runs.clone();
        let mut retried: HashMap<RequestId, Vec<Revision>> = HashMap::new();
        for (_, request, at) in self.actions().filter(|(action, ..)| *action == RequestAction::Retry) {
            retried.entry(request).or_default().push(at);
        }
        let mut of_request: HashMap<RequestId, Vec<&RunLine>> = HashMap::new();
        for run in &runs {
            if run.snapshot < run.request.revision {
                let what = format!("the run of {} reads revision {}", run.request, run.snapshot);
                self.violation(Rule::EarlySnapshot, &[run.line], what);
            }
            if !self.held_at(run.slot, run.slot_token, run.line) {
                let what = format!("{} started under token {}, which had ended", run.request, run.slot_token.0);
                self.violation(Rule::StartAfterRelease, &[run.line], what);
            }
            self.check_declared(Rule::UnknownHookRun, &run.server, run.request.hook, run.line);
            self.check_version(run);
            let registered = || self.registered.get(&run.request.hook)?.attempts;
            if let Some(bound) = self.expectation.attempts.get(&run.request.hook).copied().or_else(registered)
                && run.attempt > bound
            {
                let what = format!("{} has attempt {}, and {bound} are allowed", run.request, run.attempt);
                self.violation(Rule::TooManyAttempts, &[run.line], what);
            }
            of_request.entry(run.request).or_default().push(run);
        }
        for (request, runs) in of_request {
            for pair in runs.windows(2) {
                let (first, second) = (pair[0], pair[1]);
                let returned = first.ended.is_some_and(|(_, outcome)| outcome != RunOutcome::Done);
                let refused = self.lines[first.line..second.line].iter().any(|line| {
                    matches!(&line.event, HistoryEvent::Receipt { request: of, durable: false, .. } if *of == request)
                });
                // A completion whose writes are refused is a failure too, and the attempts of a letter begin anew.
                let died = self.lines[first.line..second.line].iter().any(|line| {
                    matches!(&line.event, HistoryEvent::Held { request: of, dead: true, durable: true, .. } if *of == request)
                });
                let revived = died && (retried.contains_key(&request) || first.delivery == Delivery::LatestState);
                let rejected = second.attempt > first.attempt || revived || self.was_cancelled(first, second.line);
                let handed_over = first.slot_token != second.slot_token
                    && (first.ended.is_none() || !self.held_at(first.slot, first.slot_token, second.line));
                let was_handed_back =
                    first.ended.is_none_or(|(at, _)| !self.held_at(first.slot, first.slot_token, at) || refused);
                // Who acted writes that down when it has been answered, which may be after the run that it led to.
                let between = |at: &Revision| first.snapshot < *at && *at <= second.snapshot;
                let acted = retried.get(&request).is_some_and(|revisions| revisions.iter().any(between))
                    || self.lines[first.line..second.line]
                        .iter()
                        .any(|line| matches!(&line.event, HistoryEvent::Acted { request: of } if *of == request));
                // A run that ended while its lease held is only to be repeated when its receipt was lost with the lease.
                let lost_receipt = handed_over && !self.has_durable_receipt(request, first.line, second.line);
                if !(returned || rejected || refused || acted || handed_over && was_handed_back || lost_receipt) {
                    let what = format!("{request} started twice without a failure, a hand-back or the end of a lease");
                    self.violation(Rule::Duplicate, &[first.line, second.line], what);
                }
            }
        }
    }

    /// A run for the latest state may be called off by letting go of an older request that it covered: its end is on record
    /// with that one, and what came after it gets another run.
    fn was_cancelled(&self, run: &RunLine, until: usize) -> bool {
        run.delivery == Delivery::LatestState
            && self.lines[run.line..until].iter().any(|line| match &line.event {
                HistoryEvent::Receipt { request, outcome: ReceiptOutcome::Cancelled, durable: true, .. } => {
                    request.hook == run.request.hook
                        && *request <= run.request
                        && self.expectation.keys.get(request) == Some(&run.key.1)
                }
                _ => false,
            })
    }

    fn has_durable_receipt(&self, request: RequestId, from: usize, to: usize) -> bool {
        self.lines[from..to].iter().any(
            |line| matches!(&line.event, HistoryEvent::Receipt { request: of, durable: true, .. } if *of == request),
        )
    }

    /// G7, per key.
    fn keys(&mut self) {
        let mut of_key: BTreeMap<(HookNumber, String), Vec<RunLine>> = BTreeMap::new();
        for run in &self.runs {
            of_key.entry(run.key.clone()).or_default().push(run.clone());
        }
        let mut settled: HashMap<RequestId, Vec<usize>> = HashMap::new();
        for (place, line) in self.lines.iter().enumerate() {
            if let HistoryEvent::Receipt { request, durable: true, .. }
            | HistoryEvent::Held { request, durable: true, .. } = &line.event
            {
                settled.entry(*request).or_default().push(place);
            }
        }
        for (key, runs) in of_key {
            for pair in runs.windows(2) {
                let (first, second) = (&pair[0], &pair[1]);
                if second.token <= first.token {
                    let what = format!("token {} of key {} follows {}", second.token, key.1, first.token);
                    self.violation(Rule::FallingToken, &[first.line, second.line], what);
                }
                // A run for the latest state that was not acknowledged has settled nothing: the next owner may know of fewer
                // of the key's requests than it covered.
                let settles = |line: &Line| match &line.event {
                    HistoryEvent::Receipt { request, outcome, durable: true, .. } => {
                        *request == first.request && matches!(outcome, ReceiptOutcome::Done | ReceiptOutcome::Coalesced)
                    }
                    HistoryEvent::Held { request, durable: true, .. } => *request == first.request,
                    _ => false,
                };
                let unsettled = first.delivery == Delivery::LatestState
                    && first.slot_token != second.slot_token
                    && !self.lines[first.line..second.line].iter().any(settles);
                if second.request < first.request && !unsettled {
                    let what = format!("key {}: {} ran after {}", key.1, second.request, first.request);
                    self.violation(Rule::FallingRevision, &[first.line, second.line], what);
                }
                let held = self.held_at(first.slot, first.slot_token, second.line);
                let same_lease = first.slot_token == second.slot_token;
                let overlaps = first.ended.is_none_or(|(ended, _)| ended > second.line);
                if overlaps && held {
                    let what = format!("key {}: {} started while {} ran", key.1, second.request, first.request);
                    self.violation(Rule::Overlap, &[first.line, second.line], what);
                    continue;
                }
                let durable = settled
                    .get(&first.request)
                    .is_some_and(|places| places.iter().any(|place| *place > first.line && *place < second.line))
                    || self.was_cancelled(first, second.line);
                if same_lease && !durable {
                    let what = format!(
                        "key {}: {} started before it was durable how {} ended",
                        key.1, second.request, first.request
                    );
                    self.violation(Rule::StartBeforeReceipt, &[first.line, second.line], what);
                }
            }
        }
    }

    /// G5: receipts.
    fn receipts(&mut self) {
        let mut seen: HashMap<RequestId, usize> = HashMap::new();
        let mut told: HashSet<(RequestId, SlotToken)> = HashSet::new();
        let mut runs_of: HashMap<RequestId, Vec<usize>> = HashMap::new();
        for (at, run) in self.runs.iter().enumerate() {
            runs_of.entry(run.request).or_default().push(at);
        }
        for (place, line) in self.lines.iter().enumerate() {
            let HistoryEvent::Receipt { request, fence, outcome, durable: true } = &line.event else { continue };
            if let Some(earlier) = seen.insert(*request, place) {
                self.violation(Rule::SecondReceipt, &[earlier, place], format!("{request} was acknowledged twice"));
            }
            told.insert((*request, fence.token));
            let runs = || runs_of.get(request).into_iter().flatten().map(|at| &self.runs[*at]);
            // The line is written after the answer, so a lease that ended in between is not held against it: another
            // owner's lease line before it, with a run of its own, is.
            let overtaken =
                runs().find(|run| run.slot == fence.slot && run.slot_token > fence.token && run.line < place);
            let is_run = runs().any(|run| run.slot_token == fence.token);
            if let Some(run) = overtaken {
                let what = format!(
                    "{request} was acknowledged under token {}, after it had run under {}",
                    fence.token.0, run.slot_token.0
                );
                let line = run.line;
                self.violation(Rule::ReceiptUnderLostToken, &[line, place], what);
            }
            let is_for_a_run = match outcome {
                ReceiptOutcome::Done => is_run || self.is_action(*request),
                ReceiptOutcome::Coalesced | ReceiptOutcome::Discarded | ReceiptOutcome::Cancelled => true,
            };
            if !is_for_a_run {
                let what = format!("{request} is acknowledged under token {} without a run under it", fence.token.0);
                self.violation(Rule::StaleEffect, &[place], what);
            }
        }
        let mut recorded: HashSet<RequestId> = HashSet::new();
        for (request, token) in &self.expectation.records {
            let slot_token = SlotToken(token >> 24);
            // A server that died before the answer has told nobody.
            let stored = self.expectation.stored.as_ref().is_some_and(|stored| {
                stored.receipts.iter().any(|receipt| receipt.request == *request && receipt.fence.token == slot_token)
            });
            if !(told.contains(&(*request, slot_token)) || stored) || !recorded.insert(*request) {
                let what = format!("a record of {request} under token {token} has no receipt of its own");
                self.violation(Rule::StaleRecord, &[], what);
            }
        }
    }

    fn is_action(&self, id: RequestId) -> bool {
        let Some(stored) = &self.expectation.stored else { return true };
        // In the order of revisions.
        let place = stored.log.binary_search_by_key(&id.revision, |row| row.revision);
        place.is_ok_and(|place| {
            matches!(stored.log[place].entries.get(id.sequence as usize), Some(LogEntry::Action { .. }))
        })
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
