//! What the servers of a run work on, and what their hooks do about it.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tidegate_state::{
    ClusterHook, Entity, IndexKey, Outcome, Record, Ref, Registration, Root, Run, Transaction, TransactionError,
};

/// How many things there are; each is a key of both hooks.
pub(crate) const THINGS: u64 = 500;

/// The slots of each hook.
const SLOTS: u32 = 32;

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
    pub(crate) fn apply(self, transaction: &mut Transaction) -> Result<(), TransactionError> {
        let place = |thing| Ref::<Thing>::root(thing);
        match self {
            Operation::Put { thing, value } => transaction.put(&place(thing)?, Thing { value }),
            Operation::Delete { thing } => transaction.delete(&place(thing)?).map(|_| ()),
            Operation::Reject { thing } => {
                transaction.put(&place(thing)?, Thing { value: u64::MAX })?;
                Err(TransactionError::rejected("as planned"))
            }
        }
    }
}

/// The hooks of a run: one that is given every change, and one that wants the latest state.
pub(crate) fn registrations() -> [Registration; 2] {
    let of =
        |name: &str| Registration::new(name, 1).on("/things/{thing}").key("{thing}").slots(SLOTS).attempts_unlimited();
    [of("every").every_change(), of("latest").latest_state()]
}

/// Takes a moment, counts itself, and appends a record: all with its receipt, or nothing.
pub(crate) struct Counting;

#[async_trait::async_trait]
impl ClusterHook for Counting {
    async fn run(&self, run: Run) -> Outcome {
        // The work of a hook: some of it is always going on when a fault comes.
        let milliseconds = run.request().revision.0 % 20;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        let (hook, key) = (run.hook().to_owned(), run.key().as_str().to_owned());
        let effect =
            Effect { request: run.request().to_string(), hook: hook.clone(), key: key.clone(), token: run.token().0 };
        Outcome::done_with(move |transaction: &mut Transaction| {
            let count: Ref<Count> = Ref::root(format!("{hook}.{key}"))?;
            let runs = transaction.get(&count)?.map_or(0, |count| count.runs);
            transaction.put(&count, Count { runs: runs + 1 })?;
            transaction.append(&effect).map(|_| ())
        })
    }
}
