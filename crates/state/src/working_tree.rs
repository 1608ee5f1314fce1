//! The tree that transactions are carried out on, one after the other.
//!
//! To put an entity into a tree that others still read copies a part of that tree, which takes longer than all else that is done
//! for a small transaction. Where an entity is only replaced, it is kept beside the tree for the time being: the tree is made
//! when nobody waits for it under the write lock.
//!
//! Invariant: whatever stands beside the tree has its path in it, so that the tree says rightly which paths there are.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use crate::document::Document;
use crate::path::Path;
use crate::tree::{CarriedHash, Children, Node, Tree};

/// How many entities are kept beside the tree: what it takes to make the tree of them holds up nobody for long.
const BESIDE_MAX: usize = if cfg!(test) { 3 } else { 1_024 };

type Replaced = HashSet<Node, BuildHasherDefault<CarriedHash>>;

/// See the module's text.
#[derive(Clone)]
pub(crate) struct WorkingTree {
    tree: Tree,
    replaced: Arc<Replaced>,
    /// What stood beside the tree that this one began as. What is replaced here hides what is replaced there.
    beneath: Option<Arc<Replaced>>,
}

impl From<Tree> for WorkingTree {
    fn from(tree: Tree) -> WorkingTree {
        WorkingTree { tree, replaced: Arc::default(), beneath: None }
    }
}

impl WorkingTree {
    /// One of its own that begins as this one, in constant time. As long as it is there, this one copies what they share before
    /// it changes it.
    pub(crate) fn fork(&mut self) -> WorkingTree {
        self.own();
        WorkingTree { tree: self.tree.clone(), replaced: Arc::default(), beneath: Some(self.replaced.clone()) }
    }

    pub(crate) fn get(&self, path: &Path) -> Option<&Node> {
        let beneath = || self.beneath.as_ref().and_then(|beneath| beneath.get(path));
        self.replaced.get(path).or_else(beneath).or_else(|| self.tree.get(path))
    }

    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.tree.contains(path)
    }

    /// Sets a node; its parent is the caller's concern.
    pub(crate) fn insert(&mut self, document: Document) {
        if self.tree.contains(document.path()) {
            if self.replaced.len() < BESIDE_MAX || self.replaced.contains(document.path()) {
                Arc::make_mut(&mut self.replaced).replace(Node::new(document));
                return;
            }
            if self.beneath.is_some() {
                self.own();
                Arc::make_mut(&mut self.replaced).remove(document.path());
            }
        }
        self.tree.insert(document);
    }

    /// Takes in what is beneath.
    fn own(&mut self) {
        let Some(beneath) = self.beneath.take() else { return };
        if self.replaced.is_empty() {
            self.replaced = beneath;
            return;
        }
        for node in beneath.iter() {
            if !self.replaced.contains(node) {
                Arc::make_mut(&mut self.replaced).insert(node.clone());
            }
        }
    }

    /// Removes one node, not what is below it.
    pub(crate) fn remove(&mut self, path: &Path) -> Option<Node> {
        self.own();
        let replaced = if self.replaced.is_empty() { None } else { Arc::make_mut(&mut self.replaced).take(path) };
        let removed = self.tree.remove(path)?;
        Some(replaced.unwrap_or(removed))
    }

    /// As [`Tree::subtree`].
    pub(crate) fn subtree(&self, path: &Path) -> Vec<Path> {
        self.tree.subtree(path)
    }

    /// As [`Tree::children_typed`].
    pub(crate) fn children_typed(&self, parent: &Path, collection: &str, numeric: bool) -> Children<'_> {
        self.tree.children_typed(parent, collection, numeric)
    }

    /// As [`Tree::along`].
    pub(crate) fn along(&self, levels: &[(&'static str, bool)]) -> Vec<Path> {
        self.tree.along(levels)
    }

    /// The tree with everything in it.
    pub(crate) fn whole(&mut self) -> &Tree {
        self.own();
        match Arc::get_mut(&mut self.replaced) {
            Some(replaced) => {
                for node in replaced.drain() {
                    self.tree.insert(node.document);
                }
            }
            None => {
                for node in std::mem::take(&mut self.replaced).iter() {
                    self.tree.insert(node.document.clone());
                }
            }
        }
        &self.tree
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::driver::StoredDocument;
    use crate::revision::Revision;

    fn document(id: u8, text: u8) -> Document {
        let path = Path::root().child("things", &id.to_string()).unwrap();
        let stored = StoredDocument { format: 1, json: text.to_string().into() };
        Document::stored_at(path, &stored, Revision(u64::from(text)))
    }

    proptest! {
        /// Whatever is put and removed, and whenever the whole tree is asked for, it is as if there were the tree alone.
        #[test]
        fn a_working_tree_is_as_a_tree(
            steps in prop::collection::vec((0_u8..6, any::<u8>(), 0_u8..7), 0..60),
        ) {
            let mut tree = Tree::default();
            let mut working = WorkingTree::from(Tree::default());
            let mut left: Vec<(Tree, WorkingTree)> = Vec::new();
            for (id, text, step) in steps {
                let document = document(id, text);
                let path = document.path().clone();
                match step {
                    0 | 1 => {
                        tree.insert(document.clone());
                        working.insert(document);
                    }
                    2 => {
                        let (expected, removed) = (tree.remove(&path), working.remove(&path));
                        prop_assert_eq!(
                            removed.map(|node| node.document.json().to_owned()),
                            expected.map(|node| node.document.json().to_owned())
                        );
                    }
                    3 => prop_assert_eq!(working.whole().diff(&tree).len(), 0),
                    // Goes on with a fork, and leaves the other one as it is; or comes back to it.
                    4 => {
                        let fork = working.fork();
                        left.push((tree.clone(), std::mem::replace(&mut working, fork)));
                    }
                    5 => left.push((tree.clone(), working.fork())),
                    _ => {
                        if let Some(last) = left.pop() {
                            (tree, working) = last;
                        }
                    }
                }
                for id in 0..6 {
                    let path = self::document(id, 0).path().clone();
                    let json = |node: Option<&Node>| node.map(|node| node.document.json().to_owned());
                    prop_assert_eq!(json(working.get(&path)), json(tree.get(&path)));
                    prop_assert_eq!(working.contains(&path), tree.contains(&path));
                }
                prop_assert_eq!(working.subtree(&Path::root()), tree.subtree(&Path::root()));
            }
            left.push((tree, working));
            for (tree, mut working) in left {
                prop_assert_eq!(working.whole().diff(&tree).len(), 0);
                prop_assert_eq!(working.whole().len(), tree.len());
            }
        }
    }
}
