//! What a run shows: the second checker. It is pure; what it is given is all that it knows.
//!
//! | rule | says |
//! |---|---|
//! | [`Rule::FailedRead`] | no read fails at a place that is up |
//! | [`Rule::MixedVersions`] | a batch is of one version |
//! | [`Rule::WrongContent`] | a version has the values that were pushed as it, and all of them |
//! | [`Rule::NeverTold`] | a place answers with no version that its region was not told to serve before |
//! | [`Rule::Outdated`] | once a push has COMPLETED or was ROLLED_BACK, no place answers with what its region was told before |
//! | [`Rule::FinalChanged`] | a final status is final |
//! | [`Rule::EndMismatch`] | with the end of a push its regions are told what its status says |
//! | [`Rule::ToldAfterEnd`] | no region is told to serve, after the end of a push, what that push left unserved there |
//! | [`Rule::WrongEnd`] | a push ends as its hooks, its operator or its limits say, and no fault of a process is its own |
//! | [`Rule::FalseAnswer`] | a client's exit code is the push's status |
//! | [`Rule::Unended`] | every push ends |
//! | [`Rule::NotAtRest`] | once faults stop, every region serves, and reports, and answers with what it was told |
//! | [`Rule::NextPush`] | and takes the next push |

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use tidegate_rollout::entities::{EndedBy, PushStatus};

use super::evidence::{Evidence, Intent, PushFact, Pushed, Read, ReadOutcome, Time, What};

/// What must hold. See the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    FailedRead,
    MixedVersions,
    WrongContent,
    NeverTold,
    Outdated,
    FinalChanged,
    EndMismatch,
    ToldAfterEnd,
    WrongEnd,
    FalseAnswer,
    Unended,
    NotAtRest,
    NextPush,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}: {}", self.rule, self.what)
    }
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict {
    pub(crate) reads: usize,
    /// Reads that failed while their place was down.
    pub(crate) excused: usize,
    /// Reads that failed, and should not have.
    pub(crate) failed: usize,
    /// How many pushes ended with each status.
    pub(crate) ended: BTreeMap<PushStatus, usize>,
    pub(crate) violations: Vec<Violation>,
}

/// The times at which a region was told to serve another version, in order.
type Tellings = Vec<(Time, Option<u64>)>;

/// A push and what the regions had been told when it ended.
struct Past<'a> {
    last: &'a PushFact,
    ended: Option<End<'a>>,
}

struct End<'a> {
    at: Time,
    fact: &'a PushFact,
    /// How often each region had been told something by then.
    told: BTreeMap<&'a str, usize>,
}

/// The log, put in order.
#[derive(Default)]
struct History<'a> {
    regions: BTreeMap<&'a str, Tellings>,
    pushes: BTreeMap<&'a str, Past<'a>>,
    /// For each region: from this time on it answers with nothing that it was told before this telling.
    floors: BTreeMap<&'a str, Vec<(Time, usize)>>,
}

/// Judges a run.
pub(crate) fn judge(evidence: &Evidence) -> Verdict {
    let mut violations = Vec::new();
    let history = History::read(evidence, &mut violations);
    let mut verdict = Verdict { reads: evidence.reads.len(), ..Verdict::default() };
    for past in history.pushes.values() {
        *verdict.ended.entry(past.last.status).or_default() += 1;
    }
    check_ends(evidence, &history, &mut violations);
    check_reads(evidence, &history, &mut verdict, &mut violations);
    check_rest(evidence, &history, &mut violations);
    verdict.violations = violations;
    verdict
}

impl<'a> History<'a> {
    fn read(evidence: &'a Evidence, violations: &mut Vec<Violation>) -> History<'a> {
        let mut history = History::default();
        for fact in &evidence.facts {
            match &fact.what {
                What::Told { region, serve } => {
                    history.regions.entry(region).or_default().push((fact.at, *serve));
                }
                What::Push(push) => history.take_push(fact.at, push, violations),
            }
        }
        history
    }

    fn take_push(&mut self, at: Time, fact: &'a PushFact, violations: &mut Vec<Violation>) {
        let past = self.pushes.entry(&fact.id).or_insert(Past { last: fact, ended: None });
        past.last = fact;
        if let Some(end) = &past.ended {
            if end.fact.status != fact.status {
                let what = format!("push {} was {} and became {}", fact.id, end.fact.status.word(), fact.status.word());
                violations.push(Violation { rule: Rule::FinalChanged, what });
            }
            return;
        }
        if !fact.status.is_final() {
            return;
        }
        let told: BTreeMap<&str, usize> = self.regions.iter().map(|(region, told)| (*region, told.len())).collect();
        // Both are final only once every region that takes part has confirmed.
        if matches!(fact.status, PushStatus::Completed | PushStatus::RolledBack) {
            for region in fact.regions.keys() {
                if let Some(last) = told.get(region.as_str()).and_then(|told| told.checked_sub(1)) {
                    self.floors.entry(region).or_default().push((at, last));
                }
            }
        }
        past.ended = Some(End { at, fact, told });
    }

    /// What a region had been told when it had been told something `count` times.
    fn told_at(&self, region: &str, count: usize) -> Option<u64> {
        self.regions.get(region)?.get(count.checked_sub(1)?)?.1
    }

    /// The last telling of a version before a time.
    fn last_told(&self, region: &str, version: u64, before: Time) -> Option<usize> {
        self.regions.get(region)?.iter().rposition(|(at, serve)| *at <= before && *serve == Some(version))
    }

    fn floor(&self, region: &str, at: Time) -> usize {
        let floors = self.floors.get(region).map_or(&[][..], Vec::as_slice);
        let passed = floors.partition_point(|(since, _)| *since <= at);
        passed.checked_sub(1).map_or(0, |last| floors[last].1)
    }
}

fn check_ends(evidence: &Evidence, history: &History<'_>, violations: &mut Vec<Violation>) {
    let mut find = |rule, what| violations.push(Violation { rule, what });
    let known: HashMap<&str, &Pushed> = evidence.pushed.iter().map(|pushed| (pushed.id.as_str(), pushed)).collect();
    for (id, past) in &history.pushes {
        let Some(end) = &past.ended else {
            find(Rule::Unended, format!("push {id} is {}", past.last.status.word()));
            continue;
        };
        let (fact, status) = (end.fact, end.fact.status);
        for (region, previous) in &fact.regions {
            let count = end.told.get(region.as_str()).copied().unwrap_or(0);
            let told = history.told_at(region, count);
            let fits = match status {
                PushStatus::Completed => told == Some(fact.version),
                PushStatus::RolledBack => told == *previous,
                _ => told == *previous || told == Some(fact.version),
            };
            if !fits {
                let what = format!(
                    "push {id} of version {} ended {} with {region} told to serve {told:?}; it served {previous:?} before",
                    fact.version,
                    status.word()
                );
                find(Rule::EndMismatch, what);
            }
            let kept = told == Some(fact.version) && status != PushStatus::RolledBack;
            let later = history.regions.get(region.as_str()).and_then(|told| told.get(count..)).unwrap_or_default();
            if !kept && later.iter().any(|(_, serve)| *serve == Some(fact.version)) {
                let what =
                    format!("{region} is told to serve version {} after push {id} {}", fact.version, status.word());
                find(Rule::ToldAfterEnd, what);
            }
        }
        let Some(pushed) = known.get(id) else { continue };
        if !may_end(pushed.intent, fact) {
            let by = fact.ended_by.map_or("nothing", EndedBy::word);
            let what = format!(
                "push {id}, which was to {:?}, ended {} by {by} at {}: {}",
                pushed.intent,
                status.word(),
                end.at,
                fact.reason
            );
            find(Rule::WrongEnd, what);
        }
        if pushed.exit.is_some_and(|exit| exit != exit_code(status)) {
            let what = format!("push {id} is {}, and its client exited with {:?}", status.word(), pushed.exit);
            find(Rule::FalseAnswer, what);
        }
    }
    for pushed in &evidence.pushed {
        if pushed.exit.is_some() && !history.pushes.contains_key(pushed.id.as_str()) {
            let what = format!("push {} is in no log, and its client exited with {:?}", pushed.id, pushed.exit);
            find(Rule::FalseAnswer, what);
        }
    }
}

/// Whether a push that was to come to this may have ended so. A client whose server was down for long may have been silent
/// for longer than the limit allows.
fn may_end(intent: Intent, fact: &PushFact) -> bool {
    match (fact.status, intent) {
        (PushStatus::Error, _) => fact.ended_by == Some(EndedBy::Limit),
        (PushStatus::Completed, Intent::Complete | Intent::Kill | Intent::Abandon) => true,
        (PushStatus::RolledBack, Intent::RollBack) => fact.ended_by == Some(EndedBy::Gate),
        (PushStatus::Aborted, Intent::Abort) => fact.ended_by == Some(EndedBy::Gate),
        (PushStatus::Killed, Intent::Kill) => fact.ended_by == Some(EndedBy::Operator),
        _ => false,
    }
}

/// DESIGN §9: what the client of a push exits with.
fn exit_code(status: PushStatus) -> i32 {
    match status {
        PushStatus::Completed => 0,
        PushStatus::Error => 10,
        PushStatus::Aborted => 11,
        PushStatus::RolledBack => 12,
        PushStatus::Killed => 13,
        PushStatus::Queued | PushStatus::Started => 14,
    }
}

fn check_reads(evidence: &Evidence, history: &History<'_>, verdict: &mut Verdict, violations: &mut Vec<Violation>) {
    let generations: HashMap<&str, u64> =
        evidence.pushed.iter().map(|pushed| (pushed.id.as_str(), pushed.generation)).collect();
    let by_version: HashMap<u64, u64> =
        history.pushes.iter().filter_map(|(id, past)| Some((past.last.version, *generations.get(id)?))).collect();
    for read in &evidence.reads {
        let place = &evidence.places[read.place];
        let mut find = |rule, what| {
            let what = format!("{} from {} to {}: {what}", place.name, read.begun, read.ended);
            violations.push(Violation { rule, what });
        };
        match &read.outcome {
            ReadOutcome::Failed(_) if was_down(evidence, read) => verdict.excused += 1,
            ReadOutcome::Failed(why) => {
                verdict.failed += 1;
                find(Rule::FailedRead, why.clone());
            }
            ReadOutcome::Answered { version, generations, absent } => {
                let expected = by_version.get(version);
                if generations.len() > 1 {
                    find(Rule::MixedVersions, format!("version {version} has values of {generations:?}"));
                } else if *absent > 0 || generations.first() != expected {
                    let what = format!(
                        "version {version} has values of {generations:?} and not {absent} keys; it is of {expected:?}"
                    );
                    find(Rule::WrongContent, what);
                }
                match history.last_told(&place.region, *version, read.ended) {
                    None => find(Rule::NeverTold, format!("it answers with version {version}")),
                    Some(told) if told < history.floor(&place.region, read.begun) => {
                        find(Rule::Outdated, format!("it still answers with version {version}"));
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

fn was_down(evidence: &Evidence, read: &Read) -> bool {
    evidence
        .downtimes
        .iter()
        .any(|downtime| downtime.place == read.place && read.begun <= downtime.until && downtime.from <= read.ended)
}

fn check_rest(evidence: &Evidence, history: &History<'_>, violations: &mut Vec<Violation>) {
    let mut find = |rule, what| violations.push(Violation { rule, what });
    let rest = &evidence.rest;
    for trouble in &rest.trouble {
        find(Rule::NotAtRest, trouble.clone());
    }
    let told = |region: &str| history.regions.get(region).and_then(|told| told.last()).and_then(|(_, serve)| *serve);
    for (region, reported) in &rest.reported {
        if *reported != told(region) {
            let what = format!("{region} reports {reported:?}, and is told {:?}", told(region));
            find(Rule::NotAtRest, what);
        }
    }
    for (number, place) in evidence.places.iter().enumerate() {
        let answered = rest.answered.get(&number).copied().flatten();
        if answered != told(&place.region) {
            let what = format!("{} answers {answered:?}, and its region is told {:?}", place.name, told(&place.region));
            find(Rule::NotAtRest, what);
        }
    }
    match history.pushes.get(rest.next.as_str()) {
        Some(past) if past.last.status == PushStatus::Completed => {
            for (region, told) in &history.regions {
                if told.last().and_then(|(_, serve)| *serve) != Some(past.last.version) {
                    find(Rule::NextPush, format!("{region} is not told to serve what was pushed last"));
                }
            }
        }
        Some(past) => {
            find(Rule::NextPush, format!("{} is {}: {}", rest.next, past.last.status.word(), past.last.reason));
        }
        None => find(Rule::NextPush, format!("{:?} was not accepted", rest.next)),
    }
}
