//! The oracle: a plain map with the same transactions applied in order, and no driver.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Dump;
use super::entities::*;
use crate::entity::{Entity, Ref};
use crate::path::Path;
use crate::transaction::{Transaction, TransactionError};

/// One step of a transaction of the random script.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Creates or replaces a store.
    PutStore(String, i64),
    /// Creates a store that must not exist.
    CreateStore(String, i64),
    /// Changes a store that must exist.
    RaiseStore(String),
    /// Creates or replaces a version.
    PutVersion(String, u64, u64),
    /// Creates or replaces a mark below a version.
    PutMark(String, u64, String),
    /// Deletes a store with all below it.
    DeleteStore(String),
    /// Deletes a version with all below it.
    DeleteVersion(String, u64),
    /// A store must have this limit, or be absent.
    Expect(String, Option<i64>),
    /// Appends a record.
    Append(String),
    /// Fails.
    Fail,
}

/// How a transaction of the script ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Committed or nothing to commit.
    Done {
        /// Whether there was anything to commit.
        changed: bool,
    },
    /// Refused, with the kind of error.
    Refused(&'static str),
}

/// The kind of an error, to be compared between the oracle and a state.
#[must_use]
pub fn kind(error: &TransactionError) -> &'static str {
    match error {
        TransactionError::AlreadyExists { .. } => "exists",
        TransactionError::Absent { .. } => "absent",
        TransactionError::AbsentAncestor { .. } => "ancestor",
        TransactionError::Precondition { .. } => "precondition",
        TransactionError::Rejected(_) => "rejected",
        _ => "other",
    }
}

/// Draws a script of transactions; a third fails or changes nothing, a third appends records.
#[must_use]
pub fn script(seed: u64, transactions: usize, id: &dyn Fn(&str) -> String) -> Vec<Vec<Op>> {
    let mut random = StdRng::seed_from_u64(seed);
    let stores: Vec<String> = ["a", "b", "c", "10", "9"].iter().map(|name| id(name)).collect();
    (0..transactions)
        .map(|_| {
            let mut ops = Vec::new();
            for _ in 0..random.random_range(1..5) {
                let store = stores[random.random_range(0..stores.len())].clone();
                let number = random.random_range(0..6_u64);
                ops.push(match random.random_range(0..20) {
                    0..=4 => Op::PutStore(store, random.random_range(0..3)),
                    5 => Op::CreateStore(store, random.random_range(0..3)),
                    6..=7 => Op::RaiseStore(store),
                    8..=11 => Op::PutVersion(store, number, random.random_range(0..3)),
                    12..=13 => Op::PutMark(store, number, ["x", "y"][random.random_range(0..2)].to_owned()),
                    14 => Op::DeleteStore(store),
                    15..=16 => Op::DeleteVersion(store, number),
                    17 => Op::Expect(store, [None, Some(1)][random.random_range(0..2)]),
                    18 => Op::Append(store),
                    _ => Op::Fail,
                });
            }
            if random.random_range(0..4) == 0 {
                ops.push(Op::Append("more".to_owned()));
            }
            ops
        })
        .collect()
}

/// Carries a transaction of the script out.
pub fn carry_out(ops: &[Op], tx: &mut Transaction) -> Result<(), TransactionError> {
    for op in ops {
        match op {
            Op::PutStore(id, limit) => tx.put(&root(id)?, store("o", *limit))?,
            Op::CreateStore(id, limit) => tx.create(&root(id)?, store("o", *limit))?,
            Op::RaiseStore(id) => tx.update(&root(id)?, |store| store.limit += 1)?,
            Op::PutVersion(id, number, rows) => tx.put(&version(id, *number)?, Version { rows: *rows })?,
            Op::PutMark(id, number, text) => {
                let mark: Ref<Mark> = version(id, *number)?.child("m".to_owned())?;
                tx.put(&mark, Mark { text: text.clone() })?;
            }
            Op::DeleteStore(id) => {
                tx.delete(&root(id)?)?;
            }
            Op::DeleteVersion(id, number) => {
                tx.delete(&version(id, *number)?)?;
            }
            Op::Expect(id, limit) => tx.expect(&root(id)?, limit.map(|limit| store("o", limit)).as_ref())?,
            Op::Append(who) => {
                tx.append(&Execution { store: who.clone(), started: 1, text: String::new() })?;
            }
            Op::Fail => return Err(TransactionError::rejected("the script says so")),
        }
    }
    Ok(())
}

fn root(id: &str) -> Result<Ref<Store>, TransactionError> {
    Ok(Ref::root(id.to_owned())?)
}

fn version(id: &str, number: u64) -> Result<Ref<Version>, TransactionError> {
    Ok(root(id)?.child(number)?)
}

/// A plain map from path to text, and nothing else of the implementation.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    /// The tree.
    pub tree: Dump,
    /// How many transactions took a revision.
    pub revision: u64,
    /// Who is named by each record, with the revision under which it was appended.
    pub records: Vec<(u64, String)>,
}

impl Oracle {
    /// Applies a transaction of the script.
    pub fn apply(&mut self, ops: &[Op]) -> Ended {
        let mut tree = self.tree.clone();
        let mut records = Vec::new();
        for op in ops {
            if let Err(kind) = step(&mut tree, op, &mut records) {
                return Ended::Refused(kind);
            }
        }
        let changed = !records.is_empty() || tree != self.tree;
        if changed {
            self.revision += 1;
            let revision = self.revision;
            self.records.extend(records.into_iter().map(|who| (revision, who)));
            self.tree = tree;
        }
        Ended::Done { changed }
    }
}

fn step(tree: &mut Dump, op: &Op, records: &mut Vec<String>) -> Result<(), &'static str> {
    let store_at = |id: &str| format!("{}", Path::root().child(Store::COLLECTION, id).unwrap());
    let version_at = |id: &str, number: u64| format!("{}/versions/{number}", store_at(id));
    let text = |limit: i64| format!("{{\"owner\":\"o\",\"limit\":{limit}}}");
    let remove = |tree: &mut Dump, at: &str| {
        let below = format!("{at}/");
        tree.retain(|path, _| path != at && !path.starts_with(&below));
    };
    match op {
        Op::PutStore(id, limit) => {
            tree.insert(store_at(id), text(*limit));
        }
        Op::CreateStore(id, limit) => {
            if tree.insert(store_at(id), text(*limit)).is_some() {
                return Err("exists");
            }
        }
        Op::RaiseStore(id) => {
            let there = tree.get_mut(&store_at(id)).ok_or("absent")?;
            let value: BTreeMap<String, serde_json::Value> = serde_json::from_str(there).unwrap();
            *there = text(value["limit"].as_i64().unwrap() + 1);
        }
        Op::PutVersion(id, number, rows) => {
            if !tree.contains_key(&store_at(id)) {
                return Err("ancestor");
            }
            tree.insert(version_at(id, *number), format!("{{\"rows\":{rows}}}"));
        }
        Op::PutMark(id, number, text) => {
            if !tree.contains_key(&version_at(id, *number)) {
                return Err("ancestor");
            }
            tree.insert(format!("{}/marks/m", version_at(id, *number)), format!("{{\"text\":\"{text}\"}}"));
        }
        Op::DeleteStore(id) => remove(tree, &store_at(id)),
        Op::DeleteVersion(id, number) => remove(tree, &version_at(id, *number)),
        Op::Expect(id, limit) => {
            if tree.get(&store_at(id)).cloned() != limit.map(text) {
                return Err("precondition");
            }
        }
        Op::Append(who) => records.push(who.clone()),
        Op::Fail => return Err("rejected"),
    }
    Ok(())
}
