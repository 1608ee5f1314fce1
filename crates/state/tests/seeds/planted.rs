//! That a verdict can fail: faults that are planted in the hooks' code or in what a seed left behind are found.

use tidegate_state::Record;
use tidegate_state::driver::{LogEntry, ReceiptOutcome};
use tidegate_state::testing::StoreKind;
use tidegate_state::testing::history::HistoryEvent;

use super::hooks::{Effect, Flaw};
use super::play::Evidence;
use super::seeds::play_seed;
use super::verdict::judge;
use super::world::Answer;

/// How many seeds are tried for one in which a flaw shows.
const TRIES: u64 = 200;

#[test]
fn x07_a_hook_that_counts_outside_its_acknowledgement_is_found() {
    let found = (0..TRIES).any(|seed| {
        let verdict = judge(&play_seed(StoreKind::Memory, seed, Flaw::CountsOnItsOwn));
        verdict.violations.iter().any(|violation| violation.contains("the counters are"))
    });
    assert!(found, "in none of {TRIES} seeds a run that was repeated counted twice");
}

/// Something that is changed in the evidence of a sound run; says whether there was anything to change.
type Plant = fn(&mut Evidence) -> bool;

const PLANTS: [(&str, Plant); 9] = [
    ("a start is missing", |evidence| {
        // Of a request with one run alone, so that no other explains its receipt.
        let starts: Vec<_> = evidence
            .history
            .iter()
            .enumerate()
            .filter_map(|(place, line)| match &line.event {
                HistoryEvent::RunStarted { request, .. } => Some((place, *request)),
                _ => None,
            })
            .collect();
        let done = |request| {
            let mut receipts = evidence.stored.receipts.iter();
            receipts.any(|receipt| receipt.request == request && receipt.outcome == ReceiptOutcome::Done)
        };
        let alone = starts
            .iter()
            .find(|(_, request)| done(*request) && starts.iter().filter(|(_, other)| other == request).count() == 1);
        let Some((place, _)) = alone.copied() else { return false };
        evidence.history.remove(place);
        true
    }),
    ("a run is told twice", |evidence| {
        let place = evidence.history.iter().position(|line| matches!(line.event, HistoryEvent::RunStarted { .. }));
        place.is_some_and(|place| {
            let line = evidence.history[place].clone();
            evidence.history.insert(place, line);
            true
        })
    }),
    ("a receipt is missing", |evidence| {
        let history = &evidence.history;
        let ran = |request| {
            let mut lines = history.iter();
            lines.any(|line| matches!(&line.event, HistoryEvent::RunStarted { request: of, .. } if *of == request))
        };
        let place = evidence
            .stored
            .receipts
            .iter()
            .position(|receipt| receipt.outcome == ReceiptOutcome::Done && ran(receipt.request));
        place.is_some_and(|place| {
            evidence.stored.receipts.remove(place);
            true
        })
    }),
    ("an effect is missing", |evidence| {
        let place = evidence.stored.records.iter().position(|row| &*row.kind == Effect::KIND);
        place.is_some_and(|place| {
            let effect: Effect = serde_json::from_str(&evidence.stored.records[place].document.json).unwrap();
            evidence.stored.records.remove(place);
            effect.finished
        })
    }),
    ("an effect is there twice", |evidence| {
        let row = evidence.stored.records.iter().find(|row| &*row.kind == Effect::KIND).cloned();
        row.is_some_and(|row| {
            evidence.stored.records.push(row);
            true
        })
    }),
    ("a committed write is denied", |evidence| {
        let mut answers = evidence.submitted.iter_mut();
        let committed = answers.find(|submitted| matches!(submitted.answer, Some(Answer::Committed { .. })));
        committed.is_some_and(|committed| {
            committed.answer = Some(Answer::Failed);
            true
        })
    }),
    ("a failed write is affirmed", |evidence| {
        let mut answers = evidence.submitted.iter_mut();
        let rejected = answers.find(|submitted| submitted.answer == Some(Answer::Rejected));
        rejected.is_some_and(|rejected| {
            rejected.answer = Some(Answer::Committed { revision: 1 });
            true
        })
    }),
    ("a tree lacks an entity", |evidence| evidence.trees[0].1.pop_first().is_some()),
    ("a change is not in the log", |evidence| {
        let own = evidence.submitted.iter().map(|submitted| submitted.submission).collect::<Vec<_>>();
        let changed = |entry: &LogEntry| matches!(entry, LogEntry::Change { .. });
        let place =
            evidence.stored.log.iter().position(|row| own.contains(&row.submission) && row.entries.iter().any(changed));
        place.is_some_and(|place| {
            evidence.stored.log.remove(place);
            true
        })
    }),
];

#[test]
fn x01_what_is_planted_in_what_a_seed_leaves_behind_is_found() {
    let mut left: Vec<_> = PLANTS.to_vec();
    for seed in 0..TRIES {
        if left.is_empty() {
            return;
        }
        let evidence = play_seed(StoreKind::Memory, seed, Flaw::None);
        let sound = judge(&evidence);
        assert!(sound.violations.is_empty(), "seed {seed}: {}\n{}", sound.violations.join("\n"), evidence.plan);
        left.retain(|(what, plant)| {
            let mut planted = evidence.clone();
            if !plant(&mut planted) {
                return true;
            }
            assert!(!judge(&planted).violations.is_empty(), "seed {seed}: {what}, and nobody noticed");
            false
        });
    }
    panic!("there was no occasion for {:?}", left.iter().map(|(what, _)| what).collect::<Vec<_>>());
}
