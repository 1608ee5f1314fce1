//! What the tree is made of: entities, their ids, and the typed paths that name them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::path::{Path, PathError};

/// A type whose values live in the tree, each under a path: `/stores/airports/versions/7` is a `Version` under a `Store`.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tidegate_state::{Entity, Ref, Root};
///
/// #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
/// struct Store { owner: String }
/// impl Entity for Store {
///     const COLLECTION: &'static str = "stores";
///     type Parent = Root;
///     type Id = String;
/// }
///
/// #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
/// struct Version { rows: u64 }
/// impl Entity for Version {
///     const COLLECTION: &'static str = "versions";
///     type Parent = Store;
///     type Id = u64;
/// }
///
/// let store: Ref<Store> = Ref::root("airports")?;
/// let version: Ref<Version> = store.child(7_u64)?;
/// assert_eq!(version.to_string(), "/stores/airports/versions/7");
/// # Ok::<(), tidegate_state::PathError>(())
/// ```
pub trait Entity: Serialize + DeserializeOwned + Clone + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The path segment before the id, plural by custom: `versions`. Lower-case letters, digits and dashes.
    const COLLECTION: &'static str;
    /// The version of the document's form. Raise it with a step in [`Entity::upgrade`].
    const FORMAT: u32 = 1;
    /// The type of the entity that this one lies under, or [`Root`].
    type Parent: Parent;
    /// The type of its id within its parent.
    type Id: EntityId;

    /// Turns a document of the form `from` into one of the form `from + 1`, in place. Called once for each step, so that
    /// a document of any age reads as the current type. Reading writes nothing; the next write stores the current form.
    ///
    /// # Errors
    /// A text that says what could not be upgraded; reading that one entity then fails with it.
    fn upgrade(document: &mut Map<String, Value>, from: u32) -> Result<(), String> {
        let _ = (document, from);
        Ok(())
    }
}

/// The top of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Root {}

/// What an entity can lie under: another entity, or the [`Root`].
pub trait Parent: 'static {
    /// The collections from the top down to this one; none for the root.
    fn collections() -> Vec<&'static str>;

    /// The same, each with whether its ids are numbers.
    #[doc(hidden)]
    fn levels() -> Vec<(&'static str, bool)>;
}

impl Parent for Root {
    fn collections() -> Vec<&'static str> {
        Vec::new()
    }
    fn levels() -> Vec<(&'static str, bool)> {
        Vec::new()
    }
}

impl<E: Entity> Parent for E {
    fn collections() -> Vec<&'static str> {
        let mut all = <E::Parent as Parent>::collections();
        all.push(E::COLLECTION);
        all
    }
    fn levels() -> Vec<(&'static str, bool)> {
        let mut all = <E::Parent as Parent>::levels();
        all.push((E::COLLECTION, E::Id::NUMERIC));
        all
    }
}

/// An id within a collection. Any non-empty Unicode text up to 256 bytes, or a number; percent-encoded in a path's text.
pub trait EntityId: Clone + Eq + Hash + Ord + fmt::Debug + Send + Sync + 'static {
    /// Whether children are listed as numbers (true) or by bytes (false).
    const NUMERIC: bool;
    /// The id as text, before percent-encoding.
    fn to_text(&self) -> String;
    /// The id that a decoded text stands for, if it is one.
    fn from_text(text: &str) -> Option<Self>;
}

impl EntityId for String {
    const NUMERIC: bool = false;
    fn to_text(&self) -> String {
        self.clone()
    }
    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl EntityId for u64 {
    const NUMERIC: bool = true;
    fn to_text(&self) -> String {
        self.to_string()
    }
    fn from_text(text: &str) -> Option<Self> {
        // One text per number: "7" is an id and "07" is not.
        text.parse().ok().filter(|number: &u64| number.to_string() == text)
    }
}

/// A typed path. Cheap to clone, carries its hash, and can be made for what does not exist (yet).
pub struct Ref<E> {
    path: Path,
    entity: PhantomData<fn() -> E>,
}

impl<E: Entity<Parent = Root>> Ref<E> {
    /// The entity with this id at the top of the tree.
    ///
    /// # Errors
    /// An id that is empty or over 256 bytes.
    pub fn root(id: impl Into<E::Id>) -> Result<Self, PathError> {
        Ok(Self::wrap(Path::root().child(E::COLLECTION, &id.into().to_text())?))
    }
}

impl<E: Entity> Ref<E> {
    pub(crate) fn wrap(path: Path) -> Self {
        Ref { path, entity: PhantomData }
    }

    /// The child of this entity with this id.
    ///
    /// # Errors
    /// An id that is empty or over 256 bytes.
    pub fn child<C: Entity<Parent = E>>(&self, id: impl Into<C::Id>) -> Result<Ref<C>, PathError> {
        Ok(Ref::wrap(self.path.child(C::COLLECTION, &id.into().to_text())?))
    }

    /// The entity that this one lies under.
    #[must_use]
    pub fn parent<P: Entity>(&self) -> Ref<P>
    where
        E: Entity<Parent = P>,
    {
        Ref::wrap(self.path.parent().expect("an entity whose parent type is an entity has a parent path"))
    }

    /// Checks that an untyped path is one of this type.
    ///
    /// # Errors
    /// Which segment is not of this type, or that the id is not one.
    pub fn from_path(path: &Path) -> Result<Self, PathError> {
        path.expect_collections(&<E as Parent>::collections())?;
        let id = path.id();
        if E::Id::from_text(&id).is_none() {
            return Err(PathError::NotAnId { collection: E::COLLECTION.to_owned(), id: id.into_owned() });
        }
        Ok(Self::wrap(path.clone()))
    }

    /// Parses the text form.
    ///
    /// # Errors
    /// As [`Path::parse`] and [`Ref::from_path`].
    pub fn parse(text: &str) -> Result<Self, PathError> {
        Self::from_path(&Path::parse(text)?)
    }

    /// The id within the parent.
    #[must_use]
    pub fn id(&self) -> E::Id {
        E::Id::from_text(&self.path.id()).expect("a typed path is only made with an id of its type")
    }

    /// The untyped path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl<E> Clone for Ref<E> {
    fn clone(&self) -> Self {
        Ref { path: self.path.clone(), entity: PhantomData }
    }
}
impl<E> PartialEq for Ref<E> {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}
impl<E> Eq for Ref<E> {}
impl<E> PartialOrd for Ref<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Ref<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.path.cmp(&other.path)
    }
}
impl<E> Hash for Ref<E> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.path.hash(hasher);
    }
}
impl<E> fmt::Debug for Ref<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(formatter)
    }
}
impl<E> fmt::Display for Ref<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(formatter)
    }
}
