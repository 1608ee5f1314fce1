//! What the servers of a run work on, and what their hooks do about it.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tidegate_state::{Entity, IndexKey, Record, Ref, Registration, Retain, Root, Transaction, TransactionError};

use super::builds::{self, Build};
use super::serving::HookOrders;

/// How many things there are; each is a key of both hooks.
pub(crate) const THINGS: u64 = 500;

/// What is changed, rejected and deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Thing {
    /// Never the same twice, so that every put is a change.
    pub(crate) value: u64,
}

impl Entity for Thing {
    const COLLECTION: &'static str = "things";
    type Parent = Root;
    type Id = u64;
}

/// How often the runs of a hook for a key took effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) runs: u64,
}

impl Entity for Count {
    const COLLECTION: &'static str = "counts";
    type Parent = Root;
    type Id = String;
}

/// One run that took effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Effect {
    /// The request, as `revision.sequence.hook`.
    pub(crate) request: String,
    pub(crate) hook: String,
    pub(crate) key: String,
    pub(crate) token: u64,
}

impl Record for Effect {
    const KIND: &'static str = "effect";
    const INDEXES: &'static [&'static str] = &["hook"];

    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().text(&self.hook)]
    }
}

/// What a run leaves beside its effect where records are pruned throughout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trace {
    pub(crate) key: String,
}

impl Record for Trace {
    const KIND: &'static str = "trace";
    const INDEXES: &'static [&'static str] = &["key"];
    const RETENTION: Retain = Retain { age: Some(Duration::from_secs(1)), per_key: None };

    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().text(&self.key)]
    }
}

/// One operation of a writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Put {
        thing: u64,
        value: u64,
    },
    Delete {
        thing: u64,
    },
    /// A transaction that changes a thing and then says no.
    Reject {
        thing: u64,
    },
}

/// The operation of this number of a server, the same in every run of the seed.
pub(crate) fn operation(seed: u64, server: usize, number: u64) -> Operation {
    let mut random = StdRng::seed_from_u64(seed ^ ((server as u64 + 1) << 48) ^ number);
    let thing = random.random_range(0..THINGS);
    match random.random_range(0..10) {
        0 => Operation::Delete { thing },
        1 => Operation::Reject { thing },
        _ => Operation::Put { thing, value: ((server as u64 + 1) << 48) | number },
    }
}

impl Operation {
    pub(crate) fn apply(self, build: Build, transaction: &mut Transaction) -> Result<(), TransactionError> {
        let place = |thing| Ref::<Thing>::root(thing);
        match self {
            Operation::Put { thing, value } => match build {
                Build::One => transaction.put(&place(thing)?, Thing { value }),
                Build::Two => builds::put(transaction, thing, value),
            },
            Operation::Delete { thing } => transaction.delete(&place(thing)?).map(|_| ()),
            Operation::Reject { thing } => {
                transaction.put(&place(thing)?, Thing { value: u64::MAX })?;
                Err(TransactionError::rejected("as planned"))
            }
        }
    }
}

/// The hook that is given every change.
pub(crate) const EVERY: &str = "every";
/// The hook that wants the latest state.
pub(crate) const LATEST: &str = "latest";

/// The hook whose runs leave nothing: their receipts are all that is sent.
pub(crate) const PLAIN: &str = "plain";

/// Whether a hook is given every change, by its name.
pub(crate) fn is_every_change(hook: &str) -> bool {
    hook.starts_with(EVERY)
}

/// A hook as a server's code has it.
pub(crate) fn registration(hook: &HookOrders) -> Registration {
    let begun = Registration::new(hook.name.as_str(), hook.version)
        .key("{thing}")
        .slots(hook.slots)
        .attempts_unlimited()
        .backoff(Duration::from_millis(500), Duration::from_secs(5));
    let begun = hook.cap.map_or(begun.clone(), |cap| begun.runs_in_cluster(cap));
    let registration = hook.patterns.iter().fold(begun, |registration, pattern| registration.on(pattern.as_str()));
    if is_every_change(&hook.name) { registration.every_change() } else { registration.latest_state() }
}
