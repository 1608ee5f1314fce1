//! X16: a hook that plays towers of Hanoi. Each run makes the next move, which asks for the next run; a run that was lost
//! stops the play, and one that took effect twice makes an illegal move.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tidegate_state::driver::{LogEntry, StoredState};
use tidegate_state::{ClusterHook, Entity, Outcome, Ref, Registration, Root, Run, Transaction};

/// Discs of a tower.
const DISCS: u8 = 9;

/// Moves that it takes.
const MOVES: usize = (1 << DISCS) - 1;

/// One tower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tower {
    pub(crate) moves: usize,
    /// The discs of each peg by their size, the lowest first.
    pub(crate) pegs: [Vec<u8>; 3],
}

impl Entity for Tower {
    const COLLECTION: &'static str = "towers";
    type Parent = Root;
    type Id = u64;
}

impl Tower {
    pub(crate) fn new() -> Tower {
        Tower { moves: 0, pegs: [(1..=DISCS).rev().collect(), Vec::new(), Vec::new()] }
    }

    /// The tower after the move of this number, from 1; unchanged where that move can't be made.
    fn moved(mut self, number: usize) -> Tower {
        // The shortest solution, by the number of the move alone.
        let (from, to) = ((number & (number - 1)) % 3, ((number | (number - 1)) + 1) % 3);
        if let Some(disc) = self.pegs[from].pop() {
            self.pegs[to].push(disc);
        }
        self.moves += 1;
        self
    }

    fn is_legal(&self) -> bool {
        self.pegs.iter().all(|peg| peg.is_sorted_by(|lower, upper| lower > upper))
    }

    fn is_solved(&self) -> bool {
        self.pegs[1..].iter().any(|peg| peg.len() == usize::from(DISCS))
    }
}

/// The name of the hook that plays.
pub(crate) const HOOK: &str = "towers";

pub(crate) fn registration() -> Registration {
    Registration::new(HOOK, 1).on("/towers/{tower}").key("{tower}").slots(8).attempts_unlimited().latest_state()
}

/// Decides on the move by what it sees, and makes it on what is there: the two differ only if another run, whose token holds
/// no more, got its move in.
pub(crate) struct Playing;

#[async_trait::async_trait]
impl ClusterHook for Playing {
    async fn run(&self, run: Run) -> Outcome {
        let Some(tower) = run.key().as_str().parse().ok().and_then(|tower: u64| Ref::<Tower>::root(tower).ok()) else {
            return Outcome::fail("no tower");
        };
        let seen = match run.snapshot().get(&tower) {
            Ok(Some(seen)) => seen.moves,
            other => return Outcome::fail(format!("{other:?}")),
        };
        if seen == MOVES {
            return Outcome::Done;
        }
        Outcome::done_with(move |transaction: &mut Transaction| match transaction.get(&tower)? {
            Some(there) => {
                let there: Tower = (*there).clone();
                transaction.put(&tower, there.moved(seen + 1))
            }
            None => Ok(()),
        })
    }
}

/// What is wrong with the play of each of so many towers, by the log.
pub(crate) fn broken(stored: &StoredState, towers: u64) -> Vec<String> {
    let mut plays: BTreeMap<String, Vec<Tower>> = BTreeMap::new();
    for row in &stored.log {
        for entry in &row.entries {
            let LogEntry::Change { path, after: Some(after), .. } = entry else { continue };
            if path.collection() == Tower::COLLECTION {
                let tower = serde_json::from_str(&after.json).unwrap();
                plays.entry(path.id().into_owned()).or_default().push(tower);
            }
        }
    }
    let mut found = Vec::new();
    if plays.len() as u64 != towers {
        found.push(format!("{} of {towers} towers were played", plays.len()));
    }
    for (tower, states) in &plays {
        for pair in states.windows(2) {
            let expected = pair[0].clone().moved(pair[0].moves + 1);
            if pair[1] != expected || !expected.is_legal() {
                found.push(format!("tower {tower}: after {:?} came {:?}", pair[0], pair[1]));
            }
        }
        let last = states.last().unwrap();
        if states.len() != MOVES + 1 || !last.is_solved() {
            found.push(format!("tower {tower}: {} moves, and then {last:?}", states.len() - 1));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x16_every_move_of_the_solution_is_legal_and_a_move_made_twice_is_not() {
        let mut tower = Tower::new();
        for number in 1..=MOVES {
            let twice = tower.clone().moved(number).moved(number);
            tower = tower.moved(number);
            assert!(tower.is_legal(), "{number}: {tower:?}");
            // After the last move there is none to compare with.
            assert!(number == MOVES || twice != tower.clone().moved(number + 1), "{number}");
        }
        assert!(tower.is_solved(), "{tower:?}");
    }
}
