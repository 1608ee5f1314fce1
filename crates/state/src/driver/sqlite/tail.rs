//! What every server on the store asks for all the time, kept in memory: the newest rows of the log, the head, and the
//! leases. It changes only after the transaction that it reflects is durable.

use std::collections::VecDeque;
use std::sync::Arc;

use uuid::Uuid;

use super::super::leases::{LeaseChanges, Leases};
use super::super::{LogEntry, LogRow, Meta};
use super::records::Kinds;
use crate::revision::{Epoch, Revision};

/// The newest rows of the log, bounded by number and by bytes.
#[derive(Debug)]
pub(super) struct Tail {
    rows: VecDeque<Arc<LogRow>>,
    /// Every row above this revision is here.
    base: Revision,
    bytes: usize,
    rows_max: usize,
    bytes_max: usize,
}

impl Tail {
    pub(super) fn new(base: Revision, rows_max: usize, bytes_max: usize) -> Self {
        Tail { rows: VecDeque::new(), base, bytes: 0, rows_max, bytes_max }
    }

    fn push(&mut self, row: Arc<LogRow>) {
        self.bytes += weight(&row);
        self.rows.push_back(row);
        while self.rows.len() > self.rows_max || (self.bytes > self.bytes_max && self.rows.len() > 1) {
            if let Some(gone) = self.rows.pop_front() {
                self.bytes -= weight(&gone);
                self.base = gone.revision;
            }
        }
    }

    /// The rows after `after`, at most `rows_max`; none if the tail does not reach back so far.
    pub(super) fn after(&self, after: Revision, rows_max: usize) -> Option<Vec<Arc<LogRow>>> {
        let skipped = usize::try_from(after.0.checked_sub(self.base.0)?).ok()?;
        Some(self.rows.range(skipped.min(self.rows.len())..).take(rows_max).cloned().collect())
    }
}

/// About how many bytes a row takes in memory.
fn weight(row: &LogRow) -> usize {
    let entries: usize = row
        .entries
        .iter()
        .map(|entry| match entry {
            LogEntry::Change { path, before, after, .. } => {
                let documents = [before, after].into_iter().flatten().map(|document| document.json.len());
                160 + path.as_str().len() + documents.sum::<usize>()
            }
            LogEntry::Existing { path, .. } => 96 + path.as_str().len(),
            LogEntry::Action { .. } => 64,
        })
        .sum();
    let attributes: usize = row.attributes.iter().map(|(name, value)| 96 + name.len() + value.len()).sum();
    160 + entries + attributes
}

/// What is known of the store without asking it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) epoch: Epoch,
    pub(super) installation: Uuid,
    pub(super) format: u32,
    pub(super) head: Revision,
    pub(super) compacted: Revision,
    pub(super) tail: Tail,
    pub(super) leases: Leases,
    pub(super) kinds: Arc<Kinds>,
}

/// What a piece of work changes in [`Known`], once it is durable.
#[derive(Debug)]
pub(super) enum Effect {
    Rows(Vec<Arc<LogRow>>),
    Leases(LeaseChanges),
    Compacted(Revision),
    Kinds(Arc<Kinds>),
    /// The entities are what was written, whatever they were before.
    EntitiesReplaced,
    Epoch(Epoch),
    /// The whole store was replaced.
    Replaced(Box<Known>),
}

impl Known {
    pub(super) fn follow(&mut self, effect: Effect) {
        match effect {
            Effect::Rows(rows) => {
                for row in rows {
                    self.head = row.revision;
                    self.tail.push(row);
                }
            }
            Effect::Leases(changes) => self.leases.follow(&changes),
            Effect::Compacted(compacted) => self.compacted = compacted,
            Effect::Kinds(kinds) => self.kinds = kinds,
            // Not in here, but beside it.
            Effect::EntitiesReplaced => {}
            Effect::Epoch(epoch) => self.epoch = epoch,
            Effect::Replaced(known) => *self = *known,
        }
    }

    pub(super) fn meta(&self) -> Meta {
        Meta {
            epoch: self.epoch,
            installation: self.installation,
            format: self.format,
            head: self.head,
            compacted: self.compacted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::revision::{SubmissionId, Timestamp};

    fn row(revision: u64) -> Arc<LogRow> {
        Arc::new(LogRow {
            revision: Revision(revision),
            submission: SubmissionId(Uuid::nil()),
            at: Timestamp(0),
            server: "a".into(),
            attributes: Arc::default(),
            entries: Vec::new(),
        })
    }

    #[test]
    fn d23_the_tail_gives_rows_as_far_as_it_reaches_back_and_nothing_when_asked_for_more() {
        let mut tail = Tail::new(Revision(10), 3, usize::MAX);
        assert_eq!(tail.after(Revision(9), 10), None);
        assert_eq!(tail.after(Revision(10), 10), Some(vec![]));
        for revision in 11..=15 {
            tail.push(row(revision));
        }
        let revisions = |after: u64, rows_max: usize| {
            Some(tail.after(Revision(after), rows_max)?.iter().map(|row| row.revision.0).collect::<Vec<_>>())
        };
        assert_eq!(revisions(11, 10), None);
        assert_eq!(revisions(12, 10), Some(vec![13, 14, 15]));
        assert_eq!(revisions(13, 1), Some(vec![14]));
        assert_eq!(revisions(15, 10), Some(vec![]));
    }

    #[test]
    fn d26_the_tail_is_bounded_by_bytes_but_keeps_the_newest_row() {
        let mut tail = Tail::new(Revision(0), 100, 1);
        tail.push(row(1));
        tail.push(row(2));
        assert_eq!(tail.after(Revision(1), 10).map(|rows| rows.len()), Some(1));
        assert_eq!(tail.after(Revision(0), 10), None);
    }
}
