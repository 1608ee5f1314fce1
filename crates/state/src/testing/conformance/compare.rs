//! Whole trees, to be compared: of every server, and of one that comes late.

use std::collections::BTreeMap;

use crate::snapshot::Snapshot;
use crate::testing::Cluster;

/// Every path with its stored text.
pub type Dump = BTreeMap<String, String>;

/// All that a snapshot holds. Registrations of cluster hooks are not compared.
#[must_use]
pub fn dump(snapshot: &Snapshot) -> Dump {
    let paths = snapshot.paths();
    let held = paths.iter().filter_map(|path| Some((path.to_string(), snapshot.document(path)?.json().to_owned())));
    held.filter(|(path, _)| !path.starts_with("/cluster-hooks/")).collect()
}

/// Compares all running servers and a latecomer with each other, after a flush on the one that is read; and with what is
/// expected, if given. Returns the tree that all have.
///
/// # Panics
/// On the first difference.
pub async fn agree(cluster: &Cluster, expected: Option<&Dump>) -> Dump {
    let mut first: Option<(String, Dump)> = expected.map(|expected| ("expected".to_owned(), expected.clone()));
    let mut states = cluster.running();
    states.push(cluster.latecomer().await);
    for state in states {
        state.flush_within(super::LIMIT).await.unwrap();
        let name = state.server().to_string();
        let there = dump(&state.snapshot());
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
