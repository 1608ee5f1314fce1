//! What the cases write, and what their hooks write.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::driver::RequestId;
use crate::{Entity, IndexKey, Outcome, Record, Ref, Registration, Root, Run};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Store {
    pub(crate) value: u64,
}
impl Entity for Store {
    const COLLECTION: &'static str = "stores";
    type Parent = Root;
    type Id = String;
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Version {
    pub(crate) value: u64,
}
impl Entity for Version {
    const COLLECTION: &'static str = "versions";
    type Parent = Store;
    type Id = u64;
}

/// What hooks write: one per store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Effect {
    pub(crate) count: u64,
    pub(crate) last: u64,
}
impl Entity for Effect {
    const COLLECTION: &'static str = "effects";
    type Parent = Root;
    type Id = String;
}

/// One per run that was acknowledged with writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) request: RequestId,
    pub(crate) token: u64,
}
impl Record for Ledger {
    const KIND: &'static str = "ledger";
    const INDEXES: &'static [&'static str] = &["request"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().number(i64::try_from(self.request.revision.0).unwrap())]
    }
}

pub(crate) fn store(id: &str) -> Ref<Store> {
    Ref::root(id).unwrap()
}

pub(crate) fn effect(id: &str) -> Ref<Effect> {
    Ref::root(id).unwrap()
}

/// One of the records of a run that appends several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trace {
    pub(crate) request: RequestId,
    pub(crate) token: u64,
    pub(crate) step: u64,
}
impl Record for Trace {
    const KIND: &'static str = "trace";
    const INDEXES: &'static [&'static str] = &["request"];
    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::new().number(i64::try_from(self.request.revision.0).unwrap())]
    }
}

/// The registration that most cases use: one key per store.
pub(crate) fn per_store(name: &str) -> Registration {
    Registration::new(name, 1)
        .on("/stores/{store}")
        .key("{store}")
        .slots(8)
        .backoff(Duration::from_secs(1), Duration::from_secs(60))
}

/// An outcome that counts in the tree and appends a ledger record, both with the acknowledgement.
pub(crate) fn counted(run: &Run) -> Outcome {
    let (id, request, token) = (run.id("store").unwrap(), run.request(), run.token().0);
    Outcome::done_with(move |tx| {
        let path = effect(&id);
        let count = tx.get(&path)?.map_or(0, |effect| effect.count);
        tx.put(&path, Effect { count: count + 1, last: request.revision.0 })?;
        tx.append(&Ledger { request, token })?;
        Ok(())
    })
}

/// As [`counted`], with two further records.
pub(crate) fn traced(run: &Run) -> Outcome {
    let (id, request, token) = (run.id("store").unwrap(), run.request(), run.token().0);
    Outcome::done_with(move |tx| {
        let path = effect(&id);
        let count = tx.get(&path)?.map_or(0, |effect| effect.count);
        tx.put(&path, Effect { count: count + 1, last: request.revision.0 })?;
        tx.append(&Ledger { request, token })?;
        (1..=2).try_for_each(|step| tx.append(&Trace { request, token, step }).map(|_| ()))
    })
}
