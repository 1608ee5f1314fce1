//! Nodes that were removed on this machine, until the control plane has heard of each.
//!
//! A node is removed with the control plane there or gone, and whether or not an agent runs. What was removed is kept in the
//! agent's folder, and told, oldest first, until it is heard. A number goes with each, so that one that is told twice is heard
//! once.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidegate_api::agent::NodeRemoval;
use tidegate_rollout::region::RemoteClient;
use tidegate_rollout::region::agent::random_jitter;
use tidegate_rollout::region::remote::RemoteError;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::data_folder::write_private;

/// Where they are kept.
const FILE: &str = "removals.json";

/// How many wait at most. An operator gives these orders by hand.
const WAITING_MAX: usize = 1_024;

/// The pause after a failure: the first, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What was removed and is still to be told. Clones are the same.
#[derive(Clone)]
pub(super) struct Removals(Arc<Inner>);

struct Inner {
    file: PathBuf,
    list: Mutex<List>,
    /// Something is to be told.
    more: Notify,
}

#[derive(Clone, Serialize, Deserialize)]
struct List {
    id: Uuid,
    /// The number of the last one that was ever removed.
    last: u64,
    /// By number.
    waiting: BTreeMap<u64, Removed>,
}

/// A removal, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Removed {
    pub(super) node: String,
    pub(super) address: String,
    pub(super) by: String,
    pub(super) reason: String,
    pub(super) forced: bool,
    /// When, in epoch milliseconds.
    pub(super) at: u64,
}

impl Removals {
    /// What this folder keeps. Blocks.
    ///
    /// # Errors
    /// The file can't be read.
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        let file = data.join(FILE);
        let list = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| io::Error::other(format!("{}: {error}", file.display())))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                List { id: Uuid::new_v4(), last: 0, waiting: BTreeMap::new() }
            }
            Err(error) => return Err(error),
        };
        Ok(Self(Arc::new(Inner { file, list: Mutex::new(list), more: Notify::new() })))
    }

    /// Keeps one more. Blocks.
    ///
    /// # Errors
    /// It can't be kept.
    pub(super) fn add(&self, removed: Removed) -> io::Result<()> {
        let mut list = self.0.list.lock();
        let mut next = list.clone();
        next.last += 1;
        next.waiting.insert(next.last, removed);
        while next.waiting.len() > WAITING_MAX {
            let lost = next.waiting.pop_first();
            tracing::error!(
                ?lost,
                "too many removed nodes wait to be reported; the audit trail will not have this one"
            );
        }
        self.save(&next)?;
        *list = next;
        drop(list);
        self.0.more.notify_one();
        Ok(())
    }

    /// The oldest that is to be told, with the list that it is in and its number there.
    fn first(&self) -> Option<(Uuid, u64, Removed)> {
        let list = self.0.list.lock();
        list.waiting.first_key_value().map(|(number, removed)| (list.id, *number, removed.clone()))
    }

    /// This one was heard. Blocks.
    fn heard(&self, number: u64) -> io::Result<()> {
        let mut list = self.0.list.lock();
        let mut next = list.clone();
        next.waiting.retain(|of_other, _| *of_other > number);
        // Were it told again after a restart, it would be heard as the same one.
        let saved = self.save(&next);
        *list = next;
        saved
    }

    fn save(&self, list: &List) -> io::Result<()> {
        write_private(&self.0.file, &serde_json::to_string_pretty(list).map_err(io::Error::other)?)
    }
}

/// Tells the control plane of each, and waits for more.
pub(super) async fn report(removals: Removals, (region, agent): (String, String), client: RemoteClient) {
    let jitter = random_jitter();
    let segments = ["v1", "regions", &region, "agent", "removals"];
    let mut failures = 0_u32;
    loop {
        let Some((list, number, removed)) = removals.first() else {
            removals.0.more.notified().await;
            continue;
        };
        let Removed { node, address, by, reason, forced, at } = removed;
        let (list, agent) = (list.to_string(), agent.clone());
        let removal = NodeRemoval { list, number, agent, node, address, by, reason, forced, at };
        match client.done(&segments, |http, url| http.post(url).json(&removal)).await {
            Ok(()) => {
                failures = 0;
                let heard = removals.clone();
                let saved = tokio::task::spawn_blocking(move || heard.heard(number)).await;
                if let Ok(Err(error)) = saved {
                    tracing::warn!(%error, "that the removal of a node was reported could not be kept on the disk");
                }
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                if failures == 1 {
                    let node = removal.node;
                    match &error {
                        RemoteError::Unreachable { .. } => {
                            tracing::debug!(node, %error, "the removal of a node is reported later");
                        }
                        RemoteError::Refused { .. } => {
                            tracing::warn!(node, %error, "the control plane does not take the report of a node's removal; it is told again");
                        }
                    }
                }
                let pause = PAUSE_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(6)).min(PAUSE_MAX);
                tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * jitter())).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(node: &str, at: u64) -> Removed {
        let [node, address, by, reason] = [node, "http://127.0.0.1:1", "", ""].map(str::to_owned);
        Removed { node, address, by, reason, forced: false, at }
    }

    #[test]
    fn what_was_removed_is_kept_until_it_was_heard_and_no_number_comes_twice() {
        let folder = tempfile::tempdir().unwrap();
        let removals = Removals::open(folder.path()).unwrap();
        for node in ["m", "n"] {
            removals.add(removed(node, 7)).unwrap();
        }
        let (id, number, first) = removals.first().unwrap();
        assert_eq!((number, first.node.as_str()), (1, "m"));
        // Also over a restart; and what was told twice was heard once.
        let removals = Removals::open(folder.path()).unwrap();
        assert_eq!(removals.first().unwrap(), (id, 1, first));
        removals.heard(1).unwrap();
        removals.heard(1).unwrap();
        assert_eq!(removals.first().unwrap().2.node, "n");
        removals.heard(2).unwrap();
        let removals = Removals::open(folder.path()).unwrap();
        assert_eq!(removals.first(), None);
        removals.add(removed("o", 8)).unwrap();
        let (again, third, _) = removals.first().unwrap();
        assert_eq!((again, third), (id, 3));
    }
}
