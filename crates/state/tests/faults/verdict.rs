//! What a run shows: the history checker, the linter, the log added up, and every answer held against the log.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use tidegate_state::driver::{LogEntry, ReceiptOutcome, RequestId, StoredState};
use tidegate_state::testing::history::{Expectation, HistoryEvent, Rule, check};
use tidegate_state::{Entity, Path, Record, Revision};

use super::by_answers;
use super::evidence::{Answered, Evidence};
use super::server::{Answer, Contents};
use super::towers;
use super::workload::{Count, Effect, PLAIN, Thing, Trace, is_every_change};

/// What came of a run.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) faults: usize,
    pub(crate) changes: usize,
    pub(crate) runs: usize,
    /// Starts of a request beyond its first.
    pub(crate) repeated: usize,
    /// How many keys of the hooks each server ran at last.
    pub(crate) keys_by_server: BTreeMap<String, usize>,
    /// Receipts that were refused, since their token no longer held.
    pub(crate) refused: usize,
    /// Up to which revision the log was compacted at the end.
    pub(crate) compacted: Revision,
    /// Records of effects, and of the traces beside them that have not been pruned.
    pub(crate) effects: usize,
    pub(crate) traces: usize,
    /// What a lost token still got in.
    pub(crate) accepted_late: Vec<String>,
    /// Counters and records that do not agree with the changes.
    pub(crate) miscounted: Vec<String>,
    /// Answers that the log does not agree with.
    pub(crate) false_answers: Vec<String>,
    /// Everything that must not be, the three above included.
    pub(crate) violations: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_sound(&self) -> bool {
        self.violations.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} faults, {} changes, {} runs, {} of them again, {} late receipts refused, compacted up to {}, \
             {} violations",
            self.faults,
            self.changes,
            self.runs,
            self.repeated,
            self.refused,
            self.compacted,
            self.violations.len()
        )
    }
}

/// The log added up.
struct Sum {
    contents: Contents,
    /// Changes that asked for a run of each hook, by key.
    asked: BTreeMap<String, u64>,
    keys: HashMap<RequestId, String>,
    changes: usize,
}

/// Judges a run.
pub(crate) fn judge(evidence: &Evidence) -> Verdict {
    let stored = &evidence.stored;
    let names = hook_names(&evidence.history);
    let sum = add_up(stored, &names);
    let effects = effects(stored);
    let records = effects.iter().filter_map(|effect| Some((request_of(&effect.request)?, effect.token))).collect();
    let expectation = Expectation {
        stored: Some(stored.clone()),
        keys: sum.keys.clone(),
        records,
        spread_within: evidence.spread_within,
        ..Expectation::default()
    };

    let mut verdict = Verdict {
        faults: evidence.faults,
        changes: sum.changes,
        compacted: evidence.compacted,
        traces: stored.records.iter().filter(|row| &*row.kind == Trace::KIND).count(),
        effects: effects.len(),
        ..Verdict::default()
    };
    count_history(evidence, &mut verdict);
    for violation in check(&evidence.history, &expectation) {
        if matches!(violation.rule, Rule::ReceiptUnderLostToken | Rule::StaleEffect | Rule::StaleRecord) {
            verdict.accepted_late.push(violation.to_string());
        }
        verdict.violations.push(violation.to_string());
    }
    verdict.violations.extend(evidence.linted.iter().map(|found| format!("linter: {found}")));
    let is_whole = stored.meta.compacted == Revision::ZERO;
    if is_whole {
        verdict.violations.extend(lost_receipts(evidence));
        verdict.miscounted = miscounted(stored, &sum, &effects, &names);
    }
    verdict.false_answers = false_answers(evidence);
    match &evidence.told {
        Ok(trees) if !is_whole => verdict.miscounted = by_answers::miscounted(evidence, trees, &effects),
        Ok(trees) => {
            let others = trees.iter().enumerate().filter(|(_, tree)| **tree != sum.contents);
            verdict
                .violations
                .extend(others.map(|(server, _)| format!("server {server}'s tree is not what the log adds up to")));
        }
        Err(why) => verdict.violations.push(format!("it did not come to rest: {why}")),
    }
    let more: Vec<String> = verdict.miscounted.iter().chain(&verdict.false_answers).cloned().collect();
    verdict.violations.extend(more);
    verdict
}

fn hook_names(history: &[tidegate_state::testing::history::Line]) -> HashMap<u32, String> {
    let named = history.iter().filter_map(|line| match &line.event {
        HistoryEvent::RunStarted { hook, request, .. } => Some((request.hook.0, hook.clone())),
        _ => None,
    });
    named.collect()
}

fn count_history(evidence: &Evidence, verdict: &mut Verdict) {
    let mut starts: HashMap<RequestId, usize> = HashMap::new();
    let mut last: HashMap<(&str, &str), &str> = HashMap::new();
    for line in &evidence.history {
        match &line.event {
            HistoryEvent::RunStarted { request, hook, key, .. } => {
                *starts.entry(*request).or_default() += 1;
                last.insert((hook, key), &line.server);
            }
            HistoryEvent::Receipt { durable: false, .. } => verdict.refused += 1,
            _ => {}
        }
    }
    for server in last.into_values() {
        *verdict.keys_by_server.entry(server.to_owned()).or_default() += 1;
    }
    verdict.runs = starts.values().sum();
    verdict.repeated = verdict.runs - starts.len();
}

/// `revision.sequence.hook`
fn request_of(text: &str) -> Option<RequestId> {
    let mut numbers = text.split('.').map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    Some(RequestId {
        revision: tidegate_state::Revision(next()?),
        sequence: u32::try_from(next()?).ok()?,
        hook: tidegate_state::driver::HookNumber(u32::try_from(next()?).ok()?),
    })
}

fn effects(stored: &StoredState) -> Vec<Effect> {
    let own = stored.records.iter().filter(|row| &*row.kind == Effect::KIND);
    own.map(|row| serde_json::from_str(&row.document.json).unwrap()).collect()
}

fn add_up(stored: &StoredState, names: &HashMap<u32, String>) -> Sum {
    let mut sum = Sum { contents: Contents::default(), asked: BTreeMap::new(), keys: HashMap::new(), changes: 0 };
    for row in &stored.log {
        for (sequence, entry) in row.entries.iter().enumerate() {
            let LogEntry::Change { path, after, hooks, .. } = entry else { continue };
            let after = after.as_ref().map(|after| &*after.json);
            match path.collection() {
                Thing::COLLECTION => {
                    sum.changes += 1;
                    let id: u64 = path.id().parse().unwrap();
                    match after {
                        Some(json) => {
                            sum.contents.things.insert(id, serde_json::from_str::<Thing>(json).unwrap().value);
                        }
                        None => {
                            sum.contents.things.remove(&id);
                        }
                    }
                }
                Count::COLLECTION => {
                    let count: Count = serde_json::from_str(after.unwrap()).unwrap();
                    sum.contents.counts.insert(path.id().into_owned(), count.runs);
                }
                _ => {}
            }
            for hook in hooks {
                let request =
                    RequestId { revision: row.revision, sequence: u32::try_from(sequence).unwrap(), hook: *hook };
                let key = key_of(path);
                if let Some(name) = names.get(&hook.0) {
                    *sum.asked.entry(format!("{name}.{key}")).or_default() += 1;
                }
                sum.keys.insert(request, key);
            }
        }
    }
    sum
}

/// The key that every hook has a change under: the id of the thing that it is of.
pub(crate) fn key_of(path: &Path) -> String {
    path.pairs().next().map(|(_, id)| id.into_owned()).unwrap_or_default()
}

/// G5: each run took effect once. With every change a run, the counter is the number of changes; with the latest state, it
/// is the number of runs that were acknowledged.
fn miscounted(stored: &StoredState, sum: &Sum, effects: &[Effect], names: &HashMap<u32, String>) -> Vec<String> {
    let mut done: BTreeMap<String, u64> = BTreeMap::new();
    for receipt in stored.receipts.iter().filter(|receipt| receipt.outcome == ReceiptOutcome::Done) {
        let named = names.get(&receipt.request.hook.0).zip(sum.keys.get(&receipt.request));
        if let Some((name, key)) = named {
            *done.entry(format!("{name}.{key}")).or_default() += 1;
        }
    }
    let mut recorded: BTreeMap<String, u64> = BTreeMap::new();
    for effect in effects {
        *recorded.entry(format!("{}.{}", effect.hook, effect.key)).or_default() += 1;
    }
    let mut found = Vec::new();
    // Moves of a tower are counted by the tower, and plain runs by nobody.
    let counting = |name: &str| !matches!(name.split('.').next(), Some(towers::HOOK | PLAIN));
    for (name, asked) in sum.asked.iter().filter(|(name, _)| counting(name)) {
        let of = |map: &BTreeMap<String, u64>| map.get(name).copied().unwrap_or(0);
        let (counted, done, recorded) = (of(&sum.contents.counts), of(&done), of(&recorded));
        let expected = if is_every_change(name) { *asked } else { done };
        if counted != expected || recorded != expected || done != expected {
            found.push(format!(
                "{name}: {asked} changes, {done} receipts, counted {counted} times, recorded {recorded} times"
            ));
        }
    }
    found
}

/// How many of the requests that were made within this time, in milliseconds, and ask for a run each, have no receipt.
pub(crate) fn unanswered(evidence: &Evidence, from: u64, until: u64) -> usize {
    let stored = &evidence.stored;
    let answered: HashSet<RequestId> = stored.receipts.iter().map(|receipt| receipt.request).collect();
    let names = hook_names(&evidence.history);
    let every = |number: u32| names.get(&number).is_some_and(|name| name == "every");
    let rows = stored.log.iter().filter(|row| u64::try_from(row.at.0).is_ok_and(|at| (from..until).contains(&at)));
    let mut lost = 0;
    for row in rows {
        for (sequence, entry) in row.entries.iter().enumerate() {
            let LogEntry::Change { hooks, .. } = entry else { continue };
            for hook in hooks.iter().filter(|hook| every(hook.0)) {
                let sequence = u32::try_from(sequence).unwrap();
                let request = RequestId { revision: row.revision, sequence, hook: *hook };
                lost += usize::from(!answered.contains(&request));
            }
        }
    }
    lost
}

/// Receipts that a server was told are durable, so that the next of the key could start, and that are not there.
fn lost_receipts(evidence: &Evidence) -> Vec<String> {
    let there: HashSet<RequestId> = evidence.stored.receipts.iter().map(|receipt| receipt.request).collect();
    let lost = evidence.history.iter().filter(|line| match &line.event {
        HistoryEvent::Receipt { request, durable: true, .. } => !there.contains(request),
        _ => false,
    });
    lost.map(|line| format!("a receipt was durable and is lost: {line:?}")).collect()
}

fn false_answers(evidence: &Evidence) -> Vec<String> {
    let mut in_log: HashMap<tidegate_state::SubmissionId, Vec<u64>> = HashMap::new();
    for row in &evidence.stored.log {
        in_log.entry(row.submission).or_default().push(row.revision.0);
    }
    let mut found = Vec::new();
    for Answered { submission, answer, resolved, .. } in &evidence.answers {
        let there = in_log.get(submission).map_or(&[][..], Vec::as_slice);
        let agrees = match answer {
            Some(Answer::Committed { revision }) if *revision <= evidence.stored.meta.compacted.0 => there.is_empty(),
            Some(Answer::Committed { revision }) => there == [*revision],
            Some(Answer::Unchanged | Answer::Rejected | Answer::Failed) => there.is_empty(),
            // Nobody was told; at most one effect all the same.
            Some(Answer::Unknown) | None => there.len() <= 1,
        } && match resolved {
            Some(Some(revision)) if *revision > evidence.stored.meta.compacted.0 => there == [*revision],
            Some(None) => there.is_empty(),
            Some(Some(_)) | None => true,
        };
        if !agrees {
            found.push(format!(
                "submission {submission} was answered {answer:?}, then {resolved:?}, and the log has it at {there:?}"
            ));
        }
    }
    found
}
