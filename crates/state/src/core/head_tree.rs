//! The tree of the head: what the next transaction goes on with, and which snapshots get their tree before they are shown.
//!
//! To make a tree copies what it does not share with the one before, which under many small transactions took a server a
//! quarter of its time. So it is made for whoever reads: as long as nobody does, snapshots are shown without, and the first to
//! read one makes its tree (see [`Snapshot`]). Whoever has read is likely to read again, and the next ones get theirs before
//! they are shown.
//!
//! Invariants: the tree that is kept is that of the head's snapshot; a snapshot that is shown without a tree is made of fewer
//! than [`CHANGES_MAX`] changes, so that whoever reads it waits for a millisecond or two at most.

use crate::snapshot::Snapshot;
use crate::working_tree::WorkingTree;

/// So many changes after the last snapshot with a tree, the next one gets its own although nobody reads.
const CHANGES_MAX: usize = if cfg!(test) { 8 } else { 1_024 };
/// How many snapshots get their tree after one was read that had none.
const AFTER_A_READ: u8 = 16;

/// See the module's text.
#[derive(Default)]
pub(super) struct HeadTree {
    /// None: it is to be made from the head's snapshot.
    kept: Option<WorkingTree>,
    /// How many changes the head's snapshot is made of, if it was shown without a tree.
    changes: usize,
    /// How many of the next ones get their tree, since one without was read.
    wanted: u8,
}

impl HeadTree {
    /// The tree of the head's snapshot, to be changed. If it is not put back, it is made from the snapshot next time.
    pub(super) fn take(&mut self, snapshot: &Snapshot) -> WorkingTree {
        let kept = self.kept.take();
        if self.was_read(snapshot) {
            // Whoever has read it has made what would be made here once more.
            return snapshot.tree().clone().into();
        }
        kept.unwrap_or_else(|| snapshot.tree().clone().into())
    }

    /// A tree that begins as that of the head's snapshot and goes its own way, if that is there without being made.
    pub(super) fn fork(&mut self, snapshot: &Snapshot) -> Option<WorkingTree> {
        if self.kept.is_none() && snapshot.has_tree() {
            self.kept = Some(snapshot.tree().clone().into());
        }
        self.kept.as_mut().map(WorkingTree::fork)
    }

    /// Whether the snapshot that many changes after the head's is to have its tree before it is shown.
    pub(super) fn is_due(&self, changes: usize) -> bool {
        let changes = self.changes + changes;
        changes > 0 && (self.wanted > 0 || changes >= CHANGES_MAX)
    }

    /// Keeps the tree of a snapshot that is the head's from now on, that many changes after the one before. It is not shown
    /// yet, and gets its tree here if it has none and is made of too many changes.
    pub(super) fn put(&mut self, mut tree: WorkingTree, before: &Snapshot, snapshot: &Snapshot, changes: usize) {
        if changes > 0 {
            // That may have been while this one came about, too.
            self.was_read(before);
            self.changes += changes;
            if self.changes >= CHANGES_MAX && !snapshot.has_tree() {
                snapshot.complete(tree.whole().clone());
            }
            self.note(snapshot);
        }
        self.kept = Some(tree);
    }

    /// The same where the tree was lost: the snapshot's is made of its parts.
    pub(super) fn put_lost(&mut self, snapshot: &Snapshot) {
        snapshot.tree();
        self.changes = 0;
    }

    /// Gives the head's snapshot, which is about to be shown, its tree if that is due.
    pub(super) fn complete(&mut self, snapshot: &Snapshot) {
        if self.is_due(0)
            && let Some(tree) = &mut self.kept
        {
            snapshot.complete(tree.whole().clone());
            self.note(snapshot);
        }
    }

    /// Whether the head's snapshot was shown without a tree and has one by now, which is noticed once.
    fn was_read(&mut self, head: &Snapshot) -> bool {
        let was_read = self.changes > 0 && head.has_tree();
        if was_read {
            self.changes = 0;
            self.wanted = AFTER_A_READ;
        }
        was_read
    }

    /// Counts from a snapshot that has got its tree here.
    fn note(&mut self, snapshot: &Snapshot) {
        if self.changes > 0 && snapshot.has_tree() {
            self.changes = 0;
            self.wanted = self.wanted.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::change::Change;
    use crate::document::Document;
    use crate::driver::StoredDocument;
    use crate::path::Path;
    use crate::revision::{Epoch, Revision};
    use crate::tree::Tree;

    /// What may become of a transaction, and of the snapshot after it.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Committed,
        /// It changes no entity.
        CommittedWithout,
        /// The thread that had the tree is left behind, and what had run before is committed.
        Lost,
        Failed,
        /// Nothing was to be committed.
        Nothing,
        Read,
    }

    /// The head of a log, as a server goes through it, and a tree that is made at once.
    struct Head {
        tree: HeadTree,
        snapshot: Snapshot,
        whole: Tree,
    }

    impl Head {
        fn new() -> Head {
            let snapshot = Snapshot::new(Tree::default(), Revision::ZERO, Epoch(uuid::Uuid::nil()));
            Head { tree: HeadTree::default(), snapshot, whole: Tree::default() }
        }

        fn go(&mut self, step: Step) {
            if let Step::Read = step {
                self.snapshot.tree();
                return;
            }
            let mut tree = self.tree.take(&self.snapshot);
            if let Step::Nothing = step {
                self.tree.put(tree, &self.snapshot, &self.snapshot, 0);
                return;
            }
            let revision = self.snapshot.revision().next();
            let path = Path::root().child("things", &(revision.0 % 5).to_string()).unwrap();
            let stored = StoredDocument { format: 1, json: revision.0.to_string().into() };
            let after = Document::stored_at(path.clone(), &stored, revision);
            let change = Change {
                path: path.clone(),
                revision,
                before: tree.get(&path).map(|node| node.document.clone()),
                after: Some(after.clone()),
                sequence: 0,
                hooks: smallvec::SmallVec::new(),
            };
            let changes = if let Step::CommittedWithout = step { Vec::new() } else { vec![change] };
            let next = Snapshot::after(self.snapshot.clone(), Arc::from(changes), revision);
            if !matches!(step, Step::CommittedWithout) {
                tree.insert(after.clone());
            }
            if self.tree.is_due(1) {
                next.complete(tree.whole().clone());
            }
            match step {
                Step::Failed => return,
                Step::Lost => self.tree.put_lost(&next),
                _ => self.tree.put(tree, &self.snapshot, &next, 1),
            }
            if !matches!(step, Step::CommittedWithout) {
                self.whole.insert(after);
            }
            self.snapshot = next;
        }

        fn has_tree_after(&mut self, step: Step) -> bool {
            self.go(step);
            self.snapshot.has_tree()
        }
    }

    proptest! {
        /// Whatever becomes of transactions and whenever somebody reads, what is kept and what is read are what a tree that is
        /// made at once is, and no snapshot is made of more changes than it may be.
        #[test]
        fn what_is_kept_is_the_tree_of_the_head(
            steps in prop::collection::vec(
                prop_oneof![
                    6 => Just(Step::Committed),
                    2 => Just(Step::CommittedWithout),
                    1 => Just(Step::Lost),
                    1 => Just(Step::Failed),
                    1 => Just(Step::Nothing),
                    1 => Just(Step::Read),
                ],
                0..60,
            ),
        ) {
            let mut head = Head::new();
            for step in steps {
                head.go(step);
                if let Some(mut kept) = head.tree.kept.clone() {
                    prop_assert_eq!(kept.whole().diff(&head.whole).len(), 0);
                }
                prop_assert!(head.snapshot.has_tree() || head.snapshot.parts_without_tree() < CHANGES_MAX);
            }
            prop_assert_eq!(head.snapshot.tree().diff(&head.whole).len(), 0);
        }
    }

    #[test]
    fn where_nobody_reads_a_tree_is_made_once_in_a_while() {
        for step in [Step::Committed, Step::CommittedWithout] {
            let mut head = Head::new();
            let made: Vec<bool> = (0..24).map(|_| head.has_tree_after(step)).collect();
            assert_eq!(made.iter().filter(|made| **made).count(), 3);
            assert!(made[7] && made[15] && made[23]);
        }
    }

    #[test]
    fn whoever_has_read_finds_the_next_trees_made() {
        let mut head = Head::new();
        assert!(!head.has_tree_after(Step::Committed));
        head.go(Step::Read);
        for _ in 0..AFTER_A_READ {
            assert!(head.has_tree_after(Step::Committed));
        }
        // Left without, to learn whether anybody reads still.
        assert!(!head.has_tree_after(Step::Committed));
        assert!(!head.has_tree_after(Step::Committed));
    }

    #[test]
    fn who_reads_while_the_next_transaction_comes_about_is_noticed_too() {
        let mut head = Head::new();
        head.go(Step::Committed);
        let tree = head.tree.take(&head.snapshot);
        head.snapshot.tree();
        let next = Snapshot::after(head.snapshot.clone(), Arc::from([]), head.snapshot.revision().next());
        head.tree.put(tree, &head.snapshot, &next, 1);
        head.snapshot = next;
        assert!(head.has_tree_after(Step::Committed));
    }
}
