//! Untyped paths: pairs of collection and id, percent-encoded in their text form, with the hash carried along.
//!
//! Invariant: two equal paths have the same text and the same hash, on every server and build, so that a map keyed by
//! the carried hash never has to hash a path's bytes again.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smol_str::SmolStr;
use xxhash_rust::xxh3::xxh3_64;

/// The longest id, in bytes before percent-encoding.
pub const ID_BYTES_MAX: usize = 256;

/// The deepest path, in pairs of collection and id. Bounds recursion and the text's size.
pub const DEPTH_MAX: usize = 16;

const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'/').add(b'%').add(b'?').add(b'#').add(b'"').add(b'<').add(b'>');

/// The longest text of a path, in bytes: what the indexes of every database still take.
pub const PATH_BYTES_MAX: usize = 2_600;

/// Names a place in the tree. Cheap to clone; equality and hashing use the carried hash first.
#[derive(Clone)]
pub struct Path {
    hash: u64,
    /// A short one lies here itself, and not behind a pointer: to compare two paths then looks at no further place in
    /// memory, which is what a look-up among many waits for.
    text: SmolStr,
}

/// Why a text is not a path, or a path is not of the type that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// An id is empty.
    #[error("the id in collection {collection:?} is empty; an id has 1 to {ID_BYTES_MAX} bytes")]
    EmptyId {
        /// The collection that the id would be in.
        collection: String,
    },
    /// An id is too long.
    #[error("the id in collection {collection:?} has {bytes} bytes; an id has at most {ID_BYTES_MAX}")]
    IdTooLong {
        /// The collection that the id would be in.
        collection: String,
        /// The id's length in bytes.
        bytes: usize,
    },
    /// A collection's name has other characters than lower-case letters, digits and dashes.
    #[error("segment {segment}: {name:?} is not a collection's name (lower-case letters, digits and dashes)")]
    NotACollection {
        /// Which segment of the path, counted from 1.
        segment: usize,
        /// What stands there.
        name: String,
    },
    /// The text does not begin with a slash, or has a segment without text.
    #[error("segment {segment} of {text:?} is empty; a path is /collection/id, repeated")]
    EmptySegment {
        /// Which segment of the path, counted from 1.
        segment: usize,
        /// The whole text.
        text: String,
    },
    /// A collection is not followed by an id.
    #[error("{text:?} ends with collection {collection:?} and no id")]
    MissingId {
        /// The last collection.
        collection: String,
        /// The whole text.
        text: String,
    },
    /// A percent sign is not followed by two hexadecimal digits of UTF-8, or the id is not in its one encoded form.
    #[error("segment {segment}: {encoded:?} is not a percent-encoded id in its usual form")]
    MalformedEscape {
        /// Which segment of the path, counted from 1.
        segment: usize,
        /// What stands there.
        encoded: String,
    },
    /// The path is of another type.
    #[error("segment {segment} of {path} is {found:?}, where {expected:?} was expected")]
    WrongCollection {
        /// Which segment of the path, counted from 1.
        segment: usize,
        /// The whole path.
        path: String,
        /// What stands there.
        found: String,
        /// What the type asks for.
        expected: String,
    },
    /// The id is not one of the collection's type.
    #[error("{id:?} is not an id in collection {collection:?}")]
    NotAnId {
        /// The collection.
        collection: String,
        /// The id.
        id: String,
    },
    /// The text is too long.
    #[error("the path has {bytes} bytes; a path has at most {PATH_BYTES_MAX}")]
    TooLong {
        /// The text's length in bytes, ids percent-encoded.
        bytes: usize,
    },
    /// The path is too deep.
    #[error("the path has more than {DEPTH_MAX} pairs of collection and id")]
    TooDeep,
}

impl Path {
    /// The top of the tree, which holds no entity itself. Its text is empty.
    #[must_use]
    pub fn root() -> Path {
        Path::from_text("")
    }

    fn from_text(text: &str) -> Path {
        Path { hash: xxh3_64(text.as_bytes()), text: text.into() }
    }

    /// The path of a child of this one.
    ///
    /// # Errors
    /// A collection's name or an id that is none, and a path that gets too deep.
    pub fn child(&self, collection: &str, id: &str) -> Result<Path, PathError> {
        let depth = self.depth();
        let segment = depth * 2 + 1;
        check_collection(collection, segment)?;
        if id.is_empty() {
            return Err(PathError::EmptyId { collection: collection.to_owned() });
        }
        if id.len() > ID_BYTES_MAX {
            return Err(PathError::IdTooLong { collection: collection.to_owned(), bytes: id.len() });
        }
        if depth >= DEPTH_MAX {
            return Err(PathError::TooDeep);
        }
        let mut text = String::with_capacity(self.as_str().len() + collection.len() + id.len() + 2);
        text.push_str(self.as_str());
        text.push('/');
        text.push_str(collection);
        text.push('/');
        text.extend(utf8_percent_encode(id, ENCODED));
        if text.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong { bytes: text.len() });
        }
        Ok(Path::from_text(&text))
    }

    /// Parses the text form, `/stores/airports/versions/7`.
    ///
    /// # Errors
    /// Which segment is wrong, and how.
    pub fn parse(text: &str) -> Result<Path, PathError> {
        if text.is_empty() {
            return Ok(Path::root());
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err(PathError::EmptySegment { segment: 1, text: text.to_owned() });
        };
        let segments: Vec<&str> = rest.split('/').collect();
        if segments.len() > DEPTH_MAX * 2 {
            return Err(PathError::TooDeep);
        }
        for (position, segment) in segments.iter().enumerate() {
            if segment.is_empty() {
                return Err(PathError::EmptySegment { segment: position + 1, text: text.to_owned() });
            }
        }
        let mut path = Path::root();
        let mut position = 0;
        for pair in segments.chunks(2) {
            let collection = pair[0];
            check_collection(collection, position + 1)?;
            let Some(encoded) = pair.get(1) else {
                return Err(PathError::MissingId { collection: collection.to_owned(), text: text.to_owned() });
            };
            let malformed = || PathError::MalformedEscape { segment: position + 2, encoded: (*encoded).to_owned() };
            let id = percent_decode_str(encoded).decode_utf8().map_err(|_| malformed())?;
            // One text per path: only the form that encoding the id gives is accepted.
            if utf8_percent_encode(&id, ENCODED).to_string() != **encoded {
                return Err(malformed());
            }
            path = path.child(collection, &id)?;
            position += 2;
        }
        Ok(path)
    }

    /// The text form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How many pairs of collection and id it has; 0 for the root.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.as_str().bytes().filter(|byte| *byte == b'/').count() / 2
    }

    /// The hash that it carries: xxh3 of the text form, the same everywhere.
    #[must_use]
    pub fn hash_code(&self) -> u64 {
        self.hash
    }

    /// The path above, or none for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Path> {
        let (above, _) = self.as_str().rsplit_once('/')?;
        let (above, _) = above.rsplit_once('/')?;
        Some(Path::from_text(above))
    }

    /// The last collection's name; empty for the root.
    #[must_use]
    pub fn collection(&self) -> &str {
        self.as_str().rsplit('/').nth(1).unwrap_or("")
    }

    /// The last id, decoded; empty for the root.
    #[must_use]
    pub fn id(&self) -> Cow<'_, str> {
        let encoded = self.as_str().rsplit('/').next().unwrap_or("");
        percent_decode_str(encoded).decode_utf8_lossy()
    }

    /// The pairs of collection and decoded id, from the top down.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        let mut segments = self.as_str().split('/').skip(1);
        std::iter::from_fn(move || {
            let collection = segments.next()?;
            let id = percent_decode_str(segments.next()?).decode_utf8_lossy();
            Some((collection, id))
        })
    }

    /// Whether this path is `other` or lies below it.
    #[must_use]
    pub fn is_within(&self, other: &Path) -> bool {
        match self.as_str().strip_prefix(other.as_str()) {
            Some(rest) => rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    pub(crate) fn expect_collections(&self, expected: &[&str]) -> Result<(), PathError> {
        let mut found = self.pairs().map(|(collection, _)| collection);
        for (position, expected) in expected.iter().enumerate() {
            let found = found.next().unwrap_or("");
            if found != *expected {
                return Err(self.wrong_collection(position, found, expected));
            }
        }
        match found.next() {
            None => Ok(()),
            Some(further) => Err(self.wrong_collection(expected.len(), further, "")),
        }
    }

    fn wrong_collection(&self, position: usize, found: &str, expected: &str) -> PathError {
        PathError::WrongCollection {
            segment: position * 2 + 1,
            path: self.as_str().to_string(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        }
    }
}

fn check_collection(name: &str, segment: usize) -> Result<(), PathError> {
    let fine =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if fine { Ok(()) } else { Err(PathError::NotACollection { segment, name: name.to_owned() }) }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.text == other.text
    }
}
impl Eq for Path {}
impl Hash for Path {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.hash_code());
    }
}
impl PartialOrd for Path {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
/// By the bytes of the text form. Listings of children use the order of their ids instead.
impl Ord for Path {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}
impl fmt::Debug for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.as_str().is_empty() { "/" } else { self.as_str() })
    }
}
impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}
impl Serialize for Path {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Path::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s04_awkward_ids_round_trip_through_the_text_form() {
        for id in ["a b", "a/b", "50%", "é", "a%2Fb", "\"", "..", &"x".repeat(ID_BYTES_MAX)] {
            let path = Path::root().child("stores", id).unwrap().child("versions", "7").unwrap();
            let again = Path::parse(path.as_str()).unwrap();
            assert_eq!(again, path);
            assert_eq!(again.hash_code(), path.hash_code());
            assert_eq!(path.parent().unwrap().id(), id);
        }
    }

    #[test]
    fn s04_empty_and_long_ids_are_errors_that_name_collection_and_rule() {
        let error = Path::root().child("stores", "").unwrap_err();
        assert_eq!(error.to_string(), "the id in collection \"stores\" is empty; an id has 1 to 256 bytes");
        let error = Path::root().child("stores", &"x".repeat(257)).unwrap_err();
        assert_eq!(error.to_string(), "the id in collection \"stores\" has 257 bytes; an id has at most 256");
    }

    #[test]
    fn s04_a_path_of_the_limits_length_is_one_and_a_longer_one_is_not() {
        let wide = "é".repeat(128);
        let deep = |id: &str| {
            let three = (0..3).try_fold(Path::root(), |path, _| path.child("stores", &wide))?;
            three.child("stores", id)
        };
        let room = PATH_BYTES_MAX - 3 * (8 + 6 * 128) - 8;
        let id = |bytes: usize| format!("{}{}", "é".repeat(10), "x".repeat(bytes - 60));
        assert_eq!(deep(&id(room)).unwrap().as_str().len(), PATH_BYTES_MAX);
        assert_eq!(deep(&id(room + 1)), Err(PathError::TooLong { bytes: PATH_BYTES_MAX + 1 }));
    }

    #[test]
    fn s05_malformed_texts_name_the_segment() {
        for (text, part) in [
            ("stores/a", "segment 1"),
            ("/stores", "no id"),
            ("/stores//versions/7", "segment 2"),
            ("/stores/a/", "segment 3"),
            ("/stores/%zz", "segment 2"),
            ("/stores/%2", "segment 2"),
            ("/stores/%41", "segment 2"),
            ("/stores/%ff", "segment 2"),
            ("/Stores/a", "segment 1"),
        ] {
            let error = Path::parse(text).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_path_lies_within_itself_and_what_is_above_and_not_beside() {
        let path = Path::parse("/stores/a/versions/1").unwrap();
        assert!(path.is_within(&Path::root()));
        assert!(path.is_within(&Path::parse("/stores/a").unwrap()));
        assert!(path.is_within(&path));
        assert!(!path.is_within(&Path::parse("/stores/a/versions/11").unwrap()));
        assert!(!Path::parse("/stores/ab").unwrap().is_within(&Path::parse("/stores/a").unwrap()));
    }
}
