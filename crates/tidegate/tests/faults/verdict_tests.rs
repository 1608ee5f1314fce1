//! The checker bites: a sound run passes, and each planted fault is found and named.

use std::collections::BTreeMap;

use tidegate_rollout::entities::{EndedBy, PushStatus};

use super::evidence::{Downtime, Evidence, Fact, Intent, Place, PushFact, Pushed, Read, ReadOutcome, Rest, Time, What};
use super::verdict::{Rule, judge};

fn told(at: Time, region: &str, serve: Option<u64>) -> Fact {
    Fact { at, what: What::Told { region: region.to_owned(), serve } }
}

fn push(at: Time, version: u64, status: PushStatus, ended_by: Option<EndedBy>, previous: Option<u64>) -> Fact {
    let regions = BTreeMap::from(["a", "b"].map(|region| (region.to_owned(), previous)));
    let (id, reason) = (format!("p{version}"), String::new());
    Fact { at, what: What::Push(PushFact { id, version, status, ended_by, reason, regions }) }
}

fn pushed(version: u64, intent: Intent, exit: Option<i32>) -> Pushed {
    Pushed { id: format!("p{version}"), generation: version * 10, intent, exit }
}

fn read(place: usize, begun: Time, outcome: ReadOutcome) -> Read {
    Read { place, begun, ended: begun + 5, outcome }
}

fn answered(version: u64) -> ReadOutcome {
    ReadOutcome::Answered { version, generations: vec![version * 10], absent: 0 }
}

/// A sound run: v1 completes, v2 is rolled back, v3 is aborted between its regions, v4 completes. Place 0 was down once.
fn sound() -> Evidence {
    Evidence {
        places: ["a", "b"].map(|name| Place { name: name.to_owned(), region: name.to_owned() }).into(),
        downtimes: vec![Downtime { place: 0, from: 1_000, until: 1_100 }],
        pushed: vec![
            pushed(1, Intent::Complete, Some(0)),
            pushed(2, Intent::RollBack, Some(12)),
            pushed(3, Intent::Abort, Some(11)),
            pushed(4, Intent::Complete, Some(0)),
        ],
        facts: vec![
            push(10, 1, PushStatus::Started, None, None),
            told(100, "a", Some(1)),
            told(110, "b", Some(1)),
            push(200, 1, PushStatus::Completed, None, None),
            told(300, "a", Some(2)),
            told(400, "a", Some(1)),
            push(450, 2, PushStatus::RolledBack, Some(EndedBy::Gate), Some(1)),
            told(500, "a", Some(3)),
            push(550, 3, PushStatus::Aborted, Some(EndedBy::Gate), Some(1)),
            told(600, "a", Some(4)),
            told(650, "b", Some(4)),
            push(700, 4, PushStatus::Completed, None, Some(1)),
        ],
        reads: vec![
            read(0, 150, answered(1)),
            read(0, 320, answered(1)),
            read(0, 320, answered(2)),
            read(0, 460, answered(1)),
            read(0, 560, answered(3)),
            read(0, 800, answered(4)),
            read(0, 996, ReadOutcome::Failed("cut off".to_owned())),
            read(0, 1_050, ReadOutcome::Failed("refused".to_owned())),
            read(1, 640, answered(1)),
            read(1, 720, answered(4)),
        ],
        rest: Rest {
            trouble: Vec::new(),
            reported: BTreeMap::from(["a", "b"].map(|region| (region.to_owned(), Some(4)))),
            answered: BTreeMap::from([(0, Some(4)), (1, Some(4))]),
            next: "p4".to_owned(),
        },
    }
}

#[test]
fn x05_a_sound_run_passes_and_is_counted() {
    let verdict = judge(&sound());
    assert_eq!(verdict.violations, Vec::new());
    assert_eq!((verdict.reads, verdict.excused, verdict.failed), (10, 2, 0));
    assert_eq!(verdict.ended.get(&PushStatus::Completed), Some(&2));
}

#[test]
fn x05_each_planted_fault_is_found_and_named() {
    type Plant = fn(&mut Evidence);
    let table: &[(&str, Rule, Plant)] = &[
        ("a read fails at a place that is up", Rule::FailedRead, |run| {
            run.reads.push(read(0, 900, ReadOutcome::Failed("refused".to_owned())));
        }),
        ("another place was down", Rule::FailedRead, |run| {
            run.reads.push(read(1, 1_050, ReadOutcome::Failed("refused".to_owned())));
        }),
        ("it was up again", Rule::FailedRead, |run| {
            run.reads.push(read(0, 1_101, ReadOutcome::Failed("refused".to_owned())));
        }),
        ("a batch is of two versions", Rule::MixedVersions, |run| {
            let generations = vec![10, 40];
            run.reads.push(read(0, 800, ReadOutcome::Answered { version: 4, generations, absent: 0 }));
        }),
        ("a version has the values of another", Rule::WrongContent, |run| {
            run.reads.push(read(0, 800, ReadOutcome::Answered { version: 4, generations: vec![10], absent: 0 }));
        }),
        ("a key is not there", Rule::WrongContent, |run| {
            run.reads.push(read(0, 800, ReadOutcome::Answered { version: 4, generations: vec![40], absent: 1 }));
        }),
        ("a region serves what it was never told", Rule::NeverTold, |run| run.reads.push(read(1, 560, answered(3)))),
        ("a region serves what it is told later", Rule::NeverTold, |run| run.reads.push(read(1, 600, answered(4)))),
        ("a completed push is not served", Rule::Outdated, |run| run.reads.push(read(1, 701, answered(1)))),
        ("a rolled back push is served", Rule::Outdated, |run| run.reads.push(read(0, 460, answered(2)))),
        ("a completed push is killed later", Rule::FinalChanged, |run| {
            run.facts.push(push(900, 4, PushStatus::Killed, Some(EndedBy::Operator), Some(1)));
        }),
        ("a push completes without a region", Rule::EndMismatch, |run| {
            run.facts.retain(|fact| *fact != told(650, "b", Some(4)));
        }),
        ("a rollback leaves a region out", Rule::EndMismatch, |run| {
            run.facts.retain(|fact| *fact != told(400, "a", Some(1)));
        }),
        ("an aborted push tells a region of a third version", Rule::EndMismatch, |run| {
            run.facts.insert(7, told(480, "b", Some(2)));
        }),
        ("an aborted push goes on", Rule::ToldAfterEnd, |run| run.facts.insert(9, told(560, "b", Some(3)))),
        ("a rolled back version comes again", Rule::ToldAfterEnd, |run| run.facts.insert(7, told(460, "b", Some(2)))),
        ("a gate was passed over", Rule::WrongEnd, |run| run.pushed[3].intent = Intent::Abort),
        ("a gate stopped what it should not", Rule::WrongEnd, |run| run.pushed[2].intent = Intent::Complete),
        ("a fault of a process ends a push", Rule::WrongEnd, |run| {
            run.facts[8] = push(550, 3, PushStatus::Error, Some(EndedBy::Fault), Some(1));
        }),
        ("a client is told something else", Rule::FalseAnswer, |run| run.pushed[1].exit = Some(0)),
        ("a client is told of a push that is not there", Rule::FalseAnswer, |run| {
            run.pushed.push(pushed(9, Intent::Complete, Some(0)));
        }),
        ("a push does not end", Rule::Unended, |run| {
            run.facts.push(push(900, 5, PushStatus::Started, None, Some(4)));
        }),
        ("something did not come to rest", Rule::NotAtRest, |run| run.rest.trouble.push("a lags".to_owned())),
        ("a region reports something else", Rule::NotAtRest, |run| {
            run.rest.reported.insert("b".to_owned(), Some(1));
        }),
        ("a place answers something else", Rule::NotAtRest, |run| {
            run.rest.answered.insert(1, Some(1));
        }),
        ("a place does not answer", Rule::NotAtRest, |run| {
            run.rest.answered.remove(&1);
        }),
        ("the next push is refused", Rule::NextPush, |run| run.rest.next = "p5".to_owned()),
        ("the next push fails", Rule::NextPush, |run| run.rest.next = "p3".to_owned()),
    ];
    for (name, rule, plant) in table {
        let mut run = sound();
        plant(&mut run);
        let found = judge(&run).violations;
        assert!(found.iter().any(|violation| violation.rule == *rule), "{name}: {found:?}");
    }
}
