//! What the written-behind entities lack, as this server knows, and whose turn it is to write them: one server does, since
//! each would write much the same, and the others look on for as long as they see it go on.
//!
//! Invariants: every path that changed after `from` is touched, with the revision of its last change, so that what
//! another server has written can be left out; one task of a server writes at a time.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::time::Duration;

use crate::change::Applied;
use crate::path::Path;
use crate::revision::Revision;
use crate::tree::CarriedHash;

/// How many rounds there are at most from one write to the next, if writing does not take longer.
const ROUNDS_MAX: u32 = 10;
/// For how many rounds another server may show nothing before this one takes over.
const LOOKS_ON: u32 = ROUNDS_MAX + 2;

/// How many rounds a server leaves out after it has written for so long: writing takes a tenth of the time at most, unless
/// that leaves the entities [`ROUNDS_MAX`] rounds behind.
fn rest(took: Duration, round: Duration) -> u32 {
    let rounds = (1..ROUNDS_MAX).find(|rounds| took * 10 <= round * *rounds).unwrap_or(ROUNDS_MAX);
    let written = (1..rounds).find(|rounds| took <= round * *rounds).unwrap_or(rounds);
    rounds - written
}

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Behind {
    /// The revision that the entities stand for, as far as this server knows.
    pub(super) from: Revision,
    pub(super) touched: HashMap<Path, Revision, BuildHasherDefault<CarriedHash>>,
    /// How many more rounds are left out: another server writes, or this one rests after it has.
    left_out: u32,
}

impl Behind {
    pub(super) fn from(from: Revision) -> Behind {
        Behind { from, ..Behind::default() }
    }

    /// Takes in a transaction that was applied.
    pub(super) fn note(&mut self, applied: &Applied) {
        for change in &*applied.changes {
            match self.touched.get_mut(&change.path) {
                Some(revision) => *revision = applied.revision,
                None => drop(self.touched.insert(change.path.clone(), applied.revision)),
            }
        }
    }

    /// Takes what is lacking up to a revision that is applied; from there on it is for the caller to write.
    pub(super) fn take(&mut self, applied: Revision) -> Behind {
        std::mem::replace(self, Behind { left_out: self.left_out, ..Behind::from(applied) })
    }

    /// Takes back what was taken and is not written; what was touched since then is later.
    pub(super) fn put_back(&mut self, taken: Behind) {
        self.from = taken.from;
        for (path, revision) in taken.touched {
            self.touched.entry(path).or_insert(revision);
        }
    }

    /// Whether it is this server's turn in this round. `at` is what the entities stand for: if that is more than this server
    /// knew of, another has written it.
    pub(super) fn is_its_turn(&mut self, at: Revision) -> bool {
        if at > self.from {
            self.from = at;
            self.touched.retain(|_, revision| *revision > at);
            self.left_out = LOOKS_ON;
        }
        let is_its_turn = self.left_out == 0;
        self.left_out = self.left_out.saturating_sub(1);
        is_its_turn
    }

    /// It has written for so long.
    pub(super) fn wrote(&mut self, took: Duration, round: Duration) {
        self.left_out = self.left_out.max(rest(took, round));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> Path {
        Path::parse(&format!("/items/{name}")).unwrap()
    }

    fn behind(from: u64, touched: &[(&str, u64)]) -> Behind {
        let touched = touched.iter().map(|(name, revision)| (path(name), Revision(*revision))).collect();
        Behind { touched, ..Behind::from(Revision(from)) }
    }

    #[test]
    fn d42_what_could_not_be_written_is_lacking_again_and_what_came_since_counts() {
        let mut lacking = behind(3, &[("a", 4), ("b", 5)]);
        let taken = lacking.take(Revision(6));
        assert_eq!((&lacking, &taken), (&behind(6, &[]), &behind(3, &[("a", 4), ("b", 5)])));
        lacking.touched.insert(path("b"), Revision(7));
        lacking.put_back(taken);
        assert_eq!(lacking, behind(3, &[("a", 4), ("b", 7)]));
    }

    #[test]
    fn d42_what_another_server_has_written_is_not_lacking_any_more() {
        let mut lacking = behind(3, &[("a", 4), ("b", 7), ("c", 6)]);
        assert!(!lacking.is_its_turn(Revision(6)));
        assert_eq!((lacking.from, &lacking.touched), (Revision(6), &behind(6, &[("b", 7)]).touched));
    }

    #[test]
    fn d42_a_server_looks_on_while_another_writes_and_goes_on_when_that_stops() {
        let mut lacking = behind(3, &[]);
        assert!(lacking.is_its_turn(Revision(3)), "nobody has written");
        assert!(lacking.is_its_turn(Revision(2)), "nor now");
        assert!(!lacking.is_its_turn(Revision(4)));
        let looked_on = (0..100).take_while(|_| !lacking.is_its_turn(Revision(4))).count();
        assert!(looked_on > ROUNDS_MAX as usize, "longer than the other rests");
        assert!(lacking.is_its_turn(Revision(4)));
        let _written = lacking.take(Revision(9));
        assert!(lacking.is_its_turn(Revision(9)), "what it writes itself is nobody else's");
    }

    #[test]
    fn d42_who_writes_long_rests_longer() {
        let round = Duration::from_secs(1);
        let rests = [0, 100, 101, 250, 950, 3_500, 60_000].map(|took| rest(Duration::from_millis(took), round));
        assert_eq!(rests, [0, 0, 1, 2, 9, 6, 0]);
        let mut lacking = behind(3, &[]);
        lacking.wrote(Duration::from_millis(250), round);
        assert_eq!([3; 3].map(|at| lacking.is_its_turn(Revision(at))), [false, false, true]);
    }
}
