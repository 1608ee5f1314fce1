//! Records: typed rows committed in the same transaction as entities, outside every snapshot. For what grows without end.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::document::{Form, decode_json, panic_message};
use crate::driver::{RecordId, RecordRow, StoredDocument};

/// A type whose values are appended as records. Large values, closed calls, executions and audit entries are records.
pub trait Record: Serialize + DeserializeOwned + Clone + fmt::Debug + Send + Sync + 'static {
    /// Names the type in the store; never changes.
    const KIND: &'static str;
    /// The version of the document's form.
    const FORMAT: u32 = 1;
    /// The names of the declared indexes. Every query goes through one of them. A later build may add some at the end: they
    /// are built beside everything else and serve no query before every record is in them ([`crate::StateOptions::record`]).
    const INDEXES: &'static [&'static str];
    /// What is kept, and for how long.
    const RETENTION: Retain = Retain::FOREVER;

    /// This record's entry in each of [`Record::INDEXES`], in their order.
    fn index_keys(&self) -> Vec<IndexKey>;

    /// As [`crate::Entity::upgrade`].
    ///
    /// # Errors
    /// A text that says what could not be upgraded.
    fn upgrade(document: &mut Map<String, Value>, from: u32) -> Result<(), String> {
        let _ = (document, from);
        Ok(())
    }
}

/// What is kept of a kind of record. A record goes when either limit lets it go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retain {
    /// How long, from when it was appended.
    pub age: Option<Duration>,
    /// How many under one value of the first part of the first index, which then has to be a text part.
    pub per_key: Option<u64>,
}

impl Retain {
    /// Everything is kept.
    pub const FOREVER: Retain = Retain { age: None, per_key: None };
}

/// The retention of one kind at one moment, as a driver carries it out.
#[derive(Debug, Clone)]
pub struct Retention {
    /// The kind.
    pub kind: Arc<str>,
    /// Records appended before this go.
    pub before: Option<crate::revision::Timestamp>,
    /// More than so many under one first part of the first index go, the oldest first.
    pub per_key: Option<u64>,
}

/// The indexes of a kind of record, as declared by a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexDeclaration {
    /// The kind.
    pub kind: Arc<str>,
    /// The indexes' names, in order.
    pub indexes: Vec<String>,
    /// What is kept.
    pub retain: Retain,
}

/// How a stored record's entries in the indexes of its kind are had: an index that is added later is built by it.
#[derive(Debug, Clone)]
pub struct RecordKeys {
    /// The kind.
    pub kind: Arc<str>,
    /// How many indexes the type declares.
    pub indexes: u32,
    of: fn(&StoredDocument) -> Result<Vec<Vec<u8>>, String>,
}

impl RecordKeys {
    /// As the type has them.
    #[must_use]
    pub fn of<R: Record>() -> RecordKeys {
        RecordKeys {
            kind: R::KIND.into(),
            indexes: u32::try_from(R::INDEXES.len()).unwrap_or(u32::MAX),
            of: keys_of::<R>,
        }
    }

    /// The entries of a record: one for each index.
    ///
    /// # Errors
    /// Why it can't be read, or has none.
    pub fn of_document(&self, document: &StoredDocument) -> Result<Vec<Vec<u8>>, String> {
        (self.of)(document)
    }
}

fn keys_of<R: Record>(document: &StoredDocument) -> Result<Vec<Vec<u8>>, String> {
    let record: R = decode_json(&document.json, document.format, &Form::of_record::<R>())?;
    // The type's own code, as reading it is.
    let keys = catch_unwind(AssertUnwindSafe(|| record.index_keys()))
        .map_err(|panic| format!("its index entries panicked: {}", panic_message(&*panic)))?;
    let keys: Vec<Vec<u8>> = keys.into_iter().map(IndexKey::into_bytes).collect();
    if keys.len() != R::INDEXES.len() {
        return Err(format!("it has {} index entries, and its type has {} indexes", keys.len(), R::INDEXES.len()));
    }
    match keys.iter().map(Vec::len).find(|size| *size > INDEX_KEY_BYTES_MAX) {
        Some(size) => Err(format!("an index entry has {size} bytes, above the limit of {INDEX_KEY_BYTES_MAX}")),
        None => Ok(keys),
    }
}

/// The longest entry in an index, in bytes, encoded: what the indexes of every database still take.
pub const INDEX_KEY_BYTES_MAX: usize = 2_600;

/// An entry in an index: parts that compare one after the other, encoded so that the order of bytes is the order of
/// entries, the same on every driver and collation.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexKey(Vec<u8>);

impl IndexKey {
    /// An entry without parts; the prefix of every other.
    #[must_use]
    pub fn new() -> Self {
        IndexKey(Vec::new())
    }

    /// Adds a text part, ordered by bytes.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            // 0 ends a part, so a zero byte within is escaped by what sorts right after the end.
            if byte == 0 {
                self.0.extend_from_slice(&[0, 0xff]);
            } else {
                self.0.push(byte);
            }
        }
        self.0.extend_from_slice(&[0, 0]);
        self
    }

    /// Adds a number part, rising.
    #[must_use]
    pub fn number(mut self, number: i64) -> Self {
        self.0.extend_from_slice(&(number.cast_unsigned() ^ (1 << 63)).to_be_bytes());
        self
    }

    /// Adds a number part, falling: the newest time first.
    #[must_use]
    pub fn falling(self, number: i64) -> Self {
        self.number(!number)
    }

    /// The encoded form.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Asks for a page of records of one kind by one index: those whose entry begins with `prefix`, in index order, ties in
/// order of commit.
#[derive(Debug, Clone)]
pub struct RecordQuery {
    /// The kind.
    pub kind: Arc<str>,
    /// The index's name.
    pub index: String,
    /// What the entry must begin with.
    pub prefix: IndexKey,
    /// Go on behind (forwards) or before (backwards) this place.
    pub cursor: Option<RecordCursor>,
    /// Against the index's order.
    pub backwards: bool,
    /// How many at most; 1 to 1 000.
    pub limit: usize,
}

/// A place in an index. Holds through restarts and on other servers.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RecordCursor {
    /// The entry.
    pub key: Vec<u8>,
    /// The record.
    pub id: RecordId,
}

/// A page of records as stored.
#[derive(Debug, Clone)]
pub struct RecordPage {
    /// The records, in the order that was asked for.
    pub rows: Vec<RecordRow>,
    /// Where to go on; none at the end.
    pub next: Option<RecordCursor>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn r06_the_order_of_encoded_entries_is_the_order_of_their_parts(
            left in (".{0,8}", any::<i64>(), any::<i64>()),
            right in (".{0,8}", any::<i64>(), any::<i64>()),
        ) {
            let encode = |(text, rising, falling): &(String, i64, i64)| {
                IndexKey::new().text(text).number(*rising).falling(*falling)
            };
            let parts = |(text, rising, falling): &(String, i64, i64)| {
                (text.as_bytes().to_vec(), *rising, std::cmp::Reverse(*falling))
            };
            prop_assert_eq!(encode(&left).cmp(&encode(&right)), parts(&left).cmp(&parts(&right)));
        }
    }
}
