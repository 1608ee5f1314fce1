//! What a run comes to by what its writers were told, where the log does not reach back to its beginning: the oracle of runs
//! in which the log is compacted. No server may have died in them, since then nobody knows all answers.

use std::collections::BTreeMap;

use super::evidence::{Answered, Evidence};
use super::server::{Answer, Contents};
use super::workload::{EVERY, Effect, LATEST, Operation, operation};

/// The operations that were committed, in the order of their revisions; why that can't be told.
fn committed(seed: u64, answers: &[Answered]) -> Result<Vec<Operation>, String> {
    let mut found = BTreeMap::new();
    for answered in answers {
        match answered.answer {
            Some(Answer::Committed { revision }) => {
                found.insert(revision, operation(seed, answered.server, answered.number));
            }
            Some(Answer::Unchanged | Answer::Rejected | Answer::Failed) => {}
            Some(Answer::Unknown) | None => return Err(format!("nobody knows what became of {answered:?}")),
        }
    }
    Ok(found.into_values().collect())
}

/// How many changes were committed.
pub(crate) fn changes(evidence: &Evidence) -> usize {
    committed(evidence.seed, &evidence.answers).map_or(0, |operations| operations.len())
}

/// Trees, counters and records that do not agree with the changes.
pub(crate) fn miscounted(evidence: &Evidence, trees: &[Contents], effects: &[Effect]) -> Vec<String> {
    let operations = match committed(evidence.seed, &evidence.answers) {
        Ok(operations) => operations,
        Err(why) => return vec![why],
    };
    let mut recorded: BTreeMap<String, u64> = BTreeMap::new();
    for effect in effects {
        *recorded.entry(format!("{}.{}", effect.hook, effect.key)).or_default() += 1;
    }
    compared(&operations, trees, &recorded)
}

fn compared(operations: &[Operation], trees: &[Contents], recorded: &BTreeMap<String, u64>) -> Vec<String> {
    let mut things = BTreeMap::new();
    let mut changes: BTreeMap<u64, u64> = BTreeMap::new();
    for operation in operations {
        let thing = match operation {
            Operation::Put { thing, value } => {
                things.insert(*thing, *value);
                thing
            }
            Operation::Delete { thing } => {
                things.remove(thing);
                thing
            }
            Operation::Reject { .. } => continue,
        };
        *changes.entry(*thing).or_default() += 1;
    }
    let mut found = Vec::new();
    for (server, tree) in trees.iter().enumerate() {
        if tree.things != things {
            found.push(format!("server {server}'s tree is not what its writers were told"));
        }
        if tree.counts != *recorded {
            found.push(format!("server {server}'s counters are not what is recorded"));
        }
    }
    for (thing, asked) in &changes {
        let ran = |hook: &str| recorded.get(&format!("{hook}.{thing}")).copied().unwrap_or(0);
        let (every, latest) = (ran(EVERY), ran(LATEST));
        if every != *asked || !(1..=*asked).contains(&latest) {
            found.push(format!(
                "thing {thing}: {asked} changes, {every} runs for every change, {latest} for the latest"
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x15_what_differs_from_what_writers_were_told_is_found() {
        let operations = [
            Operation::Put { thing: 1, value: 5 },
            Operation::Put { thing: 2, value: 6 },
            Operation::Delete { thing: 1 },
        ];
        let counts: BTreeMap<String, u64> = [("every.1", 2), ("latest.1", 1), ("every.2", 1), ("latest.2", 1)]
            .map(|(name, count)| (name.to_owned(), count))
            .into();
        let tree = Contents { things: BTreeMap::from([(2, 6)]), counts: counts.clone() };
        assert_eq!(compared(&operations, std::slice::from_ref(&tree), &counts), Vec::<String>::new());
        let mut lost = counts.clone();
        lost.insert("every.1".to_owned(), 1);
        let uncounted = Contents { counts: lost.clone(), ..tree.clone() };
        assert_eq!(compared(&operations, &[uncounted], &lost).len(), 1);
        let stale = Contents { things: BTreeMap::from([(1, 5), (2, 6)]), ..tree };
        assert_eq!(compared(&operations, &[stale], &counts).len(), 1);
    }
}
