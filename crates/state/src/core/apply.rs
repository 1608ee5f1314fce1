//! Rows of the log onto a tree: the one place where what was committed becomes what is read.

use std::collections::HashMap;
use std::sync::Arc;

use super::Head;
use super::behind::Behind;
use super::head_tree::HeadTree;
use crate::change::{Applied, AppliedAction, Change, Changes, Hooks, shared};
use crate::cluster_hook::matcher::Matcher;
use crate::document::Document;
use crate::driver::{Driver, DriverError, LogEntry, LogRow};
use crate::revision::Revision;
use crate::snapshot::Snapshot;
use crate::tree::Tree;
use crate::working_tree::WorkingTree;

/// How many rows are read at once.
pub(super) const PAGE_ROWS: usize = 1_000;

/// Rows of the log, one after the other, onto a tree. The snapshots that it hands out have no tree of their own yet; the last
/// one gets its tree by [`Replay::finish`].
pub(crate) struct Replay {
    tree: WorkingTree,
    at: Snapshot,
}

impl Replay {
    /// From this snapshot on.
    pub(crate) fn from(at: Snapshot) -> Replay {
        Replay::on(at.tree().clone().into(), at)
    }

    /// From this snapshot on, whose tree is at hand.
    pub(super) fn on(tree: WorkingTree, at: Snapshot) -> Replay {
        Replay { tree, at }
    }

    /// Where it stands.
    pub(crate) fn revision(&self) -> Revision {
        self.at.revision()
    }

    /// Applies the row that comes next.
    pub(crate) fn row(&mut self, row: &LogRow) -> Arc<Applied> {
        let applied = apply_row(&mut self.tree, row, &self.at);
        self.at = applied.snapshot.clone();
        applied
    }

    /// The snapshot where it stands, with its tree.
    pub(crate) fn finish(mut self) -> Snapshot {
        self.at.complete(self.tree.whole().clone());
        self.at
    }

    /// The tree where it stands, to go on with. The snapshot makes its own when it is read.
    pub(super) fn into_tree(self) -> WorkingTree {
        self.tree
    }
}

fn apply_row(tree: &mut WorkingTree, row: &LogRow, before: &Snapshot) -> Arc<Applied> {
    let mut changes = Changes::with_capacity(row.entries.len());
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
                let hooks = Hooks::from_slice(hooks);
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
    let changes = shared(changes);
    Arc::new(Applied {
        revision: row.revision,
        at: row.at,
        attributes: row.attributes.clone(),
        changes: changes.clone(),
        snapshot: Snapshot::after(before.clone(), changes, row.revision),
        submission: row.submission,
        actions,
    })
}

/// A tree from the store, complete up to the head of the log.
pub(super) struct Loaded {
    pub(super) snapshot: Snapshot,
    behind: Behind,
}

impl Loaded {
    pub(super) fn into_head(self) -> Head {
        Head {
            matcher: Matcher::of(self.snapshot.tree()),
            unresolved: HashMap::new(),
            behind: self.behind,
            tree: HeadTree::default(),
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
    for row in stored.entities {
        let document = Document::stored_at(row.path.clone(), &row.document, row.revision);
        tree.insert(document);
    }
    let mut snapshot = Snapshot::new(tree, stored.revision, epoch);
    let mut behind = Behind::from(stored.revision);
    loop {
        let page = driver.read_log(epoch, snapshot.revision(), PAGE_ROWS).await?;
        let mut replay = Replay::from(snapshot);
        for row in &page.rows {
            expect_next(replay.revision(), row)?;
            behind.note(&replay.row(row));
        }
        snapshot = replay.finish();
        if page.rows.is_empty() || snapshot.revision() >= page.head {
            return Ok(Loaded { snapshot, behind });
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
