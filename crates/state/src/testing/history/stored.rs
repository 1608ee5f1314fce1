//! What a history and the store say of each other at the end: every request of the log has run or is accounted for, and
//! nothing ran that the log does not ask for.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::checker::{Checker, Rule};
use crate::cluster_hook::Delivery;
use crate::driver::{ExceptionState, HookNumber, LogEntry, ReceiptOutcome, RequestAction, RequestId, SlotId};
use crate::revision::Revision;

impl Checker<'_> {
    /// The actions of the log, each with its request and the revision at which it was written.
    pub(super) fn actions(&self) -> impl Iterator<Item = (RequestAction, RequestId, Revision)> {
        let rows = self.expectation.stored.iter().flat_map(|stored| &stored.log);
        rows.flat_map(|row| row.entries.iter().map(move |entry| (row.revision, entry))).filter_map(
            |(revision, entry)| match entry {
                LogEntry::Action { request, action } => Some((*action, *request, revision)),
                LogEntry::Change { .. } | LogEntry::Existing { .. } => None,
            },
        )
    }

    /// G1, G2 and G3: the log's requests against receipts, letters and runs.
    pub(super) fn against_what_is_stored(&mut self) {
        let Some(stored) = &self.expectation.stored else { return };
        let mut requests: BTreeMap<RequestId, ()> = BTreeMap::new();
        let let_go: HashSet<RequestId> = self
            .actions()
            .filter(|(action, ..)| matches!(action, RequestAction::Discard | RequestAction::Cancel))
            .map(|(_, request, _)| request)
            .collect();
        for row in &stored.log {
            for (sequence, entry) in row.entries.iter().enumerate() {
                let sequence = u32::try_from(sequence).unwrap_or(u32::MAX);
                let id = |hook| RequestId { revision: row.revision, sequence, hook };
                match entry {
                    LogEntry::Change { hooks, .. } => requests.extend(hooks.iter().map(|hook| (id(*hook), ()))),
                    LogEntry::Existing { hook, .. } => {
                        requests.insert(id(*hook), ());
                    }
                    LogEntry::Action { .. } => {}
                }
            }
        }
        let reaches_back = stored.meta.compacted;
        let phantoms: Vec<(RequestId, usize)> = self
            .runs
            .iter()
            .filter(|run| run.request.revision > reaches_back && !requests.contains_key(&run.request))
            .map(|run| (run.request, run.line))
            .collect();
        let receipts: HashMap<RequestId, ReceiptOutcome> =
            stored.receipts.iter().map(|receipt| (receipt.request, receipt.outcome)).collect();
        let waiting: HashMap<RequestId, &ExceptionState> =
            stored.exceptions.iter().map(|exception| (exception.request, &exception.state)).collect();
        let watermarks: HashMap<SlotId, Revision> = stored.slots.iter().map(|row| (row.slot, row.watermark)).collect();
        let lowest = |hook: HookNumber| {
            watermarks
                .iter()
                .filter(|(slot, _)| slot.hook == hook)
                .map(|(_, mark)| *mark)
                .min()
                .unwrap_or(Revision::ZERO)
        };
        // What a covering run saw, by key: the highest snapshot of a run whose receipt is durable.
        let mut seen: HashMap<(HookNumber, &str), Revision> = HashMap::new();
        let mut ran: HashSet<RequestId> = HashSet::new();
        let mut latest: HashSet<HookNumber> = HashSet::new();
        for run in &self.runs {
            ran.insert(run.request);
            if run.delivery == Delivery::LatestState {
                latest.insert(run.request.hook);
            }
            if run.delivery == Delivery::LatestState && receipts.contains_key(&run.request) {
                let best = seen.entry((run.key.0, run.key.1.as_str())).or_default();
                *best = (*best).max(run.snapshot);
            }
        }
        // With the latest state a request stands for all before it of its key: who lets go of it lets go of those.
        let is_let_go = |request: &RequestId| {
            let key = self.expectation.keys.get(request);
            let stands_for = |other: &&RequestId| {
                other.hook == request.hook && *other >= request && self.expectation.keys.get(other) == key
            };
            let_go.contains(request)
                || key.is_some() && latest.contains(&request.hook) && let_go.iter().any(|other| stands_for(&other))
        };
        let mut lost: Vec<(RequestId, String)> = Vec::new();
        for request in requests.keys() {
            let covered_later = || {
                let key = self.expectation.keys.get(request)?;
                seen.get(&(request.hook, key.as_str())).map(|snapshot| *snapshot >= request.revision)
            };
            match (receipts.get(request), waiting.get(request)) {
                (Some(ReceiptOutcome::Done), _) if !ran.contains(request) && !self.runs.is_empty() => {
                    lost.push((*request, "has a receipt, but never ran".to_owned()));
                }
                (Some(ReceiptOutcome::Coalesced), _) if covered_later() == Some(false) => {
                    let dead_behind = stored.exceptions.iter().any(|exception| {
                        exception.request > *request
                            && self.expectation.keys.get(&exception.request) == self.expectation.keys.get(request)
                    });
                    if !dead_behind && !is_let_go(request) {
                        lost.push((*request, "was coalesced into no run that saw it".to_owned()));
                    }
                }
                (Some(ReceiptOutcome::Discarded | ReceiptOutcome::Cancelled), _) if !is_let_go(request) => {
                    lost.push((*request, "was let go of by nobody".to_owned()));
                }
                (Some(_), _) | (None, Some(ExceptionState::Dead)) => {}
                (None, Some(_)) if self.expectation.may_wait => {}
                (None, None) if self.expectation.may_wait && request.revision > lowest(request.hook) => {}
                // Receipts at or below the watermark may have been pruned.
                (None, None) if request.revision <= reaches_back => {}
                (None, None) if let_go.contains(request) => {}
                (None, Some(state)) => lost.push((*request, format!("is {state:?} at the end"))),
                (None, None) => lost.push((*request, "has no receipt and no dead letter".to_owned())),
            }
        }
        for (request, line) in phantoms {
            self.violation(Rule::Phantom, &[line], format!("no committed change asked for {request}"));
        }
        for (request, what) in lost {
            let rule = if what.starts_with("has a receipt") { Rule::StaleEffect } else { Rule::LostRun };
            self.violation(rule, &[], format!("{request} {what}"));
        }
    }
}
