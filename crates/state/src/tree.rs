//! The whole tree at one revision: a persistent map that is cloned in constant time.
//!
//! Invariants: a node's parent is there (kept by transactions, which refuse a write under an absent parent and delete
//! whole subtrees); `children` lists exactly the paths of `nodes`, per parent and collection, in id order.
//!
//! A node is its own key: its document knows its path. An entry of the map is two pointers, to the document and, once it was
//! read, to its value, so that a look-up waits for the path that it compares and for the value at the same time.
//!
//! Order of ids: canonical decimal numbers (`7`, not `07`) come first, as numbers; then all other ids, by the bytes of
//! their text. This needs no entity type, so it is the same on servers that do not know a collection. A listing by a
//! type whose ids are text puts number-like ids at their place by bytes.

use std::any::Any;
use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::{Arc, OnceLock};

use imbl::shared_ptr::DefaultSharedPtr;
use imbl::{GenericHashMap, OrdSet};

use crate::document::Document;
use crate::entity::Entity;
use crate::path::Path;
use crate::revision::Revision;

/// What stands under a path.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) document: Document,
    /// The document's value, once it was read through this node.
    read: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.document.path() == other.document.path()
    }
}
impl Eq for Node {}
impl Hash for Node {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.document.path().hash(hasher);
    }
}
impl Borrow<Path> for Node {
    fn borrow(&self) -> &Path {
        self.document.path()
    }
}

impl Node {
    pub(crate) fn new(document: Document) -> Node {
        Node { document, read: OnceLock::new() }
    }

    /// The value, decoded at most once; the error is the reason.
    pub(crate) fn get<E: Entity>(&self) -> Result<&E, Arc<str>> {
        match self.read.get().and_then(|value| value.downcast_ref()) {
            Some(value) => Ok(value),
            None => self.first_get(),
        }
    }

    #[cold]
    fn first_get<E: Entity>(&self) -> Result<&E, Arc<str>> {
        // Where another type read it first, this one's value stays with the document alone.
        if self.read.get().is_none() {
            let value = self.document.get_arc::<E>()?;
            self.read.get_or_init(|| value);
        }
        self.document.get()
    }

    /// The revision that last changed it.
    pub(crate) fn changed_at(&self) -> Revision {
        self.document.written_at()
    }
}

/// Takes the hash that a [`Path`] carries as it is.
#[derive(Default)]
pub(crate) struct CarriedHash(u64);

impl Hasher for CarriedHash {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only paths are keys here, and they carry their hash")
    }
}

pub(crate) type ByPath<V> = GenericHashMap<Path, V, BuildHasherDefault<CarriedHash>, DefaultSharedPtr>;

/// See the module's text.
#[derive(Clone, Default)]
pub(crate) struct Tree {
    nodes: GenericHashMap<Node, (), BuildHasherDefault<CarriedHash>, DefaultSharedPtr>,
    children: ByPath<Arc<[Collection]>>,
}

/// The children of one parent in one collection.
#[derive(Clone)]
struct Collection {
    name: Arc<str>,
    members: Members,
}

/// Most parents have few children, and an ordered tree of one costs as much memory as one of thirty.
#[derive(Clone)]
enum Members {
    Few(Arc<[ById]>),
    Many(OrdSet<ById>),
}

const FEW: usize = 12;

/// A path ordered by its id among those of one parent and collection.
#[derive(Clone, PartialEq, Eq)]
struct ById(Path);

impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_ids(&self.0.id(), &other.0.id())
    }
}

/// The number that an id is the canonical text of.
fn as_number(id: &str) -> Option<u64> {
    let bytes = id.as_bytes();
    let canonical = matches!(bytes, [b'0'] | [b'1'..=b'9', ..]) && bytes.len() <= 20;
    if canonical { id.parse().ok() } else { None }
}

fn compare_ids(left: &str, right: &str) -> Ordering {
    match (as_number(left), as_number(right)) {
        (Some(left), Some(right)) => left.cmp(&right),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => left.cmp(right),
    }
}

/// Parents before children, else collections by name and ids in id order.
pub(crate) fn compare_paths(left: &Path, right: &Path) -> Ordering {
    let mut left = left.pairs();
    let mut right = right.pairs();
    loop {
        match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some((left_name, left_id)), Some((right_name, right_id))) => {
                let order = left_name.cmp(right_name).then_with(|| compare_ids(&left_id, &right_id));
                if order != Ordering::Equal {
                    return order;
                }
            }
        }
    }
}

/// Children before parents, else as [`compare_paths`].
pub(crate) fn compare_paths_children_first(left: &Path, right: &Path) -> Ordering {
    if left == right {
        Ordering::Equal
    } else if left.is_within(right) {
        Ordering::Less
    } else if right.is_within(left) {
        Ordering::Greater
    } else {
        compare_paths(left, right)
    }
}

impl Tree {
    pub(crate) fn get(&self, path: &Path) -> Option<&Node> {
        self.nodes.get_key_value(path).map(|(node, ())| node)
    }

    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.nodes.contains_key(path)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All nodes, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Path, &Node)> {
        self.nodes.keys().map(|node| (node.document.path(), node))
    }

    /// Sets a node; its parent is the caller's concern.
    pub(crate) fn insert(&mut self, document: Document) {
        let path = &document.path().clone();
        if self.nodes.insert(Node::new(document), ()).is_none() {
            let Some(parent) = path.parent() else { return };
            let collections = self.children.get(&parent).map_or(&[][..], |collections| collections);
            let updated = with_member(collections, path);
            self.children.insert(parent, updated);
        }
    }

    /// Removes one node, not what is below it.
    pub(crate) fn remove(&mut self, path: &Path) -> Option<Node> {
        let (removed, ()) = self.nodes.remove_with_key(path)?;
        if let Some(parent) = path.parent() {
            let remaining = self.children.get(&parent).and_then(|collections| without_member(collections, path));
            match remaining {
                Some(remaining) => self.children.insert(parent, remaining),
                None => self.children.remove(&parent),
            };
        }
        Some(removed)
    }

    /// The path and all below it that is there, parents before children.
    pub(crate) fn subtree(&self, path: &Path) -> Vec<Path> {
        let mut found = Vec::new();
        if path.depth() > 0 && self.contains(path) {
            found.push(path.clone());
        }
        self.below(path, &mut found);
        found
    }

    fn below(&self, path: &Path, found: &mut Vec<Path>) {
        // Bounded by the depth of a path.
        for collection in self.children.get(path).into_iter().flat_map(|collections| collections.iter()) {
            for child in collection.members.iter() {
                found.push(child.clone());
                self.below(child, found);
            }
        }
    }

    /// The children of a parent in one collection, in id order.
    pub(crate) fn children(&self, parent: &Path, collection: &str) -> impl Iterator<Item = &Path> + use<'_> {
        self.children
            .get(parent)
            .and_then(|collections| collections.iter().find(|there| &*there.name == collection))
            .into_iter()
            .flat_map(|collection| collection.members.iter())
    }

    /// As [`Tree::children`], in the order of a type's ids: text by bytes even where it looks like a number.
    pub(crate) fn children_typed(&self, parent: &Path, collection: &str, numeric: bool) -> Children<'_> {
        let mut children = self.children(parent, collection).peekable();
        let looks_numeric = children.peek().is_some_and(|first| as_number(&first.id()).is_some());
        if numeric || !looks_numeric {
            return Children::InOrder(Box::new(children));
        }
        let mut all: Vec<(Cow<'_, str>, &Path)> = children.map(|path| (path.id(), path)).collect();
        all.sort_unstable_by(|left, right| left.0.cmp(&right.0));
        Children::Sorted(all.into_iter())
    }

    /// The paths at the end of a chain of collections from the root, parent order then id order.
    pub(crate) fn along(&self, levels: &[(&'static str, bool)]) -> Vec<Path> {
        let mut level = vec![Path::root()];
        for (collection, numeric) in levels {
            let mut next = Vec::new();
            for parent in &level {
                next.extend(self.children_typed(parent, collection, *numeric).cloned());
            }
            level = next;
        }
        level
    }

    /// The paths whose content differs between two trees, with both nodes: deletions first, children before parents;
    /// then the rest, parents before children, in id order.
    pub(crate) fn diff(&self, new: &Tree) -> Vec<(Path, Option<Document>, Option<Document>)> {
        let mut removed: Vec<(Path, Option<Document>, Option<Document>)> = self
            .iter()
            .filter(|(path, _)| !new.contains(path))
            .map(|(path, node)| (path.clone(), Some(node.document.clone()), None))
            .collect();
        removed.sort_by(|left, right| compare_paths_children_first(&left.0, &right.0));
        let mut changed: Vec<(Path, Option<Document>, Option<Document>)> = new
            .iter()
            .filter_map(|(path, node)| match self.get(path) {
                Some(old) if old.document.same(&node.document) => None,
                old => Some((path.clone(), old.map(|old| old.document.clone()), Some(node.document.clone()))),
            })
            .collect();
        changed.sort_by(|left, right| compare_paths(&left.0, &right.0));
        removed.append(&mut changed);
        removed
    }
}

/// Iterates over children; see [`Tree::children_typed`].
pub(crate) enum Children<'a> {
    InOrder(Box<dyn Iterator<Item = &'a Path> + 'a>),
    Sorted(std::vec::IntoIter<(Cow<'a, str>, &'a Path)>),
}

impl<'a> Iterator for Children<'a> {
    type Item = &'a Path;
    fn next(&mut self) -> Option<&'a Path> {
        match self {
            Children::InOrder(paths) => paths.next(),
            Children::Sorted(paths) => paths.next().map(|(_, path)| path),
        }
    }
}

impl Members {
    fn iter(&self) -> Box<dyn Iterator<Item = &Path> + '_> {
        match self {
            Members::Few(paths) => Box::new(paths.iter().map(|path| &path.0)),
            Members::Many(paths) => Box::new(paths.iter().map(|path| &path.0)),
        }
    }

    fn with(&self, path: &Path) -> Members {
        let member = ById(path.clone());
        match self {
            Members::Few(paths) if paths.len() < FEW => {
                let at = paths.partition_point(|there| *there < member);
                let mut paths = paths.to_vec();
                paths.insert(at, member);
                Members::Few(paths.into())
            }
            Members::Few(paths) => {
                let mut all: OrdSet<ById> = paths.iter().cloned().collect();
                all.insert(member);
                Members::Many(all)
            }
            Members::Many(paths) => Members::Many(paths.update(member)),
        }
    }

    /// None when it was the last.
    fn without(&self, path: &Path) -> Option<Members> {
        match self {
            Members::Few(paths) => {
                let rest: Arc<[ById]> = paths.iter().filter(|there| there.0 != *path).cloned().collect();
                (!rest.is_empty()).then_some(Members::Few(rest))
            }
            Members::Many(paths) => {
                let mut paths = paths.clone();
                paths.remove(&ById(path.clone()));
                // Half of the bound, so that a set on the edge does not go to and fro.
                if paths.len() <= FEW / 2 {
                    Some(Members::Few(paths.iter().cloned().collect()))
                } else {
                    Some(Members::Many(paths))
                }
            }
        }
    }
}

fn with_member(collections: &[Collection], path: &Path) -> Arc<[Collection]> {
    let name = path.collection();
    match collections.binary_search_by(|there| (*there.name).cmp(name)) {
        Ok(at) => {
            let mut collections: Vec<Collection> = collections.to_vec();
            collections[at].members = collections[at].members.with(path);
            collections.into()
        }
        Err(at) => {
            let members = Members::Few(Arc::from([ById(path.clone())]));
            let mut collections: Vec<Collection> = collections.to_vec();
            collections.insert(at, Collection { name: name.into(), members });
            collections.into()
        }
    }
}

/// None when nothing is left.
fn without_member(collections: &[Collection], path: &Path) -> Option<Arc<[Collection]>> {
    let name = path.collection();
    let remaining: Arc<[Collection]> = collections
        .iter()
        .filter_map(|there| {
            if &*there.name != name {
                return Some(there.clone());
            }
            let members = there.members.without(path)?;
            Some(Collection { name: there.name.clone(), members })
        })
        .collect();
    (!remaining.is_empty()).then_some(remaining)
}
