//! What is written, and what it does to a plain map: the tree that servers are compared with.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_state::{Entity, Ref, Root, Transaction, TransactionError};

/// What is changed, rejected and deleted. Each is a key of the hooks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Thing {
    pub(crate) value: u64,
}

impl Entity for Thing {
    const COLLECTION: &'static str = "things";
    type Parent = Root;
    type Id = u64;
}

/// What goes with its thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) value: u64,
}

impl Entity for Part {
    const COLLECTION: &'static str = "parts";
    type Parent = Thing;
    type Id = u64;
}

/// One transaction of a writer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Put {
        thing: u64,
        value: u64,
    },
    /// Refused where the thing is absent.
    PutPart {
        thing: u64,
        part: u64,
        value: u64,
    },
    /// Takes its parts along.
    Delete {
        thing: u64,
    },
    /// Two things, all or nothing.
    PutBoth {
        things: (u64, u64),
        value: u64,
    },
    /// Writes what is there already: no change.
    PutSame {
        thing: u64,
    },
    /// Changes a thing, and then says no.
    Reject {
        thing: u64,
    },
}

/// What a tree holds: each entity's document by its path.
pub(crate) type Tree = BTreeMap<String, Value>;

/// What a transaction did: each path with what is there now.
pub(crate) type Changes = BTreeSet<(String, Option<String>)>;

impl Operation {
    /// An operation on one of so many things; `value` was never written before.
    pub(crate) fn draw(random: &mut StdRng, things: u64, value: u64) -> Operation {
        let thing = random.random_range(0..things);
        match random.random_range(0..20) {
            0..9 => Operation::Put { thing, value },
            9..12 => Operation::PutPart { thing, part: random.random_range(0..2), value },
            12..15 => Operation::Delete { thing },
            15 | 16 => Operation::PutBoth { things: (thing, random.random_range(0..things)), value },
            17 => Operation::PutSame { thing },
            _ => Operation::Reject { thing },
        }
    }

    pub(crate) fn carry_out(&self, transaction: &mut Transaction) -> Result<(), TransactionError> {
        let thing_at = |thing: u64| Ref::<Thing>::root(thing);
        match *self {
            Operation::Put { thing, value } => transaction.put(&thing_at(thing)?, Thing { value }),
            Operation::PutPart { thing, part, value } => {
                transaction.put(&thing_at(thing)?.child::<Part>(part)?, Part { value })
            }
            Operation::Delete { thing } => transaction.delete(&thing_at(thing)?).map(|_| ()),
            Operation::PutBoth { things, value } => {
                transaction.put(&thing_at(things.0)?, Thing { value })?;
                transaction.put(&thing_at(things.1)?, Thing { value })
            }
            Operation::PutSame { thing } => match transaction.get(&thing_at(thing)?)? {
                Some(there) => transaction.put(&thing_at(thing)?, (*there).clone()),
                None => Ok(()),
            },
            Operation::Reject { thing } => {
                transaction.put(&thing_at(thing)?, Thing { value: u64::MAX })?;
                Err(TransactionError::rejected("as planned"))
            }
        }
    }

    /// What it does to this tree; nothing where it is refused or changes nothing.
    pub(crate) fn changes(&self, tree: &Tree) -> Changes {
        let path_of = |thing: u64| format!("/things/{thing}");
        let put = |path: String, value: u64| (path, Some(serde_json::json!({ "value": value }).to_string()));
        match *self {
            Operation::Put { thing, value } => [put(path_of(thing), value)].into(),
            Operation::PutPart { thing, part, value } => {
                let parent = path_of(thing);
                if tree.contains_key(&parent) {
                    [put(format!("{parent}/parts/{part}"), value)].into()
                } else {
                    [].into()
                }
            }
            Operation::Delete { thing } => {
                let (path, below) = (path_of(thing), format!("{}/", path_of(thing)));
                let gone = tree.keys().filter(|there| **there == path || there.starts_with(&below));
                gone.map(|there| (there.clone(), None)).collect()
            }
            Operation::PutBoth { things, value } => {
                [put(path_of(things.0), value), put(path_of(things.1), value)].into()
            }
            Operation::PutSame { .. } | Operation::Reject { .. } => [].into(),
        }
    }
}
