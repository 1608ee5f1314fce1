//! Rows of the log onto a tree: the one place where what was committed becomes what is read.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Behind, Head};
use crate::change::{Applied, AppliedAction, Change};
use crate::cluster_hook::matcher::Matcher;
use crate::document::Document;
use crate::driver::{Driver, DriverError, LogEntry, LogRow};
use crate::path::Path;
use crate::revision::{Epoch, Revision};
use crate::snapshot::Snapshot;
use crate::tree::Tree;

/// How many rows are read at once.
pub(super) const PAGE_ROWS: usize = 1_000;

/// Applies one row onto a tree that stands right before it.
pub(crate) fn apply_row(tree: &mut Tree, row: &LogRow, epoch: Epoch) -> Arc<Applied> {
    let mut changes = Vec::with_capacity(row.entries.len());
    let mut actions = Vec::new();
    for (sequence, entry) in row.entries.iter().enumerate() {
        let sequence = u32::try_from(sequence).unwrap_or(u32::MAX);
        match entry {
            LogEntry::Change { path, before: _, after, hooks } => {
                let after = after.as_ref().map(|after| Document::stored_at(path.clone(), after, row.revision));
                let before = match &after {
                    Some(after) => {
                        let before = tree.get(path).map(|node| node.document.clone());
                        tree.insert(after.clone());
                        before
                    }
                    None => tree.remove(path).map(|node| node.document),
                };
                let hooks = hooks.as_slice().into();
                changes.push(Change { path: path.clone(), revision: row.revision, before, after, sequence, hooks });
            }
            LogEntry::Existing { path, hook } => {
                actions.push(AppliedAction::Existing { sequence, path: path.clone(), hook: *hook });
            }
            LogEntry::Action { request, action } => {
                actions.push(AppliedAction::Act { sequence, request: *request, action: *action });
            }
        }
    }
    Arc::new(Applied {
        revision: row.revision,
        at: row.at,
        attributes: row.attributes.clone(),
        changes: changes.into(),
        snapshot: Snapshot::new(tree.clone(), row.revision, epoch),
        submission: row.submission,
        actions: actions.into(),
    })
}

/// A tree from the store, complete up to the head of the log.
pub(super) struct Loaded {
    pub(super) snapshot: Snapshot,
    /// The revision that the stored entities stand for.
    from: Revision,
    touched: Vec<Path>,
}

impl Loaded {
    pub(super) fn into_head(self) -> Head {
        Head {
            matcher: Matcher::of(self.snapshot.tree()),
            unresolved: HashMap::new(),
            behind: Behind { from: self.from, touched: HashSet::from_iter(self.touched) },
            snapshot: self.snapshot,
        }
    }
}

/// Reads the written-behind entities and the log after them.
pub(super) async fn load(driver: &dyn Driver) -> Result<Loaded, DriverError> {
    // The store may be compacted or replaced between two of the reads; then they begin anew.
    let mut attempts = 0;
    loop {
        match load_once(driver).await {
            Err(DriverError::Compacted { .. } | DriverError::EpochChanged { .. }) if attempts < 5 => attempts += 1,
            loaded => return loaded,
        }
    }
}

async fn load_once(driver: &dyn Driver) -> Result<Loaded, DriverError> {
    let epoch = driver.meta().await?.epoch;
    let mut tree = Tree::default();
    let stored = driver.load().await?;
    let from = stored.revision;
    for row in stored.entities {
        let document = Document::stored_at(row.path.clone(), &row.document, row.revision);
        tree.insert(document);
    }
    let mut revision = from;
    let mut touched = Vec::new();
    loop {
        let page = driver.read_log(epoch, revision, PAGE_ROWS).await?;
        for row in &page.rows {
            expect_next(revision, row)?;
            let applied = apply_row(&mut tree, row, epoch);
            touched.extend(applied.changes.iter().map(|change| change.path.clone()));
            revision = row.revision;
        }
        if page.rows.is_empty() || revision >= page.head {
            return Ok(Loaded { snapshot: Snapshot::new(tree, revision, epoch), from, touched });
        }
    }
}

/// A gap in the log is damage, never to be applied over.
pub(super) fn expect_next(revision: Revision, row: &LogRow) -> Result<(), DriverError> {
    if row.revision == revision.next() {
        return Ok(());
    }
    Err(DriverError::Damaged(format!("the log has revision {} right after {revision}", row.revision)))
}
