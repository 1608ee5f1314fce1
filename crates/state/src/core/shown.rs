//! From the log to what everyone sees: rows are applied to the head, and then shown.
//!
//! Invariants: only what is durable is shown, in order and without a gap; whoever holds the head has shown what it has, or is
//! about to.

use std::collections::VecDeque;
use std::sync::Arc;

use super::apply::expect_next;
use super::{Core, FEED_CAPACITY, Head, Replay};
use crate::change::Applied;
use crate::cluster_hook::matcher::Matcher;
use crate::driver::{DriverError, LogRow};
use crate::feed::FeedEvent;
use crate::revision::{Epoch, Revision};
use crate::snapshot::Snapshot;

/// Transactions that the head has, and that nobody has been shown yet: under the write lock there is something more urgent.
/// Dropping it shows them.
pub(super) struct Unshown<'core> {
    core: &'core Core,
    transactions: Vec<Arc<Applied>>,
}

/// How many changes a snapshot of these transactions is made of. One that changes no entity is a step on the way, too.
pub(super) fn changes_of(transactions: &[Arc<Applied>]) -> usize {
    transactions.iter().map(|applied| applied.changes.len().max(1)).sum()
}

impl Unshown<'_> {
    /// Shows them now.
    pub(super) fn show(&mut self) {
        self.core.show(&std::mem::take(&mut self.transactions));
    }
}

impl Drop for Unshown<'_> {
    fn drop(&mut self) {
        self.show();
    }
}

impl Core {
    /// Applies rows that follow the head (those that it has already are skipped) and shows them.
    pub(super) fn apply(&self, head: &mut Head, rows: &[Arc<LogRow>]) -> Result<Revision, DriverError> {
        let brought = self.follow(head, rows)?;
        head.tree.complete(&head.snapshot);
        drop(brought);
        Ok(head.snapshot.revision())
    }

    /// Applies rows that follow the head, as [`Core::apply`]. The head must be held until they are shown.
    pub(super) fn follow(&self, head: &mut Head, rows: &[Arc<LogRow>]) -> Result<Unshown<'_>, DriverError> {
        let known = head.snapshot.revision();
        let mut new = rows.iter().filter(|row| row.revision > known).peekable();
        let mut transactions = Vec::new();
        if new.peek().is_some() {
            let mut replay = Replay::on(head.take_tree(), head.snapshot.clone());
            for row in new {
                expect_next(replay.revision(), row)?;
                transactions.push(replay.row(row));
            }
            let before = head.snapshot.clone();
            self.advance(head, &transactions);
            head.tree.put(replay.into_tree(), &before, &head.snapshot, changes_of(&transactions));
        }
        Ok(Unshown { core: self, transactions })
    }

    /// Moves the head on by transactions that follow it, and shows them.
    pub(super) fn publish(&self, head: &mut Head, transactions: &[Arc<Applied>]) {
        self.advance(head, transactions);
        self.show(transactions);
    }

    /// Moves the head on by transactions that follow it.
    fn advance(&self, head: &mut Head, transactions: &[Arc<Applied>]) {
        let Some(last) = transactions.last() else { return };
        for applied in transactions {
            if let Some(revision) = head.unresolved.get_mut(&applied.submission) {
                *revision = Some(applied.revision);
            }
            head.behind.note(applied);
        }
        let registrations_changed =
            transactions.iter().any(|applied| applied.changes.iter().any(|change| Matcher::concerns(&change.path)));
        if registrations_changed {
            head.matcher = Matcher::of(last.snapshot.tree());
        }
        head.snapshot = last.snapshot.clone();
    }

    /// Shows transactions to everyone, in order. The caller holds the head, which has them.
    fn show(&self, transactions: &[Arc<Applied>]) {
        let Some(last) = transactions.last() else { return };
        self.published.store(last.snapshot.clone().into_inner());
        {
            let mut recent = self.recent.lock();
            for applied in transactions {
                if recent.len() == FEED_CAPACITY {
                    recent.pop_front();
                }
                recent.push_back(applied.clone());
            }
        }
        if self.feed.receiver_count() > 0 {
            for applied in transactions {
                // Fails only when the last receiver has gone since.
                let _ = self.feed.send(FeedEvent::Applied(applied.clone()));
            }
        }
        self.applied.send_replace((last.snapshot.epoch(), last.snapshot.revision()));
        self.metrics.applied_revision.set(i64::try_from(last.snapshot.revision().0).unwrap_or(i64::MAX));
    }

    /// The snapshot at a revision and the transactions after it, if they are among the last ones of this server.
    pub(crate) fn recent_after(&self, epoch: Epoch, revision: Revision) -> Option<(Snapshot, VecDeque<Arc<Applied>>)> {
        let recent = self.recent.lock();
        let place = recent.iter().position(|applied| applied.revision == revision)?;
        let at = recent.get(place)?.snapshot.clone();
        (at.epoch() == epoch).then(|| (at, recent.iter().skip(place + 1).cloned().collect()))
    }
}
