//! What the drivers in this crate share about the indexes of records: which there are, how far they are built, ranges of keys,
//! and groups.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{DriverError, IndexPage, RecordId, RecordKindRow, RecordRow};
use crate::record::{IndexDeclaration, RecordQuery};

/// The most records that one page holds.
pub(crate) const PAGE_RECORDS_MAX: usize = 1_000;

/// The most bytes of documents that one page holds, so that pages of large values are read within bounded memory; one
/// record always fits.
pub(crate) const PAGE_BYTES_MAX: usize = 16 << 20;

/// One kind of record, as the store knows it.
#[derive(Debug, Clone)]
pub(crate) struct DeclaredKind {
    /// The indexes' names in order. A newer build may have added some at the end.
    pub(crate) indexes: Vec<Arc<str>>,
    /// How many of them hold an entry for every record; the rest serve no query.
    pub(crate) complete: u32,
    /// Whether records are counted by the first part of the first index.
    pub(crate) grouped: bool,
    /// How far indexes that are not complete are built. By a number of indexes: every record before this one has an entry in
    /// each of so many. Where there is nothing, that is not known of any record.
    pub(crate) frontiers: BTreeMap<u32, RecordId>,
}

impl DeclaredKind {
    /// Whether [`DeclaredKind::lower`] would change anything.
    pub(crate) fn is_lowered_by(&self, keys: u32, id: RecordId) -> bool {
        keys < self.complete || self.frontiers.range(keys.saturating_add(1)..).any(|(_, frontier)| *frontier > id)
    }

    /// Takes in that a record has only so many entries: an older build has appended or updated it.
    pub(crate) fn lower(&mut self, keys: u32, id: RecordId) {
        for (_, frontier) in self.frontiers.range_mut(keys.saturating_add(1)..) {
            *frontier = id.min(*frontier);
        }
        if keys < self.complete {
            self.frontiers.insert(self.complete, id);
            self.complete = keys;
        }
    }

    /// The first record that may lack an entry in one of the first `indexes` indexes.
    pub(crate) fn frontier(&self, indexes: u32) -> RecordId {
        self.frontiers.range(indexes..).map(|(_, frontier)| *frontier).max().unwrap_or(RecordId::FIRST)
    }

    /// Whether it stands as when a page was read for its next step.
    pub(crate) fn is_as_read(&self, page: &IndexPage) -> bool {
        self.complete < page.indexes && self.frontier(page.indexes) == page.from
    }

    /// Takes in that every record before `to`, or every one there is, has an entry in the first `indexes` indexes.
    pub(crate) fn advance(&mut self, indexes: u32, to: RecordId, every_one: bool) {
        if every_one {
            self.complete = self.complete.max(indexes);
            self.frontiers.retain(|built, _| *built > indexes);
        } else {
            self.frontiers.insert(indexes, to);
        }
    }

    /// Refuses a query by an index that does not have every record.
    pub(crate) fn check_complete(&self, kind: &str, index: usize, complete: u32) -> Result<(), DriverError> {
        let complete = usize::try_from(complete).unwrap_or(usize::MAX);
        if index < complete {
            return Ok(());
        }
        Err(DriverError::IndexIncomplete {
            kind: kind.to_owned(),
            index: self.indexes.get(index).map(ToString::to_string).unwrap_or_default(),
            complete: self.indexes.iter().take(complete).map(ToString::to_string).collect(),
        })
    }

    /// What a kind is after a backup is put in place of everything: it stays declared as it was where that is more, and
    /// is as complete as the backup's records are.
    pub(crate) fn restored(&self, backup: &DeclaredKind) -> DeclaredKind {
        let same = self.indexes.iter().zip(&backup.indexes).all(|(here, there)| here == there);
        let longer = if backup.indexes.len() > self.indexes.len() && same { &backup.indexes } else { &self.indexes };
        DeclaredKind {
            indexes: longer.clone(),
            complete: if same { backup.complete } else { self.complete },
            grouped: self.grouped || backup.grouped,
            frontiers: BTreeMap::new(),
        }
    }
}

impl From<&RecordKindRow> for DeclaredKind {
    fn from(row: &RecordKindRow) -> Self {
        let RecordKindRow { indexes, complete, .. } = row.clone();
        DeclaredKind { indexes, complete, grouped: false, frontiers: BTreeMap::new() }
    }
}

/// How many entries a record has.
pub(crate) fn key_count(keys: &[Vec<u8>]) -> u32 {
    count_of(keys)
}

/// What a step of building does to the records of its page: new keys of those that lack entries. None if the store is not
/// any more as the page was read, so that the step has to be begun anew. `there` are the records of the page's range as they
/// are now, with their content where the page has them as open.
pub(crate) fn step_of(
    page: &IndexPage,
    keys: &[Vec<Vec<u8>>],
    there: impl Iterator<Item = (RecordId, Vec<Vec<u8>>, Option<Arc<str>>)>,
) -> Option<Vec<(RecordId, Vec<Vec<u8>>, Vec<Vec<u8>>)>> {
    let given: BTreeMap<RecordId, (&RecordRow, &Vec<Vec<u8>>)> =
        page.lacking.iter().zip(keys).map(|(row, keys)| (row.id, (row, keys))).collect();
    let indexes = usize::try_from(page.indexes).unwrap_or(usize::MAX);
    let mut changed = Vec::new();
    for (id, old, json) in there {
        if old.len() >= indexes {
            continue;
        }
        let (row, keys) = given.get(&id)?;
        // The keys are of what was read: an open record may have been updated since.
        if json.is_some_and(|json| json != row.document.json) || keys.len() != indexes {
            return None;
        }
        let new = old.iter().chain(&keys[old.len()..]).cloned().collect();
        changed.push((id, old, new));
    }
    Some(changed)
}

fn count_of<T>(indexes: &[T]) -> u32 {
    u32::try_from(indexes.len()).unwrap_or(u32::MAX)
}

/// The kinds of records that were ever declared.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeclaredKinds(pub(crate) BTreeMap<Arc<str>, DeclaredKind>);

impl DeclaredKinds {
    /// Takes a build's declaration in; `has_records` says whether there are records of the kind already. Gives the kind
    /// if it changed by that.
    pub(crate) fn declare(
        &mut self,
        declaration: &IndexDeclaration,
        has_records: bool,
    ) -> Result<Option<DeclaredKind>, DriverError> {
        let grouped = declaration.retain.per_key.is_some();
        let names = || declaration.indexes.iter().map(|name| Arc::from(name.as_str()));
        let Some(known) = self.0.get_mut(&declaration.kind) else {
            let kind = DeclaredKind {
                indexes: names().collect(),
                complete: count_of(&declaration.indexes),
                grouped,
                frontiers: BTreeMap::new(),
            };
            self.0.insert(declaration.kind.clone(), kind.clone());
            return Ok(Some(kind));
        };
        if known.indexes.iter().zip(&declaration.indexes).any(|(known, new)| **known != **new) {
            return Err(DriverError::Configuration(format!(
                "the records of kind {} have the indexes {:?} in the store and {:?} in this build; new ones go at the end",
                declaration.kind, known.indexes, declaration.indexes
            )));
        }
        if known.indexes.len() >= declaration.indexes.len() && (known.grouped || !grouped) {
            return Ok(None);
        }
        if known.indexes.len() < declaration.indexes.len() {
            known.indexes = names().collect();
            if !has_records {
                known.complete = count_of(&known.indexes);
            }
        }
        known.grouped |= grouped;
        Ok(Some(known.clone()))
    }

    /// Checks that a record can be stored, and gives its kind. An older build may lack the last indexes.
    pub(crate) fn check(&self, record: &RecordRow) -> Result<&DeclaredKind, DriverError> {
        match self.0.get(&record.kind) {
            Some(kind) if record.keys.len() <= kind.indexes.len() => Ok(kind),
            _ => Err(DriverError::Configuration(format!(
                "records of kind {} with {} index entries were not declared when the store was opened",
                record.kind,
                record.keys.len()
            ))),
        }
    }

    /// Which of the kind's indexes serves the query.
    pub(crate) fn index_of(&self, query: &RecordQuery) -> Result<usize, DriverError> {
        let indexes = self.0.get(&query.kind).map_or(&[][..], |kind| &kind.indexes);
        indexes.iter().position(|name| **name == *query.index).ok_or_else(|| DriverError::NoIndex {
            kind: query.kind.to_string(),
            indexes: indexes.iter().map(ToString::to_string).collect(),
        })
    }

    /// The kinds as the linter looks at them.
    pub(crate) fn rows(&self) -> Vec<RecordKindRow> {
        let row = |(kind, declared): (&Arc<str>, &DeclaredKind)| RecordKindRow {
            kind: kind.clone(),
            indexes: declared.indexes.clone(),
            complete: declared.complete,
        };
        self.0.iter().map(row).collect()
    }
}

/// The first part of an entry, a text with its end: what records are counted by. All of an entry that has no end.
pub(crate) fn group_of(key: &[u8]) -> &[u8] {
    let mut position = 0;
    while let Some(zero) = key[position..].iter().position(|byte| *byte == 0) {
        let zero = position + zero;
        match key.get(zero + 1) {
            Some(0) => return &key[..zero + 2],
            Some(_) => position = zero + 2,
            None => break,
        }
    }
    key
}

/// The first bytes that sort after everything that begins with `prefix`; none if nothing does.
pub(crate) fn end_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::IndexKey;
    use crate::revision::Revision;

    #[test]
    fn r06_the_end_of_a_prefix_sorts_right_after_all_that_begins_with_it() {
        assert_eq!(end_of_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(end_of_prefix(&[1, 0xff, 0xff]), Some(vec![2]));
        assert_eq!(end_of_prefix(&[0xff]), None);
        assert_eq!(end_of_prefix(&[]), None);
    }

    fn id(revision: u64) -> RecordId {
        RecordId { revision: Revision(revision), sequence: 0 }
    }

    fn kind(indexes: &[&str], complete: u32) -> DeclaredKind {
        DeclaredKind {
            indexes: indexes.iter().map(|name| Arc::from(*name)).collect(),
            complete,
            grouped: false,
            frontiers: BTreeMap::new(),
        }
    }

    #[test]
    fn r10_a_record_with_fewer_keys_lowers_what_is_complete_and_how_far_the_rest_is_built() {
        let mut kind = kind(&["a", "b", "c"], 3);
        assert!(!kind.is_lowered_by(3, id(1)));
        // Everything before it has three, so it is gone on there.
        kind.lower(2, id(50));
        assert_eq!((kind.complete, kind.frontier(3)), (2, id(50)));
        // Later ones change nothing; an update of an earlier one does.
        assert!(!kind.is_lowered_by(2, id(60)));
        assert!(kind.is_lowered_by(2, id(20)));
        kind.lower(2, id(20));
        assert_eq!((kind.complete, kind.frontier(3)), (2, id(20)));
        kind.lower(1, id(40));
        assert_eq!((kind.complete, kind.frontier(2), kind.frontier(3)), (1, id(40), id(20)));
        // A build that has only two goes its own way.
        kind.advance(2, id(45), false);
        assert_eq!((kind.frontier(2), kind.frontier(3)), (id(45), id(20)));
        kind.advance(2, id(70), true);
        assert_eq!((kind.complete, kind.frontier(3)), (2, id(20)));
        kind.advance(3, id(70), true);
        assert_eq!((kind.complete, kind.frontiers.len()), (3, 0));
    }

    #[test]
    fn r10_a_restored_kind_is_as_complete_as_the_backups_records() {
        for (here, backup, expected) in [
            (kind(&["a", "b"], 2), kind(&["a"], 1), (2, 1)),
            (kind(&["a"], 1), kind(&["a", "b"], 2), (2, 2)),
            (kind(&["a"], 1), kind(&["a", "b"], 1), (2, 1)),
            (kind(&["a", "b"], 1), kind(&["a", "b"], 2), (2, 2)),
            (kind(&["a", "b"], 2), kind(&["x"], 1), (2, 2)),
        ] {
            let restored = here.restored(&backup);
            assert_eq!((restored.indexes.len(), restored.complete), expected, "{here:?} and {backup:?}");
            assert!(restored.frontiers.is_empty());
        }
    }

    #[test]
    fn r10_a_step_is_begun_anew_when_a_record_is_not_as_it_was_read() {
        let row = |number: u64, json: &str, keys: usize| RecordRow {
            kind: "run".into(),
            id: id(number),
            closed: false,
            at: crate::revision::Timestamp(0),
            document: crate::driver::StoredDocument { format: 1, json: json.into() },
            keys: vec![vec![1]; keys],
        };
        let page = IndexPage {
            kind: "run".into(),
            indexes: 2,
            from: id(1),
            to: id(9),
            lacking: vec![row(1, "1", 1), row(2, "2", 1)],
            last: true,
        };
        let keys = vec![vec![vec![1], vec![7]], vec![vec![1], vec![8]]];
        let there = |rows: Vec<RecordRow>| {
            let there = rows.into_iter().map(|row| (row.id, row.keys, Some(row.document.json)));
            step_of(&page, &keys, there)
                .map(|changed| changed.into_iter().map(|(id, _, new)| (id, new)).collect::<Vec<_>>())
        };
        let entered = |found: Option<Vec<(RecordId, Vec<Vec<u8>>)>>| found.map(|found| found.len());
        assert_eq!(
            there(vec![row(1, "1", 1), row(2, "2", 1), row(3, "3", 2)]),
            Some(vec![(id(1), keys[0].clone()), (id(2), keys[1].clone())])
        );
        assert_eq!(entered(there(vec![row(2, "2", 1)])), Some(1), "one is gone");
        assert_eq!(entered(there(vec![row(1, "1", 2), row(2, "2", 1)])), Some(1), "one has its entry by now");
        assert_eq!(there(vec![row(1, "changed", 1), row(2, "2", 1)]), None);
        assert_eq!(there(vec![row(1, "1", 1), row(3, "3", 1)]), None, "one had its entry when it was read");
    }

    #[test]
    fn r07_the_group_of_an_entry_is_its_first_text_part_whatever_bytes_it_has() {
        for text in ["a", "", "a\0b", "\0", "é"] {
            let group = IndexKey::new().text(text).into_bytes();
            let key = IndexKey::new().text(text).number(7).text("x").into_bytes();
            assert_eq!(group_of(&key), group, "{text:?}");
        }
    }
}
