//! The tree at one revision, to read from.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::change::Change;
use crate::document::Document;
use crate::entity::{Entity, EntityId, Parent, Ref, Root};
use crate::error::ReadError;
use crate::path::Path;
use crate::revision::{Epoch, Revision};
use crate::tree::{Node, Tree};

/// The whole tree at one revision. Immutable, cheap to take, to clone and to hold; reading it does no I/O, and reading the
/// newest one again takes no lock. The first to read one that nobody has read may make its tree, which takes up to a
/// millisecond or two; where snapshots are read all the time, the newest ones have it. It holds on to
/// what it shows, so one that is kept for long keeps old values in memory.
#[derive(Clone)]
pub struct Snapshot(Arc<Inner>);

/// Each transaction has a snapshot, and most are never read: of those that are committed or applied together only the last
/// one's tree is made before it is shown, and that only where somebody reads (see `core/head_tree.rs`). The others know what
/// it is made of, and make it when it is first asked for.
///
/// Invariant: as long as there is no tree, there are the parts.
pub(crate) struct Inner {
    tree: OnceLock<Tree>,
    parts: Mutex<Option<Parts>>,
    revision: Revision,
    epoch: Epoch,
}

/// What a tree that is not there yet is made of.
#[derive(Clone)]
struct Parts {
    before: Snapshot,
    changes: Arc<[Change]>,
}

impl Drop for Inner {
    /// Snapshots that were made of one another go in a loop: there may be a thousand in a row.
    fn drop(&mut self) {
        let mut next = self.parts.get_mut().take();
        while let Some(Parts { before, .. }) = next {
            next = Arc::into_inner(before.0).and_then(|mut alone| alone.parts.get_mut().take());
        }
    }
}

pub(crate) fn unreadable(path: &Path, reason: &str) -> ReadError {
    ReadError::Unreadable { path: path.to_string(), reason: reason.to_owned() }
}

impl Snapshot {
    pub(crate) fn new(tree: Tree, revision: Revision, epoch: Epoch) -> Snapshot {
        Snapshot(Arc::new(Inner { tree: OnceLock::from(tree), parts: Mutex::default(), revision, epoch }))
    }

    /// The snapshot after a transaction with these changes. See [`Inner`].
    pub(crate) fn after(before: Snapshot, changes: Arc<[Change]>, revision: Revision) -> Snapshot {
        let epoch = before.epoch();
        let parts = Mutex::new(Some(Parts { before, changes }));
        Snapshot(Arc::new(Inner { tree: OnceLock::new(), parts, revision, epoch }))
    }

    /// Gives it its tree, which is the one that its parts would make.
    pub(crate) fn complete(&self, tree: Tree) {
        let _ = self.0.tree.set(tree);
        drop(self.0.parts.lock().take());
    }

    pub(crate) fn from_inner(inner: Arc<Inner>) -> Snapshot {
        Snapshot(inner)
    }

    pub(crate) fn into_inner(self) -> Arc<Inner> {
        self.0
    }

    /// Whether its tree was made.
    pub(crate) fn has_tree(&self) -> bool {
        self.0.tree.get().is_some()
    }

    /// How many snapshots its tree would be made of, besides the last one that has a tree.
    #[cfg(test)]
    pub(crate) fn parts_without_tree(&self) -> usize {
        let mut count = 0;
        let mut at = self.clone();
        while !at.has_tree() {
            let Some(Parts { before, .. }) = at.0.parts.lock().clone() else { break };
            at = before;
            count += 1;
        }
        count
    }

    #[inline]
    pub(crate) fn tree(&self) -> &Tree {
        match self.0.tree.get() {
            Some(tree) => tree,
            None => self.make_tree(),
        }
    }

    #[cold]
    fn make_tree(&self) -> &Tree {
        let tree = self.0.tree.get_or_init(|| {
            let mut steps = Vec::new();
            let mut at = self.clone();
            let mut tree = loop {
                if let Some(tree) = at.0.tree.get() {
                    break tree.clone();
                }
                // Without parts it has got its tree since the look before.
                let parts = at.0.parts.lock().clone();
                if let Some(Parts { before, changes }) = parts {
                    steps.push(changes);
                    at = before;
                }
            };
            for change in steps.iter().rev().flat_map(|changes| changes.iter()) {
                match &change.after {
                    Some(after) => tree.insert(after.clone()),
                    None => drop(tree.remove(&change.path)),
                }
            }
            tree
        });
        drop(self.0.parts.lock().take());
        tree
    }

    /// The revision that it shows.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    /// The epoch that its revision counts in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// How many entities there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tree().len()
    }

    /// Whether there is no entity at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tree().len() == 0
    }

    /// The entity, if it exists.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`] when the stored document does not fit the type.
    pub fn get<E: Entity>(&self, entity: &Ref<E>) -> Result<Option<&E>, ReadError> {
        match self.tree().get(entity.path()) {
            None => Ok(None),
            Some(node) => node.get().map(Some).map_err(|reason| unreadable(entity.path(), &reason)),
        }
    }

    /// As [`Snapshot::get`], to keep beyond the snapshot.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn get_arc<E: Entity>(&self, entity: &Ref<E>) -> Result<Option<Arc<E>>, ReadError> {
        match self.tree().get(entity.path()) {
            None => Ok(None),
            Some(node) => node.document.get_arc().map(Some).map_err(|reason| unreadable(entity.path(), &reason)),
        }
    }

    /// The entity, which should exist.
    ///
    /// # Errors
    /// [`ReadError::Absent`] with the path, or as [`Snapshot::get`].
    pub fn require<E: Entity>(&self, entity: &Ref<E>) -> Result<&E, ReadError> {
        self.get(entity)?.ok_or_else(|| ReadError::Absent { path: entity.path().clone() })
    }

    /// Whether there is an entity under this path, readable or not.
    #[must_use]
    pub fn contains(&self, path: &Path) -> bool {
        self.tree().contains(path)
    }

    /// The entity's stored document.
    #[must_use]
    pub fn document(&self, path: &Path) -> Option<&Document> {
        self.tree().get(path).map(|node| &node.document)
    }

    /// The revision that last changed the entity; none if it does not exist.
    #[must_use]
    pub fn changed_at(&self, path: &Path) -> Option<Revision> {
        self.tree().get(path).map(Node::changed_at)
    }

    /// The entities of one collection under a parent, in id order; none if the parent does not exist.
    pub fn children<E: Entity>(&self, parent: &Ref<E::Parent>) -> impl Iterator<Item = Result<(Ref<E>, &E), ReadError>>
    where
        E::Parent: Entity,
    {
        self.listed::<E>(parent.path())
    }

    /// The entities of one collection at the top of the tree, in id order.
    pub fn roots<E: Entity<Parent = Root>>(&self) -> impl Iterator<Item = Result<(Ref<E>, &E), ReadError>> {
        self.listed::<E>(&Path::root())
    }

    fn listed<E: Entity>(&self, parent: &Path) -> impl Iterator<Item = Result<(Ref<E>, &E), ReadError>> + use<'_, E> {
        let children = self.tree().children_typed(parent, E::COLLECTION, E::Id::NUMERIC);
        children.filter_map(|path| self.read_listed(path))
    }

    /// The entities of one collection below any parent, in the order of the parents, then of the ids.
    pub fn all<E: Entity>(&self) -> impl Iterator<Item = Result<(Ref<E>, &E), ReadError>> {
        let paths = self.tree().along(&<E as Parent>::levels());
        paths.into_iter().filter_map(|path| self.read_listed(&path))
    }

    fn read_listed<E: Entity>(&self, path: &Path) -> Option<Result<(Ref<E>, &E), ReadError>> {
        let node = self.tree().get(path)?;
        // An id that is none of the type's is the document's error, not a reason to hide it.
        let entity = match Ref::from_path(path) {
            Ok(entity) => entity,
            Err(error) => return Some(Err(unreadable(path, &error.to_string()))),
        };
        Some(match node.get() {
            Ok(value) => Ok((entity, value)),
            Err(reason) => Err(unreadable(path, &reason)),
        })
    }

    /// All paths from the top down, parents before children, in id order.
    #[must_use]
    pub fn paths(&self) -> Vec<Path> {
        self.tree().subtree(&Path::root())
    }

    /// The path and all that lies below it, parents before children, in id order.
    #[must_use]
    pub fn paths_within(&self, path: &Path) -> Vec<Path> {
        self.tree().subtree(path)
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without what would make its tree.
        write!(formatter, "Snapshot at revision {}", self.revision())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revision::Revision;

    fn document(id: u64, value: u64, at: u64) -> Document {
        let path = Path::parse(&format!("/items/{id}")).unwrap();
        let stored = crate::driver::StoredDocument { format: 1, json: format!("{{\"value\":{value}}}").into() };
        Document::stored_at(path, &stored, Revision(at))
    }

    fn change(path: &str, after: Option<Document>, at: u64) -> Arc<[Change]> {
        let path = Path::parse(path).unwrap();
        let change = Change {
            path,
            revision: Revision(at),
            before: None,
            after,
            sequence: 0,
            hooks: crate::change::Hooks::new(),
        };
        Arc::from([change])
    }

    /// A base with one item, and `count` snapshots after it that each set an item of their own; the last removes the first.
    fn chain(count: u64) -> Vec<Snapshot> {
        let mut tree = Tree::default();
        tree.insert(document(0, 0, 1));
        let mut all = vec![Snapshot::new(tree, Revision(1), Epoch(uuid::Uuid::nil()))];
        for number in 1..=count {
            let at = number + 1;
            let path = format!("/items/{number}");
            let changes = change(&path, Some(document(number, number, at)), at);
            all.push(Snapshot::after(all[all.len() - 1].clone(), changes, Revision(at)));
        }
        let at = count + 2;
        all.push(Snapshot::after(all[all.len() - 1].clone(), change("/items/0", None, at), Revision(at)));
        all
    }

    #[test]
    fn d02_a_snapshot_shows_its_revision_in_whatever_order_they_are_read() {
        for order in [[2, 1, 3, 0], [3, 2, 1, 0], [0, 1, 2, 3]] {
            let all = chain(2);
            for at in order {
                let found: Vec<String> = all[at].paths().iter().map(ToString::to_string).collect();
                let expected: &[&str] = match at {
                    0 => &["/items/0"],
                    1 => &["/items/0", "/items/1"],
                    2 => &["/items/0", "/items/1", "/items/2"],
                    _ => &["/items/1", "/items/2"],
                };
                assert_eq!(found, expected, "read in the order {order:?}");
                assert!(all[at].0.parts.lock().is_none(), "what it was made of is let go");
            }
        }
    }

    #[test]
    fn d02_a_long_row_of_snapshots_is_made_and_let_go_without_depth() {
        let all = chain(100_000);
        assert_eq!(all[all.len() - 1].len(), 100_000);
        let unread = chain(100_000).pop();
        drop(unread);
    }

    #[test]
    fn d02_snapshots_are_made_once_by_many_threads() {
        let all = chain(64);
        std::thread::scope(|scope| {
            for from in 0..4 {
                let all = &all;
                scope.spawn(move || {
                    for at in (0..all.len()).cycle().skip(from * 16).take(all.len()) {
                        assert_eq!(all[at].len(), if at == 65 { 64 } else { at + 1 });
                    }
                });
            }
        });
    }
}
