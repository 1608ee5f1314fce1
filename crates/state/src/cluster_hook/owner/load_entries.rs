//! What rows of the log say about one hook.

use std::borrow::Cow;

use crate::cluster_hook::cause::LoggedDocuments;
use crate::cluster_hook::matcher::Definitions;
use crate::driver::{HookNumber, LogEntry, LogRow, RequestAction, RequestId, SlotId};
use crate::path::Path;

/// One entry of the log that concerns a hook.
pub(crate) enum Entry<'a> {
    Request { id: RequestId, slot: SlotId, key: Cow<'a, str>, path: &'a Path, documents: LoggedDocuments<'a> },
    Act { id: RequestId, target: RequestId, action: RequestAction },
}

/// The entries of a row that concern one hook, in their order.
pub(crate) fn entries<'a>(
    row: &'a LogRow,
    hook: HookNumber,
    definitions: &'a Definitions,
) -> impl Iterator<Item = Entry<'a>> {
    let request = move |id: RequestId, path: &'a Path, documents: LoggedDocuments<'a>| {
        let (slot, key) = definitions.slot_of(path, id)?;
        Some(Entry::Request { id, slot, key, path, documents })
    };
    row.entries.iter().enumerate().filter_map(move |(sequence, entry)| {
        let id = RequestId { revision: row.revision, sequence: u32::try_from(sequence).ok()?, hook };
        match entry {
            LogEntry::Change { path, before, after, hooks } if hooks.contains(&hook) => {
                request(id, path, LoggedDocuments::Changed { before: before.as_ref(), after: after.as_ref() })
            }
            LogEntry::Existing { path, hook: asked } if *asked == hook => request(id, path, LoggedDocuments::Existing),
            LogEntry::Action { request, action } if request.hook == hook => {
                Some(Entry::Act { id, target: *request, action: *action })
            }
            LogEntry::Change { .. } | LogEntry::Existing { .. } | LogEntry::Action { .. } => None,
        }
    })
}
