//! Under which key each request of a log is, by the registrations that were in force when it was made.

use std::collections::HashMap;

use crate::cluster_hook::RegistrationEntity;
use crate::cluster_hook::matcher::Matcher;
use crate::driver::{HookNumber, LogEntry, RequestId, StoredDocument, StoredState};
use crate::path::Path;

/// The key of each request that a stored log makes, for [`Expectation::keys`](super::Expectation::keys).
#[must_use]
pub fn keys_of(stored: &StoredState) -> HashMap<RequestId, String> {
    let matcher = registrations(stored);
    let mut keys = HashMap::new();
    for row in &stored.log {
        let mut add = |sequence: usize, path: &Path, hook: HookNumber| {
            let Ok(sequence) = u32::try_from(sequence) else { return };
            // A registration says for all times under which keys it was asked.
            let key = matcher.hook(hook).and_then(|definitions| definitions.key_of(path, row.revision));
            if let Some(key) = key {
                keys.insert(RequestId { revision: row.revision, sequence, hook }, key.into_owned());
            }
        };
        for (sequence, entry) in row.entries.iter().enumerate() {
            match entry {
                LogEntry::Change { path, hooks, .. } => hooks.iter().for_each(|hook| add(sequence, path, *hook)),
                LogEntry::Existing { path, hook } => add(sequence, path, *hook),
                LogEntry::Action { .. } => {}
            }
        }
    }
    keys
}

/// The registrations at the head.
fn registrations(stored: &StoredState) -> Matcher {
    let mut last: HashMap<&Path, &StoredDocument> =
        stored.tree.entities.iter().map(|entity| (&entity.path, &entity.document)).collect();
    for row in stored.log.iter().filter(|row| row.revision > stored.tree.revision) {
        for entry in &row.entries {
            if let LogEntry::Change { path, after: Some(after), .. } = entry {
                last.insert(path, after);
            }
        }
    }
    let mut matcher = Matcher::default();
    for (path, document) in last.into_iter().filter(|(path, _)| Matcher::concerns(path)) {
        if let Ok(entity) = serde_json::from_str::<RegistrationEntity>(&document.json) {
            matcher.add(&path.id(), &entity);
        }
    }
    matcher
}
