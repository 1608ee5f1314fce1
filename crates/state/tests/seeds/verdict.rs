//! What must hold when a seed has come to rest: the history checker and the linter find nothing, answers agree with the
//! log, the log agrees with a plain map, trees agree with that, and what hooks did took effect once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use tidegate_state::Record;
use tidegate_state::SubmissionId;
use tidegate_state::driver::{HookNumber, LogEntry, LogRow, ReceiptOutcome, RequestAction, RequestId};
use tidegate_state::testing::history::{Expectation, HistoryEvent, check};

use super::hooks::{Effect, HookKind, Mark, Seen, writes};
use super::operations::{Changes, Tree};
use super::play::Evidence;
use super::world::Answer;

/// What came of a seed.
#[derive(Debug, Default, Clone)]
pub(crate) struct Verdict {
    pub(crate) faults: usize,
    pub(crate) changes: usize,
    pub(crate) runs: usize,
    /// Starts of a request beyond its first.
    pub(crate) repeated: usize,
    /// Receipts that were refused, since their token no longer held.
    pub(crate) refused: usize,
    pub(crate) violations: Vec<String>,
}

impl Verdict {
    /// Adds up what several seeds did.
    pub(crate) fn add(&mut self, other: &Verdict) {
        self.faults += other.faults;
        self.changes += other.changes;
        self.runs += other.runs;
        self.repeated += other.repeated;
        self.refused += other.refused;
        self.violations.extend(other.violations.iter().cloned());
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} faults, {} changes, {} runs, {} of them again, {} late receipts refused",
            self.faults, self.changes, self.runs, self.repeated, self.refused
        )
    }
}

/// The log added up.
struct Sum {
    /// The tree that it comes to.
    tree: Tree,
    /// The requests that an operator let go of.
    let_go: HashSet<RequestId>,
    /// The hook and the key of each request.
    asked: BTreeMap<RequestId, (HookKind, String)>,
    violations: Vec<String>,
}

/// Judges what a seed left behind.
pub(crate) fn judge(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict { faults: evidence.faults, ..Verdict::default() };
    count_history(evidence, &mut verdict);
    verdict.violations.extend(evidence.linted.iter().map(|found| format!("linter: {found}")));
    if let Some(why) = &evidence.unrest {
        // What would have come after that can't be looked at.
        verdict.violations.push(format!("it did not come to rest: {why}"));
        return verdict;
    }
    let sum = add_up(evidence);
    verdict.changes = evidence.stored.log.iter().map(|row| row.entries.len()).sum();
    verdict.violations.extend(sum.violations.iter().cloned());
    let history = check(&evidence.history, &expectation(evidence, &sum));
    verdict.violations.extend(history.iter().map(ToString::to_string));
    for (server, tree) in &evidence.trees {
        if *tree != sum.tree {
            verdict
                .violations
                .push(format!("{server}'s tree is not what the log adds up to: {tree:?}, {:?}", sum.tree));
        }
    }
    verdict.violations.extend(false_answers(evidence));
    verdict.violations.extend(miscounted(evidence, &sum));
    verdict.violations.extend(unseen(&sum));
    verdict
}

fn count_history(evidence: &Evidence, verdict: &mut Verdict) {
    let mut started: HashSet<RequestId> = HashSet::new();
    for line in &evidence.history {
        match &line.event {
            HistoryEvent::RunStarted { request, .. } => {
                verdict.runs += 1;
                verdict.repeated += usize::from(!started.insert(*request));
            }
            HistoryEvent::Receipt { durable: false, .. } => verdict.refused += 1,
            _ => {}
        }
    }
}

fn expectation(evidence: &Evidence, sum: &Sum) -> Expectation {
    let plan = &evidence.plan;
    let mut expectation = Expectation {
        stored: Some(evidence.stored.clone()),
        keys: sum.asked.iter().map(|(request, (_, key))| (*request, key.clone())).collect(),
        records: effects(evidence)
            .into_iter()
            .filter(|effect| effect.finished)
            .map(|effect| (effect.request, effect.token))
            .collect(),
        ..Expectation::default()
    };
    for (number, kind) in &evidence.hooks {
        let Some(place) = plan.hooks.iter().position(|hook| hook.kind == *kind) else { continue };
        let (number, hook) = (HookNumber(*number), &plan.hooks[place]);
        if let Some(attempts) = hook.attempts {
            expectation.attempts.insert(number, attempts);
        }
        if let Some(cap) = hook.cap {
            expectation.caps.insert(number, cap as usize);
        }
        for (server, planned) in plan.servers.iter().enumerate() {
            let name = format!("server-{server}");
            if plan.is_gentle() {
                expectation.rooms.insert((name.clone(), number), planned.rooms[place] as usize);
            }
            // What is in force changes with an upgrade, and the checker knows of one version alone.
            if !plan.upgrades() {
                let declared = expectation.declared.entry(name).or_default();
                if planned.rooms[place] > 0 {
                    declared.insert(number, 1);
                }
                expectation.versions.insert(number, 1);
            }
        }
    }
    expectation
}

/// The key is the id of the first entity on the path: a thing's, a count's.
fn key_of(path: &str) -> String {
    path.split('/').nth(2).unwrap_or_default().to_owned()
}

fn add_up(evidence: &Evidence) -> Sum {
    let operations: HashMap<SubmissionId, _> =
        evidence.submitted.iter().map(|submitted| (submitted.submission, &submitted.operation)).collect();
    let mut sum = Sum { tree: Tree::new(), let_go: HashSet::new(), asked: BTreeMap::new(), violations: Vec::new() };
    let mut marks: HashMap<String, u64> = HashMap::new();
    for row in &evidence.stored.log {
        let changes = changes_of(row);
        if let Some(operation) = operations.get(&row.submission) {
            let expected = operation.changes(&sum.tree);
            if changes != expected {
                let what = format!("revision {} did {changes:?}, and {operation:?} does {expected:?}", row.revision);
                sum.violations.push(what);
            }
        }
        for (path, after) in changes {
            if let Some(after) = after {
                let value: serde_json::Value = serde_json::from_str(&after).unwrap();
                if path.starts_with("/marks/") {
                    let mark: Mark = serde_json::from_value(value.clone()).unwrap();
                    let last = marks.entry(path.clone()).or_default();
                    if mark.token < *last {
                        sum.violations.push(format!("{path} was written under {} after {last}", mark.token));
                    }
                    *last = mark.token;
                }
                sum.tree.insert(path, value);
            } else {
                sum.tree.remove(&path);
            }
        }
        gather_requests(row, &evidence.hooks, &mut sum);
    }
    sum
}

fn changes_of(row: &LogRow) -> Changes {
    let changes = row.entries.iter().filter_map(|entry| match entry {
        LogEntry::Change { path, after, .. } => {
            // As text of one form, whatever the order of its fields.
            let after = after.as_ref().map(|after| {
                let value: serde_json::Value = serde_json::from_str(&after.json).unwrap();
                value.to_string()
            });
            Some((path.as_str().to_owned(), after))
        }
        LogEntry::Existing { .. } | LogEntry::Action { .. } => None,
    });
    changes.collect()
}

fn gather_requests(row: &LogRow, hooks: &HashMap<u32, HookKind>, sum: &mut Sum) {
    for (sequence, entry) in row.entries.iter().enumerate() {
        let (path, numbers) = match entry {
            LogEntry::Change { path, hooks, .. } => (path, hooks.as_slice()),
            LogEntry::Existing { path, hook } => (path, std::slice::from_ref(hook)),
            LogEntry::Action { request, action: RequestAction::Discard | RequestAction::Cancel } => {
                sum.let_go.insert(*request);
                continue;
            }
            LogEntry::Action { .. } => continue,
        };
        for number in numbers {
            let sequence = u32::try_from(sequence).unwrap();
            let request = RequestId { revision: row.revision, sequence, hook: *number };
            sum.asked.insert(request, (hooks[&number.0], key_of(path.as_str())));
        }
    }
}

fn effects(evidence: &Evidence) -> Vec<Effect> {
    let mut own: Vec<_> = evidence.stored.records.iter().filter(|row| &*row.kind == Effect::KIND).collect();
    own.sort_by_key(|row| row.id);
    own.into_iter().map(|row| serde_json::from_str(&row.document.json).unwrap()).collect()
}

/// G1, G5: every request ended in one way, and what was to be written with that was written once.
fn miscounted(evidence: &Evidence, sum: &Sum) -> Vec<String> {
    let mut found = Vec::new();
    let mut ends: HashMap<RequestId, Vec<ReceiptOutcome>> = HashMap::new();
    for receipt in &evidence.stored.receipts {
        ends.entry(receipt.request).or_default().push(receipt.outcome);
    }
    let effects = effects(evidence);
    let mut finished: HashMap<RequestId, usize> = HashMap::new();
    let mut last: HashMap<(&str, &str), u64> = HashMap::new();
    for effect in &effects {
        *finished.entry(effect.request).or_default() += usize::from(effect.finished);
        let before = last.insert((&effect.hook, &effect.key), effect.token).unwrap_or(0);
        if effect.token <= before {
            let Effect { hook, key, token, .. } = effect;
            found.push(format!("{hook} {key}: an effect under token {token} after one under {before}"));
        }
    }
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    for (request, (kind, key)) in &sum.asked {
        let ended = ends.get(request).map_or(&[][..], Vec::as_slice);
        let fits = match ended {
            [ReceiptOutcome::Done | ReceiptOutcome::Discarded | ReceiptOutcome::Cancelled] => true,
            [ReceiptOutcome::Coalesced] => *kind != HookKind::Every,
            // It is over as soon as the log says so; who owns the slot next puts that on record.
            [] => sum.let_go.contains(request),
            _ => false,
        };
        if !fits {
            found.push(format!("{} {key}: {request} ended as {ended:?}", kind.name()));
        }
        let takes_effect = ended == [ReceiptOutcome::Done] && writes(evidence.plan.seed, *kind, *request);
        let times = finished.get(request).copied().unwrap_or(0);
        if times != usize::from(takes_effect) {
            found.push(format!("{} {key}: {request} ended as {ended:?}, and took effect {times} times", kind.name()));
        }
        if takes_effect && *kind == HookKind::Every {
            *counted.entry(format!("/counts/every-{key}")).or_default() += 1;
        }
    }
    let counts = sum.tree.iter().filter(|(path, _)| path.starts_with("/counts/"));
    let counts: BTreeMap<String, u64> =
        counts.map(|(path, value)| (path.clone(), value["runs"].as_u64().unwrap())).collect();
    if counts != counted {
        found.push(format!("the counters are {counts:?}, and the changes come to {counted:?}"));
    }
    found
}

/// What wants the latest state has seen the last one of every key, but where somebody let go of a request.
fn unseen(sum: &Sum) -> Vec<String> {
    let mut let_go: HashSet<&str> = HashSet::new();
    for request in &sum.let_go {
        if let Some((HookKind::Latest, key)) = sum.asked.get(request) {
            let_go.insert(key);
        }
    }
    let keys: HashSet<&str> =
        sum.asked.values().filter(|(kind, _)| *kind == HookKind::Latest).map(|(_, key)| key.as_str()).collect();
    let mut found = Vec::new();
    for key in keys.difference(&let_go) {
        let there = sum.tree.get(&format!("/things/{key}")).and_then(|thing| thing["value"].as_u64());
        let seen = sum.tree.get(&format!("/seen/{key}"));
        let seen = seen.map(|seen| serde_json::from_value::<Seen>(seen.clone()).unwrap().value);
        if seen != Some(there) {
            found.push(format!("latest {key}: saw {seen:?} last, and there is {there:?}"));
        }
    }
    found
}

fn false_answers(evidence: &Evidence) -> Vec<String> {
    let mut in_log: HashMap<SubmissionId, Vec<u64>> = HashMap::new();
    for row in &evidence.stored.log {
        in_log.entry(row.submission).or_default().push(row.revision.0);
    }
    let mut found = Vec::new();
    for submitted in &evidence.submitted {
        let there = in_log.get(&submitted.submission).map_or(&[][..], Vec::as_slice);
        let agrees = match submitted.answer {
            Some(Answer::Committed { revision }) => there == [revision],
            Some(Answer::Unchanged | Answer::Rejected | Answer::Failed) => there.is_empty(),
            // Nobody was told; at most one effect all the same.
            Some(Answer::Unknown) | None => there.len() <= 1,
        };
        if !agrees {
            found.push(format!(
                "{:?} was answered {:?}, and the log has it at {there:?}",
                submitted.operation, submitted.answer
            ));
        }
    }
    found
}
