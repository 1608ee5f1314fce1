//! What a transaction has done so far, for whoever writes that down beside it.

use std::sync::Arc;

use super::{Transaction, TransactionError};
use crate::document::{Document, Form, decode_json};
use crate::driver::RecordWrite;
use crate::entity::{Entity, Parent, Ref};
use crate::record::Record;
use crate::snapshot::unreadable;
use crate::tree::compare_paths;

/// What a transaction has done to an entity so far.
#[derive(Debug)]
pub struct Touched<E: Entity> {
    /// The entity.
    pub entity: Ref<E>,
    /// What was there before the transaction; nothing if it makes the entity.
    pub before: Option<Arc<E>>,
    /// What is there now; nothing if it deletes the entity.
    pub after: Option<Arc<E>>,
}

impl Transaction {
    /// The entities of one type that this transaction has made, changed or deleted so far, in the order of their paths.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub fn touched<E: Entity>(&self) -> Result<Vec<Touched<E>>, TransactionError> {
        self.check_budget()?;
        let depth = <E as Parent>::levels().len();
        let mut found = Vec::new();
        for (path, before) in self.touched.iter().filter(|(path, _)| path.depth() == depth) {
            let Ok(entity) = Ref::<E>::from_path(path) else { continue };
            let before = before.as_ref().map(|node| &node.document);
            let after = self.tree.get(path).map(|node| &node.document);
            let is_same = match (before, after) {
                (Some(before), Some(after)) => before.same(after),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if is_same {
                continue;
            }
            let read = |document: Option<&Document>| {
                let value = document.map(Document::get_arc::<E>).transpose();
                value.map_err(|reason| TransactionError::Read(unreadable(path, &reason)))
            };
            found.push(Touched { entity, before: read(before)?, after: read(after)? });
        }
        found.sort_by(|left, right| compare_paths(left.entity.path(), right.entity.path()));
        Ok(found)
    }

    /// The records of one kind that this transaction has appended so far, in order.
    ///
    /// # Errors
    /// [`TransactionError::Unencodable`]: what was appended can't be read again.
    pub fn appended<R: Record>(&self) -> Result<Vec<R>, TransactionError> {
        self.check_budget()?;
        let rows = self.records.iter().filter_map(|write| match write {
            RecordWrite::Append(row) if &*row.kind == R::KIND => Some(row),
            _ => None,
        });
        rows.map(|row| {
            decode_json(&row.document.json, row.document.format, &Form::of_record::<R>()).map_err(|reason| {
                TransactionError::Unencodable { path: format!("a record of kind {}", R::KIND), reason }
            })
        })
        .collect()
    }
}
