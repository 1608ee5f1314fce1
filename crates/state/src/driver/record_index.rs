//! What the drivers in this crate share about the indexes of records: which there are, ranges of keys, and groups.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{DriverError, RecordRow};
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
}

impl DeclaredKind {
    fn complete_indexes(&self) -> &[Arc<str>] {
        let complete = usize::try_from(self.complete).unwrap_or(usize::MAX);
        &self.indexes[..complete.min(self.indexes.len())]
    }
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
            let kind = DeclaredKind { indexes: names().collect(), complete: count_of(&declaration.indexes), grouped };
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
        let complete = self.0.get(&query.kind).map_or(&[][..], |kind| kind.complete_indexes());
        complete.iter().position(|name| **name == *query.index).ok_or_else(|| DriverError::NoIndex {
            kind: query.kind.to_string(),
            indexes: complete.iter().map(ToString::to_string).collect(),
        })
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

    #[test]
    fn r06_the_end_of_a_prefix_sorts_right_after_all_that_begins_with_it() {
        assert_eq!(end_of_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(end_of_prefix(&[1, 0xff, 0xff]), Some(vec![2]));
        assert_eq!(end_of_prefix(&[0xff]), None);
        assert_eq!(end_of_prefix(&[]), None);
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
