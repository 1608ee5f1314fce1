//! The tree at one revision, to read from.

use std::sync::Arc;

use crate::document::Document;
use crate::entity::{Entity, EntityId, Parent, Ref, Root};
use crate::error::ReadError;
use crate::path::Path;
use crate::revision::{Epoch, Revision};
use crate::tree::{Node, Tree};

/// The whole tree at one revision. Immutable, cheap to take, to clone and to hold; reading it does no I/O and takes no
/// lock. It holds on to what it shows, so one that is kept for long keeps old values in memory.
#[derive(Clone)]
pub struct Snapshot(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) tree: Tree,
    pub(crate) revision: Revision,
    pub(crate) epoch: Epoch,
}

pub(crate) fn unreadable(path: &Path, reason: &str) -> ReadError {
    ReadError::Unreadable { path: path.to_string(), reason: reason.to_owned() }
}

impl Snapshot {
    pub(crate) fn new(tree: Tree, revision: Revision, epoch: Epoch) -> Snapshot {
        Snapshot(Arc::new(Inner { tree, revision, epoch }))
    }

    pub(crate) fn from_inner(inner: Arc<Inner>) -> Snapshot {
        Snapshot(inner)
    }

    pub(crate) fn into_inner(self) -> Arc<Inner> {
        self.0
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.0.tree
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
        self.0.tree.len()
    }

    /// Whether there is no entity at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.tree.len() == 0
    }

    /// The entity, if it exists.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`] when the stored document does not fit the type.
    pub fn get<E: Entity>(&self, entity: &Ref<E>) -> Result<Option<&E>, ReadError> {
        match self.0.tree.get(entity.path()) {
            None => Ok(None),
            Some(node) => node.get().map(Some).map_err(|reason| unreadable(entity.path(), &reason)),
        }
    }

    /// As [`Snapshot::get`], to keep beyond the snapshot.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn get_arc<E: Entity>(&self, entity: &Ref<E>) -> Result<Option<Arc<E>>, ReadError> {
        match self.0.tree.get(entity.path()) {
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
        self.0.tree.contains(path)
    }

    /// The entity's stored document.
    #[must_use]
    pub fn document(&self, path: &Path) -> Option<&Document> {
        self.0.tree.get(path).map(|node| &node.document)
    }

    /// The revision that last changed the entity; none if it does not exist.
    #[must_use]
    pub fn changed_at(&self, path: &Path) -> Option<Revision> {
        self.0.tree.get(path).map(Node::changed_at)
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
        let children = self.0.tree.children_typed(parent, E::COLLECTION, E::Id::NUMERIC);
        children.filter_map(|path| self.read_listed(path))
    }

    /// The entities of one collection below any parent, in the order of the parents, then of the ids.
    pub fn all<E: Entity>(&self) -> impl Iterator<Item = Result<(Ref<E>, &E), ReadError>> {
        let paths = self.0.tree.along(&<E as Parent>::levels());
        paths.into_iter().filter_map(|path| self.read_listed(&path))
    }

    fn read_listed<E: Entity>(&self, path: &Path) -> Option<Result<(Ref<E>, &E), ReadError>> {
        let node = self.0.tree.get(path)?;
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
        self.0.tree.subtree(&Path::root())
    }

    /// The path and all that lies below it, parents before children, in id order.
    #[must_use]
    pub fn paths_within(&self, path: &Path) -> Vec<Path> {
        self.0.tree.subtree(path)
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Snapshot at revision {} with {} entities", self.revision(), self.len())
    }
}
