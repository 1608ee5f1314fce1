//! The tree of the head: what the next transaction goes on with, and which snapshots get their tree before they are shown.
//!
//! To make a tree copies what it does not share with the one before, which under many small transactions took a server a
//! quarter of its time. So it is made for whoever reads: as long as nobody does, snapshots are shown without, and the first to
//! read one makes its tree (see [`Snapshot`]). Whoever has read is likely to read again, and the next ones get theirs before
//! they are shown.
//!
//! Invariants: the tree that is kept is that of the head's snapshot; a snapshot that is shown without a tree is made of a
//! bounded number of changes, so that whoever reads it waits for a millisecond or two at most.

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
        if self.changes > 0 && snapshot.has_tree() {
            // Whoever has read it has made what would be made here once more.
            self.changes = 0;
            self.wanted = AFTER_A_READ;
            return snapshot.tree().clone().into();
        }
        kept.unwrap_or_else(|| snapshot.tree().clone().into())
    }

    /// Whether the snapshot that many changes after the head's is to have its tree before it is shown.
    pub(super) fn is_due(&self, changes: usize) -> bool {
        let changes = self.changes + changes;
        changes > 0 && (self.wanted > 0 || changes >= CHANGES_MAX)
    }

    /// Keeps the tree of a snapshot that is the head's from now on, that many changes after the one before. It is not shown
    /// yet.
    pub(super) fn put(&mut self, tree: WorkingTree, snapshot: &Snapshot, changes: usize) {
        self.kept = Some(tree);
        self.changes += changes;
        self.note(snapshot);
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

    use super::*;
    use crate::change::Change;
    use crate::document::Document;
    use crate::driver::StoredDocument;
    use crate::path::Path;
    use crate::revision::{Epoch, Revision};
    use crate::tree::Tree;

    /// The head of a log, as a server goes through it.
    struct Head {
        tree: HeadTree,
        snapshot: Snapshot,
    }

    impl Head {
        fn new() -> Head {
            let snapshot = Snapshot::new(Tree::default(), Revision::ZERO, Epoch(uuid::Uuid::nil()));
            Head { tree: HeadTree::default(), snapshot }
        }

        /// One transaction that changes one entity. Says whether its snapshot is shown with a tree.
        fn change(&mut self) -> bool {
            let revision = self.snapshot.revision().next();
            let path = Path::root().child("things", &(revision.0 % 5).to_string()).unwrap();
            let stored = StoredDocument { format: 1, json: revision.0.to_string().into() };
            let after = Document::stored_at(path.clone(), &stored, revision);
            let mut tree = self.tree.take(&self.snapshot);
            let before = tree.get(&path).map(|node| node.document.clone());
            tree.insert(after.clone());
            let change =
                Change { path, revision, before, after: Some(after), sequence: 0, hooks: smallvec::SmallVec::new() };
            self.snapshot = Snapshot::after(self.snapshot.clone(), Arc::from([change]), revision);
            if self.tree.is_due(1) {
                self.snapshot.complete(tree.whole().clone());
            }
            self.tree.put(tree, &self.snapshot, 1);
            self.snapshot.has_tree()
        }

        fn newest(&self) -> u64 {
            let newest = |path: &Path| self.snapshot.document(path).map(|document| document.json().parse().unwrap());
            (0..5).filter_map(|id| newest(&Path::root().child("things", &id.to_string()).unwrap())).max().unwrap()
        }
    }

    #[test]
    fn where_nobody_reads_a_tree_is_made_once_in_a_while() {
        let mut head = Head::new();
        let made: Vec<bool> = (0..24).map(|_| head.change()).collect();
        assert_eq!(made.iter().filter(|made| **made).count(), 3);
        assert!(made[7] && made[15] && made[23]);
    }

    #[test]
    fn whoever_has_read_finds_the_next_trees_made() {
        let mut head = Head::new();
        assert!(!head.change() && !head.change());
        assert_eq!(head.newest(), 2);
        for revision in 3..19 {
            assert!(head.change(), "{revision}");
            assert_eq!(head.newest(), revision);
        }
        // Left without, to learn whether anybody reads still.
        assert!(!head.change());
        assert_eq!(head.newest(), 19);
        assert!(head.change());
        assert_eq!(head.newest(), 20);
    }

    #[test]
    fn a_tree_that_is_not_put_back_is_made_from_the_snapshot() {
        let mut head = Head::new();
        for _ in 0..3 {
            head.change();
        }
        // A commit that failed.
        drop(head.tree.take(&head.snapshot));
        head.change();
        assert_eq!(head.newest(), 4);
    }
}
