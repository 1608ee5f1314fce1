//! The types that the cases write.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::entity::{Entity, Root};
use crate::record::{IndexKey, Record, Retain};
use crate::state::StateOptions;

/// At the top of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    /// Some text.
    pub owner: String,
    /// Some number.
    pub limit: i64,
}
impl Entity for Store {
    const COLLECTION: &'static str = "stores";
    type Parent = Root;
    type Id = String;
}

/// Below a store, by number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Some number.
    pub rows: u64,
}
impl Entity for Version {
    const COLLECTION: &'static str = "versions";
    type Parent = Store;
    type Id = u64;
}

/// Below a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Some text.
    pub text: String,
}
impl Entity for Mark {
    const COLLECTION: &'static str = "marks";
    type Parent = Version;
    type Id = String;
}

/// Below a store, beside versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// Some text.
    pub state: String,
}
impl Entity for Push {
    const COLLECTION: &'static str = "pushes";
    type Parent = Store;
    type Id = String;
}

/// At the top of the tree: a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// The number.
    pub n: i64,
}
impl Entity for Counter {
    const COLLECTION: &'static str = "counters";
    type Parent = Root;
    type Id = String;
}

/// Every kind of value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Everything {
    /// A large number.
    pub unsigned: u64,
    /// A small number.
    pub signed: i64,
    /// Floats.
    pub floats: Vec<f64>,
    /// Text.
    pub text: String,
    /// A map with any keys.
    pub map: BTreeMap<String, Vec<String>>,
    /// Nothing or something.
    pub option: Option<String>,
}
impl Entity for Everything {
    const COLLECTION: &'static str = "everything";
    type Parent = Root;
    type Id = String;
}

/// A record: one execution of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// What of.
    pub store: String,
    /// When.
    pub started: i64,
    /// What came of it.
    pub text: String,
}
impl Record for Execution {
    const KIND: &'static str = "execution";
    const INDEXES: &'static [&'static str] = &["by-store", "by-text"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![
            IndexKey::new().text(&self.store).falling(self.started),
            // An entry is bounded, and a value may be large.
            IndexKey::new().text(self.text.get(..32).unwrap_or(&self.text)),
        ]
    }
}

/// A record of another kind, of which few are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Who.
    pub who: String,
    /// What.
    pub what: i64,
}
impl Record for Audit {
    const KIND: &'static str = "audit";
    const INDEXES: &'static [&'static str] = &["by-who"];
    const RETENTION: Retain = Retain { age: Some(std::time::Duration::from_secs(3_600)), per_key: Some(100) };
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().text(&self.who).number(self.what)]
    }
}

/// Declares the records above.
#[must_use]
pub fn declare_records(options: StateOptions) -> StateOptions {
    options.record::<Execution>().record::<Audit>()
}

pub(super) fn store(owner: &str, limit: i64) -> Store {
    Store { owner: owner.to_owned(), limit }
}
