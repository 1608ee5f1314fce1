//! What rows of the log, and exceptions, say about one hook.

use std::borrow::Cow;
use std::sync::Arc;

use smallvec::smallvec;

use crate::change::Change;
use crate::cluster_hook::matcher::Definitions;
use crate::cluster_hook::registration::Delivery;
use crate::cluster_hook::run::Cause;
use crate::document::Document;
use crate::driver::{Exception, HookNumber, LogEntry, LogRow, RequestAction, RequestId, RequestedChange, SlotId};
use crate::path::Path;

/// One entry of the log that concerns a hook.
pub(crate) enum Entry<'a> {
    Request { id: RequestId, slot: SlotId, key: Cow<'a, str>, cause: Box<dyn FnOnce() -> Arc<Cause> + 'a> },
    Act { id: RequestId, target: RequestId, action: RequestAction },
}

/// The entries of a row that concern one hook, in their order.
pub(crate) fn entries<'a>(
    row: &'a LogRow,
    hook: HookNumber,
    definitions: &'a Definitions,
    existing: impl Fn(&Path) -> Option<Document> + Copy + 'a,
) -> impl Iterator<Item = Entry<'a>> {
    let every_change = definitions.entity.delivery() == Delivery::EveryChange;
    row.entries.iter().enumerate().filter_map(move |(sequence, entry)| {
        let sequence = u32::try_from(sequence).ok()?;
        let id = RequestId { revision: row.revision, sequence, hook };
        let cause = move |path: &Path, before: Option<Document>, after: Option<Document>| {
            let change =
                Change { path: path.clone(), revision: row.revision, before, after, sequence, hooks: smallvec![hook] };
            Arc::new(Cause { change, at: row.at, attributes: row.attributes.clone() })
        };
        match entry {
            LogEntry::Change { path, before, after, hooks } if hooks.contains(&hook) => {
                let (slot, key) = definitions.slot_of(path, id)?;
                let documents = move || {
                    let stored = |document: &Option<_>| {
                        document.as_ref().map(|document| Document::stored(path.clone(), document))
                    };
                    if every_change { cause(path, stored(before), stored(after)) } else { cause(path, None, None) }
                };
                Some(Entry::Request { id, slot, key, cause: Box::new(documents) })
            }
            LogEntry::Existing { path, hook: asked } if *asked == hook => {
                let (slot, key) = definitions.slot_of(path, id)?;
                let documents = move || cause(path, None, if every_change { existing(path) } else { None });
                Some(Entry::Request { id, slot, key, cause: Box::new(documents) })
            }
            LogEntry::Action { request, action } if request.hook == hook => {
                Some(Entry::Act { id, target: *request, action: *action })
            }
            LogEntry::Change { .. } | LogEntry::Existing { .. } | LogEntry::Action { .. } => None,
        }
    })
}

/// The change of a stored exception.
pub(crate) fn cause_of(exception: &Exception) -> Arc<Cause> {
    let stored = &exception.change;
    let request = exception.request;
    let document = |stored_form: &Option<_>| {
        stored_form.as_ref().map(|stored_form| Document::stored(stored.path.clone(), stored_form))
    };
    let change = Change {
        path: stored.path.clone(),
        revision: request.revision,
        before: document(&stored.before),
        after: document(&stored.after),
        sequence: request.sequence,
        hooks: smallvec![request.hook],
    };
    Arc::new(Cause { change, at: stored.at, attributes: stored.attributes.clone() })
}

/// What an exception stores of the change.
pub(crate) fn requested_change(cause: &Cause) -> RequestedChange {
    RequestedChange {
        path: cause.change.path.clone(),
        before: cause.change.before.as_ref().map(Document::to_stored),
        after: cause.change.after.as_ref().map(Document::to_stored),
        at: cause.at,
        attributes: cause.attributes.clone(),
    }
}
