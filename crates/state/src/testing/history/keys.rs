//! Under which key each request of a log is, by the registrations that were in force when it was made.

use std::collections::HashMap;

use super::registered::registrations;
use crate::cluster_hook::RegistrationEntity;
use crate::cluster_hook::matcher::Matcher;
use crate::driver::{HookNumber, LogEntry, RequestId, StoredState};
use crate::path::Path;

/// The key of each request that a stored log makes, for [`Expectation::keys`](super::Expectation::keys).
#[must_use]
pub fn keys_of(stored: &StoredState) -> HashMap<RequestId, String> {
    let last: HashMap<&Path, RegistrationEntity> =
        registrations(stored).map(|(_, path, registration)| (path, registration)).collect();
    let mut matcher = Matcher::default();
    for (path, registration) in &last {
        matcher.add(&path.id(), registration);
    }
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
