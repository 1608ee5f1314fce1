//! Whole trees, to be compared: of every server, and of one that comes late.

use std::collections::BTreeMap;

use crate::driver::{LogEntry, StoredState};
use crate::revision::Revision;
use crate::snapshot::Snapshot;
use crate::testing::Cluster;

const REGISTRATIONS: &str = "/cluster-hooks/";

/// Every path with its stored text.
pub type Dump = BTreeMap<String, String>;

/// All that a snapshot holds. Registrations of cluster hooks are not compared.
#[must_use]
pub fn dump(snapshot: &Snapshot) -> Dump {
    let paths = snapshot.paths();
    let held = paths.iter().filter_map(|path| Some((path.to_string(), snapshot.document(path)?.json().to_owned())));
    held.filter(|(path, _)| !path.starts_with(REGISTRATIONS)).collect()
}

/// What the log adds up to: a plain map with its changes in order, and no driver. None where it does not reach back to the
/// beginning.
fn added_up(stored: &StoredState) -> Option<Dump> {
    let mut tree = Dump::new();
    if stored.meta.compacted > Revision::ZERO {
        return None;
    }
    for entry in stored.log.iter().flat_map(|row| &row.entries) {
        let LogEntry::Change { path, after, .. } = entry else { continue };
        match after {
            Some(document) => tree.insert(path.to_string(), document.json.to_string()),
            None => tree.remove(path.as_str()),
        };
    }
    tree.retain(|path, _| !path.starts_with(REGISTRATIONS));
    Some(tree)
}

/// Compares all running servers and a latecomer with each other, after a flush on the one that is read; with what the log
/// adds up to, as far as it reaches back; and with what is expected, if given. Returns the tree that all have.
///
/// # Panics
/// On the first difference.
pub async fn agree(cluster: &Cluster, expected: Option<&Dump>) -> Dump {
    let mut first: Option<(String, Dump)> = expected.map(|expected| ("expected".to_owned(), expected.clone()));
    let mut trees = Vec::new();
    let mut states = cluster.running();
    states.push(cluster.latecomer().await);
    for state in states {
        state.flush_within(super::LIMIT).await.unwrap();
        trees.push((state.server().to_string(), dump(&state.snapshot())));
    }
    if let Some(tree) = added_up(&cluster.stored().await) {
        trees.push(("the log".to_owned(), tree));
    }
    for (name, there) in trees {
        match &first {
            None => first = Some((name, there)),
            Some((other, tree)) => {
                if *tree != there {
                    let differs: Vec<_> = tree
                        .iter()
                        .filter(|(path, json)| there.get(*path) != Some(json))
                        .map(|(path, json)| format!("{path}: {json} against {:?}", there.get(path)))
                        .chain(
                            there
                                .keys()
                                .filter(|path| !tree.contains_key(*path))
                                .map(|path| format!("{path}: only in {name}")),
                        )
                        .take(10)
                        .collect();
                    panic!("{other} and {name} differ:\n{}", differs.join("\n"));
                }
            }
        }
    }
    first.map(|(_, tree)| tree).unwrap_or_default()
}
