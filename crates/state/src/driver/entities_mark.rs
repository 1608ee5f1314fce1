//! The written-behind entities, and the digest by which a start knows that they are what was written.
//!
//! Every row has a digest of its content; their sum, their number and the revision that they stand for are sealed beside
//! them, in the same transaction. So a row that was changed, removed, added or put back, a table that was emptied, and a
//! revision that was raised or lowered by hand do not fit any more.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::Xxh3;

use super::{EntityRow, LogEntry, LogRow, StoredTree};
use crate::path::Path;
use crate::revision::Revision;

/// How many damaged paths an error names.
const NAMED_MAX: usize = 10;

/// What `entities` stand for, and what they add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EntitiesMark {
    pub(crate) at: Revision,
    pub(crate) count: u64,
    pub(crate) sum: u128,
}

impl EntitiesMark {
    pub(crate) fn sum_bytes(&self) -> [u8; 16] {
        self.sum.to_be_bytes()
    }

    pub(crate) fn seal(&self) -> [u8; 16] {
        let mut hasher = Xxh3::new();
        hasher.update(&self.at.0.to_be_bytes());
        hasher.update(&self.count.to_be_bytes());
        hasher.update(&self.sum_bytes());
        hasher.digest128().to_be_bytes()
    }

    pub(crate) fn add(&mut self, digest: u128) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(digest);
    }

    pub(crate) fn subtract(&mut self, digest: u128) {
        self.count = self.count.saturating_sub(1);
        self.sum = self.sum.wrapping_sub(digest);
    }
}

/// The digest of one row.
pub(crate) fn digest_of(row: &EntityRow) -> u128 {
    let mut hasher = Xxh3::new();
    let path = row.path.as_str().as_bytes();
    hasher.update(&(path.len() as u64).to_be_bytes());
    hasher.update(path);
    hasher.update(&row.revision.0.to_be_bytes());
    hasher.update(&row.document.format.to_be_bytes());
    hasher.update(row.document.json.as_bytes());
    hasher.digest128()
}

/// The table as it is, and what of it does not fit its digests.
pub(crate) struct Loaded {
    pub(crate) tree: StoredTree,
    /// Texts for people: paths whose row was changed, or that the table as a whole was.
    pub(crate) damage: Vec<String>,
}

/// Takes the rows of the table in one by one, and says in the end what of them does not fit.
pub(crate) struct Inspection {
    mark: EntitiesMark,
    seal: Vec<u8>,
    found: EntitiesMark,
    entities: Vec<EntityRow>,
    damage: Vec<String>,
}

impl Inspection {
    /// Of a table that is said to be this.
    pub(crate) fn new(mark: EntitiesMark, seal: Vec<u8>) -> Self {
        let room = usize::try_from(mark.count).unwrap_or(0).min(1 << 20);
        let found = EntitiesMark { at: mark.at, ..EntitiesMark::default() };
        Inspection { mark, seal, found, entities: Vec::with_capacity(room), damage: Vec::new() }
    }

    /// Of a table whose rows are looked at one by one, and not kept.
    pub(crate) fn passing(mark: EntitiesMark, seal: Vec<u8>) -> Self {
        let found = EntitiesMark { at: mark.at, ..EntitiesMark::default() };
        Inspection { mark, seal, found, entities: Vec::new(), damage: Vec::new() }
    }

    /// A row, with the digest that is stored beside it.
    pub(crate) fn take(&mut self, path: &str, digest: &[u8], row: impl FnOnce(Path) -> EntityRow) {
        let entity = self.pass(path, digest, row);
        self.entities.extend(entity);
    }

    /// As [`Inspection::take`], but the row is given back; none if it has no path.
    pub(crate) fn pass(&mut self, path: &str, digest: &[u8], row: impl FnOnce(Path) -> EntityRow) -> Option<EntityRow> {
        let Ok(parsed) = Path::parse(path) else {
            self.damage.push(path.to_owned());
            return None;
        };
        let entity = row(parsed);
        let found = digest_of(&entity);
        if digest != found.to_be_bytes() {
            self.damage.push(entity.path.to_string());
        }
        self.found.add(found);
        Some(entity)
    }

    /// The tree, and what is wrong with it.
    pub(crate) fn finish(self) -> Loaded {
        let Inspection { mark, seal, found, entities, mut damage } = self;
        if damage.is_empty() && (found != mark || mark.seal() != *seal) {
            damage.push(format!(
                "the table as a whole ({} rows at revision {}, where {} rows were written): rows were removed, added or put \
                 back, or its revision was changed",
                found.count, mark.at, mark.count
            ));
        }
        let surplus = damage.len().saturating_sub(NAMED_MAX);
        if surplus > 0 {
            damage.truncate(NAMED_MAX);
            damage.push(format!("and {surplus} more"));
        }
        Loaded { tree: StoredTree { revision: mark.at, entities }, damage }
    }
}

/// The tree that a log adds up to, from its very beginning.
pub(crate) fn replay<'a>(rows: impl Iterator<Item = &'a LogRow>) -> StoredTree {
    let mut revision = Revision::ZERO;
    let mut entities: BTreeMap<Path, EntityRow> = BTreeMap::new();
    for row in rows {
        revision = row.revision;
        for entry in &row.entries {
            match entry {
                LogEntry::Change { path, after: Some(document), .. } => {
                    let entity = EntityRow { path: path.clone(), revision, document: document.clone() };
                    entities.insert(path.clone(), entity);
                }
                LogEntry::Change { path, after: None, .. } => {
                    entities.remove(path);
                }
                LogEntry::Existing { .. } | LogEntry::Action { .. } => {}
            }
        }
    }
    StoredTree { revision, entities: entities.into_values().collect() }
}
