//! D1 and D2: a random script of transactions does the same on the driver as on a plain map.

use std::collections::BTreeSet;

use super::entities::*;
use super::transactions::next_transaction;
use super::{Case, Ended, Op, Oracle, agree, carry_out, kind, script};
use crate::change::Applied;
use crate::driver::StoredState;
use crate::error::WriteError;
use crate::feed::Feed;
use crate::record::Record;
use crate::revision::Revision;
use crate::state::State;
use crate::testing::Cluster;
use crate::testing::points::{Hold, name as point};
use crate::transaction::Transaction;

/// How many transactions the script has.
const SCRIPT: usize = 2_000;

/// Carries one transaction of the script out, and compares its answer with the oracle's.
async fn step(state: &State, oracle: &mut Oracle, ops: &[Op], step: usize) -> bool {
    let expected = oracle.apply(ops);
    let own = ops.to_vec();
    let ended = match state.write(move |tx: &mut Transaction| carry_out(&own, tx)).await {
        Ok(committed) => {
            assert_eq!(committed.revision, Revision(oracle.revision), "step {step}: {ops:?}");
            Ended::Done { changed: committed.changed }
        }
        Err(WriteError::Rejected(error)) => Ended::Refused(kind(&error)),
        Err(error) => panic!("step {step}: {error}"),
    };
    assert_eq!(ended, expected, "step {step}: {ops:?}");
    ended == Ended::Done { changed: true }
}

type ChangeSet = BTreeSet<(String, Option<String>, Option<String>)>;

fn changes_of(applied: &Applied) -> ChangeSet {
    let json = |json: Option<&str>| json.map(str::to_owned);
    let changes = applied.changes.iter();
    changes.map(|change| (change.path.to_string(), json(change.before_json()), json(change.after_json()))).collect()
}

/// What a transaction changed, by the oracle's trees before and after it.
fn changes_between(before: &super::Dump, after: &super::Dump) -> ChangeSet {
    let paths: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = paths.into_iter().filter(|path| before.get(*path) != after.get(*path));
    changed.map(|path| (path.clone(), before.get(path).cloned(), after.get(path).cloned())).collect()
}

/// Who is named by each stored record, and under which revision.
fn appended(stored: &StoredState) -> Vec<(u64, String)> {
    let executions = stored.records.iter().filter(|row| &*row.kind == Execution::KIND);
    let mut rows: Vec<_> = executions
        .map(|row| (row.id.revision.0, serde_json::from_str::<Execution>(&row.document.json).unwrap().store))
        .collect();
    rows.sort();
    rows
}

fn hold_entities(cluster: &Cluster) -> Vec<Hold> {
    (0..cluster.len()).map(|index| cluster.points(index).hold(point::UPKEEP_BEFORE_ENTITIES)).collect()
}

/// Takes in the change of one step from a feed.
async fn expect_change(feed: &mut Feed, before: &super::Dump, oracle: &Oracle, step: usize) {
    let applied = next_transaction(feed).await;
    assert_eq!(applied.revision, Revision(oracle.revision), "step {step}");
    assert_eq!(changes_of(&applied), changes_between(before, &oracle.tree), "step {step}");
}

/// D1: the same trees, revisions, change lists, records and answers, and a sound store after each step, whichever of two
/// servers writes.
pub async fn d01_random_script_agrees_with_the_oracle(case: Case) {
    let cluster = case.cluster(2).await;
    let mut oracle = Oracle::default();
    let script = script(case.seed, SCRIPT, &|name| case.id(name));
    let mut feeds: Vec<Feed> = (0..2).map(|index| cluster.server(index).changes(None)).collect();
    for feed in &mut feeds {
        let _ = feed.next().await;
    }
    for (number, ops) in script.iter().enumerate() {
        let before = oracle.tree.clone();
        let changed = step(cluster.server(number % 2), &mut oracle, ops, number).await;
        if changed {
            for feed in &mut feeds {
                expect_change(feed, &before, &oracle, number).await;
            }
        }
        if changed && number % case.read_every() == 0 || number % 50 == 0 {
            let found = cluster.lint().await;
            assert!(found.is_empty(), "step {number}: {found:?}");
        }
    }
    agree(&cluster, Some(&oracle.tree)).await;
    let stored = cluster.stored().await;
    let mut records = oracle.records.clone();
    records.sort();
    assert_eq!(appended(&stored), records);
    assert_eq!(stored.meta.head, Revision(oracle.revision));
    cluster.finish().await;
}

/// D2: after every 20 steps a server that lives long beside the one that writes, and one that comes late, have the
/// oracle's tree; in every other run the late one starts from an old table and a long log.
pub async fn d02_old_hand_and_latecomer_agree_with_the_oracle(case: Case) {
    let cluster = case.cluster(2).await;
    let mut oracle = Oracle::default();
    let script = script(case.seed, SCRIPT, &|name| case.id(name));
    let held_from = case.seed.is_multiple_of(2).then(|| usize::try_from(case.seed % (SCRIPT as u64)).unwrap());
    let mut holds = Vec::new();
    for (number, ops) in script.iter().enumerate() {
        if held_from == Some(number) {
            holds = hold_entities(&cluster);
        }
        step(cluster.server(0), &mut oracle, ops, number).await;
        if number % 20 == 19 {
            agree(&cluster, Some(&oracle.tree)).await;
            assert_eq!(cluster.server(1).snapshot().revision(), Revision(oracle.revision), "step {number}");
        }
    }
    drop(holds);
    cluster.finish().await;
}
