//! What asked for a run.
//!
//! One is kept for every pending request, and a backlog has hundreds of thousands of them. So it holds on to what the log
//! has, and the [`Change`] is made of that where a hook's code asks for it: on the run's task, and often never.

use std::sync::Arc;

use smallvec::smallvec;

use super::registration::Delivery;
use crate::change::{Applied, Change};
use crate::document::Document;
use crate::driver::{LogRow, RequestId, RequestedChange, StoredDocument};
use crate::path::Path;
use crate::revision::{Attributes, Timestamp};

/// A document as it came here.
#[derive(Debug)]
enum Source {
    /// Shared with the tree: decoded at most once, for all who read it.
    Tree(Document),
    /// Out of the log, or with an exception.
    Stored(StoredDocument),
}

impl Source {
    fn document(&self, path: &Path) -> Document {
        match self {
            Source::Tree(document) => document.clone(),
            Source::Stored(stored) => Document::stored(path.clone(), stored),
        }
    }

    fn stored(&self) -> StoredDocument {
        match self {
            Source::Tree(document) => document.to_stored(),
            Source::Stored(stored) => stored.clone(),
        }
    }
}

/// What a row of the log says about the documents of a request.
#[derive(Clone, Copy)]
pub(crate) enum LoggedDocuments<'a> {
    /// Those of a change.
    Changed { before: Option<&'a StoredDocument>, after: Option<&'a StoredDocument> },
    /// What there was when the request was made, which the row does not have.
    Existing,
}

/// What asked for a run, but for the request's id.
#[derive(Debug)]
pub(crate) struct Cause {
    path: Path,
    before: Option<Source>,
    after: Option<Source>,
    at: Timestamp,
    attributes: Arc<Attributes>,
}

impl Cause {
    /// A change that the tail has brought. Runs on the latest state read the snapshot, so its documents would only be held on
    /// to.
    pub(crate) fn applied(delivery: Delivery, applied: &Applied, change: &Change) -> Arc<Cause> {
        let kept = |document: &Option<Document>| match delivery {
            Delivery::EveryChange => document.clone().map(Source::Tree),
            Delivery::LatestState => None,
        };
        Arc::new(Cause {
            path: change.path.clone(),
            before: kept(&change.before),
            after: kept(&change.after),
            at: applied.at,
            attributes: applied.attributes.clone(),
        })
    }

    /// A request of a row of the log. `existing` says what this server has at a path.
    pub(crate) fn logged(
        delivery: Delivery,
        row: &LogRow,
        path: &Path,
        documents: LoggedDocuments<'_>,
        existing: impl Fn(&Path) -> Option<Document>,
    ) -> Arc<Cause> {
        let stored = |document: Option<&StoredDocument>| document.cloned().map(Source::Stored);
        let (before, after) = match (delivery, documents) {
            (Delivery::LatestState, _) => (None, None),
            (Delivery::EveryChange, LoggedDocuments::Changed { before, after }) => (stored(before), stored(after)),
            (Delivery::EveryChange, LoggedDocuments::Existing) => (None, existing(path).map(Source::Tree)),
        };
        Arc::new(Cause { path: path.clone(), before, after, at: row.at, attributes: row.attributes.clone() })
    }

    /// The change that a stored exception is of.
    pub(crate) fn excepted(change: RequestedChange) -> Arc<Cause> {
        let RequestedChange { path, before, after, at, attributes } = change;
        Arc::new(Cause { path, before: before.map(Source::Stored), after: after.map(Source::Stored), at, attributes })
    }

    /// Where the change was.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What its writer said about it.
    pub(crate) fn attributes(&self) -> &Arc<Attributes> {
        &self.attributes
    }

    /// The change that made a request, as hooks see it.
    pub(crate) fn change(&self, request: RequestId) -> Change {
        let document = |source: &Option<Source>| source.as_ref().map(|source| source.document(&self.path));
        Change {
            path: self.path.clone(),
            revision: request.revision,
            before: document(&self.before),
            after: document(&self.after),
            sequence: request.sequence,
            hooks: smallvec![request.hook],
        }
    }

    /// What an exception stores of it.
    pub(crate) fn requested_change(&self) -> RequestedChange {
        RequestedChange {
            path: self.path.clone(),
            before: self.before.as_ref().map(Source::stored),
            after: self.after.as_ref().map(Source::stored),
            at: self.at,
            attributes: self.attributes.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::HookNumber;
    use crate::revision::{Revision, SubmissionId};

    fn stored(json: &str) -> StoredDocument {
        StoredDocument { format: 3, json: json.into() }
    }

    #[test]
    fn k06_what_a_hook_is_given_of_a_row_of_the_log_is_what_an_exception_of_it_gives_again() {
        let path = Path::parse("/stores/x").unwrap();
        let request = RequestId { revision: Revision(7), sequence: 2, hook: HookNumber(5) };
        let row = LogRow {
            revision: request.revision,
            submission: SubmissionId(uuid::Uuid::nil()),
            at: Timestamp(9),
            server: "a".into(),
            attributes: Arc::new([("by".to_owned(), "x".to_owned())].into()),
            entries: Vec::new(),
        };
        let (before, after) = (stored("{\"a\":1}"), stored("{\"a\":2}"));
        let there = Document::stored(path.clone(), &after);
        let existing = |asked: &Path| (*asked == path).then(|| there.clone());
        let changed = |before, after| LoggedDocuments::Changed { before, after };
        let (before, after) = (Some(&before), Some(&after));
        let cases = [
            (Delivery::EveryChange, changed(before, after), (before, after)),
            (Delivery::EveryChange, changed(None, after), (None, after)),
            (Delivery::EveryChange, changed(before, None), (before, None)),
            (Delivery::EveryChange, LoggedDocuments::Existing, (None, after)),
            (Delivery::LatestState, changed(before, after), (None, None)),
            (Delivery::LatestState, LoggedDocuments::Existing, (None, None)),
        ];
        for (delivery, documents, (before, after)) in cases {
            let cause = Cause::logged(delivery, &row, &path, documents, existing);
            let stored = cause.requested_change();
            assert_eq!((stored.before.as_ref(), stored.after.as_ref()), (before, after));
            for cause in [cause, Cause::excepted(stored)] {
                let change = cause.change(request);
                assert_eq!((&change.path, change.revision, change.sequence), (&path, request.revision, 2));
                assert_eq!(change.before_json(), before.map(|before| &*before.json));
                assert_eq!(change.after_json(), after.map(|after| &*after.json));
                assert_eq!(change.hooks[..], [request.hook]);
                assert_eq!((cause.at, &cause.attributes), (row.at, &row.attributes));
            }
        }
    }
}
